//! The Q-Former of BLIP-2 and InstructBLIP (transformers `modeling_blip_2.py`, `modeling_instructblip.py`). Q queries, T
//! tokens of an instruction, S features of a picture.
//!
//! A BERT over a few learned queries, which look at the picture in every second layer; what they have become is all that
//! the decoder gets to see. InstructBLIP gives it the instruction, too: its tokens and the queries see each other, but
//! only the queries look at the picture, and the feed-forward parts of the two have weights of their own.

use ocelli_backend::{Backend, Cancel, Embedding, LayerNorm, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::bert::{Attention, Dims, FeedForward};
use crate::error::{Result, require};

/// `qformer_config`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    vocab_size: usize,
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    cross_attention_frequency: usize,
    use_qformer_text_input: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 512,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            cross_attention_frequency: 2,
            use_qformer_text_input: false,
        }
    }
}

impl Config {
    /// Reads and checks `qformer_config`.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        let (act, hidden, heads) = (&config.hidden_act, config.hidden_size, config.num_attention_heads);
        require(section, act == "gelu", "hidden_act", act, "gelu")?;
        require(section, heads > 0 && hidden % heads == 0, "num_attention_heads", heads, "a divisor of hidden_size")?;
        let every = config.cross_attention_frequency;
        require(section, every > 0, "cross_attention_frequency", every, "at least 1")?;
        // A key of BLIP-2 only, whose captioning models all leave it off; InstructBLIP always reads the instruction.
        require(section, !config.use_qformer_text_input, "use_qformer_text_input", true, "false")?;
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

/// Queries, perhaps an instruction, and a picture's features -> as many features as queries.
pub(crate) struct QFormer<B: Backend> {
    words: Option<Words<B>>,
    layer_norm: LayerNorm<B>,
    layers: Vec<Layer<B>>,
}

/// What turns ids into embeddings.
struct Words<B: Backend> {
    word_embeddings: Embedding<B>,
    position_embeddings: Tensor<B>,
}

impl<B: Backend> QFormer<B> {
    /// `looked_at` is the width of the picture's features.
    pub(crate) fn load(w: &Weights<B>, cfg: &Config, looked_at: usize, reads: bool) -> Result<Self> {
        let (embeddings, hidden) = (w.at("embeddings"), cfg.hidden_size);
        let words = || -> Result<Words<B>> {
            Ok(Words {
                word_embeddings: embeddings.embedding("word_embeddings", cfg.vocab_size, hidden)?,
                position_embeddings: embeddings
                    .values("position_embeddings.weight", &[cfg.max_position_embeddings, hidden])?,
            })
        };
        let layer = |layer_idx| {
            let looked_at = (layer_idx % cfg.cross_attention_frequency == 0).then_some(looked_at);
            Layer::load(&w.at(&format!("encoder.layer.{layer_idx}")), &cfg.dims(), looked_at, reads)
        };
        let place = if reads {
            embeddings.layer_norm("layernorm", hidden, cfg.layer_norm_eps)
        } else {
            w.layer_norm("layernorm", hidden, cfg.layer_norm_eps)
        };
        Ok(Self {
            words: reads.then(words).transpose()?,
            layer_norm: place?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// `queries` [Q, hidden] and `features` [S, width] -> [Q, hidden]. Of an instruction longer than the table of
    /// positions, the beginning is read.
    pub(crate) fn forward(
        &self,
        queries: &Tensor<B>,
        text_ids: &[u32],
        features: &Tensor<B>,
        cancel: &Cancel,
    ) -> Tensor<B> {
        let n_queries = queries.rows();
        let x = match &self.words {
            Some(words) if !text_ids.is_empty() => Tensor::concat_rows(&[queries, &words.forward(text_ids)]),
            _ => queries.clone(),
        };
        let mut x = self.layer_norm.forward(&x); // [Q + T, hidden]
        for layer in &self.layers {
            if cancel.is_cancelled() {
                break;
            }
            x = layer.forward(&x, n_queries, features);
        }
        rows(&x, 0, n_queries)
    }
}

impl<B: Backend> Words<B> {
    /// [T, hidden]
    fn forward(&self, ids: &[u32]) -> Tensor<B> {
        let ids = &ids[..ids.len().min(self.position_embeddings.rows())];
        let positions: Vec<usize> = (0..ids.len()).collect();
        &self.word_embeddings.forward(ids) + &self.position_embeddings.gather_rows(&positions)
    }
}

struct Layer<B: Backend> {
    attention: Attention<B>,
    crossattention: Option<Attention<B>>,
    feed_forward_query: FeedForward<B>,
    /// For the tokens of an instruction.
    feed_forward: Option<FeedForward<B>>,
}

impl<B: Backend> Layer<B> {
    fn load(w: &Weights<B>, dims: &Dims, looked_at: Option<usize>, reads: bool) -> Result<Self> {
        let across = |looked_at| Attention::load(&w.at("crossattention"), "attention", dims, looked_at);
        Ok(Self {
            attention: Attention::load(&w.at("attention"), "attention", dims, dims.hidden_size)?,
            crossattention: looked_at.map(across).transpose()?,
            feed_forward_query: FeedForward::load(w, "_query", dims)?,
            feed_forward: reads.then(|| FeedForward::load(w, "", dims)).transpose()?,
        })
    }

    /// `x` [Q + T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>, n_queries: usize, features: &Tensor<B>) -> Tensor<B> {
        let x = self.attention.forward_all(x);
        let mut queries = rows(&x, 0, n_queries);
        if let Some(crossattention) = &self.crossattention {
            queries = crossattention.forward_across(&queries, features);
        }
        let queries = self.feed_forward_query.forward(&queries);
        match &self.feed_forward {
            Some(feed_forward) if x.rows() > n_queries => {
                let text = feed_forward.forward(&rows(&x, n_queries, x.rows()));
                Tensor::concat_rows(&[&queries, &text])
            }
            _ => queries,
        }
    }
}

fn rows<B: Backend>(x: &Tensor<B>, start: usize, end: usize) -> Tensor<B> {
    x.gather_rows(&(start..end).collect::<Vec<_>>())
}
