// Threads that wait for work and share it.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace paramorph {

class Workers {
public:
    // count: the calling thread is one of them; 0 is one per core.
    explicit Workers(int count);
    ~Workers();
    Workers(const Workers&) = delete;

    int count() const { return static_cast<int>(threads_.size()) + 1; }

    // Calls task(0) … task(tasks - 1), which must not throw, in any order and in all threads.
    void each(int tasks, const std::function<void(int)>& task);

private:
    void wait_for_work();
    void take_tasks(std::unique_lock<std::mutex>& lock);
    void stop();

    std::mutex mutex_;
    std::condition_variable there_is_work_, all_is_done_;
    const std::function<void(int)>* task_ = nullptr;
    int tasks_ = 0, next_ = 0, unfinished_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace paramorph
