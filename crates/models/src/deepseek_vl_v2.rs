//! DeepSeek-VL2 (published `modeling_deepseek_vl_v2.py`; transformers has no class of its own). N tiles of a picture,
//! T patches of one tile.
//!
//! A SigLIP tower, a projector that makes one token of 2 × 2 patches, a DeepSeek-V2 decoder. A picture is seen as a
//! whole (the first tile) and in tiles. Surprises: an odd number of patches is filled up with zeros, the four patches
//! of a token lie channel by channel, a learned row ends every line of tokens, and the tiles' lines run across all tiles
//! side by side. The checkpoint spells `view_seperator`.

use ocelli_backend::{
    Activation, Backend, Cancel, ConvolutionDims, KvCache, KvShape, Linear, Renamed, Step, Tensor, WeightSource,
    Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::deepseek_v2::{self, Decoder};
use crate::error::{Error, Result, require};
use crate::timm_vit::{self, VisionTransformer};
use crate::{ImageInput, Model, PixelValues};

/// The top level of `config.json`.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    #[serde(default = "default_tile_tag")]
    tile_tag: String,
    #[serde(default = "default_global_view_pos")]
    global_view_pos: String,
    image_token_id: Option<u32>,
}

/// `projector_config`; defaults are those of the published code.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct ProjectorConfig {
    projector_type: String,
    input_dim: usize,
    n_embed: usize,
    depth: usize,
    mlp_ratio: usize,
    downsample_ratio: usize,
    token_pooling: bool,
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        Self {
            projector_type: "downsample_mlp_gelu".to_owned(),
            input_dim: 1152,
            n_embed: 2048,
            depth: 2,
            mlp_ratio: 1,
            downsample_ratio: 2,
            token_pooling: false,
        }
    }
}

/// A vision-language model: tower, projector, decoder, output layer.
pub(crate) struct DeepseekVlV2<B: Backend> {
    backend: B,
    vision: VisionTransformer<B>,
    projector: [Linear<B>; 2],
    image_newline: Tensor<B>,
    view_separator: Tensor<B>,
    language: Decoder<B>,
    text_config: deepseek_v2::Config,
    image_token: u32,
    /// Patches along one side of a tile.
    side: usize,
    /// Patches along one side of a token.
    ratio: usize,
}

impl<B: Backend> DeepseekVlV2<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = |name| config.section(name).ok_or_else(|| Error::from(root.error(name, "missing")));
        let (text, vision, projector) =
            (section("language_config")?, section("vision_config")?, section("projector_config")?);
        let text_config = deepseek_v2::Config::parse(&text)?;
        let vision_config = timm_vit::Config::parse(&vision)?;
        let projector_config = parse_projector(&projector, &vision_config, &text_config)?;
        let image_token = image_token(root, &parse(root)?, text_config.vocab_size)?;

        let weights = Weights::new(backend, source, rename)?;
        let (hidden, ratio) = (text_config.hidden_size, projector_config.downsample_ratio);
        let projection = weights.at("projector.layers").vision();
        let inner = hidden * projector_config.mlp_ratio;
        let model = Self {
            backend: backend.clone(),
            vision: VisionTransformer::load(&weights.at("vision").vision(), &vision_config)?,
            projector: [
                projection.linear_bias("0", vision_config.width * ratio * ratio, inner)?,
                projection.linear_bias("2", inner, hidden)?,
            ],
            image_newline: weights.values("image_newline", &[hidden])?,
            view_separator: weights.values("view_seperator", &[hidden])?,
            language: Decoder::load(&weights.at("language"), &text_config, &text)?,
            text_config,
            image_token,
            side: vision_config.side(),
            ratio,
        };
        weights.finish()?;
        Ok(model)
    }

    /// Features [N, T, width] -> [N × tokens of a tile, hidden].
    fn project(&self, features: &Tensor<B>) -> Tensor<B> {
        let (tiles, width) = (features.shape()[0], features.width());
        let filled = self.side.next_multiple_of(self.ratio);
        let zeros = Tensor::new(&self.backend, &vec![0.0; width], &[1, width]);
        let rows = filled_rows(tiles, self.side, filled);
        let x = Tensor::concat_rows(&[&features.reshape(&[features.rows(), width]), &zeros]).gather_rows(&rows);
        let dims = ConvolutionDims {
            batch: tiles,
            height: filled,
            width: filled,
            channels: width,
            multiplier: 1,
            kernel: [self.ratio; 2],
            stride: [self.ratio; 2],
            padding: [0; 2],
        };
        let [first, second] = &self.projector;
        second.forward(&first.forward_then(&x.unfold_windows(dims), Activation::Gelu))
    }
}

