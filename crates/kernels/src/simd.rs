//! [`Simd`]: what the algorithms need from an instruction set.
//!
//! A value of an implementing type is a proof that the processor has the instruction set: it is only made where
//! that was checked (the wrappers in a dispatch table's row). Every method is inlined into such a wrapper, which is
//! compiled with the instruction set's features; algorithms are therefore `#[inline(always)]` throughout and avoid
//! closures, which would not inherit the features.

/// Vector operations on float32 lanes.
pub(crate) trait Simd: Copy {
    /// [`Self::LANES`] float32 values in a register.
    type F32: Copy;
    /// `[f32; LANES]`.
    type Chunk: Copy + AsRef<[f32]> + AsMut<[f32]>;
    /// `[u8; 2 * LANES]`: as many 16-bit weights at any alignment.
    type Bytes2;
    /// `[u8; 4 * LANES]`: as many 32-bit weights at any alignment.
    type Bytes4;

    /// Values per register.
    const LANES: usize;
    /// Rows of a register tile of four columns: `4 * TILE_ROWS` sums and the operands fit the register file.
    const TILE_ROWS: usize;
    /// A chunk of zeros.
    const ZERO_CHUNK: Self::Chunk;

    /// Calls a function (which is inlined): in code of its own where that matters. Among other tiles in one large
    /// function, a compiler keeps sums in memory that registers would hold.
    #[inline(always)]
    fn apart(self, function: impl FnOnce()) {
        function();
    }

    /// Whole chunks, and what is left.
    fn chunks(values: &[f32]) -> (&[Self::Chunk], &[f32]);
    /// Whole chunks, and what is left.
    fn chunks_mut(values: &mut [f32]) -> (&mut [Self::Chunk], &mut [f32]);
    /// Whole chunks of 16-bit values, and what is left.
    fn chunks2(bytes: &[u8]) -> (&[Self::Bytes2], &[u8]);
    /// Whole chunks of 32-bit values, and what is left.
    fn chunks4(bytes: &[u8]) -> (&[Self::Bytes4], &[u8]);

    /// The same value in all lanes.
    fn splat(self, value: f32) -> Self::F32;
    /// Reads a chunk.
    fn load(self, chunk: &Self::Chunk) -> Self::F32;
    /// Writes a chunk.
    fn store(self, value: Self::F32, chunk: &mut Self::Chunk);
    /// Reads little-endian float32.
    fn load_f32(self, chunk: &Self::Bytes4) -> Self::F32;
    /// Reads bfloat16.
    fn load_bf16(self, chunk: &Self::Bytes2) -> Self::F32;
    /// Reads IEEE half precision.
    fn load_f16(self, chunk: &Self::Bytes2) -> Self::F32;

    /// Asks for the memory at an address that will be read soon; any address will do.
    fn prefetch(self, address: *const u8);

    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger; `b` if one of them is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` if one of them is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `|a|`.
    fn abs(self, a: Self::F32) -> Self::F32;
    /// The nearest integer, ties to even, for `|a| < 2²²`.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `a * 2^exponent` for whole exponents in -160 ..= 130, with gradual underflow and overflow to infinity.
    fn scale_by_power(self, a: Self::F32, exponent: Self::F32) -> Self::F32;
    /// Lane by lane `negative` where `sign < 0`, else `positive` (also for NaN).
    fn where_negative(self, sign: Self::F32, negative: Self::F32, positive: Self::F32) -> Self::F32;

    /// The sum over the lanes of each of four vectors.
    ///
    /// Lanes are added at distances LANES/2, LANES/4, … 1, in that order for each of the four places, so that a sum
    /// does not depend on its place.
    fn sum4(self, vectors: [Self::F32; 4]) -> [f32; 4];

    /// The sum over the lanes.
    #[inline(always)]
    fn sum(self, vector: Self::F32) -> f32 {
        self.sum4([vector; 4])[0]
    }

    /// The largest lane; unspecified if one of them is NaN.
    #[inline(always)]
    fn largest(self, vector: Self::F32) -> f32 {
        let mut chunk = Self::ZERO_CHUNK;
        self.store(vector, &mut chunk);
        let mut largest = f32::NEG_INFINITY;
        for &value in chunk.as_ref() {
            largest = if value > largest { value } else { largest };
        }
        largest
    }

    /// Reads fewer values than a chunk holds, zeros behind them.
    #[inline(always)]
    fn load_part(self, values: &[f32]) -> Self::F32 {
        let mut chunk = Self::ZERO_CHUNK;
        chunk.as_mut()[..values.len()].copy_from_slice(values);
        self.load(&chunk)
    }

    /// Writes the first lanes.
    #[inline(always)]
    fn store_part(self, value: Self::F32, values: &mut [f32]) {
        let mut chunk = Self::ZERO_CHUNK;
        self.store(value, &mut chunk);
        let len = values.len();
        values.copy_from_slice(&chunk.as_ref()[..len]);
    }
}

/// Calls a function whose last type parameters are the rows of a register tile (and, it may be, its columns): rows
/// are a constant there, so that a tile is unrolled, and more rows than the instruction set's tile has are no code (not
/// even for the compiler, thanks to `const`).
macro_rules! by_tile_rows {
    ($simd:ident, $rows:expr, $function:ident::<$($generic:ident),+; R $(, $columns:tt)?>$arguments:tt) => {
        match $rows {
            1 => by_tile_rows!(call $function::<$($generic),+; 1 $(, $columns)?> $arguments),
            2 if const { $simd::TILE_ROWS >= 2 } => by_tile_rows!(call $function::<$($generic),+; 2 $(, $columns)?> $arguments),
            3 if const { $simd::TILE_ROWS >= 3 } => by_tile_rows!(call $function::<$($generic),+; 3 $(, $columns)?> $arguments),
            4 if const { $simd::TILE_ROWS >= 4 } => by_tile_rows!(call $function::<$($generic),+; 4 $(, $columns)?> $arguments),
            5 if const { $simd::TILE_ROWS >= 5 } => by_tile_rows!(call $function::<$($generic),+; 5 $(, $columns)?> $arguments),
            6 if const { $simd::TILE_ROWS >= 6 } => by_tile_rows!(call $function::<$($generic),+; 6 $(, $columns)?> $arguments),
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
    (call $function:ident::<$($generic:ident),+; $rows:literal $(, $columns:tt)?> ($($argument:expr),+ $(,)?)) => {
        $function::<$($generic,)+ $rows $(, $columns)?>($($argument),+)
    };
}
pub(crate) use by_tile_rows;
