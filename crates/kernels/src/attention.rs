//! Attention over keys and values that lie in blocks, with any number of query heads per key/value head.
//!
//! # Layout
//! A block holds [`BLOCK_TOKENS`] tokens of all key/value heads. Keys lie transposed, `[K][D][tokens]`, so that a
//! register holds one element of many keys and scores need no sum over lanes; values lie `[K][tokens][D]`, D padded
//! to whole registers. Both products are then outer products: a broadcast element of a query (or probability) times
//! a row of the block.
//!
//! # Order of work
//! A tile is up to six queries (rows × heads of one group, which share keys). A batch of four tiles passes the keys
//! block by block: scores go to scratch memory (queries × keys, never T × T). Then softmax, row by row. Then the batch
//! passes the values block by block; sums are in registers during a block and in scratch memory between. A row's
//! result does not depend on its neighbours: keys are taken one after another, and what a causal row must not see has
//! probability zero.

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

use std::ops::Range;

use crate::dispatch::Kernels;
use crate::simd::{Simd, by_tile_rows};
use crate::softmax::softmax;
use crate::view::MatrixMut;

/// Tokens per block.
pub const BLOCK_TOKENS: usize = 32;

/// Tiles of queries that meet a block while it is in the first-level cache.
const BATCH_TILES: usize = 4;

/// Scores of such a batch, unless those of one tile are more: 128 KiB of the second-level cache.
const BATCH_SCORES: usize = 32 * 1024;

/// Sizes of a block of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// K: key/value heads.
    pub kv_heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
}

impl KvLayout {
    /// Values in a block.
    pub fn block_len(&self) -> usize {
        self.kv_heads * BLOCK_TOKENS * (self.head_dim + self.padded_dim())
    }

    /// Stores one token's keys and values (both `[K, D]`) at place `offset` of a block.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn write(&self, block: &mut [f32], offset: usize, keys: &[f32], values: &[f32]) {
        let len = self.kv_heads * self.head_dim;
        assert_eq!([keys.len(), values.len()], [len, len], "keys and values of {self:?}");
        assert!(
            offset < BLOCK_TOKENS && block.len() == self.block_len(),
            "place {offset} of a block of {}",
            block.len()
        );
        let (block_keys, block_values) = block.split_at_mut(len * BLOCK_TOKENS);
        for (place, &key) in block_keys.chunks_exact_mut(BLOCK_TOKENS).zip(keys) {
            place[offset] = key;
        }
        if self.head_dim == 0 {
            return;
        }
        let places = block_values.chunks_exact_mut(BLOCK_TOKENS * self.padded_dim());
        for (place, value) in places.zip(values.chunks_exact(self.head_dim)) {
            let (value_place, padding) =
                place[offset * self.padded_dim()..][..self.padded_dim()].split_at_mut(self.head_dim);
            value_place.copy_from_slice(value);
            padding.fill(0.0);
        }
    }

    /// Head size in whole registers of any instruction set.
    fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Keys of a head, `[D, tokens]`.
    #[inline(always)]
    fn keys<'a>(&self, block: &'a [f32], kv_head: usize) -> &'a [f32] {
        let len = self.head_dim * BLOCK_TOKENS;
        &block[kv_head * len..][..len]
    }

    /// Values of a head, `[tokens, padded D]`.
    #[inline(always)]
    fn values<'a>(&self, block: &'a [f32], kv_head: usize) -> &'a [f32] {
        let len = self.padded_dim() * BLOCK_TOKENS;
        &block[self.kv_heads * self.head_dim * BLOCK_TOKENS + kv_head * len..][..len]
    }
}

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
    /// Keys that row `r` sees: the first `first_visible + r` ones if causal, the first `first_visible` ones if not.
    pub first_visible: isize,
    /// Whether later rows see more.
    pub is_causal: bool,
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
}

impl Attend<'_> {
    /// Keys that a row sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> usize {
        let visible = self.first_visible + if self.is_causal { row as isize } else { 0 };
        visible as usize
    }

    /// Query heads per key/value head.
    #[inline(always)]
    fn group(&self) -> usize {
        self.heads / self.layout.kv_heads
    }
}

