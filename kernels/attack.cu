// The iterated sign attack on many images at once, in slots of a fixed number: a slot whose image has been decided takes
// the next image of the pool in the same step, so that the network always runs on full batches.
//
// A perturbation is eps times whole numbers k, so its squared norm is eps^2 times a whole number: exact, and the same on
// every device. Fields of a slot, each an array over the slots in one buffer: see Field.
#include "common.cuh"

// The same in src/select/attack.rs.
enum Field { PLACE, ID, LABEL, STEPS, MODE, STATE };
enum State { IDLE, BUSY, DECIDED };
enum Mode { CROSS_ENTROPY, MARGIN };
constexpr uint64_t NEVER = ~0ull, NOT_A_NUMBER = ~0ull - 1;

// x = clean + eps k, rounded after each operation; clean where the slot has made no step yet: k is then what an earlier
// image left.
//   x, clean, k (s, p), total = s p   slots (6, s)
// Launch:  one thread per element, block 256.
// Traffic: 3*s*p floats.
// Repeats: bit-identical.
// Limits:  s * p < 2^31 - 256.
KERNEL attack_inputs_f32(
    float* __restrict__ x,
    const float* __restrict__ clean,
    const float* __restrict__ k,
    const uint32_t* __restrict__ slots,
    int total,
    int s,
    int p,
    float eps
) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= total) return;
    bool moved = slots[STEPS * s + e / p] != 0;
    x[e] = moved ? __fadd_rn(clean[e], __fmul_rn(eps, k[e])) : clean[e];
}

