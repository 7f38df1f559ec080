//! [`Tensor`]: a shape, a buffer and the backend they live on.

use std::fmt;
use std::ops::{Add, Mul, Range};
use std::sync::Arc;

use crate::kv::{LayerKv, Step};
use crate::ops::{Activation, AttentionDims, Backend, ConvolutionDims, Mask, PatchDims, RopeDims};
use crate::rope::RopeRows;

/// Values of a known shape on a backend. Cloning shares the values.
pub struct Tensor<B: Backend> {
    backend: B,
    buffer: Arc<B::Buffer>,
    shape: Vec<usize>,
}

impl<B: Backend> Tensor<B> {
    /// Moves `values` to the device.
    ///
    /// # Panics
    /// If the shape does not hold exactly that many values.
    #[track_caller]
    pub fn new(backend: &B, values: &[f32], shape: &[usize]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{} values do not fill {shape:?}", values.len());
        Self::wrap(backend, backend.upload(values), shape.to_vec())
    }

    pub(crate) fn wrap(backend: &B, buffer: B::Buffer, shape: Vec<usize>) -> Self {
        Self { backend: backend.clone(), buffer: Arc::new(buffer), shape }
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows: everything but the last dimension.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// The last dimension.
    pub fn width(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// The backend that holds the values.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub(crate) fn buffer(&self) -> &B::Buffer {
        &self.buffer
    }

    /// Reads the values back; waits for them.
    pub fn to_vec(&self) -> Vec<f32> {
        self.backend.download(&self.buffer)
    }

    /// The same values under another shape.
    #[track_caller]
    pub fn reshape(&self, shape: &[usize]) -> Self {
        let (have, want): (usize, usize) = (self.shape.iter().product(), shape.iter().product());
        assert_eq!(have, want, "{:?} cannot be read as {shape:?}", self.shape);
        Self { backend: self.backend.clone(), buffer: Arc::clone(&self.buffer), shape: shape.to_vec() }
    }

    /// `[…, heads × D]` -> `[rows, heads, D]`.
    #[track_caller]
    pub fn split_heads(&self, heads: usize) -> Self {
        assert_eq!(self.width() % heads, 0, "{:?} does not split into {heads} heads", self.shape);
        self.reshape(&[self.rows(), heads, self.width() / heads])
    }

    /// `[rows, heads, D]` -> `[rows, heads × D]`.
    #[track_caller]
    pub fn merge_heads(&self) -> Self {
        assert_eq!(self.shape.len(), 3, "expected [rows, heads, D], not {:?}", self.shape);
        self.reshape(&[self.shape[0], self.shape[1] * self.shape[2]])
    }

    /// Adds a tensor of fewer elements over and over: `[N, T, width] + [T, width]`.
    #[track_caller]
    pub fn add_repeated(&self, row: &Self) -> Self {
        let (have, len): (usize, usize) = (self.shape.iter().product(), row.shape.iter().product());
        assert!(len > 0 && have % len == 0, "{:?} cannot be repeated over {:?}", row.shape, self.shape);
        self.like(self.backend.add_repeated(&self.buffer, &row.buffer))
    }

    /// Multiplies by a tensor of fewer elements over and over: `[N, T, width] * [width]`.
    #[track_caller]
    pub fn mul_repeated(&self, row: &Self) -> Self {
        let (have, len): (usize, usize) = (self.shape.iter().product(), row.shape.iter().product());
        assert!(len > 0 && have % len == 0, "{:?} cannot be repeated over {:?}", row.shape, self.shape);
        self.like(self.backend.mul_repeated(&self.buffer, &row.buffer))
    }

    /// `activation(self)`.
    pub fn activate(&self, activation: Activation) -> Self {
        self.like(self.backend.activate(&self.buffer, activation))
    }

    /// Rotates the first elements of every head of `[rows, heads, D]` by the angles of `rope`.
    #[track_caller]
    pub fn rope(&self, rope: &RopeRows<B>) -> Self {
        let [rows, heads, head_dim] = self.three_dims();
        let pairs = rope.cos.width();
        let fits = rows == rope.cos.rows() && 2 * pairs <= head_dim;
        assert!(fits, "{:?} does not fit its rotation angles {:?}", self.shape, rope.cos.shape);
        let dims = RopeDims { heads, head_dim, pairs, pairing: rope.pairing };
        self.like(self.backend.rope(&self.buffer, dims, &rope.cos.buffer, &rope.sin.buffer))
    }

    /// Attention within each entry of a batch, every query seeing every key: `self` is q `[N × T, H, D]`, `k` and `v`
    /// are `[N × S, K, D]`; the result has the shape of q.
    #[track_caller]
    pub fn attend_all(&self, k: &Self, v: &Self, batch: usize, scale: f32) -> Self {
        self.attend_masked(k, v, batch, Mask::All, scale)
    }

    /// As [`Self::attend_all`], every query seeing the keys that the mask lets it see.
    #[track_caller]
    pub fn attend_masked(&self, k: &Self, v: &Self, batch: usize, mask: Mask<'_>, scale: f32) -> Self {
        assert_eq!(k.shape, v.shape, "keys {:?} and values {:?} differ", k.shape, v.shape);
        let [rows, heads, head_dim] = self.three_dims();
        let [key_rows, kv_heads, key_dim] = k.three_dims();
        assert!(
            rows % batch == 0 && key_rows % batch == 0 && heads % kv_heads == 0 && head_dim == key_dim,
            "queries {:?} and keys {:?} do not make {batch} entries",
            self.shape,
            k.shape
        );
        let dims = AttentionDims { batch, queries: rows / batch, keys: key_rows / batch, heads, kv_heads, head_dim };
        assert!(mask == Mask::All || dims.queries == dims.keys, "{mask:?} for {dims:?}");
        self.like(self.backend.attention(&self.buffer, &k.buffer, &v.buffer, dims, mask, scale))
    }

    /// Attention over the cache, `[rows, H, D]` -> the same, every row seeing what [`Step::mask`] says; the step's keys
    /// are already appended.
    #[track_caller]
    pub fn attend(&self, kv: &LayerKv<B>, scale: f32, step: &Step) -> Self {
        self.attend_cached(kv, step.mask(), scale, step)
    }

    /// As [`Self::attend`], every row seeing the tokens that the mask lets it see.
    #[track_caller]
    pub fn attend_cached(&self, kv: &LayerKv<B>, mask: Mask<'_>, scale: f32, step: &Step) -> Self {
        let [rows, heads, head_dim] = self.three_dims();
        assert_eq!(rows, step.rows(), "{rows} queries in a step of {} rows", step.rows());
        assert!(heads % kv.kv_heads == 0 && head_dim == kv.head_dim, "queries {:?} do not fit the cache", self.shape);
        self.like(self.backend.attention_cached(&self.buffer, heads, &kv.blocks, step.spans(), mask, scale))
    }

    /// The named rows, in that order: `[…, width]` -> `[rows, width]`.
    #[track_caller]
    pub fn gather_rows(&self, rows: &[usize]) -> Self {
        assert!(rows.iter().all(|&row| row < self.rows()), "row out of range of {:?}", self.shape);
        let gathered = self.backend.gather_rows(&self.buffer, self.width(), rows);
        Self::wrap(&self.backend, gathered, vec![rows.len(), self.width()])
    }

    /// A copy in which row `rows[i]` is row `i` of `source`.
    #[track_caller]
    pub fn replace_rows(&self, rows: &[usize], source: &Self) -> Self {
        assert_eq!([rows.len(), self.width()], [source.rows(), source.width()], "replacement does not fit");
        assert!(rows.iter().all(|&row| row < self.rows()), "row out of range of {:?}", self.shape);
        self.like(self.backend.replace_rows(&self.buffer, self.width(), rows, &source.buffer))
    }

    /// A copy to whose row `rows[i]` `factors[i]` times row `i` of `source` is added.
    #[track_caller]
    pub fn add_scaled_rows(&self, rows: &[usize], factors: &[f32], source: &Self) -> Self {
        assert_eq!([rows.len(), self.width()], [source.rows(), source.width()], "rows to add do not fit");
        assert_eq!(rows.len(), factors.len(), "a factor for every row");
        assert!(rows.iter().all(|&row| row < self.rows()), "row out of range of {:?}", self.shape);
        self.like(self.backend.add_scaled_rows(&self.buffer, self.width(), rows, factors, &source.buffer))
    }

    /// The mean of every `rows` rows: `[groups × rows, width]` -> `[groups, width]`.
    #[track_caller]
    pub fn mean_rows(&self, rows: usize) -> Self {
        assert!(rows > 0 && self.rows().is_multiple_of(rows), "{:?} is not groups of {rows} rows", self.shape);
        let means = self.backend.mean_rows(&self.buffer, rows, self.width());
        Self::wrap(&self.backend, means, vec![self.rows() / rows, self.width()])
    }

    /// Some elements of every row: `[…, width]` -> `[…, columns]`.
    #[track_caller]
    pub fn columns(&self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.width(), "columns {columns:?} of {:?}", self.shape);
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("a tensor has a dimension") = columns.len();
        Self::wrap(&self.backend, self.backend.columns(&self.buffer, self.width(), columns), shape)
    }

