//! Products with bfloat16 weights where the processor multiplies pairs of bfloat16: activations are rounded to
//! bfloat16, sums are float32.
//!
//! # The order of a sum
//! Every output is one lane of one register, to which pairs of elements are added in ascending order. One row or a
//! thousand, however rows and columns are split: the order is the same. Between two blocks of elements the sums are in
//! the output, so that blocks do not change the order either.
//!
//! # Tiles
//! Weights stay where they are (mapped), x is rounded once for all parts of a product ([`Kernels::pair_rows`]).
//!
//! - *Few rows* (decode, beams): 16 pairs of 16 columns at a time are transposed in registers and multiplied with all
//!   rows. Weights are read once, and asked for in the order they lie in memory, a tile ahead.
//! - *Many rows*: a panel of columns is transposed, block by block, into scratch memory `[pairs][3 registers of
//!   columns]` that stays in the second-level cache, and tiles of [`TILE_ROWS`] rows × 3 registers of columns pass over
//!   it: per pair of elements 8 broadcasts and 3 loads for 24 instructions with 32 multiply-adds each. Where squares of
//!   pairs are multiplied, a tile is a way to form the same sums ([`Pairs::add_products`]).

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

use std::ops::Range;

use crate::dispatch::{Kernels, Rounding};
use crate::matmul::{Matmul, finish};
use crate::pairs::{Chunk, F32, Pairs, Rows};
use crate::precision::Arithmetic;
use crate::simd::Simd;
use crate::view::MatrixMut;
use crate::weights::WeightMatrix;

/// Rows of a register tile.
const TILE_ROWS: usize = 8;

/// Registers of columns in a tile.
pub(crate) const TILE: usize = 3;

/// Up to that many tiles of rows, weights are transposed in registers instead of in scratch memory.
const FEW_TILES: usize = 2;

/// Tiles of columns in scratch memory at a time …
const TILES: usize = 4;

/// … and pairs of elements, a multiple of all lane counts: 384 KiB of the second-level cache.
const MOST_PAIRS: usize = 512;

/// Pairs in a cache line.
pub(crate) const LINE_PAIRS: usize = 16;

impl Kernels {
    /// Values that rows of x take when they are rounded for these weights ([`Self::pair_rows`]); 0 if their products read
    /// x as it is.
    pub fn paired_len(&self, weights: WeightMatrix<'_>, arithmetic: Arithmetic, rows: usize, inputs: usize) -> usize {
        let rounding = self.pairs_for(weights, arithmetic).map(|pairs| pairs.round);
        rounding.map_or(0, |rounding| rounding.len(rows, inputs))
    }

    /// Rows that [`Self::pair_rows`] arranges together: who rounds x part by part begins each part at a multiple.
    pub fn paired_rows(&self) -> usize {
        self.pairs.map_or(1, |pairs| pairs.round.rows)
    }

    /// Rounds x `[rows, inputs]` to bfloat16, two in the bits of a value, arranged as this instruction set's products
    /// read them: [`Self::paired_len`] values.
    ///
    /// # Panics
    /// If the sizes do not fit, or nothing of this instruction set reads pairs.
    #[track_caller]
    pub fn pair_rows(&self, x: &[f32], inputs: usize, out: &mut [f32]) {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "{} values are not rows of {inputs}", x.len());
        let rounding = self.pairs.expect("an instruction set that reads pairs").round;
        assert_eq!(out.len(), rounding.len(x.len() / inputs, inputs), "pairs of {} rows", x.len() / inputs);
        (rounding.run)(x, inputs, out);
    }

    /// Rows that a part of a product with these weights should not exceed, so that x of them stays in a cache; none if
    /// that does not matter.
    pub fn rows_in_cache(&self, weights: WeightMatrix<'_>, arithmetic: Arithmetic, inputs: usize) -> Option<usize> {
        let rows = self.pairs_for(weights, arithmetic)?.rows_in_cache?;
        Some(rows(inputs))
    }
}

