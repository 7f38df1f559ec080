//! CLIP's image processor as LLaVA uses it (transformers `image_processing_pil_clip.py`, `image_processing_pil_llava.py`).
//!
//! A picture becomes one square: scaled so that its shortest edge fits, then cropped at the centre (what is cut off is
//! not seen), or padded to a square first where `do_pad` asks for it. Every step rounds to bytes.

use serde::Deserialize;

use super::{ImageProcessor, Model};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::settings::preprocessor_config;
use crate::{Error, Result};

/// The CLIP image processor.
#[derive(Debug)]
pub(super) struct Clip {
    settings: Settings,
    table: PixelTable,
    vision_tokens: usize,
}

impl Clip {
    pub(super) fn new(settings: Settings, vision_tokens: usize) -> Self {
        let table = PixelTable::new(settings.rescale, settings.normalize);
        Self { settings, table, vision_tokens }
    }
}

/// What shapes the pixels; the keys are those of `preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// The colour of what is added to make a square.
    pub(super) pad: Option<[u8; 3]>,
    pub(super) size: Option<Size>,
    /// Height and width.
    pub(super) crop: Option<(usize, usize)>,
    pub(super) filter: ResampleFilter,
    pub(super) rescale: Option<f64>,
    pub(super) normalize: Option<([f32; 3], [f32; 3])>,
}

/// What resizing aims at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Size {
    ShortestEdge(usize),
    Exact { width: usize, height: usize },
}

/// Reads `preprocessor_config.json` (or the `image_processor` of `processor_config.json`) and `config.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let settings = Settings::load(model)?;
    model.require_token(IMAGE)?;
    let root = model.config.root();
    let Some(section) = model.config.section("vision_config") else {
        return Err(root.error("vision_config", "missing").into());
    };
    let vision: VisionConfig = section.parse()?;
    let per_side = vision.image_size.checked_div(vision.patch_size).unwrap_or(0);
    if per_side == 0 {
        let message = format!("no patch of {} fits a picture of {}", vision.patch_size, vision.image_size);
        return Err(section.error("patch_size", &message).into());
    }
    settings.check_size(model, vision.image_size)?;
    let keeps_class = root.get("vision_feature_select_strategy").and_then(|value| value.as_str()) == Some("full");
    let vision_tokens = per_side * per_side + usize::from(keeps_class);
    Ok(Box::new(Clip::new(settings, vision_tokens)))
}

impl ImageProcessor for Clip {
    fn prepare_with(&self, image: &Image, _detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let padded = self.settings.pad.map(|colour| to_square(image, colour));
        let source = padded.as_ref().unwrap_or(image);
        let target = self.settings.target(source.width, source.height);
        let resized = resize(source, target.0, target.1, self.settings.filter);
        let cropped = match self.settings.crop {
            Some((height, width)) => center_crop(&resized, width, height),
            None => resized,
        };
        let window = Window { left: 0, top: 0, width: cropped.width, height: cropped.height };
        let mut pixel_values = Vec::with_capacity(cropped.pixels.len());
        self.table.append_planes(&cropped.pixels, cropped.width, window, &mut pixel_values);
        Ok(PreparedImage {
            pixel_values,
            shape: [1, 3, cropped.height, cropped.width],
            grid: [1, 0, 0],
            frames: 1,
            frame_seconds: 0.0,
            text_ids: Vec::new(),
            image_size: (width, height),
            resized_to: target,
            vision_tokens: self.vision_tokens,
            content_hash: self.settings.hash(image),
        })
    }

    fn vision_tokens(&self, _width: usize, _height: usize, _detail: Detail) -> usize {
        self.vision_tokens
    }

    fn expand(&self, _image: &PreparedImage) -> String {
        IMAGE.repeat(self.vision_tokens)
    }

    fn placeholder(&self) -> &str {
        IMAGE
    }

    fn image_token(&self) -> &str {
        IMAGE
    }
}

impl Settings {
    pub(super) fn load(model: &Model<'_>) -> Result<Self> {
        let (file, raw): (String, RawSettings) = preprocessor_config(model.files, "image_processor")?;
        let error = |key: &str, message: String| Error::Value { file: file.clone(), key: key.into(), message };
        let edge = |key: &str, value: usize| match value {
            1..=MAX_EDGE => Ok(value),
            _ => Err(error(key, format!("expected 1 to {MAX_EDGE}, got {value}"))),
        };
        let size = match raw.size {
            RawSize::Edge(shortest) | RawSize::Shortest { shortest_edge: shortest } => {
                Size::ShortestEdge(edge("size", shortest)?)
            }
            RawSize::Exact { width, height } => {
                Size::Exact { width: edge("size.width", width)?, height: edge("size.height", height)? }
            }
        };
        let crop = match raw.crop_size {
            RawSize::Edge(side) | RawSize::Shortest { shortest_edge: side } => (side, side),
            RawSize::Exact { width, height } => (height, width),
        };
        let crop = (edge("crop_size", crop.0)?, edge("crop_size", crop.1)?);
        let filter = ResampleFilter::from_pillow(raw.resample)
            .ok_or_else(|| error("resample", format!("expected a filter number from 0 to 5, got {}", raw.resample)))?;
        Ok(Self {
            // The reference truncates.
            pad: raw.do_pad.then(|| raw.image_mean.map(|mean| (f64::from(mean) * 255.0) as u8)),
            size: raw.do_resize.then_some(size),
            crop: raw.do_center_crop.then_some(crop),
            filter,
            rescale: raw.do_rescale.then_some(raw.rescale_factor),
            normalize: raw.do_normalize.then_some((raw.image_mean, raw.image_std)),
        })
    }

