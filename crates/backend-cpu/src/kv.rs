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

    /// The blocks that tokens go to, each with the runs of tokens that it takes.
    pub(crate) fn parts<'a>(&'a mut self, runs: &'a [Run]) -> Vec<(&'a mut [f32], &'a [Run])> {
        for run in runs {
            self.block_mut(run.block);
        }
        let (mut rest, mut passed) = (&mut self.blocks[..], 0);
        let parts = runs.chunk_by(|one, next| one.block == next.block).map(|runs| {
            let (_, behind) = std::mem::take(&mut rest).split_at_mut(runs[0].block - passed);
            let (block, behind) = behind.split_first_mut().expect("blocks were allocated");
            (rest, passed) = (behind, runs[0].block + 1);
            (block.values_mut(), runs)
        });
        parts.collect()
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

/// Neighbouring tokens that go to neighbouring places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) block: usize,
    /// First place in the block.
    pub(crate) offset: usize,
    /// The tokens' rows among those that are written.
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// Runs of tokens that go to some slots, in the order of their blocks; what goes to the same place stays in its order.
pub(crate) fn runs(slots: &[usize]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (row, &slot) in slots.iter().enumerate() {
        let (block, offset) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
        match runs.last_mut() {
            Some(run) if run.block == block && run.offset + run.len == offset => run.len += 1,
            _ => runs.push(Run { block, offset, first: row, len: 1 }),
        }
    }
    runs.sort_by_key(|run| run.block);
    runs
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
    use ocelli_kernels::{Kernels, KvPrecision};

    use super::*;

    fn blocks(precision: KvPrecision) -> CpuKvBlocks {
        CpuKvBlocks::new(KvLayout { kv_heads: 1, head_dim: 2, precision })
    }

    /// As bits: what is kept need not be a number.
    fn bits(block: &[f32]) -> Vec<u32> {
        block.iter().map(|word| word.to_bits()).collect()
    }

    fn write(kv: &mut CpuKvBlocks, slot: usize, key: [f32; 2], value: [f32; 2]) {
        let (kernels, layout) = (Kernels::select(None).unwrap(), kv.layout);
        for (block, runs) in kv.parts(&runs(&[slot])) {
            kernels.write_kv(&layout, block, runs[0].offset, &key, &value);
        }
    }

    #[test]
    fn a_copied_block_is_independent() {
        for precision in [KvPrecision::Float32, KvPrecision::Bfloat16, KvPrecision::Eight] {
            let mut kv = blocks(precision);
            write(&mut kv, 3, [1.0, 2.0], [3.0, 4.0]);
            kv.copy(0, 2);
            let original = bits(kv.block(0));
            assert_eq!(bits(kv.block(2)), original);
            write(&mut kv, 3, [-9.0, 9.0], [9.0, -9.0]);
            assert_eq!(bits(kv.block(2)), original);
            assert_ne!(bits(kv.block(0)), original);
        }
    }

    #[test]
    fn blocks_nobody_wrote_take_no_memory() {
        let mut kv = blocks(KvPrecision::Float32);
        write(&mut kv, 5 * BLOCK_TOKENS, [0.0; 2], [0.0; 2]);
        assert!(kv.block(4).is_empty() && !kv.block(5).is_empty());
    }

    #[test]
    fn tokens_go_to_their_blocks_in_runs() {
        let slots = [4 * BLOCK_TOKENS - 2, 4 * BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 3 * BLOCK_TOKENS];
        let runs = runs(&slots);
        let run = |block, offset, first, len| Run { block, offset, first, len };
        assert_eq!(runs, [run(1, 0, 2, 2), run(3, BLOCK_TOKENS - 2, 0, 2), run(3, 0, 4, 1)]);
        let mut kv = blocks(KvPrecision::Float32);
        let parts = kv.parts(&runs);
        assert_eq!(parts.iter().map(|(_, runs)| runs.len()).collect::<Vec<_>>(), [1, 2]);
        drop(parts);
        assert!(kv.block(0).is_empty() && kv.block(2).is_empty());
    }
}
