//! The flags of `ocelli detect` and `ocelli point`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::shared::{ModelArgs, ending_in};

/// Find things in a picture: boxes around them
///
/// One line for each: left, top, right and bottom edge in pixels. The model must be one that knows numbers, such as
/// vikhyatk/moondream2.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli detect street.jpg \"red car\" --model vikhyatk/moondream2
  ocelli detect street.jpg person --model ./moondream2 --json
  ocelli detect street.jpg person --model ./moondream2 --draw found.png")]
pub(crate) struct DetectArgs {
    #[command(flatten)]
    pub(crate) locate: LocateArgs,
}

/// Find things in a picture: a point on each
///
/// One line for each: pixels from the left and from above. The model must be one that knows numbers, such as
/// vikhyatk/moondream2.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ocelli point street.jpg \"traffic light\" --model vikhyatk/moondream2
  ocelli point sheep.jpg sheep --model ./moondream2 --json
  ocelli point sheep.jpg sheep --model ./moondream2 --draw found.png")]
pub(crate) struct PointArgs {
    #[command(flatten)]
    pub(crate) locate: LocateArgs,
}

/// What both have.
#[derive(Debug, Args)]
pub(crate) struct LocateArgs {
    /// A picture file, or `-` for standard input
    #[arg(value_name = "IMAGE|-", value_hint = ValueHint::FilePath)]
    pub(crate) image: OsString,

    /// What to look for
    #[arg(value_name = "THING")]
    pub(crate) thing: String,

    /// Stop after so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max: u16,

    /// Write a copy of the picture with what was found drawn on it, as PNG
    #[arg(long, value_name = "FILE.png", value_hint = ValueHint::FilePath, value_parser = |text: &str| ending_in("png", text))]
    pub(crate) draw: Option<PathBuf>,

    /// Print a JSON object, with fractions of the picture's sides as well
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
