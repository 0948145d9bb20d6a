// k-center greedy, resident on the device: see src/select/kcenter.rs. Distances are in the canonical order of
// src/ops/distance.rs. best (N) holds squared distances to the nearest centre, -1 for rows that cannot be picked.
#include "canonical.cuh"

constexpr uint8_t CANDIDATE = 2;  // in mask (N); 1 is a labelled row, 0 a row nobody mentioned
constexpr uint32_t NONE = 0xffffffffu;

// bad[0] = the lowest row with a NaN or an infinity among the rows whose mask is not 0.
//   bad (1), NONE before   x (N, D)   mask (N)
// Launch:  one warp per row, block 256.
// Traffic: N*D floats.
// Repeats: bit-identical; a minimum of integers.
// Limits:  N < 2^26, the thread number is 32 bits wide.
KERNEL kcenter_check_f32(
    uint32_t* __restrict__ bad,
    const float* __restrict__ x,
    const uint8_t* __restrict__ mask,
    int n,
    int d
) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (row >= n || mask[row] == 0) return;
    bool found = false;
    for (int k = lane; k < d; k += 32) found |= (__float_as_uint(x[(size_t)row * d + k]) & 0x7f800000u) == 0x7f800000u;
    if (found) atomicMin(bad, (uint32_t)row);
}

// y[i] = x[rows[i]].   y (M, D)   x (N, D)   rows (M).   Launch: grid M, block 256.   Traffic: 2*M*D floats.
KERNEL kcenter_gather_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    const uint32_t* __restrict__ rows,
    int d
) {
    const float* from = x + (size_t)rows[blockIdx.x] * d;
    for (int k = threadIdx.x; k < d; k += 256) y[(size_t)blockIdx.x * d + k] = from[k];
}

// mean[k] = the mean of the candidates, rows added in ascending order in f64: the bits of the CPU path. One thread per
// column is slow (about 0.5 ms for 45,000 rows) but runs only when nothing is labelled.
//   mean (D)   x (N, D)   mask (N)
// Launch:  one thread per column, block 64.
// Traffic: N*D floats.
// Repeats: bit-identical.
// Limits:  none of its own.
KERNEL kcenter_mean_f32(
    float* __restrict__ mean,
    const float* __restrict__ x,
    const uint8_t* __restrict__ mask,
    int n,
    int d
) {
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= d) return;
    double sum = 0.0;
    int rows = 0;
#pragma unroll 8
    for (int i = 0; i < n; ++i)
        if (mask[i] == CANDIDATE) {
            sum += x[(size_t)i * d + k];
            rows += 1;
        }
    mean[k] = (float)(sum / rows);
}

// best[i] = infinity for candidates, -1 for others.   best, mask (N).   Launch: one thread per element, block 256.
KERNEL kcenter_start_f32(
    float* __restrict__ best,
    const uint8_t* __restrict__ mask,
    int n
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) best[i] = mask[i] == CANDIDATE ? INFINITY : -1.0f;
}

// One pick, first half: best[i] = min(best[i], |x[i] - x[last]|^2), and of each block the key of its farthest row. The
// largest key is the largest distance, then the lowest row; 0 where there is no row to pick.
//   best (N) in place   part (blocks)   x (N, D)   state (2): picks so far, last pick (NONE: nothing to update with)
// Launch:  grid ceil(N / 128), block 128. Nothing happens once k picks are made.
// Traffic: N*D + 2N floats: the bound. Rows go through shared memory so that reads are coalesced although one thread
//          sums one row.
// Repeats: bit-identical, the canonical order.
// Limits:  N < 2^31 - 128; offsets are 64 bits wide.
KERNEL kcenter_step_f32(
    float* __restrict__ best,
    uint64_t* __restrict__ part,
    const float* __restrict__ x,
    const uint32_t* __restrict__ state,
    int n,
    int d,
    int k
) {
    SHARED(uint64_t, keys, [4]);
    if (state[0] >= (uint32_t)k) return;  // the whole grid
    uint32_t last = state[1];
    int t = threadIdx.x;
    int lane = t % 32;
    int row0 = blockIdx.x * 128;
    int row = row0 + t;
    float low = row < n ? best[row] : -1.0f;
    if (last != NONE) {
        float acc = distance_to_row(x, last, row0, n, d);
        if (acc < low) best[row] = low = acc;
    }
    uint64_t key = low < 0.0f ? 0 : (uint64_t)__float_as_uint(low) << 32 | (uint32_t)~row;
    key = warp_max(key);
    if (lane == 0) keys[t / 32] = key;
    __syncthreads();
    if (t == 0) {
        for (int w = 1; w < 4; ++w) key = keys[w] > key ? keys[w] : key;
        part[blockIdx.x] = key;
    }
}

// One pick, second half: the farthest row of all is taken.
//   ids, radius (K), one element   best, mask (N), one element   state (2)   part (blocks)
// Launch:  one block of 256.
// Traffic: the parts.
// Repeats: bit-identical; keys are distinct.
// Limits:  at least one row with a key must be left.
KERNEL kcenter_pick_f32(
    uint32_t* __restrict__ ids,
    float* __restrict__ radius,
    float* __restrict__ best,
    uint8_t* __restrict__ mask,
    uint32_t* __restrict__ state,
    const uint64_t* __restrict__ part,
    int blocks,
    int k
) {
    SHARED(uint64_t, keys, [8]);
    uint32_t at = state[0];
    if (at >= (uint32_t)k) return;  // the whole block
    uint64_t key = 0;
    for (int i = threadIdx.x; i < blocks; i += 256) key = part[i] > key ? part[i] : key;
    key = warp_max(key);
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; ++w) key = keys[w] > key ? keys[w] : key;
        uint32_t row = ~(uint32_t)key;
        ids[at] = row;
        radius[at] = sqrtf(__uint_as_float((uint32_t)(key >> 32)));
        best[row] = -1.0f;
        mask[row] = 0;
        state[0] = at + 1;
        state[1] = row;
    }
}
