//! BLIP-2 with OPT (transformers `modeling_blip_2.py`). S features of a picture, Q queries.
//!
//! EVA's ViT-g, a Q-Former that condenses a picture to a few features, a projection, an OPT decoder. Surprises: the
//! features come before the BOS token; configs of before December 2024 know no image token.

use ocelli_backend::{Backend, Cancel, KvCache, KvShape, Linear, Renamed, Step, Tensor, WeightSource, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::blip_vision::{self, VisionTower};
use crate::error::{Error, Result, require};
use crate::opt::{self, Decoder};
use crate::qformer::{self, QFormer};
use crate::{ImageInput, Model, PixelValues};

/// The top level of `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    image_token_index: Option<u32>,
    #[serde(default = "default_num_query_tokens")]
    num_query_tokens: usize,
}

impl Config {
    pub(crate) fn parse(root: &Section) -> Result<Self> {
        let config: Self = root.parse()?;
        let queries = config.num_query_tokens;
        require(root, queries > 0, "num_query_tokens", queries, "at least 1")?;
        Ok(config)
    }

    /// The id that stands for features in a prompt. Where there is no token for it, the last row of the table: it only
    /// fills the table up, or is the padding token.
    pub(crate) fn image_token(&self, root: &Section, vocab_size: usize) -> Result<u32> {
        let id = self.image_token_index.map_or(vocab_size.saturating_sub(1), |id| id as usize);
        require(root, id < vocab_size, "image_token_index", id, "less than vocab_size")?;
        Ok(u32::try_from(id).unwrap_or(u32::MAX))
    }
}

/// Everything between pixels and the decoder.
pub(crate) struct Eyes<B: Backend> {
    backend: B,
    vision_model: VisionTower<B>,
    query_tokens: Tensor<B>,
    qformer: QFormer<B>,
    language_projection: Linear<B>,
}

impl<B: Backend> Eyes<B> {
    /// `hidden_size` is the decoder's; `reads`: whether the instruction is given to the Q-Former.
    pub(crate) fn load(
        weights: &Weights<B>,
        config: &ocelli_formats::Config,
        hidden_size: usize,
        reads: bool,
    ) -> Result<Self> {
        let root = config.root();
        let vision_config = blip_vision::Config::parse(config, &blip_vision::VIT_G)?;
        let section = config.section("qformer_config");
        let qformer_config = section.map(|section| qformer::Config::parse(&section)).transpose()?.unwrap_or_default();
        let (queries, hidden) = (Config::parse(root)?.num_query_tokens, qformer_config.hidden_size);
        let at = |name| weights.at(name).vision();
        let looked_at = vision_config.hidden_size;
        Ok(Self {
            backend: weights.backend().clone(),
            vision_model: VisionTower::load(&at("vision_model"), &vision_config)?,
            query_tokens: weights.values("query_tokens", &[1, queries, hidden])?.reshape(&[queries, hidden]),
            qformer: QFormer::load(&at("qformer"), &qformer_config, looked_at, reads)?,
            language_projection: weights.at("").vision().linear_bias("language_projection", hidden, hidden_size)?,
        })
    }

    /// [1, 3, height, width] -> [Q, hidden]
    pub(crate) fn forward(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let pixels = Tensor::new(&self.backend, pixel_values.values, &pixel_values.shape);
        let features = self.vision_model.forward(&pixels, cancel); // [S, vision hidden]
        let seen = self.qformer.forward(&self.query_tokens, pixel_values.text_ids, &features, cancel);
        self.language_projection.forward(&seen)
    }
}

/// A vision-language model: eyes, decoder.
pub(crate) struct Blip2<B: Backend> {
    eyes: Eyes<B>,
    language_model: Decoder<B>,
    lm_head: Linear<B>,
    image_token_id: u32,
    text_config: opt::Config,
}

impl<B: Backend> Blip2<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = config.section("text_config").ok_or_else(|| Error::from(root.error("text_config", "missing")))?;
        let decoder = section.string("model_type")?.unwrap_or("opt");
        require(&section, decoder == "opt", "model_type", decoder, "opt")?;
        let text_config = opt::Config::parse(&section)?;
        let weights = Weights::new(backend, source, rename)?;
        let language_model = Decoder::load(&weights.at("language_model.model.decoder"), &text_config)?;
        let model = Self {
            eyes: Eyes::load(&weights, config, text_config.hidden_size, false)?,
            lm_head: language_model.embed_tokens.as_linear(),
            language_model,
            image_token_id: Config::parse(root)?.image_token(root, text_config.vocab_size)?,
            text_config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for Blip2<B> {
    fn kv_shape(&self) -> KvShape {
        self.text_config.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.text_config.max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.text_config.vocab_size
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Tokens(self.image_token_id)
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.language_model.embed_tokens.forward(ids)
    }

    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        self.eyes.forward(pixel_values, cancel)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.language_model.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.lm_head.forward(hidden)
    }
}

/// Names of every layout -> the published ones: the output layer is the embedding table once more, and position ids are a
/// buffer.
fn rename(name: &str) -> Renamed {
    let ignored = name == "language_model.lm_head.weight" || name.ends_with("position_ids");
    if ignored { Renamed::Ignored } else { Renamed::To(name.to_owned()) }
}

fn default_num_query_tokens() -> usize {
    32
}
