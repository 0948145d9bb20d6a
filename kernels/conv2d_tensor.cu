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

// Where a lane finds its part of N fragments (16 rows of A, or 16 columns of B) in a stage: kept as rows of BK, or if
// TURN as BK rows. Only stages differ in what is added, so a fragment is one instruction.
template <bool TURN, int PIECES, int N>
struct Fragments {
    static constexpr int PLACES = TURN ? N : BK / 16;
    SharedAt at[PLACES];

    // The lane's row and piece in fragment 0 at depth 0; the next is two pieces further.
    DEVICE Fragments(SharedAt tile, int row, int piece) {
#pragma unroll
        for (int i = 0; i < PLACES; i++) at[i] = tile + place<PIECES>(row, piece + 2 * i);
    }
    DEVICE void move(int bytes) {
#pragma unroll
        for (int i = 0; i < PLACES; i++) {
            at[i] += bytes;
            keep(at[i]);
        }
    }
    // Fragment I at depth 16 D.
    template <int I, int D>
    DEVICE void get(uint32_t (&r)[4]) const {
        if (TURN) ldmatrix_x4_trans<D * PIECES * 256>(r, at[TURN ? I : 0]);
        else ldmatrix_x4<I * 2048>(r, at[TURN ? 0 : D]);
    }
};

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
        unsigned lane = threadIdx.x % 32;
        int over = lane % 8 + lane / 16 * 8, next = lane / 8 % 2;
        Fragments<ATURN, ATURN ? BM / 8 : BK / 8, TM> fa(stages, ATURN ? over : row0 + lane % 16,
                                                         ATURN ? row0 / 8 + next : lane / 16);
        Fragments<BTURN, BTURN ? COLS / 8 : BK / 8, TN / 2> fb(stages + A_BYTES, BTURN ? lane % 16 : col0 + over,
                                                               BTURN ? col0 / 8 + lane / 16 : next);
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i * BK < depth) load(stages + i * STAGE, stages + i * STAGE + A_BYTES);
            cp_commit();
            __syncthreads();
        }
        int use = 0, fill = (STAGES - 1) * STAGE;
        for (int left = depth; left > 0; left -= BK) {
            cp_wait<STAGES - 2>();
            __syncthreads();  // the stage is there for all, and the one to fill has been used by all
            if (left > (STAGES - 1) * BK) load(stages + fill, stages + fill + A_BYTES);
            cp_commit();
            each<BK / 16>([&](auto d) {
                constexpr int D = decltype(d)::value;
                if (D > 0 && left <= D * 16) return;
                uint32_t a[TM][4];
                each<TM>([&](auto i) { fa.template get<decltype(i)::value, D>(a[i.value]); });
                each<TN / 2>([&](auto j) {
                    constexpr int J = decltype(j)::value;
                    uint32_t b[4];
                    fb.template get<J, D>(b);
#pragma unroll
                    for (int i = 0; i < TM; i++) {
                        mma_bf16(sum[i][2 * J], a[i], {b[0], b[1]});
                        mma_bf16(sum[i][2 * J + 1], a[i], {b[2], b[3]});
                    }
                });
            });
            int on = use == (STAGES - 1) * STAGE ? -use : STAGE;
            fill = use;  // it has been used
            use += on;
            fa.move(on);
            fb.move(on);
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

// Which taps of a window lie outside of an image: bits [0, 16) its rows, bits [16, 32) its columns. The bounds are the
// first inside and the one behind the last, if there are any; fifteen taps are the most, so the last bit of both is set.
DEVICE uint32_t outside(int top, int bottom, int left, int right) {
    auto bits = [](int from, int to) { return (1u << min(from, 15)) - 1 | ~0u << max(to, 0); };
    return bits(top, bottom) & 0xffff | bits(left, right) << 16;
}
constexpr uint32_t ALL = ~0u;  // the taps of a row that is beyond the last
constexpr int FIRST_COLUMN = 16;

// How far to go, on top of the channels of a tap, to the next tap and on top of that to the next row of taps.
struct Jumps {
    ptrdiff_t tap, row;
};

// A place in the windows: it goes through the channels of a tap, then to the next tap of its row, then to the next row.
// Two addresses go with it, in bytes. Behind the last tap it stays in a row that is outside of every window.
struct Walk {
    const char* at;
    ptrdiff_t along = 0;
    int channel, channels;
    uint32_t row = 1, column = 1 << FIRST_COLUMN, rows, columns;  // bits of a tap, and of the ones behind the last
    Jumps at_jumps, along_jumps;

    DEVICE Walk(const void* at, int channel, int channels, int r, int s, Jumps at_jumps, Jumps along_jumps)
        : at(static_cast<const char*>(at)), channel(channel), channels(channels), rows(1u << r),
          columns(1u << (FIRST_COLUMN + s)), at_jumps(at_jumps), along_jumps(along_jumps) {
        keep(rows);
        keep(columns);
        carry();
    }
    DEVICE void carry() {
        while (channel >= channels && row != rows) {
            channel -= channels;
            at += at_jumps.tap;
            along += along_jumps.tap;
            column *= 2;
            if (column == columns) {
                column = 1 << FIRST_COLUMN;
                row *= 2;
                at += at_jumps.row;
                along += along_jumps.row;
            }
        }
    }
    DEVICE void go(int by, ptrdiff_t at_bytes, ptrdiff_t along_bytes) {
        channel += by;
        at += at_bytes;
        along += along_bytes;
        carry();
    }
    DEVICE bool ended() const { return row == rows; }
};

// The windows of 128 pixels as rows of A. A thread copies one piece of eight of them.
struct Windows {
    int own[8];  // where they begin, in pieces of 16 bytes
    uint32_t skip[8];

    DEVICE Windows(const int* from, const uint32_t* window) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            own[i] = from[threadIdx.x / 8 + 16 * i];
            skip[i] = window[threadIdx.x / 8 + 16 * i];
        }
    }
    DEVICE void load(SharedAt to, const Walk& walk) const {
        uint32_t tap = walk.row | walk.column;
        each<8>([&](auto i) {
            cp_async16_cached<i.value * 2048>(to, walk.at + (ptrdiff_t)own[i.value] * 16, skip[i.value] & tap);
        });
    }
};

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
    int first = threadIdx.x / PIECES, piece = threadIdx.x % PIECES, col = col0 + piece * 8;
    if (col >= cols) return;
    const char* from = staged + place<PIECES>(first, piece);
    to += col;
    keep(to);
    each<PIECES>([&](auto i) {
        constexpr int ROW = THREADS / PIECES * decltype(i)::value;
        int start = out[first + ROW];
        if (start >= 0) store16(to + start, load16(from + ROW * PIECES * 16));
    });
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
    unsigned t = threadIdx.x;
    int first = blockIdx.y * 128, col0 = blockIdx.x * BN;
    int depth = r * s * c, rows = min(128, n * p * q - first);
    {
        int pixel = first + t;
        int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
        int top = pi * stride - pad, left = qi * stride - pad;
        bool in = t < rows;
        from[t] = in ? ((ni * h + top) * w + left) * (c / 8) : 0;
        window[t] = in ? outside(max(0, -top), min(r, h - top), max(0, -left), min(s, w - left)) : ALL;
        out[t] = in ? pixel * k : -1;
    }
    __syncthreads();
    Windows windows(from, window);
    Walk walk(x + t % 8 * 8, t % 8 * 8, c, r, s, {0, (ptrdiff_t)(w - s) * c * 2}, {0, 0});
    int to = place<8>(t / 8, t % 8);
    keep(to);
    // Filters beyond the last are the first again: what they give is not written.
    const char* filter[BN / 16];
