//! Rotary position embedding: pairs of elements of a head are turned by an angle that grows with the position.

use crate::dispatch::Kernels;
use crate::simd::Simd;

/// Sizes of [`Kernels::rope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeDims {
    /// Heads per row.
    pub heads: usize,
    /// D: elements per head.
    pub head_dim: usize,
    /// P: pairs per head that are turned, from the first elements on; what is behind them stays.
    pub pairs: usize,
    /// Which elements make a pair.
    pub pairing: RopePairing,
}

/// Which elements turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `i` and `i + P` (Llama and Qwen as published on the hub).
    Halves,
    /// `2i` and `2i + 1` (the paper, DeepSeek).
    Adjacent,
}

impl Kernels {
    /// Turns the pairs of every head: `x` and `out` are `[rows, heads, D]`, `cos` and `sin` are `[rows, P]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn rope(&self, x: &[f32], dims: RopeDims, cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let RopeDims { heads, head_dim, pairs, .. } = dims;
        let row = heads * head_dim;
        assert!(row > 0 && pairs > 0 && 2 * pairs <= head_dim, "{dims:?} cannot be turned");
        assert_eq!(x.len() * pairs, cos.len() * row, "{} values and {} angles of {dims:?}", x.len(), cos.len());
        assert!(x.len() == out.len() && cos.len() == sin.len(), "{} and {} values", x.len(), out.len());
        let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
        for ((x, out), (cos, sin)) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)).zip(angles) {
            (self.rope)(x, dims, cos, sin, out);
        }
    }
}

/// One row.
#[inline(always)]
pub(crate) fn rope<S: Simd>(simd: S, x: &[f32], dims: RopeDims, cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let turned = 2 * dims.pairs;
    for (x, out) in x.chunks_exact(dims.head_dim).zip(out.chunks_exact_mut(dims.head_dim)) {
        match dims.pairing {
            RopePairing::Halves => turn_halves(simd, &x[..turned], cos, sin, &mut out[..turned]),
            RopePairing::Adjacent => turn_adjacent(&x[..turned], cos, sin, &mut out[..turned]),
        }
        out[turned..].copy_from_slice(&x[turned..]);
    }
}

#[inline(always)]
fn turn_halves<S: Simd>(simd: S, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let ((cosines, cos_rest), (sines, sin_rest)) = (S::chunks(cos), S::chunks(sin));
    let ((x_low, x_high), (out_low, out_high)) = (x.split_at(half), out.split_at_mut(half));
    let ((lows, low_rest), (highs, high_rest)) = (S::chunks(x_low), S::chunks(x_high));
    let (out_lows, out_low_rest) = S::chunks_mut(out_low);
    let (out_highs, out_high_rest) = S::chunks_mut(out_high);
    let turned = out_lows.iter_mut().zip(out_highs);
    for ((((low, high), cos), sin), (out_low, out_high)) in lows.iter().zip(highs).zip(cosines).zip(sines).zip(turned) {
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

/// Few elements, and those of few models: left to the compiler.
#[inline(always)]
fn turn_adjacent(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let ((x, _), (out, _)) = (x.as_chunks::<2>(), out.as_chunks_mut::<2>());
    for ((&[a, b], out), (cos, sin)) in x.iter().zip(out).zip(cos.iter().zip(sin)) {
        *out = [a * cos - b * sin, b * cos + a * sin];
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{assert_close, numbers};

    pub(crate) fn pairs_are_turned(kernels: &Kernels) {
        let sizes = [
            (1, 1, 2, 1),
            (2, 3, 10, 5),
            (3, 2, 32, 16),
            (2, 9, 64, 16),
            (1, 4, 72, 36),
            (2, 1, 128, 64),
            (2, 3, 9, 3),
        ];
        for (rows, heads, head_dim, pairs) in sizes {
            for pairing in [RopePairing::Halves, RopePairing::Adjacent] {
                let dims = RopeDims { heads, head_dim, pairs, pairing };
                let x = numbers(1, rows * heads * head_dim);
                let angles = numbers(2, rows * pairs);
                let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle * 9.0).sin_cos()).unzip();
                let mut out = vec![f32::NAN; x.len()];
                kernels.rope(&x, dims, &cos, &sin, &mut out);
                for (at, &out) in out.iter().enumerate() {
                    assert_close(out, turned(&x, dims, &cos, &sin, at), 2e-7, (dims, rows, at));
                }
            }
        }
    }

    /// Element `at` of the result, by the definition.
    fn turned(x: &[f32], dims: RopeDims, cos: &[f32], sin: &[f32], at: usize) -> f64 {
        let (head, i) = (at / dims.head_dim * dims.head_dim, at % dims.head_dim);
        if i >= 2 * dims.pairs {
            return x[at].into();
        }
        let (pair, is_first, first, second) = match dims.pairing {
            RopePairing::Halves => (i % dims.pairs, i < dims.pairs, i % dims.pairs, i % dims.pairs + dims.pairs),
            RopePairing::Adjacent => (i / 2, i % 2 == 0, i / 2 * 2, i / 2 * 2 + 1),
        };
        let angle = at / (dims.heads * dims.head_dim) * dims.pairs + pair;
        let (cos, sin) = (f64::from(cos[angle]), f64::from(sin[angle]));
        let (a, b) = (f64::from(x[head + first]), f64::from(x[head + second]));
        if is_first { a * cos - b * sin } else { b * cos + a * sin }
    }
}
