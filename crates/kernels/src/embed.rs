//! Rows of a weight matrix as float32: token embeddings.

use crate::dispatch::Kernels;
use crate::simd::Simd;
use crate::weights::{Element, WeightMatrix, decode_part};

impl Kernels {
    /// Rows `ids` of `table` `[count, width]` -> `out` `[ids, width]`.
    ///
    /// # Panics
    /// If an id is not below the table's count, or the output does not fit.
    #[track_caller]
    pub fn embed(&self, table: WeightMatrix<'_>, width: usize, ids: &[u32], out: &mut [f32]) {
        assert_eq!(ids.len() * width, out.len(), "{} ids of {width} elements", ids.len());
        if width == 0 {
            return;
        }
        let (row_len, embed) = (
            width * table.element_size(),
            match table {
                WeightMatrix::F32(_) => self.embed_f32,
                WeightMatrix::Bf16(_) => self.embed_bf16,
                WeightMatrix::F16(_) => self.embed_f16,
            },
        );
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
            let row = table.bytes().get(id as usize * row_len..).and_then(|rest| rest.get(..row_len));
            let row = row.unwrap_or_else(|| panic!("id {id} of {}", table.bytes().len() / row_len));
            embed(row, out);
        }
    }
}

/// Converts one row.
#[inline(always)]
pub(crate) fn embed<S: Simd, E: Element<S>>(simd: S, row: &[u8], out: &mut [f32]) {
    let (chunks, rest) = E::chunks(row);
    let (outs, out_rest) = S::chunks_mut(out);
    for (chunk, out) in chunks.iter().zip(outs) {
        simd.store(E::load(simd, chunk), out);
    }
    if !out_rest.is_empty() {
        let tail = decode_part::<S, E>(rest);
        let len = out_rest.len();
        out_rest.copy_from_slice(&tail.as_ref()[..len]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::testing::{SIZES, bits, numbers};

    pub(crate) fn conversion_is_exact(kernels: &Kernels) {
        for width in SIZES {
            let mut values = numbers(1, 5 * width);
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-7, -0.0, 6e-8];
            for (value, special) in values.iter_mut().rev().zip(special) {
                *value = special;
            }
            let narrow: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            let expected: Vec<f32> = narrow.iter().map(|value| value.to_f32()).collect();
            let bytes: Vec<u8> = narrow.iter().flat_map(|value| value.to_le_bytes()).collect();
            check(kernels, |bytes| WeightMatrix::Bf16(bytes), &bytes, &expected, width);

            let narrow: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            let expected: Vec<f32> = narrow.iter().map(|value| value.to_f32()).collect();
            let bytes: Vec<u8> = narrow.iter().flat_map(|value| value.to_le_bytes()).collect();
            check(kernels, |bytes| WeightMatrix::F16(bytes), &bytes, &expected, width);

            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            check(kernels, |bytes| WeightMatrix::F32(bytes), &bytes, &values, width);
        }
    }

    fn check(kernels: &Kernels, matrix: fn(&[u8]) -> WeightMatrix<'_>, bytes: &[u8], expected: &[f32], width: usize) {
        let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
        let ids = [4, 0, 2, 2, 3];
        let mut out = vec![7.0; ids.len() * width];
        kernels.embed(matrix(&shifted[1..]), width, &ids, &mut out);
        let expected: Vec<f32> =
            ids.iter().flat_map(|&id| &expected[id as usize * width..][..width]).copied().collect();
        assert_eq!(bits(&out), bits(&expected), "width {width}");
    }

    #[test]
    #[should_panic(expected = "id 3 of 3")]
    fn an_id_beyond_the_table_is_refused() {
        let kernels = Kernels::select(Some("scalar")).unwrap();
        kernels.embed(WeightMatrix::Bf16(&[0; 12]), 2, &[0, 3], &mut [0.0; 4]);
    }
}
