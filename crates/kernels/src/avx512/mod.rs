//! AVX-512 F, BW, DQ and VL: servers since Skylake, desktops since Zen 4; with VNNI since Ice Lake and Zen 4.

pub(crate) mod bf16;
mod dots;
mod vector;
pub(crate) mod vnni;

use dots::{Bytes, Halves};
pub(crate) use row::ROW;
pub(crate) use vector::Avx512;

crate::generic_table::kernel_table!(
    "avx512",
    Avx512,
    Avx512::new(),
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
);
crate::quantized::quantized_table!(
    Avx512::new(),
    Bytes::new(),
    Halves::new(),
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
);
