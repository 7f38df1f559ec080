//! The key/value cache: blocks of tokens that sequences own together, and the [`Step`] that describes a batch.
//!
//! Keys and values lie in blocks of [`BLOCK_TOKENS`] tokens; a sequence is a table of block numbers, the same for all
//! layers (the paged cache of Kwon et al. 2023, "PagedAttention"). Forking a sequence (beams, a shared prefix) copies
//! only the table; a block that two sequences share is copied when one of them is about to write into it.

use std::ops::Range;
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::ops::{Backend, Mask};
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
    sequences: Vec<Option<Sequence<B>>>,
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

/// What the decoder of some sequences looks at besides their tokens, by cross-attention; cloning shares it.
pub struct Context<B: Backend> {
    layers: Arc<[LayerKv<B>]>,
    /// S: rows of every layer's keys.
    tokens: usize,
}

/// One forward pass over the new tokens of some sequences; made by [`KvCache::step`].
#[derive(Default)]
pub struct Step {
    positions: Vec<usize>,
    places: Vec<[usize; 3]>,
    slots: Vec<usize>,
    /// Whose rows the spans are.
    sequences: Vec<SequenceId>,
    spans: Vec<Span>,
    prefix: usize,
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

struct Sequence<B: Backend> {
    blocks: Vec<usize>,
    /// Of every token.
    places: Vec<[usize; 3]>,
    context: Option<Context<B>>,
}

impl<B: Backend> Sequence<B> {
    fn len(&self) -> usize {
        self.places.len()
    }
}

impl<B: Backend> Clone for Sequence<B> {
    fn clone(&self) -> Self {
        Self { blocks: self.blocks.clone(), places: self.places.clone(), context: self.context.clone() }
    }
}

impl<B: Backend> Context<B> {
    /// Keys and values of every layer, `[S, K, D]` each. They are arranged as those of a cache, once.
    pub fn new(layers: Vec<(Tensor<B>, Tensor<B>)>) -> Self {
        let tokens = layers.first().map_or(0, |(keys, _)| keys.shape()[0]);
        let slots: Vec<usize> = (0..tokens).collect();
        let arranged = layers.iter().map(|(keys, values)| {
            let &[rows, kv_heads, head_dim] = keys.shape() else { panic!("{:?} are no keys", keys.shape()) };
            assert!(rows == tokens && keys.shape() == values.shape(), "{:?} and {tokens} rows", values.shape());
            let backend = keys.backend().clone();
            let mut blocks = backend.kv_blocks(kv_heads, head_dim);
            backend.kv_write(&mut blocks, keys.buffer(), values.buffer(), &slots);
            LayerKv { backend, blocks, kv_heads, head_dim }
        });
        Self { layers: arranged.collect(), tokens }
    }

    /// Attention of queries `[R, H, D]` over all keys of a layer.
    fn attend(&self, layer_idx: usize, q: &Tensor<B>, scale: f32) -> Tensor<B> {
        let (layer, rows) = (&self.layers[layer_idx], q.shape()[0]);
        let blocks: Vec<usize> = (0..self.tokens.div_ceil(BLOCK_TOKENS)).collect();
        // As the last tokens of a sequence as long as the context: every row then sees all of it.
        let span = |start: usize| {
            let rows = start..(start + self.tokens).min(rows);
            Span { past: self.tokens - rows.len(), rows, blocks: blocks.clone() }
        };
        let spans: Vec<Span> = (0..rows).step_by(self.tokens.max(1)).map(span).collect();
        let heads = q.shape()[1];
        q.like(layer.backend.attention_cached(q.buffer(), heads, &layer.blocks, &spans, Mask::All, scale))
    }
}

impl<B: Backend> Clone for Context<B> {
    fn clone(&self) -> Self {
        Self { layers: Arc::clone(&self.layers), tokens: self.tokens }
    }
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
        self.insert(Sequence { blocks: Vec::new(), places: Vec::new(), context: None })
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
        self.sequence(id).len()
    }

    /// The place behind a sequence's last one on every axis: that of its next token.
    pub fn next_place(&self, id: SequenceId) -> usize {
        self.sequence(id).places.iter().flatten().max().map_or(0, |last| last + 1)
    }

    /// What a sequence and those forked from it from now on look at by cross-attention.
    pub fn set_context(&mut self, id: SequenceId, context: Context<B>) {
        self.sequence_mut(id).context = Some(context);
    }

