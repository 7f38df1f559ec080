//! The key/value cache: blocks of tokens that sequences own together, and the [`Step`] that describes a batch.
//!
//! Keys and values lie in blocks of [`BLOCK_TOKENS`] tokens; a sequence is a table of block numbers, the same for all
//! layers (the paged cache of Kwon et al. 2023, "PagedAttention"). Forking a sequence (beams, a shared prefix) copies
//! only the table; a block that two sequences share is copied when one of them is about to write into it.

use std::ops::Range;

use crate::cancel::Cancel;
use crate::ops::Backend;
use crate::tensor::Tensor;

/// Tokens per block.
pub const BLOCK_TOKENS: usize = 32;

/// Names a sequence of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId(usize);

/// What a model's cache looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// K: key/value heads.
    pub kv_heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of keys and values per token on this backend.
    pub fn bytes_per_token<B: Backend>(&self, backend: &B) -> usize {
        self.layers * backend.kv_bytes_per_token(self.kv_heads, self.head_dim)
    }
}

/// Keys and values of all sequences, for all layers.
pub struct KvCache<B: Backend> {
    backend: B,
    layers: Vec<LayerKv<B>>,
    sequences: Vec<Option<Sequence>>,
    /// How many sequences hold each block.
    holders: Vec<usize>,
    free: Vec<usize>,
}

/// One layer's part of the cache.
pub struct LayerKv<B: Backend> {
    backend: B,
    pub(crate) blocks: B::KvBlocks,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// One forward pass over the new tokens of some sequences; made by [`KvCache::step`].
pub struct Step {
    positions: Vec<usize>,
    slots: Vec<usize>,
    spans: Vec<Span>,
    cancel: Cancel,
}

/// The rows of one sequence within a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its rows among the rows of the step.
    pub rows: Range<usize>,
    /// Tokens that the sequence held before this step.
    pub past: usize,
    /// Its block table, covering past and new tokens.
    pub blocks: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    blocks: Vec<usize>,
    len: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache.
    pub fn new(backend: &B, shape: KvShape) -> Self {
        let layer = || LayerKv {
            backend: backend.clone(),
            blocks: backend.kv_blocks(shape.kv_heads, shape.head_dim),
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        };
        let layers = (0..shape.layers).map(|_| layer()).collect();
        Self { backend: backend.clone(), layers, sequences: Vec::new(), holders: Vec::new(), free: Vec::new() }
    }

    /// The cache of one layer.
    pub fn layer(&mut self, layer_idx: usize) -> &mut LayerKv<B> {
        &mut self.layers[layer_idx]
    }

    /// Starts an empty sequence.
    pub fn start(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// A second sequence with the same tokens; nothing is copied until one of the two grows.
    pub fn fork(&mut self, id: SequenceId) -> SequenceId {
        let sequence = self.sequence(id).clone();
        for &block in &sequence.blocks {
            self.holders[block] += 1;
        }
        self.insert(sequence)
    }

    /// Ends a sequence; blocks that nobody else holds are free again.
    pub fn end(&mut self, id: SequenceId) {
        let sequence = self.sequences[id.0].take().expect("a sequence ends once");
        for block in sequence.blocks {
            self.release(block);
        }
    }

    /// Tokens of a sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequence(id).len
    }

    /// Whether no sequence holds anything.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.holders.len()
    }

    /// Forgets all but the first `len` tokens of a sequence.
    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let sequence = self.sequences[id.0].as_mut().expect("a live sequence");
        sequence.len = sequence.len.min(len);
        let surplus = sequence.blocks.split_off(sequence.len.div_ceil(BLOCK_TOKENS));
        for block in surplus {
            self.release(block);
        }
    }

    /// Makes room for `count` new tokens of each named sequence and describes the pass that will fill it.
    pub fn step(&mut self, growth: &[(SequenceId, usize)]) -> Step {
        let mut step = Step { positions: Vec::new(), slots: Vec::new(), spans: Vec::new(), cancel: Cancel::new() };
        for &(id, count) in growth {
            let past = self.len(id);
            self.make_writable(id);
            while self.sequence(id).blocks.len() * BLOCK_TOKENS < past + count {
                let block = self.take_block();
                self.sequence_mut(id).blocks.push(block);
            }
            let sequence = self.sequence_mut(id);
            sequence.len = past + count;
            let first_row = step.positions.len();
            step.positions.extend(past..past + count);
            let slot = |at: usize| sequence.blocks[at / BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS;
            step.slots.extend((past..past + count).map(slot));
            step.spans.push(Span { rows: first_row..first_row + count, past, blocks: sequence.blocks.clone() });
        }
        step
    }

    /// A partly filled last block that is shared must not be written: the sequence gets a copy of its own.
    fn make_writable(&mut self, id: SequenceId) {
        let sequence = self.sequence(id);
        let Some(&last) = sequence.blocks.last() else { return };
        if sequence.len.is_multiple_of(BLOCK_TOKENS) || self.holders[last] == 1 {
            return;
        }
        let copy = self.take_block();
        for layer in &mut self.layers {
            self.backend.kv_copy(&mut layer.blocks, last, copy);
        }
        self.holders[last] -= 1;
        *self.sequence_mut(id).blocks.last_mut().expect("checked above") = copy;
    }

    fn take_block(&mut self) -> usize {
        let block = self.free.pop().unwrap_or_else(|| {
            self.holders.push(0);
            self.holders.len() - 1
        });
        self.holders[block] = 1;
        block
    }

    fn release(&mut self, block: usize) {
        self.holders[block] -= 1;
        if self.holders[block] == 0 {
            self.free.push(block);
        }
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let place = self.sequences.iter().position(Option::is_none);
        let place = place.unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[place] = Some(sequence);
        SequenceId(place)
    }

    fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences[id.0].as_ref().expect("a live sequence")
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        self.sequences[id.0].as_mut().expect("a live sequence")
    }
}

impl<B: Backend> LayerKv<B> {
    /// Stores the step's keys and values, both `[rows, K, D]`.
    #[track_caller]
    pub fn append(&mut self, k: &Tensor<B>, v: &Tensor<B>, step: &Step) -> &Self {
        let expected = [step.rows(), self.kv_heads, self.head_dim];
        assert!(
            k.shape() == expected && v.shape() == expected,
            "{:?} and {:?} are not {expected:?}",
            k.shape(),
            v.shape()
        );
        self.backend.kv_write(&mut self.blocks, k.buffer(), v.buffer(), &step.slots);
        self
    }
}

impl Step {
    /// The same step, which models leave between two layers once it is cancelled; its sequences are then to be ended.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Whether nobody wants the result any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// R: rows of the step.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    /// Place of each row in its sequence, from 0.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Which rows belong to which sequence, in the order given to [`KvCache::step`].
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The last row of every sequence: the ones whose logits are wanted.
    pub fn last_rows(&self) -> Vec<usize> {
        self.spans.iter().map(|span| span.rows.end - 1).collect()
    }
}
