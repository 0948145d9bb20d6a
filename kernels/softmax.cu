// Softmax, log-softmax, cross-entropy and what is read off a row of logits. One warp per row throughout: lane l
// takes the classes l, l + 32, ...; everything is memory bound and bit-identical on every run, whatever the number
// of rows. Valid for n < 2^26 rows and n * c < 2^31 - 256. A NaN anywhere in a row makes its results NaN.
#include "rowwise.cuh"

// y = exp(x - max) / sum of exp(x - max).
//   y, x (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 2*n*c floats; the row is read three times, from the cache after the first.
// Repeats, limits: see the top.
KERNEL softmax_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    y += (size_t)i * c;
    float top = row_max(x, c, lane);
    float sum = row_sum_exp(x, c, lane, top);
    for (int j = lane; j < c; j += 32) y[j] = expf(x[j] - top) / sum;
}

// dx = y (dy - sum of y dy).
//   dx, y, dy (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 3*n*c floats; y and dy are read twice, from the cache the second time.
// Repeats, limits: see the top.
KERNEL softmax_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ y,
    const float* __restrict__ dy,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    size_t row = (size_t)i * c;
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += y[row + j] * dy[row + j];
    sum = warp_sum(sum);
    for (int j = lane; j < c; j += 32) dx[row + j] = y[row + j] * (dy[row + j] - sum);
}

// y = x - max - log(sum of exp(x - max)).
//   y, x (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 2*n*c floats; the row is read three times, from the cache after the first.
// Repeats, limits: see the top.
KERNEL log_softmax_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    y += (size_t)i * c;
    float top = row_max(x, c, lane);
    float log_sum = logf(row_sum_exp(x, c, lane, top));
    for (int j = lane; j < c; j += 32) y[j] = x[j] - top - log_sum;
}

// dx = dy - exp(y) sum of dy.
//   dx, y, dy (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 3*n*c floats; dy is read twice, from the cache the second time.
// Repeats, limits: see the top.
KERNEL log_softmax_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ y,
    const float* __restrict__ dy,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    size_t row = (size_t)i * c;
    float sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += dy[row + j];
    sum = warp_sum(sum);
    for (int j = lane; j < c; j += 32) dx[row + j] = dy[row + j] - expf(y[row + j]) * sum;
}

// losses[i] = -log softmax(x[i])[labels[i]] and d[i] = softmax(x[i]) - onehot(labels[i]), in one pass.
//   losses (n)   d, x (n, c)   labels (n)
// Launch:  one warp per row, block 256.
// Traffic: 2*n*c + 2n floats; the row is read three times, from the cache after the first.
// Repeats: see the top.
// Limits:  see the top. A label of c or more makes the row's loss and gradient NaN, which stops the run.
KERNEL cross_entropy_f32(
    float* __restrict__ losses,
    float* __restrict__ d,
    const float* __restrict__ x,
    const uint32_t* __restrict__ labels,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    d += (size_t)i * c;
    uint32_t label = labels[i];
    bool known = label < (uint32_t)c;
    float top = row_max(x, c, lane);
    float sum = row_sum_exp(x, c, lane, top);
    for (int j = lane; j < c; j += 32) {
        float p = expf(x[j] - top) / sum - (j == (int)label ? 1.0f : 0.0f);
        d[j] = known ? p : NAN;
    }
    if (lane == 0) losses[i] = known ? logf(sum) - (x[label] - top) : NAN;
}

// losses[i] = -sum of t[i] log softmax(x[i]) and d[i] = softmax(x[i]) sum of t[i] - t[i], in one pass.
//   losses (n)   d, x, t (n, c)
// Launch:  one warp per row, block 256.
// Traffic: 3*n*c + n floats; x is read three times and t twice, from the cache after the first.
// Repeats, limits: see the top.
KERNEL cross_entropy_soft_f32(
    float* __restrict__ losses,
    float* __restrict__ d,
    const float* __restrict__ x,
    const float* __restrict__ t,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    d += (size_t)i * c;
    t += (size_t)i * c;
    float top = row_max(x, c, lane);
    float sum = row_sum_exp(x, c, lane, top);
    float log_sum = logf(sum);
    float loss = 0.0f, mass = 0.0f;
    for (int j = lane; j < c; j += 32) {
        loss -= t[j] * (x[j] - top - log_sum);
        mass += t[j];
    }
    loss = warp_sum(loss);
    mass = warp_sum(mass);
    for (int j = lane; j < c; j += 32) d[j] = expf(x[j] - top) / sum * mass - t[j];
    if (lane == 0) losses[i] = loss;
}

