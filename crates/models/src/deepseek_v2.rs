//! DeepSeek-V2 text decoder (transformers `modeling_deepseek_v2.py`), the text half of DeepSeek-VL2. R rows, H query
//! heads, D size of a head's queries and keys: P of them turn with the position, the others do not.
//!
//! Keys and values come from one short vector per token (multi-head latent attention); the part of a key that turns is
//! the same for all heads. Surprises: adjacent elements turn together, not halves of a head; values are shorter than
//! keys. Small models have `use_mla: false` and Llama's attention instead, halves and all.
//!
//! The cache holds keys and values of every head, the values filled up with zeros to the length of the keys: `2·H·D`
//! numbers per token and layer, where the short vectors would be `kv_lora_rank + P` (DeepSeek-VL2-Small: 6144 and 576).

use ocelli_backend::{
    Backend, Embedding, KvCache, KvShape, LayerKv, Linear, RmsNorm, Rope, RopePairing, RopeRows, Step, SwiGlu, Tensor,
    Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder;
use crate::error::{Result, require};
use crate::experts::{ExpertDims, Experts};
use crate::llama;

/// The fields of a decoder's config; defaults are those of the published `configuration_deepseek.py`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    moe_intermediate_size: Option<usize>,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    pub(crate) vocab_size: usize,
    #[serde(default = "defaults::max_position_embeddings")]
    pub(crate) max_position_embeddings: usize,
    #[serde(default = "defaults::rms_norm_eps")]
    rms_norm_eps: f64,
    #[serde(default = "defaults::rope_theta")]
    rope_theta: f64,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default = "defaults::hidden_act")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,

    #[serde(default = "defaults::yes")]
    use_mla: bool,
    q_lora_rank: Option<usize>,
    kv_lora_rank: Option<usize>,
    #[serde(default)]
    qk_nope_head_dim: usize,
    #[serde(default)]
    qk_rope_head_dim: usize,
    #[serde(default)]
    v_head_dim: usize,

    n_routed_experts: Option<usize>,
    n_shared_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    #[serde(default)]
    first_k_dense_replace: usize,
    #[serde(default = "defaults::one")]
    moe_layer_freq: usize,
    #[serde(default = "defaults::topk_method")]
    topk_method: String,
    #[serde(default = "defaults::scoring_func")]
    scoring_func: String,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "defaults::scale")]
    routed_scaling_factor: f32,
}

impl Config {
    /// Reads and checks a decoder's config.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        require(section, config.hidden_act == "silu", "hidden_act", &config.hidden_act, "silu")?;
        require(section, !config.tie_word_embeddings, "tie_word_embeddings", true, "false")?;
        require(section, config.num_hidden_layers > 0, "num_hidden_layers", 0, "at least 1")?;
        let scaling = config.rope_scaling.as_ref().map_or_else(String::new, ToString::to_string);
        require(section, config.rope_scaling.is_none(), "rope_scaling", scaling, "null")?;
        if config.use_mla {
            config.check_latent(section)?;
        }
        config.check_experts(section)?;
        Ok(config)
    }

    fn check_latent(&self, section: &Section) -> Result<()> {
        require(section, !self.attention_bias, "attention_bias", true, "false")?;
        let query_rank = self.q_lora_rank.map_or_else(String::new, |rank| rank.to_string());
        require(section, self.q_lora_rank.is_none(), "q_lora_rank", query_rank, "null")?;
        require(section, self.latent_rank() > 0, "kv_lora_rank", self.latent_rank(), "at least 1")?;
        let rope = self.qk_rope_head_dim;
        require(section, rope > 0 && rope.is_multiple_of(2), "qk_rope_head_dim", rope, "an even number")?;
        require(section, self.num_attention_heads > 0, "num_attention_heads", 0, "at least 1")?;
        let (value, key) = (self.v_head_dim, self.key_dim());
        let expected = "1 to qk_nope_head_dim + qk_rope_head_dim";
        require(section, (1..=key).contains(&value), "v_head_dim", value, expected)
    }

    fn check_experts(&self, section: &Section) -> Result<()> {
        let Some(n_experts) = self.n_routed_experts else { return Ok(()) };
        let (method, scoring) = (&self.topk_method, &self.scoring_func);
        require(section, method == "greedy", "topk_method", method, "greedy")?;
        require(section, scoring == "softmax", "scoring_func", scoring, "softmax")?;
        require(section, !self.norm_topk_prob, "norm_topk_prob", true, "false")?;
        require(section, self.moe_layer_freq == 1, "moe_layer_freq", self.moe_layer_freq, "1")?;
        let chosen = self.num_experts_per_tok.unwrap_or(0);
        require(section, (1..=n_experts).contains(&chosen), "num_experts_per_tok", chosen, "1 to n_routed_experts")?;
        let inner = self.moe_intermediate_size.unwrap_or(0);
        require(section, inner > 0, "moe_intermediate_size", inner, "at least 1")
    }

    fn latent_rank(&self) -> usize {
        self.kv_lora_rank.unwrap_or(0)
    }

    /// D.
    fn key_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    fn expert_dims(&self, layer_idx: usize) -> Option<ExpertDims> {
        let n_experts = self.n_routed_experts.filter(|_| layer_idx >= self.first_k_dense_replace)?;
        Some(ExpertDims {
            hidden_size: self.hidden_size,
            intermediate_size: self.moe_intermediate_size?,
            n_experts,
            n_chosen: self.num_experts_per_tok?,
            n_shared: self.n_shared_experts.unwrap_or(0),
            scale: self.routed_scaling_factor,
        })
    }
}