    /// Cross-attention of a layer's queries `[R, H, D]`, each row over the context of its own sequence.
    ///
    /// # Panics
    /// If a sequence of the step has no context.
    #[track_caller]
    pub fn cross_attend(&self, layer_idx: usize, q: &Tensor<B>, scale: f32, step: &Step) -> Tensor<B> {
        let context = |id| self.sequence(id).context.as_ref().expect("a sequence with a context");
        let owners: Vec<(SequenceId, &Span)> = step.sequences.iter().copied().zip(&step.spans).collect();
        // Beams look at the same context: their rows are computed together.
        let groups: Vec<_> =
            owners.chunk_by(|&(a, _), &(b, _)| Arc::ptr_eq(&context(a).layers, &context(b).layers)).collect();
        let heads = q.shape()[1];
        let attended = groups.iter().map(|group| {
            let context = context(group[0].0);
            if groups.len() == 1 {
                return context.attend(layer_idx, q, scale);
            }
            let rows: Vec<usize> = group.iter().flat_map(|(_, span)| span.rows.clone()).collect();
            let own = q.merge_heads().gather_rows(&rows).split_heads(heads);
            context.attend(layer_idx, &own, scale)
        });
        let attended: Vec<Tensor<B>> = attended.map(|rows| rows.merge_heads()).collect();
        Tensor::concat_rows(&attended.iter().collect::<Vec<_>>()).split_heads(heads)
    }

    /// Whether no sequence holds anything.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.holders.len()
    }

    /// Forgets all but the first `len` tokens of a sequence.
    pub fn truncate(&mut self, id: SequenceId, len: usize) {
        let sequence = self.sequences[id.0].as_mut().expect("a live sequence");
        sequence.places.truncate(len);
        let surplus = sequence.blocks.split_off(sequence.len().div_ceil(BLOCK_TOKENS));
        for block in surplus {
            self.release(block);
        }
    }

    /// Makes room for `count` new tokens of each named sequence and describes the pass that will fill it.
    pub fn step(&mut self, growth: &[(SequenceId, usize)]) -> Step {
        let mut step = Step::default();
        for &(id, count) in growth {
            let next = self.next_place(id);
            self.grow(&mut step, id, (next..next + count).map(|place| [place; 3]));
        }
        step
    }

    /// As [`KvCache::step`] for one sequence whose new tokens have these places on the axes of rotary embeddings.
    pub fn step_at(&mut self, id: SequenceId, places: &[[usize; 3]]) -> Step {
        let mut step = Step::default();
        self.grow(&mut step, id, places.iter().copied());
        step
    }

    fn grow(&mut self, step: &mut Step, id: SequenceId, places: impl ExactSizeIterator<Item = [usize; 3]>) {
        let (past, count) = (self.len(id), places.len());
        self.make_writable(id);
        while self.sequence(id).blocks.len() * BLOCK_TOKENS < past + count {
            let block = self.take_block();
            self.sequence_mut(id).blocks.push(block);
        }
        let sequence = self.sequence_mut(id);
        sequence.places.extend(places);
        let first_row = step.positions.len();
        step.positions.extend(past..past + count);
        step.places.extend(&sequence.places[past..]);
        let slot = |at: usize| sequence.blocks[at / BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS;
        step.slots.extend((past..past + count).map(slot));
        let blocks = sequence.blocks.clone();
        step.sequences.push(id);
        step.spans.push(Span { rows: first_row..first_row + count, past, blocks });
    }

    /// A partly filled last block that is shared must not be written: the sequence gets a copy of its own.
    fn make_writable(&mut self, id: SequenceId) {
        let sequence = self.sequence(id);
        let Some(&last) = sequence.blocks.last() else { return };
        if sequence.len().is_multiple_of(BLOCK_TOKENS) || self.holders[last] == 1 {
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

    fn insert(&mut self, sequence: Sequence<B>) -> SequenceId {
        let place = self.sequences.iter().position(Option::is_none);
        let place = place.unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[place] = Some(sequence);
        SequenceId(place)
    }

    fn sequence(&self, id: SequenceId) -> &Sequence<B> {
        self.sequences[id.0].as_ref().expect("a live sequence")
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence<B> {
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

    /// The same step, in which the first `prefix` tokens of its sequences see each other; the rows hold all of those or
    /// none.
    #[must_use]
    pub fn with_prefix(mut self, prefix: usize) -> Self {
        self.prefix = prefix;
        self
    }

    /// What rows see of their own sequences: the tokens up to themselves, and all of a prefix that they are part of.
    pub fn mask(&self) -> Mask<'static> {
        if self.prefix > 0 { Mask::Prefix(self.prefix) } else { Mask::Causal }
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

    /// Place of each row on the axes of rotary embeddings: time, row, column. As [`Step::positions`] on all of them,
    /// unless the model places its tokens otherwise.
    pub fn places(&self) -> &[[usize; 3]] {
        &self.places
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
