//! A batch of queries meets a chunk of keys: scores, weights, sums of values.

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

use std::ops::Range;

use super::factors::{F32, Factors};
use super::{BLOCK_TOKENS, CHUNK, CHUNK_BLOCKS, Part, State, query_len};
use crate::simd::{Simd, by_tile_rows};

/// The keys that a query sees, of all or of some: none of them if it ends where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Seen {
    pub(super) const NOTHING: Self = Self { start: 0, end: 0 };

    /// From the first to the last key that one of some queries sees.
    #[inline(always)]
    pub(super) fn by_any(places: &[Self]) -> Self {
        let mut any = places[0];
        for seen in places {
            any = Self { start: any.start.min(seen.start), end: any.end.max(seen.end) };
        }
        any
    }

    /// What all of some queries see.
    #[inline(always)]
    fn by_all(places: &[Self]) -> Self {
        let mut all = places[0];
        for seen in places {
            all = Self { start: all.start.max(seen.start), end: all.end.min(seen.end) };
        }
        all
    }

    /// The part that lies in `len` places from `start` on, counted from there.
    #[inline(always)]
    pub(super) fn within(self, start: usize, len: usize) -> Self {
        let (first, end) = (self.start.max(start), self.end.min(start + len));
        if first < end { Self { start: first - start, end: end - start } } else { Self::NOTHING }
    }

    fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// A batch of queries and a chunk of keys.
pub(super) struct Batch<'a> {
    pub(super) part: &'a Part<'a>,
    /// What each of the queries sees.
    pub(super) places: &'a [Seen],
    /// First key of the chunk.
    pub(super) chunk: usize,
    /// `[queries, D in words]`.
    pub(super) q: &'a [f32],
    /// `[queries, CHUNK]`.
    pub(super) scores: &'a mut [f32],
    /// `[queries, State]`.
    pub(super) states: &'a mut [f32],
}

/// Keys or values of a chunk, block by block, as words.
type Blocks<'a> = [&'a [f32]; CHUNK_BLOCKS];

