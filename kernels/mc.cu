// What several stochastic passes over the same rows say together, summed pass by pass so that no more than one of them
// is ever stored. One warp per row where a row decides something: lane l takes the classes l, l + 32, ...; bit-identical
// on every run, whatever the number of rows. Valid for n < 2^26 rows and n * c < 2^31 - 256. A NaN anywhere in a row
// makes its result NaN.
#include "rowwise.cuh"

// The largest of p[j] and where it stands, the lowest class at a tie.
DEVICE Best row_top(const float* p, int c, int lane) {
    Best top = {-INFINITY, 0x7FFFFFFF};
    for (int j = lane; j < c; j += 32) top = better(top, Best{p[j], j});
    return warp_argmax(top);
}

// -sum of p ln p for p[j] * scale, the largest of which is one minus the sum of the others: near certainty nothing of it
// is lost to rounding.
DEVICE float row_entropy(const float* p, int c, int lane, float scale) {
    int at = row_top(p, c, lane).index;
    float others = 0.0f, spread = 0.0f;
    for (int j = lane; j < c; j += 32) {
        float v = j == at ? 0.0f : p[j] * scale;
        others += v;
        spread -= v == 0.0f ? 0.0f : v * logf(v);
    }
    others = warp_sum(others);
    spread = warp_sum(spread);
    return spread - (1.0f - others) * log1pf(-others);
}

// The next pass of BALD: sums += p, entropies += the entropy of p; the first (passes = 0) starts from zero.
//   sums (n, c) and entropies (n) in place   p (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 3*n*c + 2n floats; p is read three times, from the cache after the first.
// Repeats, limits: see the top.
KERNEL mc_bald_add_f32(
    float* __restrict__ sums,
    float* __restrict__ entropies,
    const float* __restrict__ p,
    int n,
    int c,
    int passes
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    p += (size_t)i * c;
    sums += (size_t)i * c;
    for (int j = lane; j < c; j += 32) sums[j] = (passes == 0 ? 0.0f : sums[j]) + p[j];
    float h = row_entropy(p, c, lane, 1.0f);
    if (lane == 0) entropies[i] = (passes == 0 ? 0.0f : entropies[i]) + h;
}

// y[i] = entropy of the mean of the passes - mean of their entropies, not below zero.
//   y (n)   sums (n, c)   entropies (n)
// Launch:  one warp per row, block 256.
// Traffic: n*c + 2n floats; sums are read twice, from the cache the second time.
// Repeats, limits: see the top.
KERNEL mc_bald_f32(
    float* __restrict__ y,
    const float* __restrict__ sums,
    const float* __restrict__ entropies,
    int n,
    int c,
    float passes
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    float h = row_entropy(sums + (size_t)i * c, c, lane, 1.0f / passes) - entropies[i] / passes;
    if (lane == 0) y[i] = h < 0.0f ? 0.0f : h;     // a NaN stays one
}

// The next pass of the standard deviations, by Welford: mean and squares, the sum of squared deviations from it.
//   mean, squares (n) in place   p (n)
// Launch:  one thread per element, block 256.
// Traffic: 5n floats.
// Repeats: bit-identical.
// Limits:  n < 2^31 - 256.
KERNEL mc_std_add_f32(
    float* __restrict__ mean,
    float* __restrict__ squares,
    const float* __restrict__ p,
    int n,
    int passes
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n) return;
    float old = passes == 0 ? 0.0f : mean[e];
    float d = p[e] - old;
    float m = old + d / (float)(passes + 1);
    mean[e] = m;
    squares[e] = (passes == 0 ? 0.0f : squares[e]) + d * (p[e] - m);
}

// y[i] = mean over the classes of the standard deviation over the passes.
//   y (n)   squares (n, c)
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats.
// Repeats, limits: see the top.
KERNEL mc_std_f32(
    float* __restrict__ y,
    const float* __restrict__ squares,
    int n,
    int c,
    float passes
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += sqrtf(squares[(size_t)i * c + j] / passes);
    sum = warp_sum(sum);
    if (lane == 0) y[i] = sum / (float)c;
}

// y[i] = sum over the classes of the variance over the passes.
//   y (n)   squares (n, c)
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats.
// Repeats, limits: see the top.
KERNEL mc_variance_f32(
    float* __restrict__ y,
    const float* __restrict__ squares,
    int n,
    int c,
    float passes
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += squares[(size_t)i * c + j];
    sum = warp_sum(sum);
    if (lane == 0) y[i] = sum / passes;
}

// The next pass of the variation ratio: a vote for the largest class of each row, the lowest at a tie.
//   votes (n, c) in place   p (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 3*n*c floats.
// Repeats, limits: see the top.
KERNEL mc_votes_add_f32(
    float* __restrict__ votes,
    const float* __restrict__ p,
    int n,
    int c,
    int passes
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    p += (size_t)i * c;
    votes += (size_t)i * c;
    int at = row_top(p, c, lane).index;
    for (int j = lane; j < c; j += 32) {
        float old = passes == 0 ? 0.0f : votes[j];
        votes[j] = p[j] == p[j] ? old + (j == at ? 1.0f : 0.0f) : NAN;
    }
}

// y[i] = 1 - votes of the class that has most / passes.
//   y (n)   votes (n, c)
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats.
// Repeats, limits: see the top.
KERNEL mc_votes_f32(
    float* __restrict__ y,
    const float* __restrict__ votes,
    int n,
    int c,
    float passes
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    votes += (size_t)i * c;
    float bad = 0.0f;
    for (int j = lane; j < c; j += 32) bad += 0.0f * votes[j];
    float most = row_top(votes, c, lane).value + warp_sum(bad);
    if (lane == 0) y[i] = 1.0f - most / passes;
}
