//! Flags that several commands share: how an answer is shown, which model gives it, how its tokens are chosen.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};
use ocelli_engine::{EarlyStopping, EngineOptions, GenerateOptions};
use ocelli_processors::{ChatOptions, Detail, ImageLimits, VideoOptions};
use serde_json::Value;

use super::DEMO;
use super::precision::PrecisionArgs;
use crate::output::OutPath;

/// How closely pictures are looked at.
#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    /// How closely to look at pictures: more tiles are more tokens
    #[arg(long, value_enum, default_value_t)]
    detail: DetailArg,

    /// Show each picture, or frame of a video, in at most N tokens, such as 16: fewer are faster and see less
    ///
    /// Of SmolVLM a tile of 512x512 pixels is 64 tokens; 36 are one of 384x384, 16 one of 256x256. Qwen-VL scales
    /// pictures down. Other families take fewer tiles, if they have tiles; most take the same number for every picture.
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "detail")]
    image_tokens: Option<usize>,
}

impl LookArgs {
    /// For the processor.
    pub(crate) fn detail(&self) -> Detail {
        self.image_tokens.map_or_else(|| self.detail.into(), Detail::AtMost)
    }
}

/// How a prompt with pictures is put to a model.
#[derive(Debug, Args)]
pub(crate) struct PromptArgs {
    #[command(flatten)]
    look: LookArgs,

    /// Set a variable of the model's chat template, such as caption=short (Moondream); give the flag once for each
    #[arg(long = "template", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, Value)>,

    /// Refuse pictures of more pixels than this (default: 178956970, on sides of at most 32768)
    #[arg(long, value_name = "N")]
    max_pixels: Option<u32>,
}

/// How an answer is shown.
#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    #[command(flatten)]
    pub(crate) prompting: PromptArgs,

    /// Print one JSON object per answer, with token counts and timings
    #[arg(long)]
    pub(crate) json: bool,

    /// Tell sizes, token counts and timings on standard error
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

impl PromptArgs {
    /// What the processor makes a prompt with.
    pub(crate) fn chat_options(&self) -> ChatOptions {
        let variables = self.variables.iter().cloned().collect();
        ChatOptions { detail: self.look.detail(), variables, ..ChatOptions::answer() }
    }

    /// What a picture may be; whoever names a number of pixels means it for long and narrow ones, too.
    pub(crate) fn image_limits(&self) -> ImageLimits {
        let chosen = |pixels| ImageLimits { max_pixels: u64::from(pixels), max_side: pixels, ..ImageLimits::default() };
        self.max_pixels.map_or_else(ImageLimits::default, chosen)
    }
}

/// How a video is looked at.
#[derive(Debug, Args)]
#[command(next_help_heading = "Videos")]
pub(crate) struct VideoArgs {
    /// Frames per second to look at; a folder of frames holds so many (default: as the model is configured, 1 or 2)
    #[arg(long, value_name = "N", value_parser = frame_rate)]
    pub(crate) fps: Option<f64>,

    /// Look at no more frames than this: each is tokens and time (default: as the model is configured)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_frames: Option<usize>,
}

impl VideoArgs {
    /// With this detail of each frame.
    pub(crate) fn options(&self, detail: Detail) -> VideoOptions {
        VideoOptions { fps: self.fps, max_frames: self.max_frames, detail }
    }
}

/// Which model, and what it may use.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A model's folder, its id in the Hugging Face cache, or `demo` for the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = DEMO, value_hint = ValueHint::DirPath)]
    pub(crate) model: OsString,

    /// Branch, tag or commit of a model in the cache (default: main)
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What the computation may use.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct DeviceArgs {
    /// Threads to compute with (default: the physical cores)
    #[arg(short, long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,

    /// Refuse to take more memory than this, such as 4GiB (default: what is available)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory_limit: Option<u64>,

    #[command(flatten)]
    precision: PrecisionArgs,
}

