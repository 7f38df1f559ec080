//! Eight numbers side by side: what the search for scales spends its time on.
//!
//! Compilers do not turn these loops into vector instructions by themselves (measured: a third of the speed), hence
//! AVX2 by hand, chosen when the program runs. Not in the kernels' crate: files are read without it. Both
//! implementations do the same operations in the same order, so the codes are the same on every machine.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "instructions that not every processor has"))]

use half::f16;

/// Numbers that are worked on at once.
pub(super) const LANES: usize = 8;

/// A value of an implementing type is a proof that the processor has its instructions.
pub(super) trait Lanes: Copy {
    /// [`LANES`] numbers.
    type Numbers: Copy;

    fn load(self, numbers: &[f32; LANES]) -> Self::Numbers;
    fn splat(self, number: f32) -> Self::Numbers;
    fn add(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    fn sub(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    fn mul(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    fn min(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    fn max(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// Lanes are added at distances 4, 2 and 1.
    fn total(self, numbers: Self::Numbers) -> f32;
    fn smallest(self, numbers: Self::Numbers) -> f32;
    fn largest(self, numbers: Self::Numbers) -> f32;
    /// The lowest byte of each number's bits.
    fn low_bytes(self, numbers: Self::Numbers) -> [u8; LANES];
    /// Rounded to half precision.
    fn half(self, number: f32) -> f16;
    fn single(self, number: f16) -> f32;
}

/// For any processor, and the oracle.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Lanes for Portable {
    type Numbers = [f32; LANES];

    #[inline(always)]
    fn load(self, numbers: &[f32; LANES]) -> [f32; LANES] {
        *numbers
    }

    #[inline(always)]
    fn splat(self, number: f32) -> [f32; LANES] {
        [number; LANES]
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn min(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn total(self, numbers: [f32; LANES]) -> f32 {
        folded(numbers, |a, b| a + b)
    }

    #[inline(always)]
    fn smallest(self, numbers: [f32; LANES]) -> f32 {
        folded(numbers, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn largest(self, numbers: [f32; LANES]) -> f32 {
        folded(numbers, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn low_bytes(self, numbers: [f32; LANES]) -> [u8; LANES] {
        numbers.map(|number| number.to_bits() as u8)
    }

    #[inline(always)]
    fn half(self, number: f32) -> f16 {
        f16::from_f32(number)
    }

    #[inline(always)]
    fn single(self, number: f16) -> f32 {
        number.to_f32()
    }
}

#[inline(always)]
fn each(mut a: [f32; LANES], b: [f32; LANES], operation: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = operation(*a, b);
    }
    a
}

#[inline(always)]
fn folded([a, b, c, d, e, f, g, h]: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    of(of(of(a, e), of(c, g)), of(of(b, f), of(d, h)))
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{LANES, Lanes};

    /// AVX2 and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// `None` where the processor lacks them.
        pub(crate) fn new() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
        }

        /// Calls a function whose every callee is inlined into code that may use these instructions.
        pub(crate) fn run<R>(self, function: impl FnOnce(Self) -> R) -> R {
            #[target_feature(enable = "avx2,f16c")]
            fn within<R>(lanes: Avx2, function: impl FnOnce(Avx2) -> R) -> R {
                function(lanes)
            }
            // SAFETY: `self` was made where the processor was asked for these features.
            unsafe { within(self, function) }
        }
    }

    macro_rules! operations {
        ($($name:ident($($argument:ident: $type:ty),+) -> $result:ty = $value:expr;)+) => {$(
            #[inline(always)]
            fn $name(self, $($argument: $type),+) -> $result {
                // SAFETY: `self` proves that the processor has these instructions; what they read is as long as a register.
                unsafe { $value }
            }
        )+};
    }

    impl Lanes for Avx2 {
        type Numbers = __m256;

        operations! {
            load(numbers: &[f32; LANES]) -> __m256 = _mm256_loadu_ps(numbers.as_ptr());
            splat(number: f32) -> __m256 = _mm256_set1_ps(number);
            add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            total(numbers: __m256) -> f32 = {
                let four = _mm_add_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps::<1>(numbers));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            };
            smallest(numbers: __m256) -> f32 = {
                let four = _mm_min_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps::<1>(numbers));
                let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
            };
            largest(numbers: __m256) -> f32 = {
                let four = _mm_max_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps::<1>(numbers));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            };
            low_bytes(numbers: __m256) -> [u8; LANES] = {
                let low = _mm256_and_si256(_mm256_castps_si256(numbers), _mm256_set1_epi32(255));
                let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
                _mm_cvtsi128_si64(_mm_packus_epi16(words, words)).to_le_bytes()
            };
            half(number: f32) -> f16 = {
                let halves = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(number));
                f16::from_bits(_mm_extract_epi16::<0>(halves) as u16)
            };
            single(number: f16) -> f32 = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(number.to_bits()))));
        }
    }
}
