// What the parts of the emulated driver share: device memory, the running launch, options and counters.
#pragma once
#include <pthread.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "emu.h"

namespace emu {

enum {
    MAX_THREADS = 1024,
    STACK_BYTES = 128 << 10,  // of one CUDA thread; reserved, not touched
    GUARD_BYTES = 64,         // checked before and after every allocation
    MAX_SHARED = 232448,      // per block, static and dynamic, as on compute capability 9.0
    MAX_STATIC_SHARED = 49152,
};

// ---- memory ----
struct Access {  // who touched a word last, 16 bytes
    uint32_t launch, block;
    uint16_t epoch, warp_epoch;  // how many block and warp barriers the thread had passed
    uint16_t thread;
    uint8_t atomic, mask;  // mask: which of the four bytes
};
struct Cell {  // the history of four bytes of memory
    Access write, read, other_read;
};
struct Alloc {
    unsigned char* base;
    size_t bytes;
    bool shared;
    const char* name;
    unsigned char* storage;  // base minus the front guard
    uint8_t* written;        // checked build: one flag a byte
    Cell* cells;             // checked build: one a word
};
Alloc* alloc(size_t bytes, bool shared, const char* name);  // null: over the memory limit
Alloc* lookup(const void* p);
void release(Alloc* a);
void mark_written(const void* p, size_t bytes);
size_t memory_used();  // bytes of global memory

// ---- options and counters ----
struct Options {
    bool shuffle = false, lazy = false, race = true, init = true, profile = false;
    uint64_t seed = 1;
    uint64_t memory = uint64_t(4) << 30;
};
struct Line {  // what one access in the source has cost
    Place place;
    bool shared, write;
    uint64_t requests, cost, ideal;
};
struct Stats {
    uint64_t launches, threads, barriers, warp_syncs, accesses, atomics;
    std::unordered_map<uint64_t, Line> lines;
};
extern Options options;
extern Stats stats;

// ---- launches ----
extern Kernel* kernels;
const Kernel* find_kernel(const char* name);
const char* launch(const Kernel* k, dim3 grid, dim3 block, unsigned dynamic,
                   void** args);  // null, or what is wrong

enum class State : uint8_t { UNSTARTED, READY, BLOCKED, DONE };
struct Copy {  // a cp.async on its way
    void* dst;
    const void* src;
    int bytes;
    bool valid;
    int group;
};
struct Thread {
    Head h;  // first: emu::head() relies on it
    void* sp;
    State state;
    int id, stack;
    const char* file;  // where it waits
    int line;
    int group;  // of its next cp.async
    std::vector<Copy> copies;
};
struct Meeting {  // lanes of one mask that wait for each other
    unsigned mask, arrived;
    int generation;
    Op op;
    const char* file;
    int line;
    unsigned char slots[2][32 * 64];  // two, so that a fast lane can deposit again before a slow one has read
};
struct Warp {
    std::vector<Meeting> meetings;
    unsigned epoch;
};
struct Slot {
    const void* key;
    Alloc* a;
};
struct Run {
    bool on;
    pthread_t owner;
    const Kernel* kernel;
    void** args;
    unsigned dynamic_bytes;
    int n, done;  // threads of a block, and how many have returned
    uint64_t launch;
    uint32_t block;  // linear number of the running block
    uint64_t random;

    unsigned char* stacks;
    Thread* threads;
    std::vector<int> free_stacks, ready, order;
    size_t cursor;  // into order: the next thread to start
    void* main_sp;

    bool failed;
    char message[1024];

    int arrived, epoch;  // of the block's barrier
    const char* barrier_file;
    int barrier_line;
    std::vector<int> waiting;
    int votes, result[2];

    Warp warps[MAX_THREADS / 32];
    std::vector<Slot> slots;
    Alloc* dynamic;
};
extern Run run;

// ---- checks.cpp ----
enum class Kind { READ, WRITE, ATOMIC };
void touch(const void* p, int bytes, Kind kind, const Place& place, bool aligned = true);
uint64_t image_offset(uintptr_t pc);  // of a place in this library
void profile_block();                 // folds the accesses of the block that has just ended into stats.lines

}  // namespace emu
