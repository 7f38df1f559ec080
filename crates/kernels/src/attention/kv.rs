//! [`KvLayout`]: how the keys and values of [`BLOCK_TOKENS`] tokens lie in a block.
//!
//! A block is one head after another: keys, then values, in words of 32 bits. Keys lie transposed, so that a register
//! holds one element (or two neighbouring ones) of many tokens:
//! - float32: keys `[D][tokens]`, values `[tokens][padded D]`;
//! - bfloat16, two per word: keys `[D/2][tokens][2]`, values `[tokens/2][padded D][2]`;
//! - eight bits, four per word, otherwise as float32: a row of keys is n words of elements j, j + n, j + 2n, j + 3n, a
//!   row of values is sixteen elements after sixteen elements in that way; then a scale per token for the keys and one
//!   for the values.

use super::factors::Factors;
use crate::dispatch::Kernels;
use crate::precision::KvPrecision;

/// Tokens per block.
pub const BLOCK_TOKENS: usize = 32;

/// Sizes of a block of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// K: key/value heads.
    pub kv_heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
    /// What an element becomes.
    pub precision: KvPrecision,
}

impl Kernels {
    /// Stores the keys and values of neighbouring tokens (both `[tokens, K, D]`), from place `offset` of a block on.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn write_kv(&self, layout: &KvLayout, block: &mut [f32], offset: usize, keys: &[f32], values: &[f32]) {
        let width = layout.kv_heads * layout.head_dim;
        assert_eq!(keys.len(), values.len(), "keys and values of {layout:?}");
        assert!(keys.len().is_multiple_of(width.max(1)), "{} values are not tokens of {layout:?}", keys.len());
        assert!(
            offset + keys.len() / width.max(1) <= BLOCK_TOKENS && block.len() == layout.block_len(),
            "{} values from place {offset} on of a block of {}",
            keys.len(),
            block.len()
        );
        if width > 0 {
            (self.write_kv)(layout, block, offset, keys, values);
        }
    }
}

/// Head by head, so that what tokens share stays in the first-level cache.
#[inline(always)]
pub(crate) fn write_kv<S>(_: S, layout: &KvLayout, block: &mut [f32], offset: usize, keys: &[f32], values: &[f32]) {
    let KvLayout { kv_heads, head_dim, precision } = *layout;
    for (at, head) in block.chunks_exact_mut(layout.head_len()).enumerate() {
        let tokens = keys.chunks_exact(kv_heads * head_dim).zip(values.chunks_exact(kv_heads * head_dim));
        for (offset, (key, value)) in (offset..).zip(tokens) {
            let [key, value] = [key, value].map(|of_token| &of_token[at * head_dim..][..head_dim]);
            match precision {
                KvPrecision::Float32 => layout.write_plain(head, offset, key, value),
                KvPrecision::Bfloat16 => layout.write_pairs(head, offset, key, value),
                KvPrecision::Eight => layout.write_codes(head, offset, key, value),
            }
        }
    }
}

impl KvLayout {
    /// Words in a block.
    pub fn block_len(&self) -> usize {
        self.kv_heads * self.head_len()
    }

    /// Bytes of keys and values per token.
    pub fn bytes_per_token(&self) -> usize {
        self.block_len() * size_of::<f32>() / BLOCK_TOKENS
    }

