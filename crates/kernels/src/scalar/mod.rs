//! No instruction set at all: arrays of eight, which compilers turn into whatever vectors the target always has.

mod dots;
mod vector;

pub(crate) use dots::ScalarDots;
pub(crate) use vector::Scalar;

crate::generic_table::kernel_table!("scalar", Scalar, Scalar);
crate::quantized::quantized_table!(Scalar, ScalarDots::<8>, ScalarDots::<4>);
