// Variants: f32 bf16
// Max and average pooling. Memory bound, bit-identical on every run, whatever the batch. Valid for tensors of fewer than
// 2^31 - 256 elements and windows of at most 16 by 16 (a position in the window is kept in one byte).
#ifndef Stored
#include "common.cuh"

// Elements of a block's rows in shared memory; the same number in src/ops/pool.rs.
#define POOL_TILE 4096

// The maximum of a window and where it was: the first of equal ones, and a NaN wins over everything before it.
struct Winner {
    float best = -INFINITY;
    int where = -1;
    DEVICE void see(float v, int place) {
        if (where < 0 || v > best || v != v) {
            best = v;
            where = place;
        }
    }
};

#define SOURCE "pool.cu"
#include "floats.cuh"
#else

// y[n][oh][ow][c] = max over the window of x, and where in the window it was.
//   y, at (m) = (n, oh, ow, c)   x (n, h, w, c)
//   The window of (oh, ow) starts at row oh * stride - pad and column ow * stride - pad; outside of x is -inf.
// Launch:  one thread per output element, block 256.
// Traffic: n*h*w*c + m elements and m bytes where windows do not overlap; neighbouring threads read neighbouring
//          channels.
// Repeats: bit-identical; a tie goes to the first in row-major order, a NaN wins over everything before it.
// Limits:  see the top; pad < size, so that every window holds an element.
KERNEL VARIANT(max_pool2d_fwd)(
    Stored* __restrict__ y,
    uint8_t* __restrict__ at,
    const Stored* __restrict__ x,
    int m,
    int h,
    int w,
    int c,
    int oh,
    int ow,
    int size,
    int stride,
    int pad
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= m) return;
    int ch = e % c, pixel = e / c;
    int left = pixel % ow * stride - pad;
    int top = pixel / ow % oh * stride - pad;
    const Stored* image = x + (size_t)(pixel / ow / oh) * h * w * c + ch;
    Winner winner;
    for (int r = 0; r < size; r++) {
        for (int s = 0; s < size; s++) {
            int i = top + r, j = left + s;
            if (i < 0 || i >= h || j < 0 || j >= w) continue;
            winner.see(to_float(image[(size_t)(i * w + j) * c]), r * size + s);
        }
    }
    y[e] = from_float<Stored>(winner.best);
    at[e] = (uint8_t)winner.where;
}

// dx[n][i][j][c] = sum of dy over the windows whose maximum was at (i, j): each input element looks at the windows that
// contain it, so nothing is scattered and the order of the sum is fixed.
//   dx (m) = (n, h, w, c)   dy, at (n, oh, ow, c)
// Launch:  one thread per input element, block 256.
// Traffic: m elements written; dy and at are read (size / stride)^2 times, from the cache after the first.
// Repeats: bit-identical.
// Limits:  see the top.
KERNEL VARIANT(max_pool2d_bwd)(
    Stored* __restrict__ dx,
    const Stored* __restrict__ dy,
    const uint8_t* __restrict__ at,
    int m,
    int h,
    int w,
    int c,
    int oh,
    int ow,
    int size,
    int stride,
    int pad
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= m) return;
    int ch = e % c, pixel = e / c;
    int j = pixel % w + pad;                                 // counted from the padded corner
    int i = pixel / w % h + pad;
    size_t image = (size_t)(pixel / w / h) * oh * ow * c + ch;
    int p_first = i < size ? 0 : (i - size) / stride + 1;    // first window that reaches down to row i
    int q_first = j < size ? 0 : (j - size) / stride + 1;
    int p_last = min(i / stride, oh - 1);
    int q_last = min(j / stride, ow - 1);
    float sum = 0.0f;
    for (int p = p_first; p <= p_last; p++) {
        for (int q = q_first; q <= q_last; q++) {
            size_t o = image + (size_t)(p * ow + q) * c;
            int here = (i - p * stride) * size + (j - q * stride);
            if (at[o] == here) sum += to_float(dy[o]);
        }
    }
    dx[e] = from_float<Stored>(sum);
}

