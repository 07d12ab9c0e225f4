#include "session.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace paramorph {
namespace {

// The tensors of an engine that paramorph_export traced: batch 1, float32.
constexpr char kMoving[] = "moving", kFixed[] = "fixed";
constexpr char kDisplacement[] = "displacement", kWarped[] = "warped";
constexpr struct {
    const char* name;
    int channels;
    nvinfer1::TensorIOMode mode;
} kTensors[] = {{kMoving, 1, nvinfer1::TensorIOMode::kINPUT},
                {kFixed, 1, nvinfer1::TensorIOMode::kINPUT},
                {kDisplacement, 3, nvinfer1::TensorIOMode::kOUTPUT},
                {kWarped, 1, nvinfer1::TensorIOMode::kOUTPUT}};

std::size_t bytes_of(const Shape& shape) { return voxels(shape) * sizeof(float); }

bool is_volume(const nvinfer1::Dims& dims, int channels, const Shape& shape) {
    return dims.nbDims == 5 && dims.d[0] == 1 && dims.d[1] == channels &&
           std::equal(shape.begin(), shape.end(), dims.d + 2);
}

template <typename T>
std::unique_ptr<T> expect(T* object, const std::string& file, const char* what) {
    if (object == nullptr) {
        refuse(PARAMORPH_BACKEND_ERROR, file + ": expected " + what + " from TensorRT, got none (" +
                                            logged_error() +
                                            "); check the GPU's memory and driver, or build the "
                                            "engine again.");
    }
    return std::unique_ptr<T>(object);
}

constexpr char kPluginName[] = "GridSample3D", kPluginVersion[] = "1";

std::unique_ptr<nvinfer1::IRuntime> runtime_for(const TensorRT& tensorrt,
                                                const std::string& plugin) {
    std::unique_ptr<nvinfer1::IRuntime> runtime = tensorrt.runtime();
    if (!plugin.empty()) {
        nvinfer1::IPluginRegistry& registry = runtime->getPluginRegistry();
        // Its parents may have it already, which would refuse the same name twice.
        const auto known = [&registry] {
            return registry.getCreator(kPluginName, kPluginVersion, "") != nullptr;
        };
        if (!known() && (registry.loadLibrary(plugin.c_str()) == nullptr || !known())) {
            refuse(PARAMORPH_MISSING_DEPENDENCY,
                   plugin + ": expected a library of " + kPluginName + " for " + kBuiltFor +
                       ", got none (" + logged_error() + "); build the engine again.");
        }
    }
    return runtime;
}

}  // namespace

Session::Session(const TensorRT& tensorrt, const std::vector<char>& file, const EngineEntry& entry,
                 const std::string& plugin)
    : moving(bytes_of(entry.shape)),
      fixed(bytes_of(entry.shape)),
      displacement(3 * bytes_of(entry.shape)),
      warped(bytes_of(entry.shape)),
      entry_(entry),
      volume_bytes_(bytes_of(entry.shape)),
      runtime_(runtime_for(tensorrt, plugin)),
      engine_(expect(runtime_->deserializeCudaEngine(file.data(), file.size()), entry.file,
                     "an engine")) {
    check_tensors();
    context_ = expect(engine_->createExecutionContext(), entry.file, "a context");
}

Session::~Session() {
    driver().cuEventSynchronize(finished_.get());
    driver().cuStreamSynchronize(stream.get());
}

void Session::check_tensors() {
    const auto refuse_tensor = [this](const std::string& tensor) {
        refuse(PARAMORPH_BUNDLE_ERROR,
               entry_.file +
                   ": expected float32 moving and fixed (1, 1, D, H, W), displacement "
                   "(1, 3, D, H, W) and perhaps warped at " +
                   text(entry_.shape) + ", got " + tensor + "; build the engine again.");
    };
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        const char* const tensor = engine_->getIOTensorName(i);
        const auto* const known = std::find_if(
            std::begin(kTensors), std::end(kTensors),
            [tensor](const auto& candidate) { return std::strcmp(candidate.name, tensor) == 0; });
        if (known == std::end(kTensors) || engine_->getTensorIOMode(tensor) != known->mode ||
            engine_->getTensorDataType(tensor) != nvinfer1::DataType::kFLOAT ||
            !is_volume(engine_->getTensorShape(tensor), known->channels, entry_.shape)) {
            refuse_tensor(std::string("another ") + tensor);
        }
        has_warped_ = has_warped_ || known->name == kWarped;
    }
    if (engine_->getNbIOTensors() != (has_warped_ ? 4 : 3)) {
        refuse_tensor("too few");
    }
}

void Session::bind(const char* tensor, CUdeviceptr address) {
    if (!context_->setTensorAddress(tensor, reinterpret_cast<void*>(address))) {
        refuse(PARAMORPH_BACKEND_ERROR,
               entry_.file + ": expected TensorRT to take the address of " + tensor +
                   ", got a refusal (" + logged_error() + "); align it to 256 bytes.");
    }
}

void Session::enqueue(CUdeviceptr moving_address, CUdeviceptr fixed_address,
                      CUdeviceptr displacement_address, CUdeviceptr warped_address,
                      CUstream on_stream) {
    logged_error();  // forget those of earlier calls
    bind(kMoving, moving_address);
    bind(kFixed, fixed_address);
    bind(kDisplacement, displacement_address);
    if (has_warped_) {
        bind(kWarped, warped_address != 0 ? warped_address : warped.address());
    }
    // The activations are shared by all registrations of this session.
    check(driver().cuStreamWaitEvent(on_stream, finished_.get(), CU_EVENT_WAIT_DEFAULT),
          "wait for the registration before");
    const bool enqueued = context_->enqueueV3(on_stream);
    // Of a failure too, which may have left work behind that the next registration has to wait for.
    const CUresult marked = driver().cuEventRecord(finished_.get(), on_stream);
    if (!enqueued) {
        refuse(PARAMORPH_BACKEND_ERROR,
               entry_.file + ": expected TensorRT to run, got a refusal (" + logged_error() +
                   "); see what `nvidia-smi` says of the GPU.");
    }
    check(marked, "mark the end of the registration");
}

std::int64_t Session::device_memory() const {
    return engine_->getDeviceMemorySizeV2() + 6 * static_cast<std::int64_t>(volume_bytes_);
}

}  // namespace paramorph
