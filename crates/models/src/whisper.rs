//! Whisper (transformers `modeling_whisper.py`): log-mel spectrograms of 30 seconds -> text. R rows of a step, F frames
//! of the spectrogram, T = F / 2 features, H heads, D head size.
//!
//! Two convolutions along time, a pre-norm encoder, a decoder that looks at its features by cross-attention. Surprises:
//! keys have no bias; the encoder's sinusoids are stored, as if they were learned, but not by MLX, whose names are
//! those of OpenAI; the output layer is the embedding.

use ocelli_backend::{
    Activation, Backend, Cancel, Context, Convolution, Embedding, KvCache, KvShape, LayerNorm, Linear, Renamed, Role,
    Step, Tensor, WeightSource, Weights, Windows,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};
use crate::{Alignment, ImageInput, Model, PixelValues};

/// `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    encoder_attention_heads: usize,
    decoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_ffn_dim: usize,
    vocab_size: usize,
    #[serde(default = "default_num_mel_bins")]
    num_mel_bins: usize,
    #[serde(default = "default_max_source_positions")]
    max_source_positions: usize,
    #[serde(default = "default_max_target_positions")]
    max_target_positions: usize,
    #[serde(default = "default_activation_function")]
    activation_function: String,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
}

/// A speech model: encoder, decoder, output layer.
pub(crate) struct Whisper<B: Backend> {
    backend: B,
    encoder: Encoder<B>,
    embed_tokens: Embedding<B>,
    /// `[positions, hidden]`, learned.
    embed_positions: Tensor<B>,
    layers: Vec<DecoderLayer<B>>,
    layer_norm: LayerNorm<B>,
    proj_out: Linear<B>,
    config: Config,
}

impl<B: Backend> Whisper<B> {
    /// Loads a checkpoint as transformers, OpenAI or MLX names its weights.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let config = parse(config.root())?;
        let weights = Weights::new(backend, source, |name| rename(name, config.tie_word_embeddings))?;
        let (decoder, hidden) = (weights.at("model.decoder"), config.d_model);
        let embed_tokens = decoder.embedding("embed_tokens", config.vocab_size, hidden)?;
        let proj_out = if config.tie_word_embeddings {
            embed_tokens.as_linear()
        } else {
            weights.output("proj_out", hidden, config.vocab_size)?
        };
        let layer = |layer_idx| DecoderLayer::load(&decoder.at(&format!("layers.{layer_idx}")), &config);
        let model = Self {
            backend: backend.clone(),
            encoder: Encoder::load(&weights.at("model.encoder").vision(), &config)?,
            embed_positions: decoder.values("embed_positions.weight", &[config.max_target_positions, hidden])?,
            layers: (0..config.decoder_layers).map(layer).collect::<Result<_>>()?,
            layer_norm: decoder.layer_norm("layer_norm", hidden, LAYER_NORM_EPS)?,
            embed_tokens,
            proj_out,
            config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for Whisper<B> {
    fn kv_shape(&self) -> KvShape {
        let Config { decoder_layers, decoder_attention_heads, d_model, .. } = self.config;
        let head_dim = d_model / decoder_attention_heads;
        KvShape { layers: decoder_layers, kv_heads: decoder_attention_heads, head_dim }
    }

    fn max_positions(&self) -> usize {
        self.config.max_target_positions
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Context
    }

    fn hears(&self) -> bool {
        true
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.embed_tokens.forward(ids)
    }

    /// A spectrogram `[1, 1, bands, F]` -> [T, hidden]; what is longer than the model's window is left out.
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let [_, _, bands, frames] = pixel_values.shape;
        // A recording is a picture of one row whose channels are the bands.
        let heard = frames.min(2 * self.config.max_source_positions);
        let of_frame = |at: usize| pixel_values.values[at..].iter().step_by(frames).copied();
        let by_time: Vec<f32> = (0..heard).flat_map(of_frame).collect();
        let features = self.encoder.forward(&Tensor::new(&self.backend, &by_time, &[1, 1, heard, bands]), cancel);
        features.reshape(&[features.rows(), self.config.d_model])
    }

    /// Keys and values of the features for every layer; the prompt is the decoder's.
    fn context(&self, _ids: &[u32], features: &[&Tensor<B>]) -> Context<B> {
        let features = Tensor::concat_rows(features);
        let layers = self.layers.iter().map(|layer| layer.encoder_attn.keys_and_values(&features));
        Context::new(layers.collect())
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let mut x = x + &self.embed_positions.gather_rows(step.positions());
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = layer.forward(&x, layer_idx, step, kv, &mut |_| ());
        }
        self.layer_norm.forward(&x)
    }

