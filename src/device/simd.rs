//! One body of plain Rust, compiled for several instruction sets, the best one chosen at run time.
//!
//! The binary is built for the oldest processor of its architecture; `simd!` compiles its function again with
//! AVX2 + FMA and with AVX-512 enabled, where the compiler vectorises the same loops with wider registers. The
//! constant `FMA` tells the body whether `mul_add` is one instruction (elsewhere it would be a slow call).

use std::sync::OnceLock;

/// Instruction sets that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What every processor of this architecture has.
    Base,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, VL, BW and DQ.
    Avx512,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Base => "baseline SIMD",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
        })
    }
}

/// The best level of this processor. `DALCORE_SIMD=base|avx2|avx512` lowers it, to test the other paths.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let most = match std::env::var("DALCORE_SIMD").as_deref() {
            Ok("base") => Level::Base,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        detect(most)
    })
}

#[cfg(target_arch = "x86_64")]
fn detect(most: Level) -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match most {
        Level::Avx512 if avx512 => Level::Avx512,
        Level::Avx512 | Level::Avx2 if avx2 => Level::Avx2,
        _ => Level::Base,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect(_most: Level) -> Level {
    Level::Base
}

/// True when `mul_add` is one instruction even without a special level.
pub const BASE_FMA: bool = cfg!(target_arch = "aarch64");

/// `a * b + c`, rounded once where FMA is one instruction.
#[inline(always)]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines a function whose body is compiled for every [`Level`]. The body may use the constant `FMA`.
#[macro_export]
#[doc(hidden)]
macro_rules! simd {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$(const $G:ident: $GT:ty),*>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool $($(, const $G: $GT)*)?>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
                body::<true $($(, $G)*)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512 $(<$(const $G: $GT),*>)? ($($arg: $ty),*) $(-> $ret)? {
                body::<true $($(, $G)*)?>($($arg),*)
            }
            match $crate::device::simd::level() {
                // SAFETY: `level` returns these only after the processor reported the features.
                #[cfg(target_arch = "x86_64")]
                $crate::device::simd::Level::Avx512 => unsafe { avx512 $(::<$($G),*>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::simd::Level::Avx2 => unsafe { avx2 $(::<$($G),*>)? ($($arg),*) },
                _ => body::<{ $crate::device::simd::BASE_FMA } $($(, $G)*)?>($($arg),*),
            }
        }
    };
}
