// Variants: f32 bf16
// Batch normalisation over the rows of x (m, c), fused with an optional residual and relu:
//   z = (x - mean) rstd gamma + beta (+ residual),   y = relu(z) or z
// x, y, residual and their gradients are `Stored`, everything that belongs to a channel is f32. Everything is memory
// bound and adds in a fixed order. Valid for m * c < 2^31 - 4096 and c < 2^24.
#ifndef Stored
#include "common.cuh"

// Rows of one partial sum; the same number in src/ops/batchnorm.rs.
#define ROWS 512

// Threads beside one another in a row, each with N columns.
DEVICE int beside(int c, int n) { return min(c / n, 256); }

// f(element): the first of this thread's N columns in each row from `first` to `last`, which the block shares.
template <int N, class F>
DEVICE void each_row(int first, int last, int c, F f) {
    int width = beside(c, N), groups = 256 / width;
    int group = threadIdx.x / width;       // threads from groups * width on are idle
    int j = (blockIdx.y * width + threadIdx.x % width) * N;
    if (group >= groups || j >= c) return;
#pragma unroll 4
    for (int i = first + group; i < last; i += groups) f((size_t)i * c + j, j);
}

// The rows of a block of the kernels that go once over everything; the same rule in src/ops/batchnorm.rs.
template <int N, class F>
DEVICE void each_row_of_block(int m, int c, F f) {
    int rows = 256 / beside(c, N) * 8;     // eight to a thread: what belongs to a column is loaded once for all
    int first = blockIdx.x * rows;
    each_row<N>(first, min(first + rows, m), c, f);
}

// Sums two values per column over the rows of a chunk: `values(e, j, a, b)` adds those of N elements from element e,
// column j; `store(j, a, b)` gets the sums of column j.
template <int N, class Values, class Store>
DEVICE void part_sums(int m, int c, Values values, Store store) {
    SHARED(float, sums, [2][256 * N]);
    float a[N] = {}, b[N] = {};
    int first = blockIdx.x * ROWS;
    each_row<N>(first, min(first + ROWS, m), c, [&](size_t e, int j) { values(e, j, a, b); });
#pragma unroll
    for (int v = 0; v < N; v++) {
        sums[0][threadIdx.x * N + v] = a[v];
        sums[1][threadIdx.x * N + v] = b[v];
    }
    __syncthreads();
    int width = beside(c, N) * N, j0 = blockIdx.y * width;
    for (int j = threadIdx.x; j < width && j0 + j < c; j += 256) {
        float ta = 0.0f, tb = 0.0f;
        for (int k = j; k < 256 / (width / N) * width; k += width) {
            ta += sums[0][k];
            tb += sums[1][k];
        }
        store(j0 + j, ta, tb);
    }
}

// What is known of some rows of a column: how many, their mean, the sum of squared distances from it.
struct Moments {
    float n, mean, squares;
    DEVICE void merge(Moments o) {
        float both = n + o.n;
        if (o.n == 0.0f) return;
        float d = o.mean - mean, share = o.n / both;
        mean = fmaf(d, share, mean);
        squares += fmaf(d * d, n * share, o.squares);
        n = both;
    }
};

// For one column a thread: block.x holds `width` columns of neighbouring threads, and 1024 / width groups that share
// the chunks; `take(group, groups, j)` is called first, then the groups are folded by `fold(j, other thread)`.
template <class Take, class Fold, class Last>
DEVICE void fold_chunks(int c, Take take, Fold fold, Last last) {
    int width = min(c, 32), groups = blockDim.x / width;
    int group = threadIdx.x / width, j = blockIdx.x * width + threadIdx.x % width;
    bool live = group < groups && j < c;
    if (live) take(group, groups, j);
    __syncthreads();
    if (live && group == 0) {
        for (int g = 1; g < groups; g++) fold(g * width + threadIdx.x);
        last(j);
    }
}

