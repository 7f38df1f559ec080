//! [`Weights`]: a checkpoint seen through a model's own names.
//!
//! Layers ask for what they need by name and shape. Nothing fails on the way: a tensor that is missing or has another
//! shape is replaced by zeros and noted, and [`Weights::finish`] reports all of them, and all tensors that nobody
//! asked for, at once: a checkpoint of the wrong family is recognised by its list of names, not by its first one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use ocelli_formats::{Checkpoint, Dtype, GroupedLayout, SharedBytes, StoredTensor, TensorData, WeightData};

use crate::error::{Error, Result};
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, SwiGlu};
use crate::ops::Backend;
use crate::precision::{Part, Role, quantize};
use crate::source::{Held, Origin, PackedWeight, WeightSource};
use crate::tensor::Tensor;

/// What a family makes of one name of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renamed {
    /// The name that the model's layers use.
    To(String),
    /// A stack of matrices, each of which has a name of its own: its number stands between these two.
    Parts {
        /// What its name begins with.
        before: String,
        /// What its name ends with.
        after: String,
    },
    /// Known and not needed (a buffer, a tied copy): left out silently.
    Ignored,
}

/// A place in a checkpoint's tree of names.
pub struct Weights<'a, B: Backend> {
    backend: B,
    shared: Rc<Shared<'a>>,
    prefix: String,
    part: Part,
}

struct Shared<'a> {
    source: WeightSource<'a>,
    /// The checkpoint's tensors under the model's names.
    names: BTreeMap<String, Named>,
    used: RefCell<BTreeSet<String>>,
    missing: RefCell<Vec<String>>,
    misshaped: RefCell<Vec<String>>,
}

/// A tensor of a checkpoint, or one of those that it is a stack of.
struct Named {
    /// The checkpoint's name.
    name: String,
    part: Option<usize>,
    stored: StoredTensor,
}

impl<'a, B: Backend> Weights<'a, B> {
    /// All tensors of a checkpoint under the names that `rename` gives them; random weights have the model's names.
    ///
    /// # Errors
    /// When two tensors get the same name.
    pub fn new(backend: &B, source: impl Into<WeightSource<'a>>, rename: impl Fn(&str) -> Renamed) -> Result<Self> {
        let source = source.into();
        let mut names = BTreeMap::new();
        if let Origin::Checkpoint(checkpoint) = source.origin {
            for name in checkpoint.names() {
                for (canonical, named) in named(checkpoint, name, rename(name)) {
                    if let Some(first) = names.insert(canonical, named) {
                        return Err(Error::Duplicate { first: first.name, second: name.to_owned() });
                    }
                }
            }
        }
        let shared = Shared {
            source,
            names,
            used: RefCell::default(),
            missing: RefCell::default(),
            misshaped: RefCell::default(),
        };
        Ok(Self { backend: backend.clone(), shared: Rc::new(shared), prefix: String::new(), part: Part::Text })
    }

