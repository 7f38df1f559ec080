//! Quantised matrices in the one form that every checkpoint format is read into.
//!
//! A matrix `[out, in]` of unsigned codes with one scale and one offset for every group of consecutive inputs of a
//! row: `weight = code * scale + offset`. MLX, GGUF and our own quantiser all fit it, so a backend knows one form.

use std::sync::Arc;

use half::f16;

use crate::bytes::SharedBytes;
use crate::error::{Error, Result};
use crate::tensor::TensorData;

/// Bits per code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeBits {
    /// Codes 0 to 15, two per byte along the row, the even element in the low half.
    Four,
    /// Codes 0 to 255, one per byte.
    Eight,
}

/// How the rows of a quantised matrix are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupedLayout {
    bits: CodeBits,
    inputs: usize,
    group: usize,
}

/// A quantised matrix `[out, in]`. Cloning copies no data.
#[derive(Clone, Debug)]
pub struct GroupedTensor {
    layout: GroupedLayout,
    outputs: usize,
    codes: SharedBytes,
    scales: Arc<Vec<f16>>,
    offsets: Arc<Vec<f16>>,
}

/// What a checkpoint holds of a matrix.
#[derive(Clone, Debug)]
pub enum WeightData {
    /// Numbers of a float type, in any shape.
    Float(TensorData),
    /// Codes, always `[out, in]`.
    Grouped(GroupedTensor),
}

impl CodeBits {
    /// Codes per byte.
    pub fn per_byte(self) -> usize {
        match self {
            Self::Four => 2,
            Self::Eight => 1,
        }
    }

    /// The largest code.
    pub fn max(self) -> u8 {
        match self {
            Self::Four => 15,
            Self::Eight => 255,
        }
    }
}

impl GroupedLayout {
    /// Rows of `inputs` weights in groups of `group`.
    ///
    /// # Errors
    /// [`Error::GroupSize`] unless `group` is 32 or 64.
    pub fn new(bits: CodeBits, inputs: usize, group: usize) -> Result<Self> {
        if group != 32 && group != 64 {
            return Err(Error::GroupSize { group });
        }
        Ok(Self { bits, inputs, group })
    }

    /// Bits per code.
    pub fn bits(&self) -> CodeBits {
        self.bits
    }

    /// Weights per row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Weights per group; the last group of a row may hold fewer and is filled up with code 0.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group)
    }

    /// Bytes of codes per row, filled up to whole groups.
    pub fn row_bytes(&self) -> usize {
        self.groups() * self.group_bytes()
    }

    /// Bytes of codes, scales and offsets per row.
    pub fn row_len(&self) -> usize {
        self.row_bytes() + self.groups() * 2 * size_of::<f16>()
    }

    /// Bytes of codes per group.
    pub fn group_bytes(&self) -> usize {
        self.group / self.bits.per_byte()
    }
}

impl GroupedTensor {
    /// A matrix of `outputs` rows: codes `[outputs, row_bytes]`, scales and offsets `[outputs, groups]`.
    ///
    /// # Errors
    /// [`Error::GroupedLength`] when a part is not as long as the layout says.
    pub fn new(
        layout: GroupedLayout,
        outputs: usize,
        codes: SharedBytes,
        scales: Vec<f16>,
        offsets: Vec<f16>,
    ) -> Result<Self> {
        let expect = |part, per_row: usize, actual: usize| {
            let shape = [outputs, layout.inputs];
            if outputs.checked_mul(per_row) == Some(actual) {
                return Ok(());
            }
            Err(Error::GroupedLength { part, shape, group: layout.group, actual })
        };
        expect("codes", layout.row_bytes(), codes.len())?;
        expect("scales", layout.groups(), scales.len())?;
        expect("offsets", layout.groups(), offsets.len())?;
        Ok(Self { layout, outputs, codes, scales: Arc::new(scales), offsets: Arc::new(offsets) })
    }

    /// Row ranges of one matrix, one below the other.
    ///
    /// # Errors
    /// [`Error::GroupedParts`] without parts or when their layouts differ.
    pub fn stack(parts: &[Self]) -> Result<Self> {
        let [first, rest @ ..] = parts else { return Err(Error::GroupedParts) };
        if rest.is_empty() {
            return Ok(first.clone());
        }
        if rest.iter().any(|part| part.layout != first.layout) {
            return Err(Error::GroupedParts);
        }
        let codes: Vec<u8> = parts.iter().flat_map(|part| part.codes.iter().copied()).collect();
        let scales = parts.iter().flat_map(|part| part.scales.iter().copied()).collect();
        let offsets = parts.iter().flat_map(|part| part.offsets.iter().copied()).collect();
        let outputs = parts.iter().map(|part| part.outputs).sum();
        Self::new(first.layout, outputs, codes.into(), scales, offsets)
    }

