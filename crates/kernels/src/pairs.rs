//! [`Pairs`]: what algorithms need from an instruction set that multiplies pairs of bfloat16.

use crate::matmul_pairs::{Tile, add_products_by_dots};
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
    /// One pair for all lanes.
    type Pair: Copy;
    /// As many registers of pairs.
    type Square: AsRef<[Self::Pairs]>;

    /// Multiply-adds per lane of the instruction that [`Self::add_products`] consists of.
    const DEPTH: usize;

    /// The weaker proof.
    fn simd(self) -> Self::Simd;

    /// Calls a function (which is inlined) in code of its own: [`Simd::apart`].
    fn apart(self, function: impl FnOnce());

    /// Per lane: the sum plus the products of both halves of the lane's pair with those of one pair.
    fn dot(self, sums: F32<Self>, pair: Self::Pair, pairs: Self::Pairs) -> F32<Self>;

    /// One pair for all lanes.
    fn splat_pair(self, pair: f32) -> Self::Pair;

    /// Reads pairs.
    fn load_pairs(self, chunk: &Chunk<Self>) -> Self::Pairs;

    /// Writes pairs.
    fn store_pairs(self, pairs: Self::Pairs, chunk: &mut Chunk<Self>);

    /// Twice as many values as lanes, rounded (ties to even); neighbours become a pair.
    fn neighbours(self, first: F32<Self>, second: F32<Self>) -> Self::Pairs;

    /// Pairs of as many rows as there are lanes, of parts that are at most a register: pair 0 of all rows, pair 1 of
    /// all rows, … What is missing is zero.
    fn transposed(self, rows: &Rows<'_>) -> Self::Square;

    /// The same pairs in the order in which [`Self::add_products`] reads them.
    #[inline(always)]
    fn packed(self, rows: &Rows<'_>) -> Self::Square {
        self.transposed(rows)
    }

    /// Adds the products of a tile, R rows × C registers of columns, to the bits of [`Self::dot`].
    #[inline(always)]
    fn add_products<const R: usize, const C: usize>(self, tile: &Tile<'_>, sums: &mut [[F32<Self>; C]; R]) {
        add_products_by_dots(self, tile, sums);
    }

    /// The instruction that [`Self::add_products`] consists of.
    fn add_most(self, sums: F32<Self>, a: Self::Pairs, b: Self::Pairs) -> F32<Self>;
}

/// Equally long parts of some rows of a matrix of bfloat16, at any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    bytes: &'a [u8],
    stride: usize,
    count: usize,
    len: usize,
}

impl<'a> Rows<'a> {
    /// Parts of `len` bytes of `count` rows (at most as many as a register has lanes), `stride` bytes from row to row.
    /// The bytes begin with the first row's part.
    #[inline(always)]
    pub(crate) fn new(bytes: &'a [u8], stride: usize, count: usize, len: usize) -> Self {
        assert!(count > 0 && len <= stride && (count - 1) * stride + len <= bytes.len(), "rows beyond the matrix");
        Self { bytes, stride, count, len }
    }

    /// Of every part what begins at byte `first`, at most `len` bytes.
    #[inline(always)]
    pub(crate) fn block(&self, first: usize, len: usize) -> Self {
        Self { bytes: &self.bytes[first..], len: len.min(self.len - first), ..*self }
    }

    /// Number of rows.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of a part.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the part of a row begins; for rows below [`Self::count`], [`Self::len`] bytes can be read there.
    #[inline(always)]
    pub(crate) fn part(&self, row: usize) -> *const u8 {
        self.bytes.as_ptr().wrapping_add(row * self.stride)
    }
}
