//! FastVLM (Apple's `llava_qwen.py`, transformers `modeling_fast_vlm.py`). T places of a picture's last grid.
//!
//! A FastViTHD tower, a two-layer projector, a Qwen2 decoder. Surprises: the published repositories are Apple's, with
//! names and a config of their own, in which the tower is a name and the picture's token no id of the vocabulary; the
//! native ones are converted from them.

use ocelli_backend::{
    Activation, Backend, Cancel, KvCache, KvShape, Linear, Renamed, Step, Tensor, WeightSource, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder::CausalLm;
use crate::error::{Error, Result, require};
use crate::fastvit::{self, FastVit, STAGES};
use crate::qwen2;
use crate::{ImageInput, Model, PixelValues};

/// The top level of `config.json`. Keys that only one of the layouts has are optional.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    image_token_index: Option<i64>,
    vision_feature_layer: Option<i64>,
    vision_feature_select_strategy: Option<String>,
    projector_hidden_act: Option<String>,
    multimodal_projector_bias: Option<bool>,
    mm_projector_type: Option<String>,
    mm_vision_tower: Option<String>,
    tie_word_embeddings: Option<bool>,
}

/// `vision_config`, in which sizes are `model_args` of timm or, from MLX, plain; both may be missing or empty.
#[derive(Clone, Debug, Default, Deserialize)]
struct VisionConfig {
    architecture: Option<String>,
    #[serde(default)]
    model_args: Sizes,
    #[serde(flatten)]
    plain: Sizes,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Sizes {
    embed_dims: Option<[usize; STAGES]>,
    layers: Option<[usize; STAGES]>,
}

/// A vision-language model: tower, projector, decoder, output layer.
pub(crate) struct FastVlm<B: Backend> {
    backend: B,
    vision_tower: FastVit<B>,
    linear_1: Linear<B>,
    linear_2: Linear<B>,
    language_model: CausalLm<B>,
    image_token: u32,
}

impl<B: Backend> FastVlm<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let vision_config = vision_config(config)?;
        // Apple's repositories are Qwen2's config with some more keys.
        let text_section = config.section("text_config").filter(|section| section.get("hidden_size").is_some());
        let config = parse(root)?;
        let mut text_config = qwen2::Config::parse(text_section.as_ref().unwrap_or(root))?;
        text_config.tie_word_embeddings = config.tie_word_embeddings.unwrap_or(text_config.tie_word_embeddings);
        let image_token = image_token(root, &config, text_config.vocab_size)?;

        let tied = text_config.tie_word_embeddings;
        let weights = Weights::new(backend, source, |name| rename(name, tied))?;
        let language_model = text_config.causal_lm(&weights, &weights.at("model.language_model"))?;
        let projector = weights.at("model.multi_modal_projector").vision();
        let hidden = text_config.hidden_size;
        let model = Self {
            backend: backend.clone(),
            vision_tower: FastVit::load(&weights.at("model.vision_tower.timm_model").vision(), &vision_config)?,
            linear_1: projector.linear_bias("linear_1", vision_config.features(), hidden)?,
            linear_2: projector.linear_bias("linear_2", hidden, hidden)?,
            language_model,
            image_token,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for FastVlm<B> {
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
        ImageInput::Tokens(self.image_token)
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.language_model.embed(ids)
    }

    /// [1, 3, height, width] -> [T, hidden], row by row.
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let [_, channels, height, width] = pixel_values.shape;
        let pixels = channels_last(pixel_values.values, channels);
        let pixels = Tensor::new(&self.backend, &pixels, &[1, height, width, channels]);
        let grid = self.vision_tower.forward(&pixels, cancel);
        let features = grid.reshape(&[grid.rows(), grid.width()]);
        self.linear_2.forward(&self.linear_1.forward_then(&features, Activation::Gelu))
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.language_model.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.language_model.logits(hidden)
    }
}

