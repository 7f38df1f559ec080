//! Exponential and normal distribution, lane by lane, to about one unit in the last place.

use crate::simd::Simd;

/// `eˣ`: 0 below -104, infinity above 88.8, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    exp_of_sum(simd, x, simd.splat(0.0))
}

/// `e^(high + low)` for a `low` of less than 4: keeps what the rounded sum would lose.
///
/// With n the integer nearest to `(high + low) / ln 2`, the result is `2ⁿ · eʳ` with `|r| <= ln 2 / 2`; ln 2 is split
/// in two so that `n · ln 2` is exact, and `eʳ` is the degree 6 polynomial of the Cephes library.
#[inline(always)]
pub(crate) fn exp_of_sum<S: Simd>(simd: S, high: S::F32, low: S::F32) -> S::F32 {
    // The operand order lets NaN through.
    let high = simd.min(simd.splat(100.0), simd.max(simd.splat(-110.0), high));
    let n = simd.round(simd.mul(simd.add(high, low), simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.mul_add(n, simd.splat(-0.693_359_4), high);
    let r = simd.add(simd.mul_add(n, simd.splat(2.121_944_4e-4), r), low);
    let mut p = simd.splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = simd.mul_add(p, r, simd.splat(coefficient));
    }
    let p = simd.mul_add(simd.mul(p, r), r, r);
    simd.scale_by_power(simd.add(p, simd.splat(1.0)), n)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.splat(0.0), x))))
}

/// The probability that a standard normal variable is below `x`: `(1 + erf(x / √2)) / 2`.
///
/// Computed from erfc, so that it keeps its relative accuracy far below zero, where `1 + erf` is all cancellation.
/// The approximation is the Chebyshev fit of Numerical Recipes (section 6.2): `erfc(z) = t · e^(P(t) - z²)` with
/// `t = 1 / (1 + z/2)`, relative error below 1.2e-7. Here `z² = x²/2`, kept in two parts (where the processor fuses).
#[inline(always)]
pub(crate) fn normal_cdf<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    let size = simd.min(simd.splat(20.0), simd.abs(x));
    let t = simd.div(one, simd.mul_add(size, simd.splat(0.5 * std::f32::consts::FRAC_1_SQRT_2), one));
    let mut p = simd.splat(0.170_872_77);
    for coefficient in [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_08,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = simd.mul_add(p, t, simd.splat(coefficient));
    }
    let half = simd.mul(simd.splat(-0.5), size);
    let high = simd.mul(half, size);
    let rest = simd.mul_add(half, size, simd.sub(simd.splat(0.0), high));
    let tail = simd.mul(simd.mul(t, simd.splat(0.5)), exp_of_sum(simd, high, simd.add(p, rest)));
    simd.where_negative(x, tail, simd.sub(one, tail))
}
