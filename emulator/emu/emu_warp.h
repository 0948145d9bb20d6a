// Everything that more than one thread takes part in: barriers, shuffles, votes, atomics, tensor cores.
#pragma once

// ---- barriers ----
inline void __syncthreads(EMU_AT) { emu::block_barrier(file, line); }
inline int __syncthreads_count(int p, EMU_AT) { return emu::block_vote(p, emu::Vote::COUNT, file, line); }
inline int __syncthreads_and(int p, EMU_AT) { return emu::block_vote(p, emu::Vote::ALL, file, line); }
inline int __syncthreads_or(int p, EMU_AT) { return emu::block_vote(p, emu::Vote::ANY, file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_AT) {
    emu::warp_exchange(mask, nullptr, 0, emu::Op::SYNCWARP, emu::Fence::YES, file, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- shuffles and votes ----
namespace emu {

template <class T>
EMU_NOSAN inline T shuffle(unsigned mask, T value, Op op, int arg, int width, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    const unsigned char* slots = warp_exchange(mask, &value, sizeof value, op, Fence::NO, file, line);
    int lane = head().lane;
    int first = lane & ~(width - 1);
    int place = lane - first;
    int from = lane;
    if (op == Op::SHFL) from = first + (arg & (width - 1));
    if (op == Op::SHFL_UP && place - arg >= 0) from = lane - arg;
    if (op == Op::SHFL_DOWN && place + arg < width) from = lane + arg;
    if (op == Op::SHFL_XOR && (place ^ arg) < width) from = first + (place ^ arg);
    if (!(mask >> from & 1) || unsigned(from) >= head().lanes)
        fail("%s:%d: shuffle reads lane %d, which is not there (mask %08x, %u lanes)", base_name(file), line,
             from, mask, head().lanes);
    return pick<T>(slots, from);
}

// Folds the deposits of the lanes in `mask`, lowest lane first.
template <class T, class F>
EMU_NOSAN inline T fold(unsigned mask, T value, Op op, const char* file, int line, F f) {
    const unsigned char* slots = warp_exchange(mask, &value, sizeof value, op, Fence::NO, file, line);
    bool first = true;
    T acc{};
    for (unsigned lane = 0; lane < head().lanes; lane++) {
        if (!(mask >> lane & 1)) continue;
        T v = pick<T>(slots, lane);
        acc = first ? v : f(acc, v);
        first = false;
    }
    return acc;
}

}  // namespace emu

template <class T>
inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, emu::Op::SHFL, lane, width, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, emu::Op::SHFL_UP, delta, width, file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, emu::Op::SHFL_DOWN, delta, width, file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, EMU_AT) {
    return emu::shuffle(mask, v, emu::Op::SHFL_XOR, lane_mask, width, file, line);
}
EMU_NOSAN inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_AT) {
    unsigned mine = predicate ? 1u << emu::head().lane : 0;
    return emu::fold(mask, mine, emu::Op::VOTE, file, line, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, EMU_AT) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_AT) {
    return __ballot_sync(mask, !predicate, file, line) == 0;
}

// Integers only, as in CUDA; unsigned sums wrap.
#define EMU_REDUCE(name, T, expression)                                                                   \
    EMU_NOSAN inline T name(unsigned mask, T v, EMU_AT) {                                                 \
        return emu::fold(mask, v, emu::Op::REDUCE, file, line, [](T a, T b) -> T { return expression; }); \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_and_sync, unsigned, a& b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
EMU_REDUCE(__reduce_add_sync, int, int(unsigned(a) + unsigned(b)))
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef EMU_REDUCE

// ---- memory ----
template <class T>
inline T __ldg(const T* p) {
    return *p;
}
template <class T>
inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
inline T __ldcg(const T* p) {
    return *p;
}
template <class T>
inline void __stcs(T* p, T v) {
    *p = v;
}
template <class T>
inline void __stcg(T* p, T v) {
    *p = v;
}

namespace emu {

template <class T, class F>
EMU_NOSAN inline T update(T* p, const char* file, int line, F f) {
    checked_atomic(p, sizeof(T), file, line);
    T old = *p;
    *p = f(old);
    return old;
}
// The types CUDA has these for. uint64_t is `unsigned long` on Linux and nvcc refuses it: so do we.
template <class T>
constexpr bool atomic_integer = std::is_same<T, int>::value || std::is_same<T, unsigned>::value ||
                                std::is_same<T, unsigned long long>::value;
template <class T>
constexpr bool atomic_float = std::is_same<T, float>::value || std::is_same<T, double>::value;

}  // namespace emu

#define EMU_ATOMIC(name, allowed, expression)                                                \
    template <class T>                                                                       \
    EMU_NOSAN inline T name(T* p, std::common_type_t<T> v, EMU_AT) {                         \
        static_assert(allowed, "CUDA has no " #name " for this type");                       \
        return emu::update(p, file, line, [v](T old) EMU_NOSAN -> T { return expression; }); \
    }
namespace emu {
template <class T>
EMU_NOSAN inline T wrapping_add(T a, T b) {
    if constexpr (std::is_integral<T>::value)
        return T(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));
    else
        return a + b;
}
}  // namespace emu
EMU_ATOMIC(atomicAdd, emu::atomic_integer<T> || emu::atomic_float<T>, emu::wrapping_add(old, v))
EMU_ATOMIC(atomicSub, emu::atomic_integer<T>, T(old - v))
EMU_ATOMIC(atomicMax, emu::atomic_integer<T>, (old > v ? old : v))
EMU_ATOMIC(atomicMin, emu::atomic_integer<T>, (old < v ? old : v))
EMU_ATOMIC(atomicOr, emu::atomic_integer<T>, T(old | v))
EMU_ATOMIC(atomicAnd, emu::atomic_integer<T>, T(old& v))
EMU_ATOMIC(atomicXor, emu::atomic_integer<T>, T(old ^ v))
EMU_ATOMIC(atomicExch, (emu::atomic_integer<T> || std::is_same<T, float>::value), v)
#undef EMU_ATOMIC
template <class T>
EMU_NOSAN inline T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v, EMU_AT) {
    static_assert(emu::atomic_integer<T>, "CUDA has no atomicCAS for this type");
    return emu::update(p, file, line, [=](T old) EMU_NOSAN -> T { return old == expected ? v : old; });
}

namespace emu {

// ---- 16 bytes at once: the instrumentation would see four accesses of four bytes ----
EMU_NOSAN inline uint4 load16(const void* p, const char* file, int line) {
    checked_read(p, 16, file, line);
    uint4 v;
    memcpy(&v, p, 16);
    return v;
}
EMU_NOSAN inline void store16(void* p, uint4 v, const char* file, int line) {
    checked_write(p, 16, file, line);
    memcpy(p, &v, 16);
}

// ---- tensor cores: every lane deposits its registers, then computes its own part of D. With g = lane / 4
// and t = lane % 4, a lane holds D rows g and g + 8, columns 2t and 2t + 1 ----
struct Fragments {
    uint32_t a[4], b[2];
};
EMU_NOSAN inline uint32_t fragment(const unsigned char* slots, int lane, int reg) {  // 0..3: a, 4..5: b
    uint32_t v;
    memcpy(&v, slots + 64 * lane + 4 * reg, 4);
    return v;
}
EMU_NOSAN inline float bf16_of(uint32_t pair, int which) {
    return bits<float>(which ? pair & 0xffff0000u : pair << 16);
}
EMU_NOSAN inline float tf32_of(uint32_t v) {
    return bits<float>(v & 0xffffe000u);
}  // the low 13 bits are ignored

// D(16,8) += A(16,16) B(16,8). A[row][k] is in lane g*4 + k%8/2, register row/8 + 2*(k/8); B[k][n] in lane
// n*4 + k%8/2, register k/8; the lower half of a register has the even k.
EMU_NOSAN inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_AT) {
    Fragments mine;
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    const unsigned char* slots = warp_exchange(~0u, &mine, sizeof mine, Op::MMA_BF16, Fence::NO, file, line);
    int g = head().lane / 4, t = head().lane % 4;
    for (int i = 0; i < 4; i++) {
        int half = i / 2, n = 2 * t + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            uint32_t x = fragment(slots, g * 4 + k % 8 / 2, half + 2 * (k / 8));
            uint32_t y = fragment(slots, n * 4 + k % 8 / 2, 4 + k / 8);
            sum += bf16_of(x, k % 2) * bf16_of(y, k % 2);
        }
        d[i] = sum;
    }
}

