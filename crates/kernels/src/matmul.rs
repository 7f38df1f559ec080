//! Matrix products `x [rows, in] · wᵀ`, w `[out, in]` as it lies in a file, with bias, activation and residual.
//!
//! # The order of a sum
//! Every output is a dot product of two contiguous rows, so registers run along `in`: lane l of a sum collects the
//! elements l, l + LANES, l + 2·LANES, … in that order, lanes are added at the end of every block of [`BLOCK`]
//! elements (in the fixed order of [`Simd::sum4`]), and blocks are added one after another. One row or a thousand,
//! this column range or that: the order is the same, hence so is every bit. It is also a more accurate order than a
//! running sum: 16 lanes × 48 steps instead of 768 steps.
//!
//! # Tiles
//! A register tile holds R rows × 4 columns of such sums (6 × 4 with 32 registers, 3 × 4 with 16): per step it loads
//! R + 4 chunks for 4·R multiply-adds. No operand needs to be transposed, which is what makes the order above cheap.
//!
//! - *Few rows* (decode, beams): weights are read once from memory and converted in registers. What limits is the
//!   memory; a single row takes 8 columns at a time so that enough sums are in flight.
//! - *Many rows*: a panel of columns is converted to float32 in scratch memory that stays in the second-level cache
//!   ([`PANEL_COLUMNS`]), one block of elements at a time, and every tile of rows runs over it: its part of x (6 rows ×
//!   768 × 4 B = 18 KiB) stays in the first-level cache and the panel is what streams (4 of 10 loads).
//!
//! Measurements are in `docs/perf-log.md`.

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

use std::ops::Range;

use crate::activation::{Activation, activate};
use crate::dispatch::{Kernels, PairKernels};
use crate::elementwise::add_in_place;
use crate::embed::embed;
use crate::precision::Arithmetic;
use crate::simd::{Simd, by_tile_rows};
use crate::view::MatrixMut;
use crate::weights::{Converted, Element, Source, WeightMatrix, decode_part};

/// Operands of a matrix product: `activation(x·wᵀ + bias) + residual`.
#[derive(Clone, Copy)]
pub struct Matmul<'a> {
    /// `[rows, inputs]`.
    pub x: &'a [f32],
    /// x rounded by [`Kernels::pair_rows`], as long as [`Kernels::paired_len`] says.
    pub paired: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row of x and of the weights.
    pub inputs: usize,
    /// `[outputs, inputs]`.
    pub weights: WeightMatrix<'a>,
    /// `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `[rows, outputs]`.
    pub residual: Option<&'a [f32]>,
    /// How bfloat16 weights are multiplied.
    pub arithmetic: Arithmetic,
}

impl Matmul<'_> {
    /// Rows of the weights.
    pub fn outputs(&self) -> usize {
        let row = self.inputs * self.weights.element_size();
        self.weights.bytes().len().checked_div(row).unwrap_or(0)
    }
}

impl Kernels {
    /// Scratch values that [`Self::matmul`] needs; no fewer than for some of the rows.
    pub fn matmul_scratch_len(&self, problem: &Matmul<'_>) -> usize {
        let Matmul { rows, inputs, .. } = *problem;
        if let Some(pairs) = self.pairs_for(problem.weights, problem.arithmetic) {
            (pairs.scratch_len)(rows, inputs)
        } else if rows <= FEW_TILES * self.tile_rows {
            0
        } else {
            PANEL_COLUMNS * inputs.min(BLOCK).next_multiple_of(self.lanes)
        }
    }

    /// What multiplies pairs of bfloat16, if that is wanted and possible.
    pub(crate) fn pairs_for(&self, weights: WeightMatrix<'_>, arithmetic: Arithmetic) -> Option<&PairKernels> {
        let is_wanted = arithmetic == Arithmetic::Bfloat16 && matches!(weights, WeightMatrix::Bf16(_));
        self.pairs.as_ref().filter(|_| is_wanted)
    }

