//! Convolutions over pictures that lie channels last, `[height, width, channels]`.
//!
//! A dense convolution is a matrix product over unfolded windows ([`unfold_windows`]), as a 1×1 one is over the
//! picture itself. A depthwise one ([`Kernels::depthwise`]) has nothing to multiply matrices with: registers run along
//! the channels, and a tile of [`TILE`] neighbouring outputs keeps one register of sums each, so that a tap's weights
//! are read once per tile. What limits it is one load per multiply-add.
//!
//! A row of outputs depends on nothing but its own window, so rows may be split between threads at will.

use std::ops::Range;

use crate::dispatch::Kernels;
use crate::simd::Simd;

/// Sizes of a convolution. Outside of the picture there are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Height of the picture.
    pub height: usize,
    /// Width of the picture.
    pub width: usize,
    /// Channels of the picture.
    pub channels: usize,
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Steps between windows, down and across.
    pub stride: [usize; 2],
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
}

impl Convolution {
    /// Rows and columns of outputs.
    pub fn output(&self) -> [usize; 2] {
        let along = |size: usize, axis: usize| {
            let (padded, kernel) = (size + 2 * self.padding[axis], self.kernel[axis]);
            if padded < kernel { 0 } else { (padded - kernel) / self.stride[axis] + 1 }
        };
        [along(self.height, 0), along(self.width, 1)]
    }

    /// Elements of a window.
    pub fn window_len(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.channels
    }

    /// The taps of a window at output `at` that meet the picture along an axis of `size`, and where the first of them
    /// meets it.
    #[inline(always)]
    fn taps(&self, axis: usize, size: usize, at: usize) -> (Range<usize>, usize) {
        let corner = at * self.stride[axis];
        let first = self.padding[axis].saturating_sub(corner).min(self.kernel[axis]);
        let end = (size + self.padding[axis]).saturating_sub(corner).min(self.kernel[axis]).max(first);
        (first..end, (corner + first).saturating_sub(self.padding[axis]))
    }

    #[track_caller]
    fn check(&self, picture: &[f32], rows: &Range<usize>, out: &[f32], per_output: usize) {
        assert!(self.stride[0] > 0 && self.stride[1] > 0, "{self:?} does not move");
        assert_eq!(picture.len(), self.height * self.width * self.channels, "a picture of {self:?}");
        assert!(rows.end <= self.output()[0], "rows {rows:?} of {self:?}");
        assert_eq!(out.len(), rows.len() * self.output()[1] * per_output, "outputs of {self:?}");
    }
}

/// The windows of some rows of outputs, one after another, each `[channels, kernel height, kernel width]`: the order in
/// which checkpoints hold a convolution's weights.
///
/// # Panics
/// If the lengths do not fit.
#[track_caller]
pub fn unfold_windows(picture: &[f32], sizes: Convolution, rows: Range<usize>, out: &mut [f32]) {
    sizes.check(picture, &rows, out, sizes.window_len());
    let Convolution { height, width, channels, kernel, .. } = sizes;
    let taps = kernel[0] * kernel[1];
    if sizes.window_len() == 0 {
        return;
    }
    let places = rows.flat_map(|row| (0..sizes.output()[1]).map(move |column| (row, column)));
    for ((row, column), window) in places.zip(out.chunks_exact_mut(sizes.window_len())) {
        let (down, top) = sizes.taps(0, height, row);
        let (across, left) = sizes.taps(1, width, column);
        if down.len() * across.len() < taps {
            window.fill(0.0);
        }
        for (y, tap_y) in (top..).zip(down) {
            for (x, tap_x) in (left..).zip(across.clone()) {
                let pixel = &picture[(y * width + x) * channels..][..channels];
                let places = window[tap_y * kernel[1] + tap_x..].iter_mut().step_by(taps);
                for (place, &value) in places.zip(pixel) {
                    *place = value;
                }
            }
        }
    }
}

impl Kernels {
    /// Every channel with a window of its own: some rows of outputs of `picture` `[height, width, channels]`.
    /// `weight` is `[kernel height, kernel width, channels]`, `out` `[rows, output width, channels]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[track_caller]
    pub fn depthwise(&self, problem: &Depthwise<'_>, rows: Range<usize>, out: &mut [f32]) {
        let Depthwise { picture, weight, bias, sizes } = *problem;
        sizes.check(picture, &rows, out, sizes.channels);
        assert_eq!(weight.len(), sizes.window_len(), "weights of {sizes:?}");
        assert!(bias.is_none_or(|bias| bias.len() == sizes.channels), "bias of {sizes:?}");
        (self.depthwise)(problem, rows, out);
    }
}

