//! DeepSeek-VL2 (published `processing_deepseek_vl_v2.py`).
//!
//! A picture is shown twice: as a whole in one tile, and cut into tiles of the same size, after it was fitted into that
//! of the candidate resolutions that keeps most of its pixels and then wastes the fewest. Nothing is distorted or cut
//! off; what is missing is grey. Of more than two pictures in a prompt none is cut. Every step rounds to bytes.

use serde::Deserialize;
use serde_json::Value;

use super::{ImageProcessor, Model};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::{Error, Result};

/// The DeepSeek-VL2 image processor.
#[derive(Debug)]
struct DeepseekVlV2 {
    settings: Settings,
    table: PixelTable,
    /// Image tokens along one side of a tile.
    tokens_per_side: usize,
}

/// What shapes the pixels; the keys are those of `processor_config.json`.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    tile: usize,
    /// Width and height.
    candidates: Vec<(usize, usize)>,
    fill: [u8; 3],
    normalize: Option<([f32; 3], [f32; 3])>,
}

/// Reads `processor_config.json` (MLX leaves it out) and `config.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    const FILE: &str = "processor_config.json";
    model.require_token(IMAGE)?;
    let root = model.config.root();
    let file = model.files.label_of(FILE);
    let error = |key: &str, message: String| Error::Value { file: file.clone(), key: key.into(), message };
    let raw: RawSettings = match model.files.json(FILE)? {
        Some(Value::Object(mut object)) => {
            object.retain(|_, value| !value.is_null());
            serde_json::from_value(object.into()).map_err(|source| error("(root)", source.to_string()))?
        }
        Some(_) => return Err(error("(root)", "expected an object".into())),
        None => RawSettings::default(),
    };
    let vision: VisionConfig = match model.config.section("vision_config") {
        Some(section) => section.parse()?,
        None => return Err(root.error("vision_config", "missing").into()),
    };
    let candidates = match raw.candidate_resolutions {
        Some(candidates) => candidates,
        None => {
            let from_config: FromConfig = root.parse()?;
            from_config.candidate_resolutions
        }
    };
    let tile = vision.image_size;
    let fits = |&(width, height): &(usize, usize)| {
        let counts = |edge: usize| edge > 0 && edge <= MAX_EDGE && edge.checked_rem(tile) == Some(0);
        counts(width) && counts(height)
    };
    if candidates.is_empty() || !candidates.iter().all(fits) {
        let message = format!("expected pairs of multiples of the tower's image_size {tile}, up to {MAX_EDGE}");
        return Err(error("candidate_resolutions", message));
    }
    let patches = tile.checked_div(vision.patch_size).unwrap_or(0);
    if patches == 0 || raw.downsample_ratio == 0 {
        return Err(error("downsample_ratio", "no token comes out of a tile".into()));
    }
    let tokens_per_side = patches.div_ceil(raw.downsample_ratio);
    // The reference truncates.
    let fill = raw.image_mean.map(|mean| (f64::from(mean) * 255.0) as u8);
    let normalize = raw.normalize.then_some((raw.image_mean, raw.image_std));
    let table = PixelTable::new(Some(1.0 / 255.0), normalize);
    Ok(Box::new(DeepseekVlV2 { settings: Settings { tile, candidates, fill, normalize }, table, tokens_per_side }))
}

