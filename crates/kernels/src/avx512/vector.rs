//! [`Simd`] on registers of sixteen values.

use std::arch::x86_64::*;

use crate::simd::Simd;

/// Proof that the processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

const LANES: usize = 16;

macro_rules! lanewise {
    ($($name:ident($($operand:ident),+) = $result:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($operand: __m512),+) -> __m512 {
            // SAFETY: `self` proves that the processor has these instructions; they touch registers only.
            unsafe { $result }
        }
    )+};
}

impl Simd for Avx512 {
    type F32 = __m512;
    type Chunk = [f32; LANES];
    type Bytes2 = [u8; 2 * LANES];
    type Bytes4 = [u8; 4 * LANES];

    const LANES: usize = LANES;
    const TILE_ROWS: usize = 6;
    const ZERO_CHUNK: Self::Chunk = [0.0; LANES];

    #[inline(always)]
    fn chunks(values: &[f32]) -> (&[Self::Chunk], &[f32]) {
        values.as_chunks()
    }

    #[inline(always)]
    fn chunks_mut(values: &mut [f32]) -> (&mut [Self::Chunk], &mut [f32]) {
        values.as_chunks_mut()
    }

    #[inline(always)]
    fn chunks2(bytes: &[u8]) -> (&[Self::Bytes2], &[u8]) {
        bytes.as_chunks()
    }

    #[inline(always)]
    fn chunks4(bytes: &[u8]) -> (&[Self::Bytes4], &[u8]) {
        bytes.as_chunks()
    }

    crate::generic_table::apart!(target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"));

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, chunk: &Self::Chunk) -> __m512 {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm512_loadu_ps(chunk.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, chunk: &mut Self::Chunk) {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm512_storeu_ps(chunk.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn load_part(self, values: &[f32]) -> __m512 {
        // SAFETY: as above; the mask allows reading only the values.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(values.len()), values.as_ptr()) }
    }

    #[inline(always)]
    fn store_part(self, value: __m512, values: &mut [f32]) {
        // SAFETY: as above; the mask allows writing only the values.
        unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), first_lanes(values.len()), value) }
    }

    #[inline(always)]
    fn load_f32(self, chunk: &Self::Bytes4) -> __m512 {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm512_loadu_ps(chunk.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_bf16(self, chunk: &Self::Bytes2) -> __m512 {
        // SAFETY: as above; the chunk is as long as the half register, any alignment will do.
        unsafe {
            let halves = _mm256_loadu_si256(chunk.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn load_f16(self, chunk: &Self::Bytes2) -> __m512 {
        // SAFETY: as above; the chunk is as long as the half register, any alignment will do.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(chunk.as_ptr().cast())) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch accesses nothing as far as the program can tell, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    lanewise! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        abs(a) = _mm512_abs_ps(a);
        round(a) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        scale_by_power(a, exponent) = _mm512_scalef_ps(a, exponent);
        where_negative(sign, negative, positive) = {
            let is_negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sign, _mm512_setzero_ps());
            _mm512_mask_blend_ps(is_negative, positive, negative)
        };
    }

    #[inline(always)]
    fn largest(self, vector: __m512) -> f32 {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_reduce_max_ps(vector) }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: `self` proves that the processor has these instructions; the array is as long as the register.
        unsafe {
            // Distance 8: quarters a a b b and c c d d.
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
            // Distance 4: quarters a b c d.
            let abcd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd));
            // Distances 2 and 1 within the quarters.
            let pairs = _mm512_add_ps(abcd, _mm512_permute_ps::<0b01_00_11_10>(abcd));
            let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sums)));
            out
        }
    }
}

/// A mask of so many lanes, all of them if there are no more.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    if count >= Avx512::LANES { __mmask16::MAX } else { (1 << count) - 1 }
}
