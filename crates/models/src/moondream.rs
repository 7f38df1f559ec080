//! Moondream 2 (`moondream/torch` upstream: `moondream.py`, `text.py`, `vision.py`). R rows, H heads, D head size, N crops of
//! a picture (the first is the whole of it), T patches of a crop.
//!
//! A SigLIP-like tower over overlapping crops, whose patches are stitched together, averaged down to one crop's grid and
//! laid beside those of the whole picture; a Phi decoder, whose layers add attention and feed-forward part side by side.
//! Surprises: the first token and a picture's features see each other, later ones too; only half of a head turns; numbers
//! are read off hidden states before the last norm, so that norm belongs to the output layer here; upstream takes
//! `enc_n_layers` for the grid's side, which works because both are 27.

use ocelli_backend::{
    Activation, Backend, Cancel, Embedding, KvCache, KvShape, LayerKv, LayerNorm, Linear, Renamed, Rope, RopeRows,
    Step, Tensor, WeightSource, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};
use crate::moondream_region::{self, Region};
use crate::{ImageInput, Locator, Model, PixelValues};

/// `config` of `config.json`, which published checkpoints leave empty: defaults are those of upstream's code.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    text: TextConfig,
    vision: VisionConfig,
    region: moondream_region::Config,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct TextConfig {
    dim: usize,
    ff_dim: usize,
    n_layers: usize,
    vocab_size: usize,
    max_context: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    prefix_attn: usize,
    group_size: Option<usize>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            dim: 2048,
            ff_dim: 8192,
            n_layers: 24,
            vocab_size: 51_200,
            max_context: 2048,
            n_heads: 32,
            n_kv_heads: None,
            prefix_attn: 730,
            group_size: None,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    enc_dim: usize,
    enc_patch_size: usize,
    enc_n_layers: usize,
    enc_ff_dim: usize,
    enc_n_heads: usize,
    proj_inner_dim: usize,
    crop_size: usize,
    overlap_margin: usize,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            enc_dim: 1152,
            enc_patch_size: 14,
            enc_n_layers: 27,
            enc_ff_dim: 4304,
            enc_n_heads: 16,
            proj_inner_dim: 8192,
            crop_size: 378,
            overlap_margin: 4,
        }
    }
}

impl VisionConfig {
    /// Patches along one side of a crop.
    fn side(&self) -> usize {
        self.crop_size / self.enc_patch_size
    }
}

impl TextConfig {
    fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }
}

/// A vision-language model.
pub(crate) struct Moondream<B: Backend> {
    backend: B,
    vision: Tower<B>,
    wte: Embedding<B>,
    blocks: Vec<DecoderLayer<B>>,
    post_ln: LayerNorm<B>,
    lm_head: Linear<B>,
    region: Region<B>,
    rope: Rope,
    config: TextConfig,
}

impl<B: Backend> Moondream<B> {
    /// Loads a checkpoint of 2025 or later, or one that has the names of 2024.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        // The code that came with the models of 2024 is called so; upstream's later code reads their names only.
        let is_older = config.architectures().contains(&"Moondream");
        let expected = "HfMoondream, revision 2025-01-09 or later: older ones cut pictures in another way";
        require(config.root(), !is_older, "architectures", "Moondream", expected)?;
        let section = config.section("config");
        let Config { text, vision, region } = match &section {
            Some(section) => parse(section)?,
            None => Config::default(),
        };
        let weights = Weights::new(backend, source, rename)?;
        let w = weights.at("model.text");
        let layer = |layer_idx| DecoderLayer::load(&w.at(&format!("blocks.{layer_idx}")), &text);
        let model = Self {
            backend: backend.clone(),
            vision: Tower::load(&weights.at("model.vision").vision(), &vision, text.dim)?,
            wte: w.embedding("wte", text.vocab_size, text.dim)?,
            blocks: (0..text.n_layers).map(layer).collect::<Result<_>>()?,
            post_ln: w.layer_norm("post_ln", text.dim, NORM_EPS)?,
            lm_head: w.output_bias("lm_head", text.dim, text.vocab_size)?,
            // Few weights, and every bin counts.
            region: Region::load(&weights.at("model.region").vision(), &region, text.dim)?,
            rope: Rope::new(text.head_dim() / 2, ROPE_THETA, None),
            config: text,
        };
        weights.finish()?;
        Ok(model)
    }

    /// No token of the vocabulary: the first id behind it.
    fn image_token(&self) -> u32 {
        self.config.vocab_size as u32
    }
}

