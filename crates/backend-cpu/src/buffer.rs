//! Memory of activations: aligned to cache lines, recycled instead of freed.
//!
//! A forward pass asks for the same sizes again and again, so buffers that are dropped wait in lists by size for the
//! next operation. What waits never makes the total larger than what was once in use at the same time (plus
//! [`SLACK`]): a picture's large buffers are given up before others are allocated beside them.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Float32 values on the processor.
pub struct Buffer {
    memory: Aligned,
    len: usize,
    pool: Arc<BufferPool>,
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory.values()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory.values_mut()[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.memory));
    }
}

/// Buffers that wait for their next use.
#[derive(Default)]
pub(crate) struct BufferPool {
    state: Mutex<State>,
}

/// All sizes are counts of values.
#[derive(Default)]
struct State {
    waiting: BTreeMap<usize, Vec<Aligned>>,
    waiting_total: usize,
    in_use: usize,
    most_in_use: usize,
    allocations: usize,
}

impl BufferPool {
    /// A buffer whose values are whatever they were before.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let size = size_class(len);
        let memory = self.state().take(size).unwrap_or_else(|| Aligned::zeroed(size));
        Buffer { memory, len, pool: Arc::clone(self) }
    }

    /// The most bytes that were in use at a time so far.
    pub(crate) fn most_bytes(&self) -> usize {
        self.state().most_in_use * size_of::<f32>()
    }

    /// How often memory had to be asked of the system so far.
    #[cfg(test)]
    pub(crate) fn allocations(&self) -> usize {
        self.state().allocations
    }

    fn give_back(&self, memory: Aligned) {
        let mut state = self.state();
        state.in_use -= memory.len;
        state.waiting_total += memory.len;
        state.waiting.entry(memory.len).or_default().push(memory);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Waiting memory of that size, or not much larger; `None` (and room for it) if there is none.
    fn take(&mut self, size: usize) -> Option<Aligned> {
        let fitting = self.waiting.range_mut(size..=size.saturating_mul(2)).find_map(|(_, memories)| memories.pop());
        let taken = fitting.as_ref().map_or(size, |memory| memory.len);
        self.in_use += taken;
        self.most_in_use = self.most_in_use.max(self.in_use);
        if fitting.is_some() {
            self.waiting_total -= taken;
            return fitting;
        }
        self.allocations += 1;
        while self.waiting_total > 0 && self.in_use + self.waiting_total > self.most_in_use + SLACK {
            self.free_largest();
        }
        None
    }

    fn free_largest(&mut self) {
        let largest = self.waiting.values_mut().rev().find_map(Vec::pop);
        self.waiting_total -= largest.map_or(self.waiting_total, |memory| memory.len);
    }
}

/// What may wait beyond the most that was ever in use: 8 MiB.
const SLACK: usize = 2 << 20;

/// Rounds up to one of four sizes per power of two, so that similar lengths share memory.
fn size_class(len: usize) -> usize {
    let step = (len.max(256).next_power_of_two() / 8).max(64);
    len.max(64).next_multiple_of(step)
}

/// Zeroed values that begin at a cache line.
#[derive(Default)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeroed(len: usize) -> Self {
        const LINE: usize = 64;
        // The system hands out zeroed pages only when they are touched.
        let values = vec![0.0f32; len + LINE / size_of::<f32>()];
        let start = values.as_ptr().align_offset(LINE);
        // Whoever cannot align (Miri) loses speed, not correctness.
        let start = if start > LINE / size_of::<f32>() { 0 } else { start };
        Self { values, start, len }
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_recycled_and_aligned() {
        let pool = Arc::<BufferPool>::default();
        for len in [0, 1, 63, 64, 65, 1000, 576 * 84, 1024 * 3072] {
            let mut buffer = pool.take(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
            buffer.fill(1.0);
        }
        let before = pool.allocations();
        for len in [1, 60, 990, 576 * 83, 1024 * 3072] {
            drop(pool.take(len));
        }
        assert_eq!(pool.allocations(), before);
    }

    #[test]
    fn what_waits_does_not_add_to_what_was_in_use() {
        let pool = Arc::<BufferPool>::default();
        let large = 16 << 20;
        drop([pool.take(large), pool.take(large)]);
        // As much again in sizes that the waiting buffers do not serve.
        let small: Vec<Buffer> = (0..12).map(|_| pool.take(large / 6)).collect();
        let state = pool.state();
        let total = state.in_use + state.waiting_total;
        assert!(total <= state.most_in_use + SLACK, "{total} of {}", state.most_in_use);
        drop(state);
        drop(small);
    }

    #[test]
    fn size_classes_waste_little() {
        for len in [1, 64, 100, 1000, 5000, 48_384, 3_145_728, 3_145_729] {
            let class = size_class(len);
            assert!(class >= len && class <= (len + len / 4).max(128), "{len} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