impl Kernels {
    /// Scratch values that [`Self::attend`] needs when no row sees more than `keys`; no fewer than for fewer keys.
    pub fn attend_scratch_len(&self, keys: usize, layout: KvLayout) -> usize {
        let scores_of_tile = self.tile_rows * keys.next_multiple_of(BLOCK_TOKENS);
        let scores = scores_of_tile.max(BATCH_SCORES.min(BATCH_TILES * scores_of_tile));
        scores + BATCH_TILES * self.tile_rows * layout.padded_dim()
    }

    /// Attention of the rows of `out` (a part of a matrix `[rows, H × D]`); its columns are the heads that share one
    /// key/value head.
    ///
    /// # Panics
    /// If the sizes do not fit, a row sees no key, or the scratch is too short.
    #[track_caller]
    pub fn attend(&self, problem: &Attend<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        let KvLayout { kv_heads, head_dim } = problem.layout;
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
        let (least, most) = (problem.visible(rows.start), problem.visible(rows.end - 1));
        assert!(least > 0 && least <= most, "a row sees {least} keys");
        assert!(
            scratch.len() >= self.attend_scratch_len(most, problem.layout),
            "scratch of {} for {most} keys",
            scratch.len()
        );
        (self.attend)(problem, out, scratch);
    }
}

#[inline(always)]
pub(crate) fn attend<S: Simd>(simd: S, problem: &Attend<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    let KvLayout { head_dim, .. } = problem.layout;
    let rows = out.rows();
    let part = Part {
        problem,
        first_row: rows.start,
        queries: rows.len() * problem.group(),
        kv_head: out.columns().start / (problem.group() * head_dim),
    };
    let longest = problem.visible(rows.end - 1).next_multiple_of(BLOCK_TOKENS);
    let batch = (BATCH_SCORES / (S::TILE_ROWS * longest)).clamp(1, BATCH_TILES) * S::TILE_ROWS;
    for first in (0..part.queries).step_by(batch) {
        let queries = first..part.queries.min(first + batch);
        let seen = part.visible(queries.end - 1).next_multiple_of(BLOCK_TOKENS);
        let (scores, sums) = scratch.split_at_mut(queries.len() * seen);
        let sums = &mut sums[..queries.len() * problem.layout.padded_dim()];
        for block in 0..seen / BLOCK_TOKENS {
            let keys = problem.layout.keys(problem.blocks.block(block), part.kv_head);
            let mut tiles = Tiles { part: &part, block, seen, queries: queries.clone(), scores, sums };
            for query in queries.clone().step_by(S::TILE_ROWS) {
                let tile_rows = (queries.end - query).min(S::TILE_ROWS);
                by_tile_rows!(S, tile_rows, score_tile::<S; R>(simd, &mut tiles, keys, query));
            }
        }
        for (query, row) in queries.clone().zip(scores.chunks_exact_mut(seen)) {
            let (visible, hidden) = row.split_at_mut(part.visible(query));
            softmax(simd, visible);
            hidden.fill(0.0);
        }
        sums.fill(0.0);
        for block in 0..seen / BLOCK_TOKENS {
            let values = problem.layout.values(problem.blocks.block(block), part.kv_head);
            let mut tiles = Tiles { part: &part, block, seen, queries: queries.clone(), scores, sums };
            for query in queries.clone().step_by(S::TILE_ROWS) {
                let tile_rows = (queries.end - query).min(S::TILE_ROWS);
                by_tile_rows!(S, tile_rows, value_tile::<S; R>(simd, &mut tiles, values, query));
            }
        }
        for (query, sums) in queries.clone().zip(sums.chunks_exact(problem.layout.padded_dim())) {
            let (row, head) = (part.first_row + query / problem.group(), query % problem.group());
            out.row(row)[head * head_dim..][..head_dim].copy_from_slice(&sums[..head_dim]);
        }
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
    /// Keys that a query sees; later ones see at least as much.
    #[inline(always)]
    fn visible(&self, query: usize) -> usize {
        self.problem.visible(self.first_row + query / self.problem.group())
    }

    /// Elements of a query.
    #[inline(always)]
    fn query(&self, query: usize) -> &'a [f32] {
        let Attend { q, heads, layout, .. } = *self.problem;
        let (row, head) = (self.first_row + query / self.problem.group(), query % self.problem.group());
        &q[(row * heads + self.kv_head * self.problem.group() + head) * layout.head_dim..][..layout.head_dim]
    }
}

