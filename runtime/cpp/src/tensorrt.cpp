#include "tensorrt.h"

#include <cstdio>

#include "library.h"

#define PARAMORPH_TEXT(number) #number
#define PARAMORPH_EXPANDED_TEXT(number) PARAMORPH_TEXT(number)
#define PARAMORPH_MAJOR_TEXT PARAMORPH_EXPANDED_TEXT(NV_TENSORRT_MAJOR)

namespace paramorph {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr char kSoname[] = "libtensorrt_rtx.so." PARAMORPH_MAJOR_TEXT;
constexpr bool kMinorVersionsShareAnAbi = false;  // 1.5 broke that of 1.4
#else
constexpr char kSoname[] = "libnvinfer.so." PARAMORPH_MAJOR_TEXT;
constexpr bool kMinorVersionsShareAnAbi = true;
#endif

thread_local char first_error[512] = "";

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR && first_error[0] == '\0') {
            std::snprintf(first_error, sizeof first_error, "%s", message);
        }
    }
};

// TensorRT may keep the first logger that it sees for as long as the program runs.
Logger& logger() {
    static Logger forever;
    return forever;
}

void check_abi(const std::string& path, int major, int minor, const std::string& version) {
    const bool fits =
        kMinorVersionsShareAnAbi ? minor >= NV_TENSORRT_MINOR : minor == NV_TENSORRT_MINOR;
    if (major != NV_TENSORRT_MAJOR || !fits) {
        refuse(
            PARAMORPH_MISSING_DEPENDENCY,
            path + ": expected " + kBuiltFor +
                (kMinorVersionsShareAnAbi ? " or a later minor "
                                            "version"
                                          : "") +
                ", whose headers libparamorph was compiled with, got version " + version +
                "; install that TensorRT, or compile libparamorph with the headers of this one.");
    }
}

}  // namespace

const char* const kBuiltFor =
#ifdef TRT_MAJOR_RTX
    "tensorrt-rtx "
#else
    "tensorrt "
#endif
    PARAMORPH_MAJOR_TEXT "." PARAMORPH_EXPANDED_TEXT(NV_TENSORRT_MINOR);

TensorRT::TensorRT(const char* path) {
    const std::string name = path != nullptr ? path : kSoname;
    const Library library(name, kBuiltFor,
                          "install it, or say where it lies in options.library");
    const auto number = [&library](const char* function) {
        return library.symbol<int32_t (*)()>(function)();
    };
    const int major = number("getInferLibMajorVersion"), minor = number("getInferLibMinorVersion");
    version = std::to_string(major) + "." + std::to_string(minor) + "." +
              std::to_string(number("getInferLibPatchVersion")) + "." +
              std::to_string(number("getInferLibBuildVersion"));
    check_abi(name, major, minor, version);
    // What the headers' createInferRuntime calls.
    create_runtime_ = library.symbol<void* (*)(void*, int32_t)>("createInferRuntime_INTERNAL");
}

std::unique_ptr<nvinfer1::IRuntime> TensorRT::runtime() const {
    logged_error();  // forget those of earlier calls
    auto* const runtime =
        static_cast<nvinfer1::IRuntime*>(create_runtime_(&logger(), NV_TENSORRT_VERSION));
    if (runtime == nullptr) {
        refuse(PARAMORPH_BACKEND_ERROR, std::string(kFlavour) + " " + version +
                                            ": expected a runtime, got none (" + logged_error() +
                                            "); see what `nvidia-smi` says of the GPU.");
    }
    return std::unique_ptr<nvinfer1::IRuntime>(runtime);
}

std::string logged_error() {
    std::string message = first_error;
    first_error[0] = '\0';
    return message.empty() ? "it logged no reason" : message;
}

}  // namespace paramorph
