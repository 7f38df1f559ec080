//! AMX: eight tile registers of a kibibyte each and the matrix products of int8 and bf16 tiles; server processors of
//! Intel since 2023.
//!
//! Everything that names a tile instruction is in [`tile`]; on Linux machines without AMX the tests of this crate run
//! the same instructions on an emulator.

mod detect;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod emulator;
mod matmul;
mod quantized;
mod tile;

use crate::avx512::ROW;
use crate::dispatch::Kernels;

pub(crate) use detect::is_usable;

/// Everything as without tiles, but the products.
pub(crate) static KERNELS: Kernels = Kernels {
    name: "amx",
    quantized: quantized::QUANTIZED,
    pairs: Some(matmul::PAIRS),
    other_peaks: &[matmul::PEAK],
    ..ROW
};