/// How tokens are chosen. Without any of these, the likeliest token every time.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct SamplingArgs {
    /// Most tokens of an answer [default: 1024]
    #[arg(long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,

    /// Fewest tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    min_tokens: usize,

    /// Draw tokens by chance: 0 never, 1 as likely as the model thinks, above 1 more evenly
    #[arg(long, value_name = "T", value_parser = number)]
    temperature: Option<f32>,

    /// Draw among the K likeliest tokens; 0 is off
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Draw among the fewest tokens whose probabilities add up to P (0 to 1)
    #[arg(long, value_name = "P", value_parser = number)]
    top_p: Option<f32>,

    /// Leave out tokens less likely than P times the likeliest (0 to 1)
    #[arg(long, value_name = "P", value_parser = number)]
    min_p: Option<f32>,

    /// Make tokens that were seen before less likely; 1 is off
    #[arg(long, value_name = "X", value_parser = number)]
    repetition_penalty: Option<f32>,

    /// Subtract X from the logits of tokens already in the answer (-2 to 2)
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,

    /// Subtract X from the logits of tokens in the answer, for every time they are there (-2 to 2)
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,

    /// Never repeat a sequence of N tokens; 0 is off
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,

    /// Make drawing by chance repeatable
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// End the answer before this text; give the flag once for each
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// How long to think of an answer: `fast` takes the likeliest token every time, `quality` searches with 3 beams
    #[arg(long, value_enum, value_name = "HOW", conflicts_with = "num_beams")]
    speed: Option<SpeedArg>,

    /// Search with this many beams; the answer then comes all at once
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    num_beams: usize,

    /// Beam search: above 0 favours long answers, below 0 short ones [default: 1]
    #[arg(long, value_name = "X", value_parser = number, default_value_t = 1.0, hide_default_value = true,
        allow_negative_numbers = true)]
    length_penalty: f32,

    /// Beam search: when to end
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, hide_default_value = true)]
    early_stopping: EarlyStoppingArg,

    /// Fill what is not given here with the model's own recommendations (generation_config.json)
    #[arg(long)]
    pub(crate) model_defaults: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SpeedArg {
    /// The likeliest token every time: one beam
    Fast,
    /// The likeliest of many answers: three beams, which then come all at once
    Quality,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum EarlyStoppingArg {
    /// When the best beam would not beat the worst finished answer (default)
    #[default]
    False,
    /// As soon as there are as many finished answers as beams
    True,
    /// When no beam can beat the worst finished answer any more
    Never,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum DetailArg {
    /// As the model is configured
    #[default]
    Auto,
    /// As few tokens as possible
    Low,
    /// As many tiles as the model takes
    High,
}

impl SamplingArgs {
    /// The engine's options, not yet checked.
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            max_length: None,
            min_tokens: self.min_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            seed: self.seed,
            stop: self.stop.clone(),
            num_beams: match self.speed {
                None => self.num_beams,
                Some(SpeedArg::Fast) => 1,
                Some(SpeedArg::Quality) => 3,
            },
            length_penalty: self.length_penalty,
            early_stopping: match self.early_stopping {
                EarlyStoppingArg::False => EarlyStopping::False,
                EarlyStoppingArg::True => EarlyStopping::True,
                EarlyStoppingArg::Never => EarlyStopping::Never,
            },
        }
    }
}

impl DeviceArgs {
    /// The engine's options.
    pub(crate) fn options(&self) -> EngineOptions {
        let options = EngineOptions { threads: self.threads, memory_limit: self.memory_limit, ..EngineOptions::new() };
        self.precision.apply(options)
    }
}

impl From<DetailArg> for Detail {
    fn from(detail: DetailArg) -> Self {
        match detail {
            DetailArg::Auto => Self::Auto,
            DetailArg::Low => Self::Low,
            DetailArg::High => Self::High,
        }
    }
}

pub(super) fn out_path() -> impl TypedValueParser<Value = OutPath> {
    PathBufValueParser::new().try_map(OutPath::parse)
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number from 1".into()),
        Ok(number) => Ok(number),
    }
}

/// `caption=short`; what is no JSON is a text.
fn variable(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

fn frame_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= MOST_FPS);
    rate.ok_or_else(|| format!("expected a number above 0, at most {MOST_FPS}"))
}

/// Far more than any machine has cores, and few enough to be started.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    let n_threads = positive(text)?;
    if n_threads <= MOST_THREADS { Ok(n_threads) } else { Err(format!("expected at most {MOST_THREADS}")) }
}

pub(super) fn number(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|number: &f32| number.is_finite()).ok_or_else(|| "expected a number".into())
}

/// A file that is written in one format only.
pub(super) fn ending_in(ending: &str, text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let fits = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(ending));
    if fits { Ok(path) } else { Err(format!("the file must end in .{ending}")) }
}

