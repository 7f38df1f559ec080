//! From floats to codes.
//!
//! Eight bits: symmetric, the largest weight of a group gets code 1 or 255. Four bits: start as MLX does (the larger
//! end of the range and zero are exact), then try narrower ranges, each followed by least squares for scale and offset
//! with the codes fixed, and keep what leaves the smallest squared error. Scales and offsets are rounded to f16
//! *before* the codes are chosen, so the rounding costs next to nothing.
//!
//! Rows are independent: callers quantise row ranges in parallel and [`GroupedTensor::stack`] them.

mod lanes;

use std::ops::Range;

use half::f16;

use crate::error::{Error, Result};
use crate::grouped::{CodeBits, GroupedLayout, GroupedTensor};
use crate::tensor::TensorData;
use lanes::{LANES, Lanes};

impl GroupedLayout {
    /// The layout that rows of `inputs` floats are quantised to: groups of 64, of 32 where that needs less filling.
    pub fn preferred(bits: CodeBits, inputs: usize) -> Self {
        let filled = |group: usize| inputs.div_ceil(group) * group;
        let group = if filled(32) < filled(64) { 32 } else { 64 };
        Self::new(bits, inputs, group).expect("both sizes are allowed")
    }
}

impl GroupedTensor {
    /// Quantises `rows` of a float matrix; extents after the first count as one.
    ///
    /// `None` where codes cannot hold it: a weight is not finite, or so large that its scale is not an f16.
    ///
    /// # Errors
    /// [`Error::NotFloat`]; [`Error::NotAMatrix`] when the tensor's rows are not those of the layout or there are
    /// not as many.
    pub fn quantize(weights: &TensorData, layout: GroupedLayout, rows: Range<usize>) -> Result<Option<Self>> {
        let [outputs, extents @ ..] = weights.shape() else {
            return Err(Error::NotAMatrix { shape: Vec::new(), rows, inputs: layout.inputs() });
        };
        let inputs = extents.iter().product::<usize>();
        if inputs != layout.inputs() || rows.start > rows.end || rows.end > *outputs {
            return Err(Error::NotAMatrix { shape: weights.shape().to_vec(), rows, inputs: layout.inputs() });
        }
        let (n_rows, groups) = (rows.len(), layout.groups());
        let mut codes = vec![0; n_rows * layout.row_bytes()];
        let mut scales = vec![f16::ZERO; n_rows * groups];
        let mut offsets = vec![f16::ZERO; n_rows * groups];
        // A tensor without rows may claim rows of any length.
        let mut row_values = vec![0.0; if n_rows == 0 { 0 } else { inputs }];
        for (at, row) in rows.enumerate() {
            weights.read_f32(row * inputs, &mut row_values)?;
            let row = Row {
                codes: &mut codes[at * layout.row_bytes()..][..layout.row_bytes()],
                scales: &mut scales[at * groups..][..groups],
                offsets: &mut offsets[at * groups..][..groups],
            };
            if quantize_on_this_machine(&row_values, row, layout).is_none() {
                return Ok(None);
            }
        }
        Self::new(layout, n_rows, codes.into(), scales, offsets).map(Some)
    }
}

/// [`quantize_row`] in the fastest instructions that the processor has.
fn quantize_on_this_machine(values: &[f32], row: Row<'_>, layout: GroupedLayout) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    if let Some(lanes) = lanes::Avx2::new() {
        return lanes.run(
            #[inline(always)]
            |lanes| quantize_row(lanes, values, row, layout),
        );
    }
    quantize_row(lanes::Portable, values, row, layout)
}

/// Where the codes, scales and offsets of a row go.
struct Row<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f16],
    offsets: &'a mut [f16],
}

/// `None` where f16 cannot hold a scale or an offset.
#[inline(always)]
fn quantize_row<L: Lanes>(lanes: L, values: &[f32], row: Row<'_>, layout: GroupedLayout) -> Option<()> {
    let parts = values.chunks(layout.group()).zip(row.codes.chunks_exact_mut(layout.group_bytes()));
    let parameters = row.scales.iter_mut().zip(row.offsets);
    for ((values, codes), (scale, offset)) in parts.zip(parameters) {
        (*scale, *offset) = quantize_group(lanes, values, codes, layout)?;
    }
    Some(())
}

