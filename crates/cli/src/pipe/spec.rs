//! A pipeline as its file says it, checked as far as that is possible without a model.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use clap::Parser;
use ocelli_engine::{EngineOptions, TranscribeOptions};
use serde::Deserialize;
use toml::{Table, Value};

use super::keys::{self, BadKey};
use super::template::{Jinja, Template};
use crate::arguments::{
    AskArgs, CropArgs, DeviceArgs, FindArgs, HearArgs, ModelArgs, PipeArgs, PromptArgs, SamplingArgs, StepArgs,
    TaskName,
};
use crate::exit::{Exit, Failure};
use crate::inputs::plain;

/// A pipeline.
pub(crate) struct Spec {
    /// Its file's name and a few digits that change with its steps: what results come from.
    pub(crate) source: String,
    /// Its own files, for when none are given on the command line.
    pub(crate) files: Vec<OsString>,
    /// Whether folders in them are looked into.
    pub(crate) recursive: bool,
    pub(super) steps: Vec<Step>,
}

pub(super) struct Step {
    pub(super) name: String,
    pub(super) task: Task,
    /// Runs only where this holds.
    pub(super) when: Option<Template>,
    /// Runs once for each element of this list.
    pub(super) each: Option<Each>,
    /// `None` for steps that need none.
    pub(super) model: Option<ModelChoice>,
}

/// A list that a step goes through.
pub(super) struct Each {
    /// The step that made it.
    pub(super) list: String,
    /// All lists with the same number of elements for the same reason: `list`, and what was made for each of it.
    pub(super) along: Vec<String>,
}

pub(super) enum Task {
    Ask(Question),
    Transcribe { audio: Template, prompt: Option<Template>, options: TranscribeOptions },
    Locate { boxes: bool, image: Template, thing: Template, max: usize },
    Crop { image: Template, boxes: Template, margin: f32 },
}

/// What a model is asked.
pub(super) struct Question {
    pub(super) images: Vec<Template>,
    pub(super) prompt: Option<Template>,
    pub(super) raw: bool,
    pub(super) prompting: PromptArgs,
    pub(super) sampling: Box<SamplingArgs>,
}

/// A model as a step wants it loaded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelChoice {
    pub(super) id: OsString,
    pub(super) revision: Option<String>,
    pub(super) options: EngineOptions,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    input: InputTable,
    #[serde(default)]
    step: Vec<Table>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputTable {
    #[serde(default)]
    files: Vec<String>,
    #[serde(default)]
    recursive: bool,
}

