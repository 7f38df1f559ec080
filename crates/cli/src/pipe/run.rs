//! A pipeline over files: stage after stage, each result written down as soon as it is there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use ocelli_engine::Engine;
use serde_json::Value;

use super::engines::Engines;
use super::plan::Plan;
use super::record::PipeRecord;
use super::spec::{FILE, Spec, Step, Task};
use super::step::{Done, Worker};
use super::template::{Fields, Jinja};
use crate::arguments::PipeArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::interrupt::Graceful;
use crate::model;
use crate::output::{OutFile, Row};
use crate::summary::Summary;
use crate::terminal::{note, print, print_answer, printable, progress_bar, unless_kept};

/// A run.
pub(crate) struct Run<'a> {
    pub(crate) args: &'a PipeArgs,
    pub(crate) spec: &'a Spec,
    pub(crate) plan: &'a Plan<'a>,
    /// One row per file that is through, or that failed.
    pub(crate) out: Option<OutFile>,
    /// One row per result of a file that is not through.
    pub(crate) unfinished: Option<OutFile>,
    /// Whether a single file was asked for.
    pub(crate) is_single: bool,
    pub(crate) summary: Summary,
    pub(crate) exit: Exit,
}

/// A file on its way.
pub(crate) struct Item {
    file: String,
    /// What it is, and what steps gave.
    fields: Fields,
    about: BTreeMap<String, Value>,
    failed: bool,
    elapsed: Duration,
}

impl Item {
    /// A file, and what an earlier run found out about it.
    pub(crate) fn new(file: String, (mut fields, about): (Fields, BTreeMap<String, Value>)) -> Self {
        fields.insert(FILE.to_owned(), Value::String(file.clone()));
        Self { file, fields, about, failed: false, elapsed: Duration::ZERO }
    }

    fn lacks(&self, step: &Step) -> bool {
        !self.fields.contains_key(&step.name)
    }
}

