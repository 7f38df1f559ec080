//! Products with bfloat16 weights where the processor multiplies pairs of bfloat16: activations are rounded to
//! bfloat16, sums are float32.
//!
//! # The order of a sum
//! Every output is one lane of one register, to which pairs of elements are added in ascending order. One row or a
//! thousand, however rows and columns are split: the order is the same. Between two blocks of elements the sums are in
//! the output, so that blocks do not change the order either.
//!
//! # Tiles
//! Weights stay where they are (mapped). A panel of columns is transposed, block by block, into scratch memory
//! `[pairs][3 registers of columns]` that stays in the second-level cache, and tiles of [`TILE_ROWS`] rows × 3
//! registers of columns pass over it: per pair of elements 8 broadcasts and 3 loads for 24 instructions with 32
//! multiply-adds each. With few rows a panel's block is small enough for the first-level cache, and transposing it
//! hides behind reading the weights from memory.

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

use std::ops::Range;

use crate::matmul::{Matmul, finish};
use crate::pairs::{Chunk, Pairs, Rows};
use crate::simd::Simd;
use crate::view::MatrixMut;

/// Rows of a register tile.
const TILE_ROWS: usize = 8;

/// Registers of columns in a tile.
const TILE: usize = 3;

/// How much of the weights is in scratch memory at a time.
#[derive(Clone, Copy)]
struct Sizes {
    /// Tiles of columns.
    tiles: usize,
    /// Pairs of elements, a multiple of all lane counts.
    pairs: usize,
}

impl Sizes {
    /// 12 KiB of the first-level cache for few rows (as much again is on its way), else 384 KiB of the second-level cache.
    #[inline(always)]
    fn of(rows: usize, inputs: usize) -> Self {
        let (tiles, most) = if rows <= 2 * TILE_ROWS { (1, 64) } else { (4, 512) };
        Self { tiles, pairs: inputs.div_ceil(2).next_multiple_of(16).min(most) }
    }
}

/// Scratch values that [`matmul_pairs`] needs.
pub(crate) fn scratch_len(lanes: usize, rows: usize, inputs: usize) -> usize {
    let Sizes { tiles, pairs } = Sizes::of(rows, inputs);
    (TILE_ROWS + tiles * TILE * lanes) * pairs
}

#[inline(always)]
pub(crate) fn matmul_pairs<P: Pairs>(arch: P, problem: &Matmul<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    let (rows, columns, inputs) = (out.rows(), out.columns(), problem.inputs);
    let sizes = Sizes::of(rows.len(), inputs);
    let (x, panel) = scratch.split_at_mut(TILE_ROWS * sizes.pairs);
    let tile_columns = TILE * P::Simd::LANES;
    for first in columns.clone().step_by(sizes.tiles * tile_columns) {
        let of_panel = first..columns.end.min(first + sizes.tiles * tile_columns);
        for start in (0..inputs).step_by(2 * sizes.pairs) {
            let elements = start..inputs.min(start + 2 * sizes.pairs);
            let pairs = elements.len().div_ceil(2).next_multiple_of(P::Simd::LANES);
            pack(arch, problem, &of_panel, &elements, panel, pairs);
            for row in rows.clone().step_by(TILE_ROWS) {
                let tile_rows = (rows.end - row).min(TILE_ROWS);
                for (row, x) in (row..row + tile_rows).zip(x.chunks_exact_mut(pairs)) {
                    round(arch, &problem.x[row * inputs..][elements.clone()], x);
                }
                let tiles = panel.chunks_exact(tile_columns * pairs);
                for (column, weights) in of_panel.clone().step_by(tile_columns).zip(tiles) {
                    let tile = Tile { x, weights, pairs, row, column, is_first: start == 0 };
                    any_tile(arch, tile_rows, of_panel.end - column, &tile, &mut out);
                }
            }
        }
    }
    for row in rows {
        finish(arch.simd(), problem, row, columns.start, out.row(row));
    }
}

/// Some elements of a panel's columns: per tile of columns `[pairs][TILE][lanes]`.
#[inline(always)]
fn pack<P: Pairs>(
    arch: P,
    problem: &Matmul<'_>,
    columns: &Range<usize>,
    elements: &Range<usize>,
    panel: &mut [f32],
    pairs: usize,
) {
    let (lanes, inputs, bytes) = (P::Simd::LANES, problem.inputs, problem.weights.bytes());
    // What will be packed next: the following elements of these columns, or else the first ones of the next columns.
    let to_next =
        if elements.end < inputs { 2 * elements.len() } else { 2 * (columns.len() * inputs - elements.start) };
    for (tile, packed) in columns.clone().step_by(TILE * lanes).zip(panel.chunks_exact_mut(TILE * lanes * pairs)) {
        for (at, column) in (tile..columns.end.min(tile + TILE * lanes)).step_by(lanes).enumerate() {
            let count = lanes.min(columns.end - column);
            for pair in (0..pairs).step_by(lanes) {
                let first = elements.start + 2 * pair;
                let len = 2 * elements.end.saturating_sub(first).min(2 * lanes);
                let rows = Rows { bytes: &bytes[2 * (column * inputs + first)..], stride: 2 * inputs, count, len };
                for row in 0..count {
                    arch.simd().prefetch(rows.bytes.as_ptr().wrapping_add(row * rows.stride + to_next));
                }
                arch.transpose(&rows, &mut packed[(pair * TILE + at) * lanes..], TILE * lanes);
            }
        }
    }
}

