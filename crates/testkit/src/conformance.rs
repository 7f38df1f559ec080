//! The conformance table: one row per operation and shape, run by every backend against the reference backend.

use ocelli_backend::{
    Activation, AttentionDims, BLOCK_TOKENS, Backend, ConvolutionDims, Epilogue, Mask, PatchDims, RopeDims,
    RopePairing, Span, columns_of,
};
use ocelli_formats::{Dtype, SharedBytes, TensorData};

use crate::{Random, ReferenceBackend};

mod grouped;

/// Runs the whole table.
///
/// # Panics
/// At the first case whose result differs from the reference backend's by more than its tolerance.
pub fn conformance<B: Backend>(backend: &B) {
    linear(backend);
    linears(backend);
    linear_parts(backend);
    swiglu(backend);
    grouped::conformance(backend);
    embed(backend);
    elementwise(backend);
    norms(backend);
    rope(backend);
    attention(backend);
    attention_cached(backend);
    rows(backend);
    patches(backend);
    convolutions(backend);
}

/// Both backends side by side: what one computes the other must.
struct Pair<'a, B: Backend> {
    backend: &'a B,
    case: String,
}

impl<B: Backend> Pair<'_, B> {
    /// `tolerance` is relative to the largest expected magnitude: rounding errors scale with what was summed.
    fn check(&self, actual: &B::Buffer, expected: &[f32], tolerance: f32) {
        let actual = self.backend.download(actual);
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        self.check_values(&actual, expected, tolerance * largest.max(1e-30));
    }

    fn check_absolute(&self, actual: &B::Buffer, expected: &[f32], tolerance: f32) {
        self.check_values(&self.backend.download(actual), expected, tolerance);
    }

    fn check_values(&self, actual: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(actual.len(), expected.len(), "{}: {}: length", self.backend.name(), self.case);
        for (at, (a, e)) in actual.iter().zip(expected).enumerate() {
            let close = (a - e).abs() <= tolerance;
            assert!(close, "{}: {}: element {at} is {a}, expected {e}", self.backend.name(), self.case);
        }
    }
}

fn pair<'a, B: Backend>(backend: &'a B, case: impl Into<String>) -> Pair<'a, B> {
    Pair { backend, case: case.into() }
}

fn linear<B: Backend>(backend: &B) {
    let sizes = [(1, 1, 1), (1, 64, 96), (3, 33, 7), (5, 576, 130), (8, 128, 64), (17, 96, 257), (70, 160, 50)];
    let activations = [
        Activation::None,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Sigmoid,
    ];
    let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64];
    let mut random = Random::new(1);
    for (case, (rows, n_in, n_out)) in sizes.into_iter().enumerate() {
        for dtype in dtypes {
            let activation = activations[case % activations.len()];
            let x = random.values(rows * n_in);
            let weight = matrix(&mut random, dtype, n_out, n_in);
            let (bias, residual) = (random.values(n_out), random.values(rows * n_out));
            for fused in [false, true] {
                let run = pair(backend, format!("linear {rows}x{n_in}x{n_out} {dtype:?} {activation:?} fused {fused}"));
                let expected = product(&ReferenceBackend, &weight, &x, rows, &bias, &residual, activation, fused);
                let actual = product(backend, &weight, &x, rows, &bias, &residual, activation, fused);
                run.check(&actual, &expected, 2e-6 * (n_in as f32).sqrt().max(4.0));
            }
        }
    }
}

fn product<B: Backend>(
    backend: &B,
    weight: &TensorData,
    x: &[f32],
    rows: usize,
    bias: &[f32],
    residual: &[f32],
    activation: Activation,
    fused: bool,
) -> B::Buffer {
    let weight = backend.weight(weight.clone().into()).expect("a float matrix");
    let (x, bias, residual) = (backend.upload(x), backend.upload(bias), backend.upload(residual));
    let all = Epilogue { bias: Some(&bias), activation, residual: Some(&residual) };
    backend.linear(&x, rows, &weight, if fused { all } else { Epilogue::none() })
}

