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

// Where a tile of rows of PIECES times 16 bytes keeps piece `piece` of row `row`, in bytes. The exclusive or moves the
// pieces of a column over all banks: neither eight rows of one piece nor a row's neighbours ever collide. Rows 128 /
// PIECES apart are 2048 bytes apart, and bits that two pieces differ in, their places differ in too: what a thread needs
// is one place and constants.
template <int PIECES>
DEVICE int place(int row, int piece) {
    constexpr int SHARE = PIECES < 8 ? 8 / PIECES : 1;  // rows that share 128 bytes
    constexpr int MASK = PIECES < 8 ? PIECES - 1 : 7;
    return (row * PIECES + (piece ^ (row / SHARE & MASK))) * 16;
}

// Fragment I (16 rows of A, or 16 columns of B) at depth 16 D of a tile: kept as rows of BK, or if TURN as BK rows.
// `at`: the lane's place in fragment 0 at depth 0.
template <bool TURN, int PIECES, int I, int D>
DEVICE void fragment(uint32_t (&r)[4], SharedAt tile, int at) {
    if (TURN) ldmatrix_x4_trans<D * PIECES * 256>(r, tile + (at ^ I * 32));
    else ldmatrix_x4<I * 2048>(r, tile + (at ^ D * 32));
}

// The shares of four warps in a BM x COLS product.
template <int BM, int COLS>
struct Tile {
    static constexpr int ACROSS = COLS == 128 ? 2 : 1;
    static constexpr int WM = BM / (4 / ACROSS), WN = COLS / ACROSS;
    static constexpr int TM = WM / 16, TN = WN / 8;             // tensor-core tiles of a warp
    static constexpr int A_BYTES = BM * BK * 2, STAGE = (BM + COLS) * BK * 2;
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

    // The whole product. A is kept as [BM][BK], or as [BK][BM] if ATURN; B as [COLS][BK], or as [BK][COLS].
    // `load(a, b)` starts the copies of the next BK of the depth; a barrier lies between any two calls.
    template <bool ATURN, bool BTURN, class Load>
    DEVICE void product(SharedAt stages, int depth, Load load) {
        int lane = threadIdx.x % 32;
        int a_at = ATURN ? place<BM / 8>(lane % 8 + lane / 16 * 8, row0 / 8 + lane / 8 % 2)
                         : place<BK / 8>(row0 + lane % 16, lane / 16);
        int b_at = BTURN ? place<COLS / 8>(lane % 16, col0 / 8 + lane / 16)
                         : place<BK / 8>(col0 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
        keep(a_at);
        keep(b_at);
        int steps = (depth + BK - 1) / BK;
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < steps) load(stages + i * STAGE, stages + i * STAGE + A_BYTES);
            cp_commit();
            __syncthreads();
        }
        int use = 0, fill = (STAGES - 1) * STAGE;
        for (int i = 0; i < steps; i++) {
            cp_wait<STAGES - 2>();
            __syncthreads();  // the stage is there for all, and the one to fill has been used by all
            if (i + STAGES - 1 < steps) load(stages + fill, stages + fill + A_BYTES);
            cp_commit();
            SharedAt a = stages + use, b = a + A_BYTES;
            int left = depth - i * BK;
            each<BK / 16>([&](auto d) {
                constexpr int D = decltype(d)::value;
                if (left <= D * 16) return;
                uint32_t fa[TM][4];
                each<TM>([&](auto k) {
                    constexpr int I = decltype(k)::value;
                    fragment<ATURN, BM / 8, I, D>(fa[I], a, a_at);
                });
                each<TN / 2>([&](auto k) {
                    constexpr int J = decltype(k)::value;
                    uint32_t fb[4];
                    fragment<BTURN, COLS / 8, J, D>(fb, b, b_at);
#pragma unroll
                    for (int i = 0; i < TM; i++) {
                        mma_bf16(sum[i][2 * J], fa[i], {fb[0], fb[1]});
                        mma_bf16(sum[i][2 * J + 1], fa[i], {fb[2], fb[3]});
                    }
                });
            });
            use = use + STAGE == STAGES * STAGE ? 0 : use + STAGE;
            fill = fill + STAGE == STAGES * STAGE ? 0 : fill + STAGE;
        }
        cp_wait<0>();
        __syncthreads();  // shared memory is free again
    }

    // f(i, j, v, row, column): the values sum[i][j][v] and [v + 1] are two neighbours in this row.
    template <class F>
    DEVICE void each_pair(F f) {
        int row = row0 + threadIdx.x % 32 / 4, col = col0 + threadIdx.x % 4 * 2;
        each<TN>([&](auto j) {
            each<TM>([&](auto i) {
                f(i, j, Index<0>{}, row + i.value * 16, col + j.value * 8);
                f(i, j, Index<2>{}, row + i.value * 16 + 8, col + j.value * 8);
            });
        });
    }

    // Rounds the sums to bf16 and stages them as rows of COLS.
    DEVICE void stage(char* to) {
        constexpr int PIECES = COLS / 8;
        int at = place<PIECES>(row0 + threadIdx.x % 32 / 4, col0 / 8) + threadIdx.x % 4 * 4;
        keep(at);
        each<TN>([&](auto j) {
            each<TM>([&](auto i) {
                each<2>([&](auto half) {
                    float* z = &sum[i.value][j.value][half.value * 2];
                    uint32_t pair = pack_bf16(z[0], z[1]);
                    char* row = to + (at ^ j.value * 16) + (i.value * 16 + half.value * 8) * PIECES * 16;
                    *reinterpret_cast<uint32_t*>(row) = pair;
                    z[0] = low_bf16(pair);
                    z[1] = high_bf16(pair);
                });
            });
        });
    }
};