impl Rounding {
    fn len(self, rows: usize, inputs: usize) -> usize {
        rows.next_multiple_of(self.rows) * padded_pairs(inputs)
    }
}

/// Pairs of a row, in whole registers of any instruction set.
fn padded_pairs(inputs: usize) -> usize {
    inputs.div_ceil(2).next_multiple_of(16)
}

/// Rounds rows of x to bfloat16, zeros behind them.
#[inline(always)]
pub(crate) fn round<P: Pairs>(arch: P, x: &[f32], inputs: usize, out: &mut [f32]) {
    let simd = arch.simd();
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(padded_pairs(inputs))) {
        let (chunks, rest) = P::Simd::chunks(x);
        let (twos, one) = chunks.as_chunks::<2>();
        let (outs, _) = P::Simd::chunks_mut(out);
        for ([first, second], out) in twos.iter().zip(&mut *outs) {
            arch.store_pairs(arch.neighbours(simd.load(first), simd.load(second)), out);
        }
        if let Some((out, padding)) = outs[twos.len()..].split_first_mut() {
            let rest = simd.load_part(rest);
            let (first, second) = match one {
                [first] => (simd.load(first), rest),
                _ => (rest, simd.splat(0.0)),
            };
            arch.store_pairs(arch.neighbours(first, second), out);
            padding.fill(P::Simd::ZERO_CHUNK);
        }
    }
}

/// Scratch values that [`matmul_pairs`] needs.
pub(crate) fn scratch_len(lanes: usize, rows: usize, inputs: usize) -> usize {
    if rows <= FEW_TILES * TILE_ROWS { 0 } else { TILES * TILE * lanes * padded_pairs(inputs).min(MOST_PAIRS) }
}

#[inline(always)]
pub(crate) fn matmul_pairs<P: Pairs>(arch: P, problem: &Matmul<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    if out.rows().len() <= FEW_TILES * TILE_ROWS {
        few_rows(arch, problem, &mut out);
    } else {
        many_rows(arch, problem, &mut out, scratch);
    }
}

/// One register of columns at a time, weights straight from the file: once from memory, for further tiles of rows from a
/// cache.
#[inline(always)]
fn few_rows<P: Pairs>(arch: P, problem: &Matmul<'_>, out: &mut MatrixMut<'_>) {
    let (rows, columns) = (out.rows(), out.columns());
    for column in columns.clone().step_by(P::Simd::LANES) {
        for row in rows.clone().step_by(TILE_ROWS) {
            match (rows.end - row).min(TILE_ROWS) {
                1 => stream_tile::<P, 1>(arch, problem, row, column, out),
                2 => stream_tile::<P, 2>(arch, problem, row, column, out),
                3 => stream_tile::<P, 3>(arch, problem, row, column, out),
                4 => stream_tile::<P, 4>(arch, problem, row, column, out),
                5 => stream_tile::<P, 5>(arch, problem, row, column, out),
                6 => stream_tile::<P, 6>(arch, problem, row, column, out),
                7 => stream_tile::<P, 7>(arch, problem, row, column, out),
                _ => stream_tile::<P, TILE_ROWS>(arch, problem, row, column, out),
            }
        }
    }
    for row in rows {
        finish(arch.simd(), problem, row, columns.start, out.row(row));
    }
}