// y[0] = mean of x; 0 / 0, a NaN, for n = 0.
//   y (1)   x (n)
// Launch:  one block of 256: n is the size of a batch, a second stage would cost more than it brings.
// Traffic: n floats.
// Repeats: bit-identical; the order of the sum depends on n only.
// Limits:  n < 2^31 - 256.
KERNEL mean_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n
) {
    SHARED(float, sums, [8]);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 256) sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int w = 0; w < 8; w++) total += sums[w];
        y[0] = total / (float)n;
    }
}

// dx = d dy / rows: the gradient of a mean of row losses; dy stays on the device.
//   dx, d (n)   dy (1)
// Launch: one thread per element, block 256.  Traffic: 2n floats.  Repeats: bit-identical.  Limits: n < 2^31 - 256.
KERNEL mean_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ d,
    const float* __restrict__ dy,
    int n,
    float rows
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dx[i] = d[i] * (dy[0] / rows);
}

// y[i] = index of the largest of x[i], the lowest at a tie, the first NaN if there is one.
//   y (n)   x (n, c), c > 0
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats.
// Repeats, limits: see the top.
KERNEL argmax_rows_f32(
    uint32_t* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    int at = row_argmax(x + (size_t)i * c, c, lane);
    if (lane == 0) y[i] = (uint32_t)at;
}

// counter += number of rows whose argmax is their label.
//   counter (1) in place   x (n, c), c > 0   labels (n)
// Launch:  one warp per row, block 256.
// Traffic: n*c + n words; at most n integer atomics on one address.
// Repeats: exact: the sum of integers does not depend on its order.
// Limits:  see the top.
KERNEL count_correct_f32(
    uint32_t* __restrict__ counter,
    const float* __restrict__ x,
    const uint32_t* __restrict__ labels,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    int at = row_argmax(x + (size_t)i * c, c, lane);
    if (lane == 0 && labels[i] == (uint32_t)at) atomicAdd(counter, 1u);
}

// y[i] = -log of the largest probability = log1p(sum over the other classes of exp(x[j] - max)): keeps its resolution
// where the probability itself rounds to 1.
//   y (n)   x (n, c), c > 0
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats; the row is read twice, from the cache the second time.
// Repeats, limits: see the top.
KERNEL least_confidence_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    int at = row_argmax(x, c, lane);
    float top = x[at], sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += j == at ? 0.0f : expf(x[j] - top);
    sum = warp_sum(sum);
    if (lane == 0) y[i] = top == top ? log1pf(sum) : top;
}

// y[i] = the entropy of softmax(x[i]) in nats = log1p(s) + sum over the classes that are not the largest of
// -d exp(d) / (1 + s), d = x - max, s = sum of their exp(d): no term cancels another near certainty.
//   y (n)   x (n, c), c > 0
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats; the row is read twice, from the cache the second time.
// Repeats, limits: see the top.
KERNEL entropy_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    int at = row_argmax(x, c, lane);
    float top = x[at], sum = 0.0f, spread = 0.0f;
    for (int j = lane; j < c; j += 32) {
        float d = x[j] - top;
        float e = j == at ? 0.0f : expf(d);
        sum += e;
        spread -= e == 0.0f ? 0.0f : d * e;        // not -inf * 0
    }
    sum = warp_sum(sum);
    spread = warp_sum(spread);
    if (lane == 0) y[i] = top == top ? log1pf(sum) + spread / (1.0f + sum) : top;
}

// y[i] = -log(p1 - p2), the two largest of softmax(x[i]) = log1p(s) - log(1 - exp(d)), d = second - largest, s = sum of
// exp(x[j] - largest) over the others; each logarithm in the form that does not cancel.
//   y (n)   x (n, c), c > 0
// Launch:  one warp per row, block 256.
// Traffic: n*c + n floats; the row is read twice, from the cache the second time.
// Repeats, limits: see the top.
KERNEL margin_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    int c
) {
    int i = warp_row(), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    int at = row_argmax(x, c, lane);
    float top = x[at], sum = 0.0f, second = -INFINITY;
    for (int j = lane; j < c; j += 32) {
        if (j == at) continue;
        float d = x[j] - top;
        sum += expf(d);
        second = fmaxf(second, d);
    }
    sum = warp_sum(sum);
    second = warp_max(second);
    float gap = second > -0.7f ? logf(-expm1f(second)) : log1pf(-expf(second));
    if (lane == 0) y[i] = top == top ? log1pf(sum) - gap : top;
}

// losses[slot] = loss, the slot being word 3 of the clock; nothing when it is outside.
//   losses (n)   loss (1)   words (8)
// Launch: one thread does it.  Traffic: one float.  Repeats: bit-identical.  Limits: none.
KERNEL write_loss_f32(
    float* __restrict__ losses,
    const float* __restrict__ loss,
    const uint32_t* __restrict__ words,
    int n
) {
    if (threadIdx.x == 0 && words[3] < (uint32_t)n) losses[words[3]] = loss[0];
}
