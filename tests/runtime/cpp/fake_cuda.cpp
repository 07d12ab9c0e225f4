// A driver without a GPU, for tests: device memory is host memory, and a stream does its work only
// when it is waited for, so that a missing wait shows as a missing result.
//
// FAKE_FAIL names a function that fails, FAKE_CAPABILITY is the GPU's ("8.6"), FAKE_DEVICES how
// many GPUs there are.

#include "fake_cuda.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>

struct CUstream_st {
    std::deque<std::function<void()>> work;
    unsigned long queued = 0, done = 0;
};

struct CUevent_st {
    CUstream stream = nullptr;
    unsigned long after = 0;  // how much of the stream's work comes before it
};

struct CUctx_st {};

namespace {

std::recursive_mutex mutex;
std::map<std::uintptr_t, std::size_t> allocations;
std::set<CUstream> streams;
std::set<CUevent> events;
CUstream_st default_stream;
CUctx_st primary;
int retained = 0;
thread_local int current = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

const char* setting(const char* name, const char* otherwise) {
    const char* const value = std::getenv(name);
    return value != nullptr ? value : otherwise;
}

CUresult ready(const char* function) {
    if (fake_fails(function)) {
        return CUDA_ERROR_UNKNOWN;
    }
    return current > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUstream resolved(CUstream stream) { return stream != nullptr ? stream : &default_stream; }

void finish(CUstream stream, unsigned long until) {
    while (stream->done < until) {
        const std::function<void()> work = std::move(stream->work.front());
        stream->work.pop_front();
        ++stream->done;
        work();
    }
}

void finish(CUstream stream) { finish(stream, stream->queued); }

}  // namespace

bool fake_fails(const char* function) {
    return std::strcmp(setting("FAKE_FAIL", ""), function) == 0;
}

void fake_enqueue(CUstream stream, std::function<void()> work) {
    const Lock lock(mutex);
    resolved(stream)->work.push_back(std::move(work));
    ++resolved(stream)->queued;
}

bool fake_owns(const void* address, std::size_t bytes) {
    const Lock lock(mutex);
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    auto after = allocations.upper_bound(start);
    return after != allocations.begin() &&
           start + bytes <= std::prev(after)->first + std::prev(after)->second;
}

extern "C" {

// How many things somebody made and did not destroy.
int fake_alive() {
    const Lock lock(mutex);
    return static_cast<int>(allocations.size() + streams.size() + events.size()) + retained +
           current;
}

// How much work waits on streams.
int fake_pending() {
    const Lock lock(mutex);
    std::size_t count = default_stream.work.size();
    for (const CUstream stream : streams) {
        count += stream->work.size();
    }
    return static_cast<int>(count);
}

CUresult cuInit(unsigned) {
    return std::atoi(setting("FAKE_DEVICES", "1")) > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_NO_DEVICE ? "no CUDA-capable device is detected" : "unknown error";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
    *count = std::atoi(setting("FAKE_DEVICES", "1"));
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal + 100;  // not the number that the caller knows
    return fake_fails("cuDeviceGet") ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    std::snprintf(name, static_cast<std::size_t>(length), "Fake GPU");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    const char* const capability = setting("FAKE_CAPABILITY", "8.6");
    *value = std::atoi(attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
                           ? capability
                           : std::strchr(capability, '.') + 1);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    if (fake_fails("cuDevicePrimaryCtxRetain")) {
        return CUDA_ERROR_UNKNOWN;
    }
    ++retained;
    *context = &primary;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    --retained;
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext) {
    if (fake_fails("cuCtxPushCurrent")) {
        return CUDA_ERROR_UNKNOWN;
    }
    ++current;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext*) {
    --current;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, std::size_t bytes) {
    const Lock lock(mutex);
    if (const CUresult result = ready("cuMemAlloc"); result != CUDA_SUCCESS) {
        return result;
    }
    void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(memory, 0xff, bytes);  // not a number
    *address = reinterpret_cast<CUdeviceptr>(memory);
    allocations[*address] = bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    const Lock lock(mutex);
    if (allocations.erase(address) != 1) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    std::free(reinterpret_cast<void*>(address));
    return ready("cuMemFree");
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    if (!fake_owns(reinterpret_cast<void*>(to), bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_enqueue(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return ready("cuMemcpyHtoDAsync");
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    if (!fake_owns(reinterpret_cast<void*>(from), bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_enqueue(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
    return ready("cuMemcpyDtoHAsync");
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
    if (!fake_owns(reinterpret_cast<void*>(address), 1)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (attribute == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR ||
        attribute == CU_POINTER_ATTRIBUTE_RANGE_SIZE) {
        const Lock lock(mutex);
        const auto [start, size] = *std::prev(allocations.upper_bound(address));
        *static_cast<CUdeviceptr*>(value) =
            attribute == CU_POINTER_ATTRIBUTE_RANGE_SIZE ? size : start;
        return CUDA_SUCCESS;
    }
    *static_cast<int*>(value) =
        attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ? static_cast<int>(CU_MEMORYTYPE_DEVICE) : 0;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned) {
    const Lock lock(mutex);
    if (const CUresult result = ready("cuStreamCreate"); result != CUDA_SUCCESS) {
        return result;
    }
    *stream = *streams.insert(new CUstream_st).first;
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    const Lock lock(mutex);
    finish(stream);
    for (const CUevent event : events) {
        event->stream = event->stream == stream ? nullptr : event->stream;
    }
    streams.erase(stream);
    delete stream;
    return ready("cuStreamDestroy");
}

CUresult cuStreamSynchronize(CUstream stream) {
    const Lock lock(mutex);
    finish(resolved(stream));
    return ready("cuStreamSynchronize");
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    if (const CUstream other = event->stream; other != nullptr && other != resolved(stream)) {
        fake_enqueue(stream, [other, after = event->after] { finish(other, after); });
    }
    return ready("cuStreamWaitEvent");
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    const Lock lock(mutex);
    if (const CUresult result = ready("cuEventCreate"); result != CUDA_SUCCESS) {
        return result;
    }
    *event = *events.insert(new CUevent_st).first;
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    const Lock lock(mutex);
    events.erase(event);
    delete event;
    return ready("cuEventDestroy");
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    const Lock lock(mutex);
    *event = {resolved(stream), resolved(stream)->queued};
    return ready("cuEventRecord");
}

CUresult cuEventSynchronize(CUevent event) {
    const Lock lock(mutex);
    if (event->stream != nullptr) {
        finish(event->stream, event->after);
    }
    return ready("cuEventSynchronize");
}

}  // extern "C"
