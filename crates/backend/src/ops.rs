//! The [`Backend`] trait: the fused operations that models are made of.

use std::ops::Range;

use ocelli_formats::WeightData;

use crate::source::PackedWeight;

/// A device: it holds weights and activations and computes on them.
///
/// A value is a handle (cloning it is cheap). Activations are float32 as far as a model can see; how weights are
/// stored is the backend's own business. Every operation returns a new buffer; buffers go back to a pool when
/// dropped, so that a steady state allocates nothing. All `rows` arguments count rows of the flattened input.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Activations, row-major float32.
    type Buffer: Send + Sync;
    /// A matrix `[out, in]` in whatever form multiplies fastest.
    type Weight: Send + Sync;
    /// The keys and values of one layer, in blocks of [`crate::BLOCK_TOKENS`] tokens.
    type KvBlocks: Send + Sync;
    /// What keeps the device ready for the next operation: see [`Backend::begin_step`].
    type StepGuard;

    /// Name for messages and reports.
    fn name(&self) -> &'static str;

    /// Says that operations will follow each other closely until the guard is dropped: a device that sleeps when it has
    /// nothing to do stays awake between them. Results are the same without it.
    fn begin_step(&self) -> Self::StepGuard;

    /// Bytes that activations took when they took most; 0 where the device does not count.
    fn most_activation_bytes(&self) -> usize {
        0
    }

    /// Moves values to the device.
    fn upload(&self, values: &[f32]) -> Self::Buffer;

    /// Moves values back from the device; waits for them.
    fn download(&self, buffer: &Self::Buffer) -> Vec<f32>;

    /// Takes a matrix `[out, in]` over: floats, whose bytes stay where they are (mapped) if the backend can use them so,
    /// or codes, which it may arrange anew and multiply with activations that it rounds to as many bits.
    ///
    /// # Errors
    /// A text saying why this type of tensor cannot be used.
    fn weight(&self, data: WeightData) -> Result<Self::Weight, String>;

    /// Name and version of the arrangement that [`Backend::packed`] gives: bytes of another one must not be unpacked.
    fn packing(&self) -> &'static str {
        "none"
    }

    /// A weight's bytes as the device arranged them, to be kept for the next load; `None` for floats, which need no
    /// arranging. No bytes are copied.
    fn packed(&self, weight: &Self::Weight) -> Option<PackedWeight> {
        let _ = weight;
        None
    }

    /// The weight that [`Backend::packed`] gave the bytes of, without copying them.
    ///
    /// # Errors
    /// A text saying what is wrong with the bytes.
    fn unpack(&self, packed: PackedWeight) -> Result<Self::Weight, String> {
        let _ = packed;
        Err(format!("the {} backend packs no weights", self.name()))
    }

    /// `x [rows, in] · weightᵀ [in, out]`, then the epilogue: `[rows, out]`.
    fn linear(
        &self,
        x: &Self::Buffer,
        rows: usize,
        weight: &Self::Weight,
        epilogue: Epilogue<'_, Self>,
    ) -> Self::Buffer {
        self.linears(x, rows, &[(weight, epilogue)]).pop().expect("one product of one weight")
    }

    /// Several products of the same `x [rows, in]`, each with its own epilogue: one buffer `[rows, out]` for each, in
    /// order. The results are those of [`Backend::linear`], to the last bit.
    fn linears(
        &self,
        x: &Self::Buffer,
        rows: usize,
        products: &[(&Self::Weight, Epilogue<'_, Self>)],
    ) -> Vec<Self::Buffer>;

    /// A product in parts along its outputs, `[rows, widths[i]]` each. The results are those of [`Backend::linear`], to
    /// the last bit.
    fn linear_parts(
        &self,
        x: &Self::Buffer,
        rows: usize,
        weight: &Self::Weight,
        epilogue: Epilogue<'_, Self>,
        widths: &[usize],
    ) -> Vec<Self::Buffer> {
        let whole = self.linear(x, rows, weight, epilogue);
        let width = widths.iter().sum();
        columns_of(widths).map(|columns| self.columns(&whole, width, columns)).collect()
    }

    /// `silu(x · gateᵀ) * (x · upᵀ)`: `[rows, out]` of two weights `[out, in]`.
    fn swiglu(&self, x: &Self::Buffer, rows: usize, gate: &Self::Weight, up: &Self::Weight) -> Self::Buffer;

    /// Rows `ids` of a matrix: `[ids, in]`.
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> Self::Buffer;

    /// `a + b`, element by element.
    fn add(&self, a: &Self::Buffer, b: &Self::Buffer) -> Self::Buffer;

    /// `x [rows, n] + row [n]` for every group of `n` elements, repeated.
    fn add_repeated(&self, x: &Self::Buffer, row: &Self::Buffer) -> Self::Buffer;

    /// `a * b`, element by element.
    fn mul(&self, a: &Self::Buffer, b: &Self::Buffer) -> Self::Buffer;

    /// `x [rows, n] * row [n]` for every group of `n` elements, repeated.
    fn mul_repeated(&self, x: &Self::Buffer, row: &Self::Buffer) -> Self::Buffer;

    /// `activation(x)`, element by element.
    fn activate(&self, x: &Self::Buffer, activation: Activation) -> Self::Buffer;

    /// `x / sqrt(mean(x²) + eps) * weight` over each row of `weight.len()` elements.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Buffer, eps: f32) -> Self::Buffer;

    /// `(x - mean) / sqrt(variance + eps) * weight + bias` over each row.
    fn layer_norm(&self, x: &Self::Buffer, weight: &Self::Buffer, bias: &Self::Buffer, eps: f32) -> Self::Buffer;

    /// Rotates `x [rows, heads, D]` by per-row angles; `cos` and `sin` are `[rows, P]`. The first 2·P elements of a head
    /// turn in pairs, the others stay.
    fn rope(&self, x: &Self::Buffer, dims: RopeDims, cos: &Self::Buffer, sin: &Self::Buffer) -> Self::Buffer;

    /// Attention where a query sees the keys of its own batch entry that the mask lets it see:
    /// `q [N, T, H, D]`, `k` and `v` `[N, S, K, D]` -> `[N, T, H, D]`. T is S unless the mask is [`Mask::All`].
    fn attention(
        &self,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        dims: AttentionDims,
        mask: Mask<'_>,
        scale: f32,
    ) -> Self::Buffer;

    /// How keys and values are kept, for people: `f32`, `bf16` or `q8`.
    fn kv_precision(&self) -> &'static str {
        "f32"
    }

    /// Bytes that the keys and values of one token take in one layer.
    fn kv_bytes_per_token(&self, kv_heads: usize, head_dim: usize) -> usize;

    /// Storage for keys and values of one layer; it grows on demand.
    fn kv_blocks(&self, kv_heads: usize, head_dim: usize) -> Self::KvBlocks;

    /// Writes row `r` of `k` and `v` (`[rows, K, D]`) to token slot `slots[r]` (block × block size + offset).
    fn kv_write(&self, kv: &mut Self::KvBlocks, k: &Self::Buffer, v: &Self::Buffer, slots: &[usize]);

    /// Copies one block onto another (a sequence that was forked is about to write into a shared block).
    fn kv_copy(&self, kv: &mut Self::KvBlocks, from: usize, to: usize);

    /// Attention of new rows over their sequences' cached keys: `q [rows, H, D]` -> the same shape.
    ///
    /// Row `i` of a span is token `span.past + i` of its sequence (its own key is already written); with
    /// [`Mask::Causal`] it sees the tokens up to itself.
    fn attention_cached(
        &self,
        q: &Self::Buffer,
        heads: usize,
        kv: &Self::KvBlocks,
        spans: &[crate::Span],
        mask: Mask<'_>,
        scale: f32,
    ) -> Self::Buffer;

    /// Rows `rows` of `x`, each of `width` elements, in that order.
    fn gather_rows(&self, x: &Self::Buffer, width: usize, rows: &[usize]) -> Self::Buffer;

    /// A copy of `x` in which row `rows[i]` is replaced by row `i` of `source`.
    fn replace_rows(&self, x: &Self::Buffer, width: usize, rows: &[usize], source: &Self::Buffer) -> Self::Buffer;

    /// A copy of `x` to whose row `rows[i]` `factors[i]` times row `i` of `source` is added, in that order; a row may be
    /// named more than once.
    fn add_scaled_rows(
        &self,
        x: &Self::Buffer,
        width: usize,
        rows: &[usize],
        factors: &[f32],
        source: &Self::Buffer,
    ) -> Self::Buffer;

    /// The mean of every `rows` rows of `width` elements.
    fn mean_rows(&self, x: &Self::Buffer, rows: usize, width: usize) -> Self::Buffer;

    /// Some columns of rows of `width` elements.
    fn columns(&self, x: &Self::Buffer, width: usize, columns: Range<usize>) -> Self::Buffer;

    /// Rows side by side: each part's rows have the width given with it.
    fn concat_columns(&self, parts: &[(&Self::Buffer, usize)]) -> Self::Buffer;

    /// The parts one after another.
    fn concat(&self, parts: &[&Self::Buffer]) -> Self::Buffer;

    /// Cuts pictures `[N, C, height, width]` into square patches: `[N × patches (row by row), C × patch × patch]`.
    fn unfold_patches(&self, x: &Self::Buffer, dims: PatchDims) -> Self::Buffer;

    /// The windows of a convolution over pictures `[N, height, width, C]`: `[N × outputs (row by row), C × kernel height ×
    /// kernel width]`, so that the convolution is a matrix product with its weights as checkpoints hold them.
    fn unfold_windows(&self, x: &Self::Buffer, dims: ConvolutionDims) -> Self::Buffer;

    /// A convolution of pictures `[N, height, width, C]` in which output channel `o` sees only channel `o / M`: weight
    /// `[kernel height, kernel width, C × M]`, bias `[C × M]`, result `[N, output height, output width, C × M]`.
    fn depthwise(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        dims: ConvolutionDims,
    ) -> Self::Buffer;
}

