//! Everything between user content and the model: one [`Processor`] per loaded model.

use std::fmt::Write;

use ocelli_formats::{Config, ModelFiles};

use crate::audio::MelExtractor;
use crate::families::{ImagePlace, ImageProcessor, Model, VideoProcessor, mel_extractor, of_model};
use crate::image::{Detail, Image, ImageLimits, PreparedImage, decode_image};
use crate::text::{ChatOptions, ChatTemplate, Content, ContentForm, Guard, Message, Segment, Tokenizer};
use crate::video::{Video, VideoOptions, VideoSource};
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
    /// The same for a video's.
    video_id: Option<u32>,
    /// Those that the tokenizer does not know.
    foreign_tokens: Vec<(&'static str, Vec<u32>)>,
    limits: ImageLimits,
    context_length: usize,
}

/// What a model takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The whole text, placeholders expanded.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
    /// The pictures and videos, in the order of their tokens.
    pub images: Vec<PreparedImage>,
}

/// What a prompt shows, each list in the order of its places.
#[derive(Clone, Copy, Debug, Default)]
pub struct Visuals<'a> {
    /// Pictures.
    pub images: &'a [Image],
    /// Videos, read by the model's own [`Processor::read_video`].
    pub videos: &'a [Video],
}

impl<'a> From<&'a [Image]> for Visuals<'a> {
    fn from(images: &'a [Image]) -> Self {
        Self { images, videos: &[] }
    }
}

impl<'a> From<&'a Vec<Image>> for Visuals<'a> {
    fn from(images: &'a Vec<Image>) -> Self {
        images.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [Image; N]> for Visuals<'a> {
    fn from(images: &'a [Image; N]) -> Self {
        images.as_slice().into()
    }
}

