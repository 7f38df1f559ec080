//! The operations: an output buffer, a split into parts, one kernel call per part.

use std::cell::RefCell;
use std::ops::Range;

use ocelli_backend::{
    Activation, AttentionDims, Backend, ConvolutionDims, Epilogue, Mask, PackedWeight, PatchDims, RopeDims,
    RopePairing, Span,
};
use ocelli_formats::WeightData;
use ocelli_kernels::{Patches, unfold_patches};

use crate::CpuBackend;
use crate::buffer::{Aligned, Buffer};
use crate::kv::{self, CpuKvBlocks};
use crate::linear;
use crate::pool::Awake;
use crate::weight::{CpuWeight, Matrix};

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Weight = CpuWeight;
    type KvBlocks = CpuKvBlocks;
    type StepGuard = Awake;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn begin_step(&self) -> Awake {
        self.shared.threads.keep_awake()
    }

    fn most_activation_bytes(&self) -> usize {
        self.shared.buffers.most_bytes()
    }

    fn upload(&self, values: &[f32]) -> Buffer {
        let mut out = self.buffer(values.len());
        out.copy_from_slice(values);
        out
    }

    fn download(&self, buffer: &Buffer) -> Vec<f32> {
        buffer.to_vec()
    }

    fn weight(&self, data: WeightData) -> Result<CpuWeight, String> {
        CpuWeight::new(data, &self.shared.threads)
    }

    fn packing(&self) -> &'static str {
        // One arrangement for all instruction sets; the number changes with it.
        "cpu 1"
    }

    fn packed(&self, weight: &CpuWeight) -> Option<PackedWeight> {
        weight.packed()
    }

    fn unpack(&self, packed: PackedWeight) -> Result<CpuWeight, String> {
        CpuWeight::unpack(packed)
    }

    fn linears(&self, x: &Buffer, rows: usize, products: &[(&CpuWeight, Epilogue<'_, Self>)]) -> Vec<Buffer> {
        self.products(x, rows, products)
    }

    fn linear_parts(
        &self,
        x: &Buffer,
        rows: usize,
        weight: &CpuWeight,
        epilogue: Epilogue<'_, Self>,
        widths: &[usize],
    ) -> Vec<Buffer> {
        self.product_parts(x, rows, weight, epilogue, widths)
    }

    fn swiglu(&self, x: &Buffer, rows: usize, gate: &CpuWeight, up: &CpuWeight) -> Buffer {
        self.gated_product(x, rows, gate, up)
    }

    fn embed(&self, table: &CpuWeight, ids: &[u32]) -> Buffer {
        let mut out = self.buffer(ids.len() * table.inputs());
        let inputs = table.inputs();
        match table.matrix() {
            Matrix::Float(matrix) => self.shared.kernels.embed(matrix, inputs, ids, &mut out),
            Matrix::Packed(matrix) => {
                let rows = out.chunks_exact_mut(inputs).zip(ids);
                self.split(ids.len() * inputs, rows, |(out, &id)| matrix.dequantize_row(id as usize, out));
            }
        }
        out
    }

    fn add(&self, a: &Buffer, b: &Buffer) -> Buffer {
        self.pairwise(a, b, |a, b, out| self.shared.kernels.add(a, b, out))
    }

    fn add_repeated(&self, x: &Buffer, row: &Buffer) -> Buffer {
        self.over_rows(x, row, |x, row, out| self.shared.kernels.add(x, row, out))
    }

    fn rms_norm(&self, x: &Buffer, weight: &Buffer, eps: f32) -> Buffer {
        let mut out = self.buffer(x.len());
        let part = rows_per_part(weight.len());
        let parts = out.chunks_mut(part).zip(x.chunks(part));
        self.split(2 * x.len(), parts, |(out, x)| self.shared.kernels.rms_norm(x, weight, eps, out));
        out
    }

    fn layer_norm(&self, x: &Buffer, weight: &Buffer, bias: &Buffer, eps: f32) -> Buffer {
        let mut out = self.buffer(x.len());
        let part = rows_per_part(weight.len());
        let parts = out.chunks_mut(part).zip(x.chunks(part));
        self.split(4 * x.len(), parts, |(out, x)| self.shared.kernels.layer_norm(x, weight, bias, eps, out));
        out
    }

    fn mul(&self, a: &Buffer, b: &Buffer) -> Buffer {
        self.pairwise(a, b, |a, b, out| self.shared.kernels.mul(a, b, out))
    }

    fn mul_repeated(&self, x: &Buffer, row: &Buffer) -> Buffer {
        self.over_rows(x, row, |x, row, out| self.shared.kernels.mul(x, row, out))
    }

    fn activate(&self, x: &Buffer, activation: Activation) -> Buffer {
        let mut out = self.buffer(x.len());
        self.split(8 * x.len(), out.chunks_mut(PART).zip(x.chunks(PART)), |(out, x)| {
            out.copy_from_slice(x);
            self.shared.kernels.activate(linear::activation(activation), out);
        });
        out
    }

    fn rope(&self, x: &Buffer, dims: RopeDims, cos: &Buffer, sin: &Buffer) -> Buffer {
        let mut out = self.buffer(x.len());
        let RopeDims { heads, head_dim, pairs, pairing } = dims;
        let pairing = match pairing {
            RopePairing::Halves => ocelli_kernels::RopePairing::Halves,
            RopePairing::Adjacent => ocelli_kernels::RopePairing::Adjacent,
        };
        let dims = ocelli_kernels::RopeDims { heads, head_dim, pairs, pairing };
        let rows = rows_per_part(heads * head_dim) / (heads * head_dim);
        let angles = cos.chunks(rows * pairs).zip(sin.chunks(rows * pairs));
        let parts = out.chunks_mut(rows * heads * head_dim).zip(x.chunks(rows * heads * head_dim)).zip(angles);
        self.split(2 * x.len(), parts, |((out, x), (cos, sin))| {
            self.shared.kernels.rope(x, dims, cos, sin, out);
        });
        out
    }

    fn attention(&self, q: &Buffer, k: &Buffer, v: &Buffer, dims: AttentionDims, mask: Mask<'_>, scale: f32) -> Buffer {
        self.attend_entries(q, k, v, dims, mask, scale)
    }

    fn kv_precision(&self) -> &'static str {
        self.shared.kv.name()
    }

    fn kv_bytes_per_token(&self, kv_heads: usize, head_dim: usize) -> usize {
        self.kv_layout(kv_heads, head_dim).bytes_per_token()
    }

    fn kv_blocks(&self, kv_heads: usize, head_dim: usize) -> CpuKvBlocks {
        CpuKvBlocks::new(self.kv_layout(kv_heads, head_dim))
    }

    fn kv_write(&self, kv: &mut CpuKvBlocks, k: &Buffer, v: &Buffer, slots: &[usize]) {
        let layout = kv.layout;
        let width = layout.kv_heads * layout.head_dim;
        assert_eq!([k.len(), v.len()], [slots.len() * width; 2], "{} slots of {width} elements", slots.len());
        let runs = kv::runs(slots);
        self.split(k.len(), kv.parts(&runs).into_iter(), |(block, runs)| {
            for run in runs {
                let [keys, values] = [k, v].map(|all| &all[run.first * width..][..run.len * width]);
                self.shared.kernels.write_kv(&layout, block, run.offset, keys, values);
            }
        });
    }

    fn kv_copy(&self, kv: &mut CpuKvBlocks, from: usize, to: usize) {
        kv.copy(from, to);
    }

    fn attention_cached(
        &self,
        q: &Buffer,
        heads: usize,
        kv: &CpuKvBlocks,
        spans: &[Span],
        mask: Mask<'_>,
        scale: f32,
    ) -> Buffer {
        self.attend_spans(q, heads, kv, spans, mask, scale)
    }

    fn gather_rows(&self, x: &Buffer, width: usize, rows: &[usize]) -> Buffer {
        let mut out = self.buffer(rows.len() * width);
        self.fill_rows(&mut out, width, |row, out| out.copy_from_slice(&x[rows[row] * width..][..width]));
        out
    }

    fn replace_rows(&self, x: &Buffer, width: usize, rows: &[usize], source: &Buffer) -> Buffer {
        assert_eq!(source.len(), rows.len() * width, "{} rows of {width}", rows.len());
        let mut out = self.upload(x);
        for (source, &row) in source.chunks_exact(width.max(1)).zip(rows) {
            out[row * width..][..width].copy_from_slice(source);
        }
        out
    }

    fn add_scaled_rows(&self, x: &Buffer, width: usize, rows: &[usize], factors: &[f32], source: &Buffer) -> Buffer {
        assert_eq!([source.len(), rows.len()], [rows.len() * width, factors.len()], "{} rows of {width}", rows.len());
        let mut out = self.upload(x);
        for ((source, &row), &factor) in source.chunks_exact(width.max(1)).zip(rows).zip(factors) {
            for (sum, value) in out[row * width..][..width].iter_mut().zip(source) {
                *sum += factor * value;
            }
        }
        out
    }

    fn mean_rows(&self, x: &Buffer, rows: usize, width: usize) -> Buffer {
        let group = rows * width;
        assert!(group > 0 && x.len().is_multiple_of(group), "{} values are not groups of {rows} x {width}", x.len());
        let mut out = self.buffer(x.len() / rows);
        self.split(x.len(), out.chunks_exact_mut(width).zip(x.chunks_exact(group)), |(out, x)| {
            out.fill(0.0);
            for row in x.chunks_exact(width) {
                for (sum, value) in out.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            for sum in out {
                *sum /= rows as f32;
            }
        });
        out
    }

    fn columns(&self, x: &Buffer, width: usize, columns: Range<usize>) -> Buffer {
        assert!(width > 0 && x.len().is_multiple_of(width), "{} values are not rows of {width}", x.len());
        let mut out = self.buffer(x.len() / width * columns.len());
        self.fill_rows(&mut out, columns.len(), |row, out| out.copy_from_slice(&x[row * width..][columns.clone()]));
        out
    }

    fn concat_columns(&self, parts: &[(&Buffer, usize)]) -> Buffer {
        let width: usize = parts.iter().map(|(_, width)| width).sum();
        let mut out = self.buffer(parts.iter().map(|(part, _)| part.len()).sum());
        self.fill_rows(&mut out, width, |row, mut out| {
            for &(part, width) in parts {
                let (place, behind) = out.split_at_mut(width);
                place.copy_from_slice(&part[row * width..][..width]);
                out = behind;
            }
        });
        out
    }

    fn concat(&self, parts: &[&Buffer]) -> Buffer {
        let mut out = self.buffer(parts.iter().map(|part| part.len()).sum());
        let (mut rest, len) = (&mut out[..], parts.iter().map(|part| part.len()).sum());
        let places = parts.iter().flat_map(|part| {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(part.len());
            rest = behind;
            place.chunks_mut(PART).zip(part.chunks(PART))
        });
        self.split(len, places, |(place, part)| place.copy_from_slice(part));
        out
    }

    fn unfold_patches(&self, x: &Buffer, dims: PatchDims) -> Buffer {
        let PatchDims { batch, channels, height, width, patch } = dims;
        let picture = channels * height * width;
        assert_eq!(x.len(), batch * picture, "{} values are not {dims:?}", x.len());
        let patches = (height / patch) * (width / patch) * channels * patch * patch;
        let mut out = self.buffer(batch * patches);
        let sizes = Patches { channels, height, width, patch };
        let parts = out.chunks_mut(patches.max(1)).zip(x.chunks(picture.max(1)));
        self.split(x.len(), parts, |(out, x)| unfold_patches(x, sizes, out));
        out
    }

    fn unfold_windows(&self, x: &Buffer, dims: ConvolutionDims) -> Buffer {
        self.windows(x, dims)
    }

    fn depthwise(&self, x: &Buffer, weight: &Buffer, bias: Option<&Buffer>, dims: ConvolutionDims) -> Buffer {
        self.depthwise_convolution(x, weight, bias, dims)
    }
}

impl CpuBackend {
    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        self.shared.buffers.take(len)
    }

    /// An operation on two equally long buffers, element by element.
    fn pairwise(&self, a: &Buffer, b: &Buffer, compute: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) -> Buffer {
        assert_eq!(a.len(), b.len(), "operands of different lengths");
        let mut out = self.buffer(a.len());
        let parts = out.chunks_mut(PART).zip(a.chunks(PART).zip(b.chunks(PART)));
        self.split(a.len(), parts, |(out, (a, b))| compute(a, b, out));
        out
    }

    /// The same second operand for every row of `x`.
    fn over_rows(&self, x: &Buffer, row: &Buffer, compute: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) -> Buffer {
        assert!(!row.is_empty() && x.len().is_multiple_of(row.len()), "{} values over {}", row.len(), x.len());
        let mut out = self.buffer(x.len());
        let parts = out.chunks_mut(row.len()).zip(x.chunks(row.len()));
        self.split(x.len(), parts, |(out, x)| compute(x, row, out));
        out
    }

    /// Makes every row of `out`, given its number.
    fn fill_rows(&self, out: &mut [f32], width: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let (cost, len) = (out.len(), rows_per_part(width));
        self.split(cost, out.chunks_mut(len).enumerate(), |(part, out)| {
            let first = part * len / width.max(1);
            (first..).zip(out.chunks_exact_mut(width.max(1))).for_each(|(row, out)| fill(row, out));
        });
    }

    /// Computes all parts of an operation of `cost` multiplications or so: on all threads if that is worth it.
    pub(crate) fn split<I>(&self, cost: usize, parts: I, compute: impl Fn(I::Item) + Sync)
    where
        I: Iterator + Send,
        I::Item: Send,
    {
        if cost < WORTH_SHARING { parts.for_each(compute) } else { self.shared.threads.for_each(parts, compute) }
    }
}

