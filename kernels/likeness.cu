// How alike images are to labelled ones, pixel by pixel: see src/select/likeness.rs. Products of bytes are exact, four at a
// time; all other steps are rounded as on the CPU.
#include "common.cuh"

constexpr int VOTES = 5;      // the same number in src/select/likeness.rs
constexpr int SIDE = 32;      // rows, and labelled rows, of a tile
constexpr int WORDS = 32;     // of four bytes, of each of them in shared memory at a time
constexpr uint32_t NONE = 0xffffffffu;

// inverse[i] = 1 / |row i|, 0 for a row of zeros. The sum is exact.
//   inverse (N)   pixels (N, P)
// Launch:  one warp per row, block 256.
// Traffic: N*P bytes.
// Repeats: bit-identical.
// Limits:  N < 2^26, P <= 33000.
KERNEL likeness_norms(
    float* __restrict__ inverse,
    const uint8_t* __restrict__ pixels,
    int n,
    int p
) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= n) return;                                // guard: a whole warp leaves together
    uint32_t square = 0;
    for (int k = threadIdx.x % 32; k < p; k += 32) {
        uint32_t v = pixels[(size_t)row * p + k];
        square += v * v;
    }
    square = warp_sum(square);
    if (threadIdx.x % 32 == 0) inverse[row] = square == 0 ? 0.0f : (float)(1.0 / sqrt((double)square));
}

// Word w of a row of p bytes, zeros behind its end.
DEVICE uint32_t word_of(const uint8_t* row, int w, int p) {
    uint32_t word = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b)
        if (4 * w + b < p) word |= (uint32_t)row[4 * w + b] << (8 * b);
    return word;
}

// Passes all labelled images by 32 rows: the five most alike, and per class the sum and the largest of v = dot / |j|.
//   near (U, 5): places among the labelled, NONE behind the last   sums, tops (U, C)
//   pixels (N, P)   inverse (N)   ids (U)   rows, labels (L = count)
// Launch:  grid ceil(U / 32), block 256. A thread sums four pairs; then one warp, a row a lane, takes them in order.
// Traffic: the labelled images once per 32 rows, from L2: arithmetic U*L*P / 4 dp4a is the bound for P above about 300.
// Repeats: bit-identical; j ascending.
// Limits:  U*C < 2^31; offsets of pixels are 64 bits wide.
KERNEL likeness_scan(
    uint32_t* __restrict__ near,
    float* __restrict__ sums,
    float* __restrict__ tops,
    const uint8_t* __restrict__ pixels,
    const float* __restrict__ inverse,
    const uint32_t* __restrict__ ids,
    const uint32_t* __restrict__ rows,
    const uint32_t* __restrict__ labels,
    int u,
    int count,
    int p,
    int c
) {
    SHARED(uint32_t, own, [SIDE][WORDS + 1]);
    SHARED(uint32_t, other, [SIDE][WORDS + 1]);
    SHARED(uint32_t, dots, [SIDE][SIDE + 1]);
    int t = threadIdx.x, lane = t % 32, x0 = blockIdx.x * SIDE, x = x0 + lane;
    float best[VOTES];
    uint32_t at[VOTES];
#pragma unroll
    for (int k = 0; k < VOTES; ++k) {
        best[k] = -1.0f;
        at[k] = NONE;
    }
    if (t < 32 && x < u)
        for (int k = 0; k < c; ++k) sums[x * c + k] = tops[x * c + k] = 0.0f;
    int words = (p + 3) / 4;
    for (int j0 = 0; j0 < count; j0 += SIDE) {
        uint32_t acc[4] = {0, 0, 0, 0};
        for (int w0 = 0; w0 < words; w0 += WORDS) {
            __syncthreads();                             // the words before have been read
            for (int r = t / 32; r < SIDE; r += 8) {
                own[r][lane] = x0 + r < u ? word_of(pixels + (size_t)ids[x0 + r] * p, w0 + lane, p) : 0;
                other[r][lane] = j0 + r < count ? word_of(pixels + (size_t)rows[j0 + r] * p, w0 + lane, p) : 0;
            }
            __syncthreads();
#pragma unroll 8
            for (int w = 0; w < WORDS; ++w) {
                uint32_t a = own[lane][w];
#pragma unroll
                for (int k = 0; k < 4; ++k) acc[k] = __dp4a(a, other[t / 32 * 4 + k][w], acc[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) dots[t / 32 * 4 + k][lane] = acc[k];
        __syncthreads();
        if (t < 32 && x < u) {
            for (int j = 0; j < SIDE && j0 + j < count; ++j) {
                float v = __fmul_rn((float)dots[j][lane], inverse[rows[j0 + j]]);
                int of = x * c + (int)labels[j0 + j];
                sums[of] = __fadd_rn(sums[of], v);
                if (v > tops[of]) tops[of] = v;
                uint32_t place = j0 + j;
#pragma unroll
                for (int k = 0; k < VOTES; ++k)          // moves down what is smaller
                    if (v > best[k]) {
                        float smaller = best[k];
                        uint32_t its = at[k];
                        best[k] = v;
                        at[k] = place;
                        v = smaller;
                        place = its;
                    }
            }
        }
    }
    if (t < 32 && x < u)
        for (int k = 0; k < VOTES; ++k) near[x * VOTES + k] = at[k];
}

// The class that the nearest vote for, and how unlike a row is to the labelled images of it.
//   found, unlike (U)   near (U, 5)   sums, tops (U, C)   inverse (N)   ids (U)   labels, predicted (L = count)
// Launch:  one thread per row, block 256.
// Traffic: L labels per row, from the cache; 5 and up to 2C words per row.
// Repeats: bit-identical.
// Limits:  U*C < 2^31.
KERNEL likeness_vote(
    uint32_t* __restrict__ found,
    float* __restrict__ unlike,
    const uint32_t* __restrict__ near,
    const float* __restrict__ sums,
    const float* __restrict__ tops,
    const float* __restrict__ inverse,
    const uint32_t* __restrict__ ids,
    const uint32_t* __restrict__ labels,
    const uint32_t* __restrict__ predicted,
    int u,
    int count,
    int c
) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= u) return;
    uint32_t vote[VOTES], winner = 0;
    int most = 0;
    for (int k = 0; k < VOTES; ++k) {
        uint32_t j = near[x * VOTES + k];
        vote[k] = j == NONE ? NONE : predicted[j];
    }
    for (int k = 0; k < VOTES; ++k) {
        int votes = 0;
        for (int i = 0; i < VOTES; ++i) votes += vote[i] == vote[k];
        if (vote[k] != NONE && (votes > most || (votes == most && vote[k] < winner))) {
            most = votes;
            winner = vote[k];
        }
    }
    int n = 0;
    for (int j = 0; j < count; ++j) n += labels[j] == winner;
    float sum = 0.0f, top = 0.0f;
    if (n == 0) {
        n = count;
        for (int k = 0; k < c; ++k) {
            sum = __fadd_rn(sum, sums[x * c + k]);
            if (tops[x * c + k] > top) top = tops[x * c + k];
        }
    } else {
        sum = sums[x * c + (int)winner];
        top = tops[x * c + (int)winner];
    }
    float inv = inverse[ids[x]];
    float dense = __fadd_rn(1.0f, -__fmul_rn(__fdiv_rn(sum, (float)n), inv));
    float near_one = __fadd_rn(1.0f, -__fmul_rn(top, inv));
    found[x] = winner;
    unlike[x] = __fadd_rn(__fmul_rn(0.5f, dense), __fmul_rn(0.5f, near_one));
}
