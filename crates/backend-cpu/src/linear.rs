//! Matrix products: one parallel region for all products of the same x, which is rounded once for all of them.

use std::ops::Range;

use ocelli_backend::{Activation, Backend, Epilogue, columns_of};
use ocelli_kernels::{
    Kernels, Matmul, MatrixMut, PackedDims, PackedMatrix, QuantizedMatmul, QuantizedSwiglu, WeightMatrix,
};

use crate::CpuBackend;
use crate::activations::Activations;
use crate::buffer::Buffer;
use crate::ops::{PART, with_scratch};
use crate::weight::{CpuWeight, Matrix};

impl CpuBackend {
    pub(crate) fn products(
        &self,
        x: &Buffer,
        rows: usize,
        products: &[(&CpuWeight, Epilogue<'_, Self>)],
    ) -> Vec<Buffer> {
        let pieces = products.iter().enumerate().map(|(product, (weight, _))| (product, 0..weight.outputs()));
        self.pieces(x, rows, products, &pieces.collect::<Vec<_>>())
    }

    /// One product, cut along its outputs.
    pub(crate) fn product_parts(
        &self,
        x: &Buffer,
        rows: usize,
        weight: &CpuWeight,
        epilogue: Epilogue<'_, Self>,
        widths: &[usize],
    ) -> Vec<Buffer> {
        let outputs = widths.iter().sum();
        assert_eq!(weight.outputs(), outputs, "{widths:?} are not all outputs");
        // Within a panel, packed weights cannot be cut.
        if columns_of(widths).any(|columns| !columns.start.is_multiple_of(PackedDims::PANEL)) {
            let whole = self.linear(x, rows, weight, epilogue);
            return columns_of(widths).map(|columns| self.columns(&whole, outputs, columns)).collect();
        }
        let pieces: Vec<_> = columns_of(widths).map(|columns| (0, columns)).collect();
        self.pieces(x, rows, &[(weight, epilogue)], &pieces)
    }

    /// Columns of products (by their number), each piece in a buffer of its own.
    fn pieces(
        &self,
        x: &Buffer,
        rows: usize,
        products: &[(&CpuWeight, Epilogue<'_, Self>)],
        pieces: &[(usize, Range<usize>)],
    ) -> Vec<Buffer> {
        let mut results: Vec<Buffer> = pieces.iter().map(|(_, columns)| self.buffer(rows * columns.len())).collect();
        let outputs = pieces.iter().map(|(_, columns)| columns.len()).sum();
        if rows * outputs == 0 {
            return results;
        }
        let inputs = products[0].0.inputs();
        let rounded = self.rounded(x, products.iter().map(|&(weight, _)| weight));
        let problems = products.iter().map(|(weight, epilogue)| self.problem(x, rows, weight, epilogue, &rounded));
        let problems: Vec<Problem<'_>> = problems.collect();
        let shape = self.shape(products.iter().map(|&(weight, _)| weight));
        let (part_rows, part_columns) = shape.part(self.shared.threads.len(), rows, outputs);
        let parts = pieces.iter().zip(&mut results).filter(|(_, result)| !result.is_empty());
        let parts = parts.flat_map(|((product, columns), result)| {
            let tiles = MatrixMut::of_columns(result, rows, columns.clone()).tiles(part_rows, part_columns);
            tiles.map(|part| (&problems[*product], part))
        });
        self.split(rows * inputs * outputs, parts, |(problem, part)| problem.compute(self.shared.kernels, part));
        results
    }

    pub(crate) fn gated_product(&self, x: &Buffer, rows: usize, gate: &CpuWeight, up: &CpuWeight) -> Buffer {
        let (inputs, outputs) = (gate.inputs(), gate.outputs());
        assert_eq!([inputs, outputs], [up.inputs(), up.outputs()], "gate and up differ");
        let mut out = self.buffer(rows * outputs);
        if out.is_empty() {
            return out;
        }
        let kernels = self.shared.kernels;
        let cost = 2 * rows * inputs * outputs;
        let (part_rows, part_columns) = self.shape([gate, up]).part(self.shared.threads.len(), rows, outputs);
        let rounded = self.rounded(x, [gate, up]);
        if let (Matrix::Packed(gate), Matrix::Packed(up)) = (gate.matrix(), up.matrix())
            && gate.dims() == up.dims()
        {
            let problem = QuantizedSwiglu { x: rounded.of_group(gate).rows(), rows, gate, up };
            let scratch_len = kernels.quantized_scratch_len(rows);
            self.split(cost, MatrixMut::new(&mut out, rows).tiles(part_rows, part_columns), |part| {
                with_scratch(scratch_len, |scratch| kernels.quantized_swiglu(&problem, part, scratch));
            });
            return out;
        }
        let [gate, up] = [gate, up].map(|weight| self.problem(x, rows, weight, &Epilogue::none(), &rounded));
        let (mut gates, mut ups) = (self.buffer(out.len()), self.buffer(out.len()));
        let mut tiles =
            [&mut gates, &mut ups, &mut out].map(|values| MatrixMut::new(values, rows).tiles(part_rows, part_columns));
        let parts = std::iter::from_fn(|| {
            let [gates, ups, out] = &mut tiles;
            Some([gates.next()?, ups.next()?, out.next()?])
        });
        self.split(cost, parts, |[mut gates, mut ups, mut out]| {
            gate.compute(kernels, gates.reborrow());
            up.compute(kernels, ups.reborrow());
            for row in out.rows() {
                kernels.silu_mul(gates.row(row), ups.row(row), out.row(row));
            }
        });
        out
    }

    fn problem<'a>(
        &self,
        x: &'a [f32],
        rows: usize,
        weight: &'a CpuWeight,
        epilogue: &Epilogue<'a, Self>,
        rounded: &'a Rounded,
    ) -> Problem<'a> {
        let bias = epilogue.bias.map(|bias| &**bias);
        let activation = activation(epilogue.activation);
        let residual = epilogue.residual.map(|residual| &**residual);
        match weight.matrix() {
            Matrix::Float(weights) => {
                let (inputs, arithmetic) = (weight.inputs(), self.shared.arithmetic);
                let is_paired = self.shared.kernels.paired_len(weights, arithmetic, rows, inputs) > 0;
                let paired = rounded.pairs.as_deref().filter(|_| is_paired).unwrap_or_default();
                Problem::Float(Matmul { x, paired, rows, inputs, weights, bias, activation, residual, arithmetic })
            }
            Matrix::Packed(weights) => {
                let x = rounded.of_group(weights).rows();
                Problem::Packed(QuantizedMatmul { x, rows, weights, bias, activation, residual })
            }
        }
    }

    /// What suits all of some products.
    fn shape<'a>(&self, weights: impl IntoIterator<Item = &'a CpuWeight>) -> Shape {
        let (kernels, arithmetic) = (self.shared.kernels, self.shared.arithmetic);
        let mut shape = Shape::FLOAT;
        for weight in weights {
            match weight.matrix() {
                Matrix::Packed(_) => return Shape::PACKED,
                Matrix::Float(matrix) => {
                    let most_rows = kernels.rows_in_cache(matrix, arithmetic, weight.inputs());
                    shape = most_rows.map_or(shape, Shape::tiles);
                }
            }
        }
        shape
    }

    /// x as these weights need it.
    fn rounded<'a>(&self, x: &Buffer, weights: impl IntoIterator<Item = &'a CpuWeight>) -> Rounded {
        let mut rounded = Rounded { groups: Vec::new(), pairs: None };
        for weight in weights {
            let inputs = weight.inputs();
            match weight.matrix() {
                Matrix::Packed(matrix) => {
                    let group = matrix.dims().group;
                    if rounded.groups.iter().all(|rounded| rounded.group() != group) {
                        rounded.groups.push(self.quantized(x, inputs, group));
                    }
                }
                Matrix::Float(matrix) if rounded.pairs.is_none() => rounded.pairs = self.paired(x, matrix, inputs),
                Matrix::Float(_) => {}
            }
        }
        rounded
    }

