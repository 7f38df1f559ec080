//! The `ocelli` command: from the command line to one of `commands`, and back to an exit code.
#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod exit;
mod hub;
mod inputs;
mod interrupt;
mod model;
mod output;
mod pipe;
mod record;
mod regions;
mod summary;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Cli, Command, EvalCommand};

fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::install();
    let outcome = match &cli.command {
        Command::Describe(args) => commands::describe::run(args),
        Command::Run(args) => commands::run::run(args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Detect(args) => commands::locate::detect(args),
        Command::Point(args) => commands::locate::point(args),
        Command::Transcribe(args) => commands::transcribe::run(args),
        Command::Pipe(args) => commands::pipe::run(args),
        Command::Pull(args) => commands::pull::run(args),
        Command::Models(args) => commands::models::run(args),
        Command::List(args) => commands::list::run(args),
        Command::Rm(args) => commands::rm::run(args),
        Command::Show(args) => commands::show::run(args),
        Command::Quantize(args) => commands::quantize::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Completions(args) => commands::completions::run(args),
        Command::Eval(args) => match &args.command {
            EvalCommand::Demo(args) => commands::eval_demo::run(args),
            EvalCommand::Parity(args) => commands::eval_parity::run(args),
        },
    };
    outcome.unwrap_or_else(|failure| failure.report()).into()
}
