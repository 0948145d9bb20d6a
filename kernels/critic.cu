// The critic of WAAL; formulas in src/ops/critic.rs. Everything here is memory bound, or latency bound at the size of a
// training step, bit-identical on every run, and valid for n * c < 2^31 - 256.
#include "common.cuh"
#include "philox.cuh"

// v[i][j] = w[j] where h[i][j] > 0, else 0.
//   v, h (n) = (n / c, c)   w (c)
// Launch:  one thread per element, block 256.
// Traffic: 2n + c floats.
KERNEL gate_fwd_f32(
    float* __restrict__ v,
    const float* __restrict__ w,
    const float* __restrict__ h,
    int n,
    int c
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e < n) v[e] = h[e] > 0.0f ? w[e % c] : 0.0f;
}

// n[i] = y[i] (1 - y[i]) q[i].
//   n, y, q (len)
// Launch:  one thread per element, block 256.
// Traffic: 3 len floats.
KERNEL sigmoid_slope_fwd_f32(
    float* __restrict__ n,
    const float* __restrict__ y,
    const float* __restrict__ q,
    int len
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) n[i] = y[i] * (1.0f - y[i]) * q[i];
}

// dy = dn (1 - 2y) q and dq = dn y (1 - y).
//   dy, dq, dn, y, q (len)
// Launch:  one thread per element, block 256.
// Traffic: 5 len floats.
KERNEL sigmoid_slope_bwd_f32(
    float* __restrict__ dy,
    float* __restrict__ dq,
    const float* __restrict__ dn,
    const float* __restrict__ y,
    const float* __restrict__ q,
    int len
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    dy[i] = dn[i] * (1.0f - 2.0f * y[i]) * q[i];
    dq[i] = dn[i] * y[i] * (1.0f - y[i]);
}

// y = the rows t[i] a[i] + (1 - t[i]) b[i], then b, then a; t[i] in [0, 1) from word i of the stream.
//   y (3n, d)   a, b (n, d)   clock (8): word 0 the step
// Launch:  one thread per element of a, block 256; those of a row draw the same word.
// Traffic: 5 n d floats.
KERNEL between_f32(
    float* __restrict__ y,
    const float* __restrict__ a,
    const float* __restrict__ b,
    const uint32_t* __restrict__ clock,
    int n,
    int d,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    int total = n * d;
    if (e >= total) return;
    uint32_t word = philox_word(seed_lo, seed_hi, stream, round, clock[0], e / d);
    float t = (float)(word >> 8) * (1.0f / 16777216.0f);
    y[e] = t * a[e] + (1.0f - t) * b[e];
    y[(size_t)total + e] = b[e];
    y[2 * (size_t)total + e] = a[e];
}

// y[i] = |log p|_2 / 2 + |log p|_1 / 2 - weight g[i], p = softmax(x[i]), log p not below floor.
//   y, g (n)   x (n, c), c > 0
// Launch:  one warp per row, block 256: lane l takes the classes l, l + 32, ...
// Traffic: n*c + 2n floats; the row is read three times, from the cache after the first.
// Limits:  n < 2^26.
KERNEL uniform_scores_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const float* __restrict__ g,
    int n,
    int c,
    float weight,
    float floor
) {
    int i = (int)((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    float top = -INFINITY, sum = 0.0f, squares = 0.0f, sizes = 0.0f;
    for (int j = lane; j < c; j += 32) top = fmaxf(top, x[j]);   // a NaN shows in the sum
    top = warp_max(top);
    for (int j = lane; j < c; j += 32) sum += expf(x[j] - top);
    float log = logf(warp_sum(sum));
    for (int j = lane; j < c; j += 32) {
        float v = x[j] - top - log;
        v = v < floor ? floor : v;                 // not fmaxf, which would swallow a NaN
        squares += v * v;
        sizes += fabsf(v);
    }
    squares = warp_sum(squares);
    sizes = warp_sum(sizes);
    if (lane == 0) y[i] = 0.5f * sqrtf(squares) + 0.5f * sizes - weight * g[i];
}
