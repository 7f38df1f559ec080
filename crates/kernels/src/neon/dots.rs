//! [`Dots`] on four registers of four outputs, with nothing but NEON.
//!
//! There is no dot product of bytes, only products of 16 bits. Codes of 4 bits are summed in 16 bits over a run of 32
//! inputs, each place of a quad on its own: 8 · 15 · 127 = 15240, and 30480 when places are joined in pairs at its end.
//! Codes of 8 bits become signed (128 less, which a group's first sums make up for), so that a product fits 16 bits, and
//! pairs are added to 32 bits at once.

use std::arch::aarch64::*;

use super::Neon;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL, RUN, registers, repeated};

/// Proof as [`Neon`], for weights of 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(Neon);

/// Proof as [`Neon`], for weights of 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Halves(Neon);

/// A panel's outputs, four to a register.
pub(crate) type Four<T> = [T; 4];

/// What does not depend on how products are formed; the implementing type's field is the proof for [`Neon`].
macro_rules! common {
    () => {
        type Simd = Neon;
        type Sums = Four<int32x4_t>;
        type Floats = Four<float32x4_t>;

        const WIDE: bool = false;

        #[inline(always)]
        fn simd(self) -> Neon {
            self.0
        }

        #[inline(always)]
        fn prefetch(self, address: *const u8) {
            crate::simd::Simd::prefetch(self.0, address);
        }

        registers! {
            zero() -> Four<int32x4_t> = [vdupq_n_s32(0); 4];
            to_floats(sums: Four<int32x4_t>) -> Four<float32x4_t> =
                [vcvtq_f32_s32(sums[0]), vcvtq_f32_s32(sums[1]), vcvtq_f32_s32(sums[2]), vcvtq_f32_s32(sums[3])];
            splat(value: f32) -> Four<float32x4_t> = [vdupq_n_f32(value); 4];
            widen(halves: &[u8; 2 * PANEL]) -> Four<float32x4_t> = {
                let (fours, _) = halves.as_chunks::<8>();
                [
                    vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(fours[0].as_ptr()))),
                    vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(fours[1].as_ptr()))),
                    vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(fours[2].as_ptr()))),
                    vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(fours[3].as_ptr()))),
                ]
            };
            load(values: &[f32; PANEL]) -> Four<float32x4_t> = {
                let (fours, _) = values.as_chunks::<4>();
                [
                    vld1q_f32(fours[0].as_ptr()),
                    vld1q_f32(fours[1].as_ptr()),
                    vld1q_f32(fours[2].as_ptr()),
                    vld1q_f32(fours[3].as_ptr()),
                ]
            };
            store(floats: Four<float32x4_t>, values: &mut [f32; PANEL]) -> () = {
                let (fours, _) = values.as_chunks_mut::<4>();
                vst1q_f32(fours[0].as_mut_ptr(), floats[0]);
                vst1q_f32(fours[1].as_mut_ptr(), floats[1]);
                vst1q_f32(fours[2].as_mut_ptr(), floats[2]);
                vst1q_f32(fours[3].as_mut_ptr(), floats[3]);
            };
            mul(a: Four<float32x4_t>, b: Four<float32x4_t>) -> Four<float32x4_t> =
                [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])];
            fused(a: Four<float32x4_t>, b: Four<float32x4_t>, c: Four<float32x4_t>) -> Four<float32x4_t> = [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ];
        }
    };
}
pub(crate) use common;

/// The four registers of a line.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(crate) unsafe fn line_registers(line: &[u8; LINE]) -> Four<uint8x16_t> {
    let (fours, _) = line.as_chunks::<16>();
    // SAFETY: the caller vouches for the instructions; the parts are as long as the registers.
    unsafe {
        [
            vld1q_u8(fours[0].as_ptr()),
            vld1q_u8(fours[1].as_ptr()),
            vld1q_u8(fours[2].as_ptr()),
            vld1q_u8(fours[3].as_ptr()),
        ]
    }
}

/// A line of 4-bit codes: the low halves of its bytes (part 0) or the high ones.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(crate) unsafe fn line_halves(line: &[u8; LINE], part: usize) -> Four<uint8x16_t> {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let [a, b, c, d] = line_registers(line);
        if part == 0 {
            let low = vdupq_n_u8(15);
            [vandq_u8(a, low), vandq_u8(b, low), vandq_u8(c, low), vandq_u8(d, low)]
        } else {
            [vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b), vshrq_n_u8::<4>(c), vshrq_n_u8::<4>(d)]
        }
    }
}

/// A line of 8-bit codes, each less 128: what fits a signed byte.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(crate) unsafe fn signed_line(line: &[u8; LINE]) -> Four<int8x16_t> {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let [a, b, c, d] = line_registers(line);
        let sign = vdupq_n_u8(0x80);
        signed([veorq_u8(a, sign), veorq_u8(b, sign), veorq_u8(c, sign), veorq_u8(d, sign)])
    }
}

