// An engine on the current GPU, with the memory for one registration at a time.
#pragma once

#include <memory>
#include <vector>

#include "bundle.h"
#include "cuda.h"
#include "tensorrt.h"

namespace paramorph {

class Session {
public:
    // file: the engine's bytes, not needed afterwards.
    // plugin: path of the library that the engine needs, or "".
    // Throws PARAMORPH_BACKEND_ERROR: TensorRT or CUDA refused.
    // Throws PARAMORPH_BUNDLE_ERROR: its tensors are not those of a registration.
    Session(const TensorRT& tensorrt, const std::vector<char>& file, const EngineEntry& entry,
            const std::string& plugin);
    ~Session();  // waits for what was enqueued

    // Registers on a stream, after whatever this session was last asked to do on another.
    // All addresses are on the GPU; without `warped`, that volume goes to a buffer here.
    void enqueue(CUdeviceptr moving, CUdeviceptr fixed, CUdeviceptr displacement,
                 CUdeviceptr warped, CUstream stream);

    // For volumes that come from the host.
    const Buffer moving, fixed, displacement, warped;
    const Stream stream;

    bool has_warped() const { return has_warped_; }
    std::size_t volume_bytes() const { return volume_bytes_; }
    std::int64_t device_memory() const;

private:
    void check_tensors();
    void bind(const char* tensor, CUdeviceptr address);

    const EngineEntry entry_;
    const std::size_t volume_bytes_;
    bool has_warped_ = false;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    Event finished_;  // recorded after each registration
};

}  // namespace paramorph
