//! The command line: every command and its help text; flags that several commands share are in `shared`.

mod bench;
mod locate;
mod pipe;
mod precision;
mod quantize;
mod shared;
mod transcribe;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::output::OutPath;

pub(crate) use bench::BenchArgs;
pub(crate) use locate::{DetectArgs, LocateArgs, PointArgs};
pub(crate) use pipe::{AskArgs, CropArgs, FindArgs, HearArgs, PipeArgs, StepArgs, TaskName};
pub(crate) use quantize::QuantizeArgs;
pub(crate) use shared::{AnswerArgs, DeviceArgs, LookArgs, ModelArgs, PromptArgs, SamplingArgs, VideoArgs};
use shared::{out_path, positive};
pub(crate) use transcribe::{TimestampsOf, TranscribeArgs, TranscriptFormat};

/// Runs vision-language models on your own machine
///
/// Describes pictures, answers questions about them, and chats; nothing leaves this machine. A small demo model is
/// built in, others come from a folder or from the Hugging Face hub (`ocelli pull`).
#[derive(Debug, Parser)]
#[command(name = "ocelli", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  ocelli describe photo.jpg
  ocelli describe photos/ --out captions.csv --model HuggingFaceTB/SmolVLM-256M-Instruct
  ocelli run --image receipt.png \"What is the total?\"
  ocelli chat photo.jpg
  ocelli pipe caption-translate.toml photos/ --out captions.md

Exit codes:
  0    everything worked
  1    a picture, a prompt or a file failed, or an evaluation did not pass
  2    the command line cannot be understood
  3    the model cannot be found, loaded or used for this
  4    there is not enough memory
  130  Ctrl-C

Environment:
  HF_HUB_CACHE, HF_HOME  where models are kept (default: ~/.cache/huggingface/hub)
  HF_TOKEN               your token for private and gated models
  HF_ENDPOINT            another hub (default: https://huggingface.co)
  HF_HUB_OFFLINE         set to 1 to never use the network
  OCELLI_ISA             instruction set to use (default: the best there is): scalar, avx2,
                         avx2-vnni, avx512, avx512-vnni, avx512-bf16, amx, neon, neon-dotprod,
                         neon-i8mm, neon-bf16
  OCELLI_CACHE           where quantised weights are kept (default: ~/.cache/ocelli)
  OCELLI_HISTORY         file for the history of `ocelli chat`; empty for none
  NO_COLOR               set to 1 for no colours";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Describe(Box<DescribeArgs>),
    Run(Box<RunArgs>),
    Chat(Box<ChatArgs>),
    Detect(Box<DetectArgs>),
    Point(Box<PointArgs>),
    Transcribe(Box<TranscribeArgs>),
    Pipe(Box<PipeArgs>),
    Pull(PullArgs),
    List(ListArgs),
    Models(ModelsArgs),
    Rm(RmArgs),
    Show(ShowArgs),
    Quantize(QuantizeArgs),
    Eval(Box<EvalArgs>),
    Bench(Box<BenchArgs>),
    Completions(CompletionsArgs),
}

/// Describe pictures and videos, or ask the same question about each of them
///
/// One picture: the answer is printed as it comes. Several: one line each, with progress and a summary on standard
/// error; a picture that fails does not stop the others. Ctrl-C ends the run and keeps what is finished. Models that
/// take videos watch animated GIF, WebP and PNG files and, where ffmpeg is installed, all video files, also those in
/// folders; other models are shown the first frame of what moves.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli describe photo.jpg
  ocelli describe photos/ --recursive --out captions.jsonl
  ocelli describe photos/ --recursive --out captions.jsonl --resume
  ocelli describe 'scans/*.tif' --prompt \"Read the text.\" --json
  curl -s https://example.org/cat.png | ocelli describe -
  ocelli describe photo.jpg --model HuggingFaceTB/SmolVLM-256M-Instruct --quant q4 --quant-vision q8
  ocelli describe photo.jpg --model Salesforce/blip2-opt-2.7b --speed quality
  ocelli describe photo.jpg --model HuggingFaceTB/SmolVLM-256M-Instruct --image-tokens 16
  ocelli describe clip.mp4 --model Qwen/Qwen2.5-VL-3B-Instruct --max-frames 16
  ocelli describe cat.png --raw --prompt \"$(printf 'User:<image>What is this?\\nAssistant:')\"")]
