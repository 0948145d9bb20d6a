// The checked build's eyes. Kernels are compiled with -fsanitize=thread and others, which calls a hook at
// every access; the hooks here stand in for the sanitizers' run-time libraries. They find accesses out of
// bounds, misaligned or uninitialised, data races, and count memory transactions and bank conflicts.
#include "engine.h"

#ifdef EMU_CHECK
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>

#include <algorithm>

namespace emu {

// ---- where in the source ----

struct Image {
    uintptr_t low, high;
};
// The addresses of this library: code, constants and static variables of the kernels.
static const Image& image() {
    static const Image found = [] {
        Image result{0, 0};
        auto visit = [](dl_phdr_info* info, size_t, void* out) {
            uintptr_t low = ~uintptr_t(0), high = 0;
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto& segment = info->dlpi_phdr[i];
                if (segment.p_type != PT_LOAD) continue;
                uintptr_t start = info->dlpi_addr + segment.p_vaddr;
                low = std::min(low, start);
                high = std::max(high, uintptr_t(start + segment.p_memsz));
            }
            if (uintptr_t(&run) >= low && uintptr_t(&run) < high) *static_cast<Image*>(out) = {low, high};
            return 0;
        };
        dl_iterate_phdr(visit, &result);
        return result;
    }();
    return found;
}

// "file:line". addr2line is part of binutils, as the linker is.
static std::string where(const Place& place) {
    if (place.file) return std::string(base_name(place.file)) + ":" + std::to_string(place.line);
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(place.pc), &info)) return "?";
    char command[600], text[300] = "";
    snprintf(command, sizeof command, "addr2line -s -e '%s' %lx 2>/dev/null", info.dli_fname,
             (unsigned long)(place.pc - 1 - uintptr_t(info.dli_fbase)));
    if (FILE* f = popen(command, "r")) {
        if (!fgets(text, sizeof text, f)) text[0] = 0;
        pclose(f);
    }
    text[strcspn(text, "\n ")] = 0;
    return text[0] ? text : "?";
}

uint64_t image_offset(uintptr_t pc) { return pc - image().low; }

// ---- races ----

static void report_race(const Place& place, const Alloc* a, size_t offset, bool write, const Access& other,
                        bool other_write) {
    fail(
        "%s: data race on %s%s%s at offset %zu: %s here, %s by block %u thread %u (linear) with no barrier "
        "between",
        where(place).c_str(), a->shared ? "shared '" : "global memory", a->name, a->shared ? "'" : "", offset,
        write ? "write" : "read", other_write ? "write" : "read", other.block, other.thread);
}

// Two accesses race when they touch the same byte of one launch and nothing orders them.
static bool unordered(const Access& other, const Access& me, bool shared) {
    if (other.launch != me.launch || (other.atomic && me.atomic) || !(other.mask & me.mask)) return false;
    if (other.block != me.block) return !shared;
    if (other.thread == me.thread || other.epoch != me.epoch) return false;
    return other.thread / 32 != me.thread / 32 || other.warp_epoch == me.warp_epoch;
}

static void check_race(Alloc* a, size_t offset, int bytes, Kind kind, const Place& place) {
    Access me;
    me.launch = uint32_t(run.launch);
    me.block = run.block;
    me.epoch = uint16_t(run.epoch);
    me.warp_epoch = uint16_t(run.warps[cur->h.warp].epoch);
    me.thread = uint16_t(cur->id);
    me.atomic = kind == Kind::ATOMIC;
    bool write = kind != Kind::READ;
    for (size_t word = offset & ~size_t(3); word < offset + bytes; word += 4) {
        size_t first = std::max(word, offset) - word;
        size_t last = std::min(word + 4, offset + bytes) - word;
        me.mask = uint8_t((1u << last) - (1u << first));
        Cell& cell = a->cells[word / 4];
        if (unordered(cell.write, me, a->shared)) report_race(place, a, offset, write, cell.write, true);
        if (write) {
            for (const Access* read : {&cell.read, &cell.other_read})
                if (unordered(*read, me, a->shared)) report_race(place, a, offset, true, *read, false);
            cell.write = me;
            continue;
        }
        // Two readers are kept, so that a thread which reads and then writes does not hide another one's
        // read.
        const Access& r = cell.read;
        bool other = r.block != me.block || (r.thread != me.thread && r.epoch == me.epoch);
        if (r.launch == me.launch && other) cell.other_read = r;
        cell.read = me;
    }
}

