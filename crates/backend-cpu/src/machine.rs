//! What the machine could do: the limits that measured speeds are compared with.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ocelli_backend::{Backend, Epilogue};
use ocelli_formats::{CodeBits, Dtype, GroupedLayout, GroupedTensor, SharedBytes, TensorData, WeightData};

use crate::CpuBackend;
use crate::weight::CpuWeight;

/// Bytes per second that the backend's threads read from memory together, out of a buffer of 512 MiB that no cache
/// holds: the limit of decoding, which reads every weight once per token.
pub fn read_bandwidth(backend: &CpuBackend) -> f64 {
    let words = vec![1u64; BUFFER_BYTES / size_of::<u64>()];
    let part = PART_BYTES / size_of::<u64>();
    let read = |part: &[u64]| _ = black_box(part.iter().fold(0, |sum, word| sum ^ word));
    BUFFER_BYTES as f64 / best(|| backend.shared.threads.for_each(words.chunks(part), read))
}

/// Float32 operations per second of the backend's threads together when they do nothing but multiply and add in the
/// backend's instruction set: the limit of vision and prefill with float32 weights.
pub fn multiply_add_peak(backend: &CpuBackend) -> f64 {
    let (_, f32) = peaks(backend).next().expect("every instruction set multiplies float32");
    f32
}

/// Operations per second of the backend's threads together for every kind of arithmetic that the backend's instruction
/// set has, `f32` first, then `bf16` and `int8` where there are such instructions: the limits of vision and prefill.
pub fn peaks(backend: &CpuBackend) -> impl Iterator<Item = (&'static str, f64)> {
    // Many small parts: a thread that is held up leaves its share to the others.
    let parts = 16 * backend.threads();
    backend.shared.kernels.peaks().map(move |peak| {
        let operations = parts * peak.run(ROUNDS);
        let seconds = best(|| backend.shared.threads.for_each(0..parts, |_| _ = peak.run(ROUNDS)));
        (peak.name(), operations as f64 / seconds)
    })
}

/// Seconds that an operation spends on bringing all threads to work and back when they are awake: the price of one
/// parallel region, of which a decode step has a hundred or two.
pub fn region_overhead(backend: &CpuBackend) -> f64 {
    let _awake = backend.begin_step();
    let threads = &backend.shared.threads;
    let region = || {
        let (start, arrived) = (Instant::now(), AtomicUsize::new(0));
        threads.for_each(0..threads.len(), |_| {
            arrived.fetch_add(1, Ordering::Relaxed);
            // Only a thread that waits leaves a part for every other one.
            while arrived.load(Ordering::Relaxed) < threads.len() && start.elapsed() < LATE {
                std::hint::spin_loop();
            }
        });
    };
    best(|| (0..REGIONS).for_each(|_| region())) / REGIONS as f64
}

/// What a matrix product comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// How the weights are held: `f32`, `bf16`, `q8`, `q4`.
    pub weights: &'static str,
    /// Rows that are multiplied with them.
    pub rows: usize,
    /// Operations per second, a multiply-add counted as two.
    pub operations_per_second: f64,
    /// Bytes of weights per second.
    pub bytes_per_second: f64,
}

/// Inputs and outputs of the matrices of [`products`].
pub const PRODUCT_SHAPE: [usize; 2] = [1536, 8960];

/// Products of rows with matrices of [`PRODUCT_SHAPE`] in every precision: many rows, where arithmetic is the limit, and
/// one row, with so many matrices that no cache holds them, where reading is. Takes some seconds and 512 MiB.
pub fn products(backend: &CpuBackend) -> impl Iterator<Item = Product> {
    let forms = ["f32", "bf16", "q8", "q4"];
    let pairs = [MANY_ROWS, 1].into_iter().flat_map(move |rows| forms.map(|weights| (weights, rows)));
    pairs.map(|(weights, rows)| product(backend, weights, rows))
}

fn product(backend: &CpuBackend, weights: &'static str, rows: usize) -> Product {
    let [inputs, outputs] = PRODUCT_SHAPE;
    let data = matrix(weights);
    let bytes = data.byte_len();
    let count = if rows == 1 { (BUFFER_BYTES / 2).div_ceil(bytes) } else { 1 };
    let held = |_| backend.weight(copied(&data)).expect("the backend takes its own forms");
    let matrices: Vec<CpuWeight> = (0..count).map(held).collect();
    let x = backend.upload(&(0..rows * inputs).map(|idx| (idx % 251) as f32 / 125.0 - 1.0).collect::<Vec<_>>());
    let _awake = backend.begin_step();
    let call = || matrices.iter().for_each(|matrix| _ = backend.linear(&x, rows, matrix, Epilogue::none()));
    let seconds = best(call) / count as f64;
    Product {
        weights,
        rows,
        operations_per_second: 2.0 * (rows * inputs * outputs) as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
    }
}

