//! [`Dots`] on two registers of eight outputs.
//!
//! The products of bytes (`vpmaddubsw`) saturate at 16 bits. Codes of 4 bits cannot get there: a run of 32 inputs sums
//! to 15 · 127 · 16 = 30480 in each half of a quad. Codes of 8 bits can with two products, so they are widened: even and
//! odd inputs of a quad separately, because that takes a mask and a shift, and no permutation.

use std::arch::x86_64::*;

use super::Avx2;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL, registers, repeated};

/// Proof as [`Avx2`], for weights of 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(Avx2);

/// Proof as [`Avx2`], for weights of 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Halves(Avx2);

/// Even and odd places, widened to 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Split<T> {
    even: T,
    odd: T,
}

pub(super) type Pair<T> = [T; 2];

/// What does not depend on how products are formed.
macro_rules! common {
    () => {
        type Simd = Avx2;
        type Sums = Pair<__m256i>;
        type Floats = Pair<__m256>;

        const WIDE: bool = false;

        #[inline(always)]
        fn simd(self) -> Avx2 {
            self.0
        }

        registers! {
            zero() -> Pair<__m256i> = [_mm256_setzero_si256(); 2];
            to_floats(sums: Pair<__m256i>) -> Pair<__m256> =
                [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])];
            splat(value: f32) -> Pair<__m256> = [_mm256_set1_ps(value); 2];
            widen(halves: &[u8; 2 * PANEL]) -> Pair<__m256> = {
                let halves = halves.as_chunks::<PANEL>().0;
                [
                    _mm256_cvtph_ps(_mm_loadu_si128(halves[0].as_ptr().cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(halves[1].as_ptr().cast())),
                ]
            };
            load(values: &[f32; PANEL]) -> Pair<__m256> = {
                let halves = values.as_chunks::<8>().0;
                [_mm256_loadu_ps(halves[0].as_ptr()), _mm256_loadu_ps(halves[1].as_ptr())]
            };
            store(floats: Pair<__m256>, values: &mut [f32; PANEL]) -> () = {
                let halves = values.as_chunks_mut::<8>().0;
                _mm256_storeu_ps(halves[0].as_mut_ptr(), floats[0]);
                _mm256_storeu_ps(halves[1].as_mut_ptr(), floats[1]);
            };
            mul(a: Pair<__m256>, b: Pair<__m256>) -> Pair<__m256> =
                [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
            fused(a: Pair<__m256>, b: Pair<__m256>, c: Pair<__m256>) -> Pair<__m256> =
                [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
            prefetch(address: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
    };
}
pub(super) use common;

/// Both halves of a line.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn line_halves(line: &[u8; LINE]) -> Pair<__m256i> {
    let halves = line.as_chunks::<32>().0;
    // SAFETY: the caller vouches for the instructions; the halves are as long as the registers.
    unsafe { [_mm256_loadu_si256(halves[0].as_ptr().cast()), _mm256_loadu_si256(halves[1].as_ptr().cast())] }
}

/// Both halves of a line's low halves of bytes (part 0) or high ones.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn byte_halves(line: &[u8; LINE], part: usize) -> Pair<__m256i> {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let [a, b] = line_halves(line);
        let low_halves = _mm256_set1_epi8(15);
        if part == 0 {
            [_mm256_and_si256(a, low_halves), _mm256_and_si256(b, low_halves)]
        } else {
            let (a, b) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
            [_mm256_and_si256(a, low_halves), _mm256_and_si256(b, low_halves)]
        }
    }
}

impl Bytes {
    /// # Safety
    /// As for [`Avx2::new`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for the same.
        Self(unsafe { Avx2::new() })
    }
}

impl Dots for Bytes {
    type Run = Pair<__m256i>;
    type Codes = Pair<Split<__m256i>>;
    type Quad = Split<__m256i>;

    const QUADS: usize = 1;
    const RUN: usize = MOST_GROUP;
    const TILE_ROWS: usize = 4;

    common!();

    #[inline(always)]
    fn begin(self, sums: Self::Sums) -> Self::Run {
        sums
    }

    #[inline(always)]
    fn end(self, _sums: Self::Sums, run: Self::Run) -> Self::Sums {
        run
    }

    registers! {
        codes(line: &[u8; LINE], _part: usize) -> Pair<Split<__m256i>> = {
            let [a, b] = line_halves(line);
            let low_bytes = _mm256_set1_epi16(255);
            [
                Split { even: _mm256_and_si256(a, low_bytes), odd: _mm256_srli_epi16::<8>(a) },
                Split { even: _mm256_and_si256(b, low_bytes), odd: _mm256_srli_epi16::<8>(b) },
            ]
        };
        quad(activations: [i8; 4]) -> Split<__m256i> = {
            let quad = _mm256_set1_epi32(repeated(activations));
            Split { even: _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(quad)), odd: _mm256_srai_epi16::<8>(quad) }
        };
        dot(run: Pair<__m256i>, codes: Pair<Split<__m256i>>, quad: Split<__m256i>) -> Pair<__m256i> = {
            let even = [_mm256_madd_epi16(codes[0].even, quad.even), _mm256_madd_epi16(codes[1].even, quad.even)];
            let odd = [_mm256_madd_epi16(codes[0].odd, quad.odd), _mm256_madd_epi16(codes[1].odd, quad.odd)];
            [
                _mm256_add_epi32(_mm256_add_epi32(run[0], even[0]), odd[0]),
                _mm256_add_epi32(_mm256_add_epi32(run[1], even[1]), odd[1]),
            ]
        };
    }
}

impl Halves {
    /// # Safety
    /// As for [`Avx2::new`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for the same.
        Self(unsafe { Avx2::new() })
    }
}

impl Dots for Halves {
    /// Sums of 16 bits, two per output.
    type Run = Pair<__m256i>;
    type Codes = Pair<__m256i>;
    type Quad = __m256i;

    const QUADS: usize = 2;
    const RUN: usize = 32;
    const TILE_ROWS: usize = 4;

    common!();

    registers! {
        begin(_sums: Pair<__m256i>) -> Pair<__m256i> = [_mm256_setzero_si256(); 2];
        end(sums: Pair<__m256i>, run: Pair<__m256i>) -> Pair<__m256i> = {
            let ones = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(run[0], ones)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(run[1], ones)),
            ]
        };
        codes(line: &[u8; LINE], part: usize) -> Pair<__m256i> = byte_halves(line, part);
        quad(activations: [i8; 4]) -> __m256i = _mm256_set1_epi32(repeated(activations));
        dot(run: Pair<__m256i>, codes: Pair<__m256i>, quad: __m256i) -> Pair<__m256i> = [
            _mm256_add_epi16(run[0], _mm256_maddubs_epi16(codes[0], quad)),
            _mm256_add_epi16(run[1], _mm256_maddubs_epi16(codes[1], quad)),
        ];
    }
}
