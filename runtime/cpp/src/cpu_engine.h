// A bundle's registration or feature network on the CPU, by ONNX Runtime.
#pragma once

#include <mutex>
#include <vector>

#include "engine.h"
#include "onnxruntime.h"

namespace paramorph {

class CpuEngine final : public Engine {
public:
    CpuEngine(const char* folder, const paramorph_options& options);

    paramorph_info info() const override;
    void run(const float* moving, const float* fixed, float* displacement, float* warped) override;
    void features(const float* moving, const float* fixed, float* features) override;
    void enqueue(const float* moving, const float* fixed, float* displacement, float* warped,
                 void* stream) override;
    void* stream() const override { return nullptr; }

private:
    Bundle bundle_;
    const bool gives_features_;
    NetworkEntry entry_;
    OnnxRuntime library_;
    OnnxRuntime::Session session_;
    std::mutex one_at_a_time_;
};

}  // namespace paramorph
