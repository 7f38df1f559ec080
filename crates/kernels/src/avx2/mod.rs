//! AVX2, FMA and F16C: every x86-64 processor sold since about 2015.

mod dots;
mod vector;
pub(crate) mod vnni;

use dots::{Bytes, Halves};
pub(crate) use vector::Avx2;

crate::generic_table::kernel_table!("avx2", Avx2, Avx2::new(), target_feature(enable = "avx2,fma,f16c"));
crate::quantized::quantized_table!(Avx2::new(), Bytes::new(), Halves::new(), target_feature(enable = "avx2,fma,f16c"));