    /// Without heads that exist, all of the upper half of the layers are asked.
    fn align(
        &self,
        x: &Tensor<B>,
        step: &Step,
        kv: &mut KvCache<B>,
        (audio, columns): (&Tensor<B>, usize),
        heads: &[[usize; 2]],
    ) -> (Tensor<B>, Alignment) {
        let KvShape { layers, kv_heads, head_dim } = self.kv_shape();
        let exists = |&&[layer, head]: &&[usize; 2]| layer < layers && head < kv_heads;
        let mut asked: Vec<[usize; 2]> = heads.iter().filter(exists).copied().collect();
        if asked.is_empty() {
            asked = (layers / 2..layers).flat_map(|layer| (0..kv_heads).map(move |head| [layer, head])).collect();
        }
        let columns = columns.min(audio.rows());
        let mut weights = Vec::new();
        let mut x = x + &self.embed_positions.gather_rows(step.positions());
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let mut queries = None;
            x = layer.forward(&x, layer_idx, step, kv, &mut |q| queries = Some(q.to_vec()));
            let of_layer: Vec<usize> = asked.iter().filter(|of| of[0] == layer_idx).map(|of| of[1]).collect();
            if let (Some(queries), false) = (queries, of_layer.is_empty()) {
                let keys = layer.encoder_attn.k_proj.forward(audio).to_vec();
                let scale = layer.encoder_attn.scale;
                for head in of_layer {
                    let part = |values: &[f32]| columns_of(values, kv_heads * head_dim, head * head_dim, head_dim);
                    weights.extend(shares(&part(&queries), &part(&keys), head_dim, scale, columns));
                }
            }
        }
        let alignment = Alignment { weights, heads: asked.len(), rows: x.rows(), columns };
        (self.layer_norm.forward(&x), alignment)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.proj_out.forward(hidden)
    }
}

/// A spectrogram -> features.
struct Encoder<B: Backend> {
    conv1: Convolution<B>,
    conv2: Convolution<B>,
    /// `[T, hidden]`, sinusoids.
    embed_positions: Tensor<B>,
    layers: Vec<EncoderLayer<B>>,
    layer_norm: LayerNorm<B>,
}

impl<B: Backend> Encoder<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let hidden = cfg.d_model;
        let windows = |stride| Windows { kernel: [1, 3], stride: [1, stride], padding: [0, 1] };
        let layer = |layer_idx| EncoderLayer::load(&w.at(&format!("layers.{layer_idx}")), cfg);
        Ok(Self {
            conv1: w.convolution_along_rows(Role::Patches, "conv1", cfg.num_mel_bins, hidden, windows(1))?,
            conv2: w.convolution_along_rows(Role::Matrix, "conv2", hidden, hidden, windows(2))?,
            embed_positions: w.values_or_else("embed_positions.weight", &[cfg.max_source_positions, hidden], || {
                sinusoids(cfg.max_source_positions, hidden)
            })?,
            layers: (0..cfg.encoder_layers).map(layer).collect::<Result<_>>()?,
            layer_norm: w.layer_norm("layer_norm", hidden, LAYER_NORM_EPS)?,
        })
    }

    /// [1, 1, F, bands] -> [1, 1, T, hidden].
    fn forward(&self, mel: &Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        let x = self.conv1.forward_then(mel, Activation::Gelu);
        let x = self.conv2.forward_then(&x, Activation::Gelu);
        let positions = self.embed_positions.gather_rows(&(0..x.rows()).collect::<Vec<_>>());
        let mut x = x.add_repeated(&positions);
        for layer in &self.layers {
            if cancel.is_cancelled() {
                break;
            }
            x = layer.forward(&x);
        }
        self.layer_norm.forward(&x)
    }
}

