//! Products of bf16 weights with activations rounded to bf16, in tiles.
//!
//! # The weights lie in tiles as they lie in files
//! A tile instruction multiplies rows of its left operand with pairs of rows of the right one: one of the two has to be
//! rearranged. Here the weights are on the left, 32 outputs of 32 elements, straight from the file; x is on the right,
//! rounded and transposed once for all parts of a product ([`round`]), and sums come out transposed. So weights are read
//! as they are, once, at the speed of the memory if there are few rows, and nothing is packed at load.
//!
//! # Blocks
//! x of a part of the output (at most 1 MiB, of the second-level cache's 2: [`rows_in_cache`]) meets panels of 32 outputs,
//! one after another; a panel meets all rows of the part, 32 at a time, and while it does, the next panel is asked for,
//! and the sums of the 32 rows before are turned and stored. Where x is larger, its rows are cut; then sums wait in
//! scratch memory and go on where they were, bit by bit.
//!
//! # The order of a sum
//! Per 32 elements the even ones and the odd ones are summed from zero on, the two sums are added, and the result is
//! added to the sum so far, from the first elements to the last: for one row as for a thousand, because few rows are
//! filled up with rows of zeros, and wherever a part begins, because rows stay in the panel of 16 that they are in.

use std::arch::x86_64::*;
use std::ops::Range;

use super::tile::{
    Amx, COLUMNS, Left, MULTIPLY_ADDS_OF_ROUND, PairRows, ROW_BYTES, ROWS, Shapes, Sums, Tiles, multiply_adds_bf16,
};
use crate::avx512::Avx512;
use crate::avx512::bf16::transposed;
use crate::dispatch::{PairKernels, Rounding};
use crate::matmul::{Matmul, finish};
use crate::peak::Peak;
use crate::view::MatrixMut;

/// Elements of x per step.
const STEP: usize = ROW_BYTES / 2;
/// Rows, and outputs, of a 2 × 2 block of tiles.
const WIDTH: usize = 2 * ROWS;
/// Elements of x that stay in the second-level cache ...
const X_ELEMENTS: usize = 512 * 1024;
/// ... or, where sums wait beside them, so many.
const CUT_ELEMENTS: usize = 384 * 1024;
/// Elements of a row from which on it is cut rather than that there are fewer rows, because weights come from farther
/// away: with 256 rows they are 4 bytes per cycle.
const LONG: usize = 2048;
/// No row is cut into parts shorter than this.
const SHORTEST: usize = 1024;
/// Blocks of sums that wait where rows are cut: 512 KiB.
const WAITING: usize = 128;

/// Elements ahead that are asked for while rows are rounded: sixteen rows at a time are more than processors foresee.
const AHEAD: usize = 128;

/// Sums of 32 rows (two of 16) and 32 outputs (two of 16).
type Block = [[Sums<f32>; 2]; 2];

/// Floats of a block.
const BLOCK_LEN: usize = WIDTH * WIDTH;

/// Products of bf16 weights.
pub(crate) const PAIRS: PairKernels = {
    fn entry(problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
        // SAFETY: the table is only handed out when the processor has the features and the process may use tiles
        // (`dispatch::Features`).
        unsafe { matmul(Amx::new(), Avx512::new(), problem, out, scratch) };
    }
    fn round_entry(x: &[f32], inputs: usize, out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { round(x, inputs, out) };
    }
    let round = Rounding { rows: ROWS, run: round_entry };
    PairKernels { matmul: entry, scratch_len, round, rows_in_cache: Some(rows_in_cache), attend: None }
};

/// What tiles of bf16 could do.
pub(crate) const PEAK: Peak = {
    fn entry(rounds: usize, out: &mut [f32]) {
        // SAFETY: as in `PAIRS`.
        multiply_adds_bf16(unsafe { Amx::new() }, rounds, out);
    }
    Peak::new("bf16", MULTIPLY_ADDS_OF_ROUND, entry)
};

/// Rows of so many elements whose x stays in the second-level cache: the most that a part should have.
fn rows_in_cache(inputs: usize) -> usize {
    X_ELEMENTS / inputs.next_multiple_of(STEP).min(LONG) / WIDTH * WIDTH
}

