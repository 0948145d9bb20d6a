// Kernels with one planted mistake each, and some correct twins: what the emulator must report, and what not.
#include "common.cuh"

KERNEL bug_oob_global(float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = 1.0f;
}

KERNEL bug_oob_shared(float* y) {
    SHARED(float, s, [64]);
    int t = threadIdx.x;
    s[t] = 1.0f;
    __syncthreads();
    y[t] = s[t + 1];
}

KERNEL bug_row_overflow(float* y) {  // inside the array, outside of its row
    SHARED(float, s, [4][33]);
    int t = threadIdx.x;
    for (int i = 0; i < 4; i++) {
        s[i][t] = t;
        if (t == 0) s[i][32] = 0;
    }
    __syncthreads();
    y[t] = s[1][t + 2];
}

KERNEL bug_race_shared(float* y) {
    SHARED(float, s, [64]);
    int t = threadIdx.x;
    s[t] = t;
    y[t] = s[63 - t];
}

KERNEL bug_race_warp(float* y) {
    SHARED(float, s, [32]);
    int t = threadIdx.x;
    s[t] = t;
    __syncwarp();
    float v = s[31 - t];
    s[t] = v;
    __syncwarp();
    y[t] = s[t];
}

KERNEL ok_race_warp(float* y) {
    SHARED(float, s, [32]);
    int t = threadIdx.x;
    s[t] = t;
    __syncwarp();
    float v = s[31 - t];
    __syncwarp();
    s[t] = v;
    __syncwarp();
    y[t] = s[t];
}

KERNEL bug_race_blocks(float* y) {
    if (threadIdx.x == 0) y[0] += 1.0f;
}

KERNEL bug_race_atomic(int* y) {  // an atomic does not order a plain read by another block
    if (threadIdx.x == 0) atomicAdd(&y[0], 1);
    if (threadIdx.x == 1 && blockIdx.x == 1) y[1] = y[0];
}

KERNEL bug_barrier(float* y) {
    int t = threadIdx.x;
    if (t < 16) __syncthreads();
    y[t] = t;
}

KERNEL bug_barrier2(float* y) {
    int t = threadIdx.x;
    if (t < 16) {
        __syncthreads();
        y[t] = 1;
    } else {
        y[t] = 2;
        __syncthreads();
    }
}

KERNEL bug_shuffle(float* y) {
    int t = threadIdx.x;
    float v = t;
    if (t < 8) v += __shfl_down_sync(FULL_WARP, v, 1);
    y[t] = v;
}

KERNEL bug_shuffle_absent(float* y) {  // for a block of 48: the second warp has 16 lanes
    int t = threadIdx.x;
    y[t] = __shfl_xor_sync(FULL_WARP, (float)t, 16);
}

KERNEL bug_uninit(float* y) {
    SHARED(float, s, [64]);
    int t = threadIdx.x;
    if (t) s[t] = t;
    __syncthreads();
    y[t] = s[t];
}

KERNEL bug_cp_nowait(const float* x, float* y) {
    SHARED(float, s, [128]);
    int t = threadIdx.x;
    cp_async16(shared_at(&s[t * 4]), x + t * 4, true);
    cp_commit();
    __syncthreads();
    for (int i = 0; i < 4; i++) y[t * 4 + i] = s[t * 4 + i];
}

KERNEL bug_misaligned(const float* x, float* y) {
    int t = threadIdx.x;
    float4 v = *(const float4*)(x + t * 4 + 1);
    y[t] = v.x + v.w;
}

KERNEL bug_misaligned_load16(const float* x, float* y) {
    int t = threadIdx.x;
    float4 v = as_float4(load16(x + t * 4 + 1));
    y[t] = v.x + v.w;
}

KERNEL bug_index_overflow(float* y, int big) {
    int t = threadIdx.x;
    int i = big * 4 + t;
    y[i & 15] = 1.0f;
}

KERNEL bug_static_state(float* y) {
    static int calls = 0;
    y[0] = calls++;
}

KERNEL bug_too_much_shared(float* y) {
    SHARED(float, s, [13000]);
    s[threadIdx.x] = 1.0f;
    y[threadIdx.x] = s[threadIdx.x];
}

// For the profile: 32 threads that meet in one bank, and a stride of a row.
KERNEL bug_bank(const float* x, float* y) {
    SHARED(float, s, [32][32]);
    int t = threadIdx.x;
    for (int i = 0; i < 32; i++) s[i][t] = x[i * 32 + t];
    __syncthreads();
    for (int i = 0; i < 32; i++) y[i * 32 + t] = s[t][i];
}

KERNEL bug_stride(const float* x, float* y, int n) {
    int t = threadIdx.x;
    for (int i = 0; i < n; i++) y[i * 32 + t] = x[t * n + i];
}

// For the fast build, where nothing is checked before it happens.
KERNEL bug_stray_write(float* y, int at) {
    if (threadIdx.x == 0) y[at] = 1.0f;
}

KERNEL bug_wild_pointer(float* y, long long far) {
    if (threadIdx.x == 3) y[far] = 1.0f;
}

KERNEL bug_divide(int* y, int by) { y[threadIdx.x] = 100 / (by - (int)threadIdx.x); }