// ---- counting ----

struct Request {  // what one warp asks for with one instruction
    Place place;
    uint64_t address[32];
    unsigned mask;
    int bytes;
    bool shared, write;
};
static std::unordered_map<uint64_t, Request> requests;  // (place, how often the lanes were there, warp)
static std::unordered_map<uint64_t, uint32_t> visits;   // (place, thread)
static std::unordered_map<std::string, uint64_t> named_places;

// A number below 2^40 for a place: lanes that are at the same place for the same time make one request.
static uint64_t place_number(const Place& place) {
    if (!place.file) return place.pc - image().low;
    std::string name = std::string(place.file) + ":" + std::to_string(place.line);
    return uint64_t(1) << 39 | named_places.emplace(name, named_places.size()).first->second;
}

static void count(const Alloc* a, size_t offset, const void* p, int bytes, bool write, const Place& place) {
    uint64_t number = place_number(place);
    uint32_t visit = visits[number << 11 | cur->id]++;
    Request& r = requests[number << 24 | uint64_t(visit & 0x7ffff) << 5 | cur->h.warp];
    r.place = place;
    r.address[cur->h.lane] = a->shared ? offset : uintptr_t(p);
    r.mask |= 1u << cur->h.lane;
    r.bytes = bytes;
    r.shared = a->shared;
    r.write = write;
}

// Shared memory: a request costs as many passes as the busiest bank has different words. Global memory: as
// many as it touches sectors of 32 bytes.
void profile_block() {
    for (auto& [key, r] : requests) {
        Line& line = stats.lines[key >> 24];
        line.place = r.place;
        line.shared = r.shared;
        line.write = r.write;
        line.requests++;
        uint64_t units[32 * 16];
        int n = 0;
        for (int lane = 0; lane < 32; lane++) {
            if (!(r.mask >> lane & 1)) continue;
            for (int b = 0; b < std::max(std::min(r.bytes, 64), 4); b += 4)
                units[n++] = (r.address[lane] + b) / (r.shared ? 4 : 32);
        }
        std::sort(units, units + n);
        n = std::unique(units, units + n) - units;
        if (!r.shared) {
            line.cost += n;
            line.ideal += (__builtin_popcount(r.mask) * r.bytes + 31) / 32;
            continue;
        }
        int banks[32] = {}, worst = 0;
        for (int i = 0; i < n; i++) worst = std::max(worst, ++banks[units[i] % 32]);
        line.cost += worst;
        line.ideal += std::max(1, (n + 31) / 32);
    }
    requests.clear();
    visits.clear();
}

// ---- the check of one access ----