// max_pool2d_fwd for windows side by side, whose rows of windows are whole rows of x one after the other, through all
// images: a block reads its part of x in one piece. With few channels a thread's own window would be a few bytes of
// many sectors.
//   y, at (rows, ow, c)   x (rows, size, w, c), rows = n oh
// Launch:  grid rows / per rounded up, block 256; per size w c <= POOL_TILE.
// Traffic: rows size w c + rows ow c elements and rows ow c bytes.
// Repeats: bit-identical, and what max_pool2d_fwd gives.   Limits:  see the top.
KERNEL VARIANT(max_pool2d_side_fwd)(
    Stored* __restrict__ y,
    uint8_t* __restrict__ at,
    const Stored* __restrict__ x,
    int rows,
    int per,
    int w,
    int c,
    int ow,
    int size
) {
    SHARED(Stored, tile, [POOL_TILE]);
    int first = blockIdx.x * per, here = min(per, rows - first);
    int wide = size * w * c, out = ow * c;         // of a row of windows
    for (int e = threadIdx.x; e < here * wide; e += 256) tile[e] = x[(size_t)first * wide + e];
    __syncthreads();
    for (int e = threadIdx.x; e < here * out; e += 256) {
        const Stored* window = tile + e / out * wide + e / c % ow * size * c + e % c;
        Winner winner;
        for (int r = 0; r < size; r++) {
            for (int s = 0; s < size; s++) winner.see(to_float(window[(r * w + s) * c]), r * size + s);
        }
        y[(size_t)first * out + e] = from_float<Stored>(winner.best);
        at[(size_t)first * out + e] = (uint8_t)winner.where;
    }
}

// max_pool2d_bwd for the same.   dx (rows, size, w, c)   dy, at (rows, ow, c)
// Launch, repeats, limits: as max_pool2d_side_fwd.
KERNEL VARIANT(max_pool2d_side_bwd)(
    Stored* __restrict__ dx,
    const Stored* __restrict__ dy,
    const uint8_t* __restrict__ at,
    int rows,
    int per,
    int w,
    int c,
    int ow,
    int size
) {
    SHARED(Stored, grads, [POOL_TILE]);
    SHARED(uint8_t, places, [POOL_TILE]);
    int first = blockIdx.x * per, here = min(per, rows - first);
    int wide = size * w * c, out = ow * c;
    for (int e = threadIdx.x; e < here * out; e += 256) {
        grads[e] = dy[(size_t)first * out + e];
        places[e] = at[(size_t)first * out + e];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < here * wide; e += 256) {
        int j = e / c % w, i = e / c / w;          // i: row of x among the block's
        int o = i / size * out + j / size * c + e % c;
        bool won = j < ow * size && places[o] == i % size * size + j % size;
        dx[(size_t)first * wide + e] = won ? grads[o] : from_float<Stored>(0.0f);
    }
}

// y[n][p][q][c] = mean of the size x size window of x at (p size, q size): windows side by side.
//   y (m) = (n, oh, ow, c)   x (n, h, w, c)
// Launch:  one thread per output element, block 256.
// Traffic: n*h*w*c + m elements.   Repeats: bit-identical; rows, then columns of the window.   Limits: see the top.
KERNEL VARIANT(avg_pool2d_fwd)(
    Stored* __restrict__ y,
    const Stored* __restrict__ x,
    int m,
    int h,
    int w,
    int c,
    int oh,
    int ow,
    int size
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= m) return;
    int ch = e % c, pixel = e / c;
    int left = pixel % ow * size, top = pixel / ow % oh * size;
    const Stored* image = x + (size_t)(pixel / ow / oh) * h * w * c + ch;
    float sum = 0.0f;
    for (int r = 0; r < size; r++) {
        for (int s = 0; s < size; s++) sum += to_float(image[(size_t)((top + r) * w + left + s) * c]);
    }
    y[e] = from_float<Stored>(sum / (size * size));
}

// dx = dy of the window that contains the element, divided by its area; 0 in no window.
//   dx (m) = (n, h, w, c)   dy (n, oh, ow, c)
// Launch:  one thread per input element, block 256.   Traffic: m + m / size^2 elements.   Repeats: bit-identical.
KERNEL VARIANT(avg_pool2d_bwd)(
    Stored* __restrict__ dx,
    const Stored* __restrict__ dy,
    int m,
    int h,
    int w,
    int c,
    int oh,
    int ow,
    int size
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= m) return;
    int ch = e % c, pixel = e / c;
    int q = pixel % w / size, p = pixel / w % h / size;
    size_t image = (size_t)(pixel / w / h) * oh * ow;
    float v = p < oh && q < ow ? to_float(dy[(image + (size_t)p * ow + q) * c + ch]) / (size * size) : 0.0f;
    dx[e] = from_float<Stored>(v);
}
#endif