    /// Computes the rows and columns of `out` (a part of a matrix `[rows, outputs]`).
    ///
    /// # Panics
    /// If the sizes do not fit or the scratch is too short.
    #[track_caller]
    pub fn matmul(&self, problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        let Matmul { x, paired, rows, inputs, weights, bias, residual, arithmetic, .. } = *problem;
        let outputs = problem.outputs();
        assert!(inputs > 0, "a product over no elements");
        assert_eq!(x.len(), rows * inputs, "x is not [{rows}, {inputs}]");
        assert_eq!(paired.len(), self.paired_len(weights, arithmetic, rows, inputs), "pairs of {rows} rows");
        assert_eq!(weights.bytes().len(), outputs * inputs * weights.element_size(), "weights are not [_, {inputs}]");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "bias is not [{outputs}]");
        assert!(
            residual.is_none_or(|residual| residual.len() == rows * outputs),
            "residual is not [{rows}, {outputs}]"
        );
        assert!(out.rows().end <= rows && out.columns().end <= outputs, "output outside of [{rows}, {outputs}]");
        assert!(scratch.len() >= self.matmul_scratch_len(problem), "scratch of {}", scratch.len());
        let kernel = match (self.pairs_for(weights, arithmetic), weights) {
            (Some(pairs), _) => pairs.matmul,
            (None, WeightMatrix::F32(_)) => self.matmul_f32_f32,
            (None, WeightMatrix::Bf16(_)) => self.matmul_bf16_f32,
            (None, WeightMatrix::F16(_)) => self.matmul_f16_f32,
        };
        kernel(problem, out, scratch);
    }
}

/// Elements of `in` after which lanes are added; a multiple of all lane counts.
const BLOCK: usize = 768;

/// Columns of a panel of converted weights: 96 × 768 × 4 B = 288 KiB of the second-level cache.
const PANEL_COLUMNS: usize = 96;

/// How far ahead weights are asked for while they stream: the same place in the next tile's rows, because processors
/// predict the way along a row, but not from one row's end to the next tile (measured: 21 to 28 GB/s, of 28) …
const FAR: usize = 32 * 1024;

/// … or, where a tile's rows are longer than what the first-level cache could hold until then, a bit along the row.
const NEAR: usize = 1024;

/// Up to that many tiles of rows, weights are converted in registers instead of in a panel.
const FEW_TILES: usize = 2;

#[inline(always)]
pub(crate) fn matmul<S: Simd, E: Element<S>>(simd: S, problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
    if out.rows().len() <= FEW_TILES * S::TILE_ROWS {
        few_rows::<S, E>(simd, problem, out);
    } else {
        many_rows::<S, E>(simd, problem, out, scratch);
    }
}

/// Column by column, all rows: the weights pass through once.
#[inline(always)]
fn few_rows<S: Simd, E: Element<S>>(simd: S, problem: &Matmul<'_>, mut out: MatrixMut<'_>) {
    let (rows, columns) = (out.rows(), out.columns());
    let step = if rows.len() == 1 { 8 } else { 4 };
    for column in columns.clone().step_by(step) {
        for row in rows.clone().step_by(S::TILE_ROWS) {
            let tile_rows = (rows.end - row).min(S::TILE_ROWS);
            if step == 8 {
                stream_tile::<S, E, 1, 8>(simd, problem, &mut out, row, column);
            } else {
                by_tile_rows!(S, tile_rows, stream_tile::<S, E; R, 4>(simd, problem, &mut out, row, column));
            }
        }
    }
    for row in rows {
        finish(simd, problem, row, columns.start, out.row(row));
    }
}

