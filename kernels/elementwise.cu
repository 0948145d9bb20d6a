// Element by element: every kernel is memory bound, one thread per element, block 256, bit-identical on every
// run, valid for n < 2^31 - 256 (the Rust side holds tensors of at most 2^31 - 256 elements on a device).
#include "common.cuh"

// y[i] = value.   y (n)
KERNEL fill_f32(
    float* __restrict__ y,
    int n,
    float value
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = value;
}

// y = a + b.   y, a, b (n).  Traffic: 3n floats.
KERNEL add_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ a,
    const float* __restrict__ b,
    int n
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i] + b[i];
}

// y = a * b.   y, a, b (n).  Traffic: 3n floats.
KERNEL mul_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ a,
    const float* __restrict__ b,
    int n
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i] * b[i];
}

// y = s x.   y, x (n).  Traffic: 2n floats.
KERNEL scale_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    float s
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = s * x[i];
}

// y = max(x, 0), NaN kept: it must reach the loss, which stops the run.   y, x (n).  Traffic: 2n floats.
KERNEL relu_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

// dx = dy where y > 0, else 0.   dx, dy, y (n).  Traffic: 3n floats.
KERNEL relu_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    int n
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

// y[i] = x[i] + b[i % c]: a bias for every row.   y, x (n) = (n / c, c)   b (c).  Traffic: 2n + c floats.
KERNEL add_bias_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const float* __restrict__ b,
    int n,
    int c
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + b[i % c];
}