// D(16,8) += A(16,8) B(8,8). A[row][k] is in lane g*4 + k%4, register row/8 + 2*(k/4); B[k][n] in lane n*4 +
// k%4, register k/4.
EMU_NOSAN inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_AT) {
    Fragments mine;
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    const unsigned char* slots = warp_exchange(~0u, &mine, sizeof mine, Op::MMA_TF32, Fence::NO, file, line);
    int g = head().lane / 4, t = head().lane % 4;
    for (int i = 0; i < 4; i++) {
        int half = i / 2, n = 2 * t + i % 2;
        float sum = d[i];
        for (int k = 0; k < 8; k++) {
            uint32_t x = fragment(slots, g * 4 + k % 4, half + 2 * (k / 4));
            uint32_t y = fragment(slots, n * 4 + k % 4, 4 + k / 4);
            sum += tf32_of(x) * tf32_of(y);
        }
        d[i] = sum;
    }
}

// Four 8x8 matrices of 16-bit values. Lane l gives the address of row l%8 of matrix l/8. It receives, of each
// matrix, row l/4, columns 2*(l%4) and the next; transposed: rows 2*(l%4) and the next, column l/4.
EMU_NOSAN inline void ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, const char* file,
                               int line) {
    checked_read(row, 16, file, line);
    const unsigned char* slots = warp_exchange(~0u, &row, sizeof row, Op::LDMATRIX, Fence::NO, file, line);
    unsigned lane = head().lane;
    for (unsigned m = 0; m < 4; m++) {
        if (!transposed) {
            memcpy(&r[m], pick<const char*>(slots, 8 * m + lane / 4) + 4 * (lane % 4), 4);
            continue;
        }
        uint16_t pair[2];
        for (unsigned e = 0; e < 2; e++)
            memcpy(&pair[e], pick<const char*>(slots, 8 * m + 2 * (lane % 4) + e) + 2 * (lane / 4), 2);
        r[m] = pair[0] | uint32_t(pair[1]) << 16;
    }
}

}  // namespace emu
