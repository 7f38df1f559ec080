//! `ocelli pipe`: several models over many files.

use anyhow::Context;

use crate::arguments::{DEMO, PipeArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::{AUDIO, Input, PICTURES, collect};
use crate::model;
use crate::output::{OutFile, OutPath};
use crate::pipe::{Item, PipeRecord, Plan, Run, Spec};
use crate::summary::Summary;
use crate::terminal::{Style, note, print};

pub(crate) fn run(args: &PipeArgs) -> Outcome {
    let spec = Spec::read(args)?;
    let files = inputs(args, &spec)?;
    let plan = Plan::of(&spec);
    if args.dry_run {
        let plural = if files.len() == 1 { "" } else { "s" };
        print(&format!("{}: {} file{plural}\n{}", args.spec.display(), files.len(), plan.table(Style::of_stdout())))?;
        plan.check()?;
        return Ok(Exit::Success);
    }
    plan.check()?;
    let open = |path: &OutPath| OutFile::open(path, args.resume, PipeRecord::sheet(&spec), &spec.source, "");
    let out = args.out.as_ref().map(open).transpose()?;
    let unfinished = args.out.as_ref().map(|path| open(&path.unfinished())).transpose()?;
    if let Some(folder) = &args.keep_crops {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let is_finished = |file: &String| out.as_ref().is_some_and(|out| out.held(file).is_some());
    let before = |file: &str| unfinished.as_ref().and_then(|unfinished| unfinished.held(file));
    let found = |file: &str| before(file).map(|row| PipeRecord::read(&spec, row)).unwrap_or_default();
    let n_found = files.len();
    let files = files.into_iter().filter(|file| !is_finished(file));
    let items: Vec<Item> = files.map(|file| Item::new(file.clone(), found(&file))).collect();
    let mut summary = Summary::of("file");
    summary.skipped = n_found - items.len();
    if !args.json && spec.uses(DEMO) {
        model::introduce(DEMO.as_ref());
    }
    let is_single = n_found == 1 && summary.skipped == 0;
    Run { args, spec: &spec, plan: &plan, out, unfinished, is_single, summary, exit: Exit::Success }.run(items)
}

/// The files, by name: those of the command line, else those of the pipeline.
fn inputs(args: &PipeArgs, spec: &Spec) -> Result<Vec<String>, Failure> {
    let arguments = if args.files.is_empty() { &spec.files } else { &args.files };
    if arguments.is_empty() {
        let hint = "name them after the pipeline, or in its [input] as files = [\"photos/*.jpg\"]";
        return Err(Failure::message(Exit::Usage, "there are no files to work on").with_hint(hint));
    }
    if arguments.iter().any(|argument| argument == "-") {
        let hint = "write it to a file first";
        return Err(Failure::message(Exit::Usage, "steps cannot all read standard input").with_hint(hint));
    }
    let inputs = collect(arguments, args.recursive || spec.recursive, if spec.hears() { &AUDIO } else { &PICTURES })?;
    inputs.remarks.iter().for_each(|remark| note(&format!("notice: {remark}")));
    Ok(inputs.files.iter().map(Input::name).collect())
}