/// The decoder with its output layer.
pub(crate) struct Decoder<B: Backend> {
    pub(crate) embed_tokens: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
    pub(crate) lm_head: Linear<B>,
    rope: Rope,
    kv_shape: KvShape,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config, section: &Section) -> Result<Self> {
        let model = w.at("model");
        let plain = if cfg.use_mla { None } else { Some(llama::Config::parse(section)?) };
        let layer =
            |idx| DecoderLayer::load(&model.at(&format!("layers.{idx}")), cfg, plain.as_ref(), cfg.expert_dims(idx));
        let (rope, kv_shape) = match &plain {
            Some(plain) => (plain.rope(section)?, plain.dims().kv_shape()),
            None => {
                let rope = Rope::new(cfg.qk_rope_head_dim, cfg.rope_theta, None).with_pairing(RopePairing::Adjacent);
                let (layers, kv_heads) = (cfg.num_hidden_layers, cfg.num_attention_heads);
                (rope, KvShape { layers, kv_heads, head_dim: cfg.key_dim() })
            }
        };
        Ok(Self {
            embed_tokens: model.embedding("embed_tokens", cfg.vocab_size, cfg.hidden_size)?,
            // Early for the reason that `CausalLm::load` gives.
            lm_head: w.output("lm_head", cfg.hidden_size, cfg.vocab_size)?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: model.rms_norm("norm", cfg.hidden_size, cfg.rms_norm_eps)?,
            rope,
            kv_shape,
        })
    }

    pub(crate) fn kv_shape(&self) -> KvShape {
        self.kv_shape
    }

    /// `x` [R, hidden] -> [R, hidden], normalised.
    pub(crate) fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let rope = self.rope.rows(x.backend(), step.positions());
        let mut x = x.clone();
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = layer.forward(&x, &rope, step, kv.layer(layer_idx));
        }
        self.norm.forward(&x)
    }
}

struct DecoderLayer<B: Backend> {
    input_layernorm: RmsNorm<B>,
    attention: Attention<B>,
    post_attention_layernorm: RmsNorm<B>,
    mlp: FeedForward<B>,
}

enum Attention<B: Backend> {
    Plain(decoder::Attention<B>),
    Latent(LatentAttention<B>),
}

enum FeedForward<B: Backend> {
    Dense(SwiGlu<B>),
    Experts(Experts<B>),
}

