//! [`Dots`] by VNNI, one register per panel.

use std::arch::x86_64::*;

use super::Avx512;
use super::ROW;
use super::dots::{byte_halves, common};
use crate::dispatch::Kernels;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL, registers, repeated};

crate::quantized::quantized_table!(
    Avx512::new(),
    Vnni::<8>::new(),
    Vnni::<4>::new(),
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
);

/// Everything as without VNNI, but the quantised products.
pub(crate) static KERNELS: Kernels = Kernels { name: "avx512-vnni", quantized: QUANTIZED, ..ROW };

/// Proof that the processor has VNNI and what [`Avx512`] stands for; for weights of that many bits.
#[derive(Clone, Copy)]
pub(crate) struct Vnni<const BITS: usize>(Avx512);

impl<const BITS: usize> Vnni<BITS> {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ, VL and VNNI, AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for more.
        Self(unsafe { Avx512::new() })
    }
}

impl<const BITS: usize> Dots for Vnni<BITS> {
    type Run = __m512i;
    type Codes = __m512i;
    type Quad = __m512i;

    const QUADS: usize = 8 / BITS;
    const RUN: usize = MOST_GROUP;
    const TILE_ROWS: usize = 3;
    const STREAM_ROWS: usize = 8;

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
        codes(line: &[u8; LINE], part: usize) -> __m512i =
            if BITS == 8 { _mm512_loadu_si512(line.as_ptr().cast()) } else { byte_halves(line, part) };
        quad(activations: [i8; 4]) -> __m512i = _mm512_set1_epi32(repeated(activations));
        dot(run: __m512i, codes: __m512i, quad: __m512i) -> __m512i = _mm512_dpbusd_epi32(run, codes, quad);
    }
}
