// Average-linkage clustering by nearest-neighbour chains, resident on the device: see src/select/hac.rs. One step is a
// scan (the nearest neighbour of the chain's tip), a decision (longer chain, or a merge) and the merge.
//
// state (9): length of the chain, merges so far, whether the last step was a merge; of that: keep, gone, the bits of their
// shares and of n_keep share_gone; and what went wrong: 0 nothing, 1 the chain is too long, 2 + tip no finite distance.
#include "canonical.cuh"

DEVICE size_t place(uint32_t a, uint32_t b) {
    size_t i = a > b ? a : b;
    return i * (i - 1) / 2 + (a > b ? b : a);
}

DEVICE uint32_t tip_of(const uint32_t* chain, const uint32_t* state) {
    return state[0] == 0 ? 0 : chain[state[0] - 1];      // the cluster of row 0 always has that number
}

// The smallest key of the block: bits of a distance that is not negative, then a row. 128 threads; thread 0 writes.
DEVICE void block_least(uint64_t* part, uint64_t key) {
    SHARED(uint64_t, keys, [4]);
    key = ~warp_max(~key);
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 4; ++w) key = keys[w] < key ? keys[w] : key;
        *part = key;
    }
}

// Half a matrix from a block of squared distances: rows first .. first + gridDim.y, columns 0 .. columns.
//   distances (N (N - 1) / 2)   block (rows, columns)
// Launch:  grid (ceil(columns / 256), rows), block 256.
// Traffic: 2 rows * columns floats at most.
// Repeats: bit-identical.
// Limits:  rows <= 65535.
KERNEL hac_pack_f32(
    float* __restrict__ distances,
    const float* __restrict__ block,
    int first,
    int columns
) {
    int j = blockIdx.x * 256 + threadIdx.x;
    int i = first + blockIdx.y;
    if (j < i && j < columns) distances[place(i, j)] = __fsqrt_rn(block[(size_t)blockIdx.y * columns + j]);
}

// part[block] = the key of the block's cluster nearest to the tip. What is gone is infinitely far.
//   part (blocks)   distances (N (N - 1) / 2)   chain (N + 1)   state (9)
// Launch:  grid ceil(N / 128), block 128.
// Traffic: N floats, those above the tip's row a sector each.
// Repeats: bit-identical; keys are distinct.
// Limits:  N < 2^31 - 128.
KERNEL hac_scan_f32(
    uint64_t* __restrict__ part,
    const float* __restrict__ distances,
    const uint32_t* __restrict__ chain,
    const uint32_t* __restrict__ state,
    int n
) {
    uint32_t tip = tip_of(chain, state);
    uint32_t x = blockIdx.x * 128 + threadIdx.x;
    float distance = x < (uint32_t)n && x != tip ? distances[place(x, tip)] : INFINITY;
    block_least(part + blockIdx.x, (uint64_t)__float_as_uint(distance) << 32 | x);
}

// The same from the means of clusters: |mean[x] - mean[tip]|^2 + (own[tip] + own[x]), own being scatter / size.
//   part (blocks)   mean (N, D)   own (N)   chain (N + 1)   state (9)
// Launch:  grid ceil(N / 128), block 128.
// Traffic: N*D + N floats: the bound. Rows go through shared memory so that reads are coalesced although one thread
//          sums one row.
// Repeats: bit-identical, the canonical order.
// Limits:  N < 2^31 - 128; offsets are 64 bits wide.
KERNEL hac_scan_means_f32(
    uint64_t* __restrict__ part,
    const float* __restrict__ mean,
    const float* __restrict__ own,
    const uint32_t* __restrict__ chain,
    const uint32_t* __restrict__ state,
    int n,
    int d
) {
    uint32_t tip = tip_of(chain, state);
    int row0 = blockIdx.x * 128, x = row0 + threadIdx.x;
    float acc = distance_to_row(mean, tip, row0, n, d);
    float distance = x < n && (uint32_t)x != tip ? __fadd_rn(acc, __fadd_rn(own[tip], own[x])) : INFINITY;
    block_least(part + blockIdx.x, (uint64_t)__float_as_uint(distance) << 32 | (uint32_t)x);
}