/// R rows × one register of columns, all elements.
#[inline(always)]
fn stream_tile<P: Pairs, const R: usize>(
    arch: P,
    problem: &Matmul<'_>,
    row: usize,
    column: usize,
    out: &mut MatrixMut<'_>,
) {
    let (simd, lanes, inputs) = (arch.simd(), P::Simd::LANES, problem.inputs);
    let (columns, pairs) = (out.columns(), padded_pairs(inputs));
    let mut x: [&[Chunk<P>]; R] = [&[]; R];
    for r in 0..R {
        (x[r], _) = P::Simd::chunks(&problem.paired[(row + r) * pairs..][..pairs]);
    }
    let count = lanes.min(columns.end - column);
    let tile = &problem.weights.bytes()[2 * column * inputs..];
    // As many lines as are read here, but of the next columns, and one after another.
    let mut next = tile.as_ptr().wrapping_add(2 * lanes * inputs);
    let mut sums = [simd.splat(0.0); R];
    for step in 0..inputs.div_ceil(2 * lanes) {
        let len = 2 * (inputs - step * 2 * lanes).min(2 * lanes);
        let weights = arch.transposed(&Rows::new(&tile[step * 4 * lanes..], 2 * inputs, count, len));
        for _ in 0..lanes * lanes / LINE_PAIRS {
            simd.prefetch(next);
            next = next.wrapping_add(4 * LINE_PAIRS);
        }
        for k in 0..lanes {
            for r in 0..R {
                let pair = arch.splat_pair(x[r][step].as_ref()[k]);
                sums[r] = arch.dot(sums[r], pair, weights.as_ref()[k]);
            }
        }
    }
    for r in 0..R {
        let part = &mut out.row(row + r)[column - columns.start..][..count];
        match P::Simd::chunks_mut(part) {
            ([chunk, ..], _) => simd.store(sums[r], chunk),
            ([], rest) => simd.store_part(sums[r], rest),
        }
    }
}

/// A panel of columns at a time, block by block, all rows over it.
#[inline(always)]
fn many_rows<P: Pairs>(arch: P, problem: &Matmul<'_>, out: &mut MatrixMut<'_>, scratch: &mut [f32]) {
    let (rows, columns, inputs) = (out.rows(), out.columns(), problem.inputs);
    let tile_columns = TILE * P::Simd::LANES;
    let (stride, row_pairs) = (padded_pairs(inputs), inputs.div_ceil(2).next_multiple_of(P::Simd::LANES));
    for first in columns.clone().step_by(TILES * tile_columns) {
        let of_panel = first..columns.end.min(first + TILES * tile_columns);
        for start in (0..row_pairs).step_by(MOST_PAIRS) {
            let pairs = MOST_PAIRS.min(row_pairs - start);
            let elements = 2 * start..inputs.min(2 * (start + pairs));
            pack(arch, problem, &of_panel, &elements, scratch, pairs);
            let mut ahead = Ahead::behind(problem, &of_panel, &elements);
            for row in rows.clone().step_by(TILE_ROWS) {
                let tile_rows = (rows.end - row).min(TILE_ROWS);
                let x = &problem.paired[row * stride + start..];
                let packed = scratch.chunks_exact(tile_columns * pairs);
                for (of_tile, weights) in tiles::<P>(&of_panel).zip(packed) {
                    let column = of_tile.start;
                    let (is_first, ahead) = (start == 0, ahead.rows());
                    let tile = Tile { x, stride, weights, pairs, row, column, is_first, ahead };
                    any_tile(arch, tile_rows, of_tile.len(), &tile, out);
                }
                if start + pairs == row_pairs {
                    // While the sums are in the first-level cache.
                    for row in row..row + tile_rows {
                        let sums = &mut out.row(row)[of_panel.start - columns.start..][..of_panel.len()];
                        finish(arch.simd(), problem, row, of_panel.start, sums);
                    }
                }
            }
        }
    }
}

/// Weights that will be packed next. Tiles ask for them, a line now and then: all at once they would be waited for.
struct Ahead<'a> {
    weights: &'a [u8],
    /// Bytes of a row of the matrix.
    stride: usize,
    rows: std::iter::StepBy<Range<usize>>,
}

/// Rows of which a tile asks for the next part.
const AHEAD_ROWS: usize = 2;

impl<'a> Ahead<'a> {
    /// The following elements of these columns or, behind the last ones, the first ones of the next columns.
    #[inline(always)]
    fn behind(problem: &Matmul<'a>, columns: &Range<usize>, elements: &Range<usize>) -> Self {
        let stride = 2 * problem.inputs;
        let (rows, first) = if elements.end < problem.inputs {
            (columns.clone(), elements.end)
        } else {
            (columns.end..problem.outputs().min(columns.end + columns.len()), 0)
        };
        Self { weights: &problem.weights.bytes()[2 * first..], stride, rows: rows.step_by(AHEAD_ROWS) }
    }

