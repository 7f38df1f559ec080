//! [`CpuWeight`]: floats in the type of their file, codes packed for the kernels.

use ocelli_backend::PackedWeight;
use ocelli_formats::{CodeBits, Dtype, GroupedLayout, GroupedTensor, SharedBytes, TensorData, WeightData};
use ocelli_kernels::{GroupedRows, PackedDims, PackedMatrix, WeightMatrix};

use crate::pool::ThreadPool;

/// A matrix `[out, in]`. Floats stay where they are, usually in the mapped file; codes are packed once.
pub struct CpuWeight {
    form: Form,
    outputs: usize,
    inputs: usize,
}

enum Form {
    F32(SharedBytes),
    Bf16(SharedBytes),
    F16(SharedBytes),
    Packed(PackedDims, SharedBytes),
}

/// A matrix as kernels take it.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    Float(WeightMatrix<'a>),
    Packed(PackedMatrix<'a>),
}

impl CpuWeight {
    /// Takes a matrix over; float64 becomes float32. Threads share the packing of codes.
    pub(crate) fn new(data: WeightData, threads: &ThreadPool) -> Result<Self, String> {
        let shape = match &data {
            WeightData::Float(data) => data.shape().to_vec(),
            WeightData::Grouped(data) => vec![data.outputs(), data.inputs()],
        };
        let &[outputs, inputs] = &shape[..] else {
            return Err(format!("a matrix was expected, not shape {shape:?}"));
        };
        if inputs == 0 {
            return Err(format!("a matrix [{outputs}, 0] multiplies nothing"));
        }
        let form = match data {
            WeightData::Float(data) => float(&data)?,
            WeightData::Grouped(data) => packed(&data, threads),
        };
        Ok(Self { form, outputs, inputs })
    }

    /// The matrix for kernels.
    pub(crate) fn matrix(&self) -> Matrix<'_> {
        match &self.form {
            Form::F32(bytes) => Matrix::Float(WeightMatrix::F32(bytes)),
            Form::Bf16(bytes) => Matrix::Float(WeightMatrix::Bf16(bytes)),
            Form::F16(bytes) => Matrix::Float(WeightMatrix::F16(bytes)),
            Form::Packed(dims, bytes) => Matrix::Packed(PackedMatrix::new(*dims, bytes)),
        }
    }

    /// The bytes of packed codes; `None` for floats.
    pub(crate) fn packed(&self) -> Option<PackedWeight> {
        let Form::Packed(dims, bytes) = &self.form else { return None };
        let bits = match dims.bits {
            ocelli_kernels::CodeBits::Four => CodeBits::Four,
            ocelli_kernels::CodeBits::Eight => CodeBits::Eight,
        };
        let layout = GroupedLayout::new(bits, dims.inputs, dims.group).expect("codes were packed from such a layout");
        Some(PackedWeight { layout, outputs: dims.outputs, bytes: bytes.clone() })
    }

    /// The weight whose codes [`Self::packed`] gave.
    pub(crate) fn unpack(packed: PackedWeight) -> Result<Self, String> {
        let PackedWeight { layout, outputs, bytes } = packed;
        let dims = packed_dims(layout, outputs);
        let expected = dims.packed_len();
        if dims.inputs == 0 || bytes.len() != expected {
            return Err(format!("{} bytes are not a packed matrix of {expected}", bytes.len()));
        }
        Ok(Self { form: Form::Packed(dims, bytes), outputs, inputs: dims.inputs })
    }

    /// Elements of a row.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of rows.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }
}

fn float(data: &TensorData) -> Result<Form, String> {
    match data.dtype() {
        Dtype::F32 => Ok(Form::F32(data.bytes().clone())),
        Dtype::BF16 => Ok(Form::Bf16(data.bytes().clone())),
        Dtype::F16 => Ok(Form::F16(data.bytes().clone())),
        Dtype::F64 => Ok(Form::F32(narrowed(data).map_err(|error| error.to_string())?)),
        dtype => Err(format!("the cpu backend cannot multiply by {} weights", dtype.name())),
    }
}

fn narrowed(data: &TensorData) -> ocelli_formats::Result<SharedBytes> {
    Ok(TensorData::from_f32(data.shape().to_vec(), &data.to_f32()?)?.bytes().clone())
}

fn packed(data: &GroupedTensor, threads: &ThreadPool) -> Form {
    let dims = packed_dims(data.layout(), data.outputs());
    let rows = GroupedRows { dims, codes: data.codes(), scales: data.scales(), offsets: data.offsets() };
    let len = dims.packed_len();
    let mut bytes = vec![0; len + LINE];
    let start = bytes.as_ptr().align_offset(LINE).min(LINE);
    let panels = (PART / dims.panel_len()).max(1);
    let parts = bytes[start..start + len].chunks_mut(panels * dims.panel_len()).enumerate();
    threads.for_each(parts, |(part, out)| {
        let first = part * panels;
        rows.panels(first..dims.panels().min(first + panels)).pack(out);
    });
    let bytes = SharedBytes::from(bytes).slice(start..start + len).expect("within the bytes");
    Form::Packed(dims, bytes)
}

