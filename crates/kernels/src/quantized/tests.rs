//! Every instruction set against float64, against the scalar one, and against itself in other portions.

use half::f16;

use super::*;
use crate::activation::Activation;
use crate::dispatch::Kernels;
use crate::testing::{assert_close, bits, numbers};
use crate::view::MatrixMut;

/// A matrix of codes, and the same packed.
struct Weights {
    dims: PackedDims,
    /// `[outputs, padded inputs]`.
    codes: Vec<u8>,
    /// `[outputs, groups]`.
    scales: Vec<f16>,
    offsets: Vec<f16>,
    packed: Vec<u8>,
}

impl Weights {
    fn new(dims: PackedDims, seed: u64) -> Self {
        let largest = if dims.bits == CodeBits::Four { 15.0 } else { 255.0 };
        let codes = numbers(seed, dims.outputs * dims.padded_inputs());
        let codes = codes.iter().map(|number| ((number + 1.0) / 2.0 * (largest + 0.99)) as u8).collect();
        let factors = |seed| numbers(seed, dims.outputs * dims.groups()).into_iter();
        let scales = factors(seed + 1).map(|number| f16::from_f32(number * 0.01)).collect();
        let offsets = factors(seed + 2).map(f16::from_f32).collect();
        Self::from_parts(dims, codes, scales, offsets)
    }

    fn from_parts(dims: PackedDims, mut codes: Vec<u8>, scales: Vec<f16>, offsets: Vec<f16>) -> Self {
        for row in codes.chunks_mut(dims.padded_inputs()) {
            row[dims.inputs..].fill(0);
        }
        let rows: Vec<u8> = match dims.bits {
            CodeBits::Four => codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect(),
            CodeBits::Eight => codes.clone(),
        };
        let rows = GroupedRows { dims, codes: &rows, scales: &scales, offsets: &offsets };
        let mut packed = vec![0xAB; dims.packed_len()];
        rows.pack(&mut packed);
        Self { dims, codes, scales, offsets, packed }
    }

    fn matrix(&self) -> PackedMatrix<'_> {
        PackedMatrix::new(self.dims, &self.packed)
    }

    /// Weight, exactly.
    fn weight(&self, output: usize, input: usize) -> f64 {
        let group = output * self.dims.groups() + input / self.dims.group;
        let code = self.codes[output * self.dims.padded_inputs() + input];
        f64::from(code) * f64::from(self.scales[group]) + f64::from(self.offsets[group])
    }
}

/// Quantised activations and what they were.
struct Rows {
    x: Vec<f32>,
    rows: usize,
    dims: PackedDims,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

impl Rows {
    fn new(kernels: &Kernels, x: Vec<f32>, dims: PackedDims) -> Self {
        let rows = x.len() / dims.inputs;
        let (mut codes, groups) = (vec![99; rows * dims.padded_inputs()], rows * dims.groups());
        let (mut scales, mut sums) = (vec![7.0; groups], vec![7.0; groups]);
        let out = QuantizedRowsMut { group: dims.group, codes: &mut codes, scales: &mut scales, sums: &mut sums };
        kernels.quantize_rows(&x, dims.inputs, out);
        Self { x, rows, dims, codes, scales, sums }
    }

    fn quantized(&self) -> QuantizedRows<'_> {
        QuantizedRows { codes: &self.codes, scales: &self.scales, sums: &self.sums }
    }

    fn row(&self, row: usize) -> Self {
        let part = |per_row: usize| row * per_row..(row + 1) * per_row;
        Self {
            x: self.x[part(self.dims.inputs)].to_vec(),
            rows: 1,
            dims: self.dims,
            codes: self.codes[part(self.dims.padded_inputs())].to_vec(),
            scales: self.scales[part(self.dims.groups())].to_vec(),
            sums: self.sums[part(self.dims.groups())].to_vec(),
        }
    }
}

fn plain<'a>(x: &'a Rows, weights: &'a Weights) -> QuantizedMatmul<'a> {
    QuantizedMatmul {
        x: x.quantized(),
        rows: x.rows,
        weights: weights.matrix(),
        bias: None,
        activation: Activation::None,
        residual: None,
    }
}

/// The product, computed in tiles of that size; scratch and output hold rubbish before.
fn product(kernels: &Kernels, problem: &QuantizedMatmul<'_>, tile: (usize, usize)) -> Vec<f32> {
    let mut out = vec![f32::NAN; problem.rows * problem.weights.dims().outputs];
    let mut scratch = vec![f32::NAN; kernels.quantized_scratch_len(problem.rows)];
    for part in MatrixMut::new(&mut out, problem.rows).tiles(tile.0, tile.1) {
        kernels.quantized_matmul(problem, part, &mut scratch);
    }
    out
}