// Which taps of a window lie inside of an image: bits [0, 15) its rows, bits [16, 31) its columns. The bounds are the
// first and the one behind the last that does.
DEVICE uint32_t inside(int top, int bottom, int left, int right) {
    auto bits = [](int from, int to) { return to > from ? (1u << to) - (1u << from) : 0u; };
    return bits(top, bottom) | bits(left, right) << 16;
}
DEVICE uint32_t tap_bits(int r, int s) { return 1u << r | 1u << (16 + s); }
constexpr uint32_t NO_TAP = 1u << 15;  // in no window
DEVICE bool has(uint32_t window, uint32_t taps) { return (window & taps) == taps; }

// Writes a staged tile of bf16, 128 x COLS, to rows that start at `out[row]` (none if negative), 16 bytes at a time
// where rows are aligned.
template <int COLS>
DEVICE void write_rows(bf16* to, const char* staged, const int* out, int col0, int cols) {
    constexpr int PIECES = COLS / 8;
    if (cols % 8 != 0) {
        int width = min(COLS, cols - col0);
        for (int e = threadIdx.x; e < 128 * width; e += THREADS) {
            int row = e / width, col = e % width;
            const bf16* from = reinterpret_cast<const bf16*>(staged + place<PIECES>(row, col / 8)) + col % 8;
            if (out[row] >= 0) to[out[row] + col0 + col] = *from;
        }
        return;
    }
    int piece = threadIdx.x % PIECES, col = col0 + piece * 8;
    if (col >= cols) return;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int row = threadIdx.x / PIECES + THREADS / PIECES * i;
        if (out[row] >= 0) store16(to + out[row] + col, load16(staged + place<PIECES>(row, piece)));
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
// Launch:  grid (k / BN, n p q / 128) rounded up, block 128, shared: see `tensor::shared` in src/ops/conv2d.rs.
// Traffic: a block reads its 128 windows and its filters once; windows overlap in the cache. Tensor bound from c = k
//          = 64 on.
// Repeats: bit-identical, independent of n.   Limits:  c % 8 == 0; r, s <= 15; n p q < 128 * 65536.
KERNEL __launch_bounds__(128, 2) VARIANT(conv2d_fwd_bf16)(
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
    DYN_SHARED(char, stages);
    SHARED(int, from, [128]);
    SHARED(uint32_t, window, [128]);
    SHARED(int, out, [128]);
    int t = threadIdx.x, first = blockIdx.y * 128, col0 = blockIdx.x * BN;
    int depth = r * s * c, rows = min(128, n * p * q - first);
    {
        int pixel = first + t;
        int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
        int top = pi * stride - pad, left = qi * stride - pad;
        bool in = t < rows;
        from[t] = in ? ((ni * h + top) * w + left) * c : 0;
        window[t] = in ? inside(max(0, -top), min(r, h - top), max(0, -left), min(s, w - left)) : 0;
        out[t] = in ? pixel * k : -1;
    }
    __syncthreads();
    const char* own[8];
    uint32_t taps[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        own[i] = reinterpret_cast<const char*>(x + from[t / 8 + 16 * i]);
        keep(own[i]);
        taps[i] = window[t / 8 + 16 * i];
    }
    int ci = t % 8 * 8, ri = 0, si = 0, d = ci;  // the place of this thread's piece in the window
    auto carry = [&]() {
        while (ci >= c) {
            ci -= c;
            if (++si == s) si = 0, ri++;
        }
    };
    carry();
    int to = place<8>(t / 8, t % 8);
    // Filters beyond the last are the first again: what they give is not written.
    const bf16* filter[BN / 16];
#pragma unroll
    for (int i = 0; i < BN / 16; i++) {
        int row = col0 + t / 8 + 16 * i;
        filter[i] = wt + (row < k ? (size_t)row * depth : 0) + d;
    }
    Tile<128, BN> tile;
    tile.template product<false, false>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
        ptrdiff_t at = ((ri * w + si) * c + ci) * 2;  // bytes, of one image
        bool live = d < depth;
        uint32_t tap = live ? tap_bits(ri, si) : NO_TAP;
        each<8>([&](auto i) { cp_async16_cached<i.value * 2048>(a + to, own[i.value] + at, has(taps[i.value], tap)); });
        each<BN / 16>([&](auto i) {
            cp_async16<i.value * 2048>(b + to, filter[i.value], live);
            filter[i.value] += BK;
        });
        ci += BK;
        d += BK;
        carry();
    });

    if (bias_on) {
        tile.each_pair([&](auto i, auto j, auto v, int, int col) {
            float* z = &tile.sum[i.value][j.value][v.value];
            z[0] += col0 + col < k ? bias[col0 + col] : 0.0f;
            z[1] += col0 + col + 1 < k ? bias[col0 + col + 1] : 0.0f;
        });
    }
    tile.stage(stages);
    __syncthreads();
    write_rows<BN>(y, stages, out, col0, k);
    if (!part_on) return;
    // Sums of the columns are a product with ones, sums of their squares the diagonal of Yt Y; 16 columns a warp. Rows
    // beyond the last pixel are zeros and add nothing.
    int lane = t % 32;
    for (int g = t / 32; g < BN / 16; g += 4) {
        int at_a = place<BN / 8>(lane % 8 + lane / 16 * 8, 2 * g + lane / 8 % 2);
        int at_b = place<BN / 8>(lane % 16, 2 * g + lane / 16);
        float total[2][4] = {}, square[2][4] = {};
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        each<8>([&](auto d) {
            uint32_t fa[4], fb[4];
            fragment<true, BN / 8, 0, decltype(d)::value>(fa, shared_at(stages), at_a);
            fragment<true, BN / 8, 0, decltype(d)::value>(fb, shared_at(stages), at_b);
            mma_bf16(total[0], ones, {fb[0], fb[1]});
            mma_bf16(total[1], ones, {fb[2], fb[3]});
            mma_bf16(square[0], fa, {fb[0], fb[1]});
            mma_bf16(square[1], fa, {fb[2], fb[3]});
        });
        // Row and column `own` of the left product, and eight further of the right one, are with one lane in four.
        int own = lane / 4;
        if (lane % 4 != own / 2) continue;
        each<2>([&](auto half) {
            constexpr int H = decltype(half)::value;
            int col = col0 + g * 16 + H * 8 + own;
            float a = own % 2 ? total[H][1] : total[H][0];
            float b = own % 2 ? square[H][2 * H + 1] : square[H][2 * H];
            if (col >= k) return;
            float* to = part + (size_t)blockIdx.y * 2 * k + col;
            to[0] = a;
            to[k] = max(b - a * a / rows, 0.0f);
        });
    }
}

