// The part of the CUDA driver API that cudarc and our launcher use, on top of engine.cpp. Built as a shared
// library whose SONAME is libcuda.so, so that cudarc finds it in the real one's place.
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "engine.h"

#define API extern "C" __attribute__((visibility("default")))

typedef int Status;
typedef unsigned long long DevicePtr;
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

namespace {

using Task = std::function<Status()>;
struct Graph {
    std::vector<Task> tasks;
};
enum Mode { GLOBAL, THREAD_LOCAL, RELAXED };
struct Stream;
struct Capture {
    Graph graph;
    Stream* origin;
    Mode mode;
    pthread_t thread;
    unsigned long long id;
    bool invalid = false;
};
struct Stream {
    unsigned long long id;
    std::deque<Task> queue;
    std::shared_ptr<Capture> capture;
};
struct Event {
    Stream* stream = nullptr;
    bool recorded = false, pending = false;
    std::shared_ptr<Capture> capture;  // recorded inside of it
    std::chrono::steady_clock::time_point time;
};
struct Function {
    const emu::Kernel* kernel;
    std::map<int, int> attributes;
};
struct Module {
    std::map<std::string, Function*> functions;
};

// One lock around everything: host threads take turns.
std::recursive_mutex big_lock;
Status sticky = SUCCESS;  // after a fault every call fails, as on a real context, until emu_take_error
std::string report;
Stream null_stream;
std::vector<Stream*> streams{&null_stream};
std::map<const char*, size_t> pinned;
std::map<int, unsigned long long> pool_attributes;
unsigned long long next_id = 1;
thread_local void* current_context = nullptr;
int the_context, the_pool;

#define ENTER                                                \
    std::lock_guard<std::recursive_mutex> entered(big_lock); \
    if (sticky) return sticky

// Null, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD are one stream here.
Stream* stream_of(void* s) {
    return s == nullptr || s == (void*)1 || s == (void*)2 ? &null_stream : static_cast<Stream*>(s);
}

Status step(Stream* s) {
    Task task = std::move(s->queue.front());
    s->queue.pop_front();
    return task();
}
Status drain(Stream* s) {
    Status worst = SUCCESS;
    while (!s->queue.empty())
        if (Status e = step(s)) worst = e;
    return worst;
}
Status drain_all() {
    Status worst = SUCCESS;
    for (Stream* s : streams)
        if (Status e = drain(s)) worst = e;
    return worst;
}

// Work for a stream: recorded, queued until somebody waits (lazy), or done at once.
Status submit(void* handle, Task task) {
    Stream* s = stream_of(handle);
    if (s->capture) {
        s->capture->graph.tasks.push_back(std::move(task));
        return SUCCESS;
    }
    if (emu::options.lazy) {
        s->queue.push_back(std::move(task));
        return SUCCESS;
    }
    return task();
}

// A call that a stream in capture does not allow ends the capture too.
Status refuse_in_stream(void* handle) {
    Stream* s = stream_of(handle);
    if (!s->capture) return SUCCESS;
    s->capture->invalid = true;
    return CAPTURE_UNSUPPORTED;
}
// A call without a stream is refused during this thread's captures, and during anybody's in global mode.
Status refuse_in_capture() {
    Status result = SUCCESS;
    for (Stream* s : streams) {
        if (!s->capture || s->capture->mode == RELAXED) continue;
        if (s->capture->mode == THREAD_LOCAL && !pthread_equal(s->capture->thread, pthread_self())) continue;
        s->capture->invalid = true;
        result = CAPTURE_UNSUPPORTED;
    }
    return result;
}

bool is_pinned(const void* p) {
    auto it = pinned.upper_bound(static_cast<const char*>(p));
    if (it == pinned.begin()) return false;
    --it;
    return static_cast<const char*>(p) < it->first + it->second;
}

// A device range must lie inside one allocation.
Status check_range(DevicePtr p, size_t bytes) {
    if (!bytes) return SUCCESS;
    emu::Alloc* a = emu::lookup((void*)p);
    return a && !a->shared && (unsigned char*)p + bytes <= a->base + a->bytes ? SUCCESS : INVALID_VALUE;
}

Status copy(void* dst, const void* src, size_t bytes, bool dst_on_device, bool src_on_device) {
    // Checked again when the copy runs: a lazy one may find its memory freed.
    if (dst_on_device)
        if (Status e = check_range((DevicePtr)dst, bytes)) return e;
    if (src_on_device)
        if (Status e = check_range((DevicePtr)src, bytes)) return e;
    memmove(dst, src, bytes);
    if (dst_on_device) emu::mark_written(dst, bytes);
    return SUCCESS;
}

template <class T>
Status fill(DevicePtr p, T value, size_t n, void* stream) {
    if (Status e = check_range(p, n * sizeof(T))) return e;
    if (p % sizeof(T)) return INVALID_VALUE;
    return submit(stream, [=] {
        if (Status e = check_range(p, n * sizeof(T))) return e;
        std::fill_n(reinterpret_cast<T*>(p), n, value);
        emu::mark_written((void*)p, n * sizeof(T));
        return Status(SUCCESS);
    });
}

Status free_now(DevicePtr p) {
    if (!p) return SUCCESS;
    emu::Alloc* a = emu::lookup((void*)p);
    if (!a || a->shared || (DevicePtr)a->base != p) return INVALID_VALUE;
    emu::release(a);
    return SUCCESS;
}

int shared_limit(const Function* f) {
    auto it = f->attributes.find(8);  // MAX_DYNAMIC_SHARED_SIZE_BYTES
    return std::max(int(emu::MAX_STATIC_SHARED), it == f->attributes.end() ? 0 : it->second);
}

}  // namespace

