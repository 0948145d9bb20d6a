// Variants: f32 bf16
// Sums and maxima over rows and columns. Everything here is memory bound and adds in a fixed order that depends on
// the sizes only: bit-identical on every run. Valid for m * c < 2^31 - 256 (the Rust side holds no larger tensor).
#ifndef Stored
#include "common.cuh"

// Rows of one partial sum; the same number in src/ops/reduce.rs.
#define ROWS 512

// The second stage of every sum that is cut into chunks: y = sum of part over the chunks, without the columns that are
// only there to fill up.
//   y (rows, c)   part (chunks, rows, wide), c <= wide
// Launch:  block 256; grid rows * wide / 1024 rounded up, four elements a thread, for up to eight chunks; otherwise
//          rows * wide / 32, eight groups sharing the chunks of 32 elements.
// Traffic: chunks rows wide floats.
// Repeats: bit-identical: groups in order, chunks in order within a group.   Limits:  rows wide < 2^31 - 1024.
KERNEL sum_chunks_f32(
    float* __restrict__ y,
    const float* __restrict__ part,
    int rows,
    int c,
    int wide,
    int chunks
) {
    SHARED(float, sums, [8][32]);
    int len = rows * wide;
    auto write = [&](int e, float sum) {
        if (e % wide < c) y[e / wide * c + e % wide] = sum;
    };
    if (chunks <= 8) {
        int e = (blockIdx.x * 256 + threadIdx.x) * 4;
        if (c == wide && e + 4 <= len && len % 4 == 0 && aligned16(y) && aligned16(part)) {
            Some<4> sum{};
            for (int z = 0; z < chunks; z++) {
                Some<4> v(part + (size_t)z * len + e);
#pragma unroll
                for (int i = 0; i < 4; i++) sum.v[i] += v.v[i];
            }
            sum.store(y + e);
            return;
        }
        for (int i = e; i < min(e + 4, len); i++) {
            float sum = 0.0f;
            for (int z = 0; z < chunks; z++) sum += part[(size_t)z * len + i];
            write(i, sum);
        }
        return;
    }
    int group = threadIdx.x / 32, lane = threadIdx.x % 32, e = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (e < len) {
        for (int z = group; z < chunks; z += 8) sum += part[(size_t)z * len + e];
    }
    sums[group][lane] = sum;
    __syncthreads();
    if (group > 0 || e >= len) return;
#pragma unroll
    for (int g = 1; g < 8; g++) sum += sums[g][lane];
    write(e, sum);
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
    int sector = 32 / sizeof(Stored), whole = sector / min(sector, width & -width);  // rows that make whole sectors
    if (rows > whole) rows -= rows % whole;        // each go begins where a sector does
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