// dx from dy. Rows are input pixels of one class (row mod stride, column mod stride), columns input channels, depth
// (taps of the class, k): a tap r reaches an input row i only if (i + pad - r) % stride == 0, so no product is wasted
// on zeros.
//   dx (n, h, w, c)   dy (n, p, q, kd)   wt (k, r, s, cw)   kd >= k, cw >= c: the rest are zeros
// Launch:  grid (c / BN, n ceil(h / stride) ceil(w / stride) / 128, stride^2), rounded up, block 128.
// Traffic, repeats: as the forward pass.   Limits:  kd % 8 == 0, cw % 8 == 0; r, s <= 15.
KERNEL __launch_bounds__(128, 2) VARIANT(conv2d_dgrad_bf16)(
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
    DYN_SHARED(char, stages);
    SHARED(int, from, [128]);
    SHARED(uint32_t, window, [128]);
    SHARED(int, out, [128]);
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
        int up = (hi + pad - r0) / stride, back = (wi + pad - s0) / stride;  // the output of the first tap
        bool in = pixel < n * hs * ws;
        from[t] = in ? ((ni * p + up) * q + back) * kd : 0;
        window[t] = in ? inside(max(0, up - p + 1), min(rs, up + 1), max(0, back - q + 1), min(ss, back + 1)) : 0;
        out[t] = in ? ((ni * h + hi) * w + wi) * c : -1;
    }
    __syncthreads();
    const char* own[8];
    uint32_t taps[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        own[i] = reinterpret_cast<const char*>(dy + from[t / 8 + 16 * i]);
        keep(own[i]);
        taps[i] = window[t / 8 + 16 * i];
    }
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
    int to = place<8>(t / 8, t % 8), to_b = place<PIECES>(t / PIECES, t % PIECES);
    // Channels beyond the last are the first again: what they give is not written.
    const bf16* filters = wt + (col0 + t % PIECES * 8 < cw ? col0 + t % PIECES * 8 : 0);
    int filter = r * s * cw;
    bool whole = kd % BK == 0 && k == kd;  // a step is inside of one tap
    Tile<128, BN> tile;
    tile.template product<false, true>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
        ptrdiff_t at = (ki - (ri * q + si) * kd) * 2;  // bytes, of one image
        uint32_t tap = d < depth ? tap_bits(ri, si) : NO_TAP;
        each<8>([&](auto i) { cp_async16_cached<i.value * 2048>(a + to, own[i.value] + at, has(taps[i.value], tap)); });
        auto row = [&]() {
            return filters + (ptrdiff_t)kb * filter + ((r0 + rb * stride) * s + s0 + sb * stride) * cw;
        };
        if (whole) {
            const char* next = reinterpret_cast<const char*>(row());
            ptrdiff_t step = (ptrdiff_t)(THREADS / PIECES) * filter * 2;
            each<BN / 16>([&](auto i) {
                cp_async16<i.value * 2048>(b + to_b, next, true);
                next += step;
            });
            kb += BK;
            carry(kb, rb, sb);
        } else {
            each<BN / 16>([&](auto i) {
                cp_async16<i.value * 2048>(b + to_b, row(), db < depth && kb < k);
                kb += THREADS / PIECES;
                db += THREADS / PIECES;
                carry(kb, rb, sb);
            });
        }
        ki += BK;
        d += BK;
        carry(ki, ri, si);
    });
    tile.stage(stages);
    __syncthreads();
    write_rows<BN>(dx, stages, out, col0, c);
}

