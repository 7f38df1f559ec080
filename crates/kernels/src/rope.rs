//! Rotary position embedding: pairs of elements of a head are turned by an angle that grows with the position.

use crate::dispatch::Kernels;
use crate::simd::Simd;

impl Kernels {
    /// Turns element `i` with `i + D/2` of every head: `x` and `out` are `[rows, heads, D]`, `cos` and `sin` are
    /// `[rows, D/2]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn rope_halves(&self, x: &[f32], dims: RopeDims, cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let RopeDims { heads, head_dim } = dims;
        let (half, row) = (head_dim / 2, heads * head_dim);
        assert!(row > 0 && head_dim.is_multiple_of(2), "{dims:?} cannot be turned");
        assert_eq!(x.len() * half, cos.len() * row, "{} values and {} angles of {dims:?}", x.len(), cos.len());
        assert!(x.len() == out.len() && cos.len() == sin.len(), "{} and {} values", x.len(), out.len());
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for ((x, out), (cos, sin)) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)).zip(angles) {
            (self.rope_halves)(x, heads, cos, sin, out);
        }
    }
}

/// Sizes of [`Kernels::rope_halves`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeDims {
    /// Heads per row.
    pub heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
}

/// One row.
#[inline(always)]
pub(crate) fn rope_halves<S: Simd>(simd: S, x: &[f32], heads: usize, cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let ((cosines, cos_rest), (sines, sin_rest)) = (S::chunks(cos), S::chunks(sin));
    for head in 0..heads {
        let (x_low, x_high) = x[head * 2 * half..][..2 * half].split_at(half);
        let (out_low, out_high) = out[head * 2 * half..][..2 * half].split_at_mut(half);
        let ((lows, low_rest), (highs, high_rest)) = (S::chunks(x_low), S::chunks(x_high));
        let (out_lows, out_low_rest) = S::chunks_mut(out_low);
        let (out_highs, out_high_rest) = S::chunks_mut(out_high);
        let turned = out_lows.iter_mut().zip(out_highs);
        for ((((low, high), cos), sin), (out_low, out_high)) in
            lows.iter().zip(highs).zip(cosines).zip(sines).zip(turned)
        {
            let (low, high, cos, sin) = (simd.load(low), simd.load(high), simd.load(cos), simd.load(sin));
            let minus_sin = simd.sub(simd.splat(0.0), sin);
            simd.store(simd.mul_add(high, minus_sin, simd.mul(low, cos)), out_low);
            simd.store(simd.mul_add(low, sin, simd.mul(high, cos)), out_high);
        }
        for i in 0..cos_rest.len() {
            out_low_rest[i] = low_rest[i] * cos_rest[i] - high_rest[i] * sin_rest[i];
            out_high_rest[i] = high_rest[i] * cos_rest[i] + low_rest[i] * sin_rest[i];
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{assert_close, numbers};

    pub(crate) fn pairs_are_turned(kernels: &Kernels) {
        for (rows, heads, head_dim) in [(1, 1, 2), (2, 3, 10), (3, 2, 32), (2, 9, 64), (1, 4, 72), (2, 1, 128)] {
            let half = head_dim / 2;
            let x = numbers(1, rows * heads * head_dim);
            let (sin, cos): (Vec<f32>, Vec<f32>) = numbers(2, rows * half).iter().map(|a| (a * 9.0).sin_cos()).unzip();
            let mut out = vec![f32::NAN; x.len()];
            kernels.rope_halves(&x, RopeDims { heads, head_dim }, &cos, &sin, &mut out);
            for (at, &out) in out.iter().enumerate() {
                let (head, i) = (at / head_dim * head_dim, at % head_dim);
                let angle = at / (heads * head_dim) * half + i % half;
                let (low, high) = (f64::from(x[head + i % half]), f64::from(x[head + i % half + half]));
                let (cos, sin) = (f64::from(cos[angle]), f64::from(sin[angle]));
                let expected = if i < half { low * cos - high * sin } else { high * cos + low * sin };
                assert_close(out, expected, 2e-7, (rows, heads, head_dim, at));
            }
        }
    }
}
