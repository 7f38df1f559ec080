//! Qwen3-VL (transformers `modeling_qwen3_vl.py`). T patches of a picture, s the side of the square of patches that
//! becomes one token, R rows of a step, L layers of the tower whose features go to the decoder's first layers (DeepStack).
//!
//! Surprises: a token's features are as wide as 1 + L hidden states, the first for its embedding, the others added behind
//! the decoder's first layers; their mergers normalise s² patches together, the last one each by itself. Learned
//! positions are stretched over the picture, and rotary embeddings come on top.

use ocelli_backend::{
    Activation, Backend, Cancel, KvCache, KvShape, LayerNorm, Linear, Renamed, RopeRows, Step, Tensor, WeightSource,
    Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder::{CausalLm, Rotation};
use crate::error::{Error, Result, require};
use crate::mrope::{self, MRope, Span};
use crate::qwen_vision::{Attention, Grid, Merger, PatchConfig};
use crate::qwen_vl::{self, Config};
use crate::qwen3;
use crate::{Extent, ImageInput, Model, PixelValues};

/// `vision_config`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
struct VisionConfig {
    #[serde(default = "default_depth")]
    depth: usize,
    hidden_size: usize,
    intermediate_size: usize,
    out_hidden_size: usize,
    #[serde(default = "default_num_position_embeddings")]
    num_position_embeddings: usize,
    #[serde(default = "default_deepstack_visual_indexes")]
    deepstack_visual_indexes: Vec<usize>,
}

/// A vision-language model: tower, decoder, output layer.
pub(crate) struct Qwen3Vl<B: Backend> {
    backend: B,
    visual: Tower<B>,
    language_model: CausalLm<B>,
    config: Config,
}

impl<B: Backend> Qwen3Vl<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = |name| config.section(name).ok_or_else(|| Error::from(root.error(name, "missing")));
        let (text_section, vision_section) = (section("text_config")?, section("vision_config")?);
        let mut text_config = qwen3::Config::parse(&text_section)?;
        let rope = MRope::load(config, text_config.head_dim, text_config.rope_theta.unwrap_or(ROPE_THETA))?;
        let config: Config = root.parse()?;
        let tied = config.tie_word_embeddings.unwrap_or(text_config.tie_word_embeddings);
        text_config.tie_word_embeddings = tied;

        let weights = Weights::new(backend, source, |name| rename(name, tied))?;
        let language_model = CausalLm::load(
            &weights,
            &weights.at("model.language_model"),
            text_config.dims(),
            Rotation::Axes(rope),
            text_config.max_position_embeddings,
        )?;
        let model = Self {
            backend: backend.clone(),
            visual: Tower::load(&weights.at("model.visual").vision(), &vision_section, &text_config)?,
            language_model,
            config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for Qwen3Vl<B> {
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
        let grid = Grid::of(&pixel_values, self.visual.patches.merge());
        let patches = Tensor::new(&self.backend, pixel_values.values, &pixel_values.shape[2..]);
        self.visual.forward(&patches, grid, cancel)
    }

    /// Rows [R, (1 + L) × hidden]: text has nothing for deeper layers.
    fn join(&self, embedded: &Tensor<B>, rows: &[usize], features: &Tensor<B>) -> Tensor<B> {
        let nothing = [embedded.rows(), features.width() - embedded.width()];
        let nothing = Tensor::new(&self.backend, &vec![0.0; nothing.iter().product()], &nothing);
        Tensor::concat_columns(&[embedded, &nothing]).replace_rows(rows, features)
    }

    /// Every frame of a video is a block of its own, with the time in words before it.
    fn places(&self, ids: &[u32], extents: &[Extent], next: usize) -> Option<Vec<[usize; 3]>> {
        let merge = self.visual.patches.merge();
        let spans = extents.iter().flat_map(|&Extent { grid: [frames, rows, columns], .. }| {
            let span = Span { tokens: [1, rows / merge, columns / merge], frame_step: 0.0 };
            std::iter::repeat_n(span, frames)
        });
        Some(mrope::places(ids, self.image_input(), &spans.collect::<Vec<_>>(), next))
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let hidden = self.language_model.dims.hidden_size;
        let part = |idx: usize| x.columns(idx * hidden..(idx + 1) * hidden);
        let deeper: Vec<Tensor<B>> = (1..x.width() / hidden).map(part).collect();
        self.language_model.decoder.forward_deeper(&part(0), &deeper, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.language_model.logits(hidden)
    }
}

/// The tower: patches -> features of tokens.
struct Tower<B: Backend> {
    patch_embedding: Linear<B>,
    /// A square of positions, row by row.
    position_embedding: Tensor<B>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    merger: Merger<B>,
    /// Behind which layer each comes, its norm over s² patches, and the rest of it.
    deepstack: Vec<(usize, LayerNorm<B>, Merger<B>)>,
    patches: PatchConfig,
    config: VisionConfig,
}

impl<B: Backend> Tower<B> {
    fn load(w: &Weights<B>, section: &Section, text: &qwen3::Config) -> Result<Self> {
        let config: VisionConfig = section.parse()?;
        let (hidden, out) = (config.hidden_size, config.out_hidden_size);
        let patches = PatchConfig::parse(section, hidden)?;
        if let Some(act) = section.string("hidden_act")? {
            require(section, act == "gelu_pytorch_tanh", "hidden_act", act, "gelu_pytorch_tanh")?;
        }
        require(section, out == text.hidden_size, "out_hidden_size", out, "the decoder's hidden_size")?;
        let positions = config.num_position_embeddings;
        let is_square = positions > 0 && positions.isqrt().checked_mul(positions.isqrt()) == Some(positions);
        require(section, is_square, "num_position_embeddings", positions, "a square")?;
        let (indexes, key) = (&config.deepstack_visual_indexes, "deepstack_visual_indexes");
        let fits = indexes.is_sorted() && indexes.iter().all(|&idx| idx < config.depth);
        require(section, fits, key, format!("{indexes:?}"), "ascending layers of the tower")?;
        require(section, indexes.len() <= text.num_hidden_layers, key, indexes.len(), "one per layer of the decoder")?;

        let block = |block_idx| Block::load(&w.at(&format!("blocks.{block_idx}")), &config, &patches);
        let layers = ["linear_fc1", "linear_fc2"];
        let deeper = |(idx, &behind): (usize, &usize)| {
            let w = w.at(&format!("deepstack_merger_list.{idx}"));
            let norm = w.layer_norm("norm", hidden * patches.merge() * patches.merge(), NORM_EPS)?;
            Ok((behind, norm, patches.merger(&w, layers, hidden, out)?))
        };
        Ok(Self {
            patch_embedding: patches.embedding(w, hidden, true)?,
            position_embedding: w.values("pos_embed.weight", &[positions, hidden])?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            norm: w.layer_norm("merger.norm", hidden, NORM_EPS)?,
            merger: patches.merger(&w.at("merger"), layers, hidden, out)?,
            deepstack: indexes.iter().enumerate().map(deeper).collect::<Result<_>>()?,
            patches,
            config,
        })
    }

    /// `patches` [T, values of a patch] -> [T / s², (1 + L) × text hidden].
    fn forward(&self, patches: &Tensor<B>, grid: Grid, cancel: &Cancel) -> Tensor<B> {
        let places = grid.places();
        let rope = self.patches.rope(patches.backend(), &places, self.config.hidden_size);
        let frames = grid.frame_starts();
        let mut x = self.add_positions(&self.patch_embedding.forward(patches), &places, grid); // [T, hidden]
        let mut features = Vec::with_capacity(1 + self.deepstack.len());
        let mut deepstack = self.deepstack.iter().peekable();
        for (block_idx, block) in self.blocks.iter().enumerate() {
            // Once cancelled, the features mean nothing, but they keep their width.
            if !cancel.is_cancelled() {
                x = block.forward(&x, &rope, &frames);
            }
            while let Some((_, norm, merger)) = deepstack.next_if(|(behind, ..)| *behind == block_idx) {
                features.push(merger.forward(&norm.forward(&merger.fold(&x))));
            }
        }
        features.insert(0, self.merger.forward(&self.merger.fold(&self.norm.forward(&x))));
        Tensor::concat_columns(&features.iter().collect::<Vec<_>>())
    }

    /// Adds the learned positions, stretched over the picture so that corners meet.
    fn add_positions(&self, x: &Tensor<B>, places: &[[usize; 2]], grid: Grid) -> Tensor<B> {
        let side = self.config.num_position_embeddings.isqrt();
        let (rows, columns) = (Axis::new(grid.rows, side), Axis::new(grid.columns, side));
        let targets: Vec<usize> = (0..places.len()).collect();
        let mut x = x.clone();
        for corner in 0..4 {
            let taken = places.iter().map(|&[row, column]| {
                let ((row, row_factor), (column, column_factor)) =
                    (rows.neighbour(row, corner / 2), columns.neighbour(column, corner % 2));
                (row * side + column, row_factor * column_factor)
            });
            let (taken, factors): (Vec<usize>, Vec<f32>) = taken.unzip();
            x = x.add_scaled_rows(&targets, &factors, &self.position_embedding.gather_rows(&taken));
        }
        x
    }
}

/// How one side of the square of positions is stretched.
struct Axis {
    size: usize,
    side: usize,
}

impl Axis {
    fn new(size: usize, side: usize) -> Self {
        Self { size, side }
    }

    /// The position below (0) or above (1) a patch, and its share.
    fn neighbour(&self, at: usize, which: usize) -> (usize, f32) {
        let exact = at as f32 * (self.side - 1) as f32 / self.size.saturating_sub(1).max(1) as f32;
        let below = exact.floor();
        let share = exact - below;
        let place = (below as usize + which).min(self.side - 1);
        (place, if which == 0 { 1.0 - share } else { share })
    }
}

struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    attention: Attention<B>,
    norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> Block<B> {
    fn load(w: &Weights<B>, cfg: &VisionConfig, patches: &PatchConfig) -> Result<Self> {
        let (hidden, inner, mlp) = (cfg.hidden_size, cfg.intermediate_size, w.at("mlp"));
        Ok(Self {
            norm1: w.layer_norm("norm1", hidden, NORM_EPS)?,
            attention: patches.attention(&w.at("attn"), hidden)?,
            norm2: w.layer_norm("norm2", hidden, NORM_EPS)?,
            fc1: mlp.linear_bias("linear_fc1", hidden, inner)?,
            fc2: mlp.linear_bias("linear_fc2", inner, hidden)?,
        })
    }

    /// `x` [T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, segments: &[usize]) -> Tensor<B> {
        let x = self.attention.forward_add(&self.norm1.forward(x), x, rope, segments);
        self.fc2.forward_add(&self.fc1.forward_then(&self.norm2.forward(&x), Activation::GeluTanh), &x)
    }
}

/// Names of every layout -> the published ones, which have both parts below `model.`.
fn rename(name: &str, tied: bool) -> Renamed {
    let Renamed::To(name) = qwen_vl::rename(name, tied) else { return Renamed::Ignored };
    Renamed::To(match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None if name.starts_with("visual.") => format!("model.{name}"),
        None => name,
    })
}

