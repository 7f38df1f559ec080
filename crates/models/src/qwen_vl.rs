//! Qwen2-VL and Qwen2.5-VL (transformers `modeling_qwen2_vl.py`, `modeling_qwen2_5_vl.py`): a tower of their own, and
//! the Qwen2 decoder on three rotary axes. R rows of a step.
//!
//! Surprise: published configs hold the decoder's keys at the top level, re-saved ones below `text_config`.

use ocelli_backend::{Backend, Cancel, KvCache, KvShape, Renamed, Step, Tensor, WeightSource, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder::{CausalLm, Rotation};
use crate::error::{Error, Result};
use crate::mrope::{self, MRope, Span};
use crate::qwen_vision::Grid;
use crate::qwen2;
use crate::{Extent, ImageInput, Model, PixelValues, qwen2_5_vl, qwen2_vl};

/// Qwen2-VL.
pub(crate) type Qwen2Vl<B> = QwenVl<B, qwen2_vl::Tower<B>>;
/// Qwen2.5-VL.
pub(crate) type Qwen25Vl<B> = QwenVl<B, qwen2_5_vl::Tower<B>>;

/// The top level of `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default = "default_image_token_id")]
    image_token_id: u32,
    #[serde(default = "default_video_token_id")]
    video_token_id: u32,
    pub(crate) tie_word_embeddings: Option<bool>,
}

impl Config {
    /// What stands for features.
    pub(crate) fn image_input(&self) -> ImageInput {
        ImageInput::TokensByKind { image: self.image_token_id, video: self.video_token_id }
    }
}

/// A vision tower: patches of one picture or video -> tokens.
pub(crate) trait Tower<B: Backend>: Sized + Send + Sync {
    /// Loads the tower of a decoder of this width.
    fn load(w: &Weights<B>, section: &Section, text_hidden: usize) -> Result<Self>;

    /// s: patches per side of a token.
    fn merge(&self) -> usize;

    /// Places from one frame of a video to the next, this many seconds later.
    fn frame_step(&self, seconds: f32) -> f32 {
        let _ = seconds;
        1.0
    }

    /// `patches` [T, values of a patch] -> [T / s², text hidden].
    fn forward(&self, patches: &Tensor<B>, grid: Grid, cancel: &Cancel) -> Tensor<B>;
}

/// A vision-language model: tower, decoder, output layer.
pub(crate) struct QwenVl<B: Backend, T> {
    backend: B,
    visual: T,
    language_model: CausalLm<B>,
    config: Config,
}

impl<B: Backend, T: Tower<B>> QwenVl<B, T> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = |name| config.section(name).ok_or_else(|| Error::from(root.error(name, "missing")));
        let (text_section, vision_section) = (section("text_config")?, section("vision_config")?);
        let mut text_config = qwen2::Config::parse_besides_rope(&text_section)?;
        let rope = MRope::load(config, text_config.head_dim(), text_config.rope_theta)?;
        let config: Config = root.parse()?;
        let tied = config.tie_word_embeddings.unwrap_or(text_config.tie_word_embeddings);
        text_config.tie_word_embeddings = tied;

        let weights = Weights::new(backend, source, |name| rename(name, tied))?;
        let language_model = CausalLm::load(
            &weights,
            &weights.at("model"),
            text_config.dims(),
            Rotation::Axes(rope),
            text_config.max_position_embeddings,
        )?;
        let model = Self {
            backend: backend.clone(),
            visual: T::load(&weights.at("visual").vision(), &vision_section, text_config.hidden_size)?,
            language_model,
            config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend, T: Tower<B>> Model<B> for QwenVl<B, T> {
    fn kv_shape(&self) -> KvShape {
        self.language_model.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.language_model.max_positions()
    }

    fn vocab_size(&self) -> usize {
        self.language_model.vocab_size()
    }

    fn image_input(&self) -> ImageInput {
        self.config.image_input()
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.language_model.embed(ids)
    }

    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let grid = Grid::of(&pixel_values, self.visual.merge());
        let patches = Tensor::new(&self.backend, pixel_values.values, &pixel_values.shape[2..]);
        self.visual.forward(&patches, grid, cancel)
    }

    fn places(&self, ids: &[u32], extents: &[Extent], next: usize) -> Option<Vec<[usize; 3]>> {
        let merge = self.visual.merge();
        let span = |&Extent { grid: [frames, rows, columns], frame_seconds }: &Extent| Span {
            tokens: [frames, rows / merge, columns / merge],
            frame_step: self.visual.frame_step(frame_seconds),
        };
        Some(mrope::places(ids, self.image_input(), &extents.iter().map(span).collect::<Vec<_>>(), next))
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.language_model.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.language_model.logits(hidden)
    }
}

/// Names of every layout -> `model`, `visual`, `lm_head`, as published for Qwen2-VL. Newer checkpoints put both parts
/// below `model.`, MLX has `language_model.` around the decoder and calls the tower `vision_tower`.
pub(crate) fn rename(name: &str, tied: bool) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_pos_emb.inv_freq") {
        return Renamed::Ignored;
    }
    let moved = [
        ("model.visual.", "visual."),
        ("vision_tower.", "visual."),
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ];
    let moved = moved.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    let name = moved.unwrap_or_else(|| name.to_owned());
    if tied && name == "lm_head.weight" { Renamed::Ignored } else { Renamed::To(name) }
}

fn default_image_token_id() -> u32 {
    151_655
}

fn default_video_token_id() -> u32 {
    151_656
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gets_the_published_names() {
        let to = |name: &str| Renamed::To(name.to_owned());
        for name in ["model.norm.weight", "model.language_model.norm.weight", "language_model.model.norm.weight"] {
            assert_eq!(rename(name, false), to("model.norm.weight"), "{name}");
        }
        for name in ["visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight", "vision_tower.merger.ln_q.weight"]
        {
            assert_eq!(rename(name, false), to("visual.merger.ln_q.weight"), "{name}");
        }
        for name in ["lm_head.weight", "language_model.lm_head.weight"] {
            assert_eq!(rename(name, false), to("lm_head.weight"), "{name}");
            assert_eq!(rename(name, true), Renamed::Ignored, "{name}");
        }
        assert_eq!(rename("visual.rotary_pos_emb.inv_freq", false), Renamed::Ignored);
    }
}
