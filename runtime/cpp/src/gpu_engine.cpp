#include "gpu_engine.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "error.h"

namespace paramorph {
namespace {

// An engine of TensorRT for RTX for all its cards; NVIDIA names 8.0, 8.6, 8.9, 12.0 and later.
constexpr char kPortable[] = "portable";

using Property = std::function<std::string(const EngineEntry&)>;
using Fits = std::function<bool(const std::string&)>;

// Keeps the candidates of which a property fits; refuses if none is left.
void keep(std::vector<EngineEntry>& candidates, const Bundle& bundle, const Property& property,
          const Fits& fits, const std::string& expected, const std::string& advice) {
    std::set<std::string> values;
    for (const EngineEntry& candidate : candidates) {
        values.insert(property(candidate));
    }
    std::string got;
    for (const std::string& value : values) {
        got += (got.empty() ? "" : ", ") + value;
    }
    const auto unfit = [&](const EngineEntry& entry) { return !fits(property(entry)); };
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(), unfit), candidates.end());
    if (candidates.empty()) {
        refuse(PARAMORPH_NO_ENGINE, bundle.name + ": expected an engine " + expected + ", got " +
                                        (got.empty() ? "none" : got) + "; " + advice + ".");
    }
}

// That are equal to what is wanted.
Fits equal(std::string wanted) {
    return [wanted = std::move(wanted)](const std::string& value) { return value == wanted; };
}

// The numbers in front of a version: "10.7.0.post1" has three.
std::vector<int> numbers(const std::string& version) {
    std::vector<int> found;
    std::istringstream stream(version);
    for (std::string part; std::getline(stream, part, '.');) {
        if (part.empty() || part.size() > 9 ||
            !std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); })) {
            break;
        }
        found.push_back(std::stoi(part));
    }
    return found;
}

// Whether two versions are one, as far as both are told: Python's package says "10.3.0" of a library
// that calls itself 10.3.0.26.
bool same_version(const std::string& built, const std::string& installed) {
    const std::vector<int> one = numbers(built), other = numbers(installed);
    const auto common = static_cast<std::ptrdiff_t>(std::min(one.size(), other.size()));
    return common > 0 && std::equal(one.begin(), one.begin() + common, other.begin());
}

std::string build_command(const Bundle& bundle, const std::string& options) {
    return "`python export/build_engine.py --bundle " + bundle.folder.string() + " --flavour " +
           kFlavour + options + "`";
}

// What the caller and this build of the library ask for.
std::vector<EngineEntry> requested(const Bundle& bundle, const paramorph_options& options) {
    const Shape shape = requested_shape(bundle, options);
    std::vector<EngineEntry> candidates = bundle.engines;
    keep(
        candidates, bundle, [](const auto& e) { return e.flavour; }, equal(kFlavour),
        std::string("for ") + kFlavour,
        "build one with " + build_command(bundle, "") +
            ", or compile libparamorph for what there is");
    keep(
        candidates, bundle, [](const auto& e) { return text(e.shape); }, equal(text(shape)),
        "of shape " + text(shape), "choose another in options.shape, or export the bundle at it");
    if (options.precision != nullptr) {
        keep(
            candidates, bundle, [](const auto& e) { return e.precision; }, equal(options.precision),
            std::string("of precision ") + options.precision,
            "choose another in options.precision, or build it with " + build_command(bundle, ""));
    }
    return candidates;
}

void keep_built_by(std::vector<EngineEntry>& candidates, const Bundle& bundle,
                   const TensorRT& tensorrt) {
    keep(
        candidates, bundle, [](const auto& e) { return e.version; },
        [&tensorrt](const std::string& built) { return same_version(built, tensorrt.version); },
        std::string("built by the installed ") + kFlavour + " " + tensorrt.version,
        "build it again with " + build_command(bundle, "") +
            ", or install the version that built it");
}

void keep_for(std::vector<EngineEntry>& candidates, const Bundle& bundle, const Device& device) {
    std::string target = device.compute_capability;
    target.erase(std::remove(target.begin(), target.end(), '.'), target.end());
    const auto fits = [&device](const std::string& capability) {
        return capability == device.compute_capability ||
               (capability == kPortable && numbers(device.compute_capability)[0] >= 8);
    };
    keep(
        candidates, bundle, [](const auto& e) { return e.compute_capability; }, fits,
        "for compute capability " + device.compute_capability + " (" + device.name + ")",
        "build one with " + build_command(bundle, " --target sm" + target));
    std::stable_partition(candidates.begin(), candidates.end(), [](const EngineEntry& entry) {
        return entry.compute_capability != kPortable;  // made for this card alone
    });
}

}  // namespace

