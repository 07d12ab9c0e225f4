/* A libcuda without a GPU: memory is the host's, and a stream does nothing until someone waits for
 * it, so that whoever reads too early reads nothing. Wrong calls are refused as the driver would:
 * without a current context, outside an allocation, from memory that is not pinned. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201 };
enum { COPY, CALL, RECORD, WAIT };
enum { DEVICE, PINNED };

typedef struct Stream Stream;
typedef struct Event Event;
struct Event {
    Stream* stream; /* of the last record */
    int position;   /* in its queue, behind the record */
};
typedef struct {
    int kind;
    void *to, *from;
    size_t size;
    void (*function)(void*);
    Event event; /* as it was when the work was enqueued */
} Work;
struct Stream {
    Work work[1024];
    int count, done;
};
typedef struct {
    char* start;
    size_t size;
    int kind;
} Allocation;

static Allocation allocations[1024];
static int allocation_count, stream_count, event_count;
static __thread int contexts;
static Stream* streams[64];
static Stream default_stream; /* of handle 0 */

static int of_environment(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static int inside(const void* start, size_t size, int kind) {
    for (int n = 0; n < 1024; ++n) {
        Allocation const* a = &allocations[n];
        if (a->start && a->kind == kind && (char*)start >= a->start
            && (char*)start + size <= a->start + a->size)
            return 1;
    }
    return 0;
}

static int allocate(void** address, size_t size, int kind) {
    if (!contexts) return INVALID_CONTEXT;
    if (kind == DEVICE && size > (size_t)of_environment("FAKE_GPU_BYTES", 1 << 30))
        return OUT_OF_MEMORY;
    for (int n = 0; n < 1024; ++n)
        if (!allocations[n].start) {
            *address = aligned_alloc(256, (size + 255) / 256 * 256);
            memset(*address, 0xff, size); /* NaN */
            allocations[n] = (Allocation){*address, size, kind};
            ++allocation_count;
            return SUCCESS;
        }
    return OUT_OF_MEMORY;
}

static int give_back(void* address, int kind) {
    if (!contexts) return INVALID_CONTEXT;
    for (int n = 0; n < 1024; ++n)
        if (address && allocations[n].start == address && allocations[n].kind == kind) {
            free(address);
            allocations[n].start = NULL;
            --allocation_count;
            return SUCCESS;
        }
    return INVALID_VALUE;
}

static Stream* named(Stream* stream) { return stream ? stream : &default_stream; }

static int enqueue(Stream* stream, Work work) {
    if (!contexts) return INVALID_CONTEXT;
    stream = named(stream);
    if (stream->count == 1024) return INVALID_VALUE;
    stream->work[stream->count++] = work;
    return SUCCESS;
}

static void advance(Stream* stream, int until) {
    while (stream->done < until) {
        Work* work = &stream->work[stream->done++];
        if (work->kind == COPY) memcpy(work->to, work->from, work->size);
        if (work->kind == CALL) work->function(work->to);
        if (work->kind == WAIT && work->event.stream)
            advance(work->event.stream, work->event.position);
    }
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13010, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = of_environment("FAKE_GPUS", 1), SUCCESS; }
int cuDeviceGet(int* device, int number) {
    *device = 0;
    return number < of_environment("FAKE_GPUS", 1) ? SUCCESS : NO_DEVICE;
}
int cuDeviceGetName(char* name, int size, int device) {
    return strncpy(name, "Fake RTX 3080", size), SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = 10737418240u, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? of_environment("FAKE_GPU_MINOR", 6) : 0;
    return SUCCESS;
}
int cuGetErrorString(int error, const char** text) { return *text = "as told", SUCCESS; }
int cuGetErrorName(int error, const char** text) { return *text = "FAKE_ERROR", SUCCESS; }

int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &contexts, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxPushCurrent_v2(void* context) { return ++contexts, SUCCESS; }
int cuCtxPopCurrent_v2(void** context) { return contexts ? --contexts, SUCCESS : INVALID_CONTEXT; }
int cuCtxSynchronize(void) {
    if (!contexts) return INVALID_CONTEXT;
    for (int n = 0; n < 64; ++n)
        if (streams[n]) advance(streams[n], streams[n]->count);
    advance(&default_stream, default_stream.count);
    return SUCCESS;
}

int cuMemAlloc_v2(void** address, size_t size) { return allocate(address, size, DEVICE); }
int cuMemFree_v2(void* address) { return give_back(address, DEVICE); }
int cuMemHostAlloc(void** address, size_t size, unsigned flags) {
    return allocate(address, size, PINNED);
}
int cuMemFreeHost(void* address) { return give_back(address, PINNED); }
int cuMemcpyHtoDAsync_v2(void* to, void* from, size_t size, Stream* stream) {
    if (!inside(to, size, DEVICE) || !inside(from, size, PINNED)) return INVALID_VALUE;
    return enqueue(stream, (Work){COPY, to, from, size});
}
int cuMemcpyDtoHAsync_v2(void* to, void* from, size_t size, Stream* stream) {
    if (!inside(to, size, PINNED) || !inside(from, size, DEVICE)) return INVALID_VALUE;
    return enqueue(stream, (Work){COPY, to, from, size});
}

int cuMemcpyDtoDAsync_v2(void* to, void* from, size_t size, Stream* stream) {
    if (!inside(to, size, DEVICE) || !inside(from, size, DEVICE)) return INVALID_VALUE;
    return enqueue(stream, (Work){COPY, to, from, size});
}

int cuStreamCreate(Stream** stream, unsigned flags) {
    if (!contexts) return INVALID_CONTEXT;
    for (int n = 0; n < 64; ++n)
        if (!streams[n]) {
            *stream = streams[n] = calloc(1, sizeof(Stream));
            return ++stream_count, SUCCESS;
        }
    return OUT_OF_MEMORY;
}
int cuStreamDestroy_v2(Stream* stream) {
    for (int n = 0; n < 64; ++n)
        if (stream && streams[n] == stream) {
            streams[n] = NULL;
            return --stream_count, SUCCESS; /* its memory stays, for events that know it */
        }
    return INVALID_VALUE;
}
int cuStreamSynchronize(Stream* stream) {
    if (!contexts) return INVALID_CONTEXT;
    return advance(named(stream), named(stream)->count), SUCCESS;
}
int cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* data) {
    return enqueue(stream, (Work){CALL, data, NULL, 0, function});
}