fn scalar() -> &'static Kernels {
    Kernels::select(Some("scalar")).unwrap()
}

const WHOLE: (usize, usize) = (usize::MAX / 2, usize::MAX / 2);

/// Both widths, both groups, and sizes around those of runs, groups, panels, blocks and tiles.
fn cases() -> impl Iterator<Item = (usize, PackedDims)> {
    let sizes = [
        (1, 1, 1),
        (2, 31, 15),
        (3, 32, 16),
        (4, 33, 17),
        (5, 64, 64),
        (6, 65, 63),
        (7, 96, 65),
        (8, 200, 48),
        (9, 511, 80),
        (33, 1030, 129),
        (84, 100, 33),
    ];
    let forms = [(CodeBits::Four, 32), (CodeBits::Four, 64), (CodeBits::Eight, 32), (CodeBits::Eight, 64)];
    sizes.into_iter().flat_map(move |(rows, inputs, outputs)| {
        forms.map(|(bits, group)| (rows, PackedDims { outputs, inputs, group, bits }))
    })
}

pub(crate) fn rows_are_quantised_to_the_nearest_code(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let mut x = numbers(3, rows * dims.inputs);
        // Groups of other magnitudes, down to numbers without an exponent of their own.
        for (at, x) in x.iter_mut().enumerate() {
            *x *= [1.0, 1e-37, 1e30, 3e38, 1e-12][at / dims.group % 5];
        }
        let x = Rows::new(kernels, x, dims);
        for row in 0..rows {
            for group in 0..dims.groups() {
                let inputs = group * dims.group..dims.inputs.min((group + 1) * dims.group);
                let values = &x.x[row * dims.inputs..][inputs];
                let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let at = row * dims.groups() + group;
                let codes = &x.codes[at * dims.group..][..dims.group];
                assert_eq!(x.scales[at], largest / 127.0, "{dims:?} {at}");
                assert_eq!(codes.iter().map(|code| code.unsigned_abs()).max(), Some(127), "{dims:?} {at}");
                for (code, value) in codes.iter().zip(values) {
                    let exact = f64::from(*value) * 127.0 / f64::from(largest);
                    assert!((f64::from(*code) - exact).abs() < 0.500_02, "{dims:?} {at}: {code} for {exact}");
                }
                assert!(codes[values.len()..].iter().all(|&code| code == 0), "{dims:?} {at}: padding");
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                assert_eq!(x.sums[at], x.scales[at] * sum as f32, "{dims:?} {at}");
            }
        }
    }
}

pub(crate) fn rows_are_quantised_alike_everywhere(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let mut x = numbers(4, rows * dims.inputs);
        for (at, special) in [0.0, -0.0, f32::NAN, f32::INFINITY, 1e-45, -1e-39, f32::MIN_POSITIVE].iter().enumerate() {
            let len = x.len();
            x[(at * 97) % len] = *special;
        }
        let (here, there) = (Rows::new(kernels, x.clone(), dims), Rows::new(scalar(), x, dims));
        assert_eq!(here.codes, there.codes, "{dims:?}");
        assert_eq!(bits(&here.scales), bits(&there.scales), "{dims:?}");
        assert_eq!(bits(&here.sums), bits(&there.sums), "{dims:?}");
    }
}

pub(crate) fn products_follow_the_definition(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let (x, weights) = (Rows::new(kernels, numbers(1, rows * dims.inputs), dims), Weights::new(dims, 2));
        let out = product(kernels, &plain(&x, &weights), WHOLE);
        for (at, &out) in out.iter().enumerate() {
            let (row, output) = (at / dims.outputs, at % dims.outputs);
            let (mut sum, mut size) = (0.0, 0.0);
            let (mut exact, mut error) = (0.0, 0.0);
            for input in 0..dims.inputs {
                let group = row * dims.groups() + input / dims.group;
                let code = x.codes[row * dims.padded_inputs() + input];
                let (weight, scale) = (weights.weight(output, input), f64::from(x.scales[group]));
                sum += f64::from(code) * scale * weight;
                exact += f64::from(x.x[row * dims.inputs + input]) * weight;
                // Code and offset parts may cancel, so they count separately.
                let offset = f64::from(weights.offsets[output * dims.groups() + input / dims.group]);
                size += (f64::from(code) * scale).abs() * ((weight - offset).abs() + offset.abs());
                error += 0.500_02 * scale * weight.abs();
            }
            // Every group rounds a few times, in proportion to what was summed so far.
            let rounding = f64::from(f32::EPSILON) * (dims.groups() as f64 + 3.0) * size;
            assert_close(out, sum, rounding, (rows, dims, at));
            // A code is at most half a scale away from its activation.
            assert_close(out, exact, error + rounding, (rows, dims, at));
        }
    }
}