/// R rows × C columns, weights straight from the file.
#[inline(always)]
fn stream_tile<S: Simd, E: Element<S>, const R: usize, const C: usize>(
    simd: S,
    problem: &Matmul<'_>,
    out: &mut MatrixMut<'_>,
    row: usize,
    column: usize,
) {
    let inputs = problem.inputs;
    let columns = out.columns();
    let x = x_rows::<S, R>(problem, row, 0..inputs);
    let mut w: [&[E::Chunk]; C] = [&[]; C];
    let mut w_tail = [S::ZERO_CHUNK; C];
    for c in 0..C {
        // Columns beyond the last one repeat it; their sums are dropped.
        let at = (column + c).min(columns.end - 1);
        let (chunks, rest) = E::chunks(&problem.weights.bytes()[at * inputs * E::SIZE..][..inputs * E::SIZE]);
        w[c] = chunks;
        if !rest.is_empty() {
            w_tail[c] = decode_part::<S, E>(rest);
        }
    }
    let has_tail = !inputs.is_multiple_of(S::LANES);
    let distance = if C * inputs * E::SIZE <= FAR { C * inputs * E::SIZE } else { NEAR };
    let mut sums = [[0.0; C]; R];
    for start in (0..inputs).step_by(BLOCK) {
        let end = inputs.min(start + BLOCK);
        let range = start / S::LANES..end / S::LANES;
        let mut x_block: [&[S::Chunk]; R] = [&[]; R];
        let mut w_block: [&[E::Chunk]; C] = [&[]; C];
        for r in 0..R {
            x_block[r] = &x.chunks[r][range.clone()];
        }
        for c in 0..C {
            w_block[c] = &w[c][range.clone()];
        }
        let tail = if has_tail && end == inputs { Some((&x.tail, &w_tail)) } else { None };
        let block = tile_sums::<S, E, R, C>(simd, x_block, w_block, tail, distance);
        add_block(&mut sums, &block, start == 0);
    }
    let len = C.min(columns.end - column);
    for r in 0..R {
        out.row(row + r)[column - columns.start..][..len].copy_from_slice(&sums[r][..len]);
    }
}

/// A panel of columns at a time, block by block, all rows over it.
#[inline(always)]
fn many_rows<S: Simd, E: Element<S>>(simd: S, problem: &Matmul<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    let (rows, columns, inputs) = (out.rows(), out.columns(), problem.inputs);
    for first in columns.clone().step_by(PANEL_COLUMNS) {
        let panel = first..columns.end.min(first + PANEL_COLUMNS);
        for start in (0..inputs).step_by(BLOCK) {
            let end = inputs.min(start + BLOCK);
            let padded = (end - start).next_multiple_of(S::LANES);
            for (column, converted) in panel.clone().zip(scratch.chunks_exact_mut(padded)) {
                let bytes = &problem.weights.bytes()[(column * inputs + start) * E::SIZE..];
                embed::<S, E>(simd, &bytes[..(end - start) * E::SIZE], &mut converted[..end - start]);
                converted[end - start..].fill(0.0);
            }
            let converted = &scratch[..panel.len() * padded];
            for row in rows.clone().step_by(S::TILE_ROWS) {
                let place = Place { row, first_column: panel.start - columns.start, start, end, converted, padded };
                let tile_rows = (rows.end - row).min(S::TILE_ROWS);
                by_tile_rows!(S, tile_rows, panel_tiles::<S; R>(simd, problem, &mut out, &place));
            }
        }
        for row in rows.clone() {
            let sums = &mut out.row(row)[panel.start - columns.start..][..panel.len()];
            finish(simd, problem, row, panel.start, sums);
        }
    }
}

/// Which rows meet which block of which panel.
struct Place<'a> {
    row: usize,
    /// First column of the panel within the output's columns.
    first_column: usize,
    /// First element of the block.
    start: usize,
    /// The element behind the block.
    end: usize,
    /// `[columns of the panel, padded]`.
    converted: &'a [f32],
    padded: usize,
}

/// R rows × all columns of a panel, one block of elements.
#[inline(always)]
fn panel_tiles<S: Simd, const R: usize>(simd: S, problem: &Matmul<'_>, out: &mut MatrixMut<'_>, place: &Place<'_>) {
    const C: usize = 4;
    let panel_len = place.converted.len() / place.padded;
    let whole = (place.end - place.start) / S::LANES;
    let has_tail = whole * S::LANES < place.padded;
    let x = x_rows::<S, R>(problem, place.row, place.start..place.end);
    for column in (0..panel_len).step_by(C) {
        let mut w: [&[S::Chunk]; C] = [&[]; C];
        let mut w_tail = [S::ZERO_CHUNK; C];
        for c in 0..C {
            // Columns beyond the last one repeat it; their sums are dropped.
            let at = (column + c).min(panel_len - 1);
            let (chunks, _) = S::chunks(&place.converted[at * place.padded..][..place.padded]);
            w[c] = &chunks[..whole];
            if has_tail {
                w_tail[c] = chunks[whole];
            }
        }
        let tail = if has_tail { Some((&x.tail, &w_tail)) } else { None };
        let block = tile_sums::<S, Converted, R, C>(simd, x.chunks, w, tail, 0);
        let len = C.min(panel_len - column);
        for r in 0..R {
            let sums = &mut out.row(place.row + r)[place.first_column + column..][..len];
            match <&mut [f32; C]>::try_from(&mut *sums) {
                Ok(sums) => add_part(sums, &block[r], place.start == 0),
                Err(_) => add_part(sums, &block[r], place.start == 0),
            }
        }
    }
}