/// The same bits.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(crate) unsafe fn signed(codes: Four<uint8x16_t>) -> Four<int8x16_t> {
    let [a, b, c, d] = codes;
    // SAFETY: the caller vouches for the instructions.
    unsafe { [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)] }
}

/// What sums over [`signed_line`] begin with: 128 times the sum of the activations.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(crate) unsafe fn first_of_signed<const G: usize>(activations: &[i8; G]) -> Four<int32x4_t> {
    // SAFETY: the caller vouches for the instructions; the parts are as long as the registers.
    unsafe {
        let mut pairs = vdupq_n_s16(0);
        for part in activations.as_chunks::<16>().0 {
            pairs = vpadalq_s8(pairs, vld1q_s8(part.as_ptr()));
        }
        [vdupq_n_s32(128 * i32::from(vaddvq_s16(pairs))); 4]
    }
}

impl Bytes {
    /// # Safety
    /// As for [`Neon::new`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for the same.
        Self(unsafe { Neon::new() })
    }
}

impl Dots for Bytes {
    /// Two sums to an output.
    type Run = [int32x4_t; 8];
    type Codes = Four<int8x16_t>;
    type Quad = int8x16_t;

    const QUADS: usize = 1;
    const RUN: usize = MOST_GROUP;
    const TILE_ROWS: usize = 2;

    common!();

    #[inline(always)]
    fn first<const G: usize>(self, activations: &[i8; G]) -> Self::Sums {
        // SAFETY: `self` proves that the processor has NEON.
        unsafe { first_of_signed(activations) }
    }

    registers! {
        begin(_sums: Four<int32x4_t>) -> [int32x4_t; 8] = [vdupq_n_s32(0); 8];
        end(sums: Four<int32x4_t>, run: [int32x4_t; 8]) -> Four<int32x4_t> = [
            vaddq_s32(sums[0], vpaddq_s32(run[0], run[1])),
            vaddq_s32(sums[1], vpaddq_s32(run[2], run[3])),
            vaddq_s32(sums[2], vpaddq_s32(run[4], run[5])),
            vaddq_s32(sums[3], vpaddq_s32(run[6], run[7])),
        ];
        codes(line: &[u8; LINE], _part: usize) -> Four<int8x16_t> = signed_line(line);
        quad(activations: [i8; 4]) -> int8x16_t = vreinterpretq_s8_s32(vdupq_n_s32(repeated(activations)));
        dot(run: [int32x4_t; 8], codes: Four<int8x16_t>, quad: int8x16_t) -> [int32x4_t; 8] = {
            let mut run = run;
            for at in 0..4 {
                run[2 * at] = vpadalq_s16(run[2 * at], vmull_s8(vget_low_s8(codes[at]), vget_low_s8(quad)));
                run[2 * at + 1] = vpadalq_s16(run[2 * at + 1], vmull_high_s8(codes[at], quad));
            }
            run
        };
    }
}

impl Halves {
    /// # Safety
    /// As for [`Neon::new`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for the same.
        Self(unsafe { Neon::new() })
    }
}

impl Dots for Halves {
    /// Sums of 16 bits, four to an output.
    type Run = [int16x8_t; 8];
    type Codes = Four<int8x16_t>;
    type Quad = int8x16_t;

    const QUADS: usize = 2;
    const RUN: usize = RUN;
    const TILE_ROWS: usize = 2;

    common!();

    registers! {
        begin(_sums: Four<int32x4_t>) -> [int16x8_t; 8] = [vdupq_n_s16(0); 8];
        end(sums: Four<int32x4_t>, run: [int16x8_t; 8]) -> Four<int32x4_t> = [
            vpadalq_s16(sums[0], vpaddq_s16(run[0], run[1])),
            vpadalq_s16(sums[1], vpaddq_s16(run[2], run[3])),
            vpadalq_s16(sums[2], vpaddq_s16(run[4], run[5])),
            vpadalq_s16(sums[3], vpaddq_s16(run[6], run[7])),
        ];
        codes(line: &[u8; LINE], part: usize) -> Four<int8x16_t> = signed(line_halves(line, part));
        quad(activations: [i8; 4]) -> int8x16_t = vreinterpretq_s8_s32(vdupq_n_s32(repeated(activations)));
        dot(run: [int16x8_t; 8], codes: Four<int8x16_t>, quad: int8x16_t) -> [int16x8_t; 8] = {
            let mut run = run;
            for at in 0..4 {
                run[2 * at] = vmlal_s8(run[2 * at], vget_low_s8(codes[at]), vget_low_s8(quad));
                run[2 * at + 1] = vmlal_high_s8(run[2 * at + 1], codes[at], quad);
            }
            run
        };
    }
}