impl Processor {
    /// Reads the tokenizer, the chat template and the image settings of a model.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::NoSpeechTokenizer`], [`Error::TokenizerClass`], [`Error::BadTokenizer`],
    /// [`Error::BadTemplate`], [`Error::Value`], [`Error::MissingToken`], [`Error::Files`].
    pub fn load(files: &ModelFiles, config: &Config) -> Result<Self> {
        let mel = mel_extractor(files, config)?;
        let tokenizer = Tokenizer::load(files).map_err(|error| match error {
            Error::NoTokenizer { label, nor } if mel.is_some() && nor.is_empty() => Error::NoSpeechTokenizer { label },
            other => other,
        })?;
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
        let mut foreign_tokens = images.as_ref().map(|images| images.foreign_tokens()).unwrap_or_default();
        foreign_tokens.retain(|(text, _)| tokenizer.token_to_id(text).is_none());
        let image_token = images.as_ref().map(|images| images.image_token());
        let foreign = foreign_tokens.iter().find(|(text, _)| Some(*text) == image_token);
        let image_id = match foreign {
            Some((_, ids)) => ids.first().copied(),
            None => image_token.and_then(|token| tokenizer.token_to_id(token)),
        };
        let videos = images.as_ref().and_then(|images| images.videos());
        let video_id = videos.and_then(|videos| tokenizer.token_to_id(videos.video_token()));
        Ok(Self {
            label,
            model_type,
            tokenizer,
            template,
            images,
            mel,
            image_id,
            video_id,
            foreign_tokens,
            limits: ImageLimits::default(),
            context_length: usize::MAX,
        })
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

    /// Most tokens of a prompt: [`Processor::read_video`] refuses a video that has more of its own.
    pub fn set_context_length(&mut self, tokens: usize) {
        self.context_length = tokens;
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

    /// Whether the model takes videos.
    pub fn has_videos(&self) -> bool {
        self.videos().is_some()
    }

    /// The frames of a video that the model looks at, brought to the size at which it does; never more than these are
    /// in memory, and no more than the first one of a video that is too long for a prompt.
    ///
    /// # Errors
    /// [`Error::NoVideos`] for a model that takes none; [`Error::NoFrames`], [`Error::FrameSize`],
    /// [`Error::TooNarrow`], [`Error::TooFewTokens`], [`Error::VideoTokens`]; what cannot be read, as
    /// [`VideoSource::open`] says.
    pub fn read_video(&self, source: &VideoSource, options: &VideoOptions) -> Result<Video> {
        let videos = self.videos().ok_or_else(|| self.no_videos())?;
        self.images.iter().try_for_each(|images| images.check_detail(options.detail))?;
        let info = source.info();
        let mut indices = videos.sample(info, options);
        let (mut frames, mut source_size) = (Vec::with_capacity(indices.len()), None);
        source.read(&indices, &mut |frame| {
            let first = *source_size.get_or_insert((frame.width, frame.height));
            if first != (frame.width, frame.height) {
                return Err(crate::video::frame_size(frames.len(), &frame, first));
            }
            let fitted = videos.fit(&frame, indices.len(), options.detail)?;
            let tokens = videos.vision_tokens((fitted.width, fitted.height), indices.len());
            if tokens >= self.context_length {
                let context_length = self.context_length;
                return Err(Error::VideoTokens { frames: indices.len(), tokens, context_length });
            }
            frames.push(fitted);
            Ok(())
        })?;
        // A file may hold less than it says.
        indices.truncate(frames.len());
        let source_size = source_size.ok_or(Error::NoFrames)?;
        let fps = info.fps.or(options.fps).unwrap_or(videos.fps());
        Ok(Video { frames, indices, fps, source_frames: info.frames, duration: info.duration(), source_size })
    }

    /// A conversation as a prompt; `shown` in the order of their [`Content::Image`] and [`Content::Video`]. Special
    /// tokens in the messages are text there: only the template, the pictures and the videos speak to the model in its
    /// control tokens.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::NoVision`], [`Error::NoVideos`], [`Error::ImageCount`],
    /// [`Error::VideoCount`], [`Error::BadRole`], [`Error::TemplateRefused`], [`Error::Template`], [`Error::NoPixels`],
    /// [`Error::TooFewTokens`], [`Error::Encode`], [`Error::ImageTokens`].
    pub fn chat_prompt<'a>(
        &self,
        messages: &[Message],
        shown: impl Into<Visuals<'a>>,
        options: &ChatOptions,
    ) -> Result<Prompt> {
        let shown = shown.into();
        let Some((template, form)) = &self.template else {
            return Err(Error::NoChatTemplate { label: self.label.clone() });
        };
        let count = |kind: &Content| {
            let parts = messages.iter().flat_map(|message| &message.content);
            parts.filter(|part| *part == kind).count()
        };
        self.check_images(count(&Content::Image), shown.images)?;
        self.check_videos(count(&Content::Video), shown.videos)?;
        let is_word = |role: &str| !role.is_empty() && role.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
        if let Some(message) = messages.iter().find(|message| !is_word(&message.role)) {
            return Err(Error::BadRole { role: message.role.clone() });
        }
        let guard = self.guard(messages, options)?;
        let options = protected_options(options, &guard);
        let messages = self.with_videos_in_words(protected(messages, &guard));
        let rendered = template.render(&messages, *form, self.placeholder(), &options)?;
        let rendered = self.placed(rendered, shown.images.len())?;
        let placeholders = self.count_placeholders(&rendered);
        if placeholders != self.places(shown.images.len()) {
            return Err(Error::ImageCount { placeholders, images: shown.images.len() });
        }
        self.check_videos(self.count_videos(&rendered), shown.videos)?;
        let prepared = self.prepare(shown, options.detail, &guard.restore(&rendered))?;
        let (text, images) = self.expand(&rendered, prepared);
        let mut ids = self.encode_guarded(&guard, &text)?;
        if self.place() != ImagePlace::InText {
            ids = self.framed(ids)?;
        }
        let ids = self.with_images(ids, &images);
        self.finish(guard.restore(&text).into_owned(), ids, images)
    }

    /// Text as it is, special tokens included, as a prompt; the model's placeholders (such as `<image>`, `<video>`)
    /// stand for each picture and video. Text whose image tokens are already expanded is taken as it is.
    ///
    /// # Errors
    /// [`Error::NoVision`], [`Error::NoVideos`], [`Error::ImageCount`], [`Error::VideoCount`], [`Error::NoPixels`],
    /// [`Error::TooFewTokens`], [`Error::Encode`], [`Error::ImageTokens`].
    pub fn raw_prompt<'a>(&self, text: &str, shown: impl Into<Visuals<'a>>) -> Result<Prompt> {
        self.raw_prompt_with(text, shown, Detail::Auto)
    }