/// Operands of [`Kernels::depthwise`].
#[derive(Clone, Copy)]
pub struct Depthwise<'a> {
    /// `[height, width, channels]`.
    pub picture: &'a [f32],
    /// `[kernel height, kernel width, channels]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// How the windows lie.
    pub sizes: Convolution,
}

/// Outputs side by side whose sums are in registers together.
const TILE: usize = 8;

#[inline(always)]
pub(crate) fn depthwise<S: Simd>(simd: S, problem: &Depthwise<'_>, rows: Range<usize>, out: &mut [f32]) {
    let sizes = problem.sizes;
    let (channels, columns) = (sizes.channels, sizes.output()[1]);
    if channels == 0 || columns == 0 {
        return;
    }
    // Windows of these columns lie within the picture from left to right.
    let inner = inner_columns(&sizes);
    for (row, out) in rows.zip(out.chunks_exact_mut(columns * channels)) {
        for channel in (0..channels).step_by(S::LANES) {
            let part = channel..channels.min(channel + S::LANES);
            let mut column = 0;
            while column < columns {
                if inner.contains(&column) && inner.end - column >= TILE {
                    tile::<S, TILE>(simd, problem, (row, column), part.clone(), out);
                    column += TILE;
                } else {
                    tile::<S, 1>(simd, problem, (row, column), part.clone(), out);
                    column += 1;
                }
            }
        }
    }
}

#[inline(always)]
fn inner_columns(sizes: &Convolution) -> Range<usize> {
    let (kernel, stride, padding) = (sizes.kernel[1], sizes.stride[1], sizes.padding[1]);
    let first = padding.div_ceil(stride);
    let last_corner = (sizes.width + padding).checked_sub(kernel);
    first..last_corner.map_or(first, |corner| (corner / stride + 1).min(sizes.output()[1]))
}

/// N neighbouring outputs of up to a register of channels. More than one only where no tap is outside to the left or
/// right. Taps are taken in the same order whatever N is, so that an output's bits do not depend on its place.
#[inline(always)]
fn tile<S: Simd, const N: usize>(
    simd: S,
    problem: &Depthwise<'_>,
    (row, column): (usize, usize),
    part: Range<usize>,
    out: &mut [f32],
) {
    let Depthwise { picture, weight, bias, sizes } = *problem;
    let (channels, len) = (sizes.channels, part.len());
    let step = sizes.stride[1] * channels;
    let (down, top) = sizes.taps(0, sizes.height, row);
    let (across, left) = sizes.taps(1, sizes.width, column);
    let mut sums = [simd.splat(0.0); N];
    if let Some(bias) = bias {
        sums = [load(simd, &bias[part.clone()]); N];
    }
    for (y, tap_y) in (top..).zip(down) {
        for (x, tap_x) in (left..).zip(across.clone()) {
            let tap = load(simd, &weight[(tap_y * sizes.kernel[1] + tap_x) * channels + part.start..][..len]);
            let pixels = &picture[(y * sizes.width + x) * channels + part.start..][..(N - 1) * step + len];
            for n in 0..N {
                sums[n] = simd.mul_add(load(simd, &pixels[n * step..][..len]), tap, sums[n]);
            }
        }
    }
    for n in 0..N {
        store(simd, sums[n], &mut out[(column + n) * channels + part.start..][..len]);
    }
}

/// A register from as many values as it has lanes, or from fewer.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::F32 {
    match S::chunks(values) {
        ([chunk], []) => simd.load(chunk),
        _ => simd.load_part(values),
    }
}

