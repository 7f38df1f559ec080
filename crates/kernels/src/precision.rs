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

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPrecision {
    /// As they were computed.
    #[default]
    Float32,
    /// Rounded to bfloat16: half the memory.
    Bfloat16,
    /// Eight bits per element and a scale per token and head: a quarter of the memory.
    Eight,
}

impl KvPrecision {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "f32",
            Self::Bfloat16 => "bf16",
            Self::Eight => "q8",
        }
    }
}