/// Several products of one x are those of each alone, in a step and outside of one.
fn linears<B: Backend>(backend: &B) {
    let mut random = Random::new(10);
    for (rows, n_in, outputs) in
        [(1, 64, [48, 16, 7]), (1, 576, [576, 192, 192]), (5, 96, [33, 1, 64]), (70, 40, [20; 3])]
    {
        let x = random.values(rows * n_in);
        let matrices = outputs.map(|n_out| matrix(&mut random, Dtype::BF16, n_out, n_in));
        let (bias, residual) = (random.values(outputs[1]), random.values(rows * outputs[2]));
        let (on_x, on_bias, on_residual) = (backend.upload(&x), backend.upload(&bias), backend.upload(&residual));
        let weights = matrices.each_ref().map(|matrix| backend.weight(matrix.clone().into()).expect("a float matrix"));
        let epilogues = [
            Epilogue::none(),
            Epilogue { bias: Some(&on_bias), activation: Activation::Silu, residual: None },
            Epilogue { bias: None, activation: Activation::None, residual: Some(&on_residual) },
        ];
        let _step = backend.begin_step();
        let products: Vec<_> = weights.iter().zip(epilogues).collect();
        let together = backend.linears(&on_x, rows, &products);
        assert_eq!(together.len(), 3, "{}: a result per product", backend.name());
        for (at, (weight, epilogue)) in products.into_iter().enumerate() {
            let run = pair(backend, format!("linears {rows}x{n_in}x{outputs:?}, product {at}"));
            run.check(&together[at], &backend.download(&backend.linear(&on_x, rows, weight, epilogue)), 0.0);
        }
    }
}

/// Parts of a product are its columns, wherever they are cut.
fn linear_parts<B: Backend>(backend: &B) {
    let mut random = Random::new(13);
    for (rows, n_in, widths) in
        [(1, 64, [32, 16, 9]), (70, 40, [64, 64, 64]), (3, 96, [33, 1, 64]), (20, 8, [0, 48, 5])]
    {
        let n_out = widths.iter().sum();
        let [x, bias] = [rows * n_in, n_out].map(|len| backend.upload(&random.values(len)));
        let residual = backend.upload(&random.values(rows * n_out));
        let weight = backend.weight(matrix(&mut random, Dtype::BF16, n_out, n_in).into()).expect("a float matrix");
        let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Silu, residual: Some(&residual) };
        let whole = backend.linear(&x, rows, &weight, epilogue);
        let parts = backend.linear_parts(&x, rows, &weight, epilogue, &widths);
        assert_eq!(parts.len(), widths.len(), "{}: a part per width", backend.name());
        for (part, columns) in parts.iter().zip(columns_of(&widths)) {
            let run = pair(backend, format!("linear_parts {rows}x{n_in}x{widths:?}, {columns:?}"));
            run.check(part, &backend.download(&backend.columns(&whole, n_out, columns)), 0.0);
        }
    }
}

fn swiglu<B: Backend>(backend: &B) {
    let mut random = Random::new(11);
    for (rows, n_in, n_out) in [(1, 33, 7), (1, 320, 215), (4, 64, 100), (40, 96, 130)] {
        let x: Vec<f32> = random.values(rows * n_in).iter().map(|value| value * 3.0).collect();
        let [gate, up] = [(); 2].map(|()| matrix(&mut random, Dtype::BF16, n_out, n_in));
        let expected = gated(&ReferenceBackend, &x, rows, &gate, &up);
        let actual = gated(backend, &x, rows, &gate, &up);
        let run = pair(backend, format!("swiglu {rows}x{n_in}x{n_out}"));
        run.check(&actual, &expected, 4e-6 * (n_in as f32).sqrt().max(4.0));
    }
}

fn gated<B: Backend>(backend: &B, x: &[f32], rows: usize, gate: &TensorData, up: &TensorData) -> B::Buffer {
    let [gate, up] = [gate, up].map(|matrix| backend.weight(matrix.clone().into()).expect("a float matrix"));
    backend.swiglu(&backend.upload(x), rows, &gate, &up)
}

