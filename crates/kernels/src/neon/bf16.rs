//! The row `neon-bf16`: what [`Pairs`] improves, on top of the row with products of byte matrices.
//!
//! `bfdot` forms the sum of the products of two pairs and adds it to a sum of the lane, both rounded to odd, with
//! subnormal numbers as zero: an error of up to a unit in the last place, where `vdpbf16ps` has half a unit twice. That
//! is so unless a program asks for the extended form (`FPCR.EBF`), which none does by itself.
//!
//! `bfmmla` multiplies two pairs of two rows by two pairs of two columns, twice as many products, and adds them in the
//! order of two `bfdot`, so that the bits are the same: products of many rows consist of it, attention and products of
//! few rows of `bfdot`.
//!
//! Compilers know the instructions, Rust has not stabilised their names, hence `asm!`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Neon;
use crate::matmul_pairs::{LINE_PAIRS, Tile};
use crate::pairs::{Pairs, Rows};
use crate::simd::Simd;

/// Proof that the processor has products of pairs of bfloat16 besides what [`Neon`] proves.
#[derive(Clone, Copy)]
pub(crate) struct NeonBf16(Neon);

impl NeonBf16 {
    /// # Safety
    /// The processor has NEON and its products of bfloat16.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: the caller's promise includes it.
        Self(unsafe { Neon::new() })
    }
}

// NEON with products of pairs of bfloat16, and of byte matrices.
crate::generic_table::pairs_table!(
    "neon-bf16",
    NeonBf16,
    super::row::ROW,
    super::i8mm::QUANTIZED,
    target_feature(enable = "neon,bf16")
);

const LANES: usize = 4;

impl Pairs for NeonBf16 {
    type Simd = Neon;
    type Pairs = float32x4_t;
    /// As it is: the instruction takes it from the first lane of a register.
    type Pair = f32;
    type Square = [float32x4_t; LANES];

    const DEPTH: usize = 4;

    #[inline(always)]
    fn simd(self) -> Neon {
        self.0
    }

    crate::generic_table::apart!(target_feature(enable = "neon,bf16"));

    #[inline(always)]
    fn dot(self, sums: float32x4_t, pair: f32, pairs: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { dot_by_first_pair(sums, pair, pairs) }
    }

    #[inline(always)]
    fn splat_pair(self, pair: f32) -> f32 {
        pair
    }

    #[inline(always)]
    fn load_pairs(self, chunk: &[f32; LANES]) -> float32x4_t {
        self.0.load(chunk)
    }

    #[inline(always)]
    fn store_pairs(self, pairs: float32x4_t, chunk: &mut [f32; LANES]) {
        self.0.store(pairs, chunk);
    }

    #[inline(always)]
    fn neighbours(self, first: float32x4_t, second: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { rounded(first, second) }
    }

    #[inline(always)]
    fn transposed(self, rows: &Rows<'_>) -> [float32x4_t; LANES] {
        let [ab, cd, ab_behind, cd_behind] = self.packed(rows);
        // SAFETY: as above.
        unsafe {
            [vuzp1q_f32(ab, cd), vuzp2q_f32(ab, cd), vuzp1q_f32(ab_behind, cd_behind), vuzp2q_f32(ab_behind, cd_behind)]
        }
    }

    /// Of rows a, b, c, d: two pairs of a and b, two of c and d, the next two of a and b, of c and d.
    #[inline(always)]
    fn packed(self, rows: &Rows<'_>) -> [float32x4_t; LANES] {
        let [a, b, c, d] = if rows.count() == LANES && rows.len() == 4 * LANES {
            // SAFETY: `self` proves that the processor has NEON; registers can be read.
            unsafe { [part(rows, 0), part(rows, 1), part(rows, 2), part(rows, 3)] }
        } else {
            edge(self, rows)
        };
        let ([ab, ab_behind], [cd, cd_behind]) = (halves_exchanged(self, [a, b]), halves_exchanged(self, [c, d]));
        [ab, cd, ab_behind, cd_behind]
    }

    #[inline(always)]
    fn add_products<const R: usize, const C: usize>(self, tile: &Tile<'_>, sums: &mut [[float32x4_t; C]; R]) {
        add_squares::<R, C, 0>(self, tile, sums);
        if const { R > HEIGHT } {
            add_squares::<R, C, HEIGHT>(self, tile, sums);
        }
    }

    #[inline(always)]
    fn add_most(self, squares: float32x4_t, x: float32x4_t, weights: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { multiply_square(squares, x, weights) }
    }
}

/// Rows at a time: with more of them, compilers move sums to and fro.
const HEIGHT: usize = 4;