impl<B: Backend> Model<B> for Moondream<B> {
    fn kv_shape(&self) -> KvShape {
        let config = &self.config;
        KvShape { layers: config.n_layers, kv_heads: config.kv_heads(), head_dim: config.head_dim() }
    }

    fn max_positions(&self) -> usize {
        self.config.max_context
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Tokens(self.image_token())
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        // A picture's tokens are replaced anyway.
        let ids: Vec<u32> = ids.iter().map(|&id| if id == self.image_token() { 0 } else { id }).collect();
        self.wte.forward(&ids)
    }

    /// [N, 3, crop, crop] -> [T, hidden].
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let PixelValues { values, shape, grid: [_, rows, columns], .. } = pixel_values;
        let pixels = Tensor::new(&self.backend, values, &shape);
        self.vision.forward(&pixels, [rows, columns], cancel)
    }

    fn prefix(&self, ids: &[u32]) -> usize {
        if ids.get(1) == Some(&self.image_token()) { self.config.prefix_attn } else { 0 }
    }

    fn locator(&self) -> Option<&dyn Locator<B>> {
        Some(&self.region)
    }

    /// Hidden states before the last norm, which [`Self::logits`] applies.
    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let rope = self.rope.rows(x.backend(), step.positions());
        let mut x = x.clone();
        for (layer_idx, block) in self.blocks.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = block.forward(&x, &rope, step, kv.layer(layer_idx));
        }
        x
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.lm_head.forward(&self.post_ln.forward(hidden))
    }
}

/// The tower with its projector.
struct Tower<B: Backend> {
    patch_emb: Linear<B>,
    pos_emb: Tensor<B>,
    blocks: Vec<EncoderLayer<B>>,
    post_ln: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    config: VisionConfig,
}

impl<B: Backend> Tower<B> {
    fn load(w: &Weights<B>, cfg: &VisionConfig, hidden: usize) -> Result<Self> {
        let (dim, patches) = (cfg.enc_dim, cfg.side() * cfg.side());
        let proj = w.at("proj_mlp");
        let layer = |layer_idx| EncoderLayer::load(&w.at(&format!("blocks.{layer_idx}")), cfg);
        Ok(Self {
            patch_emb: w.patch_linear("patch_emb", 3 * cfg.enc_patch_size * cfg.enc_patch_size, dim)?,
            pos_emb: w.values("pos_emb", &[1, patches, dim])?.reshape(&[patches, dim]),
            blocks: (0..cfg.enc_n_layers).map(layer).collect::<Result<_>>()?,
            post_ln: w.layer_norm("post_ln", dim, NORM_EPS)?,
            fc1: proj.linear_bias("fc1", 2 * dim, cfg.proj_inner_dim)?,
            fc2: proj.linear_bias("fc2", cfg.proj_inner_dim, hidden)?,
            config: cfg.clone(),
        })
    }

    /// `pixels` [N, 3, crop, crop], the crops behind the first lying in `tiling` rows and columns (a single one is the first
    /// and not there again) -> [T, hidden].
    fn forward(&self, pixels: &Tensor<B>, tiling: [usize; 2], cancel: &Cancel) -> Tensor<B> {
        let patches = pixels.unfold_patches(self.config.enc_patch_size); // [N, T, 3 × patch × patch]
        let mut x = self.patch_emb.forward(&patches).add_repeated(&self.pos_emb); // [N, T, width]
        for block in &self.blocks {
            if cancel.is_cancelled() {
                break;
            }
            x = block.forward(&x);
        }
        let x = self.post_ln.forward(&x);
        let side = self.config.side();
        let whole = x.gather_rows(&(0..side * side).collect::<Vec<_>>());
        let Average { sources, targets, factors } = Average::of_crops(tiling, side, self.config.overlap_margin);
        let nothing = Tensor::new(x.backend(), &vec![0.0; side * side * x.width()], &[side * side, x.width()]);
        let parts = nothing.add_scaled_rows(&targets, &factors, &x.gather_rows(&sources));
        let features = Tensor::concat_columns(&[&whole, &parts]); // [T, 2 × width]
        self.fc2.forward(&self.fc1.forward_then(&features, Activation::GeluTanh))
    }
}

