// Variants: n16 n32 n64 n128
// Convolution on tensor cores: bf16 in, f32 sums, NHWC, implicit matrix products with tiles of BM rows and BN columns.
//   x (n, h, w, c)   filters wt (k, r, s, c)   y (n, p, q, k)   p = (h + 2 pad - r) / stride + 1, q likewise
// Copies are 16 bytes, so what is read along its channels has a multiple of eight of them; the Rust side sees to it.
// A sum runs over its depth in ascending steps of 16 whatever the tile, so all variants give the same bits.
#ifndef BN
#include "common.cuh"

constexpr int BK = 64;        // depth of a step: 128 bytes
constexpr int STAGES = 3;     // steps in shared memory: one being used, two under way
constexpr int THREADS = 128;  // of every block here; the same number in src/ops/conv2d.rs

// Where a tile of rows of PIECES times 16 bytes keeps piece `piece` of row `row`, in elements. The exclusive or moves
// the pieces of a column over all banks: neither eight rows of one piece nor a row's neighbours ever collide.
template <int PIECES>
DEVICE int place(int row, int piece) {
    constexpr int SHARE = PIECES < 8 ? 8 / PIECES : 1;  // rows that share 128 bytes
    constexpr int MASK = PIECES < 8 ? PIECES - 1 : 7;
    return (row * PIECES + (piece ^ (row / SHARE & MASK))) * 8;
}

// The shares of four warps in a BM x COLS product.
template <int BM, int COLS>
struct Tile {
    static constexpr int ACROSS = COLS == 128 ? 2 : 1;
    static constexpr int WM = BM / (4 / ACROSS), WN = COLS / ACROSS;
    static constexpr int TM = WM / 16, TN = WN / 8;  // tensor-core tiles of a warp
    static constexpr int STAGE = (BM + COLS) * BK;   // elements of a stage: A, then B
    float sum[TM][TN][4];
    int row0, col0;  // of this warp

    DEVICE Tile() {
        int warp = threadIdx.x / 32;
        row0 = warp / ACROSS * WM;
        col0 = warp % ACROSS * WN;
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++) {
#pragma unroll
                for (int v = 0; v < 4; v++) sum[i][j][v] = 0.0f;
            }
        }
    }

    // Adds 16 of the depth. A is kept as [BM][BK], or as [BK][BM] if ATURN; B as [COLS][BK], or as [BK][COLS].
    template <bool ATURN, bool BTURN>
    DEVICE void step(const bf16* a, const bf16* b, int d) {
        int lane = threadIdx.x % 32;
        uint32_t fa[TM][4];
#pragma unroll
        for (int i = 0; i < TM; i++) {
            int row = row0 + i * 16;
            if (ATURN) ldmatrix_x4_trans(fa[i], a + place<BM / 8>(d + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
            else ldmatrix_x4(fa[i], a + place<BK / 8>(row + lane % 16, d / 8 + lane / 16));
        }
#pragma unroll
        for (int j = 0; j < TN; j += 2) {
            int col = col0 + j * 8;
            uint32_t fb[4];
            if (BTURN) ldmatrix_x4_trans(fb, b + place<COLS / 8>(d + lane % 16, col / 8 + lane / 16));
            else ldmatrix_x4(fb, b + place<BK / 8>(col + lane % 8 + lane / 16 * 8, d / 8 + lane / 8 % 2));
            const uint32_t left[2] = {fb[0], fb[1]}, right[2] = {fb[2], fb[3]};
#pragma unroll
            for (int i = 0; i < TM; i++) {
                mma_bf16(sum[i][j], fa[i], left);
                mma_bf16(sum[i][j + 1], fa[i], right);
            }
        }
    }

    // The whole product: `load(a, b)` starts the copies of the next BK of the depth and is called in ascending order.
    template <bool ATURN, bool BTURN, class Load>
    DEVICE void product(bf16* stages, int depth, Load load) {
        int steps = (depth + BK - 1) / BK;
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < steps) load(stages + i * STAGE, stages + i * STAGE + BM * BK);
            cp_commit();
        }
        int use = 0, fill = STAGES - 1;
        for (int i = 0; i < steps; i++) {
            cp_wait<STAGES - 2>();
            __syncthreads();  // the stage is there for all, and the one to fill has been used by all
            if (i + STAGES - 1 < steps) load(stages + fill * STAGE, stages + fill * STAGE + BM * BK);
            cp_commit();
            const bf16* a = stages + use * STAGE;
#pragma unroll
            for (int d = 0; d < BK; d += 16) {
                if (i * BK + d < depth) step<ATURN, BTURN>(a, a + BM * BK, d);
            }
            use = use + 1 == STAGES ? 0 : use + 1;
            fill = fill + 1 == STAGES ? 0 : fill + 1;
        }
        cp_wait<0>();
        __syncthreads();  // shared memory is free again
    }

    // f(row, column, tile row, tile column, first of two values): every pair of neighbouring columns of this thread.
    template <class F>
    DEVICE void each_pair(F f) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < TN; j++) {
#pragma unroll
            for (int i = 0; i < TM; i++) {
                f(row0 + i * 16 + lane / 4, col0 + j * 8 + lane % 4 * 2, i, j, 0);
                f(row0 + i * 16 + lane / 4 + 8, col0 + j * 8 + lane % 4 * 2, i, j, 2);
            }
        }
    }
};

