//! The arguments of `ocelli transcribe`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use ocelli_engine::TranscribeOptions;

use super::DeviceArgs;
use super::shared::positive;

/// Write down what is said in audio files
///
/// WAV, FLAC, MP3, OGG (Vorbis) and M4A (AAC, ALAC) files of any length; the language is detected. The text of one file
/// is printed as it is heard. With --output every file gets a file of its own; a file that fails does not stop the
/// others.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli pull openai/whisper-base
  ocelli transcribe interview.mp3
  ocelli transcribe talk.m4a --language de --translate
  ocelli transcribe film.flac --format srt > film.srt
  ocelli transcribe recordings/ --format vtt --output subtitles/ --resume
  ocelli transcribe call.wav --format json --timestamps words
  ocelli transcribe call.wav --model openai/whisper-large-v3-turbo --quant q8 --quant-vision q8")]
pub(crate) struct TranscribeArgs {
    /// Audio files, folders of them, patterns such as 'calls/*.mp3', or `-` for standard input
    #[arg(value_name = "FILE|DIR|GLOB|-", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<OsString>,

    /// Look into folders inside folders, too
    #[arg(short, long)]
    pub(crate) recursive: bool,

    /// How the text is written
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: TranscriptFormat,

    /// Write a file for each recording into this folder
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,

    /// Leave out recordings that have a file in the folder of --output
    #[arg(long, requires = "output")]
    pub(crate) resume: bool,

    /// Tell language, length and speed on standard error
    #[arg(short, long)]
    pub(crate) verbose: bool,

    #[command(flatten)]
    pub(crate) speech: SpeechArgs,
}

/// How a recording is heard, and by which model.
#[derive(Debug, Args)]
pub(crate) struct SpeechArgs {
    /// The language that is spoken, such as en or de (default: as detected)
    #[arg(short, long, value_name = "CODE")]
    language: Option<String>,

    /// Translate into English
    #[arg(long)]
    translate: bool,

    /// Tell when each segment, or each word, is said; subtitles and JSON always tell of segments
    #[arg(long, value_enum, value_name = "OF")]
    pub(crate) timestamps: Option<TimestampsOf>,

    /// Text that the recording may be thought to follow: names, spellings, style
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// Do not show the model what was said before: fewer loops, less consistency
    #[arg(long)]
    no_previous_text: bool,

    /// Take the first answer to each 30 seconds, even one that repeats itself or that the model does not believe in
    #[arg(long)]
    no_fallback: bool,

    /// Search with this many beams; 1 is fastest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    num_beams: usize,

    /// Most tokens of each 30 seconds (default: as many as the model can)
    #[arg(long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,

    /// A model's folder, or its id in the Hugging Face cache
    #[arg(short, long, value_name = "MODEL", default_value = "openai/whisper-base", value_hint = ValueHint::DirPath,
        help_heading = "Model")]
    pub(crate) model: OsString,

    /// Branch, tag or commit of a model in the cache (default: main)
    #[arg(long, value_name = "REVISION", help_heading = "Model")]
    pub(crate) revision: Option<String>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TranscriptFormat {
    /// Plain text, a line per segment
    #[default]
    Text,
    /// `SubRip` subtitles
    Srt,
    /// `WebVTT` subtitles
    Vtt,
    /// One JSON object per recording
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimestampsOf {
    /// Of segments
    Segments,
    /// Of words
    Words,
}

impl SpeechArgs {
    /// The engine's options, not yet checked.
    pub(crate) fn options(&self) -> TranscribeOptions {
        let default = TranscribeOptions::default();
        let default = if self.no_fallback {
            TranscribeOptions {
                temperatures: vec![0.0],
                compression_ratio_threshold: None,
                log_prob_threshold: None,
                no_speech_threshold: None,
                ..default
            }
        } else {
            default
        };
        TranscribeOptions {
            language: self.language.clone(),
            translate: self.translate,
            words: self.timestamps == Some(TimestampsOf::Words),
            prompt: self.prompt.clone(),
            condition_on_previous_text: !self.no_previous_text,
            num_beams: self.num_beams,
            max_tokens: self.max_tokens,
            ..default
        }
    }
}