impl ImageProcessor for DeepseekVlV2 {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let tile = self.settings.tile;
        let target = self.resolution(width, height, detail);
        let [columns, rows] = [target.0 / tile, target.1 / tile];
        // A single tile is the whole picture, which the model then takes for both.
        let n_cut = if rows * columns > 1 { rows * columns } else { 0 };
        let mut pixel_values = Vec::with_capacity((1 + n_cut) * 3 * tile * tile);
        let mut append = |image: &Image, left, top| {
            let window = Window { left, top, width: tile, height: tile };
            self.table.append_planes(&image.pixels, image.width, window, &mut pixel_values);
        };
        append(&pad(image, (tile, tile), self.settings.fill), 0, 0);
        if n_cut > 0 {
            let tiles = pad(image, target, self.settings.fill);
            for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                append(&tiles, column * tile, row * tile);
            }
        }
        Ok(PreparedImage {
            pixel_values,
            shape: [1 + n_cut, 3, tile, tile],
            grid: [1, rows, columns],
            frames: 1,
            frame_seconds: 0.0,
            text_ids: Vec::new(),
            image_size: (width, height),
            resized_to: target,
            vision_tokens: self.tokens(target),
            content_hash: self.settings.hash(image, target),
        })
    }

    fn detail_among(&self, n_images: usize, detail: Detail) -> Detail {
        match detail {
            Detail::Auto | Detail::AtMost(_) if n_images > MOST_TILED => Detail::Low,
            detail => detail,
        }
    }

    fn vision_tokens(&self, width: usize, height: usize, detail: Detail) -> usize {
        self.tokens(self.resolution(width.max(1), height.max(1), detail))
    }

    fn expand(&self, image: &PreparedImage) -> String {
        IMAGE.repeat(image.vision_tokens)
    }

    fn placeholder(&self) -> &str {
        IMAGE
    }

    fn image_token(&self) -> &str {
        IMAGE
    }

    fn default_template(&self) -> Option<&'static str> {
        Some(TEMPLATE)
    }
}

impl DeepseekVlV2 {
    /// Every line of tokens ends with one more, and one stands between both views.
    fn tokens(&self, (width, height): (usize, usize)) -> usize {
        let (side, tile) = (self.tokens_per_side, self.settings.tile);
        side * (side + 1) + 1 + height / tile * side * (width / tile * side + 1)
    }

    /// Width and height of all tiles together.
    fn resolution(&self, width: usize, height: usize, detail: Detail) -> (usize, usize) {
        let Settings { tile, candidates, .. } = &self.settings;
        match detail {
            Detail::Low => (*tile, *tile),
            Detail::Auto | Detail::High => best_resolution(candidates, width, height),
            Detail::AtMost(most) => {
                let mut fitting = candidates.clone();
                fitting.retain(|&candidate| self.tokens(candidate) <= most);
                if fitting.is_empty() { (*tile, *tile) } else { best_resolution(&fitting, width, height) }
            }
        }
    }
}

impl Settings {
    /// A hash of the picture and of all that decides its pixel values.
    fn hash(&self, image: &Image, target: (usize, usize)) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.content_hash().to_le_bytes());
        // Debug output spells every field out, floats to the last bit.
        hasher.update(format!("deepseek_vl_v2 {self:?} {target:?}").as_bytes());
        first_128_bits(&hasher)
    }
}

/// The candidate that keeps most of a picture's pixels, and of those the one with the smallest rest.
fn best_resolution(candidates: &[(usize, usize)], width: usize, height: usize) -> (usize, usize) {
    let (mut best, mut most, mut least_wasted) = (candidates[0], 0, usize::MAX);
    for &(candidate_width, candidate_height) in candidates {
        // Python's float arithmetic, truncation included.
        let scale = (candidate_width as f64 / width as f64).min(candidate_height as f64 / height as f64);
        let scaled = (width as f64 * scale) as usize * (height as f64 * scale) as usize;
        let effective = scaled.min(width * height);
        let wasted = candidate_width * candidate_height - effective;
        if effective > most || (effective == most && wasted < least_wasted) {
            (best, most, least_wasted) = ((candidate_width, candidate_height), effective, wasted);
        }
    }
    best
}

/// Pillow's `ImageOps.pad`: scaled to fit, in the middle of a canvas.
fn pad(image: &Image, (width, height): (usize, usize), fill: [u8; 3]) -> Image {
    let (inner_width, inner_height) = contained(image, (width, height));
    let resized = resize(image, inner_width, inner_height, ResampleFilter::Bicubic);
    if (inner_width, inner_height) == (width, height) {
        return resized;
    }
    let (left, top) = (half_to_even(width - inner_width), half_to_even(height - inner_height));
    let mut canvas = Image::new(width, height, fill.repeat(width * height));
    for (row, pixels) in resized.pixels.chunks_exact(inner_width * 3).enumerate() {
        canvas.pixels[((top + row) * width + left) * 3..][..pixels.len()].copy_from_slice(pixels);
    }
    canvas
}

