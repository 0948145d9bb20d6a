// Variants: n16 n32 n64 n128 m64
// Convolution on tensor cores: bf16 in, f32 sums, NHWC, implicit matrix products with tiles of BM rows and BN columns.
//   x (n, h, w, c)   filters wt (k, r, s, c)   y (n, p, q, k)   p = (h + 2 pad - r) / stride + 1, q likewise
#ifndef BN
#include "conv2d_tensor.cuh"

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
    DEVICE void next_tap() {
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
    DEVICE void carry() {
        while (channel >= channels && row != rows) next_tap();
    }
    // WHOLE: the channels are a multiple of the step, and nobody goes on behind the last tap.
    template <bool WHOLE = false>
    DEVICE void go(int by, ptrdiff_t at_bytes, ptrdiff_t along_bytes) {
        channel += by;
        at += at_bytes;
        along += along_bytes;
        if (!WHOLE) carry();
        else if (channel >= channels) next_tap();
    }
    DEVICE bool ended() const { return row == rows; }
};

// The windows of ROWS pixels as rows of A. A thread copies one piece of every sixteenth.
template <int ROWS>
struct Windows {
    static constexpr int OWN = ROWS / 16;
    int own[OWN];  // where they begin, in pieces of 16 bytes
    uint32_t skip[OWN];

    DEVICE Windows(const int* begin, const uint32_t* beyond) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            own[i] = begin[threadIdx.x / 8 + 16 * i];
            skip[i] = beyond[threadIdx.x / 8 + 16 * i];
        }
    }
    template <int AT>
    DEVICE void load(SharedAt to, const Walk& walk) const {
        uint32_t tap = walk.row | walk.column;
        each<OWN>([&](auto i) {
            cp_async16_cached<AT + i.value * 2048>(to, walk.at + (ptrdiff_t)own[i.value] * 16, skip[i.value] & tap);
        });
    }
};

// Writes a staged tile of bf16, ROWS x COLS, or zeros where nothing is staged, to rows that start at `out(row)` (none
// if negative), 16 bytes at a time where rows are aligned. Whole: none is negative; dense: one lies behind the other.
template <int ROWS, int COLS, bool STAGED = true, class Out>
DEVICE void write_rows(bf16* to, const char* staged, Out out, int col0, int cols, bool whole, bool dense) {
    constexpr int PIECES = COLS / 8;
    if (cols % 8 != 0) {
        int width = min(COLS, cols - col0);
        for (int e = threadIdx.x; e < ROWS * width; e += THREADS) {
            int row = e / width, col = e % width;
            const bf16* from = reinterpret_cast<const bf16*>(staged + place<PIECES>(row, col / 8)) + col % 8;
            if (out(row) >= 0) to[out(row) + col0 + col] = STAGED ? *from : from_float<bf16>(0.0f);
        }
        return;
    }
    int first = threadIdx.x / PIECES, piece = threadIdx.x % PIECES, col = col0 + piece * 8;
    if (col >= cols) return;
    const char* from = staged + place<PIECES>(first, piece);
    auto value = [&](auto i) {
        return STAGED ? load16(from + THREADS * 16 * decltype(i)::value) : make_uint4(0, 0, 0, 0);
    };
    to += col;
    if (whole && dense) {
        to += out(first);
        ptrdiff_t step = THREADS / PIECES * cols;
        keep(step);
        each<ROWS * PIECES / THREADS>([&](auto i) {
            store16(to, value(i));
            to += step;
        });
        return;
    }
    keep(to);
    auto write = [&](auto all) {
        each<ROWS * PIECES / THREADS>([&](auto i) {
            int start = out(first + THREADS / PIECES * decltype(i)::value);
            if (all.value || start >= 0) store16(to + start, value(i));
        });
    };
    if (whole) write(Index<1>{});
    else write(Index<0>{});
}

#define SOURCE "conv2d_tensor.cu"
#define VARIANT(name) name##_n16
#define BM 128
#define BN 16
#include SOURCE
#undef VARIANT
#undef BM
#undef BN
#define VARIANT(name) name##_n32
#define BM 128
#define BN 32
#include SOURCE
#undef VARIANT
#undef BM
#undef BN
#define VARIANT(name) name##_n64
#define BM 128
#define BN 64
#include SOURCE
#undef VARIANT
#undef BM
#undef BN
#define VARIANT(name) name##_n128
#define BM 128
#define BN 128
#include SOURCE
#undef VARIANT
#undef BM
#undef BN
#define VARIANT(name) name##_m64
#define BM 64
#define BN 64
#include SOURCE
#undef VARIANT
#undef BM
#undef BN