    /// Height and width of every picture that comes out; `None` if pictures decide.
    pub(super) fn output(&self) -> Option<(usize, usize)> {
        match (self.crop, self.size) {
            (Some(crop), _) => Some(crop),
            (None, Some(Size::Exact { width, height })) => Some((height, width)),
            (None, Some(Size::ShortestEdge(side))) if self.pad.is_some() => Some((side, side)),
            (None, _) => None,
        }
    }

    /// The tower has one size; whatever else would come out of these settings is an error now, not a crash later.
    fn check_size(&self, model: &Model<'_>, side: usize) -> Result<()> {
        let square = self.output();
        if square == Some((side, side)) {
            return Ok(());
        }
        let message = format!("pictures do not come out as {side}x{side}, the tower's image_size");
        Err(Error::Value { file: model.files.label_of("preprocessor_config.json"), key: "crop_size".into(), message })
    }

    /// Width and height after resizing.
    fn target(&self, width: usize, height: usize) -> (usize, usize) {
        match self.size {
            None => (width, height),
            Some(Size::Exact { width, height }) => (width, height),
            Some(Size::ShortestEdge(edge)) => {
                // Whole numbers divide as Python's floats would, and truncate alike.
                let longest = |long: usize, short: usize| (edge * long / short).min(MAX_SIDE);
                if width <= height { (edge, longest(height, width)) } else { (longest(width, height), edge) }
            }
        }
    }

    /// A hash of the picture and of all that decides its pixel values.
    fn hash(&self, image: &Image) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.content_hash().to_le_bytes());
        // Debug output spells every field out, floats to the last bit.
        hasher.update(format!("clip {self:?}").as_bytes());
        first_128_bits(&hasher)
    }
}

/// The picture in the middle of a square of its longest edge.
fn to_square(image: &Image, colour: [u8; 3]) -> Image {
    let side = image.width.max(image.height);
    let mut square = Image::new(side, side, colour.repeat(side * side));
    paste(&mut square, image, (side - image.width) / 2, (side - image.height) / 2);
    square
}

/// The middle of a picture; black where it is smaller than that.
fn center_crop(image: &Image, width: usize, height: usize) -> Image {
    // As the reference rounds: down where it cuts, up where it pads.
    let cut = |have: usize, want: usize| have.saturating_sub(want) / 2;
    let pad = |have: usize, want: usize| want.saturating_sub(have).div_ceil(2);
    let (left, top) = (cut(image.width, width), cut(image.height, height));
    let (kept_width, kept_height) = (image.width.min(width), image.height.min(height));
    let rows = (top..top + kept_height).map(|row| &image.pixels[(row * image.width + left) * 3..][..kept_width * 3]);
    let kept = Image::new(kept_width, kept_height, rows.collect::<Vec<_>>().concat());
    if (kept_width, kept_height) == (width, height) {
        return kept;
    }
    let mut padded = Image::new(width, height, vec![0; width * height * 3]);
    paste(&mut padded, &kept, pad(image.width, width), pad(image.height, height));
    padded
}

fn paste(canvas: &mut Image, image: &Image, left: usize, top: usize) {
    for (row, pixels) in image.pixels.chunks_exact(image.width * 3).enumerate() {
        canvas.pixels[((top + row) * canvas.width + left) * 3..][..pixels.len()].copy_from_slice(pixels);
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionConfig {
    image_size: usize,
    patch_size: usize,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self { image_size: 224, patch_size: 32 }
    }
}

/// The class defaults of the reference, for keys a file leaves out, are in [`RawSettings::default`].
#[derive(Deserialize)]
#[serde(default)]
struct RawSettings {
    do_pad: bool,
    do_resize: bool,
    do_center_crop: bool,
    do_rescale: bool,
    do_normalize: bool,
    size: RawSize,
    crop_size: RawSize,
    resample: u64,
    rescale_factor: f64,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            do_pad: false,
            do_resize: true,
            do_center_crop: true,
            do_rescale: true,
            do_normalize: true,
            size: RawSize::Shortest { shortest_edge: 224 },
            crop_size: RawSize::Exact { width: 224, height: 224 },
            resample: 3,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
        }
    }
}

/// Early files give a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawSize {
    Edge(usize),
    Shortest { shortest_edge: usize },
    Exact { width: usize, height: usize },
}

/// No model asks for more.
const MAX_EDGE: usize = 8192;
/// The longest side of a very long picture before it is cropped; the reference has no limit.
const MAX_SIDE: usize = 64 * 1024;
const IMAGE: &str = "<image>";

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(width: usize, height: usize) -> Image {
        Image::new(width, height, (0..width * height * 3).map(|value| value as u8).collect())
    }

    #[test]
    fn the_middle_is_cut_out() {
        let cropped = center_crop(&counted(5, 4), 2, 2);
        assert_eq!(cropped.pixels, [18, 19, 20, 21, 22, 23, 33, 34, 35, 36, 37, 38]);
    }

    #[test]
    fn what_is_too_small_is_padded_with_black() {
        let padded = center_crop(&counted(1, 3), 4, 3);
        assert_eq!((padded.width, padded.height), (4, 3));
        // Two columns of black before it and one behind, as the reference rounds.
        assert_eq!(padded.pixels[..12], [0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0]);
    }

    #[test]
    fn squares_are_padded_around_the_middle() {
        let square = to_square(&counted(3, 1), [9, 8, 7]);
        assert_eq!((square.width, square.height), (3, 3));
        assert_eq!(square.pixels[..3], [9, 8, 7]);
        assert_eq!(square.pixels[9..18], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(to_square(&counted(2, 2), [0; 3]), counted(2, 2));
    }
}
