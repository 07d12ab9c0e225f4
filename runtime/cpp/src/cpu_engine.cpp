#include "cpu_engine.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "error.h"

namespace paramorph {
namespace {

bool wants_features(const paramorph_options& options) {
    return options.network != nullptr && std::strcmp(options.network, kFeatures) == 0;
}

// The network of the kind, shape and precision that are asked for, rewritten for CPUs.
NetworkEntry chosen(const Bundle& bundle, const paramorph_options& options) {
    const std::string precision = options.precision != nullptr ? options.precision : "fp32";
    if (precision != "fp32") {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "options.precision: expected \"fp32\" on the CPU, got \"" + precision +
                   "\"; choose it, or a backend with a GPU.");
    }
    const Shape shape = requested_shape(bundle, options);
    const bool features = wants_features(options);
    const auto& networks = features ? bundle.feature_networks : bundle.networks;
    const auto found =
        std::find_if(networks.begin(), networks.end(), [&](const NetworkEntry& entry) {
            return entry.precision == precision && entry.device == "cpu" && entry.shape == shape;
        });
    if (found == networks.end()) {
        refuse(PARAMORPH_NO_ENGINE,
               bundle.name + ": expected a " + (features ? "feature " : "") +
                   "network of precision fp32 at " + text(shape) +
                   " for CPUs, got none; choose another in options.shape or options.network, or "
                   "export the bundle at it.");
    }
    return *found;
}

std::optional<std::vector<char>> weights_of(const Bundle& bundle, const NetworkEntry& entry) {
    return entry.weights ? std::make_optional(read_verified(bundle, *entry.weights)) : std::nullopt;
}

}  // namespace

CpuEngine::CpuEngine(const char* folder, const paramorph_options& options)
    : bundle_(load_bundle(folder)),
      gives_features_(wants_features(options)),
      entry_(chosen(bundle_, options)),
      library_(options.library),
      session_(library_.session(read_verified(bundle_, entry_), weights_of(bundle_, entry_), entry_,
                                options.threads)) {}

paramorph_info CpuEngine::info() const {
    paramorph_info info = info_of(bundle_, entry_.shape);
    info.file = entry_.file.c_str();
    info.flavour = "onnxruntime";
    info.version = library_.version.c_str();
    info.compute_capability = "";
    info.device = "CPU";
    info.precision = entry_.precision.c_str();
    info.has_warped = !gives_features_ && bundle_.has_warped;
    info.channels = gives_features_ ? bundle_.feature_channels : 0;
    info.smoothing = gives_features_ ? bundle_.smoothing : info.smoothing;
    return info;
}

void CpuEngine::run(const float* moving, const float* fixed, float* displacement, float* warped) {
    if (gives_features_) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "engine: expected one of a registration network, got one of " + entry_.file +
                   "; open another without options.network, or call paramorph_features.");
    }
    check_arrays(entry_.file.c_str(), bundle_.has_warped, moving, fixed, displacement, warped);
    std::vector<OnnxRuntime::Output> outputs = {{"displacement", 1, 3, displacement}};
    if (warped != nullptr) {
        outputs.push_back({"warped", 1, 1, warped});
    }
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    session_.run(moving, fixed, outputs);
    check_finite(entry_.file.c_str(), "displacements", displacement, 3 * voxels(entry_.shape));
}

void CpuEngine::features(const float* moving, const float* fixed, float* features) {
    if (!gives_features_) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "engine: expected one of a feature network, got one of " + entry_.file +
                   "; open another with options.network \"features\".");
    }
    if (moving == nullptr || fixed == nullptr || features == nullptr) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "moving, fixed, features: expected three arrays, got NULL; pass them.");
    }
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    session_.run(moving, fixed, {{kFeatures, 2, bundle_.feature_channels, features}});
    check_finite(entry_.file.c_str(), "features", features,
                 2 * static_cast<std::size_t>(bundle_.feature_channels) * voxels(entry_.shape));
}

void CpuEngine::enqueue(const float*, const float*, float*, float*, void*) {
    refuse(PARAMORPH_INVALID_ARGUMENT,
           "backend: expected one with a GPU for volumes in its memory, got onnxruntime; call "
           "paramorph_register with volumes in host memory.");
}

}  // namespace paramorph
