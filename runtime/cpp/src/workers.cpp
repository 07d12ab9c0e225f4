#include "workers.h"

#include <algorithm>

namespace paramorph {

Workers::Workers(int count) {
    if (count == 0) {
        count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    }
    threads_.reserve(static_cast<std::size_t>(count - 1));
    try {
        for (int i = 1; i < count; ++i) {
            threads_.emplace_back([this] { wait_for_work(); });
        }
    } catch (...) {  // the system gives no more of them
        stop();
        throw;
    }
}

Workers::~Workers() { stop(); }

void Workers::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    there_is_work_.notify_all();
    for (std::thread& thread : threads_) {
        thread.join();
    }
}

void Workers::each(int tasks, const std::function<void(int)>& task) {
    std::unique_lock<std::mutex> lock(mutex_);
    task_ = &task;
    tasks_ = unfinished_ = tasks;
    next_ = 0;
    there_is_work_.notify_all();
    take_tasks(lock);
    all_is_done_.wait(lock, [this] { return unfinished_ == 0; });
}

void Workers::wait_for_work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        there_is_work_.wait(lock, [this] { return stopping_ || next_ < tasks_; });
        if (stopping_) {
            return;
        }
        take_tasks(lock);
    }
}

void Workers::take_tasks(std::unique_lock<std::mutex>& lock) {
    while (next_ < tasks_) {
        const int mine = next_++;
        const auto& task = *task_;
        lock.unlock();
        task(mine);
        lock.lock();
        if (--unfinished_ == 0) {
            all_is_done_.notify_all();
        }
    }
}

}  // namespace paramorph
