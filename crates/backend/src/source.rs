//! [`WeightSource`]: where weights come from, in how many bits they are held, and who hears of it.

use std::fmt;

use ocelli_formats::{Checkpoint, GroupedLayout, SharedBytes};

use crate::precision::{Part, Precision, Role};
use crate::random::RandomWeights;

/// Where a model's weights come from and what becomes of them.
#[derive(Clone, Copy)]
pub struct WeightSource<'a> {
    pub(crate) origin: Origin<'a>,
    pub(crate) precision: Precision,
    pub(crate) threads: usize,
    pub(crate) on_weight: Option<&'a dyn Fn(Held)>,
    pub(crate) store: Option<&'a dyn WeightStore>,
    pub(crate) only_plans: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'a> {
    Checkpoint(&'a Checkpoint),
    Random(&'a RandomWeights),
}

/// A weight as a model holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The model's name of it.
    pub name: String,
    /// The checkpoint's name of it; the model's where there is no checkpoint.
    pub stored: String,
    /// Its place in the checkpoint's tensor, if that is a stack of several weights.
    pub stack_idx: Option<usize>,
    /// Its extents.
    pub shape: Vec<usize>,
    /// What it is used for.
    pub role: Role,
    /// Which part of the model it belongs to.
    pub part: Part,
    /// Bytes in memory.
    pub bytes: u64,
}

/// Codes in the order in which a device multiplies them: see [`crate::Backend::packed`].
#[derive(Clone, Debug)]
pub struct PackedWeight {
    /// What the codes are.
    pub layout: GroupedLayout,
    /// Number of rows.
    pub outputs: usize,
    /// The device's own arrangement, scales and offsets included.
    pub bytes: SharedBytes,
}

/// Keeps packed weights for the next load. Only weights of the same checkpoint, precision and device belong together.
pub trait WeightStore {
    /// What was kept under a name.
    fn get(&self, name: &str) -> Option<PackedWeight>;

    /// A weight that was not there.
    fn put(&self, name: &str, weight: PackedWeight);
}

impl<'a> WeightSource<'a> {
    /// Float matrices become what `precision` says.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Threads for the work that loading is; 1 without this.
    #[must_use]
    pub fn on_threads(self, threads: usize) -> Self {
        Self { threads: threads.max(1), ..self }
    }

    /// Tells of every weight once the model holds it, in the order of loading. A tensor that is used twice is told
    /// of once.
    #[must_use]
    pub fn with_observer(self, on_weight: &'a dyn Fn(Held)) -> Self {
        Self { on_weight: Some(on_weight), ..self }
    }

    /// Takes codes from `store` where it has them, and gives it those that it lacks.
    #[must_use]
    pub fn with_store(self, store: &'a dyn WeightStore) -> Self {
        Self { store: Some(store), ..self }
    }

    /// Reads no weight: the model that is loaded is good for nothing but its shapes, what the observer hears is what
    /// it would take, and names and shapes are checked.
    #[must_use]
    pub fn only_plans(self) -> Self {
        Self { only_plans: true, ..self }
    }

    fn new(origin: Origin<'a>) -> Self {
        Self { origin, precision: Precision::default(), threads: 1, on_weight: None, store: None, only_plans: false }
    }
}

impl<'a> From<&'a Checkpoint> for WeightSource<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self::new(Origin::Checkpoint(checkpoint))
    }
}

impl<'a> From<&'a RandomWeights> for WeightSource<'a> {
    fn from(weights: &'a RandomWeights) -> Self {
        Self::new(Origin::Random(weights))
    }
}

impl fmt::Debug for WeightSource<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, precision, threads, only_plans, .. } = self;
        write!(formatter, "WeightSource({origin:?}, {precision:?}, {threads} threads, only plans: {only_plans})")
    }
}
