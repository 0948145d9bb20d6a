// Philox4x32-10: random words as a pure function of a key and a counter. The CPU has the same function; there
// is no generator state anywhere. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "common.cuh"

// Ten rounds. Counter and key are not changed; the same arguments give the same four words on every device.
__host__ __device__ inline uint4 philox4x32_10(uint4 counter, uint2 key) {
    for (int round = 0; round < 10; round++) {
        // 64-bit products: one wide multiplication on the GPU, and unlike __umulhi also host code.
        uint64_t p = (uint64_t)0xD2511F53u * counter.x;
        uint64_t q = (uint64_t)0xCD9E8D57u * counter.z;
        counter = make_uint4((uint32_t)(q >> 32) ^ counter.y ^ key.x, (uint32_t)q,
                             (uint32_t)(p >> 32) ^ counter.w ^ key.y, (uint32_t)p);
        key.x += 0x9E3779B9u;  // the golden ratio
        key.y += 0xBB67AE85u;  // sqrt(3) - 1
    }
    return counter;
}

// The four words of elements 4 * block .. 4 * block + 3 of the stream (key, purpose_lane, a, b).
//   key           the seed, low word first
//   purpose_lane  purpose << 24 | lane
//   a, b          round, and epoch or step
__host__ __device__ inline uint4 philox_block(
    uint32_t key_lo, uint32_t key_hi, uint32_t purpose_lane, uint32_t a, uint32_t b, uint32_t block
) {
    return philox4x32_10(make_uint4(block, purpose_lane, a, b), make_uint2(key_lo, key_hi));
}

// One word of the stream. The counter has 32 bits for element / 4, so elements from 2^34 on would repeat those
// from 0 on; no tensor of ours is that large, and the Rust side refuses it.
__host__ __device__ inline uint32_t philox_word(
    uint32_t key_lo, uint32_t key_hi, uint32_t purpose_lane, uint32_t a, uint32_t b, uint64_t element
) {
    uint4 words = philox_block(key_lo, key_hi, purpose_lane, a, b, (uint32_t)(element / 4));
    // Comparisons and not an index: an indexed array would live in local memory.
    uint32_t low = element % 2 ? words.y : words.x;
    uint32_t high = element % 2 ? words.w : words.z;
    return element % 4 < 2 ? low : high;
}
