//! One step for one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use ocelli_engine::{Answer, Engine, FinishReason, LocateRequest, TranscribeEvent, TranscribeOptions};
use ocelli_processors::ImageLimits;
use serde::Serialize;
use serde_json::{Value, json};

use super::fields::Picture;
use super::spec::{Each, Question, Step, Task};
use super::template::{Fields, Jinja, Template};
use crate::commands::transcribe::{decode, remarks};
use crate::exit::Failure;
use crate::inputs::{Input, Shown};
use crate::interrupt::Graceful;
use crate::model;
use crate::record::OneOrMany;
use crate::regions::object;
use crate::terminal::{note, printable};

/// What steps need beside the fields.
pub(super) struct Worker<'a> {
    pub(super) jinja: Jinja,
    pub(super) graceful: &'a Graceful,
    pub(super) bar: ProgressBar,
    /// Which of several stages this is, for the bar.
    pub(super) place: String,
    /// Where parts of pictures are written to.
    pub(super) crops: Option<&'a Path>,
    pub(super) verbose: bool,
}

/// What a step gave.
pub(super) struct Done {
    pub(super) value: Value,
    /// How it came to it.
    pub(super) about: Value,
    pub(super) answers: Vec<Answer>,
}

/// How a step came to its result. The fields and their names are a promise to scripts.
#[derive(Serialize)]
struct About<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    seconds: f64,
    prompt_tokens: usize,
    completion_tokens: usize,
    finish_reason: OneOrMany<FinishReason>,
    /// What the model thought before it answered; left out where it did not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasoning_content: Vec<&'a str>,
}

impl Worker<'_> {
    /// Runs a step, for each element of its list where it has one.
    ///
    /// # Errors
    /// Whatever went wrong with this file.
    pub(super) fn run(&self, step: &Step, engine: Option<&Engine>, fields: &Fields) -> Result<Done, Failure> {
        let started = Instant::now();
        let mut answers = Vec::new();
        let value = match &step.each {
            None => self.once(step, engine, fields, &mut answers, "")?,
            Some(each) => match fields.get(&each.list) {
                Some(Value::Array(elements)) => {
                    let mut values = Vec::new();
                    for element_idx in 0..elements.len() {
                        let (part, number) = (element_of(fields, each, element_idx), element_idx + 1);
                        let result = self.once(step, engine, &part, &mut answers, &format!("-{number}"));
                        let of_element = |failure: Failure| failure.about(&format!("element {number}"));
                        values.push(result.map_err(of_element)?);
                    }
                    Value::Array(values)
                }
                // The step that makes the list was left out.
                _ => Value::Null,
            },
        };
        let about = About {
            model: engine.filter(|_| step.model.is_some()).map(|engine| engine.info().label.as_str()),
            seconds: (started.elapsed().as_secs_f64() * 1e6).round() / 1e6,
            prompt_tokens: answers.iter().map(|answer| answer.prompt_tokens).sum(),
            completion_tokens: answers.iter().map(|answer| answer.completion_tokens).sum(),
            finish_reason: answers.iter().map(|answer| answer.finish_reason).collect(),
            reasoning_content: answers.iter().filter_map(|answer| answer.reasoning.as_deref()).collect(),
        };
        let about = serde_json::to_value(about)?;
        Ok(Done { value, about, answers })
    }

    /// `number` tells the elements of a list apart.
    fn once(
        &self,
        step: &Step,
        engine: Option<&Engine>,
        fields: &Fields,
        answers: &mut Vec<Answer>,
        number: &str,
    ) -> Result<Value, Failure> {
        let holds = |when: &Template| self.jinja.holds(when, fields).map_err(|reason| anyhow!("when: {reason}"));
        if !step.when.as_ref().map_or(Ok(true), holds)? {
            return Ok(Value::Null);
        }
        let asking = Asking { worker: self, fields };
        let engine = || engine.context("its model is not loaded");
        match &step.task {
            Task::Ask(question) => {
                let answer = asking.ask(question, engine()?)?;
                answers.push(answer.clone());
                self.tell(step, fields, &answer);
                Ok(Value::String(answer.text.trim().to_owned()))
            }
            Task::Transcribe { audio, prompt, options } => {
                asking.transcribe(audio, prompt.as_ref(), options, engine()?)
            }
            Task::Locate { boxes, image, thing, max } => {
                let image = asking.picture("image", image)?.decode(&ImageLimits::default())?;
                let thing = asking.text("thing", thing)?;
                let request = LocateRequest { image: image.clone(), thing, boxes: *boxes, max_regions: *max };
                let located = model::locate(engine()?, request, self.graceful)?;
                Ok(located.regions.iter().map(|region| object(region, &image)).collect())
            }
            Task::Crop { image, boxes, margin } => {
                let picture = asking.picture("image", image)?;
                let boxes = asking.value("boxes", boxes)?;
                asking.crop(&picture, &boxes, *margin, &format!("{}{number}", step.name))
            }
        }
    }

    fn tell(&self, step: &Step, fields: &Fields, answer: &Answer) {
        if self.graceful.interrupted() {
            return;
        }
        let about = format!("{}: {}", file_of(fields), step.name);
        self.bar.suspend(|| {
            if let Some(notice) = &answer.notice {
                note(&format!("notice: {about}: {notice}"));
            }
            if self.verbose {
                model::statistics(answer).iter().for_each(|line| note(&format!("{about}: {line}")));
            }
        });
    }
}

