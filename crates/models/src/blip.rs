//! BLIP: captions and answers about pictures (transformers `modeling_blip.py`, `modeling_blip_text.py`). R rows, T
//! features of a picture, Q tokens of a question, H heads, D head size.
//!
//! A ViT and a BERT that became a decoder: every layer looks at the picture by cross-attention. For answers the question
//! goes through a second BERT, whose states are what the decoder looks at. Surprises: the decoder begins with `[DEC]`
//! (in place of a caption's `[CLS]`) and ends with `[SEP]` whatever the generation config says; the class default is 8
//! heads where every published model has 12.

use ocelli_backend::{
    Activation, Backend, Cancel, Context, Embedding, KvCache, KvShape, LayerNorm, Linear, Renamed, Step, Tensor,
    WeightSource, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::bert::{Attention, Dims, FeedForward};
use crate::blip_vision::{self, VisionTower};
use crate::error::{Result, require};
use crate::{ImageInput, Model, PixelValues};

/// `text_config`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    bos_token_id: u32,
    sep_token_id: u32,
    tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            bos_token_id: 30522,
            sep_token_id: 102,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        let (act, hidden, heads) = (&config.hidden_act, config.hidden_size, config.num_attention_heads);
        require(section, act == "gelu", "hidden_act", act, "gelu")?;
        require(section, heads > 0 && hidden % heads == 0, "num_attention_heads", heads, "a divisor of hidden_size")?;
        require(section, config.tie_word_embeddings, "tie_word_embeddings", false, "true")?;
        for (key, id) in [("bos_token_id", config.bos_token_id), ("sep_token_id", config.sep_token_id)] {
            require(section, (id as usize) < config.vocab_size, key, id, "less than vocab_size")?;
        }
        Ok(config)
    }

    fn dims(&self) -> Dims {
        Dims {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}

/// A tower, a decoder, and an encoder of questions if it answers them.
pub(crate) struct Blip<B: Backend> {
    backend: B,
    vision_model: VisionTower<B>,
    text_encoder: Option<Bert<B>>,
    text_decoder: Bert<B>,
    predictions: Predictions<B>,
    config: Config,
}

impl<B: Backend> Blip<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let architecture = config.architectures().first().copied().unwrap_or(CAPTIONS);
        let known = [CAPTIONS, ANSWERS].contains(&architecture);
        require(root, known, "architectures", architecture, &format!("{CAPTIONS} or {ANSWERS}"))?;
        let vision_config = blip_vision::Config::parse(config, &blip_vision::BLIP)?;
        let text = config.section("text_config").map(|section| Config::parse(&section));
        let config = text.transpose()?.unwrap_or_default();

        let weights = Weights::new(backend, source, rename)?;
        let looked_at = vision_config.hidden_size;
        let vision_model = VisionTower::load(&weights.at("vision_model").vision(), &vision_config)?;
        let (text_encoder, looked_at) = if architecture == ANSWERS {
            (Some(Bert::load(&weights.at("text_encoder"), &config, looked_at)?), config.hidden_size)
        } else {
            (None, looked_at)
        };
        let text_decoder = Bert::load(&weights.at("text_decoder.bert"), &config, looked_at)?;
        let predictions = Predictions::load(&weights.at("text_decoder.cls.predictions"), &config, &text_decoder)?;
        weights.finish()?;
        Ok(Self { backend: backend.clone(), vision_model, text_encoder, text_decoder, predictions, config })
    }
}

impl<B: Backend> Model<B> for Blip<B> {
    fn kv_shape(&self) -> KvShape {
        let Config { num_hidden_layers: layers, num_attention_heads: kv_heads, .. } = self.config;
        KvShape { layers, kv_heads, head_dim: self.config.dims().head_dim() }
    }

    fn max_positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Context
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.text_decoder.word_embeddings.forward(ids)
    }

    /// [1, 3, height, width] -> [1 + T, vision hidden].
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        self.vision_model.forward(&Tensor::new(&self.backend, pixel_values.values, &pixel_values.shape), cancel)
    }

    fn context(&self, ids: &[u32], features: &[&Tensor<B>]) -> Context<B> {
        let features = Tensor::concat_rows(features);
        match &self.text_encoder {
            Some(encoder) => self.text_decoder.look_at(&encoder.forward_all(ids, &features)), // [Q, hidden]
            None => self.text_decoder.look_at(&features),
        }
    }

    /// The answer's `[DEC]`; a caption's words come behind it, without `[CLS]` and `[SEP]`.
    fn decoder_ids(&self, ids: &[u32]) -> Vec<u32> {
        let words = match ids {
            [_, words @ .., _] if self.text_encoder.is_none() => words,
            _ => &[],
        };
        [&[self.config.bos_token_id], words].concat()
    }

    fn end_ids(&self) -> Vec<u32> {
        vec![self.config.sep_token_id]
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.text_decoder.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.predictions.forward(hidden)
    }
}

/// A BERT whose layers look at something, as an encoder or as a decoder.
struct Bert<B: Backend> {
    word_embeddings: Embedding<B>,
    position_embeddings: Tensor<B>,
    layer_norm: LayerNorm<B>,
    layers: Vec<Layer<B>>,
}