pub(crate) fn every_instruction_set_gives_the_same_bits(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let (x, weights) = (Rows::new(kernels, numbers(5, rows * dims.inputs), dims), Weights::new(dims, 6));
        let (bias, residual) = (numbers(7, dims.outputs), numbers(8, rows * dims.outputs));
        let problem = QuantizedMatmul { bias: Some(&bias), residual: Some(&residual), ..plain(&x, &weights) };
        let expected = product(scalar(), &problem, WHOLE);
        assert_eq!(bits(&product(kernels, &problem, WHOLE)), bits(&expected), "{rows} {dims:?}");
    }
}

/// Row by row, all together, and in any tiles: the same bits, with every epilogue.
pub(crate) fn rows_and_columns_are_independent(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let (x, weights) = (Rows::new(kernels, numbers(5, rows * dims.inputs), dims), Weights::new(dims, 6));
        let (bias, residual) = (numbers(7, dims.outputs), numbers(8, rows * dims.outputs));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let problem =
                QuantizedMatmul { bias: Some(&bias), activation, residual: Some(&residual), ..plain(&x, &weights) };
            let whole = bits(&product(kernels, &problem, WHOLE));
            for tile in [(1, 16), (5, 48), (7, 80), (rows, 16)] {
                assert_eq!(bits(&product(kernels, &problem, tile)), whole, "{rows} {dims:?} {tile:?}");
            }
            for row in 0..rows {
                let alone = x.row(row);
                let residual = &residual[row * dims.outputs..][..dims.outputs];
                let problem = QuantizedMatmul { x: alone.quantized(), rows: 1, residual: Some(residual), ..problem };
                let expected = &whole[row * dims.outputs..][..dims.outputs];
                assert_eq!(bits(&product(kernels, &problem, WHOLE)), expected, "row {row} of {rows} {dims:?}");
            }
        }
    }
}

pub(crate) fn every_epilogue_is_applied(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let (x, weights) = (Rows::new(kernels, numbers(1, rows * dims.inputs), dims), Weights::new(dims, 2));
        let (bias, residual) = (numbers(3, dims.outputs), numbers(4, rows * dims.outputs));
        let product_only = product(kernels, &plain(&x, &weights), WHOLE);
        for activation in [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            let problem =
                QuantizedMatmul { bias: Some(&bias), activation, residual: Some(&residual), ..plain(&x, &weights) };
            let mut expected: Vec<f32> =
                product_only.iter().enumerate().map(|(at, value)| value + bias[at % dims.outputs]).collect();
            kernels.activate(activation, &mut expected);
            let fused = product(kernels, &problem, (7, 16));
            for at in 0..expected.len() {
                let tolerance = 1e-6 * f64::from(expected[at].abs() + 1.0);
                let expected = f64::from(expected[at]) + f64::from(residual[at]);
                assert_close(fused[at], expected, tolerance, (rows, dims, activation, at));
            }
        }
    }
}

pub(crate) fn swiglu_is_two_products(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let x = Rows::new(kernels, numbers(1, rows * dims.inputs), dims);
        let (gate, up) = (Weights::new(dims, 2), Weights::new(dims, 9));
        let (gates, ups) = (product(kernels, &plain(&x, &gate), WHOLE), product(kernels, &plain(&x, &up), WHOLE));
        let mut expected = vec![0.0; gates.len()];
        // In portions of a panel, as the fused product has them.
        for row in 0..rows {
            for column in (0..dims.outputs).step_by(PANEL) {
                let part = row * dims.outputs + column..row * dims.outputs + dims.outputs.min(column + PANEL);
                kernels.silu_mul(&gates[part.clone()], &ups[part.clone()], &mut expected[part]);
            }
        }
        for tile in [WHOLE, (1, 16), (10, 48)] {
            let mut out = vec![f32::NAN; expected.len()];
            let mut scratch = vec![f32::NAN; kernels.quantized_scratch_len(rows)];
            let problem = QuantizedSwiglu { x: x.quantized(), rows, gate: gate.matrix(), up: up.matrix() };
            for part in MatrixMut::new(&mut out, rows).tiles(tile.0, tile.1) {
                kernels.quantized_swiglu(&problem, part, &mut scratch);
            }
            assert_eq!(bits(&out), bits(&expected), "{rows} {dims:?} {tile:?}");
        }
    }
}

