//! The arguments of `ocelli bench`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueHint};
use ocelli_engine::bench::{PUBLISHED, Picture};

use super::shared::{ending_in, positive};
use super::{DeviceArgs, LookArgs};

/// Measure how fast a model runs on this machine
///
/// Every run prepares a picture of noise, runs the vision tower, prefills and decodes greedily; nothing is cached
/// between runs. Random weights tell how fast a model would be before it is downloaded: speed does not depend on their
/// values. All runs must give the same tokens, or the command fails.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli bench
  ocelli bench --model HuggingFaceTB/SmolVLM-256M-Instruct --detail low --machine
  ocelli bench --random-weights smolvlm-256m --prompt-tokens 20 --max-tokens 64 --threads 2
  ocelli bench --random-weights qwen2.5-1.5b --quant q4 --prompt-tokens 512 --json > before.json
  ocelli bench --random-weights qwen2.5-1.5b --quant q4 --prompt-tokens 512 --compare before.json
  ocelli bench --random-weights smolvlm-256m --image-size 224 --max-tokens 20 --plot stages.svg
  ocelli bench --random-weights smolvlm-256m --image-size 224 --image-tokens 16 --max-tokens 20
  ocelli bench --machine")]
pub(crate) struct BenchArgs {
    /// A model's folder, its id in the Hugging Face cache, or `demo` for the built-in model [default: demo]
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) model: Option<OsString>,

    /// Branch, tag or commit of a model in the cache (default: main)
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub(crate) revision: Option<String>,

    /// Build a published model with random weights instead
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PUBLISHED), conflicts_with = "model")]
    pub(crate) random_weights: Option<String>,

    /// Size of the picture, such as 640x480 or 512 [default: 512, or one tile with random weights]
    #[arg(long, value_name = "WxH|S", value_parser = image_size)]
    image_size: Option<(usize, usize)>,

    /// Measure without a picture
    #[arg(long, conflicts_with = "image_size")]
    no_image: bool,

    #[command(flatten)]
    pub(crate) look: LookArgs,

    /// Tokens of the prompt besides those of the picture
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive)]
    pub(crate) prompt_tokens: usize,

    /// Tokens of every answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) max_tokens: usize,

    /// Runs that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub(crate) runs: usize,

    /// Runs before them that do not
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) warmup: usize,

    /// Search with N beams, too, in every run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive, hide_default_value = true)]
    pub(crate) beams: usize,

    /// Decode N sequences at once, too, in every run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive, hide_default_value = true)]
    pub(crate) batch: usize,

    /// Measure matrix products, too, next to the machine's limits; without a model, only the machine
    #[arg(long)]
    pub(crate) machine: bool,

    /// Compare with what an earlier --json gave: ratios of the medians
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "csv")]
    pub(crate) compare: Option<PathBuf>,

    /// Draw the stages of every run (or, with --compare, of the medians) as an SVG picture
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath, value_parser = |text: &str| ending_in("svg", text))]
    pub(crate) plot: Option<PathBuf>,

    /// Print a JSON object with everything
    #[arg(long, group = "form")]
    pub(crate) json: bool,

    /// Print a Markdown table of the statistics
    #[arg(long, group = "form")]
    pub(crate) md: bool,

    /// Print the statistics as comma-separated values
    #[arg(long, group = "form")]
    pub(crate) csv: bool,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

impl BenchArgs {
    /// Whether only the machine is measured.
    pub(crate) fn only_machine(&self) -> bool {
        self.machine && self.model.is_none() && self.random_weights.is_none()
    }

    /// The picture of every run.
    pub(crate) fn picture(&self) -> Picture {
        match self.image_size {
            _ if self.no_image => Picture::None,
            Some((width, height)) => Picture::Size(width, height),
            None => Picture::Auto,
        }
    }
}

/// `640x480`, or `512` for a square.
fn image_size(text: &str) -> Result<(usize, usize), String> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|side| (1..=MOST_PIXELS).contains(side));
    let expected = || format!("expected a size such as 640x480 or 512, each side from 1 to {MOST_PIXELS}");
    side(width).zip(side(height)).ok_or_else(expected)
}

const MOST_PIXELS: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_pictures() {
        assert_eq!(image_size("640x480"), Ok((640, 480)));
        assert_eq!(image_size("512"), Ok((512, 512)));
        for bad in ["", "x", "0", "5x", "1x2x3", "99999"] {
            assert!(image_size(bad).is_err(), "{bad}");
        }
    }
}
