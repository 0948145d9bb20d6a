#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#define KERNEL extern "C" __global__ void
#define SHARED(T, name, dims) __shared__ T name dims
__device__ __forceinline__ float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}
