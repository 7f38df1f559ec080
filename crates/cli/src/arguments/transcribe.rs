//! The arguments of `ocelli transcribe`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use ocelli_engine::TranscribeOptions;

use super::DeviceArgs;
use super::shared::{number, positive};

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
  ocelli transcribe noisy.ogg --temperature 0,0.5 --no-speech-threshold 0.4
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

    /// Search with this many beams; 1 is fastest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    num_beams: usize,

    /// Most tokens of each 30 seconds (default: as many as the model can)
    #[arg(long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,

    #[command(flatten)]
    fallback: FallbackArgs,

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

/// When an answer to 30 seconds is not believed, and what is done then; with the defaults of openai/whisper.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answers that are not believable")]
struct FallbackArgs {
    /// Temperatures to try one after another until an answer is believable; 0 takes the likeliest tokens
    #[arg(long, value_name = "T,…", value_delimiter = ',', value_parser = number, default_value = "0,0.2,0.4,0.6,0.8,1")]
    temperature: Vec<f32>,

    /// Try again where the text is compressed better than this, since it repeats itself; `none` for never
    #[arg(long, value_name = "X", value_parser = Threshold::parse, default_value = "2.4", allow_negative_numbers = true)]
    compression_ratio_threshold: Threshold,

    /// Try again where the tokens' mean log-probability is below this; `none` for never
    #[arg(long, alias = "log-prob-threshold", value_name = "X", value_parser = Threshold::parse, default_value = "-1",
        allow_negative_numbers = true)]
    logprob_threshold: Threshold,

    /// Where the log-probability is too low and silence is likelier than this, nobody spoke; `none` for never
    #[arg(long, value_name = "P", value_parser = Threshold::parse, default_value = "0.6", allow_negative_numbers = true)]
    no_speech_threshold: Threshold,

    /// Take the first answer to each 30 seconds, even one that repeats itself or that the model does not believe in
    #[arg(long, conflicts_with_all = ["temperature", "compression_ratio_threshold", "logprob_threshold",
        "no_speech_threshold"])]
    no_fallback: bool,
}

/// A number, or `none`.
#[derive(Clone, Copy, Debug)]
struct Threshold(Option<f32>);

impl Threshold {
    fn parse(text: &str) -> Result<Self, String> {
        let threshold = if text.eq_ignore_ascii_case("none") { None } else { Some(number(text)) };
        threshold.transpose().map(Self).map_err(|expected| format!("{expected}, or none"))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TranscriptFormat {
    /// Plain text, a line per segment
    #[default]
    Text,
    /// SubRip subtitles
    Srt,
    /// WebVTT subtitles
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
        let FallbackArgs { no_fallback, .. } = self.fallback;
        let threshold = |Threshold(value): Threshold| value.filter(|_| !no_fallback);
        TranscribeOptions {
            language: self.language.clone(),
            translate: self.translate,
            words: self.timestamps == Some(TimestampsOf::Words),
            prompt: self.prompt.clone(),
            condition_on_previous_text: !self.no_previous_text,
            num_beams: self.num_beams,
            temperatures: if no_fallback { vec![0.0] } else { self.fallback.temperature.clone() },
            compression_ratio_threshold: threshold(self.fallback.compression_ratio_threshold),
            log_prob_threshold: threshold(self.fallback.logprob_threshold),
            no_speech_threshold: threshold(self.fallback.no_speech_threshold),
            max_tokens: self.max_tokens,
            ..TranscribeOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Cli, Command};

    fn options(flags: &str) -> Result<TranscribeOptions, String> {
        let arguments = ["ocelli", "transcribe", "a.wav"].into_iter().chain(flags.split_whitespace());
        let Command::Transcribe(args) = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.command
        else {
            panic!("transcribe was given")
        };
        Ok(args.speech.options())
    }

    #[test]
    fn the_defaults_are_the_engine_s() {
        assert_eq!(options(""), Ok(TranscribeOptions::default()));
    }

    #[test]
    fn thresholds_arrive() {
        let flags = "--temperature 0,0.5 --temperature 1 --compression-ratio-threshold 2 --logprob-threshold -0.5 \
            --no-speech-threshold 0.25";
        let expected = TranscribeOptions {
            temperatures: vec![0.0, 0.5, 1.0],
            compression_ratio_threshold: Some(2.0),
            log_prob_threshold: Some(-0.5),
            no_speech_threshold: Some(0.25),
            ..TranscribeOptions::default()
        };
        assert_eq!(options(flags), Ok(expected));
        let nothing = TranscribeOptions {
            compression_ratio_threshold: None,
            log_prob_threshold: None,
            no_speech_threshold: None,
            ..TranscribeOptions::default()
        };
        let none = "--compression-ratio-threshold none --log-prob-threshold None --no-speech-threshold none";
        assert_eq!(options(none), Ok(nothing.clone()));
        assert_eq!(options("--no-fallback"), Ok(TranscribeOptions { temperatures: vec![0.0], ..nothing }));
    }

    #[test]
    fn what_is_no_threshold_is_refused() {
        let error = options("--compression-ratio-threshold high").unwrap_err();
        assert!(error.contains("--compression-ratio-threshold") && error.contains("a number, or none"), "{error}");
        assert!(options("--temperature 0,warm").unwrap_err().contains("expected a number"));
        let error = options("--no-fallback --no-speech-threshold 0.5").unwrap_err();
        assert!(error.contains("cannot be used with"), "{error}");
    }
}
