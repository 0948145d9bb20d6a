// A warp for a row of a matrix: its place, and what is read off a row of logits. Lane l takes the classes l, l + 32, ...
#pragma once
#include "common.cuh"

// The row of this warp, or n and more: then the whole warp leaves.
DEVICE int warp_row() {
    return (int)((blockIdx.x * blockDim.x + threadIdx.x) / 32);
}

// The largest of a row; a NaN is not seen here, it makes the sum of exponentials NaN.
DEVICE float row_max(const float* x, int c, int lane) {
    float best = -INFINITY;
    for (int j = lane; j < c; j += 32) best = fmaxf(best, x[j]);
    for (int d = 16; d > 0; d /= 2) best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, d));
    return best;
}

// sum of exp(x[j] - top)
DEVICE float row_sum_exp(const float* x, int c, int lane, float top) {
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += expf(x[j] - top);
    return warp_sum(sum);
}

// True when value v at index j comes before value best at index at: NaN first, then the larger, then the lower index.
DEVICE bool before(float v, int j, float best, int at) {
    bool v_nan = v != v, best_nan = best != best;
    if (v_nan || best_nan) return v_nan && (!best_nan || j < at);
    return v > best || (v == best && j < at);
}

// Index of the largest of a row, the lowest at a tie, the first NaN if there is one; known to every lane.  c > 0
DEVICE int row_argmax(const float* x, int c, int lane) {
    float best = -INFINITY;
    int at = 0x7FFFFFFF;                           // loses every tie, so a row of -inf gives 0
    for (int j = lane; j < c; j += 32) {
        float v = x[j];
        if (before(v, j, best, at)) {
            best = v;
            at = j;
        }
    }
    for (int d = 16; d > 0; d /= 2) {
        float v = __shfl_xor_sync(FULL_WARP, best, d);
        int j = __shfl_xor_sync(FULL_WARP, at, d);
        if (before(v, j, best, at)) {
            best = v;
            at = j;
        }
    }
    return at;
}
