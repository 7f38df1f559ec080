//! Everything between user content and the model: one [`Processor`] per loaded model.

use std::fmt::Write;

use ocelli_formats::{Config, ModelFiles};

use crate::audio::MelExtractor;
use crate::families::{ImagePlace, ImageProcessor, Model, mel_extractor, of_model};
use crate::image::{Detail, Image, ImageLimits, PreparedImage, decode_image};
use crate::text::{ChatOptions, ChatTemplate, Content, ContentForm, Guard, Message, Segment, Tokenizer};
use crate::{Error, Result};

/// Turns user content into what a model takes.
pub struct Processor {
    label: String,
    model_type: String,
    tokenizer: Tokenizer,
    template: Option<(ChatTemplate, ContentForm)>,
    images: Option<Box<dyn ImageProcessor>>,
    mel: Option<MelExtractor>,
    /// What stands for a picture's features among the ids.
    image_id: Option<u32>,
    /// Those that the tokenizer does not know.
    foreign_tokens: Vec<(&'static str, Vec<u32>)>,
    limits: ImageLimits,
}

/// What a model takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The whole text, placeholders expanded.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
    /// The pictures, in the order of their tokens.
    pub images: Vec<PreparedImage>,
}

impl Processor {
    /// Reads the tokenizer, the chat template and the image settings of a model.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::BadTokenizer`], [`Error::BadTemplate`], [`Error::Value`],
    /// [`Error::MissingToken`], [`Error::Files`].
    pub fn load(files: &ModelFiles, config: &Config) -> Result<Self> {
        let tokenizer = Tokenizer::load(files)?;
        let images = of_model(&Model { files, config, tokenizer: Some(&tokenizer) })?;
        let default = images.as_ref().and_then(|images| images.default_template());
        let template = match (ChatTemplate::load(files, tokenizer.named_tokens())?, default) {
            // One that wants text alone is that of the text model that the family was made from.
            (Some(template), Some(_)) if template.content_form(true) == ContentForm::Parts => Some(template),
            (_, Some(source)) => Some(ChatTemplate::parse(source, DEFAULT_TEMPLATE, tokenizer.named_tokens())?),
            (template, None) => template,
        };
        let template = template.map(|template| {
            let form = template.content_form(images.is_some());
            (template, form)
        });
        let (label, model_type) = (files.label().to_string(), config.model_type().to_string());
        let mel = mel_extractor(files, config)?;
        let mut foreign_tokens = images.as_ref().map(|images| images.foreign_tokens()).unwrap_or_default();
        foreign_tokens.retain(|(text, _)| tokenizer.token_to_id(text).is_none());
        let image_token = images.as_ref().map(|images| images.image_token());
        let foreign = foreign_tokens.iter().find(|(text, _)| Some(*text) == image_token);
        let image_id = match foreign {
            Some((_, ids)) => ids.first().copied(),
            None => image_token.and_then(|token| tokenizer.token_to_id(token)),
        };
        let limits = ImageLimits::default();
        Ok(Self { label, model_type, tokenizer, template, images, image_id, foreign_tokens, mel, limits })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether the model sees.
    pub fn has_images(&self) -> bool {
        self.images.is_some()
    }

    /// Whether [`Processor::chat_prompt`] can work.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Whether answers may begin with a thought: see [`ChatTemplate::thinks`].
    pub fn thinks(&self) -> bool {
        self.template.as_ref().is_some_and(|(template, _)| template.thinks())
    }

    /// What to ask about a picture if nobody says; nothing for a text model.
    pub fn default_prompt(&self) -> &'static str {
        self.images.as_ref().map_or("", |images| images.default_prompt())
    }

    /// The family's image processor, if the model sees.
    pub fn image_processor(&self) -> Option<&dyn ImageProcessor> {
        self.images.as_deref()
    }

    /// The image processor alone.
    pub fn into_image_processor(self) -> Option<Box<dyn ImageProcessor>> {
        self.images
    }

    /// What turns recordings into spectrograms, if the model hears.
    pub fn mel_extractor(&self) -> Option<&MelExtractor> {
        self.mel.as_ref()
    }

    /// What a picture may cost at most in [`Processor::decode_image`].
    pub fn set_image_limits(&mut self, limits: ImageLimits) {
        self.limits = limits;
    }

