//! Softmax of one row.

use crate::dispatch::Kernels;
use crate::math::exp;
use crate::simd::Simd;

impl Kernels {
    /// `eˣ / Σ eˣ` over each row of `width` elements, in place.
    ///
    /// # Panics
    /// If the width does not divide the values.
    #[track_caller]
    pub fn softmax(&self, values: &mut [f32], width: usize) {
        assert!(width > 0 && values.len().is_multiple_of(width), "{} values are not rows of {width}", values.len());
        values.chunks_exact_mut(width).for_each(|row| (self.softmax)(row));
    }
}

#[inline(always)]
pub(crate) fn softmax<S: Simd>(simd: S, values: &mut [f32]) {
    let (_, sum) = exponentials(simd, values);
    let scale = 1.0 / sum;
    let (chunks, rest) = S::chunks_mut(values);
    for chunk in chunks {
        simd.store(simd.mul(simd.load(chunk), simd.splat(scale)), chunk);
    }
    for value in rest {
        *value *= scale;
    }
}

/// Replaces every value by `e^(value - largest)`; returns the largest one and their sum.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(simd: S, values: &mut [f32]) -> (f32, f32) {
    let largest_value = largest(simd, values);
    let largest = simd.splat(largest_value);
    let (chunks, rest) = S::chunks_mut(values);
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        let value = exp(simd, simd.sub(simd.load(chunk), largest));
        sums = simd.add(sums, value);
        simd.store(value, chunk);
    }
    let mut sum = simd.sum(sums);
    if !rest.is_empty() {
        simd.store_part(exp(simd, simd.sub(simd.load_part(rest), largest)), rest);
        for &mut value in rest {
            sum += value;
        }
    }
    (largest_value, sum)
}

/// The largest value; unspecified if one of them is NaN.
#[inline(always)]
pub(crate) fn largest<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let (chunks, rest) = S::chunks(values);
    let (twos, one) = chunks.as_chunks::<2>();
    let mut lanes = [simd.splat(f32::NEG_INFINITY); 2];
    for [first, second] in twos {
        lanes = [simd.max(simd.load(first), lanes[0]), simd.max(simd.load(second), lanes[1])];
    }
    for chunk in one {
        lanes[0] = simd.max(simd.load(chunk), lanes[0]);
    }
    let mut largest = simd.largest(simd.max(lanes[0], lanes[1]));
    for &value in rest {
        largest = if value > largest { value } else { largest };
    }
    largest
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{SIZES, assert_close, numbers};

    pub(crate) fn follows_the_definition(kernels: &Kernels) {
        for width in SIZES.into_iter().chain([1000]) {
            for scale in [0.1, 10.0, 90.0] {
                let x: Vec<f32> = numbers(1, 2 * width).iter().map(|value| value * scale).collect();
                let mut out = x.clone();
                kernels.softmax(&mut out, width);
                for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                    let largest = x.iter().fold(f64::NEG_INFINITY, |largest, &x| largest.max(x.into()));
                    let total: f64 = x.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
                    for (&x, &out) in x.iter().zip(out) {
                        let distance = f64::from(x) - largest;
                        let expected = distance.exp() / total;
                        // The distance is rounded, and the exponential makes its error a relative one.
                        let accuracy = 1e-6 - distance * f64::from(f32::EPSILON) / 2.0;
                        assert_close(out, expected, accuracy * expected + 1e-42, (width, scale));
                    }
                }
            }
        }
    }

    pub(crate) fn extreme_rows_are_kept(kernels: &Kernels) {
        for width in [2, 16, 19, 40] {
            // What is hidden weighs nothing, exactly.
            let mut x = vec![f32::NEG_INFINITY; width];
            x[1] = 3e38;
            kernels.softmax(&mut x, width);
            assert!(x.iter().enumerate().all(|(at, &value)| value == if at == 1 { 1.0 } else { 0.0 }), "{x:?}");
            let mut x = vec![-3e38; width];
            kernels.softmax(&mut x, width);
            assert!(x.iter().all(|&value| (value - 1.0 / width as f32).abs() < 1e-7), "{x:?}");
            let mut x = vec![0.0; width];
            x[width - 1] = f32::NAN;
            kernels.softmax(&mut x, width);
            assert!(x.iter().all(|value| value.is_nan()), "{x:?}");
        }
    }
}
