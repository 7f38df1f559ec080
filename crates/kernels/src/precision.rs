//! In which precision products are computed and keys and values are kept.

/// How products with bfloat16 weights, and attention, multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Every product in float32.
    #[default]
    Float32,
    /// Activations are rounded to bfloat16 where the instruction set multiplies pairs of those (sums stay float32);
    /// elsewhere the same as [`Self::Float32`].
    Bfloat16,
}