/// A step's keys over the fields of a file.
struct Asking<'a> {
    worker: &'a Worker<'a>,
    fields: &'a Fields,
}

impl Asking<'_> {
    fn value(&self, key: &str, template: &Template) -> anyhow::Result<Value> {
        self.worker.jinja.value(template, self.fields).map_err(|reason| anyhow!("{key}: {reason}"))
    }

    fn text(&self, key: &str, template: &Template) -> anyhow::Result<String> {
        self.worker.jinja.text(template, self.fields).map_err(|reason| anyhow!("{key}: {reason}"))
    }

    fn pictures(&self, key: &str, template: &Template) -> anyhow::Result<Vec<Picture>> {
        Picture::all_of(&self.value(key, template)?).with_context(|| key.to_owned())
    }

    fn picture(&self, key: &str, template: &Template) -> anyhow::Result<Picture> {
        let mut pictures = self.pictures(key, template)?;
        match pictures.len() {
            1 => Ok(pictures.remove(0)),
            count => Err(anyhow!("{key}: {count} pictures, expected one; `each` goes through a list")),
        }
    }

    fn ask(&self, question: &Question, engine: &Engine) -> Result<Answer, Failure> {
        let Question { images, prompt, raw, prompting, sampling } = question;
        let mut pictures = Vec::new();
        for template in images {
            pictures.extend(self.pictures("image", template)?);
        }
        if pictures.is_empty() && !images.is_empty() {
            return Err(anyhow!("image: there is no picture").into());
        }
        let decode = |picture: &Picture| {
            let name = (picture.file != file_of(self.fields)).then(|| picture.file.clone());
            let decoded = picture.decode(&prompting.image_limits());
            decoded.map_err(|error| name.map_or(error.to_string(), |name| format!("{name}: {error}")))
        };
        let pictures: Result<Vec<_>, String> =
            pictures.iter().map(|picture| decode(picture).map(Shown::Image)).collect();
        let pictures = pictures.map_err(|reason| anyhow!(reason))?;
        let prompt = match prompt {
            Some(prompt) => self.text("prompt", prompt)?,
            None => engine.processor().default_prompt().to_owned(),
        };
        let options = model::generate_options(sampling, Some(engine.info()))?;
        let request = model::request(&prompt, pictures, *raw, prompting.chat_options(), options);
        model::answer(engine, request, self.worker.graceful, |_| Ok(()))
    }

    fn transcribe(
        &self,
        audio: &Template,
        prompt: Option<&Template>,
        options: &TranscribeOptions,
        engine: &Engine,
    ) -> Result<Value, Failure> {
        let path = self.text("audio", audio)?;
        let prompt = prompt.map(|prompt| self.text("prompt", prompt)).transpose()?;
        let audio = decode(&Input::File(path.clone().into()), engine)?;
        let (bar, place) = (&self.worker.bar, &self.worker.place);
        bar.suspend(|| remarks(&audio).iter().for_each(|remark| note(&format!("notice: {path}: {remark}"))));
        let duration = audio.seconds();
        let transcription = engine.transcribe(audio.samples, TranscribeOptions { prompt, ..options.clone() });
        self.worker.graceful.watch(transcription.cancel_handle());
        for event in transcription {
            match event? {
                TranscribeEvent::Progress { seconds } => {
                    bar.set_message(printable(&format!("{place}{path} ({seconds:.0}/{duration:.0} s)")).into_owned())
                }
                TranscribeEvent::Done(transcript) => return Ok(serde_json::to_value(transcript)?),
                TranscribeEvent::Started { .. } | TranscribeEvent::Segment(_) => {}
            }
        }
        Err(ocelli_engine::Error::Stopped.into())
    }

    /// The parts of a picture inside boxes. `name` is the step's, and tells elements of lists apart.
    fn crop(&self, picture: &Picture, boxes: &Value, margin: f32, name: &str) -> Result<Value, Failure> {
        let image = picture.decode(&ImageLimits::default())?;
        let [left, top, ..] = picture.part.unwrap_or_default();
        let mut found = Vec::new();
        for (box_idx, edges) in boxes.as_array().into_iter().flatten().enumerate() {
            let [x_min, y_min, x_max, y_max] = with_margin(edges, margin)?;
            let pixel = |fraction: f32, side: usize| fraction * side as f32;
            let part = [
                left + pixel(x_min, image.width).floor() as usize,
                top + pixel(y_min, image.height).floor() as usize,
                left + pixel(x_max, image.width).ceil() as usize,
                top + pixel(y_max, image.height).ceil() as usize,
            ];
            let mut cut = Picture { file: picture.file.clone(), part: Some(part), path: None };
            if let Some(folder) = self.worker.crops {
                let path = crop_path(folder, file_of(self.fields), &format!("{name}-{}", box_idx + 1));
                let [width, height] = [part[2] - part[0], part[3] - part[1]];
                let [x, y] = [part[0] - left, part[1] - top];
                let png = image.crop([x, y, x + width, y + height]).to_png()?;
                std::fs::write(&path, png).with_context(|| path.display().to_string())?;
                cut.path = Some(path.to_string_lossy().into_owned());
            }
            found.push(json!(cut));
        }
        Ok(Value::Array(found))
    }
}