/// Work below this many multiplications takes less time than waking a thread up.
const WORTH_SHARING: usize = 64 * 1024;

/// Elements that a thread takes at a time in element-wise operations.
pub(crate) const PART: usize = 8 * 1024;

/// Elements of whole rows that a thread takes at a time.
fn rows_per_part(width: usize) -> usize {
    (PART / width.max(1)).max(1) * width.max(1)
}

/// Lends the thread's scratch memory, which grows as needed.
pub(crate) fn with_scratch(len: usize, compute: impl FnOnce(&mut [f32])) {
    thread_local! {
        static SCRATCH: RefCell<Aligned> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.values().len() < len {
            *scratch = Aligned::zeroed(len);
        }
        compute(&mut scratch.values_mut()[..len]);
    });
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use ocelli_backend::{Activation, BLOCK_TOKENS};
    use ocelli_formats::{CodeBits, Dtype, GroupedLayout, GroupedTensor, TensorData};
    use ocelli_testkit::Random;

    use super::*;
    use crate::{Arithmetic, CpuOptions, KvPrecision};

    const HIDDEN: usize = 192;
    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;

    fn backend(threads: usize) -> CpuBackend {
        CpuBackend::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
    }

    /// Something like a decoder layer over several sequences, large enough that threads share its work.
    struct Layer {
        up: CpuWeight,
        gate: CpuWeight,
        down: CpuWeight,
        kv_proj: CpuWeight,
        norm: Vec<f32>,
    }

    impl Layer {
        fn new(backend: &CpuBackend) -> Self {
            let mut random = Random::new(1);
            let mut weight = |outputs: usize, inputs: usize| {
                let halves = (0..outputs * inputs).map(|_| half_of(random.value() * 0.1));
                let bytes: Vec<u8> = halves.flat_map(u16::to_le_bytes).collect();
                let data = TensorData::new(Dtype::BF16, vec![outputs, inputs], bytes.into()).unwrap();
                backend.weight(data.into()).unwrap()
            };
            let kv_width = HIDDEN / HEADS * KV_HEADS;
            let (up, down, kv_proj) = (weight(500, HIDDEN), weight(HIDDEN, 300), weight(kv_width, HIDDEN));
            // Codes among floats: they must not see threads or batches either.
            let gate = Random::new(8).values(300 * 500);
            let gate = TensorData::from_f32(vec![300, 500], &gate).unwrap();
            let layout = GroupedLayout::preferred(CodeBits::Four, 500);
            let gate = GroupedTensor::quantize(&gate, layout, 0..300).unwrap().unwrap();
            let gate = backend.weight(gate.into()).unwrap();
            Self { up, gate, down, kv_proj, norm: Random::new(2).values(HIDDEN) }
        }

        /// Fresh sequences of these lengths; rows one after another.
        fn forward(&self, backend: &CpuBackend, x: &[f32], lengths: &[usize]) -> Vec<f32> {
            let rows: usize = lengths.iter().sum();
            let (mut spans, mut slots, mut next_block) = (Vec::new(), Vec::new(), 0);
            for &length in lengths {
                let blocks: Vec<usize> = (next_block..next_block + length.div_ceil(BLOCK_TOKENS)).collect();
                slots.extend(next_block * BLOCK_TOKENS..next_block * BLOCK_TOKENS + length);
                next_block += blocks.len();
                let first = spans.last().map_or(0, |span: &Span| span.rows.end);
                spans.push(Span { rows: first..first + length, past: 0, blocks });
            }
            let head_dim = HIDDEN / HEADS;
            let (x, norm) = (backend.upload(x), backend.upload(&self.norm));
            // The same for all rows: a sequence must not see at which row of a batch it begins.
            let angles = backend.upload(&Random::new(3).values(head_dim / 2).repeat(rows));
            let normed = backend.rms_norm(&x, &norm, 1e-5);
            let normed = backend.layer_norm(&normed, &norm, &norm, 1e-5);
            let k = backend.linear(&normed, rows, &self.kv_proj, Epilogue::none());
            let mut kv = backend.kv_blocks(KV_HEADS, head_dim);
            backend.kv_write(&mut kv, &k, &k, &slots);
            let dims = RopeDims { heads: HEADS, head_dim, pairs: head_dim / 2, pairing: RopePairing::Halves };
            let q = backend.rope(&normed, dims, &angles, &angles);
            let attended = backend.attention_cached(&q, HEADS, &kv, &spans, Mask::Causal, 0.2);
            let up = Epilogue { bias: None, activation: Activation::GeluTanh, residual: None };
            let up = backend.linear(&attended, rows, &self.up, up);
            let gated = backend.swiglu(&up, rows, &self.gate, &self.gate);
            let down = Epilogue { bias: None, activation: Activation::None, residual: Some(&x) };
            backend.download(&backend.linear(&gated, rows, &self.down, down))
        }
    }

    fn half_of(value: f32) -> u16 {
        (value.to_bits() >> 16) as u16
    }

    /// A backend for every way of keeping keys and values.
    fn backends(threads: usize) -> impl Iterator<Item = CpuBackend> {
        let precisions = [
            (Arithmetic::Float32, KvPrecision::Float32),
            (Arithmetic::Bfloat16, KvPrecision::Bfloat16),
            (Arithmetic::Bfloat16, KvPrecision::Eight),
        ];
        precisions.into_iter().map(move |(arithmetic, kv)| {
            CpuBackend::new(CpuOptions { threads: Some(threads), isa: None, arithmetic, kv: Some(kv) }).unwrap()
        })
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        let lengths = [70, 1, 33];
        let x = Random::new(4).values(104 * HIDDEN);
        for threads in [2, 3, 7] {
            for (alone, backend) in backends(1).zip(backends(threads)) {
                let expected = Layer::new(&alone).forward(&alone, &x, &lengths);
                let layer = Layer::new(&backend);
                for _ in 0..5 {
                    assert_eq!(layer.forward(&backend, &x, &lengths), expected, "{threads} threads");
                }
            }
        }
    }

    #[test]
    fn a_sequence_alone_equals_itself_in_a_batch() {
        let lengths = [3, 40, 1, 9, 64];
        let x = Random::new(5).values(lengths.iter().sum::<usize>() * HIDDEN);
        for backend in backends(2) {
            let layer = Layer::new(&backend);
            let together = layer.forward(&backend, &x, &lengths);
            let mut first = 0;
            for length in lengths {
                let values = first * HIDDEN..(first + length) * HIDDEN;
                let alone = layer.forward(&backend, &x[values.clone()], &[length]);
                assert_eq!(alone, together[values], "the sequence of {length}");
                first += length;
            }
        }
    }

    #[test]
    fn a_repeated_forward_allocates_no_buffers() {
        let backend = backend(2);
        let layer = Layer::new(&backend);
        let x = Random::new(6).values(80 * HIDDEN);
        layer.forward(&backend, &x, &[80]);
        let before = backend.shared.buffers.allocations();
        for _ in 0..3 {
            layer.forward(&backend, &x, &[80]);
        }
        assert_eq!(backend.shared.buffers.allocations(), before);
    }

    #[test]
    fn a_panic_in_an_operation_leaves_the_backend_usable() {
        let backend = backend(2);
        let layer = Layer::new(&backend);
        let x = Random::new(7).values(64 * HIDDEN);
        let expected = layer.forward(&backend, &x, &[64]);
        let mut kv = backend.kv_blocks(KV_HEADS, 32);
        let q = backend.upload(&x);
        backend.kv_write(&mut kv, &backend.upload(&[0.0; 64]), &backend.upload(&[0.0; 64]), &[0]);
        // The table names a block that nobody wrote.
        let spans = [Span { rows: 0..64, past: 0, blocks: vec![0, 9] }];
        let result =
            catch_unwind(AssertUnwindSafe(|| backend.attention_cached(&q, HEADS, &kv, &spans, Mask::Causal, 1.0)));
        assert!(result.is_err());
        assert_eq!(layer.forward(&backend, &x, &[64]), expected);
    }

    #[test]
    fn no_rows_give_no_rows() {
        let backend = backend(1);
        let layer = Layer::new(&backend);
        let nothing = backend.upload(&[]);
        assert!(backend.linear(&nothing, 0, &layer.up, Epilogue::none()).is_empty());
        assert!(backend.gather_rows(&nothing, HIDDEN, &[]).is_empty());
        let kv = backend.kv_blocks(KV_HEADS, 32);
        assert!(backend.attention_cached(&nothing, HEADS, &kv, &[], Mask::Causal, 1.0).is_empty());
    }
}