#pragma unroll
    for (int i = 0; i < BN / 16; i++) {
        int row = col0 + t / 8 + 16 * i;
        filter[i] = reinterpret_cast<const char*>(wt + (row < k ? (size_t)row * depth : 0) + t % 8 * 8);
        keep(filter[i]);
    }
    Tile<128, BN> tile;
    tile.template product<false, false>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
        windows.load(a + to, walk);
        each<BN / 16>([&](auto i) { cp_async16<i.value * 2048>(b + to, filter[i.value] + walk.along, !walk.ended()); });
        walk.go(BK, BK * 2, BK * 2);
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
    unsigned lane = t % 32;
    for (int g = t / 32; g < BN / 16; g += 4) {
        Fragments<true, BN / 8, 1> fa(shared_at(stages), lane % 8 + lane / 16 * 8, 2 * g + lane / 8 % 2);
        Fragments<true, BN / 8, 1> fb(shared_at(stages), lane % 16, 2 * g + lane / 16);
        float total[2][4] = {}, square[2][4] = {};
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        each<8>([&](auto d) {
            uint32_t a[4], b[4];
            fa.template get<0, decltype(d)::value>(a);
            fb.template get<0, decltype(d)::value>(b);
            mma_bf16(total[0], ones, {b[0], b[1]});
            mma_bf16(total[1], ones, {b[2], b[3]});
            mma_bf16(square[0], a, {b[0], b[1]});
            mma_bf16(square[1], a, {b[2], b[3]});
        });
        // Row and column `own` of the left product, and eight further of the right one, are with one lane in four.
        unsigned own = lane / 4;
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
    unsigned t = threadIdx.x;
    int first = blockIdx.y * 128, col0 = blockIdx.x * BN;
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
        from[t] = in ? ((ni * p + up) * q + back) * (kd / 8) : 0;
        window[t] = in ? outside(max(0, up - p + 1), min(rs, up + 1), max(0, back - q + 1), min(ss, back + 1)) : ALL;
        out[t] = in ? ((ni * h + hi) * w + wi) * c : -1;
    }
    __syncthreads();
    Windows windows(from, window);
    constexpr int PIECES = BN / 8, ROWS = THREADS / PIECES;
    // Channels beyond the last are the first again: what they give is not written.
    const bf16* filters = wt + (r0 * s + s0) * cw + (col0 + t % PIECES * 8 < cw ? col0 + t % PIECES * 8 : 0);
    ptrdiff_t filter = (ptrdiff_t)r * s * cw, step = ROWS * filter * 2;
    Jumps jumps{(stride * cw - kd * filter) * 2, (ptrdiff_t)(s - ss) * stride * cw * 2};
    // The next tap of dy is the pixel before.
    Walk walk(dy + t % 8 * 8, t % 8 * 8, kd, rs, ss, {-4 * kd, (ptrdiff_t)(ss - q) * kd * 2}, jumps);
    const char* row = reinterpret_cast<const char*>(filters + t / PIECES * filter);
    int to = place<8>(t / 8, t % 8), to_b = place<PIECES>(t / PIECES, t % PIECES);
    keep(row);
    keep(step);
    keep(to);
    keep(to_b);
    Tile<128, BN> tile;
    if (kd % BK == 0 && k == kd) {  // a step is inside of one tap
        tile.template product<false, true>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
            windows.load(a + to, walk);
            const char* next = row + walk.along;
            each<BN / 16>([&](auto i) {
                cp_async16<i.value * 2048>(b + to_b, next, true);
                next += step;
            });
            walk.go(BK, BK * 2, BK * filter * 2);
        });
    } else {
        Walk rows(row, t / PIECES, kd, rs, ss, jumps, {0, 0});
        tile.template product<false, true>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
            windows.load(a + to, walk);
            walk.go(BK, BK * 2, 0);
            each<BN / 16>([&](auto i) {
                cp_async16<i.value * 2048>(b + to_b, rows.at, !rows.ended() && rows.channel < k);
                rows.go(ROWS, step, 0);
            });
        });
    }
    tile.stage(stages);
    __syncthreads();
    write_rows<BN>(dx, stages, out, col0, c);
}

