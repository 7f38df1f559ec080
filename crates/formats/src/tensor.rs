//! One stored tensor: type, shape and a view of its bytes.

use half::f16;

use crate::bytes::SharedBytes;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// A tensor as it lies in a file: row-major, little-endian, at any alignment. Cloning copies no data.
#[derive(Clone, Debug)]
pub struct TensorData {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: SharedBytes,
}

impl TensorData {
    /// Wraps `bytes` as a tensor of `shape` (an empty shape is a single number).
    ///
    /// # Errors
    /// [`Error::TensorLength`] when the byte count is not that of the shape (also when the shape overflows).
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: SharedBytes) -> Result<Self> {
        if byte_len(dtype, &shape) != Some(bytes.len()) {
            return Err(Error::TensorLength { dtype, shape, actual: bytes.len() });
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// An f32 tensor from numbers in memory, mostly for tests.
    ///
    /// # Errors
    /// [`Error::TensorLength`] when there are not as many values as the shape holds.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(Dtype::F32, shape, bytes.into())
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The raw bytes, `n_elements() * dtype().size()` of them.
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// The tensors that this one is a stack of, along its first extent; none of a single number. No data is copied.
    pub(crate) fn parts(&self) -> Vec<Self> {
        let Some((&count, shape)) = self.shape.split_first() else { return Vec::new() };
        let len = self.bytes.len() / count.max(1);
        let part = |idx: usize| {
            let bytes = self.bytes.slice(idx * len..(idx + 1) * len).expect("the extents say so many bytes");
            Self { dtype: self.dtype, shape: shape.to_vec(), bytes }
        };
        (0..count).map(part).collect()
    }

    /// All elements as f32, in order. F64 is rounded; F16 and BF16 are exact.
    ///
    /// # Errors
    /// [`Error::NotFloat`] for integers and the 8-bit floats.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.n_elements()];
        self.read_f32(0, &mut values)?;
        Ok(values)
    }

    /// As many elements as `out` holds as f32, from element `start` on.
    ///
    /// # Errors
    /// As [`TensorData::to_f32`].
    ///
    /// # Panics
    /// When there are not as many.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<()> {
        let size = self.dtype.size();
        let bytes = &self.bytes[start * size..(start + out.len()) * size];
        match self.dtype {
            Dtype::F64 => widen(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::F32 => widen(bytes, out, f32::from_le_bytes),
            Dtype::F16 => widen(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            // As `bf16::to_f32`, without its branch for signalling NaNs, which keeps the loop from being vectorised.
            Dtype::BF16 => widen(bytes, out, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
            dtype => return Err(Error::NotFloat { dtype, shape: self.shape.clone() }),
        }
        Ok(())
    }

    /// All elements as i64, in order; `Bool` gives 0 and 1.
    ///
    /// # Errors
    /// [`Error::NotInteger`] for floats, [`Error::IntegerTooLarge`] for a U64 above `i64::MAX`.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => Ok(self.map(i64::from_le_bytes)),
            Dtype::I32 => Ok(self.map(|bytes| i32::from_le_bytes(bytes).into())),
            Dtype::I16 => Ok(self.map(|bytes| i16::from_le_bytes(bytes).into())),
            Dtype::I8 => Ok(self.map(|bytes| i8::from_le_bytes(bytes).into())),
            Dtype::U64 => self.map(u64::from_le_bytes).into_iter().map(signed).collect(),
            Dtype::U32 => Ok(self.map(|bytes| u32::from_le_bytes(bytes).into())),
            Dtype::U16 => Ok(self.map(|bytes| u16::from_le_bytes(bytes).into())),
            Dtype::U8 => Ok(self.map(|[byte]: [u8; 1]| byte.into())),
            Dtype::Bool => Ok(self.map(|[byte]: [u8; 1]| (byte != 0).into())),
            dtype => Err(Error::NotInteger { dtype, shape: self.shape.clone() }),
        }
    }

    /// Reads element by element, so no alignment is assumed.
    fn map<const SIZE: usize, T>(&self, read: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
        let (elements, _) = self.bytes.as_chunks::<SIZE>();
        elements.iter().map(|bytes| read(*bytes)).collect()
    }
}

