//! Attention over keys and values that lie in blocks, with any number of query heads per key/value head.
//!
//! # Order of work
//! After FlashAttention (Dao et al. 2022): scores are never in memory for more than [`CHUNK`] keys. A tile is up to six
//! queries (rows × heads of one group, which share keys); a batch of four tiles passes the blocks of a chunk: scores to
//! scratch memory, exponentials relative to the chunk's largest score, then the sums of values, in registers during a
//! block. What a query has found in a chunk is a [`State`]; states are merged chunk after chunk.
//!
//! Both products are outer products: a broadcast word of a query (or of probabilities) times a row of the block. A word
//! is one float32 or two bfloat16, see [`Factors`].
//!
//! # A row's result does not depend on others
//! Chunks begin at multiples of [`CHUNK`] whatever a row sees, keys are taken in ascending order, and a state does not
//! depend on who computes it: any thread may take any chunk. A row never touches what it must not see, not even with
//! weight zero (there might be a NaN).

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

mod factors;
mod kv;
mod mask;

use std::ops::Range;

use crate::dispatch::Kernels;
use crate::math::exp;
use crate::pairs::Pairs;
use crate::precision::Arithmetic;
use crate::simd::{Simd, by_tile_rows};
use crate::softmax::exponentials;
use crate::view::MatrixMut;

use factors::{Chunk, F32, Factors, Paired, Plain};
pub use kv::{BLOCK_TOKENS, KvLayout};
pub use mask::Mask;

/// Keys whose scores are in memory at a time.
const CHUNK: usize = 8 * BLOCK_TOKENS;

/// Tiles of queries that meet a block while it is in the first-level cache.
const BATCH_TILES: usize = 4;

/// Where the blocks of a sequence are.
pub trait BlockSource: Sync {
    /// Block `index` of the sequence: tokens `index * BLOCK_TOKENS ..`.
    fn block(&self, index: usize) -> &[f32];
}

/// Operands of attention within one sequence.
#[derive(Clone, Copy)]
pub struct Attend<'a> {
    /// `[rows, H, D]`; the numbers of rows are those of the output.
    pub q: &'a [f32],
    /// H: query heads.
    pub heads: usize,
    /// Sizes of the blocks.
    pub layout: KvLayout,
    /// The sequence's keys and values.
    pub blocks: &'a dyn BlockSource,
    /// Tokens of the sequence.
    pub keys: usize,
    /// Place of row 0 among the tokens (before the first one if only later rows belong to the sequence).
    pub position: isize,
    /// Which tokens a token sees.
    pub mask: Mask<'a>,
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// What queries, keys, probabilities and values are rounded to before they are multiplied.
    pub arithmetic: Arithmetic,
}

impl Attend<'_> {
    /// Keys that a row sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        self.mask.visible(self.position.wrapping_add_unsigned(row) as usize, self.keys)
    }

    /// Query heads per key/value head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.heads / self.layout.kv_heads
    }
}

impl Kernels {
    /// Scratch values that [`Self::attend`] needs.
    pub fn attend_scratch_len(&self, layout: KvLayout) -> usize {
        BATCH_TILES * self.tile_rows * (CHUNK + query_len(layout) + 2 * State::len(layout)) + layout.words_len()
    }

    /// Attention of the rows of `out` (a part of a matrix `[rows, H × D]`); its columns are the heads that share one
    /// key/value head.
    ///
    /// # Panics
    /// If the sizes do not fit, a row is not a token of the sequence, or the scratch is too short.
    #[track_caller]
    pub fn attend(&self, problem: &Attend<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        let KvLayout { kv_heads, head_dim, .. } = problem.layout;
        assert!(kv_heads > 0 && head_dim > 0, "{:?} holds nothing", problem.layout);
        assert!(problem.heads.is_multiple_of(kv_heads), "{} heads in {kv_heads} groups", problem.heads);
        let (rows, columns, width) = (out.rows(), out.columns(), problem.group() * head_dim);
        assert!(
            columns.len() == width && columns.start.is_multiple_of(width),
            "{columns:?} is not one group of {width}"
        );
        assert!(columns.end <= problem.heads * head_dim, "{columns:?} of {} heads", problem.heads);
        assert!(problem.q.len() >= rows.end * problem.heads * head_dim, "{} values of q", problem.q.len());
        if rows.is_empty() {
            return;
        }
        let places = problem.position + rows.start as isize..problem.position + rows.end as isize;
        let is_place = places.start >= 0 && places.end <= problem.keys as isize;
        assert!(is_place || problem.mask == Mask::All && problem.keys > 0, "tokens {places:?} of {}", problem.keys);
        assert!(scratch.len() >= self.attend_scratch_len(problem.layout), "scratch of {}", scratch.len());
        let kernel = if problem.arithmetic == Arithmetic::Bfloat16 { self.attend_pairs() } else { None };
        kernel.unwrap_or(self.attend)(problem, out, scratch);
    }
}

