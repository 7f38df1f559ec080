//! Cuts pictures into patches, so that a convolution whose stride is its size becomes a matrix product.

/// Sizes of [`unfold_patches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Colour channels.
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
}

/// One picture `[channels, height, width]` -> `[patches, channels × patch × patch]`, patches row by row. Pixels at the
/// right and at the bottom that do not fill a patch are left out, as a convolution does.
///
/// # Panics
/// If the lengths do not fit.
#[track_caller]
pub fn unfold_patches(picture: &[f32], sizes: Patches, out: &mut [f32]) {
    let Patches { channels, height, width, patch } = sizes;
    assert!(patch > 0, "{sizes:?} has no patches");
    let (rows, columns) = (height / patch, width / patch);
    assert!(
        picture.len() == channels * height * width && out.len() == rows * columns * channels * patch * patch,
        "{} values for {sizes:?}",
        out.len()
    );
    let mut rows_of_patches = out.chunks_exact_mut(patch);
    for top in (0..rows).map(|row| row * patch) {
        for left in (0..columns).map(|column| column * patch) {
            for channel in 0..channels {
                for y in top..top + patch {
                    let row = &picture[(channel * height + y) * width + left..][..patch];
                    rows_of_patches.next().expect("as many as in the picture").copy_from_slice(row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_keep_channel_row_column_order() {
        let sizes = Patches { channels: 2, height: 4, width: 6, patch: 2 };
        let picture: Vec<f32> = (0..48).map(|value| value as f32).collect();
        let mut out = vec![0.0; 48];
        unfold_patches(&picture, sizes, &mut out);
        assert_eq!(out[..8], [0.0, 1.0, 6.0, 7.0, 24.0, 25.0, 30.0, 31.0]);
        assert_eq!(out[8..16], [2.0, 3.0, 8.0, 9.0, 26.0, 27.0, 32.0, 33.0]);
        assert_eq!(out[40..], [16.0, 17.0, 22.0, 23.0, 40.0, 41.0, 46.0, 47.0]);
    }

    #[test]
    fn a_part_of_a_patch_is_left_out() {
        let sizes = Patches { channels: 1, height: 3, width: 5, patch: 2 };
        let picture: Vec<f32> = (0..15).map(|value| value as f32).collect();
        let mut out = [0.0; 8];
        unfold_patches(&picture, sizes, &mut out);
        assert_eq!(out, [0.0, 1.0, 5.0, 6.0, 2.0, 3.0, 7.0, 8.0]);
        unfold_patches(&[0.0; 3], Patches { channels: 3, height: 1, width: 1, patch: 2 }, &mut []);
    }
}