/// Rounds rows of x to bf16, `[panels of 16 rows, steps, 16 pairs, 16 rows]`, zeros for what is missing.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn round(x: &[f32], inputs: usize, out: &mut [f32]) {
    let steps = inputs.div_ceil(STEP);
    for (x, panel) in x.chunks(ROWS * inputs).zip(pair_rows_mut(out).chunks_exact_mut(steps)) {
        for (step, packed) in panel.iter_mut().enumerate() {
            let start = step * STEP;
            let len = STEP.min(inputs - start);
            let mask = (1u64 << len) - 1;
            let mut pairs = [_mm512_setzero_si512(); ROWS];
            for (row, pairs) in x.chunks_exact(inputs).zip(&mut pairs) {
                let values = &row[start..][..len];
                for ahead in [AHEAD, AHEAD + COLUMNS] {
                    _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(start + ahead).cast());
                }
                // SAFETY: only those of the 32 values are read that exist. Bits of pairs are bits of integers.
                *pairs = unsafe {
                    let low = _mm512_maskz_loadu_ps(mask as u16, values.as_ptr());
                    let high = _mm512_maskz_loadu_ps((mask >> COLUMNS) as u16, values.as_ptr().wrapping_add(COLUMNS));
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
                };
            }
            // SAFETY: this function has the features.
            let columns = unsafe { transposed(pairs) };
            for (pairs, packed) in columns.into_iter().zip(packed) {
                // SAFETY: sixteen values at any alignment.
                unsafe { _mm512_storeu_ps(packed.as_mut_ptr(), _mm512_castsi512_ps(pairs)) };
            }
        }
    }
}

/// Scratch values that [`matmul`] needs for that many rows or fewer.
fn scratch_len(rows: usize, inputs: usize) -> usize {
    // Rows that begin within a panel touch one panel more.
    let pairs = (rows + 2 * (ROWS - 1)).div_ceil(WIDTH);
    let inputs = inputs.next_multiple_of(STEP);
    let blocks = if pairs * WIDTH * inputs <= X_ELEMENTS { 2 } else { WAITING.max(pairs) };
    let weights = WIDTH * inputs.min(X_ELEMENTS / WIDTH) / 2;
    ROW_BYTES / 4 + weights + blocks * BLOCK_LEN
}

/// How a part is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Elements of a row at a time.
    inputs: usize,
    /// Columns for which all elements are multiplied before other columns come.
    columns: usize,
    /// Blocks of sums that are kept.
    places: usize,
}

impl Plan {
    /// For so many pairs of panels of rows.
    fn new(pairs: usize, inputs: usize, columns: usize) -> Self {
        let rows = pairs * WIDTH;
        if rows * inputs.next_multiple_of(STEP) <= X_ELEMENTS {
            // One block is multiplied while another is stored.
            return Self { inputs, columns, places: 2 };
        }
        // As many parts as necessary, equally long.
        let parts = inputs.div_ceil(SHORTEST.max(CUT_ELEMENTS / rows));
        let panels = (WAITING / pairs).max(1);
        let inputs = inputs.div_ceil(parts).next_multiple_of(STEP);
        Self { inputs, columns: panels * WIDTH, places: panels * pairs }
    }

    /// Cuts scratch memory: copied weights, blocks of sums.
    fn split<'a>(&self, scratch: &'a mut [f32]) -> (&'a mut [f32], &'a mut [Block]) {
        let start = scratch.as_ptr().align_offset(ROW_BYTES);
        let (weights, rest) = scratch[start..].split_at_mut(WIDTH * self.inputs.next_multiple_of(STEP) / 2);
        let sums = rest[..self.places * BLOCK_LEN].as_chunks_mut::<COLUMNS>().0.as_chunks_mut::<ROWS>().0;
        (weights, sums.as_chunks_mut().0.as_chunks_mut().0)
    }
}

/// The rows and columns of `out`, like every other product.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn matmul(amx: Amx, simd: Avx512, problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) {
    let pairs = panels(&out.rows()).len().div_ceil(2);
    let plan = Plan::new(pairs, problem.inputs, out.columns().len().max(1));
    compute(amx, simd, problem, out, &plan, scratch);
}

/// The panels of 16 rows of x that these rows are in.
fn panels(rows: &Range<usize>) -> Range<usize> {
    rows.start / ROWS..rows.end.div_ceil(ROWS)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn compute(amx: Amx, simd: Avx512, problem: &Matmul<'_>, mut out: MatrixMut<'_>, plan: &Plan, scratch: &mut [f32]) {
    let (panels, columns, inputs) = (panels(&out.rows()), out.columns(), problem.inputs);
    let (weights, sums) = plan.split(scratch);
    let tiles = Tiles::new(amx, &Shapes::whole());
    for first in columns.clone().step_by(plan.columns) {
        let group = first..columns.end.min(first + plan.columns);
        for start in (0..inputs).step_by(plan.inputs) {
            let elements = start..inputs.min(start + plan.inputs);
            // What is stored while the next block is multiplied.
            let mut before = None;
            let mut place = 0;
            for column in group.clone().step_by(WIDTH) {
                let next = next_panel(problem, column, &group, &elements);
                let panel = Panel::new(problem, column, &elements, next, weights);
                for (at, first) in panels.clone().step_by(2).enumerate() {
                    // The last pair of panels may be one panel twice.
                    let x = [first, panels.end.min(first + 2) - 1].map(|panel| x_of(problem, panel, &elements));
                    panel.multiply(&tiles, x, (at, panels.len().div_ceil(2)), &mut sums[place], start > 0);
                    if elements.end == inputs
                        && let Some((place, first, column)) = before.replace((place, first, column))
                    {
                        store(simd, problem, &sums[place], first, column, &mut out);
                    }
                    place = (place + 1) % plan.places;
                }
            }
            if let Some((place, first, column)) = before {
                store(simd, problem, &sums[place], first, column, &mut out);
            }
        }
    }
}

/// These elements of a panel of x.
fn x_of<'a>(problem: &Matmul<'a>, panel: usize, elements: &Range<usize>) -> &'a [PairRows] {
    let x = problem.paired.as_chunks::<COLUMNS>().0.as_chunks::<ROWS>().0;
    &x[panel * problem.inputs.div_ceil(STEP)..][elements.start / STEP..elements.end.div_ceil(STEP)]
}