impl Spec {
    /// Reads and checks a pipeline; what its steps leave open of the device is as in `args`.
    ///
    /// # Errors
    /// Whatever is wrong with it, by step and key.
    pub(crate) fn read(args: &PipeArgs) -> Result<Self, Failure> {
        let shown = args.spec.display().to_string();
        let text = std::fs::read_to_string(&args.spec).map_err(|error| match error.kind() {
            ErrorKind::InvalidData => Failure::message(Exit::Usage, format!("{shown}: this is no TOML file"))
                .with_hint("first comes the pipeline, then the files it works on"),
            _ => Failure::from(plain(error).context(shown.clone())),
        })?;
        let name = args.spec.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&text, &name, args).map_err(|bad| {
            let failure = Failure::message(Exit::Usage, format!("{shown}: {}", bad.message));
            match bad.hint {
                Some(hint) => failure.with_hint(hint),
                None => failure,
            }
        })
    }

    fn parse(text: &str, name: &str, args: &PipeArgs) -> Result<Self, BadKey> {
        let document: Document = toml::from_str(text).map_err(|error| BadKey::new(error.to_string().trim_end()))?;
        let source = format!("{name}@{}", digits(&document.step));
        let jinja = Jinja::new();
        let mut steps: Vec<Step> = Vec::new();
        for (step_idx, table) in document.step.iter().enumerate() {
            let named = match table.get("name") {
                Some(Value::String(name)) => format!("step `{name}`"),
                _ => format!("step {}", step_idx + 1),
            };
            let later = document.step[step_idx + 1..].iter().filter_map(|table| table.get("name")?.as_str()).collect();
            let context = Before { jinja: &jinja, steps: &steps, later };
            let step = context.step(table, args);
            let step = step.map_err(|bad| BadKey { message: format!("{named}: {}", bad.message), ..bad })?;
            steps.push(step);
        }
        if steps.is_empty() {
            return Err(BadKey::new("it has no steps").with_hint("a step begins with a line [[step]]"));
        }
        let files = document.input.files.into_iter().map(OsString::from).collect();
        Ok(Self { source, files, recursive: document.input.recursive, steps })
    }

    /// Whether the files are recordings.
    pub(crate) fn hears(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.task, Task::Transcribe { .. }))
    }

    /// Whether a step names this model.
    pub(crate) fn uses(&self, model: &str) -> bool {
        self.steps.iter().any(|step| step.model.as_ref().is_some_and(|choice| choice.id == model))
    }

    /// The steps in a row that share a model, in order.
    pub(super) fn stages(&self) -> Vec<&[Step]> {
        let mut stages: Vec<&[Step]> = Vec::new();
        let (mut begin, mut model) = (0, None);
        for (step_idx, step) in self.steps.iter().enumerate() {
            if step.model.is_some() && model.is_some() && step.model.as_ref() != model {
                stages.push(&self.steps[begin..step_idx]);
                (begin, model) = (step_idx, None);
            }
            model = model.or(step.model.as_ref());
        }
        stages.push(&self.steps[begin..]);
        stages
    }
}

impl Task {
    /// As it is written.
    pub(super) fn word(&self) -> &'static str {
        let name = match self {
            Self::Ask { .. } => TaskName::Ask,
            Self::Transcribe { .. } => TaskName::Transcribe,
            Self::Locate { boxes: true, .. } => TaskName::Detect,
            Self::Locate { .. } => TaskName::Point,
            Self::Crop { .. } => TaskName::Crop,
        };
        name.word()
    }

    /// What it reads, each with the key that says so.
    pub(super) fn reads(&self) -> Vec<(&'static str, &Template)> {
        match self {
            Self::Ask(Question { images, prompt, .. }) => {
                let images = images.iter().map(|image| ("image", image));
                images.chain(prompt.iter().map(|prompt| ("prompt", prompt))).collect()
            }
            Self::Transcribe { audio, prompt, .. } => {
                [("audio", audio)].into_iter().chain(prompt.iter().map(|prompt| ("prompt", prompt))).collect()
            }
            Self::Locate { image, thing, .. } => vec![("image", image), ("thing", thing)],
            Self::Crop { image, boxes, .. } => vec![("image", image), ("boxes", boxes)],
        }
    }
}

/// What stands before a step.
struct Before<'a> {
    jinja: &'a Jinja,
    steps: &'a [Step],
    /// Names of those after it.
    later: Vec<&'a str>,
}

