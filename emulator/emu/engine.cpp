// Runs the registered kernels: one fiber per CUDA thread, one block at a time. A fiber is left only at a
// rendezvous (a barrier or a warp-wide instruction), so that every schedule is one the hardware could have
// chosen.
#include "engine.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>

// emu_switch(&save, to): keeps the callee-saved registers on the stack, saves the stack pointer, goes on at
// `to`. emu_resume is its second half: a signal handler jumps there to leave a fiber that can not go on.
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.globl emu_resume
.hidden emu_resume
emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
emu_resume:
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
extern "C" void emu_switch(void** save, void* to);
extern "C" void emu_resume();

namespace emu {

Thread* cur;
Kernel* kernels;
Run run;
Options options;
Stats stats;

Kernel::Kernel(const char* name, void (*invoke)(void**), const Param* params, int n_params, bool product,
               int max_threads)
    : name(name),
      invoke(invoke),
      params(params),
      n_params(n_params),
      product(product),
      max_threads(max_threads),
      launched(false),
      next(kernels) {
    kernels = this;
}

const Kernel* find_kernel(const char* name) {
    for (Kernel* k = kernels; k; k = k->next)
        if (!strcmp(k->name, name)) return k;
    return nullptr;
}

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static uint64_t next_random() {  // xorshift
    run.random ^= run.random << 13;
    run.random ^= run.random >> 7;
    run.random ^= run.random << 17;
    return run.random;
}

// ---- device memory ----

enum { ALIGN = 256, GUARD_VALUE = 0xa5, POISON = 0xff };  // poison: a NaN as f32, as f64 and as bf16

static std::map<uintptr_t, Alloc*> heap;  // by end address, so that upper_bound(p) is the one that may hold p
static Alloc* recent[2];
static size_t used;

static uintptr_t end_of(const Alloc* a) { return uintptr_t(a->base) + a->bytes + (a->bytes == 0); }
static size_t padded(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

Alloc* alloc(size_t bytes, bool shared, const char* name) {
    if (!shared && (bytes > options.memory || used + bytes > options.memory)) return nullptr;
    unsigned char* storage = static_cast<unsigned char*>(aligned_alloc(ALIGN, padded(bytes) + 2 * ALIGN));
    if (!storage) return nullptr;
    Alloc* a = new Alloc{};
    a->storage = storage;
    a->base = storage + ALIGN;
    a->bytes = bytes;
    a->shared = shared;
    a->name = name;
    memset(a->base - GUARD_BYTES, GUARD_VALUE, GUARD_BYTES);
    memset(a->base, POISON, bytes);
    memset(a->base + bytes, GUARD_VALUE, GUARD_BYTES);
#ifdef EMU_CHECK
    a->written = static_cast<uint8_t*>(calloc(bytes + 16, 1));
    a->cells = static_cast<Cell*>(calloc(bytes / 4 + 2, sizeof(Cell)));
#endif
    if (!shared) used += bytes;
    heap[end_of(a)] = a;
    return a;
}

Alloc* lookup(const void* p) {
    uintptr_t u = uintptr_t(p);
    for (Alloc* a : recent)
        if (a && u - uintptr_t(a->base) < a->bytes) return a;
    auto it = heap.upper_bound(u);
    if (it == heap.end() || u < uintptr_t(it->second->base)) return nullptr;
    recent[1] = recent[0];
    recent[0] = it->second;
    return it->second;
}

void release(Alloc* a) {
    heap.erase(end_of(a));
    recent[0] = recent[1] = nullptr;
    if (!a->shared) used -= a->bytes;
    free(a->storage);
    free(a->written);
    free(a->cells);
    delete a;
}

void mark_written(const void* p, size_t bytes) {
    Alloc* a = lookup(p);
    if (a && a->written) memset(a->written + (static_cast<const unsigned char*>(p) - a->base), 1, bytes);
}

size_t memory_used() { return used; }

// A changed guard byte is a write outside of an allocation. The guard is repaired, so that it is reported
// once.
static bool guards_intact() {
    static const std::vector<unsigned char> clean(GUARD_BYTES, GUARD_VALUE);
    for (auto& entry : heap) {
        Alloc* a = entry.second;
        for (unsigned char* guard : {a->base - GUARD_BYTES, a->base + a->bytes}) {
            if (!memcmp(guard, clean.data(), GUARD_BYTES)) continue;
            int i = 0;
            while (guard[i] == GUARD_VALUE) i++;
            memset(guard, GUARD_VALUE, GUARD_BYTES);
            if (run.failed) continue;
            run.failed = true;
            snprintf(run.message, sizeof run.message,
                     "%s: out of bounds: a guard byte at offset %td of a %s allocation of %zu bytes was "
                     "overwritten",
                     run.kernel->name, guard + i - a->base, a->shared ? "shared" : "global", a->bytes);
        }
    }
    return !run.failed;
}

// ---- fibers ----

void fail(const char* format, ...) {
    char text[700];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!run.on || !cur) {
        fprintf(stderr, "emulator: %s\n", text);
        abort();
    }
    const Head& h = cur->h;
    snprintf(run.message, sizeof run.message, "%s: block (%u,%u,%u) thread (%u,%u,%u): %s", run.kernel->name,
             h.bid.x, h.bid.y, h.bid.z, h.tid.x, h.tid.y, h.tid.z, text);
    run.failed = true;
    void* abandoned;
    emu_switch(&abandoned, run.main_sp);
    __builtin_unreachable();
}

// A fault inside a kernel (fast build: a wild pointer, a division by zero) ends the launch, not the process.
// The handler lets the interrupted thread go on in launch(), as emu_switch would.
static struct sigaction old_actions[32];
static void on_fault(int signal, siginfo_t* info, void* context) {
    if (!run.on || !cur || !pthread_equal(run.owner, pthread_self())) {
        sigaction(signal, &old_actions[signal], nullptr);  // not ours: happens again under the old handler
        return;
    }
    const Head& h = cur->h;
    uintptr_t offset = uintptr_t(info->si_addr) - uintptr_t(run.stacks);
    bool overflow = offset < size_t(MAX_THREADS) * STACK_BYTES;
    const char* what = signal == SIGFPE ? "integer division by zero or overflow"
                       : overflow       ? "stack overflow, its local arrays are too large: illegal address"
                                        : "illegal address";
    snprintf(run.message, sizeof run.message, "%s: block (%u,%u,%u) thread (%u,%u,%u): %s %p",
             run.kernel->name, h.bid.x, h.bid.y, h.bid.z, h.tid.x, h.tid.y, h.tid.z, what, info->si_addr);
    run.failed = true;
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    registers[REG_RSP] = reinterpret_cast<greg_t>(run.main_sp);
    registers[REG_RIP] = reinterpret_cast<greg_t>(&emu_resume);
}
static const int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE};
static void catch_faults() {
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : FAULTS) sigaction(signal, &action, &old_actions[signal]);
}
static void uncatch_faults() {
    for (int signal : FAULTS) sigaction(signal, &old_actions[signal], nullptr);
}

