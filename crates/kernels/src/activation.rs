//! Element-wise functions of neural networks.

use crate::dispatch::Kernels;
use crate::math::{exp, normal_cdf, sigmoid};
use crate::simd::Simd;

/// A function that is applied to every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// `x/2 · (1 + erf(x/√2))`.
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`, NaN for NaN.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Kernels {
    /// Applies `activation` to every value.
    pub fn activate(&self, activation: Activation, values: &mut [f32]) {
        (self.activate)(activation, values);
    }

    /// `silu(gate) * up`, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    #[track_caller]
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && up.len() == out.len(), "{}, {}, {}", gate.len(), up.len(), out.len());
        (self.silu_mul)(gate, up, out);
    }
}

#[inline(always)]
pub(crate) fn activate<S: Simd>(simd: S, activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Gelu => apply::<S, Gelu>(simd, values),
        Activation::GeluTanh => apply::<S, GeluTanh>(simd, values),
        Activation::Silu => apply::<S, Silu>(simd, values),
        Activation::QuickGelu => apply::<S, QuickGelu>(simd, values),
        Activation::Relu => apply::<S, Relu>(simd, values),
        Activation::Sigmoid => apply::<S, Sigmoid>(simd, values),
    }
}

#[inline(always)]
pub(crate) fn silu_mul<S: Simd>(simd: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let ((gates, gate_rest), (ups, up_rest)) = (S::chunks(gate), S::chunks(up));
    let (outs, out_rest) = S::chunks_mut(out);
    for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
        simd.store(simd.mul(Silu::of(simd, simd.load(gate)), simd.load(up)), out);
    }
    let product = simd.mul(Silu::of(simd, simd.load_part(gate_rest)), simd.load_part(up_rest));
    simd.store_part(product, out_rest);
}

/// A function of one value.
trait Function<S: Simd> {
    fn of(simd: S, x: S::F32) -> S::F32;
}

struct Gelu;

impl<S: Simd> Function<S> for Gelu {
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> S::F32 {
        simd.mul(x, normal_cdf(simd, x))
    }
}

/// By the identity `(1 + tanh u) / 2 = sigmoid(2u)`.
struct GeluTanh;

impl<S: Simd> Function<S> for GeluTanh {
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> S::F32 {
        let cubic = simd.mul_add(simd.mul(x, x), simd.splat(0.044_715), simd.splat(1.0));
        let twice_u = simd.mul(simd.mul(x, cubic), simd.splat(2.0 * 0.797_884_6));
        simd.mul(x, sigmoid(simd, twice_u))
    }
}

struct Silu;

impl<S: Simd> Function<S> for Silu {
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> S::F32 {
        simd.div(x, simd.add(simd.splat(1.0), exp(simd, simd.sub(simd.splat(0.0), x))))
    }
}

struct QuickGelu;

impl<S: Simd> Function<S> for QuickGelu {
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> S::F32 {
        simd.mul(x, sigmoid(simd, simd.mul(x, simd.splat(1.702))))
    }
}

struct Relu;

impl<S: Simd> Function<S> for Relu {
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> S::F32 {
        simd.max(simd.splat(0.0), x)
    }
}

struct Sigmoid;

impl<S: Simd> Function<S> for Sigmoid {
    #[inline(always)]
    fn of(simd: S, x: S::F32) -> S::F32 {
        sigmoid(simd, x)
    }
}

#[inline(always)]
fn apply<S: Simd, F: Function<S>>(simd: S, values: &mut [f32]) {
    let (chunks, rest) = S::chunks_mut(values);
    for chunk in chunks {
        simd.store(F::of(simd, simd.load(chunk)), chunk);
    }
    if !rest.is_empty() {
        simd.store_part(F::of(simd, simd.load_part(rest)), rest);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{SIZES, assert_close, numbers};

    pub(crate) fn functions_follow_their_definitions(kernels: &Kernels) {
        for activation in ALL {
            // All magnitudes of both signs, in steps that no register divides.
            let inputs: Vec<f32> = (-60_003..60_000).map(|step| step as f32 / 5000.0).collect();
            let mut outputs = inputs.clone();
            kernels.activate(activation, &mut outputs);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                let expected = definition(activation, f64::from(x));
                // Far below zero all three are exponentials, which make the error of the exponent a relative one.
                let exponent = -(expected.abs() / f64::from(x).abs().max(1e-9)).ln().min(0.0);
                let accuracy = 1e-6 + 3.0 * exponent * f64::from(f32::EPSILON);
                assert_close(y, expected, accuracy * expected.abs() + 1e-37, (activation, x));
            }
        }
        let mut values = numbers(1, 21);
        let before = values.clone();
        kernels.activate(Activation::None, &mut values);
        assert_eq!(values, before);
    }

    pub(crate) fn extreme_values_are_kept(kernels: &Kernels) {
        let inputs = [f32::NAN, f32::INFINITY, 3e38, 1e20, 100.0, 0.0, -0.0, 1e-40, -1e-40, -200.0, -1e20, -3e38];
        for activation in ALL {
            for x in inputs {
                // Once in a whole register and once behind the last one.
                let mut values = [x; 17];
                kernels.activate(activation, &mut values);
                let expected = if x < -199.0 { 0.0 } else { definition(activation, f64::from(x)) };
                for y in values {
                    assert_close(y, expected, 1e-6 * expected.abs() + 1e-44, (activation, x));
                }
            }
        }
    }

    pub(crate) fn silu_mul_is_a_product(kernels: &Kernels) {
        for size in SIZES.into_iter().chain([0]) {
            let (gate, up) = (numbers(2, size), numbers(3, size));
            let gate: Vec<f32> = gate.iter().map(|value| value * 20.0).collect();
            let mut out = vec![f32::NAN; size];
            kernels.silu_mul(&gate, &up, &mut out);
            for ((&gate, &up), &out) in gate.iter().zip(&up).zip(&out) {
                let expected = definition(Activation::Silu, gate.into()) * f64::from(up);
                assert_close(out, expected, 2e-6 * expected.abs(), (size, gate, up));
            }
        }
    }

    const ALL: [Activation; 6] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Sigmoid,
    ];

    fn definition(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::None => x,
            Activation::Gelu => x * normal_cdf(x),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / (1.0 + (-2.0 * u).exp())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::QuickGelu => x / (1.0 + (-f64::from(1.702f32) * x).exp()),
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(0.0),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }

    /// `erfc(-x/√2) / 2`: a power series near zero, the continued fraction of the tail further out.
    fn normal_cdf(x: f64) -> f64 {
        if x.is_nan() {
            return x;
        }
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if x.abs() < 2.5 {
            let (mut term, mut sum) = (x, x);
            for n in 1..60 {
                term *= x * x / f64::from(2 * n + 1);
                sum += term;
            }
            return 0.5 + density * sum;
        }
        let mut fraction = 0.0;
        for n in (1..200).rev() {
            fraction = f64::from(n) / (x.abs() + fraction);
        }
        let tail = density / (x.abs() + fraction);
        if x < 0.0 { tail } else { 1.0 - tail }
    }
}
