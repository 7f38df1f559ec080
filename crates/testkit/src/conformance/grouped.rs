//! Rows of the table for matrices of codes: a backend may round the activations that meet them to 8 bits.

use half::f16;
use ocelli_backend::{Activation, Backend, Epilogue};
use ocelli_formats::{CodeBits, Dtype, GroupedLayout, GroupedTensor, WeightData};

use super::{matrix, pair};
use crate::{Random, ReferenceBackend};

pub(super) fn conformance<B: Backend>(backend: &B) {
    let mut random = Random::new(12);
    for bits in [CodeBits::Four, CodeBits::Eight] {
        for group in [32, 64] {
            linear(backend, &mut random, bits, group);
            swiglu(backend, &mut random, bits, group);
            embed(backend, &mut random, bits, group);
        }
    }
}

/// With and without an epilogue; beside a product with floats of the same x; a row alone as in a batch.
fn linear<B: Backend>(backend: &B, random: &mut Random, bits: CodeBits, group: usize) {
    for (rows, n_in, n_out) in [(1, 1, 1), (1, 64, 96), (3, 100, 7), (5, 576, 130), (1, 400, 333), (70, 160, 50)] {
        let weight = WeightData::from(codes(random, bits, group, n_out, n_in));
        let floats = matrix(random, Dtype::BF16, 40, n_in);
        let x = random.values(rows * n_in);
        let (bias, residual) = (random.values(n_out), random.values(rows * n_out));
        let (on_x, on_bias, on_residual) = (backend.upload(&x), backend.upload(&bias), backend.upload(&residual));
        let on_weight = backend.weight(weight.clone()).expect("a matrix of codes");
        let on_floats = backend.weight(floats.into()).expect("a float matrix");

        let plain = ReferenceBackend.weight(weight.clone()).expect("a matrix of codes");
        let expected = ReferenceBackend.linear(&x, rows, &plain, Epilogue::none());
        let fused = Epilogue { bias: Some(&bias), activation: Activation::Silu, residual: Some(&residual) };
        let expected_fused = ReferenceBackend.linear(&x, rows, &plain, fused);
        let fused = Epilogue { bias: Some(&on_bias), activation: Activation::Silu, residual: Some(&on_residual) };
        let products = [(&on_weight, Epilogue::none()), (&on_floats, Epilogue::none()), (&on_weight, fused)];
        let actual = backend.linears(&on_x, rows, &products);

        let case = format!("linear {rows}x{n_in}x{n_out} {bits:?}/{group}");
        let tolerance = rounding(&weight.to_f32().expect("numbers"), n_in);
        pair(backend, &case).check_absolute(&actual[0], &expected, tolerance);
        // No slope of the activation is steeper than 1.1.
        pair(backend, format!("{case} fused")).check_absolute(&actual[2], &expected_fused, 1.1 * tolerance);
        let alone = backend.linear(&on_x, rows, &on_floats, Epilogue::none());
        pair(backend, format!("{case}, floats beside")).check(&actual[1], &backend.download(&alone), 0.0);
        let together = backend.download(&actual[0]);
        let last = backend.upload(&x[(rows - 1) * n_in..]);
        let alone = backend.linear(&last, 1, &on_weight, Epilogue::none());
        pair(backend, format!("{case}, a row alone")).check(&alone, &together[(rows - 1) * n_out..], 0.0);
        // Within a panel of any backend, and between two.
        for first in [n_out / 3, n_out / 64 * 32] {
            let parts = backend.linear_parts(&on_x, rows, &on_weight, fused, &[first, n_out - first]);
            for (part, columns) in parts.iter().zip([0..first, first..n_out]) {
                let expected = backend.download(&backend.columns(&actual[2], n_out, columns));
                pair(backend, format!("{case}, cut at {first}")).check(part, &expected, 0.0);
            }
        }
    }
}

fn swiglu<B: Backend>(backend: &B, random: &mut Random, bits: CodeBits, group: usize) {
    for (rows, n_in, n_out) in [(1, 33, 7), (1, 320, 215), (4, 64, 100), (40, 96, 130)] {
        let x: Vec<f32> = random.values(rows * n_in);
        let [gate, up] = [(); 2].map(|()| WeightData::from(codes(random, bits, group, n_out, n_in)));
        let of = |data: &WeightData| ReferenceBackend.weight(data.clone()).expect("a matrix of codes");
        let expected = ReferenceBackend.swiglu(&x, rows, &of(&gate), &of(&up));
        let largest = |weight: &WeightData| {
            let product = ReferenceBackend.linear(&x, rows, &of(weight), Epilogue::none());
            product.iter().fold(0.0f32, |largest, value| largest.max(value.abs()))
        };
        let error = |weight: &WeightData| rounding(&weight.to_f32().expect("numbers"), n_in);
        let tolerance = 1.1 * error(&gate) * largest(&up) + (error(&up) + 1e-6) * (largest(&gate) + 1.1 * error(&gate));
        let on = |data: WeightData| backend.weight(data).expect("a matrix of codes");
        let actual = backend.swiglu(&backend.upload(&x), rows, &on(gate), &on(up));
        pair(backend, format!("swiglu {rows}x{n_in}x{n_out} {bits:?}/{group}"))
            .check_absolute(&actual, &expected, tolerance);
    }
}

fn embed<B: Backend>(backend: &B, random: &mut Random, bits: CodeBits, group: usize) {
    let table = codes(random, bits, group, 37, 100);
    let ids = [0, 36, 15, 16, 16];
    let expected: Vec<f32> = ids.iter().flat_map(|&id| table.to_f32()[id as usize * 100..][..100].to_vec()).collect();
    let actual = backend.embed(&backend.weight(table.into()).expect("a matrix of codes"), &ids);
    pair(backend, format!("embed {bits:?}/{group}")).check(&actual, &expected, 1e-6);
}

/// How far a product with these weights may be off when each x, within ±1, is rounded to one of 255 values: six standard
/// deviations of a sum of independent errors, of which each is even within ± 1/254.
fn rounding(weights: &[f32], n_in: usize) -> f32 {
    let norms = weights.chunks(n_in).map(|row| row.iter().map(|weight| weight * weight).sum::<f32>().sqrt());
    norms.fold(0.0, f32::max) * (6.0 / 254.0 / 3f32.sqrt() + 1e-5)
}

/// Any codes, with scales of either sign and offsets that centre them more or less.
fn codes(random: &mut Random, bits: CodeBits, group: usize, n_out: usize, n_in: usize) -> GroupedTensor {
    let layout = GroupedLayout::new(bits, n_in, group).expect("32 or 64");
    let mut codes: Vec<u8> = (0..n_out * layout.row_bytes()).map(|_| random.bits() as u8).collect();
    for row in codes.chunks_exact_mut(layout.row_bytes()) {
        // Filling is code 0.
        row[n_in.div_ceil(bits.per_byte())..].fill(0);
        if bits == CodeBits::Four && n_in % 2 == 1 {
            row[n_in / 2] &= 15;
        }
    }
    let scales: Vec<f16> = (0..n_out * layout.groups()).map(|_| f16::from_f32(random.value() * 0.01)).collect();
    let middle = |scale: &f16| f16::from_f32(-scale.to_f32() * f32::from(bits.max()) * 0.45);
    let offsets = scales.iter().map(middle).collect();
    GroupedTensor::new(layout, n_out, codes.into(), scales, offsets).expect("as long as the layout says")
}
