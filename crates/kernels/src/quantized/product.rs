//! Products of packed weights and quantised activations.
//!
//! # Tiles
//! A register tile holds R rows × P panels of whole-number sums and as many of floats: per quad of inputs it loads P
//! lines of codes and R activations for R · P dot products; at the end of a group the sums become floats and join those
//! of the groups before. Tiles of twice the size hide loads better, but then the floats do not stay in registers, and
//! that costs more (`docs/perf-log.md`).
//!
//! Weights pass from memory once: the tile's panels stay in the second-level cache while all rows pass over them, 24 at a
//! time, and a block of inputs ([`BLOCK`]) in the first-level cache. 4-bit codes are taken apart in registers. Few rows
//! ([`Dots::STREAM_ROWS`]) are one tile that reads panel after panel, in the order they lie in memory.

#![expect(clippy::needless_range_loop, reason = "several small arrays are indexed alike; iterators hide the tile")]

use std::ops::Range;

use super::{Dots, LINE, Line, PANEL, PackedDims, PackedMatrix, QuantizedRows};
use crate::activation::{Activation, activate, silu_mul};
use crate::dispatch::Kernels;
use crate::elementwise::add_in_place;
use crate::quantized::CodeBits;
use crate::simd::{Simd, by_tile_rows};
use crate::view::MatrixMut;

/// Operands of a product with packed weights: `activation(x·wᵀ + bias) + residual`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedMatmul<'a> {
    /// `[rows, inputs]`, quantised in the groups of the weights.
    pub x: QuantizedRows<'a>,
    /// Number of rows.
    pub rows: usize,
    /// `[outputs, inputs]`.
    pub weights: PackedMatrix<'a>,
    /// `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `[rows, outputs]`.
    pub residual: Option<&'a [f32]>,
}

/// Operands of `silu(x·gateᵀ) * (x·upᵀ)`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedSwiglu<'a> {
    /// `[rows, inputs]`, quantised in the groups of the weights.
    pub x: QuantizedRows<'a>,
    /// Number of rows.
    pub rows: usize,
    /// `[outputs, inputs]`.
    pub gate: PackedMatrix<'a>,
    /// `[outputs, inputs]`, packed alike.
    pub up: PackedMatrix<'a>,
}

impl Kernels {
    /// Scratch values that [`Self::quantized_matmul`] and [`Self::quantized_swiglu`] need for that many rows of output.
    pub fn quantized_scratch_len(&self, rows: usize) -> usize {
        (MOST_PANELS * rows.min(MOST_ROWS) + 1) * PANEL
    }

    /// Computes the rows and columns of `out` (a part of a matrix `[rows, outputs]`).
    ///
    /// # Panics
    /// If the sizes do not fit, the columns do not begin at a multiple of 16, or the scratch is too short.
    #[track_caller]
    pub fn quantized_matmul(&self, problem: &QuantizedMatmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        let QuantizedMatmul { x, rows, weights, bias, residual, .. } = *problem;
        let dims = weights.dims();
        self.check(&x, rows, &dims, &out, scratch);
        assert!(bias.is_none_or(|bias| bias.len() == dims.outputs), "bias is not [{}]", dims.outputs);
        assert!(
            residual.is_none_or(|residual| residual.len() == rows * dims.outputs),
            "residual is not [{rows}, {}]",
            dims.outputs
        );
        match dims.bits {
            CodeBits::Four => (self.quantized.matmul_four)(problem, out, scratch),
            CodeBits::Eight => (self.quantized.matmul_eight)(problem, out, scratch),
        }
    }

    /// Computes the rows and columns of `out` (a part of a matrix `[rows, outputs]`).
    ///
    /// # Panics
    /// If the sizes do not fit, the columns do not begin at a multiple of 16, or the scratch is too short.
    #[track_caller]
    pub fn quantized_swiglu(&self, problem: &QuantizedSwiglu<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        let QuantizedSwiglu { x, rows, gate, up } = *problem;
        let dims = gate.dims();
        assert_eq!(dims, up.dims(), "gate and up differ");
        self.check(&x, rows, &dims, &out, scratch);
        match dims.bits {
            CodeBits::Four => (self.quantized.swiglu_four)(problem, out, scratch),
            CodeBits::Eight => (self.quantized.swiglu_eight)(problem, out, scratch),
        }
    }

