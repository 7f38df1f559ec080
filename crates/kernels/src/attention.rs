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

mod batch;
mod factors;
mod kv;
mod mask;

use std::ops::Range;

use crate::dispatch::Kernels;
use crate::math::exp;
use crate::pairs::Pairs;
use crate::precision::Arithmetic;
use crate::simd::Simd;
use crate::view::MatrixMut;

use batch::{Batch, Seen};
use factors::{Factors, Paired, Plain};
pub(crate) use kv::write_kv;
pub use kv::{BLOCK_TOKENS, KvLayout};
pub use mask::Mask;

/// Blocks whose scores are in memory at a time …
const CHUNK_BLOCKS: usize = 8;

/// … and their keys.
const CHUNK: usize = CHUNK_BLOCKS * BLOCK_TOKENS;

/// Tiles of queries that meet a block while it is in the first-level cache.
const BATCH_TILES: usize = 4;

/// Queries of a batch, on the instruction set with the highest tiles.
const MOST_QUERIES: usize = 6 * BATCH_TILES;

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
    /// Scratch values that [`Self::attend`] and [`Self::attend_chunk`] need.
    pub fn attend_scratch_len(&self, layout: KvLayout) -> usize {
        self.batch_len() * (CHUNK + query_len(layout) + 2 * State::len(layout)) + CHUNK_BLOCKS * layout.words_len()
    }

    /// Attention of the rows of `out` (a part of a matrix `[rows, H × D]`); its columns are the heads that share one
    /// key/value head.
    ///
    /// # Panics
    /// If the sizes do not fit, a row is not a token of the sequence, or the scratch is too short.
    #[track_caller]
    pub fn attend(&self, problem: &Attend<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
        let (rows, kv_head) = (out.rows(), problem.checked_kv_head(&out));
        problem.check(&rows);
        assert!(scratch.len() >= self.attend_scratch_len(problem.layout), "scratch of {}", scratch.len());
        let (states_len, queries) = (self.batch_len() * State::len(problem.layout), rows.len() * problem.group());
        let (totals, scratch) = scratch.split_at_mut(states_len);
        let (states, scratch) = scratch.split_at_mut(states_len);
        for first in (0..queries).step_by(self.batch_len()) {
            let queries = first..queries.min(first + self.batch_len());
            let totals = &mut totals[..queries.len() * State::len(problem.layout)];
            totals.fill(0.0);
            for chunk in problem.chunks(rows.start + queries.start / problem.group()..rows.end) {
                let part = Part { problem, first_row: rows.start, kv_head, queries: queries.clone(), chunk };
                self.chunk(&part, &mut states[..totals.len()], scratch);
                self.merge(problem, totals, states);
            }
            self.finish(problem, totals, queries.start, &mut out);
        }
    }

    /// Values that the states of so many rows take, for the heads that share one key/value head.
    pub fn attend_states_len(&self, problem: &Attend<'_>, rows: usize) -> usize {
        rows * problem.group() * State::len(problem.layout)
    }

    /// What some rows find in one of their [`Attend::chunks`], for the heads that share a key/value head: a part of
    /// attention for one thread of several. [`Self::attend_merged`] makes a result of it.
    ///
    /// # Panics
    /// If the sizes do not fit, a row is not a token of the sequence, or the scratch is too short.
    #[track_caller]
    pub fn attend_chunk(
        &self,
        problem: &Attend<'_>,
        rows: Range<usize>,
        (kv_head, chunk): (usize, usize),
        states: &mut [f32],
        scratch: &mut [f32],
    ) {
        problem.check(&rows);
        assert!(kv_head < problem.layout.kv_heads, "key/value head {kv_head} of {:?}", problem.layout);
        assert_eq!(states.len(), self.attend_states_len(problem, rows.len()), "states of {rows:?}");
        assert!(scratch.len() >= self.attend_scratch_len(problem.layout), "scratch of {}", scratch.len());
        let (queries, batch) = (rows.len() * problem.group(), self.batch_len());
        for (first, states) in (0..).step_by(batch).zip(states.chunks_mut(batch * State::len(problem.layout))) {
            let queries = first..queries.min(first + batch);
            self.chunk(&Part { problem, first_row: rows.start, kv_head, queries, chunk }, states, scratch);
        }
    }

    /// Writes the attention of the rows of `out`, to the bits of [`Self::attend`]: `states` are those that
    /// [`Self::attend_chunk`] made for all chunks of the rows, in ascending order; they are overwritten.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[track_caller]
    pub fn attend_merged(&self, problem: &Attend<'_>, states: &mut [f32], mut out: MatrixMut<'_>) {
        let rows = out.rows();
        problem.checked_kv_head(&out);
        let len = self.attend_states_len(problem, rows.len());
        assert_eq!(states.len(), problem.chunks(rows.clone()).len() * len, "states of {rows:?}");
        let Some((totals, states)) = states.split_at_mut_checked(len) else { return };
        for states in states.chunks_exact(len.max(1)) {
            self.merge(problem, totals, states);
        }
        self.finish(problem, totals, 0, &mut out);
    }

    fn chunk(&self, part: &Part<'_>, states: &mut [f32], scratch: &mut [f32]) {
        let kernel = if part.problem.arithmetic == Arithmetic::Bfloat16 { self.attend_pairs() } else { None };
        kernel.unwrap_or(self.attend_chunk)(part, states, scratch);
    }

    fn merge(&self, problem: &Attend<'_>, totals: &mut [f32], states: &[f32]) {
        let len = State::len(problem.layout);
        for (total, state) in totals.chunks_exact_mut(len).zip(states.chunks_exact(len)) {
            (self.merge_states)(total, state);
        }
    }

    /// Writes results: the totals of some queries of `out`, from the given one on.
    fn finish(&self, problem: &Attend<'_>, totals: &[f32], first: usize, out: &mut MatrixMut<'_>) {
        let (group, head_dim, first_row) = (problem.group(), problem.layout.head_dim, out.rows().start);
        for (query, total) in (first..).zip(totals.chunks_exact(State::len(problem.layout))) {
            let row = out.row(first_row + query / group);
            (self.finish_state)(total, &mut row[query % group * head_dim..][..head_dim]);
        }
    }

    /// Queries that a kernel takes at a time.
    fn batch_len(&self) -> usize {
        BATCH_TILES * self.tile_rows
    }
}

