//! Against the definition in float64, for every mask, precision and head size.

use half::bf16;

use super::*;
use crate::precision::KvPrecision;
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
    mask: Mask<'static>,
    arithmetic: Arithmetic,
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

const PRECISIONS: [(KvPrecision, Arithmetic); 6] = [
    (KvPrecision::Float32, Arithmetic::Float32),
    (KvPrecision::Bfloat16, Arithmetic::Float32),
    (KvPrecision::Eight, Arithmetic::Float32),
    (KvPrecision::Float32, Arithmetic::Bfloat16),
    (KvPrecision::Bfloat16, Arithmetic::Bfloat16),
    (KvPrecision::Eight, Arithmetic::Bfloat16),
];

const MASKS: [Mask<'static>; 5] =
    [Mask::Causal, Mask::All, Mask::Window(19), Mask::Prefix(27), Mask::Segments(&[0, 5, 6, 20, 41, 64, 129, 300])];

impl Case {
    fn new(
        (rows, tokens, heads, kv_heads, head_dim): (usize, usize, usize, usize, usize),
        mask: Mask<'static>,
        (precision, arithmetic): (KvPrecision, Arithmetic),
    ) -> Self {
        let width = kv_heads * head_dim;
        // Scores of a few units at any head size.
        let size = 3.0 * (16.0 / head_dim as f32).sqrt();
        let q = numbers(1, rows * heads * head_dim).iter().map(|value| value * size).collect();
        let (k, v) = (numbers(2, tokens * width), numbers(3, tokens * width));
        Self { rows, tokens, heads, layout: KvLayout { kv_heads, head_dim, precision }, q, k, v, mask, arithmetic }
    }

    fn all() -> impl Iterator<Item = Self> {
        let sizes = [
            (1, 1, 1, 1, 8),
            (1, 33, 9, 3, 64),
            (5, 5, 4, 2, 12),
            (40, 70, 3, 3, 72),
            (7, 64, 6, 1, 16),
            (3, 40, 2, 1, 7),
            (33, 33, 2, 2, 80),
            (4, 45, 2, 1, 88),
            (9, 50, 2, 2, 96),
            (2, 300, 4, 4, 128),
            (3, 280, 2, 1, 256),
            (30, 800, 1, 1, 32),
        ];
        let combinations = MASKS.into_iter().flat_map(|mask| PRECISIONS.map(|precision| (mask, precision)));
        combinations.flat_map(move |(mask, precision)| sizes.map(|sizes| Self::new(sizes, mask, precision)))
    }

    fn visible(&self, row: usize) -> Range<usize> {
        self.mask.visible(self.tokens - self.rows + row, self.tokens)
    }

    fn place(&self, token: usize, kv_head: usize) -> usize {
        (token * self.layout.kv_heads + kv_head) * self.layout.head_dim
    }

    /// Blocks that hold `rubbish` where nothing was written.
    fn blocks(&self, kernels: &Kernels, rubbish: f32) -> Blocks {
        let width = self.layout.kv_heads * self.layout.head_dim;
        let mut blocks = vec![vec![rubbish; self.layout.block_len()]; self.tokens.div_ceil(BLOCK_TOKENS)];
        let mut first = 0;
        for len in [3, 1, 2, 32].into_iter().cycle() {
            let end = self.tokens.min(first + len).min((first / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
            let [keys, values] = [&self.k, &self.v].map(|all| &all[first * width..end * width]);
            kernels.write_kv(&self.layout, &mut blocks[first / BLOCK_TOKENS], first % BLOCK_TOKENS, keys, values);
            first = end;
            if first == self.tokens {
                break;
            }
        }
        Blocks { blocks }
    }

    fn run(&self, kernels: &Kernels, tile_rows: usize, rubbish: f32) -> Vec<f32> {
        let blocks = self.blocks(kernels, rubbish);
        let problem = self.problem(&blocks);
        let mut out = vec![f32::NAN; self.q.len()];
        let mut scratch = vec![f32::NAN; kernels.attend_scratch_len(self.layout)];
        let group_width = problem.group() * self.layout.head_dim;
        for part in MatrixMut::new(&mut out, self.rows).tiles(tile_rows, group_width) {
            kernels.attend(&problem, part, &mut scratch);
        }
        out
    }

    /// Chunk by chunk, the last one first.
    fn run_in_chunks(&self, kernels: &Kernels, tile_rows: usize) -> Vec<f32> {
        let blocks = self.blocks(kernels, 0.0);
        let problem = self.problem(&blocks);
        let mut out = vec![f32::NAN; self.q.len()];
        let mut scratch = vec![f32::NAN; kernels.attend_scratch_len(self.layout)];
        let group_width = problem.group() * self.layout.head_dim;
        for part in MatrixMut::new(&mut out, self.rows).tiles(tile_rows, group_width) {
            let (rows, kv_head) = (part.rows(), part.columns().start / group_width);
            let (chunks, len) = (problem.chunks(rows.clone()), kernels.attend_states_len(&problem, rows.len()));
            let mut states = vec![f32::NAN; chunks.len() * len];
            for (chunk, states) in chunks.zip(states.chunks_mut(len)).rev() {
                kernels.attend_chunk(&problem, rows.clone(), (kv_head, chunk), states, &mut scratch);
            }
            kernels.attend_merged(&problem, &mut states, part);
        }
        out
    }

    fn problem<'a>(&'a self, blocks: &'a Blocks) -> Attend<'a> {
        Attend {
            q: &self.q,
            heads: self.heads,
            layout: self.layout,
            blocks,
            keys: self.tokens,
            position: (self.tokens - self.rows) as isize,
            mask: self.mask,
            scale: SCALE,
            arithmetic: self.arithmetic,
        }
    }

    /// What is kept of a token's keys or values.
    fn kept(&self, values: &[f32]) -> Vec<f64> {
        match self.layout.precision {
            KvPrecision::Float32 => values.iter().map(|&value| value.into()).collect(),
            KvPrecision::Bfloat16 => values.iter().map(|&value| bf16::from_f32(value).to_f64()).collect(),
            KvPrecision::Eight => {
                let scale = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
                values.iter().map(|&value| f64::from((value / scale).round_ties_even() * scale)).collect()
            }
        }
    }

    fn expected(&self, row: usize, head: usize) -> Vec<f64> {
        let head_dim = self.layout.head_dim;
        let kv_head = head / (self.heads / self.layout.kv_heads);
        let query = &self.q[(row * self.heads + head) * head_dim..][..head_dim];
        let visible = self.visible(row);
        let of = |all: &[f32], token| self.kept(&all[self.place(token, kv_head)..][..head_dim]);
        let score = |token: usize| {
            let products = query.iter().zip(of(&self.k, token)).map(|(&q, k)| f64::from(q) * k);
            products.sum::<f64>() * f64::from(SCALE)
        };
        let scores: Vec<f64> = visible.clone().map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut sums = vec![0.0; head_dim];
        for (token, score) in visible.zip(&scores) {
            for (sum, value) in sums.iter_mut().zip(of(&self.v, token)) {
                *sum += (score - largest).exp() / total * value;
            }
        }
        sums
    }

    /// The error that sums of this length in this precision must have.
    fn tolerance(&self, kernels: &Kernels) -> f64 {
        // The error of a score of this size, and of a sum over so many values below one.
        let float32 = f64::from(f32::EPSILON) * (8.0 + (self.tokens as f64).sqrt());
        if self.arithmetic == Arithmetic::Float32 || !kernels.attends_in_pairs() {
            return float32;
        }
        // Every factor is off by up to 2⁻⁹ of itself: a score (of two to four units) by a random walk of that, which
        // makes a relative error of its probability, and all errors of probabilities and values average out.
        float32 + 3.0 * 2f64.powi(-8)
    }
}

pub(crate) fn follows_the_definition(kernels: &Kernels) {
    for case in Case::all() {
        let out = case.run(kernels, case.rows, 0.0);
        let (head_dim, tolerance) = (case.layout.head_dim, case.tolerance(kernels));
        for (at, out) in out.chunks(head_dim).enumerate() {
            let (row, head) = (at / case.heads, at % case.heads);
            for (&out, expected) in out.iter().zip(case.expected(row, head)) {
                let what = (case.rows, case.tokens, case.layout, case.mask, case.arithmetic, row, head);
                assert_close(out, expected, tolerance, what);
            }
        }
    }
}

/// In tiles of any number of rows, with other heads and rows beside them: the same bits.
pub(crate) fn rows_are_independent(kernels: &Kernels) {
    for case in Case::all() {
        let whole = bits(&case.run(kernels, case.rows, 0.0));
        for tile_rows in [1, 2, 5, 16] {
            let what = (case.rows, case.tokens, case.layout, case.mask, case.arithmetic, tile_rows);
            assert_eq!(bits(&case.run(kernels, tile_rows, 0.0)), whole, "{what:?}");
            assert_eq!(bits(&case.run_in_chunks(kernels, tile_rows)), whole, "{what:?} in chunks");
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

/// A NaN reaches the rows that see its token, and no others.
pub(crate) fn a_bad_token_stays_where_it_is_seen(kernels: &Kernels) {
    for mut case in Case::all() {
        let clean = case.run(kernels, case.rows, 0.0);
        let width = case.layout.kv_heads * case.layout.head_dim;
        let bad = case.tokens - case.rows.div_ceil(2);
        case.k[bad * width..][..width].fill(f32::NAN);
        case.v[bad * width..][..width].fill(f32::NAN);
        let out = case.run(kernels, case.rows, 0.0);
        let row_len = case.heads * case.layout.head_dim;
        for (row, (out, clean)) in out.chunks(row_len).zip(clean.chunks(row_len)).enumerate() {
            if case.visible(row).contains(&bad) {
                assert!(out.iter().all(|value| value.is_nan()), "{row}: {:?} {:?}", case.mask, case.layout);
            } else {
                assert_eq!(bits(out), bits(clean), "{row}: {:?} {:?}", case.mask, case.layout);
            }
        }
    }
}

#[test]
fn what_is_kept_is_as_small_as_it_says() {
    let bytes = |precision| KvLayout { kv_heads: 3, head_dim: 64, precision }.bytes_per_token();
    assert_eq!(bytes(KvPrecision::Float32), 3 * 2 * 64 * 4);
    assert_eq!(bytes(KvPrecision::Bfloat16), 3 * 2 * 64 * 2);
    assert_eq!(bytes(KvPrecision::Eight), 3 * 2 * (64 + 4));
}

#[test]
#[should_panic(expected = "is not one group of 16")]
fn a_part_of_a_group_is_refused() {
    let case = Case::new((1, 1, 4, 2, 8), Mask::Causal, PRECISIONS[0]);
    let blocks = Blocks { blocks: Vec::new() };
    let mut out = [0.0; 32];
    let part = MatrixMut::new(&mut out, 1).tiles(1, 8).next().unwrap();
    Kernels::select(Some("scalar")).unwrap().attend(&case.problem(&blocks), part, &mut [0.0; 64]);
}