pub(crate) struct DescribeArgs {
    /// Pictures, videos, folders of them, patterns such as 'photos/*.jpg', or `-` for standard input
    #[arg(value_name = "IMAGE|VIDEO|DIR|GLOB|-", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) images: Vec<OsString>,

    /// What to ask about each picture (default: "Describe the image.", or nothing where a model captions by itself)
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// Give the prompt to the model verbatim, without its chat template
    ///
    /// `<image>` stands for the picture; with Qwen's models `<|vision_start|><|image_pad|><|vision_end|>`.
    #[arg(long, requires = "prompt")]
    pub(crate) raw: bool,

    /// Look into folders inside folders, too
    #[arg(short, long)]
    pub(crate) recursive: bool,

    /// Write one row per picture to this file: .jsonl, .csv or .md
    #[arg(short, long, value_name = "FILE", value_parser = out_path(), value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<OutPath>,

    /// Continue the file of --out: skip the pictures it has answers for, try failed ones again
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,

    #[command(flatten)]
    pub(crate) answer: AnswerArgs,

    #[command(flatten)]
    pub(crate) video: VideoArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// Answer one prompt, with or without pictures and videos
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli run --image chart.png \"Which bar is the tallest?\"
  ocelli run --image before.png --image after.png \"What changed?\"
  ocelli run --model Qwen/Qwen2.5-VL-3B-Instruct --video clip.mp4 --max-frames 16 \"What happens?\"
  ocelli run --model HuggingFaceTB/SmolVLM2-500M-Video-Instruct --video frames/ --fps 1 \"What happens?\"
  ocelli run --model Qwen/Qwen2.5-0.5B-Instruct \"Name three rivers.\"
  ocelli run --model Qwen/Qwen2.5-1.5B-Instruct --quant q4 \"Name three rivers.\"
  ocelli run --model ./my-base-model --raw \"Once upon a time\" --max-tokens 50
  ocelli run --model Qwen/Qwen2.5-0.5B-Instruct - < prompt.txt")]
pub(crate) struct RunArgs {
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: String,

    /// A picture for the prompt; give the flag once for each
    #[arg(short, long = "image", value_name = "IMAGE|-", value_hint = ValueHint::FilePath)]
    pub(crate) images: Vec<OsString>,

    /// A video for the prompt, behind the pictures: a file, or a folder of frames, sorted by name
    #[arg(long = "video", value_name = "VIDEO|DIR", value_hint = ValueHint::AnyPath)]
    pub(crate) videos: Vec<OsString>,

    /// Give the prompt to the model verbatim, without its chat template; `<image>` stands for each picture
    #[arg(long)]
    pub(crate) raw: bool,

    #[command(flatten)]
    pub(crate) answer: AnswerArgs,

    #[command(flatten)]
    pub(crate) video: VideoArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// Chat with a model, with pictures and videos or without
///
/// At the prompt: /image PATH adds a picture to your next message, /video PATH a video or a folder of frames, /clear starts
/// anew, /stats tells about the last answer, /help lists everything, /quit or Ctrl-D ends. Ctrl-C stops an answer; twice
/// at the prompt, it ends.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli chat photo.jpg
  ocelli chat --model Qwen/Qwen2.5-1.5B-Instruct --quant q8
  ocelli chat --model HuggingFaceTB/SmolVLM-256M-Instruct --system \"Answer in one sentence.\"
  printf '/image photo.jpg\\nWhat is this?\\n' | ocelli chat")]
pub(crate) struct ChatArgs {
    /// Pictures and videos for the first message
    #[arg(value_name = "IMAGE|VIDEO", value_hint = ValueHint::FilePath)]
    pub(crate) images: Vec<OsString>,

