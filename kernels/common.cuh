// The vocabulary that every kernel file is written in. nvcc compiles it for the GPU; the host compiler
// compiles the same files against emulator/emu/emu.h for the tests.
//
// Two spellings differ from plain CUDA, because the emulator must know every byte of shared memory:
//     SHARED(float, tile, [32][33]);     a static array, aligned to 16 bytes
//     DYN_SHARED(float, buffer);         a pointer to the launch's dynamic shared memory, aligned to 16 bytes
// An entry point is KERNEL name(...) at the start of a line, KERNEL __launch_bounds__(256) name(...)
// included. In a file whose first line is "// Variants: a b" an entry point KERNEL VARIANT(name)(...) stands for name_a
// and name_b: the file includes itself once for each (floats.cuh does it for the float types a tensor can store).
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <stdint.h>

#define SHARED(T, name, dims) __shared__ __align__(16) T name dims
// All kernels of a file share one extern array: CUDA has only one dynamic allocation per block anyway.
#define DYN_SHARED(T, name)                                      \
    extern __shared__ __align__(16) unsigned char dyn_shared_[]; \
    T* const name = reinterpret_cast<T*>(dyn_shared_)
#else
#include "emu.h"
#endif

#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__

using bf16 = __nv_bfloat16;

constexpr unsigned FULL_WARP = 0xffffffffu;

// ---- reductions. The order of every sum is fixed, so the same input gives the same bits on every run ----

// Butterfly over the 32 lanes; every lane gets the same result. All 32 must call.
template <class T>
DEVICE T warp_sum(T v) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(FULL_WARP, v, o);
    return v;
}

template <class T>
DEVICE T warp_max(T v) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) v = max(v, __shfl_xor_sync(FULL_WARP, v, o));
    return v;
}

template <class T>
DEVICE T warp_min(T v) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) v = min(v, __shfl_xor_sync(FULL_WARP, v, o));
    return v;
}

// A value and where it stands. A tie goes to the lower index; a NaN never wins against a number.
struct Best {
    float value;
    int index;
};

DEVICE Best better(Best a, Best b) {
    bool nan_a = a.value != a.value;
    bool nan_b = b.value != b.value;
    bool b_wins = nan_a == nan_b ? b.value > a.value : nan_a;
    bool tie = nan_a == nan_b && (nan_a || a.value == b.value);
    return b_wins || (tie && b.index < a.index) ? b : a;
}

DEVICE Best warp_argmax(Best v) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) {
        Best other;
        other.value = __shfl_xor_sync(FULL_WARP, v.value, o);
        other.index = __shfl_xor_sync(FULL_WARP, v.index, o);
        v = better(v, other);
    }
    return v;
}

// Over a one-dimensional block whose size is a multiple of 32; every thread gets the same result. All must
// call. Each warp repeats the second stage for itself, which saves a broadcast. The last barrier lets the
// next call write.
template <class T>
DEVICE T block_sum(T v) {
    SHARED(T, part, [32]);
    int lane = threadIdx.x % 32;
    v = warp_sum(v);
    if (lane == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = warp_sum(lane < blockDim.x / 32 ? part[lane] : T(0));
    __syncthreads();
    return v;
}

template <class T>
DEVICE T block_max(T v) {
    SHARED(T, part, [32]);
    int lane = threadIdx.x % 32;
    v = warp_max(v);
    if (lane == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = warp_max(part[lane < blockDim.x / 32 ? lane : 0]);
    __syncthreads();
    return v;
}

DEVICE Best block_argmax(Best v) {
    SHARED(float, value, [32]);
    SHARED(int, index, [32]);
    int lane = threadIdx.x % 32;
    v = warp_argmax(v);
    if (lane == 0) {
        value[threadIdx.x / 32] = v.value;
        index[threadIdx.x / 32] = v.index;
    }
    __syncthreads();
    int from = lane < blockDim.x / 32 ? lane : 0;
    v = warp_argmax(Best{value[from], index[from]});
    __syncthreads();
    return v;
}

// ---- a loop whose index is a constant, for instructions that want one: each<4>([&](auto i) { ... i.value ... }) ----
template <int I>
struct Index {
    static constexpr int value = I;
};
template <int N, int I = 0, class F>
DEVICE void each(F f) {
    if constexpr (I < N) {
        f(Index<I>{});
        each<N, I + 1>(f);
    }
}

// ---- f32 and bf16 behind one name, for functions that are templates over the stored type ----
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }

template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
    return x;
}
template <>
DEVICE bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