impl<B: Backend> Model<B> for DeepseekVlV2<B> {
    fn kv_shape(&self) -> KvShape {
        self.language.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.text_config.max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.text_config.vocab_size
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Tokens(self.image_token)
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.language.embed_tokens.forward(ids)
    }

    /// [N, 3, side, side], the whole picture and then its tiles row by row (a single one is the whole and not there again) ->
    /// [vision tokens, hidden].
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let PixelValues { values, shape, grid: [_, rows, columns], .. } = pixel_values;
        let pixels = Tensor::new(&self.backend, values, &shape);
        let projected = self.project(&self.vision.forward(&pixels, cancel));
        let learned = [&self.image_newline, &self.view_separator].map(|row| row.reshape(&[1, row.width()]));
        let all = Tensor::concat_rows(&[&projected, &learned[0], &learned[1]]);
        all.gather_rows(&arrangement(self.side.div_ceil(self.ratio), rows, columns, shape[0]))
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.language.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.language.lm_head.forward(hidden)
    }
}

fn parse(root: &Section) -> Result<Config> {
    let config: Config = root.parse()?;
    require(root, config.tile_tag == "2D", "tile_tag", &config.tile_tag, "2D")?;
    require(root, config.global_view_pos == "head", "global_view_pos", &config.global_view_pos, "head")?;
    Ok(config)
}

fn parse_projector(
    section: &Section,
    vision: &timm_vit::Config,
    text: &deepseek_v2::Config,
) -> Result<ProjectorConfig> {
    let config: ProjectorConfig = section.parse()?;
    let kind = &config.projector_type;
    require(section, kind == "downsample_mlp_gelu", "projector_type", kind, "downsample_mlp_gelu")?;
    require(section, config.depth == 2, "depth", config.depth, "2")?;
    require(section, (1..=64).contains(&config.mlp_ratio), "mlp_ratio", config.mlp_ratio, "1 to 64")?;
    let ratio = config.downsample_ratio;
    require(section, (1..=16).contains(&ratio), "downsample_ratio", ratio, "1 to 16")?;
    require(section, !config.token_pooling, "token_pooling", true, "false")?;
    require(section, config.input_dim == vision.width, "input_dim", config.input_dim, "the tower's width")?;
    require(section, config.n_embed == text.hidden_size, "n_embed", config.n_embed, "the decoder's hidden_size")?;
    Ok(config)
}

/// Published configs leave the token out, but each of the two vocabularies has it at one place.
fn image_token(root: &Section, config: &Config, vocab_size: usize) -> Result<u32> {
    let published = PUBLISHED_IMAGE_TOKENS.iter().find(|(size, _)| *size == vocab_size).map(|&(_, id)| id);
    let message = "missing, and the vocabulary is none of the published ones";
    config.image_token_id.or(published).ok_or_else(|| root.error("image_token_id", message).into())
}

/// Rows of features for tiles of `filled` × `filled` patches, of which `side` × `side` are there; the row behind all
/// stands for the others.
fn filled_rows(tiles: usize, side: usize, filled: usize) -> Vec<usize> {
    let nothing = tiles * side * side;
    let place = |tile, y, x| if y < side && x < side { (tile * side + y) * side + x } else { nothing };
    let of_tile = |tile| (0..filled).flat_map(move |y| (0..filled).map(move |x| place(tile, y, x)));
    (0..tiles).flat_map(of_tile).collect()
}

