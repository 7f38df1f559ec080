//! [`Plan`]: what a model will take, found out by building it without reading its weights.

use std::cell::RefCell;

use ocelli_backend::{Backend, Held, WeightSource};
use ocelli_formats::Config;

use crate::error::Result;

/// What a model holds once it is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Its weights, in the order of loading.
    pub(crate) held: Vec<Held>,
    /// Bytes of the cache per token.
    pub(crate) kv_bytes_per_token: usize,
    /// How the cache is kept.
    pub(crate) kv_precision: &'static str,
    /// Longest sequence in tokens.
    pub(crate) context_length: usize,
}

impl Plan {
    /// Checks names and shapes of all weights on the way.
    ///
    /// # Errors
    /// Those of loading the model, but for what only the weights' bytes can show.
    pub(crate) fn make<B: Backend>(backend: &B, config: &Config, source: WeightSource<'_>) -> Result<Self> {
        let held = RefCell::new(Vec::new());
        let note = |weight| held.borrow_mut().push(weight);
        let model = ocelli_models::load(backend, config, source.with_observer(&note).only_plans())?;
        let (kv_bytes_per_token, context_length) = (model.kv_shape().bytes_per_token(backend), model.max_positions());
        let kv_precision = backend.kv_precision();
        Ok(Self { held: held.into_inner(), kv_bytes_per_token, kv_precision, context_length })
    }

    /// Bytes of all weights in memory.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.held.iter().map(|weight| weight.bytes).sum()
    }

    /// Numbers in all weights.
    pub(crate) fn parameters(&self) -> u64 {
        self.held.iter().map(|weight| weight.shape.iter().product::<usize>() as u64).sum()
    }
}
