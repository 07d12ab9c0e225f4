// TensorRT, full or for RTX, whichever's headers this was compiled with; opened when it is needed.
//
// Its classes are called through tables of virtual functions whose order is fixed when they are
// compiled. A library of another ABI would run the wrong function, so its version is looked at
// first.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#if !defined(TRT_MAJOR_RTX) && NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR < 1001
#error "expected the headers of TensorRT 10.1 or newer, or of TensorRT for RTX"
#endif

namespace paramorph {

#ifdef TRT_MAJOR_RTX
constexpr char kFlavour[] = "tensorrt-rtx";
#else
constexpr char kFlavour[] = "tensorrt";
#endif

// Major and minor version of the headers.
extern const char* const kBuiltFor;

class TensorRT {
public:
    // path: NULL where the loader finds it by its name.
    // Throws PARAMORPH_MISSING_DEPENDENCY: it is not there, or of another ABI than the headers.
    explicit TensorRT(const char* path);

    // Throws PARAMORPH_BACKEND_ERROR.
    std::unique_ptr<nvinfer1::IRuntime> runtime() const;

    std::string version;  // in full, such as "1.7.1.116"

private:
    void* (*create_runtime_)(void* logger, int32_t version);
};

// The first error that TensorRT logged in this thread since it was last asked.
std::string logged_error();

}  // namespace paramorph
