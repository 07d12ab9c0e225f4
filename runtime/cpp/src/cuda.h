// The CUDA driver, and what is owned on a GPU. The driver is opened when it is first needed: a
// program starts on a machine without one, and is then told so.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <string>

namespace paramorph {

// Some names are macros for a versioned symbol; this list and its users see the same one.
#define PARAMORPH_DRIVER_FUNCTIONS(X) \
    X(cuInit)                         \
    X(cuGetErrorName)                 \
    X(cuGetErrorString)               \
    X(cuDeviceGet)                    \
    X(cuDeviceGetCount)               \
    X(cuDeviceGetName)                \
    X(cuDeviceGetAttribute)           \
    X(cuDevicePrimaryCtxRetain)       \
    X(cuDevicePrimaryCtxRelease)      \
    X(cuCtxPushCurrent)               \
    X(cuCtxPopCurrent)                \
    X(cuMemAlloc)                     \
    X(cuMemFree)                      \
    X(cuMemcpyHtoDAsync)              \
    X(cuMemcpyDtoHAsync)              \
    X(cuPointerGetAttribute)          \
    X(cuStreamCreate)                 \
    X(cuStreamDestroy)                \
    X(cuStreamSynchronize)            \
    X(cuStreamWaitEvent)              \
    X(cuEventCreate)                  \
    X(cuEventDestroy)                 \
    X(cuEventRecord)                  \
    X(cuEventSynchronize)

struct Driver {
#define X(name) decltype(&::name) name;
    PARAMORPH_DRIVER_FUNCTIONS(X)
#undef X
};

// Throws PARAMORPH_MISSING_DEPENDENCY where there is no driver.
const Driver& driver();

// Throws PARAMORPH_BACKEND_ERROR unless it succeeded; `task` says what was to be done.
void check(CUresult result, const char* task);

// A GPU's primary context, the one that the CUDA runtime uses too.
class Device {
public:
    // Throws PARAMORPH_MISSING_DEPENDENCY, PARAMORPH_INVALID_ARGUMENT, PARAMORPH_BACKEND_ERROR.
    explicit Device(int ordinal);
    ~Device();
    Device(const Device&) = delete;

    // Bytes of memory of this GPU from an address to the end of its allocation; 0: it has none there.
    std::size_t bytes_at(CUdeviceptr address) const;

    std::string name;
    std::string compute_capability;  // such as "8.6"
    CUcontext context = nullptr;

private:
    int ordinal_;
    CUdevice device_ = 0;
};

// Makes a GPU's context the calling thread's current one, for as long as it lives.
class Current {
public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;
};

// The rest need a current context to be made and to be destroyed.
class Buffer {
public:
    explicit Buffer(std::size_t bytes);
    ~Buffer();
    Buffer(const Buffer&) = delete;
    CUdeviceptr address() const { return address_; }
    void* data() const { return reinterpret_cast<void*>(address_); }

private:
    CUdeviceptr address_ = 0;
};

class Stream {
public:
    Stream();
    ~Stream();
    Stream(const Stream&) = delete;
    CUstream get() const { return stream_; }

private:
    CUstream stream_ = nullptr;
};

class Event {
public:
    Event();
    ~Event();
    Event(const Event&) = delete;
    CUevent get() const { return event_; }

private:
    CUevent event_ = nullptr;
};

}  // namespace paramorph
