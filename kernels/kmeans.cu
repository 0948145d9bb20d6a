// Lloyd's k-means: see src/select/kmeans.rs. Labels are those of the canonical distances of src/ops/distance.rs; all
// other sums here have a fixed order of their own.
#include "common.cuh"

constexpr int ROWS = 64;      // of x, in a block
constexpr int CENTRES = 128;  // in a block
constexpr int STEP = 16;      // features in shared memory at a time
constexpr int PAD = 4;        // keeps rows of 16 bytes aligned and spreads the turned writes over the banks
constexpr int PIECES = 8;     // of a cluster, added one after the other
constexpr uint32_t NONE = 0xffffffffu;
constexpr float U = 1.0f / 16777216.0f;

// TILE rows of a matrix, 16 of their features from k0, turned; zero where there is none.
template <int TILE>
DEVICE void load_turned(float (*out)[TILE + PAD], const float* a, int row0, int k0, int rows, int d) {
    int k = threadIdx.x % 8 + threadIdx.x / 128 * 8;
#pragma unroll
    for (int r = threadIdx.x / 8 % 16; r < TILE; r += 16) {
        bool inside = row0 + r < rows && k0 + k < d;
        out[k][r] = inside ? a[(size_t)(row0 + r) * d + k0 + k] : 0.0f;
    }
}

DEVICE int own_row(int i) { return threadIdx.x / 16 * 4 + i; }                      // i in [0, 4)
DEVICE int own_centre(int j) { return threadIdx.x % 16 * 4 + j % 4 + j / 4 * 64; }  // j in [0, 8)

// The two largest scores and whose the largest is; the lower number of equals. Which of equals does not matter: they
// leave the row undecided.
struct Top {
    float first, second;
    int at;
    DEVICE void meet(float s, int j) {
        second = fmaxf(second, fminf(first, s));
        if (s > first) first = s, at = j;
    }
};

// labels[i] = the nearest centre of row i by x.c - |c|^2 / 2 where the margin proves it (src/select/kmeans.rs derives it),
// otherwise NONE.   labels (N)   x (N, D)   c (K, D)   xx (N), cc (K): squared norms
// Launch:  grid ceil(N / 64), block 256; a block keeps its 64 rows and walks over all centres.
// Traffic: x once per 128 centres (from L2 after the first time), c once per 64 rows; arithmetic 2*N*K*D is the bound.
// Repeats: bit-identical.
// Limits:  N, K < 2^31 - 128; offsets are 64 bits wide.
KERNEL kmeans_assign_f32(
    uint32_t* __restrict__ labels,
    const float* __restrict__ x,
    const float* __restrict__ c,
    const float* __restrict__ xx,
    const float* __restrict__ cc,
    int n,
    int clusters,
    int d
) {
    SHARED(float, xs, [STEP][ROWS + PAD]);
    SHARED(float, cs, [STEP][CENTRES + PAD]);
    Top top[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i] = {-INFINITY, -INFINITY, 0};
    float widest = 0.0f;
    int row0 = blockIdx.x * ROWS;
    for (int c0 = 0; c0 < clusters; c0 += CENTRES) {
        float acc[4][8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            int centre = c0 + own_centre(j);
            float norm = centre < clusters ? cc[centre] : 0.0f;
            widest = fmaxf(widest, norm);
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[i][j] = -0.5f * norm;
        }
        for (int k0 = 0; k0 < d; k0 += STEP) {
            __syncthreads();  // the tiles of the step before have been read
            load_turned<ROWS>(xs, x, row0, k0, n, d);
            load_turned<CENTRES>(cs, c, c0, k0, clusters, d);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < STEP; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        acc[i][j] = fmaf(xs[k][own_row(i)], cs[k][own_centre(j)], acc[i][j]);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (c0 + own_centre(j) < clusters)
#pragma unroll
                for (int i = 0; i < 4; ++i) top[i].meet(acc[i][j], c0 + own_centre(j));
    }
#pragma unroll
    for (int o = 8; o > 0; o /= 2) {  // over the 16 threads that share the rows: half a warp
        widest = fmaxf(widest, __shfl_xor_sync(FULL_WARP, widest, o));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float first = __shfl_xor_sync(FULL_WARP, top[i].first, o);
            float second = __shfl_xor_sync(FULL_WARP, top[i].second, o);
            int at = __shfl_xor_sync(FULL_WARP, top[i].at, o);
            top[i].meet(first, at);
            top[i].second = fmaxf(top[i].second, second);
        }
    }
    if (threadIdx.x % 16 != 0) return;  // no barrier follows
    for (int i = 0; i < 4; ++i) {
        int row = row0 + own_row(i);
        if (row >= n) continue;
        float norm = xx[row];
        float slack = 8.0f * (d + 16) * U;
        float scale = sqrtf(norm * widest) + widest;
        float gap = 2.0f * (top[i].first - top[i].second) - slack * scale;
        float near = fmaxf(norm - 2.0f * top[i].first, 0.0f) + slack * (scale + norm);
        bool decided = scale < 1e37f && gap > slack * near;
        labels[row] = decided ? (uint32_t)top[i].at : NONE;
    }
}