    #[inline(always)]
    fn write_plain(&self, head: &mut [f32], offset: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = head.split_at_mut(self.keys_len());
        for (place, &key) in keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
            place[offset] = key;
        }
        let (place, padding) = values[offset * self.padded_dim()..][..self.padded_dim()].split_at_mut(self.head_dim);
        place.copy_from_slice(value);
        padding.fill(0.0);
    }

    #[inline(always)]
    fn write_pairs(&self, head: &mut [f32], offset: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = head.split_at_mut(self.keys_len());
        // Rounded together, in vector instructions, before each pair goes to a line of its own.
        for (places, key) in keys.chunks_mut(WORDS * BLOCK_TOKENS).zip(key.chunks(2 * WORDS)) {
            let words = if let Ok(key) = key.try_into() { words(key) } else { words(&padded(key)) };
            for (place, word) in places.chunks_exact_mut(BLOCK_TOKENS).zip(words) {
                place[offset] = word;
            }
        }
        let row = &mut values[offset / 2 * self.padded_dim()..][..self.padded_dim()];
        let (place, padding) = row.split_at_mut(self.head_dim);
        let (kept, shift) = if offset.is_multiple_of(2) { (0xFFFF_0000, 0) } else { (0xFFFF, 16) };
        for (word, &value) in place.iter_mut().zip(value) {
            *word = f32::from_bits(word.to_bits() & kept | rounded(value) << shift);
        }
        padding.fill(0.0);
    }

    #[inline(always)]
    fn write_codes(&self, head: &mut [f32], offset: usize, key: &[f32], value: &[f32]) {
        let (codes, scales) = head.split_at_mut(self.keys_len() + self.values_len());
        let (keys, values) = codes.split_at_mut(self.keys_len());
        scales[offset] = scale_of(key);
        scales[BLOCK_TOKENS + offset] = scale_of(value);
        for (row, &key) in keys.chunks_exact_mut(BLOCK_TOKENS / 4).zip(key) {
            put_code(row, offset, code_of(key, scales[offset]));
        }
        let row = &mut values[offset * self.padded_dim() / 4..][..self.padded_dim() / 4];
        row.fill(0.0);
        for (words, part) in row.chunks_exact_mut(4).zip(value.chunks(16)) {
            for (at, &value) in part.iter().enumerate() {
                put_code(words, at, code_of(value, scales[BLOCK_TOKENS + offset]));
            }
        }
    }

    /// Head size in whole registers of any instruction set.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Words of one head.
    fn head_len(&self) -> usize {
        let scales = if self.precision == KvPrecision::Eight { 2 * BLOCK_TOKENS } else { 0 };
        self.keys_len() + self.values_len() + scales
    }

    fn keys_len(&self) -> usize {
        match self.precision {
            KvPrecision::Float32 => self.head_dim * BLOCK_TOKENS,
            KvPrecision::Bfloat16 => self.head_dim.div_ceil(2) * BLOCK_TOKENS,
            KvPrecision::Eight => self.head_dim * BLOCK_TOKENS / 4,
        }
    }

    fn values_len(&self) -> usize {
        let elements = self.padded_dim() * BLOCK_TOKENS;
        match self.precision {
            KvPrecision::Float32 => elements,
            KvPrecision::Bfloat16 => elements / 2,
            KvPrecision::Eight => elements / 4,
        }
    }

    /// Words that [`Self::keys`] or [`Self::values`] may need.
    pub(super) fn words_len(&self) -> usize {
        self.padded_dim() * BLOCK_TOKENS
    }

    /// Keys of a head, `[D in words][tokens]`; in the block itself, or converted.
    #[inline(always)]
    pub(super) fn keys<'a, F: Factors>(&self, block: &'a [f32], kv_head: usize, words: &'a mut [f32]) -> &'a [f32] {
        let head = &block[kv_head * self.head_len()..][..self.head_len()];
        let len = self.head_dim.div_ceil(F::PER_WORD) * BLOCK_TOKENS;
        if self.is_in_words::<F>() {
            return &head[..len];
        }
        for (at, row) in words[..len].chunks_exact_mut(BLOCK_TOKENS).enumerate() {
            let mut rows = [[0.0; BLOCK_TOKENS]; 2];
            for (row, d) in rows.iter_mut().zip(at * F::PER_WORD..self.head_dim.min((at + 1) * F::PER_WORD)) {
                self.key_row(head, d, row);
            }
            pack_rows::<F>(row, &rows[0], &rows[1]);
        }
        &words[..len]
    }

    /// Values of a head, `[tokens in words][padded D]`; in the block itself, or converted.
    #[inline(always)]
    pub(super) fn values<'a, F: Factors>(&self, block: &'a [f32], kv_head: usize, words: &'a mut [f32]) -> &'a [f32] {
        let head = &block[kv_head * self.head_len()..][..self.head_len()];
        let len = self.padded_dim() * BLOCK_TOKENS / F::PER_WORD;
        if self.is_in_words::<F>() {
            return &head[self.keys_len()..][..len];
        }
        for (at, row) in words[..len].chunks_exact_mut(self.padded_dim()).enumerate() {
            for (part, row) in row.chunks_exact_mut(16).enumerate() {
                let mut rows = [[0.0; 16]; 2];
                for (row, token) in rows.iter_mut().zip(at * F::PER_WORD..(at + 1) * F::PER_WORD) {
                    self.value_part(head, token, part, row);
                }
                pack_rows::<F>(row, &rows[0], &rows[1]);
            }
        }
        &words[..len]
    }

    #[inline(always)]
    fn is_in_words<F: Factors>(&self) -> bool {
        match self.precision {
            KvPrecision::Float32 => F::PER_WORD == 1,
            KvPrecision::Bfloat16 => F::PER_WORD == 2,
            KvPrecision::Eight => false,
        }
    }

    /// Element d of all tokens' keys.
    #[inline(always)]
    fn key_row(&self, head: &[f32], d: usize, out: &mut [f32; BLOCK_TOKENS]) {
        match self.precision {
            KvPrecision::Float32 => out.copy_from_slice(&head[d * BLOCK_TOKENS..][..BLOCK_TOKENS]),
            KvPrecision::Bfloat16 => halves(&head[d / 2 * BLOCK_TOKENS..], d % 2, out),
            KvPrecision::Eight => {
                let words = &head[d * BLOCK_TOKENS / 4..][..BLOCK_TOKENS / 4];
                for quarter in 0..4 {
                    codes(words, quarter, &mut out[quarter * BLOCK_TOKENS / 4..][..BLOCK_TOKENS / 4]);
                }
                let scales = &head[self.keys_len() + self.values_len()..][..BLOCK_TOKENS];
                for (value, scale) in out.iter_mut().zip(scales) {
                    *value *= scale;
                }
            }
        }
    }

    /// Sixteen elements of a token's values.
    #[inline(always)]
    fn value_part(&self, head: &[f32], token: usize, part: usize, out: &mut [f32; 16]) {
        let values = &head[self.keys_len()..];
        let padded = self.padded_dim();
        match self.precision {
            KvPrecision::Float32 => out.copy_from_slice(&values[token * padded + part * 16..][..16]),
            KvPrecision::Bfloat16 => halves(&values[token / 2 * padded + part * 16..], token % 2, out),
            KvPrecision::Eight => {
                let words = &values[(token * padded + part * 16) / 4..][..4];
                for quarter in 0..4 {
                    codes(words, quarter, &mut out[4 * quarter..][..4]);
                }
                let scale = values[self.values_len() + BLOCK_TOKENS + token];
                for value in out {
                    *value *= scale;
                }
            }
        }
    }
}

