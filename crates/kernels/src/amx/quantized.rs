//! Quantised products in tiles: the codes of x on the left as they are, the packed codes of a panel on the right.
//!
//! A cell of packed 8-bit weights (64 inputs of 16 outputs) is the right operand of a tile product as it lies there, half
//! a tile for groups of 32; 4-bit codes are taken apart into scratch memory first, once per panel and block of rows.
//! Sums are whole numbers only within a group: then they pass through the first-level cache into AVX-512 registers,
//! become floats and join the sums of the groups before, in the order that all instruction sets keep (see
//! [`crate::quantized`]). That, not the tiles, is what limits: per group and 16 × 16 sums the tiles need 16 cycles, and
//! the floats 32 (four operations on each of 16 registers, two per cycle). While the floats of a group are computed, the
//! tiles are at the next one.

use std::arch::x86_64::*;
use std::ops::Range;

use super::tile::{Amx, COLUMNS, MULTIPLY_ADDS_OF_ROUND, ROWS, Shapes, Sums, Tiles, multiply_adds_int8};
use crate::avx512::{Avx512, vnni::Vnni};
use crate::quantized::{Dots, LINE, Line, MOST_ROWS, PANEL, PackedDims, Panels, QuantizedRows};

crate::quantized::quantized_table!(
    Avx512::new(),
    TilePanels::<8>::new(),
    TilePanels::<4>::new(),
    2 * MULTIPLY_ADDS_OF_ROUND,
    multiply_adds,
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
);

/// Proof that this process may use tiles and has what [`Vnni`] stands for; for weights of that many bits.
#[derive(Clone, Copy)]
pub(crate) struct TilePanels<const BITS: usize> {
    amx: Amx,
    vnni: Vnni<BITS>,
}

impl<const BITS: usize> TilePanels<BITS> {
    /// # Safety
    /// [`super::is_usable`], and the processor has AVX-512 F, BW, DQ, VL and VNNI, AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller vouches for both.
        unsafe { Self { amx: Amx::new(), vnni: Vnni::new() } }
    }
}

impl<const BITS: usize> Panels for TilePanels<BITS> {
    type Simd = Avx512;

    const ROWS: usize = MOST_ROWS;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        Dots::simd(self.vnni)
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
        if rows.len() <= FEW_ROWS {
            return self.vnni.multiply(x, dims, rows, panels, sums);
        }
        // SAFETY: `self` proves that the processor has the features.
        unsafe { multiply::<BITS>(self.amx, x, dims, rows, panels, sums) };
    }
}

/// The peak: products of tiles of bytes.
fn multiply_adds(panels: TilePanels<8>, rounds: usize, out: &mut [f32]) {
    multiply_adds_int8(panels.amx, rounds, out);
}

/// So few rows are multiplied by VNNI, to the same bits: it is memory that limits.
const FEW_ROWS: usize = 6;

/// Rows of a 2 × 2 block of tiles.
const WIDTH: usize = 2 * ROWS;

/// Codes of x that stay in the second-level cache while all panels pass over them.
const X_BYTES: usize = 1 << 20;

/// Lines of codes of a panel that are taken apart at a time: 16 KiB.
const BLOCK_LINES: usize = 256;

/// The sums of a group: tiles `2 · h + p` of rows h and panel p. Each row of them is a cache line.
#[repr(align(64))]
struct Groups([Sums<i32>; 4]);

/// A block of groups of a panel.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// Codes of the first group on, 8 bits each.
    codes: &'a [Line],
    /// Lines from group to group in them.
    stride: usize,
    /// The cells, for scales and offsets.
    cells: &'a [Line],
}

/// All inputs of the panels with the rows: sums `[panels, rows]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn multiply<const BITS: usize>(
    amx: Amx,
    x: &QuantizedRows<'_>,
    dims: &PackedDims,
    rows: Range<usize>,
    panels: &[&[Line]],
    sums: &mut [[f32; PANEL]],
) {
    let mut tiles = Tiles::new(amx, &Shapes::new(ROWS, ROWS, dims.group));
    let mut groups = [Groups([[[0; COLUMNS]; ROWS]; 4]), Groups([[[0; COLUMNS]; ROWS]; 4])];
    let mut apart = [[[0; LINE]; BLOCK_LINES]; 2];
    let (cell_lines, group_lines) = (dims.cell_lines(), dims.group / 4);
    let at_once = BLOCK_LINES / group_lines;
    let x_rows = (X_BYTES / dims.padded_inputs() / WIDTH * WIDTH).max(WIDTH);
    sums[..panels.len() * rows.len()].fill([0.0; PANEL]);
    for first_row in rows.clone().step_by(x_rows) {
        let part = first_row..rows.end.min(first_row + x_rows);
        for (panels, sums) in panels.chunks(2).zip(sums.chunks_mut(2 * rows.len())) {
            let (upper, lower) = sums.split_at_mut(rows.len());
            for first in (0..dims.groups()).step_by(at_once) {
                let of_block = first..dims.groups().min(first + at_once);
                let mut blocks = [Block { codes: &[], stride: cell_lines, cells: &[] }; 2];
                for ((block, panel), apart) in blocks.iter_mut().zip(panels).zip(&mut apart) {
                    block.cells = &panel[of_block.start * cell_lines..of_block.end * cell_lines];
                    block.codes = block.cells;
                    if BITS == 4 {
                        take_apart(block.cells, cell_lines, apart);
                        (block.codes, block.stride) = (apart, group_lines);
                    }
                }
                for row in part.clone().step_by(WIDTH) {
                    let tile_rows = row..part.end.min(row + WIDTH);
                    let place = row - rows.start..tile_rows.end - rows.start;
                    let lower = if panels.len() == 2 { &mut lower[place.clone()] } else { &mut [] };
                    let job =
                        Job { x, dims, rows: tile_rows, groups: of_block.clone(), blocks: &blocks[..panels.len()] };
                    add_groups(&mut tiles, &job, [&mut upper[place], lower], &mut groups);
                }
            }
        }
    }
}

