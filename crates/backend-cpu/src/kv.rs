//! [`CpuKvBlocks`]: keys and values of one layer, block by block.

use ocelli_kernels::{BLOCK_TOKENS, BlockSource, KvLayout};

use crate::buffer::Aligned;

// Slots are computed by the backend crate, blocks are laid out by the kernels.
const _: () = assert!(BLOCK_TOKENS == ocelli_backend::BLOCK_TOKENS);

/// Keys and values of one layer. Blocks are allocated when they are first written.
pub struct CpuKvBlocks {
    pub(crate) layout: KvLayout,
    blocks: Vec<Aligned>,
}

impl CpuKvBlocks {
    pub(crate) fn new(layout: KvLayout) -> Self {
        Self { layout, blocks: Vec::new() }
    }

    /// Stores one token's keys and values, `[K, D]`.
    pub(crate) fn write(&mut self, slot: usize, keys: &[f32], values: &[f32]) {
        let layout = self.layout;
        layout.write(self.block_mut(slot / BLOCK_TOKENS), slot % BLOCK_TOKENS, keys, values);
    }

    pub(crate) fn copy(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        self.block_mut(from);
        self.block_mut(to);
        let mut copy = std::mem::take(&mut self.blocks[to]);
        copy.values_mut().copy_from_slice(self.blocks[from].values());
        self.blocks[to] = copy;
    }

    fn block(&self, number: usize) -> &[f32] {
        self.blocks[number].values()
    }

    fn block_mut(&mut self, number: usize) -> &mut [f32] {
        if self.blocks.len() <= number {
            self.blocks.resize_with(number + 1, Aligned::default);
        }
        let block = &mut self.blocks[number];
        if block.values().is_empty() {
            *block = Aligned::zeroed(self.layout.block_len());
        }
        block.values_mut()
    }
}

/// A sequence's view of the blocks, through its block table.
pub(crate) struct Paged<'a> {
    pub(crate) kv: &'a CpuKvBlocks,
    pub(crate) table: &'a [usize],
}

impl BlockSource for Paged<'_> {
    fn block(&self, index: usize) -> &[f32] {
        self.kv.block(self.table[index])
    }
}

/// Blocks one after another.
pub(crate) struct Contiguous<'a> {
    pub(crate) blocks: &'a [f32],
    pub(crate) block_len: usize,
}

impl BlockSource for Contiguous<'_> {
    fn block(&self, index: usize) -> &[f32] {
        &self.blocks[index * self.block_len..][..self.block_len]
    }
}

#[cfg(test)]
mod tests {
    use ocelli_kernels::KvPrecision;

    use super::*;

    fn blocks(precision: KvPrecision) -> CpuKvBlocks {
        CpuKvBlocks::new(KvLayout { kv_heads: 1, head_dim: 2, precision })
    }

    /// As bits: what is kept need not be a number.
    fn bits(block: &[f32]) -> Vec<u32> {
        block.iter().map(|word| word.to_bits()).collect()
    }

    #[test]
    fn a_copied_block_is_independent() {
        for precision in [KvPrecision::Float32, KvPrecision::Bfloat16, KvPrecision::Eight] {
            let mut kv = blocks(precision);
            kv.write(3, &[1.0, 2.0], &[3.0, 4.0]);
            kv.copy(0, 2);
            let original = bits(kv.block(0));
            assert_eq!(bits(kv.block(2)), original);
            kv.write(3, &[-9.0, 9.0], &[9.0, -9.0]);
            assert_eq!(bits(kv.block(2)), original);
            assert_ne!(bits(kv.block(0)), original);
        }
    }

    #[test]
    fn blocks_nobody_wrote_take_no_memory() {
        let mut kv = blocks(KvPrecision::Float32);
        kv.write(5 * BLOCK_TOKENS, &[0.0; 2], &[0.0; 2]);
        assert!(kv.block(4).is_empty() && !kv.block(5).is_empty());
    }
}
