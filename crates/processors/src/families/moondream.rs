//! Moondream 2's pictures and prompts (`moondream/torch` upstream: `image_crops.py`, `moondream.py`, `config.py`).
//!
//! A picture is shown as a whole, squashed into a square crop, and once more in square crops that overlap, of a size near
//! its own. Prompts are made of ids, not of text: their parts have names here that the tokenizer does not know. What the
//! ids are depends on the checkpoint's age, which its empty `config.json` does not tell but the last line of its
//! `versions.txt` does, and else its tokenizer. Surprise: the newer repositories hold the older tokenizer, which is not
//! theirs.

use std::collections::BTreeMap;

use ocelli_formats::Borrowed;
use serde::Deserialize;

use super::{ImageProcessor, Model};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::{Error, Result};

/// Moondream's image processor.
struct Moondream {
    vision: Vision,
    table: PixelTable,
    image_id: u32,
    bos_id: u32,
    templates: Templates,
}

/// Reads `config` of `config.json`, whatever of it there is.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let config = match model.config.section("config") {
        Some(section) => {
            let config: Config = section.parse()?;
            let vision = config.vision;
            let patch = vision.enc_patch_size;
            let is_cut_well = patch > 0 && vision.crop_size / patch > 2 * vision.overlap_margin && vision.max_crops > 0;
            if !is_cut_well || vision.crop_size > MAX_CROP {
                let message = format!("{vision:?} leaves nothing of a crop between its margins");
                return Err(section.error("vision", &message).into());
            }
            config
        }
        None => Config::default(),
    };
    let tokenizer = match config.tokenizer {
        Some(tokenizer) => tokenizer,
        None => TokenizerConfig::of_age(model)?,
    };
    Ok(Box::new(Moondream {
        vision: config.vision,
        table: PixelTable::new(Some(1.0 / 255.0), Some(([0.5; 3], [0.5; 3]))),
        image_id: config.text.vocab_size,
        bos_id: tokenizer.bos_id,
        templates: tokenizer.templates,
    }))
}

impl ImageProcessor for Moondream {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let vision = self.vision;
        let (crop, step, tiling) = (vision.crop_size, vision.window(), vision.tiling(width, height, detail));
        let side = |crops: usize| crops * step + crop - step;
        let resized_to = (side(tiling.columns), side(tiling.rows));
        // A single crop is the whole picture, which the model then takes for both.
        let n_cut = if tiling.rows * tiling.columns > 1 { tiling.rows * tiling.columns } else { 0 };
        let mut pixel_values = Vec::with_capacity((1 + n_cut) * 3 * crop * crop);
        let mut append = |image: &Image, left, top| {
            let window = Window { left, top, width: crop, height: crop };
            self.table.append_planes(&image.pixels, image.width, window, &mut pixel_values);
        };
        append(&resize(image, crop, crop, ResampleFilter::Lanczos), 0, 0);
        if n_cut > 0 {
            let whole = resize(image, resized_to.0, resized_to.1, ResampleFilter::Lanczos);
            for (row, column) in (0..tiling.rows).flat_map(|row| (0..tiling.columns).map(move |column| (row, column))) {
                append(&whole, column * step, row * step);
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.content_hash().to_le_bytes());
        hasher.update(format!("moondream {vision:?} {tiling:?}").as_bytes());
        Ok(PreparedImage {
            pixel_values,
            shape: [1 + n_cut, 3, crop, crop],
            grid: [1, tiling.rows, tiling.columns],
            frames: 1,
            frame_seconds: 0.0,
            text_ids: Vec::new(),
            image_size: (width, height),
            resized_to,
            vision_tokens: vision.tokens(),
            content_hash: first_128_bits(&hasher),
        })
    }

