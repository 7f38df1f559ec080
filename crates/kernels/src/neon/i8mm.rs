//! [`Dots`] by `usdot` and `usmmla`: unsigned codes times signed activations, as they are.
//!
//! For two rows at a time `usmmla` multiplies 2 × 8 codes by 2 × 8 activations, twice as many products as a dot product
//! has. Its operand is eight inputs of two outputs; a line has four inputs of four outputs in a register, so the
//! registers of two quads are zipped, which the tile's rows share. Sums come out as squares of two outputs by two
//! rows and are unzipped once per group. A row without a partner uses `usdot`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Neon;
use super::dots::{Four, common, line_halves, line_registers};
use super::row::ROW;
use crate::dispatch::Kernels;
use crate::quantized::{Dots, LINE, Line, MOST_GROUP, PANEL, group_sums_by_quads, registers, repeated};

crate::quantized::quantized_table!(
    Neon::new(),
    I8mm::<8>::new(),
    I8mm::<4>::new(),
    target_feature(enable = "neon,dotprod,i8mm")
);

/// Everything as without matrix products, but the quantised products.
pub(crate) static KERNELS: Kernels = Kernels { name: "neon-i8mm", quantized: QUANTIZED, ..ROW };

/// Proof that the processor has NEON and its products of byte matrices; for weights of that many bits.
#[derive(Clone, Copy)]
pub(crate) struct I8mm<const BITS: usize>(Neon);

impl<const BITS: usize> I8mm<BITS> {
    /// # Safety
    /// The processor has NEON and its products of byte matrices.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for more.
        Self(unsafe { Neon::new() })
    }

    /// The sums of a group's cell for each of R / 2 pairs of rows: squares of two outputs by two rows.
    #[inline(always)]
    fn squares<const G: usize, const R: usize>(
        self,
        cell: &[Line],
        activations: &[&[i8; G]; R],
    ) -> [[int32x4_t; PANEL / 2]; R] {
        // SAFETY: `self` proves that the processor has these instructions; they touch registers, and memory only
        // through references that are as long as the registers.
        unsafe {
            let mut squares = [[vdupq_n_s32(0); PANEL / 2]; R];
            for step in 0..G / 8 {
                let (first, second) = self.two_quads(cell, step);
                let mut pairs = [vdupq_n_s8(0); R];
                for pair in 0..R / 2 {
                    let (top, _) = activations[2 * pair].as_chunks::<8>();
                    let (bottom, _) = activations[2 * pair + 1].as_chunks::<8>();
                    pairs[pair] = vcombine_s8(vld1_s8(top[step].as_ptr()), vld1_s8(bottom[step].as_ptr()));
                }
                for four in 0..4 {
                    let [left, right] = zip(first[four], second[four]);
                    for pair in 0..R / 2 {
                        let squares = &mut squares[pair];
                        squares[2 * four] = multiply_square(squares[2 * four], left, pairs[pair]);
                        squares[2 * four + 1] = multiply_square(squares[2 * four + 1], right, pairs[pair]);
                    }
                }
            }
            squares
        }
    }

    /// Registers of one quad's codes and of the next one's: step `step` of a group, eight inputs each.
    #[inline(always)]
    fn two_quads(self, cell: &[Line], step: usize) -> (Four<uint8x16_t>, Four<uint8x16_t>) {
        if BITS == 4 {
            (self.codes(&cell[step], 0), self.codes(&cell[step], 1))
        } else {
            (self.codes(&cell[2 * step], 0), self.codes(&cell[2 * step + 1], 0))
        }
    }
}

/// `sums[lane] += Σ codes[4 · lane + i] · quad[i]`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn dot_by_first_quad(mut sums: int32x4_t, codes: uint8x16_t, quad: int8x16_t) -> int32x4_t {
    // SAFETY: the function has the instruction's feature; it touches registers only.
    unsafe {
        asm!("usdot {sums:v}.4s, {codes:v}.16b, {quad:v}.4b[0]",
            sums = inout(vreg) sums, codes = in(vreg) codes, quad = in(vreg) quad,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// `sums[2 · output + row] += Σ codes[8 · output + i] · activations[8 · row + i]` for two outputs and two rows.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn multiply_square(mut sums: int32x4_t, codes: uint8x16_t, activations: int8x16_t) -> int32x4_t {
    // SAFETY: the function has the instruction's feature; it touches registers only.
    unsafe {
        asm!("usmmla {sums:v}.4s, {codes:v}.16b, {activations:v}.16b",
            sums = inout(vreg) sums, codes = in(vreg) codes, activations = in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// Eight inputs of two outputs each, from two registers with four inputs of four outputs.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn zip(first: uint8x16_t, second: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let (first, second) = (vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second));
        [vreinterpretq_u8_u32(vzip1q_u32(first, second)), vreinterpretq_u8_u32(vzip2q_u32(first, second))]
    }
}

impl<const BITS: usize> Dots for I8mm<BITS> {
    type Run = Four<int32x4_t>;
    type Codes = Four<uint8x16_t>;
    type Quad = int8x16_t;

    const QUADS: usize = 8 / BITS;
    const RUN: usize = MOST_GROUP;
    // Two pairs; with three, compilers move sums to and fro.
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
        codes(line: &[u8; LINE], part: usize) -> Four<uint8x16_t> =
            if BITS == 4 { line_halves(line, part) } else { line_registers(line) };
        quad(activations: [i8; 4]) -> int8x16_t =
            vreinterpretq_s8_s32(vsetq_lane_s32::<0>(repeated(activations), vdupq_n_s32(0)));
        dot(run: Four<int32x4_t>, codes: Four<uint8x16_t>, quad: int8x16_t) -> Four<int32x4_t> = [
            dot_by_first_quad(run[0], codes[0], quad),
            dot_by_first_quad(run[1], codes[1], quad),
            dot_by_first_quad(run[2], codes[2], quad),
            dot_by_first_quad(run[3], codes[3], quad),
        ];
    }

    #[inline(always)]
    fn group_sums<const G: usize, const R: usize, const P: usize>(
        self,
        cells: &[&[Line]; P],
        activations: &[&[i8; G]; R],
    ) -> [[Self::Sums; P]; R] {
        if R == 1 {
            return group_sums_by_quads(self, cells, activations);
        }
        let mut sums = [[self.zero(); P]; R];
        for p in 0..P {
            let squares = self.squares(cells[p], activations);
            for pair in 0..R / 2 {
                for four in 0..4 {
                    // SAFETY: `self` proves that the processor has these instructions.
                    unsafe {
                        let (left, right) = (squares[pair][2 * four], squares[pair][2 * four + 1]);
                        sums[2 * pair][p][four] = vuzp1q_s32(left, right);
                        sums[2 * pair + 1][p][four] = vuzp2q_s32(left, right);
                    }
                }
            }
        }
        if R % 2 == 1 {
            [sums[R - 1]] = group_sums_by_quads(self, cells, &[activations[R - 1]]);
        }
        sums
    }
}
