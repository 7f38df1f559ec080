//! `ocelli completions`: a script for the shell.

use clap::CommandFactory;

use crate::arguments::{Cli, CompletionsArgs};
use crate::exit::{Exit, Outcome};
use crate::terminal::print;

pub(crate) fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ocelli", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}
