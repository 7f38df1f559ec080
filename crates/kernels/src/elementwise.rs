//! Sums and products of equally long slices.

use crate::dispatch::Kernels;
use crate::simd::Simd;

impl Kernels {
    /// `a + b`, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    #[track_caller]
    pub fn add(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        assert!(a.len() == b.len() && b.len() == out.len(), "{}, {}, {}", a.len(), b.len(), out.len());
        (self.add)(a, b, out);
    }

    /// `a * b`, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    #[track_caller]
    pub fn mul(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        assert!(a.len() == b.len() && b.len() == out.len(), "{}, {}, {}", a.len(), b.len(), out.len());
        (self.mul)(a, b, out);
    }
}

#[inline(always)]
pub(crate) fn add<S: Simd>(simd: S, a: &[f32], b: &[f32], out: &mut [f32]) {
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (S::chunks(a), S::chunks(b));
    let (outs, out_rest) = S::chunks_mut(out);
    for ((a, b), out) in a_chunks.iter().zip(b_chunks).zip(outs) {
        simd.store(simd.add(simd.load(a), simd.load(b)), out);
    }
    for ((a, b), out) in a_rest.iter().zip(b_rest).zip(out_rest) {
        *out = a + b;
    }
}

#[inline(always)]
pub(crate) fn mul<S: Simd>(simd: S, a: &[f32], b: &[f32], out: &mut [f32]) {
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (S::chunks(a), S::chunks(b));
    let (outs, out_rest) = S::chunks_mut(out);
    for ((a, b), out) in a_chunks.iter().zip(b_chunks).zip(outs) {
        simd.store(simd.mul(simd.load(a), simd.load(b)), out);
    }
    for ((a, b), out) in a_rest.iter().zip(b_rest).zip(out_rest) {
        *out = a * b;
    }
}

/// `values += other`.
#[inline(always)]
pub(crate) fn add_in_place<S: Simd>(simd: S, values: &mut [f32], other: &[f32]) {
    let (chunks, rest) = S::chunks_mut(values);
    let (other_chunks, other_rest) = S::chunks(other);
    for (value, other) in chunks.iter_mut().zip(other_chunks) {
        simd.store(simd.add(simd.load(value), simd.load(other)), value);
    }
    for (value, other) in rest.iter_mut().zip(other_rest) {
        *value += other;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{SIZES, bits, numbers};

    pub(crate) fn sums_and_products_are_exact(kernels: &Kernels) {
        for size in SIZES.into_iter().chain([0]) {
            let (mut a, mut b) = (numbers(1, size + 1), numbers(2, size + 1));
            a[size] = f32::INFINITY;
            b[size] = f32::NEG_INFINITY;
            // From the second element on: not aligned.
            let mut out = vec![0.0; size + 1];
            kernels.add(&a[1..], &b[1..], &mut out[1..]);
            let expected: Vec<f32> = a[1..].iter().zip(&b[1..]).map(|(a, b)| a + b).collect();
            let finite = size.saturating_sub(1);
            assert_eq!(bits(&out[1..][..finite]), bits(&expected[..finite]));
            assert!(size == 0 || out[size].is_nan());
            kernels.mul(&a[1..], &b[1..], &mut out[1..]);
            let expected: Vec<f32> = a[1..].iter().zip(&b[1..]).map(|(a, b)| a * b).collect();
            assert_eq!(bits(&out[1..]), bits(&expected));
        }
    }
}