    /// The rows of all parts side by side: `[rows, width]` each -> `[rows, sum of the widths]`.
    ///
    /// # Panics
    /// If there are no parts or their rows differ.
    #[track_caller]
    pub fn concat_columns(parts: &[&Self]) -> Self {
        let first = parts[0];
        assert!(parts.iter().all(|part| part.rows() == first.rows()), "parts of different heights");
        let buffers: Vec<(&B::Buffer, usize)> = parts.iter().map(|part| (part.buffer(), part.width())).collect();
        let width = parts.iter().map(|part| part.width()).sum();
        Self::wrap(&first.backend, first.backend.concat_columns(&buffers), vec![first.rows(), width])
    }

    /// The rows of all parts, one after another.
    ///
    /// # Panics
    /// If there are no parts or their widths differ.
    #[track_caller]
    pub fn concat_rows(parts: &[&Self]) -> Self {
        let first = parts[0];
        assert!(parts.iter().all(|part| part.width() == first.width()), "parts of different widths");
        let buffers: Vec<&B::Buffer> = parts.iter().map(|part| part.buffer()).collect();
        let rows = parts.iter().map(|part| part.rows()).sum();
        Self::wrap(&first.backend, first.backend.concat(&buffers), vec![rows, first.width()])
    }

    /// Pictures `[N, C, height, width]` -> patches `[N, patches, C × patch × patch]`, row by row. Pixels at the right
    /// and at the bottom that do not fill a patch are left out, as a convolution does.
    #[track_caller]
    pub fn unfold_patches(&self, patch: usize) -> Self {
        let &[batch, channels, height, width] = &self.shape[..] else {
            panic!("expected [N, C, height, width], not {:?}", self.shape)
        };
        let dims = PatchDims { batch, channels, height, width, patch };
        let patches = (height / patch) * (width / patch);
        let unfolded = self.backend.unfold_patches(&self.buffer, dims);
        Self::wrap(&self.backend, unfolded, vec![batch, patches, channels * patch * patch])
    }

