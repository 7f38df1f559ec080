//! Products of bf16 weights with activations rounded to bf16, in tiles.
//!
//! # The weights lie in tiles as they lie in files
//! A tile instruction multiplies rows of its left operand with pairs of rows of the right one: one of the two has to be
//! rearranged. Here the weights are on the left, 32 outputs of 32 elements, straight from the file; x is on the right,
//! rounded and transposed once per block of rows ([`pack`]), and sums come out transposed. So weights are read as they
//! are, once, at the speed of the memory if there are few rows, and nothing is packed at load.
//!
//! # Blocks
//! A block of x (at most 1 MiB, of the second-level cache's 2) meets panels of 32 outputs, one after another; a panel
//! meets all the block's rows, 32 at a time, and while it does, the next panel is asked for. Rows longer than a block of
//! x are cut; then sums wait in scratch memory, 1024 columns at a time, and go on where they were, bit by bit.
//!
//! # The order of a sum
//! Per 32 elements the even ones and the odd ones are summed from zero on, the two sums are added, and the result is
//! added to the sum so far, from the first elements to the last: for one row as for a thousand, because few rows are
//! filled up with rows of zeros.

use std::arch::x86_64::*;
use std::ops::Range;

use super::tile::{
    Amx, COLUMNS, Left, MULTIPLY_ADDS_OF_ROUND, PairRows, ROW_BYTES, ROWS, Shapes, Sums, Tiles, multiply_adds_bf16,
};
use crate::avx512::Avx512;
use crate::dispatch::PairKernels;
use crate::matmul::{Matmul, finish};
use crate::peak::Peak;
use crate::view::MatrixMut;

/// Elements of x per step.
const STEP: usize = ROW_BYTES / 2;
/// Rows, and outputs, of a 2 × 2 block of tiles.
const WIDTH: usize = 2 * ROWS;
/// Elements of a block of x.
const X_ELEMENTS: usize = 512 * 1024;
/// Elements of a row in a block of x, if there are many rows.
const X_INPUTS: usize = 2048;
/// Columns whose sums wait where rows are cut.
const WAITING_COLUMNS: usize = 1024;

/// Sums of 32 rows (two of 16) and 32 outputs (two of 16).
type Block = [[Sums<f32>; 2]; 2];

/// Sizes of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    rows: usize,
    inputs: usize,
    columns: usize,
}

impl Plan {
    fn new(rows: usize, inputs: usize) -> Self {
        let (rows, inputs) = (rows.next_multiple_of(WIDTH), inputs.next_multiple_of(STEP));
        let of_block = inputs.min(X_INPUTS.max(X_ELEMENTS / rows / STEP * STEP));
        let most_rows = X_ELEMENTS / of_block / WIDTH * WIDTH;
        Self {
            // As many blocks as necessary, equally large.
            rows: rows.div_ceil(rows.div_ceil(most_rows)).next_multiple_of(WIDTH),
            inputs: of_block,
            columns: if of_block < inputs { WAITING_COLUMNS } else { WIDTH },
        }
    }

    /// Cuts scratch memory: x in steps, a panel of weights in steps, blocks of sums.
    fn split<'a>(&self, scratch: &'a mut [f32]) -> (&'a mut [PairRows], &'a mut [f32], &'a mut [Block]) {
        let start = scratch.as_ptr().align_offset(ROW_BYTES);
        let (x, rest) = scratch[start..].split_at_mut(self.rows * self.inputs / 2);
        let (weights, rest) = rest.split_at_mut(WIDTH * self.inputs / 2);
        let x = x.as_chunks_mut::<COLUMNS>().0.as_chunks_mut().0;
        let sums = rest[..self.rows * self.columns].as_chunks_mut::<COLUMNS>().0.as_chunks_mut::<ROWS>().0;
        (x, weights, sums.as_chunks_mut().0.as_chunks_mut().0)
    }
}

/// Products of bf16 weights.
pub(crate) const PAIRS: PairKernels = {
    fn entry(problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        // SAFETY: the table is only handed out when the processor has the features and the process may use tiles
        // (`dispatch::Features`).
        unsafe { matmul(Amx::new(), Avx512::new(), problem, out, scratch) };
    }
    PairKernels { matmul: entry, scratch_len, round: None, attend: None }
};

/// What tiles of bf16 could do.
pub(crate) const PEAK: Peak = {
    fn entry(rounds: usize, out: &mut [f32]) {
        // SAFETY: as in `PAIRS`.
        multiply_adds_bf16(unsafe { Amx::new() }, rounds, out);
    }
    Peak::new("bf16", MULTIPLY_ADDS_OF_ROUND, entry)
};

/// Scratch values that [`matmul`] needs for that many rows or fewer.
pub(crate) fn scratch_len(rows: usize, inputs: usize) -> usize {
    let (rows, inputs) = (rows.next_multiple_of(WIDTH), inputs.next_multiple_of(STEP));
    let x = X_ELEMENTS.min(rows * inputs) / 2;
    let weights = WIDTH * inputs.min(X_ELEMENTS / WIDTH) / 2;
    let waiting = if inputs > X_INPUTS { rows.min(X_ELEMENTS / X_INPUTS) * WAITING_COLUMNS } else { 0 };
    ROW_BYTES / 4 + x + weights + waiting.max(WIDTH * rows.min(X_ELEMENTS / STEP))
}

