//! `ocelli bench`: how fast a model runs on this machine.

mod compare;
mod plot;
mod table;

use std::fmt::Write;

use anyhow::Context;
use ocelli_engine::bench::{self, BenchModel, BenchOptions, Machine, Report};

use crate::arguments::{BenchArgs, DEMO};
use crate::exit::{Exit, Failure, Outcome, exit_of};
use crate::model;
use crate::terminal::{note, print, progress_bar};
use compare::{Comparison, Earlier};

pub(crate) fn run(args: &BenchArgs) -> Outcome {
    if args.only_machine() {
        return machine_only(args);
    }
    // Before anything runs: a mistyped path should not cost minutes.
    let earlier = args.compare.as_deref().map(Earlier::read).transpose()?;
    let report = measure(args)?;
    warn_of_limits(&report.machine);
    for doubt in table::doubts(&report.load, "the model's") {
        note(&format!("warning: {doubt}"));
    }
    // What was measured is shown even if it cannot be compared.
    let compared = earlier.as_ref().map(|earlier| earlier.compare(&report)).transpose();
    let comparison = compared.as_ref().ok().and_then(Option::as_ref);
    print(&text(args, &report, comparison)?)?;
    if let Some(path) = &args.plot {
        let picture = plot::svg(&report, earlier.as_ref().filter(|_| comparison.is_some()));
        std::fs::write(path, picture).with_context(|| path.display().to_string())?;
    }
    compared.map(|_| Exit::Success)
}

/// Limits that were measured beside other work are too low, and shares of them too high.
fn warn_of_limits(machine: &Machine) {
    for doubt in table::doubts(&machine.load, "the machine's") {
        note(&format!("warning: while its limits were measured, {doubt}"));
    }
}

fn text(args: &BenchArgs, report: &Report, comparison: Option<&Comparison>) -> Result<String, Failure> {
    Ok(if args.json {
        let mut value = serde_json::to_value(report)?;
        if let Some(comparison) = comparison {
            value["comparison"] = serde_json::to_value(comparison)?;
        }
        format!("{value}\n")
    } else if args.md {
        let machine = if args.machine { table::machine_markdown(&report.machine) + "\n" } else { String::new() };
        machine + &table::markdown(report) + &comparison.map(compare::markdown).unwrap_or_default()
    } else if args.csv {
        table::csv(report)
    } else {
        let mut text = if args.machine { table::machine(&report.machine) + "\n" } else { String::new() };
        text.push_str(&table::report(report));
        if let Some(comparison) = comparison {
            write!(text, "\n{comparison}")?;
        }
        text
    })
}

fn measure(args: &BenchArgs) -> Result<Report, Failure> {
    let options = BenchOptions {
        engine: args.device.options(),
        picture: args.picture(),
        detail: args.look.detail(),
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
        runs: args.runs,
        warmup: args.warmup,
        beams: args.beams,
        batch: args.batch,
        products: args.machine,
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
        use ocelli_engine::Error::{BatchDiffers, Unrepeatable};
        let is_result = matches!(error, Unrepeatable { .. } | BatchDiffers { .. });
        let exit = if is_result { Exit::Failed } else { Exit::Model };
        Failure::new(exit_of(&error, exit), error)
    })
}

fn machine_only(args: &BenchArgs) -> Outcome {
    for (flag, given) in [("--compare", args.compare.is_some()), ("--plot", args.plot.is_some())] {
        if given {
            let message = format!("{flag} needs a model: give --model or --random-weights");
            return Err(Failure::message(Exit::Usage, message));
        }
    }
    let machine: Machine = bench::measure_machine(&args.device.options(), true)?;
    warn_of_limits(&machine);
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
