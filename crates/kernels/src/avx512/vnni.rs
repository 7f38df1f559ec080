//! [`Dots`] by VNNI, one register per panel.

use std::arch::x86_64::*;

use super::{Avx512, ROW};
use crate::dispatch::Kernels;
use crate::quantized::{Dots, LINE, PANEL};

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

macro_rules! registers {
    ($($name:ident($($operand:ident: $type:ty),*) -> $result_type:ty = $result:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($operand: $type),*) -> $result_type {
            // SAFETY: `self` proves that the processor has these instructions; they touch registers, and memory only
            // through references that are as long as the registers, at any alignment.
            unsafe { $result }
        }
    )+};
}

impl<const BITS: usize> Dots for Vnni<BITS> {
    type Simd = Avx512;
    type Sums = __m512i;
    type Run = __m512i;
    type Codes = __m512i;
    type Quad = __m512i;
    type Floats = __m512;

    const QUADS: usize = 8 / BITS;
    const TILE_ROWS: usize = 6;
    const WIDE: bool = true;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn begin(self, sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    fn end(self, _sums: __m512i, run: __m512i) -> __m512i {
        run
    }

    registers! {
        zero() -> __m512i = _mm512_setzero_si512();
        codes(line: &[u8; LINE], part: usize) -> __m512i = {
            let line = _mm512_loadu_si512(line.as_ptr().cast());
            let low_halves = _mm512_set1_epi8(15);
            match (BITS, part) {
                (8, _) => line,
                (_, 0) => _mm512_and_si512(line, low_halves),
                _ => _mm512_and_si512(_mm512_srli_epi16::<4>(line), low_halves),
            }
        };
        quad(activations: [i8; 4]) -> __m512i = _mm512_set1_epi32(i32::from_le_bytes(activations.map(i8::cast_unsigned)));
        dot(run: __m512i, codes: __m512i, quad: __m512i) -> __m512i = _mm512_dpbusd_epi32(run, codes, quad);
        to_floats(sums: __m512i) -> __m512 = _mm512_cvtepi32_ps(sums);
        splat(value: f32) -> __m512 = _mm512_set1_ps(value);
        widen(halves: &[u8; 2 * PANEL]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast()));
        load(values: &[f32; PANEL]) -> __m512 = _mm512_loadu_ps(values.as_ptr());
        store(floats: __m512, values: &mut [f32; PANEL]) -> () = _mm512_storeu_ps(values.as_mut_ptr(), floats);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fused(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        prefetch(address: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
}