fn parse(root: &Section) -> Result<Config> {
    let config: Config = root.parse()?;
    let only = |key, value: Option<&str>, expected| match value {
        Some(value) => require(root, value == expected, key, value, expected),
        None => Ok(()),
    };
    only("vision_feature_select_strategy", config.vision_feature_select_strategy.as_deref(), "full")?;
    only("projector_hidden_act", config.projector_hidden_act.as_deref(), "gelu")?;
    only("mm_projector_type", config.mm_projector_type.as_deref(), "mlp2x_gelu")?;
    let layer = config.vision_feature_layer.unwrap_or(-1);
    require(root, layer == -1, "vision_feature_layer", layer, "-1")?;
    require(root, config.multimodal_projector_bias != Some(false), "multimodal_projector_bias", false, "true")?;
    let tower = config.mm_vision_tower.as_deref().unwrap_or(TOWER);
    require(root, tower.starts_with(TOWER), "mm_vision_tower", tower, "mobileclip_l_1024")?;
    Ok(config)
}

fn vision_config(config: &ocelli_formats::Config) -> Result<fastvit::Config> {
    let Some(section) = config.section("vision_config") else { return Ok(fastvit::Config::default()) };
    let vision: VisionConfig = section.parse()?;
    let architecture = vision.architecture.as_deref().unwrap_or("fastvit_mci3");
    require(&section, architecture == "fastvit_mci3", "architecture", architecture, "fastvit_mci3")?;
    let (args, plain, default) = (vision.model_args, vision.plain, fastvit::Config::default());
    let embed_dims = args.embed_dims.or(plain.embed_dims).unwrap_or(default.embed_dims);
    // Channels double from stage to stage or stay, heads have a fixed size, and a sixteenth is squeezed.
    let fits = embed_dims.windows(2).all(|pair| pair[0] > 0 && pair[1] % pair[0] == 0)
        && embed_dims[3..].iter().all(|dim| dim % 32 == 0);
    require(&section, fits, "embed_dims", format!("{embed_dims:?}"), "multiples of the stage before")?;
    Ok(fastvit::Config { embed_dims, layers: args.layers.or(plain.layers).unwrap_or(default.layers) })
}

/// The id that stands for a picture in prompts. Apple's -200 is none: there it is the first one behind Qwen2's tokens.
fn image_token(root: &Section, config: &Config, vocab_size: usize) -> Result<u32> {
    let index = config.image_token_index.filter(|&index| index != -200).unwrap_or(IMAGE_TOKEN);
    let id = u32::try_from(index).ok().filter(|&id| (id as usize) < vocab_size);
    id.ok_or_else(|| Error::from(root.error("image_token_index", &format!("{index} is not in the vocabulary"))))
}

/// `[C, height, width]` -> `[height, width, C]`.
fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let plane = values.len() / channels;
    (0..plane).flat_map(|at| values[at..].iter().step_by(plane).copied()).collect()
}

/// Names of every layout -> the native ones of transformers. Apple's and MLX's towers number all parts in one list.
fn rename(name: &str, tied: bool) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") || name.ends_with("num_batches_tracked") || name.contains(".head.proj") {
        return Renamed::Ignored;
    }
    let name = name.strip_prefix("model.").unwrap_or(name);
    let tower = ["vision_tower.vision_tower.model.", "vision_tower.timm_model.", "vision_tower.vision_model."];
    let name = if let Some(rest) = tower.iter().find_map(|tower| name.strip_prefix(tower)) {
        format!("model.vision_tower.timm_model.{}", rename_tower(rest))
    } else if let Some(rest) = name.strip_prefix("mm_projector.") {
        let rest = if let Some(part) = rest.strip_prefix("0.") { format!("1.{part}") } else { rest.to_owned() };
        format!("model.multi_modal_projector.linear_{rest}")
    } else if name.starts_with("multi_modal_projector.") {
        format!("model.{name}")
    } else {
        let rest = name.strip_prefix("language_model.").unwrap_or(name);
        let rest = rest.strip_prefix("model.").unwrap_or(rest);
        if rest.starts_with("lm_head.") { rest.to_owned() } else { format!("model.language_model.{rest}") }
    };
    if tied && name == "lm_head.weight" { Renamed::Ignored } else { Renamed::To(name) }
}

