// Matrix products: what a real kernel puts together out of shared memory, cp.async and tensor cores.
#include "common.cuh"

// c(m,n) = a(m,k) b(k,n), tiles of 32x32, block (32,32).
KERNEL own_gemm_tiled(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int m,
                      int n, int k) {
    SHARED(float, ta, [32][33]);
    SHARED(float, tb, [32][33]);
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 32 + ty, col = blockIdx.x * 32 + tx;
    float sum = 0.0f;
    for (int k0 = 0; k0 < k; k0 += 32) {
        ta[ty][tx] = row < m && k0 + tx < k ? a[row * k + k0 + tx] : 0.0f;
        tb[ty][tx] = col < n && k0 + ty < k ? b[(k0 + ty) * n + col] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 32; i++) sum += ta[ty][i] * tb[i][tx];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

// The same with 4x4 results a thread and dynamic shared memory: 64x64 a block, 256 threads, (16*68 + 16*64)
// floats.
KERNEL own_gemm_dynamic(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b,
                        int m, int n, int k) {
    DYN_SHARED(float, tiles);
    float* ta = tiles;            // [16][68], transposed
    float* tb = tiles + 16 * 68;  // [16][64]
    int t = threadIdx.x;
    int tr = t / 16 * 4, tc = t % 16 * 4;
    int r0 = blockIdx.y * 64, c0 = blockIdx.x * 64;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < k; k0 += 16) {
        for (int i = t; i < 1024; i += 256) {
            int ar = i / 16, ak = i % 16, bk = i / 64, bc = i % 64;
            ta[ak * 68 + ar] = r0 + ar < m && k0 + ak < k ? a[(r0 + ar) * k + k0 + ak] : 0.0f;
            tb[bk * 64 + bc] = k0 + bk < k && c0 + bc < n ? b[(k0 + bk) * n + c0 + bc] : 0.0f;
        }
        __syncthreads();
        for (int i = 0; i < 16; i++) {
            float4 x = as_float4(load16(&ta[i * 68 + tr])), y = as_float4(load16(&tb[i * 64 + tc]));
            float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int s = 0; s < 4; s++) sum[r][s] += xs[r] * ys[s];
        }
        __syncthreads();
    }
    for (int r = 0; r < 4; r++)
        for (int s = 0; s < 4; s++)
            if (r0 + tr + r < m && c0 + tc + s < n) c[(r0 + tr + r) * n + c0 + tc + s] = sum[r][s];
}

// bf16 tensor cores: 64x64 a block, 4 warps of 32x32, double buffer. m and n are multiples of 64, k of 32.
KERNEL own_gemm_bf16(float* __restrict__ c, const __nv_bfloat16* __restrict__ a,
                     const __nv_bfloat16* __restrict__ b, int n, int k) {
    SHARED(uint16_t,
           ta, [2][64][40]);  // rows of 80 bytes: multiples of 16, and ldmatrix meets every bank once
    SHARED(uint16_t, tb, [2][32][72]);
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    int wr = warp / 2 * 32, wc = warp % 2 * 32;
    int r0 = blockIdx.y * 64, c0 = blockIdx.x * 64;
    float sum[2][4][4] = {};
    auto load = [&](int stage, int k0) {
        for (int i = t; i < 256; i += 128) {
            cp_async16(shared_at(&ta[stage][i / 4][i % 4 * 8]), a + (size_t)(r0 + i / 4) * k + k0 + i % 4 * 8, true);
            cp_async16(shared_at(&tb[stage][i / 8][i % 8 * 8]), b + (size_t)(k0 + i / 8) * n + c0 + i % 8 * 8, true);
        }
        cp_commit();
    };
    load(0, 0);
    for (int k0 = 0, stage = 0; k0 < k; k0 += 32, stage ^= 1) {
        if (k0 + 32 < k) {
            load(stage ^ 1, k0 + 32);
            cp_wait<1>();
        } else {
            cp_wait<0>();
        }
        __syncthreads();
        for (int kk = 0; kk < 32; kk += 16) {
            uint32_t fa[2][4], fb[4][2];
            for (int i = 0; i < 2; i++)
                ldmatrix_x4(fa[i], shared_at(&ta[stage][wr + i * 16 + lane % 16][kk + lane / 16 * 8]));
            for (int j = 0; j < 4; j += 2) {
                uint32_t r[4];
                ldmatrix_x4_trans(r, shared_at(&tb[stage][kk + lane % 16][wc + j * 8 + lane / 16 * 8]));
                fb[j][0] = r[0];
                fb[j][1] = r[1];
                fb[j + 1][0] = r[2];
                fb[j + 1][1] = r[3];
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) mma_bf16(sum[i][j], fa[i], fb[j]);
        }
        __syncthreads();
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < 4; e++) {
                int row = r0 + wr + i * 16 + lane / 4 + e / 2 * 8;
                int col = c0 + wc + j * 8 + lane % 4 * 2 + e % 2;
                c[(size_t)row * n + col] = sum[i][j][e];
            }
}

// tf32 tensor cores straight from global memory: one warp, one 16x8 tile.
KERNEL own_gemm_tf32(float* __restrict__ c, const float* __restrict__ a, const float* __restrict__ b, int n,
                     int k) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    int r0 = blockIdx.y * 16, c0 = blockIdx.x * 8;
    float d[4] = {};
    for (int k0 = 0; k0 < k; k0 += 8) {
        uint32_t fa[4], fb[2];
        for (int i = 0; i < 4; i++) fa[i] = __float_as_uint(a[(r0 + g + i % 2 * 8) * k + k0 + t + i / 2 * 4]);
        for (int i = 0; i < 2; i++) fb[i] = __float_as_uint(b[(k0 + t + i * 4) * n + c0 + g]);
        mma_tf32(d, fa, fb);
    }
    for (int e = 0; e < 4; e++) c[(r0 + g + e / 2 * 8) * n + c0 + 2 * t + e % 2] = d[e];
}
