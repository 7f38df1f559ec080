//! Matrices quantised by MLX: `<module>.weight` (codes packed in U32), `<module>.scales` and `<module>.biases`.
//!
//! The codes of a row are one string of bits, lowest first: code `i` has the bits from `i * bits` on. For 4 and 8 bits
//! that is already how [`GroupedTensor`] holds them; other widths are spread to the next of the two. Groups of 128
//! become two of 64 with the same numbers.

use half::{bf16, f16};

use crate::bytes::SharedBytes;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::grouped::{CodeBits, GroupedLayout, GroupedTensor, WeightData};
use crate::tensor::TensorData;

/// A quantised tensor `[.., out, in]` as MLX stores it, checked.
#[derive(Clone, Debug)]
pub(crate) struct AffineTensor {
    packed: TensorData,
    scales: TensorData,
    biases: TensorData,
    bits: u32,
    group: usize,
}

impl AffineTensor {
    /// Checks that the three parts belong together; `name` is that of the weight, for errors.
    pub(crate) fn new(
        name: &str,
        packed: TensorData,
        scales: TensorData,
        biases: TensorData,
        (bits, group): (u32, usize),
    ) -> Result<Self> {
        let wrong = |message: String| Error::BadQuantizedTensor { tensor: name.to_owned(), message };
        let ([.., words], [.., groups]) = (packed.shape(), scales.shape()) else {
            return Err(wrong("its codes and scales have no extents".into()));
        };
        if packed.dtype() != Dtype::U32 {
            return Err(wrong(format!("its codes are {}, expected U32", packed.dtype())));
        }
        let rows = |data: &TensorData| data.shape()[..data.shape().len() - 1].to_vec();
        if scales.shape() != biases.shape() || rows(&packed) != rows(&scales) {
            let (packed, scales, biases) = (packed.shape(), scales.shape(), biases.shape());
            return Err(wrong(format!(
                "codes {packed:?}, scales {scales:?} and biases {biases:?} do not fit together"
            )));
        }
        let bits_of_row = words.checked_mul(32);
        let weights = groups.checked_mul(group);
        if bits_of_row.is_none() || bits_of_row != weights.and_then(|weights| weights.checked_mul(bits as usize)) {
            return Err(wrong(format!("{words} words per row are not {groups} groups of {group} {bits}-bit codes")));
        }
        if !scales.dtype().is_float() || !biases.dtype().is_float() {
            return Err(wrong(format!("its scales and biases are {} and {}", scales.dtype(), biases.dtype())));
        }
        Ok(Self { packed, scales, biases, bits, group })
    }