// ---- ours: how tests look behind the scenes ----

API void emu_options(int shuffle, int lazy, int race, int init, int profile, unsigned long long seed,
                     unsigned long long memory) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    emu::options = {bool(shuffle), bool(lazy), bool(race), bool(init), bool(profile), seed, memory};
}
API const char* emu_take_error() {
    static thread_local std::string last;
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    last = report;
    report.clear();
    if (sticky)  // what was queued behind the fault never runs
        for (Stream* s : streams) {
            s->queue.clear();
            s->capture = nullptr;
        }
    sticky = SUCCESS;
    return last.c_str();
}
API void emu_stats(unsigned long long* out) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    const emu::Stats& s = emu::stats;
    unsigned long long all[] = {s.launches, s.threads, s.barriers, s.warp_syncs, s.accesses, s.atomics};
    memcpy(out, all, sizeof all);
}
typedef void (*EachLine)(void*, const char* file, int line, unsigned long long pc, int shared, int write,
                         unsigned long long requests, unsigned long long cost, unsigned long long ideal);
API void emu_profile(EachLine each, void* to) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    for (auto& [number, l] : emu::stats.lines)
        each(to, l.place.file, l.place.line, l.place.file ? 0 : emu::image_offset(l.place.pc), l.shared,
             l.write, l.requests, l.cost, l.ideal);
    emu::stats.lines.clear();
}
API void emu_launched(void (*each)(void*, const char*), void* to) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    for (emu::Kernel* k = emu::kernels; k; k = k->next)
        if (k->launched) each(to, k->name);
}

// ---- device and context ----

