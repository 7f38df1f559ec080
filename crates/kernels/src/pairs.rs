//! [`Pairs`]: what algorithms need from an instruction set that multiplies pairs of bfloat16.

use crate::simd::Simd;

/// A register of float32.
pub(crate) type F32<P> = <<P as Pairs>::Simd as Simd>::F32;
/// As many float32 (or pairs) as a register holds, in memory.
pub(crate) type Chunk<P> = <<P as Pairs>::Simd as Simd>::Chunk;

/// Products of bfloat16 with float32 sums. A pair is two neighbouring bfloat16 in the bits of a float32 (the first
/// one in the lower half), so that scratch memory for float32 holds pairs too; nothing computes with such a float32.
///
/// Like a [`Simd`] value, a value of an implementing type proves that the processor has the instructions.
pub(crate) trait Pairs: Copy {
    /// The instruction set without those products.
    type Simd: Simd;
    /// As many pairs in a register as [`Self::Simd`] has lanes.
    type Pairs: Copy;

    /// The weaker proof.
    fn simd(self) -> Self::Simd;

    /// Per lane: the sum plus the products of both halves of the pairs.
    fn dot(self, sums: F32<Self>, a: Self::Pairs, b: Self::Pairs) -> F32<Self>;

    /// The same pair in all lanes.
    fn splat_pair(self, pair: f32) -> Self::Pairs;

    /// Reads pairs.
    fn load_pairs(self, chunk: &Chunk<Self>) -> Self::Pairs;

    /// Writes pairs.
    fn store_pairs(self, pairs: Self::Pairs, chunk: &mut Chunk<Self>);

    /// Twice as many values as lanes, rounded (ties to even); neighbours become a pair.
    fn neighbours(self, first: F32<Self>, second: F32<Self>) -> Self::Pairs;

    /// Reads pairs of as many rows as there are lanes and writes chunk by chunk pair 0 of all rows, pair 1 of all
    /// rows, …, a chunk every `stride` floats. What is missing is zero.
    fn transpose(self, rows: &Rows<'_>, out: &mut [f32], stride: usize);
}

/// Equally long parts of some rows of a matrix of bfloat16, at any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Begins with the first row's part.
    pub(crate) bytes: &'a [u8],
    /// Bytes from row to row.
    pub(crate) stride: usize,
    /// Number of rows, at most as many as a register has lanes.
    pub(crate) count: usize,
    /// Bytes of a part, at most a register's.
    pub(crate) len: usize,
}

impl<'a> Rows<'a> {
    /// The part of a row.
    #[inline(always)]
    pub(crate) fn part(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.len]
    }
}