static void fiber_main();

// A stack that starts in fiber_main when it is switched to.
static void* fresh_stack(int stack) {
    // Staggered, because otherwise all tops would share one set of the cache.
    unsigned char* top = run.stacks + size_t(stack + 1) * STACK_BYTES - 256 - stack * 192 % 4096;
    void** frame = reinterpret_cast<void**>(uintptr_t(top) & ~uintptr_t(15));
    *--frame = nullptr;
    *--frame = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--frame = nullptr;  // the six registers of emu_switch
    return frame;
}

struct Choice {
    int thread;  // -1: nobody can run
    bool started;
};

// What runs next: a thread that is ready, or the next one that has not started.
static Choice choose() {
    bool ready = !run.ready.empty();
    bool fresh = run.cursor < run.order.size();
    if (ready && fresh && options.shuffle) {
        if (next_random() & 1)
            ready = false;
        else
            fresh = false;
    }
    if (ready) {
        size_t i = options.shuffle ? next_random() % run.ready.size() : run.ready.size() - 1;
        int t = run.ready[i];
        run.ready[i] = run.ready.back();
        run.ready.pop_back();
        return {t, true};
    }
    if (fresh) return {run.order[run.cursor++], false};
    return {-1, false};
}

static void report_deadlock() {
    std::string where;
    int waiting = 0, exited = 0;
    for (int i = 0; i < run.n; i++) {
        const Thread& t = run.threads[i];
        if (t.state == State::DONE) exited++;
        if (t.state != State::BLOCKED || waiting++ >= 3) continue;
        char text[200];
        snprintf(text, sizeof text, "; thread (%u,%u,%u) waits at %s:%d", t.h.tid.x, t.h.tid.y, t.h.tid.z,
                 base_name(t.file), t.line);
        where += text;
    }
    fail("divergent synchronisation: %d threads wait, %d have exited%s", waiting, exited, where.c_str());
}

