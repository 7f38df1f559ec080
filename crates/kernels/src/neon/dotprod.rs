//! [`Dots`] by `sdot`: dot products of four bytes, sixteen to an instruction.
//!
//! Both operands are signed. Codes of 4 bits fit; codes of 8 bits are taken less 128 (one instruction per register of
//! codes, shared by the tile's rows), and a group's first sums are 128 times the sum of its activations.
//!
//! The activations' quad is one lane of a register, which the instruction repeats by itself: loading four bytes is all
//! it takes. Compilers know the instruction, Rust has not stabilised its name, hence `asm!`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Neon;
use super::dots::{Four, common, first_of_signed, line_halves, signed, signed_line};
use super::row::ROW;
use crate::dispatch::Kernels;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL, registers, repeated};

crate::quantized::quantized_table!(
    Neon::new(),
    Dotprod::<8>::new(),
    Dotprod::<4>::new(),
    target_feature(enable = "neon,dotprod")
);

/// Everything as without dot products, but the quantised products.
pub(crate) static KERNELS: Kernels = Kernels { name: "neon-dotprod", quantized: QUANTIZED, ..ROW };

/// Proof that the processor has NEON and its dot products; for weights of that many bits.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod<const BITS: usize>(Neon);

impl<const BITS: usize> Dotprod<BITS> {
    /// # Safety
    /// The processor has NEON and its dot products.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for more.
        Self(unsafe { Neon::new() })
    }
}

/// `sums[lane] += Σ codes[4 · lane + i] · quad[i]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_by_first_quad(mut sums: int32x4_t, codes: int8x16_t, quad: int8x16_t) -> int32x4_t {
    // SAFETY: the function has the instruction's feature; it touches registers only.
    unsafe {
        asm!("sdot {sums:v}.4s, {codes:v}.16b, {quad:v}.4b[0]",
            sums = inout(vreg) sums, codes = in(vreg) codes, quad = in(vreg) quad,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

impl<const BITS: usize> Dots for Dotprod<BITS> {
    type Run = Four<int32x4_t>;
    type Codes = Four<int8x16_t>;
    type Quad = int8x16_t;

    const QUADS: usize = 8 / BITS;
    const RUN: usize = MOST_GROUP;
    // Codes of 4 bits need registers to be taken apart.
    const TILE_ROWS: usize = if BITS == 4 { 4 } else { 6 };

    common!();

    #[inline(always)]
    fn begin(self, sums: Self::Sums) -> Self::Run {
        sums
    }

    #[inline(always)]
    fn end(self, _sums: Self::Sums, run: Self::Run) -> Self::Sums {
        run
    }

    #[inline(always)]
    fn first<const G: usize>(self, activations: &[i8; G]) -> Self::Sums {
        if BITS == 4 {
            return self.zero();
        }
        // SAFETY: `self` proves that the processor has NEON.
        unsafe { first_of_signed(activations) }
    }

    registers! {
        codes(line: &[u8; LINE], part: usize) -> Four<int8x16_t> =
            if BITS == 4 { signed(line_halves(line, part)) } else { signed_line(line) };
        quad(activations: [i8; 4]) -> int8x16_t =
            vreinterpretq_s8_s32(vsetq_lane_s32::<0>(repeated(activations), vdupq_n_s32(0)));
        dot(run: Four<int32x4_t>, codes: Four<int8x16_t>, quad: int8x16_t) -> Four<int32x4_t> = [
            dot_by_first_quad(run[0], codes[0], quad),
            dot_by_first_quad(run[1], codes[1], quad),
            dot_by_first_quad(run[2], codes[2], quad),
            dot_by_first_quad(run[3], codes[3], quad),
        ];
    }
}
