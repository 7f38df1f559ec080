//! Attention: how queries are shared between threads, and in which precision keys and values lie.

use ocelli_backend::{AttentionDims, Mask, Span};
use ocelli_kernels::{Arithmetic, Attend, BLOCK_TOKENS, KvLayout, KvPrecision, MatrixMut};

use crate::CpuBackend;
use crate::buffer::Buffer;
use crate::kv::{Contiguous, CpuKvBlocks, Paged};
use crate::ops::with_scratch;

impl CpuBackend {
    /// The layout of a cache.
    pub(crate) fn kv_layout(&self, kv_heads: usize, head_dim: usize) -> KvLayout {
        KvLayout { kv_heads, head_dim, precision: self.shared.kv }
    }

    /// Attention within each entry of a batch.
    pub(crate) fn attend_entries(
        &self,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        dims: AttentionDims,
        mask: Mask<'_>,
        scale: f32,
    ) -> Buffer {
        let AttentionDims { batch, queries, keys, heads, kv_heads, head_dim } = dims;
        let (kernels, arithmetic) = (self.shared.kernels, self.shared.arithmetic);
        // What is multiplied, so that no block needs to be converted.
        let is_paired = kernels.attends_in_pairs() && arithmetic == Arithmetic::Bfloat16;
        let precision = if is_paired { KvPrecision::Bfloat16 } else { KvPrecision::Float32 };
        let layout = KvLayout { kv_heads, head_dim, precision };
        let mut out = self.buffer(q.len());
        if out.is_empty() {
            return out;
        }
        let blocks = self.packed(k, v, dims, layout);
        let block_len = layout.block_len();
        let scratch_len = kernels.attend_scratch_len(layout);
        let group_width = heads / kv_heads * head_dim;
        let mut rest = MatrixMut::new(&mut out, batch * queries);
        let parts = blocks.chunks_exact(keys.div_ceil(BLOCK_TOKENS) * block_len).flat_map(|blocks| {
            let entry = rest.take_rows(queries);
            entry.tiles(QUERIES, group_width).map(move |part| (Contiguous { blocks, block_len }, part))
        });
        let mask = kernel_mask(mask);
        self.split(2 * q.len() * keys, parts, |(blocks, part)| {
            // Rows count through all entries, places begin anew in each.
            let entry = part.rows().start / queries;
            let position = -signed(entry * queries);
            let problem = Attend { q, heads, layout, blocks: &blocks, keys, position, mask, scale, arithmetic };
            with_scratch(scratch_len, |scratch| kernels.attend(&problem, part, scratch));
        });
        out
    }

    /// Attention of each span over its sequence's cached keys.
    pub(crate) fn attend_spans(
        &self,
        q: &Buffer,
        heads: usize,
        kv: &CpuKvBlocks,
        spans: &[Span],
        mask: Mask<'_>,
        scale: f32,
    ) -> Buffer {
        let layout = kv.layout;
        let mut out = self.buffer(q.len());
        if out.is_empty() {
            return out;
        }
        let rows = spans.iter().map(|span| span.rows.len()).sum();
        let keys_of = |span: &Span| span.past + span.rows.len();
        let (kernels, arithmetic) = (self.shared.kernels, self.shared.arithmetic);
        let group_width = heads / layout.kv_heads * layout.head_dim;
        let cost = spans.iter().map(|span| 2 * span.rows.len() * heads * layout.head_dim * keys_of(span)).sum();
        let mut rest = MatrixMut::new(&mut out, rows);
        let parts = spans.iter().flat_map(|span| {
            assert_eq!(span.rows.start, rest.rows().start, "spans are not one after another");
            let span_rows = rest.take_rows(span.rows.len());
            span_rows.tiles(QUERIES, group_width).map(move |part| (span, part))
        });
        let (mask, scratch_len) = (kernel_mask(mask), kernels.attend_scratch_len(layout));
        self.split(cost, parts, |(span, part)| {
            let position = signed(span.past) - signed(span.rows.start);
            let (blocks, keys) = (Paged { kv, table: &span.blocks }, keys_of(span));
            let problem = Attend { q, heads, layout, blocks: &blocks, keys, position, mask, scale, arithmetic };
            with_scratch(scratch_len, |scratch| kernels.attend(&problem, part, scratch));
        });
        out
    }

    /// Keys and values `[batch, keys, K, D]` in blocks, those of each entry one after another.
    fn packed(&self, k: &Buffer, v: &Buffer, dims: AttentionDims, layout: KvLayout) -> Buffer {
        let width = dims.kv_heads * dims.head_dim;
        let per_entry = dims.keys.div_ceil(BLOCK_TOKENS);
        let mut blocks = self.buffer(dims.batch * per_entry * layout.block_len());
        let parts = blocks.chunks_exact_mut(layout.block_len()).enumerate();
        self.split(k.len(), parts, |(number, block)| {
            let (entry, first) = (number / per_entry, number % per_entry * BLOCK_TOKENS);
            for token in first..dims.keys.min(first + BLOCK_TOKENS) {
                let at = (entry * dims.keys + token) * width;
                layout.write(block, token - first, &k[at..][..width], &v[at..][..width]);
            }
        });
        blocks
    }
}

/// Rows of queries that a thread takes at a time.
const QUERIES: usize = 32;

fn signed(count: usize) -> isize {
    isize::try_from(count).expect("rows and tokens are in memory")
}

fn kernel_mask(mask: Mask<'_>) -> ocelli_kernels::Mask<'_> {
    match mask {
        Mask::All => ocelli_kernels::Mask::All,
        Mask::Causal => ocelli_kernels::Mask::Causal,
        Mask::Window(window) => ocelli_kernels::Mask::Window(window),
        Mask::Prefix(prefix) => ocelli_kernels::Mask::Prefix(prefix),
        Mask::Segments(starts) => ocelli_kernels::Mask::Segments(starts),
    }
}