/// The rows and columns of `out`, like every other product.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(crate) fn matmul(amx: Amx, simd: Avx512, problem: &Matmul<'_>, mut out: MatrixMut<'_>, scratch: &mut [f32]) {
    let (rows, columns, inputs) = (out.rows(), out.columns(), problem.inputs);
    let first = columns.start;
    let plan = Plan::new(rows.len(), inputs);
    let (x, weights, sums) = plan.split(scratch);
    let tiles = Tiles::new(amx, &Shapes::whole());
    let mut packed = None;
    for first_row in rows.clone().step_by(plan.rows) {
        let rows = first_row..rows.end.min(first_row + plan.rows);
        for first_column in columns.clone().step_by(plan.columns) {
            let columns = first_column..columns.end.min(first_column + plan.columns);
            for start in (0..inputs).step_by(plan.inputs) {
                let elements = start..inputs.min(start + plan.inputs);
                let x = &mut x[..rows.len().next_multiple_of(WIDTH) / ROWS * elements.len().div_ceil(STEP)];
                if packed != Some((first_row, start)) {
                    pack(problem, &rows, &elements, x);
                    packed = Some((first_row, start));
                }
                multiply(&tiles, problem, &columns, &elements, x, weights, sums);
            }
            store(&rows, &columns, sums, &mut out);
            for row in rows.clone() {
                let sums = &mut out.row(row)[columns.start - first..][..columns.len()];
                finish(simd, problem, row, columns.start, sums);
            }
        }
    }
}

/// All panels of columns with all rows of the block of x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn multiply(
    tiles: &Tiles,
    problem: &Matmul<'_>,
    columns: &Range<usize>,
    elements: &Range<usize>,
    x: &[PairRows],
    weights: &mut [f32],
    sums: &mut [Block],
) {
    let steps = elements.len().div_ceil(STEP);
    let pairs_of_panels = x.len() / (2 * steps);
    let stride = 2 * problem.inputs;
    // Rows of the next panel that each pair of x's panels asks for.
    let asked = WIDTH.div_ceil(pairs_of_panels);
    for (column, sums) in columns.clone().step_by(WIDTH).zip(sums.chunks_mut(pairs_of_panels)) {
        let bytes = &problem.weights.bytes()[column * stride + 2 * elements.start..];
        let is_whole = column + WIDTH <= problem.outputs() && elements.len().is_multiple_of(STEP);
        let mut left = Left { bytes, stride, next: (bytes.as_ptr(), 0) };
        if !is_whole {
            let outputs = WIDTH.min(problem.outputs() - column);
            left = Left { bytes: copy(left, outputs, elements.len(), weights), stride: ROW_BYTES * steps, ..left };
        }
        for (at, (x, sums)) in x.chunks_exact(2 * steps).zip(sums).enumerate() {
            let first = WIDTH.min(at * asked);
            if is_whole {
                left.next = (bytes.as_ptr().wrapping_add((WIDTH + first) * stride), asked.min(WIDTH - first));
            }
            let (upper, lower) = x.split_at(steps);
            tiles.multiply_bf16(left, [upper, lower], sums, elements.start > 0);
        }
    }
}

/// Copies a panel that is not whole; zeros are what is missing.
fn copy<'a>(left: Left<'_>, outputs: usize, elements: usize, weights: &'a mut [f32]) -> &'a [u8] {
    let stride = ROW_BYTES * elements.div_ceil(STEP);
    let copied = &mut bytes_of(weights)[..WIDTH * stride];
    copied.fill(0);
    for (output, copied) in copied.chunks_exact_mut(stride).take(outputs).enumerate() {
        copied[..2 * elements].copy_from_slice(&left.bytes[output * left.stride..][..2 * elements]);
    }
    copied
}

fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory for as long, and all bytes are numbers, as all numbers are bytes.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Rounds a block of x to bf16, `[panels of 16 rows, steps, 16 pairs, 16 rows]`, zeros for what is missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn pack(problem: &Matmul<'_>, rows: &Range<usize>, elements: &Range<usize>, packed: &mut [PairRows]) {
    let steps = elements.len().div_ceil(STEP);
    for (panel, packed) in packed.chunks_exact_mut(steps).enumerate() {
        let first = rows.start + panel * ROWS;
        for (step, packed) in packed.iter_mut().enumerate() {
            let start = elements.start + step * STEP;
            let len = STEP.min(elements.end - start);
            let mask = (1u64 << len) - 1;
            let mut pairs = [_mm512_setzero_si512(); ROWS];
            for (row, pairs) in (first..rows.end).zip(&mut pairs) {
                let x = &problem.x[row * problem.inputs + start..][..len];
                // SAFETY: only those of the 32 values are read that exist. Bits of pairs are bits of integers.
                *pairs = unsafe {
                    let low = _mm512_maskz_loadu_ps(mask as u16, x.as_ptr());
                    let high = _mm512_maskz_loadu_ps((mask >> COLUMNS) as u16, x.as_ptr().wrapping_add(COLUMNS));
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
                };
            }
            for (pairs, packed) in transpose(pairs).into_iter().zip(packed) {
                // SAFETY: sixteen values at any alignment.
                unsafe { _mm512_storeu_ps(packed.as_mut_ptr(), _mm512_castsi512_ps(pairs)) };
            }
        }
    }
}