/// Rounds a row to bfloat16, zeros behind it.
#[inline(always)]
fn round<P: Pairs>(arch: P, values: &[f32], out: &mut [f32]) {
    let simd = arch.simd();
    let (chunks, rest) = P::Simd::chunks(values);
    let (twos, one) = chunks.as_chunks::<2>();
    let (outs, _) = P::Simd::chunks_mut(out);
    for ([first, second], out) in twos.iter().zip(&mut *outs) {
        arch.store_pairs(arch.neighbours(simd.load(first), simd.load(second)), out);
    }
    if let Some(out) = outs.get_mut(twos.len()) {
        let rest = simd.load_part(rest);
        let (first, second) = match one {
            [first] => (simd.load(first), rest),
            _ => (rest, simd.splat(0.0)),
        };
        arch.store_pairs(arch.neighbours(first, second), out);
    }
}

/// Operands of a register tile.
struct Tile<'a> {
    /// `[rows, pairs]`.
    x: &'a [f32],
    /// `[pairs, TILE, lanes]`.
    weights: &'a [f32],
    pairs: usize,
    /// The first row.
    row: usize,
    /// The first column.
    column: usize,
    /// Whether sums begin here.
    is_first: bool,
}

/// A tile of so many rows and columns (more columns are another tile's).
#[inline(always)]
fn any_tile<P: Pairs>(arch: P, rows: usize, columns: usize, tile: &Tile<'_>, out: &mut MatrixMut<'_>) {
    macro_rules! by_rows {
        ($columns:literal: $($rows:literal)+) => {
            match rows {
                $($rows => tile_sums::<P, $rows, $columns>(arch, tile, out),)+
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    match columns.div_ceil(P::Simd::LANES) {
        1 => by_rows!(1: 1 2 3 4 5 6 7 8),
        2 => by_rows!(2: 1 2 3 4 5 6 7 8),
        _ => by_rows!(3: 1 2 3 4 5 6 7 8),
    }
}

/// Adds the products of a tile's pairs to its sums, which are in the output before and after.
#[inline(always)]
fn tile_sums<P: Pairs, const R: usize, const C: usize>(arch: P, tile: &Tile<'_>, out: &mut MatrixMut<'_>) {
    let (simd, lanes, pairs) = (arch.simd(), P::Simd::LANES, tile.pairs);
    let column = tile.column - out.columns().start;
    let mut sums = [[simd.splat(0.0); C]; R];
    if !tile.is_first {
        for r in 0..R {
            for c in 0..C {
                let part = &out.row(tile.row + r)[column + c * lanes..];
                sums[r][c] = match P::Simd::chunks(part) {
                    ([chunk, ..], _) => simd.load(chunk),
                    ([], rest) => simd.load_part(rest),
                };
            }
        }
    }
    let (weights, _) = P::Simd::chunks(tile.weights);
    let (weights, _) = weights.as_chunks::<TILE>();
    let weights: &[[Chunk<P>; TILE]] = &weights[..pairs];
    let mut x: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        x[r] = &tile.x[r * pairs..][..pairs];
    }
    for k in 0..pairs {
        let mut w = [arch.splat_pair(0.0); C];
        for c in 0..C {
            w[c] = arch.load_pairs(&weights[k][c]);
        }
        for r in 0..R {
            let pair = arch.splat_pair(x[r][k]);
            for c in 0..C {
                sums[r][c] = arch.dot(sums[r][c], pair, w[c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            let part = &mut out.row(tile.row + r)[column + c * lanes..];
            match P::Simd::chunks_mut(part) {
                ([chunk, ..], _) => simd.store(sums[r][c], chunk),
                ([], rest) => simd.store_part(sums[r][c], rest),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use half::bf16;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;
    use crate::activation::Activation;
    use crate::dispatch::Kernels;
    use crate::precision::Arithmetic;
    use crate::testing::{assert_close, bits, numbers};
    use crate::weights::WeightMatrix;

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
    }

    /// Bytes one off any alignment.
    fn bytes_of(values: &[f32]) -> Vec<u8> {
        std::iter::once(0).chain(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())).collect()
    }

    const WHOLE: (usize, usize) = (usize::MAX / 2, usize::MAX / 2);

    fn product(
        kernels: &Kernels,
        (x, rows): (&[f32], usize),
        weights: &[u8],
        tile: (usize, usize),
        arithmetic: Arithmetic,
    ) -> Vec<f32> {
        let weights = WeightMatrix::Bf16(&weights[1..]);
        let (bias, activation, residual) = (None, Activation::None, None);
        let problem = Matmul { x, rows, inputs: x.len() / rows, weights, bias, activation, residual, arithmetic };
        let mut out = vec![f32::NAN; rows * problem.outputs()];
        let mut scratch = vec![f32::NAN; kernels.matmul_scratch_len(&problem)];
        for part in MatrixMut::new(&mut out, rows).tiles(tile.0, tile.1) {
            kernels.matmul(&problem, part, &mut scratch);
        }
        out
    }

    pub(crate) fn only_x_is_rounded(kernels: &Kernels) {
        let sizes = [(1, 1, 1), (1, 16, 9), (2, 17, 5), (3, 31, 64), (9, 64, 12), (16, 100, 17), (17, 33, 200)];
        let large = [(1, 2600, 50), (3, 769, 5), (20, 2052, 33), (40, 40, 130), (100, 5, 2), (33, 1100, 195)];
        for (rows, inputs, outputs) in sizes.into_iter().chain(large) {
            let (x, w) = (numbers(1, rows * inputs), rounded(&numbers(2, outputs * inputs)));
            let out = product(kernels, (&x, rows), &bytes_of(&w), WHOLE, Arithmetic::Bfloat16);
            let factors = if kernels.pairs.is_some() { rounded(&x) } else { x };
            for (at, &out) in out.iter().enumerate() {
                let (row, column) =
                    (&factors[at / outputs * inputs..][..inputs], &w[at % outputs * inputs..][..inputs]);
                let products = row.iter().zip(column).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                // A running sum whose rounding errors are a random walk.
                let tolerance = f64::from(f32::EPSILON) * ((inputs as f64).sqrt() + 4.0) * size;
                assert_close(out, sum, tolerance, (rows, inputs, outputs, at));
            }
        }
    }

    /// Row by row, all together, and in any tiles: the same bits. Without pairs: those of float32.
    pub(crate) fn rows_and_columns_are_independent(kernels: &Kernels) {
        let sizes = (1usize..40, 1usize..80, 1usize..70, 1usize..20, 1usize..60, 0u64..1000);
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        let property = |(rows, inputs, outputs, tile_rows, tile_columns, seed)| {
            // Some products are longer than a block, of few rows and of many.
            let inputs: usize = if seed % 4 == 0 { inputs * 40 } else { inputs };
            let (x, weights) = (numbers(seed, rows * inputs), bytes_of(&numbers(seed + 1, outputs * inputs)));
            let of = |x, rows, tile| bits(&product(kernels, (x, rows), &weights, tile, Arithmetic::Bfloat16));
            let whole = of(&x, rows, WHOLE);
            prop_assert_eq!(&of(&x, rows, (tile_rows, tile_columns)), &whole);
            for (row, whole) in whole.chunks(outputs).enumerate() {
                prop_assert_eq!(&of(&x[row * inputs..][..inputs], 1, WHOLE), whole);
            }
            if kernels.pairs.is_none() {
                prop_assert_eq!(bits(&product(kernels, (&x, rows), &weights, WHOLE, Arithmetic::Float32)), whole);
            }
            Ok(())
        };
        TestRunner::new(config).run(&sizes, property).unwrap();
    }

    pub(crate) fn special_values_stay_in_their_rows_and_columns(kernels: &Kernels) {
        for (rows, inputs) in [1, 4, 25].into_iter().flat_map(|rows| [13, 32, 50].map(|inputs| (rows, inputs))) {
            let outputs = 19;
            let (mut x, mut w) = (numbers(1, rows * inputs), numbers(2, outputs * inputs));
            let (bad_row, bad_column) = (rows / 2, 16);
            x[bad_row * inputs + inputs - 1] = f32::NAN;
            w[bad_column * inputs + inputs / 2] = f32::INFINITY;
            let out = product(kernels, (&x, rows), &bytes_of(&w), WHOLE, Arithmetic::Bfloat16);
            for (at, value) in out.into_iter().enumerate() {
                let (row, column) = (at / outputs, at % outputs);
                let expected = (row == bad_row, column != bad_column || row == bad_row);
                assert_eq!((value.is_nan(), !value.is_infinite()), expected, "{rows} x {inputs}: {at}: {value}");
            }
        }
    }
}
