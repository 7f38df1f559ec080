//! [`Activations`]: what a product reads of x, rounded once for all weights that want it so.

use std::sync::{Arc, Mutex, PoisonError};

use ocelli_kernels::{QuantizedRows, QuantizedRowsMut};

use crate::CpuBackend;

/// x in 8 bits, in the groups of some packed weights. Its memory goes back to where it came from.
pub(crate) struct Activations {
    memory: Memory,
    group: usize,
    /// Codes in use.
    codes: usize,
    /// Scales (and as many sums) in use.
    groups: usize,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Memory {
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// Memory that waits for its next use: as many pieces as were ever in use at once.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<Vec<Memory>>);

impl CpuBackend {
    /// Rounds x `[rows, inputs]`, on all threads where that is worth it.
    pub(crate) fn quantized(&self, x: &[f32], inputs: usize, group: usize) -> Activations {
        let groups = x.len() / inputs * inputs.div_ceil(group);
        let waiting = &self.shared.waiting;
        let memory = waiting.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let mut quantized = Activations { memory, group, codes: groups * group, groups, waiting: Arc::clone(waiting) };
        let kernels = self.shared.kernels;
        let (codes, scales, sums) = quantized.parts();
        let rows = (PART / inputs).max(1);
        let part = rows * inputs.div_ceil(group);
        let factors = scales.chunks_mut(part).zip(sums.chunks_mut(part));
        let parts = x.chunks(rows * inputs).zip(codes.chunks_mut(part * group)).zip(factors);
        self.split(2 * x.len(), parts, |((x, codes), (scales, sums))| {
            kernels.quantize_rows(x, inputs, QuantizedRowsMut { group, codes, scales, sums });
        });
        quantized
    }
}

impl Activations {
    /// Inputs per group.
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// The rows for kernels.
    pub(crate) fn rows(&self) -> QuantizedRows<'_> {
        let Memory { codes, scales, sums } = &self.memory;
        QuantizedRows { codes: &codes[..self.codes], scales: &scales[..self.groups], sums: &sums[..self.groups] }
    }

    fn parts(&mut self) -> (&mut [i8], &mut [f32], &mut [f32]) {
        let Memory { codes, scales, sums } = &mut self.memory;
        (first(codes, self.codes), first(scales, self.groups), first(sums, self.groups))
    }
}

impl Drop for Activations {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

/// The first `count` values, whatever they are.
fn first<T: Clone + Default>(values: &mut Vec<T>, count: usize) -> &mut [T] {
    if values.len() < count {
        values.resize(count, T::default());
    }
    &mut values[..count]
}

/// Elements that a thread rounds at a time.
const PART: usize = 16 * 1024;