// labels[i] = the nearest centre by canonical distances, the lowest of equals, for the rows left with NONE.
//   labels (N) in place   x (N, D)   c (K, D)
// Launch:  one warp per row, block 256; a lane takes every 32nd centre.
// Traffic: K*D floats per undecided row, mostly from L2. Few rows are.
// Repeats: bit-identical, the canonical order.
// Limits:  N < 2^26.
KERNEL kmeans_exact_f32(
    uint32_t* __restrict__ labels,
    const float* __restrict__ x,
    const float* __restrict__ c,
    int n,
    int clusters,
    int d
) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (row >= n) return;  // a whole warp
    // Read by one lane alone: the lane that writes must not overtake another's read.
    uint32_t label = lane == 0 ? labels[row] : 0;
    if (__shfl_sync(FULL_WARP, label, 0) != NONE) return;
    uint64_t least = ~0ull;
    for (int j = lane; j < clusters; j += 32) {
        float acc = 0.0f;
        for (int k = 0; k < d; ++k) {
            float t = x[(size_t)row * d + k] - c[(size_t)j * d + k];
            acc = fmaf(t, t, acc);
        }
        uint64_t key = (uint64_t)__float_as_uint(acc) << 32 | (uint32_t)j;
        least = key < least ? key : least;
    }
    least = warp_min(least);
    if (lane == 0) labels[row] = (uint32_t)least;
}

// own[i] = canonical squared distance of row i to its centre.   own (N)   x (N, D)   c (K, D)   labels (N)
// Launch:  one thread per row, block 256: rare, and few bytes beside an assignment.
// Traffic: N*D floats, sectors shared through L1.
// Repeats: bit-identical, the canonical order.
// Limits:  N < 2^31 - 256.
KERNEL kmeans_own_f32(
    float* __restrict__ own,
    const float* __restrict__ x,
    const float* __restrict__ c,
    const uint32_t* __restrict__ labels,
    int n,
    int d
) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    size_t at = (size_t)labels[row] * d;
    float acc = 0.0f;
    for (int k = 0; k < d; ++k) {
        float t = x[(size_t)row * d + k] - c[at + k];
        acc = fmaf(t, t, acc);
    }
    own[row] = acc;
}

// keys[i] = label and row, to be sorted; all ones from N on.   keys (padded)   labels (N)
// Launch:  one thread per key, block 256.   Traffic: 12 bytes a key.   Repeats: bit-identical.   Limits: padded < 2^31.
KERNEL kmeans_keys(
    uint64_t* __restrict__ keys,
    const uint32_t* __restrict__ labels,
    int n,
    int padded
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < padded) keys[i] = i < n ? (uint64_t)labels[i] << 32 | (uint32_t)i : ~0ull;
}

// starts[l] = where the rows of cluster l begin among the sorted keys; starts[K] = N.   starts (K + 1)   keys (N)
// Launch:  one thread for each of N + 1 places, block 256.
// Traffic: 8*N bytes.
// Repeats: bit-identical; every start is written once.
// Limits:  N < 2^31 - 257.
KERNEL kmeans_starts(
    uint32_t* __restrict__ starts,
    const uint64_t* __restrict__ keys,
    int n,
    int clusters
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > n) return;
    int from = i == 0 ? 0 : (int)(keys[i - 1] >> 32) + 1;
    int to = i == n ? clusters : (int)(keys[i] >> 32);
    for (int l = from; l <= to; ++l) starts[l] = i;
}

