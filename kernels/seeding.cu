// k-means++ seeding, resident on the device: see src/select/seeding.rs for the order of every sum. best (N) holds the
// squared distance to the nearest pick, -1 for picks.
#include "philox.cuh"

constexpr int ROWS = 128;  // whose weights one block sums
constexpr int RUNS = 256;  // of neighbouring blocks, in the draw
constexpr uint32_t NONE = 0xffffffffu;

// out[i] = sum over the features of row row0 + i of x and of c: squared differences, or products. Lane l takes the
// features l, l + 32, ...; then the lanes are added as a tree. Zero beyond the last row. All 32 lanes must call.
template <bool DIFFERENCES>
DEVICE void four_rows(float (&out)[4], const float* x, const float* c, int row0, int n, int d) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = 0.0f;
    for (int k = threadIdx.x % 32; k < d; k += 32) {
        float y = c[k];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (row0 + i < n) {
                float v = x[(size_t)(row0 + i) * d + k];
                float t = DIFFERENCES ? v - y : v;
                out[i] = fmaf(t, DIFFERENCES ? t : y, out[i]);
            }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = warp_sum(out[i]);
}

// What both steps do with the distances `of(out, row0)` of four rows: minimum, and the sum of the block's weights.
template <class Of>
DEVICE void step(float* best, double* part, int n, Of of) {
    SHARED(float, weight, [ROWS]);
    int lane = threadIdx.x % 32;
    for (int r = threadIdx.x / 32 * 4; r < ROWS; r += 32) {
        int row0 = blockIdx.x * ROWS + r;
        float d2[4];
        of(d2, row0);
        if (lane == 0)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float low = row0 + i < n ? best[row0 + i] : -1.0f;
                if (d2[i] < low) best[row0 + i] = low = d2[i];
                weight[r + i] = low > 0.0f ? low : 0.0f;
            }
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;  // no barrier follows
    double sum = 0.0;
    for (int r = lane; r < ROWS; r += 32) sum += weight[r];
    sum = warp_sum(sum);
    if (lane == 0) part[blockIdx.x] = sum;
}

// y[i] = |x[i]|^2.   y (N)   x (N, D)
// Launch:  one warp for four rows, block 256.
// Traffic: N*D floats.
// Repeats: bit-identical.
// Limits:  N < 2^28, the thread number is 32 bits wide.
KERNEL seeding_squares_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int d
) {
    int row0 = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * 4;
    int lane = threadIdx.x % 32;
    if (row0 >= n) return;
    for (int i = 0; i < 4 && row0 + i < n; ++i) {
        const float* a = x + (size_t)(row0 + i) * d;
        float sum = 0.0f;
        for (int k = lane; k < d; k += 32) sum = fmaf(a[k], a[k], sum);
        sum = warp_sum(sum);
        if (lane == 0) y[row0 + i] = sum;
    }
}

// delta[i] = e_top - softmax(logits[i]), the place of the largest logit (the lowest of equals) from the other
// exponentials alone: 1 - p cancels near certainty.   delta, logits (N, C)
// Launch:  one warp per row, block 256.
// Traffic: 2*N*C floats, the logits again from L1.
// Repeats: bit-identical.
// Limits:  N < 2^26. A NaN makes its row NaN.
KERNEL seeding_delta_f32(
    float* __restrict__ delta,
    const float* __restrict__ logits,
    int n,
    int c
) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (row >= n) return;
    const float* x = logits + (size_t)row * c;
    Best top = {-INFINITY, 0x7fffffff};
    for (int k = lane; k < c; k += 32) top = better(top, Best{x[k], k});
    top = warp_argmax(top);
    float others = 0.0f;
    for (int k = lane; k < c; k += 32) others += k == top.index ? 0.0f : expf(x[k] - top.value);
    others = warp_sum(others);
    float scale = 1.0f / (1.0f + others);
    for (int k = lane; k < c; k += 32)
        delta[(size_t)row * c + k] = k == top.index ? others * scale : -expf(x[k] - top.value) * scale;
}

// best[i] = min(best[i], |x[i] - x[last]|^2), and the sum of each block's weights.
//   best (N) in place   part (blocks)   x (N, D)   state (2): picks so far, last pick
// Launch:  grid ceil(N / 128), block 256; a warp takes four rows at a time. Nothing happens once k picks are made.
// Traffic: N*D + 2N floats: the bound.
// Repeats: bit-identical.
// Limits:  N < 2^31 - 128; offsets are 64 bits wide.
KERNEL seeding_plain_f32(
    float* __restrict__ best,
    double* __restrict__ part,
    const float* __restrict__ x,
    const uint32_t* __restrict__ state,
    int n,
    int d,
    int k
) {
    if (state[0] >= (uint32_t)k) return;  // the whole grid
    const float* centre = x + (size_t)state[1] * d;
    step(best, part, n, [&](float (&d2)[4], int row0) { four_rows<true>(d2, x, centre, row0, n, d); });
}