// A gathered pixel: where its window starts, as an element of the image and as row and column, and where its result
// goes; out < 0: there is no such pixel.
struct alignas(16) Pixel {
    int from, top, left, out;
};

// Writes a staged tile of bf16, 128 x COLS, to rows at `pixels[row].out`, 16 bytes at a time where rows are aligned.
template <int COLS>
DEVICE void write_rows(bf16* to, const bf16* staged, const Pixel* pixels, int col0, int cols) {
    constexpr int PIECES = COLS / 8;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int row = threadIdx.x / PIECES + THREADS / PIECES * i, piece = threadIdx.x % PIECES;
        int col = col0 + piece * 8, out = pixels[row].out;
        const bf16* from = staged + place<PIECES>(row, piece);
        if (out < 0 || col >= cols) continue;
        if (cols % 8 == 0) {
            store16(to + out + col, load16(from));
        } else {
            for (int v = 0; v < min(8, cols - col); v++) to[out + col + v] = from[v];
        }
    }
}

#define SOURCE "conv2d_tensor.cu"
#define VARIANT(name) name##_n16
#define BN 16
#include SOURCE
#undef VARIANT
#undef BN
#define VARIANT(name) name##_n32
#define BN 32
#include SOURCE
#undef VARIANT
#undef BN
#define VARIANT(name) name##_n64
#define BN 64
#include SOURCE
#undef VARIANT
#undef BN
#define VARIANT(name) name##_n128
#define BN 128
#include SOURCE

// dw = sum of the chunks in order, without the channels that only fill up the copies.
//   dw (rows, c)   part (chunks, rows, wide), c <= wide
// Launch:  grid rows * wide / 32 rounded up, block 256: eight groups share the chunks of 32 elements.
// Traffic: chunks rows wide floats.   Repeats: bit-identical: groups in order, chunks in order within a group.
KERNEL conv2d_wgrad_sum(
    float* __restrict__ dw,
    const float* __restrict__ part,
    int rows,
    int c,
    int wide,
    int chunks
) {
    SHARED(float, sums, [8][32]);
    int group = threadIdx.x / 32, lane = threadIdx.x % 32;
    int len = rows * wide, e = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (e < len) {
        for (int z = group; z < chunks; z += 8) sum += part[(size_t)z * len + e];
    }
    sums[group][lane] = sum;
    __syncthreads();
    if (group > 0 || e >= len || e % wide >= c) return;
#pragma unroll
    for (int g = 1; g < 8; g++) sum += sums[g][lane];
    dw[e / wide * c + e % wide] = sum;
}

// y = x with zeros up to `wide` channels.   y (rows, wide)   x (rows, c)
// Launch:  one thread per element of y, block 256.   Traffic: 2 rows (c + wide) bytes.   Repeats: bit-identical.
KERNEL pad_channels_bf16(
    bf16* __restrict__ y,
    const bf16* __restrict__ x,
    int rows,
    int c,
    int wide
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= rows * wide) return;
    int j = e % wide;
    y[e] = j < c ? x[e / wide * c + j] : from_float<bf16>(0.0f);
}
#else

