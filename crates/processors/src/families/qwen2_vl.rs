//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL (transformers `image_processing_pil_qwen2_vl.py`, `processing_qwen2_vl.py`).
//!
//! A picture keeps its shape: its sides become multiples of a token's, its area stays between a least and a most number
//! of pixels. The tower takes flattened patches in the order in which it merges them, square by square; a patch holds
//! each channel of every frame, and a picture is a film of two equal frames. Videos are in `qwen_video.rs`.

use ocelli_formats::Section;
use serde::Deserialize;

use super::qwen_video::{self, QwenVideo};
use super::{ImageProcessor, Model, VideoProcessor};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::settings::preprocessor_config;
use crate::{Error, Result};

/// The Qwen2-VL image processor.
#[derive(Debug)]
struct Qwen2Vl {
    settings: Settings,
    table: PixelTable,
    video: QwenVideo,
}

/// What shapes the pixels; the keys are those of `preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// Area after resizing, in pixels.
    pub(super) min_pixels: usize,
    pub(super) max_pixels: usize,
    pub(super) patch: usize,
    /// Frames of a patch.
    pub(super) frames: usize,
    /// Patches per side of a token.
    pub(super) merge: usize,
    pub(super) filter: ResampleFilter,
    pub(super) rescale: Option<f64>,
    pub(super) normalize: Option<([f32; 3], [f32; 3])>,
}

/// Of Qwen2-VL and Qwen2.5-VL: reads `preprocessor_config.json` (or the `image_processor` of `processor_config.json`),
/// its like for videos, and `config.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    load_with(model, &qwen_video::QWEN_2)
}

/// Of Qwen3-VL: the same files.
pub(super) fn load_3(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    load_with(model, &qwen_video::QWEN_3)
}

fn load_with(model: &Model<'_>, of_videos: &qwen_video::Defaults) -> Result<Box<dyn ImageProcessor>> {
    let (file, raw) = preprocessor_config(model.files, "image_processor")?;
    let settings = Settings::new(&file, raw, &PICTURES)?;
    let video = QwenVideo::load(model, of_videos)?;
    for token in [START, PAD, END, video.video_token()] {
        model.require_token(token)?;
    }
    let Some(section) = model.config.section("vision_config") else {
        return Err(model.config.root().error("vision_config", "missing").into());
    };
    settings.check(&section)?;
    video.settings.check(&section)?;
    let table = PixelTable::new(settings.rescale, settings.normalize);
    Ok(Box::new(Qwen2Vl { settings, table, video }))
}

impl ImageProcessor for Qwen2Vl {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        check_shape(width, height)?;
        let target = self.settings.target(width, height, detail);
        let resized = resize(image, target.0, target.1, self.settings.filter);
        let [rows, columns] = self.settings.grid(&resized);
        let mut pixel_values = Vec::new();
        self.settings.append_patches(&[resized], &self.table, &mut pixel_values);
        Ok(PreparedImage {
            shape: [1, 1, rows * columns, pixel_values.len() / (rows * columns)],
            pixel_values,
            grid: [1, rows, columns],
            frames: 1,
            frame_seconds: 0.0,
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

    fn videos(&self) -> Option<&dyn VideoProcessor> {
        Some(&self.video)
    }
}

/// # Errors
/// [`Error::NoPixels`], [`Error::TooNarrow`].
pub(super) fn check_shape(width: usize, height: usize) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::NoPixels { width, height });
    }
    if width.max(height) > MAX_ASPECT * width.min(height) {
        return Err(Error::TooNarrow { width, height, limit: MAX_ASPECT });
    }
    Ok(())
}