    /// Where the parts of the next rows begin; those of the first ones when nothing is left to ask for.
    #[inline(always)]
    fn rows(&mut self) -> [*const u8; AHEAD_ROWS] {
        let first = self.rows.next().unwrap_or(0);
        let mut rows = [self.weights.as_ptr(); AHEAD_ROWS];
        for (at, row) in rows.iter_mut().enumerate() {
            *row = row.wrapping_add((first + at) * self.stride);
        }
        rows
    }
}

/// The tiles of a panel, as wide as each other: a tile of one register would wait for each of its sums.
#[inline(always)]
fn tiles<P: Pairs>(panel: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<P> {
    let (lanes, start, end) = (P::Simd::LANES, panel.start, panel.end);
    let registers = panel.len().div_ceil(lanes);
    let count = registers.div_ceil(TILE);
    let first = move |tile: usize| end.min(start + tile * registers / count * lanes);
    (0..count).map(move |tile| first(tile)..first(tile + 1))
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
    for (tile, packed) in tiles::<P>(columns).zip(panel.chunks_exact_mut(TILE * lanes * pairs)) {
        for (at, column) in tile.step_by(lanes).enumerate() {
            let count = lanes.min(columns.end - column);
            let bytes = &bytes[2 * (column * inputs + elements.start)..];
            let (rows, packed) = (Rows::new(bytes, 2 * inputs, count, 2 * elements.len()), &mut packed[at * lanes..]);
            arch.apart(
                #[inline(always)]
                || pack_register(arch, &rows, packed),
            );
        }
    }
}

/// One register of columns.
#[inline(always)]
fn pack_register<P: Pairs>(arch: P, rows: &Rows<'_>, packed: &mut [f32]) {
    let lanes = P::Simd::LANES;
    for (block, packed) in packed.chunks_mut(lanes * TILE * lanes).enumerate() {
        let columns = arch.packed(&rows.block(block * 4 * lanes, 4 * lanes));
        for (packed, &pairs) in packed.chunks_mut(TILE * lanes).zip(columns.as_ref()) {
            let (chunk, _) = P::Simd::chunks_mut(&mut packed[..lanes]);
            arch.store_pairs(pairs, &mut chunk[0]);
        }
    }
}

/// Operands of a register tile.
pub(crate) struct Tile<'a> {
    /// Pairs of the first row, those of the next one `stride` later.
    x: &'a [f32],
    stride: usize,
    /// `[pairs, TILE, lanes]`, as [`Pairs::packed`] makes them.
    weights: &'a [f32],
    pairs: usize,
    /// The first row.
    row: usize,
    /// The first column.
    column: usize,
    /// Whether sums begin here.
    is_first: bool,
    /// Where what is asked for meanwhile begins.
    ahead: [*const u8; AHEAD_ROWS],
}

impl Tile<'_> {
    /// Pairs of the rows.
    #[inline(always)]
    pub(crate) fn x<const R: usize>(&self) -> [&[f32]; R] {
        let mut x: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            x[r] = &self.x[r * self.stride..][..self.pairs];
        }
        x
    }

    /// Weights, pair after pair.
    #[inline(always)]
    pub(crate) fn weights<P: Pairs>(&self) -> &[[Chunk<P>; TILE]] {
        let (weights, _) = P::Simd::chunks(self.weights);
        let (weights, _) = weights.as_chunks::<TILE>();
        &weights[..self.pairs]
    }

    /// Asks for the line of coming weights that belongs to a pair, the first one of [`LINE_PAIRS`].
    #[inline(always)]
    pub(crate) fn ask_ahead<P: Pairs>(&self, arch: P, pair: usize) {
        for row in self.ahead {
            arch.simd().prefetch(row.wrapping_add(4 * pair));
        }
    }
}