    pub(crate) fn shape(&self) -> Vec<usize> {
        let mut shape = self.packed.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.inputs();
        }
        shape
    }

    /// The matrices that this one is a stack of.
    pub(crate) fn parts(&self) -> Vec<Self> {
        if self.packed.shape().len() < 3 {
            return Vec::new();
        }
        let parts = self.packed.parts().into_iter().zip(self.scales.parts()).zip(self.biases.parts());
        parts.map(|((packed, scales), biases)| Self { packed, scales, biases, ..*self }).collect()
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.packed.bytes().len() + self.scales.bytes().len() + self.biases.bytes().len()
    }

    /// Bytes of what [`Self::load`] gives, unless it gives floats.
    pub(crate) fn loaded_len(&self) -> usize {
        let bits = if self.bits <= 4 { CodeBits::Four } else { CodeBits::Eight };
        let inputs = self.inputs();
        let rows = self.packed.shape()[..self.packed.shape().len() - 1].iter().product::<usize>();
        let layout = GroupedLayout::new(bits, inputs, self.group.min(64));
        layout.map_or(rows * inputs * size_of::<bf16>(), |layout| rows * layout.row_len())
    }

    /// Says that the bytes will not be read again soon.
    pub(crate) fn release(&self) {
        [&self.packed, &self.scales, &self.biases].into_iter().for_each(|part| part.bytes().release());
    }

    pub(crate) fn kind(&self) -> String {
        format!("{}-bit/{}", self.bits, self.group)
    }

    /// Codes, or bf16 numbers where a scale or an offset does not fit f16.
    pub(crate) fn load(&self) -> Result<WeightData> {
        let (scales, biases) = (self.scales.to_f32()?, self.biases.to_f32()?);
        let largest = scales.iter().fold(0f32, |largest, scale| largest.max(scale.abs()));
        let halves: Option<Vec<(f16, f16)>> = scales
            .iter()
            .zip(&biases)
            .map(|(&scale, &bias)| {
                let half = to_half(scale, largest)?;
                // What rounding takes from the scale, the offset gives back to the codes in the middle; zeros stay zero.
                let middle = if bias == 0.0 { 0.0 } else { f32::from(1u8 << (self.bits - 1)) };
                Some((half, to_half(bias + (scale - half.to_f32()) * middle, largest)?))
            })
            .collect();
        let Some((half_scales, half_biases)) =
            halves.map(|halves| halves.into_iter().unzip::<f16, f16, Vec<_>, Vec<_>>())
        else {
            return self.to_bfloat16(&scales, &biases);
        };
        let repeat = |values: Vec<f16>| match self.group {
            128 => values.iter().flat_map(|&value| [value, value]).collect(),
            _ => values,
        };
        let bits = if self.bits <= 4 { CodeBits::Four } else { CodeBits::Eight };
        let layout = GroupedLayout::new(bits, self.inputs(), self.group.min(64))?;
        let codes = match self.bits {
            4 | 8 => self.packed.bytes().clone(),
            _ => self.spread(bits),
        };
        Ok(GroupedTensor::new(layout, self.outputs(), codes, repeat(half_scales), repeat(half_biases))?.into())
    }

    fn inputs(&self) -> usize {
        self.scales.shape().last().map_or(0, |groups| groups * self.group)
    }

    /// Rows, of all matrices where there are several.
    fn outputs(&self) -> usize {
        self.scales.shape().split_last().map_or(0, |(_, rows)| rows.iter().product())
    }

    /// Every code as one byte, in order.
    fn unpacked(&self) -> impl Iterator<Item = u8> {
        // Rows are whole numbers of 32 codes and so of bytes: the matrix is one string of bits too.
        let (bits, mask) = (self.bits, (1u32 << self.bits) - 1);
        let mut bytes = self.packed.bytes().iter();
        let (mut window, mut held) = (0u32, 0);
        (0..self.outputs() * self.inputs()).map(move |_| {
            while held < bits {
                window |= u32::from(bytes.next().copied().unwrap_or(0)) << held;
                held += 8;
            }
            let code = window & mask;
            window >>= bits;
            held -= bits;
            code as u8
        })
    }

    fn spread(&self, bits: CodeBits) -> SharedBytes {
        let mut codes = self.unpacked();
        let bytes: Vec<u8> = match bits {
            CodeBits::Eight => codes.collect(),
            CodeBits::Four => {
                let pairs = self.outputs() * self.inputs() / 2;
                let mut next = || codes.next().expect("there are two codes per pair");
                (0..pairs).map(|_| next() | next() << 4).collect()
            }
        };
        bytes.into()
    }

    fn to_bfloat16(&self, scales: &[f32], biases: &[f32]) -> Result<WeightData> {
        let numbers = |(at, code): (usize, u8)| {
            let group = at / self.group;
            bf16::from_f32(f32::from(code) * scales[group] + biases[group]).to_le_bytes()
        };
        let bytes: Vec<u8> = self.unpacked().enumerate().flat_map(numbers).collect();
        Ok(TensorData::new(Dtype::BF16, vec![self.outputs(), self.inputs()], bytes.into())?.into())
    }
}

