//! Everything that can go wrong between user content and token ids.

use crate::families::video_families;
use crate::text::tokenizer_classes;

/// An error of this crate; [`Error::hint`] says what to do about some of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file that cannot be read.
    #[error(transparent)]
    Files(#[from] ocelli_formats::Error),
    /// A value in one of the model's JSON files that is missing, malformed or not supported.
    #[error("{file}: {key}: {message}")]
    Value {
        /// The file.
        file: String,
        /// Dotted path of the key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A picture of no bytes.
    #[error("the image is empty (0 bytes)")]
    EmptyImage,
    /// Bytes that start like no picture format we know.
    #[error("not an image in a known format (it starts with {first_bytes})")]
    UnknownImageFormat {
        /// The first bytes, as hexadecimal and text.
        first_bytes: String,
    },
    /// A file we recognise but do not decode.
    #[error("{format} files are not supported as images")]
    UnsupportedImageFormat {
        /// What it is.
        format: &'static str,
    },
    /// More bytes than the limit; nothing was decoded.
    #[error("the image file has {bytes} bytes, more than the limit of {limit}")]
    ImageFileTooLarge {
        /// The file's length.
        bytes: u64,
        /// [`crate::ImageLimits::max_bytes`].
        limit: u64,
    },
    /// More pixels, or a longer side, than the limit; only the header was read.
    #[error("the image is {width}x{height} pixels, more than the limit of {max_side} per side and {max_pixels} in all")]
    ImageTooLarge {
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// [`crate::ImageLimits::max_side`].
        max_side: u32,
        /// [`crate::ImageLimits::max_pixels`].
        max_pixels: u64,
    },
    /// A picture without pixels, which no resampler can use.
    #[error("the image is {width}x{height} pixels: it has no content")]
    NoPixels {
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
    },
    /// A picture so long and narrow that its model was never shown one like it.
    #[error("the image is {width}x{height} pixels: one side is more than {limit} times the other")]
    TooNarrow {
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
        /// Longest side over shortest side.
        limit: usize,
    },
    /// Fewer tokens for a picture than the model can do with.
    #[error("this model takes at least {fewest} token(s) for a picture, and {tokens} were allowed")]
    TooFewTokens {
        /// What [`crate::Detail::AtMost`] said.
        tokens: usize,
        /// [`crate::ImageProcessor::fewest_tokens`].
        fewest: usize,
    },
    /// A picture whose file ends before its content does.
    #[error("the {format} image is truncated: {message}")]
    TruncatedImage {
        /// The format.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
    /// A picture that is malformed, or uses a feature the decoder lacks.
    #[error("the {format} image cannot be decoded: {message}")]
    BadImage {
        /// The format.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
    /// A video that cannot be opened or read.
    #[error("{message}")]
    VideoIo {
        /// What the system says.
        message: String,
    },
    /// A video of more tokens than any prompt may have; only its first frame was looked at.
    #[error("{frames} frames of the video are {tokens} tokens, but the model's context is {context_length}")]
    VideoTokens {
        /// Frames that would be looked at.
        frames: usize,
        /// Vision tokens of all of them.
        tokens: usize,
        /// What [`crate::Processor::set_context_length`] was told.
        context_length: usize,
    },
    /// A video, or a folder for one, without frames.
    #[error("the video has no frames")]
    NoFrames,
    /// A frame of a folder that cannot be read.
    #[error("frame {file}: {message}")]
    Frame {
        /// Its file.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// A frame of another size than the first one.
    #[error("frame {frame} is {}x{} pixels, the first one {}x{}", size.0, size.1, first.0, first.1)]
    FrameSize {
        /// Which of those that are looked at, from 1.
        frame: usize,
        /// Its width and height.
        size: (usize, usize),
        /// Those of the first one.
        first: (usize, usize),
    },
    /// More pixels in all frames together than the limit.
    #[error("the animation has more than {limit} pixels in all its frames together")]
    VideoTooLong {
        /// The limit.
        limit: u64,
    },
    /// A video that only `ffmpeg` could read, on a machine without it.
    #[error("reading this video takes the programs ffmpeg and ffprobe, and they are not on the PATH")]
    NoFfmpeg,
    /// A video that `ffmpeg` cannot read.
    #[error("the video cannot be decoded: {message}")]
    BadVideo {
        /// What it says.
        message: String,
    },
    /// A file without moving pictures, such as a recording.
    #[error("the file holds no video")]
    NoVideoStream,
    /// A video for a model that takes none.
    #[error("{label} ({model_type}) takes no videos")]
    NoVideos {
        /// The model.
        label: String,
        /// Its family.
        model_type: String,
    },
    /// Not as many videos as places for them.
    #[error("the prompt has places for {placeholders} video(s), but {videos} were given")]
    VideoCount {
        /// Places in the prompt.
        placeholders: usize,
        /// Videos given.
        videos: usize,
    },
    /// A recording of no bytes.
    #[error("the audio file is empty (0 bytes)")]
    EmptyAudio,
    /// Bytes that are no audio format we know.
    #[error("not an audio file in a known format (it starts with {first_bytes})")]
    UnknownAudioFormat {
        /// The first bytes, as hexadecimal and text.
        first_bytes: String,
    },
    /// A file we recognise but do not decode.
    #[error("audio as {codec} is not supported")]
    UnsupportedAudio {
        /// What it is.
        codec: String,
    },
    /// More bytes than the limit; nothing was decoded.
    #[error("the audio file has {bytes} bytes, more than the limit of {limit}")]
    AudioFileTooLarge {
        /// The file's length.
        bytes: u64,
        /// [`crate::AudioLimits::max_bytes`].
        limit: u64,
    },
    /// A recording longer than the limit.
    #[error("the recording is longer than the limit of {limit} seconds")]
    AudioTooLong {
        /// [`crate::AudioLimits::max_seconds`].
        limit: u32,
    },
    /// A recording that is malformed or cannot be read, so that none of it can be heard.
    #[error("the {format} audio cannot be decoded: {message}")]
    BadAudio {
        /// The format.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
    /// An audio file with a header and nothing else.
    #[error("the {format} audio holds no samples")]
    NoSamples {
        /// The format.
        format: &'static str,
    },
    /// A model without `tokenizer.json` and without the parts of one.
    #[error("{label} has no tokenizer.json{}", nor.iter().map(|file| format!(", no {file}")).collect::<String>())]
    NoTokenizer {
        /// The model.
        label: String,
        /// The parts that are missing, where the class of the tokenizer is known.
        nor: Vec<&'static str>,
    },
    /// A speech model in MLX's layout, which has nothing about its tokenizer.
    #[error("{label} has no tokenizer.json: MLX's folders of Whisper leave it out")]
    NoSpeechTokenizer {
        /// The model.
        label: String,
    },
    /// A model without `tokenizer.json`, of whose tokenizer class only that file would do.
    #[error("{label} has no tokenizer.json, and a {class} cannot be made of other files")]
    TokenizerClass {
        /// The model.
        label: String,
        /// The class that `tokenizer_config.json` names.
        class: String,
    },
    /// A `tokenizer.json` that does not load.
    #[error("{file} is not a usable tokenizer: {message}")]
    BadTokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// A text that the tokenizer fails on.
    #[error("the text cannot be tokenized: {message}")]
    Encode {
        /// What the tokenizer says.
        message: String,
    },
    /// Ids that the tokenizer fails on.
    #[error("the tokens cannot be turned into text: {message}")]
    Decode {
        /// What the tokenizer says.
        message: String,
    },
    /// A token the model's prompt format needs and the tokenizer does not know.
    #[error("{file}: the tokenizer has no token `{token}`, which the model's prompts need")]
    MissingToken {
        /// The tokenizer's file.
        file: String,
        /// The token.
        token: String,
    },
    /// A chat with a model that has no chat template.
    #[error("{label} has no chat template")]
    NoChatTemplate {
        /// The model.
        label: String,
    },
    /// A chat template that does not parse.
    #[error("the chat template in {file} does not parse: {message}")]
    BadTemplate {
        /// Where it is.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// A chat that the template refuses (`raise_exception`).
    #[error("the chat template refuses these messages: {message}")]
    TemplateRefused {
        /// The template's own words.
        message: String,
    },
    /// A chat template that fails on these messages, or takes too long.
    #[error("the chat template fails: {message}")]
    Template {
        /// What is wrong.
        message: String,
    },
    /// Not as many pictures as places for them.
    #[error("the prompt has places for {placeholders} image(s), but {images} were given")]
    ImageCount {
        /// Places in the prompt.
        placeholders: usize,
        /// Pictures given.
        images: usize,
    },
    /// A picture for a model that sees none.
    #[error("{label} ({model_type}) is a text model: it cannot see images")]
    NoVision {
        /// The model.
        label: String,
        /// Its family.
        model_type: String,
    },
    /// A role that would break out of the prompt format.
    #[error("role {role:?} is not a word")]
    BadRole {
        /// The role.
        role: String,
    },
    /// A prompt whose image tokens do not match what the vision tower will give.
    #[error("the prompt holds {found} `{token}` tokens, but the images need {expected}")]
    ImageTokens {
        /// The image token.
        token: String,
        /// How many the pictures take.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

/// The result of everything fallible here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the user can do about it, as a sentence, if there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Files(error) => return error.hint(),
            Self::UnknownImageFormat { .. } => "JPEG, PNG, WebP, GIF, BMP and TIFF are supported",
            Self::UnsupportedImageFormat { .. } => "convert it to PNG or JPEG first",
            Self::ImageTooLarge { .. } => "scale it down, or raise the limit with --max-pixels",
            Self::ImageFileTooLarge { .. } => "scale it down first",
            Self::TooFewTokens { fewest, .. } => {
                return Some(format!("give --image-tokens {fewest} or more, or leave it out"));
            }
            Self::TruncatedImage { .. } => "the file is incomplete; copy or download it again",
            Self::VideoTokens { .. } => {
                "look at fewer frames with --max-frames or --fps, or at less of each with --image-tokens"
            }
            Self::NoFrames => "a folder's frames are JPEG, PNG, WebP, GIF, BMP or TIFF files",
            Self::FrameSize { .. } => "bring all frames to one size first",
            Self::VideoTooLong { .. } => {
                "make a video file of it, for example with ffmpeg: not all of its frames are decoded"
            }
            Self::NoFfmpeg => "install ffmpeg, or give an animated GIF, WebP or PNG, or a folder of frames",
            Self::NoVideos { .. } => return Some(format!("these do: {}", video_families().join(", "))),
            Self::UnknownAudioFormat { .. } => "WAV, FLAC, MP3, OGG (Vorbis) and M4A (AAC, ALAC) are supported",
            Self::UnsupportedAudio { .. } => "convert it to WAV or FLAC first, for example with ffmpeg",
            Self::AudioFileTooLarge { .. } | Self::AudioTooLong { .. } => "cut it into parts first",
            Self::NoTokenizer { .. } => MAKE_TOKENIZER,
            Self::NoSpeechTokenizer { .. } => {
                "`ocelli pull` fetches what it was made of, or copy tokenizer.json, tokenizer_config.json and \
                 generation_config.json from there, such as openai/whisper-large-v3-turbo"
            }
            Self::TokenizerClass { .. } => {
                return Some(format!("{MAKE_TOKENIZER}; these can: {}", tokenizer_classes().join(", ")));
            }
            Self::NoChatTemplate { .. } => "this is a base model: give it the verbatim text to continue with --raw",
            Self::ImageTokens { .. } => "the text spells out image tokens; remove them",
            _ => return None,
        };
        Some(hint.into())
    }

    /// The file's tokenizer error from whatever the tokenizer library says.
    pub(crate) fn bad_tokenizer(file: &str, message: impl std::fmt::Display) -> Self {
        Self::BadTokenizer { file: file.into(), message: message.to_string() }
    }
}

const MAKE_TOKENIZER: &str =
    "load it once with transformers' AutoTokenizer and save_pretrained to get a tokenizer.json";
