//! The row `avx512-bf16`: what [`Pairs`] improves, on top of the row for AVX-512 without it.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::vector::Avx512;
use crate::pairs::{Pairs, Rows};

/// Proof that the processor has AVX-512 BF16 besides what [`Avx512`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    /// # Safety
    /// The processor has AVX-512 BF16 and whatever [`Avx512::new`] asks for.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller's promise includes it.
        Self(unsafe { Avx512::new() })
    }
}

// AVX-512 with products of pairs of bfloat16: Zen 4, Sapphire Rapids and later.
crate::generic_table::pairs_table!(
    "avx512-bf16",
    Avx512Bf16,
    super::row::ROW,
    super::vnni::QUANTIZED,
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
);

const LANES: usize = 16;

impl Pairs for Avx512Bf16 {
    type Simd = Avx512;
    type Pairs = __m512i;
    type Pair = __m512i;
    type Square = [__m512i; LANES];

    const DEPTH: usize = 2;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    crate::generic_table::apart!(target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"
    ));

    #[inline(always)]
    fn dot(self, sums: __m512, pair: __m512i, pairs: __m512i) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction; the casts only change the type.
        unsafe { _mm512_dpbf16_ps(sums, transmute::<__m512i, __m512bh>(pair), transmute::<__m512i, __m512bh>(pairs)) }
    }

    #[inline(always)]
    fn splat_pair(self, pair: f32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_castps_si512(_mm512_set1_ps(pair)) }
    }

    #[inline(always)]
    fn load_pairs(self, chunk: &[f32; LANES]) -> __m512i {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_pairs(self, pairs: __m512i, chunk: &mut [f32; LANES]) {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm512_storeu_si512(chunk.as_mut_ptr().cast(), pairs) }
    }

    #[inline(always)]
    fn neighbours(self, first: __m512, second: __m512) -> __m512i {
        // SAFETY: as above; the cast only changes the type.
        unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
    }

    #[inline(always)]
    fn transposed(self, rows: &Rows<'_>) -> [__m512i; LANES] {
        if rows.count() == LANES && rows.len() == 4 * LANES {
            // SAFETY: `self` proves that the processor has the instruction.
            let mut lines = [unsafe { _mm512_setzero_si512() }; LANES];
            for (row, line) in lines.iter_mut().enumerate() {
                // SAFETY: as above; the part can be read and is as long as the register, any alignment will do.
                *line = unsafe { _mm512_loadu_si512(rows.part(row).cast()) };
            }
            // SAFETY: as above.
            return unsafe { transposed(lines) };
        }
        // SAFETY: as above.
        unsafe { transposed(edge(rows)) }
    }

    #[inline(always)]
    fn add_most(self, sums: __m512, a: __m512i, b: __m512i) -> __m512 {
        self.dot(sums, a, b)
    }
}

/// Parts of fewer rows than there are lanes, or shorter than a register, with zeros behind them. A function of its own:
/// where both ways to fill the registers meet, they would go through memory.
///
/// # Safety
/// The processor has these features.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn edge(rows: &Rows<'_>) -> [__m512i; LANES] {
    let mut lines = [_mm512_setzero_si512(); LANES];
    let mask = if rows.len() >= 4 * LANES { u32::MAX } else { (1 << (rows.len() / 2)) - 1 };
    for (row, line) in lines.iter_mut().enumerate().take(rows.count()) {
        // SAFETY: the mask allows reading only within the part, which can be read.
        *line = unsafe { _mm512_maskz_loadu_epi16(mask, rows.part(row).cast()) };
    }
    lines
}

/// Lane `r` of register `c` becomes lane `c` of register `r`.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn transposed(r: [__m512i; LANES]) -> [__m512i; LANES] {
    // SAFETY: the caller has proved that the processor has AVX-512; registers only.
    unsafe {
        let (mut t, mut u, mut out) = (r, r, r);
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for g in 0..4 {
            u[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
            u[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
            u[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
            u[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
        }
        // Quarter q of u[4g + j] is column 4q + j of rows 4g ..= 4g + 3.
        for j in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(u[j], u[4 + j]);
            let odd = _mm512_shuffle_i32x4::<0xDD>(u[j], u[4 + j]);
            let even_below = _mm512_shuffle_i32x4::<0x88>(u[8 + j], u[12 + j]);
            let odd_below = _mm512_shuffle_i32x4::<0xDD>(u[8 + j], u[12 + j]);
            out[j] = _mm512_shuffle_i32x4::<0x88>(even, even_below);
            out[8 + j] = _mm512_shuffle_i32x4::<0xDD>(even, even_below);
            out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_below);
            out[12 + j] = _mm512_shuffle_i32x4::<0xDD>(odd, odd_below);
        }
        out
    }
}
