// Four neighbouring floats per thread, for kernels that do more with them than map16: thread t of the launch takes the
// elements 4t .. 4t + 3, in one 16-byte access where they lie on 16 bytes.
#pragma once
#include "common.cuh"

// x[e .. e + 3], zeros from n on.
DEVICE float4 load_quad(const float* x, int e, int n) {
    if (e + 4 <= n && aligned16(x)) return as_float4(load16(x + e));
    return make_float4(e < n ? x[e] : 0.0f, e + 1 < n ? x[e + 1] : 0.0f, e + 2 < n ? x[e + 2] : 0.0f,
                       e + 3 < n ? x[e + 3] : 0.0f);
}

// y[e .. e + 3] = v, nothing from n on.
DEVICE void store_quad(float* y, int e, int n, float4 v) {
    if (e + 4 <= n && aligned16(y)) return store16(y + e, as_uint4(v));
    if (e < n) y[e] = v.x;
    if (e + 1 < n) y[e + 1] = v.y;
    if (e + 2 < n) y[e + 2] = v.z;
    if (e + 3 < n) y[e + 3] = v.w;
}

template <class F>
DEVICE float4 map_quad(F f, float4 a) {
    return make_float4(f(a.x), f(a.y), f(a.z), f(a.w));
}
template <class F>
DEVICE float4 map_quad(F f, float4 a, float4 b) {
    return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
}

// 1 / (1 + exp(-x)) without overflow and without losing small results.
DEVICE float sigmoid(float x) {
    float z = expf(-fabsf(x));
    return (x < 0.0f ? z : 1.0f) / (1.0f + z);
}