impl Batch<'_> {
    /// Computes the states of all queries for some keys of the chunk; `words` is for blocks to be converted in.
    #[inline(always)]
    pub(super) fn attend<F: Factors>(&mut self, factors: F, keys: Seen, words: &mut [f32]) {
        if keys.is_empty() {
            self.states.fill(0.0);
            return;
        }
        let (part, first_block) = (self.part, self.chunk / BLOCK_TOKENS);
        let (layout, source) = (part.problem.layout, part.problem.blocks);
        let blocks = keys.start / BLOCK_TOKENS..keys.end.div_ceil(BLOCK_TOKENS);
        let mut of_blocks: Blocks<'_> = [&[]; CHUNK_BLOCKS];
        for (block, words) in blocks.clone().zip(words.chunks_exact_mut(layout.words_len())) {
            of_blocks[block] = layout.keys::<F>(source.block(first_block + block), part.kv_head, words);
        }
        self.score(factors, blocks.clone(), &of_blocks);
        self.weigh(factors);
        let mut of_blocks: Blocks<'_> = [&[]; CHUNK_BLOCKS];
        for (block, words) in blocks.zip(words.chunks_exact_mut(layout.words_len())) {
            of_blocks[block] = layout.values::<F>(source.block(first_block + block), part.kv_head, words);
        }
        self.sum(factors, &of_blocks);
    }

    /// The queries, tile by tile: the first one's number and how many there are.
    fn tiles<F: Factors>(&self) -> impl Iterator<Item = (usize, usize)> + use<F> {
        let queries = self.places.len();
        (0..queries).step_by(F::TILE_ROWS).map(move |first| (first, (queries - first).min(F::TILE_ROWS)))
    }

    /// Scores of all queries, in tiles; as many blocks at a time as there are registers for.
    #[inline(always)]
    fn score<F: Factors>(&mut self, factors: F, blocks: Range<usize>, keys: &Blocks<'_>) {
        let mut block = blocks.start;
        while block < blocks.end {
            // `const`: other instruction sets have no registers for two blocks, and no code.
            let count = if const { F::Simd::LANES == 16 } { 2.min(blocks.end - block) } else { 1 };
            for (first, rows) in self.tiles::<F>() {
                let seen = Seen::by_any(&self.places[first..first + rows]);
                if seen.within(self.chunk + block * BLOCK_TOKENS, count * BLOCK_TOKENS).is_empty() {
                    continue;
                }
                if const { F::Simd::LANES == 16 } && count == 2 {
                    let keys = [keys[block], keys[block + 1]];
                    factors.apart(
                        #[inline(always)]
                        || by_tile_rows!(F, rows, score_blocks::<F; R, 2>(factors, self, keys, block, first)),
                    );
                } else {
                    by_tile_rows!(F, rows, score_blocks::<F; R, 1>(factors, self, [keys[block]], block, first));
                }
            }
            block += count;
        }
    }

    /// Turns every query's scores into weights, zero for what it does not see, and begins its state.
    #[inline(always)]
    fn weigh<F: Factors>(&mut self, factors: F) {
        let state_len = State::len(self.part.problem.layout);
        let rows = self.scores.chunks_exact_mut(CHUNK).zip(self.states.chunks_exact_mut(state_len));
        for (seen, (scores, state)) in self.places.iter().zip(rows) {
            clear::<F::Simd>(state);
            let seen = seen.within(self.chunk, CHUNK);
            if seen.is_empty() {
                continue;
            }
            let (start, end) = (seen.start / WHOLE * WHOLE, seen.end.next_multiple_of(WHOLE));
            scores[start..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..end].fill(f32::NEG_INFINITY);
            let (largest, weight) = factors.weigh(scores, start..end);
            State::set(state, largest, weight);
        }
    }

    /// Adds all values up, each times its weight.
    #[inline(always)]
    fn sum<F: Factors>(&mut self, factors: F, values: &Blocks<'_>) {
        for (first, rows) in self.tiles::<F>() {
            // Tokens that all queries see, in whole words; what is before and behind is summed for each query alone.
            let shared = Seen::by_all(&self.places[first..first + rows]).within(self.chunk, CHUNK);
            let words = shared.start.div_ceil(F::PER_WORD)..shared.end / F::PER_WORD;
            let words = if words.is_empty() { CHUNK / F::PER_WORD..CHUNK / F::PER_WORD } else { words };
            self.sum_alone(factors, values, first..first + rows, 0..words.start * F::PER_WORD);
            let tile = ValueTile { values, query: first, words: words.clone(), half: None };
            if !tile.words.is_empty() {
                by_tile_rows!(F, rows, sum_values::<F; R>(factors, self, &tile));
            }
            self.sum_alone(factors, values, first..first + rows, words.end * F::PER_WORD..CHUNK);
        }
    }

    /// Adds the values of those of the given tokens that each of the queries sees, for one query at a time.
    #[inline(always)]
    fn sum_alone<F: Factors>(&mut self, factors: F, values: &Blocks<'_>, queries: Range<usize>, tokens: Range<usize>) {
        if tokens.is_empty() {
            return;
        }
        for query in queries {
            let seen = self.places[query].within(self.chunk, CHUNK);
            let mut next = seen.start.max(tokens.start);
            let end = seen.end.min(tokens.end);
            while next < end {
                // Whole words, or half of a word at an edge of what the query sees.
                let word = next / F::PER_WORD;
                let (words, half, behind) = if !next.is_multiple_of(F::PER_WORD) {
                    (word..word + 1, Some(false), next + 1)
                } else if end / F::PER_WORD > word {
                    (word..end / F::PER_WORD, None, end / F::PER_WORD * F::PER_WORD)
                } else {
                    (word..word + 1, Some(true), end)
                };
                sum_values::<F, 1>(factors, self, &ValueTile { values, query, words, half });
                next = behind;
            }
        }
    }
}

/// Whole registers of zeros: less than what a call costs.
#[inline(always)]
fn clear<S: Simd>(state: &mut [f32]) {
    let (chunks, _) = S::chunks_mut(state);
    for chunk in chunks {
        *chunk = S::ZERO_CHUNK;
    }
}

/// Scores become weights in whole runs of so many: a pair of the largest registers.
const WHOLE: usize = 32;

/// Scores of R queries against the keys of B blocks.
#[inline(always)]
fn score_blocks<F: Factors, const R: usize, const B: usize>(
    factors: F,
    batch: &mut Batch<'_>,
    keys: [&[f32]; B],
    block: usize,
    first: usize,
) {
    let query_len = query_len(batch.part.problem.layout);
    let mut q: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        q[r] = &batch.q[(first + r) * query_len..][..query_len];
    }
    let scores = &mut batch.scores[first * CHUNK + block * BLOCK_TOKENS..];
    let scale = batch.part.problem.scale;
    if const { F::Simd::LANES == 16 } {
        score_registers::<F, R, B, 2>(factors, q, keys, 0, scale, scores);
    } else {
        for register in (0..BLOCK_TOKENS / F::Simd::LANES).step_by(4) {
            score_registers::<F, R, B, 4>(factors, q, keys, register, scale, scores);
        }
    }
}

