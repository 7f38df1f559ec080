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
                $($kernel: crate::generic_table::entry!(
                    $attributes $simd; ($($argument: $argument_type),+) = $algorithm),)+
                quantized: super::QUANTIZED,
                pairs: None,
            };
            pub(crate) static KERNELS: Kernels = ROW;
        }
        pub(crate) use row::KERNELS;
    };
}

/// Makes the static `KERNELS` of a row that multiplies pairs of bfloat16 and is `$row` otherwise, with these quantised
/// products. `$type` implements [`crate::pairs::Pairs`].
macro_rules! pairs_table {
    ($name:literal, $type:ident, $row:expr, $quantized:expr, $attribute:meta) => {
        crate::generic_table::pairs_row! { [#[$attribute]] $name, $type, $row, $quantized }
    };
}

#[rustfmt::skip] // It would move the first line of every `entry!` to the left of its struct.
macro_rules! pairs_row {
    ($attributes:tt $name:literal, $type:ident, $row:expr, $quantized:expr) => {
        pub(crate) static KERNELS: crate::dispatch::Kernels = {
            use crate::attention::{Part, chunk_pairs};
            use crate::dispatch::{Kernels, PairKernels, Rounding};
            use crate::generic_table::entry;
            use crate::matmul::Matmul;
            use crate::matmul_pairs::{matmul_pairs, round, scratch_len};
            use crate::peak::{PAIR_SUMS, Peak, multiply_adds_of_pairs};
            use crate::view::MatrixMut;

            const PEAK: Peak = Peak::new(
                "bf16",
                2 * $type::DEPTH * PAIR_SUMS * LANES,
                entry!($attributes $type::new(); (rounds: usize, out: &mut [f32]) = multiply_adds_of_pairs),
            );
            Kernels {
                name: $name,
                pairs: Some(PairKernels {
                    matmul: entry!($attributes $type::new();
                        (problem: &Matmul<'_>, out: MatrixMut<'_>, scratch: &mut [f32]) = matmul_pairs),
                    scratch_len: |rows, inputs| scratch_len(LANES, rows, inputs),
                    round: Rounding {
                        rows: 1,
                        run: entry!($attributes $type::new(); (x: &[f32], inputs: usize, out: &mut [f32]) = round),
                    },
                    rows_in_cache: None,
                    attend: Some(entry!($attributes $type::new();
                        (part: &Part<'_>, states: &mut [f32], scratch: &mut [f32]) = chunk_pairs)),
                }),
                other_peaks: &[PEAK],
                quantized: $quantized,
                ..$row
            }
        };
    };
}

/// A table's entry: calls the algorithm in code that is compiled with the features which the proof stands for.
macro_rules! entry {
    ($attributes:tt $simd:expr; ($($argument:ident: $type:ty),+) = $algorithm:expr) => {{
        fn entry($($argument: $type),+) {
            crate::generic_table::compiled_with!($attributes $simd, $algorithm, $($argument: $type),+);
        }
        entry
    }};
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

/// The method of the same name, in code of its own with these features: [`crate::simd::Simd::apart`].
macro_rules! apart {
    ($attribute:meta) => {
        #[inline(always)]
        fn apart(self, function: impl FnOnce()) {
            #[inline(never)]
            #[$attribute]
            fn within(function: impl FnOnce()) {
                function();
            }
            // SAFETY: `self` proves that the processor has these features.
            unsafe { within(function) }
        }
    };
}

pub(crate) use {apart, compiled_with, entry, kernel_table, pairs_row, pairs_table, row};
