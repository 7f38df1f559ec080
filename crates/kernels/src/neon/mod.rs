//! NEON: every 64-bit ARM processor.

mod vector;

use crate::scalar::QUANTIZED;
pub(crate) use vector::Neon;

crate::generic_table::kernel_table!("neon", Neon, Neon::new(), target_feature(enable = "neon"));
