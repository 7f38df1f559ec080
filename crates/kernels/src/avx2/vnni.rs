//! [`Dots`] by AVX-VNNI: processors without AVX-512 since Alder Lake.

use std::arch::x86_64::*;

use super::Avx2;
use super::dots::{Pair, byte_halves, common, line_halves};
use super::row::ROW;
use crate::dispatch::Kernels;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL, registers, repeated};

crate::quantized::quantized_table!(
    Avx2::new(),
    Vnni::<8>::new(),
    Vnni::<4>::new(),
    target_feature(enable = "avx2,fma,f16c,avxvnni")
);

/// Everything as without VNNI, but the quantised products.
pub(crate) static KERNELS: Kernels = Kernels { name: "avx2-vnni", quantized: QUANTIZED, ..ROW };

/// Proof that the processor has AVX-VNNI and what [`Avx2`] stands for; for weights of that many bits.
#[derive(Clone, Copy)]
pub(crate) struct Vnni<const BITS: usize>(Avx2);

impl<const BITS: usize> Vnni<BITS> {
    /// # Safety
    /// The processor has AVX2, FMA, F16C and AVX-VNNI.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for more.
        Self(unsafe { Avx2::new() })
    }
}

impl<const BITS: usize> Dots for Vnni<BITS> {
    type Run = Pair<__m256i>;
    type Codes = Pair<__m256i>;
    type Quad = __m256i;

    const QUADS: usize = 8 / BITS;
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
        codes(line: &[u8; LINE], part: usize) -> Pair<__m256i> =
            if BITS == 8 { line_halves(line) } else { byte_halves(line, part) };
        quad(activations: [i8; 4]) -> __m256i = _mm256_set1_epi32(repeated(activations));
        dot(run: Pair<__m256i>, codes: Pair<__m256i>, quad: __m256i) -> Pair<__m256i> =
            [_mm256_dpbusd_avx_epi32(run[0], codes[0], quad), _mm256_dpbusd_avx_epi32(run[1], codes[1], quad)];
    }
}
