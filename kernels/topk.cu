// Order: the largest score, the k largest scores. Everything is done on 64-bit keys, all distinct: the high half is the
// score's bits made monotone and turned round (ascending keys are descending scores), the low half the id. The high
// half of a NaN is 0, before everything. See src/ops/topk.rs.
#include "common.cuh"

DEVICE uint64_t descending_key(float score, uint32_t id) {
    uint32_t bits = __float_as_uint(score == 0.0f ? 0.0f : score);  // -0 is 0
    uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    uint32_t high = score != score ? 0u : ~ascending;
    return (uint64_t)high << 32 | id;
}

// The smallest key of a block of 256; valid in thread 0. All threads must call.
DEVICE uint64_t block_min_key(uint64_t key) {
    SHARED(uint64_t, part, [8]);
    key = warp_min(key);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = key;
    __syncthreads();
    for (int w = 1; w < 8; ++w) key = part[w] < key ? part[w] : key;
    return key;
}

// part[b] = the smallest key, which is the largest value, among the 2048 values of block b.
//   part (ceil(N / 2048))   values (N)
// Launch:  grid ceil(N / 2048), block 256.
// Traffic: N floats.
// Repeats: bit-identical; keys are distinct, so order does not matter.
// Limits:  N < 2^31 - 2048.
KERNEL argmax_block_f32(
    uint64_t* __restrict__ part,
    const float* __restrict__ values,
    int n
) {
    uint64_t key = ~0ull;
    for (int e = 0; e < 8; ++e) {
        int i = blockIdx.x * 2048 + e * 256 + threadIdx.x;
        if (i < n) {
            uint64_t k = descending_key(values[i], i);
            key = k < key ? k : key;
        }
    }
    key = block_min_key(key);
    if (threadIdx.x == 0) part[blockIdx.x] = key;
}

// key[0] = the smallest of n keys.   key (1)   part (n).   Launch: one block of 256.   As above otherwise.
KERNEL argmax_last_u64(
    uint64_t* __restrict__ key,
    const uint64_t* __restrict__ part,
    int n
) {
    uint64_t low = ~0ull;
    for (int i = threadIdx.x; i < n; i += 256) low = part[i] < low ? part[i] : low;
    low = block_min_key(low);
    if (threadIdx.x == 0) key[0] = low;
}

// keys[i] = the key of scores[i].   keys, scores (N).   Launch: one thread per element, block 256.   Traffic: 3N words.
// Bit-identical. N < 2^31 - 256.
KERNEL topk_keys_f32(
    uint64_t* __restrict__ keys,
    const float* __restrict__ scores,
    int n
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) keys[i] = descending_key(scores[i], i);
}

// The state before the first digit: no prefix, k keys wanted, none written.
//   threshold (1)   counts (258): 256 digits, keys wanted among those with the prefix, keys written
// Launch: one block of 256.
KERNEL topk_start(
    uint64_t* __restrict__ threshold,
    uint32_t* __restrict__ counts,
    int k
) {
    counts[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        threshold[0] = 0;
        counts[256] = k;
        counts[257] = 0;
    }
}

// Counts the digits at `shift` of the keys that begin with the threshold's digits above it.
//   counts (258), the first 256 in place   keys (N)   threshold (1)
// Launch:  grid ceil(N / 2048), block 256.
// Traffic: 2N words, and up to 256 atomics a block.
// Repeats: bit-identical; sums of integers.
// Limits:  N < 2^31 - 2048.
KERNEL topk_count(
    uint32_t* __restrict__ counts,
    const uint64_t* __restrict__ keys,
    const uint64_t* __restrict__ threshold,
    int n,
    int shift
) {
    SHARED(uint32_t, digits, [256]);
    digits[threadIdx.x] = 0;
    __syncthreads();
    uint64_t prefix = threshold[0];
    for (int e = 0; e < 8; ++e) {
        int i = blockIdx.x * 2048 + e * 256 + threadIdx.x;
        // Two shifts: shifting all 64 bits out at once is undefined, and at the first digit all keys count.
        if (i < n && (keys[i] ^ prefix) >> shift >> 8 == 0) atomicAdd(&digits[keys[i] >> shift & 255], 1u);
    }
    __syncthreads();
    uint32_t mine = digits[threadIdx.x];
    if (mine > 0) atomicAdd(&counts[threadIdx.x], mine);
}

