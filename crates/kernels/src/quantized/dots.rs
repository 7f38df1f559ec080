//! [`Dots`]: what quantised products need from an instruction set.

use super::{LINE, Line, PANEL, group_sums_by_quads};
use crate::simd::Simd;

/// Whole-number products of a panel's sixteen outputs at a time, and the floats they become.
///
/// Like [`Simd`], a value is the proof that the processor has the instructions. There is one implementation for
/// weights of 8 bits and one for 4, because what is safe from overflow differs.
pub(crate) trait Dots: Copy {
    /// The float operations of the same instruction set.
    type Simd: Simd;
    /// Sixteen sums of 32 bits.
    type Sums: Copy;
    /// Sixteen sums over at most [`Self::RUN`] inputs, in whatever form is fastest.
    type Run: Copy;
    /// Codes of four inputs for sixteen outputs.
    type Codes: Copy;
    /// Four activations, repeated for all outputs.
    type Quad: Copy;
    /// Sixteen float32.
    type Floats: Copy;

    /// Quads of inputs in a line of packed weights: 1 for 8 bits, 2 for 4 bits.
    const QUADS: usize;
    /// Inputs that a run may sum: [`super::RUN`] or a whole group.
    const RUN: usize;
    /// Rows of a register tile.
    const TILE_ROWS: usize;
    /// Rows of a tile that is one panel wide, for so few rows that reading the weights is what takes time.
    const STREAM_ROWS: usize = Self::TILE_ROWS;
    /// Whether a register tile is four panels wide, rather than one.
    const WIDE: bool;

    /// The proof for float operations.
    fn simd(self) -> Self::Simd;

    /// Zeros.
    fn zero(self) -> Self::Sums;
    /// A run that will be added to `sums`.
    fn begin(self, sums: Self::Sums) -> Self::Run;
    /// `sums` and what was added since [`Self::begin`].
    fn end(self, sums: Self::Sums, run: Self::Run) -> Self::Sums;
    /// A line's codes of its quad number `part` (below [`Self::QUADS`]).
    fn codes(self, line: &[u8; LINE], part: usize) -> Self::Codes;
    /// The same four activations for all outputs.
    fn quad(self, activations: [i8; 4]) -> Self::Quad;
    /// Adds four products per output.
    fn dot(self, run: Self::Run, codes: Self::Codes, quad: Self::Quad) -> Self::Run;

    /// What a group's sums over these activations begin with: makes up for what [`Self::codes`] may take from all codes.
    #[inline(always)]
    fn first<const G: usize>(self, _activations: &[i8; G]) -> Self::Sums {
        self.zero()
    }

    /// The sums of a group of G inputs, R rows × P panels: of the panels' cells and the rows' activations. For
    /// processors that multiply several rows or quads at once.
    #[inline(always)]
    fn group_sums<const G: usize, const R: usize, const P: usize>(
        self,
        cells: &[&[Line]; P],
        activations: &[&[i8; G]; R],
    ) -> [[Self::Sums; P]; R] {
        group_sums_by_quads(self, cells, activations)
    }

    /// The nearest float32.
    fn to_floats(self, sums: Self::Sums) -> Self::Floats;
    /// The same value for all outputs.
    fn splat(self, value: f32) -> Self::Floats;
    /// Sixteen half-precision numbers, little-endian.
    fn widen(self, halves: &[u8; 2 * PANEL]) -> Self::Floats;
    /// Reads.
    fn load(self, values: &[f32; PANEL]) -> Self::Floats;
    /// Writes.
    fn store(self, floats: Self::Floats, values: &mut [f32; PANEL]);
    /// `a * b`.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn fused(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Asks for the memory at an address that will be read soon; any address will do.
    fn prefetch(self, address: *const u8);
}

/// Four activations as one number, to be repeated in a register.
#[inline(always)]
pub(crate) fn repeated([a, b, c, d]: [i8; 4]) -> i32 {
    // Not by `map`, which is not inlined into functions with other features.
    i32::from_le_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()])
}

/// Methods that are nothing but instructions.
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
pub(crate) use registers;