/// What happens to a matrix product before it is stored: `activation(x·w + bias) + residual`.
pub struct Epilogue<'a, B: Backend> {
    /// Added to every row, `[out]`.
    pub bias: Option<&'a B::Buffer>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added at the end, `[rows, out]`.
    pub residual: Option<&'a B::Buffer>,
}

impl<B: Backend> Epilogue<'_, B> {
    /// Nothing happens to the product.
    pub fn none() -> Self {
        Self { bias: None, activation: Activation::None, residual: None }
    }
}

impl<B: Backend> Clone for Epilogue<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Epilogue<'_, B> {}

/// Which tokens of its sequence (or batch entry) a token sees, itself always included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask<'a> {
    /// All tokens.
    All,
    /// The tokens up to itself.
    Causal,
    /// The last so many tokens up to itself.
    Window(usize),
    /// As [`Self::Causal`], but the first so many tokens see each other.
    Prefix(usize),
    /// The tokens of its own segment. Segments lie one after another; each begins at one of these ascending places, the
    /// first of which is 0.
    Segments(&'a [usize]),
}

/// Element-wise functions that follow a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// `x/2 · (1 + erf(x/√2))`.
    Gelu,
    /// The tanh approximation, `gelu_pytorch_tanh` in configs.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · sigmoid(1.702 x)`, `quick_gelu` in configs.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