fn embed<B: Backend>(backend: &B) {
    let mut random = Random::new(2);
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let table = matrix(&mut random, dtype, 11, 37);
        let ids = [0, 10, 3, 3];
        let expected =
            ReferenceBackend.embed(&ReferenceBackend.weight(table.clone().into()).expect("a float matrix"), &ids);
        let actual = backend.embed(&backend.weight(table.into()).expect("a float matrix"), &ids);
        pair(backend, format!("embed {dtype:?}")).check(&actual, &expected, 0.0);
    }
}

fn elementwise<B: Backend>(backend: &B) {
    let mut random = Random::new(3);
    for count in [1, 16, 63, 5000] {
        let (a, b) = (random.values(count), random.values(count));
        let (on_a, on_b) = (backend.upload(&a), backend.upload(&b));
        pair(backend, "add").check(&backend.add(&on_a, &on_b), &ReferenceBackend.add(&a, &b), 1e-6);
        let repeated: Vec<f32> = random.values(count * 3);
        let actual = backend.add_repeated(&backend.upload(&repeated), &on_a);
        pair(backend, "add_repeated").check(&actual, &ReferenceBackend.add_repeated(&repeated, &a), 1e-6);
        pair(backend, "mul").check(&backend.mul(&on_a, &on_b), &ReferenceBackend.mul(&a, &b), 1e-6);
        let actual = backend.mul_repeated(&backend.upload(&repeated), &on_a);
        pair(backend, "mul_repeated").check(&actual, &ReferenceBackend.mul_repeated(&repeated, &a), 1e-6);
        for activation in [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            let actual = backend.activate(&on_a, activation);
            let expected = ReferenceBackend.activate(&a, activation);
            pair(backend, format!("{activation:?}")).check(&actual, &expected, 2e-6);
        }
    }
}

fn norms<B: Backend>(backend: &B) {
    let mut random = Random::new(4);
    for (rows, width) in [(1, 1), (3, 64), (2, 577), (40, 192)] {
        let (x, weight, bias) = (random.values(rows * width), random.values(width), random.values(width));
        let (on_x, on_weight, on_bias) = (backend.upload(&x), backend.upload(&weight), backend.upload(&bias));
        let actual = backend.rms_norm(&on_x, &on_weight, 1e-5);
        pair(backend, format!("rms_norm {width}")).check(&actual, &ReferenceBackend.rms_norm(&x, &weight, 1e-5), 4e-6);
        let actual = backend.layer_norm(&on_x, &on_weight, &on_bias, 1e-6);
        let expected = ReferenceBackend.layer_norm(&x, &weight, &bias, 1e-6);
        pair(backend, format!("layer_norm {width}")).check(&actual, &expected, 1e-5);
    }
}

fn rope<B: Backend>(backend: &B) {
    let mut random = Random::new(5);
    for (rows, heads, head_dim, pairs) in [(1, 1, 2, 1), (3, 2, 16, 8), (5, 9, 64, 32), (2, 3, 72, 36), (4, 2, 64, 16)]
    {
        for pairing in [RopePairing::Halves, RopePairing::Adjacent] {
            let dims = RopeDims { heads, head_dim, pairs, pairing };
            let x = random.values(rows * heads * head_dim);
            let (sin, cos): (Vec<f32>, Vec<f32>) = (0..rows * pairs).map(|_| (random.value() * 30.0).sin_cos()).unzip();
            let expected = ReferenceBackend.rope(&x, dims, &cos, &sin);
            let actual = backend.rope(&backend.upload(&x), dims, &backend.upload(&cos), &backend.upload(&sin));
            pair(backend, format!("rope {rows}x{dims:?}")).check(&actual, &expected, 1e-6);
        }
    }
}