/// How the patches of overlapping crops become one grid as large as a crop's: row `targets[i]` of the grid gets `factors[i]`
/// times row `sources[i]` of all crops.
struct Average {
    sources: Vec<usize>,
    targets: Vec<usize>,
    factors: Vec<f32>,
}

impl Average {
    /// Crops of `side` × `side` patches, of which `margin` rows and columns are left out where another crop begins.
    fn of_crops([rows, columns]: [usize; 2], side: usize, margin: usize) -> Self {
        let (down, across) = (Axis::new(rows, side, margin), Axis::new(columns, side, margin));
        // Before the crops lies the whole picture, unless there is only one.
        let first = usize::from(rows * columns > 1);
        let mut average = Self { sources: Vec::new(), targets: Vec::new(), factors: Vec::new() };
        for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
            let (ys, xs) = (down.window(row), across.window(column));
            let factor = ((ys.len() * xs.len()) as f32).recip();
            for (y, x) in ys.flat_map(|y| xs.clone().map(move |x| (y, x))) {
                let ((crop_row, y), (crop_column, x)) = (down.place(y), across.place(x));
                let crop = first + crop_row * columns + crop_column;
                average.sources.push((crop * side + y) * side + x);
                average.targets.push(row * side + column);
                average.factors.push(factor);
            }
        }
        average
    }
}

/// One axis of crops that were stitched together.
struct Axis {
    crops: usize,
    side: usize,
    margin: usize,
}

impl Axis {
    fn new(crops: usize, side: usize, margin: usize) -> Self {
        Self { crops, side, margin }
    }

    fn window_len(&self) -> usize {
        self.side - 2 * self.margin
    }

    /// The stitched patches whose mean is patch `at` of the grid.
    fn window(&self, at: usize) -> std::ops::Range<usize> {
        let len = self.crops * self.window_len() + 2 * self.margin;
        at * len / self.side..((at + 1) * len).div_ceil(self.side)
    }

    /// The crop that a stitched patch was taken from, and where in it.
    fn place(&self, at: usize) -> (usize, usize) {
        let crop = (at.saturating_sub(self.margin) / self.window_len()).min(self.crops - 1);
        (crop, at - crop * self.window_len())
    }
}

struct EncoderLayer<B: Backend> {
    ln1: LayerNorm<B>,
    qkv: Linear<B>,
    proj: Linear<B>,
    ln2: LayerNorm<B>,
    mlp: Mlp<B>,
    n_heads: usize,
}

impl<B: Backend> EncoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &VisionConfig) -> Result<Self> {
        let dim = cfg.enc_dim;
        Ok(Self {
            ln1: w.layer_norm("ln1", dim, NORM_EPS)?,
            qkv: w.linear_bias("attn.qkv", dim, 3 * dim)?,
            proj: w.linear_bias("attn.proj", dim, dim)?,
            ln2: w.layer_norm("ln2", dim, NORM_EPS)?,
            mlp: Mlp::load(&w.at("mlp"), dim, cfg.enc_ff_dim, dim)?,
            n_heads: cfg.enc_n_heads,
        })
    }

    /// `x` [N, T, width] -> the same shape.
    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let dim = x.width();
        let qkv = self.qkv.forward_parts(&self.ln1.forward(x), [dim; 3]);
        let [q, k, v] = qkv.map(|part| part.split_heads(self.n_heads));
        let scale = ((dim / self.n_heads) as f32).sqrt().recip();
        let attended = q.attend_all(&k, &v, x.shape()[0], scale).merge_heads().reshape(x.shape());
        let x = self.proj.forward_add(&attended, x);
        self.mlp.forward_add(&self.ln2.forward(&x), &x)
    }
}

