// Variants: f32 bf16
// MixMatch's guesses, mixtures and loss, and the margin of two views; formulas in src/ops/mixmatch.rs.
#ifndef Stored
#include "rowwise.cuh"

// What makes the probabilities of a row of logits: exp(x - top) / sum.
struct Softmax {
    const float* x;
    float top, sum;

    DEVICE Softmax(const float* x, int c, int lane) : x(x), top(row_max(x, c, lane)), sum(row_sum_exp(x, c, lane, top)) {}
    DEVICE float operator()(int j) const { return expf(x[j] - top) / sum; }
};

// Where a row of the interleaved batches comes from: its row in [x; u1; u2]. Row r is at place p of batch j; the places
// are three slots, and slot s of batch s was exchanged with slot s of batch 0.   batch > 0
DEVICE int mixed_from(int r, int batch) {
    int j = r / batch, p = r % batch, small = batch / 3, rest = batch % 3;
    int first = small * (3 - rest);                // places of the slots that are not one longer
    int s = p < first ? p / small : 3 - rest + (p - first) / (small + 1);
    return (j == 0 ? s : j == s ? 0 : j) * batch + p;
}

// The two rows of [x; u1; u2] that make row r of the step, and the share of the first.
struct Mixture {
    int a, b;
    float share;
    bool known;

    DEVICE Mixture(int r, const uint32_t* partners, const float* shares, const uint32_t* clock, int batch, int len, int each)
        : a(mixed_from(r, batch)), b(0), share(NAN), known(false) {
        uint64_t at = 3 * (uint64_t)clock[2] + a;  // 64 bits: the sum must not wrap round
        if (at >= (uint64_t)len) return;
        b = (int)partners[at];
        share = shares[each ? at : at / (3 * batch)];
        known = (uint32_t)b < (uint32_t)(3 * batch);
    }
};

// q = pbar^power / sum of pbar^power, pbar being the mean of softmax(a) and softmax(b).
//   q, a, b (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 3*n*c floats; a and b are read four times, from the cache after the first.
// Repeats: bit-identical.   Limits: n < 2^26, n * c < 2^31 - 256. A NaN in a row makes it NaN.
KERNEL guess_f32(
    float* __restrict__ q,
    const float* __restrict__ a,
    const float* __restrict__ b,
    int n,
    int c,
    float power
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    size_t row = (size_t)i * c;
    Softmax pa(a + row, c, lane), pb(b + row, c, lane);
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += powf(0.5f * (pa(j) + pb(j)), power);
    sum = warp_sum(sum);
    for (int j = lane; j < c; j += 32) q[row + j] = powf(0.5f * (pa(j) + pb(j)), power) / sum;
}

// y[i] = -log(p1 - p2), the two largest of the mean of softmax(a[i]) and softmax(b[i]); near certainty by one minus the
// others, of which nothing is lost.
//   y (n)   a, b (n, c), c > 0
// Launch:  one warp per row, block 256.
// Traffic: 2*n*c + n floats; a and b are read four times, from the cache after the first.
// Repeats: bit-identical.   Limits: n < 2^26, n * c < 2^31 - 256. A NaN in a row makes its result NaN.
KERNEL margin_of_mean_f32(
    float* __restrict__ y,
    const float* __restrict__ a,
    const float* __restrict__ b,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    size_t row = (size_t)i * c;
    Softmax pa(a + row, c, lane), pb(b + row, c, lane);
    Best best = {-INFINITY, 0x7FFFFFFF};
    for (int j = lane; j < c; j += 32) best = better(best, Best{0.5f * (pa(j) + pb(j)), j});
    best = warp_argmax(best);
    float others = 0.0f, second = 0.0f;
    for (int j = lane; j < c; j += 32) {
        if (j == best.index) continue;
        float p = 0.5f * (pa(j) + pb(j));
        others += p;
        second = fmaxf(second, p);
    }
    others = warp_sum(others);
    second = warp_max(second);
    float lost = others + second;
    float margin = lost > 0.5f ? -logf(best.value - second) : -log1pf(-lost);
    if (lane == 0) y[i] = pa.sum + pb.sum == pa.sum + pb.sum ? margin : NAN;
}

