//! FastViTHD, the convolutional tower of FastVLM (timm `fastvit.py`, `fastvit_mci3`; Apple `mci.py`), as it is used after
//! training. N pictures (one), C channels, H heads, D head size. Pictures lie channels last.
//!
//! Three stages of convolutions, two of attention; a side of the picture shrinks by 64. Surprises: the published weights
//! are those of the folded network, so that residuals around convolutions are part of their weights, but the
//! normalisation before each feed-forward part is not folded; the convolution that halves a stage's side has two outputs
//! per channel and an activation behind it; the last stage's squeeze-and-excitation is the only thing that sees the whole
//! picture at once besides attention; there is no norm at the end.

use ocelli_backend::{
    Activation, Backend, Cancel, Convolution, DepthwiseConvolution, LayerNorm, Linear, Role, Tensor, Weights, Windows,
};

use crate::error::Result;

/// Sizes of the tower.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Channels of every stage.
    pub(crate) embed_dims: [usize; STAGES],
    /// Blocks of every stage.
    pub(crate) layers: [usize; STAGES],
}

impl Default for Config {
    fn default() -> Self {
        Self { embed_dims: [96, 192, 384, 768, 1536], layers: [2, 12, 24, 4, 2] }
    }
}

impl Config {
    /// Channels of a feature.
    pub(crate) fn features(&self) -> usize {
        2 * self.embed_dims[STAGES - 1]
    }
}

/// The tower: pixels -> a grid of features.
pub(crate) struct FastVit<B: Backend> {
    stem: Convolution<B>,
    stem_depthwise: DepthwiseConvolution<B>,
    stem_pointwise: Convolution<B>,
    stages: Vec<Stage<B>>,
    expansion: DepthwiseConvolution<B>,
    squeeze: Convolution<B>,
    excite: Convolution<B>,
}

impl<B: Backend> FastVit<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (first, last) = (cfg.embed_dims[0], cfg.embed_dims[STAGES - 1]);
        let (features, squeezed) = (cfg.features(), cfg.features() / 16);
        let last_conv = w.at("final_conv");
        Ok(Self {
            stem: w.convolution(Role::Patches, "stem.0.reparam_conv", 3, first, Windows::square(3, 2))?,
            stem_depthwise: w.depthwise_convolution("stem.1.reparam_conv", first, Windows::square(3, 2), true)?,
            stem_pointwise: pointwise(w, "stem.2.reparam_conv", first, first)?,
            stages: (0..STAGES).map(|stage| Stage::load(w, cfg, stage)).collect::<Result<_>>()?,
            expansion: last_conv.depthwise_convolution("reparam_conv", 2 * last, Windows::square(3, 1), true)?,
            squeeze: pointwise(&last_conv, "se.fc1", features, squeezed)?,
            excite: pointwise(&last_conv, "se.fc2", squeezed, features)?,
        })
    }

    /// `pixels` [1, height, width, 3] -> [1, height / 64, width / 64, features].
    #[track_caller]
    pub(crate) fn forward(&self, pixels: &Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        let x = self.stem.forward_then(pixels, Activation::Gelu);
        let x = self.stem_depthwise.forward(&x).activate(Activation::Gelu);
        let mut x = self.stem_pointwise.forward_then(&x, Activation::Gelu);
        for stage in &self.stages {
            x = stage.forward(x, cancel);
        }
        let x = self.expansion.forward(&x);
        let mean = x.mean_rows(x.rows()).reshape(&[1, 1, 1, x.width()]);
        let weights =
            self.excite.forward_then(&self.squeeze.forward_then(&mean, Activation::Relu), Activation::Sigmoid);
        x.mul_repeated(&weights).activate(Activation::Gelu)
    }
}

struct Stage<B: Backend> {
    downsample: Option<Downsample<B>>,
    position: Option<DepthwiseConvolution<B>>,
    blocks: Vec<Block<B>>,
}

impl<B: Backend> Stage<B> {
    fn load(w: &Weights<B>, cfg: &Config, stage: usize) -> Result<Self> {
        let w = w.at(&format!("stages.{stage}"));
        let (dim, attends) = (cfg.embed_dims[stage], stage >= FIRST_ATTENTION);
        let before = stage.checked_sub(1).map(|before| cfg.embed_dims[before]);
        let position = || w.depthwise_convolution("pos_emb.reparam_conv", dim, Windows::square(7, 1), true).map(Some);
        Ok(Self {
            downsample: before.map(|_| Downsample::load(&w.at("downsample.proj"), dim)).transpose()?,
            position: if attends { position()? } else { None },
            blocks: (0..cfg.layers[stage])
                .map(|block| Block::load(&w.at(&format!("blocks.{block}")), dim, attends))
                .collect::<Result<_>>()?,
        })
    }