    /// What a picture may cost at most in [`Processor::decode_image`].
    pub fn image_limits(&self) -> &ImageLimits {
        &self.limits
    }

    /// Decodes a picture file within this processor's limits.
    ///
    /// # Errors
    /// Those of [`decode_image`].
    pub fn decode_image(&self, bytes: &[u8]) -> Result<Image> {
        decode_image(bytes, &self.limits)
    }

    /// A conversation as a prompt; `images` in the order of their [`Content::Image`]. Special tokens in the messages
    /// are text there: only the template and the pictures speak to the model in its control tokens.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::NoVision`], [`Error::ImageCount`], [`Error::BadRole`],
    /// [`Error::TemplateRefused`], [`Error::Template`], [`Error::NoPixels`], [`Error::Encode`],
    /// [`Error::ImageTokens`].
    pub fn chat_prompt(&self, messages: &[Message], images: &[Image], options: &ChatOptions) -> Result<Prompt> {
        let Some((template, form)) = &self.template else {
            return Err(Error::NoChatTemplate { label: self.label.clone() });
        };
        let wanted = messages.iter().flat_map(|message| &message.content);
        let wanted = wanted.filter(|part| matches!(part, Content::Image)).count();
        self.check_images(wanted, images)?;
        let is_word = |role: &str| !role.is_empty() && role.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
        if let Some(message) = messages.iter().find(|message| !is_word(&message.role)) {
            return Err(Error::BadRole { role: message.role.clone() });
        }
        let guard = self.guard(messages, options)?;
        let options = protected_options(options, &guard);
        let rendered = template.render(&protected(messages, &guard), *form, self.placeholder(), &options)?;
        let rendered = self.placed(rendered, images.len())?;
        let placeholders = self.count_placeholders(&rendered);
        if placeholders != self.places(images.len()) {
            return Err(Error::ImageCount { placeholders, images: images.len() });
        }
        let images = self.prepare(images, options.detail, &guard.restore(&rendered))?;
        let text = self.expand(&rendered, &images);
        let mut ids = self.encode_guarded(&guard, &text)?;
        if self.place() != ImagePlace::InText {
            ids = self.framed(ids)?;
        }
        let ids = self.with_images(ids, &images);
        self.finish(guard.restore(&text).into_owned(), ids, images)
    }

    /// Text as it is, special tokens included, as a prompt; the model's placeholder (such as `<image>`) stands for
    /// each picture. Text whose image tokens are already expanded is taken as it is.
    ///
    /// # Errors
    /// [`Error::NoVision`], [`Error::ImageCount`], [`Error::NoPixels`], [`Error::Encode`], [`Error::ImageTokens`].
    pub fn raw_prompt(&self, text: &str, images: &[Image]) -> Result<Prompt> {
        self.raw_prompt_with(text, images, Detail::Auto)
    }

    /// [`Processor::raw_prompt`], looking at the pictures as closely as `detail` says.
    ///
    /// # Errors
    /// As [`Processor::raw_prompt`].
    pub fn raw_prompt_with(&self, text: &str, images: &[Image], detail: Detail) -> Result<Prompt> {
        self.check_images(images.len(), images)?;
        let text = self.placed(text.to_owned(), images.len())?;
        let (placeholders, n_images, places) =
            (self.count_placeholders(&text), images.len(), self.places(images.len()));
        if placeholders < places || (places == 0 && placeholders > 0) {
            return Err(Error::ImageCount { placeholders, images: n_images });
        }
        let images = self.prepare(images, detail, &text)?;
        let n_tokens: usize = images.iter().map(|image| image.vision_tokens).sum();
        let text = match placeholders {
            _ if placeholders == places => self.expand(&text, &images),
            _ if placeholders == n_tokens => text,
            _ => return Err(Error::ImageCount { placeholders, images: n_images }),
        };
        let mut ids = self.encode(&text, true)?;
        // The text may spell out the BOS that the tokenizer adds anyway.
        if let (Some(bos), [first, second, ..]) = (self.tokenizer.bos(), &ids[..])
            && *first == bos
            && *second == bos
            && self.tokenizer.encode(&text, false)?.first() == Some(&bos)
        {
            ids.remove(0);
        }
        let ids = self.with_images(ids, &images);
        self.finish(text, ids, images)
    }

