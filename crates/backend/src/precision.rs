//! [`Precision`]: in how many bits which weights of a model are held, and the quantising.
//!
//! Only matrices that are multiplied with are quantised; norms, biases and positions are few and stay floats. So does
//! the first layer of a vision tower: its inputs are pixels, whose range the later layers never see again.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ocelli_formats::{CodeBits, GroupedLayout, GroupedTensor, SharedBytes, TensorData};

use crate::error::Result;

/// What the float matrices of a checkpoint become when they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Quant {
    /// They stay what they are.
    #[default]
    None,
    /// Eight bits per weight.
    Q8,
    /// Four bits per weight, eight in the embedding table and the output layer.
    Q4,
}

impl Quant {
    /// `none`, `q8` or `q4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }
}

/// How a model's weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Precision {
    /// The decoder with its embedding table and output layer.
    pub text: Quant,
    /// The vision tower and what connects it to the decoder.
    pub vision: Quant,
    /// Weights that share a scale, 32 or 64; `None` chooses by the rows' length.
    pub group: Option<usize>,
}

/// Which part of a model a weight belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Part {
    /// The decoder.
    #[default]
    Text,
    /// The vision tower and its connector.
    Vision,
}

/// What a weight is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A matrix inside the model.
    Matrix,
    /// The embedding table, which may be the output layer, too.
    Embedding,
    /// The output layer.
    Output,
    /// The first layer of a vision tower.
    Patches,
    /// A norm, a bias, positions or a router: always floats.
    Values,
}

impl Precision {
    /// The layout that a float matrix of rows of `inputs` weights is quantised to; `None` where it stays as it is.
    pub fn layout(&self, part: Part, role: Role, inputs: usize) -> Option<GroupedLayout> {
        let quant = match part {
            Part::Text => self.text,
            Part::Vision => self.vision,
        };
        let bits = match (quant, role) {
            (Quant::None, _) | (_, Role::Patches | Role::Values) => return None,
            (Quant::Q4, Role::Matrix) => CodeBits::Four,
            _ => CodeBits::Eight,
        };
        let preferred = GroupedLayout::preferred(bits, inputs);
        Some(self.group.and_then(|group| GroupedLayout::new(bits, inputs, group).ok()).unwrap_or(preferred))
    }
}

/// Quantises a float matrix on `threads` threads, range of rows by range of rows; what was read is given back at once.
/// `None` where codes cannot hold it.
///
/// # Errors
/// When the tensor is not of a float type, or no matrix of the layout.
pub fn quantize(data: &TensorData, layout: GroupedLayout, threads: usize) -> Result<Option<GroupedTensor>> {
    let outputs = data.shape()[0];
    let mut codes = vec![0; outputs * layout.row_bytes()];
    let mut scales = vec![Default::default(); outputs * layout.groups()];
    let mut offsets = scales.clone();
    let rows = (PART / layout.inputs().max(1)).clamp(1, outputs.max(1));
    let (bytes, groups) = ((rows * layout.row_bytes()).max(1), (rows * layout.groups()).max(1));
    let parts = codes.chunks_mut(bytes).zip(scales.chunks_mut(groups)).zip(offsets.chunks_mut(groups)).enumerate();
    let (parts, failed, fits) = (Mutex::new(parts), Mutex::new(None), AtomicBool::new(true));
    let work = || {
        while fits.load(Ordering::Relaxed) {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((idx, ((codes, scales), offsets))) = next else { return };
            let range = idx * rows..outputs.min((idx + 1) * rows);
            match GroupedTensor::quantize(data, layout, range.clone()) {
                Ok(Some(part)) => {
                    codes.copy_from_slice(part.codes());
                    scales.copy_from_slice(part.scales());
                    offsets.copy_from_slice(part.offsets());
                    release_rows(data, range);
                }
                Ok(None) => fits.store(false, Ordering::Relaxed),
                Err(error) => {
                    fits.store(false, Ordering::Relaxed);
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.into());
    }
    if !fits.into_inner() {
        return Ok(None);
    }
    Ok(Some(GroupedTensor::new(layout, outputs, SharedBytes::from(codes), scales, offsets)?))
}

/// Gives the memory of some rows back to the system.
fn release_rows(data: &TensorData, rows: Range<usize>) {
    let row_bytes = data.bytes().len() / data.shape()[0].max(1);
    if let Some(bytes) = data.bytes().slice(rows.start * row_bytes..rows.end * row_bytes) {
        bytes.release();
    }
}

/// Weights that a thread quantises at a time: a few milliseconds of work, and a few hundred kilobytes of memory.
const PART: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(outputs: usize, inputs: usize) -> TensorData {
        let values: Vec<f32> = (0..outputs * inputs).map(|i| ((i * 37 + i / 11) % 101) as f32 / 50.0 - 1.0).collect();
        TensorData::from_f32(vec![outputs, inputs], &values).unwrap()
    }

    #[test]
    fn parts_and_roles_have_their_own_precision() {
        let precision = Precision { text: Quant::Q4, vision: Quant::Q8, group: None };
        let bits = |part, role, inputs| precision.layout(part, role, inputs).map(|layout| layout.bits());
        assert_eq!(bits(Part::Text, Role::Matrix, 576), Some(CodeBits::Four));
        assert_eq!(bits(Part::Text, Role::Embedding, 576), Some(CodeBits::Eight));
        assert_eq!(bits(Part::Text, Role::Output, 576), Some(CodeBits::Eight));
        assert_eq!(bits(Part::Vision, Role::Matrix, 768), Some(CodeBits::Eight));
        assert_eq!(bits(Part::Vision, Role::Patches, 768), None);
        assert_eq!(Precision::default().layout(Part::Text, Role::Matrix, 64), None);
        let of_32 = Precision { group: Some(32), ..precision };
        assert_eq!(of_32.layout(Part::Text, Role::Matrix, 576).map(|layout| layout.group()), Some(32));
    }

    #[test]
    fn threads_and_ranges_do_not_show_in_the_result() {
        let data = tensor(1200, 640);
        let layout = GroupedLayout::preferred(CodeBits::Four, 640);
        let whole = GroupedTensor::quantize(&data, layout, 0..1200).unwrap().unwrap();
        for threads in [1, 2, 5] {
            let parts = quantize(&data, layout, threads).unwrap().unwrap();
            assert_eq!(parts.codes()[..], whole.codes()[..]);
            assert_eq!((parts.scales(), parts.offsets()), (whole.scales(), whole.offsets()));
        }
        let empty = quantize(&tensor(0, 640), layout, 2).unwrap().unwrap();
        assert_eq!(empty.outputs(), 0);
    }

    #[test]
    fn what_codes_cannot_hold_is_left_alone_and_what_is_no_float_is_an_error() {
        let layout = GroupedLayout::preferred(CodeBits::Eight, 64);
        let mut values = vec![1.0; 64 * 9000];
        values[64 * 8000] = f32::NAN;
        let data = TensorData::from_f32(vec![9000, 64], &values).unwrap();
        assert!(quantize(&data, layout, 2).unwrap().is_none());
        let integers = TensorData::new(ocelli_formats::Dtype::I8, vec![2, 64], vec![0; 128].into()).unwrap();
        assert!(quantize(&integers, layout, 2).is_err());
    }
}