/// The largest codes of both sides, in all combinations of signs.
pub(crate) fn nothing_saturates(kernels: &Kernels) {
    for (rows, dims) in cases() {
        let largest = if dims.bits == CodeBits::Four { 15 } else { 255 };
        let codes = vec![largest; dims.outputs * dims.padded_inputs()];
        let factors = vec![f16::ONE; dims.outputs * dims.groups()];
        let weights = Weights::from_parts(dims, codes, factors, vec![f16::ZERO; dims.outputs * dims.groups()]);
        for pattern in [[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]
        {
            let x: Vec<f32> = (0..rows * dims.inputs).map(|at| 127.0 * pattern[at % dims.inputs % 4]).collect();
            let x = Rows::new(kernels, x, dims);
            for (at, out) in product(kernels, &plain(&x, &weights), WHOLE).into_iter().enumerate() {
                let expected: f32 = (0..dims.inputs).map(|at| pattern[at % 4]).sum::<f32>() * 127.0;
                let expected = f64::from(expected) * f64::from(largest);
                assert_close(out, expected, 1e-6 * expected.abs(), (rows, dims, at));
            }
        }
    }
}

pub(crate) fn special_values_stay_in_their_rows_and_columns(kernels: &Kernels) {
    for (rows, dims) in cases().filter(|(_, dims)| dims.outputs > 1) {
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, mut weights) = (numbers(1, rows * dims.inputs), Weights::new(dims, 2));
            let (bad_row, bad_column, zero_row) = (rows / 2, dims.outputs / 2, 0);
            x[..dims.inputs].fill(0.0);
            x[(bad_row + 1) * dims.inputs - 1] = special;
            weights.offsets[bad_column * dims.groups()] = f16::NAN;
            let weights = Weights::from_parts(dims, weights.codes, weights.scales, weights.offsets);
            let x = Rows::new(kernels, x, dims);
            for (at, value) in product(kernels, &plain(&x, &weights), WHOLE).into_iter().enumerate() {
                let (row, column) = (at / dims.outputs, at % dims.outputs);
                let is_bad = row == bad_row || column == bad_column;
                assert_eq!(value.is_nan(), is_bad, "{rows} {dims:?}: {at}: {value}");
                assert!(is_bad || row != zero_row || value == 0.0, "{rows} {dims:?}: {at}: {value}");
            }
        }
    }
}

#[test]
fn rows_come_back_as_they_were_packed() {
    for (_, dims) in cases() {
        let weights = Weights::new(dims, 11);
        for output in 0..dims.outputs {
            let mut row = vec![f32::NAN; dims.inputs];
            weights.matrix().dequantize_row(output, &mut row);
            for (input, value) in row.into_iter().enumerate() {
                let expected = weights.weight(output, input);
                assert_close(value, expected, f64::from(f32::EPSILON) * expected.abs(), (dims, output, input));
            }
        }
    }
}

#[test]
fn panels_can_be_packed_one_by_one() {
    for (_, dims) in cases() {
        let weights = Weights::new(dims, 12);
        let rows: Vec<u8> = match dims.bits {
            CodeBits::Four => weights.codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect(),
            CodeBits::Eight => weights.codes.clone(),
        };
        let rows = GroupedRows { dims, codes: &rows, scales: &weights.scales, offsets: &weights.offsets };
        let mut packed = vec![0xCD; dims.packed_len()];
        for (panel, out) in packed.chunks_mut(dims.panel_len()).enumerate() {
            rows.panels(panel..panel + 1).pack(out);
        }
        assert!(packed == weights.packed, "{dims:?}");
    }
}

#[test]
fn padding_of_the_last_panel_is_zero() {
    let dims = PackedDims { outputs: 3, inputs: 32, group: 32, bits: CodeBits::Eight };
    let weights = Weights::from_parts(dims, vec![255; 96], vec![f16::ONE; 3], vec![f16::ONE; 3]);
    for (at, &byte) in weights.packed.iter().enumerate() {
        // Four bytes per output in lines of codes; two in each half of the line of scales and offsets.
        let place = if at / LINE < 8 { at % LINE / 4 } else { at % 32 / 2 };
        assert_eq!(byte != 0, place < 3 && (at / LINE < 8 || at % 2 == 1), "{at}");
    }
}

#[test]
#[should_panic(expected = "columns 8..16 begin within a panel")]
fn columns_begin_with_a_panel() {
    let dims = PackedDims { outputs: 32, inputs: 32, group: 32, bits: CodeBits::Four };
    let (x, weights) = (Rows::new(scalar(), vec![0.0; 32], dims), Weights::new(dims, 1));
    let mut out = [0.0; 32];
    let part = MatrixMut::new(&mut out, 1).tiles(1, 8).nth(1).unwrap();
    scalar().quantized_matmul(&plain(&x, &weights), part, &mut [0.0; 64]);
}

#[test]
#[should_panic(expected = "bytes of")]
fn a_matrix_of_another_size_is_refused() {
    let dims = PackedDims { outputs: 32, inputs: 32, group: 32, bits: CodeBits::Four };
    PackedMatrix::new(dims, &[0; 64]);
}