/// R rows of x: whole chunks, and the rest in a chunk of its own.
struct Rows<'a, S: Simd, const R: usize> {
    chunks: [&'a [S::Chunk]; R],
    tail: [S::Chunk; R],
}

#[inline(always)]
fn x_rows<'a, S: Simd, const R: usize>(problem: &Matmul<'a>, row: usize, range: Range<usize>) -> Rows<'a, S, R> {
    let mut rows = Rows { chunks: [&[]; R], tail: [S::ZERO_CHUNK; R] };
    for r in 0..R {
        let (chunks, rest) = S::chunks(&problem.x[(row + r) * problem.inputs..][range.clone()]);
        rows.chunks[r] = chunks;
        let tail: &mut S::Chunk = &mut rows.tail[r];
        tail.as_mut()[..rest.len()].copy_from_slice(rest);
    }
    rows
}

/// What is behind the last whole chunk, of the rows and of the columns.
type Tail<'a, S, const R: usize, const C: usize> = (&'a [<S as Simd>::Chunk; R], &'a [<S as Simd>::Chunk; C]);

/// The sums of one block for R rows × C columns (C a multiple of four).
#[inline(always)]
fn tile_sums<S: Simd, W: Source<S>, const R: usize, const C: usize>(
    simd: S,
    x: [&[S::Chunk]; R],
    w: [&[W::Chunk]; C],
    tail: Option<Tail<'_, S, R, C>>,
    distance: usize,
) -> [[f32; C]; R] {
    let len = w[0].len();
    // Lengths that are seen to be equal cost no checks in the loop.
    let (mut x, mut w) = (x, w);
    for x in &mut x {
        *x = &x[..len];
    }
    for w in &mut w {
        *w = &w[..len];
    }
    // Small registers would ask for the same cache line again and again.
    let chunks_per_prefetch = if S::LANES < 8 { 64 / size_of::<W::Chunk>() } else { 1 };
    let mut sums = [[simd.splat(0.0); C]; R];
    for k in 0..len {
        let mut x_k = [simd.splat(0.0); R];
        for r in 0..R {
            x_k[r] = simd.load(&x[r][k]);
        }
        for c in 0..C {
            let w_k = W::load(simd, &w[c][k]);
            if k.is_multiple_of(chunks_per_prefetch) {
                W::prefetch(simd, &w[c][k], distance);
            }
            for r in 0..R {
                sums[r][c] = simd.mul_add(x_k[r], w_k, sums[r][c]);
            }
        }
    }
    if let Some((x_tail, w_tail)) = tail {
        for c in 0..C {
            let w_k = simd.load(&w_tail[c]);
            for r in 0..R {
                sums[r][c] = simd.mul_add(simd.load(&x_tail[r]), w_k, sums[r][c]);
            }
        }
    }
    let mut out = [[0.0; C]; R];
    for r in 0..R {
        for c in (0..C).step_by(4) {
            let four = simd.sum4([sums[r][c], sums[r][c + 1], sums[r][c + 2], sums[r][c + 3]]);
            out[r][c..c + 4].copy_from_slice(&four);
        }
    }
    out
}

#[inline(always)]
fn add_block<const C: usize>(sums: &mut [[f32; C]], block: &[[f32; C]], is_first: bool) {
    for (sums, block) in sums.iter_mut().zip(block) {
        add_part(sums, block, is_first);
    }
}