/// Adds the products of [`HEIGHT`] rows from row FIRST on, or of as many as there are. Two rows share squares: their sums
/// for two columns. A row without a partner is its own.
#[inline(always)]
fn add_squares<const R: usize, const C: usize, const FIRST: usize>(
    arch: NeonBf16,
    tile: &Tile<'_>,
    sums: &mut [[float32x4_t; C]; R],
) {
    let (weights, _) = tile.weights::<NeonBf16>().as_chunks::<LANES>();
    let twos = (R - FIRST).div_ceil(2).min(HEIGHT / 2);
    let mut x: [[&[[f32; LANES]]; 2]; HEIGHT / 2] = [[&[]; 2]; HEIGHT / 2];
    let mut squares = [[[sums[0][0]; 2]; C]; HEIGHT / 2];
    for two in 0..twos {
        let (top, bottom) = (FIRST + 2 * two, R.min(FIRST + 2 * two + 2) - 1);
        let rows = tile.x::<R>();
        x[two] = [&rows[top].as_chunks().0[..weights.len()], &rows[bottom].as_chunks().0[..weights.len()]];
        for c in 0..C {
            squares[two][c] = halves_exchanged(arch, [sums[top][c], sums[bottom][c]]);
        }
    }
    for step in 0..weights.len() {
        if FIRST == 0 && step.is_multiple_of(LINE_PAIRS / LANES) {
            tile.ask_ahead(arch, LANES * step);
        }
        let mut factors = [[arch.simd().splat(0.0); 2]; HEIGHT / 2];
        for two in 0..twos {
            let [top, bottom] = x[two];
            factors[two] = halves_exchanged(arch, [arch.load_pairs(&top[step]), arch.load_pairs(&bottom[step])]);
        }
        for half in 0..2 {
            for c in 0..C {
                let left = arch.load_pairs(&weights[step][2 * half][c]);
                let right = arch.load_pairs(&weights[step][2 * half + 1][c]);
                for two in 0..twos {
                    let [first, last] = squares[two][c];
                    let x = factors[two][half];
                    squares[two][c] = [arch.add_most(first, x, left), arch.add_most(last, x, right)];
                }
            }
        }
    }
    for two in 0..twos {
        for c in 0..C {
            let [top, bottom] = halves_exchanged(arch, squares[two][c]);
            sums[R.min(FIRST + 2 * two + 2) - 1][c] = bottom;
            sums[FIRST + 2 * two][c] = top;
        }
    }
}

/// The last half of the first register changes places with the first half of the second one.
#[inline(always)]
fn halves_exchanged(_arch: NeonBf16, [first, second]: [float32x4_t; 2]) -> [float32x4_t; 2] {
    // SAFETY: an argument proves that the processor has these instructions; they touch registers only.
    unsafe {
        let (first, second) = (vreinterpretq_f64_f32(first), vreinterpretq_f64_f32(second));
        [vreinterpretq_f32_f64(vzip1q_f64(first, second)), vreinterpretq_f32_f64(vzip2q_f64(first, second))]
    }
}

/// Four pairs of a row.
///
/// # Safety
/// The processor has NEON, and so many can be read.
#[inline(always)]
unsafe fn part(rows: &Rows<'_>, row: usize) -> float32x4_t {
    // SAFETY: the caller vouches for both; any alignment will do.
    unsafe { vreinterpretq_f32_u8(vld1q_u8(rows.part(row))) }
}

/// Parts of fewer rows than there are lanes, or shorter than a register, with zeros behind them.
#[cold]
#[inline(never)]
fn edge(arch: NeonBf16, rows: &Rows<'_>) -> [float32x4_t; LANES] {
    let mut lines = [[0; 4 * LANES]; LANES];
    for (row, line) in lines.iter_mut().enumerate().take(rows.count()) {
        for (at, byte) in line.iter_mut().enumerate().take(rows.len()) {
            // SAFETY: so many bytes of the part can be read.
            *byte = unsafe { *rows.part(row).add(at) };
        }
    }
    let simd = arch.simd();
    [simd.load_f32(&lines[0]), simd.load_f32(&lines[1]), simd.load_f32(&lines[2]), simd.load_f32(&lines[3])]
}

/// `sums[lane] += pairs[lane][0] · pair[0] + pairs[lane][1] · pair[1]`.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn dot_by_first_pair(mut sums: float32x4_t, pair: f32, pairs: float32x4_t) -> float32x4_t {
    // SAFETY: the function has the instruction's feature; it touches registers only.
    unsafe {
        asm!("bfdot {sums:v}.4s, {pairs:v}.8h, {pair:v}.2h[0]",
            sums = inout(vreg) sums, pairs = in(vreg) pairs, pair = in(vreg) pair,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// `squares[2 · row + column] += Σ x[4 · row + i] · weights[4 · column + i]` for two rows, two columns and i below four, in
/// the order of two dot products of a pair.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply_square(mut squares: float32x4_t, x: float32x4_t, weights: float32x4_t) -> float32x4_t {
    // SAFETY: the function has the instruction's feature; it touches registers only.
    unsafe {
        asm!("bfmmla {squares:v}.4s, {x:v}.8h, {weights:v}.8h",
            squares = inout(vreg) squares, x = in(vreg) x, weights = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    squares
}

/// Eight values rounded to bfloat16.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn rounded(first: float32x4_t, second: float32x4_t) -> float32x4_t {
    let values;
    // SAFETY: the function has the instructions' feature; they touch registers only, and note in one what was inexact.
    unsafe {
        asm!("bfcvtn {values:v}.4h, {first:v}.4s", "bfcvtn2 {values:v}.8h, {second:v}.4s",
            values = out(vreg) values, first = in(vreg) first, second = in(vreg) second,
            options(pure, nomem, nostack));
    }
    values
}
