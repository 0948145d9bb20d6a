// How well predicted losses rank true ones; formulas in src/ops/ranking.rs. A batch at a time: latency bound.
#include "common.cuh"

// margin - sigma (p[i] - p[j]) of the pair that i < pairs begins, and sigma: +1 if l[i] > l[j], else -1.
DEVICE float pair_term(const float* p, const float* l, int i, int pairs, float margin, float* sigma) {
    int j = 2 * pairs - 1 - i;
    *sigma = l[i] > l[j] ? 1.0f : -1.0f;
    return margin - *sigma * (p[i] - p[j]);
}

// y = mean over the pairs of max(0, term), 0 without a pair.
//   y (1)   predicted, losses (n)
// Launch:  one block of 256.
// Traffic: 2n floats.
// Repeats: bit-identical: every thread adds its pairs in order, then a fixed tree.
// Limits:  n < 2^30.
KERNEL ranking_loss_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ predicted,
    const float* __restrict__ losses,
    int n,
    float margin
) {
    int pairs = n / 2;
    float sum = 0.0f, sigma;
    for (int i = threadIdx.x; i < pairs; i += 256) {
        float term = pair_term(predicted, losses, i, pairs, margin, &sigma);
        sum += term < 0.0f ? 0.0f : term;                    // not fmaxf, which would swallow a NaN
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[0] = pairs > 0 ? sum / pairs : 0.0f;
}

// dp = dy (-sigma / pairs for the first of a pair, sigma / pairs for the second), 0 where the term is not above 0.
//   dp (n)   dy (1)   predicted, losses (n)
// Launch:  one thread per element, block 256.
// Traffic: 5n floats.
// Repeats: bit-identical.
// Limits:  n < 2^30.
KERNEL ranking_loss_bwd_f32(
    float* __restrict__ dp,
    const float* __restrict__ dy,
    const float* __restrict__ predicted,
    const float* __restrict__ losses,
    int n,
    float margin
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n) return;
    int pairs = n / 2;
    float d = 0.0f;
    if (e < 2 * pairs) {
        float sigma;
        float term = pair_term(predicted, losses, e < pairs ? e : 2 * pairs - 1 - e, pairs, margin, &sigma);
        if (term > 0.0f) d = (e < pairs ? -sigma : sigma) * (dy[0] / pairs);
    }
    dp[e] = d;
}