API Status cuInit(unsigned) { return SUCCESS; }
API Status cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
API Status cuDeviceGetCount(int* n) {
    *n = 1;
    return SUCCESS;
}
API Status cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
API Status cuDeviceGetName(char* name, int n, int) {
    snprintf(name, n, "emulated CUDA device");
    return SUCCESS;
}
API Status cuDeviceGetUuid_v2(void* uuid, int) {
    memcpy(uuid, "emulated device", 16);
    return SUCCESS;
}
API Status cuDeviceGetUuid(void* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API Status cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = emu::options.memory;
    return SUCCESS;
}
API Status cuDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024},              // threads per block
        {2, 1024},              // block, x
        {3, 1024},              // block, y
        {4, 64},                // block, z
        {5, 0x7fffffff},        // grid, x
        {6, 65535},             // grid, y
        {7, 65535},             // grid, z
        {8, 49152},             // shared memory per block
        {9, 65536},             // constant memory
        {10, 32},               // warp
        {12, 65536},            // registers per block
        {13, 1755000},          // clock in kHz
        {16, 4},                // multiprocessors
        {36, 2619000},          // memory clock in kHz
        {37, 5120},             // memory bus in bits
        {38, 50 << 20},         // L2 cache
        {39, 2048},             // threads per multiprocessor
        {41, 1},                // unified addressing
        {75, 9},                // compute capability, major
        {76, 0},                // and minor
        {81, 233472},           // shared memory per multiprocessor
        {82, 65536},            // registers per multiprocessor
        {97, emu::MAX_SHARED},  // shared memory per block, after asking
        {106, 32},              // blocks per multiprocessor
        {115, 1},               // memory pools
    };
    auto it = known.find(attribute);
    *value = it == known.end() ? 0 : it->second;
    return SUCCESS;
}
API Status cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &the_context;
    return SUCCESS;
}
API Status cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API Status cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}
API Status cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}
API Status cuCtxGetDevice(int* device) {
    *device = 0;
    return SUCCESS;
}
API Status cuCtxSynchronize() {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    return drain_all();
}
API Status cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}
API Status cuCtxGetLimit(size_t* value, int) {
    *value = 0;
    return SUCCESS;
}
API Status cuCtxSetLimit(int, size_t) { return SUCCESS; }
API Status cuCtxSetCacheConfig(int) { return SUCCESS; }
API Status cuProfilerStart() { return SUCCESS; }
API Status cuProfilerStop() { return SUCCESS; }
API Status cuGetErrorName(Status e, const char** name) {
    static const std::map<int, const char*> known = {
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {NOT_READY, "CUDA_ERROR_NOT_READY"},
        {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
        {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
        {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
        {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
        {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT"},
        {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
    };
    auto it = known.find(e);
    *name = it == known.end() ? "CUDA_ERROR_UNKNOWN" : it->second;
    return SUCCESS;
}
API Status cuGetErrorString(Status e, const char** text) {
    bool fault = e == LAUNCH_FAILED || e == ILLEGAL_ADDRESS;
    if (!fault || report.empty()) return cuGetErrorName(e, text);
    *text = report.c_str();
    return SUCCESS;
}

// ---- memory ----

API Status cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER;
    *total = emu::options.memory;
    *free = *total - std::min(*total, emu::memory_used());
    return SUCCESS;
}
static Status allocate(DevicePtr* p, size_t bytes) {
    emu::Alloc* a = emu::alloc(bytes, false, "");
    if (!a) return OUT_OF_MEMORY;
    *p = (DevicePtr)a->base;
    return SUCCESS;
}
API Status cuMemAlloc_v2(DevicePtr* p, size_t bytes) {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    return bytes ? allocate(p, bytes) : INVALID_VALUE;
}
// A real driver would record a node that allocates; dalcore never wants one, so it is a mistake here.
API Status cuMemAllocAsync(DevicePtr* p, size_t bytes, void* stream) {
    ENTER;
    if (Status e = refuse_in_stream(stream)) return e;
    return allocate(p, bytes);
}
API Status cuMemAllocFromPoolAsync(DevicePtr* p, size_t bytes, void*, void* stream) {
    return cuMemAllocAsync(p, bytes, stream);
}
// Freeing works after a fault too, or tests that go on would run out of memory.
API Status cuMemFree_v2(DevicePtr p) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    if (Status e = refuse_in_capture()) return e;
    if (!sticky) drain_all();
    Status e = free_now(p);
    return sticky ? sticky : e;
}
API Status cuMemFreeAsync(DevicePtr p, void* stream) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    if (sticky) {
        free_now(p);
        return sticky;
    }
    // Only what was allocated inside a capture could be freed inside of it, and nothing is.
    if (refuse_in_stream(stream)) return INVALID_VALUE;
    return submit(stream, [=] { return free_now(p); });
}
API Status cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = &the_pool;
    return SUCCESS;
}
API Status cuDeviceGetMemPool(void** pool, int) {
    *pool = &the_pool;
    return SUCCESS;
}
API Status cuDeviceSetMemPool(int, void*) { return SUCCESS; }
API Status cuMemPoolSetAttribute(void*, int attribute, void* value) {
    ENTER;
    if (attribute <= 3)
        pool_attributes[attribute] = *static_cast<int*>(value);
    else
        pool_attributes[attribute] = *static_cast<unsigned long long*>(value);
    return SUCCESS;
}
API Status cuMemPoolGetAttribute(void*, int attribute, void* value) {
    ENTER;
    bool is_used = attribute >= 5 && attribute <= 8;  // reserved and used memory, now and at most
    unsigned long long v = is_used ? emu::memory_used() : pool_attributes[attribute];
    if (attribute <= 3)
        *static_cast<int*>(value) = int(v);
    else
        *static_cast<unsigned long long*>(value) = v;
    return SUCCESS;
}
API Status cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

API Status cuMemsetD8Async(DevicePtr p, unsigned char value, size_t n, void* stream) {
    ENTER;
    return fill<uint8_t>(p, value, n, stream);
}
API Status cuMemsetD16Async(DevicePtr p, unsigned short value, size_t n, void* stream) {
    ENTER;
    return fill<uint16_t>(p, value, n, stream);
}
API Status cuMemsetD32Async(DevicePtr p, unsigned value, size_t n, void* stream) {
    ENTER;
    return fill<uint32_t>(p, value, n, stream);
}
API Status cuMemsetD8_v2(DevicePtr p, unsigned char value, size_t n) {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    return fill<uint8_t>(p, value, n, nullptr);
}

API Status cuMemcpyHtoDAsync_v2(DevicePtr dst, const void* src, size_t bytes, void* stream) {
    ENTER;
    if (Status e = check_range(dst, bytes)) return e;
    if (is_pinned(src)) return submit(stream, [=] { return copy((void*)dst, src, bytes, true, false); });
    if (Status e = refuse_in_stream(stream)) return e;
    std::string staged(static_cast<const char*>(src), bytes);  // pageable: read before the call returns
    return submit(stream, [=] { return copy((void*)dst, staged.data(), bytes, true, false); });
}
API Status cuMemcpyDtoHAsync_v2(void* dst, DevicePtr src, size_t bytes, void* stream) {
    ENTER;
    if (Status e = check_range(src, bytes)) return e;
    auto task = [=] { return copy(dst, (void*)src, bytes, false, true); };
    if (is_pinned(dst)) return submit(stream, task);
    if (Status e = refuse_in_stream(stream)) return e;
    if (Status e = drain(stream_of(stream))) return e;  // pageable: the call returns when the copy is done
    return task();
}
API Status cuMemcpyDtoDAsync_v2(DevicePtr dst, DevicePtr src, size_t bytes, void* stream) {
    ENTER;
    if (Status e = check_range(dst, bytes)) return e;
    if (Status e = check_range(src, bytes)) return e;
    return submit(stream, [=] { return copy((void*)dst, (void*)src, bytes, true, true); });
}
API Status cuMemcpyAsync(DevicePtr dst, DevicePtr src, size_t bytes, void* stream) {
    ENTER;
    bool to = emu::lookup((void*)dst), from = emu::lookup((void*)src);
    if (to && from) return cuMemcpyDtoDAsync_v2(dst, src, bytes, stream);
    if (to) return cuMemcpyHtoDAsync_v2(dst, (void*)src, bytes, stream);
    return from ? cuMemcpyDtoHAsync_v2((void*)dst, src, bytes, stream) : Status(INVALID_VALUE);
}
API Status cuMemcpyPeerAsync(DevicePtr dst, void*, DevicePtr src, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(dst, src, bytes, stream);
}
API Status cuMemcpyHtoD_v2(DevicePtr dst, const void* src, size_t bytes) {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    if (Status e = cuMemcpyHtoDAsync_v2(dst, src, bytes, nullptr)) return e;
    return drain(&null_stream);
}
API Status cuMemcpyDtoH_v2(void* dst, DevicePtr src, size_t bytes) {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    if (Status e = cuMemcpyDtoHAsync_v2(dst, src, bytes, nullptr)) return e;
    return drain(&null_stream);
}
API Status cuMemcpyDtoD_v2(DevicePtr dst, DevicePtr src, size_t bytes) {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    return cuMemcpyDtoDAsync_v2(dst, src, bytes, nullptr);
}

API Status cuMemHostAlloc(void** p, size_t bytes, unsigned) {
    ENTER;
    if (Status e = refuse_in_capture()) return e;
    *p = aligned_alloc(4096, (bytes + 4096) / 4096 * 4096);
    if (!*p) return OUT_OF_MEMORY;
    pinned[static_cast<char*>(*p)] = bytes;
    return SUCCESS;
}
API Status cuMemFreeHost(void* p) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    if (Status e = refuse_in_capture()) return e;
    if (!sticky) drain_all();
    if (!pinned.erase(static_cast<char*>(p))) return INVALID_VALUE;
    free(p);
    return sticky;
}
API Status cuMemHostGetDevicePointer_v2(DevicePtr*, void*, unsigned) {
    return NOT_SUPPORTED;  // kernels of ours read device memory only
}

// ---- streams ----

API Status cuStreamCreate(void** stream, unsigned) {
    ENTER;
    Stream* s = new Stream{};
    s->id = next_id++;
    streams.push_back(s);
    *stream = s;
    return SUCCESS;
}
API Status cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}
API Status cuStreamDestroy_v2(void* stream) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    Stream* s = stream_of(stream);
    if (s == &null_stream) return INVALID_HANDLE;
    Status e = sticky ? sticky : drain(s);
    streams.erase(std::remove(streams.begin(), streams.end(), s), streams.end());
    delete s;
    return e;
}
API Status cuStreamSynchronize(void* stream) {
    ENTER;
    if (Status e = refuse_in_stream(stream)) return e;
    return drain(stream_of(stream));
}
API Status cuStreamQuery(void* stream) {
    ENTER;
    if (Status e = refuse_in_stream(stream)) return e;
    return stream_of(stream)->queue.empty() ? SUCCESS : NOT_READY;
}
API Status cuStreamGetId(void* stream, unsigned long long* id) {
    *id = stream_of(stream)->id;
    return SUCCESS;
}
API Status cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    ENTER;
    return submit(stream, [=] {
        function(data);
        return Status(SUCCESS);
    });
}