    #[track_caller]
    fn check(&self, x: &QuantizedRows<'_>, rows: usize, dims: &PackedDims, out: &MatrixMut<'_>, scratch: &[f32]) {
        let outputs = dims.outputs;
        assert_eq!(x.codes.len(), rows * dims.padded_inputs(), "codes of {rows} rows for {dims:?}");
        assert_eq!(x.scales.len(), rows * dims.groups(), "scales of {rows} rows for {dims:?}");
        assert_eq!(x.sums.len(), rows * dims.groups(), "sums of {rows} rows for {dims:?}");
        assert!(out.rows().end <= rows && out.columns().end <= outputs, "output outside of [{rows}, {outputs}]");
        assert!(out.columns().start.is_multiple_of(PANEL), "columns {:?} begin within a panel", out.columns());
        assert!(scratch.len() >= self.quantized_scratch_len(out.rows().len()), "scratch of {}", scratch.len());
    }
}

/// Inputs of a block: four panels of 8-bit weights are 32 KiB of the first-level cache, six rows 3 KiB.
const BLOCK: usize = 512;

/// The largest [`Panels::ROWS`].
pub(crate) const MOST_ROWS: usize = 512;

/// Panels of a register tile.
pub(crate) const MOST_PANELS: usize = 4;

/// How far ahead weights are asked for while they stream.
const AHEAD: usize = 2048;

#[inline(always)]
pub(crate) fn matmul<P: Panels>(proof: P, problem: &QuantizedMatmul<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    let (rows, columns) = (out.rows(), out.columns());
    let dims = problem.weights.dims();
    let sums = whole_lines(scratch);
    for column in columns.clone().step_by(MOST_PANELS * PANEL) {
        let end = columns.end.min(column + MOST_PANELS * PANEL);
        let count = (end - column).div_ceil(PANEL);
        let mut panels: [&[Line]; MOST_PANELS] = [&[]; MOST_PANELS];
        for at in 0..count {
            panels[at] = problem.weights.panel(column / PANEL + at);
        }
        for first_row in rows.clone().step_by(P::ROWS) {
            let rows = first_row..rows.end.min(first_row + P::ROWS);
            proof.multiply(&problem.x, &dims, rows.clone(), &panels[..count], sums);
            for row in rows.clone() {
                let out = &mut out.row(row)[column - columns.start..end - columns.start];
                for (out, panel) in out.chunks_mut(PANEL).zip(0..) {
                    out.copy_from_slice(&sums[panel * rows.len() + row - rows.start][..out.len()]);
                }
                finish(proof.simd(), problem, row, column, out);
            }
        }
    }
}

#[inline(always)]
pub(crate) fn swiglu<P: Panels>(proof: P, problem: &QuantizedSwiglu<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    const PAIRS: usize = MOST_PANELS / 2;
    let (rows, columns) = (out.rows(), out.columns());
    let dims = problem.gate.dims();
    let sums = whole_lines(scratch);
    for column in columns.clone().step_by(PAIRS * PANEL) {
        let end = columns.end.min(column + PAIRS * PANEL);
        let count = (end - column).div_ceil(PANEL);
        let mut panels: [&[Line]; MOST_PANELS] = [&[]; MOST_PANELS];
        for at in 0..count {
            panels[at] = problem.gate.panel(column / PANEL + at);
            panels[count + at] = problem.up.panel(column / PANEL + at);
        }
        for first_row in rows.clone().step_by(P::ROWS) {
            let rows = first_row..rows.end.min(first_row + P::ROWS);
            proof.multiply(&problem.x, &dims, rows.clone(), &panels[..2 * count], sums);
            for row in rows.clone() {
                let out = &mut out.row(row)[column - columns.start..end - columns.start];
                for (out, panel) in out.chunks_mut(PANEL).zip(0..) {
                    let at = panel * rows.len() + row - rows.start;
                    let (gate, up) = (&sums[at][..out.len()], &sums[at + count * rows.len()][..out.len()]);
                    silu_mul(proof.simd(), gate, up, out);
                }
            }
        }
    }
}