GpuEngine::GpuEngine(const char* folder, const paramorph_options& options)
    : bundle_(load_bundle(folder)) {
    std::vector<EngineEntry> candidates = requested(bundle_, options);
    const TensorRT tensorrt(options.library);
    keep_built_by(candidates, bundle_, tensorrt);
    device_.emplace(options.device);
    keep_for(candidates, bundle_, *device_);
    entry_ = candidates.front();
    const std::vector<char> file = read_verified(bundle_, entry_);
    std::string plugin;
    if (entry_.plugin) {
        read_verified(bundle_, *entry_.plugin);
        plugin = (bundle_.folder / entry_.plugin->file).string();
    }
    const Current current(*device_);
    session_ = std::make_unique<Session>(tensorrt, file, entry_, plugin);
}

GpuEngine::~GpuEngine() {
    try {
        const Current current(*device_);
        session_.reset();
    } catch (const Error&) {
        session_.release();  // the context is gone, and what lived in it too
    }
}

paramorph_info GpuEngine::info() const {
    paramorph_info info = info_of(bundle_, entry_.shape);
    info.file = entry_.file.c_str();
    info.flavour = entry_.flavour.c_str();
    info.version = entry_.version.c_str();
    info.compute_capability = device_->compute_capability.c_str();
    info.device = device_->name.c_str();
    info.precision = entry_.precision.c_str();
    info.has_warped = session_->has_warped();
    info.device_memory = session_->device_memory();
    return info;
}

void GpuEngine::run(const float* moving, const float* fixed, float* displacement, float* warped) {
    check_arrays(entry_.file.c_str(), session_->has_warped(), moving, fixed, displacement, warped);
    const std::size_t bytes = session_->volume_bytes();
    const Session& on_gpu = *session_;
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    const Current current(*device_);
    // However this ends, the copies have: the arrays belong to the caller again.
    struct Finish {
        CUstream stream;
        ~Finish() { driver().cuStreamSynchronize(stream); }
    } const finish{session_->stream.get()};
    check(driver().cuMemcpyHtoDAsync(on_gpu.moving.address(), moving, bytes, finish.stream),
          "copy the moving volume to the GPU");
    check(driver().cuMemcpyHtoDAsync(on_gpu.fixed.address(), fixed, bytes, finish.stream),
          "copy the fixed volume to the GPU");
    session_->enqueue(on_gpu.moving.address(), on_gpu.fixed.address(),
                      on_gpu.displacement.address(), on_gpu.warped.address(), finish.stream);
    check(driver().cuMemcpyDtoHAsync(displacement, on_gpu.displacement.address(), 3 * bytes,
                                     finish.stream),
          "copy the displacement from the GPU");
    if (warped != nullptr) {
        check(driver().cuMemcpyDtoHAsync(warped, on_gpu.warped.address(), bytes, finish.stream),
              "copy the warped volume from the GPU");
    }
    check(driver().cuStreamSynchronize(finish.stream), "finish the registration");
    check_finite(entry_.file.c_str(), "displacements", displacement, 3 * bytes / sizeof(float));
}

void GpuEngine::features(const float*, const float*, float*) {
    refuse(PARAMORPH_INVALID_ARGUMENT,
           "engine: expected one of a feature network, got one for a GPU; open another with "
           "options.backend \"onnxruntime\" and options.network \"features\".");
}

void GpuEngine::enqueue(const float* moving, const float* fixed, float* displacement, float* warped,
                        void* on_stream) {
    check_arrays(entry_.file.c_str(), session_->has_warped(), moving, fixed, displacement, warped);
    const std::lock_guard<std::mutex> lock(one_at_a_time_);
    const Current current(*device_);
    const std::size_t bytes = session_->volume_bytes();
    session_->enqueue(checked_address("moving", moving, bytes),
                      checked_address("fixed", fixed, bytes),
                      checked_address("displacement", displacement, 3 * bytes),
                      warped == nullptr ? 0 : checked_address("warped", warped, bytes),
                      static_cast<CUstream>(on_stream));
}

CUdeviceptr GpuEngine::checked_address(const char* name, const float* array,
                                    std::size_t bytes) const {
    const auto address = reinterpret_cast<CUdeviceptr>(array);
    const std::size_t there = device_->bytes_at(address);
    if (there == 0) {
        refuse(PARAMORPH_INVALID_ARGUMENT, std::string(name) + ": expected memory of " +
                                               device_->name +
                                               ", got an address elsewhere; for volumes in host "
                                               "memory call paramorph_register.");
    }
    if (there < bytes) {
        refuse(PARAMORPH_INVALID_ARGUMENT, std::string(name) + ": expected " +
                                               std::to_string(bytes) + " bytes of memory of " +
                                               device_->name + ", got " + std::to_string(there) +
                                               "; allocate all of the array.");
    }
    if (address % 256 != 0) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               std::string(name) +
                   ": expected an address aligned to 256 bytes, got one "
                   "aligned to " +
                   std::to_string(address & (~address + 1)) +
                   "; start the array where an allocation starts.");
    }
    return address;
}

}  // namespace paramorph