/// The edges of a box in fractions of the picture, with `margin` times its size added on every side.
fn with_margin(edges: &Value, margin: f32) -> anyhow::Result<[f32; 4]> {
    let edge = |name: &str| edges.get(name).and_then(Value::as_f64).map(|edge| edge as f32);
    let all = (|| Some([edge("x_min")?, edge("y_min")?, edge("x_max")?, edge("y_max")?]))();
    let [left, top, right, bottom] = all.context("boxes: these are no boxes; `detect` gives some")?;
    let (width, height) = ((right - left) * margin, (bottom - top) * margin);
    Ok([left - width, top - height, right + width, bottom + height].map(|edge| edge.clamp(0.0, 1.0)))
}

/// `street/a.jpg` and `car-1` become `street-a.jpg-car-1.png`: files of the same name in other folders stay apart.
fn crop_path(folder: &Path, file: &str, name: &str) -> PathBuf {
    let plain = |part: std::path::Component<'_>| match part {
        std::path::Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
        _ => None,
    };
    let parts: Vec<String> = Path::new(file).components().filter_map(plain).collect();
    folder.join(format!("{}-{name}.png", parts.join("-")))
}

/// The fields as one element of a list sees them.
fn element_of(fields: &Fields, each: &Each, element_idx: usize) -> Fields {
    let element = |name: &String, value: &Value| match value {
        Value::Array(values) if each.along.contains(name) => values.get(element_idx).cloned().unwrap_or_default(),
        value => value.clone(),
    };
    fields.iter().map(|(name, value)| (name.clone(), element(name, value))).collect::<BTreeMap<_, _>>()
}

fn file_of(fields: &Fields) -> &str {
    fields.get(super::spec::FILE).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_lists_of_one_origin_go_together() {
        let fields =
            [("file", json!("a")), ("car", json!([1, 2])), ("what", json!(["x", "y"])), ("other", json!([3, 4]))];
        let fields: Fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let each = Each { list: "car".into(), along: vec!["car".into(), "what".into()] };
        let second = element_of(&fields, &each, 1);
        assert_eq!((&second["car"], &second["what"], &second["other"]), (&json!(2), &json!("y"), &json!([3, 4])));
    }

    #[test]
    fn margins_end_at_the_edge() {
        let edges = json!({"x_min": 0.25, "y_min": 0.0, "x_max": 0.75, "y_max": 1.0});
        assert_eq!(with_margin(&edges, 0.5).unwrap(), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(with_margin(&edges, 0.25).unwrap(), [0.125, 0.0, 0.875, 1.0]);
        assert!(with_margin(&json!({"x": 0.5, "y": 0.5}), 0.0).unwrap_err().to_string().contains("no boxes"));
    }

    #[test]
    fn parts_of_files_of_the_same_name_stay_apart() {
        let path = |file| crop_path(Path::new("out"), file, "car-1");
        assert_eq!(path("a/x.jpg"), Path::new("out/a-x.jpg-car-1.png"));
        assert_ne!(path("a/x.jpg"), path("b/x.jpg"));
        assert_eq!(path("/../x.jpg"), Path::new("out/x.jpg-car-1.png"));
    }
}
