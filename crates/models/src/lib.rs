//! Model families, one file each, and the table that finds them.
//!
//! A family is everything between token ids and pixel values on one side and logits on the other. It holds weights
//! and nothing else: the key/value cache, positions and the batch are arguments, sampling and files live elsewhere.
#![forbid(unsafe_code)]

mod clip;
mod error;
mod idefics3;
mod llama;
mod llava;
mod qwen2;
mod registry;
mod siglip;
mod vit;

use ocelli_backend::{Backend, Cancel, KvCache, KvShape, Step, Tensor};

pub use error::{Error, Result};
pub use registry::{ARCHITECTURES, Architecture, architecture, load};

/// A loaded model on a backend. Shape letters: R rows of a step, N tiles of a picture.
pub trait Model<B: Backend>: Send + Sync {
    /// What the key/value cache must look like.
    fn kv_shape(&self) -> KvShape;

    /// Longest sequence that the model was made for, in tokens.
    fn max_positions(&self) -> usize;

    /// Logits per row; token ids are below it.
    fn vocab_size(&self) -> usize;

    /// The token that stands for one image feature, where the model sees pictures.
    fn image_token_id(&self) -> Option<u32> {
        None
    }

    /// Token ids -> `[ids, hidden]`.
    fn embed(&self, ids: &[u32]) -> Tensor<B>;

    /// One picture -> features `[vision tokens, hidden]`, in the order of
    /// the prompt's image tokens. Once cancelled it returns early, with features that mean nothing.
    ///
    /// # Panics
    /// For a model without [`Model::image_token_id`].
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let _ = cancel;
        panic!("a text model was given a picture of {:?}", pixel_values.shape)
    }

    /// Embeddings `[R, hidden]` -> normalised hidden states `[R, hidden]`; appends the step to `kv`.
    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B>;

    /// Hidden states `[R, hidden]` -> `[R, vocab_size]`.
    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B>;
}

/// What the processor made of one picture. It stays with the caller: a model moves to the device what it works on.
#[derive(Clone, Copy, Debug)]
pub struct PixelValues<'a> {
    /// Normalised values, row-major.
    pub values: &'a [f32],
    /// `[N, 3, height, width]`.
    pub shape: [usize; 4],
}
