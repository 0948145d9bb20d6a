// Correct kernels of the emulator's own tests.
#include "common.cuh"
#include "philox.cuh"

KERNEL own_scale_add(float* __restrict__ y, const float* __restrict__ x, int n, float a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}

KERNEL own_sum_atomic(float* out, const float* x, int n) {
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) atomicAdd(out, sum);
}

KERNEL own_histogram(int* bins, const int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&bins[x[i]], 1);
}

// One block a row.
KERNEL __launch_bounds__(256) own_softmax(float* __restrict__ y, const float* __restrict__ x, int c) {
    const float* row = x + (size_t)blockIdx.x * c;
    float m = -INFINITY;
    for (int j = threadIdx.x; j < c; j += blockDim.x) m = fmaxf(m, row[j]);
    m = block_max(m);
    float sum = 0.0f;
    for (int j = threadIdx.x; j < c; j += blockDim.x) sum += expf(row[j] - m);
    sum = block_sum(sum);
    for (int j = threadIdx.x; j < c; j += blockDim.x) y[(size_t)blockIdx.x * c + j] = expf(row[j] - m) / sum;
}

// out: index of the largest element, the lowest one of equals. One block.
KERNEL own_argmax(int* out, const float* x, int n) {
    Best best{-INFINITY, 0x7fffffff};
    for (int i = threadIdx.x; i < n; i += blockDim.x) best = better(best, Best{x[i], i});
    best = block_argmax(best);
    if (threadIdx.x == 0) out[0] = best.index;
}

// Each block reduction twice in a row: the second call must not write what a slow warp still reads. One block.
KERNEL own_reductions_twice(float* out, const float* x) {
    float v = x[threadIdx.x];
    float sums = block_sum(v) + block_sum(2.0f * v);
    float most = block_max(v) + block_max(-v);
    Best first = block_argmax(Best{v, (int)threadIdx.x});
    Best second = block_argmax(Best{-v, (int)threadIdx.x});
    if (threadIdx.x == 0) {
        out[0] = sums;
        out[1] = most;
        out[2] = first.index;
        out[3] = second.index;
    }
}

// y(n) = bf16 of 2 x, eight at a time. n is a multiple of 8.
KERNEL own_double_bf16(__nv_bfloat16* y, const __nv_bfloat16* x, int n) {
    int i = 8 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    float v[8];
    unpack8(v, load16(x + i));
    for (int j = 0; j < 8; j++) v[j] *= 2.0f;
    store16(y + i, pack8(v));
}

// out: philox4x32_10(counter, key), then words 0..n of the stream (key, 2, 3, 5).
KERNEL own_philox(uint32_t* block, uint32_t* words, const uint32_t* counter, const uint32_t* key, int n) {
    int i = threadIdx.x;
    if (i == 0) {
        uint4 v = philox4x32_10(make_uint4(counter[0], counter[1], counter[2], counter[3]),
                                make_uint2(key[0], key[1]));
        block[0] = v.x;
        block[1] = v.y;
        block[2] = v.z;
        block[3] = v.w;
    }
    if (i < n) words[i] = philox_word(key[0], key[1], 2, 3, 5, i);
}

__constant__ float weights[3] = {0.25f, 0.5f, 0.25f};

// One value for each family of intrinsics; the test knows what each must be.
KERNEL own_intrinsics(unsigned* out, float* real) {
    unsigned t = threadIdx.x;
    out[t] = __ballot_sync(FULL_WARP, t % 3 == 0);
    out[32 + t] = __reduce_add_sync(FULL_WARP, t);
    out[64 + t] = __shfl_up_sync(FULL_WARP, t, 1);
    out[96 + t] = (unsigned)(__shfl_sync(FULL_WARP, (unsigned long long)t << 33, 5) >> 33);
    if (t == 0) {
        out[128] = __brev(1u);
        out[129] = __byte_perm(0x33221100u, 0x77665544u, 0x7531u);
        out[130] = (unsigned)__umul64hi(1ull << 63, 6);
        out[131] = __clz(1) + __popc(255u) * 100 + __ffs(8) * 10000;
        out[132] =
            __float2int_rz(-3.9f) == -3 && __float2int_rn(2.5f) == 2 && __float2int_rz(3e9f) == 2147483647;
        real[0] = weights[0] + weights[1] + weights[2];
        real[1] =
            fmaf(1.0f + 0x1p-12f, 1.0f + 0x1p-12f, -1.0f);  // keeps the 2^-24 that a rounded product loses
        float p = (1.0f + 0x1p-12f) * (1.0f + 0x1p-12f);
        real[2] = p - 1.0f;
        real[3] = rsqrtf(4.0f) + log1pf(0.0f) + __expf(0.0f);
        real[4] = to_float(from_float<__nv_bfloat16>(1.00390625f));  // a tie: to even
        real[5] = max(1.0f, NAN);
    }
    int count = __syncthreads_count(t < 7);
    out[133 + t] = count + __any_sync(FULL_WARP, t == 9) + __all_sync(FULL_WARP, t < 32);
}

KERNEL own_fma_chain(float* y, float a, float b, int n) {
    float v = threadIdx.x;
    for (int i = 0; i < n; i++) v = fmaf(v, a, b);
    y[threadIdx.x] = v;
}