/// Codes of 4 bits -> of 8 bits: the low halves of a line are a quad of inputs, the high ones the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn take_apart(cells: &[Line], cell_lines: usize, apart: &mut [Line]) {
    let low_halves = _mm512_set1_epi8(15);
    for (cell, apart) in cells.chunks_exact(cell_lines).zip(apart.chunks_exact_mut(2 * (cell_lines - 1))) {
        for (line, [low, high]) in cell.iter().zip(apart.as_chunks_mut().0) {
            // SAFETY: lines are as long as registers; any alignment will do.
            unsafe {
                let codes = _mm512_loadu_si512(line.as_ptr().cast());
                _mm512_storeu_si512(low.as_mut_ptr().cast(), _mm512_and_si512(codes, low_halves));
                let codes = _mm512_srli_epi16::<4>(codes);
                _mm512_storeu_si512(high.as_mut_ptr().cast(), _mm512_and_si512(codes, low_halves));
            }
        }
    }
}

/// A block of groups of one or two panels, and at most 32 rows.
struct Job<'a> {
    x: &'a QuantizedRows<'a>,
    dims: &'a PackedDims,
    rows: Range<usize>,
    groups: Range<usize>,
    blocks: &'a [Block<'a>],
}

/// Adds a block of groups to the sums of the rows, panel by panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_groups(tiles: &mut Tiles, job: &Job<'_>, mut sums: [&mut [[f32; PANEL]]; 2], totals: &mut [Groups; 2]) {
    let Job { x, dims, rows, groups, blocks } = job;
    let (stride, group_lines) = (dims.padded_inputs(), dims.group / 4);
    // Where there are no lower rows or no second panel, the first ones stand in; what they give is not looked at.
    let upper_rows = rows.len().min(ROWS);
    let lower_rows = if rows.len() > ROWS { rows.len() - ROWS } else { upper_rows };
    let starts = [rows.start, rows.end - lower_rows];
    let panels = [&blocks[0], &blocks[blocks.len() - 1]];
    let add = if blocks.len() == 2 { add_group::<2> } else { add_group::<1> };
    tiles.reshape(&Shapes::new(upper_rows, lower_rows, dims.group));
    for (at, group) in groups.clone().enumerate() {
        let left = starts.map(|row| &x.codes[row * stride + group * dims.group..]);
        let right = panels.map(|block| block.codes[at * block.stride..][..group_lines].as_flattened());
        let [even, odd] = &mut *totals;
        let (now, before) = if at % 2 == 0 { (even, odd) } else { (odd, even) };
        tiles.multiply_int8(left, stride, right, &mut now.0);
        if at > 0 {
            add(job, at - 1, &before.0, &mut sums);
        }
    }
    add(job, groups.len() - 1, &totals[(groups.len() - 1) % 2].0, &mut sums);
}

/// Adds the sums of one group, for P panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_group<const P: usize>(job: &Job<'_>, at: usize, totals: &[Sums<i32>; 4], sums: &mut [&mut [[f32; PANEL]]; 2]) {
    let groups = job.dims.groups();
    let first = job.rows.start * groups + job.groups.start + at;
    let (x_scales, x_sums) = (&job.x.scales[first..], &job.x.sums[first..]);
    let mut factors = [(_mm512_setzero_ps(), _mm512_setzero_ps()); P];
    for (factors, block) in factors.iter_mut().zip(job.blocks) {
        let (halves, _) = block.cells[(at + 1) * job.dims.cell_lines() - 1].as_chunks::<{ 2 * PANEL }>();
        // SAFETY: half a line is as long as half a register; any alignment will do.
        *factors = unsafe {
            let (scales, offsets) =
                (_mm256_loadu_si256(halves[0].as_ptr().cast()), _mm256_loadu_si256(halves[1].as_ptr().cast()));
            (_mm512_cvtph_ps(scales), _mm512_cvtph_ps(offsets))
        };
    }
    for row in 0..job.rows.len() {
        let (scale, sum) = (_mm512_set1_ps(x_scales[row * groups]), _mm512_set1_ps(x_sums[row * groups]));
        for panel in 0..P {
            let total = &totals[2 * (row / ROWS) + panel][row % ROWS];
            let joined = &mut sums[panel][row];
            // SAFETY: sums are as long as registers; any alignment will do.
            unsafe {
                let total = _mm512_cvtepi32_ps(_mm512_loadu_si512(total.as_ptr().cast()));
                let total = _mm512_mul_ps(total, scale);
                let so_far = _mm512_fmadd_ps(total, factors[panel].0, _mm512_loadu_ps(joined.as_ptr()));
                _mm512_storeu_ps(joined.as_mut_ptr(), _mm512_fmadd_ps(sum, factors[panel].1, so_far));
            }
        }
    }
}
