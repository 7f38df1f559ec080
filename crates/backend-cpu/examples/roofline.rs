//! Measures the operations that a forward pass spends its time in, next to what the machine could do.
//!
//! `cargo run --release -p ocelli-backend-cpu --example roofline [threads] [filter] [bf16]`; `OCELLI_ISA` chooses the
//! instruction set, `bf16` the arithmetic. Times are the tenth percentile of many runs: on a
//! busy machine that is what comes closest to the code's own.
#![expect(clippy::print_stdout, reason = "a report is what it is for")]

use std::env;
use std::hint::black_box;

use ocelli_backend::{Activation, AttentionDims, BLOCK_TOKENS, Backend, Epilogue, Mask, Span};
use ocelli_backend_cpu::machine::{self, best};
use ocelli_backend_cpu::{Arithmetic, CpuBackend, CpuOptions};
use ocelli_formats::{Dtype, TensorData};

fn main() {
    let mut arguments = env::args().skip(1);
    let threads = arguments.next().and_then(|threads| threads.parse().ok());
    let filter = arguments.next().unwrap_or_default();
    let is_bf16 = arguments.next().is_some_and(|arithmetic| arithmetic == "bf16");
    let arithmetic = if is_bf16 { Arithmetic::Bfloat16 } else { Arithmetic::Float32 };
    let backend = CpuBackend::new(CpuOptions { threads, arithmetic, ..CpuOptions::default() }).expect("a backend");
    println!("{} threads, {}", backend.threads(), backend.isa());

    let run = Run { backend: &backend, filter };
    run.machine();
    // SmolVLM-256M: vision tower (192 of its 1024 rows, so that a call is shorter than a scheduler's time slice),
    // prefill of one picture, decode of one token and of eight sequences; towers of other families.
    for (name, rows, inputs, outputs) in [
        ("vision qkv", 192, 768, 768),
        ("vision up", 192, 768, 3072),
        ("vision down", 192, 3072, 768),
        ("BLIP-2 tower qkv", 257, 1408, 4224),
        ("BLIP-2 tower up", 257, 1408, 6144),
        ("BLIP-2 tower down", 257, 6144, 1408),
        ("Qwen-VL tower qkv", 1024, 1280, 3840),
        ("Qwen-VL tower up", 1024, 1280, 3420),
        ("Qwen-VL tower down", 1024, 3420, 1280),
        ("prefill qo", 84, 576, 576),
        ("prefill up", 84, 576, 1536),
        ("prefill down", 84, 1536, 576),
        ("8 rows up", 8, 576, 1536),
        ("decode up", 1, 576, 1536),
        ("4 rows decode up", 4, 576, 1536),
        ("8 rows decode up", 8, 576, 1536),
        ("decode kv", 1, 576, 192),
        ("decode logits", 1, 576, 49280),
        ("1.5B decode up", 1, 1536, 8960),
        ("1.5B decode down", 1, 8960, 1536),
    ] {
        run.linear(name, rows, inputs, outputs, Activation::None);
    }
    run.linear("vision up+gelu", 192, 768, 3072, Activation::GeluTanh);
    run.attention("vision attention", 1024, 2, 64);
    run.layers("BLIP layers", 577, (12, 64), 3072, 12);
    run.layers("BLIP-2 layers", 257, (16, 88), 6144, 6);
    run.cached("prefill attention", 84, 0, 9, 3, 64);
    run.cached("decode attention", 1, 1000, 9, 3, 64);
    run.cached("long decode attention", 1, 4095, 9, 3, 64);
    run.elementwise();
}

struct Run<'a> {
    backend: &'a CpuBackend,
    filter: String,
}

