// Squared distances of rows to one row, in the canonical order of src/ops/distance.rs: one accumulator, features
// ascending, fma.
#pragma once
#include "common.cuh"

// The distance of row row0 + threadIdx.x of x (n, d) to row `to`. Rows go through shared memory so that reads are coalesced
// although one thread sums one row. A block of 128, all of whose threads must call.
DEVICE float distance_to_row(const float* x, size_t to, int row0, int n, int d) {
    SHARED(float, rows, [128][33]);
    SHARED(float, centre, [32]);
    int t = threadIdx.x, lane = t % 32;
    float acc = 0.0f;
    for (int f0 = 0; f0 < d; f0 += 32) {
        bool inside = f0 + lane < d;
        __syncthreads();  // the features before have been read
#pragma unroll 8
        for (int r = t / 32; r < 128; r += 4)
            rows[r][lane] = inside && row0 + r < n ? x[(size_t)(row0 + r) * d + f0 + lane] : 0.0f;
        if (t < 32) centre[lane] = inside ? x[to * d + f0 + lane] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int f = 0; f < 32; ++f) {
            float v = rows[t][f] - centre[f];
            acc = fmaf(v, v, acc);
        }
    }
    return acc;
}