impl<B: Backend> DecoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &Config, plain: Option<&llama::Config>, experts: Option<ExpertDims>) -> Result<Self> {
        let (attention, mlp) = (w.at("self_attn"), w.at("mlp"));
        Ok(Self {
            input_layernorm: w.rms_norm("input_layernorm", cfg.hidden_size, cfg.rms_norm_eps)?,
            attention: match plain {
                Some(plain) => Attention::Plain(decoder::Attention::load(&attention, &plain.dims())?),
                None => Attention::Latent(LatentAttention::load(&attention, cfg)?),
            },
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", cfg.hidden_size, cfg.rms_norm_eps)?,
            mlp: match experts {
                Some(dims) => FeedForward::Experts(Experts::load(&mlp, &dims)?),
                None => FeedForward::Dense(mlp.swiglu(cfg.hidden_size, cfg.intermediate_size)?),
            },
        })
    }

    /// `x` [R, hidden] -> [R, hidden]; appends this layer's keys and values to `kv`.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, step: &Step, kv: &mut LayerKv<B>) -> Tensor<B> {
        let normed = self.input_layernorm.forward(x);
        let x = match &self.attention {
            Attention::Plain(attention) => attention.forward_add(&normed, x, rope, step, kv),
            Attention::Latent(attention) => attention.forward_add(&normed, x, rope, step, kv),
        };
        let normed = self.post_attention_layernorm.forward(&x);
        match &self.mlp {
            FeedForward::Dense(mlp) => mlp.forward_add(&normed, &x),
            FeedForward::Experts(experts) => experts.forward_add(&normed, &x),
        }
    }
}

struct LatentAttention<B: Backend> {
    q_proj: Linear<B>,
    kv_a_proj_with_mqa: Linear<B>,
    kv_a_layernorm: RmsNorm<B>,
    kv_b_proj: Linear<B>,
    o_proj: Linear<B>,
    n_heads: usize,
    /// Elements of a head's keys that do not turn.
    nope: usize,
    /// Elements of a head's values.
    value: usize,
    scale: f32,
}

impl<B: Backend> LatentAttention<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (hidden, n_heads, rank) = (cfg.hidden_size, cfg.num_attention_heads, cfg.latent_rank());
        let (nope, rope, value) = (cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim);
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, n_heads * (nope + rope))?,
            kv_a_proj_with_mqa: w.linear("kv_a_proj_with_mqa", hidden, rank + rope)?,
            kv_a_layernorm: w.rms_norm("kv_a_layernorm", rank, LATENT_NORM_EPS)?,
            kv_b_proj: w.linear("kv_b_proj", rank, n_heads * (nope + value))?,
            o_proj: w.linear("o_proj", n_heads * value, hidden)?,
            n_heads,
            nope,
            value,
            scale: ((nope + rope) as f32).sqrt().recip(),
        })
    }

    fn forward_add(
        &self,
        x: &Tensor<B>,
        residual: &Tensor<B>,
        rope: &RopeRows<B>,
        step: &Step,
        kv: &mut LayerKv<B>,
    ) -> Tensor<B> {
        let [q, latent] = Linear::forward_many([&self.q_proj, &self.kv_a_proj_with_mqa], x);
        let q = self.turned_first(&q, rope); // [R, H, D]
        let (k, v) = self.keys_and_values(&latent, rope);
        let attended = q.attend(kv.append(&k, &v, step), self.scale, step);
        let attended = attended.columns(0..self.value).merge_heads(); // [R, H × value]
        self.o_proj.forward_add(&attended, residual)
    }

    /// Queries `[R, H × D]` -> [R, H, D], the elements that turn in front, turned.
    fn turned_first(&self, q: &Tensor<B>, rope: &RopeRows<B>) -> Tensor<B> {
        let q = q.split_heads(self.n_heads);
        let (still, turning) = (q.columns(0..self.nope), q.columns(self.nope..q.width()));
        self.beside(&turning.rope(rope), &still)
    }

    /// `latent` [R, rank + P] -> keys as [`Self::turned_first`] has queries, and values, both [R, H, D].
    fn keys_and_values(&self, latent: &Tensor<B>, rope: &RopeRows<B>) -> (Tensor<B>, Tensor<B>) {
        let (rows, rank) = (latent.rows(), self.kv_a_layernorm.width());
        let turning = latent.columns(rank..latent.width());
        let n_turning = turning.width();
        let turned = turning.reshape(&[rows, 1, n_turning]).rope(rope).merge_heads(); // [R, P]
        let of_every_head: Vec<usize> = (0..rows).flat_map(|row| std::iter::repeat_n(row, self.n_heads)).collect();
        let turned = turned.gather_rows(&of_every_head); // [R × H, P]

        let both = self.kv_b_proj.forward(&self.kv_a_layernorm.forward(&latent.columns(0..rank)));
        let both = both.split_heads(self.n_heads); // [R, H, nope + value]
        let k = self.beside(&turned, &both.columns(0..self.nope));
        let n_filling = self.nope + n_turning - self.value;
        let filling = Tensor::new(
            latent.backend(),
            &vec![0.0; rows * self.n_heads * n_filling],
            &[rows * self.n_heads, n_filling],
        );
        let v = self.beside(&both.columns(self.nope..both.width()), &filling);
        (k, v)
    }

    /// Two parts of every head, `[R × H, …]` in any shape -> [R, H, both widths].
    fn beside(&self, left: &Tensor<B>, right: &Tensor<B>) -> Tensor<B> {
        let rows = left.rows() / self.n_heads;
        Tensor::concat_columns(&[left, right]).reshape(&[rows, self.n_heads, left.width() + right.width()])
    }
}

