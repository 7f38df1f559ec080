//! BLIP's image processor (transformers `image_processing_pil_blip.py`) and the prompts of its families.
//!
//! A picture becomes one square whatever its shape was: nothing is cut off, circles become ellipses. The prompt is plain
//! text, which the tokenizer frames; none of these models has a chat template.

use serde::Deserialize;

use super::clip::{self, Clip};
use super::{ImagePlace, ImageProcessor, Model};
use crate::image::{Detail, Image, PreparedImage, ResampleFilter, first_128_bits};
use crate::settings::preprocessor_config;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The BLIP image processor.
#[derive(Debug)]
struct Blip {
    square: Clip,
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

/// BLIP: captions, which may begin with given words, or answers to questions.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let default =
        if model.config.architectures().contains(&"BlipForQuestionAnswering") { "What is in the picture?" } else { "" };
    let prompts = Prompts { place: ImagePlace::Apart, template: ONE_MESSAGE, default };
    let (settings, vision) = settings(model, 384, 16)?;
    // Every patch, and the class token.
    Ok(Box::new(Blip { square: Clip::new(settings, vision.patches() + 1), prompts, reader: None }))
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
    let (settings, _) = settings(model, 224, 14)?;
    let config: QueryConfig = model.config.root().parse()?;
    let text: TextConfig =
        model.config.section("text_config").map_or_else(|| Ok(TextConfig::default()), |s| s.parse())?;
    // Before December 2024 there was no token for pictures; the model reads the last row of its table as one.
    let image_id = config.image_token_index.unwrap_or_else(|| text.vocab_size().saturating_sub(1));
    let prompts = Prompts { place: ImagePlace::First(image_id), template, default };
    Ok(Box::new(Blip { square: Clip::new(settings, config.num_query_tokens), prompts, reader }))
}

impl ImageProcessor for Blip {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        self.square.prepare_with(image, detail)
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

    fn vision_tokens(&self, width: usize, height: usize, detail: Detail) -> usize {
        self.square.vision_tokens(width, height, detail)
    }

    fn expand(&self, image: &PreparedImage) -> String {
        self.square.expand(image)
    }

    fn placeholder(&self) -> &str {
        self.square.placeholder()
    }

    fn image_token(&self) -> &str {
        self.square.image_token()
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

/// Reads `preprocessor_config.json` (or the `image_processor` of `processor_config.json`) and `vision_config`, whose
/// class has these defaults.
fn settings(model: &Model<'_>, image_size: usize, patch_size: usize) -> Result<(clip::Settings, VisionConfig)> {
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
    let settings = clip::Settings {
        pad: None,
        size: Some(clip::Size::Exact { width, height }),
        crop: None,
        filter,
        rescale: raw.do_rescale.then_some(raw.rescale_factor),
        normalize: raw.do_normalize.then_some((raw.image_mean, raw.image_std)),
    };
    Ok((settings, vision))
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