impl<B: Backend> Bert<B> {
    /// `looked_at` is the width of what its layers look at.
    fn load(w: &Weights<B>, cfg: &Config, looked_at: usize) -> Result<Self> {
        let (embeddings, hidden) = (w.at("embeddings"), cfg.hidden_size);
        let layer = |layer_idx| Layer::load(&w.at(&format!("encoder.layer.{layer_idx}")), &cfg.dims(), looked_at);
        Ok(Self {
            word_embeddings: embeddings.embedding("word_embeddings", cfg.vocab_size, hidden)?,
            position_embeddings: embeddings
                .values("position_embeddings.weight", &[cfg.max_position_embeddings, hidden])?,
            layer_norm: embeddings.layer_norm("LayerNorm", hidden, cfg.layer_norm_eps)?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Keys and values of all layers' cross-attention.
    fn look_at(&self, states: &Tensor<B>) -> Context<B> {
        Context::new(self.layers.iter().map(|layer| layer.crossattention.keys_values(states)).collect())
    }

    /// The encoder: `states` [T, width] -> [Q, hidden], all tokens seeing each other.
    fn forward_all(&self, ids: &[u32], states: &Tensor<B>) -> Tensor<B> {
        let mut x = self.placed(&self.word_embeddings.forward(ids), &(0..ids.len()).collect::<Vec<_>>());
        for layer in &self.layers {
            let own = layer.attention.forward_all(&x);
            x = layer.feed_forward.forward(&layer.crossattention.forward_across(&own, states));
        }
        x
    }

    /// The decoder: `x` [R, hidden] -> [R, hidden].
    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let mut x = self.placed(x, step.positions());
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            let [q, k, v] = layer.attention.project(&x); // [R, H, D]
            let own = q.attend(kv.layer(layer_idx).append(&k, &v, step), layer.attention.scale, step);
            let own = layer.attention.finish(&own, &x);
            let seen =
                kv.cross_attend(layer_idx, &layer.crossattention.queries(&own), layer.crossattention.scale, step);
            x = layer.feed_forward.forward(&layer.crossattention.finish(&seen, &own));
        }
        x
    }

    fn placed(&self, x: &Tensor<B>, positions: &[usize]) -> Tensor<B> {
        self.layer_norm.forward(&(x + &self.position_embeddings.gather_rows(positions)))
    }
}

struct Layer<B: Backend> {
    attention: Attention<B>,
    crossattention: Attention<B>,
    feed_forward: FeedForward<B>,
}

impl<B: Backend> Layer<B> {
    fn load(w: &Weights<B>, dims: &Dims, looked_at: usize) -> Result<Self> {
        Ok(Self {
            attention: Attention::load(&w.at("attention"), "self", dims, dims.hidden_size)?,
            crossattention: Attention::load(&w.at("crossattention"), "self", dims, looked_at)?,
            feed_forward: FeedForward::load(w, "", dims)?,
        })
    }
}

/// Hidden states -> logits: one more layer, and the embedding table with a bias.
struct Predictions<B: Backend> {
    dense: Linear<B>,
    layer_norm: LayerNorm<B>,
    decoder: Linear<B>,
    bias: Tensor<B>,
}

impl<B: Backend> Predictions<B> {
    fn load(w: &Weights<B>, cfg: &Config, decoder: &Bert<B>) -> Result<Self> {
        let transform = w.at("transform");
        Ok(Self {
            dense: transform.linear_bias("dense", cfg.hidden_size, cfg.hidden_size)?,
            layer_norm: transform.layer_norm("LayerNorm", cfg.hidden_size, cfg.layer_norm_eps)?,
            decoder: decoder.word_embeddings.as_linear(),
            bias: w.values("bias", &[cfg.vocab_size])?,
        })
    }

    fn forward(&self, hidden: &Tensor<B>) -> Tensor<B> {
        let hidden = self.layer_norm.forward(&self.dense.forward_then(hidden, Activation::Gelu));
        self.decoder.forward(&hidden).add_repeated(&self.bias)
    }
}

/// Names of every layout -> the published ones. The output layer is the embedding table once more, and position ids are
/// a buffer.
fn rename(name: &str) -> Renamed {
    let ignored = name.starts_with("text_decoder.cls.predictions.decoder.") || name.ends_with("position_ids");
    if ignored { Renamed::Ignored } else { Renamed::To(name.to_owned()) }
}

const CAPTIONS: &str = "BlipForConditionalGeneration";
const ANSWERS: &str = "BlipForQuestionAnswering";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tied_copies_and_buffers_are_left_out() {
        let kept = "text_decoder.cls.predictions.bias";
        assert_eq!(rename(kept), Renamed::To(kept.to_owned()));
        for name in [
            "text_decoder.cls.predictions.decoder.weight",
            "text_decoder.cls.predictions.decoder.bias",
            "text_decoder.bert.embeddings.position_ids",
            "vision_model.embeddings.position_ids",
        ] {
            assert_eq!(rename(name), Renamed::Ignored, "{name}");
        }
    }
}
