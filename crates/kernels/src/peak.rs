//! Arithmetic on registers and nothing else: what the processor could do, as a measure for everything it does.

use std::hint::black_box;

use crate::dispatch::Kernels;
use crate::pairs::Pairs;
use crate::quantized::{Dots, LINE, PANEL, RUN};
use crate::simd::Simd;

/// A kind of arithmetic that an instruction set has: run it and take the time to learn a thread's peak.
#[derive(Clone, Copy)]
pub struct Peak {
    name: &'static str,
    /// Operations of a round: a multiply-add is two.
    operations: usize,
    run: PeakFn,
}

/// Runs that many rounds; writes something that depends on all of them to the first value.
pub(crate) type PeakFn = fn(usize, &mut [f32]);

impl Peak {
    /// Of `run`, whose rounds are `operations` operations each.
    pub(crate) const fn new(name: &'static str, operations: usize, run: PeakFn) -> Self {
        Self { name, operations, run }
    }

    /// What is multiplied: `f32`, `bf16`, `int8`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Computes `rounds` rounds of independent multiply-adds on this thread; returns the number of operations (a
    /// multiply-add is two).
    pub fn run(&self, rounds: usize) -> usize {
        let mut result = [0.0];
        (self.run)(rounds, &mut result);
        black_box(result);
        rounds * self.operations
    }
}

impl Kernels {
    /// Every kind of arithmetic that the instruction set has, `f32` first, then `int8`.
    pub fn peaks(&self) -> impl Iterator<Item = Peak> {
        let f32 = Peak::new("f32", 2 * SUMS * self.lanes, self.multiply_adds);
        [f32, self.quantized.peak].into_iter().chain(self.other_peaks.iter().copied())
    }
}

/// Multiply-adds under way at a time: they hide its latency everywhere (at most 5 cycles, 2 per cycle), and fit into
/// 16 registers together with the operands.
pub(crate) const SUMS: usize = 12;

/// The same for products of pairs, which take 6 cycles on Zen 5 (with 12 sums they read 7 % too low there); instruction
/// sets with pairs have 32 registers.
pub(crate) const PAIR_SUMS: usize = 24;

/// Writes the sum of all sums to `out[0]`, so that none of them is left out.
#[inline(always)]
pub(crate) fn multiply_adds<S: Simd>(simd: S, rounds: usize, out: &mut [f32]) {
    let (factor, summand) = (simd.splat(black_box(0.5)), simd.splat(black_box(1.0)));
    let mut sums = [summand; SUMS];
    for (idx, sum) in sums.iter_mut().enumerate() {
        // Unknown to the compiler: equal sums would be computed once.
        *sum = simd.splat(black_box(idx as f32));
    }
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = simd.mul_add(*sum, factor, summand);
        }
    }
    let mut total = sums[0];
    for &sum in &sums[1..] {
        total = simd.add(total, sum);
    }
    out[0] = simd.sum(total);
}

/// Writes the sum of all sums to `out[0]`.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    expect(dead_code, reason = "no instruction set of this target has pairs")
)]
#[inline(always)]
pub(crate) fn multiply_adds_of_pairs<P: Pairs>(arch: P, rounds: usize, out: &mut [f32]) {
    let simd = arch.simd();
    let one = simd.splat(black_box(1.0));
    let factor = arch.neighbours(one, one);
    let mut sums = [one; PAIR_SUMS];
    for (idx, sum) in sums.iter_mut().enumerate() {
        *sum = simd.splat(black_box(idx as f32));
    }
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = arch.add_most(*sum, factor, factor);
        }
    }
    let mut total = sums[0];
    for &sum in &sums[1..] {
        total = simd.add(total, sum);
    }
    out[0] = simd.sum(total);
}

/// Operations of a round of [`multiply_adds_int8`].
pub(crate) const INT8_OPERATIONS: usize = 2 * SUMS * QUADS * 4 * PANEL;

