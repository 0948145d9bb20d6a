// Variants: f32 bf16
// Dropout by addressed randomness: the mask is a pure function of (seed, stream, round, step, element), so the
// backward pass computes it again instead of reading it, and every device draws the same one.
#ifndef Stored
#include "common.cuh"
#include "philox.cuh"
#define SOURCE "dropout.cu"
#include "floats.cuh"
#else

// y[e] = x[e] * scale where the word of e is >= drop_below, else 0. Its own backward with dy in the place of x.
//   y, x (n)   clock (8): word 0 the step
// Launch:  one thread per four elements (one Philox block), block 256.
// Traffic: 2n elements.
// Repeats: bit-identical.
// Limits:  n < 2^31 - 1024.
KERNEL VARIANT(dropout_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const uint32_t* __restrict__ clock,
    int n,
    float scale,
    uint32_t drop_below,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int block = blockIdx.x * blockDim.x + threadIdx.x;
    int e = block * 4;
    if (e >= n) return;
    uint4 r = philox_block(seed_lo, seed_hi, stream, round, clock[0], block);
    auto kept = [&](int i, uint32_t word) { y[i] = from_float<Stored>(word >= drop_below ? to_float(x[i]) * scale : 0.0f); };
    kept(e, r.x);
    if (e + 1 < n) kept(e + 1, r.y);
    if (e + 2 < n) kept(e + 2, r.z);
    if (e + 3 < n) kept(e + 3, r.w);
}

// The same with one decision per image and channel: the word of element i * c + channel.
//   y, x (n, hw, c)   total = n hw c   clock (8): word 0 the step
// Launch:  one thread per element, block 256.   Traffic: 2 total elements.   Repeats: bit-identical.
// Limits:  total < 2^31 - 256.
KERNEL VARIANT(dropout_channels_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const uint32_t* __restrict__ clock,
    int total,
    int hw,
    int c,
    float scale,
    uint32_t drop_below,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= total) return;
    uint32_t element = (uint32_t)(e / c / hw) * c + e % c;
    uint32_t r = philox_word(seed_lo, seed_hi, stream, round, clock[0], element);
    y[e] = from_float<Stored>(r >= drop_below ? to_float(x[e]) * scale : 0.0f);
}
#endif
