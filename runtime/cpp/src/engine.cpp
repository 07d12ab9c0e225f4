#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu_engine.h"
#include "error.h"
#include "gpu_engine.h"

namespace paramorph {
namespace {

void check_network(const char* network, bool on_gpu) {
    if (network == nullptr || std::strcmp(network, "registration") == 0) {
        return;
    }
    const std::string given = std::string(", got \"") + network + "\"; ";
    if (std::strcmp(network, kFeatures) != 0) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "options.network: expected \"registration\" or \"features\"" + given +
                   "choose one, or NULL for the registration.");
    }
    if (on_gpu) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "options.network: expected \"registration\" on a GPU" + given +
                   "run it on the CPU, by options.backend \"onnxruntime\".");
    }
}

}  // namespace

std::unique_ptr<Engine> open_engine(const char* folder, const paramorph_options& options) {
    const bool on_gpu = options.backend == nullptr || std::strcmp(options.backend, "tensorrt") == 0;
    check_network(options.network, on_gpu);
    if (on_gpu) {
        return std::make_unique<GpuEngine>(folder, options);
    }
    if (std::strcmp(options.backend, "onnxruntime") == 0) {
        return std::make_unique<CpuEngine>(folder, options);
    }
    refuse(PARAMORPH_INVALID_ARGUMENT,
           std::string("options.backend: expected \"tensorrt\" or \"onnxruntime\", got \"") +
               options.backend + "\"; choose one, or NULL for TensorRT.");
}

Shape requested_shape(const Bundle& bundle, const paramorph_options& options) {
    const Shape asked = {options.shape[0], options.shape[1], options.shape[2]};
    return asked == Shape{} ? bundle.shape : asked;
}

paramorph_info info_of(const Bundle& bundle, const Shape& shape) {
    paramorph_info info{};
    info.name = bundle.name.c_str();
    info.orientation = bundle.orientation.c_str();
    info.sampling = bundle.sampling.c_str();
    std::copy(shape.begin(), shape.end(), info.shape);
    std::copy(bundle.spacing_mm.begin(), bundle.spacing_mm.end(), info.spacing_mm);
    info.lower_percentile = bundle.lower_percentile;
    info.upper_percentile = bundle.upper_percentile;
    info.smoothing = 1;
    return info;
}

void check_arrays(const char* file, bool has_warped, const float* moving, const float* fixed,
                  const float* displacement, const float* warped) {
    if (moving == nullptr || fixed == nullptr || displacement == nullptr) {
        refuse(
            PARAMORPH_INVALID_ARGUMENT,
            "moving, fixed, displacement: expected three arrays, got NULL; only warped may be it.");
    }
    if (warped != nullptr && !has_warped) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               std::string("warped: expected NULL, since ") + file +
                   " gives the displacement alone, got an array; pass NULL.");
    }
}

void check_finite(const char* file, const char* what, const float* values, std::size_t count) {
    if (!std::all_of(values, values + count, [](float value) { return std::isfinite(value); })) {
        refuse(PARAMORPH_BACKEND_ERROR, std::string(file) + ": expected finite " + what +
                                            ", got values that are not; verify that the volumes "
                                            "are finite and in [0, 1].");
    }
}

}  // namespace paramorph