// y = conv(x, wt) + bias. Rows are output pixels, columns output channels, depth the window (r, s, c).
//   bias (k), read if bias_on   part (row blocks, 2, k), written if part_on: for the 128 pixels of a block the sum
//   of y as stored and the sum of squared distances from its mean, for the batch normalisation that follows
// Launch:  grid (k / BN, n p q / 128) rounded up, block 128, shared: see `tensor_launch` in src/ops/conv2d.rs.
// Traffic: a block reads its 128 windows and its filters once; windows overlap in the cache. Tensor bound from c = k
//          = 64 on.
// Repeats: bit-identical, independent of n.   Limits:  c % 8 == 0; n p q < 128 * 65536.
KERNEL __launch_bounds__(128) VARIANT(conv2d_fwd_bf16)(
    bf16* __restrict__ y,
    float* __restrict__ part,
    const bf16* __restrict__ x,
    const bf16* __restrict__ wt,
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
    int bias_on,
    int part_on
) {
    DYN_SHARED(bf16, stages);
    SHARED(Pixel, pixels, [128]);
    int t = threadIdx.x, first = blockIdx.y * 128, col0 = blockIdx.x * BN;
    int depth = r * s * c, rows = min(128, n * p * q - first);
    {
        int pixel = first + t;
        int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
        int top = pi * stride - pad, left = qi * stride - pad;
        pixels[t] = t < rows ? Pixel{((ni * h + top) * w + left) * c, top, left, pixel * k}
                             : Pixel{0, -(1 << 29), 0, -1};  // far outside: reads zeros
    }
    __syncthreads();
    Pixel own[8];
#pragma unroll
    for (int i = 0; i < 8; i++) own[i] = pixels[t / 8 + 16 * i];
    int ci = t % 8 * 8, ri = 0, si = 0, d = ci;  // the place of this thread's piece in the window
    auto carry = [&]() {
        while (ci >= c) {
            ci -= c;
            if (++si == s) si = 0, ri++;
        }
    };
    carry();
    Tile<128, BN> tile;
    tile.product<false, false>(stages, depth, [&](bf16* a, bf16* b) {
        int at = (ri * w + si) * c + ci;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            bool in = d < depth && (unsigned)(own[i].top + ri) < (unsigned)h && (unsigned)(own[i].left + si) < (unsigned)w;
            cp_async16(a + place<8>(t / 8 + 16 * i, t % 8), x + (in ? own[i].from + at : 0), in);
        }
#pragma unroll
        for (int i = 0; i < BN / 16; i++) {
            int row = t / 8 + 16 * i;
            bool in = d < depth && col0 + row < k;
            cp_async16(b + place<8>(row, t % 8), wt + (in ? (col0 + row) * depth + d : 0), in);
        }
        ci += BK;
        d += BK;
        carry();
    });

    float* sums = reinterpret_cast<float*>(stages + 128 * BN);  // [rows of warps][2][BN]
    tile.each_pair([&](int row, int col, int i, int j, int v) {
        float* z = &tile.sum[i][j][v];
        if (bias_on) {
            z[0] += col0 + col < k ? bias[col0 + col] : 0.0f;
            z[1] += col0 + col + 1 < k ? bias[col0 + col + 1] : 0.0f;
        }
        uint32_t pair = pack_bf16(z[0], z[1]);
        z[0] = low_bf16(pair);
        z[1] = high_bf16(pair);
        *reinterpret_cast<uint32_t*>(stages + place<BN / 8>(row, col / 8) + col % 8) = pair;
    });
    if (part_on) {
        // Rows beyond the last pixel are zeros and add nothing.
        int lane = t % 32, warp_row = tile.row0 / Tile<128, BN>::WM;
#pragma unroll
        for (int j = 0; j < Tile<128, BN>::TN; j++) {
#pragma unroll
            for (int v = 0; v < 2; v++) {
                float a = 0.0f, b = 0.0f;
#pragma unroll
                for (int i = 0; i < Tile<128, BN>::TM; i++) {
                    float lo = tile.sum[i][j][v], hi = tile.sum[i][j][v + 2];
                    a += lo + hi;
                    b = fmaf(lo, lo, fmaf(hi, hi, b));
                }
#pragma unroll
                for (int o = 4; o < 32; o *= 2) {
                    a += __shfl_xor_sync(FULL_WARP, a, o);
                    b += __shfl_xor_sync(FULL_WARP, b, o);
                }
                int col = tile.col0 + j * 8 + lane % 4 * 2 + v;
                if (lane < 4) {
                    sums[warp_row * 2 * BN + col] = a;
                    sums[warp_row * 2 * BN + BN + col] = b;
                }
            }
        }
    }
    __syncthreads();
    write_rows<BN>(y, stages, pixels, col0, k);
    if (part_on && t < BN && col0 + t < k) {
        float a = 0.0f, b = 0.0f;
#pragma unroll
        for (int i = 0; i < 4 / Tile<128, BN>::ACROSS; i++) {
            a += sums[i * 2 * BN + t];
            b += sums[i * 2 * BN + BN + t];
        }
        float* to = part + (size_t)blockIdx.y * 2 * k + col0 + t;
        to[0] = a;
        to[k] = max(b - a * a / rows, 0.0f);
    }
}

