//! Functions on one row of logits. None of them sorts the vocabulary.
//!
//! A row has up to a few hundred thousand values and is looked at once per token, so the exponential is our own: a
//! polynomial that compilers turn into vector instructions, which calls of the system's `expf` are not.

use std::cmp::Ordering;

/// Index of the largest value, the first of equals; `None` when nothing is above negative infinity.
pub(crate) fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut best_value = f32::NEG_INFINITY;
    for (idx, &value) in logits.iter().enumerate() {
        if value > best_value {
            best = Some(idx);
            best_value = value;
        }
    }
    best.filter(|_| best_value.is_finite())
}

/// Turns logits into log-probabilities. False when they are not numbers.
pub(crate) fn log_softmax(logits: &mut [f32]) -> bool {
    let Some(best) = argmax(logits) else { return false };
    let max = logits[best];
    let shift = (sum_of_exponentials(logits, max, 1.0).ln() + f64::from(max)) as f32;
    for value in logits.iter_mut() {
        *value -= shift;
    }
    shift.is_finite()
}

/// The sum of `exp((value - max) / temperature)`; values that are not numbers count as impossible.
pub(crate) fn sum_of_exponentials(logits: &[f32], max: f32, temperature: f32) -> f64 {
    let scale = temperature.recip();
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut total = 0.0;
    // Short blocks keep the float32 sums exact enough, whatever the vocabulary.
    for block in chunks.chunks(64) {
        let mut sums = [0.0f32; LANES];
        for chunk in block {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum += exponential((value - max) * scale);
            }
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total + rest.iter().map(|value| f64::from(exponential((value - max) * scale))).sum::<f64>()
}

/// `exp(x)` for x up to 0, with a relative error below 1e-6; 0 below -87 and for what is not a number.
#[inline]
pub(crate) fn exponential(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.max(-87.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = (series * r + 0.5) * r * r + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x >= -87.0 { series * power } else { 0.0 }
}

/// Enough independent sums for the widest vectors.
const LANES: usize = 16;

/// A value and where it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) idx: usize,
    pub(crate) value: f32,
}

/// Largest first; of equals, the one that came first.
fn order(a: &Scored, b: &Scored) -> Ordering {
    b.value.total_cmp(&a.value).then(a.idx.cmp(&b.idx))
}

/// Collects the `capacity` largest values of a long stream. Most values are rejected by one comparison with the
/// smallest value that is sure to stay; the rest are thinned out when twice the capacity has gathered.
pub(crate) struct Largest {
    capacity: usize,
    kept: Vec<Scored>,
    threshold: f32,
}

impl Largest {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, kept: Vec::with_capacity(2 * capacity), threshold: f32::NEG_INFINITY }
    }

    /// Offers a value; negative infinity and NaN are never kept.
    #[inline]
    pub(crate) fn offer(&mut self, idx: usize, value: f32) {
        if value > self.threshold {
            self.kept.push(Scored { idx, value });
            if self.kept.len() == 2 * self.capacity {
                self.thin();
            }
        }
    }

    /// The largest values, largest first.
    pub(crate) fn into_sorted(mut self) -> Vec<Scored> {
        self.kept.sort_unstable_by(order);
        self.kept.truncate(self.capacity);
        self.kept
    }

    fn thin(&mut self) {
        self.kept.select_nth_unstable_by(self.capacity - 1, order);
        self.kept.truncate(self.capacity);
        self.threshold = self.kept[self.capacity - 1].value;
    }
}

/// The `count` largest values of a row, largest first.
pub(crate) fn largest(logits: &[f32], count: usize) -> Vec<Scored> {
    let mut largest = Largest::new(count.max(1));
    for (idx, &value) in logits.iter().enumerate() {
        largest.offer(idx, value);
    }
    let mut sorted = largest.into_sorted();
    sorted.truncate(count);
    sorted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn largest_is_a_sorted_prefix(values in prop::collection::vec(-4i8..4, 1..200), count in 1usize..50) {
            let logits: Vec<f32> = values.iter().map(|&value| f32::from(value)).collect();
            let mut sorted: Vec<Scored> = logits.iter().copied().enumerate().map(|(idx, value)| Scored { idx, value }).collect();
            sorted.sort_by(order);
            sorted.truncate(count);
            let found = largest(&logits, count);
            // Which of several equal values at the cut stay is open; the values themselves are not.
            let value = |scored: &Scored| scored.value;
            prop_assert_eq!(found.iter().map(value).collect::<Vec<_>>(), sorted.iter().map(value).collect::<Vec<_>>());
            prop_assert_eq!(argmax(&logits), Some(sorted[0].idx));
        }

        #[test]
        fn log_softmax_sums_to_one(mut logits in prop::collection::vec(-50.0f32..50.0, 1..300)) {
            prop_assert!(log_softmax(&mut logits));
            let sum: f64 = logits.iter().map(|&value| f64::from(value).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 2e-5, "{}", sum);
        }
    }

    #[test]
    fn the_exponential_is_close() {
        for step in 0..87_000 {
            let x = -0.001 * step as f32;
            let exact = f64::from(x).exp();
            let error = (f64::from(exponential(x)) - exact).abs() / exact;
            assert!(error < 1e-6, "exp({x}) is off by {error}");
        }
        assert_eq!([f32::NEG_INFINITY, f32::NAN, -88.0, 0.0].map(exponential), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn rows_without_numbers_are_noticed() {
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[f32::NAN, 1.0]), Some(1));
        assert_eq!(argmax(&[f32::INFINITY, 1.0]), None);
        assert!(!log_softmax(&mut [f32::NAN, f32::NAN]));
        assert!(largest(&[f32::NAN, f32::NEG_INFINITY], 3).is_empty());
    }
}
