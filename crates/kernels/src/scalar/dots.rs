//! [`Dots`] on arrays: what the other instruction sets must equal bit by bit.

use half::f16;

use super::Scalar;
use crate::quantized::{Dots, LINE, MOST_GROUP, PANEL};

/// Plain Rust, for weights of that many bits.
#[derive(Clone, Copy)]
pub(crate) struct ScalarDots<const BITS: usize>;

impl<const BITS: usize> Dots for ScalarDots<BITS> {
    type Simd = Scalar;
    type Sums = [i32; PANEL];
    type Run = [i32; PANEL];
    type Codes = [[u8; 4]; PANEL];
    type Quad = [i8; 4];
    type Floats = [f32; PANEL];

    const QUADS: usize = 8 / BITS;
    const RUN: usize = MOST_GROUP;
    const TILE_ROWS: usize = 1;
    const WIDE: bool = false;

    #[inline(always)]
    fn simd(self) -> Scalar {
        Scalar
    }

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        [0; PANEL]
    }

    #[inline(always)]
    fn begin(self, sums: Self::Sums) -> Self::Run {
        sums
    }

    #[inline(always)]
    fn end(self, _sums: Self::Sums, run: Self::Run) -> Self::Sums {
        run
    }

    #[inline(always)]
    fn codes(self, line: &[u8; LINE], part: usize) -> Self::Codes {
        let mut codes = [[0; 4]; PANEL];
        for (codes, bytes) in codes.iter_mut().zip(line.as_chunks::<4>().0) {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = (byte >> (4 * part)) & if BITS == 4 { 15 } else { 255 };
            }
        }
        codes
    }

    #[inline(always)]
    fn quad(self, activations: [i8; 4]) -> Self::Quad {
        activations
    }

    #[inline(always)]
    fn dot(self, mut run: Self::Run, codes: Self::Codes, quad: Self::Quad) -> Self::Run {
        for (sum, codes) in run.iter_mut().zip(codes) {
            for (code, activation) in codes.into_iter().zip(quad) {
                *sum += i32::from(code) * i32::from(activation);
            }
        }
        run
    }

    #[inline(always)]
    fn to_floats(self, sums: Self::Sums) -> Self::Floats {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; PANEL]
    }

    #[inline(always)]
    fn widen(self, halves: &[u8; 2 * PANEL]) -> Self::Floats {
        let mut floats = [0.0; PANEL];
        for (float, half) in floats.iter_mut().zip(halves.as_chunks().0) {
            *float = f16::from_le_bytes(*half).to_f32_const();
        }
        floats
    }

    #[inline(always)]
    fn load(self, values: &[f32; PANEL]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats, values: &mut [f32; PANEL]) {
        *values = floats;
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        let mut product = a;
        for (product, b) in product.iter_mut().zip(b) {
            *product *= b;
        }
        product
    }

    #[inline(always)]
    fn fused(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        let mut sum = c;
        for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
            // Rounded once even where that is a library call: the other instruction sets cannot round twice.
            *sum = a.mul_add(b, *sum);
        }
        sum
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
}