// ---- 16 bytes at once: 4 floats or 8 bf16. The address must be a multiple of 16 ----
#ifdef __CUDACC__
DEVICE uint4 load16(const void* p) { return *reinterpret_cast<const uint4*>(p); }
DEVICE void store16(void* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }
#else
// The place of the call is a default argument, so that a finding names the kernel's line and not this one.
inline uint4 load16(const void* p, EMU_AT) { return emu::load16(p, file, line); }
inline void store16(void* p, uint4 v, EMU_AT) { emu::store16(p, v, file, line); }
#endif

DEVICE float4 as_float4(uint4 v) {
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                       __uint_as_float(v.w));
}
DEVICE uint4 as_uint4(float4 v) {
    return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
}

// Two bf16 in a register, the first in the low half: what tensor cores and 16-byte loads hold.
DEVICE uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&pair);
}
DEVICE float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

DEVICE void unpack8(float (&out)[8], uint4 v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = low_bf16(words[i]);
        out[2 * i + 1] = high_bf16(words[i]);
    }
}
DEVICE uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                      pack_bf16(x[6], x[7]));
}

// 16 bytes of a stored type as floats.
template <class S>
struct Vec {
    static constexpr int N = 16 / sizeof(S);
    float v[N];
    Vec() = default;
    DEVICE explicit Vec(const S* p);
    DEVICE void store(S* p) const;
};
template <>
DEVICE Vec<float>::Vec(const float* p) {
    float4 f = as_float4(load16(p));
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}
template <>
DEVICE void Vec<float>::store(float* p) const {
    store16(p, as_uint4(make_float4(v[0], v[1], v[2], v[3])));
}
template <>
DEVICE Vec<bf16>::Vec(const bf16* p) {
    unpack8(v, load16(p));
}
template <>
DEVICE void Vec<bf16>::store(bf16* p) const {
    store16(p, pack8(v));
}

// Four stored values as floats: 16 bytes of f32, 8 of bf16. The address is a multiple of that.
DEVICE float4 load4(const float* p) { return as_float4(load16(p)); }
DEVICE float4 load4(const bf16* p) {
    uint2 v = *reinterpret_cast<const uint2*>(p);
    return make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y));
}
DEVICE void store4(float* p, float4 v) { store16(p, as_uint4(v)); }
DEVICE void store4(bf16* p, float4 v) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}

// N neighbouring stored values, N = 4 or 1: rows whose length is no multiple of four go one by one.
template <int N>
struct Some {
    float v[N];
    Some() = default;
    template <class S>
    DEVICE explicit Some(const S* p) {
        if constexpr (N == 4) {
            float4 f = load4(p);
            v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        } else {
            v[0] = to_float(p[0]);
        }
    }
    template <class S>
    DEVICE void store(S* p) const {
        if constexpr (N == 4) store4(p, make_float4(v[0], v[1], v[2], v[3]));
        else p[0] = from_float<S>(v[0]);
    }
};

// True when 16-byte accesses may start at p. A tensor can be a window on a larger one and begin anywhere.
DEVICE bool aligned16(const void* p) { return (uintptr_t)p % 16 == 0; }

// y[i] = f(x[i]...) for i < n, 16 bytes of y a thread, in one access each where all of them lie on 16 bytes.
template <class S, class F, class... In>
DEVICE void map16(S* y, int n, F f, const In*... x) {
    constexpr int N = Vec<S>::N;
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (e + N <= n && aligned16(y) && (aligned16(x) && ...)) {
        Vec<S> out;
        auto all = [&](const Vec<In>&... a) {
#pragma unroll
            for (int i = 0; i < N; i++) out.v[i] = f(a.v[i]...);
        };
        all(Vec<In>(x + e)...);
        out.store(y + e);
    } else {
        for (int i = e; i < min(e + N, n); i++) y[i] = from_float<S>(f(to_float(x[i])...));
    }
}