    /// A prompt that asks where something is in a picture, in numbers: boxes around it, or only places. `None` for models
    /// that have only words for that.
    ///
    /// # Errors
    /// [`Error::NoPixels`], [`Error::Encode`], [`Error::ImageTokens`].
    pub fn locating_prompt(&self, thing: &str, image: &Image, boxes: bool) -> Result<Option<Prompt>> {
        let around = self.images.as_ref().and_then(|images| images.locating_prompt(boxes));
        let Some([before, behind]) = around else { return Ok(None) };
        let guard = self.guard(&[Message::text("user", thing)], &ChatOptions::answer())?;
        let rendered = format!("{before}{}{behind}", guard.protect(thing));
        let images = self.prepare(std::slice::from_ref(image), Detail::Auto, &rendered)?;
        let text = self.expand(&rendered, &images);
        let ids = self.encode_guarded(&guard, &text)?;
        self.finish(guard.restore(&text).into_owned(), ids, images).map(Some)
    }

    /// What stands for a picture in a prompt; empty for text models.
    fn placeholder(&self) -> &str {
        self.images.as_ref().map_or("", |images| images.placeholder())
    }

    fn place(&self) -> ImagePlace {
        self.images.as_ref().map_or(ImagePlace::InText, |images| images.place())
    }

    /// How many placeholders so many pictures need.
    fn places(&self, n_images: usize) -> usize {
        if self.place() == ImagePlace::InText { n_images } else { 0 }
    }

    /// The text without placeholders, where they mean nothing: either all pictures have one or none has.
    fn placed(&self, text: String, n_images: usize) -> Result<String> {
        let placeholders = self.count_placeholders(&text);
        if self.place() == ImagePlace::InText || placeholders == 0 {
            return Ok(text);
        }
        if placeholders != n_images {
            return Err(Error::ImageCount { placeholders, images: n_images });
        }
        Ok(text.replace(self.placeholder(), ""))
    }

    /// The ids of a text with what the tokenizer puts around it, unless a template has.
    fn framed(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let (before, behind) = self.tokenizer.frame()?;
        if !before.is_empty() && ids.starts_with(&before) {
            return Ok(ids);
        }
        Ok([before, ids, behind].concat())
    }

    /// The ids of a prompt whose text has these.
    fn with_images(&self, ids: Vec<u32>, images: &[PreparedImage]) -> Vec<u32> {
        let ImagePlace::First(image_id) = self.place() else { return ids };
        let n_tokens = images.iter().map(|image| image.vision_tokens).sum();
        [vec![image_id; n_tokens], ids].concat()
    }

    fn count_placeholders(&self, text: &str) -> usize {
        self.images.as_ref().map_or(0, |images| text.matches(images.placeholder()).count())
    }

    fn check_images(&self, wanted: usize, images: &[Image]) -> Result<()> {
        if self.images.is_none() && (wanted > 0 || !images.is_empty()) {
            return Err(Error::NoVision { label: self.label.clone(), model_type: self.model_type.clone() });
        }
        if self.place() == ImagePlace::Apart && images.len() != 1 {
            return Err(Error::ImageCount { placeholders: 1, images: images.len() });
        }
        if wanted != images.len() {
            return Err(Error::ImageCount { placeholders: wanted, images: images.len() });
        }
        Ok(())
    }

    /// A guard over all text that comes from the user.
    fn guard(&self, messages: &[Message], options: &ChatOptions) -> Result<Guard> {
        let images = self.images.iter().flat_map(|images| [images.placeholder(), images.image_token()]);
        let foreign = self.foreign_tokens.iter().map(|(token, _)| *token);
        let specials = self.tokenizer.specials().with(images.chain(foreign));
        let mut others = String::new();
        for value in options.tools.iter().chain(options.variables.values()) {
            // Writing to a string cannot fail.
            let _ = write!(others, "{value}");
        }
        let texts = messages.iter().flat_map(|message| &message.content).filter_map(|part| match part {
            Content::Text(text) => Some(text.as_str()),
            Content::Image => None,
        });
        Guard::new(specials, texts.chain([others.as_str()]))
    }