// The same for g = delta (x) h, never formed: |g_i|^2 + |g_j|^2 - 2 (delta_i . delta_j) (h_i . h_j), not below 0. The
// products of two floats are exact in f64, so that copies are at distance 0 and no contraction changes a bit.
//   best (N) in place   part (blocks)   delta (N, C)   h (N, D)   dd, hh (N): |delta|^2, |h|^2   state (2)
// Launch:  as seeding_plain_f32.
// Traffic: N*(C + D + 4) floats: the bound.
// Repeats: bit-identical.
// Limits:  as seeding_plain_f32.
KERNEL seeding_gradients_f32(
    float* __restrict__ best,
    double* __restrict__ part,
    const float* __restrict__ delta,
    const float* __restrict__ h,
    const float* __restrict__ dd,
    const float* __restrict__ hh,
    const uint32_t* __restrict__ state,
    int n,
    int c,
    int d,
    int k
) {
    if (state[0] >= (uint32_t)k) return;  // the whole grid
    size_t last = state[1];
    double own = (double)dd[last] * hh[last];
    step(best, part, n, [&](float (&d2)[4], int row0) {
        float dots[4];
        four_rows<false>(dots, delta, delta + last * c, row0, n, c);
        four_rows<false>(d2, h, h + last * d, row0, n, d);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (row0 + i < n) {
                double v = (double)dd[row0 + i] * hh[row0 + i] + own;
                v -= 2.0 * ((double)dots[i] * d2[i]);
                d2[i] = v > 0.0 ? (float)v : 0.0f;
            }
    });
}

// The draw: the first row whose inclusive sum of weights exceeds u times their total. Blocks are summed in 256 runs; in
// the run that is hit the block is found, in the block the row. Without any weight the lowest row not yet picked.
//   ids (K), one element   best (N), one element   state (2)   part (blocks)   key: seed low, high, purpose and lane, a, b
// Launch:  one block of 256.
// Traffic: the parts.
// Repeats: bit-identical; every sum is in ascending order.
// Limits:  at least one row must be left.
KERNEL seeding_draw_f32(
    uint32_t* __restrict__ ids,
    float* __restrict__ best,
    uint32_t* __restrict__ state,
    const double* __restrict__ part,
    int n,
    int blocks,
    int k,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t lane,
    uint32_t a,
    uint32_t b
) {
    SHARED(double, sums, [RUNS]);
    SHARED(float, rows, [ROWS]);
    SHARED(double, aim, [2]);     // what must be exceeded, and what lies before the block
    SHARED(uint32_t, found, [1]);  // the block, NONE where nothing has a weight; then the row
    SHARED(uint32_t, open, [8]);
    uint32_t at = state[0];
    if (at >= (uint32_t)k) return;  // the whole block
    int t = threadIdx.x;
    int run = (blocks + RUNS - 1) / RUNS;
    double sum = 0.0;
    for (int i = t * run; i < min((t + 1) * run, blocks); ++i) sum += part[i];
    sums[t] = sum;
    __syncthreads();
    if (t == 0) {
        double total = 0.0;
#pragma unroll 4  // not all of them, which would need more registers than there are
        for (int i = 0; i < RUNS; ++i) total += sums[i];
        uint4 words = philox_block(seed_lo, seed_hi, lane, a, b, at);
        double u = (double)(((uint64_t)words.x << 32 | words.y) >> 11) * 0x1p-53;
        double target = u * total;
        // Where rounding leaves no sum beyond the target, the last with any weight.
        double before = 0.0, from = 0.0;
        int hit = -1;
#pragma unroll 4
        for (int i = 0; i < RUNS; ++i) {
            if (sums[i] > 0.0) hit = i, from = before;
            before += sums[i];
            if (before > target) break;
        }
        uint32_t block = NONE;
        if (hit >= 0) {
            before = from;
            for (int i = hit * run; i < min((hit + 1) * run, blocks); ++i) {
                if (part[i] > 0.0) block = i, from = before;
                before += part[i];
                if (before > target) break;
            }
        }
        aim[0] = target;
        aim[1] = from;
        found[0] = block;
    }
    __syncthreads();
    uint32_t block = found[0];
    uint32_t row = NONE;
    if (block != NONE) {
        int i = block * ROWS + t;
        if (t < ROWS) rows[t] = i < n ? best[i] : -1.0f;
    } else {
        for (int i = t; i < n; i += 256)
            if (best[i] >= 0.0f) {
                row = i;
                break;
            }
        row = warp_min(row);
        if (t % 32 == 0) open[t / 32] = row;
    }
    __syncthreads();
    if (t != 0) return;  // no barrier follows
    if (block != NONE) {
        double before = aim[1];
#pragma unroll 4
        for (int i = 0; i < ROWS; ++i) {
            if (rows[i] > 0.0f) row = block * ROWS + i, before += rows[i];
            if (before > aim[0]) break;
        }
    } else {
        for (int w = 0; w < 8; ++w) row = min(row, open[w]);
    }
    ids[at] = row;
    best[row] = -1.0f;
    state[0] = at + 1;
    state[1] = row;
}
