// Dense products in all three transpositions, f32. Row-major matrices, any sizes.
#include "tile.cuh"

enum Layout { NN, NT, TN };

// One 64 x BN tile of C. a, b: as the layout says.
template <int BN, Layout L>
__device__ __forceinline__ void gemm_tile(
    float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias,
    int m, int n, int k, int bias_on
) {
    int row0 = blockIdx.y * TILE_ROWS;
    int col0 = blockIdx.x * BN;
    int t = threadIdx.x;
    auto load_a = [&](TileA s, int d0) {
        for (int e = t; e < TILE_ROWS * TILE_DEPTH; e += 256) {
            // Neighbouring threads read neighbouring addresses: along k for A (M, K), along m for A (K, M).
            int row = L == TN ? e % TILE_ROWS : e / TILE_DEPTH;
            int d = L == TN ? e / TILE_ROWS : e % TILE_DEPTH;
            bool in = row0 + row < m && d0 + d < k;
            size_t at = L == TN ? (size_t)(d0 + d) * m + row0 + row : (size_t)(row0 + row) * k + d0 + d;
            s[d][row] = in ? a[at] : 0.0f;
        }
    };
    auto load_b = [&](float (*s)[BN + TILE_PAD], int d0) {
        for (int e = t; e < BN * TILE_DEPTH; e += 256) {
            int col = L == NT ? e / TILE_DEPTH : e % BN;
            int d = L == NT ? e % TILE_DEPTH : e / BN;
            bool in = col0 + col < n && d0 + d < k;
            size_t at = L == NT ? (size_t)(col0 + col) * k + d0 + d : (size_t)(d0 + d) * n + col0 + col;
            s[d][col] = in ? b[at] : 0.0f;
        }
    };
    tile_product<BN>(k, load_a, load_b, [&](int row, int col, float sum) {
        row += row0;
        col += col0;
        if (row < m && col < n) c[(size_t)row * n + col] = bias_on ? sum + bias[col] : sum;
    });
}

template <Layout L>
__device__ __forceinline__ void gemm(
    float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias,
    int m, int n, int k, int bias_on
) {
    int bn = tile_cols(n);
    if (bn == 64) gemm_tile<64, L>(c, a, b, bias, m, n, k, bias_on);
    else if (bn == 32) gemm_tile<32, L>(c, a, b, bias, m, n, k, bias_on);
    else gemm_tile<16, L>(c, a, b, bias, m, n, k, bias_on);
}

// C = A B (+ bias for every row).   c (m, n)   a (m, k)   b (k, n)   bias (n), read if bias_on
// Launch:  grid (n / tile_cols(n), m / 64) rounded up, block 256.
// Traffic: each block reads 64 k + bn k floats. Compute bound from about k = 32 on.
// Repeats: bit-identical; one in-order sum per element, independent of m.
// Limits:  m < 64 * 65536. k = 0 gives the bias or zeros.
KERNEL gemm_nn_f32(
    float* __restrict__ c,
    const float* __restrict__ a,
    const float* __restrict__ b,
    const float* __restrict__ bias,
    int m,
    int n,
    int k,
    int bias_on
) {
    gemm<NN>(c, a, b, bias, m, n, k, bias_on);
}

// C = A B^T (+ bias).   c (m, n)   a (m, k)   b (n, k)   bias (n), read if bias_on.   The rest as gemm_nn_f32.
KERNEL gemm_nt_f32(
    float* __restrict__ c,
    const float* __restrict__ a,
    const float* __restrict__ b,
    const float* __restrict__ bias,
    int m,
    int n,
    int k,
    int bias_on
) {
    gemm<NT>(c, a, b, bias, m, n, k, bias_on);
}

// C = A^T B (+ bias).   c (m, n)   a (k, m)   b (k, n)   bias (n), read if bias_on.   The rest as gemm_nn_f32.
KERNEL gemm_tn_f32(
    float* __restrict__ c,
    const float* __restrict__ a,
    const float* __restrict__ b,
    const float* __restrict__ bias,
    int m,
    int n,
    int k,
    int bias_on
) {
    gemm<TN>(c, a, b, bias, m, n, k, bias_on);
}