// Weight gradients of a chunk of output pixels. Rows are window places (r, s, c), columns output channels, depth the
// pixels of the chunk.
//   part (chunks, k, r s c)   x (n, h, w, c)   dy (n, p, q, kd), kd >= k
// Launch:  grid (r s c / BM, k / BN, chunks), rounded up, BM as below; block 128.
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
    constexpr int BM = BN < 64 ? 64 : BN == 64 ? 192 : 128;  // 192: nine taps of 64 channels are three times as many
    DYN_SHARED(char, stages);
    SHARED(int, from, [2 * BK]);  // the pixels of two steps, as in the forward pass
    SHARED(uint32_t, skip, [2 * BK]);
    unsigned t = threadIdx.x;
    int row0 = blockIdx.x * BM, col0 = blockIdx.y * BN;
    int places = r * s * c, first = blockIdx.z * chunk, depth = min(chunk, n * p * q - first);
    constexpr int APIECES = BM / 8, BPIECES = BN / 8, BROWS = THREADS / BPIECES;

    // The pixels of a step, by one thread each, a step ahead of the copies.
    int pixel = first + t % BK, turn = 0;
    int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
    int right = BK % q, down = BK / q % p, on = BK / q / p;  // from a step to the next
    keep(right);
    keep(down);
    keep(on);
    auto prepare = [&]() {
        if (t < BK) {
            int top = pi * stride - pad, left = qi * stride - pad;
            bool in = pixel < first + depth;
            from[turn + t] = ((ni * h + top) * w + left) * (c / 8);
            skip[turn + t] = in ? outside(max(0, -top), min(r, h - top), max(0, -left), min(s, w - left)) : ALL;
            pixel += BK;
            qi += right;
            pi += down;
            ni += on;
            if (qi >= q) qi -= q, pi++;
            if (pi >= p) pi -= p, ni++;
        }
        turn ^= BK;
    };
    prepare();
    __syncthreads();

    // This thread's pieces of A: one in 64 places of the window, in four rows.
    const char* own[BM / 64];
    uint32_t tap[BM / 64];
