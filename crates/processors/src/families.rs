//! The model families that see, one row each.

mod blip;
mod clip;
mod deepseek_vl_v2;
mod fast_vlm;
mod idefics3;
mod moondream;
mod qwen2_vl;
mod qwen_video;
mod smolvlm;

use ocelli_formats::{Config, ModelFiles};

use crate::audio::MelExtractor;
use crate::image::{Detail, Image, PreparedImage};
use crate::text::Tokenizer;
use crate::video::{Video, VideoInfo, VideoOptions};
use crate::{Error, Result};

/// How one family turns pictures into arrays and prompt text.
pub trait ImageProcessor: Send + Sync {
    /// The arrays of a picture, as closely looked at as the model's configuration says.
    ///
    /// # Errors
    /// [`Error::NoPixels`] for a picture without content.
    fn prepare(&self, image: &Image) -> Result<PreparedImage> {
        self.prepare_with(image, Detail::Auto)
    }

    /// The arrays of a picture.
    ///
    /// # Errors
    /// [`Error::NoPixels`] for a picture without content.
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage>;

    /// The arrays of a picture that a prompt asks about, for towers that read the prompt.
    ///
    /// # Errors
    /// As [`ImageProcessor::prepare_with`]; [`Error::Encode`] for text that is no text.
    fn prepare_for(&self, image: &Image, detail: Detail, text: &str) -> Result<PreparedImage> {
        let _ = text;
        self.prepare_with(image, detail)
    }

    /// The fewest tokens that any picture of usual shape can be shown in; for many families all pictures take so many.
    fn fewest_tokens(&self) -> usize {
        self.vision_tokens(1, 1, Detail::Low)
    }

    /// Whether a picture can be looked at like this.
    ///
    /// # Errors
    /// [`Error::TooFewTokens`] for less than [`ImageProcessor::fewest_tokens`].
    fn check_detail(&self, detail: Detail) -> Result<()> {
        let fewest = self.fewest_tokens();
        match detail {
            Detail::AtMost(tokens) if tokens < fewest => Err(Error::TooFewTokens { tokens, fewest }),
            _ => Ok(()),
        }
    }

    /// How closely a picture is looked at that is one of several of a prompt.
    fn detail_among(&self, n_images: usize, detail: Detail) -> Detail {
        let _ = n_images;
        detail
    }

    /// Image tokens a picture of this size takes, without preparing it: for accounting before spending.
    fn vision_tokens(&self, width: usize, height: usize, detail: Detail) -> usize;

    /// The text that replaces the picture's one placeholder.
    fn expand(&self, image: &PreparedImage) -> String;

    /// What stands for one picture in a prompt before expansion, such as `<image>`.
    fn placeholder(&self) -> &str;

    /// The token whose embeddings the vision features replace, [`PreparedImage::vision_tokens`] times per picture.
    fn image_token(&self) -> &str;

    /// Where pictures are in a prompt.
    fn place(&self) -> ImagePlace {
        ImagePlace::InText
    }

    /// What to ask about a picture if nobody says: as near as the family comes to a description.
    fn default_prompt(&self) -> &'static str {
        "Describe the image."
    }

    /// Texts that stand for ids in a prompt although the tokenizer may not know them: [`ImageProcessor::image_token`], if
    /// the model has no token for it, and what else the default template says in ids. The user's text is never one.
    fn foreign_tokens(&self) -> Vec<(&'static str, Vec<u32>)> {
        Vec::new()
    }

    /// What stands before and behind the words for a thing in a prompt that asks where it is: for its places alone, or
    /// for boxes around it. `None` for families that have only words for that.
    fn locating_prompt(&self, boxes: bool) -> Option<[&'static str; 2]> {
        let _ = boxes;
        None
    }

    /// How the family looks at videos; `None` for those that take none.
    fn videos(&self) -> Option<&dyn VideoProcessor> {
        None
    }

    /// The chat template of a family whose folders have none, or one that knows no pictures; it sees contents as lists.
    fn default_template(&self) -> Option<&'static str> {
        None
    }
}

/// How one family looks at videos.
pub trait VideoProcessor: Send + Sync {
    /// What stands for one video in a prompt before expansion, such as `<video>`.
    fn placeholder(&self) -> &str;

    /// The token whose embeddings a video's features replace.
    fn video_token(&self) -> &str;

    /// Frames per second that are looked at if nobody says.
    fn fps(&self) -> f64;

