//! Model families, one file each, and the table that finds them.
//!
//! A family is everything between token ids and pixel values on one side and logits on the other. It holds weights
//! and nothing else: the key/value cache, positions and the batch are arguments, sampling and files live elsewhere.
#![forbid(unsafe_code)]

mod bert;
mod blip;
mod blip2;
mod blip_vision;
mod clip;
mod decoder;
mod deepseek_v2;
mod deepseek_vl_v2;
mod error;
mod experts;
mod fast_vlm;
mod fastvit;
mod idefics3;
mod instructblip;
mod llama;
mod llava;
mod moondream;
mod moondream_region;
mod mrope;
mod opt;
mod qformer;
mod qwen2;
mod qwen2_5_vl;
mod qwen2_vl;
mod qwen3;
mod qwen3_vl;
mod qwen_vision;
mod qwen_vl;
mod registry;
mod siglip;
mod timm_vit;
mod vit;
mod whisper;

use ocelli_backend::{Backend, Cancel, Context, KvCache, KvShape, Step, Tensor};

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

    /// How pictures come in.
    fn image_input(&self) -> ImageInput {
        ImageInput::None
    }

    /// Token ids -> `[ids, hidden]`.
    fn embed(&self, ids: &[u32]) -> Tensor<B>;

    /// One picture -> features `[vision tokens, width]`, in the order of
    /// the prompt's image tokens. Once cancelled it returns early, with features that mean nothing.
    ///
    /// # Panics
    /// For a model whose [`Model::image_input`] is none.
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let _ = cancel;
        panic!("a text model was given a picture of {:?}", pixel_values.shape)
    }

    /// Whether it hears: [`Model::encode_image`] then takes the spectrogram of a recording for a picture, as
    /// `[1, 1, bands, frames]`.
    fn hears(&self) -> bool {
        false
    }

    /// Embeddings `[R, hidden]` with the image features of the named rows in place: `[R, width]`, where `width` is more
    /// than `hidden` if deeper layers get features of their own.
    fn join(&self, embedded: &Tensor<B>, rows: &[usize], features: &Tensor<B>) -> Tensor<B> {
        embedded.replace_rows(rows, features)
    }

    /// Place of every token of a prompt on the axes of rotary embeddings (time, row, column) from `next` on; `extents`
    /// are those of its pictures and videos in order. `None`: running numbers.
    fn places(&self, ids: &[u32], extents: &[Extent], next: usize) -> Option<Vec<[usize; 3]>> {
        let _ = (ids, extents, next);
        None
    }

    /// How many of a prompt's first tokens see each other, later ones too: they are computed in one piece.
    fn prefix(&self, ids: &[u32]) -> usize {
        let _ = ids;
        0
    }

    /// For [`ImageInput::Context`]: what cross-attention looks at. `ids` are the prompt's, and there is at least one
    /// picture (or recording).
    ///
    /// # Panics
    /// For every other model.
    fn context(&self, ids: &[u32], features: &[&Tensor<B>]) -> Context<B> {
        panic!("{} ids and {} pictures for a model without cross-attention", ids.len(), features.len())
    }

    /// The ids that the decoder begins with when a sequence begins with this prompt: at least one, if the prompt has one.
    /// Others than the prompt's only for [`ImageInput::Context`].
    fn decoder_ids(&self, ids: &[u32]) -> Vec<u32> {
        ids.to_vec()
    }

    /// The tokens that end an answer, for families whose `generation_config.json` names others than their code uses.
    /// Empty: the config decides.
    fn end_ids(&self) -> Vec<u32> {
        Vec::new()
    }

    /// How the model says where things are; `None` for those that only have words for it.
    fn locator(&self) -> Option<&dyn Locator<B>> {
        None
    }

    /// Embeddings (of [`Model::join`] where there are pictures) -> normalised hidden states `[R, hidden]`; appends the
    /// step to `kv`.
    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B>;

    /// For a model that hears: [`Model::forward`] of the rows of one sequence, and where they look in the recording, of
    /// whose features `audio` the first `columns` count.
    ///
    /// # Panics
    /// For every other model.
    fn align(
        &self,
        x: &Tensor<B>,
        step: &Step,
        kv: &mut KvCache<B>,
        (audio, columns): (&Tensor<B>, usize),
        heads: &[[usize; 2]],
    ) -> (Tensor<B>, Alignment) {
        let _ = (kv, audio);
        let rows = x.rows();
        panic!("{rows} rows at {:?} asked {} heads for {columns} moments", step.positions(), heads.len())
    }

    /// Hidden states `[R, hidden]` -> `[R, vocab_size]`.
    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B>;
}

/// Where the rows of a sequence look in a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Alignment {
    /// `[heads, rows, columns]`: shares of attention; every row sums to 1.
    pub weights: Vec<f32>,
    /// Heads that were asked for and exist, at least one.
    pub heads: usize,
    /// Rows of the step.
    pub rows: usize,
    /// Moments of the recording, the first ones that the features tell of.
    pub columns: usize,
}

/// Numbers among tokens: a model that points at things says them in hidden states (of [`Model::forward`], one row) and
/// reads them as embeddings (one row), in the order of [`Self::read_place`] across, down, and the size. Fractions of the
/// picture's sides.
pub trait Locator<B: Backend>: Send + Sync {
    /// Where a thing's middle is on the next axis.
    fn read_place(&self, hidden: &Tensor<B>) -> f32;

    /// What the model reads for it.
    fn embed_place(&self, place: f32) -> Tensor<B>;

    /// A thing's width and height.
    fn read_size(&self, hidden: &Tensor<B>) -> [f32; 2];

    /// What the model reads for them.
    fn embed_size(&self, size: [f32; 2]) -> Tensor<B>;
}

/// How a model takes pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageInput {
    /// Not at all.
    None,
    /// Features take the place of this token's embeddings.
    Tokens(u32),
    /// The same, with a token for pictures and one for videos.
    TokensByKind {
        /// For a feature of a picture.
        image: u32,
        /// For a feature of a video.
        video: u32,
    },
    /// The decoder looks at features by cross-attention.
    Context,
}

impl ImageInput {
    /// The token that stands for one feature of a picture.
    pub fn token_id(self) -> Option<u32> {
        match self {
            Self::Tokens(id) | Self::TokensByKind { image: id, .. } => Some(id),
            Self::None | Self::Context => None,
        }
    }

    /// Whether a token stands for a feature, of a picture or of a video.
    pub fn is_feature(self, id: u32) -> bool {
        match self {
            Self::Tokens(image) => id == image,
            Self::TokensByKind { image, video } => id == image || id == video,
            Self::None | Self::Context => false,
        }
    }
}

/// How far a picture or a video reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    /// As [`PixelValues::grid`].
    pub grid: [usize; 3],
    /// Seconds from one of the grid's frames to the next; 0 for a picture.
    pub frame_seconds: f32,
}

/// What the processor made of one picture. It stays with the caller: a model moves to the device what it works on.
#[derive(Clone, Copy, Debug)]
pub struct PixelValues<'a> {
    /// Normalised values, row-major.
    pub values: &'a [f32],
    /// `[N, 3, height, width]`, or `[1, 1, patches, values of a patch]`, `[1, 1, bands, frames]`.
    pub shape: [usize; 4],
    /// Frames, rows and columns: of tiles or of patches, as the family's processor has it.
    pub grid: [usize; 3],
    /// Ids that the tower reads beside the picture.
    pub text_ids: &'a [u32],
}