// dx from dy. Rows are input pixels of one class (row mod stride, column mod stride), columns input channels, depth
// (taps of the class, k): a tap r reaches an input row i only if (i + pad - r) % stride == 0, so no product is wasted
// on zeros.
//   dx (n, h, w, c)   dy (n, p, q, kd)   wt (k, r, s, cw)   kd >= k, cw >= c: the rest are zeros
// Launch:  grid (c / BN, n ceil(h / stride) ceil(w / stride) / 128, stride^2), rounded up, block 128.
// Traffic, repeats: as the forward pass.   Limits:  kd % 8 == 0, cw % 8 == 0.
KERNEL __launch_bounds__(128) VARIANT(conv2d_dgrad_bf16)(
    bf16* __restrict__ dx,
    const bf16* __restrict__ dy,
    const bf16* __restrict__ wt,
    int n,
    int h,
    int w,
    int c,
    int cw,
    int k,
    int kd,
    int r,
    int s,
    int p,
    int q,
    int stride,
    int pad
) {
    DYN_SHARED(bf16, stages);
    SHARED(Pixel, pixels, [128]);
    int t = threadIdx.x, first = blockIdx.y * 128, col0 = blockIdx.x * BN;
    int below = blockIdx.z / stride, right = blockIdx.z % stride;  // the class
    int hs = (h - below + stride - 1) / stride, ws = (w - right + stride - 1) / stride;
    int r0 = (below + pad) % stride, s0 = (right + pad) % stride;  // the first taps that reach it
    int rs = r0 < r ? (r - r0 + stride - 1) / stride : 0, ss = s0 < s ? (s - s0 + stride - 1) / stride : 0;
    int depth = rs * ss * kd;
    if (first >= n * hs * ws) return;  // the whole block: classes differ in size
    {
        int pixel = first + t;
        int wi = pixel % ws * stride + right, hi = pixel / ws % hs * stride + below, ni = pixel / ws / hs;
        int up = (hi + pad - r0) / stride, back = (wi + pad - s0) / stride;
        pixels[t] = pixel < n * hs * ws ? Pixel{((ni * p + up) * q + back) * kd, up, back, ((ni * h + hi) * w + wi) * c}
                                        : Pixel{0, -(1 << 29), 0, -1};
    }
    __syncthreads();
    Pixel own[8];
#pragma unroll
    for (int i = 0; i < 8; i++) own[i] = pixels[t / 8 + 16 * i];
    int ki = t % 8 * 8, ri = 0, si = 0, d = ki;  // the piece of dy: channel, taps from the first, depth
    constexpr int PIECES = BN / 8;
    int kb = t / PIECES, rb = 0, sb = 0, db = kb;  // the row of filters
    auto carry = [&](int& kc, int& rc, int& sc) {
        while (kc >= kd && rc < rs) {
            kc -= kd;
            if (++sc == ss) sc = 0, rc++;
        }
    };
    carry(ki, ri, si);
    carry(kb, rb, sb);
    Tile<128, BN> tile;
    tile.product<false, true>(stages, depth, [&](bf16* a, bf16* b) {
        int at = ki - (ri * q + si) * kd;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            bool in = d < depth && (unsigned)(own[i].top - ri) < (unsigned)p && (unsigned)(own[i].left - si) < (unsigned)q;
            cp_async16(a + place<8>(t / 8 + 16 * i, t % 8), dy + (in ? own[i].from + at : 0), in);
        }
        int col = col0 + t % PIECES * 8;
#pragma unroll
        for (int i = 0; i < BN / 16; i++) {
            bool in = db < depth && kb < k && col < cw;
            int from = ((kb * r + r0 + rb * stride) * s + s0 + sb * stride) * cw + col;
            cp_async16(b + place<PIECES>(t / PIECES + THREADS / PIECES * i, t % PIECES), wt + (in ? from : 0), in);
            kb += THREADS / PIECES;
            db += THREADS / PIECES;
            carry(kb, rb, sb);
        }
        ki += BK;
        d += BK;
        carry(ki, ri, si);
    });
    tile.each_pair([&](int row, int col, int i, int j, int v) {
        uint32_t pair = pack_bf16(tile.sum[i][j][v], tile.sum[i][j][v + 1]);
        *reinterpret_cast<uint32_t*>(stages + place<BN / 8>(row, col / 8) + col % 8) = pair;
    });
    __syncthreads();
    write_rows<BN>(dx, stages, pixels, col0, c);
}

