//! Multiply-adds on registers and nothing else: what the processor could do, as a measure for everything it does.

use std::hint::black_box;

use crate::dispatch::Kernels;
use crate::simd::Simd;

impl Kernels {
    /// Computes `rounds` rounds of independent multiply-adds; returns the number of floating point operations (a
    /// multiply-add is two). Time it to learn a thread's peak.
    pub fn multiply_adds(&self, rounds: usize) -> usize {
        let mut sum = [0.0];
        (self.multiply_adds)(rounds, &mut sum);
        black_box(sum);
        2 * rounds * SUMS * self.lanes
    }
}

/// Multiply-adds under way at a time: they hide its latency everywhere (at most 5 cycles, 2 per cycle), and fit into
/// 16 registers together with the operands.
const SUMS: usize = 12;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_counts() {
        for kernels in Kernels::available() {
            assert_eq!(kernels.multiply_adds(10), 2 * 10 * SUMS * kernels.lanes, "{}", kernels.name());
            // x = x / 2 + 1 ends at 2 wherever it begins.
            let mut sum = [0.0];
            (kernels.multiply_adds)(60, &mut sum);
            assert_eq!(sum[0], (2 * SUMS * kernels.lanes) as f32, "{}", kernels.name());
        }
    }
}