// Makes the chain longer by the tip's nearest neighbour, or, if that is no nearer than the one before the tip, merges
// these two.
//   chain, link (N + 1)   size (N)   pairs (N - 1, 2)   height (N - 1)   state (9)   part (blocks)
// Launch:  one block of 256.
// Traffic: the parts.
// Repeats: bit-identical; keys are distinct.
// Limits:  N >= 2. Nothing happens once all are merged or something went wrong.
KERNEL hac_step_f32(
    uint32_t* __restrict__ chain,
    float* __restrict__ link,
    uint32_t* __restrict__ size,
    uint32_t* __restrict__ pairs,
    float* __restrict__ height,
    uint32_t* __restrict__ state,
    const uint64_t* __restrict__ part,
    int blocks,
    int n
) {
    SHARED(uint64_t, keys, [8]);
    uint64_t key = ~0ull;
    for (int i = threadIdx.x; i < blocks; i += 256) key = part[i] < key ? part[i] : key;
    key = ~warp_max(~key);
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < 8; ++w) key = keys[w] < key ? keys[w] : key;
    uint32_t length = state[0], merged = state[1];
    state[2] = 0;
    if (merged == (uint32_t)n - 1 || state[8] != 0) return;
    if (length == 0) {
        chain[0] = 0;
        link[0] = INFINITY;
        length = 1;
    }
    uint32_t tip = chain[length - 1];
    float distance = __uint_as_float((uint32_t)(key >> 32));
    if (!(distance < INFINITY)) {
        state[8] = 2 + tip;
    } else if (distance < link[length - 1]) {
        if (length == (uint32_t)n) {
            state[8] = 1;
        } else {
            chain[length] = (uint32_t)key;
            link[length] = distance;
            state[0] = length + 1;
        }
    } else {
        uint32_t before = chain[length - 2];
        uint32_t keep = min(tip, before), gone = max(tip, before);
        float own = (float)size[keep], other = (float)size[gone], both = own + other;
        pairs[2 * merged] = keep;
        pairs[2 * merged + 1] = gone;
        height[merged] = link[length - 1];
        size[keep] += size[gone];
        float share = __fdiv_rn(other, both);
        state[0] = length - 2;
        state[1] = merged + 1;
        state[2] = 1;
        state[3] = keep;
        state[4] = gone;
        state[5] = __float_as_uint(__fdiv_rn(own, both));
        state[6] = __float_as_uint(share);
        state[7] = __float_as_uint(__fmul_rn(own, share));
    }
}

DEVICE float weighted(const uint32_t* state, float keep, float gone) {
    return __fadd_rn(__fmul_rn(__uint_as_float(state[5]), keep), __fmul_rn(__uint_as_float(state[6]), gone));
}

// The distances of the merged cluster to all others; what is gone is infinitely far.
//   distances (N (N - 1) / 2)   state (9)
// Launch:  one thread per row, block 128.
// Traffic: 4N sectors at most.
// Repeats: bit-identical, rounded as on the CPU.
// Limits:  N < 2^31 - 128.
KERNEL hac_merge_f32(
    float* __restrict__ distances,
    const uint32_t* __restrict__ state,
    int n
) {
    uint32_t x = blockIdx.x * 128 + threadIdx.x, keep = state[3], gone = state[4];
    if (x >= (uint32_t)n || state[2] == 0 || x == gone) return;
    if (x == keep) {
        distances[place(keep, gone)] = INFINITY;
        return;
    }
    size_t k = place(x, keep), g = place(x, gone);
    distances[k] = weighted(state, distances[k], distances[g]);
    distances[g] = INFINITY;
}

// The mean and the scatter of the merged cluster.
//   mean (N, D), a row   own, scatter (N)   size (N)   state (9)
// Launch:  one block of 256.
// Traffic: 3D floats.
// Repeats: bit-identical, the canonical order, rounded as on the CPU.
// Limits:  none of its own.
KERNEL hac_merge_means_f32(
    float* __restrict__ mean,
    float* __restrict__ own,
    float* __restrict__ scatter,
    const uint32_t* __restrict__ size,
    const uint32_t* __restrict__ state,
    int d
) {
    if (state[2] == 0) return;                           // the whole block
    uint32_t keep = state[3], gone = state[4];
    float* mine = mean + (size_t)keep * d;
    const float* other = mean + (size_t)gone * d;
    if (threadIdx.x == 0) {
        float apart = 0.0f;
        for (int f = 0; f < d; ++f) {
            float v = mine[f] - other[f];
            apart = fmaf(v, v, apart);
        }
        float s = __fadd_rn(__fadd_rn(scatter[keep], scatter[gone]), __fmul_rn(__uint_as_float(state[7]), apart));
        scatter[keep] = s;
        own[keep] = __fdiv_rn(s, (float)size[keep]);
        own[gone] = INFINITY;
    }
    __syncthreads();                                     // the means have been read
    for (int f = threadIdx.x; f < d; f += 256) mine[f] = weighted(state, mine[f], other[f]);
}
