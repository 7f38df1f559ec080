//! Measures quantised products on one thread, and decode also on several, next to what the machine could do.
//!
//! `cargo run --release -p ocelli-kernels --example quantized [threads] [filter]`; `OCELLI_ISA` chooses the instruction
//! set. Products are timed in parts of 128 columns, and the best time of every part counts: on a busy machine that is what
//! comes closest to the code's own.
#![expect(clippy::print_stdout, reason = "a report is what it is for")]

use std::env;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use half::f16;
use ocelli_kernels::{
    Activation, CodeBits, GroupedRows, Kernels, MatrixMut, PackedDims, PackedMatrix, QuantizedMatmul, QuantizedRows,
    QuantizedRowsMut, QuantizedSwiglu,
};

fn main() {
    let mut arguments = env::args().skip(1);
    let threads = arguments.next().and_then(|threads| threads.parse().ok()).unwrap_or(1);
    let filter = arguments.next().unwrap_or_default();
    let kernels = Kernels::select(None).expect("an instruction set");
    let peak = kernels.peaks().find(|peak| peak.name() == "int8").expect("every instruction set has one");
    let mut peak_time = f64::MAX;
    let mut operations = 0;
    for _ in 0..2000 {
        peak_time = peak_time.min(seconds(|| operations = peak.run(5_000)));
    }
    let peak_speed = operations as f64 / peak_time;
    println!(
        "{}: {} peak {:.1} GOP/s, reading {:.1} GB/s with {threads} threads",
        kernels.name(),
        peak.name(),
        peak_speed / 1e9,
        read_bandwidth(threads) / 1e9
    );
    let forms = [
        ("q4/64", CodeBits::Four, 64),
        ("q8/64", CodeBits::Eight, 64),
        ("q4/32", CodeBits::Four, 32),
        ("q8/32", CodeBits::Eight, 32),
    ];
    for (form, bits, group) in forms {
        if !form.contains(&filter) {
            continue;
        }
        let dims = |inputs, outputs| PackedDims { outputs, inputs, group, bits };
        for (rows, inputs, outputs) in
            [(512, 1536, 8960), (512, 8960, 1536), (84, 576, 1536), (16, 1536, 2048), (9, 1536, 2048)]
        {
            let speed = products(kernels, rows, dims(inputs, outputs));
            println!(
                "{form} {rows:4} x {inputs} x {outputs}: {:8.1} GOP/s, {:4.1} %",
                speed / 1e9,
                100.0 * speed / peak_speed
            );
        }
        let speed = fused(kernels, 512, dims(1536, 1024));
        println!(
            "{form}  512 x 1536 x 2 x 1024 swiglu: {:8.1} GOP/s, {:4.1} %",
            speed / 1e9,
            100.0 * speed / peak_speed
        );
        for rows in [1, 2, 3, 4, 6, 8] {
            // Within the second-level cache.
            let dims = dims(1536, if bits == CodeBits::Four { 512 } else { 256 });
            let speed = cached(kernels, rows, dims);
            println!("{form} {rows:4} rows out of the second-level cache: {:8.1} GB/s", speed / 1e9);
        }
        for rows in [1, 2, 3, 4, 6, 8] {
            let speed = streamed(kernels, rows, dims(1536, 8960), threads);
            println!(
                "{form} {rows:4} rows out of memory: {:8.1} GB/s (reading {:.1})",
                speed / 1e9,
                read_bandwidth(threads) / 1e9
            );
        }
    }
    for inputs in [576, 1536, 8960] {
        let x = numbers(inputs);
        let (mut codes, mut scales, mut sums) = (vec![0; inputs], vec![0.0; inputs / 64], vec![0.0; inputs / 64]);
        let mut best = f64::MAX;
        for _ in 0..10_000 {
            best = best.min(seconds(|| {
                let out = QuantizedRowsMut { group: 64, codes: &mut codes, scales: &mut scales, sums: &mut sums };
                kernels.quantize_rows(black_box(&x), inputs, out);
            }));
        }
        println!("quantising a row of {inputs}: {:.2} us", best * 1e6);
    }
}

struct Rows {
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

impl Rows {
    fn new(kernels: &Kernels, rows: usize, dims: PackedDims) -> Self {
        let groups = rows * dims.groups();
        let (mut codes, mut scales, mut sums) =
            (vec![0; rows * dims.padded_inputs()], vec![0.0; groups], vec![0.0; groups]);
        let out = QuantizedRowsMut { group: dims.group, codes: &mut codes, scales: &mut scales, sums: &mut sums };
        kernels.quantize_rows(&numbers(rows * dims.inputs), dims.inputs, out);
        Self { codes, scales, sums }
    }

    fn quantized(&self) -> QuantizedRows<'_> {
        QuantizedRows { codes: &self.codes, scales: &self.scales, sums: &self.sums }
    }
}

/// Operations per second of a product of many rows.
fn products(kernels: &Kernels, rows: usize, dims: PackedDims) -> f64 {
    let (x, packed) = (Rows::new(kernels, rows, dims), packed(dims));
    let problem = problem(&x, rows, PackedMatrix::new(dims, aligned(&packed, dims)));
    let mut scratch = vec![0.0; kernels.quantized_scratch_len(rows)];
    let mut out = vec![0.0; rows * dims.outputs];
    parts(rows, dims, 1.0, &mut out, |part| kernels.quantized_matmul(&problem, part, &mut scratch))
}

