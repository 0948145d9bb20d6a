// Convolution as implicit matrix products, f32, NHWC: no im2col matrix is ever formed.
//   x (n, h, w, c)   filters wt (k, r, s, c)   y (n, p, q, k)   p = (h + 2 pad - r) / stride + 1, q likewise
#include "tile.cuh"

// y = conv(x, wt) + bias: rows are output pixels, columns output channels, depth the window (r, s, c).
//   bias (k), read if bias_on
// Launch:  grid (k / tile_cols(k), n p q / 64) rounded up, block 256.
// Traffic: each block reads its 64 windows and its filters once; windows overlap in the cache.
// Repeats: bit-identical; one in-order sum per output, independent of n.
// Limits:  n p q < 64 * 65536.
template <int BN>
__device__ __forceinline__ void fwd_tile(
    float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ wt, const float* __restrict__ bias,
    int n, int h, int w, int c, int k, int r, int s, int p, int q, int stride, int pad, int bias_on
) {
    int row0 = blockIdx.y * TILE_ROWS;
    int col0 = blockIdx.x * BN;
    int depth = r * s * c;
    int t = threadIdx.x;
    int d_own = t % TILE_DEPTH;  // this thread always loads this depth of a step, for rows t / 16 + 16 i
    const float* image[4];
    int top[4], left[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int pixel = row0 + t / TILE_DEPTH + 16 * i;
        bool in = pixel < n * p * q;
        int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
        image[i] = x + (size_t)(in ? ni : 0) * h * w * c;
        top[i] = in ? pi * stride - pad : -(1 << 29);  // far outside: reads zeros
        left[i] = qi * stride - pad;
    }
    auto load_a = [&](TileA a, int d0) {
        int d = d0 + d_own;
        int ci = d % c, si = d / c % s, ri = d / c / s;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int hi = top[i] + ri, wi = left[i] + si;
            bool in = d < depth && hi >= 0 && hi < h && wi >= 0 && wi < w;
            a[d_own][t / TILE_DEPTH + 16 * i] = in ? image[i][((size_t)hi * w + wi) * c + ci] : 0.0f;
        }
    };
    auto load_b = [&](float (*b)[BN + TILE_PAD], int d0) {
        for (int e = t; e < BN * TILE_DEPTH; e += 256) {
            int col = e / TILE_DEPTH, d = e % TILE_DEPTH;
            bool in = col0 + col < k && d0 + d < depth;
            b[d][col] = in ? wt[(size_t)(col0 + col) * depth + d0 + d] : 0.0f;
        }
    };
    tile_product<BN>(depth, load_a, load_b, [&](int row, int col, float sum) {
        row += row0;
        col += col0;
        if (row < n * p * q && col < k) y[(size_t)row * k + col] = bias_on ? sum + bias[col] : sum;
    });
}

KERNEL conv2d_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const float* __restrict__ wt,
    const float* __restrict__ bias,
    int n,
    int h,
    int w,
    int c,
    int k,
    int r,
    int s,
    int p,
    int q,
    int stride,
    int pad,
    int bias_on
) {
    int bn = tile_cols(k);
    if (bn == 64) fwd_tile<64>(y, x, wt, bias, n, h, w, c, k, r, s, p, q, stride, pad, bias_on);
    else if (bn == 32) fwd_tile<32>(y, x, wt, bias, n, h, w, c, k, r, s, p, q, stride, pad, bias_on);
    else fwd_tile<16>(y, x, wt, bias, n, h, w, c, k, r, s, p, q, stride, pad, bias_on);
}

// dx from dy: rows are input pixels, columns input channels, depth (r, s, k). Output pixel (p, q) contributes to
// input pixel (i, j) through tap (r, s) when p stride + r = i + pad and q stride + s = j + pad.
// Launch:  grid (c / tile_cols(c), n h w / 64) rounded up, block 256.
// Traffic: each block reads the outputs around its 64 pixels and all filters of its channels.
// Repeats: bit-identical; a gather, no atomics.   Limits:  n h w < 64 * 65536.
template <int BN>
__device__ __forceinline__ void dgrad_tile(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ wt,
    int n, int h, int w, int c, int k, int r, int s, int p, int q, int stride, int pad
) {
    int row0 = blockIdx.y * TILE_ROWS;
    int col0 = blockIdx.x * BN;
    int depth = r * s * k;
    int t = threadIdx.x;
    int d_own = t % TILE_DEPTH;
    const float* image[4];
    int bottom[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int pixel = row0 + t / TILE_DEPTH + 16 * i;
        bool in = pixel < n * h * w;
        int wi = pixel % w, hi = pixel / w % h, ni = pixel / w / h;
        image[i] = dy + (size_t)(in ? ni : 0) * p * q * k;
        bottom[i] = in ? hi + pad : -(1 << 29);
        right[i] = wi + pad;
    }
    auto load_a = [&](TileA a, int d0) {
        int d = d0 + d_own;
        int ki = d % k, si = d / k % s, ri = d / k / s;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int up = bottom[i] - ri, back = right[i] - si;
            int pi = up / stride, qi = back / stride;
            bool in = d < depth && up >= 0 && back >= 0 && pi * stride == up && qi * stride == back && pi < p && qi < q;
            a[d_own][t / TILE_DEPTH + 16 * i] = in ? image[i][((size_t)pi * q + qi) * k + ki] : 0.0f;
        }
    };
    auto load_b = [&](float (*b)[BN + TILE_PAD], int d0) {
        for (int e = t; e < BN * TILE_DEPTH; e += 256) {
            int col = e % BN, d = d0 + e / BN;
            bool in = col0 + col < c && d < depth;
            int ki = d % k, tap = d / k;
            b[e / BN][col] = in ? wt[((size_t)ki * r * s + tap) * c + col0 + col] : 0.0f;
        }
    };
    tile_product<BN>(depth, load_a, load_b, [&](int row, int col, float sum) {
        row += row0;
        col += col0;
        if (row < n * h * w && col < c) dx[(size_t)row * c + col] = sum;
    });
}

