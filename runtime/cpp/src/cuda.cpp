#include "cuda.h"

#include "library.h"

#define PARAMORPH_TEXT(name) #name
#define PARAMORPH_EXPANDED_TEXT(name) PARAMORPH_TEXT(name)

namespace paramorph {
namespace {

Driver open_driver() {
    const Library library("libcuda.so.1", "the NVIDIA driver",
                          "install it, or register on the CPU with paramorph-rt");
    return {
#define X(name) library.symbol<decltype(&::name)>(PARAMORPH_EXPANDED_TEXT(name)),
        PARAMORPH_DRIVER_FUNCTIONS(X)
#undef X
    };
}

std::string described(CUresult result) {
    const char *name = nullptr, *sentence = nullptr;
    driver().cuGetErrorName(result, &name);
    driver().cuGetErrorString(result, &sentence);
    return std::string(name ? name : "an unknown error") + " (" + (sentence ? sentence : "") + ")";
}

}  // namespace

const Driver& driver() {
    static const Driver opened = open_driver();  // tried again where it threw
    return opened;
}

void check(CUresult result, const char* task) {
    if (result != CUDA_SUCCESS) {
        refuse(PARAMORPH_BACKEND_ERROR, std::string("CUDA: expected to ") + task + ", got " +
                                            described(result) +
                                            "; see what `nvidia-smi` says of the GPU.");
    }
}

Device::Device(int ordinal) : ordinal_(ordinal) {
    int count = 0;
    if (const CUresult result = driver().cuInit(0); result != CUDA_SUCCESS) {
        refuse(PARAMORPH_MISSING_DEPENDENCY, "CUDA: expected an NVIDIA GPU, got " +
                                                 described(result) +
                                                 "; see what `nvidia-smi` says, or register on the "
                                                 "CPU with paramorph-rt.");
    }
    check(driver().cuDeviceGetCount(&count), "count the GPUs");
    if (ordinal < 0 || ordinal >= count) {
        refuse(PARAMORPH_INVALID_ARGUMENT, "device: expected the number of one of " +
                                               std::to_string(count) + " GPUs, got " +
                                               std::to_string(ordinal) + "; they count from 0.");
    }
    check(driver().cuDeviceGet(&device_, ordinal), "find the GPU");
    char text[256] = "";
    check(driver().cuDeviceGetName(text, sizeof text, device_), "name the GPU");
    name = text;
    const auto attribute = [this](CUdevice_attribute which) {
        int value = 0;
        check(driver().cuDeviceGetAttribute(&value, which, device_), "describe the GPU");
        return std::to_string(value);
    };
    compute_capability = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) + "." +
                         attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    check(driver().cuDevicePrimaryCtxRetain(&context, device_), "take the GPU's context");
}

Device::~Device() { driver().cuDevicePrimaryCtxRelease(device_); }

std::size_t Device::bytes_at(CUdeviceptr address) const {
    const auto told = [address](void* value, CUpointer_attribute attribute) {
        return driver().cuPointerGetAttribute(value, attribute, address) == CUDA_SUCCESS;
    };
    CUmemorytype type{};
    int ordinal = -1;
    if (!told(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE) || type != CU_MEMORYTYPE_DEVICE ||
        !told(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) || ordinal != ordinal_) {
        return 0;
    }
    CUdeviceptr start = 0;
    std::size_t size = 0;
    if (!told(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR) ||
        !told(&size, CU_POINTER_ATTRIBUTE_RANGE_SIZE)) {
        return 0;
    }
    return start + size - address;
}

Current::Current(const Device& device) {
    check(driver().cuCtxPushCurrent(device.context), "use the GPU's context");
}

Current::~Current() {
    CUcontext ignored;
    driver().cuCtxPopCurrent(&ignored);
}

Buffer::Buffer(std::size_t bytes) {
    check(driver().cuMemAlloc(&address_, bytes), "allocate memory on the GPU");
}

Buffer::~Buffer() { driver().cuMemFree(address_); }

Stream::Stream() {
    check(driver().cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING), "create a stream");
}

Stream::~Stream() { driver().cuStreamDestroy(stream_); }

Event::Event() {
    check(driver().cuEventCreate(&event_, CU_EVENT_DISABLE_TIMING), "create an event");
}

Event::~Event() { driver().cuEventDestroy(event_); }

}  // namespace paramorph