// ---- events ----

API Status cuEventCreate(void** event, unsigned) {
    ENTER;
    *event = new Event;
    return SUCCESS;
}
API Status cuEventDestroy_v2(void* event) {
    std::lock_guard<std::recursive_mutex> entered(big_lock);
    Event* e = static_cast<Event*>(event);
    if (e->pending && std::count(streams.begin(), streams.end(), e->stream)) drain(e->stream);
    delete e;
    return sticky;
}
API Status cuEventRecord(void* event, void* stream) {
    ENTER;
    Event* e = static_cast<Event*>(event);
    e->stream = stream_of(stream);
    e->capture = e->stream->capture;
    if (e->capture) return SUCCESS;  // only an edge of the graph: our graphs run in the order of capture
    e->recorded = e->pending = true;
    return submit(stream, [=] {
        e->pending = false;
        e->time = std::chrono::steady_clock::now();
        return Status(SUCCESS);
    });
}
API Status cuEventRecordWithFlags(void* event, void* stream, unsigned) {
    return cuEventRecord(event, stream);
}
API Status cuEventQuery(void* event) {
    ENTER;
    Event* e = static_cast<Event*>(event);
    if (e->capture) return CAPTURED_EVENT;
    return e->pending ? NOT_READY : SUCCESS;
}
API Status cuEventSynchronize(void* event) {
    ENTER;
    Event* e = static_cast<Event*>(event);
    if (e->capture) return CAPTURED_EVENT;
    return e->pending ? drain(e->stream) : Status(SUCCESS);
}
API Status cuEventElapsedTime_v2(float* ms, void* from, void* to) {
    ENTER;
    Event* a = static_cast<Event*>(from);
    Event* b = static_cast<Event*>(to);
    if (!a->recorded || !b->recorded) return INVALID_HANDLE;
    if (a->pending || b->pending) return NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
    return SUCCESS;
}
API Status cuEventElapsedTime(float* ms, void* from, void* to) { return cuEventElapsedTime_v2(ms, from, to); }
API Status cuStreamWaitEvent(void* stream, void* event, unsigned) {
    ENTER;
    Event* e = static_cast<Event*>(event);
    Stream* s = stream_of(stream);
    if (e->capture && e->capture == e->stream->capture) {
        s->capture = e->capture;  // a second stream joins the capture
        return SUCCESS;
    }
    if (!e->recorded || e->stream == s || s->capture) return SUCCESS;
    return submit(stream, [=] {
        while (e->pending && !e->stream->queue.empty())
            if (Status bad = step(e->stream)) return bad;
        return Status(SUCCESS);
    });
}