/// Bytes a tensor takes; `None` on overflow.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |bytes, &extent| bytes.checked_mul(extent))
}

/// Reads element by element, so no alignment is assumed.
fn widen<const SIZE: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; SIZE]) -> f32) {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    out.iter_mut().zip(elements).for_each(|(out, bytes)| *out = read(*bytes));
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::IntegerTooLarge { value })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn tensor<const SIZE: usize>(dtype: Dtype, elements: &[[u8; SIZE]]) -> TensorData {
        TensorData::new(dtype, vec![elements.len()], elements.concat().into()).unwrap()
    }

    #[test]
    fn floats_widen_to_f32() {
        let f64s = tensor(Dtype::F64, &[1.5f64.to_le_bytes(), (-0.25f64).to_le_bytes()]);
        let f32s = TensorData::from_f32(vec![2], &[1.5, -0.25]).unwrap();
        let f16s = tensor(Dtype::F16, &[f16::from_f32(1.5).to_le_bytes(), f16::from_f32(-0.25).to_le_bytes()]);
        let bf16s = tensor(Dtype::BF16, &[bf16::from_f32(1.5).to_le_bytes(), bf16::from_f32(-0.25).to_le_bytes()]);
        for floats in [f64s, f32s, f16s, bf16s] {
            assert_eq!(floats.to_f32().unwrap(), [1.5, -0.25], "{}", floats.dtype());
            assert!(matches!(floats.to_i64(), Err(Error::NotInteger { .. })));
        }
    }

    #[test]
    fn integers_widen_to_i64() {
        let cases = [
            tensor(Dtype::I64, &[5i64.to_le_bytes(), (-1i64).to_le_bytes()]),
            tensor(Dtype::I32, &[5i32.to_le_bytes(), (-1i32).to_le_bytes()]),
            tensor(Dtype::I16, &[5i16.to_le_bytes(), (-1i16).to_le_bytes()]),
            tensor(Dtype::I8, &[5i8.to_le_bytes(), (-1i8).to_le_bytes()]),
        ];
        for integers in cases {
            assert_eq!(integers.to_i64().unwrap(), [5, -1], "{}", integers.dtype());
            assert!(matches!(integers.to_f32(), Err(Error::NotFloat { .. })));
        }
        assert_eq!(tensor(Dtype::U64, &[9u64.to_le_bytes()]).to_i64().unwrap(), [9]);
        assert_eq!(tensor(Dtype::U32, &[u32::MAX.to_le_bytes()]).to_i64().unwrap(), [i64::from(u32::MAX)]);
        assert_eq!(tensor(Dtype::U16, &[u16::MAX.to_le_bytes()]).to_i64().unwrap(), [65535]);
        assert_eq!(tensor(Dtype::U8, &[[255]]).to_i64().unwrap(), [255]);
        assert_eq!(tensor(Dtype::Bool, &[[0], [1], [2]]).to_i64().unwrap(), [0, 1, 1]);
    }

    #[test]
    fn u64_beyond_i64_is_an_error() {
        let error = tensor(Dtype::U64, &[u64::MAX.to_le_bytes()]).to_i64().unwrap_err();
        assert!(matches!(error, Error::IntegerTooLarge { value: u64::MAX }));
    }

    #[test]
    fn length_must_match_the_shape() {
        let short = TensorData::new(Dtype::F32, vec![2, 3], vec![0; 20].into()).unwrap_err();
        assert_eq!(short.to_string(), "a F32 tensor of shape [2, 3] does not take 20 bytes");
        assert!(TensorData::new(Dtype::F32, vec![usize::MAX, 8], vec![].into()).is_err());
        let scalar = TensorData::new(Dtype::F32, vec![], vec![0; 4].into()).unwrap();
        assert_eq!((scalar.n_elements(), scalar.to_f32().unwrap()), (1, vec![0.0]));
        let empty = TensorData::new(Dtype::F32, vec![0, 5], vec![].into()).unwrap();
        assert!(empty.to_f32().unwrap().is_empty());
    }
}
