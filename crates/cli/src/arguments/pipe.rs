//! The arguments of `ocelli pipe`, and the keys of its steps: a step is a command line written as a table, so that
//! every flag of the other commands is a key here, with the same values.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, ValueHint};

use super::shared::{ModelArgs, PromptArgs, SamplingArgs, out_path, size, threads};
use super::transcribe::SpeechArgs;
use crate::output::OutPath;

/// Run several models over many files, each step reading what earlier ones found
///
/// SPEC is a TOML file with a `[[step]]` for each thing to do: a name, a model, what its task reads, and any flag of
/// `run`, `detect` or `transcribe` as a key. Prompts are Jinja templates: `{{ file }}` is the file, `{{ NAME }}` what
/// step NAME gave.
///
/// All files go through one model before the next is loaded. Each step's result is kept in the file of --out, or
/// beside it, at once: --resume goes on after Ctrl-C, and after worse.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli pipe caption-translate.toml photos/
  ocelli pipe caption-translate.toml photos/ --dry-run
  ocelli pipe transcribe-summarise.toml calls/*.mp3 --out calls.md
  ocelli pipe transcribe-summarise.toml calls/*.mp3 --out calls.md --resume
  ocelli pipe detect-crop-describe.toml street.jpg --keep-crops found/ --json

Tasks, what they read, and what they give:
  ask         prompt, image            a text (the default task)
  transcribe  audio                    a text with .language, .duration, .segments
  detect      image, thing, max        a list of boxes
  point       image, thing, max        a list of points
  crop        image, boxes, margin     a list of pictures, without a model

Keys of any step:
  each = \"NAME\"     runs once for each element of the list NAME, and gives a list
  when = \"…\"        runs only where this expression holds, such as \"boxes | length > 0\"

A pipeline:
  [input]                       # may be left out where files are given on the command line
  files = [\"photos/*.jpg\"]

  [[step]]
  name = \"caption\"
  model = \"HuggingFaceTB/SmolVLM-500M-Instruct\"
  image = \"{{ file }}\"
  prompt = \"Describe the picture in one sentence.\"

  [[step]]
  name = \"french\"
  model = \"Qwen/Qwen2.5-1.5B-Instruct\"
  quant = \"q4\"
  prompt = \"Translate into French: {{ caption }}\"")]
pub(crate) struct PipeArgs {
    /// The pipeline, a TOML file
    #[arg(value_name = "SPEC", value_hint = ValueHint::FilePath)]
    pub(crate) spec: PathBuf,

    /// Files, folders of them, or patterns such as 'photos/*.jpg'; instead of those of the pipeline
    #[arg(value_name = "FILE|DIR|GLOB", value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<OsString>,

    /// Look into folders inside folders, too
    #[arg(short, long)]
    pub(crate) recursive: bool,

    /// Write one row per file, with the result of every step, to this file: .jsonl, .csv or .md
    #[arg(short, long, value_name = "FILE", value_parser = out_path(), value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<OutPath>,

    /// Continue the file of --out: keep what is finished, try what failed again
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,

    /// Write the pictures that `crop` steps cut out to this folder, as PNG
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) keep_crops: Option<PathBuf>,

    /// Check everything and show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print one JSON object per file
    #[arg(long)]
    pub(crate) json: bool,

    /// Tell token counts and timings on standard error
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// Threads to compute with, for steps that do not say (default: the physical cores)
    #[arg(short, long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,

    /// Refuse to take more memory than this, for steps that do not say (default: what is available)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory_limit: Option<u64>,
}

/// What a step of any task has.
#[derive(Debug, Args)]
pub(crate) struct StepArgs {
    #[arg(long)]
    pub(crate) name: String,

    #[arg(long, default_value = TaskName::Ask.word())]
    pub(crate) task: String,

    #[arg(long)]
    pub(crate) when: Option<String>,
}

/// The keys of an `ask` step.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,

    #[arg(long)]
    pub(crate) each: Option<String>,

    #[arg(long)]
    pub(crate) image: Vec<String>,

    #[arg(long, required_unless_present = "image")]
    pub(crate) prompt: Option<String>,

    #[arg(long, requires = "prompt")]
    pub(crate) raw: bool,

    #[command(flatten)]
    pub(crate) prompting: PromptArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// The keys of a `transcribe` step.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct HearArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,

    #[arg(long)]
    pub(crate) audio: String,

    #[command(flatten)]
    pub(crate) speech: SpeechArgs,
}

/// The keys of a `detect` or `point` step.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct FindArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,

    #[arg(long)]
    pub(crate) each: Option<String>,

    #[arg(long)]
    pub(crate) image: String,

    #[arg(long)]
    pub(crate) thing: String,

    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max: u16,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// The keys of a `crop` step.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub(crate) struct CropArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,

    #[arg(long)]
    pub(crate) each: Option<String>,

    #[arg(long)]
    pub(crate) image: String,

    #[arg(long)]
    pub(crate) boxes: String,

    /// What is added on every side, in parts of the box.
    #[arg(long, default_value_t = 0.0, value_parser = margin)]
    pub(crate) margin: f32,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskName {
    Ask,
    Transcribe,
    Detect,
    Point,
    Crop,
}

impl TaskName {
    pub(crate) const ALL: [Self; 5] = [Self::Ask, Self::Transcribe, Self::Detect, Self::Point, Self::Crop];

    /// As it is written.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Transcribe => "transcribe",
            Self::Detect => "detect",
            Self::Point => "point",
            Self::Crop => "crop",
        }
    }
}

fn margin(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|margin| (0.0..=10.0).contains(margin))
        .ok_or_else(|| "expected a number from 0 to 10".into())
}
