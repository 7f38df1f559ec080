//! Matrix products: one parallel region for all products of the same x.

use ocelli_backend::{Activation, Epilogue};
use ocelli_kernels::{Matmul, MatrixMut};

use crate::CpuBackend;
use crate::buffer::Buffer;
use crate::ops::{PART, with_scratch};
use crate::weight::CpuWeight;

impl CpuBackend {
    pub(crate) fn products(
        &self,
        x: &Buffer,
        rows: usize,
        products: &[(&CpuWeight, Epilogue<'_, Self>)],
    ) -> Vec<Buffer> {
        let mut results: Vec<Buffer> =
            products.iter().map(|(weight, _)| self.buffer(rows * weight.outputs())).collect();
        let outputs = products.iter().map(|(weight, _)| weight.outputs()).sum();
        if rows * outputs == 0 {
            return results;
        }
        let problems: Vec<Matmul<'_>> =
            products.iter().map(|(weight, epilogue)| self.problem(x, rows, weight, epilogue)).collect();
        let inputs = problems[0].inputs;
        let kernels = self.shared.kernels;
        let scratch_len = problems.iter().map(|problem| kernels.matmul_scratch_len(problem)).max().unwrap_or(0);
        let (part_rows, part_columns) = part_of_product(self.shared.threads.len(), rows, outputs);
        let parts = problems.iter().zip(&mut results).flat_map(|(problem, result)| {
            let tiles = MatrixMut::new(result, rows).tiles(part_rows, part_columns);
            tiles.map(move |part| (problem, part))
        });
        self.split(rows * inputs * outputs, parts, |(problem, part)| {
            with_scratch(scratch_len, |scratch| kernels.matmul(problem, part, scratch));
        });
        results
    }

    pub(crate) fn gated_product(&self, x: &Buffer, rows: usize, gate: &CpuWeight, up: &CpuWeight) -> Buffer {
        let mut results = self.products(x, rows, &[(gate, Epilogue::none()), (up, Epilogue::none())]);
        let (up, gate) = (results.pop().expect("two products"), results.pop().expect("two products"));
        self.silu_mul(&gate, &up)
    }

    fn problem<'a>(
        &self,
        x: &'a [f32],
        rows: usize,
        weight: &'a CpuWeight,
        epilogue: &Epilogue<'a, Self>,
    ) -> Matmul<'a> {
        Matmul {
            x,
            rows,
            inputs: weight.inputs(),
            weights: weight.matrix(),
            bias: epilogue.bias.map(|bias| &**bias),
            activation: activation(epilogue.activation),
            residual: epilogue.residual.map(|residual| &**residual),
            arithmetic: self.shared.arithmetic,
        }
    }

    /// `silu(gate) * up`.
    fn silu_mul(&self, gate: &Buffer, up: &Buffer) -> Buffer {
        assert_eq!(gate.len(), up.len(), "products of different lengths");
        let mut out = self.buffer(gate.len());
        let parts = out.chunks_mut(PART).zip(gate.chunks(PART).zip(up.chunks(PART)));
        self.split(gate.len() * 8, parts, |(out, (gate, up))| self.shared.kernels.silu_mul(gate, up, out));
        out
    }
}

/// Rows and columns of a matrix product that a thread takes at a time: several parts per thread.
///
/// Few rows are never split: every part would read the same weights. Many rows are, rather than having parts so narrow
/// that they read all of x for a few columns.
fn part_of_product(threads: usize, rows: usize, outputs: usize) -> (usize, usize) {
    const NARROWEST: usize = 96;
    const LOWEST: usize = 48;
    let parts = 4 * threads;
    let columns = outputs.div_ceil(parts).next_multiple_of(16);
    if rows < 2 * LOWEST || columns >= NARROWEST {
        return (rows, columns);
    }
    let row_parts = parts.div_ceil(outputs.div_ceil(NARROWEST));
    (rows.div_ceil(row_parts).next_multiple_of(12).max(LOWEST), NARROWEST)
}

pub(crate) fn activation(activation: Activation) -> ocelli_kernels::Activation {
    match activation {
        Activation::None => ocelli_kernels::Activation::None,
        Activation::Gelu => ocelli_kernels::Activation::Gelu,
        Activation::GeluTanh => ocelli_kernels::Activation::GeluTanh,
        Activation::Silu => ocelli_kernels::Activation::Silu,
    }
}

#[cfg(test)]
mod tests {
    use super::part_of_product;

    #[test]
    fn parts_of_a_product_suit_its_shape() {
        // Decode: whole rows, so that weights are read once.
        assert_eq!(part_of_product(2, 1, 1536), (1, 192));
        assert_eq!(part_of_product(16, 8, 576), (8, 16));
        // Vision on many threads: rows are split before columns get narrow.
        assert_eq!(part_of_product(2, 1024, 768), (1024, 96));
        assert_eq!(part_of_product(16, 1024, 768), (132, 96));
        assert_eq!(part_of_product(64, 100, 64), (48, 96));
    }
}