// The targets of a step's three batches: share y[a] + (1 - share) y[b] of y = [onehot(labels); q; q].
//   out (3 batch, c)   labels (batch)   q (batch, c)   partners (len)   shares (len, or len / 3 batch unless `each`)
//   clock (8): word 2 is how many labelled images the steps before had.   A mixture that does not exist, or a label of c
//   or more, makes a row NaN, which stops the run.
// Launch:  one thread per element, block 256.
// Traffic: at most 3 * 3 batch * c floats.
// Repeats: bit-identical.   Limits:  3 batch * c < 2^31 - 256.
KERNEL mix_targets_f32(
    float* __restrict__ out,
    const uint32_t* __restrict__ labels,
    const float* __restrict__ q,
    const uint32_t* __restrict__ partners,
    const float* __restrict__ shares,
    const uint32_t* __restrict__ clock,
    int batch,
    int c,
    int len,
    int each
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= 3 * batch * c) return;
    int j = e % c;
    Mixture m(e / c, partners, shares, clock, batch, len, each);
    float sum = NAN;
    if (m.known) {
        auto target = [&](int row) {
            if (row >= batch) return q[(size_t)(row % batch) * c + j];
            uint32_t label = labels[row];
            return label < (uint32_t)c ? (label == (uint32_t)j ? 1.0f : 0.0f) : NAN;
        };
        sum = m.share * target(m.a) + (1.0f - m.share) * target(m.b);
    }
    out[e] = sum;
}

// losses[r] and its gradient d[r] of the interleaved rows from `first` on, so that the mean of the n losses is their
// sum of cross-entropies of labelled rows / batch + weight * sum of squares of the others / (2 batch c).
//   losses (n)   d, x (n, c)   t (3 batch, c)
//   clock (8): the weight rises with word 1, the epoch, and word 3, the step in it, to `most` after `ramp` epochs of
//   `steps` steps; it is `most` from the first where ramp is 0.
// Launch:  one warp per row, block 256.
// Traffic: 3 n * c floats; x and t are read three times, from the cache after the first.
// Repeats: bit-identical.   Limits: batch < 2^24, 3 batch * c < 2^31 - 256, first + n <= 3 batch. A NaN in a row makes it NaN.
KERNEL mixmatch_loss_f32(
    float* __restrict__ losses,
    float* __restrict__ d,
    const float* __restrict__ x,
    const float* __restrict__ t,
    const uint32_t* __restrict__ clock,
    int n,
    int first,
    int batch,
    int c,
    float most,
    float ramp,
    float steps
) {
    int r = warp_row(), lane = threadIdx.x % 32;
    if (r >= n) return;                            // guard: a whole warp leaves together
    size_t row = (size_t)r * c;
    Softmax p(x + row, c, lane);
    d += row;
    t += row + (size_t)first * c;
    float scale = (float)n / (float)batch;
    if (mixed_from(first + r, batch) < batch) {
        float log_sum = logf(p.sum), loss = 0.0f, mass = 0.0f;
        for (int j = lane; j < c; j += 32) {
            loss -= t[j] * (p.x[j] - p.top - log_sum);
            mass += t[j];
        }
        loss = warp_sum(loss);
        mass = warp_sum(mass);
        for (int j = lane; j < c; j += 32) d[j] = scale * (p(j) * mass - t[j]);
        if (lane == 0) losses[r] = scale * loss;
        return;
    }
    float now = (float)clock[1] + (float)clock[3] / steps;
    float weight = 0.5f * scale * (now < ramp ? most * (now / ramp) : most) / (float)c;
    float loss = 0.0f, slope = 0.0f;
    for (int j = lane; j < c; j += 32) {
        float off = p(j) - t[j];
        loss += off * off;
        slope += p(j) * off;
    }
    loss = warp_sum(loss);
    slope = warp_sum(slope);
    for (int j = lane; j < c; j += 32) d[j] = 2.0f * weight * p(j) * (p(j) - t[j] - slope);
    if (lane == 0) losses[r] = weight * loss;
}

#define SOURCE "mixmatch.cu"
#include "floats.cuh"
#else

// The images of a step's three batches: share x[a] + (1 - share) x[b] of x = [x; u; v].
//   out (3 batch, width)   x, u, v (batch, width)   the rest as in mix_targets_f32
// Launch:  one thread per element, block 256.
// Traffic: 3 * 3 batch * width elements, which the cache makes less: every row is read about twice.
// Repeats: bit-identical.   Limits:  3 batch * width < 2^31 - 256.
KERNEL VARIANT(mix_images)(
    Stored* __restrict__ out,
    const Stored* __restrict__ x,
    const Stored* __restrict__ u,
    const Stored* __restrict__ v,
    const uint32_t* __restrict__ partners,
    const float* __restrict__ shares,
    const uint32_t* __restrict__ clock,
    int batch,
    int width,
    int len,
    int each
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= 3 * batch * width) return;
    int at = e % width;
    Mixture m(e / width, partners, shares, clock, batch, len, each);
    float sum = NAN;
    if (m.known) {
        auto pixel = [&](int row) {
            const Stored* from = row < batch ? x : row < 2 * batch ? u : v;
            return to_float(from[(size_t)(row % batch) * width + at]);
        };
        sum = m.share * pixel(m.a) + (1.0f - m.share) * pixel(m.b);
    }
    out[e] = from_float<Stored>(sum);
}
#endif
