//! Bytes to floats, in the reference's order of operations.
//!
//! transformers' Pillow processors compute `f32(f64(x) * rescale_factor)`, then `(v - mean) / std` in f32. A byte has
//! 256 values, so one table per channel gives its bits exactly and costs one lookup per sample.

/// Maps a byte of each channel to its normalised value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PixelTable {
    channels: [[f32; 256]; 3],
}

impl PixelTable {
    /// `rescale`: the factor, if the processor rescales; `normalize`: mean and std per channel, if it normalises.
    pub(crate) fn new(rescale: Option<f64>, normalize: Option<([f32; 3], [f32; 3])>) -> Self {
        let value = |byte: usize, channel: usize| {
            let scaled = match rescale {
                Some(factor) => (byte as f64 * factor) as f32,
                None => byte as f32,
            };
            match normalize {
                Some((mean, std)) => (scaled - mean[channel]) / std[channel],
                None => scaled,
            }
        };
        Self { channels: std::array::from_fn(|channel| std::array::from_fn(|byte| value(byte, channel))) }
    }

    /// Appends the `width` x `height` window at (`left`, `top`) of interleaved `pixels` with `stride` pixels per row,
    /// as three planes `[3, height, width]`.
    pub(crate) fn append_planes(&self, pixels: &[u8], stride: usize, window: Window, planes: &mut Vec<f32>) {
        for (channel, table) in self.channels.iter().enumerate() {
            for row in window.top..window.top + window.height {
                let start = (row * stride + window.left) * 3;
                let row = &pixels[start..start + window.width * 3];
                planes.extend(row.chunks_exact(3).map(|pixel| table[usize::from(pixel[channel])]));
            }
        }
    }
}

/// A part of a picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) left: usize,
    pub(crate) top: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_mean_and_std_span_minus_one_to_one() {
        let table = PixelTable::new(Some(1.0 / 255.0), Some(([0.5; 3], [0.5; 3])));
        assert_eq!(table.channels[0][0], -1.0);
        assert_eq!(table.channels[2][255], 1.0);
    }

    #[test]
    fn without_steps_the_byte_itself_is_the_value() {
        let table = PixelTable::new(None, None);
        let mut planes = Vec::new();
        let window = Window { left: 1, top: 0, width: 1, height: 2 };
        table.append_planes(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 2, window, &mut planes);
        assert_eq!(planes, [4.0, 10.0, 5.0, 11.0, 6.0, 12.0]);
    }
}
