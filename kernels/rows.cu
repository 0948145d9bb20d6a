// Rows of a matrix by id.
#include "common.cuh"

// y[i] = x[ids[i]].   y (m, d)   x (n, d)   ids (m). A row whose id is beyond n is NaN, which stops the run.
// Launch:  one thread per element, block 256.   Traffic: 2 m d floats.   Repeats: exact.   Limits: m d < 2^31 - 256.
KERNEL gather_rows_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const uint32_t* __restrict__ ids,
    int m,
    int d,
    int n
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= m * d) return;
    uint32_t id = ids[e / d];
    y[e] = id < (uint32_t)n ? x[(size_t)id * d + e % d] : NAN;
}

// dx[r] = sum of dy[i] over all i with ids[i] = r, i ascending.   dx (n, d)   dy (m, d)   ids (m)
// Launch:  one thread per element of dx, block 256.
// Traffic: every row of dx reads all ids: n m words, from the cache. Meant for the short lists of a batch.
// Repeats: bit-identical: one thread adds in order, no atomics.
// Limits:  n d < 2^31 - 256.
KERNEL gather_rows_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const uint32_t* __restrict__ ids,
    int m,
    int d,
    int n
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n * d) return;
    uint32_t row = e / d;
    float sum = 0.0f;
    for (int i = 0; i < m; i++) {
        if (ids[i] == row) sum += dy[(size_t)i * d + e % d];
    }
    dx[e] = sum;
}