static int to_start = -1;  // handed to a fresh fiber

static void switch_to(void** save, Choice next) {
    Thread* t = &run.threads[next.thread];
    if (next.started) {
        t->state = State::READY;
        cur = t;
        emu_switch(save, t->sp);
        return;
    }
    t->stack = run.free_stacks.back();
    run.free_stacks.pop_back();
    to_start = next.thread;
    emu_switch(save, fresh_stack(t->stack));
}

static void fiber_main() {
    int id = to_start;
    int stack = run.threads[id].stack;
    for (;;) {
        Thread* t = &run.threads[id];
        t->stack = stack;
        t->state = State::READY;
        cur = t;
        run.kernel->invoke(run.args);
        t->state = State::DONE;
        run.done++;
        Choice next = choose();
        id = next.thread;
        if (id >= 0 && !next.started) continue;  // nothing to switch to: the next thread starts on this stack
        void* abandoned;
        if (id < 0 && run.done == run.n) emu_switch(&abandoned, run.main_sp);
        if (id < 0) report_deadlock();
        run.free_stacks.push_back(stack);
        switch_to(&abandoned, next);
    }
}

static void wait_here(const char* file, int line) {
    Thread* me = cur;
    me->state = State::BLOCKED;
    me->file = file;
    me->line = line;
    Choice next = choose();
    if (next.thread < 0) report_deadlock();
    switch_to(&me->sp, next);
    cur = me;
}

// ---- rendezvous ----

void block_barrier(const char* file, int line) {
    if (run.arrived && (run.barrier_line != line || strcmp(run.barrier_file, file)))
        fail("divergent __syncthreads: this thread is at %s:%d, others wait at %s:%d", base_name(file), line,
             base_name(run.barrier_file), run.barrier_line);
    run.barrier_file = file;
    run.barrier_line = line;
    if (++run.arrived < run.n) {
        run.waiting.push_back(cur->id);
        wait_here(file, line);
        return;
    }
    run.arrived = 0;
    run.epoch++;
    run.result[run.epoch & 1] = run.votes;
    run.votes = 0;
    stats.barriers++;
    for (int t : run.waiting) {
        run.threads[t].state = State::READY;
        run.ready.push_back(t);
    }
    run.waiting.clear();
}

int block_vote(int predicate, Vote vote, const char* file, int line) {
    run.votes += predicate != 0;
    block_barrier(file, line);
    int count = run.result[run.epoch & 1];
    if (vote == Vote::ALL) return count == run.n;
    return vote == Vote::ANY ? count != 0 : count;
}

