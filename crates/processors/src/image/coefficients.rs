//! Resampling weights as Pillow computes them: in f64, then rounded to 22-bit fixed point.

use super::ResampleFilter;

/// For every output position: where its input window starts, and the weights of the window.
pub(super) struct Coefficients {
    /// First input position and number of weights, per output position.
    windows: Vec<(usize, usize)>,
    /// `stride` weights per output position; unused ones are zero.
    weights: Vec<i32>,
    stride: usize,
}

impl Coefficients {
    /// Weights to go from `from` to `to` samples.
    pub(super) fn new(filter: Kernel, from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        // Down-scaling widens the filter so that every input sample counts; up-scaling leaves it as it is.
        let filter_scale = scale.max(1.0);
        let support = filter.support * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut windows = Vec::with_capacity(to);
        let mut weights = vec![0; stride * to];
        let mut exact = vec![0.0; stride];
        for (position, fixed) in weights.chunks_exact_mut(stride).enumerate() {
            let centre = (position as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0);
            let end = ((centre + support + 0.5) as i64).min(from as i64);
            let count = (end - first).max(0) as usize;
            let inverse = 1.0 / filter_scale;
            let mut sum = 0.0;
            for (offset, weight) in exact[..count].iter_mut().enumerate() {
                *weight = (filter.weight)(((offset as i64 + first) as f64 - centre + 0.5) * inverse);
                sum += *weight;
            }
            for (fixed, weight) in fixed.iter_mut().zip(&exact[..count]) {
                *fixed = to_fixed(if sum == 0.0 { *weight } else { *weight / sum });
            }
            windows.push((first as usize, count));
        }
        Self { windows, weights, stride }
    }

    /// First input position and weights of an output position.
    pub(super) fn at(&self, position: usize) -> (usize, &[i32]) {
        let (first, count) = self.windows[position];
        (first, &self.weights[position * self.stride..][..count])
    }
}

fn to_fixed(weight: f64) -> i32 {
    let rounding = if weight < 0.0 { -0.5 } else { 0.5 };
    (rounding + weight * f64::from(1 << PRECISION_BITS)) as i32
}

/// A filter's shape: half its width, and its weight at a distance from the centre.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    support: f64,
    weight: fn(f64) -> f64,
}

impl Kernel {
    /// The shape of a filter; `None` for [`ResampleFilter::Nearest`], which has no weights.
    pub(super) fn of(filter: ResampleFilter) -> Option<Self> {
        let (support, weight): (f64, fn(f64) -> f64) = match filter {
            ResampleFilter::Nearest => return None,
            ResampleFilter::Box => (0.5, box_weight),
            ResampleFilter::Bilinear => (1.0, bilinear_weight),
            ResampleFilter::Hamming => (1.0, hamming_weight),
            ResampleFilter::Bicubic => (2.0, bicubic_weight),
            ResampleFilter::Lanczos => (3.0, lanczos_weight),
        };
        Some(Self { support, weight })
    }
}

fn box_weight(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn bilinear_weight(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 { 1.0 - x } else { 0.0 }
}

fn hamming_weight(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x * (0.54 + 0.46 * x.cos())
}

fn bicubic_weight(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos_weight(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Fraction bits of a weight: 8 bits of sample and 2 of head room for sums beyond 255 leave 22 of 32.
pub(super) const PRECISION_BITS: u32 = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_position_sum_to_one() {
        for filter in [ResampleFilter::Box, ResampleFilter::Bilinear, ResampleFilter::Lanczos] {
            for (from, to) in [(7, 3), (3, 7), (1, 5), (100, 1)] {
                let table = Coefficients::new(Kernel::of(filter).unwrap(), from, to);
                for position in 0..to {
                    let sum: i32 = table.at(position).1.iter().sum();
                    assert!((sum - (1 << PRECISION_BITS)).abs() <= 101, "{filter:?} {from}->{to}: {sum}");
                }
            }
        }
    }
}