int cuEventCreate(Event** event, unsigned flags) {
    if (!contexts) return INVALID_CONTEXT;
    *event = calloc(1, sizeof(Event));
    return ++event_count, SUCCESS;
}
int cuEventDestroy_v2(Event* event) { return free(event), --event_count, SUCCESS; }
int cuEventRecord(Event* event, Stream* stream) {
    int status = enqueue(stream, (Work){RECORD});
    if (status == SUCCESS) *event = (Event){named(stream), named(stream)->count};
    return status;
}
int cuStreamWaitEvent(Stream* stream, Event* event, unsigned flags) {
    return enqueue(stream, (Work){WAIT, NULL, NULL, 0, NULL, *event});
}

/* How cuda-bindings finds all the others; the newest form of each. */
int cuGetProcAddress_v2(
    const char* name, void** address, int version, unsigned long long flags, int* status) {
    char newest[128];
    snprintf(newest, sizeof newest, "%s_v2", name);
    *address = dlsym(RTLD_DEFAULT, newest);
    if (!*address) *address = dlsym(RTLD_DEFAULT, name);
    if (status) *status = *address ? 0 : 1;
    return *address ? SUCCESS : 500; /* not found */
}

/* What a test asks. */
int fake_live(void) { return allocation_count + stream_count + event_count; }
int fake_pending(Stream* stream) { return named(stream)->count - named(stream)->done; }
