// The optimizer's step over the flat parameter arena, and the clock that a captured step moves by itself.
#include "common.cuh"

// Moves the clock on by one batch of n examples: step, offset and slot (src/clock.rs names the words).
//   words (8) in place
// Launch:  one thread does it.   Repeats: exact.
KERNEL clock_advance(
    uint32_t* __restrict__ words,
    uint32_t n
) {
    if (threadIdx.x == 0) {
        words[0] += 1;
        words[2] += n;
        words[3] += 1;
    }
}

// g' = clamp(g, +-clamp);  v = momentum v + (g' + decay w);  w = w - lr v.   lr: word 4 of the clock, as float bits.
//   w, v (n) in place   g (n)   clock (8)
// Launch:  one thread per element, block 256.
// Traffic: 5n floats. Memory bound.
// Repeats: bit-identical. A NaN in g stays one: the loss of the next step stops the run.
// Limits:  n < 2^31 - 256.
KERNEL sgd_step_f32(
    float* __restrict__ w,
    float* __restrict__ v,
    const float* __restrict__ g,
    const uint32_t* __restrict__ clock,
    int n,
    float momentum,
    float decay,
    float clamp
) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float lr = __uint_as_float(clock[4]);
    float d = g[i];
    if (d > clamp) d = clamp;  // comparisons, not fminf: that would turn a NaN into the clamp
    if (d < -clamp) d = -clamp;
    float step = momentum * v[i] + (d + decay * w[i]);
    v[i] = step;
    w[i] -= lr * step;
}
