//! `ocelli quantize`: a model with smaller weights.

use std::cell::Cell;
use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};
use ocelli_engine::{EngineOptions, QuantizeReport, QuantizedKind, quantize};

use crate::arguments::QuantizeArgs;
use crate::exit::{Exit, Failure, Outcome, exit_of};
use crate::interrupt::Graceful;
use crate::model::find;
use crate::terminal::{bytes, draw_target, print, remark};

pub(crate) fn run(args: &QuantizeArgs) -> Outcome {
    let files = find(&args.model, args.revision.as_deref())?;
    let options = EngineOptions {
        quant: args.quant.into(),
        quant_vision: args.quant_vision.into(),
        quant_group: args.group_size,
        ..EngineOptions::new()
    };
    let bar = ProgressBar::with_draw_target(Some(1), draw_target());
    let template = "{bar:24} {bytes:>10} of {total_bytes} {bytes_per_sec:>12} {eta:>4}";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
    let (started, graceful) = (Cell::new(false), Graceful::begin());
    let outcome = quantize(&files, &args.target, &options, args.force, &|progress| {
        if !started.replace(true) {
            bar.set_length(progress.total);
        }
        bar.set_position(progress.done);
        if graceful.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    if matches!(outcome, Err(ocelli_engine::Error::Cancelled)) {
        return Ok(Exit::Interrupted);
    }
    let report = outcome.map_err(|error| Failure::new(exit_of(&error, Exit::Model), error))?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
        return Ok(Exit::Success);
    }
    print(&table(&report))?;
    remark(&format!("use it with --model {}", report.path.display()));
    Ok(Exit::Success)
}

fn table(report: &QuantizeReport) -> String {
    let mut text = format!(
        "{:<14} {:>8} {:>8} {:>10} {:>10}  {:>11} {:>8}\n",
        "weights", "tensors", "stored", "before", "after", "mean sq err", "relative"
    );
    let changed = |kind: &QuantizedKind| kind.mean_squared_error > 0.0;
    for kind in &report.kinds {
        let error = if changed(kind) { format!("{:.2e}", kind.mean_squared_error) } else { "-".to_owned() };
        let relative = if changed(kind) { format!("{:.1e}", kind.relative_error) } else { "-".to_owned() };
        text.push_str(&format!(
            "{:<14} {:>8} {:>8} {:>10} {:>10}  {error:>11} {relative:>8}\n",
            kind.kind,
            kind.tensors,
            kind.stored,
            bytes(kind.bytes_before),
            bytes(kind.bytes_after)
        ));
    }
    let (before, after) = (bytes(report.bytes_before), bytes(report.bytes_after));
    text.push_str(&format!("{}: {before} are now {after}, in {:.1} s\n", report.path.display(), report.seconds));
    text.push_str(&match report.mlx_package {
        Some(package) => format!("written in the layout of MLX: {package} reads it, too\n"),
        None => "written under the published names: MLX does not know the family, ocelli reads it\n".to_owned(),
    });
    text
}
