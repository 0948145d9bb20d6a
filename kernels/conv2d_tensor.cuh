// Tiles of matrix products on tensor cores, for the convolutions in bf16: NHWC, f32 sums, copies of 16 bytes, so what
// is read along its channels has a multiple of eight of them; the Rust side sees to it. A sum runs over its depth in
// ascending steps of 16 whatever the tile, so all variants of a kernel give the same bits.
#pragma once
#include "common.cuh"

constexpr int BK = 64;        // depth of a step: 128 bytes
constexpr int STAGES = 3;     // steps in shared memory: one being used, two under way
constexpr int THREADS = 128;  // of every block here; the same number in src/ops/conv2d.rs

// Where a tile of rows of PIECES times 16 bytes keeps piece `piece` of row `row`, in bytes. The exclusive or moves the
// pieces of a column over all banks: neither eight rows of one piece nor a row's neighbours ever collide. Rows 128 /
// PIECES apart are 2048 bytes apart, and bits that two pieces differ in, their places differ in too: what a thread
// needs is one place and constants.
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
        // Pieces are counted from a multiple of twice their number, so if that is a power of two they differ in bits.
        constexpr bool BITS = (PLACES & PLACES - 1) == 0;
        int first = place<PIECES>(row, piece);
#pragma unroll
        for (int i = 0; i < PLACES; i++) {
            at[i] = tile + (BITS ? first ^ i * 32 : place<PIECES>(row, piece + 2 * i));
            keep(at[i]);
        }
    }
    // Fragment I at depth 16 D, AT bytes further.
    template <int I, int D, int AT = 0>
    DEVICE void get(uint32_t (&r)[4]) const {
        if (TURN) ldmatrix_x4_trans<D * PIECES * 256 + AT>(r, at[TURN ? I : 0]);
        else ldmatrix_x4<I * 2048 + AT>(r, at[TURN ? 0 : D]);
    }
};

// The shares of four warps in a BM x COLS product.
template <int BM, int COLS>
struct Tile {
    static constexpr int ACROSS = COLS >= BM ? 2 : 1;
    static constexpr int WM = BM / (4 / ACROSS), WN = COLS / ACROSS;
    static constexpr int TM = WM / 16, TN = WN / 8;             // tensor-core tiles of a warp
    static constexpr int A_BYTES = BM * BK * 2, STAGE = (BM + COLS) * BK * 2;
    float sum[TM][TN][4];
    int row0, col0;  // of this warp

    DEVICE Tile() {
        int warp = threadIdx.x / 32;
        row0 = warp / ACROSS * WM;
        col0 = warp % ACROSS * WN;
    }

    // The whole product; the depth is not 0, and WHOLE if it is a multiple of BK. A is kept as [BM][BK], or as [BK][BM]
    // if ATURN; B as [COLS][BK], or as [BK][COLS]. `load(a, b)` starts the copies of the next BK of the depth to places
    // `a` and `b` (Index) bytes behind the first stage; a barrier lies between any two calls. Stages are constants, so
    // that no instruction goes into their addresses, and the first products are not added to anything.
    template <bool ATURN, bool BTURN, bool WHOLE = false, class Load>
    DEVICE void product(SharedAt stages, int depth, Load load) {
        unsigned lane = threadIdx.x % 32;
        int over = lane % 8 + lane / 16 * 8, next = lane / 8 % 2;
        Fragments<ATURN, ATURN ? BM / 8 : BK / 8, TM> fa(stages, ATURN ? over : row0 + lane % 16,
                                                         ATURN ? row0 / 8 + next : lane / 16);
        Fragments<BTURN, BTURN ? COLS / 8 : BK / 8, TN / 2> fb(stages + A_BYTES, BTURN ? lane % 16 : col0 + over,
                                                               BTURN ? col0 / 8 + lane / 16 : next);
        auto fill = [&](auto stage) {
            constexpr int AT = decltype(stage)::value * STAGE;
            load(Index<AT>{}, Index<AT + A_BYTES>{});
        };
        each<STAGES - 1>([&](auto i) {
            if (i.value == 0 || i.value * BK < depth) fill(i);
            cp_commit();
            if (i.value < STAGES - 2) __syncthreads();
        });
        int left = depth;
        auto step = [&](auto stage, auto first) {
            constexpr int S = decltype(stage)::value;
            cp_wait<STAGES - 2>();
            __syncthreads();  // the stage is there for all, and the one to fill has been used by all
            if (left > (STAGES - 1) * BK) fill(Index<(S + STAGES - 1) % STAGES>{});
            cp_commit();
            each<BK / 16>([&](auto d) {
                constexpr int D = decltype(d)::value;
                constexpr bool FIRST = decltype(first)::value && D == 0;
                if (!WHOLE && D > 0 && left <= D * 16) return;
                uint32_t a[TM][4];
                each<TM>([&](auto i) { fa.template get<decltype(i)::value, D, S * STAGE>(a[i.value]); });
                each<TN / 2>([&](auto j) {
                    constexpr int J = decltype(j)::value;
                    uint32_t b[4];
                    fb.template get<J, D, S * STAGE>(b);
#pragma unroll
                    for (int i = 0; i < TM; i++) {
                        mma_bf16<FIRST>(sum[i][2 * J], a[i], {b[0], b[1]});
                        mma_bf16<FIRST>(sum[i][2 * J + 1], a[i], {b[2], b[3]});
                    }
                });
            });
            left -= BK;
            return left > 0;
        };
        if (step(Index<0>{}, Index<1>{})) {
            while (step(Index<1>{}, Index<0>{}) && step(Index<2>{}, Index<0>{}) && step(Index<0>{}, Index<0>{})) {}
        }
        static_assert(STAGES == 3, "the loop names them");
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
// first inside and the one behind the last, if there are any; fifteen taps are the most, so the last bit of both is
// set.
DEVICE uint32_t outside(int top, int bottom, int left, int right) {
    auto bits = [](int from, int to) { return (1u << min(from, 15)) - 1 | ~0u << max(to, 0); };
    return bits(top, bottom) & 0xffff | bits(left, right) << 16;
}
constexpr uint32_t ALL = ~0u;  // the taps of a row that is beyond the last
constexpr int FIRST_COLUMN = 16;
