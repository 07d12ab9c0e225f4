// A TensorRT without a GPU, for tests, behind TensorRT's own classes. An engine file is a line
// "fake D H W VARIANT"; the network is
//
//     displacement[c] = (c + 1) * moving + 10 * fixed        warped = moving - 2 * fixed
//
// which tells every argument and every channel from the others. `stubs.h` is made from the headers:
// one class for each interface, every function of which ends the program.
//
// FAKE_VERSION is what the library calls itself, FAKE_FAIL names a function that fails.

#include <NvInferRuntime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "fake_cuda.h"
#include "stubs.h"

using namespace nvinfer1;

namespace {

ILogger* logger = nullptr;

struct Description {
    int64_t shape[3];
    std::string variant;

    size_t voxels() const { return static_cast<size_t>(shape[0] * shape[1] * shape[2]); }
};

const char* const kNames[] = {"moving", "fixed", "displacement", "warped", "confidence"};

int index_of(const char* name) {
    int index = 0;
    while (std::strcmp(kNames[index], name) != 0) {
        ++index;
    }
    return index;
}

class ContextImpl final : public VExecutionContextStub {
public:
    explicit ContextImpl(const Description& description) : description_(description) {}

    bool setTensorAddress(const char* name, void* data) noexcept override {
        std::this_thread::sleep_for(std::chrono::microseconds(50));  // threads would meet here
        const int index = index_of(name);
        const size_t bytes = (index == 2 ? 3 : 1) * description_.voxels() * sizeof(float);
        if (reinterpret_cast<uintptr_t>(data) % 256 != 0 || !fake_owns(data, bytes)) {
            logger->log(ILogger::Severity::kERROR, "not an aligned array of this size");
            return false;
        }
        addresses_[index] = static_cast<float*>(data);
        return !fake_fails("setTensorAddress");
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (fake_fails("enqueueV3")) {
            logger->log(ILogger::Severity::kERROR, "launch failed");
            return false;
        }
        fake_enqueue(stream,
                     [description = description_, moving = addresses_[0], fixed = addresses_[1],
                      displacement = addresses_[2], warped = addresses_[3]] {
                         const size_t voxels = description.voxels();
                         for (size_t i = 0; i < voxels; ++i) {
                             for (size_t c = 0; c < 3; ++c) {
                                 displacement[c * voxels + i] =
                                     static_cast<float>(c + 1) * moving[i] + 10 * fixed[i];
                             }
                             if (warped != nullptr) {
                                 warped[i] = moving[i] - 2 * fixed[i];
                             }
                         }
                         if (description.variant == "nan") {
                             displacement[3 * voxels - 1] = std::numeric_limits<float>::quiet_NaN();
                         }
                     });
        if (fake_fails("the end of enqueueV3")) {  // with work on the stream
            logger->log(ILogger::Severity::kERROR, "launch failed");
            return false;
        }
        return true;
    }

private:
    Description description_;
    float* addresses_[4] = {};
};

class Context final : public IExecutionContext {
public:
    explicit Context(const Description& description) : impl_(description) { mImpl = &impl_; }

private:
    ContextImpl impl_;
};

class EngineImpl final : public VCudaEngineStub {
public:
    explicit EngineImpl(const Description& description) : description_(description) {}

    int32_t getNbIOTensors() const noexcept override {
        return 4 - is("no-warped") + is("another-output");
    }
    const char* getIOTensorName(int32_t index) const noexcept override {
        return kNames[getNbIOTensors() - 1 - index];  // the order is the engine's own
    }
    TensorIOMode getTensorIOMode(const char* name) const noexcept override {
        return index_of(name) < 2 ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(const char* name) const noexcept override {
        return is("half") && index_of(name) == 1 ? DataType::kHALF : DataType::kFLOAT;
    }
    Dims getTensorShape(const char* name) const noexcept override {
        const int64_t channels = index_of(name) == 2 ? 3 : 1;
        return {5,
                {1, channels, description_.shape[0], description_.shape[1],
                 description_.shape[2] + is("another-shape")}};
    }
    int64_t getDeviceMemorySizeV2() const noexcept override { return 1000; }
    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy) noexcept override {
        return fake_fails("createExecutionContext") ? nullptr : new Context(description_);
    }

private:
    bool is(const char* variant) const { return description_.variant == variant; }

