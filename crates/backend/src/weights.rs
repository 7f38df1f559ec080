//! [`Weights`]: a checkpoint seen through a model's own names.
//!
//! Layers ask for what they need by name and shape. Nothing fails on the way: a tensor that is missing or has another
//! shape is replaced by zeros and noted, and [`Weights::finish`] reports all of them, and all tensors that nobody
//! asked for, at once: a checkpoint of the wrong family is recognised by its list of names, not by its first one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use ocelli_formats::{Checkpoint, Dtype, SharedBytes, TensorData};

use crate::error::{Error, Result};
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, SwiGlu};
use crate::ops::Backend;
use crate::random::RandomWeights;
use crate::tensor::Tensor;

/// What a family makes of one name of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renamed {
    /// The name that the model's layers use.
    To(String),
    /// Known and not needed (a buffer, a tied copy): left out silently.
    Ignored,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// Files.
    Checkpoint(&'a Checkpoint),
    /// Nowhere: for measurements.
    Random(&'a RandomWeights),
}

impl<'a> From<&'a Checkpoint> for WeightSource<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self::Checkpoint(checkpoint)
    }
}

impl<'a> From<&'a RandomWeights> for WeightSource<'a> {
    fn from(weights: &'a RandomWeights) -> Self {
        Self::Random(weights)
    }
}

/// A place in a checkpoint's tree of names.
pub struct Weights<B: Backend> {
    backend: B,
    shared: Rc<Shared>,
    prefix: String,
}

struct Shared {
    tensors: BTreeMap<String, (String, TensorData)>,
    /// Answers instead of `tensors`.
    random: Option<RandomWeights>,
    used: RefCell<BTreeSet<String>>,
    missing: RefCell<Vec<String>>,
    misshaped: RefCell<Vec<String>>,
}

impl<B: Backend> Weights<B> {
    /// All tensors of a checkpoint under the names that `rename` gives them; random weights have the model's names.
    ///
    /// # Errors
    /// When two tensors get the same name.
    pub fn new<'a>(backend: &B, source: impl Into<WeightSource<'a>>, rename: impl Fn(&str) -> Renamed) -> Result<Self> {
        let (checkpoint, random) = match source.into() {
            WeightSource::Checkpoint(checkpoint) => (Some(checkpoint), None),
            WeightSource::Random(random) => (None, Some(random.clone())),
        };
        let mut tensors = BTreeMap::new();
        for (checkpoint, name) in checkpoint.iter().flat_map(|held| held.names().map(move |name| (held, name))) {
            let Renamed::To(canonical) = rename(name) else { continue };
            let Some(data) = checkpoint.tensor(name) else { continue };
            if let Some((first, _)) = tensors.insert(canonical, (name.to_owned(), data)) {
                return Err(Error::Duplicate { first, second: name.to_owned() });
            }
        }
        let shared = Shared {
            tensors,
            random,
            used: RefCell::default(),
            missing: RefCell::default(),
            misshaped: RefCell::default(),
        };
        Ok(Self { backend: backend.clone(), shared: Rc::new(shared), prefix: String::new() })
    }

    /// The same checkpoint below `name`.
    pub fn at(&self, name: &str) -> Self {
        Self { backend: self.backend.clone(), shared: Rc::clone(&self.shared), prefix: self.path(name) }
    }

    /// The backend that weights are loaded to.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Whether the checkpoint holds this tensor; random weights hold what is asked for, and nothing before.
    pub fn has(&self, name: &str) -> bool {
        self.shared.tensors.contains_key(&self.path(name))
    }

    /// `name.weight` `[out, in]` without a bias.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn linear(&self, name: &str, in_features: usize, out_features: usize) -> Result<Linear<B>> {
        let weight = self.at(name).matrix("weight", &[out_features, in_features])?;
        Ok(Linear { weight: Arc::new(weight), bias: None, out_features, in_features })
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
        self.linear_of_shape(name, &[out_features, channels, patch, patch])
    }

    /// `name.weight` of a shape whose last dimensions are read as one, and `name.bias`.
    pub(crate) fn linear_of_shape(&self, name: &str, shape: &[usize]) -> Result<Linear<B>> {
        let weights = self.at(name);
        let (out_features, in_features) = (shape[0], shape[1..].iter().product());
        let weight = Arc::new(weights.matrix("weight", shape)?);
        let bias = Some(weights.values("bias", &[out_features])?);
        Ok(Linear { weight, bias, out_features, in_features })
    }

    /// `name.weight` `[count, width]`.
    ///
    /// # Errors
    /// When the backend cannot hold the weight's type.
    pub fn embedding(&self, name: &str, count: usize, width: usize) -> Result<Embedding<B>> {
        let weight = Arc::new(self.at(name).matrix("weight", &[count, width])?);
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
        let values = self.take(name, shape)?.to_f32()?;
        Ok(Tensor::new(&self.backend, &values, shape))
    }

    /// Checks that everything fitted and nothing was left over.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every name.
    pub fn finish(&self) -> Result<()> {
        let used = self.shared.used.borrow();
        let unused = self.shared.tensors.iter().filter(|(canonical, _)| !used.contains(*canonical));
        let left_over: Vec<String> = unused.map(|(_, (name, _))| name.clone()).collect();
        let (missing, misshaped) = (self.shared.missing.borrow().clone(), self.shared.misshaped.borrow().clone());
        if missing.is_empty() && left_over.is_empty() && misshaped.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch { missing, left_over, misshaped })
    }

    fn matrix(&self, name: &str, shape: &[usize]) -> Result<B::Weight> {
        let data = self.take(name, shape)?;
        let flat = [shape[0], shape[1..].iter().product()];
        let data = TensorData::new(data.dtype(), flat.to_vec(), data.bytes().clone())?;
        let unsupported = |reason| Error::UnsupportedWeight { name: self.path(name), reason };
        self.backend.weight(data.into()).map_err(unsupported)
    }

    /// The tensor, or zeros where it does not fit (noted for [`Self::finish`]).
    fn take(&self, name: &str, shape: &[usize]) -> Result<TensorData> {
        let path = self.path(name);
        if let Some(random) = &self.shared.random {
            return random.tensor(path, shape);
        }
        match self.shared.tensors.get(&path) {
            Some((_, data)) if data.shape() == shape && data.dtype().is_float() => {
                self.shared.used.borrow_mut().insert(path);
                return Ok(data.clone());
            }
            Some((original, data)) => {
                let note = format!("{original} ({} {:?}, expected {shape:?})", data.dtype().name(), data.shape());
                self.shared.misshaped.borrow_mut().push(note);
                self.shared.used.borrow_mut().insert(path);
            }
            None => self.shared.missing.borrow_mut().push(path),
        }
        // The load fails in `finish`, whatever a layer makes of the zeros; the system hands zeroed pages out lazily.
        let zeros = vec![0u8; shape.iter().product::<usize>() * Dtype::BF16.size()];
        Ok(TensorData::new(Dtype::BF16, shape.to_vec(), SharedBytes::from(zeros))?)
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}