/// Dot products between two roundings to whole sums, as long as a run of a quantised product.
const QUADS: usize = RUN / 4;

/// The same with bytes, as quantised products multiply them.
#[inline(always)]
pub(crate) fn multiply_adds_int8<D: Dots>(dots: D, rounds: usize, out: &mut [f32]) {
    // As many sums as have registers.
    if D::WIDE {
        byte_sums::<D, 3, { SUMS / 3 }>(dots, rounds, out);
    } else {
        byte_sums::<D, 4, 1>(dots, rounds * (SUMS / 4), out);
    }
}

/// R rows × P panels of sums.
#[inline(always)]
fn byte_sums<D: Dots, const R: usize, const P: usize>(dots: D, rounds: usize, out: &mut [f32]) {
    let (lines, quads) = ([[1; LINE]; P], [[1, 0, 0, 0]; R]);
    let mut sums = [[dots.zero(); P]; R];
    for _ in 0..rounds {
        // Not by `map`, which is not inlined into functions with other features.
        let mut runs = [[dots.begin(sums[0][0]); P]; R];
        for (run, sum) in runs.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
            *run = dots.begin(*sum);
        }
        for _ in 0..QUADS {
            // Unknown to the compiler, all of them: equal products would be computed once, and once for all rounds.
            let (lines, quads) = black_box((&lines, &quads));
            let mut codes = [dots.codes(&lines[0], 0); P];
            for (codes, line) in codes.iter_mut().zip(lines) {
                *codes = dots.codes(line, 0);
            }
            for (runs, quad) in runs.iter_mut().zip(quads) {
                let quad = dots.quad(*quad);
                for (run, codes) in runs.iter_mut().zip(codes) {
                    *run = dots.dot(*run, codes, quad);
                }
            }
        }
        for (sum, run) in sums.as_flattened_mut().iter_mut().zip(runs.as_flattened()) {
            *sum = dots.end(*sum, *run);
        }
    }
    let mut total = dots.splat(0.0);
    for sum in sums.as_flattened() {
        total = dots.fused(dots.to_floats(*sum), dots.splat(1.0), total);
    }
    let mut values = [0.0; PANEL];
    dots.store(total, &mut values);
    out[0] = values[0];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_counts() {
        for kernels in Kernels::available() {
            let peaks: Vec<Peak> = kernels.peaks().collect();
            assert_eq!(peaks[0].name(), "f32");
            for peak in &peaks {
                assert_eq!(peak.run(10), 10 * peak.operations, "{} {}", kernels.name(), peak.name());
            }
            // x = x / 2 + 1 ends at 2 wherever it begins.
            let mut sum = [0.0];
            (kernels.multiply_adds)(60, &mut sum);
            assert_eq!(sum[0], (2 * SUMS * kernels.lanes) as f32, "{}", kernels.name());
            if kernels.name() == "amx" {
                // Tiles multiply zeros.
                continue;
            }
            // Every product of bytes adds a code of 1 to one of the sums of an output, 1 - 128 where codes are signed.
            let bytes_of = |rounds| {
                let mut sum = [0.0];
                (kernels.quantized.peak.run)(rounds, &mut sum);
                sum[0]
            };
            let each = (bytes_of(5) - bytes_of(0)) / (5 * SUMS * QUADS) as f32;
            assert!(each == 1.0 || each == -127.0, "{}: {each}", kernels.name());
            if let Some(pairs) = peaks.iter().find(|peak| peak.name() == "bf16") {
                // Every multiply-add adds one to a sum, which begins with a number of its own.
                (pairs.run)(10, &mut sum);
                let beginnings = PAIR_SUMS * (PAIR_SUMS - 1) / 2;
                let expected = beginnings * kernels.lanes + 10 * pairs.operations / 2;
                assert_eq!(sum[0], expected as f32, "{}", kernels.name());
            }
        }
    }
}