    /// x in pairs of bfloat16, if products with these weights read it so.
    fn paired(&self, x: &Buffer, weights: WeightMatrix<'_>, inputs: usize) -> Option<Buffer> {
        let kernels = self.shared.kernels;
        let len = |rows| kernels.paired_len(weights, self.shared.arithmetic, rows, inputs);
        let whole = len(x.len() / inputs);
        (whole > 0).then(|| {
            let mut pairs = self.buffer(whole);
            let rows = (PART / inputs).max(1).next_multiple_of(kernels.paired_rows());
            let parts = x.chunks(rows * inputs).zip(pairs.chunks_mut(len(rows)));
            self.split(x.len(), parts, |(x, pairs)| kernels.pair_rows(x, inputs, pairs));
            pairs
        })
    }
}

/// x as the weights of a region need it: once for every size of groups, once for all that are multiplied in pairs.
struct Rounded {
    groups: Vec<Activations>,
    pairs: Option<Buffer>,
}

impl Rounded {
    fn of_group(&self, weights: PackedMatrix<'_>) -> &Activations {
        let group = weights.dims().group;
        self.groups.iter().find(|rounded| rounded.group() == group).expect("x was rounded for every weight")
    }
}

/// A product, of which any part can be computed.
enum Problem<'a> {
    Float(Matmul<'a>),
    Packed(QuantizedMatmul<'a>),
}

impl Problem<'_> {
    fn compute(&self, kernels: &Kernels, part: MatrixMut<'_>) {
        let rows = part.rows().len();
        match self {
            Self::Float(problem) => {
                let scratch_len = kernels.matmul_scratch_len(problem);
                with_scratch(scratch_len, |scratch| kernels.matmul(problem, part, scratch));
            }
            Self::Packed(problem) => {
                let scratch_len = kernels.quantized_scratch_len(rows);
                with_scratch(scratch_len, |scratch| kernels.quantized_matmul(problem, part, scratch));
            }
        }
    }
}

