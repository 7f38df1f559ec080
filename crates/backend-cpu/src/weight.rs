//! [`CpuWeight`]: a matrix in the type of its file.

use ocelli_formats::{Dtype, TensorData, WeightData};
use ocelli_kernels::WeightMatrix;

/// A matrix `[out, in]`; the bytes stay where they are, usually in the mapped file.
pub struct CpuWeight {
    data: TensorData,
    element: Element,
    inputs: usize,
}

enum Element {
    F32,
    Bf16,
    F16,
}

impl CpuWeight {
    /// Takes a matrix over; float64 becomes float32, and so do codes.
    pub(crate) fn new(data: WeightData) -> Result<Self, String> {
        let data = match data {
            WeightData::Float(data) => data,
            WeightData::Grouped(data) => {
                let shape = vec![data.outputs(), data.inputs()];
                TensorData::from_f32(shape, &data.to_f32()).map_err(|error| error.to_string())?
            }
        };
        let &[outputs, inputs] = data.shape() else {
            return Err(format!("a matrix was expected, not shape {:?}", data.shape()));
        };
        if inputs == 0 {
            return Err(format!("a matrix [{outputs}, 0] multiplies nothing"));
        }
        let (data, element) = match data.dtype() {
            Dtype::F32 => (data, Element::F32),
            Dtype::BF16 => (data, Element::Bf16),
            Dtype::F16 => (data, Element::F16),
            Dtype::F64 => (narrowed(&data).map_err(|error| error.to_string())?, Element::F32),
            dtype => return Err(format!("the cpu backend cannot multiply by {} weights", dtype.name())),
        };
        Ok(Self { data, element, inputs })
    }

    /// The matrix for kernels.
    pub(crate) fn matrix(&self) -> WeightMatrix<'_> {
        match self.element {
            Element::F32 => WeightMatrix::F32(self.data.bytes()),
            Element::Bf16 => WeightMatrix::Bf16(self.data.bytes()),
            Element::F16 => WeightMatrix::F16(self.data.bytes()),
        }
    }

    /// Elements of a row.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of rows.
    pub(crate) fn outputs(&self) -> usize {
        self.data.shape()[0]
    }
}

fn narrowed(data: &TensorData) -> ocelli_formats::Result<TensorData> {
    TensorData::from_f32(data.shape().to_vec(), &data.to_f32()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float64_is_narrowed_once() {
        let bytes: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let weight = CpuWeight::new(TensorData::new(Dtype::F64, vec![1, 2], bytes.into()).unwrap().into()).unwrap();
        let WeightMatrix::F32(bytes) = weight.matrix() else { panic!("not float32") };
        assert_eq!(bytes, [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        assert_eq!((weight.outputs(), weight.inputs()), (1, 2));
    }

    #[test]
    fn what_cannot_be_multiplied_is_refused() {
        let integers = TensorData::new(Dtype::I8, vec![1, 2], vec![0; 2].into()).unwrap();
        assert_eq!(CpuWeight::new(integers.into()).err().unwrap(), "the cpu backend cannot multiply by I8 weights");
        let vector = TensorData::from_f32(vec![2], &[0.0; 2]).unwrap();
        assert_eq!(CpuWeight::new(vector.into()).err().unwrap(), "a matrix was expected, not shape [2]");
        let empty = TensorData::from_f32(vec![3, 0], &[]).unwrap();
        assert_eq!(CpuWeight::new(empty.into()).err().unwrap(), "a matrix [3, 0] multiplies nothing");
    }
}