    fn vision_tokens(&self, _width: usize, _height: usize, _detail: Detail) -> usize {
        self.vision.tokens()
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

    fn foreign_tokens(&self) -> Vec<(&'static str, Vec<u32>)> {
        let Templates { caption, query, detect, point } = self.templates.clone();
        let normal = caption.get("normal").cloned().unwrap_or_default();
        let length = |length: &str| caption.get(length).unwrap_or(&normal).clone();
        let (query, detect, point) = (query.unwrap_or_default(), detect.unwrap_or_default(), point.unwrap_or_default());
        vec![
            (IMAGE, vec![self.image_id]),
            ("<|bos|>", vec![self.bos_id]),
            ("<|caption-short|>", length("short")),
            ("<|caption-normal|>", normal.clone()),
            ("<|caption-long|>", length("long")),
            ("<|query|>", query.prefix),
            ("<|answer|>", query.suffix),
            ("<|detect|>", detect.prefix),
            ("<|boxes|>", detect.suffix),
            ("<|point|>", point.prefix),
            ("<|points|>", point.suffix),
        ]
    }

    fn locating_prompt(&self, boxes: bool) -> Option<[&'static str; 2]> {
        let Templates { detect, point, .. } = &self.templates;
        match boxes {
            true => detect.is_some().then_some(["<|bos|><image><|detect|> ", "<|boxes|>"]),
            false => point.is_some().then_some(["<|bos|><image><|point|> ", "<|points|>"]),
        }
    }

    fn default_template(&self) -> Option<&'static str> {
        Some(TEMPLATE)
    }
}

/// `config`, with upstream's defaults.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Config {
    text: Text,
    vision: Vision,
    tokenizer: Option<TokenizerConfig>,
}

#[derive(Clone, Deserialize)]
#[serde(default)]
struct Text {
    vocab_size: u32,
}

impl Default for Text {
    fn default() -> Self {
        Self { vocab_size: 51_200 }
    }
}

/// How a picture is cut; margins in patches.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
struct Vision {
    crop_size: usize,
    enc_patch_size: usize,
    max_crops: usize,
    overlap_margin: usize,
}

impl Default for Vision {
    fn default() -> Self {
        Self { crop_size: 378, enc_patch_size: 14, max_crops: 12, overlap_margin: 4 }
    }
}

/// Crops besides that of the whole picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    rows: usize,
    columns: usize,
}

impl Vision {
    fn tokens(&self) -> usize {
        (self.crop_size / self.enc_patch_size).pow(2)
    }

    /// Pixels from one crop to the next.
    fn window(&self) -> usize {
        (self.crop_size / self.enc_patch_size - 2 * self.overlap_margin) * self.enc_patch_size
    }

    /// How many crops a picture is cut into; roots and floors are upstream's.
    fn tiling(&self, width: usize, height: usize, detail: Detail) -> Tiling {
        let (window, max) = (self.window(), self.max_crops);
        let margins = self.crop_size - window;
        let (height, width) = (height.saturating_sub(margins), width.saturating_sub(margins));
        if detail == Detail::Low || height <= window || width <= window {
            return Tiling { rows: 1, columns: 1 };
        }
        let (least_rows, least_columns) = (height.div_ceil(window), width.div_ceil(window));
        let most = max as f64;
        if least_rows * least_columns > max {
            let ratio = (most / (least_rows * least_columns) as f64).sqrt();
            let scaled = |least: usize| ((least as f64 * ratio) as usize).max(1);
            return Tiling { rows: scaled(least_rows), columns: scaled(least_columns) };
        }
        let rows = ((most * height as f64 / width as f64).sqrt() as usize).max(least_rows);
        let columns = ((most * width as f64 / height as f64).sqrt() as usize).max(least_columns);
        match rows * columns > max {
            true if columns > rows => Tiling { rows, columns: (max / rows).max(1) },
            true => Tiling { rows: (max / columns).max(1), columns },
            false => Tiling { rows, columns },
        }
    }
}

#[derive(Clone, Deserialize)]
struct TokenizerConfig {
    bos_id: u32,
    templates: Templates,
}

#[derive(Clone, Deserialize)]
struct Templates {
    #[serde(default)]
    caption: BTreeMap<String, Vec<u32>>,
    query: Option<Around>,
    detect: Option<Around>,
    point: Option<Around>,
}

