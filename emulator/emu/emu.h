// The CUDA C++ that our kernels use, as ordinary C++ for the host compiler. kernels/common.cuh includes this
// file when the compiler is not nvcc. One CUDA thread is one fiber: it runs until it meets a barrier or a
// warp-wide instruction, then another one runs (engine.cpp).
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

// Our own functions must not be checked as if they were a kernel's.
#define EMU_NOSAN __attribute__((no_sanitize("thread")))

// ---- the language ----
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#define EMU_VECTOR2(N, T, A) \
    struct alignas(A) N {    \
        T x, y;              \
    };                       \
    inline N make_##N(T x, T y) { return N{x, y}; }
#define EMU_VECTOR3(N, T) \
    struct N {            \
        T x, y, z;        \
    };                    \
    inline N make_##N(T x, T y, T z) { return N{x, y, z}; }
#define EMU_VECTOR4(N, T, A) \
    struct alignas(A) N {    \
        T x, y, z, w;        \
    };                       \
    inline N make_##N(T x, T y, T z, T w) { return N{x, y, z, w}; }

EMU_VECTOR2(char2, signed char, 2)
EMU_VECTOR2(uchar2, unsigned char, 2)
EMU_VECTOR2(short2, short, 4)
EMU_VECTOR2(ushort2, unsigned short, 4)
EMU_VECTOR2(int2, int, 8)
EMU_VECTOR2(uint2, unsigned, 8)
EMU_VECTOR2(float2, float, 8)
EMU_VECTOR2(double2, double, 16)
EMU_VECTOR2(longlong2, long long, 16)
EMU_VECTOR2(ulonglong2, unsigned long long, 16)
EMU_VECTOR3(int3, int)
EMU_VECTOR3(uint3, unsigned)
EMU_VECTOR3(float3, float)
EMU_VECTOR4(char4, signed char, 4)
EMU_VECTOR4(uchar4, unsigned char, 4)
EMU_VECTOR4(short4, short, 8)
EMU_VECTOR4(ushort4, unsigned short, 8)
EMU_VECTOR4(int4, int, 16)
EMU_VECTOR4(uint4, unsigned, 16)
EMU_VECTOR4(float4, float, 16)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- where a thread is ----
namespace emu {

// First member of Thread, so that the fast build reads it without a call.
struct Head {
    uint3 tid, bid, bdim, gdim;
    unsigned lane, warp;
    unsigned lanes;  // of this warp that exist: 32 except in a block's partial last warp
};
struct Thread;
extern Thread* cur;  // the CUDA thread that runs now

#ifdef EMU_CHECK
__attribute__((noinline)) const Head& head();  // in engine.cpp, which is not instrumented
#else
inline const Head& head() { return *reinterpret_cast<const Head*>(cur); }
#endif

// Where a call stands in the source.
struct Place {
    const char* file;
    int line;
    uintptr_t pc;  // used where file is null
};

// Ends the launch with this message. Does not return to the kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* base_name(const char* path);

// ---- what engine.cpp and checks.cpp offer ----
enum class Op { SYNCWARP, SHFL, SHFL_UP, SHFL_DOWN, SHFL_XOR, VOTE, REDUCE, MMA_BF16, MMA_TF32, LDMATRIX };
enum class Vote { COUNT, ALL, ANY };
enum class Fence { NO, YES };

void block_barrier(const char* file, int line);
int block_vote(int predicate, Vote vote, const char* file, int line);
// Deposits `n` bytes (64 at most), waits for every lane of `mask`, returns the 32 deposits, 64 bytes apart.
const unsigned char* warp_exchange(unsigned mask, const void* in, size_t n, Op op, Fence fence,
                                   const char* file, int line);
void* shared_slot(const void* key, const char* name, size_t bytes);
void* dynamic_shared();
void cp_async(void* dst, const void* src, int bytes, bool valid, const char* file, int line);
void cp_async_commit();
void cp_async_wait(int groups_kept, const char* file, int line);
// Check an access that the instrumentation does not see. They do nothing in the fast build.
void checked_read(const void* p, int bytes, const char* file, int line);
void checked_write(void* p, int bytes, const char* file, int line);
void checked_atomic(void* p, int bytes, const char* file, int line);

template <class T>
EMU_NOSAN inline T pick(const unsigned char* slots, unsigned lane) {
    T t;
    memcpy(&t, slots + 64 * lane, sizeof t);
    return t;
}

// ---- the registry: a kernel's name and a call with its types ----
struct Param {
    size_t offset, size;
};
struct Kernel {
    const char* name;
    void (*invoke)(void** args);
    const Param* params;
    int n_params;
    bool product;  // false: one of the emulator's own test kernels
    int max_threads;
    bool launched;
    Kernel* next;
    Kernel(const char* name, void (*invoke)(void**), const Param* params, int n_params, bool product,
           int max_threads);
};

template <auto F>
struct Entry;
template <class... A, void (*F)(A...)>
struct Entry<F> {
    static constexpr int count = sizeof...(A);

    template <size_t... I>
    EMU_NOSAN static void spread(void** args, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<A>*>(args[I])...);
    }
    EMU_NOSAN static void call(void** args) { spread(args, std::index_sequence_for<A...>{}); }

    static const Param* params() {
        static Param list[count + 1];
        size_t offset = 0;
        int i = 0;
        auto add = [&](size_t size, size_t align) {
            offset = (offset + align - 1) / align * align;
            list[i++] = Param{offset, size};
            offset += size;
        };
        (add(sizeof(A), alignof(A)), ...);
        return list;
    }
};

}  // namespace emu

#define EMU_REGISTER(name, product, max_threads)                                                       \
    static emu::Kernel emu_kernel_##name(#name, &emu::Entry<&name>::call, emu::Entry<&name>::params(), \
                                         emu::Entry<&name>::count, product, max_threads);

#define threadIdx (emu::head().tid)
#define blockIdx (emu::head().bid)
#define blockDim (emu::head().bdim)
#define gridDim (emu::head().gdim)
#define warpSize 32

// The place of a call reaches the callee as default arguments, so that calls stay plain CUDA.
#define EMU_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Shared memory is declared through macros so that every block gets fresh, poisoned storage of the exact
// size. The address of emu_key_name tells functions and instantiations of templates apart.
#define SHARED(T, name, dims)       \
    using emu_type_##name = T dims; \
    static char emu_key_##name;     \
    emu_type_##name& name =         \
        *static_cast<emu_type_##name*>(emu::shared_slot(&emu_key_##name, #name, sizeof(emu_type_##name)))
#define DYN_SHARED(T, name) T* const name = static_cast<T*>(emu::dynamic_shared())

#include "emu_math.h"
#include "emu_warp.h"