// ---- graphs ----

API Status cuStreamBeginCapture_v2(void* stream, int mode) {
    ENTER;
    Stream* s = stream_of(stream);
    if (s == &null_stream) return CAPTURE_UNSUPPORTED;
    if (s->capture) return ILLEGAL_STATE;
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->mode = Mode(mode);
    s->capture->thread = pthread_self();
    s->capture->id = next_id++;
    return SUCCESS;
}
API Status cuStreamEndCapture(void* stream, void** graph) {
    ENTER;
    *graph = nullptr;
    Stream* s = stream_of(stream);
    std::shared_ptr<Capture> c = s->capture;
    if (!c || c->origin != s) return ILLEGAL_STATE;
    if (c->mode != RELAXED && !pthread_equal(c->thread, pthread_self())) return CAPTURE_WRONG_THREAD;
    for (Stream* other : streams)
        if (other->capture == c) other->capture = nullptr;
    if (c->invalid) return CAPTURE_INVALIDATED;
    *graph = new Graph(c->graph);
    return SUCCESS;
}
API Status cuStreamIsCapturing(void* stream, int* status) {
    ENTER;
    const auto& c = stream_of(stream)->capture;
    *status = !c ? 0 : c->invalid ? 2 : 1;
    return SUCCESS;
}
API Status cuStreamGetCaptureInfo_v2(void* stream, int* status, unsigned long long* id, void** graph,
                                     void** nodes, size_t* n) {
    ENTER;
    const auto& c = stream_of(stream)->capture;
    *status = !c ? 0 : c->invalid ? 2 : 1;
    if (id) *id = c ? c->id : 0;
    if (graph) *graph = c ? &c->graph : nullptr;
    if (nodes) *nodes = nullptr;
    if (n) *n = 0;
    return SUCCESS;
}
API Status cuStreamGetCaptureInfo_v3(void* stream, int* status, unsigned long long* id, void** graph,
                                     void** nodes, void** edges, size_t* n) {
    if (edges) *edges = nullptr;
    return cuStreamGetCaptureInfo_v2(stream, status, id, graph, nodes, n);
}
// Nodes have no handles of their own: they are numbered from one.
API Status cuGraphGetNodes(void* graph, void** nodes, size_t* n) {
    ENTER;
    size_t have = static_cast<Graph*>(graph)->tasks.size();
    if (nodes)
        for (size_t i = 0; i < *n; i++) nodes[i] = reinterpret_cast<void*>(i < have ? i + 1 : 0);
    if (!nodes || *n > have) *n = have;
    return SUCCESS;
}
API Status cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    ENTER;
    *executable = new Graph(*static_cast<Graph*>(graph));
    return SUCCESS;
}
API Status cuGraphInstantiateWithParams(void** executable, void* graph, void*) {
    return cuGraphInstantiateWithFlags(executable, graph, 0);
}
API Status cuGraphUpload(void*, void*) { return SUCCESS; }
API Status cuGraphLaunch(void* executable, void* stream) {
    ENTER;
    for (const Task& task : static_cast<Graph*>(executable)->tasks)
        if (Status e = submit(stream, task)) return e;
    return SUCCESS;
}
API Status cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}
API Status cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

