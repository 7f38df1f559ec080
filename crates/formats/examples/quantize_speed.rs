//! How many weights per second one thread quantises, and how much error it leaves: `cargo run --release -p
//! ocelli-formats --example quantize_speed`.
#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::time::Instant;

use ocelli_formats::{CodeBits, Dtype, GroupedLayout, GroupedTensor, TensorData};

fn main() {
    let weights = TensorData::new(Dtype::BF16, vec![ROWS, INPUTS], numbers().into()).expect("as many bytes");
    let values = weights.to_f32().expect("floats");
    let power: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    for (name, bits, group) in
        [("q8/64", CodeBits::Eight, 64), ("q4/64", CodeBits::Four, 64), ("q4/32", CodeBits::Four, 32)]
    {
        let layout = GroupedLayout::new(bits, INPUTS, group).expect("an allowed group");
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            let quantized = GroupedTensor::quantize(&weights, layout, 0..ROWS).expect("a matrix").expect("small");
            best = best.min(start.elapsed().as_secs_f64());
            std::hint::black_box(quantized);
        }
        let decoded = GroupedTensor::quantize(&weights, layout, 0..ROWS).expect("a matrix").expect("small").to_f32();
        let left: f64 = values.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let rate = (ROWS * INPUTS) as f64 / best / 1e6;
        println!("{name}: {rate:.0} M weights/s, error {:.3e} of the weights' power", left / power);
    }
}

/// Sums of uniform numbers, nearly normal, as bf16.
fn numbers() -> Vec<u8> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut next = || 0.02 * (0..12).map(|_| uniform()).sum::<f32>();
    (0..ROWS * INPUTS).flat_map(|_| half::bf16::from_f32(next()).to_le_bytes()).collect()
}

const ROWS: usize = 32;
const INPUTS: usize = 2048;
