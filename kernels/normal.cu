// Standard normal numbers by addressed randomness (Box and Muller on Philox words): number e of a stream is a pure
// function of (seed, stream, round, step, e), so a backward pass computes it again instead of reading it. The same
// formula as Rng::normal in src/rng.rs, which computes it in f64: equal to about 1e-6, not to the bit.
#include "philox.cuh"
#include "pointwise.cuh"

// The four numbers of a block: x, y give two, z, w the other two. Radius sqrt(-2 log u) with u = ((x >> 8) + 1) / 2^24
// in (0, 1], angle pi (y >> 8, signed) / 2^23: both exact in f32 before the functions.
DEVICE float4 normals_of(uint4 words) {
    float2 r = make_float2(sqrtf(-2.0f * logf((float)((words.x >> 8) + 1) * 0x1p-24f)),
                           sqrtf(-2.0f * logf((float)((words.z >> 8) + 1) * 0x1p-24f)));
    float s0, c0, s1, c1;
    sincospif((float)((int)words.y >> 8) * 0x1p-23f, &s0, &c0);
    sincospif((float)((int)words.w >> 8) * 0x1p-23f, &s1, &c1);
    return make_float4(r.x * c0, r.x * s0, r.y * c1, r.y * s1);
}

// y[e] = normal number e.
//   y (n)   clock (8): word 0 the step
// Launch:  one thread per four elements (one Philox block), block 256.
// Traffic: n floats.
// Repeats: bit-identical.
// Limits:  n < 2^31 - 1024.
KERNEL normals_f32(
    float* __restrict__ y,
    const uint32_t* __restrict__ clock,
    int n,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int block = blockIdx.x * blockDim.x + threadIdx.x;
    int e = block * 4;
    if (e >= n) return;
    store_quad(y, e, n, normals_of(philox_block(seed_lo, seed_hi, stream, round, clock[0], block)));
}

// z[e] = mu[e] + exp(logvar[e] / 2) * normal number e.
//   z, mu, logvar (n)   clock (8): word 0 the step
// Launch, repeats, limits as normals_f32.   Traffic: 3n floats.
KERNEL reparameterize_fwd_f32(
    float* __restrict__ z,
    const float* __restrict__ mu,
    const float* __restrict__ logvar,
    const uint32_t* __restrict__ clock,
    int n,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int block = blockIdx.x * blockDim.x + threadIdx.x;
    int e = block * 4;
    if (e >= n) return;
    float4 normal = normals_of(philox_block(seed_lo, seed_hi, stream, round, clock[0], block));
    float4 noise = map_quad([](float l, float x) { return expf(0.5f * l) * x; }, load_quad(logvar, e, n), normal);
    store_quad(z, e, n, map_quad([](float m, float x) { return m + x; }, load_quad(mu, e, n), noise));
}

// dlogvar[e] = dz[e] exp(logvar[e] / 2) / 2 * normal number e; the gradient of mu is dz itself.
//   dlogvar, dz, logvar (n)   clock (8): word 0 the step
// Launch, repeats, limits as normals_f32.   Traffic: 3n floats.
KERNEL reparameterize_bwd_f32(
    float* __restrict__ dlogvar,
    const float* __restrict__ dz,
    const float* __restrict__ logvar,
    const uint32_t* __restrict__ clock,
    int n,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t stream,
    uint32_t round
) {
    int block = blockIdx.x * blockDim.x + threadIdx.x;
    int e = block * 4;
    if (e >= n) return;
    float4 normal = normals_of(philox_block(seed_lo, seed_hi, stream, round, clock[0], block));
    float4 slope = map_quad([](float l, float x) { return 0.5f * expf(0.5f * l) * x; }, load_quad(logvar, e, n), normal);
    store_quad(dlogvar, e, n, map_quad([](float dz, float s) { return dz * s; }, load_quad(dz, e, n), slope));
}
