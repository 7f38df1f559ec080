//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL (transformers `image_processing_pil_qwen2_vl.py`, `processing_qwen2_vl.py`).
//!
//! A picture keeps its shape: its sides become multiples of a token's, its area stays between a least and a most number
//! of pixels. The tower takes flattened patches in the order in which it merges them, square by square; a patch holds
//! each channel of every frame, and a picture is a film of two equal frames.

use ocelli_formats::Section;
use serde::Deserialize;

use super::{ImageProcessor, Model};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::settings::preprocessor_config;
use crate::{Error, Result};

/// The Qwen2-VL image processor.
#[derive(Debug)]
struct Qwen2Vl {
    settings: Settings,
    table: PixelTable,
}

/// What shapes the pixels; the keys are those of `preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    /// Area after resizing, in pixels.
    min_pixels: usize,
    max_pixels: usize,
    patch: usize,
    /// Frames of a patch.
    frames: usize,
    /// Patches per side of a token.
    merge: usize,
    filter: ResampleFilter,
    rescale: Option<f64>,
    normalize: Option<([f32; 3], [f32; 3])>,
}

/// Reads `preprocessor_config.json` (or the `image_processor` of `processor_config.json`) and `config.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let settings = Settings::load(model)?;
    for token in [START, PAD, END] {
        model.require_token(token)?;
    }
    let Some(section) = model.config.section("vision_config") else {
        return Err(model.config.root().error("vision_config", "missing").into());
    };
    settings.check(&section)?;
    let table = PixelTable::new(settings.rescale, settings.normalize);
    Ok(Box::new(Qwen2Vl { settings, table }))
}

impl ImageProcessor for Qwen2Vl {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        if width.max(height) > MAX_ASPECT * width.min(height) {
            return Err(Error::TooNarrow { width, height, limit: MAX_ASPECT });
        }
        let target = self.settings.target(width, height, detail);
        let resized = resize(image, target.0, target.1, self.settings.filter);
        let Settings { patch, frames, .. } = self.settings;
        let (rows, columns) = (target.1 / patch, target.0 / patch);
        let values = 3 * frames * patch * patch;
        let mut pixel_values = Vec::with_capacity(rows * columns * values);
        let mut planes = Vec::with_capacity(3 * patch * patch);
        for (row, column) in self.settings.order(rows, columns) {
            let window = Window { left: column * patch, top: row * patch, width: patch, height: patch };
            planes.clear();
            self.table.append_planes(&resized.pixels, resized.width, window, &mut planes);
            for plane in planes.chunks_exact(patch * patch) {
                (0..frames).for_each(|_| pixel_values.extend_from_slice(plane));
            }
        }
        Ok(PreparedImage {
            pixel_values,
            shape: [1, 1, rows * columns, values],
            grid: [1, rows, columns],
            text_ids: Vec::new(),
            image_size: (width, height),
            resized_to: target,
            vision_tokens: self.settings.tokens(target),
            content_hash: self.settings.hash(image, target),
        })
    }

    fn vision_tokens(&self, width: usize, height: usize, detail: Detail) -> usize {
        self.settings.tokens(self.settings.target(width.max(1), height.max(1), detail))
    }

    fn expand(&self, image: &PreparedImage) -> String {
        format!("{START}{}{END}", PAD.repeat(image.vision_tokens))
    }

    fn placeholder(&self) -> &str {
        PLACEHOLDER
    }

    fn image_token(&self) -> &str {
        PAD
    }
}

