// Variants: f32 bf16
// Sums and maxima over rows and columns. Everything here is memory bound and adds in a fixed order that depends on
// the sizes only: bit-identical on every run. Valid for m * c < 2^31 - 256 (the Rust side holds no larger tensor).
#ifndef Stored
#include "common.cuh"

// Rows of one partial sum; the same number in src/ops/reduce.rs.
#define ROWS 512

// y[j] = sum of part[p][j] over p: the second stage.
//   y (c)   part (chunks, c)
// Launch:  one warp per column, block 256.
// Traffic: chunks*c + c floats, 1/512 of the first stage.
// Repeats: bit-identical; each column is summed by one warp in a fixed order.
// Limits:  c < 2^26.
KERNEL sum_rows_last_f32(
    float* __restrict__ y,
    const float* __restrict__ part,
    int chunks,
    int c
) {
    int j = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (j >= c) return;                            // guard: a whole warp leaves together
    float sum = 0.0f;
    for (int p = lane; p < chunks; p += 32) sum += part[(size_t)p * c + j];
    sum = warp_sum(sum);
    if (lane == 0) y[j] = sum;
}

// y[i] = sum of x[i][j] over j.
//   y (m)   x (m, c)
// Launch:  one warp per row, block 256.
// Traffic: m*c + m floats.
// Repeats: bit-identical, whatever the number of rows.
// Limits:  m < 2^26.
KERNEL sum_cols_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int m,
    int c
) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (i >= m) return;                            // guard: a whole warp leaves together
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += x[(size_t)i * c + j];
    sum = warp_sum(sum);
    if (lane == 0) y[i] = sum;
}

// y[i] = max of x[i][j] over j, NaN if there is one.
//   y (m)   x (m, c), c > 0
// Launch:  one warp per row, block 256.
// Traffic: m*c + m floats.
// Repeats: bit-identical.
// Limits:  m < 2^26.
KERNEL max_cols_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int m,
    int c
) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (i >= m) return;                            // guard: a whole warp leaves together
    float best = -INFINITY;
    for (int j = lane; j < c; j += 32) {
        float v = x[(size_t)i * c + j];
        if (v > best || v != v) best = v;          // once best is NaN nothing is greater
    }
    for (int d = 16; d > 0; d /= 2) {
        float v = __shfl_xor_sync(FULL_WARP, best, d);
        if (v > best || v != v) best = v;
    }
    if (lane == 0) y[i] = best;
}

// y[i][j] = a[j]: the gradient of a sum over rows.   y (n) = (n / c, c)   a (c)
// Launch: one thread per element, block 256.  Traffic: n + c floats.  Repeats: bit-identical.  Limits: as above.
KERNEL broadcast_rows_f32(
    float* __restrict__ y,
    const float* __restrict__ a,
    int n,
    int c
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i % c];
}

// y[i][j] = a[i]: the gradient of a sum over columns.   y (n) = (n / c, c)   a (n / c)
// Launch: one thread per element, block 256.  Traffic: n + n/c floats.  Repeats: bit-identical.  Limits: as above.
KERNEL broadcast_cols_f32(
    float* __restrict__ y,
    const float* __restrict__ a,
    int n,
    int c
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i / c];
}

#define SOURCE "reduce.cu"
#include "floats.cuh"
#else

// part[p][j] = sum of x[i][j] over the rows i of chunk p: the first of two stages, or the only one when p = 1.
//   part (chunks, c)   x (m, c), chunks = ceil(m / ROWS)
// Launch:  grid (chunks, ceil(c / 256)), block 256, 1 KB of shared memory.
// Traffic: m*c elements read, chunks*c written. Neighbouring threads read neighbouring floats: for c < 256 the
//          block takes 256 / c whole rows at a time, so narrow matrices waste no lanes to speak of.
// Repeats: bit-identical; the cut into chunks depends on m only.
// Limits:  c < 2^24, so that the second grid size stays below 65,536.
KERNEL VARIANT(sum_rows_part)(
    float* __restrict__ part,
    const Stored* __restrict__ x,
    int m,
    int c
) {
    SHARED(float, sums, [256]);
    int first = blockIdx.x * ROWS;
    int last = min(first + ROWS, m);
    int j0 = blockIdx.y * 256;                     // columns of this block: [j0, j0 + width)
    int width = min(c - j0, 256);
    int rows = 256 / width;                        // taken in one go, at least 1
    int r = threadIdx.x / width;                   // row within the go; threads from rows * width on are idle
    int j = threadIdx.x % width;
    float sum = 0.0f;
    if (r < rows) {
        for (int i = first + r; i < last; i += rows) sum += to_float(x[(size_t)i * c + j0 + j]);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < width) {
        float total = 0.0f;
        for (int k = 0; k < rows; k++) total += sums[k * width + j];
        part[(size_t)blockIdx.x * c + j0 + j] = total;
    }
}
#endif
