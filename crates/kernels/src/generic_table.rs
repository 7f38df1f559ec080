//! Enrols every algorithm for one instruction set: the row of the dispatch table as a macro.

/// Makes the static `KERNELS` of an instruction set's folder, and the same as a constant, `ROW`, for rows that improve a
/// part of it. The folder's `QUANTIZED` comes from [`crate::quantized::quantized_table`].
///
/// `$simd` makes the proof that the processor has the instruction set, `$attribute` compiles the row's functions
/// with its features. The function pointers themselves are safe to call: nobody gets the table without the features.
macro_rules! kernel_table {
    ($name:literal, $type:ident, $simd:expr $(, $attribute:meta)?) => {
        crate::generic_table::row! {
            [$(#[$attribute])?] $name, $type, $simd;
            matmul_f32_f32(problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = matmul::<_, F32>;
            matmul_bf16_f32(problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = matmul::<_, Bf16>;
            matmul_f16_f32(problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = matmul::<_, F16>;
            embed_f32(row: &[u8], out: &mut [f32]) = embed::<_, F32>;
            embed_bf16(row: &[u8], out: &mut [f32]) = embed::<_, Bf16>;
            embed_f16(row: &[u8], out: &mut [f32]) = embed::<_, F16>;
            activate(activation: Activation, values: &mut [f32]) = activate;
            silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_mul;
            add(a: &[f32], b: &[f32], out: &mut [f32]) = add;
            mul(a: &[f32], b: &[f32], out: &mut [f32]) = mul;
            rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm;
            layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_norm;
            rope(x: &[f32], dims: RopeDims, cos: &[f32], sin: &[f32], out: &mut [f32]) = rope;
            softmax(values: &mut [f32]) = softmax;
            depthwise(problem: &Depthwise<'_>, rows: Range<usize>, out: &mut [f32]) = depthwise;
            attend_chunk(part: &Part<'_>, states: &mut [f32], scratch: &mut [f32]) = chunk_plain;
            merge_states(total: &mut [f32], state: &[f32]) = merge;
            finish_state(total: &[f32], out: &mut [f32]) = finish;
            write_kv(layout: &KvLayout, block: &mut [f32], offset: usize, keys: &[f32], values: &[f32]) = write_kv;
            multiply_adds(rounds: usize, out: &mut [f32]) = multiply_adds;
        }
    };
}

macro_rules! row {
    ($attributes:tt $name:literal, $type:ident, $simd:expr;
     $($kernel:ident($($argument:ident: $argument_type:ty),+) = $algorithm:expr;)+) => {
        mod row {
            use std::ops::Range;

            use super::$type;
            use crate::activation::{Activation, activate, silu_mul};
            use crate::attention::{KvLayout, Part, chunk_plain, finish, merge, write_kv};
            use crate::convolution::{Depthwise, depthwise};
            use crate::dispatch::Kernels;
            use crate::elementwise::{add, mul};
            use crate::embed::embed;
            use crate::matmul::{Matmul, matmul};
            use crate::norm::{layer_norm, rms_norm};
            use crate::peak::multiply_adds;
            use crate::rope::{RopeDims, rope};
            use crate::simd::Simd;
            use crate::softmax::softmax;
            use crate::view::MatrixMut;
            use crate::weights::{Bf16, F16, F32};

            pub(crate) const ROW: Kernels = Kernels {
                name: $name,
                lanes: $type::LANES,
                tile_rows: $type::TILE_ROWS,
                other_peaks: &[],
                $($kernel: {
                    fn entry($($argument: $argument_type),+) {
                        crate::generic_table::compiled_with!(
                            $attributes $simd, $algorithm, $($argument: $argument_type),+);
                    }
                    entry
                },)+
                quantized: super::QUANTIZED,
                pairs: None,
            };
            pub(crate) static KERNELS: Kernels = ROW;
        }
        pub(crate) use row::KERNELS;
    };
}

macro_rules! compiled_with {
    ([] $simd:expr, $algorithm:expr, $($argument:ident: $type:ty),+) => {
        ($algorithm)($simd, $($argument),+)
    };
    ([$($attribute:tt)+] $simd:expr, $algorithm:expr, $($argument:ident: $type:ty),+) => {{
        $($attribute)+
        fn kernel($($argument: $type),+) {
            // SAFETY: this function is compiled with the features that the proof stands for.
            ($algorithm)(unsafe { $simd }, $($argument),+)
        }
        // SAFETY: the table is only handed out when the processor has the features (`dispatch::Features`).
        unsafe { kernel($($argument),+) }
    }};
}

pub(crate) use {compiled_with, kernel_table, row};
