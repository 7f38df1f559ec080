//! BLIP's image processor (transformers `image_processing_pil_blip.py`) and the prompts of its families.
//!
//! A picture becomes one square whatever its shape was: nothing is cut off, circles become ellipses. The prompt is plain
//! text, which the tokenizer frames; none of these models has a chat template.

use serde::Deserialize;

use super::{ImagePlace, ImageProcessor, Model};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::settings::preprocessor_config;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The BLIP image processor.
#[derive(Debug)]
struct Blip {
    settings: Settings,
    table: PixelTable,
    /// Features of a picture.
    vision_tokens: usize,
    prompts: Prompts,
    /// Of the instruction, for a tower that reads it.
    reader: Option<Tokenizer>,
}

/// How a model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prompts {
    place: ImagePlace,
    template: &'static str,
    default: &'static str,
}

/// What shapes the pixels.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    width: usize,
    height: usize,
    filter: ResampleFilter,
    rescale: Option<f64>,
    normalize: Option<([f32; 3], [f32; 3])>,
}

/// BLIP: captions, which may begin with given words, or answers to questions.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let default =
        if model.config.architectures().contains(&"BlipForQuestionAnswering") { "What is in the picture?" } else { "" };
    let prompts = Prompts { place: ImagePlace::Apart, template: ONE_MESSAGE, default };
    let (settings, vision) = Settings::load(model, 384, 16)?;
    let table = PixelTable::new(settings.rescale, settings.normalize);
    // Every patch, and the class token.
    Ok(Box::new(Blip { settings, table, vision_tokens: vision.patches() + 1, prompts, reader: None }))
}

/// BLIP-2: captions without a prompt, and answers to questions.
pub(super) fn load_2(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    of_queries(model, QUESTIONS, "", None)
}

/// InstructBLIP, whose Q-Former reads the instruction with a tokenizer of its own.
pub(super) fn load_instruct(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let reader = model.tokenizer.map(|_| Tokenizer::load_from(model.files, "qformer_tokenizer/")).transpose()?;
    let section = model.config.section("qformer_config");
    let rows = section.as_ref().and_then(|section| section.get("vocab_size")?.as_u64()).unwrap_or(30522);
    if let (Some(reader), Some(section)) = (&reader, &section)
        && reader.vocab_size() as u64 > rows
    {
        let message = format!("{rows}, but qformer_tokenizer has {} tokens", reader.vocab_size());
        return Err(section.error("vocab_size", &message).into());
    }
    of_queries(model, INSTRUCTIONS, "Describe the image.", reader)
}

/// A model whose prompts begin with as many features as its Q-Former has queries.
fn of_queries(
    model: &Model<'_>,
    template: &'static str,
    default: &'static str,
    reader: Option<Tokenizer>,
) -> Result<Box<dyn ImageProcessor>> {
    let (settings, _) = Settings::load(model, 224, 14)?;
    let table = PixelTable::new(settings.rescale, settings.normalize);
    let config: QueryConfig = model.config.root().parse()?;
    let text: TextConfig =
        model.config.section("text_config").map_or_else(|| Ok(TextConfig::default()), |s| s.parse())?;
    // Before December 2024 there was no token for pictures; the model reads the last row of its table as one.
    let image_id = config.image_token_index.unwrap_or_else(|| text.vocab_size().saturating_sub(1));
    let prompts = Prompts { place: ImagePlace::First(image_id), template, default };
    Ok(Box::new(Blip { settings, table, vision_tokens: config.num_query_tokens, prompts, reader }))
}

impl ImageProcessor for Blip {
    fn prepare_with(&self, image: &Image, _detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let target = (self.settings.width, self.settings.height);
        let resized = resize(image, target.0, target.1, self.settings.filter);
        let window = Window { left: 0, top: 0, width: target.0, height: target.1 };
        let mut pixel_values = Vec::with_capacity(resized.pixels.len());
        self.table.append_planes(&resized.pixels, resized.width, window, &mut pixel_values);
        Ok(PreparedImage {
            pixel_values,
            shape: [1, 3, target.1, target.0],
            grid: [1, 0, 0],
            text_ids: Vec::new(),
            image_size: (width, height),
            resized_to: target,
            vision_tokens: self.vision_tokens,
            content_hash: self.settings.hash(image),
        })
    }

    fn prepare_for(&self, image: &Image, detail: Detail, text: &str) -> Result<PreparedImage> {
        let mut prepared = self.prepare_with(image, detail)?;
        if let Some(reader) = &self.reader {
            prepared.text_ids = reader.encode_framed(text)?;
            let mut hasher = blake3::Hasher::new();
            hasher.update(&prepared.content_hash.to_le_bytes());
            for id in &prepared.text_ids {
                hasher.update(&id.to_le_bytes());
            }
            prepared.content_hash = first_128_bits(&hasher);
        }
        Ok(prepared)
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

    fn place(&self) -> ImagePlace {
        self.prompts.place
    }

    fn default_prompt(&self) -> &'static str {
        self.prompts.default
    }

