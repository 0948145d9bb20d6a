//! Randomness as a pure function of (seed, purpose, where): Philox4x32-10, no generator state anywhere.
//!
//! Key: the seed as [low, high] words. Counter: `[element / 4, purpose << 24 | lane, a, b]`; the word is
//! `element % 4`. The layout is fixed for good and the same in `kernels/philox.cuh`, so permutations, crops,
//! flips and masks are bit-equal on every device, and resuming needs no generator state.

/// What a random stream is for. Numbers are never reused or renumbered.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial weights.
    Init = 1,
    /// The random start set of round 0.
    StartSet = 2,
    /// Order of the training examples within an epoch.
    Shuffle = 3,
    /// Random crops.
    Crop = 4,
    /// Random flips.
    Flip = 5,
    /// Dropout masks while training.
    Dropout = 6,
    /// Dropout masks of query-time passes.
    McDropout = 7,
    /// Mixing coefficients and partners.
    MixUp = 8,
    /// Draws made by selection rules.
    Select = 9,
    /// Variational auto-encoders.
    Vae = 10,
    /// Critics.
    Critic = 11,
    /// The built-in synthetic data set.
    Synthetic = 12,
    /// The fixed order of a pool whose files are sorted by class.
    PoolOrder = 13,
    /// Graph networks.
    Gcn = 14,
}

/// One round function of Philox4x32-10.
#[inline(always)]
fn round(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    let p0 = u64::from(c[0]) * 0xD251_1F53;
    let p1 = u64::from(c[2]) * 0xCD9E_8D57;
    [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32]
}

/// Philox4x32-10: 128 random bits for a counter and a key (Salmon et al., SC 2011).
#[inline]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for i in 0..10 {
        if i > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        counter = round(counter, key);
    }
    counter
}

/// An addressed random stream: a small value that is copied, never advanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
    stream: u32,
    a: u32,
    b: u32,
}

impl Rng {
    /// The root of all streams of one run.
    pub fn new(seed: u64) -> Rng {
        Rng { key: [seed as u32, (seed >> 32) as u32], stream: 0, a: 0, b: 0 }
    }

    /// The stream for one purpose; `a` is the round, `b` the epoch or step. Lane 0.
    pub fn at(self, purpose: Purpose, a: u32, b: u32) -> Rng {
        Rng { stream: (purpose as u32) << 24, a, b, ..self }
    }

    /// The same stream for another layer or augmented view; `l` below 2^24 (higher bits are ignored).
    pub fn lane(self, l: u32) -> Rng {
        Rng { stream: (self.stream & 0xFF00_0000) | (l & 0x00FF_FFFF), ..self }
    }

    /// The same stream at another epoch or step.
    pub fn with_b(self, b: u32) -> Rng {
        Rng { b, ..self }
    }

    /// What a kernel needs: seed low, seed high, `purpose << 24 | lane`, `a`.
    pub fn words(self) -> [u32; 4] {
        [self.key[0], self.key[1], self.stream, self.a]
    }

    /// As [`Rng::words`], and then `b`.
    pub fn all_words(self) -> [u32; 5] {
        [self.key[0], self.key[1], self.stream, self.a, self.b]
    }

    /// The four words of `element / 4 = block`.
    #[inline]
    pub fn block(self, block: u32) -> [u32; 4] {
        philox4x32_10([block, self.stream, self.a, self.b], self.key)
    }

    /// One random word; `element` below 2^34, beyond that the sequence repeats.
    #[inline]
    pub fn u32(self, element: u64) -> u32 {
        self.block((element / 4) as u32)[(element % 4) as usize]
    }

