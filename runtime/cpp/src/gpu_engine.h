// A bundle's TensorRT engine on a GPU: choose, copy, run.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "cuda.h"
#include "engine.h"
#include "session.h"

namespace paramorph {

class GpuEngine final : public Engine {
public:
    GpuEngine(const char* folder, const paramorph_options& options);
    ~GpuEngine() override;

    paramorph_info info() const override;
    void run(const float* moving, const float* fixed, float* displacement, float* warped) override;
    void features(const float* moving, const float* fixed, float* features) override;
    void enqueue(const float* moving, const float* fixed, float* displacement, float* warped,
                 void* stream) override;
    void* stream() const override { return session_->stream.get(); }

private:
    CUdeviceptr checked_address(const char* name, const float* array, std::size_t bytes) const;

    Bundle bundle_;
    EngineEntry entry_;
    std::optional<Device> device_;
    std::unique_ptr<Session> session_;
    std::mutex one_at_a_time_;
};

}  // namespace paramorph