/// Pillow's `ImageOps.contain`: the size that fits, aspect kept.
fn contained(image: &Image, (width, height): (usize, usize)) -> (usize, usize) {
    let (image_width, image_height) = (image.width as f64, image.height as f64);
    let (aspect, wanted) = (image_width / image_height, width as f64 / height as f64);
    let rounded = |edge: f64, most: usize| (edge.round_ties_even() as usize).clamp(1, most);
    if aspect > wanted {
        (width, rounded(image_height / image_width * width as f64, height))
    } else if aspect < wanted {
        (rounded(image_width / image_height * height as f64, width), height)
    } else {
        (width, height)
    }
}

/// Half of a number as Python rounds it.
fn half_to_even(number: usize) -> usize {
    number / 2 + usize::from(number % 4 == 3)
}

#[derive(Deserialize)]
struct FromConfig {
    #[serde(default = "one_tile")]
    candidate_resolutions: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionConfig {
    image_size: usize,
    patch_size: usize,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self { image_size: 384, patch_size: 16 }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct RawSettings {
    candidate_resolutions: Option<Vec<(usize, usize)>>,
    downsample_ratio: usize,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    normalize: bool,
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            candidate_resolutions: None,
            downsample_ratio: 2,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            normalize: true,
        }
    }
}

fn one_tile() -> Vec<(usize, usize)> {
    vec![(384, 384)]
}

/// Most pictures of a prompt that are cut into tiles.
const MOST_TILED: usize = 2;
/// No model asks for more.
const MAX_EDGE: usize = 16_384;
const IMAGE: &str = "<image>";

/// The published conversation format (`sft_format: deepseek`); a picture stands on a line of its own.
const TEMPLATE: &str = "\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' %}{{ '<|User|>: ' }}{% elif message.role == 'assistant' %}{{ '<|Assistant|>: ' }}{% endif -%}
{%- if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' %}{{ part.text }}{% else %}{{ '<image>\\n' }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif -%}
";

#[cfg(test)]
mod tests {
    use super::*;

    const CANDIDATES: [(usize, usize); 6] = [(384, 384), (384, 768), (768, 384), (768, 768), (384, 1152), (1152, 384)];

    #[test]
    fn the_resolution_keeps_most_and_wastes_least() {
        assert_eq!(best_resolution(&CANDIDATES, 300, 200), (384, 384), "all keep it whole, this wastes least");
        assert_eq!(best_resolution(&CANDIDATES, 2000, 500), (1152, 384));
        assert_eq!(best_resolution(&CANDIDATES, 1000, 1000), (768, 768));
        assert_eq!(best_resolution(&CANDIDATES, 400, 800), (384, 768));
        assert_eq!(best_resolution(&CANDIDATES, 1, 100_000), (384, 384), "nothing of it would be left");
    }

    #[test]
    fn pictures_are_centred_on_grey() {
        let image = Image::new(2, 1, vec![0, 0, 0, 255, 255, 255]);
        let padded = pad(&image, (4, 6), [7, 8, 9]);
        assert_eq!((padded.width, padded.height), (4, 6));
        assert_eq!(padded.pixels[..24], [7, 8, 9].repeat(8)[..]);
        assert_eq!(padded.pixels[24..27], [0, 0, 0]);
        assert_eq!(padded.pixels[48..], [7, 8, 9].repeat(8)[..]);
        let thin = pad(&Image::new(1000, 1, vec![5; 3000]), (10, 10), [0; 3]);
        assert_eq!(thin.pixels.iter().filter(|&&value| value == 5).count(), 30, "one line is left");
    }

    #[test]
    fn halves_round_as_in_python() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(half_to_even), [0, 0, 1, 2, 2, 2, 4]);
    }
}
