//! The tile registers: their configuration, and every instruction that touches them.
//!
//! A micro-kernel is one block of assembly from its first tile to its last, because no compiler knows what tiles hold
//! between two blocks. Tiles are named as clobbered all the same.

use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// 32-bit elements of a row of a tile.
pub(crate) const COLUMNS: usize = 16;
/// Bytes of a row of a tile.
pub(crate) const ROW_BYTES: usize = 64;

/// A tile of sums: 16 rows of 16.
pub(crate) type Sums<T> = [[T; COLUMNS]; ROWS];

/// Proof that this process may execute tile instructions.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// # Safety
    /// [`super::is_usable`].
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// The shapes of the eight tiles of a 2 × 2 block, as `ldtilecfg` wants them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// All tiles 16 × 64 bytes.
    pub(crate) fn whole() -> Self {
        Self::new(ROWS, ROWS, ROW_BYTES)
    }

    /// Tiles 0 to 3 are sums, 4 and 5 the left operands of the upper and the lower sums, 6 and 7 the right operands:
    /// `upper` and `lower` rows of the left operands (1 ..= 16), `inner_bytes` in each of them (64 or less).
    pub(crate) fn new(upper: usize, lower: usize, inner_bytes: usize) -> Self {
        assert!((1..=ROWS).contains(&upper) && (1..=ROWS).contains(&lower), "tiles of {upper} and {lower} rows");
        assert!(inner_bytes.is_multiple_of(4) && (4..=ROW_BYTES).contains(&inner_bytes), "{inner_bytes} bytes");
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let (left, right) = ((upper, lower), inner_bytes / 4);
        let rows = [left.0, left.0, left.1, left.1, left.0, left.1, right, right];
        let row_bytes = [ROW_BYTES, ROW_BYTES, ROW_BYTES, ROW_BYTES, inner_bytes, inner_bytes, ROW_BYTES, ROW_BYTES];
        for tile in 0..8 {
            shapes.rows[tile] = rows[tile] as u8;
            shapes.row_bytes[tile] = row_bytes[tile] as u16;
        }
        shapes
    }

    /// Rows of the upper and of the lower left operand.
    fn left_rows(&self) -> [usize; 2] {
        [usize::from(self.rows[4]), usize::from(self.rows[5])]
    }

    /// Bytes of a row of the left operands.
    fn inner_bytes(&self) -> usize {
        usize::from(self.row_bytes[4])
    }
}

/// This thread's tile registers, configured. Dropping it gives them back, so that the system does not save 8 KiB
/// whenever it switches threads.
pub(crate) struct Tiles {
    shapes: Shapes,
    /// Registers belong to a thread.
    not_send: PhantomData<*mut ()>,
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: somebody made this value, with the proof that the instruction exists; it takes nothing from memory.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Left operand of a bf16 product: 32 rows (the outputs of a weight matrix, say) of the same length.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    /// From the first element of the first row on; little-endian, any alignment.
    pub(crate) bytes: &'a [u8],
    /// Bytes from row to row.
    pub(crate) stride: usize,
    /// Rows that are asked for meanwhile, because they are next: a pointer and a number of rows `stride` apart, as long
    /// as these.
    pub(crate) next: (*const u8, usize),
}

/// A step of the right operand of a bf16 product: 16 pairs of elements of 16 columns.
pub(crate) type PairRows = [[f32; COLUMNS]; ROWS];

impl Left<'_> {
    /// The number of steps, if all of them lie within the bytes.
    #[track_caller]
    fn check(&self, steps: usize) -> usize {
        assert!(steps > 0, "a product of nothing");
        let end = (2 * ROWS - 1) * self.stride + steps * ROW_BYTES;
        assert!(self.bytes.len() >= end, "{} bytes are not 32 rows of {steps} steps", self.bytes.len());
        steps
    }
}

