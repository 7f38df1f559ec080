//! [`Simd`] on registers of eight values.

use std::arch::x86_64::*;

use crate::simd::Simd;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

const LANES: usize = 8;

macro_rules! lanewise {
    ($($name:ident($($operand:ident),+) = $result:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($operand: __m256),+) -> __m256 {
            // SAFETY: `self` proves that the processor has these instructions; they touch registers only.
            unsafe { $result }
        }
    )+};
}

impl Simd for Avx2 {
    type F32 = __m256;
    type Chunk = [f32; LANES];
    type Bytes2 = [u8; 2 * LANES];
    type Bytes4 = [u8; 4 * LANES];

    const LANES: usize = LANES;
    const TILE_ROWS: usize = 3;
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

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, chunk: &Self::Chunk) -> __m256 {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm256_loadu_ps(chunk.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m256, chunk: &mut Self::Chunk) {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm256_storeu_ps(chunk.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn load_f32(self, chunk: &Self::Bytes4) -> __m256 {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { _mm256_loadu_ps(chunk.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_bf16(self, chunk: &Self::Bytes2) -> __m256 {
        // SAFETY: as above; the chunk is as long as the half register, any alignment will do.
        unsafe {
            let halves = _mm_loadu_si128(chunk.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn load_f16(self, chunk: &Self::Bytes2) -> __m256 {
        // SAFETY: as above; the chunk is as long as the half register, any alignment will do.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(chunk.as_ptr().cast())) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch accesses nothing as far as the program can tell, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    lanewise! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        abs(a) = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        scale_by_power(a, exponent) = {
            // Two steps, each with an exponent that a float can hold.
            let exponent = _mm256_cvtps_epi32(exponent);
            let first = _mm256_srai_epi32::<1>(exponent);
            let second = _mm256_sub_epi32(exponent, first);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(first, bias)));
            let second = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(second, bias)));
            _mm256_mul_ps(_mm256_mul_ps(a, first), second)
        };
        where_negative(sign, negative, positive) = {
            let is_negative = _mm256_cmp_ps::<_CMP_LT_OQ>(sign, _mm256_setzero_ps());
            _mm256_blendv_ps(positive, negative, is_negative)
        };
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // SAFETY: `self` proves that the processor has these instructions; the array is as long as the register.
        unsafe {
            // Distance 4: halves of a and b, of c and d.
            let ab = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            let cd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
            // Distance 2: a a c c | b b d d.
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let high = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
            let abcd = _mm256_add_ps(low, high);
            // Distance 1: a c a c | b d b d.
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(abcd, abcd);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(abcd, abcd);
            let sums = _mm256_add_ps(even, odd);
            let in_order = _mm_unpacklo_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), in_order);
            out
        }
    }
}