#[inline(always)]
fn store<S: Simd>(simd: S, value: S::F32, out: &mut [f32]) {
    match S::chunks_mut(out) {
        ([chunk], []) => simd.store(value, chunk),
        (_, _) => simd.store_part(value, out),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, numbers};

    fn sizes(height: usize, width: usize, channels: usize, kernel: usize, stride: usize) -> Convolution {
        let padding = [kernel / 2; 2];
        Convolution { height, width, channels, kernel: [kernel; 2], stride: [stride; 2], padding }
    }

    /// All shapes that towers use, and some that nobody does.
    fn cases() -> Vec<Convolution> {
        let mut cases = vec![
            sizes(1, 1, 1, 3, 1),
            sizes(5, 4, 3, 7, 1),
            sizes(6, 29, 17, 3, 2),
            sizes(9, 23, 33, 7, 2),
            sizes(3, 40, 16, 1, 1),
            sizes(8, 11, 48, 3, 1),
        ];
        cases.push(Convolution { kernel: [1, 3], padding: [0, 1], ..sizes(1, 30, 5, 3, 2) });
        cases.push(Convolution { kernel: [2, 5], stride: [3, 1], padding: [4, 0], ..sizes(7, 9, 20, 3, 1) });
        cases.push(Convolution { padding: [0, 0], ..sizes(2, 2, 4, 3, 1) });
        cases
    }

    /// The element of the picture that a tap meets; zero outside.
    fn pixel(picture: &[f32], sizes: &Convolution, at: [usize; 2], tap: [usize; 2], channel: usize) -> f32 {
        let along = |axis: usize, size: usize| {
            (at[axis] * sizes.stride[axis] + tap[axis]).checked_sub(sizes.padding[axis]).filter(|&place| place < size)
        };
        let place = along(0, sizes.height).zip(along(1, sizes.width));
        place.map_or(0.0, |(y, x)| picture[(y * sizes.width + x) * sizes.channels + channel])
    }

    pub(crate) fn every_channel_meets_its_window(kernels: &Kernels) {
        for sizes in cases() {
            let picture = numbers(1, sizes.height * sizes.width * sizes.channels);
            let (weight, bias) = (numbers(2, sizes.window_len()), numbers(3, sizes.channels));
            let [rows, columns] = sizes.output();
            for bias in [None, Some(&bias[..])] {
                let problem = Depthwise { picture: &picture, weight: &weight, bias, sizes };
                let mut out = vec![f32::NAN; rows * columns * sizes.channels];
                kernels.depthwise(&problem, 0..rows, &mut out);
                for (at, &value) in out.iter().enumerate() {
                    let (place, channel) = (at / sizes.channels, at % sizes.channels);
                    let mut expected = bias.map_or(0.0, |bias| f64::from(bias[channel]));
                    for tap in 0..sizes.kernel[0] * sizes.kernel[1] {
                        let (y, x) = (tap / sizes.kernel[1], tap % sizes.kernel[1]);
                        let pixel = pixel(&picture, &sizes, [place / columns, place % columns], [y, x], channel);
                        expected += f64::from(pixel) * f64::from(weight[tap * sizes.channels + channel]);
                    }
                    assert_close(value, expected, 4e-6, (sizes, at));
                }
            }
        }
    }

    pub(crate) fn rows_are_independent(kernels: &Kernels) {
        for sizes in cases() {
            let mut picture = numbers(4, sizes.height * sizes.width * sizes.channels);
            let weight = numbers(5, sizes.window_len());
            let [rows, columns] = sizes.output();
            let row_len = columns * sizes.channels;
            let problem = Depthwise { picture: &picture, weight: &weight, bias: None, sizes };
            let mut whole = vec![0.0; rows * row_len];
            kernels.depthwise(&problem, 0..rows, &mut whole);
            for row in 0..rows {
                let mut alone = vec![f32::NAN; row_len];
                kernels.depthwise(&problem, row..row + 1, &mut alone);
                assert_eq!(bits(&alone), bits(&whole[row * row_len..][..row_len]), "{sizes:?}");
            }
            // NaN in one channel stays in it.
            picture[0] = f32::NAN;
            let problem = Depthwise { picture: &picture, weight: &weight, bias: None, sizes };
            kernels.depthwise(&problem, 0..rows, &mut whole);
            assert!(whole.iter().enumerate().all(|(at, value)| !value.is_nan() || at % sizes.channels == 0));
        }
    }

    #[test]
    fn windows_are_what_taps_meet() {
        for sizes in cases() {
            let picture = numbers(6, sizes.height * sizes.width * sizes.channels);
            let [rows, columns] = sizes.output();
            for first in 0..rows.min(2) {
                let mut out = vec![f32::NAN; (rows - first) * columns * sizes.window_len()];
                unfold_windows(&picture, sizes, first..rows, &mut out);
                for (at, &value) in out.iter().enumerate() {
                    let (place, inner) = (at / sizes.window_len(), at % sizes.window_len());
                    let taps = sizes.kernel[0] * sizes.kernel[1];
                    let (tap, channel) = (inner % taps, inner / taps);
                    let tap = [tap / sizes.kernel[1], tap % sizes.kernel[1]];
                    let place = [first + place / columns, place % columns];
                    let expected = pixel(&picture, &sizes, place, tap, channel);
                    assert_eq!(value.to_bits(), expected.to_bits(), "{sizes:?} at {at}");
                }
            }
        }
    }

    #[test]
    fn a_window_larger_than_the_picture_has_no_outputs() {
        let sizes = Convolution { padding: [0, 0], ..sizes(2, 2, 4, 3, 1) };
        assert_eq!(sizes.output(), [0, 0]);
        unfold_windows(&numbers(1, 16), sizes, 0..0, &mut []);
    }
}