impl Settings {
    fn load(model: &Model<'_>) -> Result<Self> {
        let (file, raw): (String, RawSettings) = preprocessor_config(model.files, "image_processor")?;
        let error = |key: &str, message: String| Error::Value { file: file.clone(), key: key.into(), message };
        let within = |key: &str, value: usize, most: usize| match value {
            1.. if value <= most => Ok(value),
            _ => Err(error(key, format!("expected 1 to {most}, got {value}"))),
        };
        if !raw.do_resize {
            return Err(error("do_resize", "false is not supported: the tower takes whole tokens only".into()));
        }
        let min_pixels = raw.min_pixels.or(raw.size.shortest_edge).or(raw.size.min_pixels).unwrap_or(MIN_PIXELS);
        let max_pixels = raw.max_pixels.or(raw.size.longest_edge).or(raw.size.max_pixels).unwrap_or(MAX_PIXELS);
        let filter = ResampleFilter::from_pillow(raw.resample)
            .ok_or_else(|| error("resample", format!("expected a filter number from 0 to 5, got {}", raw.resample)))?;
        Ok(Self {
            max_pixels: within("max_pixels", max_pixels, MOST_PIXELS)?,
            min_pixels: within("min_pixels", min_pixels, max_pixels)?,
            patch: within("patch_size", raw.patch_size, MAX_PATCH)?,
            frames: within("temporal_patch_size", raw.temporal_patch_size, MAX_PATCH)?,
            merge: within("merge_size", raw.merge_size, MAX_PATCH)?,
            filter,
            rescale: raw.do_rescale.then_some(raw.rescale_factor),
            normalize: raw.do_normalize.then_some((raw.image_mean, raw.image_std)),
        })
    }

    /// The tower's patches must be those of these settings; what differs is an error now, not a crash later.
    fn check(&self, section: &Section) -> Result<()> {
        let tower: VisionConfig = section.parse()?;
        for (key, expected, found) in [
            ("patch_size", self.patch, tower.patch_size),
            ("temporal_patch_size", self.frames, tower.temporal_patch_size),
            ("spatial_merge_size", self.merge, tower.spatial_merge_size),
            ("in_channels", 3, tower.in_channels.or(tower.in_chans).unwrap_or(3)),
        ] {
            if expected != found {
                let message = format!("{found} does not fit pictures prepared for {expected}");
                return Err(section.error(key, &message).into());
            }
        }
        Ok(())
    }

    /// Width and height after resizing: `smart_resize` of the reference, in its order of operations.
    fn target(&self, width: usize, height: usize, detail: Detail) -> (usize, usize) {
        let unit = self.patch * self.merge;
        let max_pixels = match detail {
            Detail::Low => self.max_pixels.min(LOW_TOKENS * unit * unit).max(self.min_pixels),
            Detail::Auto | Detail::High => self.max_pixels,
        };
        let (wide, high, side) = (width as f64, height as f64, unit as f64);
        let nearest = |length: f64| (length / side).round_ties_even() as usize * unit;
        let pixels = nearest(wide) * nearest(high);
        if pixels > max_pixels {
            let shrink = (wide * high / max_pixels as f64).sqrt();
            let fit = |length: f64| ((length / shrink / side).floor() as usize * unit).max(unit);
            (fit(wide), fit(high))
        } else if pixels < self.min_pixels {
            let grow = (self.min_pixels as f64 / (wide * high)).sqrt();
            let fit = |length: f64| (length * grow / side).ceil() as usize * unit;
            (fit(wide), fit(high))
        } else {
            (nearest(wide), nearest(high))
        }
    }

    fn tokens(&self, (width, height): (usize, usize)) -> usize {
        let unit = self.patch * self.merge;
        (width / unit) * (height / unit)
    }

    /// Row and column of every patch, square by square.
    fn order(&self, rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let merge = self.merge;
        let squares = (0..rows / merge).flat_map(move |top| (0..columns / merge).map(move |left| (top, left)));
        squares.flat_map(move |(top, left)| {
            (0..merge * merge).map(move |inner| (top * merge + inner / merge, left * merge + inner % merge))
        })
    }

    /// A hash of the picture and of all that decides its pixel values.
    fn hash(&self, image: &Image, target: (usize, usize)) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.content_hash().to_le_bytes());
        // Debug output spells every field out, floats to the last bit.
        hasher.update(format!("qwen2_vl {self:?} {target:?}").as_bytes());
        first_128_bits(&hasher)
    }
}

/// Defaults are those of transformers.
#[derive(Deserialize)]
#[serde(default)]
struct VisionConfig {
    in_channels: Option<usize>,
    in_chans: Option<usize>,
    patch_size: usize,
    temporal_patch_size: usize,
    spatial_merge_size: usize,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self { in_channels: None, in_chans: None, patch_size: 14, temporal_patch_size: 2, spatial_merge_size: 2 }
    }
}