#[inline(always)]
fn add_part(sums: &mut [f32], block: &[f32], is_first: bool) {
    for (sum, &block) in sums.iter_mut().zip(block) {
        *sum = if is_first { block } else { *sum + block };
    }
}

/// Bias, activation and residual for a part of a row that begins at `column`.
#[inline(always)]
pub(crate) fn finish<S: Simd>(simd: S, problem: &Matmul<'_>, row: usize, column: usize, sums: &mut [f32]) {
    let len = sums.len();
    if let Some(bias) = problem.bias {
        add_in_place(simd, sums, &bias[column..][..len]);
    }
    activate(simd, problem.activation, sums);
    if let Some(residual) = problem.residual {
        add_in_place(simd, sums, &residual[row * problem.outputs() + column..][..len]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;
    use crate::testing::{assert_close, bits, numbers};

    /// Bytes one off any alignment, and the values they stand for.
    struct Weights {
        bytes: Vec<u8>,
        values: Vec<f32>,
        element: usize,
    }

    impl Weights {
        fn new(element: usize, mut values: Vec<f32>) -> Self {
            let mut bytes = vec![0];
            for value in &mut values {
                match element {
                    0 => bytes.extend(value.to_le_bytes()),
                    1 => {
                        bytes.extend(bf16::from_f32(*value).to_le_bytes());
                        *value = bf16::from_f32(*value).to_f32();
                    }
                    _ => {
                        bytes.extend(f16::from_f32(*value).to_le_bytes());
                        *value = f16::from_f32(*value).to_f32();
                    }
                }
            }
            Self { bytes, values, element }
        }

        fn matrix(&self) -> WeightMatrix<'_> {
            [WeightMatrix::F32, WeightMatrix::Bf16, WeightMatrix::F16][self.element](&self.bytes[1..])
        }
    }

    fn plain<'a>(x: &'a [f32], rows: usize, weights: &'a Weights) -> Matmul<'a> {
        let (inputs, weights) = (x.len() / rows, weights.matrix());
        let (bias, activation, residual) = (None, Activation::None, None);
        Matmul { x, paired: &[], rows, inputs, weights, bias, activation, residual, arithmetic: Arithmetic::Float32 }
    }

    /// The product, computed in tiles of that size; scratch and output hold rubbish before.
    fn product(kernels: &Kernels, problem: &Matmul<'_>, tile: (usize, usize)) -> Vec<f32> {
        let mut out = vec![f32::NAN; problem.rows * problem.outputs()];
        let mut scratch = vec![f32::NAN; kernels.matmul_scratch_len(problem)];
        for part in MatrixMut::new(&mut out, problem.rows).tiles(tile.0, tile.1) {
            kernels.matmul(problem, part, &mut scratch);
        }
        out
    }

    const WHOLE: (usize, usize) = (usize::MAX / 2, usize::MAX / 2);

    pub(crate) fn products_are_as_exact_as_float32_allows(kernels: &Kernels) {
        let sizes = [(1, 1, 1), (1, 16, 9), (2, 17, 5), (3, 31, 4), (4, 8, 3), (5, 64, 12), (6, 100, 7), (7, 33, 8)];
        let large =
            [(1, 1600, 20), (3, 769, 5), (13, 768, 6), (14, 1552, 3), (20, 40, 130), (100, 5, 2), (17, 4096, 9)];
        for (rows, inputs, outputs) in sizes.into_iter().chain(large) {
            for element in 0..3 {
                let x = numbers(1, rows * inputs);
                let weights = Weights::new(element, numbers(2, outputs * inputs));
                let out = product(kernels, &plain(&x, rows, &weights), WHOLE);
                for (at, &out) in out.iter().enumerate() {
                    let row = &x[at / outputs * inputs..][..inputs];
                    let column = &weights.values[at % outputs * inputs..][..inputs];
                    let products = row.iter().zip(column).map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    // Rounding errors add up like a random walk along a lane, through the lanes and blocks.
                    let steps = (inputs as f64 / 8.0).sqrt() + 4.0;
                    let tolerance = f64::from(f32::EPSILON) / 2.0 * steps * size;
                    assert_close(out, sum, tolerance, (rows, inputs, outputs, element, at));
                }
            }
        }
    }

    pub(crate) fn every_epilogue_is_applied(kernels: &Kernels) {
        for (rows, inputs, outputs) in [(1, 20, 37), (5, 64, 18), (30, 33, 41)] {
            let x = numbers(1, rows * inputs);
            let weights = Weights::new(1, numbers(2, outputs * inputs));
            let (bias, residual) = (numbers(3, outputs), numbers(4, rows * outputs));
            let product_only = product(kernels, &plain(&x, rows, &weights), WHOLE);
            for activation in [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
                let problem =
                    Matmul { bias: Some(&bias), activation, residual: Some(&residual), ..plain(&x, rows, &weights) };
                let mut expected: Vec<f32> =
                    product_only.iter().enumerate().map(|(at, value)| value + bias[at % outputs]).collect();
                kernels.activate(activation, &mut expected);
                let fused = product(kernels, &problem, (7, 16));
                for at in 0..expected.len() {
                    let expected = f64::from(expected[at]) + f64::from(residual[at]);
                    assert_close(fused[at], expected, 1e-6, (rows, activation, at));
                }
            }
        }
    }

    /// Row by row, all together, and in any tiles: the same bits.
    pub(crate) fn rows_and_columns_are_independent(kernels: &Kernels) {
        let sizes = (1usize..30, 1usize..60, 1usize..30, 0usize..3, 1usize..9, 1usize..20, 0u64..1000);
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        let property = |(rows, inputs, outputs, element, tile_rows, tile_columns, seed)| {
            // Some products are longer than a block.
            let inputs: usize = if seed % 4 == 0 { inputs * 40 } else { inputs };
            let x = numbers(seed, rows * inputs);
            let weights = Weights::new(element, numbers(seed + 1, outputs * inputs));
            let whole = bits(&product(kernels, &plain(&x, rows, &weights), WHOLE));
            let tiles = product(kernels, &plain(&x, rows, &weights), (tile_rows, tile_columns));
            prop_assert_eq!(&bits(&tiles), &whole);
            for row in 0..rows {
                let alone = product(kernels, &plain(&x[row * inputs..][..inputs], 1, &weights), WHOLE);
                prop_assert_eq!(&bits(&alone), &whole[row * outputs..][..outputs]);
            }
            Ok(())
        };
        TestRunner::new(config).run(&sizes, property).unwrap();
    }

    pub(crate) fn special_values_stay_in_their_rows_and_columns(kernels: &Kernels) {
        for rows in [1, 4, 25] {
            for inputs in [13, 32, 50] {
                let outputs = 11;
                let (mut x, mut w) = (numbers(1, rows * inputs), numbers(2, outputs * inputs));
                let (bad_row, bad_column) = (rows / 2, 6);
                x[bad_row * inputs + inputs - 1] = f32::NAN;
                w[bad_column * inputs + inputs / 2] = f32::INFINITY;
                let weights = Weights::new(1, w);
                for (at, value) in product(kernels, &plain(&x, rows, &weights), WHOLE).into_iter().enumerate() {
                    let (row, column) = (at / outputs, at % outputs);
                    let expected = (row == bad_row, column != bad_column || row == bad_row);
                    assert_eq!((value.is_nan(), !value.is_infinite()), expected, "{rows} x {inputs}: {at}: {value}");
                }
                let tiny = Weights::new(0, vec![1e-30; inputs]);
                let huge = vec![1e30; rows * inputs];
                let out = product(kernels, &plain(&huge, rows, &tiny), WHOLE);
                assert!(out.iter().all(|value| (value / inputs as f32 - 1.0).abs() < 1e-6), "{out:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "bias is not [2]")]
    fn operands_that_do_not_fit_are_refused() {
        let weights = Weights::new(0, vec![0.0; 6]);
        let problem = Matmul { bias: Some(&[0.0; 3]), ..plain(&[0.0; 3], 1, &weights) };
        product(Kernels::select(Some("scalar")).unwrap(), &problem, WHOLE);
    }
}
