// Squared Euclidean distances by direct differences (near points do not cancel, as norms and products would), each
// pair in the canonical order of src/ops/distance.rs: one accumulator, features ascending, fma.
#include "pointwise.cuh"

constexpr int ROWS = 64;      // of x, in a block
constexpr int CENTRES = 128;  // of c, in a block
constexpr int STEP = 16;      // features in shared memory at a time
constexpr int PAD = 4;        // keeps rows of 16 bytes aligned and spreads the turned writes over the banks

// TILE rows of a matrix, 16 of their features from k0, turned: out[feature][row]. Zero where there is none: a feature
// that is zero on both sides adds fma(0, 0, acc) = acc exactly. A warp takes 8 features of 4 rows: whole sectors, and
// (4 * feature + row) % 32 is another bank for each.
template <int TILE>
DEVICE void load_turned(float (*out)[TILE + PAD], const float* a, int row0, int k0, int rows, int d) {
    int k = threadIdx.x % 8 + threadIdx.x / 128 * 8;
#pragma unroll
    for (int r = threadIdx.x / 8 % 16; r < TILE; r += 16) {
        bool inside = row0 + r < rows && k0 + k < d;
        out[k][r] = inside ? a[(size_t)(row0 + r) * d + k0 + k] : 0.0f;
    }
}

// What thread t of 256 sums: four rows and eight centres, these in two runs of four, so that its reads of shared memory
// are 16 bytes wide. 32 products to 12 reads: the arithmetic is the bound and not shared memory.
DEVICE int own_row(int i) { return threadIdx.x / 16 * 4 + i; }                         // i in [0, 4)
DEVICE int own_centre(int j) { return threadIdx.x % 16 * 4 + j % 4 + j / 4 * 64; }     // j in [0, 8)

// acc[i][j] = distance of row row0 + own_row(i) to centre c0 + own_centre(j).
DEVICE void tile_distances(
    float (&acc)[4][8], float (*xs)[ROWS + PAD], float (*cs)[CENTRES + PAD],
    const float* x, const float* c, int row0, int c0, int n, int m, int d
) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) acc[i][j] = 0.0f;
    for (int k0 = 0; k0 < d; k0 += STEP) {
        __syncthreads();  // the tiles of the step before have been read
        load_turned<ROWS>(xs, x, row0, k0, n, d);
        load_turned<CENTRES>(cs, c, c0, k0, m, d);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    float t = xs[k][own_row(i)] - cs[k][own_centre(j)];
                    acc[i][j] = fmaf(t, t, acc[i][j]);
                }
        }
    }
}

// y[i][j] = |x[i] - c[j]|^2.
//   y (N, M)   x (N, D)   c (M, D)
// Launch:  grid (ceil(N / 64), ceil(M / 128)), block 256.
// Traffic: N*M written, 16 bytes at a time where M allows it; x is read M / 128 times, c N / 64 times. Bound by
//          arithmetic (3*N*M*D) for D above about 30.
// Repeats: bit-identical, the canonical order.
// Limits:  M <= 128 * 65535 (grid.y); N*M and the rows' offsets are 64 bits wide.
KERNEL pairwise_sq_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const float* __restrict__ c,
    int n,
    int m,
    int d
) {
    SHARED(float, xs, [STEP][ROWS + PAD]);
    SHARED(float, cs, [STEP][CENTRES + PAD]);
    float acc[4][8];
    int row0 = blockIdx.x * ROWS;
    int c0 = blockIdx.y * CENTRES;
    tile_distances(acc, xs, cs, x, c, row0, c0, n, m, d);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = row0 + own_row(i);
        if (row >= n) continue;
#pragma unroll
        for (int j = 0; j < 8; j += 4)
            store_quad(y + (size_t)row * m, c0 + own_centre(j), m,
                       make_float4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]));
    }
}

// da[i] = 2 sum_j dy_ij (a[i] - b[j]), j ascending.
//   da, a (N, D)   b (M, D)   dy: element (i, j) lies at i * step_i + j * step_j
// Launch:  one thread per element of da, block 256.
// Traffic: dy and b are read once per row of da; small sizes only, nothing here is tiled.
// Repeats: bit-identical; one thread sums an element in a fixed order.
// Limits:  N*D < 2^31 - 256.
KERNEL pairwise_sq_bwd_f32(
    float* __restrict__ da,
    const float* __restrict__ dy,
    const float* __restrict__ a,
    const float* __restrict__ b,
    int n,
    int m,
    int d,
    int step_i,
    int step_j
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n * d) return;
    int i = e / d;
    int k = e % d;
    float v = a[e];
    float sum = 0.0f;
    for (int j = 0; j < m; ++j)
        sum = fmaf(dy[(size_t)i * step_i + (size_t)j * step_j], v - b[(size_t)j * d + k], sum);
    da[e] = 2.0f * sum;
}

// best[i] = min(best[i], min_j |x[i] - c[j]|^2) without the N x M distances.
//   best (N) in place   x (N, D)   c (M, D)
// Launch:  grid ceil(N / 64), block 256; a block keeps its 64 rows and walks over all centres.
// Traffic: x once per 128 centres (from L2 after the first time), c once per 64 rows; arithmetic 3*N*M*D is the bound.
// Repeats: bit-identical, the canonical order; a minimum does not depend on its order.
// Limits:  N, M < 2^31 - 128; offsets are 64 bits wide. A NaN distance is never smaller.
KERNEL nearest_update_f32(
    float* __restrict__ best,
    const float* __restrict__ x,
    const float* __restrict__ c,
    int n,
    int m,
    int d
) {
    SHARED(float, xs, [STEP][ROWS + PAD]);
    SHARED(float, cs, [STEP][CENTRES + PAD]);
    float acc[4][8];
    float low[4] = {INFINITY, INFINITY, INFINITY, INFINITY};
    int row0 = blockIdx.x * ROWS;
    for (int c0 = 0; c0 < m; c0 += CENTRES) {
        tile_distances(acc, xs, cs, x, c, row0, c0, n, m, d);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (c0 + own_centre(j) < m && acc[i][j] < low[i]) low[i] = acc[i][j];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        for (int o = 8; o > 0; o /= 2) {  // over the 16 threads that share the rows: half a warp
            float other = __shfl_xor_sync(FULL_WARP, low[i], o);
            low[i] = other < low[i] ? other : low[i];
        }
    if (threadIdx.x % 16 == 0)
        for (int i = 0; i < 4; ++i) {
            int row = row0 + own_row(i);
            if (row < n && low[i] < best[row]) best[row] = low[i];
        }
}
