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
    const uint32_t words[4] = {r.x, r.y, r.z, r.w};
    if (e + 4 <= n) {
        Some<4> v(x + e);
#pragma unroll
        for (int i = 0; i < 4; i++) v.v[i] = words[i] >= drop_below ? v.v[i] * scale : 0.0f;
        v.store(y + e);
    } else {
        for (int i = 0; i < n - e; i++) {
            y[e + i] = from_float<Stored>(words[i] >= drop_below ? to_float(x[e + i]) * scale : 0.0f);
        }
    }
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
    float v = to_float(x[e]);                                // also where it is dropped: the warp's sectors are read whole
    uint32_t element = (uint32_t)(e / c / hw) * c + e % c;
    uint32_t r = philox_word(seed_lo, seed_hi, stream, round, clock[0], element);
    y[e] = from_float<Stored>(r >= drop_below ? v * scale : 0.0f);
}

// The same with the word of element order[offset + i] * c + channel, at step 0: what an example of the pool loses does
// not depend on its batch.
//   y, x (n, hw, c)   order (len)   total = n hw c   clock (8): word 2 the offset
// Launch:  one thread per element, block 256.   Traffic: 2 total elements.   Repeats: bit-identical.
// Limits:  total < 2^31 - 256, ids * c < 2^32. Beyond the order everything is NaN, which stops the run.
KERNEL VARIANT(dropout_examples_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const uint32_t* __restrict__ order,
    const uint32_t* __restrict__ clock,
    int total,
    int hw,
    int c,
    int len,
    float scale,
    uint32_t drop_below,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= total) return;
    uint64_t at = (uint64_t)clock[2] + (uint32_t)(e / c / hw);   // 64 bits: the sum must not wrap round
    bool known = at < (uint64_t)len;
    uint32_t element = (known ? order[at] : 0) * c + e % c;
    float v = to_float(x[e]);
    uint32_t r = philox_word(seed_lo, seed_hi, stream, round, 0, element);
    y[e] = from_float<Stored>(!known ? NAN : r >= drop_below ? v * scale : 0.0f);
}
#endif