/// The scratch memory from the first cache line on: sums that lie across two lines take twice as long to reach.
#[inline(always)]
fn whole_lines(scratch: &mut [f32]) -> &mut [[f32; PANEL]] {
    let start = scratch.as_ptr().align_offset(LINE);
    scratch[start..].as_chunks_mut().0
}

/// What multiplies whole panels: tiles of registers wherever there are [`Dots`], or something better.
pub(crate) trait Panels: Copy {
    /// The float operations of the same instruction set.
    type Simd: Simd;

    /// Rows that are multiplied at a time, then finished: at most [`MOST_ROWS`].
    const ROWS: usize;

    /// The proof for float operations.
    fn simd(self) -> Self::Simd;

    /// All inputs of the panels (at most [`MOST_PANELS`]) with the rows: sums `[panels, rows]`, and behind them what may
    /// be overwritten.
    fn multiply(
        self,
        x: &QuantizedRows<'_>,
        dims: &PackedDims,
        rows: Range<usize>,
        panels: &[&[Line]],
        sums: &mut [[f32; PANEL]],
    );
}

impl<D: Dots> Panels for D {
    type Simd = D::Simd;

    /// So few that the results are written to memory while the next rows are multiplied.
    const ROWS: usize = 24;

    #[inline(always)]
    fn simd(self) -> D::Simd {
        Dots::simd(self)
    }

    #[inline(always)]
    fn multiply(
        self,
        x: &QuantizedRows<'_>,
        dims: &PackedDims,
        rows: Range<usize>,
        panels: &[&[Line]],
        sums: &mut [[f32; PANEL]],
    ) {
        if rows.len() <= D::STREAM_ROWS {
            for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(rows.len())) {
                stream(self, x, dims, rows.clone(), panel, sums);
            }
            return;
        }
        if const { D::WIDE } {
            // Too few panels are filled up with the first one: four take little longer than one.
            let mut four = [panels[0]; MOST_PANELS];
            four[..panels.len()].copy_from_slice(panels);
            return by_group(self, x, dims, rows, &four, sums);
        }
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(rows.len())) {
            by_group(self, x, dims, rows.clone(), &[*panel], sums);
        }
    }
}

/// All inputs of a panel with so few rows that one tile holds them: the panel is read once, wherever it is.
#[inline(always)]
fn stream<D: Dots>(
    dots: D,
    x: &QuantizedRows<'_>,
    dims: &PackedDims,
    rows: Range<usize>,
    panel: &[Line],
    sums: &mut [[f32; PANEL]],
) {
    let block = Block { panels: [panel], first_group: 0, groups: dims.groups(), is_streamed: true };
    let place = Place { row: rows.start, first: 0, rows: rows.len() };
    if dims.group == 32 {
        stream_tile::<D, 32>(dots, x, dims, &block, &place, sums);
    } else {
        stream_tile::<D, 64>(dots, x, dims, &block, &place, sums);
    }
}

