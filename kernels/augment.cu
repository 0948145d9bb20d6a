// Variants: f32 bf16
// From u8 images on the device to a batch of floats: gather, crop, flip, normalise in one pass.
#ifndef Stored
#include "common.cuh"
#include "philox.cuh"
#define SOURCE "augment.cu"
#include "floats.cuh"
#else

// out[i, y, x, c] = pixel * scale_c + shift_c of image order[offset + i] after a random crop of the zero-padded
// image and a random flip. The randomness of an image depends on its id and on word `when` of the clock, never on its place.
//   out (n, h, w, c)   pixels (total, h, w, c)   order (len)   norm (2c): scales, then shifts
//   clock (8): word 0 the step, word 1 the epoch, word 2 the offset.   A position beyond `len` or an
//   id beyond `total` gives NaN, which stops the run.
// Launch:  one thread per output element, block 256.
// Traffic: n h w c bytes in, n h w c elements out.
// Repeats: bit-identical. The two words of the crop and the one of the flip are computed by every thread again:
//          cheaper than a second launch.
// Limits:  n h w c < 2^31 - 256.
KERNEL VARIANT(gather_images)(
    Stored* __restrict__ out,
    const uint8_t* __restrict__ pixels,
    const uint32_t* __restrict__ order,
    const uint32_t* __restrict__ clock,
    const float* __restrict__ norm,
    int n,
    int h,
    int w,
    int c,
    int len,
    uint32_t total,
    int pad,
    uint32_t flip_below,
    uint32_t seed_lo,
    uint32_t seed_hi,
    uint32_t crop_stream,
    uint32_t flip_stream,
    uint32_t round,
    int when
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= n * h * w * c) return;
    int ch = e % c;
    int x = e / c % w;
    int y = e / c / w % h;
    int i = e / c / w / h;
    uint64_t at = (uint64_t)clock[2] + i;                    // 64 bits: the sum must not wrap round
    uint32_t id = at < (uint64_t)len ? order[at] : 0xFFFFFFFFu;
    if (id >= total) {
        out[e] = from_float<Stored>(NAN);
        return;
    }
    if (flip_below > 0) {
        uint4 r = philox_block(seed_lo, seed_hi, flip_stream, round, clock[when], id);
        if (flip_below == 0xFFFFFFFFu || r.x < flip_below) x = w - 1 - x;
    }
    if (pad > 0) {
        uint4 r = philox_block(seed_lo, seed_hi, crop_stream, round, clock[when], id);
        y += (int)__umulhi(r.x, 2 * pad + 1) - pad;
        x += (int)__umulhi(r.y, 2 * pad + 1) - pad;
    }
    float v = 0.0f;
    if (y >= 0 && y < h && x >= 0 && x < w) v = pixels[(((size_t)id * h + y) * w + x) * c + ch];
    out[e] = from_float<Stored>(fmaf(v, norm[ch], norm[c + ch]));
}
#endif