/// Names within the tower: timm's stay, Apple's become timm's.
fn rename_tower(name: &str) -> String {
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    match first {
        "patch_embed" => format!("stem.{}", rest.strip_prefix("blocks.").unwrap_or(rest)),
        "conv_exp" => format!("final_conv.{}", rest.replace("se.reduce", "se.fc1").replace("se.expand", "se.fc2")),
        "network" => rename_part(rest).unwrap_or_else(|| name.to_owned()),
        _ => name.to_owned(),
    }
}

/// `N.…` of Apple's list of parts: stages, and between them what halves the sides and what adds positions.
fn rename_part(name: &str) -> Option<String> {
    let (number, rest) = name.split_once('.')?;
    let (stage, part) = *PARTS.get(number.parse::<usize>().ok()?)?;
    let rest = rest.replace("convffn.", "mlp.").replace("lkb_reparam", "reparam_conv");
    let gamma = if rest.contains("layer_scale") { ".gamma" } else { "" };
    Some(format!("stages.{stage}.{part}{rest}{gamma}"))
}

/// The stage of every part of Apple's list, and timm's name for it.
const PARTS: [(usize, &str); 11] = [
    (0, "blocks."),
    (1, "downsample."),
    (1, "blocks."),
    (2, "downsample."),
    (2, "blocks."),
    (3, "downsample."),
    (3, "pos_emb."),
    (3, "blocks."),
    (4, "downsample."),
    (4, "pos_emb."),
    (4, "blocks."),
];
/// Apple's name for the tower, with the side of its pictures behind it.
const TOWER: &str = "mobileclip_l_";
/// `<image>` of converted checkpoints.
const IMAGE_TOKEN: i64 = 151_646;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gets_the_native_names() {
        for (names, native) in [
            (
                &["model.language_model.norm.weight", "language_model.model.norm.weight", "model.norm.weight"][..],
                "model.language_model.norm.weight",
            ),
            (&["lm_head.weight", "language_model.lm_head.weight"], "lm_head.weight"),
            (&["model.mm_projector.0.bias", "mm_projector.0.bias"], "model.multi_modal_projector.linear_1.bias"),
            (&["model.multi_modal_projector.linear_2.bias"], "model.multi_modal_projector.linear_2.bias"),
            (
                &[
                    "model.vision_tower.timm_model.stem.1.reparam_conv.bias",
                    "model.vision_tower.vision_tower.model.patch_embed.1.reparam_conv.bias",
                    "vision_tower.vision_model.patch_embed.blocks.1.reparam_conv.bias",
                ],
                "model.vision_tower.timm_model.stem.1.reparam_conv.bias",
            ),
            (
                &["model.vision_tower.vision_tower.model.network.10.0.layer_scale_2"],
                "model.vision_tower.timm_model.stages.4.blocks.0.layer_scale_2.gamma",
            ),
            (
                &["vision_tower.vision_model.network.5.proj.0.lkb_reparam.weight"],
                "model.vision_tower.timm_model.stages.3.downsample.proj.0.reparam_conv.weight",
            ),
            (
                &["vision_tower.vision_model.conv_exp.se.expand.bias"],
                "model.vision_tower.timm_model.final_conv.se.fc2.bias",
            ),
        ] {
            for name in names {
                assert_eq!(rename(name, false), Renamed::To(native.to_owned()), "{name}");
            }
        }
        for name in ["lm_head.weight", "model.vision_tower.vision_tower.model.head.proj"] {
            assert_eq!(rename(name, true), Renamed::Ignored, "{name}");
        }
    }

    #[test]
    fn channels_come_last() {
        assert_eq!(channels_last(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    }
}