// ---- modules and launches ----

// The image is not looked at: every module holds every kernel that was compiled in.
API Status cuModuleLoadData(void** module, const void*) {
    ENTER;
    *module = new Module;
    return SUCCESS;
}
API Status cuModuleUnload(void* module) {
    Module* m = static_cast<Module*>(module);
    for (auto& f : m->functions) delete f.second;
    delete m;
    return SUCCESS;
}
API Status cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER;
    const emu::Kernel* k = emu::find_kernel(name);
    if (!k) return NOT_FOUND;
    Function*& f = static_cast<Module*>(module)->functions[name];
    if (!f) f = new Function{k, {}};
    *function = f;
    return SUCCESS;
}
API Status cuModuleGetGlobal_v2(DevicePtr*, size_t*, void*, const char*) { return NOT_FOUND; }
API Status cuFuncGetName(const char** name, void* function) {
    *name = static_cast<Function*>(function)->kernel->name;
    return SUCCESS;
}
API Status cuFuncSetAttribute(void* function, int attribute, int value) {
    ENTER;
    if (attribute == 8 && (value < 0 || value > emu::MAX_SHARED)) return INVALID_VALUE;
    static_cast<Function*>(function)->attributes[attribute] = value;
    return SUCCESS;
}
API Status cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
API Status cuFuncGetAttribute(int* value, int attribute, void* function) {
    ENTER;
    Function* f = static_cast<Function*>(function);
    auto it = f->attributes.find(attribute);
    if (it != f->attributes.end())
        *value = it->second;
    else if (attribute == 0)
        *value = f->kernel->max_threads;
    else if (attribute == 4)
        *value = 32;  // registers
    else if (attribute == 8)
        *value = emu::MAX_STATIC_SHARED;
    else if (attribute == 5 || attribute == 6)
        *value = 90;  // PTX and binary version
    else
        *value = 0;
    return SUCCESS;
}
API Status cuFuncGetParamInfo(void* function, size_t i, size_t* offset, size_t* size) {
    ENTER;
    const emu::Kernel* k = static_cast<Function*>(function)->kernel;
    if (i >= size_t(k->n_params)) return INVALID_VALUE;
    *offset = k->params[i].offset;
    if (size) *size = k->params[i].size;
    return SUCCESS;
}
// Limited by threads and shared memory only: nobody knows the registers before ptxas.
API Status cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* function, int block,
                                                                size_t dynamic, unsigned) {
    ENTER;
    if (block <= 0) return INVALID_VALUE;
    if (block > static_cast<Function*>(function)->kernel->max_threads) {
        *blocks = 0;
        return SUCCESS;
    }
    size_t by_shared = 233472 / (dynamic + 1024);
    *blocks = int(std::min<size_t>({32, size_t(2048 / block), by_shared}));
    return SUCCESS;
}
API Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int block,
                                                       size_t dynamic) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block, dynamic, 0);
}
API Status cuOccupancyAvailableDynamicSMemPerBlock(size_t* dynamic, void* function, int blocks, int) {
    ENTER;
    if (blocks <= 0) return INVALID_VALUE;
    *dynamic = std::min(233472 / blocks - 1024, shared_limit(static_cast<Function*>(function)));
    return SUCCESS;
}
API Status cuOccupancyMaxPotentialBlockSizeWithFlags(int* min_grid, int* block, void* function,
                                                     size_t (*)(int), size_t, int limit, unsigned) {
    ENTER;
    int most = static_cast<Function*>(function)->kernel->max_threads;
    *block = limit > 0 ? std::min(limit, most) : most;
    *min_grid = 4 * (2048 / *block);
    return SUCCESS;
}
API Status cuOccupancyMaxPotentialBlockSize(int* min_grid, int* block, void* function,
                                            size_t (*dynamic_of)(int), size_t dynamic, int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(min_grid, block, function, dynamic_of, dynamic, limit,
                                                     0);
}