impl Run<'_> {
    /// Takes all files through all stages. Ctrl-C and a model that cannot be loaded end it; what is done is kept.
    pub(crate) fn run(mut self, mut items: Vec<Item>) -> Outcome {
        let graceful = Graceful::begin();
        let started = Instant::now();
        let result = self.stages(&mut items, &graceful);
        self.clean_up(&items)?;
        result?;
        self.summary.elapsed = started.elapsed();
        self.summary.not_done = items.iter().filter(|item| !item.failed && self.is_under_way(item)).count();
        if !self.is_single {
            note(&self.summary.to_string());
        }
        Ok(if graceful.interrupted() { Exit::Interrupted } else { self.exit })
    }

    fn stages(&mut self, items: &mut [Item], graceful: &Graceful) -> Result<(), Failure> {
        let stages = self.spec.stages();
        let mut engines = Engines::default();
        for (stage_idx, stage) in stages.iter().enumerate() {
            let is_todo = |item: &Item| !item.failed && stage.iter().any(|step| item.lacks(step));
            let n_todo = items.iter().filter(|item| is_todo(item)).count();
            if n_todo == 0 {
                continue;
            }
            let engine = engines.of_first(&stages[stage_idx..], self.plan)?;
            require(stage, engine.as_ref())?;
            let bar = if self.is_single { ProgressBar::hidden() } else { progress_bar(n_todo, "files") };
            let (crops, verbose) = (self.args.keep_crops.as_deref(), self.args.verbose);
            let place = match stages.len() {
                1 => String::new(),
                n_stages => format!("({}/{n_stages}) ", stage_idx + 1),
            };
            let worker = Worker { jinja: Jinja::new(), graceful, bar, place, crops, verbose };
            for item in items.iter_mut().filter(|item| is_todo(item)) {
                self.stage(stage, engine.as_ref(), item, &worker)?;
                if graceful.interrupted() {
                    break;
                }
                worker.bar.inc(1);
            }
            worker.bar.finish_and_clear();
            if graceful.interrupted() {
                break;
            }
        }
        Ok(())
    }

    /// Takes one file through the steps of a stage.
    fn stage(
        &mut self,
        stage: &[Step],
        engine: Option<&Engine>,
        item: &mut Item,
        worker: &Worker<'_>,
    ) -> Result<(), Failure> {
        for step in stage {
            if !item.lacks(step) {
                continue;
            }
            let message = format!("{}{}: {}", worker.place, step.name, item.file);
            worker.bar.set_message(printable(&message).into_owned());
            let started = Instant::now();
            let result = worker.run(step, engine, &item.fields);
            item.elapsed += started.elapsed();
            if worker.graceful.interrupted() {
                return Ok(());
            }
            match result {
                Ok(Done { value, about, answers }) => {
                    answers.iter().for_each(|answer| self.summary.generated(answer));
                    item.fields.insert(step.name.clone(), value);
                    item.about.insert(step.name.clone(), about);
                    self.keep(item, worker)?;
                }
                Err(failure) => return self.fail(item, &failure.about(&format!("step `{}`", step.name)), worker),
            }
        }
        Ok(())
    }

    /// Writes down what is known of a file, and shows it once that is everything.
    fn keep(&mut self, item: &Item, worker: &Worker<'_>) -> Result<(), Failure> {
        let record = self.record(item, None);
        if self.is_under_way(item) {
            return Ok(self.unfinished.as_mut().map_or(Ok(()), |out| out.write(&record))?);
        }
        self.summary.succeeded(item.elapsed);
        self.out.as_mut().map_or(Ok(()), |out| out.write(&record))?;
        let show =
            || if self.args.json { print(&format!("{}\n", record.json())) } else { print_answer(&record.block()) };
        Ok(unless_kept(worker.bar.suspend(show), self.out.is_some())?)
    }

    fn fail(&mut self, item: &mut Item, failure: &Failure, worker: &Worker<'_>) -> Result<(), Failure> {
        item.failed = true;
        let text = failure.text();
        self.summary.failed(&item.file, &text);
        let record = self.record(item, Some(&text));
        self.out.as_mut().map_or(Ok(()), |out| out.write(&record))?;
        if self.args.json {
            unless_kept(worker.bar.suspend(|| print(&format!("{}\n", record.json()))), self.out.is_some())?;
        }
        // Of several, the summary lists those that failed.
        self.exit = if self.is_single { failure.report_about(&item.file) } else { Exit::Failed };
        Ok(())
    }

    fn record<'b>(&self, item: &'b Item, error: Option<&'b str>) -> PipeRecord<'b>
    where
        Self: 'b,
    {
        PipeRecord { file: &item.file, spec: self.spec, fields: &item.fields, about: &item.about, error }
    }

    fn is_under_way(&self, item: &Item) -> bool {
        self.spec.steps.iter().any(|step| item.lacks(step))
    }

    /// What is not finished is kept only as long as there is something to continue from it.
    fn clean_up(&mut self, items: &[Item]) -> Result<(), Failure> {
        let is_needed = items.iter().any(|item| self.is_under_way(item) && item.fields.len() > 1);
        match self.unfinished.take() {
            Some(unfinished) if !is_needed => Ok(unfinished.remove()?),
            _ => Ok(()),
        }
    }
}

/// Checks that the model can be asked at all, so that a run over many files fails once and not for each.
fn require(stage: &[Step], engine: Option<&Engine>) -> Result<(), Failure> {
    for (step, engine) in stage.iter().zip(engine.into_iter().cycle()) {
        if let Task::Ask(question) = &step.task {
            let look = (!question.images.is_empty()).then(|| question.prompting.chat_options().detail);
            let required = model::require(engine, look, question.raw);
            required.map_err(|failure| failure.about(&format!("step `{}`", step.name)))?;
        }
    }
    Ok(())
}
