#include "common.cuh"

// Moves the clock on by one batch of n examples: step, offset and slot (see src/clock.rs for the words).
//   words (8) in place.  Launch: one thread does it.
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
