// What a device can do at most: chains of multiply-adds and of tensor-core products that stay in registers.
#include "common.cuh"

// y[t] = sum of eight chains v <- v * 0.5 + 1 of length `turns`, started at the thread's number.
//   y (threads)
// Launch:  any grid, block 256.   Traffic: one float a thread.   Repeats: bit-identical.
KERNEL roofline_fma(
    float* __restrict__ y,
    int turns
) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = t + i;
#pragma unroll 8
    for (int k = 0; k < turns; k++) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fmaf(v[i], 0.5f, 1.0f);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += v[i];
    y[t] = sum;
}

// y[t] = sum of what the thread holds of eight products, each of `turns` times A (16, 16) of ones with B (16, 8) of ones.
//   y (threads)
// Launch:  any grid, block 256.   Traffic: one float a thread.   Repeats: bit-identical.
KERNEL roofline_mma(
    float* __restrict__ y,
    int turns
) {
    float sum[8][4] = {};
    const uint32_t a[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}, b[2] = {a[0], a[0]};
#pragma unroll 4
    for (int k = 0; k < turns; k++) {
#pragma unroll
        for (int i = 0; i < 8; i++) mma_bf16(sum[i], a, b);
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) all += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
    y[blockIdx.x * blockDim.x + threadIdx.x] = all;
}
