//! Arithmetic on slices: every operation that a model needs, once, for every instruction set.
//!
//! How it is built (after the `memchr` crate and `fearless_simd`): an algorithm is written once, generic over the
//! trait `Simd`; each instruction set is a folder that implements the trait with its own intrinsics and
//! enrols all algorithms in one row of the dispatch table [`Kernels`], chosen once per process. A value of a `Simd`
//! type proves that the processor has the instruction set, so algorithms are safe code; what is `unsafe` are loads,
//! stores, intrinsics behind that proof, calls through the table and the strided view [`MatrixMut`].
//!
//! Nothing here knows about tensors or threads, and nothing allocates: callers pass scratch memory.
//!
//! **Rows are independent.** What an operation computes for one row does not depend on how many other rows there
//! are, nor on how rows or columns were split between threads: for one instruction set every sum is formed in the
//! same order. Different instruction sets may differ in the last bits, but not in products of quantised weights.

mod activation;
mod attention;
mod convolution;
mod dispatch;
mod elementwise;
mod embed;
mod generic_table;
mod math;
mod matmul;
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(dead_code, reason = "no instruction set of this target has pairs")
)]
mod matmul_pairs;
mod norm;
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(dead_code, reason = "no instruction set of this target has pairs")
)]
mod pairs;
mod patches;
mod peak;
mod precision;
mod quantized;
mod rope;
mod simd;
mod softmax;
mod view;
mod weights;

mod scalar;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod testing;

pub use activation::Activation;
pub use attention::{Attend, BLOCK_TOKENS, BlockSource, KvLayout, Mask};
pub use convolution::{Convolution, Depthwise, unfold_windows};
pub use dispatch::{Error, Kernels};
pub use matmul::Matmul;
pub use patches::{Patches, unfold_patches};
pub use peak::Peak;
pub use precision::{Arithmetic, KvPrecision};
pub use quantized::{
    CodeBits, GroupedRows, PackedDims, PackedMatrix, QuantizedMatmul, QuantizedRows, QuantizedRowsMut, QuantizedSwiglu,
};
pub use rope::{RopeDims, RopePairing};
pub use view::{MatrixMut, Tiles};
pub use weights::WeightMatrix;
