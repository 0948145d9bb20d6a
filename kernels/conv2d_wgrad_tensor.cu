// Variants: n16 n32 n64 n128
// The weight gradient of a convolution on tensor cores, see conv2d_tensor.cu: tiles of BM window places and BN filters.
#ifndef BN
#include "conv2d_tensor.cuh"

#define SOURCE "conv2d_wgrad_tensor.cu"
#define VARIANT(name) name##_n16
#define BM 64
#define BN 16
#include SOURCE
#undef VARIANT
#undef BM
#undef BN
#define VARIANT(name) name##_n32
#define BM 64
#define BN 32
#include SOURCE
#undef VARIANT
#undef BM
#undef BN
#define VARIANT(name) name##_n64
#define BM 192
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
#else

// Weight gradients of a chunk of output pixels. Rows are window places (r, s, c), columns output channels, depth the
// pixels of the chunk.
//   part (chunks, k, r s c)   x (n, h, w, c)   dy (n, p, q, kd), kd >= k
// Launch:  grid (r s c / BM, k / BN, chunks), rounded up, block 128. BM = 192 beside 64: nine taps of 64 channels are
//          three times as many.
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
    SharedAt to = shared_at(stages) + place<APIECES>(t / 8, t % 8);
    SharedAt to_b = shared_at(stages) + place<BPIECES>(t / BPIECES, t % BPIECES);
    // Channels beyond the last are the first again: what they give is not written.
    int col = col0 + t % BPIECES * 8, b_row = t / BPIECES, left = depth;
    const char* next = reinterpret_cast<const char*>(dy + (size_t)(first + b_row) * kd + (col < kd ? col : 0));
    ptrdiff_t step = (ptrdiff_t)BROWS * kd * 2;
    keep(next);
    Tile<BM, BN> tile;
    tile.template product<true, true>(shared_at(stages), depth, [&](auto a, auto b) {
        int row = (turn ^ BK) + t / 8;
        keep(row);
        each<4>([&](auto i) {
            ptrdiff_t begin = (ptrdiff_t)from[row + 16 * i.value] * 16;
            uint32_t taps = skip[row + 16 * i.value];
            each<BM / 64>([&](auto j) {
                constexpr int AT = a.value + decltype(i)::value * 16 * APIECES * 16 + decltype(j)::value * 128;
                cp_async16_cached<AT>(to, own[j.value] + begin, taps & tap[j.value]);
            });
        });
        auto copy = [&](auto whole) {
            each<BN / 16>([&](auto i) {
                cp_async16<b.value + i.value * 2048>(to_b, next, whole.value || left > b_row + BROWS * i.value);
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