/// One or two rows of elements as a row of words.
#[inline(always)]
fn pack_rows<F: Factors>(words: &mut [f32], first: &[f32], second: &[f32]) {
    for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
        *word = if F::PER_WORD == 1 { first } else { pair_of(first, second) };
    }
}

/// The first or second halves of some words.
#[inline(always)]
fn halves(words: &[f32], half: usize, out: &mut [f32]) {
    for (value, word) in out.iter_mut().zip(words) {
        let bits = word.to_bits();
        *value = f32::from_bits(if half == 0 { bits << 16 } else { bits & 0xFFFF_0000 });
    }
}

#[inline(always)]
fn codes(words: &[f32], quarter: usize, out: &mut [f32]) {
    for (value, &word) in out.iter_mut().zip(words) {
        *value = code(word, quarter);
    }
}

#[inline(always)]
fn code(word: f32, quarter: usize) -> f32 {
    f32::from((word.to_bits() >> (8 * quarter)) as i8)
}

#[inline(always)]
fn put_code(words: &mut [f32], at: usize, code: i8) {
    let (at, shift) = (at % words.len(), 8 * (at / words.len()));
    let others = words[at].to_bits() & !(0xFF << shift);
    words[at] = f32::from_bits(others | u32::from(code as u8) << shift);
}

/// The largest magnitude is code 127. What is not finite makes all of the token's elements NaN.
#[inline(always)]
fn scale_of(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let is_finite = values.iter().all(|value| value.is_finite());
    if is_finite { largest / 127.0 } else { f32::NAN }
}

#[inline(always)]
fn code_of(value: f32, scale: f32) -> i8 {
    // Nothing divided by nothing, and NaN, are code zero.
    (value / scale).round_ties_even() as i8
}

/// Words that are made at a time: a register of any instruction set.
const WORDS: usize = 16;

#[inline(always)]
fn words(values: &[f32; 2 * WORDS]) -> [f32; WORDS] {
    let mut words = [0.0; WORDS];
    for (word, &[first, second]) in words.iter_mut().zip(values.as_chunks().0) {
        *word = pair_of(first, second);
    }
    words
}

/// Zeros behind the last values.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; 2 * WORDS] {
    let mut padded = [0.0; 2 * WORDS];
    padded[..values.len()].copy_from_slice(values);
    padded
}

/// Two values as a word.
#[inline(always)]
pub(super) fn pair_of(first: f32, second: f32) -> f32 {
    f32::from_bits(rounded(first) | rounded(second) << 16)
}

/// The nearest bfloat16 (ties to even) in the lower half.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() { bits >> 16 | 0x40 } else { (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 }
}