/// Which projected rows make a picture, line by line: the whole, then the tiles. Of `tiles` × `side` × `side` rows, behind
/// which lie the row that ends a line and the row between both views.
fn arrangement(side: usize, rows: usize, columns: usize, tiles: usize) -> Vec<usize> {
    let newline = tiles * side * side;
    let mut order = Vec::new();
    let mut view = |first: usize, rows: usize, columns: usize| {
        for y in 0..rows * side {
            for x in 0..columns * side {
                let tile = first + y / side * columns + x / side;
                order.push((tile * side + y % side) * side + x % side);
            }
            order.push(newline);
        }
    };
    view(0, 1, 1);
    let whole = side * (side + 1);
    view(usize::from(tiles > 1), rows, columns);
    order.insert(whole, newline + 1);
    order
}

/// Names of every layout -> the published ones. MLX nests the tower, stacks the experts and corrects the spelling.
fn rename(name: &str) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") {
        return Renamed::Ignored;
    }
    if let Some(rest) = name.strip_prefix("vision.") {
        let rest = rest.strip_prefix("vision_tower.").unwrap_or(rest);
        if rest.starts_with("attn_pool.") {
            return Renamed::Ignored;
        }
        return Renamed::To(format!("vision.{rest}"));
    }
    if name == "view_separator" {
        return Renamed::To("view_seperator".to_owned());
    }
    let name = match name.strip_prefix("language_model.") {
        Some(rest) => format!("language.{rest}"),
        None => name.to_owned(),
    };
    match name.split_once(".switch_mlp.") {
        Some((layer, matrix)) => Renamed::Parts { before: format!("{layer}.experts."), after: format!(".{matrix}") },
        None => Renamed::To(name),
    }
}

fn default_tile_tag() -> String {
    "2D".to_owned()
}

fn default_global_view_pos() -> String {
    "head".to_owned()
}

/// Size of a published vocabulary and its `<image>`: Small; Tiny and the large model.
const PUBLISHED_IMAGE_TOKENS: [(usize, u32); 2] = [(102_400, 100_003), (129_280, 128_815)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_run_across_tiles_and_end_with_a_newline() {
        // One token per tile, two tiles side by side: rows 0 (whole), 1, 2; 3 is the newline, 4 the separator.
        assert_eq!(arrangement(1, 1, 2, 3), [0, 3, 4, 1, 2, 3]);
        let order = arrangement(2, 1, 2, 3);
        assert_eq!(order[..7], [0, 1, 12, 2, 3, 12, 13]);
        assert_eq!(order[7..], [4, 5, 8, 9, 12, 6, 7, 10, 11, 12]);
        // A single tile is the whole once more.
        assert_eq!(arrangement(1, 1, 1, 1), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn odd_sides_are_filled_up() {
        assert_eq!(filled_rows(1, 2, 2), [0, 1, 2, 3]);
        assert_eq!(filled_rows(2, 1, 2), [0, 2, 2, 2, 1, 2, 2, 2]);
    }

    #[test]
    fn every_layout_gets_the_published_names() {
        let to = |name: &str| Renamed::To(name.to_owned());
        for name in ["view_seperator", "view_separator"] {
            assert_eq!(rename(name), to("view_seperator"));
        }
        for name in ["vision.blocks.1.attn.qkv.bias", "vision.vision_tower.blocks.1.attn.qkv.bias"] {
            assert_eq!(rename(name), to("vision.blocks.1.attn.qkv.bias"));
        }
        for name in ["language.lm_head.weight", "language_model.lm_head.weight"] {
            assert_eq!(rename(name), to("language.lm_head.weight"));
        }
        assert_eq!(rename("vision.vision_tower.attn_pool.latent"), Renamed::Ignored);
        let (before, after) = ("language.model.layers.3.mlp.experts.".to_owned(), ".up_proj.weight".to_owned());
        let stack = "language_model.model.layers.3.mlp.switch_mlp.up_proj.weight";
        assert_eq!(rename(stack), Renamed::Parts { before, after });
    }
}