/// Floats in memory of their own; codes get it when they are packed.
fn copied(data: &WeightData) -> WeightData {
    match data {
        WeightData::Grouped(data) => WeightData::Grouped(data.clone()),
        WeightData::Float(data) => {
            let bytes = SharedBytes::from(data.bytes().to_vec());
            let copy = TensorData::new(data.dtype(), data.shape().to_vec(), bytes);
            WeightData::Float(copy.expect("as many bytes as before"))
        }
    }
}

/// A matrix of [`PRODUCT_SHAPE`].
fn matrix(weights: &str) -> WeightData {
    let [inputs, outputs] = PRODUCT_SHAPE;
    let values = |rows: usize| (0..rows * inputs).map(|idx| (idx % 127) as f32 / 64.0 - 1.0);
    let floats = |dtype, bytes: Vec<u8>| {
        TensorData::new(dtype, vec![outputs, inputs], SharedBytes::from(bytes))
            .expect("as many bytes as the shape says")
    };
    let codes = |bits| {
        // A few rows, again and again: speed does not depend on the values.
        let rows = 64;
        let few = TensorData::from_f32(vec![rows, inputs], &values(rows).collect::<Vec<_>>()).expect("a whole matrix");
        let layout = GroupedLayout::preferred(bits, inputs);
        let part = GroupedTensor::quantize(&few, layout, 0..rows).expect("a float matrix").expect("values in range");
        GroupedTensor::stack(&vec![part; outputs / rows]).expect("parts of one layout")
    };
    match weights {
        "q8" => WeightData::Grouped(codes(CodeBits::Eight)),
        "q4" => WeightData::Grouped(codes(CodeBits::Four)),
        // The upper half of a float32 is a bfloat16.
        "bf16" => {
            let halves = values(outputs).flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes());
            WeightData::Float(floats(Dtype::BF16, halves.collect()))
        }
        _ => WeightData::Float(floats(Dtype::F32, values(outputs).flat_map(f32::to_le_bytes).collect())),
    }
}

/// Seconds of a good call: of all calls within 200 ms, a tenth was faster. On a busy machine that is what comes closest
/// to the code's own time.
pub fn best(mut call: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < BUDGET || times.len() < 5 {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 10]
}

const REGIONS: usize = 20;
const LATE: Duration = Duration::from_millis(1);
const BUDGET: Duration = Duration::from_millis(200);
const BUFFER_BYTES: usize = 512 << 20;
const PART_BYTES: usize = 4 << 20;
/// Some tens of microseconds of work.
const ROUNDS: usize = 10_000;
/// The prompt of the product that is limited by arithmetic.
const MANY_ROWS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;

    #[test]
    fn limits_are_plausible() {
        let backend = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
        assert!((0.0..1e-2).contains(&region_overhead(&backend)));
        for limit in [read_bandwidth(&backend), multiply_add_peak(&backend)] {
            assert!((1e7..1e16).contains(&limit), "{limit}");
        }
    }

    #[test]
    fn every_precision_has_a_product() {
        let backend = CpuBackend::new(CpuOptions { threads: Some(2), isa: None, ..CpuOptions::default() }).unwrap();
        let [inputs, outputs] = PRODUCT_SHAPE;
        for (weights, bits) in [("f32", 32.0), ("bf16", 16.0), ("q8", 8.5), ("q4", 4.5)] {
            let data = matrix(weights);
            assert_eq!(data.shape(), [outputs, inputs], "{weights}");
            assert_eq!(data.byte_len() as f64 * 8.0, bits * (inputs * outputs) as f64, "{weights}");
        }
        let product = product(&backend, "q8", 4);
        assert!((1e7..1e16).contains(&product.operations_per_second), "{product:?}");
        // Four rows: eight operations for every weight of 8.5 bits.
        let ratio = product.operations_per_second / product.bytes_per_second;
        assert!((ratio - 8.0 / (8.5 / 8.0)).abs() < 1e-9, "{product:?}");
    }
}
