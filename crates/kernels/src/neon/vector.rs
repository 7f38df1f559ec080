//! [`Simd`] on registers of four values.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::simd::Simd;

/// Proof that the processor has NEON (Advanced SIMD).
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

const LANES: usize = 4;

macro_rules! lanewise {
    ($($name:ident($($operand:ident),+) = $result:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($operand: float32x4_t),+) -> float32x4_t {
            // SAFETY: `self` proves that the processor has these instructions; they touch registers only.
            unsafe { $result }
        }
    )+};
}

impl Simd for Neon {
    type F32 = float32x4_t;
    type Chunk = [f32; LANES];
    type Bytes2 = [u8; 2 * LANES];
    type Bytes4 = [u8; 4 * LANES];

    const LANES: usize = LANES;
    // With six rows all 32 registers would be in use, and compilers move some to and fro.
    const TILE_ROWS: usize = 5;
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
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    fn load(self, chunk: &Self::Chunk) -> float32x4_t {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { vld1q_f32(chunk.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: float32x4_t, chunk: &mut Self::Chunk) {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { vst1q_f32(chunk.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn load_f32(self, chunk: &Self::Bytes4) -> float32x4_t {
        // SAFETY: as above; the chunk is as long as the register, any alignment will do.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(chunk.as_ptr())) }
    }

    #[inline(always)]
    fn load_bf16(self, chunk: &Self::Bytes2) -> float32x4_t {
        // SAFETY: as above; the chunk is as long as the half register, any alignment will do.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(chunk.as_ptr())))) }
    }

    #[inline(always)]
    fn load_f16(self, chunk: &Self::Bytes2) -> float32x4_t {
        // SAFETY: as above; the chunk is as long as the half register, any alignment will do.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(chunk.as_ptr()))) }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch accesses nothing as far as the program can tell, whatever the address.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags)) }
    }

    lanewise! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        mul_add(a, b, c) = vfmaq_f32(c, a, b);
        // The instruction of that name gives NaN if either is.
        max(a, b) = vbslq_f32(vcgtq_f32(a, b), a, b);
        min(a, b) = vbslq_f32(vcltq_f32(a, b), a, b);
        abs(a) = vabsq_f32(a);
        round(a) = vrndnq_f32(a);
        scale_by_power(a, exponent) = {
            // Two steps, each with an exponent that a float can hold.
            let exponent = vcvtq_s32_f32(exponent);
            let first = vshrq_n_s32::<1>(exponent);
            let second = vsubq_s32(exponent, first);
            let bias = vdupq_n_s32(127);
            let first = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(first, bias)));
            let second = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(second, bias)));
            vmulq_f32(vmulq_f32(a, first), second)
        };
        where_negative(sign, negative, positive) = vbslq_f32(vcltzq_f32(sign), negative, positive);
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        // SAFETY: `self` proves that the processor has these instructions; the array is as long as the register.
        unsafe {
            // Distance 2: a a b b and c c d d.
            let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
            let (c, d) = (vreinterpretq_f64_f32(c), vreinterpretq_f64_f32(d));
            let ab = vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)));
            let cd = vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(c, d)), vreinterpretq_f32_f64(vzip2q_f64(c, d)));
            let mut out = [0.0; 4];
            // Distance 1.
            vst1q_f32(out.as_mut_ptr(), vpaddq_f32(ab, cd));
            out
        }
    }
}
