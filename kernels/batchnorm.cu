// Variants: f32 bf16
// Batch normalisation over the rows of x (m, c), fused with an optional residual and relu:
//   z = (x - mean) rstd gamma + beta (+ residual),   y = relu(z) or z
// x, y, residual and their gradients are `Stored`, everything that belongs to a channel is f32. Everything is memory
// bound and adds in a fixed order. Valid for m * c < 2^31 - 4096 and c < 2^24.
#ifndef Stored
#include "common.cuh"

// Rows of one partial sum; the same number in src/ops/batchnorm.rs.
#define ROWS 512

// Sums two values per column over the rows of a chunk: `values(e, j, a, b)` adds those of element e, column j;
// `store(j, a, b)` gets the sums of column j.
template <class Values, class Store>
DEVICE void part_sums(int m, int c, Values values, Store store) {
    SHARED(float, sums, [2][256]);
    int first = blockIdx.x * ROWS;
    int last = min(first + ROWS, m);
    int j0 = blockIdx.y * 256;             // columns of this block: [j0, j0 + width)
    int width = min(c - j0, 256);
    int rows = 256 / width;                // taken in one go, at least 1
    int r = threadIdx.x / width;           // row within the go; threads from rows * width on are idle
    int j = threadIdx.x % width;
    float a = 0.0f, b = 0.0f;
    if (r < rows) {
        for (int i = first + r; i < last; i += rows) values((size_t)i * c + j0 + j, j0 + j, a, b);
    }
    sums[0][threadIdx.x] = a;
    sums[1][threadIdx.x] = b;
    __syncthreads();
    if (threadIdx.x < width) {
        a = b = 0.0f;
        for (int k = 0; k < rows; k++) {
            a += sums[0][k * width + j];
            b += sums[1][k * width + j];
        }
        store(j0 + j, a, b);
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

// running = (1 - momentum) running + momentum batch   running, batch (n)
// Launch: one thread per element, block 256.   Traffic: 3n floats.   Repeats: bit-identical.
KERNEL batch_norm_update_f32(
    float* __restrict__ running,
    const float* __restrict__ batch,
    int n,
    float momentum
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) running[i] = (1.0f - momentum) * running[i] + momentum * batch[i];
}

// N values of a channel each, from column j on; j and c are multiples of N.
template <int N>
struct Channels {
    float v[N];
    DEVICE Channels(const float* of, int j) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            Vec<float> four(of + j + i);
#pragma unroll
            for (int k = 0; k < 4; k++) v[i + k] = four.v[k];
        }
    }
};

#define SOURCE "batchnorm.cu"
#include "floats.cuh"
#else

// part[p] = sum over chunk p of x, and of its squared distances from the chunk's mean. It is summed as distances from
// the first row, which keeps the squares from being a small difference of large numbers.
//   part (chunks, 2, c)   x (m, c)
// Launch:  grid (ceil(m / ROWS), ceil(c / 256)), block 256.
// Traffic: m*c elements; neighbouring threads read neighbouring elements.
// Repeats: bit-identical; the cut into chunks depends on m only.
KERNEL VARIANT(batch_norm_stats_part)(
    float* __restrict__ part,
    const Stored* __restrict__ x,
    int m,
    int c
) {
    float n = min(ROWS, m - (int)blockIdx.x * ROWS);
    part_sums(
        m, c,
        [&](size_t e, int j, float& a, float& b) {
            float d = to_float(x[e]) - to_float(x[j]);
            a += d;
            b = fmaf(d, d, b);
        },
        [&](int j, float a, float b) {
            float* to = part + (size_t)blockIdx.x * 2 * c + j;
            to[0] = fmaf(n, to_float(x[j]), a);
            to[c] = max(fmaf(-a, a / n, b), 0.0f);
        });
}

