// Variants: f32 bf16
// Element by element: every kernel is memory bound, bit-identical on every run, valid for n < 2^31 - 4096 (the Rust
// side holds tensors of at most 2^31 - 4096 elements on a device). Block 256; one thread per 16 bytes of the output
// unless it says otherwise.
#ifndef Stored
#include "common.cuh"

// y[i] = value.   y (n).  One thread per element.
KERNEL fill_f32(
    float* __restrict__ y,
    int n,
    float value
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = value;
}

// y = s x.   y, x (n).  Traffic: 2n elements.
KERNEL scale_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    float s
) {
    map16(y, n, [s](float x) { return s * x; }, x);
}

// y[i] = x[i] + b[i % c]: a bias for every row.   y, x (n) = (n / c, c)   b (c).  Traffic: 2n + c floats. One thread per element.
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

// y = x, rounded to the nearest bf16, ties to even.   y, x (n).  Traffic: 6n bytes.
KERNEL narrow(
    bf16* __restrict__ y,
    const float* __restrict__ x,
    int n
) {
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (e + 8 <= n) {
        Vec<float> low(x + e), high(x + e + 4);
        store16(y + e, make_uint4(pack_bf16(low.v[0], low.v[1]), pack_bf16(low.v[2], low.v[3]),
                                  pack_bf16(high.v[0], high.v[1]), pack_bf16(high.v[2], high.v[3])));
    } else {
        for (; e < n; e++) y[e] = from_float<bf16>(x[e]);
    }
}

// y = x, exact.   y, x (n).  Traffic: 6n bytes.
KERNEL widen(
    float* __restrict__ y,
    const bf16* __restrict__ x,
    int n
) {
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (e + 8 <= n) {
        Vec<bf16> v(x + e);
        store16(y + e, as_uint4(make_float4(v.v[0], v.v[1], v.v[2], v.v[3])));
        store16(y + e + 4, as_uint4(make_float4(v.v[4], v.v[5], v.v[6], v.v[7])));
    } else {
        for (; e < n; e++) y[e] = to_float(x[e]);
    }
}

#define SOURCE "elementwise.cu"
#include "floats.cuh"
#else

// y = a + b.   y, a, b (n).  Traffic: 3n elements.
KERNEL VARIANT(add_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ a,
    const Stored* __restrict__ b,
    int n
) {
    map16(y, n, [](float a, float b) { return a + b; }, a, b);
}

// y = a * b.   y, a, b (n).  Traffic: 3n elements.
KERNEL VARIANT(mul_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ a,
    const Stored* __restrict__ b,
    int n
) {
    map16(y, n, [](float a, float b) { return a * b; }, a, b);
}

// y = max(x, 0), NaN kept: it must reach the loss, which stops the run.   y, x (n).  Traffic: 2n elements.
KERNEL VARIANT(relu_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    int n
) {
    map16(y, n, [](float x) { return x < 0.0f ? 0.0f : x; }, x);
}

// dx = dy where y > 0, else 0.   dx, dy, y (n).  Traffic: 3n elements.
KERNEL VARIANT(relu_bwd)(
    Stored* __restrict__ dx,
    const Stored* __restrict__ dy,
    const Stored* __restrict__ y,
    int n
) {
    map16(dx, n, [](float dy, float y) { return y > 0.0f ? dy : 0.0f; }, dy, y);
}
#endif
