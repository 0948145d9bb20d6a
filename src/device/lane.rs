//! Floats in a register, eight or sixteen, for code that names its arithmetic instead of leaving it to the vectoriser:
//! given 24 columns it would fill one and a half of AVX-512's registers and shuffle.

use super::simd::{BASE_FMA, mul_add};

/// Floats of one register of 256 bits.
pub const LANES: usize = 8;

/// A register.
pub trait Lane: Copy {
    /// Its floats.
    const N: usize;
    /// A register of half as many where `N` is more than [`LANES`].
    type Half: Lane;
    /// The first `N` floats.
    fn load(x: &[f32]) -> Self;
    /// The same number everywhere.
    fn splat(x: f32) -> Self;
    /// self · b + c
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// To the first `N` floats.
    fn store(self, to: &mut [f32]);
}

/// A register of [`LANES`] floats.
pub trait Eight: Lane {
    /// Bit l is set where lane l is not zero; a NaN is not zero.
    fn nonzero(self) -> u32;
    /// Lane j of register i becomes lane i of register j.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];
}

/// Any processor.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

impl Lane for Plain {
    const N: usize = LANES;
    type Half = Plain;
    #[inline(always)]
    fn load(x: &[f32]) -> Plain {
        let mut eight = [0.0; LANES];
        eight.copy_from_slice(&x[..LANES]);
        Plain(eight)
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
    fn store(self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
    }
}

impl Eight for Plain {
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

/// Two registers as one, where the processor has none of that size.
#[derive(Clone, Copy)]
pub struct Pair<V>(V, V);

impl<V: Lane> Lane for Pair<V> {
    const N: usize = 2 * V::N;
    type Half = V;
    #[inline(always)]
    fn load(x: &[f32]) -> Pair<V> {
        Pair(V::load(x), V::load(&x[V::N..]))
    }
    #[inline(always)]
    fn splat(x: f32) -> Pair<V> {
        let v = V::splat(x);
        Pair(v, v)
    }
    #[inline(always)]
    fn mul_add(self, b: Pair<V>, c: Pair<V>) -> Pair<V> {
        Pair(self.0.mul_add(b.0, c.0), self.1.mul_add(b.1, c.1))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        self.0.store(to);
        self.1.store(&mut to[V::N..]);
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
    //! Processors with AVX2 and FMA, and with AVX-512.
    use super::{Eight, LANES, Lane};
    use std::arch::x86_64::{
        __m256, __m512, _CMP_NEQ_UQ, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_movemask_ps,
        _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    /// One AVX register. Only functions made by `lanes!`, which enable AVX2 and FMA, make values of it.
    #[derive(Clone, Copy)]
    pub struct Avx(__m256);

    impl Lane for Avx {
        const N: usize = LANES;
        type Half = Avx;
        #[inline(always)]
        fn load(x: &[f32]) -> Avx {
            let x = &x[..LANES];
            // SAFETY: reads the eight floats of a slice of eight; AVX is on, see above.
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
        fn store(self, to: &mut [f32]) {
            let to = &mut to[..LANES];
            // SAFETY: writes the eight floats of a slice of eight; AVX is on, see above.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
        }
    }

    impl Eight for Avx {
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

    /// One AVX-512 register. Only functions made by `lanes!`, which enable AVX-512 F, make values of it.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Lane for Avx512 {
        const N: usize = 2 * LANES;
        type Half = Avx;
        #[inline(always)]
        fn load(x: &[f32]) -> Avx512 {
            let x = &x[..Self::N];
            // SAFETY: reads the sixteen floats of a slice of sixteen; AVX-512 is on, see above.
            Avx512(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }
        #[inline(always)]
        fn splat(x: f32) -> Avx512 {
            // SAFETY: AVX-512 is on, see above.
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        fn mul_add(self, b: Avx512, c: Avx512) -> Avx512 {
            // SAFETY: AVX-512 is on, see above.
            Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32]) {
            let to = &mut to[..Self::N];
            // SAFETY: writes the sixteen floats of a slice of sixteen; AVX-512 is on, see above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }
    }
}

/// The floats at `i`.
#[inline(always)]
pub fn load<V: Lane>(x: &[f32], i: usize) -> V {
    V::load(&x[i..i + V::N])
}

/// The floats of `to` at `i`.
#[inline(always)]
pub fn store<V: Lane>(v: V, to: &mut [f32], i: usize) {
    v.store(&mut to[i..i + V::N]);
}

/// Defines a function that runs `$body`, generic over its [`Lane`] first, with the best one of this processor: of eight
/// floats; of sixteen after `sixteen`; of as many as it has after `widest`. AVX-512 is the same arithmetic with twice
/// the registers, which are twice as wide. Closures do not inherit the instruction set of the function they end up in:
/// bodies are plain loops.
#[macro_export]
#[doc(hidden)]
macro_rules! lanes {
    (sixteen: $($f:tt)*) => {
        $crate::lanes! {
            @ $crate::device::lane::Pair<$crate::device::lane::Plain>,
            $crate::device::lane::Pair<$crate::device::lane::x86::Avx>,
            $crate::device::lane::x86::Avx512;
            $($f)*
        }
    };
    (widest: $($f:tt)*) => {
        $crate::lanes! {
            @ $crate::device::lane::Plain, $crate::device::lane::x86::Avx, $crate::device::lane::x86::Avx512;
            $($f)*
        }
    };
    (@ $plain:ty, $avx2:ty, $avx512:ty;
     $(#[$doc:meta])* $vis:vis fn $name:ident $(<$(const $G:ident: $GT:ty),*>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$doc])*
        $vis fn $name $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<$avx2 $($(, $G)*)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
            fn avx512 $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<$avx512 $($(, $G)*)?>($($arg),*)
            }
            match $crate::device::simd::level() {
                // SAFETY: `level` returns these only after the processor reported the features.
                #[cfg(target_arch = "x86_64")]
                $crate::device::simd::Level::Avx512 => unsafe { avx512 $(::<$($G),*>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::simd::Level::Avx2 => unsafe { avx2 $(::<$($G),*>)? ($($arg),*) },
                _ => $body::<$plain $($(, $G)*)?>($($arg),*),
            }
        }
    };
    ($($f:tt)*) => {
        $crate::lanes! {
            @ $crate::device::lane::Plain, $crate::device::lane::x86::Avx, $crate::device::lane::x86::Avx;
            $($f)*
        }
    };
}