// Fixes one digit of the threshold: the one in which the wanted key falls. Clears the counts for the next pass.
//   threshold (1), counts (258) in place
// Launch: one block of 256.   Bit-identical.
KERNEL topk_digit(
    uint64_t* __restrict__ threshold,
    uint32_t* __restrict__ counts,
    int shift
) {
    SHARED(uint32_t, sums, [256]);
    int t = threadIdx.x;
    uint32_t mine = counts[t];
    uint32_t wanted = counts[256];
    sums[t] = mine;
    __syncthreads();
    for (int o = 1; o < 256; o *= 2) {
        uint32_t left = t >= o ? sums[t - o] : 0;
        __syncthreads();
        sums[t] += left;
        __syncthreads();
    }
    uint32_t up_to = sums[t];
    counts[t] = 0;
    if (up_to - mine < wanted && wanted <= up_to) {  // exactly one thread
        threshold[0] |= (uint64_t)t << shift;
        counts[256] = wanted - (up_to - mine);
    }
}

// chosen[i] = the largest key for i in [k, padded).   chosen (padded).   Launch: one thread per element, block 256.
KERNEL topk_fill(
    uint64_t* __restrict__ chosen,
    int k,
    int padded
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= k && i < padded) chosen[i] = ~0ull;
}

// Writes the keys up to the threshold, exactly k, in any order: they are sorted next.
//   chosen (padded), the first k   counts (258): word 257 counts them   keys (N)   threshold (1)
// Launch:  grid ceil(N / 2048), block 256.
// Traffic: 2N words, k atomics.
// Repeats: the set does, the order does not.
// Limits:  N < 2^31 - 2048.
KERNEL topk_compact(
    uint64_t* __restrict__ chosen,
    uint32_t* __restrict__ counts,
    const uint64_t* __restrict__ keys,
    const uint64_t* __restrict__ threshold,
    int n
) {
    uint64_t last = threshold[0];
    for (int e = 0; e < 8; ++e) {
        int i = blockIdx.x * 2048 + e * 256 + threadIdx.x;
        if (i < n && keys[i] <= last) chosen[atomicAdd(&counts[257], 1u)] = keys[i];
    }
}

// Puts a pair of a bitonic network in order: ascending where bit `size` of its index is clear.
DEVICE void in_order(uint64_t& a, uint64_t& b, int index, int size) {
    bool ascending = (index & size) == 0;
    if (a > b == ascending) {
        uint64_t t = a;
        a = b;
        b = t;
    }
}

// The strides below 1024 of a bitonic sort, for sizes from..to, in shared memory: a whole sort of 1024 keys (2, 1024), or
// the end of one larger size (size, size).
//   keys (1024 per block) in place
// Launch:  grid keys / 1024, block 512.
// Traffic: 4 words per key.
// Repeats: bit-identical.
// Limits:  sizes up to 2^30.
KERNEL sort_block_u64(
    uint64_t* __restrict__ keys,
    int from,
    int to
) {
    SHARED(uint64_t, s, [1024]);
    int base = blockIdx.x * 1024;
    s[threadIdx.x] = keys[base + threadIdx.x];
    s[threadIdx.x + 512] = keys[base + threadIdx.x + 512];
    for (int size = from; size <= to; size *= 2)
        for (int stride = size / 2 < 512 ? size / 2 : 512; stride > 0; stride /= 2) {
            __syncthreads();
            int i = 2 * threadIdx.x - (threadIdx.x & (stride - 1));  // the lower one of the thread's pair
            in_order(s[i], s[i + stride], base + i, size);
        }
    __syncthreads();
    keys[base + threadIdx.x] = s[threadIdx.x];
    keys[base + threadIdx.x + 512] = s[threadIdx.x + 512];
}

// One stride of a bitonic sort.   keys (n) in place, n a power of two.   Launch: one thread per pair, block 256.
// Traffic: 4n words. Bit-identical. n up to 2^30.
KERNEL sort_step_u64(
    uint64_t* __restrict__ keys,
    int n,
    int size,
    int stride
) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n / 2) return;
    int i = 2 * t - (t & (stride - 1));
    in_order(keys[i], keys[i + stride], i, size);
}

// ids[i] = the id in keys[i].   ids, keys (k).   Launch: one thread per element, block 256.
KERNEL topk_ids(
    uint32_t* __restrict__ ids,
    const uint64_t* __restrict__ keys,
    int k
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < k) ids[i] = (uint32_t)keys[i];
}