fn attention<B: Backend>(backend: &B) {
    let mut random = Random::new(6);
    let sizes = [
        (1, 1, 1, 1, 1, 8),
        (2, 16, 16, 4, 4, 12),
        (1, 100, 100, 3, 3, 64),
        (3, 5, 9, 6, 2, 72),
        (1, 2, 300, 2, 1, 88),
    ];
    for (batch, queries, keys, heads, kv_heads, head_dim) in sizes {
        let dims = AttentionDims { batch, queries, keys, heads, kv_heads, head_dim };
        let q: Vec<f32> = random.values(batch * queries * heads * head_dim).iter().map(|value| value * 4.0).collect();
        let (k, v) =
            (random.values(batch * keys * kv_heads * head_dim), random.values(batch * keys * kv_heads * head_dim));
        let (on_q, on_k, on_v) = (backend.upload(&q), backend.upload(&k), backend.upload(&v));
        for mask in MASKS.into_iter().filter(|&mask| mask == Mask::All || queries == keys) {
            let expected = ReferenceBackend.attention(&q, &k, &v, dims, mask, 0.3);
            let actual = backend.attention(&on_q, &on_k, &on_v, dims, mask, 0.3);
            pair(backend, format!("attention {dims:?} {mask:?}")).check(&actual, &expected, 1e-5);
        }
    }
}