/// Writes sums to their rows and columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn store(rows: &Range<usize>, columns: &Range<usize>, sums: &[Block], out: &mut MatrixMut<'_>) {
    let first_column = out.columns().start;
    let pairs_of_panels = rows.len().div_ceil(WIDTH);
    for (column, sums) in columns.clone().step_by(WIDTH).zip(sums.chunks(pairs_of_panels)) {
        for (row, tiles) in rows.clone().step_by(ROWS).zip(sums.as_flattened()) {
            for (column, tile) in (column..columns.end).step_by(ROWS).zip(tiles) {
                let mut outputs = [_mm512_setzero_si512(); ROWS];
                for (output, sums) in outputs.iter_mut().zip(tile) {
                    // SAFETY: sixteen values at any alignment.
                    *output = _mm512_castps_si512(unsafe { _mm512_loadu_ps(sums.as_ptr()) });
                }
                let len = COLUMNS.min(columns.end - column);
                for (row, values) in (row..rows.end).zip(transpose(outputs)) {
                    let place = &mut out.row(row)[column - first_column..][..len];
                    let mask = ((1u32 << len) - 1) as u16;
                    // SAFETY: only those of the sixteen values are written that have a place.
                    unsafe { _mm512_mask_storeu_ps(place.as_mut_ptr(), mask, _mm512_castsi512_ps(values)) };
                }
            }
        }
    }
}

/// Rows become columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Quarter q of `fours[g][c]`: column 4q + c of rows 4g to 4g + 3.
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (fours, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
        let [a, b, c, d] = *rows;
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low_next, high_next) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *fours = [
            _mm512_unpacklo_epi64(low, low_next),
            _mm512_unpackhi_epi64(low, low_next),
            _mm512_unpacklo_epi64(high, high_next),
            _mm512_unpackhi_epi64(high, high_next),
        ];
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(fours[0][c], fours[1][c]);
        let odd = _mm512_shuffle_i32x4::<0xDD>(fours[0][c], fours[1][c]);
        let even_next = _mm512_shuffle_i32x4::<0x88>(fours[2][c], fours[3][c]);
        let odd_next = _mm512_shuffle_i32x4::<0xDD>(fours[2][c], fours[3][c]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even, even_next);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, odd_next);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xDD>(even, even_next);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xDD>(odd, odd_next);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_their_cache_and_cover_everything() {
        for rows in [1, 16, 17, 33, 84, 192, 257, 512, 1024, 4096, 20_000] {
            for inputs in [1, 31, 32, 576, 1536, 2048, 2049, 4304, 8960, 18_944] {
                let plan = Plan::new(rows, inputs);
                assert!(plan.rows.is_multiple_of(WIDTH) && plan.inputs.is_multiple_of(STEP), "{plan:?}");
                assert!(plan.rows * plan.inputs <= X_ELEMENTS, "{rows} x {inputs}: {plan:?}");
                assert!(plan.inputs >= inputs.min(X_INPUTS), "{rows} x {inputs}: {plan:?}");
                assert!(plan.inputs < inputs || plan.columns == WIDTH, "{rows} x {inputs}: {plan:?}");
                // Some of the rows need no more scratch memory than all of them.
                for part in [1, rows / 2 + 1, rows] {
                    let mut scratch = vec![0.0; scratch_len(rows, inputs)];
                    let plan = Plan::new(part, inputs);
                    let (x, weights, sums) = plan.split(&mut scratch);
                    assert_eq!(size_of_val(x), 2 * plan.rows * plan.inputs);
                    assert_eq!(weights.len(), 16 * plan.inputs);
                    assert_eq!(size_of_val(sums), 4 * plan.rows * plan.columns);
                }
            }
        }
    }

    #[test]
    fn rows_become_columns() {
        if !std::is_x86_feature_detected!("avx512bf16") {
            println!("SKIP: no AVX-512 BF16");
            return;
        }
        // SAFETY: the processor has it; and vectors of integers are arrays of integers.
        unsafe {
            let rows: [[u32; 16]; 16] = std::array::from_fn(|row| std::array::from_fn(|at| (100 * row + at) as u32));
            let vectors = std::mem::transmute::<[[u32; 16]; 16], [__m512i; 16]>(rows);
            let columns = std::mem::transmute::<[__m512i; 16], [[u32; 16]; 16]>(transpose(vectors));
            for (row, values) in rows.iter().enumerate() {
                assert!(values.iter().zip(&columns).all(|(&value, column)| column[row] == value), "{columns:?}");
            }
        }
    }
}