    /// Uniform in [0, 1) from the top 24 bits of the word.
    #[inline]
    pub fn uniform(self, element: u64) -> f32 {
        (self.u32(element) >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// A standard normal number by Box–Muller: words (0, 1) of a block give elements 0 and 1, words (2, 3) the other two.
    ///
    /// With u = ((word >> 8) + 1) / 2²⁴, never zero, and θ = π (other word >> 8, signed) / 2²³ it is √(−2 ln u)·cos θ for
    /// the first of the two and √(−2 ln u)·sin θ for the second; at most 5.77 in size. Computed in f64 here and in f32
    /// in `kernels/normal.cu`: equal to about 1e-6, not to the bit.
    #[inline]
    pub fn normal(self, element: u64) -> f64 {
        normals_of(self.block((element / 4) as u32))[(element % 4) as usize]
    }

    /// A uniformly random permutation of 0..n (Fisher–Yates; each draw uses 64 random bits, so its bias is
    /// below n / 2^64).
    pub fn permutation(self, n: usize) -> Vec<u32> {
        let mut p: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            let w = self.block(i as u32);
            let r = u64::from(w[0]) | u64::from(w[1]) << 32;
            let j = ((u128::from(r) * (i as u128 + 1)) >> 64) as usize;
            p.swap(i, j);
        }
        p
    }
}

/// The four normal numbers that a block of four words makes.
pub(crate) fn normals_of(words: [u32; 4]) -> [f64; 4] {
    let pair = |x: u32, y: u32| {
        let radius = (-2.0 * (f64::from((x >> 8) + 1) / 16_777_216.0).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::PI * f64::from(y as i32 >> 8) / 8_388_608.0).sin_cos();
        [radius * cos, radius * sin]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

/// The integer threshold of a Bernoulli draw: a word below it is a success with probability `p`.
pub fn threshold(p: f32) -> u32 {
    let t = f64::from(p.clamp(0.0, 1.0)) * 4_294_967_296.0;
    if t >= 4_294_967_295.0 { u32::MAX } else { t as u32 }
}

/// FNV-1a (32 bits) of a name, low 24 bits: the lane of a method's selection stream.
pub fn lane_of(name: &str) -> u32 {
    let mut h = 0x811C_9DC5u32;
    for b in name.bytes() {
        h = (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
    }
    h & 0x00FF_FFFF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn extreme_words_make_finite_normals() {
        let n = normals_of([0, 0, u32::MAX, 0x8000_0000]);
        assert!((n[0] - 5.768_108).abs() < 1e-6 && n[1] == 0.0 && n[2] == 0.0 && n[3] == 0.0, "{n:?}");
        let n = normals_of([0, 0x4000_0000, 0, 0xC000_0000]);
        assert!(n[0].abs() < 1e-9 && (n[1] - 5.768_108).abs() < 1e-6 && (n[3] + 5.768_108).abs() < 1e-6, "{n:?}");
    }

    #[test]
    fn normals_have_the_moments_of_normals() {
        let r = Rng::new(21).at(Purpose::Vae, 1, 2);
        let n = 400_000u64;
        let v: Vec<f64> = (0..n).map(|e| r.normal(e)).collect();
        let moment = |k: i32| v.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        // The k-th moment's own variance is E x^2k − (E x^k)²: 1, 2, 15, 96 for k = 1 .. 4. Five standard deviations.
        for (k, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
            assert!((moment(k) - want).abs() < 5.0 * (variance / n as f64).sqrt(), "{k}: {}", moment(k));
        }
        // Within 1 and 2 standard deviations, and neighbours independent of each other.
        for (limit, share) in [(1.0, 0.682_689), (2.0, 0.954_500)] {
            let inside = v.iter().filter(|x| x.abs() < limit).count() as f64 / n as f64;
            assert!((inside - share).abs() < 5.0 * (share * (1.0 - share) / n as f64).sqrt(), "{limit}: {inside}");
        }
        for lag in 1..=4 {
            let c = v.windows(lag + 1).map(|w| w[0] * w[lag]).sum::<f64>() / n as f64;
            assert!(c.abs() < 5.0 / (n as f64).sqrt(), "lag {lag}: {c}");
        }
    }

    #[test]
    fn permutations_are_permutations_and_uniform() {
        for n in [0, 1, 2, 7, 1000] {
            let mut p = Rng::new(7).at(Purpose::Shuffle, 1, 2).permutation(n);
            p.sort_unstable();
            assert_eq!(p, (0..n as u32).collect::<Vec<_>>());
        }
        // 6,000 permutations of three: each of six within 5 standard deviations of 1,000.
        let mut count = std::collections::HashMap::new();
        for b in 0..6000 {
            *count.entry(Rng::new(1).at(Purpose::Shuffle, 0, b).permutation(3)).or_insert(0i32) += 1;
        }
        assert_eq!(count.len(), 6);
        assert!(count.values().all(|c| (c - 1000).abs() < 145), "{count:?}");
    }

    #[test]
    fn streams_differ_and_repeat() {
        let r = Rng::new(10).at(Purpose::Dropout, 3, 4);
        assert_eq!(r.u32(17), r.block(4)[1]);
        assert_ne!(r.u32(0), r.lane(1).u32(0));
        assert_ne!(r.u32(0), r.with_b(5).u32(0));
        assert_ne!(r.u32(0), Rng::new(11).at(Purpose::Dropout, 3, 4).u32(0));
        assert_eq!(lane_of("random"), lane_of("random"));
        assert_ne!(lane_of("random"), lane_of("coreset"));
    }

    #[test]
    fn thresholds_cover_the_range() {
        assert_eq!(threshold(0.0), 0);
        assert_eq!(threshold(0.5), 0x8000_0000);
        assert_eq!(threshold(1.0), u32::MAX);
    }
}