// Weight gradients of a chunk of output pixels. Rows are window places (r, s, c), columns output channels, depth the
// pixels of the chunk.
//   part (chunks, k, r s c)   x (n, h, w, c)   dy (n, p, q, kd), kd >= k
// Launch:  grid (r s c / BM, k / BN, chunks), rounded up, BM = 64 for BN < 64, else 128; block 128.
// Traffic: a block reads the windows of its places and its channels of dy once.
// Repeats: bit-identical: sum_chunks_f32 adds the chunks in a fixed order.
// Limits:  c % 8 == 0, kd % 8 == 0; r, s <= 15.
KERNEL __launch_bounds__(128, 2) VARIANT(conv2d_wgrad_bf16)(
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
    DYN_SHARED(char, stages);
    SHARED(int, from, [2 * BK]);
    SHARED(uint32_t, window, [2 * BK]);
    int t = threadIdx.x, row0 = blockIdx.x * BM, col0 = blockIdx.y * BN;
    int places = r * s * c, first = blockIdx.z * chunk, depth = min(chunk, n * p * q - first);
    constexpr int APIECES = BM / 8, AROWS = THREADS / APIECES, BPIECES = BN / 8, BROWS = THREADS / BPIECES;

    // The pixels of a step, by one thread each, a step ahead of the copies.
    int pixel = first + t % BK, turn = 0;
    auto prepare = [&]() {
        if (t < BK) {
            int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
            int top = pi * stride - pad, left = qi * stride - pad;
            from[turn * BK + t] = ((ni * h + top) * w + left) * c;
            bool in = pixel < first + depth;
            window[turn * BK + t] = in ? inside(max(0, -top), min(r, h - top), max(0, -left), min(s, w - left)) : 0;
            pixel += BK;
        }
        turn ^= 1;
    };
    prepare();
    __syncthreads();

    int there = row0 + t % APIECES * 8;  // the place in the window of this thread's piece
    int ci = there % c, si = there / c % s, ri = there / c / s;
    uint32_t tap = there < places ? tap_bits(ri, si) : NO_TAP;
    const char* own = reinterpret_cast<const char*>(x + ((ri * w + si) * c + ci));
    keep(own);
    int to = place<APIECES>(t / APIECES, t % APIECES), to_b = place<BPIECES>(t / BPIECES, t % BPIECES);
    // Channels beyond the last are the first again: what they give is not written.
    int col = col0 + t % BPIECES * 8, db = t / BPIECES;
    const char* next = reinterpret_cast<const char*>(dy + (size_t)(first + db) * kd + (col < kd ? col : 0));
    ptrdiff_t step = (ptrdiff_t)BROWS * kd * 2;
    keep(next);
    Tile<BM, BN> tile;
    tile.template product<true, true>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
        int row = (turn ^ 1) * BK + t / APIECES;
        keep(row);
        each<BM / 16>([&](auto i) {
            constexpr int AT = i.value * AROWS;
            cp_async16_cached<i.value * 2048>(a + to, own + (ptrdiff_t)from[row + AT] * 2, has(window[row + AT], tap));
        });
        each<BN / 16>([&](auto i) {
            cp_async16<i.value * 2048>(b + to_b, next, db + BROWS * i.value < depth);
            next += step;
        });
        db += BK;
        prepare();
    });
    float* to_part = part + (size_t)blockIdx.z * k * places;
    tile.each_pair([&](auto i, auto j, auto v, int row, int col) {
        row += row0;
        col += col0;
        const float* z = &tile.sum[i.value][j.value][v.value];
        if (row >= places) return;
        if (col < k) to_part[(size_t)col * places + row] = z[0];
        if (col + 1 < k) to_part[(size_t)(col + 1) * places + row] = z[1];
    });
}
#endif
