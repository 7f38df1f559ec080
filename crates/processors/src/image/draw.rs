//! Marks on pictures, parts of pictures, and pictures as files.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::Image;
use crate::{Error, Result};

impl Image {
    /// Draws the outline of a box: left, top, right and bottom edge in pixels, parts outside left out.
    pub fn outline(&mut self, [left, top, right, bottom]: [usize; 4], thickness: usize, colour: [u8; 3]) {
        let (right, bottom) = (right.min(self.width), bottom.min(self.height));
        for y in top..bottom {
            for x in left..right {
                let is_inside = |at: usize, low: usize, high: usize| at >= low + thickness && at + thickness < high;
                if !(is_inside(x, left, right) && is_inside(y, top, bottom)) {
                    self.pixels[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
                }
            }
        }
    }

    /// The part inside a box: left, top, right and bottom edge in pixels. It has at least one pixel of this picture.
    ///
    /// # Panics
    /// For a picture without pixels.
    #[must_use]
    pub fn crop(&self, [left, top, right, bottom]: [usize; 4]) -> Self {
        assert!(self.width > 0 && self.height > 0, "a part of a picture without pixels");
        let (left, top) = (left.min(self.width - 1), top.min(self.height - 1));
        let (right, bottom) = (right.clamp(left + 1, self.width), bottom.clamp(top + 1, self.height));
        let row = |y: usize| &self.pixels[(y * self.width + left) * 3..(y * self.width + right) * 3];
        Self::new(right - left, bottom - top, (top..bottom).flat_map(row).copied().collect())
    }

    /// The bytes of a PNG file.
    ///
    /// # Errors
    /// [`Error::NoPixels`] for a picture that no file can hold.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let &Self { width, height, .. } = self;
        let no_pixels = || Error::NoPixels { width, height };
        let side = |side: usize| u32::try_from(side).ok().filter(|&side| side > 0).ok_or_else(no_pixels);
        let mut bytes = Vec::new();
        let written =
            PngEncoder::new(&mut bytes).write_image(&self.pixels, side(width)?, side(height)?, ExtendedColorType::Rgb8);
        written.map_err(|_| no_pixels())?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageLimits, decode_image};

    #[test]
    fn an_outline_is_hollow_and_ends_at_the_edges() {
        let mut image = Image::new(6, 5, vec![0; 90]);
        image.outline([1, 1, 9, 5], 1, [255; 3]);
        let rows: Vec<String> = image
            .pixels
            .chunks(18)
            .map(|row| row.chunks(3).map(|pixel| if pixel[0] > 0 { '#' } else { '.' }).collect())
            .collect();
        assert_eq!(rows, ["......", ".#####", ".#...#", ".#...#", ".#####"]);
    }

    #[test]
    fn a_part_lies_within_the_picture() {
        let image = Image::new(4, 3, (0..36).collect());
        assert_eq!(image.crop([1, 1, 3, 2]), Image::new(2, 1, (15..21).collect()));
        assert_eq!(image.crop([0, 0, 9, 9]), image);
        assert_eq!(image.crop([2, 2, 2, 1]), Image::new(1, 1, vec![30, 31, 32]));
        assert_eq!(image.crop([9, 9, 9, 9]), Image::new(1, 1, vec![33, 34, 35]));
    }

    #[test]
    fn a_file_holds_the_picture() {
        let image = Image::new(3, 2, (0..18).collect());
        assert_eq!(decode_image(&image.to_png().unwrap(), &ImageLimits::default()).unwrap(), image);
        assert!(Image::new(0, 2, Vec::new()).to_png().is_err());
    }
}