// ---- tensor cores and asynchronous copies: inline PTX for nvcc, an emulation for the host compiler ----
//
// mma_bf16     D(16,8) += A(16,16) B(16,8)   a: 8 bf16 a lane, b: 4, d: 4 floats; FIRST: D = A B, whatever is in D
// mma_tf32     D(16,8) += A(16,8) B(8,8)     a: 4 floats a lane, b: 2, d: 4 floats
// Places in shared memory are SharedAt, a 32-bit address to which bytes are added; AT is added by the instruction.
// ldmatrix_x4  four 8x8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8
// cp_async16   16 bytes from global to shared memory, or zeros when not valid (the source is not looked at then); both
//              aligned to 16; FROM is added to the source by the instruction; cp_async16_cached: zeros when `skip` is
//              not zero
// cp_async4    4 bytes, for tiles whose rows are not multiples of 16 bytes
// cp_commit    closes this thread's group of copies
// cp_wait<N>   waits until at most N of its groups are under way; a barrier must follow before others read
#ifdef __CUDACC__

// Keeps a value in a register: the compiler would rather compute it again in every turn of a loop.
DEVICE void keep(int& v) { asm volatile("" : "+r"(v)); }
DEVICE void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
DEVICE void keep(ptrdiff_t& v) { asm volatile("" : "+l"(v)); }
template <class T>
DEVICE void keep(T*& p) {
    asm volatile("" : "+l"(p));
}

using SharedAt = uint32_t;
DEVICE SharedAt shared_at(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

template <bool FIRST = false>
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if (FIRST) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%10,%10,%10,%10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0f));
        return;
    }
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <int AT = 0>
DEVICE void ldmatrix_x4(uint32_t (&r)[4], SharedAt row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4 + %5];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row), "n"(AT)
                 : "memory");
}

template <int AT = 0>
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], SharedAt row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4 + %5];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row), "n"(AT)
                 : "memory");
}

// .cg: past the L1 cache, for what a block reads once; .ca: through it, for windows that overlap.
template <int AT = 0>
DEVICE void cp_async16_cached(SharedAt dst, const void* src, uint32_t skip) {
    asm volatile(
        "{ .reg .pred skip; setp.ne.b32 skip, %2, 0; cp.async.ca.shared.global [%0 + %3], [%1], 16, skip; }" ::"r"(dst),
        "l"(src), "r"(skip), "n"(AT)
        : "memory");
}
template <int AT = 0>
DEVICE void cp_async16(SharedAt dst, const void* src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0 + %3], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0), "n"(AT)
                 : "memory");
}
template <int AT, int FROM = 0>
DEVICE void cp_async16(SharedAt dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(dst), "l"(src), "n"(AT), "n"(FROM)
                 : "memory");
}
// .ca: the only form that exists for fewer than 16 bytes.
template <int AT = 0>
DEVICE void cp_async4(SharedAt dst, const void* src, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0 + %3], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(valid ? 4 : 0), "n"(AT)
                 : "memory");
}
DEVICE void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

template <bool FIRST = false>
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_AT) {
    if (FIRST) d[0] = d[1] = d[2] = d[3] = 0.0f;
    emu::mma_bf16(d, a, b, file, line);
}
using emu::mma_tf32;
template <class T>
inline void keep(T&) {}

using SharedAt = char*;
inline SharedAt shared_at(const void* p) { return (char*)p; }
template <int AT = 0>
inline void ldmatrix_x4(uint32_t (&r)[4], SharedAt row, EMU_AT) {
    emu::ldmatrix(r, row + AT, false, file, line);
}
template <int AT = 0>
inline void ldmatrix_x4_trans(uint32_t (&r)[4], SharedAt row, EMU_AT) {
    emu::ldmatrix(r, row + AT, true, file, line);
}
template <int AT = 0>
inline void cp_async16(SharedAt dst, const void* src, bool valid, EMU_AT) {
    emu::cp_async(dst + AT, src, 16, valid, file, line);
}
template <int AT, int FROM = 0>
inline void cp_async16(SharedAt dst, const void* src, EMU_AT) {
    emu::cp_async(dst + AT, static_cast<const char*>(src) + FROM, 16, true, file, line);
}
template <int AT = 0>
inline void cp_async16_cached(SharedAt dst, const void* src, uint32_t skip, EMU_AT) {
    emu::cp_async(dst + AT, src, 16, skip == 0, file, line);
}
template <int AT = 0>
inline void cp_async4(SharedAt dst, const void* src, bool valid, EMU_AT) {
    emu::cp_async(dst + AT, src, 4, valid, file, line);
}
inline void cp_commit() { emu::cp_async_commit(); }
template <int N>
inline void cp_wait(EMU_AT) {
    emu::cp_async_wait(N, file, line);
}

#endif
