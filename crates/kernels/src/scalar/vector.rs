//! [`Simd`] on arrays of eight values.

use half::{bf16, f16};

use crate::simd::Simd;

/// Plain Rust: every processor has it.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

const LANES: usize = 8;

type Lanes = [f32; LANES];

macro_rules! lanewise {
    ($($name:ident($($operand:ident),+) = $result:expr;)+) => {$(
        #[inline(always)]
        fn $name(self, $($operand: Lanes),+) -> Lanes {
            let mut out = [0.0; LANES];
            for lane in 0..LANES {
                $(let $operand = $operand[lane];)+
                out[lane] = $result;
            }
            out
        }
    )+};
}

impl Simd for Scalar {
    type F32 = Lanes;
    type Chunk = [f32; LANES];
    type Bytes2 = [u8; 2 * LANES];
    type Bytes4 = [u8; 4 * LANES];

    const LANES: usize = LANES;
    const TILE_ROWS: usize = 1;
    const ZERO_CHUNK: Self::Chunk = [0.0; LANES];

    #[inline(always)]
    fn chunks(values: &[f32]) -> (&[Self::Chunk], &[f32]) {
        values.as_chunks()
    }

    #[inline(always)]
    fn chunks_mut(values: &mut [f32]) -> (&mut [Self::Chunk], &mut [f32]) {
        values.as_chunks_mut()
    }

    #[inline(always)]
    fn chunks2(bytes: &[u8]) -> (&[Self::Bytes2], &[u8]) {
        bytes.as_chunks()
    }

    #[inline(always)]
    fn chunks4(bytes: &[u8]) -> (&[Self::Bytes4], &[u8]) {
        bytes.as_chunks()
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, chunk: &Self::Chunk) -> Lanes {
        *chunk
    }

    #[inline(always)]
    fn store(self, value: Lanes, chunk: &mut Self::Chunk) {
        *chunk = value;
    }

    #[inline(always)]
    fn load_f32(self, chunk: &Self::Bytes4) -> Lanes {
        let mut out = [0.0; LANES];
        for (value, bytes) in out.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        out
    }

    #[inline(always)]
    fn load_bf16(self, chunk: &Self::Bytes2) -> Lanes {
        let mut out = [0.0; LANES];
        for (value, bytes) in out.iter_mut().zip(chunk.as_chunks::<2>().0) {
            *value = bf16::from_le_bytes(*bytes).to_f32();
        }
        out
    }

    #[inline(always)]
    fn load_f16(self, chunk: &Self::Bytes2) -> Lanes {
        let mut out = [0.0; LANES];
        for (value, bytes) in out.iter_mut().zip(chunk.as_chunks::<2>().0) {
            *value = f16::from_le_bytes(*bytes).to_f32_const();
        }
        out
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}

    lanewise! {
        add(a, b) = a + b;
        sub(a, b) = a - b;
        mul(a, b) = a * b;
        div(a, b) = a / b;
        // `f32::mul_add` is a library call on a target that has no such instruction.
        mul_add(a, b, c) = a * b + c;
        max(a, b) = if a > b { a } else { b };
        min(a, b) = if a < b { a } else { b };
        abs(a) = a.abs();
        // Adding and taking away 1.5 · 2²³ leaves no room for a fraction.
        round(a) = (a + 12_582_912.0) - 12_582_912.0;
        scale_by_power(a, exponent) = scale(a, exponent);
        where_negative(sign, negative, positive) = if sign < 0.0 { negative } else { positive };
    }

    #[inline(always)]
    fn sum4(self, vectors: [Lanes; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        for (sum, v) in sums.iter_mut().zip(vectors) {
            *sum = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
        }
        sums
    }
}

/// Two steps, each with an exponent that a float can hold.
#[inline(always)]
fn scale(a: f32, exponent: f32) -> f32 {
    let exponent = exponent as i32;
    let first = exponent >> 1;
    a * power_of_two(first) * power_of_two(exponent - first)
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) << 23) as u32)
}