const NORM_EPS: f64 = 1e-6;
/// Of a config that does not say.
const ROPE_THETA: f64 = 500_000.0;

fn default_depth() -> usize {
    27
}

fn default_num_position_embeddings() -> usize {
    2304
}

fn default_deepstack_visual_indexes() -> Vec<usize> {
    vec![8, 16, 24]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gets_the_published_names() {
        let to = |name: &str| Renamed::To(name.to_owned());
        for name in ["model.language_model.norm.weight", "language_model.model.norm.weight"] {
            assert_eq!(rename(name, false), to("model.language_model.norm.weight"), "{name}");
        }
        for name in ["model.visual.merger.norm.bias", "vision_tower.merger.norm.bias"] {
            assert_eq!(rename(name, false), to("model.visual.merger.norm.bias"), "{name}");
        }
        assert_eq!(rename("language_model.lm_head.weight", false), to("lm_head.weight"));
        assert_eq!(rename("lm_head.weight", true), Renamed::Ignored);
    }

    #[test]
    fn positions_are_stretched_corner_to_corner() {
        let axis = Axis::new(5, 3);
        assert_eq!((axis.neighbour(0, 0), axis.neighbour(4, 0)), ((0, 1.0), (2, 1.0)));
        assert_eq!((axis.neighbour(1, 0), axis.neighbour(1, 1)), ((0, 0.5), (1, 0.5)));
        assert_eq!(axis.neighbour(4, 1), (2, 0.0));
        assert_eq!(Axis::new(1, 3).neighbour(0, 0), (0, 1.0));
    }
}