    /// The same checkpoint below `name`.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        let (backend, shared) = (self.backend.clone(), Rc::clone(&self.shared));
        Self { backend, shared, prefix: self.path(name), part: self.part }
    }

    /// The same place, where everything belongs to the part that sees.
    #[must_use]
    pub fn vision(self) -> Self {
        Self { part: Part::Vision, ..self }
    }

    /// The backend that weights are loaded to.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Whether the checkpoint holds this tensor; random weights hold what is asked for, and nothing before.
    pub fn has(&self, name: &str) -> bool {
        self.shared.names.contains_key(&self.path(name))
    }

    /// `name.weight` `[out, in]` without a bias.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn linear(&self, name: &str, in_features: usize, out_features: usize) -> Result<Linear<B>> {
        self.linear_as(Role::Matrix, name, in_features, out_features)
    }

    /// As [`Self::linear`], never quantised: for the few numbers that decide where to go on.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn linear_of_floats(&self, name: &str, in_features: usize, out_features: usize) -> Result<Linear<B>> {
        self.linear_as(Role::Values, name, in_features, out_features)
    }

    /// `name.weight` `[vocabulary, in]`: the layer that gives logits.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn output(&self, name: &str, in_features: usize, vocab_size: usize) -> Result<Linear<B>> {
        self.linear_as(Role::Output, name, in_features, vocab_size)
    }

    /// As [`Self::output`], with `name.bias` `[vocabulary]`.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn output_bias(&self, name: &str, in_features: usize, vocab_size: usize) -> Result<Linear<B>> {
        let bias = Some(self.at(name).values("bias", &[vocab_size])?);
        Ok(Linear { bias, ..self.output(name, in_features, vocab_size)? })
    }

    /// As [`Self::linear_bias`], for the first layer of a tower: `name.weight` `[out, channels × patch × patch]`.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn patch_linear(&self, name: &str, in_features: usize, out_features: usize) -> Result<Linear<B>> {
        self.linear_of_shape(Role::Patches, name, &[out_features, in_features], true)
    }

    /// `name.weight` `[out, in]` and `name.bias` `[out]`.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn linear_bias(&self, name: &str, in_features: usize, out_features: usize) -> Result<Linear<B>> {
        let bias = Some(self.at(name).values("bias", &[out_features])?);
        Ok(Linear { bias, ..self.linear(name, in_features, out_features)? })
    }

    /// A convolution whose stride is its size, `name.weight` `[out, channels, patch, patch]` and `name.bias`, as a
    /// linear layer over unfolded patches.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn patch_embedding(&self, name: &str, channels: usize, patch: usize, out_features: usize) -> Result<Linear<B>> {
        self.linear_of_shape(Role::Patches, name, &[out_features, channels, patch, patch], true)
    }

    /// As [`Self::patch_embedding`], without a bias.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn patch_embedding_no_bias(
        &self,
        name: &str,
        channels: usize,
        patch: usize,
        out_features: usize,
    ) -> Result<Linear<B>> {
        self.linear_of_shape(Role::Patches, name, &[out_features, channels, patch, patch], false)
    }

    /// A convolution over frames whose stride is its size, `name.weight` `[out, channels, frames, height, width]` and, if
    /// it has one, `name.bias`, as a linear layer over patches `[channels, frames, height, width]`.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn frames_embedding(
        &self,
        name: &str,
        channels: usize,
        [frames, height, width]: [usize; 3],
        out_features: usize,
        has_bias: bool,
    ) -> Result<Linear<B>> {
        self.linear_of_shape(Role::Patches, name, &[out_features, channels, frames, height, width], has_bias)
    }

    /// `name.weight` of a shape whose last dimensions are read as one, and `name.bias` if it has one.
    pub(crate) fn linear_of_shape(&self, role: Role, name: &str, shape: &[usize], has_bias: bool) -> Result<Linear<B>> {
        let weights = self.at(name);
        let (out_features, in_features) = (shape[0], shape[1..].iter().product());
        let weight = Arc::new(weights.matrix(role, "weight", shape)?);
        let bias = if has_bias { Some(weights.values("bias", &[out_features])?) } else { None };
        Ok(Linear { weight, bias, out_features, in_features })
    }

    /// `name.weight` `[count, width]`.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn embedding(&self, name: &str, count: usize, width: usize) -> Result<Embedding<B>> {
        let weight = Arc::new(self.at(name).matrix(Role::Embedding, "weight", &[count, width])?);
        Ok(Embedding { backend: self.backend.clone(), weight, count, width })
    }

    /// `name.weight` `[width]`.
    ///
    /// # Errors
    /// When the tensor is not of a float type.
    pub fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<RmsNorm<B>> {
        Ok(RmsNorm { weight: self.at(name).values("weight", &[width])?, eps: eps as f32 })
    }

    /// `name.weight` and `name.bias`, both `[width]`.
    ///
    /// # Errors
    /// When a tensor is not of a float type.
    pub fn layer_norm(&self, name: &str, width: usize, eps: f64) -> Result<LayerNorm<B>> {
        let weights = self.at(name);
        let (weight, bias) = (weights.values("weight", &[width])?, weights.values("bias", &[width])?);
        Ok(LayerNorm { weight, bias, eps: eps as f32 })
    }

    /// `gate_proj`, `up_proj` and `down_proj` below this place.
    ///
    /// # Errors
    /// When the backend cannot hold the weights' type.
    pub fn swiglu(&self, hidden_size: usize, intermediate_size: usize) -> Result<SwiGlu<B>> {
        Ok(SwiGlu {
            gate: self.linear("gate_proj", hidden_size, intermediate_size)?,
            up: self.linear("up_proj", hidden_size, intermediate_size)?,
            down: self.linear("down_proj", intermediate_size, hidden_size)?,
        })
    }

    /// A tensor as float32 values on the device.
    ///
    /// # Errors
    /// When the tensor is not of a float type.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Tensor<B>> {
        let path = self.path(name);
        let count = shape.iter().product::<usize>();
        let fitting = self.fitting(&path, shape);
        let stored = fitting.as_ref();
        let values =
            if self.shared.source.only_plans { vec![0.0; count] } else { self.load(&path, shape, stored)?.to_f32()? };
        self.held(path, Role::Values, shape, count * size_of::<f32>());
        Ok(Tensor::new(&self.backend, &values, shape))
    }

    /// As [`Self::values`], computed where the checkpoint leaves them out.
    ///
    /// # Errors
    /// When the tensor is not of a float type.
    pub fn values_or_else(&self, name: &str, shape: &[usize], compute: impl FnOnce() -> Vec<f32>) -> Result<Tensor<B>> {
        let is_left_out = matches!(self.shared.source.origin, Origin::Checkpoint(_)) && !self.has(name);
        if !is_left_out {
            return self.values(name, shape);
        }
        self.held(self.path(name), Role::Values, shape, shape.iter().product::<usize>() * size_of::<f32>());
        Ok(Tensor::new(&self.backend, &compute(), shape))
    }

    /// So many values, whatever extents the checkpoint gives them (writers disagree on those of a factor per channel).
    ///
    /// # Errors
    /// When the tensor is not of a float type.
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor<B>> {
        let shape = self.shared.names.get(&self.path(name)).map(|named| named.stored.shape().to_vec());
        let shape = shape.filter(|shape| shape.iter().product::<usize>() == len);
        Ok(self.values(name, &shape.unwrap_or_else(|| vec![len]))?.reshape(&[len]))
    }

    /// Checks that everything fitted and nothing was left over.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every name.
    pub fn finish(&self) -> Result<()> {
        let used = self.shared.used.borrow();
        let unused = self.shared.names.iter().filter(|(canonical, _)| !used.contains(*canonical));
        let left_over: Vec<String> = unused.map(|(_, named)| named.to_string()).collect();
        let (missing, misshaped) = (self.shared.missing.borrow().clone(), self.shared.misshaped.borrow().clone());
        if missing.is_empty() && left_over.is_empty() && misshaped.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch { missing, left_over, misshaped })
    }

    fn linear_as(&self, role: Role, name: &str, in_features: usize, out_features: usize) -> Result<Linear<B>> {
        let weight = self.at(name).matrix(role, "weight", &[out_features, in_features])?;
        Ok(Linear { weight: Arc::new(weight), bias: None, out_features, in_features })
    }

    fn matrix(&self, role: Role, name: &str, shape: &[usize]) -> Result<B::Weight> {
        let path = self.path(name);
        let source = &self.shared.source;
        let layout = source.precision.layout(self.part, role, shape[1..].iter().product());
        let fitting = self.fitting(&path, shape);
        let stored = fitting.as_ref();
        if source.only_plans {
            let bytes = planned_bytes(shape, stored, layout);
            self.held(path.clone(), role, shape, bytes);
            let nothing = TensorData::from_f32(vec![1, 1], &[0.0])?;
            return self.weight(path, nothing.into());
        }
        if let Some((packed, weight)) = self.kept(&path, shape, stored, layout) {
            self.held(path, role, shape, packed.bytes.len());
            return Ok(weight);
        }
        let (data, is_copy) = match (self.load(&path, shape, stored)?, layout) {
            (WeightData::Float(data), layout) => {
                let flat = vec![shape[0], shape[1..].iter().product()];
                let data = TensorData::new(data.dtype(), flat, data.bytes().clone())?;
                let codes = layout.map(|layout| quantize(&data, layout, source.threads)).transpose()?.flatten();
                let is_copy = codes.is_some();
                (codes.map_or(data.into(), WeightData::from), is_copy)
            }
            (grouped, _) => (grouped, true),
        };
        let bytes = data.byte_len();
        let weight = self.weight(path.clone(), data)?;
        if let Some((store, packed)) = source.store.zip(self.backend.packed(&weight)) {
            store.put(&path, packed);
        }
        // A device arranges codes anew: the file's are not read again.
        if let Some(stored) = stored.filter(|_| is_copy) {
            stored.release();
        }
        self.held(path, role, shape, bytes);
        Ok(weight)
    }

    /// The weight that the store kept, if it is what a matrix would become.
    fn kept(
        &self,
        path: &str,
        shape: &[usize],
        stored: Option<&StoredTensor>,
        layout: Option<GroupedLayout>,
    ) -> Option<(PackedWeight, B::Weight)> {
        let stored = stored?;
        let packed = self.shared.source.store?.get(path)?;
        let is_same = [packed.outputs, packed.layout.inputs()] == [shape[0], shape[1..].iter().product()];
        let is_wanted = stored.is_quantized() || layout == Some(packed.layout);
        let weight = (is_same && is_wanted).then(|| self.backend.unpack(packed.clone()))?.ok()?;
        Some((packed, weight))
    }

    fn weight(&self, name: String, data: WeightData) -> Result<B::Weight> {
        self.backend.weight(data).map_err(|reason| Error::UnsupportedWeight { name, reason })
    }

    /// The numbers of a tensor: of the checkpoint's, random ones, or zeros where the checkpoint has nothing fitting.
    fn load(&self, path: &str, shape: &[usize], stored: Option<&StoredTensor>) -> Result<WeightData> {
        if let Some(stored) = stored {
            return Ok(stored.load()?);
        }
        if let Origin::Random(random) = self.shared.source.origin {
            return Ok(random.tensor(path, shape)?.into());
        }
        // The load fails in `finish`, whatever a layer makes of the zeros; the system hands zeroed pages out lazily.
        let zeros = vec![0u8; shape.iter().product::<usize>() * Dtype::BF16.size()];
        Ok(TensorData::new(Dtype::BF16, shape.to_vec(), SharedBytes::from(zeros))?.into())
    }

    /// The checkpoint's tensor if it has the shape, or gets it with its channels first; what does not fit is noted for
    /// [`Self::finish`].
    fn fitting(&self, path: &str, shape: &[usize]) -> Option<StoredTensor> {
        let Origin::Checkpoint(_) = self.shared.source.origin else { return None };
        let Some(named) = self.shared.names.get(path) else {
            self.shared.missing.borrow_mut().push(path.to_owned());
            return None;
        };
        self.shared.used.borrow_mut().insert(path.to_owned());
        let stored = &named.stored;
        let fitting = if stored.shape() == shape { Some(stored.clone()) } else { stored.turned_to(shape) };
        if fitting.is_some() && stored.is_float() {
            return fitting;
        }
        let note = format!("{named} ({} {:?}, expected {shape:?})", stored.kind(), stored.shape());
        self.shared.misshaped.borrow_mut().push(note);
        None
    }

    fn held(&self, name: String, role: Role, shape: &[usize], bytes: usize) {
        if let Some(on_weight) = self.shared.source.on_weight {
            let named = self.shared.names.get(&name);
            let stored = named.map_or_else(|| name.clone(), |named| named.name.clone());
            let stack_idx = named.and_then(|named| named.part);
            on_weight(Held {
                name,
                stored,
                stack_idx,
                shape: shape.to_vec(),
                role,
                part: self.part,
                bytes: bytes as u64,
            });
        }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)?;
        self.part.map_or(Ok(()), |part| write!(formatter, "[{part}]"))
    }
}

