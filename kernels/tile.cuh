// The register-tiled product behind gemm.cu and conv2d.cu: C(row, col) = sum over the depth of A(row, d) B(d, col),
// f32 on the ordinary cores. What A and B are is said by two loaders, so a convolution never forms its matrix.
#pragma once
#include "common.cuh"

constexpr int TILE_ROWS = 64;   // rows of C per block
constexpr int TILE_DEPTH = 16;  // depth per step
constexpr int TILE_PAD = 4;     // keeps 16-byte reads aligned and spreads the transposing stores over the banks

// Columns of C per block, by the number of columns alone: never by the rows, so that a row's sum does not depend
// on the batch. The Rust side computes the grid by the same rule.
__device__ __forceinline__ int tile_cols(int cols) { return cols > 32 ? 64 : cols > 16 ? 32 : 16; }

// One block of 256 threads, each with 4 x BN/16 sums. `load_a(a, d0)` fills a[depth][row], `load_b(b, d0)` fills
// b[depth][col], both with zeros outside; `store(row, col, sum)` is called for every place of the tile, by neighbouring
// threads for neighbouring columns, or rows if DOWN: whichever lie side by side in the result. Each sum runs over the
// depth in ascending order in one thread.
template <int BN, bool DOWN = false, class A, class B, class Store>
__device__ __forceinline__ void tile_product(int depth, A load_a, B load_b, Store store) {
    SHARED(__align__(16) float, a, [TILE_DEPTH][TILE_ROWS + TILE_PAD]);
    SHARED(__align__(16) float, b, [TILE_DEPTH][BN + TILE_PAD]);
    constexpr int TN = BN / 16;
    int ty = DOWN ? threadIdx.x % 16 : threadIdx.x / 16;  // [0, 16): rows ty + 16 i
    int tx = DOWN ? threadIdx.x / 16 : threadIdx.x % 16;  // [0, 16): columns tx + 16 j
    float acc[4][TN] = {};
    for (int d0 = 0; d0 < depth; d0 += TILE_DEPTH) {
        load_a(a, d0);
        load_b(b, d0);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < TILE_DEPTH; d++) {
            float x[4], y[TN];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = a[d][ty + 16 * i];
#pragma unroll
            for (int j = 0; j < TN; j++) y[j] = b[d][tx + 16 * j];
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < TN; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
            }
        }
        __syncthreads();  // before the next step overwrites what others still read
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < TN; j++) store(ty + 16 * i, tx + 16 * j, acc[i][j]);
    }
}

using TileA = float (*)[TILE_ROWS + TILE_PAD];