impl Run<'_> {
    fn linear(&self, name: &str, rows: usize, inputs: usize, outputs: usize, activation: Activation) {
        if !name.contains(&self.filter) {
            return;
        }
        let backend = self.backend;
        let x = backend.upload(&numbers(rows * inputs));
        // Enough copies that a decode step and a layer of a tower find none of their weights in a cache.
        let copies = if ["decode", "tower"].iter().any(|word| name.contains(word)) {
            (200 << 20) / (inputs * outputs * 2) + 1
        } else {
            1
        };
        let weights: Vec<_> =
            (0..copies).map(|_| backend.weight(matrix(outputs, inputs).into()).expect("a weight")).collect();
        let mut next = weights.iter().cycle();
        let seconds = best(|| {
            let weight = next.next().expect("a cycle");
            let epilogue = Epilogue { bias: None, activation, residual: None };
            black_box(backend.linear(&x, rows, weight, epilogue));
        });
        let flops = 2.0 * (rows * inputs * outputs) as f64;
        let bytes = (inputs * outputs * 2) as f64;
        println!(
            "{name:18} {rows:5} x {inputs:5} x {outputs:5}: {:9.1} us {:8.1} GFLOP/s {:7.1} GB/s",
            seconds * 1e6,
            flops / seconds / 1e9,
            bytes / seconds / 1e9
        );
    }

    fn attention(&self, name: &str, tokens: usize, heads: usize, head_dim: usize) {
        if !name.contains(&self.filter) {
            return;
        }
        let backend = self.backend;
        let q = backend.upload(&numbers(tokens * heads * head_dim));
        let dims = AttentionDims { batch: 1, queries: tokens, keys: tokens, heads, kv_heads: heads, head_dim };
        let seconds = best(|| drop(black_box(backend.attention(&q, &q, &q, dims, Mask::All, 0.1))));
        report(name, seconds, 4.0 * (tokens * tokens * heads * head_dim) as f64);
    }

    /// Layers of a vision tower one after another, each with weights of its own.
    fn layers(&self, name: &str, rows: usize, (heads, head_dim): (usize, usize), intermediate: usize, layers: usize) {
        if !name.contains(&self.filter) {
            return;
        }
        let (backend, hidden) = (self.backend, heads * head_dim);
        let square = (hidden, hidden);
        let shapes = [square, square, square, square, (hidden, intermediate), (intermediate, hidden)];
        let weight = |(inputs, outputs)| backend.weight(matrix(outputs, inputs).into()).expect("a weight");
        let weights: Vec<_> = (0..layers).map(|_| shapes.map(weight)).collect();
        let [start, norm] = [rows * hidden, hidden].map(|len| backend.upload(&numbers(len)));
        let dims = AttentionDims { batch: 1, queries: rows, keys: rows, heads, kv_heads: heads, head_dim };
        let seconds = best(|| {
            let mut x = backend.add(&start, &start);
            for [q, k, v, out, up, down] in &weights {
                let plain = Epilogue::none();
                let residual = |x| Epilogue { bias: None, activation: Activation::None, residual: Some(x) };
                let normed = backend.layer_norm(&x, &norm, &norm, 1e-5);
                let heads = backend.linears(&normed, rows, &[q, k, v].map(|weight| (weight, plain)));
                let attended = backend.attention(&heads[0], &heads[1], &heads[2], dims, Mask::All, 0.1);
                let added = backend.linear(&attended, rows, out, residual(&x));
                let normed = backend.layer_norm(&added, &norm, &norm, 1e-5);
                let gelu = Epilogue { bias: None, activation: Activation::Gelu, residual: None };
                let raised = backend.linear(&normed, rows, up, gelu);
                x = backend.linear(&raised, rows, down, residual(&added));
            }
            black_box(x);
        });
        let products = shapes.iter().map(|(inputs, outputs)| inputs * outputs * rows).sum::<usize>();
        report(name, seconds, layers as f64 * (2 * products + 4 * rows * rows * hidden) as f64);
    }

    fn cached(&self, name: &str, rows: usize, past: usize, heads: usize, kv_heads: usize, head_dim: usize) {
        if !name.contains(&self.filter) {
            return;
        }
        let backend = self.backend;
        let tokens = past + rows;
        let mut kv = backend.kv_blocks(kv_heads, head_dim);
        let k = backend.upload(&numbers(tokens * kv_heads * head_dim));
        backend.kv_write(&mut kv, &k, &k, &(0..tokens).collect::<Vec<_>>());
        let q = backend.upload(&numbers(rows * heads * head_dim));
        let spans = [Span { rows: 0..rows, past, blocks: (0..tokens.div_ceil(BLOCK_TOKENS)).collect() }];
        let seconds = best(|| drop(black_box(backend.attention_cached(&q, heads, &kv, &spans, Mask::Causal, 0.1))));
        report(name, seconds, 4.0 * (rows * (past + rows / 2) * heads * head_dim) as f64);
    }

    fn elementwise(&self) {
        if !self.filter.is_empty() {
            return;
        }
        let backend = self.backend;
        for (rows, width) in [(1, 576), (84, 576), (1024, 768)] {
            let x = backend.upload(&numbers(rows * width));
            let weight = backend.upload(&numbers(width));
            let seconds = best(|| drop(black_box(backend.rms_norm(&x, &weight, 1e-5))));
            println!("rms_norm {rows} x {width}: {:.2} us", seconds * 1e6);
            let seconds = best(|| drop(black_box(backend.layer_norm(&x, &weight, &weight, 1e-5))));
            println!("layer_norm {rows} x {width}: {:.2} us", seconds * 1e6);
            let seconds = best(|| drop(black_box(backend.add(&x, &x))));
            println!("add {rows} x {width}: {:.2} us", seconds * 1e6);
        }
    }

    /// What everything is limited by.
    fn machine(&self) {
        if !self.filter.is_empty() {
            return;
        }
        println!("multiply-adds: {:.1} GFLOP/s", machine::multiply_add_peak(self.backend) / 1e9);
        println!("a parallel region: {:.0} ns", machine::region_overhead(self.backend) * 1e9);
        println!("reading memory: {:.1} GB/s", machine::read_bandwidth(self.backend) / 1e9);
    }
}

fn report(name: &str, seconds: f64, flops: f64) {
    println!("{name:18} {:9.1} us {:8.1} GFLOP/s", seconds * 1e6, flops / seconds / 1e9);
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919) % 1013) as f32 / 1013.0 - 0.5).collect()
}

fn matrix(outputs: usize, inputs: usize) -> TensorData {
    let halves = numbers(outputs * inputs).into_iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes());
    TensorData::new(Dtype::BF16, vec![outputs, inputs], halves.collect::<Vec<u8>>().into()).expect("a matrix")
}
