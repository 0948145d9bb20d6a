// Losses that are sums over all elements: two stages in a fixed order, no atomics. The first stage is here, the second
// is sum_cols_f32 (reduce.cu) over one row; up to CHUNK elements one stage is enough.
//
// All first stages:
//   part (ceil(n / CHUNK))   a, b (n)
// Launch:  one block of 256 per CHUNK elements; each thread takes 4 quads of it.
// Traffic: 2n floats read, n / 4096 written. Memory bound.
// Repeats: bit-identical; the cut depends on n only.
// Limits:  n < 2^31 - 4096.
// All gradients: one thread per four elements, block 256, bit-identical, n < 2^31 - 1024.
#include "pointwise.cuh"

// Elements of one partial sum; the same number in src/ops/loss.rs.
#define CHUNK 4096

// part[block] = scale * sum of term(a[i], b[i]) over the block's chunk. All 256 threads must call.
template <class F>
DEVICE void sum_terms(float* part, const float* a, const float* b, int n, float scale, F term) {
    float sum = 0.0f;
    int first = blockIdx.x * CHUNK + threadIdx.x * 4;
    for (int k = 0; k < CHUNK; k += 1024) {
        int e = first + k;
        if (e >= n) break;
        float4 v = map_quad(term, load_quad(a, e, n), load_quad(b, e, n));
        sum += v.x + (e + 1 < n ? v.y : 0.0f) + (e + 2 < n ? v.z : 0.0f) + (e + 3 < n ? v.w : 0.0f);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = scale * sum;
}

// (x - t)^2
KERNEL mse_fwd_f32(
    float* __restrict__ part,
    const float* __restrict__ x,
    const float* __restrict__ t,
    int n,
    float scale
) {
    sum_terms(part, x, t, n, scale, [](float x, float t) { return (x - t) * (x - t); });
}

// dx = dy 2 scale (x - t).   dx, x, t (n)   dy (1).   Traffic: 3n floats.
KERNEL mse_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ x,
    const float* __restrict__ t,
    int n,
    float scale
) {
    float d = 2.0f * scale * dy[0];
    map16(dx, n, [=](float x, float t) { return d * (x - t); }, x, t);
}

// max(x, 0) - x t + log(1 + exp(-|x|)): the binary cross-entropy of sigmoid(x), finite for every finite x.
KERNEL bce_with_logits_fwd_f32(
    float* __restrict__ part,
    const float* __restrict__ x,
    const float* __restrict__ t,
    int n,
    float scale
) {
    sum_terms(part, x, t, n, scale, [](float x, float t) {
        return (x > 0.0f ? x : 0.0f) - x * t + log1pf(expf(-fabsf(x)));
    });
}

// dx = dy scale (sigmoid(x) - t).   dx, x, t (n)   dy (1).   Traffic: 3n floats.
KERNEL bce_with_logits_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ x,
    const float* __restrict__ t,
    int n,
    float scale
) {
    float d = scale * dy[0];
    map16(dx, n, [=](float x, float t) { return d * (sigmoid(x) - t); }, x, t);
}

// (mu^2 + (exp(l) - 1 - l)) / 2: the divergence of one normal from the standard one, l = log sigma^2.
KERNEL gauss_kl_fwd_f32(
    float* __restrict__ part,
    const float* __restrict__ mu,
    const float* __restrict__ logvar,
    int n,
    float scale
) {
    sum_terms(part, mu, logvar, n, scale, [](float m, float l) { return 0.5f * (m * m + (expm1f(l) - l)); });
}

// dmu = dy mu;  dlogvar = dy (exp(logvar) - 1) / 2.   dmu, dlogvar, mu, logvar (n)   dy (1).   Traffic: 4n floats.
KERNEL gauss_kl_bwd_f32(
    float* __restrict__ dmu,
    float* __restrict__ dlogvar,
    const float* __restrict__ dy,
    const float* __restrict__ mu,
    const float* __restrict__ logvar,
    int n
) {
    float d = dy[0];
    map16(dmu, n, [=](float m) { return d * m; }, mu);
    map16(dlogvar, n, [=](float l) { return 0.5f * d * expm1f(l); }, logvar);
}

// t log t, 0 for t = 0.   t (n).   Traffic: n floats; the second load of a quad meets the first in the cache.
KERNEL neg_entropy_fwd_f32(
    float* __restrict__ part,
    const float* __restrict__ t,
    int n,
    float scale
) {
    sum_terms(part, t, t, n, scale, [](float t, float) { return t == 0.0f ? 0.0f : t * logf(t); });
}