impl Attend<'_> {
    /// The chunks in which some rows see keys: a fixed number of keys each, so that their order does not depend on who
    /// computes them.
    pub fn chunks(&self, rows: Range<usize>) -> Range<usize> {
        let (mut start, mut end) = (usize::MAX, 0);
        for row in rows {
            let seen = self.visible(row);
            (start, end) = (start.min(seen.start), end.max(seen.end));
        }
        start.min(end) / CHUNK..end.div_ceil(CHUNK)
    }

    /// The key/value head of a part of the result.
    #[track_caller]
    fn checked_kv_head(&self, out: &MatrixMut<'_>) -> usize {
        let KvLayout { kv_heads, head_dim, .. } = self.layout;
        assert!(kv_heads > 0 && head_dim > 0, "{:?} holds nothing", self.layout);
        let (columns, width) = (out.columns(), self.group() * head_dim);
        assert!(
            columns.len() == width && columns.start.is_multiple_of(width),
            "{columns:?} is not one group of {width}"
        );
        assert!(columns.end <= self.heads * head_dim, "{columns:?} of {} heads", self.heads);
        columns.start / width
    }

    #[track_caller]
    fn check(&self, rows: &Range<usize>) {
        let KvLayout { kv_heads, head_dim, .. } = self.layout;
        assert!(kv_heads > 0 && head_dim > 0, "{:?} holds nothing", self.layout);
        assert!(self.heads.is_multiple_of(kv_heads), "{} heads in {kv_heads} groups", self.heads);
        assert!(self.q.len() >= rows.end * self.heads * head_dim, "{} values of q", self.q.len());
        let places = self.position + rows.start as isize..self.position + rows.end as isize;
        let is_place = places.start >= 0 && places.end <= self.keys as isize;
        let is_any = rows.is_empty() || self.mask == Mask::All && self.keys > 0;
        assert!(is_place || is_any, "tokens {places:?} of {}", self.keys);
    }
}