    /// [`Processor::raw_prompt`], looking at the pictures as closely as `detail` says.
    ///
    /// # Errors
    /// As [`Processor::raw_prompt`].
    pub fn raw_prompt_with<'a>(&self, text: &str, shown: impl Into<Visuals<'a>>, detail: Detail) -> Result<Prompt> {
        let shown = shown.into();
        let n_images = shown.images.len();
        self.check_images(n_images, shown.images)?;
        let text = self.placed(text.to_owned(), n_images)?;
        self.check_videos(self.count_videos(&text), shown.videos)?;
        let (placeholders, places) = (self.count_placeholders(&text), self.places(n_images));
        if placeholders < places || (places == 0 && placeholders > 0) {
            return Err(Error::ImageCount { placeholders, images: n_images });
        }
        let prepared = self.prepare(shown, detail, &text)?;
        let n_tokens: usize = prepared.images.iter().map(|image| image.vision_tokens).sum();
        let (text, images) = match placeholders {
            _ if placeholders == places => self.expand(&text, prepared),
            _ if placeholders == n_tokens && shown.videos.is_empty() => (text, prepared.images),
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
        let prepared = self.prepare(std::slice::from_ref(image).into(), Detail::Auto, &rendered)?;
        let (text, images) = self.expand(&rendered, prepared);
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

    fn videos(&self) -> Option<&dyn VideoProcessor> {
        self.images.as_ref().and_then(|images| images.videos())
    }

    fn no_videos(&self) -> Error {
        Error::NoVideos { label: self.label.clone(), model_type: self.model_type.clone() }
    }

    /// The messages with each video's placeholder as text: not every template of these models knows videos, and those
    /// that do write just that.
    fn with_videos_in_words(&self, mut messages: Vec<Message>) -> Vec<Message> {
        let Some(videos) = self.videos() else { return messages };
        for part in messages.iter_mut().flat_map(|message| &mut message.content) {
            if *part == Content::Video {
                *part = Content::Text(videos.placeholder().to_owned());
            }
        }
        messages
    }

    fn count_videos(&self, text: &str) -> usize {
        self.videos().map_or(0, |videos| text.matches(videos.placeholder()).count())
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

    fn check_videos(&self, wanted: usize, videos: &[Video]) -> Result<()> {
        if self.videos().is_none() && (wanted > 0 || !videos.is_empty()) {
            return Err(self.no_videos());
        }
        if wanted != videos.len() {
            return Err(Error::VideoCount { placeholders: wanted, videos: videos.len() });
        }
        Ok(())
    }

    /// A guard over all text that comes from the user.
    fn guard(&self, messages: &[Message], options: &ChatOptions) -> Result<Guard> {
        let images = self.images.iter().flat_map(|images| [images.placeholder(), images.image_token()]);
        let videos = self.videos().into_iter().flat_map(|videos| [videos.placeholder(), videos.video_token()]);
        let foreign = self.foreign_tokens.iter().map(|(token, _)| *token);
        let specials = self.tokenizer.specials().with(images.chain(videos).chain(foreign));
        let mut others = String::new();
        for value in options.tools.iter().chain(options.variables.values()) {
            // Writing to a string cannot fail.
            let _ = write!(others, "{value}");
        }
        let texts = messages.iter().flat_map(|message| &message.content).filter_map(|part| match part {
            Content::Text(text) => Some(text.as_str()),
            Content::Image | Content::Video => None,
        });
        Guard::new(specials, texts.chain([others.as_str()]))
    }

    /// `text` still has its placeholders.
    fn prepare(&self, shown: Visuals<'_>, detail: Detail, text: &str) -> Result<Prepared> {
        let Some(processor) = &self.images else { return Ok(Prepared::default()) };
        processor.check_detail(detail)?;
        let text = text.replace(processor.placeholder(), "");
        let detail = processor.detail_among(shown.images.len(), detail);
        let images = shown.images.iter().map(|image| processor.prepare_for(image, detail, &text));
        let videos =
            self.videos().into_iter().flat_map(|videos| shown.videos.iter().map(|video| videos.prepare(video)));
        Ok(Prepared { images: images.collect::<Result<_>>()?, videos: videos.collect::<Result<_>>()? })
    }

    /// The text with each placeholder replaced by the picture's or video's own text; both in the order of the text.
    fn expand(&self, text: &str, prepared: Prepared) -> (String, Vec<PreparedImage>) {
        let Some(processor) = self.images.as_ref().filter(|images| images.place() == ImagePlace::InText) else {
            return (text.to_string(), prepared.images);
        };
        let video = self.videos().map(|videos| videos.placeholder());
        let (mut expanded, mut ordered, mut rest) = (String::new(), Vec::new(), text);
        let (mut images, mut videos) = (prepared.images.into_iter(), prepared.videos.into_iter());
        loop {
            let image = rest.find(processor.placeholder()).map(|at| (at, processor.placeholder(), false));
            let video = video.and_then(|placeholder| Some((rest.find(placeholder)?, placeholder, true)));
            let Some((at, placeholder, is_video)) = image.into_iter().chain(video).min_by_key(|&(at, ..)| at) else {
                return (expanded + rest, ordered);
            };
            expanded += &rest[..at];
            rest = &rest[at + placeholder.len()..];
            let image = |image: PreparedImage| (processor.expand(&image), image);
            let next =
                if is_video { videos.next().map(|(video, words)| (words, video)) } else { images.next().map(image) };
            if let Some((words, prepared)) = next {
                expanded += &words;
                ordered.push(prepared);
            }
        }
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
            let is_feature = |other: u32| Some(other) == id || Some(other) == self.video_id;
            let found = ids.iter().filter(|&&other| is_feature(other)).count();
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

/// Pictures and videos as the model takes them; with a video comes its text.
#[derive(Default)]
struct Prepared {
    images: Vec<PreparedImage>,
    videos: Vec<(PreparedImage, String)>,
}

/// How messages name a family's own template.
const DEFAULT_TEMPLATE: &str = "the built-in chat template";

fn protected(messages: &[Message], guard: &Guard) -> Vec<Message> {
    let part = |part: &Content| match part {
        Content::Text(text) => Content::Text(guard.protect(text).into_owned()),
        other => other.clone(),
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
