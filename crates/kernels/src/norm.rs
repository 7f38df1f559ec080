//! Normalisation of rows: RMS norm and layer norm. Two passes over a row that stays in the first cache.

use crate::dispatch::Kernels;
use crate::simd::Simd;

impl Kernels {
    /// `x / sqrt(mean(x²) + eps) * weight` over each row of `weight.len()` elements.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        check(x, weight, out);
        (self.rms_norm)(x, weight, eps, out);
    }

    /// `(x - mean) / sqrt(variance + eps) * weight + bias` over each row of `weight.len()` elements.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        check(x, weight, out);
        assert_eq!(weight.len(), bias.len(), "weight and bias differ");
        (self.layer_norm)(x, weight, bias, eps, out);
    }
}

#[track_caller]
fn check(x: &[f32], weight: &[f32], out: &[f32]) {
    let width = weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values are not rows of {width}", x.len());
    assert_eq!(x.len(), out.len(), "input and output differ");
}

#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let (weights, weight_rest) = S::chunks(weight);
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean_square = sum_of_squares(simd, x, 0.0) / width as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        let (xs, x_rest) = S::chunks(x);
        let (outs, out_rest) = S::chunks_mut(out);
        for ((x, weight), out) in xs.iter().zip(weights).zip(outs) {
            simd.store(simd.mul(simd.mul(simd.load(x), simd.splat(scale)), simd.load(weight)), out);
        }
        for ((x, weight), out) in x_rest.iter().zip(weight_rest).zip(out_rest) {
            *out = x * scale * weight;
        }
    }
}

#[inline(always)]
pub(crate) fn layer_norm<S: Simd>(simd: S, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let ((weights, weight_rest), (biases, bias_rest)) = (S::chunks(weight), S::chunks(bias));
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum(simd, x) / width as f32;
        let variance = sum_of_squares(simd, x, mean) / width as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        let (xs, x_rest) = S::chunks(x);
        let (outs, out_rest) = S::chunks_mut(out);
        for (((x, weight), bias), out) in xs.iter().zip(weights).zip(biases).zip(outs) {
            let normal = simd.mul(simd.sub(simd.load(x), simd.splat(mean)), simd.splat(scale));
            simd.store(simd.mul_add(normal, simd.load(weight), simd.load(bias)), out);
        }
        for (((x, weight), bias), out) in x_rest.iter().zip(weight_rest).zip(bias_rest).zip(out_rest) {
            *out = (x - mean) * scale * weight + bias;
        }
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (chunks, rest) = S::chunks(x);
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        sums = simd.add(sums, simd.load(chunk));
    }
    let mut sum = simd.sum(sums);
    for value in rest {
        sum += value;
    }
    sum
}

/// `Σ (x - mean)²`.
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, x: &[f32], mean: f32) -> f32 {
    let (chunks, rest) = S::chunks(x);
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        let value = simd.sub(simd.load(chunk), simd.splat(mean));
        sums = simd.mul_add(value, value, sums);
    }
    let mut sum = simd.sum(sums);
    for value in rest {
        sum += (value - mean) * (value - mean);
    }
    sum
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{SIZES, assert_close, numbers};

    pub(crate) fn norms_follow_their_definitions(kernels: &Kernels) {
        for width in SIZES.into_iter().chain([576, 4096]) {
            let x: Vec<f32> = numbers(1, 3 * width).iter().map(|value| value * 3.0 + 0.5).collect();
            let (weight, bias) = (numbers(2, width), numbers(3, width));
            check(kernels, &x, &weight, &bias, 1e-5);
        }
    }

    pub(crate) fn extreme_rows_are_normalised(kernels: &Kernels) {
        let width = 37;
        let (weight, bias) = (numbers(2, width), numbers(3, width));
        for scale in [0.0, 1e-18, 1e15] {
            let x: Vec<f32> = numbers(1, width).iter().map(|value| value * scale).collect();
            check(kernels, &x, &weight, &bias, 1e-6);
        }
        // A row of NaN stays alone.
        let mut x = numbers(1, 3 * width);
        x[width + 5] = f32::NAN;
        let mut out = vec![0.0; x.len()];
        kernels.rms_norm(&x, &weight, 1e-5, &mut out);
        assert!(out.iter().enumerate().all(|(at, value)| value.is_nan() == (at / width == 1)));
        kernels.layer_norm(&x, &weight, &bias, 1e-5, &mut out);
        assert!(out.iter().enumerate().all(|(at, value)| value.is_nan() == (at / width == 1)));
    }

    fn check(kernels: &Kernels, x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let width = weight.len();
        let (mut rms, mut layer) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        kernels.rms_norm(x, weight, eps, &mut rms);
        kernels.layer_norm(x, weight, bias, eps, &mut layer);
        let accuracy = f64::from(f32::EPSILON) * (4.0 + (width as f64).sqrt());
        for (row, (rms, layer)) in x.chunks(width).zip(rms.chunks(width).zip(layer.chunks(width))) {
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
            let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width as f64;
            // The mean is rounded to float32 once; what is left of a row is exact only to that.
            let deviation = (variance + f64::from(eps)).sqrt();
            let largest = row.iter().fold(0.0, |largest: f64, &x| largest.max(f64::from(x).abs()));
            for at in 0..width {
                let (x, w, b) = (f64::from(row[at]), f64::from(weight[at]), f64::from(bias[at]));
                let expected = x / (square + f64::from(eps)).sqrt() * w;
                assert_close(rms[at], expected, accuracy * expected.abs() + 1e-40, (width, at));
                let expected = (x - mean) / deviation * w + b;
                let tolerance = accuracy * (1.0 + largest / deviation);
                assert_close(layer[at], expected, tolerance, (width, at));
            }
        }
    }
}