// y = x with zeros up to `wide` channels, and `pad` pixels of zeros around every image.
//   y (n, h + 2 pad, w + 2 pad, wide)   x (n, h, w, c)
// Launch:  a block for every 256 / (wide / 8) pixels of y, block 256.   Traffic: 2 n h w c bytes, and y once.
// Repeats: bit-identical.   Limits:  wide % 8 == 0, wide <= 2048.
KERNEL pad_images_bf16(
    bf16* __restrict__ y,
    const bf16* __restrict__ x,
    int n,
    int h,
    int w,
    int c,
    int wide,
    int pad
) {
    SHARED(bf16, own, [256 * 8 + 16]);  // the pixels of x in this block: they follow one another
    int high = h + 2 * pad, across = w + 2 * pad, pieces = wide / 8, pixels = 256 / pieces;
    int first = blockIdx.x * pixels, last = min(first + pixels, n * high * across);
    // The pixels of x that come before this one of y; `in` if it is one of them.
    auto before = [&](int pixel, bool& in) {
        int i = pixel / across % high - pad, j = pixel % across - pad;
        bool line = i >= 0 && i < h;
        in = line && j >= 0 && j < w;
        return (pixel / across / high * h + max(0, min(i, h))) * w + (line ? max(0, min(j, w)) : 0);
    };
    bool in;
    int from = before(first, in) * c, to = before(last, in) * c;
    int start = from & ~15;  // so that a warp reads whole sectors
    for (int e = start + threadIdx.x; e < to; e += 256) {
        if (e >= from) own[e - start] = x[e];
    }
    __syncthreads();
    int pixel = first + threadIdx.x / pieces, channel = threadIdx.x % pieces * 8;
    if (threadIdx.x >= pieces * pixels || pixel >= last) return;
    const bf16* values = own + (before(pixel, in) * c - start + channel);
    auto value = [&](int j) { return in && channel + j < c ? to_float(values[j]) : 0.0f; };
    uint4 piece = make_uint4(pack_bf16(value(0), value(1)), pack_bf16(value(2), value(3)),
                             pack_bf16(value(4), value(5)), pack_bf16(value(6), value(7)));
    store16(y + (size_t)pixel * wide + channel, piece);
}
#else

// y = conv(x, wt) + bias. Rows are output pixels, columns output channels, depth the window (r, s, c).
//   bias (k), read if bias_on   part (row blocks, 2, k), written if part_on: for the BM pixels of a block the sum
//   of y as stored and the sum of squared distances from its mean, for the batch normalisation that follows
// Launch:  grid (k / BN, n p q / BM) rounded up, block 128, shared: see `tensor::shared` in src/ops/conv2d.rs.
// Traffic: a block reads its BM windows and its filters once; windows overlap in the cache. Tensor bound from c = k
//          = 64 on.
// Repeats: bit-identical, independent of n.   Limits:  c % 8 == 0; r, s <= 15; n p q < BM * 65536.
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
    SHARED(int, begin, [BM]);  // of a window, in pieces of 16 bytes
    SHARED(uint32_t, beyond, [BM]);  // its taps outside of the image
    unsigned t = threadIdx.x;
    int first = blockIdx.y * BM, col0 = blockIdx.x * BN;
    int depth = r * s * c, rows = min(BM, n * p * q - first);
    if (BM == THREADS || t < BM) {
        int pixel = first + t;
        int qi = pixel % q, pi = pixel / q % p, ni = pixel / q / p;
        int top = pi * stride - pad, left = qi * stride - pad;
        bool in = t < rows;
        uint32_t taps = outside(max(0, -top), min(r, h - top), max(0, -left), min(s, w - left));
        begin[t] = in ? ((ni * h + top) * w + left) * (c / 8) : 0;
        beyond[t] = in ? taps : ALL;
    }
    __syncthreads();
    Windows<BM> windows(begin, beyond);
    Walk walk(x + t % 8 * 8, t % 8 * 8, c, r, s, {0, (ptrdiff_t)(w - s) * c * 2}, {0, 0});
    SharedAt to = shared_at(stages) + place<8>(t / 8, t % 8);
    keep(to);
    // Filters beyond the last are one of the others again: what they give is not written.
    const char* filter[BN / 16];
    int row = col0 + t / 8;
    ptrdiff_t step = 32 * depth;
    filter[0] = reinterpret_cast<const char*>(wt + (size_t)min(row, k - 1) * depth + t % 8 * 8);
