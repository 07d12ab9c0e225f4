#include "cpu_engine.h"

#include <algorithm>

#include "error.h"

namespace paramorph {
namespace {

// The network of the shape and precision that are asked for, rewritten for CPUs.
NetworkEntry chosen(const Bundle& bundle, const paramorph_options& options) {
    const std::string precision = options.precision != nullptr ? options.precision : "fp32";
    if (precision != "fp32") {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "options.precision: expected \"fp32\" on the CPU, got \"" + precision +
                   "\"; choose it, or a backend with a GPU.");
    }
    const Shape shape = requested_shape(bundle, options);
    const auto found = std::find_if(
        bundle.networks.begin(), bundle.networks.end(), [&](const NetworkEntry& entry) {
            return entry.precision == precision && entry.device == "cpu" && entry.shape == shape;
        });
    if (found == bundle.networks.end()) {
        refuse(PARAMORPH_NO_ENGINE, bundle.name + ": expected a network of precision fp32 at " +
                                        text(shape) +
                                        " for CPUs, got none; choose another in options.shape, or "
                                        "export the bundle at it.");
    }
    return *found;
}

}  // namespace

CpuEngine::CpuEngine(const char* folder, const paramorph_options& options)
    : bundle_(load_bundle(folder)),
      entry_(chosen(bundle_, options)),
      library_(options.library),
      session_(library_.session(verified_network(bundle_, entry_), entry_, options.threads)) {}

paramorph_info CpuEngine::info() const {
    paramorph_info info = info_of(bundle_, entry_.shape);
    info.file = entry_.file.c_str();
    info.flavour = "onnxruntime";
    info.version = library_.version.c_str();
    info.compute_capability = "";
    info.device = "CPU";
    info.precision = entry_.precision.c_str();
    info.has_warped = bundle_.has_warped;
    return info;
}

void CpuEngine::run(const float* moving, const float* fixed, float* displacement, float* warped) {
    check_arrays(entry_.file.c_str(), bundle_.has_warped, moving, fixed, displacement, warped);
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    session_.run(moving, fixed, displacement, warped);
    check_finite(entry_.file.c_str(), displacement, 3 * voxels(entry_.shape));
}

void CpuEngine::enqueue(const float*, const float*, float*, float*, void*) {
    refuse(PARAMORPH_INVALID_ARGUMENT,
           "backend: expected one with a GPU for volumes in its memory, got onnxruntime; call "
           "paramorph_register with volumes in host memory.");
}

}  // namespace paramorph
