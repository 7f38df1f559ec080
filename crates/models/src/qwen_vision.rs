//! What the vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common. T patches of a picture, H heads, D head
//! size, s the side of the square of patches that becomes one token.
//!
//! Pictures keep their size, so a tower takes any number of patches, and rotary embeddings say where each lies.
//! Surprise: patches come square by square (each s × s of them row by row), not row by row of the whole picture.

use ocelli_backend::{Activation, Backend, Linear, Mask, Rope, RopePairing, RopeRows, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::PixelValues;
use crate::error::{Result, require};

/// The fields of `vision_config` that shape patches; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PatchConfig {
    in_channels: Option<usize>,
    /// What published configs call it; re-saved ones have both.
    in_chans: Option<usize>,
    patch_size: usize,
    #[serde(default = "default_two")]
    temporal_patch_size: usize,
    #[serde(default = "default_two")]
    spatial_merge_size: usize,
    #[serde(default = "default_num_heads")]
    num_heads: usize,
}

impl PatchConfig {
    /// Reads and checks the fields for a tower of this width.
    pub(crate) fn parse(section: &Section, hidden: usize) -> Result<Self> {
        let config: Self = section.parse()?;
        let heads = config.num_heads;
        let divides = heads > 0 && hidden > 0 && hidden.is_multiple_of(4 * heads);
        require(section, divides, "num_heads", heads, "heads of a multiple of 4 elements")?;
        for (key, value) in [
            ("in_channels", config.in_channels()),
            ("patch_size", config.patch_size),
            ("temporal_patch_size", config.temporal_patch_size),
            ("spatial_merge_size", config.spatial_merge_size),
        ] {
            require(section, (1..=MAX_PATCH).contains(&value), key, value, "a small positive number")?;
        }
        Ok(config)
    }

    fn in_channels(&self) -> usize {
        self.in_channels.or(self.in_chans).unwrap_or(3)
    }

    /// s: patches per side of a token.
    pub(crate) fn merge(&self) -> usize {
        self.spatial_merge_size
    }

    /// The window of a tower's attention in tokens per side, given in pixels.
    pub(crate) fn tokens_per_side(&self, pixels: usize) -> usize {
        pixels / self.patch_size / self.spatial_merge_size
    }

    /// `patch_embed.proj`: a convolution over some frames, as a product with flattened patches.
    pub(crate) fn embedding<B: Backend>(&self, w: &Weights<B>, hidden: usize, has_bias: bool) -> Result<Linear<B>> {
        let &Self { patch_size, temporal_patch_size, .. } = self;
        let window = [temporal_patch_size, patch_size, patch_size];
        Ok(w.frames_embedding("patch_embed.proj", self.in_channels(), window, hidden, has_bias)?)
    }

    /// Loads `merger` or its like: `w` is where the two layers are.
    pub(crate) fn merger<B: Backend>(
        &self,
        w: &Weights<B>,
        names: [&str; 2],
        hidden: usize,
        out: usize,
    ) -> Result<Merger<B>> {
        let width = hidden * self.spatial_merge_size * self.spatial_merge_size;
        Ok(Merger { fc1: w.linear_bias(names[0], width, width)?, fc2: w.linear_bias(names[1], width, out)?, width })
    }

    /// Loads a layer's attention.
    pub(crate) fn attention<B: Backend>(&self, w: &Weights<B>, hidden: usize) -> Result<Attention<B>> {
        Ok(Attention {
            qkv: w.linear_bias("qkv", hidden, 3 * hidden)?,
            proj: w.linear_bias("proj", hidden, hidden)?,
            n_heads: self.num_heads,
            scale: ((hidden / self.num_heads) as f32).sqrt().recip(),
        })
    }

    /// Rotary angles of patches at these rows and columns: the first half of the pairs turns with rows, the other with
    /// columns.
    pub(crate) fn rope<B: Backend>(&self, backend: &B, places: &[[usize; 2]], hidden: usize) -> RopeRows<B> {
        let rope = Rope::new(hidden / self.num_heads / 2, THETA, None);
        let frequencies = rope.inverse_frequencies();
        let turn = |at: usize| frequencies.iter().map(move |frequency| at as f32 * frequency);
        let angles: Vec<f32> = places.iter().flat_map(|&[row, column]| turn(row).chain(turn(column))).collect();
        RopeRows::new(backend, &angles, places.len(), RopePairing::Halves)
    }
}