void touch(const void* p, int bytes, Kind kind, const Place& place, bool aligned) {
    uintptr_t u = uintptr_t(p);
    if (!run.on || !cur) return;
    if (u - uintptr_t(run.stacks) < size_t(MAX_THREADS) * STACK_BYTES) return;  // local variables
    if (u - uintptr_t(run.threads) < MAX_THREADS * sizeof(Thread)) return;      // threadIdx and its like
    bool write = kind != Kind::READ;
    const char* verb = kind == Kind::ATOMIC ? "atomic" : write ? "write" : "read";
    Alloc* a = lookup(p);
    if (!a) {
        bool is_static = u >= image().low && u < image().high;
        if (is_static && !write) return;  // constants
        if (is_static)
            fail("%s: %s to a static variable: kernels keep state in buffers", where(place).c_str(), verb);
        fail("%s: illegal address: %s of %d bytes at %p, outside every allocation", where(place).c_str(),
             verb, bytes, p);
    }
    size_t offset = u - uintptr_t(a->base);
    const char* space = a->shared ? "shared" : "global";
    if (offset + bytes > a->bytes)
        fail("%s: out of bounds: %s of %d bytes at offset %zu of %s memory '%s' (%zu bytes)",
             where(place).c_str(), verb, bytes, offset, space, a->name, a->bytes);
    if (aligned && u % bytes)
        fail("%s: misaligned address: %s of %d bytes at offset %zu of %s memory '%s'", where(place).c_str(),
             verb, bytes, offset, space, a->name);
    stats.accesses++;
    if (kind == Kind::WRITE)
        memset(a->written + offset, 1, bytes);
    else if (options.init)
        for (int i = 0; i < bytes; i++)
            if (!a->written[offset + i])
                fail("%s: uninitialised %s of %d bytes at offset %zu of %s memory '%s'", where(place).c_str(),
                     verb, bytes, offset, space, a->name);
    if (options.race) check_race(a, offset, bytes, kind, place);
    if (options.profile && kind != Kind::ATOMIC) count(a, offset, p, bytes, write, place);
}

void checked_read(const void* p, int bytes, const char* file, int line) {
    touch(p, bytes, Kind::READ, Place{file, line, 0});
}
void checked_write(void* p, int bytes, const char* file, int line) {
    touch(p, bytes, Kind::WRITE, Place{file, line, 0});
}
void checked_atomic(void* p, int bytes, const char* file, int line) {
    stats.atomics++;
    touch(p, bytes, Kind::ATOMIC, Place{file, line, 0});
}

}  // namespace emu

// ---- what the instrumentation calls ----

#define HERE (emu::Place{nullptr, 0, uintptr_t(__builtin_return_address(0))})
#define READ_AND_WRITE(kind, n)                                                       \
    void __tsan_##kind##read##n(void* p) { emu::touch(p, n, emu::Kind::READ, HERE); } \
    void __tsan_##kind##write##n(void* p) { emu::touch(p, n, emu::Kind::WRITE, HERE); }
#define ALL_KINDS(n) READ_AND_WRITE(, n) READ_AND_WRITE(unaligned_, n) READ_AND_WRITE(volatile_, n)

extern "C" {

ALL_KINDS(1)
ALL_KINDS(2)
ALL_KINDS(4)
ALL_KINDS(8)
ALL_KINDS(16)
void __tsan_read_range(void* p, long n) {
    if (n) emu::touch(p, n, emu::Kind::READ, HERE, false);
}
void __tsan_write_range(void* p, long n) {
    if (n) emu::touch(p, n, emu::Kind::WRITE, HERE, false);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// -fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero: a report starts with its
// place.
struct UbPlace {
    const char* file;
    unsigned line, column;
};
typedef unsigned long Value;
#define REPORT(name, what, ...)                                                                        \
    void __ubsan_handle_##name(UbPlace* at, ##__VA_ARGS__) {                                           \
        if (emu::cur) emu::fail("%s:%u:%u: %s", emu::base_name(at->file), at->line, at->column, what); \
    }
REPORT(type_mismatch_v1, "misaligned address", Value)
REPORT(out_of_bounds, "array index out of bounds", Value)
REPORT(shift_out_of_bounds, "shift out of range", Value, Value)
REPORT(add_overflow, "signed overflow in an addition", Value, Value)
REPORT(sub_overflow, "signed overflow in a subtraction", Value, Value)
REPORT(mul_overflow, "signed overflow in a multiplication", Value, Value)
REPORT(negate_overflow, "signed overflow in a negation", Value)
REPORT(divrem_overflow, "division by zero or overflow", Value, Value)

}  // extern "C"

#else

namespace emu {
void touch(const void*, int, Kind, const Place&, bool) {}
void profile_block() {}
uint64_t image_offset(uintptr_t pc) { return pc; }
void checked_read(const void*, int, const char*, int) {}
void checked_write(void*, int, const char*, int) {}
void checked_atomic(void*, int, const char*, int) { stats.atomics++; }
}  // namespace emu

#endif