impl Before<'_> {
    fn step(&self, table: &Table, args: &PipeArgs) -> Result<Step, BadKey> {
        let step = match task_of(table)? {
            TaskName::Ask => self.ask(table)?,
            TaskName::Transcribe => self.transcribe(table)?,
            task @ (TaskName::Detect | TaskName::Point) => self.locate(table, task == TaskName::Detect)?,
            TaskName::Crop => self.crop(table)?,
        };
        self.check_name(&step.name)?;
        let condition = step.when.iter().map(|when| ("when", when));
        for (key, template) in step.task.reads().into_iter().chain(condition) {
            self.check_reads(key, template)?;
        }
        let model = step.model.map(|model| {
            let options = EngineOptions {
                threads: model.options.threads.or(args.threads),
                memory_limit: model.options.memory_limit.or(args.memory_limit),
                ..model.options
            };
            ModelChoice { options, ..model }
        });
        Ok(Step { model, ..step })
    }

    fn ask(&self, table: &Table) -> Result<Step, BadKey> {
        let AskArgs { step, each, image, prompt, raw, prompting, model, sampling } = read(table)?;
        sampling.options().validate().map_err(|error| BadKey::new(error.to_string()))?;
        let images = image.iter().map(|image| Template::value_or_text(image)).collect();
        let (prompt, sampling) = (prompt.map(Template::Text), Box::new(sampling));
        let question = Question { images, prompt, raw, prompting, sampling };
        self.complete(step, each, Some(chosen(&model)), Task::Ask(question))
    }

    fn transcribe(&self, table: &Table) -> Result<Step, BadKey> {
        let HearArgs { step, audio, speech } = read(table)?;
        let options = speech.options();
        options.validate().map_err(|error| BadKey::new(error.to_string()))?;
        let model = choice(&speech.model, speech.revision.as_deref(), &speech.device);
        let (audio, prompt) = (Template::value_or_text(&audio), speech.prompt.map(Template::Text));
        self.complete(step, None, Some(model), Task::Transcribe { audio, prompt, options })
    }

    fn locate(&self, table: &Table, boxes: bool) -> Result<Step, BadKey> {
        let FindArgs { step, each, image, thing, max, model } = read(table)?;
        let (image, thing, max) = (Template::value_or_text(&image), Template::Text(thing), usize::from(max));
        self.complete(step, each, Some(chosen(&model)), Task::Locate { boxes, image, thing, max })
    }

    fn crop(&self, table: &Table) -> Result<Step, BadKey> {
        let CropArgs { step, each, image, boxes, margin } = read(table)?;
        let (image, boxes) = (Template::value_or_text(&image), Template::value_or_text(&boxes));
        self.complete(step, each, None, Task::Crop { image, boxes, margin })
    }

    fn complete(
        &self,
        step: StepArgs,
        each: Option<String>,
        model: Option<ModelChoice>,
        task: Task,
    ) -> Result<Step, BadKey> {
        let each = each.map(|list| self.each(&list)).transpose()?;
        Ok(Step { name: step.name, task, when: step.when.as_deref().map(Template::expression), each, model })
    }

    fn each(&self, list: &str) -> Result<Each, BadKey> {
        // Some write it as they write other keys.
        let list = list.trim_matches(['{', '}', ' ']);
        let Some(maker) = self.steps.iter().find(|step| step.name == list) else {
            return Err(self.unknown("each", list));
        };
        let makes_list = maker.each.is_some() || !matches!(maker.task, Task::Ask(_) | Task::Transcribe { .. });
        if !makes_list {
            let hint = "steps that detect, point or crop give lists, and so do those with `each`";
            return Err(BadKey::new(format!("each is `{list}`, which is no list")).with_hint(hint));
        }
        let root = maker.each.as_ref().map_or(list, |each| each.list.as_str()).to_owned();
        let goes_along = |step: &&Step| step.name == root || step.each.as_ref().is_some_and(|each| each.list == root);
        let along = self.steps.iter().filter(goes_along).map(|step| step.name.clone()).collect();
        Ok(Each { list: root, along })
    }

    fn check_name(&self, name: &str) -> Result<(), BadKey> {
        let begins = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !begins || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(BadKey::new(format!(
                "`{name}` is no name: use letters, digits and _, such as `first_caption`"
            )));
        }
        if RESERVED.contains(&name) {
            return Err(BadKey::new(format!("`{name}` means something else: choose another name")));
        }
        if self.steps.iter().any(|step| step.name == name) {
            return Err(BadKey::new("there is another step of that name before it"));
        }
        Ok(())
    }

    /// Checks that everything read is there by then, and that files named outright exist.
    fn check_reads(&self, key: &str, template: &Template) -> Result<(), BadKey> {
        let reads = self.jinja.reads(template).map_err(|reason| BadKey::new(format!("{key}: {reason}")))?;
        for path in &reads {
            let (field, attribute) = path.split_once('.').unwrap_or((path.as_str(), ""));
            let maker = self.steps.iter().find(|step| step.name == field);
            if maker.is_none() && field != FILE {
                return Err(self.unknown(key, field));
            }
            let is_transcript = maker.is_some_and(|step| matches!(step.task, Task::Transcribe { .. }));
            if is_transcript && !attribute.is_empty() && !TRANSCRIPT.contains(&attribute) {
                let bad = BadKey::new(format!("{key} reads `{path}`, which a transcript does not have"));
                return Err(
                    bad.with_hint(format!("it has {}", TRANSCRIPT.map(|name| format!("`{field}.{name}`")).join(", ")))
                );
            }
        }
        let is_file = ["image", "audio"].contains(&key) && reads.is_empty();
        match template {
            Template::Text(path) if is_file && !Path::new(path).is_file() => {
                let bad = BadKey::new(format!("{key} is `{path}`: no such file"));
                let is_field = path == FILE || self.steps.iter().any(|step| step.name == *path);
                Err(if is_field {
                    bad.with_hint(format!("write {key} = \"{{{{ {path} }}}}\" for the field"))
                } else {
                    bad
                })
            }
            _ => Ok(()),
        }
    }

    fn unknown(&self, key: &str, field: &str) -> BadKey {
        if self.later.contains(&field) {
            let hint = format!("put step `{field}` before this one");
            return BadKey::new(format!("{key} reads `{field}`, which a later step makes")).with_hint(hint);
        }
        let known: Vec<&str> = [FILE].into_iter().chain(self.steps.iter().map(|step| step.name.as_str())).collect();
        let bad = BadKey::new(format!("{key} reads `{field}`, which nothing makes"));
        bad.with_hint(format!("there is `{}`", known.join("`, `")))
    }
}