// y as at the top.
//   y, x, residual (n) = (m, c)   mean, rstd, gamma, beta (c)   residual is read if residual_on
// Launch:  one thread per 16 bytes, block 256.
// Traffic: 2n elements, 3n with a residual, 16 bytes at a time where the channels are a multiple of that.
// Repeats: bit-identical.
KERNEL VARIANT(batch_norm_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    const float* __restrict__ mean,
    const float* __restrict__ rstd,
    const float* __restrict__ gamma,
    const float* __restrict__ beta,
    const Stored* __restrict__ residual,
    int n,
    int c,
    int relu_on,
    int residual_on
) {
    constexpr int N = Vec<Stored>::N;
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    auto one = [&](float x, float mean, float rstd, float gamma, float beta, float r) {
        float z = fmaf((x - mean) * rstd, gamma, beta) + r;
        return relu_on && z < 0.0f ? 0.0f : z;
    };
    if (e >= n) return;
    if (c % N == 0) {
        int j = e % c;
        Channels<N> m(mean, j), s(rstd, j), g(gamma, j), b(beta, j);
        Vec<Stored> v(x + e), r{};
        if (residual_on) r = Vec<Stored>(residual + e);
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = one(v.v[k], m.v[k], s.v[k], g.v[k], b.v[k], residual_on ? r.v[k] : 0.0f);
        v.store(y + e);
        return;
    }
    for (int k = e; k < min(e + N, n); k++) {
        int j = k % c;
        float r = residual_on ? to_float(residual[k]) : 0.0f;
        y[k] = from_float<Stored>(one(to_float(x[k]), mean[j], rstd[j], gamma[j], beta[j], r));
    }
}

// part[p] = sums over chunk p of dz and of dz (x - mean) rstd, where dz = dy, or 0 where relu cut.
//   part (chunks, 2, c)   dy, y, x (m, c)   mean, rstd (c)   y is read if relu_on
// Launch:  grid (ceil(m / ROWS), ceil(c / 256)), block 256.
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
    part_sums(
        m, c,
        [&](size_t e, int j, float& a, float& b) {
            float dz = relu_on && !(to_float(y[e]) > 0.0f) ? 0.0f : to_float(dy[e]);
            a += dz;
            b = fmaf(dz, (to_float(x[e]) - mean[j]) * rstd[j], b);
        },
        [&](int j, float a, float b) {
            float* to = part + (size_t)blockIdx.x * 2 * c + j;
            to[0] = a;
            to[c] = b;
        });
}

// dx = gamma rstd (dz - (dbeta + xhat dgamma) / m), and dz itself as the gradient of the residual.
//   dx, dres, dy, y, x (n) = (m, c)   mean, rstd, gamma, dgamma, dbeta (c)   inverse = 1 / m; 0 where mean and rstd
//   are constants (evaluation)   y is read if relu_on, dres written if dres_on
// Launch:  one thread per 16 bytes, block 256.
// Traffic: 3n elements, n more each for relu and residual.   Repeats: bit-identical.
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
    int n,
    int c,
    float inverse,
    int relu_on,
    int dres_on
) {
    constexpr int N = Vec<Stored>::N;
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    auto one = [&](float dz, float x, float mean, float rstd, float gamma, float dgamma, float dbeta) {
        return gamma * rstd * (dz - inverse * fmaf((x - mean) * rstd, dgamma, dbeta));
    };
    if (e >= n) return;
    if (c % N == 0) {
        int j = e % c;
        Channels<N> m(mean, j), s(rstd, j), g(gamma, j), dg(dgamma, j), db(dbeta, j);
        Vec<Stored> v(x + e), dz(dy + e);
        if (relu_on) {
            Vec<Stored> cut(y + e);
#pragma unroll
            for (int k = 0; k < N; k++) dz.v[k] = cut.v[k] > 0.0f ? dz.v[k] : 0.0f;
        }
        if (dres_on) dz.store(dres + e);
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = one(dz.v[k], v.v[k], m.v[k], s.v[k], g.v[k], dg.v[k], db.v[k]);
        v.store(dx + e);
        return;
    }
    for (int k = e; k < min(e + N, n); k++) {
        int j = k % c;
        float dz = relu_on && !(to_float(y[k]) > 0.0f) ? 0.0f : to_float(dy[k]);
        dx[k] = from_float<Stored>(one(dz, to_float(x[k]), mean[j], rstd[j], gamma[j], dgamma[j], dbeta[j]));
        if (dres_on) dres[k] = from_float<Stored>(dz);
    }
}
#endif