struct DecoderLayer<B: Backend> {
    ln: LayerNorm<B>,
    qkv: Linear<B>,
    proj: Linear<B>,
    mlp: Mlp<B>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl<B: Backend> DecoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &TextConfig) -> Result<Self> {
        let (n_heads, n_kv_heads, head_dim) = (cfg.n_heads, cfg.kv_heads(), cfg.head_dim());
        Ok(Self {
            ln: w.layer_norm("ln", cfg.dim, NORM_EPS)?,
            qkv: w.linear_bias("attn.qkv", cfg.dim, (n_heads + 2 * n_kv_heads) * head_dim)?,
            proj: w.linear_bias("attn.proj", cfg.dim, cfg.dim)?,
            mlp: Mlp::load(&w.at("mlp"), cfg.dim, cfg.ff_dim, cfg.dim)?,
            n_heads,
            n_kv_heads,
            head_dim,
        })
    }

    /// `x` [R, hidden] -> [R, hidden]; appends this layer's keys and values to `kv`.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, step: &Step, kv: &mut LayerKv<B>) -> Tensor<B> {
        let normed = self.ln.forward(x);
        let heads = [self.n_heads, self.n_kv_heads, self.n_kv_heads];
        let [q, k, v] = self.qkv.forward_parts(&normed, heads.map(|heads| heads * self.head_dim));
        let q = q.split_heads(self.n_heads).rope(rope); // [R, H, D]
        let k = k.split_heads(self.n_kv_heads).rope(rope);
        let v = v.split_heads(self.n_kv_heads);
        let scale = (self.head_dim as f32).sqrt().recip();
        let attended = q.attend(kv.append(&k, &v, step), scale, step);
        let x = self.proj.forward_add(&attended.merge_heads(), x);
        self.mlp.forward_add(&normed, &x)
    }
}

/// `fc2(gelu(fc1(x)))`.
pub(crate) struct Mlp<B: Backend> {
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub(crate) fn load(w: &Weights<B>, inputs: usize, inner: usize, outputs: usize) -> Result<Self> {
        Ok(Self { fc1: w.linear_bias("fc1", inputs, inner)?, fc2: w.linear_bias("fc2", inner, outputs)? })
    }

    pub(crate) fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        self.fc2.forward(&self.fc1.forward_then(x, Activation::GeluTanh))
    }

    fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        self.fc2.forward_add(&self.fc1.forward_then(x, Activation::GeluTanh), residual)
    }
}

fn parse(section: &Section) -> Result<Config> {
    let config: Config = section.parse()?;
    let (text, vision) = (&config.text, &config.vision);
    require(section, text.group_size.is_none(), "text.group_size", text.group_size.unwrap_or(0), "null")?;
    let (heads, kv_heads) = (text.n_heads, text.kv_heads());
    let fits = heads > 0 && text.dim.is_multiple_of(4 * heads);
    require(section, fits, "text.n_heads", heads, "a divisor of a quarter of text.dim")?;
    let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads);
    require(section, fits, "text.n_kv_heads", kv_heads, "a divisor of text.n_heads")?;
    let heads = vision.enc_n_heads;
    require(
        section,
        heads > 0 && vision.enc_dim.is_multiple_of(heads),
        "vision.enc_n_heads",
        heads,
        "a divisor of enc_dim",
    )?;
    let patch = vision.enc_patch_size;
    let fits = patch > 0 && vision.side() > 2 * vision.overlap_margin;
    require(section, fits, "vision.overlap_margin", vision.overlap_margin, "less than half of a crop")?;
    let features = vision.side() * vision.side();
    let prefix = text.prefix_attn;
    require(section, prefix == features + 1, "text.prefix_attn", prefix, &format!("{}", features + 1))?;
    Ok(config)
}