#pragma unroll
    for (int j = 0; j < BM / 64; j++) {
        int there = row0 + j * 64 + t % 8 * 8;
        int ci = there % c, si = there / c % s, ri = there / c / s;
        tap[j] = there < places ? 1u << ri | 1u << (FIRST_COLUMN + si) : ALL;
        own[j] = reinterpret_cast<const char*>(x + ((ri * w + si) * c + ci));
        keep(own[j]);
    }
    int to = place<APIECES>(t / 8, t % 8), to_b = place<BPIECES>(t / BPIECES, t % BPIECES);
    // Channels beyond the last are the first again: what they give is not written.
    int col = col0 + t % BPIECES * 8, b_row = t / BPIECES, left = depth;
    const char* next = reinterpret_cast<const char*>(dy + (size_t)(first + b_row) * kd + (col < kd ? col : 0));
    ptrdiff_t step = (ptrdiff_t)BROWS * kd * 2;
    keep(next);
    Tile<BM, BN> tile;
    tile.template product<true, true>(shared_at(stages), depth, [&](SharedAt a, SharedAt b) {
        int row = (turn ^ BK) + t / 8;
        keep(row);
        each<4>([&](auto i) {
            ptrdiff_t begin = (ptrdiff_t)from[row + 16 * i.value] * 16;
            uint32_t taps = skip[row + 16 * i.value];
            each<BM / 64>([&](auto j) {
                constexpr int AT = decltype(i)::value * 16 * APIECES * 16 + decltype(j)::value * 128;
                cp_async16_cached<AT>(a + to, own[j.value] + begin, taps & tap[j.value]);
            });
        });
        auto copy = [&](auto whole) {
            each<BN / 16>([&](auto i) {
                cp_async16<i.value * 2048>(b + to_b, next, whole.value || left > b_row + BROWS * i.value);
                next += step;
            });
        };
        if (left >= BK) copy(Index<1>{});
        else copy(Index<0>{});
        left -= BK;
        prepare();
    });
    unsigned lane = t % 32;
    int row = row0 + tile.row0 + lane / 4;
    col = col0 + tile.col0 + lane % 4 * 2;
    float* to_part = part + ((size_t)blockIdx.z * k + col) * places + row;
    ptrdiff_t next_col = places;
    auto write = [&](auto whole) {
        each<Tile<BM, BN>::TN>([&](auto j) {
            each<2>([&](auto v) {
                float* out = to_part + v.value * next_col;
                keep(out);
                if (!whole.value && col + v.value >= k) return;
                each<Tile<BM, BN>::TM * 2>([&](auto i) {
                    constexpr int I = decltype(i)::value;
                    if (whole.value || row + I * 8 < places) out[I * 8] = tile.sum[I / 2][j.value][I % 2 * 2 + v.value];
                });
            });
            to_part += 8 * next_col;
            col += 8;
        });
    };
    if (row0 + BM <= places && col0 + BN <= k) write(Index<1>{});
    else write(Index<0>{});
}
#endif
