//! [`Dots`] without VNNI, one register per panel: products as with AVX2 (`avx2/dots.rs` says why they are safe from
//! overflow), on registers of twice the width.

use std::arch::x86_64::*;

use super::Avx512;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL, registers, repeated};

/// Proof as [`Avx512`], for weights of 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(Avx512);

/// Proof as [`Avx512`], for weights of 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Halves(Avx512);

/// Even and odd places, widened to 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Split {
    even: __m512i,
    odd: __m512i,
}

/// What does not depend on how products are formed.
macro_rules! common {
    () => {
        type Simd = Avx512;
        type Sums = __m512i;
        type Floats = __m512;

        const WIDE: bool = true;

        #[inline(always)]
        fn simd(self) -> Avx512 {
            self.0
        }

        registers! {
            zero() -> __m512i = _mm512_setzero_si512();
            to_floats(sums: __m512i) -> __m512 = _mm512_cvtepi32_ps(sums);
            splat(value: f32) -> __m512 = _mm512_set1_ps(value);
            widen(halves: &[u8; 2 * PANEL]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()));
            load(values: &[f32; PANEL]) -> __m512 = _mm512_loadu_ps(values.as_ptr());
            store(floats: __m512, values: &mut [f32; PANEL]) -> () = _mm512_storeu_ps(values.as_mut_ptr(), floats);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            fused(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            prefetch(address: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
    };
}
pub(super) use common;

/// A line's low halves of bytes (part 0) or high ones.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline(always)]
pub(super) unsafe fn byte_halves(line: &[u8; LINE], part: usize) -> __m512i {
    // SAFETY: the caller vouches for the instructions; the line is as long as the register.
    unsafe {
        let line = _mm512_loadu_si512(line.as_ptr().cast());
        let low_halves = _mm512_set1_epi8(15);
        _mm512_and_si512(if part == 0 { line } else { _mm512_srli_epi16::<4>(line) }, low_halves)
    }
}

impl Bytes {
    /// # Safety
    /// As for [`Avx512::new`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for the same.
        Self(unsafe { Avx512::new() })
    }
}

impl Dots for Bytes {
    type Run = __m512i;
    type Codes = Split;
    type Quad = Split;

    const QUADS: usize = 1;
    const RUN: usize = MOST_GROUP;
    const TILE_ROWS: usize = 2;

    common!();

    #[inline(always)]
    fn begin(self, sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    fn end(self, _sums: __m512i, run: __m512i) -> __m512i {
        run
    }

    registers! {
        codes(line: &[u8; LINE], _part: usize) -> Split = {
            let line = _mm512_loadu_si512(line.as_ptr().cast());
            let even = _mm512_and_si512(line, _mm512_set1_epi16(255));
            Split { even, odd: _mm512_srli_epi16::<8>(line) }
        };
        quad(activations: [i8; 4]) -> Split = {
            let quad = _mm512_set1_epi32(repeated(activations));
            Split { even: _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(quad)), odd: _mm512_srai_epi16::<8>(quad) }
        };
        dot(run: __m512i, codes: Split, quad: Split) -> __m512i = {
            let (even, odd) = (_mm512_madd_epi16(codes.even, quad.even), _mm512_madd_epi16(codes.odd, quad.odd));
            _mm512_add_epi32(_mm512_add_epi32(run, even), odd)
        };
    }
}

impl Halves {
    /// # Safety
    /// As for [`Avx512::new`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for the same.
        Self(unsafe { Avx512::new() })
    }
}

impl Dots for Halves {
    /// Sums of 16 bits, two per output.
    type Run = __m512i;
    type Codes = __m512i;
    type Quad = __m512i;

    const QUADS: usize = 2;
    const RUN: usize = 32;
    const TILE_ROWS: usize = 3;

    common!();

    registers! {
        begin(_sums: __m512i) -> __m512i = _mm512_setzero_si512();
        end(sums: __m512i, run: __m512i) -> __m512i =
            _mm512_add_epi32(sums, _mm512_madd_epi16(run, _mm512_set1_epi16(1)));
        codes(line: &[u8; LINE], part: usize) -> __m512i = byte_halves(line, part);
        quad(activations: [i8; 4]) -> __m512i = _mm512_set1_epi32(repeated(activations));
        dot(run: __m512i, codes: __m512i, quad: __m512i) -> __m512i =
            _mm512_add_epi16(run, _mm512_maddubs_epi16(codes, quad));
    }
}