    /// `text` still has its placeholders.
    fn prepare(&self, images: &[Image], detail: Detail, text: &str) -> Result<Vec<PreparedImage>> {
        let Some(processor) = &self.images else { return Ok(Vec::new()) };
        let text = text.replace(processor.placeholder(), "");
        let detail = processor.detail_among(images.len(), detail);
        images.iter().map(|image| processor.prepare_for(image, detail, &text)).collect()
    }

    /// The text with each placeholder replaced by the picture's own text.
    fn expand(&self, text: &str, images: &[PreparedImage]) -> String {
        let Some(processor) = self.images.as_ref().filter(|images| images.place() == ImagePlace::InText) else {
            return text.to_string();
        };
        let mut expanded = String::new();
        let mut images = images.iter();
        for (index, part) in text.split(processor.placeholder()).enumerate() {
            if index > 0 {
                expanded += &images.next().map(|image| processor.expand(image)).unwrap_or_default();
            }
            expanded += part;
        }
        expanded
    }

    /// The ids of a text whose user's parts are guarded.
    fn encode_guarded(&self, guard: &Guard, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for segment in guard.segments(text) {
            ids.extend(match segment {
                Segment::Template(text) => self.encode(&text, false)?,
                Segment::Literal(text) => self.tokenizer.encode_literal(&text)?,
            });
        }
        Ok(ids)
    }

    /// The ids of a text with [`ImageProcessor::foreign_tokens`].
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        if self.foreign_tokens.is_empty() {
            return self.tokenizer.encode(text, add_special_tokens);
        }
        let mut ids = Vec::new();
        let mut rest = text;
        loop {
            let found =
                self.foreign_tokens.iter().filter_map(|(token, ids)| Some((rest.find(token)?, token.len(), ids)));
            // The longest, where several begin.
            let next = found.min_by_key(|&(at, len, _)| (at, std::cmp::Reverse(len)));
            let part = next.map_or(rest, |(at, ..)| &rest[..at]);
            if !part.is_empty() {
                ids.extend(self.tokenizer.encode(part, add_special_tokens && ids.is_empty())?);
            }
            let Some((at, len, foreign)) = next else { break };
            ids.extend(foreign);
            rest = &rest[at + len..];
        }
        Ok(ids)
    }

    /// Checks that every vision feature has its token, and every token its feature.
    fn finish(&self, text: String, ids: Vec<u32>, images: Vec<PreparedImage>) -> Result<Prompt> {
        if let Some(processor) = self.images.as_ref().filter(|images| images.place() != ImagePlace::Apart) {
            let token = processor.image_token();
            let id = match processor.place() {
                ImagePlace::First(id) => Some(id),
                _ => self.image_id,
            };
            let found = ids.iter().filter(|&&other| Some(other) == id).count();
            let expected = images.iter().map(|image| image.vision_tokens).sum();
            if found != expected {
                return Err(Error::ImageTokens { token: token.into(), expected, found });
            }
        }
        Ok(Prompt { text, ids, images })
    }
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Processor").field("label", &self.label).finish_non_exhaustive()
    }
}

/// How messages name a family's own template.
const DEFAULT_TEMPLATE: &str = "the built-in chat template";

fn protected(messages: &[Message], guard: &Guard) -> Vec<Message> {
    let part = |part: &Content| match part {
        Content::Text(text) => Content::Text(guard.protect(text).into_owned()),
        Content::Image => Content::Image,
    };
    let message =
        |message: &Message| Message { role: message.role.clone(), content: message.content.iter().map(part).collect() };
    messages.iter().map(message).collect()
}

fn protected_options(options: &ChatOptions, guard: &Guard) -> ChatOptions {
    let variables = options.variables.iter();
    ChatOptions {
        tools: options.tools.as_ref().map(|tools| protected_value(tools, guard)),
        variables: variables.map(|(name, value)| (name.clone(), protected_value(value, guard))).collect(),
        ..options.clone()
    }
}

fn protected_value(value: &serde_json::Value, guard: &Guard) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(guard.protect(text).into_owned()),
        Value::Array(items) => items.iter().map(|item| protected_value(item, guard)).collect(),
        Value::Object(entries) => entries
            .iter()
            .map(|(name, value)| (guard.protect(name).into_owned(), protected_value(value, guard)))
            .collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Processor>();
        shared::<Tokenizer>();
        shared::<Prompt>();
    }
}