// next[l] = the mean of the rows of cluster l, in f64: eight pieces of neighbouring rows, rows ascending, then the pieces in
// order. An empty cluster keeps its centre.   next, c (K, D)   x (N, D)   keys (N)   starts (K + 1)
// Launch:  grid (K, ceil(D / 32)), block 256: a warp for each piece, a lane for each feature.
// Traffic: N*D + 2*K*D floats: the bound.
// Repeats: bit-identical.
// Limits:  K < 2^31; D <= 32 * 65535 (grid.y).
KERNEL kmeans_means_f32(
    float* __restrict__ next,
    const float* __restrict__ c,
    const float* __restrict__ x,
    const uint64_t* __restrict__ keys,
    const uint32_t* __restrict__ starts,
    int d
) {
    SHARED(double, part, [PIECES][32]);
    int lane = threadIdx.x % 32;
    int w = threadIdx.x / 32;
    int k = blockIdx.y * 32 + lane;
    int from = starts[blockIdx.x];
    int rows = (int)starts[blockIdx.x + 1] - from;
    int piece = (rows + PIECES - 1) / PIECES;
    double sum = 0.0;
    if (k < d)
#pragma unroll 4
        for (int i = w * piece; i < min((w + 1) * piece, rows); ++i) sum += x[(size_t)(uint32_t)keys[from + i] * d + k];
    part[w][lane] = sum;
    __syncthreads();
    if (w != 0 || k >= d) return;  // no barrier follows
    for (int p = 1; p < PIECES; ++p) sum += part[p][lane];
    size_t at = (size_t)blockIdx.x * d + k;
    next[at] = rows > 0 ? (float)(sum / rows) : c[at];
}

// next[clusters[i]] = x[rows[i]].   next (K, D)   x (N, D)   clusters, rows (M)
// Launch:  grid M, block 256.   Traffic: 2*M*D floats.   Repeats: clusters are distinct.   Limits: none of its own.
KERNEL kmeans_reseed_f32(
    float* __restrict__ next,
    const float* __restrict__ x,
    const uint32_t* __restrict__ clusters,
    const uint32_t* __restrict__ rows,
    int d
) {
    for (int k = threadIdx.x; k < d; k += 256)
        next[(size_t)clusters[blockIdx.x] * d + k] = x[(size_t)rows[blockIdx.x] * d + k];
}

// shift[l] = |next[l] - c[l]|^2 in f64, features ascending; differences are rounded to f32, so their squares are exact.
//   shift (K)   next, c (K, D)
// Launch:  one thread per centre, block 64.   Traffic: 2*K*D floats.   Repeats: bit-identical.   Limits: K < 2^31 - 64.
KERNEL kmeans_shift_f32(
    double* __restrict__ shift,
    const float* __restrict__ next,
    const float* __restrict__ c,
    int clusters,
    int d
) {
    int l = blockIdx.x * blockDim.x + threadIdx.x;
    if (l >= clusters) return;
    double sum = 0.0;
    for (int k = 0; k < d; ++k) {
        double t = next[(size_t)l * d + k] - c[(size_t)l * d + k];
        sum += t * t;
    }
    shift[l] = sum;
}

// variance[k] of the features in f64, rows ascending; differences from the mean are rounded to f32.
//   variance (D)   x (N, D)
// Launch:  one thread per column, block 32: once per clustering.
// Traffic: 2*N*D floats.
// Repeats: bit-identical.
// Limits:  none of its own.
KERNEL kmeans_variance_f32(
    double* __restrict__ variance,
    const float* __restrict__ x,
    int n,
    int d
) {
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= d) return;
    double sum = 0.0;
#pragma unroll 8
    for (int i = 0; i < n; ++i) sum += x[(size_t)i * d + k];
    double mean = sum / n;
    sum = 0.0;
#pragma unroll 8
    for (int i = 0; i < n; ++i) {
        double t = (float)(x[(size_t)i * d + k] - mean);
        sum += t * t;
    }
    variance[k] = sum / n;
}

// ids[l] = the row of cluster l nearest to its centre, the lowest of equals; NONE of an empty cluster.
//   ids (K)   own (N)   keys (N)   starts (K + 1)
// Launch:  one warp per cluster, block 256.   Traffic: 12 bytes a row.   Repeats: keys are distinct.   Limits: K < 2^26.
KERNEL kmeans_nearest_f32(
    uint32_t* __restrict__ ids,
    const float* __restrict__ own,
    const uint64_t* __restrict__ keys,
    const uint32_t* __restrict__ starts,
    int clusters
) {
    int l = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (l >= clusters) return;
    uint64_t least = ~0ull;
    for (uint32_t i = starts[l] + threadIdx.x % 32; i < starts[l + 1]; i += 32) {
        uint32_t row = (uint32_t)keys[i];
        uint64_t key = (uint64_t)__float_as_uint(own[row]) << 32 | row;
        least = key < least ? key : least;
    }
    least = warp_min(least);
    if (threadIdx.x % 32 == 0) ids[l] = (uint32_t)least;
}