impl Settings {
    /// What `file` says, which is `raw`.
    pub(super) fn new(file: &str, raw: RawSettings, defaults: &Defaults) -> Result<Self> {
        let error = |key: &str, message: String| Error::Value { file: file.to_owned(), key: key.into(), message };
        let within = |key: &str, value: usize, most: usize| match value {
            1.. if value <= most => Ok(value),
            _ => Err(error(key, format!("expected 1 to {most}, got {value}"))),
        };
        if !raw.do_resize {
            return Err(error("do_resize", "false is not supported: the tower takes whole tokens only".into()));
        }
        let min_pixels =
            raw.min_pixels.or(raw.size.shortest_edge).or(raw.size.min_pixels).unwrap_or(defaults.min_pixels);
        let max_pixels =
            raw.max_pixels.or(raw.size.longest_edge).or(raw.size.max_pixels).unwrap_or(defaults.max_pixels);
        let filter = ResampleFilter::from_pillow(raw.resample)
            .ok_or_else(|| error("resample", format!("expected a filter number from 0 to 5, got {}", raw.resample)))?;
        Ok(Self {
            max_pixels: within("max_pixels", max_pixels, MOST_PIXELS)?,
            min_pixels: within("min_pixels", min_pixels, max_pixels)?,
            patch: within("patch_size", raw.patch_size.unwrap_or(defaults.patch), MAX_PATCH)?,
            frames: within("temporal_patch_size", raw.temporal_patch_size, MAX_PATCH)?,
            merge: within("merge_size", raw.merge_size, MAX_PATCH)?,
            filter,
            rescale: raw.do_rescale.then_some(raw.rescale_factor),
            normalize: raw
                .do_normalize
                .then_some((raw.image_mean.unwrap_or(defaults.mean), raw.image_std.unwrap_or(defaults.std))),
        })
    }

    /// The tower's patches must be those of these settings; what differs is an error now, not a crash later.
    pub(super) fn check(&self, section: &Section) -> Result<()> {
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
        let unit = self.unit();
        let max_pixels = self.max_pixels.min(most_tokens(detail).saturating_mul(unit * unit)).max(self.min_pixels);
        let target = smart_resize((width, height), [1, 1], unit, [self.min_pixels, max_pixels]);
        squashed(target, unit, detail)
    }

    /// Patches per column and row.
    pub(super) fn grid(&self, image: &Image) -> [usize; 2] {
        [image.height / self.patch, image.width / self.patch]
    }

    /// The patches of as many frames as a patch has; where there are less, the last one is repeated.
    pub(super) fn append_patches(&self, frames: &[Image], table: &PixelTable, pixel_values: &mut Vec<f32>) {
        let Some(first) = frames.first() else { return };
        let [rows, columns] = self.grid(first);
        let plane = self.patch * self.patch;
        pixel_values.reserve(rows * columns * 3 * self.frames * plane);
        let mut planes = Vec::with_capacity(frames.len() * 3 * plane);
        for (row, column) in self.order(rows, columns) {
            let (left, top) = (column * self.patch, row * self.patch);
            let window = Window { left, top, width: self.patch, height: self.patch };
            planes.clear();
            for frame in frames {
                table.append_planes(&frame.pixels, frame.width, window, &mut planes);
            }
            for channel in 0..3 {
                for frame in 0..self.frames {
                    let start = (frame.min(frames.len() - 1) * 3 + channel) * plane;
                    pixel_values.extend_from_slice(&planes[start..start + plane]);
                }
            }
        }
    }

    /// Pixels per side of a token.
    pub(super) fn unit(&self) -> usize {
        self.patch * self.merge
    }

