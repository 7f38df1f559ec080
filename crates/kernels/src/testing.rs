//! Runs every check of every operation on every instruction set.
//!
//! The checks are next to the operations, `fn(&Kernels)` each; here they are enrolled. They compare with float64
//! written as the definition says, and allow the error that float32 sums of that length must have.

use crate::Kernels;

/// Stamps all checks for one instruction set.
macro_rules! kernel_tests {
    ($isa:ident = $name:literal) => {
        mod $isa {
            crate::testing::kernel_tests! { $name;
                activation: functions_follow_their_definitions, extreme_values_are_kept, silu_mul_is_a_product;
                attention: follows_the_definition, rows_are_independent, unseen_tokens_do_not_matter,
                    a_bad_token_stays_where_it_is_seen;
                convolution: every_channel_meets_its_window, rows_are_independent;
                elementwise: sums_and_products_are_exact;
                embed: conversion_is_exact;
                matmul: products_are_as_exact_as_float32_allows, every_epilogue_is_applied,
                    rows_and_columns_are_independent, special_values_stay_in_their_rows_and_columns;
                matmul_pairs: only_x_is_rounded, rows_and_columns_are_independent,
                    special_values_stay_in_their_rows_and_columns;
                norm: norms_follow_their_definitions, extreme_rows_are_normalised;
                quantized: rows_are_quantised_to_the_nearest_code, rows_are_quantised_alike_everywhere,
                    products_follow_the_definition, every_instruction_set_gives_the_same_bits,
                    rows_and_columns_are_independent, every_epilogue_is_applied, swiglu_is_two_products,
                    nothing_saturates, special_values_stay_in_their_rows_and_columns;
                rope: pairs_are_turned;
                softmax: follows_the_definition, extreme_rows_are_kept;
            }
        }
    };
    ($isa:literal; $($operation:ident: $($check:ident),+;)+) => {$(
        mod $operation {$(
            #[test]
            fn $check() {
                crate::testing::on($isa, crate::$operation::tests::$check);
            }
        )+}
    )+};
}
pub(crate) use kernel_tests;

kernel_tests!(scalar = "scalar");
kernel_tests!(avx2 = "avx2");
kernel_tests!(avx2_vnni = "avx2-vnni");
kernel_tests!(avx512 = "avx512");
kernel_tests!(avx512_vnni = "avx512-vnni");
kernel_tests!(avx512_bf16 = "avx512-bf16");
kernel_tests!(amx = "amx");
kernel_tests!(neon = "neon");
kernel_tests!(neon_dotprod = "neon-dotprod");
kernel_tests!(neon_i8mm = "neon-i8mm");
kernel_tests!(neon_bf16 = "neon-bf16");

/// Runs a check, or says why it cannot.
pub(crate) fn on(isa: &str, check: impl Fn(&Kernels)) {
    match Kernels::select(Some(isa)) {
        Ok(kernels) => check(kernels),
        Err(error) => println!("SKIP: {error}"),
    }
}

/// Numbers in -1 .. 1 that depend on the seed only.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..count).map(|_| number()).collect()
}

/// Sizes around the widths of registers and tiles.
pub(crate) const SIZES: [usize; 12] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100];

/// Fails unless `actual` is within `tolerance` of `expected`, or both are NaN, or the same infinity.
#[track_caller]
pub(crate) fn assert_close(actual: f32, expected: f64, tolerance: f64, what: impl std::fmt::Debug) {
    let same = f64::from(actual) == expected || (actual.is_nan() && expected.is_nan());
    // What float32 cannot hold may become infinite.
    let overflow = expected.abs() > f64::from(f32::MAX) && f64::from(actual) == expected.signum() * f64::INFINITY;
    let error = (f64::from(actual) - expected).abs();
    assert!(same || overflow || error <= tolerance, "{what:?}: {actual} instead of {expected}, off by {error:e}");
}

/// Bits, so that NaN and the sign of zero count.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
