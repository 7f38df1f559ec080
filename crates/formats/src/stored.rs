//! A tensor as a checkpoint stores it: what it is without decoding it, and its numbers when asked for.

use crate::affine::AffineTensor;
use crate::bytes::SharedBytes;
use crate::error::Result;
use crate::gguf::BlockTensor;
use crate::grouped::WeightData;
use crate::tensor::TensorData;

/// One tensor of a checkpoint, in whatever form the file has it. A view: cloning copies no data.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// As it is used.
    Plain(TensorData),
    /// Extents `[out, .., channels]` that are used as `[out, channels, ..]`.
    ChannelsLast(TensorData),
    /// Quantised by MLX.
    Affine(AffineTensor),
    /// In a GGUF file.
    Blocks(BlockTensor),
}

impl StoredTensor {
    pub(crate) fn affine(tensor: AffineTensor) -> Self {
        Self { form: Form::Affine(tensor) }
    }

    pub(crate) fn blocks(tensor: BlockTensor) -> Self {
        Self { form: Form::Blocks(tensor) }
    }

    /// Convolution weights as MLX keeps them.
    pub(crate) fn channels_last(tensor: TensorData) -> Self {
        Self { form: Form::ChannelsLast(tensor) }
    }

    /// The same tensor, its channels first, if that gives it these extents: for convolution weights as MLX keeps them
    /// in files that do not say who wrote them.
    #[must_use]
    pub fn turned_to(&self, shape: &[usize]) -> Option<Self> {
        let Form::Plain(data) = &self.form else { return None };
        let turned = Self::channels_last(data.clone());
        (data.shape().len() > 2 && turned.shape() == shape).then_some(turned)
    }

    /// The extents as models know them, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        match &self.form {
            Form::Plain(data) => data.shape().to_vec(),
            Form::ChannelsLast(data) => {
                let mut shape = data.shape().to_vec();
                shape[1..].rotate_right(1);
                shape
            }
            Form::Affine(tensor) => tensor.shape(),
            Form::Blocks(tensor) => tensor.shape().to_vec(),
        }
    }

    /// The matrices that this tensor is a stack of: views, one for each place of its first extent. None of what is no
    /// stack of matrices, or lies in a form that cannot be cut.
    pub fn parts(&self) -> Vec<Self> {
        match &self.form {
            Form::Plain(data) if data.shape().len() >= 3 => data.parts().into_iter().map(Self::from).collect(),
            Form::Affine(tensor) => tensor.parts().into_iter().map(Self::affine).collect(),
            Form::Plain(_) | Form::ChannelsLast(_) | Form::Blocks(_) => Vec::new(),
        }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Bytes it takes in the file, scales and offsets included.
    pub fn byte_len(&self) -> usize {
        match &self.form {
            Form::Plain(data) | Form::ChannelsLast(data) => data.bytes().len(),
            Form::Affine(tensor) => tensor.byte_len(),
            Form::Blocks(tensor) => tensor.byte_len(),
        }
    }

    /// Bytes that [`StoredTensor::load`] takes in memory.
    pub fn loaded_len(&self) -> usize {
        match &self.form {
            Form::Plain(data) | Form::ChannelsLast(data) => data.bytes().len(),
            Form::Affine(tensor) => tensor.loaded_len(),
            Form::Blocks(tensor) => tensor.loaded_len(),
        }
    }

    /// Says that the stored bytes will not be read again soon: see [`SharedBytes::release`].
    pub fn release(&self) {
        match &self.form {
            Form::Plain(data) | Form::ChannelsLast(data) => data.bytes().release(),
            Form::Affine(tensor) => tensor.release(),
            Form::Blocks(tensor) => tensor.release(),
        }
    }

    /// The element type of the file in a word, such as `BF16`, `Q4_K` or, for MLX's 4-bit codes in groups of 64,
    /// `4-bit/64`.
    pub fn kind(&self) -> String {
        match &self.form {
            Form::Plain(data) | Form::ChannelsLast(data) => data.dtype().name().to_owned(),
            Form::Affine(tensor) => tensor.kind(),
            Form::Blocks(tensor) => tensor.kind().to_owned(),
        }
    }

    /// Whether it holds codes.
    pub fn is_quantized(&self) -> bool {
        match &self.form {
            Form::Plain(_) | Form::ChannelsLast(_) => false,
            Form::Affine(_) => true,
            Form::Blocks(tensor) => tensor.is_quantized(),
        }
    }

    /// Whether its elements are numbers that [`StoredTensor::load`] gives as floats or codes, and no integers.
    pub fn is_float(&self) -> bool {
        match &self.form {
            Form::Plain(data) | Form::ChannelsLast(data) => data.dtype().is_float(),
            Form::Affine(_) => true,
            Form::Blocks(tensor) => tensor.is_float(),
        }
    }

    /// The numbers, in the shape [`StoredTensor::shape`] (codes: flattened to rows). Plain tensors and codes that are
    /// stored as [`crate::GroupedTensor`] has them stay views of the file.
    ///
    /// # Errors
    /// [`crate::Error::NotFloat`] for scales and offsets of a type that holds no floats.
    pub fn load(&self) -> Result<WeightData> {
        match &self.form {
            Form::Plain(data) => Ok(data.clone().into()),
            Form::ChannelsLast(data) => Ok(channels_first(data)?.into()),
            Form::Affine(tensor) => tensor.load(),
            Form::Blocks(tensor) => tensor.load(),
        }
    }
}