/// Fills in the codes of one group; its scale and offset.
#[inline(always)]
fn quantize_group<L: Lanes>(lanes: L, values: &[f32], codes: &mut [u8], layout: GroupedLayout) -> Option<(f16, f16)> {
    // The filling repeats a weight, so that it moves no range; its codes are set to 0 below.
    let mut group = [values[0]; LONGEST];
    group[..values.len()].copy_from_slice(values);
    let mut found = [0u8; LONGEST];
    let (group, found) = (&group[..layout.group()], &mut found[..layout.group()]);
    let (group, _) = group.as_chunks();
    let line = match layout.bits() {
        CodeBits::Eight => quantize_eight(lanes, group, found)?,
        CodeBits::Four => quantize_four(lanes, group, found)?,
    };
    found[values.len()..].fill(0);
    match layout.bits() {
        CodeBits::Eight => codes.copy_from_slice(found),
        CodeBits::Four => {
            let (pairs, _) = found.as_chunks::<2>();
            codes.iter_mut().zip(pairs).for_each(|(byte, [even, odd])| *byte = even | odd << 4);
        }
    }
    Some((line.scale, line.offset))
}

#[inline(always)]
fn quantize_eight<L: Lanes>(lanes: L, group: &[[f32; LANES]], codes: &mut [u8]) -> Option<Line> {
    let (low, high) = range(lanes, group)?;
    let largest = high.max(-low);
    let mut scale = lanes.half(largest / 127.0);
    // Among the smallest f16 the steps are coarse: never round to a scale that the largest weight overflows.
    if lanes.single(scale) * 127.5 < largest {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    let line = Line { scale, offset: lanes.half(lanes.single(scale) * -128.0) };
    if !line.offset.is_finite() {
        return None;
    }
    let inverse = lanes.splat(if largest == 0.0 { 0.0 } else { 1.0 / lanes.single(scale) });
    let (lowest, highest) = (lanes.splat(-127.0), lanes.splat(127.0));
    // To the codes around 128, and so that rounding leaves their integer in the lowest bits.
    let shift = lanes.splat(ROUND + 128.0);
    for (values, codes) in group.iter().zip(codes.as_chunks_mut().0) {
        let value = lanes.mul(lanes.load(values), inverse);
        *codes = lanes.low_bytes(lanes.add(lanes.min(lanes.max(value, lowest), highest), shift));
    }
    Some(line)
}

#[inline(always)]
fn quantize_four<L: Lanes>(lanes: L, group: &[[f32; LANES]], codes: &mut [u8]) -> Option<Line> {
    let (low, high) = range(lanes, group)?;
    let length = (group.len() * LANES) as f32;
    let mut best = Fit::of(lanes, group, anchored(lanes, low, high)?);
    let mut line = best.refit(lanes, length);
    // The whole range, then narrower ones; each is refined in turn.
    for start in 0..=SHRINKS.len() {
        let mut rounds = REFITS;
        if start > 0 {
            let (middle, half_range) = (0.5 * (low + high), 0.5 * (high - low) * SHRINKS[start - 1]);
            line = Line::through(lanes, middle - half_range, 2.0 * half_range / MAX_FOUR);
            rounds += 1;
        }
        for _ in 0..rounds {
            let Some(candidate) = line else { break };
            let fit = Fit::of(lanes, group, candidate);
            if fit.error < best.error {
                best = fit;
            }
            line = fit.refit(lanes, length);
        }
    }
    let (_, inverse, offset) = best.line.numbers(lanes);
    let (inverse, offset, round) = (lanes.splat(inverse), lanes.splat(offset), lanes.splat(ROUND));
    for (values, codes) in group.iter().zip(codes.as_chunks_mut().0) {
        let code = clamped(lanes, lanes.mul(lanes.sub(lanes.load(values), offset), inverse));
        *codes = lanes.low_bytes(lanes.add(code, round));
    }
    Some(best.line)
}

/// MLX's choice: one step is a fifteenth of the range, stretched so that zero and the end farther from it are exact.
#[inline(always)]
fn anchored<L: Lanes>(lanes: L, low: f32, high: f32) -> Option<Line> {
    let (edge, other) = if low.abs() > high.abs() { (low, high) } else { (high, low) };
    let step = (other - edge) / MAX_FOUR;
    let steps = if step == 0.0 { 0.0 } else { (edge / step).round_ties_even() };
    let (offset, scale) = if steps == 0.0 { (edge.min(other), step.abs()) } else { (edge, edge / steps) };
    Line::through(lanes, offset, scale)
}

/// `weight = code * scale + offset`.
#[derive(Clone, Copy)]
struct Line {
    scale: f16,
    offset: f16,
}

impl Line {
    /// Rounded to f16; `None` when it is too large.
    #[inline(always)]
    fn through<L: Lanes>(lanes: L, offset: f32, scale: f32) -> Option<Self> {
        let line = Self { scale: lanes.half(scale), offset: lanes.half(offset) };
        (line.scale.is_finite() && line.offset.is_finite()).then_some(line)
    }

    /// Scale, its inverse (0 for a scale of 0) and offset.
    #[inline(always)]
    fn numbers<L: Lanes>(self, lanes: L) -> (f32, f32, f32) {
        let scale = lanes.single(self.scale);
        (scale, if scale == 0.0 { 0.0 } else { 1.0 / scale }, lanes.single(self.offset))
    }
}

/// A line with what its best codes leave, and the sums that least squares needs.
#[derive(Clone, Copy)]
struct Fit {
    line: Line,
    error: f32,
    codes: f32,
    squared_codes: f32,
    weights: f32,
    products: f32,
}

impl Fit {
    #[inline(always)]
    fn of<L: Lanes>(lanes: L, group: &[[f32; LANES]], line: Line) -> Self {
        let (scale, inverse, offset) = line.numbers(lanes);
        let (scale, inverse, offset) = (lanes.splat(scale), lanes.splat(inverse), lanes.splat(offset));
        let round = lanes.splat(ROUND);
        let [mut error, mut codes, mut squares, mut weights, mut products] = [lanes.splat(0.0); 5];
        for values in group {
            // Sums are of weights less the offset: sums of squares of what is left keep their precision.
            let weight = lanes.sub(lanes.load(values), offset);
            let code = clamped(lanes, lanes.mul(weight, inverse));
            let code = lanes.sub(lanes.add(code, round), round);
            let left = lanes.sub(weight, lanes.mul(code, scale));
            error = lanes.add(error, lanes.mul(left, left));
            codes = lanes.add(codes, code);
            squares = lanes.add(squares, lanes.mul(code, code));
            weights = lanes.add(weights, weight);
            products = lanes.add(products, lanes.mul(code, weight));
        }
        Self {
            line,
            error: lanes.total(error),
            codes: lanes.total(codes),
            squared_codes: lanes.total(squares),
            weights: lanes.total(weights),
            products: lanes.total(products),
        }
    }

    /// The line of least squares through `length` weights and their codes.
    #[inline(always)]
    fn refit<L: Lanes>(&self, lanes: L, length: f32) -> Option<Line> {
        let spread = length * self.squared_codes - self.codes * self.codes;
        if spread <= 0.0 {
            return None;
        }
        let scale = (length * self.products - self.codes * self.weights) / spread;
        let offset = (self.weights - scale * self.codes) / length;
        Line::through(lanes, lanes.single(self.line.offset) + offset, scale)
    }
}

/// Within the codes of four bits.
#[inline(always)]
fn clamped<L: Lanes>(lanes: L, codes: L::Numbers) -> L::Numbers {
    lanes.min(lanes.max(codes, lanes.splat(0.0)), lanes.splat(MAX_FOUR))
}

/// Smallest and largest number; `None` when one is not finite.
#[inline(always)]
fn range<L: Lanes>(lanes: L, group: &[[f32; LANES]]) -> Option<(f32, f32)> {
    let (mut low, mut high, mut zeros) = (lanes.splat(f32::MAX), lanes.splat(f32::MIN), lanes.splat(0.0));
    for values in group {
        let values = lanes.load(values);
        low = lanes.min(low, values);
        high = lanes.max(high, values);
        // Zero times a number that is not finite is not a number.
        zeros = lanes.add(zeros, lanes.mul(values, lanes.splat(0.0)));
    }
    (lanes.total(zeros) == 0.0).then(|| (lanes.smallest(low), lanes.largest(high)))
}

const LONGEST: usize = 64;
const MAX_FOUR: f32 = 15.0;
/// 1.5 * 2^23: adding it to a small number leaves no fraction bits, and the nearest integer in the lowest ones.
const ROUND: f32 = 12_582_912.0;
/// Ranges that are tried besides the whole one, and rounds of least squares for each.
const SHRINKS: [f32; 3] = [0.95, 0.88, 0.8];
const REFITS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Normally distributed numbers, every fiftieth ten times as large where `outliers` says so.
    fn numbers(count: usize, outliers: bool) -> Vec<f32> {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
        };
        let normal = |a: f32, b: f32| (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos();
        let mut next =
            |at: usize| normal(uniform(), uniform()) * if outliers && at.is_multiple_of(50) { 0.2 } else { 0.02 };
        (0..count).map(&mut next).collect()
    }

    fn quantize(values: &[f32], inputs: usize, bits: CodeBits) -> GroupedTensor {
        let rows = values.len() / inputs;
        let tensor = TensorData::from_f32(vec![rows, inputs], values).unwrap();
        GroupedTensor::quantize(&tensor, GroupedLayout::preferred(bits, inputs), 0..rows).unwrap().unwrap()
    }

    fn mean_squared_error(values: &[f32], decoded: &[f32]) -> f64 {
        let squares = values.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>() / values.len() as f64
    }

    /// What the starting point alone, MLX's choice, leaves.
    fn anchored_error(values: &[f32]) -> f64 {
        let mut decoded = Vec::new();
        for group in values.chunks_exact(64) {
            let (low, high) = range(lanes::Portable, group.as_chunks().0).unwrap();
            let (scale, inverse, offset) = anchored(lanes::Portable, low, high).unwrap().numbers(lanes::Portable);
            let code = |weight: &f32| ((weight - offset) * inverse).clamp(0.0, MAX_FOUR).round_ties_even();
            decoded.extend(group.iter().map(|weight| code(weight) * scale + offset));
        }
        mean_squared_error(values, &decoded)
    }

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let values = numbers(64 * 96, true);
        let quantized = quantize(&values, 96, CodeBits::Eight);
        assert_eq!(quantized.layout().group(), 32);
        for (group, values) in values.chunks_exact(32).enumerate() {
            let scale = quantized.scales()[group].to_f32();
            assert_eq!(quantized.offsets()[group].to_f32(), -128.0 * scale);
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!((scale * 127.0 / largest - 1.0).abs() < 1e-3);
        }
        for (at, (value, decoded)) in values.iter().zip(quantized.to_f32()).enumerate() {
            let step = quantized.scales()[at / 32].to_f32();
            // Half a step, and what rounding the scale takes from the largest weight.
            assert!((value - decoded).abs() <= 0.5 * step + value.abs() / 2048.0, "{value} {decoded}");
        }
    }

    #[test]
    fn four_bits_leave_less_than_the_plain_range() {
        for (outliers, at_most) in [(false, 0.85), (true, 0.95)] {
            let values = numbers(64 * 512, outliers);
            let refined = mean_squared_error(&values, &quantize(&values, 64, CodeBits::Four).to_f32());
            let plain = anchored_error(&values);
            assert!(refined < at_most * plain, "outliers {outliers}: {refined:e} of {plain:e}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_instruction_set_finds_the_same_codes() {
        let Some(avx2) = lanes::Avx2::new() else { return eprintln!("SKIP: this processor has no AVX2") };
        let mut values = numbers(64 * 300, true);
        // Groups of one number, of zeros, of halves' limits, and what no code can hold.
        values[..64].fill(-0.25);
        values[64..128].fill(0.0);
        values[128..192].iter_mut().for_each(|value| *value *= 3e6);
        values[200] = 1e-7;
        values[300] = f32::NAN;
        values[400] = f32::NEG_INFINITY;
        values[500] = 3e38;
        for bits in [CodeBits::Four, CodeBits::Eight] {
            for length in [64, 37] {
                let layout = GroupedLayout::preferred(bits, length);
                for values in values.chunks_exact(64) {
                    let found = |portable: bool| {
                        let (mut codes, mut scales, mut offsets) = ([0; 64], [f16::ZERO; 2], [f16::ZERO; 2]);
                        let row = Row {
                            codes: &mut codes[..layout.row_bytes()],
                            scales: &mut scales[..layout.groups()],
                            offsets: &mut offsets[..layout.groups()],
                        };
                        let values = &values[..length];
                        let held = match portable {
                            true => quantize_row(lanes::Portable, values, row, layout),
                            false => avx2.run(|lanes| quantize_row(lanes, values, row, layout)),
                        };
                        held.map(|()| (codes, scales.map(f16::to_bits), offsets.map(f16::to_bits)))
                    };
                    assert_eq!(found(false), found(true), "{bits:?} {values:?}");
                }
            }
        }
    }

    #[test]
    fn constants_zeros_and_codes_themselves_are_exact() {
        let ramp: Vec<f32> = (0..64).map(|at| (at % 16) as f32 * 0.25 - 1.5).collect();
        for values in [vec![0.0; 64], vec![0.75; 64], vec![-3.0; 64], ramp] {
            assert_eq!(quantize(&values, 64, CodeBits::Four).to_f32(), values);
        }
        assert_eq!(quantize(&[0.0; 64], 64, CodeBits::Eight).to_f32(), [0.0; 64]);
    }

    #[test]
    fn rows_that_are_no_whole_groups_are_filled_with_code_0() {
        let values = numbers(3 * 70, false);
        for bits in [CodeBits::Four, CodeBits::Eight] {
            let quantized = quantize(&values, 70, bits);
            let layout = quantized.layout();
            assert_eq!((layout.group(), layout.groups()), (32, 3));
            let filled = &quantized.codes()[layout.row_bytes() - 26 / bits.per_byte()..layout.row_bytes()];
            assert!(filled.iter().all(|&byte| byte == 0));
            let error = mean_squared_error(&values, &quantized.to_f32());
            assert!(error < 0.02f64.powi(2) / 100.0, "{error}");
        }
    }

    #[test]
    fn row_ranges_stack_to_the_whole() {
        let values = numbers(10 * 64, false);
        let tensor = TensorData::from_f32(vec![10, 4, 16], &values).unwrap();
        let layout = GroupedLayout::preferred(CodeBits::Four, 64);
        let part = |rows| GroupedTensor::quantize(&tensor, layout, rows).unwrap().unwrap();
        let stacked = GroupedTensor::stack(&[part(0..3), part(3..3), part(3..10)]).unwrap();
        assert_eq!(stacked.codes()[..], part(0..10).codes()[..]);
        assert_eq!((stacked.scales(), stacked.outputs()), (part(0..10).scales(), 10));
    }

    #[test]
    fn what_codes_cannot_hold_is_left_to_floats() {
        let quantize = |value: f32, bits| {
            let tensor = TensorData::from_f32(vec![1, 64], &[&[value][..], &[1.0; 63]].concat()).unwrap();
            GroupedTensor::quantize(&tensor, GroupedLayout::preferred(bits, 64), 0..1).unwrap()
        };
        for bits in [CodeBits::Four, CodeBits::Eight] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, 7e4] {
                assert!(quantize(value, bits).is_none(), "{value}");
            }
            assert!(quantize(6e4, bits).is_some());
        }
        // The smallest f16 steps are coarse, and still nothing overflows its code.
        let tiny = quantize_all(3e-6);
        assert!((tiny - 3e-6).abs() < 3e-8, "{tiny}");
    }

    fn quantize_all(value: f32) -> f32 {
        quantize(&[value; 64], 64, CodeBits::Eight).to_f32()[0]
    }

    #[test]
    fn not_a_matrix() {
        let layout = GroupedLayout::preferred(CodeBits::Four, 64);
        let error = |shape: &[usize], rows| {
            let values = vec![0.0; shape.iter().product()];
            let tensor = TensorData::from_f32(shape.to_vec(), &values).unwrap();
            GroupedTensor::quantize(&tensor, layout, rows).unwrap_err()
        };
        assert!(matches!(error(&[2, 63], 0..2), Error::NotAMatrix { .. }));
        assert!(matches!(error(&[], 0..1), Error::NotAMatrix { .. }));
        assert_eq!(error(&[2, 64], 1..3).to_string(), "a tensor of shape [2, 64] has no rows 1..3 of 64 weights");
    }
}