    /// The windows of a convolution over `[N, height, width, C]`: `[N × outputs, C × kernel height × kernel width]`.
    #[track_caller]
    pub fn unfold_windows(&self, dims: ConvolutionDims) -> Self {
        let expected = dims.batch * dims.height * dims.width * dims.channels;
        assert_eq!(self.shape.iter().product::<usize>(), expected, "{:?} does not fit {dims:?}", self.shape);
        let [rows, columns] = dims.output();
        let window = dims.channels * dims.kernel[0] * dims.kernel[1];
        let unfolded = self.backend.unfold_windows(&self.buffer, dims);
        Self::wrap(&self.backend, unfolded, vec![dims.batch * rows * columns, window])
    }

    pub(crate) fn depthwise(&self, weight: &Self, bias: Option<&Self>, dims: ConvolutionDims) -> Self {
        let [rows, columns] = dims.output();
        let out = self.backend.depthwise(&self.buffer, &weight.buffer, bias.map(Self::buffer), dims);
        Self::wrap(&self.backend, out, vec![dims.batch, rows, columns, dims.channels * dims.multiplier])
    }

    pub(crate) fn like(&self, buffer: B::Buffer) -> Self {
        Self::wrap(&self.backend, buffer, self.shape.clone())
    }

    #[track_caller]
    fn three_dims(&self) -> [usize; 3] {
        self.shape[..].try_into().unwrap_or_else(|_| panic!("expected [rows, heads, D], not {:?}", self.shape))
    }
}

impl<B: Backend> Mul for &Tensor<B> {
    type Output = Tensor<B>;

    #[track_caller]
    fn mul(self, other: Self) -> Tensor<B> {
        assert_eq!(self.shape, other.shape, "cannot multiply {:?} and {:?}", self.shape, other.shape);
        self.like(self.backend.mul(&self.buffer, &other.buffer))
    }
}

impl<B: Backend> Add for &Tensor<B> {
    type Output = Tensor<B>;

    #[track_caller]
    fn add(self, other: Self) -> Tensor<B> {
        assert_eq!(self.shape, other.shape, "cannot add {:?} and {:?}", self.shape, other.shape);
        self.like(self.backend.add(&self.buffer, &other.buffer))
    }
}

impl<B: Backend> Clone for Tensor<B> {
    fn clone(&self) -> Self {
        Self { backend: self.backend.clone(), buffer: Arc::clone(&self.buffer), shape: self.shape.clone() }
    }
}

impl<B: Backend> fmt::Debug for Tensor<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tensor{:?} on {}", self.shape, self.backend.name())
    }
}