struct EncoderLayer<B: Backend> {
    self_attn_layer_norm: LayerNorm<B>,
    self_attn: Attention<B>,
    feed_forward: FeedForward<B>,
}

impl<B: Backend> EncoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        Ok(Self {
            self_attn_layer_norm: w.layer_norm("self_attn_layer_norm", cfg.d_model, LAYER_NORM_EPS)?,
            self_attn: Attention::load(&w.at("self_attn"), cfg.d_model, cfg.encoder_attention_heads)?,
            feed_forward: FeedForward::load(w, cfg.d_model, cfg.encoder_ffn_dim)?,
        })
    }

    /// [1, 1, T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let attention = &self.self_attn;
        let [q, k, v] = attention.project(&self.self_attn_layer_norm.forward(x));
        let attended = q.attend_all(&k, &v, 1, attention.scale);
        let x = attention.out_proj.forward_add(&attended.merge_heads().reshape(x.shape()), x);
        self.feed_forward.forward_add(&x)
    }
}

struct DecoderLayer<B: Backend> {
    self_attn_layer_norm: LayerNorm<B>,
    self_attn: Attention<B>,
    encoder_attn_layer_norm: LayerNorm<B>,
    encoder_attn: Attention<B>,
    feed_forward: FeedForward<B>,
}

impl<B: Backend> DecoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let attention = |name: &str| Attention::load(&w.at(name), cfg.d_model, cfg.decoder_attention_heads);
        Ok(Self {
            self_attn_layer_norm: w.layer_norm("self_attn_layer_norm", cfg.d_model, LAYER_NORM_EPS)?,
            self_attn: attention("self_attn")?,
            encoder_attn_layer_norm: w.layer_norm("encoder_attn_layer_norm", cfg.d_model, LAYER_NORM_EPS)?,
            encoder_attn: attention("encoder_attn")?,
            feed_forward: FeedForward::load(w, cfg.d_model, cfg.decoder_ffn_dim)?,
        })
    }

    /// [R, hidden] -> [R, hidden]; `observe` sees the queries of cross-attention, [R, H, D].
    fn forward(
        &self,
        x: &Tensor<B>,
        layer_idx: usize,
        step: &Step,
        kv: &mut KvCache<B>,
        observe: &mut dyn FnMut(&Tensor<B>),
    ) -> Tensor<B> {
        let attention = &self.self_attn;
        let [q, k, v] = attention.project(&self.self_attn_layer_norm.forward(x));
        let attended = q.attend(kv.layer(layer_idx).append(&k, &v, step), attention.scale, step);
        let x = attention.out_proj.forward_add(&attended.merge_heads(), x);

        let attention = &self.encoder_attn;
        let q = attention.q_proj.forward(&self.encoder_attn_layer_norm.forward(&x)).split_heads(attention.n_heads);
        observe(&q);
        let attended = kv.cross_attend(layer_idx, &q, attention.scale, step);
        let x = attention.out_proj.forward_add(&attended.merge_heads(), &x);
        self.feed_forward.forward_add(&x)
    }
}

struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    out_proj: Linear<B>,
    n_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(w: &Weights<B>, hidden: usize, n_heads: usize) -> Result<Self> {
        Ok(Self {
            q_proj: w.linear_bias("q_proj", hidden, hidden)?,
            k_proj: w.linear("k_proj", hidden, hidden)?,
            v_proj: w.linear_bias("v_proj", hidden, hidden)?,
            out_proj: w.linear_bias("out_proj", hidden, hidden)?,
            n_heads,
            scale: ((hidden / n_heads) as f32).sqrt().recip(),
        })
    }

    /// Queries, keys and values of the same rows, [rows, H, D] each.
    fn project(&self, x: &Tensor<B>) -> [Tensor<B>; 3] {
        let projections = Linear::forward_many([&self.q_proj, &self.k_proj, &self.v_proj], x);
        projections.map(|projection| projection.split_heads(self.n_heads))
    }

    /// [T, hidden] -> [T, H, D] each.
    fn keys_and_values(&self, features: &Tensor<B>) -> (Tensor<B>, Tensor<B>) {
        let [k, v] = Linear::forward_many([&self.k_proj, &self.v_proj], features);
        (k.split_heads(self.n_heads), v.split_heads(self.n_heads))
    }
}

struct FeedForward<B: Backend> {
    final_layer_norm: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> FeedForward<B> {
    fn load(w: &Weights<B>, hidden: usize, intermediate: usize) -> Result<Self> {
        Ok(Self {
            final_layer_norm: w.layer_norm("final_layer_norm", hidden, LAYER_NORM_EPS)?,
            fc1: w.linear_bias("fc1", hidden, intermediate)?,
            fc2: w.linear_bias("fc2", intermediate, hidden)?,
        })
    }

    fn forward_add(&self, x: &Tensor<B>) -> Tensor<B> {
        let inner = self.fc1.forward_then(&self.final_layer_norm.forward(x), Activation::Gelu);
        self.fc2.forward_add(&inner, x)
    }
}

/// Some columns of a matrix of `width`.
fn columns_of(values: &[f32], width: usize, start: usize, count: usize) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| &row[start..start + count]).copied().collect()
}

/// The shares of attention that queries [R, D] give to the first `columns` keys [T, D].
fn shares(queries: &[f32], keys: &[f32], head_dim: usize, scale: f32, columns: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(queries.len() / head_dim * columns);
    for query in queries.chunks_exact(head_dim) {
        let score = |key: &[f32]| query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>() * scale;
        let scores: Vec<f32> = keys.chunks_exact(head_dim).take(columns).map(score).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f32 = exponentials.iter().sum();
        all.extend(exponentials.iter().map(|value| value / total));
    }
    all
}

fn parse(root: &Section) -> Result<Config> {
    let config: Config = root.parse()?;
    let act = &config.activation_function;
    require(root, act == "gelu", "activation_function", act, "gelu")?;
    require(root, !config.scale_embedding, "scale_embedding", true, "false")?;
    let positions = config.max_source_positions;
    require(root, positions <= 1 << 16, "max_source_positions", positions, "at most 65536")?;
    for (key, heads) in [
        ("encoder_attention_heads", config.encoder_attention_heads),
        ("decoder_attention_heads", config.decoder_attention_heads),
    ] {
        require(root, heads > 0 && config.d_model.is_multiple_of(heads), key, heads, "a divisor of d_model")?;
    }
    Ok(config)
}

/// The published names are those of transformers 5 too; the output layer is stored where it need not be. OpenAI's own
/// names, and MLX's, which differ in the feed-forward part, begin with `encoder.` or `decoder.`; MLX also says which
/// heads follow the recording, as `generation_config.json` does.
fn rename(name: &str, tied: bool) -> Renamed {
    if (tied && name == "proj_out.weight") || name == "alignment_heads" {
        return Renamed::Ignored;
    }
    if !name.starts_with("encoder.") && !name.starts_with("decoder.") {
        return Renamed::To(name.to_owned());
    }
    let name = name.replace("mlp.0", "mlp1").replace("mlp.2", "mlp2");
    let part = |part| OPENAI_NAMES.iter().find(|(from, _)| *from == part).map_or(part, |(_, to)| *to);
    Renamed::To(format!("model.{}", name.split('.').map(part).collect::<Vec<_>>().join(".")))
}