impl Tiles {
    /// Configures this thread's tiles.
    pub(crate) fn new(_amx: Amx, shapes: &Shapes) -> Self {
        let mut tiles = Self { shapes: *shapes, not_send: PhantomData };
        tiles.reshape(shapes);
        tiles
    }

    /// Gives the tiles other shapes.
    pub(crate) fn reshape(&mut self, shapes: &Shapes) {
        self.shapes = *shapes;
        // SAFETY: a `Tiles` is only made with the proof that tile instructions exist; 64 bytes are read, which
        // `Shapes::new` made a valid configuration of.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                shapes = in(reg) &raw const self.shapes,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    /// Sums of products over `right.len()` steps of 32 elements: 32 rows × 32 columns.
    ///
    /// `sums[c][h]` are the tiles of columns 16·c and rows 16·h; if `is_continued`, the sums so far.
    ///
    /// # Panics
    /// If the left operand is too short or the columns are not equally long, or the tiles are not whole.
    #[inline(always)]
    pub(crate) fn multiply_bf16(
        &self,
        left: Left<'_>,
        right: [&[PairRows]; 2],
        sums: &mut [[Sums<f32>; 2]; 2],
        is_continued: bool,
    ) {
        let steps = left.check(right[0].len());
        assert_eq!(right[1].len(), steps, "columns of different lengths");
        assert_eq!((self.shapes.left_rows(), self.shapes.inner_bytes()), ([ROWS; 2], ROW_BYTES), "not whole tiles");
        // SAFETY: as in `reshape`. Read are 64 bytes per step from each of 32 rows of the left operand, which lie
        // within it (`check`), `steps` tiles of each of the right ones, four tiles of sums, which are written at the
        // end. Prefetches may name any address. There is at least one step.
        unsafe {
            asm!(
                "test {line}, {line}", "jnz 3f",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "jmp 2f",
                "3:",
                "tileloadd tmm0, [{sums} + {row}*1]", "tileloadd tmm2, [{sums} + {row}*1 + 1024]",
                "tileloadd tmm1, [{sums} + {row}*1 + 2048]", "tileloadd tmm3, [{sums} + {row}*1 + 3072]",
                "2:",
                "tileloadd tmm4, [{upper} + {stride}*1]", "tileloadd tmm6, [{right0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "mov {line}, {next}", "mov {count:e}, {next_rows:e}", "test {count:e}, {count:e}", "jz 5f",
                "4:", "prefetcht1 [{line}]", "add {line}, {stride}", "dec {count:e}", "jnz 4b",
                "5:",
                "add {upper}, 64", "add {lower}, 64", "add {next}, 64", "add {right0}, 1024", "add {right1}, 1024",
                "dec {steps}", "jnz 2b",
                "tilestored [{sums} + {row}*1], tmm0", "tilestored [{sums} + {row}*1 + 1024], tmm2",
                "tilestored [{sums} + {row}*1 + 2048], tmm1", "tilestored [{sums} + {row}*1 + 3072], tmm3",
                line = inout(reg) u64::from(is_continued) => _,
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) ROW_BYTES,
                stride = in(reg) left.stride,
                upper = inout(reg) left.bytes.as_ptr() => _,
                lower = inout(reg) left.bytes.as_ptr().wrapping_add(ROWS * left.stride) => _,
                right0 = inout(reg) right[0].as_ptr() => _,
                right1 = inout(reg) right[1].as_ptr() => _,
                next = inout(reg) left.next.0 => _,
                next_rows = in(reg) left.next.1 as u32,
                count = out(reg) _,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Sums of products of signed bytes on the left and unsigned ones on the right: the rows of both left operands ×
    /// 32 columns, as many bytes as the shapes say.
    ///
    /// `left` are the codes from the first one of the upper and of the lower rows on, `stride` from row to row. `right`
    /// are the quads of 16 columns each. `sums[2·h + c]` are the tiles of rows h and columns c.
    ///
    /// # Panics
    /// If an operand is too short.
    #[inline(always)]
    pub(crate) fn multiply_int8(&self, left: [&[i8]; 2], stride: usize, right: [&[u8]; 2], sums: &mut [Sums<i32>; 4]) {
        let inner = self.shapes.inner_bytes();
        for (left, rows) in left.iter().zip(self.shapes.left_rows()) {
            assert!(left.len() >= (rows - 1) * stride + inner, "{} codes are not {rows} rows of {inner}", left.len());
        }
        assert!(right.iter().all(|right| right.len() >= inner * COLUMNS), "columns are shorter than {inner}");
        // SAFETY: as in `reshape`. Read are as many rows and bytes of every operand as its tile's shape has, which are
        // within it (checked above); written are at most four whole tiles of sums.
        unsafe {
            asm!(
                "tilezero tmm0", "tileloadd tmm4, [{upper} + {stride}*1]", "tileloadd tmm6, [{right0} + {row}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tilezero tmm1", "tileloadd tmm7, [{right1} + {row}*1]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tilezero tmm2", "tileloadd tmm5, [{lower} + {stride}*1]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tilezero tmm3",
                "tdpbsud tmm3, tmm5, tmm7",
                "tilestored [{sums} + {row}*1], tmm0", "tilestored [{sums} + {row}*1 + 1024], tmm1",
                "tilestored [{sums} + {row}*1 + 2048], tmm2", "tilestored [{sums} + {row}*1 + 3072], tmm3",
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) ROW_BYTES,
                stride = in(reg) stride,
                upper = in(reg) left[0].as_ptr(),
                lower = in(reg) left[1].as_ptr(),
                right0 = in(reg) right[0].as_ptr(),
                right1 = in(reg) right[1].as_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Multiplies registers `rounds` times and writes one of the sums; `$multiply` is the instruction.
macro_rules! peak {
    ($(#[$doc:meta])* $name:ident, $multiply:literal) => {
        $(#[$doc])*
        pub(crate) fn $name(_amx: Amx, rounds: usize, out: &mut [f32]) {
            let tiles = Tiles::new(_amx, &Shapes::whole());
            let mut sums: Sums<f32> = [[0.0; COLUMNS]; ROWS];
            if rounds > 0 {
                // SAFETY: as in `Tiles::reshape`; a whole tile of sums is written, nothing is read.
                unsafe {
                    asm!(
                        "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                        "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                        "2:",
                        concat!($multiply, " tmm0, tmm4, tmm6"), concat!($multiply, " tmm1, tmm4, tmm7"),
                        concat!($multiply, " tmm2, tmm5, tmm6"), concat!($multiply, " tmm3, tmm5, tmm7"),
                        "dec {rounds}", "jnz 2b",
                        "tilestored [{sums} + {row}*1], tmm0",
                        rounds = inout(reg) rounds => _,
                        sums = in(reg) sums.as_mut_ptr(),
                        row = in(reg) ROW_BYTES,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
            drop(tiles);
            out[0] = sums[0][0];
        }
    };
}

peak!(
    /// Rounds of four products of bytes.
    multiply_adds_int8, "tdpbsud"
);
peak!(
    /// Rounds of four products of bf16.
    multiply_adds_bf16, "tdpbf16ps"
);

/// Multiply-adds of bytes in a round of [`multiply_adds_int8`]; half as many of bf16.
pub(crate) const MULTIPLY_ADDS_OF_ROUND: usize = 4 * ROWS * COLUMNS * ROW_BYTES;

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::numbers;

    fn amx() -> Option<Amx> {
        if !super::super::is_usable() {
            println!("SKIP: no AMX, and no emulator for this system");
            return None;
        }
        // SAFETY: as checked.
        Some(unsafe { Amx::new() })
    }

    #[test]
    fn tiles_of_bytes_are_multiplied() {
        let Some(amx) = amx() else { return };
        for (upper, lower, inner) in [(16, 16, 64), (16, 16, 32), (16, 5, 64), (1, 1, 32), (16, 1, 4)] {
            let stride = inner + 7;
            let codes: Vec<i8> = numbers(1, 32 * stride).into_iter().map(|x| (x * 127.0) as i8).collect();
            let weights: Vec<u8> = numbers(2, 2 * 16 * inner).into_iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
            let (left, right) = ([&codes[..], &codes[16 * stride..]], weights.split_at(16 * inner));
            let mut sums = [[[-1; 16]; 16]; 4];
            let tiles = Tiles::new(amx, &Shapes::new(upper, lower, inner));
            tiles.multiply_int8(left, stride, [right.0, right.1], &mut sums);
            for (tile, sums) in sums.iter().enumerate() {
                for (row, sums) in sums.iter().enumerate() {
                    for (column, &sum) in sums.iter().enumerate() {
                        let weights = &weights[tile % 2 * 16 * inner..];
                        let product = |at: usize| {
                            i32::from(left[tile / 2][row * stride + at])
                                * i32::from(weights[at / 4 * 64 + column * 4 + at % 4])
                        };
                        let exists = row < [upper, lower][tile / 2];
                        let expected = if exists { (0..inner).map(product).sum() } else { -1 };
                        assert_eq!(sum, expected, "{upper} {lower} {inner}: {tile} {row} {column}");
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_of_bf16_are_multiplied_and_go_on_where_they_were() {
        let Some(amx) = amx() else { return };
        let steps = 3;
        let stride = 2 * 32 * steps + 6;
        let weights: Vec<u8> =
            numbers(1, 32 * stride / 2).into_iter().flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect();
        let x: Vec<bf16> = numbers(2, 32 * 32 * steps).into_iter().map(bf16::from_f32).collect();
        let x_at = |column: usize, at: usize| x[column * 32 * steps + at];
        let pair = |column: usize, at: usize| {
            f32::from_bits(u32::from(x_at(column, at).to_bits()) | u32::from(x_at(column, at + 1).to_bits()) << 16)
        };
        let panel = |first: usize| -> Vec<PairRows> {
            let step = |step: usize| -> PairRows {
                std::array::from_fn(|row| std::array::from_fn(|column| pair(first + column, 32 * step + 2 * row)))
            };
            (0..steps).map(step).collect()
        };
        let (right0, right1) = (panel(0), panel(16));
        let left = Left { bytes: &weights, stride, next: (weights.as_ptr(), 3) };
        let tiles = Tiles::new(amx, &Shapes::whole());
        let mut at_once = [[[[f32::NAN; 16]; 16]; 2]; 2];
        tiles.multiply_bf16(left, [&right0, &right1], &mut at_once, false);
        for output in 0..32 {
            let weight = |at: usize| {
                let at = output * stride + 2 * at;
                bf16::from_le_bytes([weights[at], weights[at + 1]])
            };
            for column in 0..32 {
                let expected: f64 = (0..32 * steps).map(|at| f64::from(weight(at)) * f64::from(x_at(column, at))).sum();
                let sum = at_once[column / 16][output / 16][output % 16][column % 16];
                crate::testing::assert_close(sum, expected, 2e-5, (output, column));
            }
        }
        let mut in_parts = [[[[f32::NAN; 16]; 16]; 2]; 2];
        tiles.multiply_bf16(left, [&right0[..1], &right1[..1]], &mut in_parts, false);
        let rest = Left { bytes: &weights[64..], ..left };
        tiles.multiply_bf16(rest, [&right0[1..], &right1[1..]], &mut in_parts, true);
        assert_eq!(in_parts, at_once);
    }

    #[test]
    #[should_panic(expected = "bytes are not 32 rows of 1 steps")]
    fn operands_that_are_too_short_are_refused() {
        Left { bytes: &[0; 31 * 64 + 63], stride: 64, next: (std::ptr::null(), 0) }.check(1);
    }
}