/// One tile of all rows.
#[inline(always)]
fn stream_tile<D: Dots, const G: usize>(
    dots: D,
    x: &QuantizedRows<'_>,
    dims: &PackedDims,
    block: &Block<'_, 1>,
    place: &Place,
    sums: &mut [[f32; PANEL]],
) {
    match place.rows {
        1 => tile::<D, G, 1, 1>(dots, x, dims, block, place, sums),
        2 if const { D::STREAM_ROWS >= 2 } => tile::<D, G, 2, 1>(dots, x, dims, block, place, sums),
        3 if const { D::STREAM_ROWS >= 3 } => tile::<D, G, 3, 1>(dots, x, dims, block, place, sums),
        4 if const { D::STREAM_ROWS >= 4 } => tile::<D, G, 4, 1>(dots, x, dims, block, place, sums),
        5 if const { D::STREAM_ROWS >= 5 } => tile::<D, G, 5, 1>(dots, x, dims, block, place, sums),
        6 if const { D::STREAM_ROWS >= 6 } => tile::<D, G, 6, 1>(dots, x, dims, block, place, sums),
        7 if const { D::STREAM_ROWS >= 7 } => tile::<D, G, 7, 1>(dots, x, dims, block, place, sums),
        8 if const { D::STREAM_ROWS >= 8 } => tile::<D, G, 8, 1>(dots, x, dims, block, place, sums),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

/// A block of inputs of some panels.
struct Block<'a, const P: usize> {
    panels: [&'a [Line]; P],
    /// Number of the block's first group.
    first_group: usize,
    /// Groups of the block.
    groups: usize,
    /// Whether nothing but one tile of rows passes over it, so that it comes from memory.
    is_streamed: bool,
}

/// Makes the group a constant, so that loops over it are unrolled.
#[inline(always)]
fn by_group<D: Dots, const P: usize>(
    dots: D,
    x: &QuantizedRows<'_>,
    dims: &PackedDims,
    rows: Range<usize>,
    panels: &[&[Line]; P],
    sums: &mut [[f32; PANEL]],
) {
    if dims.group == 32 {
        blocks::<D, 32, P>(dots, x, dims, rows, panels, sums);
    } else {
        blocks::<D, 64, P>(dots, x, dims, rows, panels, sums);
    }
}

#[inline(always)]
fn blocks<D: Dots, const G: usize, const P: usize>(
    dots: D,
    x: &QuantizedRows<'_>,
    dims: &PackedDims,
    rows: Range<usize>,
    panels: &[&[Line]; P],
    sums: &mut [[f32; PANEL]],
) {
    let cell_lines = G / 4 / D::QUADS + 1;
    let block = dims.groups().div_ceil(dims.groups().div_ceil(BLOCK / G));
    for first_group in (0..dims.groups()).step_by(block) {
        let groups = block.min(dims.groups() - first_group);
        let lines = first_group * cell_lines..(first_group + groups) * cell_lines;
        let mut block = Block { panels: *panels, first_group, groups, is_streamed: false };
        for panel in &mut block.panels {
            *panel = &panel[lines.clone()];
        }
        for row in rows.clone().step_by(D::TILE_ROWS) {
            let tile_rows = (rows.end - row).min(D::TILE_ROWS);
            let place = Place { row, first: row - rows.start, rows: rows.len() };
            by_tile_rows!(D, tile_rows, tile::<D, G; R, P>(dots, x, dims, &block, &place, sums));
        }
    }
}

/// Where a tile's rows are.
struct Place {
    /// First row in x.
    row: usize,
    /// First row in the sums.
    first: usize,
    /// Rows of the sums.
    rows: usize,
}

/// R rows × P panels of a block: joins what `sums` hold of the blocks before.
#[inline(always)]
fn tile<D: Dots, const G: usize, const R: usize, const P: usize>(
    dots: D,
    x: &QuantizedRows<'_>,
    dims: &PackedDims,
    block: &Block<'_, P>,
    place: &Place,
    sums: &mut [[f32; PANEL]],
) {
    let code_lines = G / 4 / D::QUADS;
    let cell_lines = code_lines + 1;
    let x = x_rows::<G, R>(x, dims, place.row, block.first_group, block.groups);
    let mut floats = [[dots.splat(0.0); P]; R];
    if block.first_group > 0 {
        for r in 0..R {
            for p in 0..P {
                floats[r][p] = dots.load(&sums[p * place.rows + place.first + r]);
            }
        }
    }
    for group in 0..block.groups {
        let mut cells: [&[Line]; P] = [&[]; P];
        for p in 0..P {
            cells[p] = &block.panels[p][group * cell_lines..][..cell_lines];
        }
        if block.is_streamed {
            for p in 0..P {
                for line in cells[p] {
                    dots.prefetch(line.as_ptr().wrapping_add(AHEAD));
                }
            }
        }
        let mut activations = [&[0; G]; R];
        for r in 0..R {
            activations[r] = &x.codes[r][group];
            // The next tile of rows needs the same group: too short a stretch for the processor to foresee.
            dots.prefetch(activations[r].as_ptr().cast::<u8>().wrapping_add(R * dims.padded_inputs()));
        }
        let totals = dots.group_sums(&cells, &activations);
        let mut factors = [(dots.splat(0.0), dots.splat(0.0)); P];
        for p in 0..P {
            let (halves, _) = cells[p][code_lines].as_chunks();
            factors[p] = (dots.widen(&halves[0]), dots.widen(&halves[1]));
        }
        for r in 0..R {
            let (scale, sum) = (dots.splat(x.scales[r][group]), dots.splat(x.sums[r][group]));
            for p in 0..P {
                let total = dots.mul(dots.to_floats(totals[r][p]), scale);
                floats[r][p] = dots.fused(total, factors[p].0, floats[r][p]);
                floats[r][p] = dots.fused(sum, factors[p].1, floats[r][p]);
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            dots.store(floats[r][p], &mut sums[p * place.rows + place.first + r]);
        }
    }
}

/// The sums of a group, R rows × P panels, quad after quad.
#[inline(always)]
pub(crate) fn group_sums_by_quads<D: Dots, const G: usize, const R: usize, const P: usize>(
    dots: D,
    cells: &[&[Line]; P],
    activations: &[&[i8; G]; R],
) -> [[D::Sums; P]; R] {
    let code_lines = G / 4 / D::QUADS;
    let run_lines = code_lines.min(D::RUN / 4 / D::QUADS);
    let mut totals = [[dots.zero(); P]; R];
    for r in 0..R {
        totals[r] = [dots.first(activations[r]); P];
    }
    for first_line in (0..code_lines).step_by(run_lines) {
        let mut lines = *cells;
        for p in 0..P {
            lines[p] = &cells[p][first_line..][..run_lines];
        }
        let mut quads: [&[[i8; 4]]; R] = [&[]; R];
        for r in 0..R {
            quads[r] = &activations[r].as_chunks().0[first_line * D::QUADS..][..run_lines * D::QUADS];
        }
        run_sums(dots, &lines, &quads, &mut totals);
    }
    totals
}

/// Adds the products of a run of inputs.
#[inline(always)]
fn run_sums<D: Dots, const R: usize, const P: usize>(
    dots: D,
    lines: &[&[Line]; P],
    quads: &[&[[i8; 4]]; R],
    totals: &mut [[D::Sums; P]; R],
) {
    let mut sums = [[dots.begin(totals[0][0]); P]; R];
    for r in 0..R {
        for p in 0..P {
            sums[r][p] = dots.begin(totals[r][p]);
        }
    }
    for line in 0..lines[0].len() {
        for part in 0..D::QUADS {
            let mut codes = [dots.codes(&lines[0][line], part); P];
            for p in 1..P {
                codes[p] = dots.codes(&lines[p][line], part);
            }
            for r in 0..R {
                let quad = dots.quad(quads[r][line * D::QUADS + part]);
                for p in 0..P {
                    sums[r][p] = dots.dot(sums[r][p], codes[p], quad);
                }
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            totals[r][p] = dots.end(totals[r][p], sums[r][p]);
        }
    }
}

/// A block's part of R rows of x.
struct Rows<'a, const G: usize, const R: usize> {
    codes: [&'a [[i8; G]]; R],
    scales: [&'a [f32]; R],
    sums: [&'a [f32]; R],
}

#[inline(always)]
fn x_rows<'a, const G: usize, const R: usize>(
    x: &QuantizedRows<'a>,
    dims: &PackedDims,
    row: usize,
    first_group: usize,
    groups: usize,
) -> Rows<'a, G, R> {
    let mut rows = Rows { codes: [&[]; R], scales: [&[]; R], sums: [&[]; R] };
    for r in 0..R {
        let first = (row + r) * dims.groups() + first_group;
        rows.codes[r] = x.codes[first * G..][..groups * G].as_chunks().0;
        rows.scales[r] = &x.scales[first..][..groups];
        rows.sums[r] = &x.sums[first..][..groups];
    }
    rows
}

/// Bias, activation and residual for a part of a row that begins at `column`.
#[inline(always)]
fn finish<S: Simd>(simd: S, problem: &QuantizedMatmul<'_>, row: usize, column: usize, sums: &mut [f32]) {
    let len = sums.len();
    if let Some(bias) = problem.bias {
        add_in_place(simd, sums, &bias[column..][..len]);
    }
    activate(simd, problem.activation, sums);
    if let Some(residual) = problem.residual {
        add_in_place(simd, sums, &residual[row * problem.weights.dims().outputs + column..][..len]);
    }
}
