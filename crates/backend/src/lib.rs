//! The contract between models and devices.
//!
//! Shape letters used throughout: R rows (all new tokens of all sequences, one after another), H query heads,
//! K key/value heads, D head size, N pictures or tiles, T tokens of one of them.
//!
//! A batch is *ragged*: the new tokens of every sequence lie one after another as rows, and a [`Step`] says which
//! rows belong to whom. Rows never mix except in attention, and there only within a sequence, which is why a
//! sequence's tokens do not depend on who else is in the batch.
//!
//! Nothing here is fallible once a model is loaded: shapes are checked by [`Weights`] at load and a wrong shape
//! afterwards is a bug that panics with both shapes.
#![forbid(unsafe_code)]

mod cancel;
mod convolution;
mod error;
mod kv;
mod layers;
mod ops;
mod precision;
mod random;
mod rope;
mod source;
mod tensor;
mod weights;

pub use cancel::Cancel;
pub use convolution::{Convolution, DepthwiseConvolution, Windows};
pub use error::{Error, Result};
pub use kv::{BLOCK_TOKENS, Context, KvCache, KvShape, LayerKv, SequenceId, Span, Step};
pub use layers::{Embedding, LayerNorm, Linear, RmsNorm, SwiGlu};
pub use ops::{
    Activation, AttentionDims, Backend, ConvolutionDims, Epilogue, Mask, PatchDims, RopeDims, RopePairing, columns_of,
};
pub use precision::{Part, Precision, Quant, Role, quantize};
pub use random::RandomWeights;
pub use rope::{Rope, RopeRows, RopeScaling};
pub use source::{Held, PackedWeight, WeightSource, WeightStore};
pub use tensor::Tensor;
pub use weights::{Renamed, Weights};
