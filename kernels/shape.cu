// Moving columns between matrices: joining matrices side by side, and taking some columns of one. (Whole rows lie
// together and are copied by the driver.)
#include "common.cuh"

// y[i][y_at + j] = x[i][x_at + j] for j below width.
//   y (m, y_width)   x (m, x_width)   total = m * width / step
// Launch:  one thread per `step` floats, block 256. step is 4, moved as 16 bytes, where width, both row lengths, both
//          first columns and both addresses allow it, else 1.
// Traffic: 2*m*width floats; neighbouring threads move neighbouring floats of a row.
// Repeats: bit-identical.
// Limits:  m*width < 2^31 - 256; offsets are 64 bits wide.
KERNEL copy_cols_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int total,
    int width,
    int y_width,
    int y_at,
    int x_width,
    int x_at,
    int step
) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= total) return;
    int steps = width / step;                      // of a row
    int i = t / steps;
    int j = t % steps * step;
    float* to = y + (size_t)i * y_width + y_at + j;
    const float* from = x + (size_t)i * x_width + x_at + j;
    if (step == 4) store16(to, load16(from));
    else *to = *from;
}