    fn default_template(&self) -> Option<&'static str> {
        Some(self.prompts.template)
    }
}

impl Settings {
    /// Reads `preprocessor_config.json` (or the `image_processor` of `processor_config.json`) and `vision_config`, whose
    /// class has these defaults.
    fn load(model: &Model<'_>, image_size: usize, patch_size: usize) -> Result<(Self, VisionConfig)> {
        let (file, raw): (String, RawSettings) = preprocessor_config(model.files, "image_processor")?;
        let error = |key: &str, message: String| Error::Value { file: file.clone(), key: key.into(), message };
        let section = model.config.section("vision_config");
        let mut vision = match &section {
            Some(section) => section.parse()?,
            None => VisionConfig::default(),
        };
        vision.image_size.get_or_insert(image_size);
        vision.patch_size.get_or_insert(patch_size);
        if vision.patches() == 0 {
            let section = section.as_ref().unwrap_or(model.config.root());
            return Err(section.error("patch_size", "no patch fits into a picture").into());
        }
        let (width, height) = match raw.size {
            RawSize::Edge(edge) => (edge, edge),
            RawSize::Exact { width, height } => (width, height),
        };
        let side = vision.image_size.unwrap_or(image_size);
        if !raw.do_resize || (width, height) != (side, side) {
            return Err(error("size", format!("pictures do not come out as {side}x{side}, the tower's image_size")));
        }
        let filter = ResampleFilter::from_pillow(raw.resample)
            .ok_or_else(|| error("resample", format!("expected a filter number from 0 to 5, got {}", raw.resample)))?;
        let settings = Self {
            width,
            height,
            filter,
            rescale: raw.do_rescale.then_some(raw.rescale_factor),
            normalize: raw.do_normalize.then_some((raw.image_mean, raw.image_std)),
        };
        Ok((settings, vision))
    }

    /// A hash of the picture and of all that decides its pixel values.
    fn hash(&self, image: &Image) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.content_hash().to_le_bytes());
        // Debug output spells every field out, floats to the last bit.
        hasher.update(format!("blip {self:?}").as_bytes());
        first_128_bits(&hasher)
    }
}

/// What BLIP-2 and InstructBLIP say of their queries.
#[derive(Deserialize)]
struct QueryConfig {
    image_token_index: Option<u32>,
    #[serde(default = "default_num_query_tokens")]
    num_query_tokens: usize,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TextConfig {
    model_type: Option<String>,
    vocab_size: Option<u32>,
}

impl TextConfig {
    fn vocab_size(&self) -> u32 {
        let is_llama = self.model_type.as_deref() == Some("llama");
        self.vocab_size.unwrap_or(if is_llama { 32_000 } else { 50_272 })
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct VisionConfig {
    image_size: Option<usize>,
    patch_size: Option<usize>,
}

impl VisionConfig {
    fn patches(self) -> usize {
        let per_side = self.image_size.unwrap_or(0).checked_div(self.patch_size.unwrap_or(0)).unwrap_or(0);
        if per_side > MAX_SIDE { 0 } else { per_side * per_side }
    }
}

/// The class defaults of the reference, for keys a file leaves out, are in [`RawSettings::default`].
#[derive(Deserialize)]
#[serde(default)]
struct RawSettings {
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    size: RawSize,
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
            size: RawSize::Edge(384),
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
    Exact { width: usize, height: usize },
}

fn default_num_query_tokens() -> usize {
    32
}

/// No picture is cut into more patches along a side.
const MAX_SIDE: usize = 1024;
const IMAGE: &str = "<image>";

/// The text as it is; the model has no idea of a conversation.
const ONE_MESSAGE: &str = "\
{%- if messages|length > 1 -%}{{ raise_exception('this model answers one message at a time: begin anew') }}{%- endif -%}
{%- for part in messages[0]['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}";

/// A dialogue of questions and answers, which ends in `Answer:`; a message without text asks for a caption.
const QUESTIONS: &str = "\
{%- for message in messages -%}
{%- set text -%}{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endset -%}
{%- if message['role'] == 'assistant' -%}{{ ' ' ~ text ~ ' ' }}
{%- elif message['role'] == 'system' -%}{{ text ~ ' ' }}
{%- elif text -%}{{ 'Question: ' ~ text ~ ' Answer:' }}{%- endif -%}
{%- endfor -%}";

/// The instruction alone; of a conversation, one message per line.
const INSTRUCTIONS: &str = "\
{%- for message in messages -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endfor -%}";
