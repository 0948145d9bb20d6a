// The nearest few of a cluster.
#include "common.cuh"

// few[i] = the 32 smallest of few[i] and d2[i][..], ascending; a NaN is none of them.
//   few (n, 32) in place   d2 (n, m)
// Launch:  one warp per row, block 256; lane s holds the value at s.
// Traffic: n*m + 64*n floats. Of m values in random order about 32 ln(m/32) are inserted, seven instructions each.
// Repeats: exact: which numbers are the smallest is a matter of no order.
// Limits:  n < 2^26, n * m < 2^31 - 256.
KERNEL nearest_few_f32(
    float* __restrict__ few,
    const float* __restrict__ d2,
    int n,
    int m
) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (i >= n) return;                                      // guard: a whole warp leaves together
    d2 += (size_t)i * m;
    float own = few[(size_t)i * 32 + lane];
    for (int first = 0; first < m; first += 32) {
        float v = first + lane < m ? d2[first + lane] : INFINITY;
        uint32_t nearer = __ballot_sync(FULL_WARP, v < __shfl_sync(FULL_WARP, own, 31));
        while (nearer != 0) {                                // the same in all lanes
            float next = __shfl_sync(FULL_WARP, v, __ffs((int)nearer) - 1);
            int at = __popc(__ballot_sync(FULL_WARP, own <= next));
            float before = __shfl_up_sync(FULL_WARP, own, 1);
            own = lane < at ? own : lane == at ? next : before;
            nearer &= nearer - 1;
        }
    }
    few[(size_t)i * 32 + lane] = own;
}