/// Where the weights begin that are multiplied after those of this column and these elements.
fn next_panel(problem: &Matmul<'_>, column: usize, group: &Range<usize>, elements: &Range<usize>) -> *const u8 {
    let (column, element) = if column + WIDTH < group.end {
        (column + WIDTH, elements.start)
    } else if elements.end < problem.inputs {
        (group.start, elements.end)
    } else {
        (group.end, 0)
    };
    problem.weights.bytes().as_ptr().wrapping_add(2 * (column * problem.inputs + element))
}

/// Weights of 32 outputs: whole steps as they lie in the file; copied, with zeros for what is missing, what is behind
/// them, or everything if there are fewer outputs.
struct Panel<'a> {
    whole: Left<'a>,
    whole_steps: usize,
    copied: Left<'a>,
}

impl<'a> Panel<'a> {
    fn new(
        problem: &Matmul<'a>,
        column: usize,
        elements: &Range<usize>,
        next: *const u8,
        scratch: &'a mut [f32],
    ) -> Self {
        let stride = 2 * problem.inputs;
        let outputs = WIDTH.min(problem.outputs() - column);
        let bytes = &problem.weights.bytes()[column * stride..];
        let whole_steps = if outputs == WIDTH { elements.len() / STEP } else { 0 };
        let rest = elements.start + whole_steps * STEP..elements.end;
        let copied_stride = ROW_BYTES * rest.len().div_ceil(STEP);
        let copied = &mut bytes_of(scratch)[..WIDTH * copied_stride];
        if !rest.is_empty() {
            copied.fill(0);
            for (output, copied) in copied.chunks_exact_mut(copied_stride).take(outputs).enumerate() {
                copied[..2 * rest.len()].copy_from_slice(&bytes[output * stride..][2 * rest.start..2 * rest.end]);
            }
        }
        Self {
            whole: Left { bytes: &bytes[2 * elements.start..], stride, next: (next, 0) },
            whole_steps,
            copied: Left { bytes: copied, stride: copied_stride, next: (next, 0) },
        }
    }

    /// With the rows of two panels of x, the pair `at` of `pairs`, which ask for their share of the next weights.
    #[inline(always)]
    fn multiply(
        &self,
        tiles: &Tiles,
        x: [&[PairRows]; 2],
        (at, pairs): (usize, usize),
        sums: &mut Block,
        is_continued: bool,
    ) {
        let whole = x.map(|x| &x[..self.whole_steps]);
        let rest = x.map(|x| &x[self.whole_steps..]);
        if !whole[0].is_empty() {
            let share = WIDTH.div_ceil(pairs);
            let first = WIDTH.min(at * share);
            let next = (self.whole.next.0.wrapping_add(first * self.whole.stride), share.min(WIDTH - first));
            tiles.multiply_bf16(Left { next, ..self.whole }, whole, sums, is_continued);
        }
        if !rest[0].is_empty() {
            tiles.multiply_bf16(self.copied, rest, sums, is_continued || !whole[0].is_empty());
        }
    }
}

/// Writes the sums of a pair of panels of rows and a panel of columns to their place, as far as the output has it, and
/// finishes them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn store(simd: Avx512, problem: &Matmul<'_>, sums: &Block, first_panel: usize, column: usize, out: &mut MatrixMut<'_>) {
    let (rows, columns) = (out.rows(), out.columns());
    let place = column - columns.start..columns.len().min(column - columns.start + WIDTH);
    for (panel, halves) in (first_panel..).zip(sums) {
        let rows = rows.start.max(panel * ROWS)..rows.end.min((panel + 1) * ROWS);
        if rows.is_empty() {
            continue;
        }
        for (start, sums) in place.clone().step_by(COLUMNS).zip(halves) {
            let mask = ((1u32 << COLUMNS.min(place.end - start)) - 1) as u16;
            let mut outputs = [_mm512_setzero_si512(); ROWS];
            for (output, sums) in outputs.iter_mut().zip(sums) {
                // SAFETY: sixteen values at any alignment.
                *output = _mm512_castps_si512(unsafe { _mm512_loadu_ps(sums.as_ptr()) });
            }
            // SAFETY: this function has the features.
            let values = unsafe { transposed(outputs) };
            for (row, values) in (panel * ROWS..).zip(values) {
                if rows.contains(&row) {
                    let place = &mut out.row(row)[start..place.end];
                    // SAFETY: only those of the sixteen values are written that have a place.
                    unsafe { _mm512_mask_storeu_ps(place.as_mut_ptr(), mask, _mm512_castsi512_ps(values)) };
                }
            }
        }
        for row in rows {
            finish(simd, problem, row, column, &mut out.row(row)[place.clone()]);
        }
    }
}

fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory for as long, and all bytes are numbers, as all numbers are bytes.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

fn pair_rows_mut(values: &mut [f32]) -> &mut [PairRows] {
    values.as_chunks_mut::<COLUMNS>().0.as_chunks_mut().0
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::Arithmetic;
    use crate::activation::Activation;
    use crate::dispatch::Kernels;
    use crate::testing::{bits, numbers};
    use crate::weights::WeightMatrix;

    #[test]
    fn plans_fit_their_cache_and_their_scratch_memory() {
        for rows in [1, 16, 17, 33, 84, 192, 257, 512, 1024, 4096, 20_000] {
            for inputs in [1, 31, 32, 576, 1536, 2048, 2049, 4304, 8960, 18_944] {
                let of_part = rows.min(rows_in_cache(inputs));
                // Some of the rows need no more scratch memory than all of them.
                for part in [1, 18, of_part / 2 + 1, of_part, rows] {
                    for start in [0, 15].into_iter().take_while(|_| part <= rows) {
                        let pairs = panels(&(start..start + part)).len().div_ceil(2);
                        let plan = Plan::new(pairs, inputs, 1000);
                        let what = format!("{part} of {rows} from {start} x {inputs}: {plan:?}");
                        assert!(plan.inputs == inputs || plan.inputs.is_multiple_of(STEP), "{what}");
                        if part <= of_part && start == 0 {
                            assert!(pairs * WIDTH * plan.inputs <= X_ELEMENTS, "{what}");
                            assert!(plan.inputs >= inputs.min(SHORTEST), "{what}");
                        }
                        let mut scratch = vec![0.0; scratch_len(rows, inputs)];
                        let (weights, sums) = plan.split(&mut scratch);
                        assert!(2 * weights.len() >= WIDTH * plan.inputs, "{what}");
                        assert!(plan.inputs == inputs || sums.len() >= plan.columns / WIDTH * pairs, "{what}");
                    }
                }
            }
        }
    }

    /// Blocks so small that everything is cut: the same bits.
    #[test]
    fn rows_that_are_cut_give_the_same_bits() {
        let Ok(kernels) = Kernels::select(Some("amx")) else {
            println!("SKIP: no AMX, and no emulator for this system");
            return;
        };
        for (rows, inputs, outputs) in [(1, 100, 40), (37, 96, 70), (50, 203, 64)] {
            let x = numbers(1, rows * inputs);
            let weights: Vec<u8> =
                numbers(2, outputs * inputs).into_iter().flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect();
            let (weights, arithmetic) = (WeightMatrix::Bf16(&weights), Arithmetic::Bfloat16);
            let (bias, residual) = (numbers(3, outputs), numbers(4, rows * outputs));
            let mut paired = vec![f32::NAN; kernels.paired_len(weights, arithmetic, rows, inputs)];
            kernels.pair_rows(&x, inputs, &mut paired);
            let problem = Matmul {
                x: &x,
                paired: &paired,
                rows,
                inputs,
                weights,
                bias: Some(&bias),
                activation: Activation::Silu,
                residual: Some(&residual),
                arithmetic,
            };
            let pairs = panels(&(0..rows)).len().div_ceil(2);
            let product = |plan: &Plan| {
                let mut out = vec![f32::NAN; rows * outputs];
                let mut scratch = vec![f32::NAN; scratch_len(rows, inputs) + plan.places * BLOCK_LEN];
                // SAFETY: the table was handed out.
                unsafe {
                    let out = MatrixMut::new(&mut out, rows);
                    compute(Amx::new(), Avx512::new(), &problem, out, plan, &mut scratch);
                }
                bits(&out)
            };
            let whole = product(&Plan::new(pairs, inputs, outputs));
            for (inputs, panels) in [(32, 1), (64, 2), (96, 1)] {
                let cut = Plan { inputs, columns: panels * WIDTH, places: panels * pairs };
                assert_eq!(product(&cut), whole, "{rows} x {outputs}: {cut:?}");
            }
        }
    }
}