/// A tensor under its new name, or its parts under theirs. A stack that cannot be cut keeps its name and is left over.
fn named(checkpoint: &Checkpoint, name: &str, renamed: Renamed) -> Vec<(String, Named)> {
    let Some(stored) = checkpoint.stored(name) else { return Vec::new() };
    let whole =
        |canonical: String| vec![(canonical, Named { name: name.to_owned(), part: None, stored: stored.clone() })];
    match renamed {
        Renamed::Ignored => Vec::new(),
        Renamed::To(canonical) => whole(canonical),
        Renamed::Parts { before, after } => {
            let parts = stored.parts();
            if parts.is_empty() {
                return whole(name.to_owned());
            }
            let part = |(idx, stored)| {
                (format!("{before}{idx}{after}"), Named { name: name.to_owned(), part: Some(idx), stored })
            };
            parts.into_iter().enumerate().map(part).collect()
        }
    }
}

/// Bytes that a matrix will take in memory.
fn planned_bytes(shape: &[usize], stored: Option<&StoredTensor>, layout: Option<GroupedLayout>) -> usize {
    match (stored, layout) {
        (Some(stored), layout) if layout.is_none() || stored.is_quantized() => stored.loaded_len(),
        (_, Some(layout)) => shape[0] * layout.row_len(),
        (_, None) => shape.iter().product::<usize>() * Dtype::BF16.size(),
    }
}