/// The reference does not ask the config.
const LATENT_NORM_EPS: f64 = 1e-6;

mod defaults {
    pub(super) fn max_position_embeddings() -> usize {
        2048
    }

    pub(super) fn rms_norm_eps() -> f64 {
        1e-6
    }

    pub(super) fn rope_theta() -> f64 {
        10_000.0
    }

    pub(super) fn hidden_act() -> String {
        "silu".to_owned()
    }

    pub(super) fn topk_method() -> String {
        "greedy".to_owned()
    }

    pub(super) fn scoring_func() -> String {
        "softmax".to_owned()
    }

    pub(super) fn yes() -> bool {
        true
    }

    pub(super) fn one() -> usize {
        1
    }

    pub(super) fn scale() -> f32 {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// DeepSeek-VL2-Small's attention and experts, with one value changed.
    fn parse(key: &str, value: Value) -> Result<Config> {
        let mut config = json!({
            "model_type": "deepseek_v2", "hidden_size": 64, "intermediate_size": 112, "moe_intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 431, "kv_lora_rank": 24,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 8,
            "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1
        });
        config[key] = value;
        let config = ocelli_formats::Config::parse(config.to_string().as_bytes(), "config.json").unwrap();
        Config::parse(config.root())
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_key() {
        for (key, value) in [
            ("topk_method", json!("noaux_tc")),
            ("topk_method", json!("group_limited_greedy")),
            ("scoring_func", json!("sigmoid")),
            ("norm_topk_prob", json!(true)),
            ("moe_layer_freq", json!(2)),
            ("num_experts_per_tok", json!(9)),
            ("num_experts_per_tok", json!(0)),
            ("q_lora_rank", json!(1536)),
            ("kv_lora_rank", json!(null)),
            ("qk_rope_head_dim", json!(7)),
            ("v_head_dim", json!(25)),
            ("attention_bias", json!(true)),
            ("rope_scaling", json!({"type": "yarn", "factor": 40.0})),
            ("hidden_act", json!("gelu")),
            ("tie_word_embeddings", json!(true)),
            ("moe_intermediate_size", json!(null)),
        ] {
            let error = parse(key, value.clone()).err().unwrap_or_else(|| panic!("{key} {value}")).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn the_first_layers_have_no_experts() {
        let config = parse("rope_scaling", json!(null)).unwrap();
        let experts = |layer_idx| config.expert_dims(layer_idx).map(|dims| (dims.n_experts, dims.n_chosen));
        assert_eq!([experts(0), experts(1)], [None, Some((8, 3))]);
        assert_eq!((config.key_dim(), config.latent_rank()), (24, 24));
        let dense = parse("n_routed_experts", json!(null)).unwrap();
        assert!(dense.expert_dims(2).is_none());
    }
}
