// Batch normalisation over the rows of x (m, c), fused with an optional residual and relu:
//   z = (x - mean) rstd gamma + beta (+ residual),   y = relu(z) or z
// Everything is memory bound and adds in a fixed order. Valid for m * c < 2^31 - 256 and c < 2^24.
#include "common.cuh"

// Rows of one partial sum; the same number in src/ops/batchnorm.rs.
#define ROWS 512

// Sums two values per column over the rows of a chunk: `values(e, j, a, b)` adds those of element e, column j.
//   part (chunks, 2, c)
template <class Values>
__device__ __forceinline__ void part_sums(float* __restrict__ part, int m, int c, Values values) {
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
        float ta = 0.0f, tb = 0.0f;
        for (int k = 0; k < rows; k++) {
            ta += sums[0][k * width + j];
            tb += sums[1][k * width + j];
        }
        size_t row = (size_t)blockIdx.x * 2 * c;
        part[row + j0 + j] = ta;
        part[row + c + j0 + j] = tb;
    }
}

// part[p] = sums over chunk p of x - s and of its square, where s is the first row: a shift near the mean keeps the
// variance from being a small difference of large numbers.
//   part (chunks, 2, c)   x (m, c)
// Launch:  grid (ceil(m / ROWS), ceil(c / 256)), block 256.
// Traffic: m*c floats; neighbouring threads read neighbouring floats.
// Repeats: bit-identical; the cut into chunks depends on m only.
KERNEL batch_norm_stats_part_f32(
    float* __restrict__ part,
    const float* __restrict__ x,
    int m,
    int c
) {
    part_sums(part, m, c, [&](size_t e, int j, float& a, float& b) {
        float d = x[e] - x[j];
        a += d;
        b = fmaf(d, d, b);
    });
}

// Mean, 1 / sqrt(variance + eps) and the unbiased variance of every column.
//   mean, rstd, unbiased (c)   part (chunks, 2, c)   x (m, c): its first row is the shift
// Launch:  one warp per column, block 256.   Traffic: chunks*2*c floats.   Repeats: bit-identical.
KERNEL batch_norm_stats_last_f32(
    float* __restrict__ mean,
    float* __restrict__ rstd,
    float* __restrict__ unbiased,
    const float* __restrict__ part,
    const float* __restrict__ x,
    int m,
    int c,
    int chunks,
    float eps
) {
    int j = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (j >= c) return;                    // guard: a whole warp leaves together
    float a = 0.0f, b = 0.0f;
    for (int p = lane; p < chunks; p += 32) {
        a += part[(size_t)p * 2 * c + j];
        b += part[(size_t)p * 2 * c + c + j];
    }
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane > 0) return;
    float d = a / m;
    float squares = b - d * a;             // m times the variance
    squares = squares < 0.0f ? 0.0f : squares;
    mean[j] = x[j] + d;
    rstd[j] = 1.0f / sqrtf(squares / m + eps);
    unbiased[j] = squares / max(m - 1, 1);
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

// y as at the top.
//   y, x, residual (n) = (m, c)   mean, rstd, gamma, beta (c)   residual is read if residual_on
// Launch:  one thread per four elements, block 256.
// Traffic: 2n floats, 3n with a residual, 16 bytes at a time where c is a multiple of four.
// Repeats: bit-identical.
KERNEL batch_norm_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const float* __restrict__ mean,
    const float* __restrict__ rstd,
    const float* __restrict__ gamma,
    const float* __restrict__ beta,
    const float* __restrict__ residual,
    int n,
    int c,
    int relu_on,
    int residual_on
) {
    int e = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (e >= n) return;
    bool whole = c % 4 == 0;
    int count = whole ? 4 : min(4, n - e);
    float v[4] = {}, r[4] = {};
    if (whole) {
        float4 v4 = as_float4(load16(x + e));
        v[0] = v4.x; v[1] = v4.y; v[2] = v4.z; v[3] = v4.w;
        if (residual_on) {
            float4 r4 = as_float4(load16(residual + e));
            r[0] = r4.x; r[1] = r4.y; r[2] = r4.z; r[3] = r4.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (k < count) {
                v[k] = x[e + k];
                if (residual_on) r[k] = residual[e + k];
            }
        }
    }
    int j = e % c;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (k < count) {
            float z = fmaf((v[k] - mean[j]) * rstd[j], gamma[j], beta[j]) + r[k];
            v[k] = relu_on && z < 0.0f ? 0.0f : z;
            j = j + 1 == c ? 0 : j + 1;
        }
    }
    if (whole) {
        store16(y + e, as_uint4(make_float4(v[0], v[1], v[2], v[3])));
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (k < count) y[e + k] = v[k];
        }
    }
}

// part[p] = sums over chunk p of dz and of dz (x - mean) rstd, where dz = dy, or 0 where relu cut.
//   part (chunks, 2, c)   dy, y, x (m, c)   mean, rstd (c)   y is read if relu_on
// Launch:  grid (ceil(m / ROWS), ceil(c / 256)), block 256.
// Traffic: 2mc floats, 3mc with relu.   Repeats: bit-identical; the cut into chunks depends on m only.
KERNEL batch_norm_bwd_part_f32(
    float* __restrict__ part,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    const float* __restrict__ x,
    const float* __restrict__ mean,
    const float* __restrict__ rstd,
    int m,
    int c,
    int relu_on
) {
    part_sums(part, m, c, [&](size_t e, int j, float& a, float& b) {
        float dz = relu_on && !(y[e] > 0.0f) ? 0.0f : dy[e];
        a += dz;
        b = fmaf(dz, (x[e] - mean[j]) * rstd[j], b);
    });
}

// dbeta and dgamma: the chunks of batch_norm_bwd_part_f32 added up.
//   dgamma, dbeta (c)   part (chunks, 2, c)
// Launch:  one warp per column, block 256.   Traffic: chunks*2*c floats.   Repeats: bit-identical.
KERNEL batch_norm_bwd_last_f32(
    float* __restrict__ dgamma,
    float* __restrict__ dbeta,
    const float* __restrict__ part,
    int chunks,
    int c
) {
    int j = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (j >= c) return;                    // guard: a whole warp leaves together
    float a = 0.0f, b = 0.0f;
    for (int p = lane; p < chunks; p += 32) {
        a += part[(size_t)p * 2 * c + j];
        b += part[(size_t)p * 2 * c + c + j];
    }
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane == 0) {
        dbeta[j] = a;
        dgamma[j] = b;
    }
}

// dx = gamma rstd (dz - (dbeta + xhat dgamma) / m), and dz itself as the gradient of the residual.
//   dx, dres, dy, y, x (n) = (m, c)   mean, rstd, gamma, dgamma, dbeta (c)   inverse = 1 / m; 0 where mean and rstd
//   are constants (evaluation)   y is read if relu_on, dres written if dres_on
// Launch:  one thread per element, block 256.
// Traffic: 3n floats, n more each for relu and residual.   Repeats: bit-identical.
KERNEL batch_norm_bwd_f32(
    float* __restrict__ dx,
    float* __restrict__ dres,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    const float* __restrict__ x,
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
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n) return;
    int j = e % c;
    float dz = relu_on && !(y[e] > 0.0f) ? 0.0f : dy[e];
    float xhat = (x[e] - mean[j]) * rstd[j];
    dx[e] = gamma[j] * rstd[j] * (dz - inverse * fmaf(xhat, dgamma[j], dbeta[j]));
    if (dres_on) dres[e] = dz;
}