    fn forward(&self, mut x: Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x);
        }
        if let Some(position) = &self.position {
            x = position.forward(&x);
        }
        for block in &self.blocks {
            if cancel.is_cancelled() {
                break;
            }
            x = block.forward(&x);
        }
        x
    }
}

/// Halves the sides of a picture.
struct Downsample<B: Backend> {
    depthwise: DepthwiseConvolution<B>,
    pointwise: Convolution<B>,
}

impl<B: Backend> Downsample<B> {
    fn load(w: &Weights<B>, dim: usize) -> Result<Self> {
        Ok(Self {
            depthwise: w.depthwise_convolution("0.reparam_conv", dim, Windows::square(7, 2), true)?,
            pointwise: pointwise(w, "1.reparam_conv", dim, dim)?,
        })
    }

    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let x = self.depthwise.forward(x).activate(Activation::Gelu);
        self.pointwise.forward_then(&x, Activation::Gelu)
    }
}

struct Block<B: Backend> {
    mixer: Mixer<B>,
    mlp: FeedForward<B>,
    mlp_scale: Tensor<B>,
}

/// What mixes places with each other.
enum Mixer<B: Backend> {
    /// The residual is part of the weights.
    Convolution(DepthwiseConvolution<B>),
    Attention(Attention<B>),
}

impl<B: Backend> Block<B> {
    fn load(w: &Weights<B>, dim: usize, attends: bool) -> Result<Self> {
        let (mixer, scale) = if attends {
            (Mixer::Attention(Attention::load(w, dim)?), "layer_scale_2.gamma")
        } else {
            let windows = Windows::square(3, 1);
            let mixer = w.depthwise_convolution("token_mixer.reparam_conv", dim, windows, true)?;
            (Mixer::Convolution(mixer), "layer_scale.gamma")
        };
        Ok(Self { mixer, mlp: FeedForward::load(&w.at("mlp"), dim)?, mlp_scale: w.vector(scale, dim)? })
    }

    /// `x` [1, height, width, C] -> the same shape.
    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let x = match &self.mixer {
            Mixer::Convolution(convolution) => convolution.forward(x),
            Mixer::Attention(attention) => attention.forward_add(x),
        };
        &x + &self.mlp.forward(&x).mul_repeated(&self.mlp_scale)
    }
}

struct FeedForward<B: Backend> {
    convolution: DepthwiseConvolution<B>,
    fc1: Convolution<B>,
    fc2: Convolution<B>,
}

impl<B: Backend> FeedForward<B> {
    fn load(w: &Weights<B>, dim: usize) -> Result<Self> {
        let windows = Windows::square(7, 1);
        Ok(Self {
            convolution: w.depthwise_convolution_normalized("conv.conv", "conv.bn", dim, windows, NORM_EPS as f32)?,
            fc1: pointwise(w, "fc1", dim, MLP_RATIO * dim)?,
            fc2: pointwise(w, "fc2", MLP_RATIO * dim, dim)?,
        })
    }

    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        self.fc2.forward(&self.fc1.forward_then(&self.convolution.forward(x), Activation::Gelu))
    }
}

struct Attention<B: Backend> {
    norm: LayerNorm<B>,
    qkv: Linear<B>,
    proj: Linear<B>,
    scale: Tensor<B>,
}

impl<B: Backend> Attention<B> {
    fn load(w: &Weights<B>, dim: usize) -> Result<Self> {
        Ok(Self {
            norm: w.layer_norm("norm", dim, NORM_EPS)?,
            qkv: w.linear("token_mixer.qkv", dim, 3 * dim)?,
            proj: w.linear_bias("token_mixer.proj", dim, dim)?,
            scale: w.vector("layer_scale_1.gamma", dim)?,
        })
    }

    /// `x` [1, height, width, C] -> the same shape, `x` added.
    fn forward_add(&self, x: &Tensor<B>) -> Tensor<B> {
        let dim = x.width();
        let qkv = self.qkv.forward_parts(&self.norm.forward(x), [dim; 3]);
        let [q, k, v] = qkv.map(|part| part.split_heads(dim / HEAD_DIM));
        let attended = q.attend_all(&k, &v, 1, (HEAD_DIM as f32).sqrt().recip()); // [height × width, H, D]
        let attended = self.proj.forward(&attended.merge_heads()).reshape(x.shape());
        x + &attended.mul_repeated(&self.scale)
    }
}

fn pointwise<B: Backend>(w: &Weights<B>, name: &str, inputs: usize, outputs: usize) -> Result<Convolution<B>> {
    Ok(w.convolution(Role::Matrix, name, inputs, outputs, Windows::square(1, 1))?)
}

pub(crate) const STAGES: usize = 5;
/// The first stage whose places see all others.
const FIRST_ATTENTION: usize = 3;
const MLP_RATIO: usize = 4;
const HEAD_DIM: usize = 32;
const NORM_EPS: f64 = 1e-5;
