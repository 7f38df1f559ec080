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
            head_by_head(entry, group_width).map(move |part| (Contiguous { blocks, block_len }, part))
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
        let mask = kernel_mask(mask);
        let sources: Vec<Paged<'_>> = spans.iter().map(|span| Paged { kv, table: &span.blocks }).collect();
        let problems = spans.iter().zip(&sources).map(|(span, blocks)| {
            let position = signed(span.past) - signed(span.rows.start);
            Attend { q, heads, layout, blocks, keys: keys_of(span), position, mask, scale, arithmetic }
        });
        let problems: Vec<Attend<'_>> = problems.collect();
        let mut rest = MatrixMut::new(&mut out, rows);
        let parts = spans.iter().zip(&problems).flat_map(|(span, problem)| {
            assert_eq!(span.rows.start, rest.rows().start, "spans are not one after another");
            let span_rows = rest.take_rows(span.rows.len());
            head_by_head(span_rows, group_width).map(move |part| (problem, part))
        });
        let parts: Vec<_> = parts.collect();
        let is_long = |(problem, part): &(&Attend<'_>, MatrixMut<'_>)| problem.chunks(part.rows()).len() > 1;
        let threads = self.threads();
        let would_idle = parts.len() < 4 * threads && !parts.len().is_multiple_of(threads);
        if would_idle && parts.iter().any(is_long) {
            self.attend_by_chunks(cost, parts);
        } else {
            let scratch_len = kernels.attend_scratch_len(layout);
            self.split(cost, parts.into_iter(), |(problem, part)| {
                with_scratch(scratch_len, |scratch| kernels.attend(problem, part, scratch));
            });
        }
        out
    }

    /// Attention of so few parts that threads share the keys of one: decoding a long sequence.
    fn attend_by_chunks(&self, cost: usize, parts: Vec<(&Attend<'_>, MatrixMut<'_>)>) {
        let kernels = self.shared.kernels;
        let states_len = |problem: &Attend<'_>, part: &MatrixMut<'_>| {
            let rows = part.rows();
            (problem.chunks(rows.clone()).len(), kernels.attend_states_len(problem, rows.len()))
        };
        let lens = parts.iter().map(|(problem, part)| states_len(problem, part));
        let mut states = self.buffer(lens.map(|(chunks, len)| chunks * len).sum());
        let (mut rest, mut items) = (&mut states[..], Vec::new());
        for (problem, part) in &parts {
            let (rows, columns) = (part.rows(), part.columns());
            let (_, len) = states_len(problem, part);
            for chunk in problem.chunks(rows.clone()) {
                let (states, behind) = std::mem::take(&mut rest).split_at_mut(len);
                rest = behind;
                items.push((*problem, rows.clone(), (columns.start / columns.len(), chunk), states));
            }
        }
        self.split(cost, items.into_iter(), |(problem, rows, place, states)| {
            let scratch_len = kernels.attend_scratch_len(problem.layout);
            with_scratch(scratch_len, |scratch| kernels.attend_chunk(problem, rows, place, states, scratch));
        });
        let mut rest = &mut states[..];
        for (problem, part) in parts {
            let (chunks, len) = states_len(problem, &part);
            let (states, behind) = std::mem::take(&mut rest).split_at_mut(chunks * len);
            rest = behind;
            kernels.attend_merged(problem, states, part);
        }
    }

    /// Keys and values `[batch, keys, K, D]` in blocks, those of each entry one after another.
    fn packed(&self, k: &Buffer, v: &Buffer, dims: AttentionDims, layout: KvLayout) -> Buffer {
        let width = dims.kv_heads * dims.head_dim;
        let per_entry = dims.keys.div_ceil(BLOCK_TOKENS);
        let mut blocks = self.buffer(dims.batch * per_entry * layout.block_len());
        let parts = blocks.chunks_exact_mut(layout.block_len()).enumerate();
        self.split(k.len(), parts, |(number, block)| {
            let (entry, first) = (number / per_entry, number % per_entry * BLOCK_TOKENS);
            let tokens = entry * dims.keys + first..entry * dims.keys + dims.keys.min(first + BLOCK_TOKENS);
            let [keys, values] = [k, v].map(|all| &all[tokens.start * width..tokens.end * width]);
            self.shared.kernels.write_kv(&layout, block, 0, keys, values);
        });
        blocks
    }
}

/// Parts of attention: all rows of a key/value head after another, so that its keys and values stay in the second-level
/// cache.
fn head_by_head(out: MatrixMut<'_>, group_width: usize) -> impl Iterator<Item = MatrixMut<'_>> {
    let rows = out.rows().len().max(1);
    out.tiles(rows, group_width).flat_map(move |head| head.tiles(QUERIES, group_width))
}

/// Rows of queries that a thread takes at a time: whole batches of tiles.
const QUERIES: usize = 24;

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

#[cfg(test)]
mod tests {
    use ocelli_backend::Backend;
    use ocelli_testkit::Random;

    use super::*;
    use crate::CpuOptions;

    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;
    const HEAD_DIM: usize = 40;

    /// The last rows of a sequence of 700 tokens, of which each sees all before, or the last 300.
    fn decode(threads: usize, arithmetic: Arithmetic, rows: usize, mask: Mask<'_>) -> Vec<f32> {
        let tokens = 700;
        let options = CpuOptions { threads: Some(threads), arithmetic, ..CpuOptions::default() };
        let backend = CpuBackend::new(options).unwrap();
        let mut random = Random::new(1);
        let mut values = |rows: usize, heads: usize| backend.upload(&random.values(rows * heads * HEAD_DIM));
        let (q, k, v) = (values(rows, HEADS), values(tokens, KV_HEADS), values(tokens, KV_HEADS));
        let mut kv = backend.kv_blocks(KV_HEADS, HEAD_DIM);
        backend.kv_write(&mut kv, &k, &v, &(0..tokens).collect::<Vec<_>>());
        let blocks = (0..tokens.div_ceil(BLOCK_TOKENS)).collect();
        let spans = [Span { rows: 0..rows, past: tokens - rows, blocks }];
        backend.download(&backend.attention_cached(&q, HEADS, &kv, &spans, mask, 0.3))
    }

    #[test]
    fn threads_share_the_keys_of_a_head_to_the_same_bits() {
        for arithmetic in [Arithmetic::Float32, Arithmetic::Bfloat16] {
            for (rows, mask) in [(1, Mask::Causal), (3, Mask::Causal), (2, Mask::Window(300)), (30, Mask::Causal)] {
                let alone = decode(1, arithmetic, rows, mask);
                for threads in [2, 3, 7] {
                    assert_eq!(decode(threads, arithmetic, rows, mask), alone, "{rows} rows, {threads} threads");
                }
            }
        }
    }
}