const unsigned char* warp_exchange(unsigned mask, const void* in, size_t n, Op op, Fence fence,
                                   const char* file, int line) {
    Thread* me = cur;
    Warp& warp = run.warps[me->h.warp];
    unsigned lane = me->h.lane;
    if (!(mask >> lane & 1))
        fail("%s:%d: lane %u is not in its own mask %08x", base_name(file), line, lane, mask);
    // A partial last warp: lanes that never existed are not waited for. Reading one of them is reported
    // elsewhere.
    if (me->h.lanes < 32) mask &= (1u << me->h.lanes) - 1;

    size_t i = 0;
    while (i < warp.meetings.size() && warp.meetings[i].mask != mask) i++;
    if (i == warp.meetings.size()) {
        warp.meetings.emplace_back();
        warp.meetings[i].mask = mask;
    }
    Meeting* m = &warp.meetings[i];
    if (m->arrived && (m->line != line || m->op != op))
        fail("divergent warp instruction: this lane is at %s:%d, others wait at %s:%d", base_name(file), line,
             base_name(m->file), m->line);
    m->op = op;
    m->file = file;
    m->line = line;
    int half = m->generation & 1;
    if (n) memcpy(m->slots[half] + 64 * lane, in, n);
    m->arrived |= 1u << lane;
    if (m->arrived != mask) {
        wait_here(file, line);
        return warp.meetings[i].slots[half];  // the vector may have grown meanwhile
    }
    m->arrived = 0;
    m->generation++;
    stats.warp_syncs++;
    if (fence == Fence::YES) warp.epoch++;
    for (int l = 31; l >= 0; l--) {
        if (!(mask >> l & 1) || unsigned(l) == lane) continue;
        int t = me->h.warp * 32 + l;
        run.threads[t].state = State::READY;
        run.ready.push_back(t);
    }
    return m->slots[half];
}

// ---- shared memory and cp.async ----

void* shared_slot(const void* key, const char* name, size_t bytes) {
    for (Slot& s : run.slots)
        if (s.key == key) return s.a->base;
    run.slots.push_back({key, alloc(bytes, true, name)});
    size_t total = 0;
    for (Slot& s : run.slots) total += s.a->bytes;
    if (total > MAX_STATIC_SHARED)
        fail("declares %zu bytes of shared memory, more than %d: use DYN_SHARED", total, MAX_STATIC_SHARED);
    if (total + run.dynamic_bytes > MAX_SHARED)
        fail("uses %zu bytes of shared memory, more than %d", total + run.dynamic_bytes, MAX_SHARED);
    return run.slots.back().a->base;
}

void* dynamic_shared() { return run.dynamic ? run.dynamic->base : nullptr; }

// A copy may land at any time between its issue and the wait. So the destination is spoilt at the issue,
// races are looked for at both ends, and the data arrives at the wait.
void cp_async(void* dst, const void* src, int bytes, bool valid, const char* file, int line) {
    if (uintptr_t(dst) % bytes || (valid && uintptr_t(src) % bytes))
        fail("%s:%d: misaligned address: cp.async of %d bytes", base_name(file), line, bytes);
    Place place{file, line, 0};
    Alloc* a = lookup(dst);
    if (!a || !a->shared) fail("%s:%d: cp.async does not write to shared memory", base_name(file), line);
    if (valid) touch(src, bytes, Kind::READ, place);
    touch(dst, bytes, Kind::WRITE, place);
    if (a->written) memset(a->written + (static_cast<unsigned char*>(dst) - a->base), 0, bytes);
    memset(dst, POISON, bytes);
    cur->copies.push_back({dst, src, bytes, valid, cur->group});
}

void cp_async_commit() { cur->group++; }

void cp_async_wait(int groups_kept, const char* file, int line) {
    std::vector<Copy>& copies = cur->copies;
    size_t kept = 0;
    for (Copy c : copies) {
        if (c.group >= cur->group - groups_kept) {
            copies[kept++] = c;
            continue;
        }
        touch(c.dst, c.bytes, Kind::WRITE, Place{file, line, 0});
        if (c.valid)
            memcpy(c.dst, c.src, c.bytes);
        else
            memset(c.dst, 0, c.bytes);
    }
    copies.resize(kept);
}

// ---- launching ----

static void reset_shared(Alloc* a) {
    memset(a->base, POISON, a->bytes);
    if (!a->written) return;
    memset(a->written, 0, a->bytes);
    memset(a->cells, 0, (a->bytes / 4 + 2) * sizeof(Cell));
}

