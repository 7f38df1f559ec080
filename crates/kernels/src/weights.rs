//! Weight matrices as they lie in a file, and how each element type becomes float32.

use half::{bf16, f16};

use crate::simd::Simd;

/// A matrix `[out, in]`, row-major, little-endian, at any alignment (files align nothing).
#[derive(Clone, Copy)]
pub enum WeightMatrix<'a> {
    /// 32-bit floats.
    F32(&'a [u8]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [u8]),
    /// IEEE half precision.
    F16(&'a [u8]),
}

impl<'a> WeightMatrix<'a> {
    /// The bytes.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::F32(bytes) | Self::Bf16(bytes) | Self::F16(bytes) => bytes,
        }
    }

    /// Bytes per element.
    pub fn element_size(self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::Bf16(_) | Self::F16(_) => 2,
        }
    }
}

/// Something whose chunks a register can be filled from.
pub(crate) trait Source<S: Simd> {
    /// As many elements as a register has lanes.
    type Chunk;

    /// Reads a chunk as float32.
    fn load(simd: S, chunk: &Self::Chunk) -> S::F32;

    /// Asks for what lies `distance` bytes behind a chunk, if that is in memory rather than in a cache.
    fn prefetch(simd: S, chunk: &Self::Chunk, distance: usize);
}

/// An element type of weights.
pub(crate) trait Element<S: Simd>: Source<S> {
    /// Bytes per element.
    const SIZE: usize;

    /// Whole chunks, and the bytes that are left.
    fn chunks(bytes: &[u8]) -> (&[Self::Chunk], &[u8]);

    /// One element from its first bytes.
    fn decode(bytes: &[u8]) -> f32;
}

/// Weights that are converted already, in scratch memory.
pub(crate) struct Converted;

impl<S: Simd> Source<S> for Converted {
    type Chunk = S::Chunk;

    #[inline(always)]
    fn load(simd: S, chunk: &S::Chunk) -> S::F32 {
        simd.load(chunk)
    }

    #[inline(always)]
    fn prefetch(_simd: S, _chunk: &S::Chunk, _distance: usize) {}
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $bytes:ident, $size:literal, $chunks:ident, $load:ident, $decode:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl<S: Simd> Source<S> for $name {
            type Chunk = S::$bytes;

            #[inline(always)]
            fn load(simd: S, chunk: &S::$bytes) -> S::F32 {
                simd.$load(chunk)
            }

            #[inline(always)]
            fn prefetch(simd: S, chunk: &S::$bytes, distance: usize) {
                simd.prefetch(std::ptr::from_ref(chunk).cast::<u8>().wrapping_add(distance));
            }
        }

        impl<S: Simd> Element<S> for $name {
            const SIZE: usize = $size;

            #[inline(always)]
            fn chunks(bytes: &[u8]) -> (&[S::$bytes], &[u8]) {
                S::$chunks(bytes)
            }

            #[inline(always)]
            fn decode(bytes: &[u8]) -> f32 {
                let element = *bytes.first_chunk::<$size>().expect("a whole element");
                $decode(element)
            }
        }
    };
}

element!(
    /// 32-bit floats.
    F32, Bytes4, 4, chunks4, load_f32, f32::from_le_bytes
);
element!(
    /// The upper halves of 32-bit floats.
    Bf16, Bytes2, 2, chunks2, load_bf16, |element| bf16::from_le_bytes(element).to_f32()
);
element!(
    /// IEEE half precision.
    F16, Bytes2, 2, chunks2, load_f16, |element| f16::from_le_bytes(element).to_f32_const()
);

/// The elements behind the last whole chunk, zeros behind them.
#[inline(always)]
pub(crate) fn decode_part<S: Simd, E: Element<S>>(bytes: &[u8]) -> S::Chunk {
    let mut chunk = S::ZERO_CHUNK;
    for (value, element) in chunk.as_mut().iter_mut().zip(bytes.chunks_exact(E::SIZE)) {
        *value = E::decode(element);
    }
    chunk
}
