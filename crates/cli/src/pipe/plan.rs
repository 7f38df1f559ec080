//! What a pipeline will do, and whether its models are there and can do it: known before anything is loaded.

use ocelli_engine::{Error, ModelInfo, Task as Ability};
use ocelli_formats::ModelFiles;

use super::spec::{ModelChoice, Spec, Step, Task};
use super::template::Jinja;
use crate::exit::{Exit, Failure};
use crate::model;
use crate::terminal::{Style, bytes};

/// The models of a pipeline, as far as they are there.
pub(crate) struct Plan<'a> {
    spec: &'a Spec,
    /// For each step that needs one.
    models: Vec<Option<Result<Found, Failure>>>,
}

/// A model that can be loaded.
pub(super) struct Found {
    pub(super) files: ModelFiles,
    info: ModelInfo,
}

impl<'a> Plan<'a> {
    /// Looks for the models.
    pub(crate) fn of(spec: &'a Spec) -> Self {
        let find = |step: &Step| step.model.as_ref().map(|choice| Found::find(step, choice));
        Self { spec, models: spec.steps.iter().map(find).collect() }
    }

    /// Checks that all models are there.
    ///
    /// # Errors
    /// What is wrong with those that are not, all at once.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        // The same about several steps is said once.
        let mut failures: Vec<(String, &Failure)> = Vec::new();
        for (step, model) in self.spec.steps.iter().zip(&self.models) {
            let Some(Err(failure)) = model else { continue };
            match failures.iter_mut().find(|(_, known)| known.text() == failure.text()) {
                Some((steps, _)) => *steps += &format!(", `{}`", step.name),
                None => failures.push((format!("step `{}`", step.name), failure)),
            }
        }
        let Some((_, first)) = failures.first() else { return Ok(()) };
        let messages: Vec<String> =
            failures.iter().map(|(steps, failure)| format!("{steps}: {}", failure.text())).collect();
        let hints: Vec<&str> = failures.iter().filter_map(|(_, failure)| failure.hint()).collect();
        let failure = Failure::message(first.exit(), messages.join("; "));
        Err(if hints.is_empty() { failure } else { failure.with_hint(hints.join("; ")) })
    }

    /// The files of the model of a step.
    pub(super) fn files(&self, name: &str) -> Option<&ModelFiles> {
        let step_idx = self.spec.steps.iter().position(|step| step.name == name)?;
        Some(&self.models[step_idx].as_ref()?.as_ref().ok()?.files)
    }

    /// A line for each step.
    pub(crate) fn table(&self, style: Style) -> String {
        let jinja = Jinja::new();
        let mut rows = vec![["step", "task", "model", "weights", "reads"].map(str::to_owned)];
        for (step, found) in self.spec.steps.iter().zip(&self.models) {
            let weights = match found {
                None => "-".to_owned(),
                Some(Ok(found)) => bytes(found.info.weight_bytes),
                Some(Err(_)) => "missing".to_owned(),
            };
            let model = step.model.as_ref().map_or("-".into(), |model| model.id.to_string_lossy());
            rows.push([
                step.name.clone(),
                step.task.word().to_owned(),
                model.into_owned(),
                weights,
                reads(step, &jinja),
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..4).map(width).collect();
        let line = |row: &[String; 5]| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.chain([row[4].clone()]).collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let head = style.dim(&line(&rows[0]));
        let lines: Vec<String> = [head].into_iter().chain(rows[1..].iter().map(line)).collect();
        lines.join("\n") + "\n"
    }
}

impl Found {
    fn find(step: &Step, choice: &ModelChoice) -> Result<Self, Failure> {
        let files = model::find(&choice.id, choice.revision.as_deref())?;
        let info = ModelInfo::read_for(&files, &choice.options).map_err(|error| Failure::new(Exit::Model, error))?;
        let abilities = info.tasks();
        let model_type = info.model_type.clone();
        let refusal = match &step.task {
            Task::Transcribe { .. } if !abilities.contains(&Ability::Transcribe) => {
                Some(Error::NoHearing { model_type })
            }
            Task::Locate { .. } if !abilities.contains(&Ability::Detect) => Some(Error::NoRegions { model_type }),
            Task::Ask(question) if !question.images.is_empty() && !info.sees_images => {
                Some(Error::NoVision { model_type })
            }
            Task::Ask(_) if abilities == [Ability::Transcribe] => Some(Error::NothingToLookAt { model_type }),
            _ => None,
        };
        match refusal {
            Some(error) => Err(Failure::new(Exit::Model, error)),
            None => Ok(Self { files, info }),
        }
    }
}

/// The fields that a step reads.
fn reads(step: &Step, jinja: &Jinja) -> String {
    let templates = step.task.reads().into_iter().map(|(_, template)| template).chain(&step.when);
    let fields = templates.filter_map(|template| jinja.reads(template).ok()).flatten();
    let mut names: Vec<String> = fields.map(|path| path.split('.').next().unwrap_or_default().to_owned()).collect();
    names.sort();
    names.dedup();
    let each = step.each.as_ref().map(|each| format!(" (each of {})", each.list));
    names.join(", ") + &each.unwrap_or_default()
}