/// The number as f16, unless that loses more than a 1024th of it and of the matrix's largest step: the codes of the
/// other groups are coarser than that.
pub(crate) fn to_half(value: f32, largest_scale: f32) -> Option<f16> {
    let half = f16::from_f32(value);
    let loss = (half.to_f32() - value).abs();
    (half.is_finite() && loss <= value.abs().max(largest_scale) / 1024.0).then_some(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: usize = 128;

    /// The codes `i * 7 % 2^bits` of one row, packed as the format says: code by code, bit by bit.
    fn packed(bits: u32) -> (Vec<u8>, Vec<u8>) {
        let codes: Vec<u8> = (0..CODES).map(|at| (at * 7 % (1 << bits)) as u8).collect();
        let mut bytes = vec![0u8; CODES * bits as usize / 8];
        for (at, code) in codes.iter().enumerate() {
            for bit in 0..bits as usize {
                let place = at * bits as usize + bit;
                bytes[place / 8] |= (code >> bit & 1) << (place % 8);
            }
        }
        (codes, bytes)
    }

    fn tensor(bits: u32, group: usize, scale: f32) -> AffineTensor {
        let (_, bytes) = packed(bits);
        let packed = TensorData::new(Dtype::U32, vec![1, bytes.len() / 4], bytes.into()).unwrap();
        let groups = CODES / group;
        let numbers = |of: &dyn Fn(usize) -> f32| {
            TensorData::from_f32(vec![1, groups], &(0..groups).map(of).collect::<Vec<_>>()).unwrap()
        };
        let (scales, biases) = (numbers(&|at| scale * (at + 1) as f32), numbers(&|at| -(at as f32) * scale));
        AffineTensor::new("w.weight", packed, scales, biases, (bits, group)).unwrap()
    }

    #[test]
    fn every_width_and_group_is_read() {
        for bits in [2, 3, 4, 5, 6, 8] {
            for group in [32, 64, 128] {
                let tensor = tensor(bits, group, 0.5);
                let WeightData::Grouped(loaded) = tensor.load().unwrap() else { panic!("not grouped") };
                assert_eq!(loaded.layout().bits(), if bits <= 4 { CodeBits::Four } else { CodeBits::Eight });
                assert_eq!((loaded.layout().group(), tensor.shape()), (group.min(64), vec![1, CODES]));
                let (codes, _) = packed(bits);
                let expected: Vec<f32> = (0..CODES)
                    .map(|at| (f32::from(codes[at]) * (at / group + 1) as f32 - (at / group) as f32) * 0.5)
                    .collect();
                assert_eq!(loaded.to_f32(), expected, "{bits} bits, groups of {group}");
            }
        }
        assert_eq!(tensor(4, 64, 0.5).kind(), "4-bit/64");
    }

    #[test]
    fn four_and_eight_bits_stay_views() {
        for bits in [4, 8] {
            let tensor = tensor(bits, 64, 1.0);
            let WeightData::Grouped(loaded) = tensor.load().unwrap() else { panic!("not grouped") };
            assert_eq!(loaded.codes().as_ptr(), tensor.packed.bytes().as_ptr());
        }
    }

    #[test]
    fn a_stack_is_cut_into_its_matrices() {
        let words: Vec<u8> = (0..96u8).collect();
        let packed = TensorData::new(Dtype::U32, vec![2, 3, 4], words.into()).unwrap();
        let numbers = |first: f32| {
            let values: Vec<f32> = (0..6u8).map(|at| first + f32::from(at)).collect();
            TensorData::from_f32(vec![2, 3, 1], &values).unwrap()
        };
        let stack = AffineTensor::new("w.weight", packed, numbers(1.0), numbers(-1.0), (4, 32)).unwrap();
        let parts = stack.parts();
        assert_eq!((parts.len(), parts[1].shape()), (2, vec![3, 32]));
        let whole = stack.load().unwrap().to_f32().unwrap();
        assert_eq!(parts[1].load().unwrap().to_f32().unwrap(), whole[96..]);
        assert!(parts[0].parts().is_empty());
    }

    #[test]
    fn what_no_f16_holds_becomes_bfloat16() {
        for scale in [1e5, 1e-6] {
            let WeightData::Float(loaded) = tensor(3, 64, scale).load().unwrap() else { panic!("{scale} fits no f16") };
            assert_eq!((loaded.dtype(), loaded.shape()), (Dtype::BF16, &[1, CODES][..]));
            let (codes, _) = packed(3);
            for (at, (code, number)) in codes.iter().zip(loaded.to_f32().unwrap()).enumerate() {
                let expected = (f32::from(*code) * (at / 64 + 1) as f32 - (at / 64) as f32) * scale;
                assert!((number - expected).abs() <= expected.abs() / 256.0);
            }
        }
        // A tiny scale beside ordinary ones loses nothing that matters.
        assert_eq!(to_half(1e-7, 0.01).map(f16::to_f32), Some(f16::from_f32(1e-7).to_f32()));
        assert!(to_half(1e-7, 1e-7).is_none() && to_half(f32::NAN, 1.0).is_none());
    }

    #[test]
    fn parts_that_do_not_belong_together() {
        let words = |shape: &[usize]| {
            TensorData::new(Dtype::U32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()].into()).unwrap()
        };
        let floats =
            |shape: &[usize]| TensorData::from_f32(shape.to_vec(), &vec![0.0; shape.iter().product()]).unwrap();
        let new = |packed, scales, biases, numbers| match AffineTensor::new("w.weight", packed, scales, biases, numbers)
        {
            Err(Error::BadQuantizedTensor { tensor, message }) if tensor == "w.weight" => message,
            other => panic!("{other:?}"),
        };
        let (codes, four) = (|| words(&[2, 8]), (4, 64));
        assert!(new(words(&[]), floats(&[]), floats(&[]), four).contains("no extents"));
        assert!(new(floats(&[2, 8]), floats(&[2, 1]), floats(&[2, 1]), four).contains("codes are F32"));
        assert!(new(codes(), floats(&[2, 1]), floats(&[2, 2]), four).contains("do not fit together"));
        assert!(new(codes(), floats(&[3, 1]), floats(&[3, 1]), four).contains("do not fit together"));
        let message = new(codes(), floats(&[2, 1]), floats(&[2, 1]), (3, 64));
        assert_eq!(message, "8 words per row are not 1 groups of 64 3-bit codes");
        assert!(new(codes(), words(&[2, 1]), words(&[2, 1]), four).contains("scales and biases are U32"));
    }
}
