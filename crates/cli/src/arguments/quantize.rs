//! The flags of `ocelli quantize`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::precision::{QuantArg, QuantVisionArg};

/// Write a model with smaller weights
///
/// The new folder is a complete model. Where MLX knows the family it has MLX's layout, so that mlx-lm (Llama, Qwen2,
/// Qwen3) or mlx-vlm (Idefics3, SmolVLM, LLaVA, Qwen-VL, DeepSeek-VL2) reads it, too; other families keep their
/// published names, for ocelli. It appears when it is complete; a run that fails leaves nothing behind. Norms and biases
/// stay as they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli quantize HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-q4 --quant q4
  ocelli quantize ./my-model ./my-model-q8 --quant q8 --quant-vision q8
  ocelli describe photo.jpg --model smolvlm-q4")]
pub(crate) struct QuantizeArgs {
    /// The model: an id in the cache, a folder, or `demo` for the built-in model
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) model: OsString,

    /// The folder to write
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) target: PathBuf,

    /// Bits per weight of the decoder
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub(crate) quant: QuantArg,

    /// Bits per weight of the vision tower
    #[arg(long, value_enum, value_name = "PRECISION", default_value_t, hide_default_value = true)]
    pub(crate) quant_vision: QuantVisionArg,

    /// Weights that share a scale: 32 or 64 (default: 64, or 32 where rows ask for it)
    #[arg(long, value_name = "N", value_parser = group_size)]
    pub(crate) group_size: Option<usize>,

    /// Branch, tag or commit of a model in the cache (default: main)
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,

    /// Replace a model that is in the folder already
    #[arg(long)]
    pub(crate) force: bool,

    /// Print the result as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn group_size(text: &str) -> Result<usize, String> {
    match text {
        "32" => Ok(32),
        "64" => Ok(64),
        _ => Err("expected 32 or 64".to_owned()),
    }
}
