// Picking rows of a matrix and labels of a pool by number. Memory bound, bit-identical on every run.
#include "common.cuh"

// y[i] = x[ids[i]].
//   y (m, d), total = m * d   x (n, d)   ids (m)
// Launch:  one thread per element of y, block 256.
// Traffic: 2*m*d floats and m ids; neighbouring threads read neighbouring floats of a row.
// Repeats: bit-identical.
// Limits:  m*d < 2^31 - 256. An id of n or more gives a row of NaN, which stops the run.
KERNEL gather_rows_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const uint32_t* __restrict__ ids,
    int total,
    int n,
    int d
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= total) return;
    uint32_t id = ids[e / d];
    y[e] = id < (uint32_t)n ? x[(size_t)id * d + e % d] : NAN;
}

// dx[r] = sum of dy[i] over the i with ids[i] = r, in the order of i.
//   dx (n, d)   dy (m, d)   ids (m)
// Launch:  one warp per row of dx, block 256.
// Traffic: n*d + m*d floats and n*m ids, those mostly from the cache. n*m/32 steps of a warp: fine for a batch (256 by
//          256), not for picking from a pool of 50,000 with gradients.
// Repeats: bit-identical: one warp adds a row, no atomics.
// Limits:  n < 2^26, m < 2^31 - 32.
KERNEL gather_rows_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const uint32_t* __restrict__ ids,
    int n,
    int m,
    int d
) {
    int r = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (r >= n) return;                                      // guard: a whole warp leaves together
    float* row = dx + (size_t)r * d;
    for (int j = lane; j < d; j += 32) row[j] = 0.0f;
    for (int first = 0; first < m; first += 32) {
        bool mine = first + lane < m && ids[first + lane] == (uint32_t)r;
        uint32_t found = __ballot_sync(FULL_WARP, mine);
        while (found != 0) {                                 // the same in all lanes
            int i = first + __ffs((int)found) - 1;
            for (int j = lane; j < d; j += 32) row[j] += dy[(size_t)i * d + j];
            found &= found - 1;
        }
    }
}

// y[i] = labels[order[offset + i]]: the labels of a batch; the offset is word 2 of the clock.
//   y (n)   labels (pool)   order (len)   words (8)
// Launch:  one thread per label, block 256.
// Traffic: 3n words.
// Repeats: exact.
// Limits:  n < 2^31 - 256. Beyond the order or the pool the label is 2^32 - 1, which no loss accepts.
KERNEL gather_labels(
    uint32_t* __restrict__ y,
    const uint32_t* __restrict__ labels,
    const uint32_t* __restrict__ order,
    const uint32_t* __restrict__ words,
    int n,
    int len,
    int pool
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint64_t at = (uint64_t)words[2] + (uint32_t)i;          // 64 bits: the sum must not wrap round
    uint32_t id = at < (uint64_t)len ? order[at] : 0xFFFFFFFFu;
    y[i] = id < (uint32_t)pool ? labels[id] : 0xFFFFFFFFu;
}