// Mean, 1 / sqrt(variance + eps) and the unbiased variance of every column.
//   mean, rstd, unbiased (c)   part (chunks, 2, c): per chunk of `rows` rows, the last one shorter, the sum and the
//   sum of squared distances from the chunk's mean
// Launch:  grid ceil(c / min(c, 32)), block 1024.   Traffic: chunks*2*c floats.   Repeats: bit-identical.
KERNEL batch_norm_stats_last_f32(
    float* __restrict__ mean,
    float* __restrict__ rstd,
    float* __restrict__ unbiased,
    const float* __restrict__ part,
    int m,
    int c,
    int chunks,
    int rows,
    float eps
) {
    SHARED(Moments, of, [1024]);
    Moments all{0.0f, 0.0f, 0.0f};
    fold_chunks(
        c,
        [&](int group, int groups, int j) {
            for (int p = group; p < chunks; p += groups) {
                float n = min(rows, m - p * rows);
                const float* at = part + (size_t)p * 2 * c + j;
                all.merge(Moments{n, at[0] / n, at[c]});
            }
            of[threadIdx.x] = all;
        },
        [&](int other) { all.merge(of[other]); },
        [&](int j) {
            mean[j] = all.mean;
            rstd[j] = 1.0f / sqrtf(all.squares / m + eps);
            unbiased[j] = all.squares / max(m - 1, 1);
        });
}

// dbeta and dgamma: the chunks of batch_norm_bwd_part added up.
//   dgamma, dbeta (c)   part (chunks, 2, c)
// Launch:  grid ceil(c / min(c, 32)), block 1024.   Traffic: chunks*2*c floats.   Repeats: bit-identical.
KERNEL batch_norm_bwd_last_f32(
    float* __restrict__ dgamma,
    float* __restrict__ dbeta,
    const float* __restrict__ part,
    int chunks,
    int c
) {
    SHARED(float, sums, [2][1024]);
    float a = 0.0f, b = 0.0f;
    fold_chunks(
        c,
        [&](int group, int groups, int j) {
            for (int p = group; p < chunks; p += groups) {
                a += part[(size_t)p * 2 * c + j];
                b += part[(size_t)p * 2 * c + c + j];
            }
            sums[0][threadIdx.x] = a;
            sums[1][threadIdx.x] = b;
        },
        [&](int other) { a += sums[0][other], b += sums[1][other]; },
        [&](int j) { dbeta[j] = a, dgamma[j] = b; });
}

// rstd = 1 / sqrt(var + eps)   rstd, var (c)
// Launch: one thread per column, block 256.   Traffic: 2c floats.   Repeats: bit-identical.
KERNEL batch_norm_rstd_f32(
    float* __restrict__ rstd,
    const float* __restrict__ var,
    int c,
    float eps
) {
    int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j < c) rstd[j] = 1.0f / sqrtf(var[j] + eps);
}

// running = (1 - momentum) running + momentum batch, of both statistics   all (c)
// Launch: one thread per channel, block 256.   Traffic: 6c floats.   Repeats: bit-identical.
KERNEL batch_norm_update_f32(
    float* __restrict__ running_mean,
    float* __restrict__ running_var,
    const float* __restrict__ mean,
    const float* __restrict__ var,
    int c,
    float momentum
) {
    int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= c) return;
    running_mean[j] = (1.0f - momentum) * running_mean[j] + momentum * mean[j];
    running_var[j] = (1.0f - momentum) * running_var[j] + momentum * var[j];
}

#define SOURCE "batchnorm.cu"
#include "floats.cuh"
#else

// Rows go by four columns a thread where that is possible.
#define BY_FOUR(f) (c % 4 == 0 ? f(Index<4>{}) : f(Index<1>{}))

// part[p] = sum over chunk p of x, and of its squared distances from the chunk's mean. It is summed as distances from
// the first row, which keeps the squares from being a small difference of large numbers.
//   part (chunks, 2, c)   x (m, c)
// Launch:  grid (ceil(m / ROWS), column blocks), block 256: `over_rows` in src/ops/batchnorm.rs, for all of these.
// Traffic: m*c elements; neighbouring threads read neighbouring elements.
// Repeats: bit-identical; the cut into chunks depends on m only.
KERNEL VARIANT(batch_norm_stats_part)(
    float* __restrict__ part,
    const Stored* __restrict__ x,
    int m,
    int c
) {
    float n = min(ROWS, m - (int)blockIdx.x * ROWS);
    auto run = [&](auto by) {
        constexpr int N = by.value;
        part_sums<N>(
            m, c,
            [&](size_t e, int j, float (&a)[N], float (&b)[N]) {
                Some<N> v(x + e), first(x + j);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    float d = v.v[k] - first.v[k];
                    a[k] += d;
                    b[k] = fmaf(d, d, b[k]);
                }
            },
            [&](int j, float a, float b) {
                float* to = part + (size_t)blockIdx.x * 2 * c + j;
                to[0] = fmaf(n, to_float(x[j]), a);
                to[c] = max(fmaf(-a, a / n, b), 0.0f);
            });
    };
    BY_FOUR(run);
}