    pub(super) fn tokens(&self, (width, height): (usize, usize)) -> usize {
        let unit = self.unit();
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

/// Width and height as whole tokens of `unit` pixels per side: `smart_resize` of the reference, in its order of
/// operations. The area of all frames is within `[min, max]`; they are counted as they are, and as patches hold them.
pub(super) fn smart_resize(
    (width, height): (usize, usize),
    [frames, held]: [usize; 2],
    unit: usize,
    [min_pixels, max_pixels]: [usize; 2],
) -> (usize, usize) {
    let (wide, high, side) = (width as f64, height as f64, unit as f64);
    let nearest = |length: f64| (length / side).round_ties_even() as usize * unit;
    let pixels = held * nearest(wide) * nearest(high);
    let area = frames as f64 * high * wide;
    if pixels > max_pixels {
        let shrink = (area / max_pixels as f64).sqrt();
        let fit = |length: f64| ((length / shrink / side).floor() as usize * unit).max(unit);
        (fit(wide), fit(high))
    } else if pixels < min_pixels {
        let grow = (min_pixels as f64 / area).sqrt();
        let fit = |length: f64| (length * grow / side).ceil() as usize * unit;
        (fit(wide), fit(high))
    } else {
        (nearest(wide), nearest(high))
    }
}

/// Tokens that a picture may have besides the limits of its model.
pub(super) fn most_tokens(detail: Detail) -> usize {
    match detail {
        Detail::Auto | Detail::High => usize::MAX,
        Detail::Low => LOW_TOKENS,
        Detail::AtMost(tokens) => tokens,
    }
}

/// What [`Detail::AtMost`] still finds too large: narrow pictures keep one token across, small ones become larger than
/// the least area. These lose their shape.
pub(super) fn squashed((width, height): (usize, usize), unit: usize, detail: Detail) -> (usize, usize) {
    let Detail::AtMost(tokens) = detail else { return (width, height) };
    let (columns, rows) = (width / unit, height / unit);
    if columns * rows <= tokens {
        return (width, height);
    }
    let short = columns.min(rows).min(tokens.isqrt()).max(1);
    let long = (tokens / short).max(1);
    if columns > rows { (long * unit, short * unit) } else { (short * unit, long * unit) }
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

/// The class defaults of the reference, for keys a file leaves out, are in [`RawSettings::default`] and, where they
/// differ between classes, in [`Defaults`].
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct RawSettings {
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    size: RawSize,
    patch_size: Option<usize>,
    temporal_patch_size: usize,
    merge_size: usize,
    resample: u64,
    rescale_factor: f64,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
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
            patch_size: None,
            temporal_patch_size: 2,
            merge_size: 2,
            resample: 3,
            rescale_factor: 1.0 / 255.0,
            image_mean: None,
            image_std: None,
        }
    }
}

/// What the classes of the reference differ in.
pub(super) struct Defaults {
    pub(super) min_pixels: usize,
    pub(super) max_pixels: usize,
    pub(super) patch: usize,
    pub(super) mean: [f32; 3],
    pub(super) std: [f32; 3],
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
/// Of the class for pictures.
const PICTURES: Defaults =
    Defaults { min_pixels: 56 * 56, max_pixels: 28 * 28 * 1280, patch: 14, mean: CLIP_MEAN, std: CLIP_STD };
pub(super) const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(super) const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// No model asks for more.
const MOST_PIXELS: usize = 1 << 28;
const MAX_PATCH: usize = 256;
pub(super) const START: &str = "<|vision_start|>";
const PAD: &str = "<|image_pad|>";
pub(super) const END: &str = "<|vision_end|>";
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
        let mut pixel_values = Vec::new();
        let image = |pixels: std::ops::Range<u8>| Image::new(2, 2, pixels.collect());
        settings.append_patches(&[image(0..12)], &table, &mut pixel_values);
        assert_eq!(pixel_values[..12], [0., 0., 1., 1., 2., 2., 3., 3., 4., 4., 5., 5.]);
        pixel_values.clear();
        settings.append_patches(&[image(0..12), image(100..112)], &table, &mut pixel_values);
        assert_eq!(pixel_values[..12], [0., 100., 1., 101., 2., 102., 3., 103., 4., 104., 5., 105.]);
    }

    #[test]
    fn a_line_is_refused() {
        let error = check_shape(201, 1).unwrap_err();
        assert_eq!(error.to_string(), "the image is 201x1 pixels: one side is more than 200 times the other");
        assert!(check_shape(200, 1).is_ok());
        assert!(matches!(check_shape(0, 1), Err(Error::NoPixels { .. })));
    }
}