/// A tile of so many rows and columns.
#[inline(always)]
fn any_tile<P: Pairs>(arch: P, rows: usize, columns: usize, tile: &Tile<'_>, out: &mut MatrixMut<'_>) {
    macro_rules! by_rows {
        ($columns:literal: $($rows:literal)+) => {
            match rows {
                $($rows => arch.apart(
                    #[inline(always)]
                    || tile_sums::<P, $rows, $columns>(arch, tile, out),
                ),)+
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

/// Repeats code for every row of a tile. Sums are taken out of and put into registers outside of the loop over the pairs;
/// a loop over the rows there would need its index in memory, and with it all sums.
macro_rules! each_row {
    ($rows:ident, $row:ident => $body:block) => {
        each_row!($rows, $row => $body; 0 1 2 3 4 5 6 7)
    };
    ($rows:ident, $row:ident => $body:block; $($number:literal)+) => {
        $(if const { $number < $rows } {
            let $row = $number;
            $body
        })+
    };
}

/// Adds the products of a tile's pairs to its sums, which are in the output before and after.
#[inline(always)]
fn tile_sums<P: Pairs, const R: usize, const C: usize>(arch: P, tile: &Tile<'_>, out: &mut MatrixMut<'_>) {
    let simd = arch.simd();
    let column = tile.column - out.columns().start;
    let mut sums = [[simd.splat(0.0); C]; R];
    if !tile.is_first {
        each_row!(R, r => {
            sums[r] = read_row::<P, C>(simd, &out.row(tile.row + r)[column..]);
        });
    }
    arch.add_products(tile, &mut sums);
    each_row!(R, r => {
        write_row::<P, C>(simd, sums[r], &mut out.row(tile.row + r)[column..]);
    });
}

/// The first C registers of a row, or as much of the last one as there is.
#[inline(always)]
fn read_row<P: Pairs, const C: usize>(simd: P::Simd, row: &[f32]) -> [F32<P>; C] {
    let (chunks, rest) = P::Simd::chunks(row);
    let mut sums = [simd.splat(0.0); C];
    for c in 0..C {
        sums[c] = if c < chunks.len() { simd.load(&chunks[c]) } else { simd.load_part(rest) };
    }
    sums
}

#[inline(always)]
fn write_row<P: Pairs, const C: usize>(simd: P::Simd, sums: [F32<P>; C], row: &mut [f32]) {
    let (chunks, rest) = P::Simd::chunks_mut(row);
    for c in 0..C {
        if c < chunks.len() {
            simd.store(sums[c], &mut chunks[c]);
        } else {
            simd.store_part(sums[c], rest);
        }
    }
}

/// [`Pairs::add_products`] for instruction sets that have nothing better: pair after pair, one for all columns.
#[inline(always)]
pub(crate) fn add_products_by_dots<P: Pairs, const R: usize, const C: usize>(
    arch: P,
    tile: &Tile<'_>,
    sums: &mut [[F32<P>; C]; R],
) {
    let (x, weights) = (tile.x::<R>(), tile.weights::<P>());
    for k in 0..tile.pairs {
        if k.is_multiple_of(LINE_PAIRS) {
            tile.ask_ahead(arch, k);
        }
        let mut w = [arch.load_pairs(&weights[k][0]); C];
        for c in 1..C {
            w[c] = arch.load_pairs(&weights[k][c]);
        }
        for r in 0..R {
            let pair = arch.splat_pair(x[r][k]);
            for c in 0..C {
                sums[r][c] = arch.dot(sums[r][c], pair, w[c]);
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
        let inputs = x.len() / rows;
        let len = |rows| kernels.paired_len(weights, arithmetic, rows, inputs);
        let (mut paired, part) = (vec![f32::NAN; len(rows)], 2 * kernels.paired_rows());
        if !paired.is_empty() {
            for (x, paired) in x.chunks(part * inputs).zip(paired.chunks_mut(len(part))) {
                kernels.pair_rows(x, inputs, paired);
            }
        }
        let problem = Matmul { x, paired: &paired, rows, inputs, weights, bias, activation, residual, arithmetic };
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