/// With factors in float32.
#[inline(always)]
pub(crate) fn attend_plain<S: Simd>(simd: S, problem: &Attend<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
    attend(Plain(simd), problem, out, scratch);
}

/// With factors in bfloat16.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "one instruction set has pairs so far"))]
#[inline(always)]
pub(crate) fn attend_pairs<P: Pairs>(arch: P, problem: &Attend<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
    attend(Paired(arch), problem, out, scratch);
}

#[inline(always)]
fn attend<F: Factors>(factors: F, problem: &Attend<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    let simd = factors.simd();
    let KvLayout { head_dim, .. } = problem.layout;
    let rows = out.rows();
    let part = Part {
        problem,
        first_row: rows.start,
        queries: rows.len() * problem.group(),
        kv_head: out.columns().start / (problem.group() * head_dim),
    };
    let state_len = State::len(problem.layout);
    let batch_len = BATCH_TILES * F::TILE_ROWS;
    let (words, scratch) = scratch.split_at_mut(problem.layout.words_len());
    let (scores, scratch) = scratch.split_at_mut(batch_len * CHUNK);
    let (q, scratch) = scratch.split_at_mut(batch_len * query_len(problem.layout));
    let (states, totals) = scratch.split_at_mut(batch_len * state_len);
    for first in (0..part.queries).step_by(batch_len) {
        let queries = first..part.queries.min(first + batch_len);
        for (query, words) in queries.clone().zip(q.chunks_exact_mut(query_len(problem.layout))) {
            let (place, padding) = words.split_at_mut(head_dim);
            place.copy_from_slice(part.query(query));
            padding.fill(0.0);
            factors.narrow(words);
        }
        let totals = &mut totals[..queries.len() * state_len];
        totals.fill(0.0);
        let seen = part.seen(queries.clone());
        for chunk in seen.start / CHUNK..seen.end.div_ceil(CHUNK) {
            let keys = seen.start.max(chunk * CHUNK)..seen.end.min((chunk + 1) * CHUNK);
            let mut batch = Batch { part: &part, queries: queries.clone(), chunk: chunk * CHUNK, q, scores, states };
            batch.attend(factors, keys, words);
            for (total, state) in totals.chunks_exact_mut(state_len).zip(states.chunks_exact(state_len)) {
                State::merge(simd, total, state);
            }
        }
        for (query, total) in queries.clone().zip(totals.chunks_exact(state_len)) {
            let (row, head) = (part.first_row + query / problem.group(), query % problem.group());
            let scale = 1.0 / State::weight(total);
            for (out, sum) in out.row(row)[head * head_dim..][..head_dim].iter_mut().zip(total) {
                *out = sum * scale;
            }
        }
    }
}

/// Words of a query, in whole pairs of registers.
fn query_len(layout: KvLayout) -> usize {
    layout.head_dim.next_multiple_of(32)
}

/// What a query has found in some keys: `[padded D]` sums of values, each weighted by `e^(score - largest)`, then in a
/// register of its own the largest score and the sum of the weights (zero if there was no key).
struct State;

impl State {
    fn len(layout: KvLayout) -> usize {
        layout.padded_dim() + 16
    }

    #[inline(always)]
    fn weight(state: &[f32]) -> f32 {
        state[state.len() - 15]
    }