    /// How the rows are laid out.
    pub fn layout(&self) -> GroupedLayout {
        self.layout
    }

    /// Number of rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Weights per row.
    pub fn inputs(&self) -> usize {
        self.layout.inputs
    }

    /// All codes, `[outputs, layout.row_bytes()]`.
    pub fn codes(&self) -> &SharedBytes {
        &self.codes
    }

    /// All scales, `[outputs, layout.groups()]`.
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// All offsets, `[outputs, layout.groups()]`.
    pub fn offsets(&self) -> &[f16] {
        &self.offsets
    }

    /// Bytes of codes, scales and offsets.
    pub fn byte_len(&self) -> usize {
        self.codes.len() + size_of::<f16>() * (self.scales.len() + self.offsets.len())
    }

    /// The matrix with its rows in another order: row `i` is the row `order(i)` of this one.
    ///
    /// # Panics
    /// When `order` names a row that is not there.
    #[must_use]
    pub fn with_rows(&self, order: impl Fn(usize) -> usize) -> Self {
        let (bytes, groups) = (self.layout.row_bytes(), self.layout.groups());
        let rows: Vec<usize> = (0..self.outputs).map(order).collect();
        let pick = |values: &[f16]| rows.iter().flat_map(|row| values[row * groups..][..groups].to_vec()).collect();
        let codes: Vec<u8> = rows.iter().flat_map(|row| self.codes[row * bytes..][..bytes].iter().copied()).collect();
        let (scales, offsets) = (Arc::new(pick(&self.scales)), Arc::new(pick(&self.offsets)));
        Self { layout: self.layout, outputs: self.outputs, codes: codes.into(), scales, offsets }
    }

    /// The weights of one row, without the filling: `out` holds [`Self::inputs`] numbers.
    ///
    /// # Panics
    /// When there is no such row or `out` is shorter.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let layout = self.layout;
        let codes = &self.codes[row * layout.row_bytes()..][..layout.row_bytes()];
        let of_row = row * layout.groups()..(row + 1) * layout.groups();
        let parameters = self.scales[of_row.clone()].iter().zip(&self.offsets[of_row]);
        let out = &mut out[..layout.inputs];
        for ((out, codes), (scale, offset)) in
            out.chunks_mut(layout.group).zip(codes.chunks_exact(layout.group_bytes())).zip(parameters)
        {
            let (scale, offset) = (scale.to_f32(), offset.to_f32());
            match layout.bits {
                CodeBits::Eight => {
                    out.iter_mut().zip(codes).for_each(|(out, &code)| *out = f32::from(code) * scale + offset);
                }
                CodeBits::Four => {
                    for (pair, &byte) in out.chunks_mut(2).zip(codes) {
                        let codes = [byte & 15, byte >> 4];
                        pair.iter_mut().zip(codes).for_each(|(out, code)| *out = f32::from(code) * scale + offset);
                    }
                }
            }
        }
    }

    /// All weights, `[out, in]` row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.outputs * self.layout.inputs];
        if self.layout.inputs > 0 {
            let rows = weights.chunks_exact_mut(self.layout.inputs).enumerate();
            rows.for_each(|(row, out)| self.read_row(row, out));
        }
        weights
    }
}

impl WeightData {
    /// The extents, outermost first; `[out, in]` of codes.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Float(data) => data.shape().to_vec(),
            Self::Grouped(data) => vec![data.outputs(), data.inputs()],
        }
    }

    /// Number of weights.
    pub fn n_elements(&self) -> usize {
        match self {
            Self::Float(data) => data.n_elements(),
            Self::Grouped(data) => data.outputs() * data.inputs(),
        }
    }

    /// Bytes it takes in memory.
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Float(data) => data.bytes().len(),
            Self::Grouped(data) => data.byte_len(),
        }
    }

    /// All weights in order.
    ///
    /// # Errors
    /// [`Error::NotFloat`] for integers and the 8-bit floats.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self {
            Self::Float(data) => data.to_f32(),
            Self::Grouped(data) => Ok(data.to_f32()),
        }
    }

    /// What the numbers are stored as, in a word for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Float(data) => data.dtype().name(),
            Self::Grouped(data) => match data.layout.bits {
                CodeBits::Four => "Q4",
                CodeBits::Eight => "Q8",
            },
        }
    }
}

impl From<TensorData> for WeightData {
    fn from(data: TensorData) -> Self {
        Self::Float(data)
    }
}