/// The task of a step.
fn task_of(table: &Table) -> Result<TaskName, BadKey> {
    let word = match table.get("task") {
        None => return Ok(TaskName::Ask),
        Some(value) => value.as_str().unwrap_or_default(),
    };
    TaskName::ALL.into_iter().find(|task| task.word() == word).ok_or_else(|| {
        let words = TaskName::ALL.map(|task| task.word()).join(", ");
        BadKey::new(format!("`task` is `{word}`, expected one of: {words}"))
    })
}

/// The keys of a step; whoever writes a file names the model, so that it means the same everywhere.
fn read<T: Parser>(table: &Table) -> Result<T, BadKey> {
    let args: T = keys::parse(table)?;
    let needs_model = T::command().get_arguments().any(|argument| argument.get_long() == Some("model"));
    if needs_model && !table.contains_key("model") {
        return Err(
            BadKey::new("`model` is missing").with_hint("a folder, an id as `ocelli list` shows it, or \"demo\"")
        );
    }
    Ok(args)
}

fn chosen(model: &ModelArgs) -> ModelChoice {
    choice(&model.model, model.revision.as_deref(), &model.device)
}

fn choice(id: &OsString, revision: Option<&str>, device: &DeviceArgs) -> ModelChoice {
    ModelChoice { id: id.clone(), revision: revision.map(str::to_owned), options: device.options() }
}

/// Eight digits that change with the steps, and not with comments or the order of keys.
fn digits(steps: &[Table]) -> String {
    let text = serde_json::to_string(steps).unwrap_or_default();
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the field that is there from the start.
pub(super) const FILE: &str = "file";
/// Other keys of a row, and words of templates.
const RESERVED: [&str; 20] = [
    FILE, "pipe", "steps", "error", "and", "or", "not", "in", "is", "if", "else", "for", "loop", "self", "super",
    "true", "false", "none", "True", "None",
];
/// What a transcript has.
const TRANSCRIPT: [&str; 4] = ["text", "language", "duration", "segments"];
