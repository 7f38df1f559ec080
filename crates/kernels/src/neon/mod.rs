//! NEON: every 64-bit ARM processor. Its dot products of bytes: processors designed since about 2017 (Cortex-A76,
//! Neoverse N1, Apple M1); its products of byte matrices and of pairs of bfloat16: since about 2020 (Neoverse V1,
//! Cortex-A710, Apple M2).

pub(crate) mod bf16;
pub(crate) mod dotprod;
mod dots;
pub(crate) mod i8mm;
mod vector;

use dots::{Bytes, Halves};
pub(crate) use vector::Neon;

crate::generic_table::kernel_table!("neon", Neon, Neon::new(), target_feature(enable = "neon"));
crate::quantized::quantized_table!(Neon::new(), Bytes::new(), Halves::new(), target_feature(enable = "neon"));