/// Scores of R queries against C registers of the keys of each of B blocks, from the given one on: row r goes to
/// `scores[r * CHUNK ..]`, at the keys' places behind those of the blocks before.
#[inline(always)]
fn score_registers<F: Factors, const R: usize, const B: usize, const C: usize>(
    factors: F,
    q: [&[f32]; R],
    keys: [&[f32]; B],
    register: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let simd = factors.simd();
    let mut rows: [&[[f32; BLOCK_TOKENS]]; B] = [&[]; B];
    for b in 0..B {
        rows[b] = &keys[b].as_chunks().0[..keys[0].len() / BLOCK_TOKENS];
    }
    let mut q = q;
    for q in &mut q {
        *q = &q[..rows[0].len()];
    }
    let mut sums = [[[simd.splat(0.0); C]; B]; R];
    for d in 0..rows[0].len() {
        let mut element = [factors.splat(0.0); R];
        for r in 0..R {
            element[r] = factors.splat(q[r][d]);
        }
        // One register of keys at a time: the sums, R elements and it are all the registers there are.
        for b in 0..B {
            let (of_tokens, _) = F::Simd::chunks(&rows[b][d]);
            let of_tokens = &of_tokens[register..][..C];
            for c in 0..C {
                let key = factors.load(&of_tokens[c]);
                for r in 0..R {
                    sums[r][b][c] = factors.multiply_add(element[r], key, sums[r][b][c]);
                }
            }
        }
    }
    for r in 0..R {
        for b in 0..B {
            let (out, _) = F::Simd::chunks_mut(&mut scores[r * CHUNK + b * BLOCK_TOKENS..][..BLOCK_TOKENS]);
            for c in 0..C {
                simd.store(simd.mul(sums[r][b][c], simd.splat(scale)), &mut out[register + c]);
            }
        }
    }
}

/// Some words of a chunk's values for some queries.
struct ValueTile<'a> {
    values: &'a Blocks<'a>,
    /// The first query.
    query: usize,
    words: Range<usize>,
    /// If it is only the first or second token of the word that counts.
    half: Option<bool>,
}

/// Adds values, each times its weight, to the sums of R queries.
#[inline(always)]
fn sum_values<F: Factors, const R: usize>(factors: F, batch: &mut Batch<'_>, tile: &ValueTile<'_>) {
    let layout = batch.part.problem.layout;
    let state_len = State::len(layout);
    let mut weights: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        weights[r] = &batch.scores[(tile.query + r) * CHUNK..][..CHUNK / F::PER_WORD];
    }
    let sums = &mut batch.states[tile.query * state_len..][..R * state_len];
    let registers = layout.padded_dim() / F::Simd::LANES;
    let mut register = 0;
    while register + 4 <= registers {
        sum_registers::<F, R, 4>(factors, weights, tile, register..registers, sums);
        register += 4;
    }
    while register < registers {
        sum_registers::<F, R, 1>(factors, weights, tile, register..registers, sums);
        register += 1;
    }
}

/// C registers of the values, from the given one on, word after word.
#[inline(always)]
fn sum_registers<F: Factors, const R: usize, const C: usize>(
    factors: F,
    weights: [&[f32]; R],
    tile: &ValueTile<'_>,
    registers: Range<usize>,
    sums: &mut [f32],
) {
    let simd = factors.simd();
    let (register, registers) = (registers.start, registers.end);
    let (sums, _) = F::Simd::chunks_mut(sums);
    let stride = sums.len() / R;
    let mut in_flight = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        for c in 0..C {
            in_flight[r][c] = simd.load(&sums[r * stride + register + c]);
        }
    }
    let of_block = BLOCK_TOKENS / F::PER_WORD;
    let mut next = tile.words.start;
    while next < tile.words.end {
        let (block, first) = (next / of_block, next % of_block);
        let count = (of_block - first).min(tile.words.end - next);
        let (values, _) = F::Simd::chunks(tile.values[block]);
        let values = &values[first * registers..][..count * registers];
        let mut of_queries = weights;
        for weights in &mut of_queries {
            *weights = &weights[next..][..count];
        }
        for word in 0..count {
            let value = &values[word * registers + register..][..C];
            let mut weight = [factors.splat(0.0); R];
            for r in 0..R {
                weight[r] = factors.splat(of_queries[r][word]);
            }
            for c in 0..C {
                let of_tokens = match tile.half {
                    None => factors.load(&value[c]),
                    Some(is_first) => factors.load_half(&value[c], is_first),
                };
                for r in 0..R {
                    let sum: F32<F> = in_flight[r][c];
                    in_flight[r][c] = factors.multiply_add(weight[r], of_tokens, sum);
                }
            }
        }
        next += count;
    }
    for r in 0..R {
        for c in 0..C {
            simd.store(in_flight[r][c], &mut sums[r * stride + register + c]);
        }
    }
}