static Status launch_now(const emu::Kernel* k, dim3 grid, dim3 block, unsigned dynamic,
                         const std::string& packed) {
    alignas(64) unsigned char values[4096];
    void* args[256];
    memcpy(values, packed.data(), packed.size());
    for (int i = 0; i < k->n_params; i++) args[i] = values + k->params[i].offset;
    const char* wrong = emu::launch(k, grid, block, dynamic, args);
    if (!wrong) return SUCCESS;
    report = wrong;
    bool address = strstr(wrong, "illegal address") || strstr(wrong, "out of bounds");
    sticky = address ? ILLEGAL_ADDRESS : LAUNCH_FAILED;
    return sticky;
}
API Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned dynamic, void* stream, void** args, void**) {
    ENTER;
    Function* f = static_cast<Function*>(function);
    const emu::Kernel* k = f->kernel;
    bool grid_ok = gx && gy && gz && gx <= 0x7fffffffu && gy <= 65535 && gz <= 65535;
    bool block_ok = bx && by && bz && bx <= 1024 && by <= 1024 && bz <= 64;
    if (!grid_ok || !block_ok || bx * by * bz > unsigned(k->max_threads)) return INVALID_VALUE;
    if (dynamic > unsigned(shared_limit(f))) return INVALID_VALUE;
    const emu::Param* last = k->params + k->n_params - 1;
    size_t total = k->n_params ? last->offset + last->size : 0;
    if (total > 4096 || k->n_params > 256) return INVALID_VALUE;
    std::string packed(total, '\0');  // arguments are copied when the call is made
    for (int i = 0; i < k->n_params; i++) memcpy(&packed[k->params[i].offset], args[i], k->params[i].size);
    return submit(stream, [=] { return launch_now(k, dim3(gx, gy, gz), dim3(bx, by, bz), dynamic, packed); });
}
API Status cuLaunchCooperativeKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                     unsigned, void*, void**) {
    return NOT_SUPPORTED;
}