// Weight gradients of a chunk of output pixels. Rows are window places (r, s, c), columns output channels, depth the
// pixels of the chunk.
//   part (chunks, k, r s c)   x (n, h, w, c)   dy (n, p, q, kd), kd >= k
// Launch:  grid (r s c / BM, k / BN, chunks), rounded up, BM = 64 for BN < 64, else 128; block 128.
// Traffic: a block reads the windows of its places and its channels of dy once.
// Repeats: bit-identical: conv2d_wgrad_sum adds the chunks in a fixed order.   Limits:  c % 8 == 0, kd % 8 == 0.
KERNEL __launch_bounds__(128) VARIANT(conv2d_wgrad_bf16)(
    float* __restrict__ part,
    const bf16* __restrict__ x,
    const bf16* __restrict__ dy,
    int n,
    int h,
    int w,
    int c,
    int k,
    int kd,
    int r,
    int s,
    int p,
    int q,
    int stride,
    int pad,
    int chunk
) {
    constexpr int BM = BN < 64 ? 64 : 128;
    DYN_SHARED(bf16, stages);
    int t = threadIdx.x, row0 = blockIdx.x * BM, col0 = blockIdx.y * BN;
    int places = r * s * c, first = blockIdx.z * chunk, depth = min(chunk, n * p * q - first);
    constexpr int APIECES = BM / 8, AROWS = THREADS / APIECES, BPIECES = BN / 8, BROWS = THREADS / BPIECES;
    // This thread's piece of the window, and the pixel it copies it for, which moves on by AROWS.
    int there = row0 + t % APIECES * 8;
    int ci = there % c, si = there / c % s, ri = there / c / s;
    int pixel = first + t / APIECES, left_over = there < places ? depth - t / APIECES : 0;
    int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
    int hi = pi * stride - pad + ri, wi = qi * stride - pad + si;
    int from = ((ni * h + hi) * w + wi) * c + ci;
    int next_row = (stride * w - stride * q) * c, next_image = (h - stride * p) * w * c;
    int col = col0 + t % BPIECES * 8, db = t / BPIECES;
    Tile<BM, BN> tile;
    tile.template product<true, true>(stages, depth, [&](bf16* a, bf16* b) {
#pragma unroll
        for (int i = 0; i < BM / 16; i++) {
            bool in = left_over > 0 && (unsigned)hi < (unsigned)h && (unsigned)wi < (unsigned)w;
            cp_async16(a + place<APIECES>(t / APIECES + AROWS * i, t % APIECES), x + (in ? from : 0), in);
            left_over -= AROWS;
            qi += AROWS;
            wi += AROWS * stride;
            from += AROWS * stride * c;
            while (qi >= q) {
                qi -= q;
                wi -= q * stride;
                hi += stride;
                from += next_row;
                if (++pi == p) {
                    pi = 0;
                    hi -= p * stride;
                    from += next_image;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < BN / 16; i++) {
            bool in = db < depth && col < kd;
            cp_async16(b + place<BPIECES>(t / BPIECES + BROWS * i, t % BPIECES), dy + (in ? (first + db) * kd + col : 0), in);
            db += BROWS;
        }
    });
    float* to = part + (size_t)blockIdx.z * k * places;
    tile.each_pair([&](int row, int col, int i, int j, int v) {
        row += row0;
        col += col0;
        if (row >= places) return;
        if (col < k) to[(size_t)col * places + row] = tile.sum[i][j][v];
        if (col + 1 < k) to[(size_t)(col + 1) * places + row] = tile.sum[i][j][v + 1];
    });
}
#endif