impl From<GroupedTensor> for WeightData {
    fn from(data: GroupedTensor) -> Self {
        Self::Grouped(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halves(values: &[f32]) -> Vec<f16> {
        values.iter().map(|&value| f16::from_f32(value)).collect()
    }

    /// Two rows of 34 weights in groups of 32: row `r` has code `(r + i) % 16` at input `i`.
    fn sample(bits: CodeBits) -> GroupedTensor {
        let layout = GroupedLayout::new(bits, 34, 32).unwrap();
        let code = |row: usize, input: usize| if input < 34 { ((row + input) % 16) as u8 } else { 0 };
        let row_of = |row: usize| -> Vec<u8> {
            match bits {
                CodeBits::Eight => (0..64).map(|input| code(row, input)).collect(),
                CodeBits::Four => (0..32).map(|pair| code(row, 2 * pair) | code(row, 2 * pair + 1) << 4).collect(),
            }
        };
        let codes = [row_of(0), row_of(1)].concat();
        let (scales, offsets) = (halves(&[0.5, 1.0, 2.0, 4.0]), halves(&[-1.0, 0.0, 1.0, 2.0]));
        GroupedTensor::new(layout, 2, codes.into(), scales, offsets).unwrap()
    }

    #[test]
    fn weights_are_code_times_scale_plus_offset() {
        for bits in [CodeBits::Four, CodeBits::Eight] {
            let (tensor, mut row) = (sample(bits), [0.0; 34]);
            tensor.read_row(1, &mut row);
            assert_eq!((row[0], row[1], row[31]), (3.0, 5.0, 1.0), "{bits:?}");
            assert_eq!((row[32], row[33]), (6.0, 10.0), "the second group has its own numbers");
            let all = tensor.to_f32();
            assert_eq!((all.len(), all[0], all[33]), (68, -1.0, 1.0));
            assert_eq!(all[34..], row);
        }
    }

    #[test]
    fn rows_stack_and_change_places() {
        for bits in [CodeBits::Four, CodeBits::Eight] {
            let tensor = sample(bits);
            let swapped = tensor.with_rows(|row| 1 - row);
            assert_eq!(swapped.to_f32()[..34], tensor.to_f32()[34..]);
            let stacked = GroupedTensor::stack(&[tensor.clone(), swapped]).unwrap();
            assert_eq!((stacked.outputs(), stacked.byte_len()), (4, 2 * tensor.byte_len()));
            assert_eq!(stacked.to_f32()[34..68], stacked.to_f32()[68..102]);
        }
    }

    #[test]
    fn parts_of_different_matrices() {
        let parts = [sample(CodeBits::Four), sample(CodeBits::Eight)];
        assert!(matches!(GroupedTensor::stack(&parts), Err(Error::GroupedParts)));
        assert!(matches!(GroupedTensor::stack(&[]), Err(Error::GroupedParts)));
    }

    #[test]
    fn sizes_are_checked() {
        assert!(matches!(GroupedLayout::new(CodeBits::Four, 64, 16), Err(Error::GroupSize { group: 16 })));
        let layout = GroupedLayout::new(CodeBits::Four, 64, 32).unwrap();
        let build = |outputs, codes: usize, scales: usize, offsets: usize| {
            let parts = (vec![0; codes].into(), vec![f16::ZERO; scales], vec![f16::ZERO; offsets]);
            GroupedTensor::new(layout, outputs, parts.0, parts.1, parts.2)
        };
        assert!(build(3, 96, 6, 6).is_ok());
        for (outputs, codes, scales, offsets) in [(3, 95, 6, 6), (3, 96, 5, 6), (3, 96, 6, 7), (usize::MAX, 96, 6, 6)] {
            assert!(matches!(build(outputs, codes, scales, offsets), Err(Error::GroupedLength { .. })));
        }
        let error = build(3, 96, 6, 7).unwrap_err();
        assert_eq!(error.to_string(), "7 offsets are not those of a [3, 64] matrix in groups of 32");
    }

    #[test]
    fn either_kind_says_what_it_is() {
        let float = WeightData::from(TensorData::from_f32(vec![2, 1, 3], &[1.0; 6]).unwrap());
        let grouped = WeightData::from(sample(CodeBits::Four));
        assert_eq!((float.shape(), float.kind(), float.byte_len()), (vec![2, 1, 3], "F32", 24));
        assert_eq!((grouped.shape(), grouped.kind(), grouped.byte_len()), (vec![2, 34], "Q4", 64 + 16));
        assert_eq!((float.n_elements(), grouped.n_elements()), (6, 68));
        assert_eq!((float.to_f32().unwrap().len(), grouped.to_f32().unwrap().len()), (6, 68));
    }
}