fn packed_dims(layout: GroupedLayout, outputs: usize) -> PackedDims {
    let bits = match layout.bits() {
        CodeBits::Four => ocelli_kernels::CodeBits::Four,
        CodeBits::Eight => ocelli_kernels::CodeBits::Eight,
    };
    PackedDims { outputs, inputs: layout.inputs(), group: layout.group(), bits }
}

/// Kernels read packed weights in lines of so many bytes.
const LINE: usize = 64;

/// Bytes that a thread packs at a time.
const PART: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn new(data: impl Into<WeightData>) -> Result<CpuWeight, String> {
        CpuWeight::new(data.into(), &ThreadPool::new(2).unwrap())
    }

    #[test]
    fn float64_is_narrowed_once() {
        let bytes: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let weight = new(TensorData::new(Dtype::F64, vec![1, 2], bytes.into()).unwrap()).unwrap();
        let Matrix::Float(WeightMatrix::F32(bytes)) = weight.matrix() else { panic!("not float32") };
        assert_eq!(bytes, [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        assert_eq!((weight.outputs(), weight.inputs()), (1, 2));
    }

    #[test]
    fn what_cannot_be_multiplied_is_refused() {
        let integers = TensorData::new(Dtype::I8, vec![1, 2], vec![0; 2].into()).unwrap();
        assert_eq!(new(integers).err().unwrap(), "the cpu backend cannot multiply by I8 weights");
        let vector = TensorData::from_f32(vec![2], &[0.0; 2]).unwrap();
        assert_eq!(new(vector).err().unwrap(), "a matrix was expected, not shape [2]");
        let empty = TensorData::from_f32(vec![3, 0], &[]).unwrap();
        assert_eq!(new(empty).err().unwrap(), "a matrix [3, 0] multiplies nothing");
    }

    #[test]
    fn codes_are_packed_in_aligned_lines() {
        // Several parts for the threads, the last of them not a whole panel.
        let (outputs, inputs) = (16 * 300 + 5, 100);
        let layout = GroupedLayout::new(CodeBits::Eight, inputs, 32).unwrap();
        let codes: Vec<u8> = (0..outputs * layout.row_bytes()).map(|at| (at % 251) as u8).collect();
        let factors: Vec<f16> = (0..outputs * layout.groups()).map(|at| f16::from_f32(at as f32 / 8192.0)).collect();
        let data = GroupedTensor::new(layout, outputs, codes.into(), factors.clone(), factors).unwrap();
        let weight = new(data.clone()).unwrap();
        let Form::Packed(_, bytes) = &weight.form else { panic!("not packed") };
        assert_eq!(bytes.as_ptr() as usize % LINE, 0);
        let Matrix::Packed(matrix) = weight.matrix() else { panic!("not packed") };
        let (mut actual, mut expected) = ([0.0; 100], [0.0; 100]);
        for row in [0, 15, 16, outputs / 2, outputs - 1] {
            matrix.dequantize_row(row, &mut actual);
            data.read_row(row, &mut expected);
            assert!(actual.iter().zip(&expected).all(|(a, e)| (a - e).abs() <= 1e-6 * e.abs()), "row {row}");
        }
    }

    #[test]
    fn packed_bytes_are_the_same_weight_again() {
        let layout = GroupedLayout::new(CodeBits::Four, 96, 32).unwrap();
        let codes: Vec<u8> = (0..21 * layout.row_bytes()).map(|at| (at % 251) as u8).collect();
        let factors: Vec<f16> = (0..21 * layout.groups()).map(|at| f16::from_f32(at as f32 / 64.0)).collect();
        let data = GroupedTensor::new(layout, 21, codes.into(), factors.clone(), factors).unwrap();
        let weight = new(data).unwrap();
        let packed = weight.packed().unwrap();
        assert_eq!((packed.layout, packed.outputs), (layout, 21));
        let again = CpuWeight::unpack(packed.clone()).unwrap();
        let (Matrix::Packed(first), Matrix::Packed(second)) = (weight.matrix(), again.matrix()) else { panic!() };
        let (mut expected, mut actual) = ([0.0; 96], [0.0; 96]);
        for row in 0..21 {
            first.dequantize_row(row, &mut expected);
            second.dequantize_row(row, &mut actual);
            assert_eq!(actual, expected);
        }
        let short = PackedWeight { outputs: 33, ..packed };
        assert!(CpuWeight::unpack(short).err().unwrap().contains("are not a packed matrix of"));
        assert!(new(TensorData::from_f32(vec![1, 2], &[0.0; 2]).unwrap()).unwrap().packed().is_none());
    }
}