// y as at the top.
//   y, x, residual (m, c)   mean, rstd, gamma, beta (c)   residual is read if residual_on
// Launch:  grid (row blocks, column blocks), block 256.
// Traffic: 2mc elements, 3mc with a residual.   Repeats: bit-identical.
KERNEL VARIANT(batch_norm_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const float* __restrict__ mean,
    const float* __restrict__ rstd,
    const float* __restrict__ gamma,
    const float* __restrict__ beta,
    const Stored* __restrict__ residual,
    int m,
    int c,
    int relu_on,
    int residual_on
) {
    auto run = [&](auto by) {
        constexpr int N = by.value;
        each_row_of_block<N>(m, c, [&](size_t e, int j) {
            Some<N> mu(mean + j), s(rstd + j), g(gamma + j), b(beta + j), v(x + e), r{};
            if (residual_on) r = Some<N>(residual + e);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float z = fmaf((v.v[k] - mu.v[k]) * s.v[k], g.v[k], b.v[k]);
                if (residual_on) z += r.v[k];
                v.v[k] = relu_on && z < 0.0f ? 0.0f : z;
            }
            v.store(y + e);
        });
    };
    BY_FOUR(run);
}

// part[p] = sums over chunk p of dz and of dz (x - mean) rstd, where dz = dy, or 0 where relu cut.
//   part (chunks, 2, c)   dy, y, x (m, c)   mean, rstd (c)   y is read if relu_on
// Launch:  grid (ceil(m / ROWS), column blocks), block 256.
// Traffic: 2mc elements, 3mc with relu.   Repeats: bit-identical; the cut into chunks depends on m only.
KERNEL VARIANT(batch_norm_bwd_part)(
    float* __restrict__ part,
    const Stored* __restrict__ dy,
    const Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const float* __restrict__ mean,
    const float* __restrict__ rstd,
    int m,
    int c,
    int relu_on
) {
    auto run = [&](auto by) {
        constexpr int N = by.value;
        part_sums<N>(
            m, c,
            [&](size_t e, int j, float (&a)[N], float (&b)[N]) {
                Some<N> mu(mean + j), s(rstd + j), v(x + e), dz(dy + e), cut{};
                if (relu_on) cut = Some<N>(y + e);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    float d = relu_on && !(cut.v[k] > 0.0f) ? 0.0f : dz.v[k];
                    a[k] += d;
                    b[k] = fmaf(d, (v.v[k] - mu.v[k]) * s.v[k], b[k]);
                }
            },
            [&](int j, float a, float b) {
                float* to = part + (size_t)blockIdx.x * 2 * c + j;
                to[0] = a;
                to[c] = b;
            });
    };
    BY_FOUR(run);
}

// dx = gamma rstd (dz - (dbeta + xhat dgamma) / m), and dz itself as the gradient of the residual.
//   dx, dres, dy, y, x (m, c)   mean, rstd, gamma, dgamma, dbeta (c)   inverse = 1 / m; 0 where mean and rstd are
//   constants (evaluation)   y is read if relu_on, dres written if dres_on
// Launch:  grid (row blocks, column blocks), block 256.
// Traffic: 3mc elements, mc more each for relu and residual.   Repeats: bit-identical.
KERNEL VARIANT(batch_norm_bwd)(
    Stored* __restrict__ dx,
    Stored* __restrict__ dres,
    const Stored* __restrict__ dy,
    const Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const float* __restrict__ mean,
    const float* __restrict__ rstd,
    const float* __restrict__ gamma,
    const float* __restrict__ dgamma,
    const float* __restrict__ dbeta,
    int m,
    int c,
    float inverse,
    int relu_on,
    int dres_on
) {
    auto run = [&](auto by) {
        constexpr int N = by.value;
        each_row_of_block<N>(m, c, [&](size_t e, int j) {
            Some<N> mu(mean + j), s(rstd + j), g(gamma + j), dg(dgamma + j), db(dbeta + j), v(x + e), dz(dy + e), cut{};
            if (relu_on) cut = Some<N>(y + e);
#pragma unroll
            for (int k = 0; k < N; k++) {
                if (relu_on && !(cut.v[k] > 0.0f)) dz.v[k] = 0.0f;
                float xhat = (v.v[k] - mu.v[k]) * s.v[k];
                v.v[k] = g.v[k] * s.v[k] * (dz.v[k] - inverse * fmaf(xhat, dg.v[k], db.v[k]));
            }
            if (dres_on) dz.store(dres + e);
            v.store(dx + e);
        });
    };
    BY_FOUR(run);
}
#undef BY_FOUR
#endif