    #[inline(always)]
    fn set(state: &mut [f32], largest: f32, weight: f32) {
        let len = state.len();
        state[len - 16] = largest;
        state[len - 15] = weight;
    }

    /// Adds what was found in later keys.
    #[inline(always)]
    fn merge<S: Simd>(simd: S, total: &mut [f32], state: &[f32]) {
        let (weight, more) = (Self::weight(total), Self::weight(state));
        if more == 0.0 {
            return;
        }
        if weight == 0.0 {
            total.copy_from_slice(state);
            return;
        }
        let at = total.len() - 16;
        let largest = if state[at] > total[at] { state[at] } else { total[at] };
        let mut factors = S::ZERO_CHUNK;
        factors.as_mut()[..2].copy_from_slice(&[total[at] - largest, state[at] - largest]);
        let loaded = exp(simd, simd.load(&factors));
        simd.store(loaded, &mut factors);
        let (old, new) = (factors.as_ref()[0], factors.as_ref()[1]);
        let (sums, _) = S::chunks_mut(&mut total[..at]);
        let (more_sums, _) = S::chunks(&state[..at]);
        for (sum, more) in sums.iter_mut().zip(more_sums) {
            let kept = simd.mul(simd.load(sum), simd.splat(old));
            simd.store(simd.mul_add(simd.load(more), simd.splat(new), kept), sum);
        }
        Self::set(total, largest, weight * old + more * new);
    }
}

/// The queries of some rows for one key/value head, numbered row by row and head by head within the group.
struct Part<'a> {
    problem: &'a Attend<'a>,
    first_row: usize,
    queries: usize,
    kv_head: usize,
}

impl<'a> Part<'a> {
    /// Keys that a query sees.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        self.problem.visible(self.first_row + query / self.problem.group())
    }

    /// Keys from the first to the last one that some of the queries see.
    #[inline(always)]
    fn seen(&self, queries: Range<usize>) -> Range<usize> {
        let mut seen = self.visible(queries.start);
        for query in queries {
            let visible = self.visible(query);
            seen = seen.start.min(visible.start)..seen.end.max(visible.end);
        }
        seen
    }

    /// Elements of a query.
    #[inline(always)]
    fn query(&self, query: usize) -> &'a [f32] {
        let Attend { q, heads, layout, .. } = *self.problem;
        let (row, head) = (self.first_row + query / self.problem.group(), query % self.problem.group());
        &q[(row * heads + self.kv_head * self.problem.group() + head) * layout.head_dim..][..layout.head_dim]
    }
}

/// A batch of queries meets a chunk of keys.
struct Batch<'a> {
    part: &'a Part<'a>,
    queries: Range<usize>,
    /// First key of the chunk.
    chunk: usize,
    /// `[queries, D in words]`.
    q: &'a [f32],
    /// `[queries, CHUNK]`.
    scores: &'a mut [f32],
    /// `[queries, State]`.
    states: &'a mut [f32],
}