/// What suits the kernels of a product.
struct Shape {
    /// Fewer rows than that are never split: every part would read the same weights.
    few_rows: usize,
    /// Columns of a part of few rows are a multiple of this.
    few_unit: usize,
    /// Parts of many rows per thread.
    parts: usize,
    /// Rows of the highest part of many rows.
    most_rows: usize,
    /// Rows of a part of many rows are a multiple of this.
    row_unit: usize,
    /// Columns of the narrowest part of many rows: narrower ones would read all of x for a few columns.
    narrowest: usize,
    /// Columns of a part of many rows are a multiple of this.
    unit: usize,
}

impl Shape {
    /// A panel of converted weights has 96 columns.
    const FLOAT: Self = Self {
        few_rows: 2 * LOWEST,
        few_unit: PackedDims::PANEL,
        parts: 4,
        most_rows: usize::MAX,
        row_unit: 12,
        narrowest: 96,
        unit: 16,
    };
    /// A register tile has up to 64 columns.
    const PACKED: Self = Self { few_rows: 13, parts: 8, narrowest: 64, unit: 64, ..Self::FLOAT };

    /// Blocks of tiles have 32 rows and 32 columns. Parts follow one another along a row, so that x of the rows stays
    /// in a thread's cache from part to part.
    const fn tiles(most_rows: usize) -> Self {
        Self { few_unit: 32, most_rows, row_unit: 32, unit: 32, ..Self::FLOAT }
    }

    /// Rows and columns that a thread takes at a time, beginning at a whole panel of packed weights.
    fn part(&self, threads: usize, rows: usize, outputs: usize) -> (usize, usize) {
        if rows < self.few_rows {
            return (rows, outputs.div_ceil(4 * threads).next_multiple_of(self.few_unit));
        }
        let parts = self.parts * threads;
        let mut row_parts = rows.div_ceil(self.most_rows);
        let mut columns = outputs.div_ceil(parts.div_ceil(row_parts));
        if columns < self.narrowest {
            columns = self.narrowest;
            row_parts = row_parts.max(parts.div_ceil(outputs.div_ceil(columns)));
        }
        let columns = columns.next_multiple_of(self.unit);
        (rows.div_ceil(row_parts).next_multiple_of(self.row_unit).max(LOWEST).min(rows), columns)
    }
}

/// Rows of the lowest part of many rows.
const LOWEST: usize = 48;

pub(crate) fn activation(activation: Activation) -> ocelli_kernels::Activation {
    match activation {
        Activation::None => ocelli_kernels::Activation::None,
        Activation::Gelu => ocelli_kernels::Activation::Gelu,
        Activation::GeluTanh => ocelli_kernels::Activation::GeluTanh,
        Activation::Silu => ocelli_kernels::Activation::Silu,
        Activation::QuickGelu => ocelli_kernels::Activation::QuickGelu,
        Activation::Relu => ocelli_kernels::Activation::Relu,
        Activation::Sigmoid => ocelli_kernels::Activation::Sigmoid,
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn parts_of_a_product_suit_its_shape() {
        // Decode: whole rows, so that weights are read once.
        assert_eq!(Shape::FLOAT.part(2, 1, 1536), (1, 192));
        assert_eq!(Shape::FLOAT.part(16, 8, 576), (8, 16));
        assert_eq!(Shape::PACKED.part(2, 1, 960), (1, 128));
        // Vision on many threads: rows are split before columns get narrow.
        assert_eq!(Shape::FLOAT.part(2, 1024, 768), (1024, 96));
        assert_eq!(Shape::FLOAT.part(16, 1024, 768), (132, 96));
        assert_eq!(Shape::FLOAT.part(64, 100, 64), (48, 96));
        assert_eq!(Shape::PACKED.part(2, 1024, 3072), (1024, 192));
        assert_eq!(Shape::PACKED.part(2, 1024, 768), (516, 64));
        // Tiles: rows whose x stays in a cache, columns for four parts per thread.
        assert_eq!(Shape::tiles(320).part(2, 512, 8960), (256, 2240));
        assert_eq!(Shape::tiles(672).part(2, 1024, 768), (512, 192));
        assert_eq!(Shape::tiles(672).part(16, 1024, 768), (128, 96));
        assert_eq!(Shape::tiles(256).part(2, 1000, 768), (256, 384));
        assert_eq!(Shape::tiles(896).part(2, 84, 576), (84, 96));
        assert_eq!(Shape::tiles(320).part(2, 1, 1536), (1, 192));
        // Two threads get as much each: 9 columns of parts would not.
        assert_eq!(Shape::PACKED.part(2, 84, 576), (48, 64));
    }
}
