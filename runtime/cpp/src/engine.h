// The story of the library: bundle → engine for this machine → displacement and warped volume.
#pragma once

#include <paramorph.h>

#include <memory>
#include <mutex>
#include <optional>

#include "bundle.h"
#include "cuda.h"
#include "session.h"

namespace paramorph {

// Its functions are those of the C interface, which says what they do.
class Engine {
public:
    Engine(const char* folder, const paramorph_options& options);
    ~Engine();

    paramorph_info info() const;
    void run(const float* moving, const float* fixed, float* displacement, float* warped);
    void enqueue(const float* moving, const float* fixed, float* displacement, float* warped,
                 CUstream stream);
    CUstream stream() const { return session_->stream.get(); }

private:
    void check_arrays(const float* moving, const float* fixed, const float* displacement,
                      const float* warped) const;
    CUdeviceptr checked_address(const char* name, const float* array, std::size_t bytes) const;

    Bundle bundle_;
    EngineEntry entry_;
    std::optional<Device> device_;
    std::unique_ptr<Session> session_;
    std::mutex one_at_a_time_;
};

}  // namespace paramorph