KERNEL conv2d_dgrad_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ wt,
    int n,
    int h,
    int w,
    int c,
    int k,
    int r,
    int s,
    int p,
    int q,
    int stride,
    int pad
) {
    int bn = tile_cols(c);
    if (bn == 64) dgrad_tile<64>(dx, dy, wt, n, h, w, c, k, r, s, p, q, stride, pad);
    else if (bn == 32) dgrad_tile<32>(dx, dy, wt, n, h, w, c, k, r, s, p, q, stride, pad);
    else dgrad_tile<16>(dx, dy, wt, n, h, w, c, k, r, s, p, q, stride, pad);
}

// Partial weight gradients: chunk z sums over `chunk` output pixels. Rows are window places (r, s, c), columns
// output channels, depth the chunk's pixels.
//   part (chunks, k, r s c)
// Launch:  grid (k / tile_cols(k), r s c / 64, chunks) rounded up, block 256.
// Traffic: each block reads its chunk's windows (64 places) and outputs (bn channels) once.
// Repeats: bit-identical: chunks have a fixed size, and conv2d_wgrad_reduce_f32 adds them in order.
// Limits:  at most 65535 chunks.
template <int BN>
__device__ __forceinline__ void wgrad_tile(
    float* __restrict__ part, const float* __restrict__ dy, const float* __restrict__ x,
    int n, int h, int w, int c, int k, int r, int s, int p, int q, int stride, int pad, int chunk
) {
    int row0 = blockIdx.y * TILE_ROWS;
    int col0 = blockIdx.x * BN;
    int places = r * s * c;
    int first = blockIdx.z * chunk;
    int pixels = min(chunk, n * p * q - first);
    int t = threadIdx.x;
    int place = row0 + t % TILE_ROWS;  // this thread loads this place, for pixels t / 64 + 4 i
    int ci = place % c, si = place / c % s, ri = place / c / s;
    auto load_a = [&](TileA a, int d0) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int d = t / TILE_ROWS + 4 * i;
            int pixel = first + d0 + d;
            int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
            int hi = pi * stride - pad + ri, wi = qi * stride - pad + si;
            bool in = d0 + d < pixels && place < places && hi >= 0 && hi < h && wi >= 0 && wi < w;
            a[d][t % TILE_ROWS] = in ? x[(((size_t)ni * h + hi) * w + wi) * c + ci] : 0.0f;
        }
    };
    auto load_b = [&](float (*b)[BN + TILE_PAD], int d0) {
        for (int e = t; e < BN * TILE_DEPTH; e += 256) {
            int col = e % BN, d = e / BN;
            bool in = col0 + col < k && d0 + d < pixels;
            b[d][col] = in ? dy[(size_t)(first + d0 + d) * k + col0 + col] : 0.0f;
        }
    };
    float* out = part + (size_t)blockIdx.z * k * places;
    tile_product<BN, true>(pixels, load_a, load_b, [&](int row, int col, float sum) {
        row += row0;
        col += col0;
        if (row < places && col < k) out[(size_t)col * places + row] = sum;
    });
}

KERNEL conv2d_wgrad_f32(
    float* __restrict__ part,
    const float* __restrict__ dy,
    const float* __restrict__ x,
    int n,
    int h,
    int w,
    int c,
    int k,
    int r,
    int s,
    int p,
    int q,
    int stride,
    int pad,
    int chunk
) {
    int bn = tile_cols(k);
    if (bn == 64) wgrad_tile<64>(part, dy, x, n, h, w, c, k, r, s, p, q, stride, pad, chunk);
    else if (bn == 32) wgrad_tile<32>(part, dy, x, n, h, w, c, k, r, s, p, q, stride, pad, chunk);
    else wgrad_tile<16>(part, dy, x, n, h, w, c, k, r, s, p, q, stride, pad, chunk);
}

// dw = sum of the chunks in order.   dw (len)   part (chunks, len)
// Launch:  one thread per element, block 256.   Traffic: chunks len floats.   Repeats: bit-identical.
KERNEL conv2d_wgrad_reduce_f32(
    float* __restrict__ dw,
    const float* __restrict__ part,
    int len,
    int chunks
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= len) return;
    float sum = 0.0f;
    for (int z = 0; z < chunks; z++) sum += part[(size_t)z * len + e];
    dw[e] = sum;
}