impl Batch<'_> {
    /// Computes the states of all queries for some keys of the chunk; `words` is for blocks to be converted in.
    #[inline(always)]
    fn attend<F: Factors>(&mut self, factors: F, keys: Range<usize>, words: &mut [f32]) {
        let (layout, queries) = (self.part.problem.layout, self.queries.clone());
        let blocks = keys.start / BLOCK_TOKENS..keys.end.div_ceil(BLOCK_TOKENS);
        for block in blocks.clone() {
            let source = self.part.problem.blocks.block(block);
            let keys = layout.keys::<F>(source, self.part.kv_head, words);
            for query in queries.clone().step_by(F::TILE_ROWS) {
                let rows = (queries.end - query).min(F::TILE_ROWS);
                by_tile_rows!(F, rows, score_tile::<F; R>(factors, self, keys, block, query));
            }
        }
        let state_len = State::len(layout);
        let rows = self.scores.chunks_exact_mut(CHUNK).zip(self.states.chunks_exact_mut(state_len));
        for (query, (scores, state)) in queries.clone().zip(rows) {
            let visible = within(&self.part.visible(query), self.chunk, CHUNK);
            state.fill(0.0);
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            if !visible.is_empty() {
                let (largest, weight) = exponentials(factors.simd(), &mut scores[visible]);
                State::set(state, largest, weight);
                factors.narrow(scores);
            }
        }
        for block in blocks {
            let source = self.part.problem.blocks.block(block);
            let values = layout.values::<F>(source, self.part.kv_head, words);
            for query in queries.clone().step_by(F::TILE_ROWS) {
                let rows = (queries.end - query).min(F::TILE_ROWS);
                let shared = self.shared::<F>(block, query..query + rows);
                self.alone(factors, values, block, query..query + rows, 0..shared.start);
                let words = shared.start / F::PER_WORD..shared.end / F::PER_WORD;
                let tile = ValueTile { values, block, query, words, half: None };
                if !tile.words.is_empty() {
                    by_tile_rows!(F, rows, value_tile::<F; R>(factors, self, &tile));
                }
                self.alone(factors, values, block, query..query + rows, shared.end..BLOCK_TOKENS);
            }
        }
    }

    /// Tokens of a block that all of the queries see, in whole words; if there are none, an empty range at the end.
    #[inline(always)]
    fn shared<F: Factors>(&self, block: usize, queries: Range<usize>) -> Range<usize> {
        let mut shared = 0..BLOCK_TOKENS;
        for query in queries {
            let visible = within(&self.part.visible(query), block * BLOCK_TOKENS, BLOCK_TOKENS);
            shared = shared.start.max(visible.start)..shared.end.min(visible.end);
        }
        let words = shared.start.div_ceil(F::PER_WORD)..shared.end / F::PER_WORD;
        if words.is_empty() { BLOCK_TOKENS..BLOCK_TOKENS } else { words.start * F::PER_WORD..words.end * F::PER_WORD }
    }

    /// Adds the values of the given tokens of a block that each of the queries sees, for one query at a time.
    #[inline(always)]
    fn alone<F: Factors>(
        &mut self,
        factors: F,
        values: &[f32],
        block: usize,
        queries: Range<usize>,
        tokens: Range<usize>,
    ) {
        if tokens.is_empty() {
            return;
        }
        for query in queries {
            let visible = within(&self.part.visible(query), block * BLOCK_TOKENS, BLOCK_TOKENS);
            let mut next = visible.start.max(tokens.start);
            let end = visible.end.min(tokens.end);
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
                value_tile::<F, 1>(factors, self, &ValueTile { values, block, query, words, half });
                next = behind;
            }
        }
    }
}

/// The part of a range that lies in `len` places from `start` on, counted from there; empty ones are `0..0`.
#[inline(always)]
fn within(range: &Range<usize>, start: usize, len: usize) -> Range<usize> {
    let (first, end) = (range.start.max(start), range.end.min(start + len));
    if first < end { first - start..end - start } else { 0..0 }
}

/// Scores of R queries against the block's keys.
#[inline(always)]
fn score_tile<F: Factors, const R: usize>(factors: F, batch: &mut Batch<'_>, keys: &[f32], block: usize, query: usize) {
    let seen = batch.part.seen(query..query + R);
    if within(&seen, block * BLOCK_TOKENS, BLOCK_TOKENS).is_empty() {
        return;
    }
    let query_len = query_len(batch.part.problem.layout);
    let first = query - batch.queries.start;
    let mut q: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        q[r] = &batch.q[(first + r) * query_len..][..query_len];
    }
    let scores = &mut batch.scores[first * CHUNK + block * BLOCK_TOKENS - batch.chunk..];
    let scale = batch.part.problem.scale;
    if F::Simd::LANES == 16 {
        block_scores::<F, R, 2>(factors, q, keys, 0, scale, scores);
    } else {
        for register in (0..BLOCK_TOKENS / F::Simd::LANES).step_by(4) {
            block_scores::<F, R, 4>(factors, q, keys, register, scale, scores);
        }
    }
}

