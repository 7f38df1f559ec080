//! Products of weights in 4 or 8 bits with activations in 8 bits, in whole numbers.
//!
//! Weights are unsigned codes with a scale and an offset per group of inputs, packed once at load
//! ([`PackedMatrix`]); activations are quantised per row and group on the fly ([`QuantizedRows`]).
//!
//! # The order of a sum
//! For every output: `sum = 0`, then group after group
//! `sum = fma(f32(Σ code · activation code) · activation scale, weight scale, sum)` and
//! `sum = fma(activation sum, weight offset, sum)`. The sum over a group is exact, so the order within it is free, and
//! everything else is prescribed: all instruction sets, one row or a thousand, this column range or that give the
//! same bits.

mod dots;
mod packed;
mod product;
mod rows;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use dots::{Dots, registers, repeated};
pub use packed::{CodeBits, GroupedRows, PackedDims, PackedMatrix};
#[cfg(target_arch = "x86_64")]
pub(crate) use product::{MOST_ROWS, Panels};
pub use product::{QuantizedMatmul, QuantizedSwiglu};
pub(crate) use product::{group_sums_by_quads, matmul, swiglu};
pub(crate) use rows::quantize;
pub use rows::{QuantizedRows, QuantizedRowsMut};

use crate::peak::Peak;

/// Outputs of a panel of packed weights.
pub(crate) const PANEL: usize = 16;

/// Bytes of a line: a quad of inputs for all outputs of a panel, or their scales and offsets.
pub(crate) const LINE: usize = 64;

/// A line of packed weights.
pub(crate) type Line = [u8; LINE];

/// Inputs that are summed in whole numbers at a stretch everywhere; group sizes are multiples of it.
pub(crate) const RUN: usize = 32;

/// Inputs of the largest group.
pub(crate) const MOST_GROUP: usize = 64;

/// The entry points of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) quantize: fn(&[f32], usize, QuantizedRowsMut<'_>),
    pub(crate) matmul_four: MatmulFn,
    pub(crate) matmul_eight: MatmulFn,
    pub(crate) swiglu_four: SwigluFn,
    pub(crate) swiglu_eight: SwigluFn,
    /// Products of bytes and nothing else.
    pub(crate) peak: Peak,
}

type MatmulFn = fn(&QuantizedMatmul<'_>, crate::view::MatrixMut<'_>, &mut [f32]);
type SwigluFn = fn(&QuantizedSwiglu<'_>, crate::view::MatrixMut<'_>, &mut [f32]);

/// Makes the `QUANTIZED` of an instruction set's folder: `$eight` and `$four` make proofs that are `Panels` for
/// weights of 8 and 4 bits, `$simd` one that is [`crate::simd::Simd`]; `$peak` multiplies bytes with the proof of 8 bits,
/// `$operations` per round.
macro_rules! quantized_table {
    (table $attributes:tt $operations:expr;
     peak($($peak_argument:ident: $peak_type:ty),+) = $peak_proof:expr, $peak:expr;
     $($kernel:ident($($argument:ident: $type:ty),+) = $proof:expr, $algorithm:expr;)+) => {
        mod quantized {
            use super::*;
            use crate::peak::Peak;
            use crate::quantized::{QuantizedMatmul, QuantizedRowsMut, QuantizedSwiglu, Table, matmul, quantize, swiglu};
            use crate::view::MatrixMut;

            pub(crate) const QUANTIZED: Table = Table {
                $($kernel: {
                    fn entry($($argument: $type),+) {
                        crate::generic_table::compiled_with!($attributes $proof, $algorithm, $($argument: $type),+);
                    }
                    entry
                },)+
                peak: {
                    fn entry($($peak_argument: $peak_type),+) {
                        crate::generic_table::compiled_with!(
                            $attributes $peak_proof, $peak, $($peak_argument: $peak_type),+);
                    }
                    Peak::new("int8", $operations, entry)
                },
            };
        }
        pub(crate) use quantized::QUANTIZED;
    };
    ($simd:expr, $eight:expr, $four:expr $(, $attribute:meta)?) => {
        crate::quantized::quantized_table! {
            $simd, $eight, $four, crate::peak::INT8_OPERATIONS, crate::peak::multiply_adds_int8 $(, $attribute)?
        }
    };
    ($simd:expr, $eight:expr, $four:expr, $operations:expr, $peak:path $(, $attribute:meta)?) => {
        crate::quantized::quantized_table! {
            table [$(#[$attribute])?] $operations;
            peak(rounds: usize, out: &mut [f32]) = $eight, $peak;
            quantize(x: &[f32], inputs: usize, out: QuantizedRowsMut<'_>) = $simd, quantize;
            matmul_four(problem: &QuantizedMatmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = $four, matmul;
            matmul_eight(problem: &QuantizedMatmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = $eight, matmul;
            swiglu_four(problem: &QuantizedSwiglu<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = $four, swiglu;
            swiglu_eight(problem: &QuantizedSwiglu<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = $eight, swiglu;
        }
    };
}
pub(crate) use quantized_table;