/// `[positions, width]`: sines, then cosines, ever slower.
fn sinusoids(positions: usize, width: usize) -> Vec<f32> {
    let half = width / 2;
    let step = 10_000f64.ln() / (half as f64 - 1.0);
    let angle = |position: usize, at: usize| position as f64 * (-step * at as f64).exp();
    let row = |position| {
        let sines = (0..half).map(move |at| angle(position, at).sin());
        sines.chain((0..half).map(move |at| angle(position, at).cos()))
    };
    (0..positions).flat_map(row).map(|value| value as f32).collect()
}

/// Parts of names, OpenAI's and those of transformers.
const OPENAI_NAMES: &[(&str, &str)] = &[
    ("blocks", "layers"),
    ("attn", "self_attn"),
    ("attn_ln", "self_attn_layer_norm"),
    ("cross_attn", "encoder_attn"),
    ("cross_attn_ln", "encoder_attn_layer_norm"),
    ("query", "q_proj"),
    ("key", "k_proj"),
    ("value", "v_proj"),
    ("out", "out_proj"),
    ("mlp1", "fc1"),
    ("mlp2", "fc2"),
    ("mlp_ln", "final_layer_norm"),
    ("ln_post", "layer_norm"),
    ("ln", "layer_norm"),
    ("token_embedding", "embed_tokens"),
    ("positional_embedding", "embed_positions.weight"),
];
/// The default of PyTorch: configs do not say.
const LAYER_NORM_EPS: f64 = 1e-5;

fn default_num_mel_bins() -> usize {
    80
}

fn default_max_source_positions() -> usize {
    1500
}

fn default_max_target_positions() -> usize {
    448
}

fn default_activation_function() -> String {
    "gelu".to_owned()
}

fn default_true() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_columns_that_count() {
        let keys = columns_of(&[9.0, 0.0, 9.0, 1.0, 9.0, 5.0], 2, 1, 1);
        assert_eq!(keys, [0.0, 1.0, 5.0]);
        let found = shares(&[2.0, 0.0], &keys, 1, 0.5, 2);
        let expected = [1.0 / (1.0 + 1f32.exp()), 1.0 / (1.0 + (-1f32).exp()), 0.5, 0.5];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn a_tied_output_layer_is_not_read() {
        assert_eq!(rename("proj_out.weight", true), Renamed::Ignored);
        assert_eq!(rename("proj_out.weight", false), Renamed::To("proj_out.weight".to_owned()));
        let name = "model.decoder.embed_tokens.weight";
        assert_eq!(rename(name, true), Renamed::To(name.to_owned()));
    }

    #[test]
    fn openai_s_and_mlx_s_names_are_those_of_transformers() {
        for (name, expected) in [
            ("encoder.conv1.weight", "model.encoder.conv1.weight"),
            ("encoder.positional_embedding", "model.encoder.embed_positions.weight"),
            ("encoder.blocks.3.attn.query.bias", "model.encoder.layers.3.self_attn.q_proj.bias"),
            ("encoder.ln_post.weight", "model.encoder.layer_norm.weight"),
            ("decoder.token_embedding.weight", "model.decoder.embed_tokens.weight"),
            ("decoder.blocks.0.cross_attn.out.bias", "model.decoder.layers.0.encoder_attn.out_proj.bias"),
            ("decoder.blocks.0.cross_attn_ln.bias", "model.decoder.layers.0.encoder_attn_layer_norm.bias"),
            ("decoder.blocks.0.mlp.2.weight", "model.decoder.layers.0.fc2.weight"),
            ("decoder.blocks.0.mlp1.weight", "model.decoder.layers.0.fc1.weight"),
            ("decoder.ln.bias", "model.decoder.layer_norm.bias"),
        ] {
            assert_eq!(rename(name, true), Renamed::To(expected.to_owned()), "{name}");
        }
        assert_eq!(rename("alignment_heads", true), Renamed::Ignored);
    }
}
