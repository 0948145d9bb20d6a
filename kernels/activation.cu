// Activations, element by element: one thread per four elements, block 256, memory bound (2n floats forward, 3n
// backward), bit-identical on every run, valid for n < 2^31 - 1024. A NaN stays one: it must reach the loss, which
// stops the run. Except for clamp, the gradient comes from the output y.
#include "pointwise.cuh"

// y = 1 / (1 + exp(-x)).   y, x (n)
KERNEL sigmoid_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n
) {
    map16(y, n, [](float x) { return sigmoid(x); }, x);
}

// dx = dy y (1 - y).   dx, dy, y (n)
KERNEL sigmoid_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    int n
) {
    map16(dx, n, [](float dy, float y) { return dy * y * (1.0f - y); }, dy, y);
}

// y = tanh(x).   y, x (n)
KERNEL tanh_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n
) {
    map16(y, n, [](float x) { return tanhf(x); }, x);
}

// dx = dy (1 - y^2), as a product of differences: 1 - y is exact near one.   dx, dy, y (n)
KERNEL tanh_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    int n
) {
    map16(dx, n, [](float dy, float y) { return dy * (1.0f - y) * (1.0f + y); }, dy, y);
}

// y = x, or slope x where x < 0.   y, x (n)   slope >= 0
KERNEL leaky_relu_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    float slope
) {
    map16(y, n, [=](float x) { return x < 0.0f ? slope * x : x; }, x);
}

// dx = dy where y > 0, else slope dy.   dx, dy, y (n)
KERNEL leaky_relu_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ y,
    int n,
    float slope
) {
    map16(dx, n, [=](float dy, float y) { return y > 0.0f ? dy : slope * dy; }, dy, y);
}

// y = x, but low where x is below and high where it is above.   y, x (n)
KERNEL clamp_fwd_f32(
    float* __restrict__ y,
    const float* __restrict__ x,
    int n,
    float low,
    float high
) {
    // Comparisons and not min and max, which would turn a NaN into a limit.
    map16(y, n, [=](float x) { return x < low ? low : x > high ? high : x; }, x);
}

// dx = dy where low <= x <= high, else 0.   dx, dy, x (n)
KERNEL clamp_bwd_f32(
    float* __restrict__ dx,
    const float* __restrict__ dy,
    const float* __restrict__ x,
    int n,
    float low,
    float high
) {
    map16(dx, n, [=](float dy, float x) { return x >= low && x <= high ? dy : 0.0f; }, dy, x);
}
