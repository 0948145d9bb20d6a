//! Eight floats in a register, for code that names its arithmetic instead of leaving it to the vectoriser: given 24
//! columns it would fill one and a half of AVX-512's registers and shuffle.

use super::simd::{BASE_FMA, mul_add};

/// Floats of one register of 256 bits.
pub const LANES: usize = 8;

/// A register of [`LANES`] floats.
pub trait Lane: Copy {
    /// From memory.
    fn load(x: &[f32; LANES]) -> Self;
    /// The same number eight times.
    fn splat(x: f32) -> Self;
    /// self · b + c
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// To memory.
    fn store(self, to: &mut [f32; LANES]);
    /// Bit l is set where lane l is not zero; a NaN is not zero.
    fn nonzero(self) -> u32;
    /// Lane j of register i becomes lane i of register j.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];
}

/// Any processor.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

impl Lane for Plain {
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Plain {
        Plain(*x)
    }
    #[inline(always)]
    fn splat(x: f32) -> Plain {
        Plain([x; LANES])
    }
    #[inline(always)]
    fn mul_add(self, b: Plain, mut c: Plain) -> Plain {
        for l in 0..LANES {
            c.0[l] = mul_add::<BASE_FMA>(self.0[l], b.0[l], c.0[l]);
        }
        c
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn nonzero(self) -> u32 {
        self.0.iter().enumerate().fold(0, |m, (l, v)| m | u32::from(*v != 0.0) << l)
    }
    #[inline(always)]
    fn transpose(rows: [Plain; LANES]) -> [Plain; LANES] {
        let mut columns = [Plain([0.0; LANES]); LANES];
        for (i, row) in rows.iter().enumerate() {
            for (column, v) in columns.iter_mut().zip(row.0) {
                column.0[i] = v;
            }
        }
        columns
    }
}

/// Asks the second-level cache for the line of x[at]; nothing happens where that is beyond the end.
#[inline(always)]
pub fn prefetch(x: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64, and no access: it cannot fault, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(x.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at);
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    //! Processors with AVX2 and FMA.
    use super::{LANES, Lane};
    use std::arch::x86_64::{
        __m256, _CMP_NEQ_UQ, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_movemask_ps,
        _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    /// One AVX register. Only functions made by `lanes!`, which enable AVX2 and FMA, make values of it.
    #[derive(Clone, Copy)]
    pub struct Avx(__m256);

    impl Lane for Avx {
        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Avx {
            // SAFETY: reads eight floats of an array of eight; AVX is on, see above.
            Avx(unsafe { _mm256_loadu_ps(x.as_ptr()) })
        }
        #[inline(always)]
        fn splat(x: f32) -> Avx {
            // SAFETY: AVX is on, see above.
            Avx(unsafe { _mm256_set1_ps(x) })
        }
        #[inline(always)]
        fn mul_add(self, b: Avx, c: Avx) -> Avx {
            // SAFETY: FMA is on, see above.
            Avx(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            // SAFETY: writes eight floats of an array of eight; AVX is on, see above.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn nonzero(self) -> u32 {
            // SAFETY: AVX is on, see above.
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, _mm256_setzero_ps())) as u32 }
        }
        #[inline(always)]
        fn transpose(rows: [Avx; LANES]) -> [Avx; LANES] {
            let mut r = rows.map(|r| r.0);
            // SAFETY: AVX is on, see above. Pairs, then quadruples, then halves of eight change places.
            unsafe {
                let mut t = r;
                for i in (0..LANES).step_by(2) {
                    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
                    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
                }
                for i in (0..LANES).step_by(4) {
                    for h in 0..2 {
                        r[i + 2 * h] = _mm256_shuffle_ps::<0x44>(t[i + h], t[i + h + 2]);
                        r[i + 2 * h + 1] = _mm256_shuffle_ps::<0xee>(t[i + h], t[i + h + 2]);
                    }
                }
                for i in 0..LANES / 2 {
                    t[i] = _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]);
                    t[i + 4] = _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]);
                }
                t.map(Avx)
            }
        }
    }
}

/// The eight floats at `i`.
#[inline(always)]
pub fn load<V: Lane>(x: &[f32], i: usize) -> V {
    let mut eight = [0.0; LANES];
    eight.copy_from_slice(&x[i..i + LANES]);
    V::load(&eight)
}

/// The eight floats of `to` at `i`.
#[inline(always)]
pub fn store<V: Lane>(v: V, to: &mut [f32], i: usize) {
    let mut eight = [0.0; LANES];
    v.store(&mut eight);
    to[i..i + LANES].copy_from_slice(&eight);
}

/// Defines a function that runs `$body`, generic over its [`Lane`] first, with the best one of this processor.
/// AVX-512 is the same arithmetic with twice the registers. Closures do not inherit the instruction set of the
/// function they end up in: bodies are plain loops.
#[macro_export]
#[doc(hidden)]
macro_rules! lanes {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$(const $G:ident: $GT:ty),*>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$doc])*
        $vis fn $name $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::device::lane::x86::Avx $($(, $G)*)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
            fn avx512 $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::device::lane::x86::Avx $($(, $G)*)?>($($arg),*)
            }
            match $crate::device::simd::level() {
                // SAFETY: `level` returns these only after the processor reported the features.
                #[cfg(target_arch = "x86_64")]
                $crate::device::simd::Level::Avx512 => unsafe { avx512 $(::<$($G),*>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::simd::Level::Avx2 => unsafe { avx2 $(::<$($G),*>)? ($($arg),*) },
                _ => $body::<$crate::device::lane::Plain $($(, $G)*)?>($($arg),*),
            }
        }
    };
}