/// Operations per second of a gated product of many rows.
fn fused(kernels: &Kernels, rows: usize, dims: PackedDims) -> f64 {
    let (x, packed) = (Rows::new(kernels, rows, dims), packed(dims));
    let matrix = PackedMatrix::new(dims, aligned(&packed, dims));
    let problem = QuantizedSwiglu { x: x.quantized(), rows, gate: matrix, up: matrix };
    let mut scratch = vec![0.0; kernels.quantized_scratch_len(rows)];
    let mut out = vec![0.0; rows * dims.outputs];
    parts(rows, dims, 2.0, &mut out, |part| kernels.quantized_swiglu(&problem, part, &mut scratch))
}

fn parts(rows: usize, dims: PackedDims, matrices: f64, out: &mut [f32], mut call: impl FnMut(MatrixMut<'_>)) -> f64 {
    let mut times = vec![f64::MAX; dims.outputs.div_ceil(128)];
    let begin = Instant::now();
    while begin.elapsed() < BUDGET || times[0] == f64::MAX {
        for (part, time) in MatrixMut::new(out, rows).tiles(rows, 128).zip(&mut times) {
            *time = time.min(seconds(|| call(part)));
        }
    }
    2.0 * matrices * (rows * dims.inputs * dims.outputs) as f64 / times.iter().sum::<f64>()
}

/// Bytes per second of a small matrix again and again.
fn cached(kernels: &Kernels, rows: usize, dims: PackedDims) -> f64 {
    let (x, packed) = (Rows::new(kernels, rows, dims), packed(dims));
    let problem = problem(&x, rows, PackedMatrix::new(dims, aligned(&packed, dims)));
    let mut scratch = vec![0.0; kernels.quantized_scratch_len(rows)];
    let mut out = vec![0.0; rows * dims.outputs];
    let mut best = f64::MAX;
    for _ in 0..5000 {
        best = best.min(seconds(|| {
            kernels.quantized_matmul(&problem, MatrixMut::new(black_box(&mut out), rows), &mut scratch);
        }));
    }
    dims.packed_len() as f64 / best
}

/// Bytes per second of matrices that no cache holds, all threads together.
fn streamed(kernels: &'static Kernels, rows: usize, dims: PackedDims, threads: usize) -> f64 {
    const COPIES: usize = 12;
    let packed: Vec<Vec<u8>> = (0..COPIES).map(|_| packed(dims)).collect();
    let x = Rows::new(kernels, rows, dims);
    let (barrier, columns) = (Barrier::new(threads), dims.outputs.div_ceil(threads).next_multiple_of(16));
    let mut out = vec![vec![0.0; rows * dims.outputs]; COPIES];
    let mut best = f64::MAX;
    for _ in 0..12 {
        let time = thread::scope(|scope| {
            // Every thread takes its columns of every copy.
            let mut work: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
            for (out, packed) in out.iter_mut().zip(&packed) {
                let problem = problem(&x, rows, PackedMatrix::new(dims, aligned(packed, dims)));
                for (work, part) in work.iter_mut().zip(MatrixMut::new(out, rows).tiles(rows, columns)) {
                    work.push((problem, part));
                }
            }
            let workers: Vec<_> = work
                .into_iter()
                .map(|work| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let mut scratch = vec![0.0; kernels.quantized_scratch_len(rows)];
                        barrier.wait();
                        seconds(|| {
                            for (problem, part) in work {
                                kernels.quantized_matmul(&problem, part, &mut scratch);
                            }
                        })
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker")).fold(0.0, f64::max)
        });
        best = best.min(time);
    }
    (COPIES * dims.packed_len()) as f64 / best
}

/// Bytes per second that threads read from memory together.
fn read_bandwidth(threads: usize) -> f64 {
    let words = vec![1u64; 16 << 20];
    let (barrier, part) = (Barrier::new(threads), words.len() / threads);
    let mut best = f64::MAX;
    for _ in 0..12 {
        let time = thread::scope(|scope| {
            let workers: Vec<_> = words
                .chunks_exact(part)
                .map(|part| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        seconds(|| _ = black_box(part.iter().fold(0, |sum, word| sum ^ word)))
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker")).fold(0.0, f64::max)
        });
        best = best.min(time);
    }
    size_of_val(&*words) as f64 / best
}

fn problem<'a>(x: &'a Rows, rows: usize, weights: PackedMatrix<'a>) -> QuantizedMatmul<'a> {
    let x = x.quantized();
    QuantizedMatmul { x, rows, weights, bias: None, activation: Activation::None, residual: None }
}

/// A packed matrix and room to align it.
fn packed(dims: PackedDims) -> Vec<u8> {
    let codes = vec![0x5A; dims.outputs * dims.padded_inputs() / dims.bits.per_byte()];
    let factors = vec![f16::from_f32(0.01); dims.outputs * dims.groups()];
    let mut packed = vec![0; dims.packed_len() + 64];
    let first = packed.as_ptr().align_offset(64);
    let rows = GroupedRows { dims, codes: &codes, scales: &factors, offsets: &factors };
    rows.pack(&mut packed[first..][..dims.packed_len()]);
    packed
}

fn aligned(packed: &[u8], dims: PackedDims) -> &[u8] {
    &packed[packed.as_ptr().align_offset(64)..][..dims.packed_len()]
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919) % 1013) as f32 / 1013.0 - 0.5).collect()
}

fn seconds(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

const BUDGET: Duration = Duration::from_millis(600);