#pragma unroll
    for (int i = 0; i < BN / 16; i++) {
        if (i > 0) filter[i] = filter[i - 1] + (row + 16 * i < k ? step : 0);
        keep(filter[i]);
    }
    Tile<BM, BN> tile;
    auto product = [&](auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
        tile.template product<false, false, WHOLE>(shared_at(stages), depth, [&](auto a, auto b) {
            constexpr int A = decltype(a)::value, B = decltype(b)::value;
            windows.template load<A>(to, walk);
            each<BN / 16>([&](auto i) {
                constexpr int I = decltype(i)::value;
                if constexpr (WHOLE) {  // three stages of a filter lie behind one another
                    constexpr int STAGE = A / Tile<BM, BN>::STAGE;
                    cp_async16<B + I * 2048, STAGE * BK * 2>(to, filter[I]);
                    if (STAGE == STAGES - 1) filter[I] += STAGES * BK * 2;
                } else {
                    cp_async16<B + I * 2048>(to, filter[I] + walk.along, !walk.ended());
                }
            });
            walk.template go<WHOLE>(BK, BK * 2, BK * 2);
        });
    };
    if (BN >= BK && c % BK == 0) product(Index<1>{});  // a step is inside of one tap
    else product(Index<0>{});

    if (bias_on) {
        tile.each_pair([&](auto i, auto j, auto v, int, int col) {
            float* z = &tile.sum[i.value][j.value][v.value];
            z[0] += col0 + col < k ? bias[col0 + col] : 0.0f;
            z[1] += col0 + col + 1 < k ? bias[col0 + col + 1] : 0.0f;
        });
    }
    tile.stage(stages);
    __syncthreads();
    auto out = [&](int row) { return row < rows ? (first + row) * k : -1; };
    write_rows<BM, BN>(y, stages, out, col0, k, rows == BM, true);
    if (!part_on) return;
    // Sums of the columns are a product with ones, sums of their squares the diagonal of Yt Y; 16 columns a warp. Rows
    // beyond the last pixel are zeros and add nothing.
    unsigned lane = t % 32;
    for (int g = t / 32; g < BN / 16; g += 4) {
        Fragments<true, BN / 8, 1> fragments(shared_at(stages), lane % 8 + lane / 16 * 8, 2 * g + lane / 8 % 2);
        float total[2][4], square[2][4];
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        each<BM / 16>([&](auto d) {
            constexpr bool FIRST = decltype(d)::value == 0;
            uint32_t y[4];  // of the left factor; the same registers hold the two halves of the right one
            fragments.template get<0, decltype(d)::value>(y);
            mma_bf16<FIRST>(total[0], ones, {y[0], y[2]});
            mma_bf16<FIRST>(total[1], ones, {y[1], y[3]});
            mma_bf16<FIRST>(square[0], y, {y[0], y[2]});
            mma_bf16<FIRST>(square[1], y, {y[1], y[3]});
        });
        // Row and column `own` of the left product, and eight further of the right one, are with one lane in four.
        unsigned own = lane / 4;
        if (lane % 4 != own / 2) continue;
        int col = col0 + g * 16 + own;
        float *sums = part + (size_t)blockIdx.y * 2 * k + col, *squares = sums + k;
        each<2>([&](auto half) {
            constexpr int H = decltype(half)::value;
            float a = own % 2 ? total[H][1] : total[H][0];
            float b = own % 2 ? square[H][2 * H + 1] : square[H][2 * H];
            if (col + H * 8 >= k) return;
            sums[H * 8] = a;
            squares[H * 8] = max(b - a * a / rows, 0.0f);
        });
    }
}