/// The patches of a picture: frames, rows and columns of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    frames: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    merge: usize,
}

impl Grid {
    /// The grid of what a processor made.
    ///
    /// # Panics
    /// If it does not hold whole tokens, or other patches than there are.
    #[track_caller]
    pub(crate) fn of(pixel_values: &PixelValues<'_>, merge: usize) -> Self {
        let [frames, rows, columns] = pixel_values.grid;
        let patches = pixel_values.shape[2];
        let fits = frames * rows * columns == patches && rows % merge == 0 && columns % merge == 0;
        assert!(fits, "{patches} patches in a grid of {:?}", pixel_values.grid);
        Self { frames, rows, columns, merge }
    }

    /// Row and column of every patch, in the order in which they come.
    pub(crate) fn places(self) -> Vec<[usize; 2]> {
        let Self { frames, rows, columns, merge } = self;
        let place = |patch: usize| {
            let (square, inner) = (patch / (merge * merge), patch % (merge * merge));
            let squares = columns / merge;
            [square / squares * merge + inner / merge, square % squares * merge + inner % merge]
        };
        (0..frames).flat_map(|_| (0..rows * columns).map(place)).collect()
    }

    /// Where the patches of each frame begin: frames do not see each other.
    pub(crate) fn frame_starts(self) -> Vec<usize> {
        (0..self.frames).map(|frame| frame * self.rows * self.columns).collect()
    }

    /// Frames, and tokens per column and row of each.
    pub(crate) fn tokens(self) -> [usize; 3] {
        [self.frames, self.rows / self.merge, self.columns / self.merge]
    }
}

/// Attention of a layer, whose queries, keys and values come from one matrix.
pub(crate) struct Attention<B: Backend> {
    qkv: Linear<B>,
    proj: Linear<B>,
    n_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    /// `x` [T, hidden] -> the same shape, `residual` added; patches see those of their own segment.
    pub(crate) fn forward_add(
        &self,
        x: &Tensor<B>,
        residual: &Tensor<B>,
        rope: &RopeRows<B>,
        segments: &[usize],
    ) -> Tensor<B> {
        let hidden = x.width();
        let qkv = self.qkv.forward_parts(x, [hidden; 3]);
        let [q, k, v] = qkv.map(|part| part.split_heads(self.n_heads)); // [T, H, D]
        let (q, k) = (q.rope(rope), k.rope(rope));
        let mask = if segments.len() > 1 { Mask::Segments(segments) } else { Mask::All };
        let attended = q.attend_masked(&k, &v, 1, mask, self.scale);
        self.proj.forward_add(&attended.merge_heads(), residual)
    }
}

/// Makes one token of s × s patches.
pub(crate) struct Merger<B: Backend> {
    fc1: Linear<B>,
    fc2: Linear<B>,
    width: usize,
}

impl<B: Backend> Merger<B> {
    /// s² patches side by side.
    pub(crate) fn fold(&self, x: &Tensor<B>) -> Tensor<B> {
        x.reshape(&[x.rows() * x.width() / self.width, self.width])
    }

    /// [T / s², s² × hidden] -> [T / s², out].
    pub(crate) fn forward(&self, folded: &Tensor<B>) -> Tensor<B> {
        self.fc2.forward(&self.fc1.forward_then(folded, Activation::Gelu))
    }
}

const THETA: f64 = 10_000.0;
/// No tower has patches of more pixels per side; larger ones would be a damaged file.
const MAX_PATCH: usize = 256;

fn default_two() -> usize {
    2
}

fn default_num_heads() -> usize {
    16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_square_by_square() {
        let grid = Grid { frames: 2, rows: 2, columns: 4, merge: 2 };
        let frame = [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]];
        assert_eq!(grid.places(), [frame, frame].concat());
        assert_eq!(grid.frame_starts(), [0, 8]);
        assert_eq!(grid.tokens(), [2, 1, 2]);
    }
}