    /// The numbers of the frames that are looked at, ascending; at least one.
    fn sample(&self, info: &VideoInfo, options: &VideoOptions) -> Vec<usize>;

    /// One of `n_frames` frames at the size at which it is looked at.
    ///
    /// # Errors
    /// [`Error::NoPixels`], [`Error::TooNarrow`].
    fn fit(&self, frame: &Image, n_frames: usize, detail: Detail) -> Result<Image>;

    /// Vision tokens of so many frames of a size that [`VideoProcessor::fit`] made.
    fn vision_tokens(&self, size: (usize, usize), n_frames: usize) -> usize;

    /// The arrays of a video, and the text that replaces its placeholder.
    ///
    /// # Errors
    /// [`Error::NoFrames`], [`Error::NoPixels`], [`Error::FrameSize`] for frames that [`VideoProcessor::fit`] has not
    /// made.
    fn prepare(&self, video: &Video) -> Result<(PreparedImage, String)>;
}

/// Where a family has its pictures. But for the first place, what is said of a text is that its tokenizer frames it (BOS,
/// `[CLS]` and `[SEP]`) in a chat, too, and that placeholders in it mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePlace {
    /// In place of their placeholders.
    InText,
    /// Before the text and what the tokenizer puts before it, as this token's id.
    First(u32),
    /// Nowhere: the model looks at its one picture by cross-attention.
    Apart,
}

/// The `model_type`s with an image processor.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(model_type, _)| *model_type)
}

/// The `model_type`s that take videos.
pub fn video_families() -> Vec<&'static str> {
    VIDEO_FAMILIES.to_vec()
}

/// The image processor of a model; `None` for families that see nothing.
///
/// # Errors
/// Those of the family's constructor: [`Error::Value`], [`Error::MissingToken`], [`Error::Files`].
pub(crate) fn of_model(model: &Model<'_>) -> Result<Option<Box<dyn ImageProcessor>>> {
    let model_type = model.config.model_type();
    let Some((_, load)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else { return Ok(None) };
    load(model).map(Some)
}

/// The image processor of a model of which there are only `config.json` and the processor's settings; `None` for
/// families that see nothing.
///
/// # Errors
/// [`Error::Value`], [`Error::Files`].
pub fn image_processor(files: &ModelFiles, config: &Config) -> Result<Option<Box<dyn ImageProcessor>>> {
    of_model(&Model { files, config, tokenizer: None })
}

/// What a family's constructor may look at.
pub(crate) struct Model<'a> {
    pub(crate) files: &'a ModelFiles,
    pub(crate) config: &'a Config,
    /// `None` where only pictures are wanted.
    pub(crate) tokenizer: Option<&'a Tokenizer>,
}

impl Model<'_> {
    /// # Errors
    /// [`Error::MissingToken`] when the tokenizer does not know it.
    pub(crate) fn require_token(&self, token: &str) -> Result<()> {
        let Some(tokenizer) = self.tokenizer else { return Ok(()) };
        if tokenizer.token_to_id(token).is_none() {
            return Err(Error::MissingToken { file: tokenizer.file().into(), token: token.into() });
        }
        Ok(())
    }
}

/// What turns recordings into spectrograms; `None` for families that hear nothing.
///
/// # Errors
/// [`Error::Value`], [`Error::Files`].
pub fn mel_extractor(files: &ModelFiles, config: &Config) -> Result<Option<MelExtractor>> {
    HEARING.contains(&config.model_type()).then(|| MelExtractor::load(files, config)).transpose()
}

type Constructor = fn(&Model<'_>) -> Result<Box<dyn ImageProcessor>>;

const FAMILIES: &[(&str, Constructor)] = &[
    ("blip", blip::load),
    ("blip-2", blip::load_2),
    ("deepseek_vl_v2", deepseek_vl_v2::load),
    ("fast_vlm", fast_vlm::load),
    ("idefics3", idefics3::load),
    ("instructblip", blip::load_instruct),
    ("llava", clip::load),
    ("llava_qwen2", fast_vlm::load),
    ("moondream1", moondream::load),
    ("qwen2_5_vl", qwen2_vl::load),
    ("qwen2_vl", qwen2_vl::load),
    ("qwen3_vl", qwen2_vl::load_3),
    ("smolvlm", idefics3::load_2),
];

/// Families whose processor has [`ImageProcessor::videos`].
const VIDEO_FAMILIES: &[&str] = &["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm"];

/// Families that take recordings.
const HEARING: &[&str] = &["whisper"];
