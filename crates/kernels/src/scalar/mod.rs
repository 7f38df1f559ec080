//! No instruction set at all: arrays of eight, which compilers turn into whatever vectors the target always has.

mod vector;

pub(crate) use vector::Scalar;

crate::generic_table::kernel_table!("scalar", Scalar, Scalar);