/// What stands before and behind the user's text.
#[derive(Clone, Default, Deserialize)]
struct Around {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl TokenizerConfig {
    /// That of the checkpoint's revision; of one that does not say which it is, the one that fits its tokenizer.
    fn of_age(model: &Model<'_>) -> Result<Self> {
        let versions = model.files.text("versions.txt")?.unwrap_or_default();
        let revision = versions.split_whitespace().filter(|word| word.starts_with("20")).max();
        // The tokenizer that came with the newer prompts begins with the token that ends texts.
        let end = model.tokenizer.and_then(|tokenizer| tokenizer.token_to_id("<|endoftext|>"));
        let is_newer = revision.map_or(end != Some(OLDER_END), |_| Borrowed::by(model.files).is_some());
        match (model.tokenizer, revision) {
            (Some(tokenizer), Some(revision)) if is_newer && end == Some(OLDER_END) => Err(Error::bad_tokenizer(
                tokenizer.file(),
                format_args!(
                    "it is GPT-2's, but revision {revision} was trained with another: `ocelli pull` fetches it, \
                     or put tokenizer.json of moondream/starmie-v1 in its place"
                ),
            )),
            _ => Ok(if is_newer { Self::newer() } else { Self::older() }),
        }
    }

    /// From January to April 2025: words of GPT-2's tokenizer.
    fn older() -> Self {
        Self::of(
            OLDER_END,
            [&[198, 198, 16438, 8305, 25], &[198, 198, 24334, 1159, 25], &[198, 198, 14617, 8305, 25]],
            [&[198, 198, 24361, 25], &[198, 198, 33706, 25]],
            [&[198, 198, 47504, 25], &[628]],
            [&[198, 198, 12727, 25], &[628]],
        )
    }

    /// Since June 2025: tokens of a tokenizer made for it, `moondream/starmie-v1`.
    fn newer() -> Self {
        Self::of(
            0,
            [&[1, 32708, 2, 12492, 3], &[1, 32708, 2, 6382, 3], &[1, 32708, 2, 4059, 3]],
            [&[1, 15381, 2], &[3]],
            [&[1, 7235, 476, 2], &[3]],
            [&[1, 2581, 2], &[3]],
        )
    }

    fn of(bos_id: u32, captions: [&[u32]; 3], query: [&[u32]; 2], detect: [&[u32]; 2], point: [&[u32]; 2]) -> Self {
        let around = |[prefix, suffix]: [&[u32]; 2]| Some(Around { prefix: prefix.to_vec(), suffix: suffix.to_vec() });
        let captions = ["short", "normal", "long"].into_iter().zip(captions);
        let caption = captions.map(|(length, ids)| (length.to_owned(), ids.to_vec())).collect();
        Self {
            bos_id,
            templates: Templates { caption, query: around(query), detect: around(detect), point: around(point) },
        }
    }
}

/// A question about one picture, or, without words, a caption; `caption` says how long.
const TEMPLATE: &str = "\
{%- set pictures = namespace(count=0) %}<|bos|>
{%- for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('Moondream takes no system prompt') }}{% endif %}
{%- set words = namespace(text='') %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{% set pictures.count = pictures.count + 1 %}<image>
{%- else %}{% set words.text = words.text + part.text %}{% endif %}
{%- endfor %}
{%- if message.role != 'user' %}{{ words.text }}
{%- elif caption is defined or not words.text %}{{ '<|caption-' + (caption or 'normal') + '|>' }}
{%- else %}<|query|>{{ words.text }}<|answer|>
{%- endif %}
{%- endfor %}
{%- if pictures.count > 1 %}{{ raise_exception('Moondream takes one picture') }}{% endif %}";
const IMAGE: &str = "<image>";
/// The id of `<|endoftext|>` in GPT-2's tokenizer.
const OLDER_END: u32 = 50_256;
/// No model asks for more.
const MAX_CROP: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tilings_are_those_of_upstream() {
        // Computed with upstream's `select_tiling`.
        for ((width, height), rows, columns) in TILINGS {
            let tiling = Vision::default().tiling(width, height, Detail::Auto);
            assert_eq!(tiling, Tiling { rows, columns }, "{width}x{height}");
        }
        assert_eq!(Vision::default().tiling(4000, 3000, Detail::Low), Tiling { rows: 1, columns: 1 });
    }

    const TILINGS: [((usize, usize), usize, usize); 14] = [
        ((378, 378), 1, 1),
        ((379, 379), 3, 3),
        ((100, 2000), 1, 1),
        ((620, 450), 2, 4),
        ((640, 480), 2, 4),
        ((480, 640), 4, 2),
        ((1024, 768), 3, 4),
        ((1920, 1080), 2, 4),
        ((4000, 3000), 2, 4),
        ((3000, 4000), 4, 2),
        ((10000, 400), 1, 15),
        ((500, 1900), 6, 1),
        ((1500, 379), 2, 6),
        ((900, 911), 4, 3),
    ];
}