/// A batch of queries meets a block.
struct Tiles<'a> {
    part: &'a Part<'a>,
    block: usize,
    /// Keys that the batch sees, in whole blocks.
    seen: usize,
    queries: Range<usize>,
    /// `[queries, seen]`.
    scores: &'a mut [f32],
    /// `[queries, padded D]`.
    sums: &'a mut [f32],
}

/// Scores of R queries against the block's keys.
#[inline(always)]
fn score_tile<S: Simd, const R: usize>(simd: S, tiles: &mut Tiles<'_>, keys: &[f32], query: usize) {
    let at = tiles.block * BLOCK_TOKENS;
    if tiles.part.visible(query + R - 1) <= at {
        return;
    }
    let mut q: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        q[r] = tiles.part.query(query + r);
    }
    let scores = &mut tiles.scores[(query - tiles.queries.start) * tiles.seen + at..];
    let scale = tiles.part.problem.scale;
    if S::LANES == 16 {
        block_scores::<S, R, 2>(simd, q, keys, 0, scale, scores, tiles.seen);
    } else {
        for register in (0..BLOCK_TOKENS / S::LANES).step_by(4) {
            block_scores::<S, R, 4>(simd, q, keys, register, scale, scores, tiles.seen);
        }
    }
}

/// Scores of R queries against C registers of a block's keys, from the given one on: row r goes to
/// `scores[r * stride ..]`, at the keys' places in the block.
#[inline(always)]
fn block_scores<S: Simd, const R: usize, const C: usize>(
    simd: S,
    q: [&[f32]; R],
    keys: &[f32],
    register: usize,
    scale: f32,
    scores: &mut [f32],
    stride: usize,
) {
    let (keys, _) = keys.as_chunks::<BLOCK_TOKENS>();
    let mut q = q;
    for q in &mut q {
        *q = &q[..keys.len()];
    }
    let mut sums = [[simd.splat(0.0); C]; R];
    for d in 0..keys.len() {
        let (of_tokens, _) = S::chunks(&keys[d]);
        let of_tokens = &of_tokens[register..][..C];
        let mut element = [simd.splat(0.0); R];
        for r in 0..R {
            element[r] = simd.splat(q[r][d]);
        }
        // One register of keys at a time: R·C sums, R elements and it are all the registers there are.
        for c in 0..C {
            let key = simd.load(&of_tokens[c]);
            for r in 0..R {
                sums[r][c] = simd.mul_add(element[r], key, sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let (out, _) = S::chunks_mut(&mut scores[r * stride..][..BLOCK_TOKENS]);
        for c in 0..C {
            simd.store(simd.mul(sums[r][c], simd.splat(scale)), &mut out[register + c]);
        }
    }
}

/// Adds the block's values, weighted by probability, to the sums of R queries.
#[inline(always)]
fn value_tile<S: Simd, const R: usize>(simd: S, tiles: &mut Tiles<'_>, values: &[f32], query: usize) {
    let at = tiles.block * BLOCK_TOKENS;
    let tokens = tiles.part.visible(query + R - 1).saturating_sub(at).min(BLOCK_TOKENS);
    let first = query - tiles.queries.start;
    let mut weights: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        weights[r] = &tiles.scores[(first + r) * tiles.seen + at..][..tokens];
    }
    let padded_dim = tiles.part.problem.layout.padded_dim();
    let sums = &mut tiles.sums[first * padded_dim..][..R * padded_dim];
    let registers = padded_dim / S::LANES;
    let mut register = 0;
    while register + 4 <= registers {
        block_values::<S, R, 4>(simd, weights, values, register, sums);
        register += 4;
    }
    while register < registers {
        block_values::<S, R, 1>(simd, weights, values, register, sums);
        register += 1;
    }
}

/// C registers of the values, from the given one on, token after token.
#[inline(always)]
fn block_values<S: Simd, const R: usize, const C: usize>(
    simd: S,
    weights: [&[f32]; R],
    values: &[f32],
    register: usize,
    sums: &mut [f32],
) {
    let (values, _) = S::chunks(values);
    let (sums, _) = S::chunks_mut(sums);
    let registers = sums.len() / R;
    let mut in_flight = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        for c in 0..C {
            in_flight[r][c] = simd.load(&sums[r * registers + register + c]);
        }
    }
    let tokens = weights[0].len();
    let mut weights = weights;
    for weights in &mut weights {
        *weights = &weights[..tokens];
    }
    for token in 0..tokens {
        let value = &values[token * registers + register..][..C];
        let mut weight = [simd.splat(0.0); R];
        for r in 0..R {
            weight[r] = simd.splat(weights[r][token]);
        }
        for c in 0..C {
            let of_token = simd.load(&value[c]);
            for r in 0..R {
                in_flight[r][c] = simd.mul_add(weight[r], of_token, in_flight[r][c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            simd.store(in_flight[r][c], &mut sums[r * registers + register + c]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, numbers};

    /// One sequence: its queries are the last rows of its tokens.
    struct Case {
        rows: usize,
        tokens: usize,
        heads: usize,
        layout: KvLayout,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        is_causal: bool,
    }

    struct Blocks {
        blocks: Vec<Vec<f32>>,
    }

    impl BlockSource for Blocks {
        fn block(&self, index: usize) -> &[f32] {
            &self.blocks[index]
        }
    }

    const SCALE: f32 = 0.4;

    impl Case {
        fn new(rows: usize, tokens: usize, heads: usize, kv_heads: usize, head_dim: usize, is_causal: bool) -> Self {
            let width = kv_heads * head_dim;
            let q = numbers(1, rows * heads * head_dim).iter().map(|value| value * 3.0).collect();
            let (k, v) = (numbers(2, tokens * width), numbers(3, tokens * width));
            Self { rows, tokens, heads, layout: KvLayout { kv_heads, head_dim }, q, k, v, is_causal }
        }

        fn all() -> Vec<Self> {
            let sizes = [
                (1, 1, 1, 1, 8),
                (1, 33, 9, 3, 64),
                (5, 5, 4, 2, 12),
                (40, 70, 3, 3, 72),
                (7, 64, 6, 1, 16),
                (33, 33, 2, 2, 80),
                (2, 300, 4, 4, 128),
                (30, 1400, 1, 1, 16),
            ];
            let cases = |(rows, tokens, heads, kv_heads, head_dim)| {
                [true, false].map(|is_causal| Self::new(rows, tokens, heads, kv_heads, head_dim, is_causal))
            };
            sizes.into_iter().flat_map(cases).collect()
        }

        fn visible(&self, row: usize) -> usize {
            if self.is_causal { self.tokens - self.rows + row + 1 } else { self.tokens }
        }

        /// The case on blocks that hold `rubbish` where nothing was written.
        fn run(&self, kernels: &Kernels, tile_rows: usize, rubbish: f32) -> Vec<f32> {
            let width = self.layout.kv_heads * self.layout.head_dim;
            let mut blocks = vec![vec![rubbish; self.layout.block_len()]; self.tokens.div_ceil(BLOCK_TOKENS)];
            for token in 0..self.tokens {
                let block = &mut blocks[token / BLOCK_TOKENS];
                let (key, value) = (&self.k[token * width..][..width], &self.v[token * width..][..width]);
                self.layout.write(block, token % BLOCK_TOKENS, key, value);
            }
            let problem = Attend {
                q: &self.q,
                heads: self.heads,
                layout: self.layout,
                blocks: &Blocks { blocks },
                first_visible: self.visible(0) as isize,
                is_causal: self.is_causal,
                scale: SCALE,
            };
            let mut out = vec![f32::NAN; self.q.len()];
            let mut scratch = vec![f32::NAN; kernels.attend_scratch_len(self.tokens, self.layout)];
            let group_width = problem.group() * self.layout.head_dim;
            for part in MatrixMut::new(&mut out, self.rows).tiles(tile_rows, group_width) {
                kernels.attend(&problem, part, &mut scratch);
            }
            out
        }

        fn expected(&self, row: usize, head: usize) -> Vec<f64> {
            let head_dim = self.layout.head_dim;
            let kv_head = head / (self.heads / self.layout.kv_heads);
            let place = |token: usize| (token * self.layout.kv_heads + kv_head) * head_dim;
            let query = &self.q[(row * self.heads + head) * head_dim..][..head_dim];
            let score = |token: usize| {
                let key = &self.k[place(token)..][..head_dim];
                query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * f64::from(SCALE)
            };
            let scores: Vec<f64> = (0..self.visible(row)).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            let weighted = |(token, score): (usize, &f64), d: usize| {
                (score - largest).exp() / total * f64::from(self.v[place(token) + d])
            };
            (0..head_dim).map(|d| scores.iter().enumerate().map(|pair| weighted(pair, d)).sum()).collect()
        }
    }

    pub(crate) fn follows_the_definition(kernels: &Kernels) {
        for case in Case::all() {
            let out = case.run(kernels, case.rows, 0.0);
            let head_dim = case.layout.head_dim;
            for (at, out) in out.chunks(head_dim).enumerate() {
                let (row, head) = (at / case.heads, at % case.heads);
                for (&out, expected) in out.iter().zip(case.expected(row, head)) {
                    // The error of a score of this size, and of a sum over so many values below one.
                    let tolerance = f64::from(f32::EPSILON) * (8.0 + (case.tokens as f64).sqrt());
                    assert_close(out, expected, tolerance, (case.rows, case.tokens, case.layout, row, head));
                }
            }
        }
    }

    /// In tiles of any number of rows, with other heads and rows beside them: the same bits.
    pub(crate) fn rows_are_independent(kernels: &Kernels) {
        for case in Case::all() {
            let whole = bits(&case.run(kernels, case.rows, 0.0));
            for tile_rows in [1, 2, 5, 16] {
                assert_eq!(bits(&case.run(kernels, tile_rows, 0.0)), whole, "tiles of {tile_rows} rows");
            }
        }
    }

    pub(crate) fn unseen_tokens_do_not_matter(kernels: &Kernels) {
        for case in Case::all() {
            let clean = bits(&case.run(kernels, case.rows, 0.0));
            for rubbish in [f32::NAN, f32::INFINITY, 3e38] {
                assert_eq!(bits(&case.run(kernels, case.rows, rubbish)), clean, "{rubbish}");
            }
        }
    }

    #[test]
    fn scratch_for_more_keys_serves_fewer() {
        for kernels in Kernels::available() {
            let layout = KvLayout { kv_heads: 1, head_dim: 72 };
            let sizes: Vec<usize> = (1..20_000).map(|keys| kernels.attend_scratch_len(keys, layout)).collect();
            assert!(sizes.is_sorted());
        }
    }

    #[test]
    #[should_panic(expected = "is not one group of 16")]
    fn a_part_of_a_group_is_refused() {
        let case = Case::new(1, 1, 4, 2, 8, true);
        let problem = Attend {
            q: &case.q,
            heads: 4,
            layout: case.layout,
            blocks: &Blocks { blocks: Vec::new() },
            first_visible: 1,
            is_causal: true,
            scale: SCALE,
        };
        let mut out = [0.0; 32];
        let part = MatrixMut::new(&mut out, 1).tiles(1, 8).next().unwrap();
        Kernels::select(Some("scalar")).unwrap().attend(&problem, part, &mut [0.0; 64]);
    }
}