    /// What the model should know or be before the first message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) look: LookArgs,

    #[command(flatten)]
    pub(crate) video: VideoArgs,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// Download a model from the Hugging Face hub
///
/// Files go to the cache that all tools of that family share. A download that was cut off continues where it stopped,
/// and every file is checked.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli pull HuggingFaceTB/SmolVLM-256M-Instruct
  ocelli pull HuggingFaceTB/SmolVLM-256M-Instruct --revision main
  HF_TOKEN=hf_... ocelli pull my-org/private-model")]
pub(crate) struct PullArgs {
    /// The model's id on the hub
    #[arg(value_name = "ID")]
    pub(crate) id: String,

    /// Branch, tag or commit (default: main)
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    /// Print the result as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show which families of models are supported, in which sizes, and how much memory they take
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli models
  ocelli models --json | jq '.[].sizes[] | select(.weight_bytes_at.q4 < 4e9) | .id'")]
pub(crate) struct ModelsArgs {
    /// Print a JSON array
    #[arg(long, conflicts_with = "md")]
    pub(crate) json: bool,

    /// Print a Markdown table
    #[arg(long)]
    pub(crate) md: bool,
}

/// List the models on this machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli list
  ocelli list --json")]
pub(crate) struct ListArgs {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// Delete models from the cache
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli rm HuggingFaceTB/SmolVLM-256M-Instruct")]
pub(crate) struct RmArgs {
    /// The models' ids, as `ocelli list` shows them
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

/// Show what a model is and the memory it will take, without loading it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli show
  ocelli show HuggingFaceTB/SmolVLM-256M-Instruct
  ocelli show ./my-model --json")]
pub(crate) struct ShowArgs {
    /// A model's id in the cache, a folder, or `demo` for the built-in model
    #[arg(value_name = "MODEL", default_value = DEMO, hide_default_value = true, value_hint = ValueHint::DirPath)]
    pub(crate) model: OsString,

    /// Branch, tag or commit of a model in the cache (default: main)
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure how well a model does
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli eval demo
  ocelli eval parity fixtures/smolvlm")]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) command: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    Demo(EvalDemoArgs),
    Parity(EvalParityArgs),
}

/// Ask the built-in model about 500 pictures it has never seen: how many answers are exactly right?
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli eval demo
  ocelli eval demo --limit 50 --json
  ocelli eval demo --num-beams 3 --mistakes
  ocelli eval demo --quant q4 --quant-vision q8")]
pub(crate) struct EvalDemoArgs {
    /// Ask about the first N pictures only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,

    /// Show some wrong answers, too
    #[arg(long)]
    pub(crate) mistakes: bool,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// Compare models with recorded results of the reference implementation, tensor by tensor
///
/// Each folder holds a checkpoint (or the name of the folder that does), `image*.png`, `video*.gif`,
/// `reference.safetensors` and `reference.json`.
/// Exits with 1 if any comparison fails, and names the first tensor that diverges.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli eval parity fixtures/smolvlm
  ocelli eval parity fixtures/* --json")]
pub(crate) struct EvalParityArgs {
    /// Folders with a checkpoint and its reference, or folders of such folders
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    pub(crate) folders: Vec<PathBuf>,

    /// Print a JSON array
    #[arg(long, conflicts_with = "md")]
    pub(crate) json: bool,

    /// Print a Markdown table with one row per family
    #[arg(long)]
    pub(crate) md: bool,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli completions bash > ~/.local/share/bash-completion/completions/ocelli
  ocelli completions zsh > ~/.zfunc/_ocelli
  ocelli completions fish > ~/.config/fish/completions/ocelli.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// The name of the built-in model.
pub(crate) const DEMO: &str = "demo";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
