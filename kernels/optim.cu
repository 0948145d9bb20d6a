// The optimizer's step over the flat parameter arena, and the clock that a captured step moves by itself.
#include "pointwise.cuh"

// Moves the clock on by one batch of n examples: step, offset and slot (src/clock.rs names the words).
//   words (8) in place
// Launch:  one thread does it.   Repeats: exact.
KERNEL clock_advance(
    uint32_t* __restrict__ words,
    uint32_t n
) {
    if (threadIdx.x == 0) {
        words[0] += 1;
        words[2] += n;
        words[3] += 1;
    }
}

// g' = clamp(g, +-clamp);  v = momentum v + (g' + decay w);  w = w - lr v.   lr: word 4 of the clock, as float bits.
//   w, v (n) in place   g (n)   clock (8)
// Launch:  one thread per element, block 256.
// Traffic: 5n floats. Memory bound.
// Repeats: bit-identical. A NaN in g stays one: the loss of the next step stops the run.
// Limits:  n < 2^31 - 256.
KERNEL sgd_step_f32(
    float* __restrict__ w,
    float* __restrict__ v,
    const float* __restrict__ g,
    const uint32_t* __restrict__ clock,
    int n,
    float momentum,
    float decay,
    float clamp
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float lr = __uint_as_float(clock[4]);
    float d = g[i];
    if (d > clamp) d = clamp;  // comparisons, not fminf: that would turn a NaN into the clamp
    if (d < -clamp) d = -clamp;
    float step = momentum * v[i] + (d + decay * w[i]);
    v[i] = step;
    w[i] -= lr * step;
}

// SGD as above without a clamp, then ema = ema + rest (w - ema), then w = w (1 - shrink lr) where `kernels` is not 0: the
// three of a MixMatch step in one pass.
//   w, v, ema (n) in place   g (n)   kernels (n)   clock (8)
// Launch:  one thread per four elements, block 256.
// Traffic: 7n floats and n bytes. Memory bound.
// Repeats: bit-identical. A NaN in g stays one: the loss of the next step stops the run.
// Limits:  n < 2^31 - 1024.
KERNEL sgd_ema_step_f32(
    float* __restrict__ w,
    float* __restrict__ v,
    float* __restrict__ ema,
    const float* __restrict__ g,
    const uint8_t* __restrict__ kernels,
    const uint32_t* __restrict__ clock,
    int n,
    float momentum,
    float decay,
    float rest,
    float shrink
) {
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (e >= n) return;
    float lr = __uint_as_float(clock[4]);
    float4 w4 = load_quad(w, e, n);
    float4 d = map_quad([=](float g, float w) { return g + decay * w; }, load_quad(g, e, n), w4);
    float4 v4 = map_quad([=](float v, float d) { return momentum * v + d; }, load_quad(v, e, n), d);
    w4 = map_quad([=](float w, float v) { return w - lr * v; }, w4, v4);
    store_quad(v, e, n, v4);
    store_quad(ema, e, n, map_quad([=](float a, float w) { return a + rest * (w - a); }, load_quad(ema, e, n), w4));
    float kept = 1.0f - shrink * lr;
    auto factor = [&](int i) { return i < n && kernels[i] ? kept : 1.0f; };
    float4 f = make_float4(factor(e), factor(e + 1), factor(e + 2), factor(e + 3));
    store_quad(w, e, n, map_quad([](float w, float f) { return w * f; }, w4, f));
}

// w = w (1 - shrink lr).   w (n) in place   clock (8)
// Launch: one thread per element, block 256.  Traffic: 2n floats.  Repeats: bit-identical.  Limits: n < 2^31 - 256.
KERNEL shrink_f32(
    float* __restrict__ w,
    const uint32_t* __restrict__ clock,
    int n,
    float shrink
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] *= 1.0f - shrink * __uint_as_float(clock[4]);
}

// One step of Adam (Kingma and Ba 2015) with coupled weight decay, as torch.optim.Adam takes it. With g' = g + decay w
// and t = 1 + word 0 of `steps`, the optimizer's own count:
//   m = m + rest1 (g' - m);   v = v + rest2 (g'^2 - v);   w = w - lr (m / (1 - (1 - rest1)^t))
//                                                        / (sqrt(v / (1 - (1 - rest2)^t)) + eps)
// lr: word 4 of the clock, as float bits. rest1 and rest2 are 1 - beta: taken from a beta in f32 they would be off by
// up to 5e-5.
//   w, m, v (n) in place   g (n)   clock, steps (8)
// Launch:  one thread per four elements, block 256.
// Traffic: 7n floats. Memory bound.
// Repeats: bit-identical. A NaN in g stays one.
// Limits:  n < 2^31 - 1024, t < 2^24.
KERNEL adam_step_f32(
    float* __restrict__ w,
    float* __restrict__ m,
    float* __restrict__ v,
    const float* __restrict__ g,
    const uint32_t* __restrict__ clock,
    const uint32_t* __restrict__ steps,
    int n,
    float rest1,
    float rest2,
    float eps,
    float decay
) {
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (e >= n) return;
    float t = (float)(steps[0] + 1);
    // 1 - beta^t = -expm1(t log(beta)): no digits are lost for small t.
    float rate = __uint_as_float(clock[4]) / -expm1f(t * log1pf(-rest1));
    float unbias = 1.0f / sqrtf(-expm1f(t * log1pf(-rest2)));
    float4 w4 = load_quad(w, e, n);
    float4 d = map_quad([=](float g, float w) { return g + decay * w; }, load_quad(g, e, n), w4);
    float4 m4 = map_quad([=](float m, float d) { return m + rest1 * (d - m); }, load_quad(m, e, n), d);
    float4 v4 = map_quad([=](float v, float d) { return v + rest2 * (d * d - v); }, load_quad(v, e, n), d);
    float4 step = map_quad([=](float m, float v) { return rate * m / (sqrtf(v) * unbias + eps); }, m4, v4);
    store_quad(m, e, n, m4);
    store_quad(v, e, n, v4);
    store_quad(w, e, n, map_quad([](float w, float step) { return w - step; }, w4, step));
}

// ema = ema + rest (w - ema): the moving average with decay 1 - rest.
//   ema (n) in place   w (n)
// Launch:  one thread per four elements, block 256.   Traffic: 3n floats. Memory bound.
// Repeats: bit-identical.   Limits:  n < 2^31 - 1024.
KERNEL ema_step_f32(
    float* __restrict__ ema,
    const float* __restrict__ w,
    int n,
    float rest
) {
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (e >= n) return;
    float4 old = load_quad(ema, e, n);
    store_quad(ema, e, n, map_quad([=](float a, float w) { return a + rest * (w - a); }, old, load_quad(w, e, n)));
}