/// The class defaults of the reference, for keys a file leaves out, are in [`RawSettings::default`].
#[derive(Deserialize)]
#[serde(default)]
struct RawSettings {
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    size: RawSize,
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    resample: u64,
    rescale_factor: f64,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            min_pixels: None,
            max_pixels: None,
            size: RawSize::default(),
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            resample: 3,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

/// Areas, whatever the keys say.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSize {
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
}

/// Where the reference refuses a picture.
const MAX_ASPECT: usize = 200;
/// Tokens of a picture that is not looked at closely.
const LOW_TOKENS: usize = 256;
const MIN_PIXELS: usize = 56 * 56;
const MAX_PIXELS: usize = 28 * 28 * 1280;
/// No model asks for more.
const MOST_PIXELS: usize = 1 << 28;
const MAX_PATCH: usize = 256;
const START: &str = "<|vision_start|>";
const PAD: &str = "<|image_pad|>";
const END: &str = "<|vision_end|>";
const PLACEHOLDER: &str = "<|vision_start|><|image_pad|><|vision_end|>";

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(min_pixels: usize, max_pixels: usize) -> Settings {
        let filter = ResampleFilter::from_pillow(3).unwrap();
        Settings { min_pixels, max_pixels, patch: 14, frames: 2, merge: 2, filter, rescale: None, normalize: None }
    }

    /// Of the reference's `smart_resize`.
    #[test]
    fn sizes_are_those_of_the_reference() {
        let published = settings(3136, 12_845_056);
        for ((width, height), expected) in [
            ((448, 448), (448, 448)),
            // Python rounds halves to even.
            ((42, 70), (56, 56)),
            ((70, 98), (56, 112)),
            ((800, 600), (812, 588)),
            ((1, 1), (56, 56)),
            ((13, 400), (28, 336)),
            ((5000, 4000), (4004, 3192)),
            ((33, 20), (84, 56)),
            ((200, 1), (812, 28)),
        ] {
            assert_eq!(published.target(width, height, Detail::Auto), expected, "{width}x{height}");
        }
        let small = settings(3136, 40_000);
        assert_eq!(small.target(230, 150, Detail::Auto), (224, 140));
        assert_eq!(small.target(800, 600, Detail::Auto), (224, 168));
        assert_eq!(small.target(4000, 20, Detail::Auto), (2828, 28));
    }

    #[test]
    fn a_low_detail_takes_few_tokens() {
        let published = settings(3136, 12_845_056);
        assert_eq!(published.tokens(published.target(448, 448, Detail::Auto)), 256);
        assert_eq!(published.tokens(published.target(4000, 4000, Detail::Low)), 256);
        assert!(published.tokens(published.target(4000, 3000, Detail::Low)) <= 256);
        assert_eq!(published.target(300, 200, Detail::Low), published.target(300, 200, Detail::High));
    }

    #[test]
    fn patches_come_square_by_square() {
        let order: Vec<_> = settings(1, 1).order(2, 4).collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn a_patch_holds_every_channel_of_every_frame() {
        let settings = Settings { patch: 1, merge: 2, ..settings(4, 4) };
        let table = PixelTable::new(None, None);
        let pixels = (0..12).collect();
        let prepared = Qwen2Vl { settings, table }.prepare(&Image::new(2, 2, pixels)).unwrap();
        assert_eq!((prepared.shape, prepared.grid, prepared.vision_tokens), ([1, 1, 4, 6], [1, 2, 2], 1));
        assert_eq!(prepared.pixel_values[..12], [0., 0., 1., 1., 2., 2., 3., 3., 4., 4., 5., 5.]);
    }

    #[test]
    fn a_line_is_refused() {
        let processor = Qwen2Vl { settings: settings(3136, 40_000), table: PixelTable::new(None, None) };
        let error = processor.prepare(&Image::new(201, 1, vec![0; 603])).unwrap_err();
        assert_eq!(error.to_string(), "the image is 201x1 pixels: one side is more than 200 times the other");
        assert!(processor.prepare(&Image::new(200, 1, vec![0; 600])).is_ok());
    }
}