    Description description_;
};

class Engine final : public ICudaEngine {
public:
    explicit Engine(const Description& description) : impl_(description) { mImpl = &impl_; }

private:
    EngineImpl impl_;
};

// Of the process, as TensorRT's; it refuses what it has.
class Registry final : public IPluginRegistryStub {
public:
    PluginLibraryHandle loadLibrary(const char* path) noexcept override {
        std::ifstream library(path);
        std::string content;
        library >> content;
        if (has_ || content != "GridSample3D") {
            return nullptr;
        }
        has_ = true;
        return this;
    }
    IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                        const char* space) noexcept override {
        const bool known = has_ && std::strcmp(name, "GridSample3D") == 0 &&
                           std::strcmp(version, "1") == 0 && std::strcmp(space, "") == 0;
        return known ? &creator_ : nullptr;
    }

private:
    class Creator final : public IPluginCreatorInterface {
        InterfaceInfo getInterfaceInfo() const noexcept override { return {"fake", 1, 0}; }
    };

    bool has_ = false;
    Creator creator_;
} registry;

class RuntimeImpl final : public VRuntimeStub {
public:
    ICudaEngine* deserializeCudaEngine(const void* data, size_t size) noexcept override {
        std::istringstream line(std::string(static_cast<const char*>(data), size));
        std::string magic;
        Description description;
        line >> magic >> description.shape[0] >> description.shape[1] >> description.shape[2];
        if (magic != "fake" || !line || fake_fails("deserializeCudaEngine")) {
            logger->log(ILogger::Severity::kWARNING, "only a warning");
            logger->log(ILogger::Severity::kERROR, "magic tag does not match");
            logger->log(ILogger::Severity::kERROR, "a later error");
            return nullptr;
        }
        line >> description.variant;
        if (description.variant == "plugin" &&
            registry.getCreator("GridSample3D", "1", "") == nullptr) {
            logger->log(ILogger::Severity::kERROR, "Plugin not found");
            return nullptr;
        }
        return new Engine(description);
    }
    IPluginRegistry& getPluginRegistry() noexcept override { return registry; }
};

class Runtime final : public IRuntime {
public:
    Runtime() { mImpl = &impl_; }

private:
    RuntimeImpl impl_;
};

int32_t version(int place) {
    const char* const given = std::getenv("FAKE_VERSION");
    std::ostringstream headers;
    headers << NV_TENSORRT_MAJOR << '.' << NV_TENSORRT_MINOR << '.' << NV_TENSORRT_PATCH << ".48";
    std::istringstream numbers(given != nullptr ? given : headers.str());
    std::string number;
    for (int i = 0; i <= place; ++i) {
        std::getline(numbers, number, '.');
    }
    return std::atoi(number.c_str());
}

}  // namespace

extern "C" {

int32_t getInferLibMajorVersion() noexcept { return version(0); }
int32_t getInferLibMinorVersion() noexcept { return version(1); }
int32_t getInferLibPatchVersion() noexcept { return version(2); }
int32_t getInferLibBuildVersion() noexcept { return version(3); }

void* createInferRuntime_INTERNAL(void* given, int32_t headers) noexcept {
    logger = static_cast<ILogger*>(given);
    if (headers != NV_TENSORRT_VERSION || fake_fails("createInferRuntime")) {
        logger->log(ILogger::Severity::kERROR, "no runtime today");
        return nullptr;
    }
    return new Runtime;
}

}  // extern "C"
