// Lengths of rows, and rows of length one. One warp per row, block 256: lane l takes the columns l, l + 32, ..., so a
// row's result depends neither on the number of rows nor on the grid. Memory bound, bit-identical on every run, valid
// for m < 2^26 rows and m * c < 2^31 - 256.
#include "common.cuh"

// The row of this warp, or -1 for a whole warp without one.
DEVICE int row_of_warp(int m) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    return i < m ? i : -1;
}

// |x|, the same in all lanes, in the canonical order of src/ops/norms.rs: a square is exact in double precision, so
// that a fused multiply-add changes nothing.   x (c)
DEVICE float length(const float* x, int c) {
    double sum = 0.0;
    for (int j = threadIdx.x % 32; j < c; j += 32) sum += (double)x[j] * (double)x[j];
    return (float)sqrt(warp_sum(sum));
}

// norms[i] = |x[i]|.
//   norms (m)   x (m, c)
// Traffic: m*c + m floats.
KERNEL row_norms_fwd_f32(
    float* __restrict__ norms,
    const float* __restrict__ x,
    int m,
    int c
) {
    int i = row_of_warp(m);
    if (i < 0) return;                             // guard: a whole warp leaves together
    float n = length(x + (size_t)i * c, c);
    if (threadIdx.x % 32 == 0) norms[i] = n;
}

// dx[i] = dy[i] x[i] / norms[i], 0 for a row of length 0.
//   dx, x (m, c)   dy, norms (m)
// Traffic: 2*m*c + 2*m floats.
KERNEL row_norms_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ x,
    const float* __restrict__ norms,
    int m,
    int c
) {
    int i = row_of_warp(m);
    if (i < 0) return;
    float n = norms[i];
    float f = n == 0.0f ? 0.0f : dy[i] / n;
    for (int j = threadIdx.x % 32; j < c; j += 32) dx[(size_t)i * c + j] = f * x[(size_t)i * c + j];
}

// y[i] = x[i] / |x[i]|, a row of length 0 stays one; norms[i] = |x[i]| for the backward pass.
//   y, x (m, c)   norms (m)
// Traffic: 2*m*c + m floats; the second reading of a row meets the first in the cache.
KERNEL normalize_rows_fwd_f32(
    float* __restrict__ y,
    float* __restrict__ norms,
    const float* __restrict__ x,
    int m,
    int c
) {
    int i = row_of_warp(m);
    if (i < 0) return;
    const float* row = x + (size_t)i * c;
    float n = length(row, c);
    if (threadIdx.x % 32 == 0) norms[i] = n;
    for (int j = threadIdx.x % 32; j < c; j += 32) y[(size_t)i * c + j] = n == 0.0f ? 0.0f : row[j] / n;
}

// dx[i] = (dy[i] - y[i] (y[i] . dy[i])) / norms[i], 0 for a row of length 0.
//   dx, dy, y (m, c)   norms (m)
// Traffic: 3*m*c + m floats; the second reading of a row meets the first in the cache.
KERNEL normalize_rows_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    const float* __restrict__ norms,
    int m,
    int c
) {
    int i = row_of_warp(m);
    if (i < 0) return;
    dx += (size_t)i * c;
    dy += (size_t)i * c;
    y += (size_t)i * c;
    float n = norms[i];
    float dot = 0.0f;
    for (int j = threadIdx.x % 32; j < c; j += 32) dot = fmaf(y[j], dy[j], dot);
    dot = warp_sum(dot);
    for (int j = threadIdx.x % 32; j < c; j += 32) dx[j] = n == 0.0f ? 0.0f : (dy[j] - y[j] * dot) / n;
}