impl From<TensorData> for StoredTensor {
    fn from(data: TensorData) -> Self {
        Self { form: Form::Plain(data) }
    }
}

/// `[out, .., channels]` -> `[out, channels, ..]`.
fn channels_first(data: &TensorData) -> Result<TensorData> {
    let (size, mut shape) = (data.dtype().size(), data.shape().to_vec());
    shape[1..].rotate_right(1);
    let (channels, places) = (shape[1], shape[2..].iter().product::<usize>());
    let mut bytes = vec![0; data.bytes().len()];
    let filter = channels * places * size;
    if filter > 0 {
        for (from, to) in data.bytes().chunks_exact(filter).zip(bytes.chunks_exact_mut(filter)) {
            for (at, element) in from.chunks_exact(size).enumerate() {
                let (place, channel) = (at / channels, at % channels);
                to[(channel * places + place) * size..][..size].copy_from_slice(element);
            }
        }
    }
    TensorData::new(data.dtype(), shape, SharedBytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_first() {
        // [out 1, height 2, width 2, channels 3], numbered in memory order.
        let values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let stored = StoredTensor::channels_last(TensorData::from_f32(vec![1, 2, 2, 3], &values).unwrap());
        assert_eq!((stored.shape(), stored.n_elements(), stored.byte_len()), (vec![1, 3, 2, 2], 12, 48));
        let loaded = stored.load().unwrap();
        assert_eq!(loaded.shape(), [1, 3, 2, 2]);
        assert_eq!(loaded.to_f32().unwrap(), [0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.]);
        let unsaid = StoredTensor::from(TensorData::from_f32(vec![1, 4, 3], &values).unwrap());
        let turned = unsaid.turned_to(&[1, 3, 4]).unwrap();
        assert_eq!(turned.load().unwrap().to_f32().unwrap(), loaded.to_f32().unwrap());
        assert!(unsaid.turned_to(&[1, 4, 3]).is_none() && unsaid.turned_to(&[3, 4]).is_none());
    }

    #[test]
    fn a_stack_is_cut_into_its_matrices() {
        let values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let parts = StoredTensor::from(TensorData::from_f32(vec![3, 2, 2], &values).unwrap()).parts();
        assert_eq!((parts.len(), parts[1].shape(), parts[1].byte_len()), (3, vec![2, 2], 16));
        assert_eq!(parts[1].load().unwrap().to_f32().unwrap(), [4., 5., 6., 7.]);
        for shape in [vec![12], vec![3, 4]] {
            assert!(StoredTensor::from(TensorData::from_f32(shape, &values).unwrap()).parts().is_empty());
        }
        let empty = StoredTensor::from(TensorData::from_f32(vec![0, 2, 2], &[]).unwrap());
        assert!(empty.parts().is_empty());
    }

    #[test]
    fn nothing_is_nothing() {
        let stored = StoredTensor::channels_last(TensorData::from_f32(vec![2, 0, 2, 3], &[]).unwrap());
        assert_eq!(stored.load().unwrap().shape(), [2, 3, 0, 2]);
    }
}
