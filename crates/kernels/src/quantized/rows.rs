//! Activations in 8 bits: one scale per row and group of inputs.

use super::MOST_GROUP;
use crate::dispatch::Kernels;
use crate::simd::Simd;

/// Quantised activations: `x = code * scale`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRows<'a> {
    /// `[rows, inputs padded to whole groups]`, -127 to 127, zeros behind the last input.
    pub codes: &'a [i8],
    /// `[rows, groups]`: largest magnitude / 127; 0 for a group of zeros, NaN if one of the group is not finite.
    pub scales: &'a [f32],
    /// `[rows, groups]`: scale · sum of the codes.
    pub sums: &'a [f32],
}

/// Where quantised activations are written, all of them or some rows: parts as in [`QuantizedRows`].
#[derive(Debug)]
pub struct QuantizedRowsMut<'a> {
    /// Inputs per group: 32 or 64.
    pub group: usize,
    /// `[rows, inputs padded to whole groups]`.
    pub codes: &'a mut [i8],
    /// `[rows, groups]`.
    pub scales: &'a mut [f32],
    /// `[rows, groups]`.
    pub sums: &'a mut [f32],
}

impl Kernels {
    /// Quantises x `[rows, inputs]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[track_caller]
    pub fn quantize_rows(&self, x: &[f32], inputs: usize, out: QuantizedRowsMut<'_>) {
        assert!(matches!(out.group, 32 | 64), "groups of {}", out.group);
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "{} values are not rows of {inputs}", x.len());
        let groups = x.len() / inputs * inputs.div_ceil(out.group);
        assert_eq!(out.codes.len(), groups * out.group, "codes");
        assert_eq!(out.scales.len(), groups, "scales");
        assert_eq!(out.sums.len(), groups, "sums");
        (self.quantized.quantize)(x, inputs, out);
    }
}

/// Adding and subtracting it rounds to a whole number, ties to even; while it is added, the number is in the low bits.
const ROUNDER: f32 = 12_582_912.0;

const TWO_TO_100: f32 = 1.267_650_6e30;

#[inline(always)]
pub(crate) fn quantize<S: Simd>(simd: S, x: &[f32], inputs: usize, out: QuantizedRowsMut<'_>) {
    let group = out.group;
    let groups = inputs.div_ceil(group);
    let rows = x.chunks_exact(inputs).zip(out.codes.chunks_exact_mut(groups * group));
    let factors = out.scales.chunks_exact_mut(groups).zip(out.sums.chunks_exact_mut(groups));
    for ((x, codes), (scales, sums)) in rows.zip(factors) {
        let of_groups = x.chunks(group).zip(codes.chunks_exact_mut(group)).zip(scales.iter_mut().zip(sums));
        for ((x, codes), (scale, sum)) in of_groups {
            if x.len() == group {
                (*scale, *sum) = quantize_group(simd, x, codes);
            } else {
                let mut padded = [0.0; MOST_GROUP];
                padded[..x.len()].copy_from_slice(x);
                (*scale, *sum) = quantize_group(simd, &padded[..group], codes);
            }
        }
    }
}

/// Scale and sum of a whole group.
#[inline(always)]
fn quantize_group<S: Simd>(simd: S, x: &[f32], codes: &mut [i8]) -> (f32, f32) {
    let (chunks, _) = S::chunks(x);
    let (mut largest, mut check) = (simd.splat(0.0), simd.splat(0.0));
    for chunk in chunks {
        let x = simd.load(chunk);
        largest = simd.max(simd.abs(x), largest);
        // NaN as soon as one number is not finite.
        check = simd.add(check, simd.sub(x, x));
    }
    let largest = simd.largest(largest);
    let check = simd.sum(check);
    if largest == 0.0 || check.is_nan() {
        codes.fill(0);
        // What is not finite must reach the product.
        return if check.is_nan() { (f32::NAN, f32::NAN) } else { (0.0, 0.0) };
    }
    // The quotient of 127 and a very small number would not be finite.
    let before = if largest < 1e-30 { TWO_TO_100 } else { 1.0 };
    let (before, factor) = (simd.splat(before), simd.splat(127.0 / (largest * before)));
    let rounder = simd.splat(ROUNDER);
    let mut sum = simd.splat(0.0);
    for (chunk, codes) in chunks.iter().zip(codes.chunks_exact_mut(S::LANES)) {
        let shifted = simd.add(simd.mul(simd.mul(simd.load(chunk), before), factor), rounder);
        sum = simd.add(sum, simd.sub(shifted, rounder));
        let mut bits = S::ZERO_CHUNK;
        simd.store(shifted, &mut bits);
        for (code, value) in codes.iter_mut().zip(bits.as_ref()) {
            *code = value.to_bits() as u8 as i8;
        }
    }
    let scale = largest / 127.0;
    (scale, scale * simd.sum(sum))
}