/// Scores of R queries against C registers of a block's keys, from the given one on: row r goes to
/// `scores[r * CHUNK ..]`, at the keys' places in the block.
#[inline(always)]
fn block_scores<F: Factors, const R: usize, const C: usize>(
    factors: F,
    q: [&[f32]; R],
    keys: &[f32],
    register: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let simd = factors.simd();
    let (keys, _) = keys.as_chunks::<BLOCK_TOKENS>();
    let mut q = q;
    for q in &mut q {
        *q = &q[..keys.len()];
    }
    let mut sums = [[simd.splat(0.0); C]; R];
    for d in 0..keys.len() {
        let (of_tokens, _) = F::Simd::chunks(&keys[d]);
        let of_tokens = &of_tokens[register..][..C];
        let mut element = [factors.splat(0.0); R];
        for r in 0..R {
            element[r] = factors.splat(q[r][d]);
        }
        // One register of keys at a time: R·C sums, R elements and it are all the registers there are.
        for c in 0..C {
            let key = factors.load(&of_tokens[c]);
            for r in 0..R {
                sums[r][c] = factors.multiply_add(element[r], key, sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let (out, _) = F::Simd::chunks_mut(&mut scores[r * CHUNK..][..BLOCK_TOKENS]);
        for c in 0..C {
            simd.store(simd.mul(sums[r][c], simd.splat(scale)), &mut out[register + c]);
        }
    }
}

/// Some words of a block's values for some queries.
struct ValueTile<'a> {
    values: &'a [f32],
    block: usize,
    /// The first query.
    query: usize,
    words: Range<usize>,
    /// If it is only the first or second token of the word that counts.
    half: Option<bool>,
}

/// Adds the block's values, weighted by probability, to the sums of R queries.
#[inline(always)]
fn value_tile<F: Factors, const R: usize>(factors: F, batch: &mut Batch<'_>, tile: &ValueTile<'_>) {
    let layout = batch.part.problem.layout;
    let (first, state_len) = (tile.query - batch.queries.start, State::len(layout));
    let at = (tile.block * BLOCK_TOKENS - batch.chunk) / F::PER_WORD;
    let mut weights: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        weights[r] = &batch.scores[(first + r) * CHUNK + at..][tile.words.clone()];
    }
    let sums = &mut batch.states[first * state_len..][..R * state_len];
    let values = &tile.values[tile.words.start * layout.padded_dim()..tile.words.end * layout.padded_dim()];
    let registers = layout.padded_dim() / F::Simd::LANES;
    let mut register = 0;
    while register + 4 <= registers {
        block_values::<F, R, 4>(factors, weights, values, register..registers, tile.half, sums);
        register += 4;
    }
    while register < registers {
        block_values::<F, R, 1>(factors, weights, values, register..registers, tile.half, sums);
        register += 1;
    }
}

/// C registers of the values, from the given one on, word after word.
#[inline(always)]
fn block_values<F: Factors, const R: usize, const C: usize>(
    factors: F,
    weights: [&[f32]; R],
    values: &[f32],
    registers: Range<usize>,
    half: Option<bool>,
    sums: &mut [f32],
) {
    let simd = factors.simd();
    let (register, registers) = (registers.start, registers.end);
    let (values, _) = F::Simd::chunks(values);
    let (sums, _) = F::Simd::chunks_mut(sums);
    let stride = sums.len() / R;
    let mut in_flight = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        for c in 0..C {
            in_flight[r][c] = simd.load(&sums[r * stride + register + c]);
        }
    }
    let words = weights[0].len();
    let mut weights = weights;
    for weights in &mut weights {
        *weights = &weights[..words];
    }
    for word in 0..words {
        let value: &[Chunk<F>] = &values[word * registers + register..][..C];
        let mut weight = [factors.splat(0.0); R];
        for r in 0..R {
            weight[r] = factors.splat(weights[r][word]);
        }
        for c in 0..C {
            let of_tokens = match half {
                None => factors.load(&value[c]),
                Some(is_first) => factors.load_half(&value[c], is_first),
            };
            for r in 0..R {
                let sum: F32<F> = in_flight[r][c];
                in_flight[r][c] = factors.multiply_add(weight[r], of_tokens, sum);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            simd.store(in_flight[r][c], &mut sums[r * stride + register + c]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