/// Sizes of [`Backend::attention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// N: entries that do not see each other.
    pub batch: usize,
    /// T: queries per entry.
    pub queries: usize,
    /// S: keys per entry.
    pub keys: usize,
    /// H: query heads.
    pub heads: usize,
    /// K: key/value heads; H is a multiple of it.
    pub kv_heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
}

/// Sizes of [`Backend::unfold_patches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchDims {
    /// N: pictures.
    pub batch: usize,
    /// C: colour channels.
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
}

/// Sizes of [`Backend::rope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeDims {
    /// Heads per row.
    pub heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
    /// P: pairs per head that turn.
    pub pairs: usize,
    /// Which elements make a pair.
    pub pairing: RopePairing,
}

/// Where parts of those widths lie, side by side.
pub fn columns_of(widths: &[usize]) -> impl Iterator<Item = Range<usize>> {
    widths.iter().scan(0, |end, width| {
        let start = *end;
        *end += width;
        Some(start..*end)
    })
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `i` and `i + P` (Llama and Qwen as published on the hub).
    Halves,
    /// `2i` and `2i + 1` (the paper, DeepSeek).
    Adjacent,
}

/// Sizes of a convolution; outside of a picture there are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvolutionDims {
    /// N: pictures.
    pub batch: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// C: channels.
    pub channels: usize,
    /// M: output channels per channel; 1 unless depthwise.
    pub multiplier: usize,
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Steps between windows, down and across.
    pub stride: [usize; 2],
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
}

impl ConvolutionDims {
    /// Rows and columns of outputs.
    pub fn output(&self) -> [usize; 2] {
        let along = |size: usize, axis: usize| {
            let (padded, kernel) = (size + 2 * self.padding[axis], self.kernel[axis]);
            if padded < kernel { 0 } else { (padded - kernel) / self.stride[axis] + 1 }
        };
        [along(self.height, 0), along(self.width, 1)]
    }
}