/// Every kind, with edges within blocks and between them.
const MASKS: [Mask<'static>; 5] =
    [Mask::All, Mask::Causal, Mask::Window(21), Mask::Prefix(11), Mask::Segments(&[0, 3, 4, 32, 63])];

/// Three sequences in one step: a long prefill, a fresh one and a single token, with blocks out of order.
fn attention_cached<B: Backend>(backend: &B) {
    let mut random = Random::new(7);
    for (heads, kv_heads, head_dim) in [(4, 2, 16), (9, 3, 64), (3, 3, 72)] {
        let width = kv_heads * head_dim;
        let spans = [
            Span { rows: 0..40, past: 30, blocks: vec![5, 0, 3] },
            Span { rows: 40..43, past: 0, blocks: vec![1] },
            Span { rows: 43..44, past: 31, blocks: vec![2] },
        ];
        let slot = |span: &Span, at: usize| span.blocks[at / BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS;
        let slots: Vec<usize> =
            spans.iter().flat_map(|span| (0..span.past + span.rows.len()).map(move |at| slot(span, at))).collect();
        let (k, v) = (random.values(slots.len() * width), random.values(slots.len() * width));
        let q: Vec<f32> = random.values(44 * heads * head_dim).iter().map(|value| value * 3.0).collect();

        for mask in MASKS {
            let sizes = (heads, kv_heads, head_dim);
            let expected = cached(&ReferenceBackend, sizes, (&q, &k, &v), &slots, &spans, mask);
            let actual = cached(backend, sizes, (&q, &k, &v), &slots, &spans, mask);
            pair(backend, format!("attention_cached {sizes:?} {mask:?}")).check(&actual, &expected, 1e-5);
        }
    }
}

fn cached<B: Backend>(
    backend: &B,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    (q, k, v): (&[f32], &[f32], &[f32]),
    slots: &[usize],
    spans: &[Span],
    mask: Mask<'_>,
) -> B::Buffer {
    let mut kv = backend.kv_blocks(kv_heads, head_dim);
    backend.kv_write(&mut kv, &backend.upload(k), &backend.upload(v), slots);
    // The last span reads a copy of its block: a copied block must hold what the original held.
    let mut spans = spans.to_vec();
    backend.kv_copy(&mut kv, 2, 6);
    spans[2].blocks = vec![6];
    backend.attention_cached(&backend.upload(q), heads, &kv, &spans, mask, 0.25)
}

fn rows<B: Backend>(backend: &B) {
    let mut random = Random::new(8);
    let (width, x, source) = (19, random.values(6 * 19), random.values(2 * 19));
    let (on_x, on_source) = (backend.upload(&x), backend.upload(&source));
    let actual = backend.gather_rows(&on_x, width, &[5, 0, 0, 2]);
    pair(backend, "gather_rows").check(&actual, &ReferenceBackend.gather_rows(&x, width, &[5, 0, 0, 2]), 0.0);
    let actual = backend.replace_rows(&on_x, width, &[4, 1], &on_source);
    pair(backend, "replace_rows").check(&actual, &ReferenceBackend.replace_rows(&x, width, &[4, 1], &source), 0.0);
    // Row 4 twice: sums are taken in order.
    let (rows, factors) = ([4, 4], [0.5, -2.0]);
    let actual = backend.add_scaled_rows(&on_x, width, &rows, &factors, &on_source);
    let expected = ReferenceBackend.add_scaled_rows(&x, width, &rows, &factors, &source);
    pair(backend, "add_scaled_rows").check(&actual, &expected, 1e-6);
    let actual = backend.mean_rows(&on_x, 3, width);
    pair(backend, "mean_rows").check(&actual, &ReferenceBackend.mean_rows(&x, 3, width), 1e-6);
    let actual = backend.columns(&on_x, width, 3..12);
    pair(backend, "columns").check(&actual, &ReferenceBackend.columns(&x, width, 3..12), 0.0);
    let actual = backend.concat_columns(&[(&on_x, 3 * width), (&on_source, width), (&on_x, 3 * width)]);
    let expected = ReferenceBackend.concat_columns(&[(&x, 3 * width), (&source, width), (&x, 3 * width)]);
    pair(backend, "concat_columns").check(&actual, &expected, 0.0);
    let actual = backend.concat(&[&on_source, &on_x, &on_source]);
    pair(backend, "concat").check(&actual, &ReferenceBackend.concat(&[&source, &x, &source]), 0.0);
}

fn convolutions<B: Backend>(backend: &B) {
    let mut random = Random::new(12);
    let base = ConvolutionDims {
        batch: 2,
        height: 9,
        width: 21,
        channels: 20,
        multiplier: 1,
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
    };
    let cases = [
        base,
        ConvolutionDims { stride: [2, 2], multiplier: 2, ..base },
        ConvolutionDims { kernel: [7, 7], padding: [3, 3], ..base },
        ConvolutionDims { kernel: [1, 3], padding: [0, 1], height: 1, stride: [1, 2], ..base },
        ConvolutionDims { kernel: [1, 1], padding: [0, 0], batch: 1, ..base },
    ];
    for dims in cases {
        let x = random.values(dims.batch * dims.height * dims.width * dims.channels);
        let on_x = backend.upload(&x);
        let actual = backend.unfold_windows(&on_x, dims);
        pair(backend, format!("windows of {dims:?}")).check(&actual, &ReferenceBackend.unfold_windows(&x, dims), 0.0);
        let channels = dims.channels * dims.multiplier;
        let (weight, bias) = (random.values(dims.kernel[0] * dims.kernel[1] * channels), random.values(channels));
        let actual = backend.depthwise(&on_x, &backend.upload(&weight), Some(&backend.upload(&bias)), dims);
        let expected = ReferenceBackend.depthwise(&x, &weight, Some(&bias), dims);
        pair(backend, format!("depthwise {dims:?}")).check(&actual, &expected, 4e-6);
    }
}

fn patches<B: Backend>(backend: &B) {
    let mut random = Random::new(9);
    for (batch, channels, height, width, patch) in
        [(1, 1, 2, 2, 1), (2, 3, 8, 12, 4), (2, 3, 9, 15, 4), (1, 3, 28, 14, 14)]
    {
        let dims = PatchDims { batch, channels, height, width, patch };
        let x = random.values(batch * channels * height * width);
        let actual = backend.unfold_patches(&backend.upload(&x), dims);
        pair(backend, format!("{dims:?}")).check(&actual, &ReferenceBackend.unfold_patches(&x, dims), 0.0);
    }
}

/// A matrix as it lies in a file, one byte off any alignment.
fn matrix(random: &mut Random, dtype: Dtype, n_out: usize, n_in: usize) -> TensorData {
    let values = random.values(n_out * n_in);
    let bytes: Vec<u8> = match dtype {
        Dtype::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    let padded: Vec<u8> = std::iter::once(0).chain(bytes).collect();
    let len = padded.len();
    let shifted = SharedBytes::from(padded).slice(1..len).expect("within the bytes");
    TensorData::new(dtype, vec![n_out, n_in], shifted).expect("as many bytes as the shape needs")
}
