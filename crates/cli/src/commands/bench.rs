//! `ocelli bench`: how fast a model runs on this machine.

mod compare;
mod table;

use std::fmt::Write;

use ocelli_engine::bench::{self, BenchModel, BenchOptions, Machine, Report};

use crate::arguments::{BenchArgs, DEMO};
use crate::exit::{Exit, Failure, Outcome, exit_of};
use crate::model;
use crate::terminal::{note, print, progress_bar};
use compare::Earlier;

pub(crate) fn run(args: &BenchArgs) -> Outcome {
    if args.only_machine() {
        return machine_only(args);
    }
    // Before anything runs: a mistyped path should not cost minutes.
    let earlier = args.compare.as_deref().map(Earlier::read).transpose()?;
    let report = measure(args)?;
    if let Some(reason) = table::busy(&report.load) {
        note(&format!("warning: {reason}"));
    }
    let comparison = earlier.as_ref().map(|earlier| earlier.compare(&report));
    let text = if args.json {
        let mut value = serde_json::to_value(&report)?;
        if let Some(comparison) = &comparison {
            value["comparison"] = serde_json::to_value(comparison)?;
        }
        format!("{value}\n")
    } else if args.md {
        table::markdown(&report) + &comparison.as_ref().map(compare::markdown).unwrap_or_default()
    } else if args.csv {
        table::csv(&report)
    } else {
        let mut text = report.machine.as_ref().map(table::machine).unwrap_or_default();
        text.push_str(&table::report(&report));
        if let Some(comparison) = &comparison {
            write!(text, "\n{comparison}")?;
        }
        text
    };
    print(&text)?;
    Ok(Exit::Success)
}

fn measure(args: &BenchArgs) -> Result<Report, Failure> {
    let options = BenchOptions {
        engine: args.device.options(),
        picture: args.picture(),
        detail: args.detail.into(),
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
        runs: args.runs,
        warmup: args.warmup,
        machine: args.machine,
    };
    let bar = progress_bar(options.runs + options.warmup, "runs");
    let mut progress = |done: usize, _| bar.set_position(done as u64);
    let measured = match &args.random_weights {
        Some(name) => bench::run(BenchModel::Random(name), &options, &mut progress),
        None => {
            let name = args.model.clone().unwrap_or_else(|| DEMO.into());
            let files = model::find(&name, args.revision.as_deref())?;
            bench::run(BenchModel::Files(&files), &options, &mut progress)
        }
    };
    bar.finish_and_clear();
    measured.map_err(|error| {
        let exit = if matches!(error, ocelli_engine::Error::Unrepeatable { .. }) { Exit::Failed } else { Exit::Model };
        Failure::new(exit_of(&error, exit), error)
    })
}

fn machine_only(args: &BenchArgs) -> Outcome {
    if args.compare.is_some() {
        return Err(Failure::message(Exit::Usage, "--compare needs a model: give --model or --random-weights"));
    }
    let machine: Machine = bench::measure_machine(&args.device.options())?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string(&machine)?)
    } else if args.md {
        table::machine_markdown(&machine)
    } else if args.csv {
        table::machine_csv(&machine)
    } else {
        table::machine(&machine)
    };
    print(&text)?;
    Ok(Exit::Success)
}