static void prepare_threads(dim3 grid, dim3 block) {
    for (int i = 0; i < run.n; i++) {
        Thread& t = run.threads[i];
        t.id = i;
        t.h.bdim = {block.x, block.y, block.z};
        t.h.gdim = {grid.x, grid.y, grid.z};
        t.h.tid = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        t.h.lane = i % 32;
        t.h.warp = i / 32;
        int rest = run.n - i / 32 * 32;
        t.h.lanes = rest < 32 ? rest : 32;
    }
    for (Warp& w : run.warps) w.meetings.clear();
}

static void run_block(uint32_t id, dim3 grid) {
    run.block = id;
    uint3 bid = {id % grid.x, id / grid.x % grid.y, unsigned(id / (uint64_t(grid.x) * grid.y))};
    run.done = run.arrived = run.epoch = run.votes = 0;
    run.cursor = 0;
    run.ready.clear();
    run.waiting.clear();
    run.free_stacks.clear();
    for (int i = run.n - 1; i >= 0; i--) run.free_stacks.push_back(i);
    run.order.resize(run.n);
    for (int i = 0; i < run.n; i++) {
        Thread& t = run.threads[i];
        t.h.bid = bid;
        t.state = State::UNSTARTED;
        t.group = 0;
        t.copies.clear();
        run.order[i] = i;
    }
    if (options.shuffle)
        for (int i = run.n; i > 1; i--) std::swap(run.order[i - 1], run.order[next_random() % i]);
    for (int w = 0; w < (run.n + 31) / 32; w++) {
        for (Meeting& m : run.warps[w].meetings) m.arrived = 0;
        run.warps[w].epoch = 0;
    }
    switch_to(&run.main_sp, choose());
    cur = nullptr;
    profile_block();
}

static void reserve_stacks() {
    size_t bytes = size_t(MAX_THREADS) * STACK_BYTES;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "emulator: no memory for %zu bytes of stacks\n", bytes);
        abort();
    }
    run.stacks = static_cast<unsigned char*>(p);
    for (int i = 0; i < MAX_THREADS; i++) mprotect(run.stacks + size_t(i) * STACK_BYTES, 4096, PROT_NONE);
    run.threads = new Thread[MAX_THREADS]();
}

const char* launch(const Kernel* k, dim3 grid, dim3 block, unsigned dynamic, void** args) {
    if (!run.stacks) reserve_stacks();
    const_cast<Kernel*>(k)->launched = true;
    run.owner = pthread_self();
    run.kernel = k;
    run.args = args;
    run.dynamic_bytes = dynamic;
    run.n = block.x * block.y * block.z;
    run.failed = false;
    run.launch++;
    run.random = options.seed * 0x9E3779B97F4A7C15ull + run.launch + 1;
    if (!run.random) run.random = 1;  // xorshift stays at zero
    run.dynamic = dynamic ? alloc(dynamic, true, "dynamic shared memory") : nullptr;
    prepare_threads(grid, block);

    uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    stats.launches++;
    stats.threads += blocks * run.n;
    std::vector<uint32_t> order;
    if (options.shuffle) {
        order.resize(blocks);
        for (uint64_t i = 0; i < blocks; i++) order[i] = i;
        for (uint64_t i = blocks; i > 1; i--) std::swap(order[i - 1], order[next_random() % i]);
    }
    run.on = true;
    catch_faults();
    for (uint64_t b = 0; b < blocks && !run.failed; b++) {
        if (b && run.dynamic) reset_shared(run.dynamic);
        if (b)
            for (Slot& s : run.slots) reset_shared(s.a);
        run_block(options.shuffle ? order[b] : b, grid);
    }
    uncatch_faults();
    run.on = false;
    guards_intact();
    for (Slot& s : run.slots) release(s.a);
    run.slots.clear();
    if (run.dynamic) release(run.dynamic);
    run.dynamic = nullptr;
    return run.failed ? run.message : nullptr;
}

#ifdef EMU_CHECK
const Head& head() { return cur->h; }
#endif

}  // namespace emu