/// `4GiB`, `500M`, `1.5 GB`; without a unit, bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a size such as 4GiB or 500MB".to_owned();
    let digits = text.trim().find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.trim().len());
    let (value, unit) = text.trim().split_at(digits);
    let value: f64 = value.parse().map_err(|_| expected())?;
    let (thousand, prefix) = match unit.trim().to_ascii_lowercase().trim_end_matches('b') {
        prefix if prefix.ends_with('i') => (1024.0_f64, prefix.trim_end_matches('i').to_owned()),
        prefix => (1000.0, prefix.to_owned()),
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == prefix).ok_or_else(expected)?;
    Ok((value * thousand.powi(power as i32)) as u64)
}

const MOST_THREADS: usize = 1024;
/// More than any camera takes.
const MOST_FPS: f64 = 1e6;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use ocelli_engine::Quant;

    use super::*;
    use crate::arguments::{Cli, Command, EvalCommand};

    #[test]
    fn sizes() {
        assert_eq!(size("123"), Ok(123));
        assert_eq!(size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("2k"), Ok(2000));
        for bad in ["", "x", "4 parsecs", "-1", "1.2.3M"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn frame_rates() {
        assert_eq!((frame_rate("2"), frame_rate("0.5")), (Ok(2.0), Ok(0.5)));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "fast"] {
            assert!(frame_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_without_values_are_greedy() {
        let cli = Cli::parse_from(["ocelli", "run", "hello"]);
        let Command::Run(args) = cli.command else { panic!("run was given") };
        assert_eq!(args.sampling.options(), GenerateOptions::greedy());
    }

    #[test]
    fn template_variables_are_json_or_text() {
        assert_eq!(variable("caption=short"), Ok(("caption".into(), "short".into())));
        assert_eq!(variable("enable_thinking=false"), Ok(("enable_thinking".into(), false.into())));
        assert_eq!(variable("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(variable("caption").is_err() && variable("=short").is_err());
    }

    #[test]
    fn speed_is_a_number_of_beams() {
        let parse = |flags: &str| Cli::try_parse_from(["ocelli", "run", "hello"].into_iter().chain(flags.split(' ')));
        for (flags, num_beams) in [("--speed fast", 1), ("--speed quality", 3), ("--num-beams 2", 2)] {
            let Command::Run(args) = parse(flags).unwrap().command else { panic!("run was given") };
            assert_eq!(args.sampling.options().num_beams, num_beams, "{flags}");
        }
        assert!(parse("--speed quality --num-beams 2").is_err());
    }

    #[test]
    fn precisions_arrive() {
        let options = |flags: &str| {
            let cli = Cli::parse_from(["ocelli", "eval", "demo"].into_iter().chain(flags.split_whitespace()));
            let Command::Eval(args) = cli.command else { panic!("eval was given") };
            let EvalCommand::Demo(args) = args.command else { panic!("demo was given") };
            args.model.device.options()
        };
        assert_eq!(options("--no-pack-cache"), EngineOptions::new());
        let expected = EngineOptions { quant: Quant::Q4, quant_vision: Quant::Q8, ..EngineOptions::new() };
        assert_eq!(options("--quant q4 --quant-vision q8 --no-pack-cache"), expected);
        let kept = options("--quant q8 --pack-cache-size 1MiB");
        assert_eq!((kept.quant, kept.pack_cache.map(|cache| cache.max_bytes)), (Quant::Q8, Some(1 << 20)));
    }

    #[test]
    fn every_flag_arrives() {
        let flags = "--max-tokens 5 --min-tokens 1 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 \
            --repetition-penalty 1.1 --presence-penalty -0.5 --frequency-penalty 0.25 --no-repeat-ngram-size 2 \
            --seed 7 --stop a --stop b --num-beams 4 --length-penalty -1 --early-stopping never";
        let cli = Cli::parse_from(["ocelli", "run", "hello"].into_iter().chain(flags.split_whitespace()));
        let Command::Run(args) = cli.command else { panic!("run was given") };
        let expected = GenerateOptions {
            max_tokens: Some(5),
            max_length: None,
            min_tokens: 1,
            temperature: Some(0.5),
            top_k: Some(3),
            top_p: Some(0.9),
            min_p: Some(0.1),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(-0.5),
            frequency_penalty: Some(0.25),
            no_repeat_ngram_size: Some(2),
            seed: Some(7),
            stop: vec!["a".into(), "b".into()],
            num_beams: 4,
            length_penalty: -1.0,
            early_stopping: EarlyStopping::Never,
        };
        assert_eq!(args.sampling.options(), expected);
    }
}
