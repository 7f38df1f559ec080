//! OPT text decoder (transformers `modeling_opt.py`), the text half of BLIP-2. R rows, H heads, D head size.
//!
//! Pre-norm layers with biases everywhere. Surprises: positions are learned, and the table begins with two rows that
//! nothing uses; the norm before the feed-forward part is called `final_layer_norm`, and so is the one after the layers.

use ocelli_backend::{
    Activation, Backend, Embedding, KvCache, KvShape, LayerKv, LayerNorm, Linear, Step, Tensor, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};

/// `text_config`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    num_hidden_layers: usize,
    ffn_dim: usize,
    num_attention_heads: usize,
    pub(crate) max_position_embeddings: usize,
    activation_function: String,
    do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    word_embed_proj_dim: Option<usize>,
    enable_bias: bool,
    layer_norm_elementwise_affine: bool,
    pub(crate) tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 50272,
            hidden_size: 768,
            num_hidden_layers: 12,
            ffn_dim: 3072,
            num_attention_heads: 12,
            max_position_embeddings: 2048,
            activation_function: "relu".to_owned(),
            do_layer_norm_before: true,
            remove_final_layer_norm: false,
            word_embed_proj_dim: None,
            enable_bias: true,
            layer_norm_elementwise_affine: true,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    /// Reads and checks the decoder's part of a config.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        let (act, hidden, heads) = (&config.activation_function, config.hidden_size, config.num_attention_heads);
        require(section, act == "relu", "activation_function", act, "relu")?;
        require(section, heads > 0 && hidden % heads == 0, "num_attention_heads", heads, "a divisor of hidden_size")?;
        require(section, config.do_layer_norm_before, "do_layer_norm_before", false, "true")?;
        require(section, !config.remove_final_layer_norm, "_remove_final_layer_norm", true, "false")?;
        let width = config.word_embed_proj_dim.unwrap_or(hidden);
        require(section, width == hidden, "word_embed_proj_dim", width, "hidden_size")?;
        require(section, config.enable_bias, "enable_bias", false, "true")?;
        let affine = config.layer_norm_elementwise_affine;
        require(section, affine, "layer_norm_elementwise_affine", false, "true")?;
        require(section, config.tie_word_embeddings, "tie_word_embeddings", false, "true")?;
        Ok(config)
    }

    pub(crate) fn kv_shape(&self) -> KvShape {
        let &Self { num_hidden_layers: layers, num_attention_heads: kv_heads, hidden_size, .. } = self;
        KvShape { layers, kv_heads, head_dim: hidden_size / kv_heads }
    }
}

/// The decoder; its table of embeddings is the output layer, too.
pub(crate) struct Decoder<B: Backend> {
    pub(crate) embed_tokens: Embedding<B>,
    embed_positions: Tensor<B>,
    layers: Vec<Layer<B>>,
    final_layer_norm: LayerNorm<B>,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let layer = |layer_idx| Layer::load(&w.at(&format!("layers.{layer_idx}")), cfg);
        let positions = cfg.max_position_embeddings + FIRST_POSITION;
        Ok(Self {
            embed_tokens: w.embedding("embed_tokens", cfg.vocab_size, cfg.hidden_size)?,
            embed_positions: w.values("embed_positions.weight", &[positions, cfg.hidden_size])?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: w.layer_norm("final_layer_norm", cfg.hidden_size, LAYER_NORM_EPS)?,
        })
    }

    /// `x` [R, hidden] -> [R, hidden], normalised.
    pub(crate) fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let positions: Vec<usize> = step.positions().iter().map(|position| position + FIRST_POSITION).collect();
        let mut x = x + &self.embed_positions.gather_rows(&positions);
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = layer.forward(&x, step, kv.layer(layer_idx));
        }
        self.final_layer_norm.forward(&x)
    }
}

struct Layer<B: Backend> {
    self_attn_layer_norm: LayerNorm<B>,
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    out_proj: Linear<B>,
    final_layer_norm: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    n_heads: usize,
    scale: f32,
}

impl<B: Backend> Layer<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (attention, hidden) = (w.at("self_attn"), cfg.hidden_size);
        let projection = |name| attention.linear_bias(name, hidden, hidden);
        Ok(Self {
            self_attn_layer_norm: w.layer_norm("self_attn_layer_norm", hidden, LAYER_NORM_EPS)?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            final_layer_norm: w.layer_norm("final_layer_norm", hidden, LAYER_NORM_EPS)?,
            fc1: w.linear_bias("fc1", hidden, cfg.ffn_dim)?,
            fc2: w.linear_bias("fc2", cfg.ffn_dim, hidden)?,
            n_heads: cfg.num_attention_heads,
            scale: ((hidden / cfg.num_attention_heads) as f32).sqrt().recip(),
        })
    }

    /// `x` [R, hidden] -> [R, hidden]; appends this layer's keys and values to `kv`.
    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut LayerKv<B>) -> Tensor<B> {
        let normed = self.self_attn_layer_norm.forward(x);
        let projected = Linear::forward_many([&self.q_proj, &self.k_proj, &self.v_proj], &normed);
        let [q, k, v] = projected.map(|projection| projection.split_heads(self.n_heads)); // [R, H, D]
        let attended = q.attend(kv.append(&k, &v, step), self.scale, step);
        let x = self.out_proj.forward_add(&attended.merge_heads(), x);
        let hidden = self.fc1.forward_then(&self.final_layer_norm.forward(&x), Activation::Relu);
        self.fc2.forward_add(&hidden, &x)
    }
}

/// Rows of the table before that of position 0.
const FIRST_POSITION: usize = 2;
/// No config names it.
const LAYER_NORM_EPS: f64 = 1e-5;