/// With factors in float32.
#[inline(always)]
pub(crate) fn chunk_plain<S: Simd>(simd: S, part: &Part<'_>, states: &mut [f32], scratch: &mut [f32]) {
    chunk(Plain(simd), part, states, scratch);
}

/// With factors in bfloat16.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(dead_code, reason = "no instruction set of this target has pairs")
)]
#[inline(always)]
pub(crate) fn chunk_pairs<P: Pairs>(arch: P, part: &Part<'_>, states: &mut [f32], scratch: &mut [f32]) {
    chunk(Paired(arch), part, states, scratch);
}

/// The states of a batch of queries.
#[inline(always)]
fn chunk<F: Factors>(factors: F, part: &Part<'_>, states: &mut [f32], scratch: &mut [f32]) {
    let layout = part.problem.layout;
    let batch_len = BATCH_TILES * F::TILE_ROWS;
    let (words, scratch) = scratch.split_at_mut(CHUNK_BLOCKS * layout.words_len());
    let (scores, q) = scratch.split_at_mut(batch_len * CHUNK);
    let mut places = [Seen::NOTHING; MOST_QUERIES];
    let of_queries = part.queries.clone().zip(q.chunks_exact_mut(query_len(layout)));
    for ((query, words), place) in of_queries.zip(&mut places) {
        let (elements, padding) = words.split_at_mut(layout.head_dim);
        elements.copy_from_slice(part.query(query));
        // Asked, because clearing nothing still costs a call for every query.
        if !padding.is_empty() {
            padding.fill(0.0);
        }
        factors.narrow(words);
        *place = part.seen(query);
    }
    let places = &places[..part.queries.len()];
    let keys = Seen::by_any(places).within(part.chunk * CHUNK, CHUNK);
    let mut batch = Batch { part, places, chunk: part.chunk * CHUNK, q, scores, states };
    batch.attend(factors, keys, words);
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
}

/// Adds what was found in later keys to a [`State`].
#[inline(always)]
pub(crate) fn merge<S: Simd>(simd: S, total: &mut [f32], state: &[f32]) {
    let (weight, more) = (State::weight(total), State::weight(state));
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
    State::set(total, largest, weight * old + more * new);
}

/// The weighted mean of the values: sums over the sum of the weights.
#[inline(always)]
pub(crate) fn finish<S: Simd>(simd: S, total: &[f32], out: &mut [f32]) {
    let scale = simd.splat(1.0 / State::weight(total));
    let (sums, _) = S::chunks(total);
    let (outs, rest) = S::chunks_mut(out);
    let whole = outs.len();
    for (out, sum) in outs.iter_mut().zip(sums) {
        simd.store(simd.mul(simd.load(sum), scale), out);
    }
    if !rest.is_empty() {
        simd.store_part(simd.mul(simd.load(&sums[whole]), scale), rest);
    }
}

/// Some queries of some rows for one key/value head (numbered row by row and head by head within the group), and a
/// chunk of the keys.
pub(crate) struct Part<'a> {
    problem: &'a Attend<'a>,
    first_row: usize,
    kv_head: usize,
    /// At most as many as a batch holds.
    queries: Range<usize>,
    chunk: usize,
}

impl<'a> Part<'a> {
    /// Keys that a query sees.
    #[inline(always)]
    fn seen(&self, query: usize) -> Seen {
        let Range { start, end } = self.problem.visible(self.first_row + query / self.problem.group());
        Seen { start, end }
    }

    /// Elements of a query.
    #[inline(always)]
    fn query(&self, query: usize) -> &'a [f32] {
        let Attend { q, heads, layout, .. } = *self.problem;
        let (row, head) = (self.first_row + query / self.problem.group(), query % self.problem.group());
        &q[(row * heads + self.kv_head * self.problem.group() + head) * layout.head_dim..][..layout.head_dim]
    }
}

#[cfg(test)]
pub(crate) mod tests;