/// Upstream's modules are dictionaries, whose own parameters have no `weight`. Checkpoints have its names, its names
/// without `model.`, or those of its modules of 2024 (upstream `weights.py`), as a compiler may have wrapped them.
fn rename(name: &str) -> Renamed {
    let name = OLDER_NAMES.iter().fold(name.replace("._orig_mod", ""), |name, (from, to)| name.replace(from, to));
    let name = if name.starts_with("model.") { name } else { format!("model.{name}") };
    Renamed::To(if name == "model.text.wte" { "model.text.wte.weight".to_owned() } else { name })
}

/// What parts of names were in 2024, and what they are.
const OLDER_NAMES: &[(&str, &str)] = &[
    ("vision_encoder.encoder.model.visual.patch_embed.linear.", "vision.patch_emb."),
    ("vision_encoder.encoder.model.visual.pos_embed", "vision.pos_emb"),
    ("vision_encoder.encoder.model.visual.norm.", "vision.post_ln."),
    ("vision_encoder.encoder.model.visual.blocks.", "vision.blocks."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    ("vision_encoder.projection.mlp.", "vision.proj_mlp."),
    ("text_model.transformer.embd.wte.", "text.wte."),
    ("text_model.transformer.h.", "text.blocks."),
    (".mixer.Wqkv.", ".attn.qkv."),
    (".mixer.out_proj.", ".attn.proj."),
    ("text_model.lm_head.ln.", "text.post_ln."),
    ("text_model.lm_head.linear.", "text.lm_head."),
    ("region_model.coordinate_", "region.coord_"),
    ("region_model.size_", "region.size_"),
];
const NORM_EPS: f64 = 1e-5;
const ROPE_THETA: f64 = 10_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_2024_are_those_of_today() {
        for (name, expected) in [
            ("model.text.wte", "model.text.wte.weight"),
            ("vision.blocks.0.attn.proj.bias", "model.vision.blocks.0.attn.proj.bias"),
            ("vision_encoder.encoder.model.visual.blocks.3._orig_mod.norm1.weight", "model.vision.blocks.3.ln1.weight"),
            ("text_model.transformer.embd.wte.weight", "model.text.wte.weight"),
            ("text_model.transformer.h.7.mixer.Wqkv.bias", "model.text.blocks.7.attn.qkv.bias"),
            ("text_model.lm_head.ln.weight", "model.text.post_ln.weight"),
            ("region_model.coordinate_features.weight", "model.region.coord_features.weight"),
        ] {
            assert_eq!(rename(name), Renamed::To(expected.to_owned()));
        }
    }

    #[test]
    fn a_single_crop_is_the_whole_picture() {
        let Average { sources, targets, factors } = Average::of_crops([1, 1], 27, 4);
        let patches: Vec<usize> = (0..729).collect();
        assert_eq!((&sources, &targets), (&patches, &patches));
        assert_eq!(factors, [1.0; 729]);
    }

    #[test]
    fn margins_are_taken_from_the_crop_at_the_edge() {
        // Two crops of 5 patches with margins of 1: 0 1 2 3 | 1 2 3 4 of the second.
        let axis = Axis::new(2, 5, 1);
        let places: Vec<_> = (0..8).map(|at| axis.place(at)).collect();
        assert_eq!(places, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 4)]);
        let windows: Vec<_> = (0..5).map(|at| axis.window(at)).collect();
        assert_eq!(windows, [0..2, 1..4, 3..5, 4..7, 6..8]);
    }

    #[test]
    fn the_weights_of_a_mean_are_one() {
        let average = Average::of_crops([2, 4], 27, 4);
        let mut sums = vec![0.0; 729];
        for (&target, factor) in average.targets.iter().zip(&average.factors) {
            sums[target] += factor;
        }
        assert!(sums.iter().all(|sum: &f32| (sum - 1.0).abs() < 1e-5));
        assert!(average.sources.iter().all(|&source| (729..9 * 729).contains(&source)));
    }
}
