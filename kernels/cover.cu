// Counting neighbours in tiles of squared distances.
#include "common.cuh"

// counts[i] += add times the number of d2[i][j] <= limit; a NaN counts for nothing.
//   counts (n) in place   d2 (n, m)
// Launch:  one warp per row, block 256.
// Traffic: n*m floats.
// Repeats: exact: whole numbers.
// Limits:  n < 2^26, n * m < 2^31 - 256.
KERNEL count_within_f32(
    uint32_t* __restrict__ counts,
    const float* __restrict__ d2,
    int n,
    int m,
    float limit,
    int add
) {
    int i = (int)((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
    if (i >= n) return;                            // guard: a whole warp leaves together
    d2 += (size_t)i * m;
    int within = 0;
    for (int j = lane; j < m; j += 32) within += d2[j] <= limit;
    within = warp_sum(within);
    if (lane == 0) counts[i] += (uint32_t)(add * within);
}