// The direction in the logits that the inputs are moved along. Cross-entropy with the label: softmax - onehot(label), the
// element of the label as minus the sum of the others, which does not vanish while they do not. Margin:
// onehot(the largest other class, the lowest at a tie) - onehot(label). Zeros for slots that are not busy.
//   d, x (s, c), c > 0   slots (6, s)
// Launch:  one warp per row, block 256.
// Traffic: 2*s*c floats; the row is read three times, from the cache after the first.
// Repeats: bit-identical.
// Limits:  s < 2^26, s * c < 2^31 - 256, labels below c.
KERNEL attack_direction_f32(
    float* __restrict__ d,
    const float* __restrict__ x,
    const uint32_t* __restrict__ slots,
    int s,
    int c
) {
    int i = (int)((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
    if (i >= s) return;                            // guard: a whole warp leaves together
    x += (size_t)i * c;
    d += (size_t)i * c;
    int label = (int)slots[LABEL * s + i];
    bool busy = slots[STATE * s + i] == BUSY;
    Best other = {-INFINITY, 0x7FFFFFFF};
    for (int j = lane; j < c; j += 32) {
        if (j != label) other = better(other, Best{x[j], j});
    }
    other = warp_argmax(other);
    if (slots[MODE * s + i] == MARGIN) {
        for (int j = lane; j < c; j += 32) {
            float v = j == label ? -1.0f : j == other.index ? 1.0f : 0.0f;
            d[j] = busy && other.index < c ? v : 0.0f;
        }
        return;                                    // the whole warp
    }
    float top = fmaxf(other.value, x[label]), sum = 0.0f;
    for (int j = lane; j < c; j += 32) sum += j == label ? 0.0f : expf(x[j] - top);
    sum = warp_sum(sum);
    float all = sum + expf(x[label] - top);
    for (int j = lane; j < c; j += 32) {
        float v = j == label ? -sum / all : expf(x[j] - top) / all;
        d[j] = busy ? v : 0.0f;
    }
}

// What becomes of each slot. Another class than the label is the largest (the lowest at a tie): decided, at the squared
// norm so far. All steps made, or a gradient that is zero everywhere: decided, as NEVER or, if keep is set, at the squared
// norm so far; but a slot that goes by cross-entropy goes on by the margin instead when `fallback` is set. A logit or a
// gradient that is no number: decided, as NOT_A_NUMBER. Otherwise k += sign(gradient), fused with its squared norm.
//   k (s, p), slots (6, s), squares (s) in place   found (u), one element a decided slot   x (s, c)   gradient (s, p)
// Launch:  a block of 256 per slot.
// Traffic: 3*s*p + s*c floats; of slots that are decided or idle nothing but the logits.
// Repeats: bit-identical; sums are of whole numbers.
// Limits:  at most 10^6 steps, p < 2^22: squares stay below 2^62.
KERNEL attack_step_f32(
    float* __restrict__ k,
    uint32_t* __restrict__ slots,
    uint64_t* __restrict__ squares,
    uint64_t* __restrict__ found,
    const float* __restrict__ x,
    const float* __restrict__ gradient,
    int s,
    int p,
    int c,
    int cap,
    int fallback,
    int keep
) {
    int i = blockIdx.x, t = threadIdx.x;
    if (slots[STATE * s + i] != BUSY) return;      // the whole block
    uint32_t label = slots[LABEL * s + i], steps = slots[STEPS * s + i], mode = slots[MODE * s + i];
    uint32_t place = slots[PLACE * s + i];
    uint64_t before = squares[i];
    x += (size_t)i * c;
    k += (size_t)i * p;
    gradient += (size_t)i * p;
    Best top = {-INFINITY, 0x7FFFFFFF};
    int bad = 0;
    for (int j = t; j < c; j += 256) {
        top = better(top, Best{x[j], j});
        bad |= x[j] != x[j];
    }
    top = block_argmax(top);
    bad = block_max(bad);
    uint64_t given_up = keep ? before : NEVER;
    bool decided = true;
    uint64_t result = given_up;
    if (bad) {
        result = NOT_A_NUMBER;
    } else if (top.index != (int)label) {
        result = before;
    } else if (steps < (uint32_t)cap) {
        uint64_t sum = 0;
        int most = 0;                              // 0: all zero; 1: some are not; 2: some are no numbers
        for (int e = t; e < p; e += 256) {
            float g = gradient[e], v = steps == 0 ? 0.0f : k[e];
            v += g > 0.0f ? 1.0f : g < 0.0f ? -1.0f : 0.0f;
            most = max(most, g != g ? 2 : g != 0.0f ? 1 : 0);
            k[e] = v;
            int64_t whole = (int64_t)v;
            sum += (uint64_t)(whole * whole);
        }
        sum = block_sum(sum);
        most = block_max(most);
        bool again = most == 0 && mode == CROSS_ENTROPY && fallback;
        decided = most != 1 && !again;
        result = most == 2 ? NOT_A_NUMBER : given_up;
        if (t == 0 && most == 1) {
            squares[i] = sum;
            slots[STEPS * s + i] = steps + 1;
        }
        if (t == 0 && again) slots[MODE * s + i] = MARGIN;
    }
    if (t == 0 && decided) {
        found[place] = result;
        slots[STATE * s + i] = DECIDED;
    }
}

// Slots that are not busy take the next images in the order of the slots; those for which there is none are idle.
//   slots (6, s), squares (s), counters (2): images taken so far, busy slots, all in place   ids, labels (u)
// Launch:  one warp: s is the size of a batch.
// Traffic: some words a slot.
// Repeats: bit-identical.
// Limits:  s < 2^31 / 6.
KERNEL attack_refill(
    uint32_t* __restrict__ slots,
    uint64_t* __restrict__ squares,
    uint32_t* __restrict__ counters,
    const uint32_t* __restrict__ ids,
    const uint32_t* __restrict__ labels,
    int s,
    int u,
    int mode
) {
    int lane = threadIdx.x;
    uint32_t head = counters[0], busy = 0;
    __syncwarp();                                  // read before lane 0 writes
    for (int first = 0; first < s; first += 32) {
        int i = first + lane;
        bool inside = i < s;
        bool open = inside && slots[STATE * s + i] != BUSY;
        uint32_t takers = __ballot_sync(FULL_WARP, open);
        uint64_t place = (uint64_t)head + __popc(takers & ((1u << lane) - 1));
        bool taken = open && place < (uint64_t)u;
        if (taken) {
            slots[PLACE * s + i] = (uint32_t)place;
            slots[ID * s + i] = ids[place];
            slots[LABEL * s + i] = labels[place];
            slots[STEPS * s + i] = 0;
            slots[MODE * s + i] = mode;
            squares[i] = 0;
        }
        if (open) slots[STATE * s + i] = taken ? BUSY : IDLE;
        head = min(head + __popc(takers), (uint32_t)u);
        busy += __popc(__ballot_sync(FULL_WARP, taken || (inside && !open)));
    }
    if (lane == 0) {
        counters[0] = head;
        counters[1] = busy;
    }
}
