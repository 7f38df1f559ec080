//! [`Factors`]: what attention multiplies with, float32 or pairs of bfloat16.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use crate::pairs::Pairs;
use crate::simd::Simd;
use crate::softmax::{exponentials, largest};

pub(super) type F32<F> = <<F as Factors>::Simd as Simd>::F32;
pub(super) type Chunk<F> = <<F as Factors>::Simd as Simd>::Chunk;

/// A word is the 32 bits of a float32 that hold one factor ([`Plain`]) or two neighbouring ones ([`Paired`]).
pub(crate) trait Factors: Copy {
    /// The instruction set.
    type Simd: Simd;
    /// A register of words.
    type Words: Copy;
    /// One word for all lanes.
    type Word: Copy;

    /// Factors per word.
    const PER_WORD: usize;
    /// Rows of a register tile.
    const TILE_ROWS: usize = Self::Simd::TILE_ROWS;

    /// The instruction set.
    fn simd(self) -> Self::Simd;

    /// Calls a function (which is inlined), in code of its own where that matters ([`Simd::apart`], [`Pairs::apart`]).
    fn apart(self, function: impl FnOnce());

    /// One word for all lanes.
    fn splat(self, word: f32) -> Self::Word;

    /// Reads words.
    fn load(self, chunk: &Chunk<Self>) -> Self::Words;

    /// Reads words of which only one factor counts: the other one becomes zero.
    fn load_half(self, chunk: &Chunk<Self>, is_first: bool) -> Self::Words;

    /// Per lane: the sum plus the products of one word's factors with those of the lane's word.
    fn multiply_add(self, word: Self::Word, words: Self::Words, sums: F32<Self>) -> F32<Self>;

    /// Turns values into words, which are then at the front. The length is a multiple of 32.
    fn narrow(self, values: &mut [f32]);

    /// Turns the scores of some tokens (from one multiple of 32 to another; negative infinity for what is not seen) into
    /// weights `e^(score - largest)`, as words at the places of words; returns the largest score and the sum of the
    /// weights.
    fn weigh(self, scores: &mut [f32], tokens: Range<usize>) -> (f32, f32);
}

/// Factors in float32.
#[derive(Clone, Copy)]
pub(crate) struct Plain<S>(pub(crate) S);

impl<S: Simd> Factors for Plain<S> {
    type Simd = S;
    type Words = S::F32;
    type Word = S::F32;

    const PER_WORD: usize = 1;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn apart(self, function: impl FnOnce()) {
        self.0.apart(function);
    }

    #[inline(always)]
    fn splat(self, word: f32) -> S::F32 {
        self.0.splat(word)
    }

    #[inline(always)]
    fn load(self, chunk: &S::Chunk) -> S::F32 {
        self.0.load(chunk)
    }

    #[inline(always)]
    fn load_half(self, chunk: &S::Chunk, _is_first: bool) -> S::F32 {
        self.0.load(chunk)
    }

    #[inline(always)]
    fn multiply_add(self, word: S::F32, words: S::F32, sums: S::F32) -> S::F32 {
        self.0.mul_add(word, words, sums)
    }

    #[inline(always)]
    fn narrow(self, _values: &mut [f32]) {}

    #[inline(always)]
    fn weigh(self, scores: &mut [f32], tokens: Range<usize>) -> (f32, f32) {
        exponentials(self.0, &mut scores[tokens])
    }
}

/// Factors rounded to bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Paired<P>(pub(crate) P);

impl<P: Pairs> Factors for Paired<P> {
    type Simd = P::Simd;
    type Words = P::Pairs;
    type Word = P::Pair;

    const PER_WORD: usize = 2;

    #[inline(always)]
    fn simd(self) -> P::Simd {
        self.0.simd()
    }

    #[inline(always)]
    fn apart(self, function: impl FnOnce()) {
        self.0.apart(function);
    }

    #[inline(always)]
    fn splat(self, word: f32) -> P::Pair {
        self.0.splat_pair(word)
    }

    #[inline(always)]
    fn load(self, chunk: &Chunk<Self>) -> P::Pairs {
        self.0.load_pairs(chunk)
    }

    #[inline(always)]
    fn load_half(self, chunk: &Chunk<Self>, is_first: bool) -> P::Pairs {
        let mask = if is_first { 0xFFFF } else { 0xFFFF_0000 };
        let mut half = *chunk;
        for word in half.as_mut() {
            *word = f32::from_bits(word.to_bits() & mask);
        }
        self.0.load_pairs(&half)
    }

    #[inline(always)]
    fn multiply_add(self, word: P::Pair, words: P::Pairs, sums: F32<Self>) -> F32<Self> {
        self.0.dot(sums, word, words)
    }

    #[inline(always)]
    fn narrow(self, values: &mut [f32]) {
        let simd = self.simd();
        let (chunks, _) = P::Simd::chunks_mut(values);
        for at in 0..chunks.len() / 2 {
            let pairs = self.0.neighbours(simd.load(&chunks[2 * at]), simd.load(&chunks[2 * at + 1]));
            self.0.store_pairs(pairs, &mut chunks[at]);
        }
    }

    #[inline(always)]
    fn weigh(self, scores: &mut [f32], tokens: Range<usize>) -> (f32, f32) {
        let simd = self.simd();
        let largest_score = largest(simd, &scores[tokens.clone()]);
        let largest = simd.splat(largest_score);
        let (chunks, _) = P::Simd::chunks_mut(scores);
        let mut sums = [simd.splat(0.0); 2];
        for at in tokens.start / (2 * P::Simd::LANES)..tokens.end / (2 * P::Simd::LANES) {
            let first = weight(simd, simd.load(&chunks[2 * at]), largest);
            let second = weight(simd, simd.load(&chunks[2 * at + 1]), largest);
            sums = [simd.add(sums[0], first), simd.add(sums[1], second)];
            // Never beyond what is read already.
            self.0.store_pairs(self.0.neighbours(first, second), &mut chunks[at]);
        }
        (largest_score, simd.sum(simd.add(sums[0], sums[1])))
    }
}

/// `e^(score - largest)`, to 3e-6 of itself (it will be rounded to 2e-3); 0 for negative infinity.
///
/// With n the integer nearest to the exponent of 2, it is `2ⁿ · 2ʳ` with `|r| <= 1/2`, the latter by the polynomial of degree
/// 4 with the smallest relative error (2.6e-6).
#[inline(always)]
fn weight<S: Simd>(simd: S, score: S::F32, largest: S::F32) -> S::F32 {
    let exponent = simd.mul(simd.sub(score, largest), simd.splat(LOG2_E));
    // The operand order lets NaN through.
    let exponent = simd.max(simd.splat(-160.0), exponent);
    let n = simd.round(exponent);
    let r = simd.sub(exponent, n);
    let mut p = simd.splat(9.570_102e-3);
    for coefficient in [5.591_786e-2, 0.240_247_45, 0.693_121_8, 0.999_999_3] {
        p = simd.mul_add(p, r, simd.splat(coefficient));
    }
    simd.scale_by_power(p, n)
}