// dx from dy. Rows are input pixels of one class (row mod stride, column mod stride), columns input channels, depth
// (taps of the class, k): a tap r reaches an input row i only if (i + pad - r) % stride == 0, so no product is wasted
// on zeros.
//   dx (n, h, w, c)   dy (n, p, q, kd)   wt (k, r, s, cw)   kd >= k, cw >= c: the rest are zeros
// Launch:  grid (c / BN, n ceil(h / stride) ceil(w / stride) / BM, stride^2), rounded up, block 128. One class in the
//          grid's depth instead, where it is the only one that a tap reaches and all are of one size: r = s = 1, no
//          padding, h and w multiples of the stride. Its blocks write the zeros of the others.
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
    SHARED(int, begin, [BM]);  // of a window, in pieces of 16 bytes
    SHARED(uint32_t, beyond, [BM]);  // its taps outside of the image
    SHARED(int, out, [BM]);
    unsigned t = threadIdx.x;
    int first = blockIdx.y * BM, col0 = blockIdx.x * BN;
    int below = blockIdx.z / stride, right = blockIdx.z % stride;  // the class
    int hs = (h - below + stride - 1) / stride, ws = (w - right + stride - 1) / stride;
    int r0 = (below + pad) % stride, s0 = (right + pad) % stride;  // the first taps that reach it
    int rs = r0 < r ? (r - r0 + stride - 1) / stride : 0, ss = s0 < s ? (s - s0 + stride - 1) / stride : 0;
    int depth = rs * ss * kd;
    if (first >= n * hs * ws) return;  // the whole block: classes differ in size
    if (BM == THREADS || t < BM) {
        int pixel = first + t;
        int wi = pixel % ws * stride + right, hi = pixel / ws % hs * stride + below, ni = pixel / ws / hs;
        int up = (hi + pad - r0) / stride, back = (wi + pad - s0) / stride;  // the output of the first tap
        bool in = pixel < n * hs * ws;
        uint32_t taps = outside(max(0, up - p + 1), min(rs, up + 1), max(0, back - q + 1), min(ss, back + 1));
        begin[t] = in ? ((ni * p + up) * q + back) * (kd / 8) : 0;
        beyond[t] = in ? taps : ALL;
        out[t] = in ? ((ni * h + hi) * w + wi) * c : -1;
    }
    bool whole = first + BM <= n * hs * ws;
    __syncthreads();
    auto start = [&](int row) { return out[row]; };
    if (depth == 0) {  // no tap reaches the class
        write_rows<BM, BN, false>(dx, nullptr, start, col0, c, whole, stride == 1);
        return;
    }
    Windows<BM> windows(begin, beyond);
    constexpr int PIECES = BN / 8, ROWS = THREADS / PIECES;
    // Channels beyond the last are the first again: what they give is not written.
    const bf16* filters = wt + (r0 * s + s0) * cw + (col0 + t % PIECES * 8 < cw ? col0 + t % PIECES * 8 : 0);
    ptrdiff_t filter = (ptrdiff_t)r * s * cw, step = ROWS * filter * 2;
    Jumps jumps{(stride * cw - kd * filter) * 2, (ptrdiff_t)(s - ss) * stride * cw * 2};
    // The next tap of dy is the pixel before.
    Walk walk(dy + t % 8 * 8, t % 8 * 8, kd, rs, ss, {-4 * kd, (ptrdiff_t)(ss - q) * kd * 2}, jumps);
    const char* row = reinterpret_cast<const char*>(filters + t / PIECES * filter);
    SharedAt to = shared_at(stages) + place<8>(t / 8, t % 8);
    SharedAt to_b = shared_at(stages) + place<PIECES>(t / PIECES, t % PIECES);
    keep(row);
    keep(step);
    keep(to);
    keep(to_b);
    Tile<BM, BN> tile;
    if (kd % BK == 0 && k == kd) {  // a step is inside of one tap
        tile.template product<false, true, true>(shared_at(stages), depth, [&](auto a, auto b) {
            windows.template load<a.value>(to, walk);
            const char* next = row + walk.along;
            each<BN / 16>([&](auto i) {
                cp_async16<b.value + i.value * 2048>(to_b, next);
                next += step;
            });
            walk.template go<true>(BK, BK * 2, BK * filter * 2);
        });
    } else {
        Walk rows(row, t / PIECES, kd, rs, ss, jumps, {0, 0});
        tile.template product<false, true>(shared_at(stages), depth, [&](auto a, auto b) {
            windows.template load<a.value>(to, walk);
            walk.go(BK, BK * 2, 0);
            each<BN / 16>([&](auto i) {
                cp_async16<b.value + i.value * 2048>(to_b, rows.at, !rows.ended() && rows.channel < k);
                rows.go(ROWS, step, 0);
            });
        });
    }
    tile.stage(stages);
    __syncthreads();
    write_rows<BM, BN>(dx, stages, start, col0, c, whole, stride == 1);
    if (gridDim.z > 1 || stride == 1) return;
    for (int i = 1; i < stride * stride; i++) {
        write_rows<BM, BN, false>(dx + (i / stride * w + i % stride) * c, nullptr, start, col0, c, whole, false);
    }
}
#endif
