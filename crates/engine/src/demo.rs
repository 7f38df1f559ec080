//! The model that is built in, and its held-out set: synthetic scenes with questions whose answers are known.
//!
//! `tools/demo` made all of it. The scenes lie in one picture, `heldout.png`, [`COLUMNS`] to a row and [`SIDE`] pixels
//! wide and high; line n of `heldout.jsonl` holds the questions about scene n. None of them was trained on.

use std::collections::BTreeMap;
use std::fmt;

use ocelli_formats::ModelFiles;
use ocelli_processors::{Image, ImageLimits, decode_image};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::options::GenerateOptions;
use crate::request::Request;

/// Scenes in a row of the held-out picture.
pub const COLUMNS: usize = 25;
/// Width and height of a scene in pixels.
pub const SIDE: usize = 128;

/// The files of the built-in model.
pub fn files() -> ModelFiles {
    ModelFiles::embedded("demo", FILES)
}

/// A scene of the held-out set.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The picture.
    pub image: Image,
    /// What is asked about it.
    pub questions: Vec<Question>,
}

/// A question with a known answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Question {
    /// What is asked for: `describe`, `shapes`, `count`, `color`, `background`, `read`, `read_none` or `position`.
    pub kind: String,
    /// The question.
    pub question: String,
    /// The only answer that counts as right.
    pub answer: String,
}

/// How often the answers were right.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Accuracy {
    /// By kind of question.
    pub by_kind: BTreeMap<String, Tally>,
    /// All questions together.
    pub total: Tally,
    /// Some wrong answers, for a look.
    pub mistakes: Vec<Mistake>,
}

/// Right answers among all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Answers that are exactly right, but for space around them.
    pub right: usize,
    /// All answers.
    pub asked: usize,
}

/// A wrong answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Number of the scene.
    pub scene: usize,
    /// The question.
    pub question: String,
    /// The right answer.
    pub expected: String,
    /// The model's.
    pub answer: String,
}

/// The held-out scenes, the first `limit` of them.
///
/// # Errors
/// [`Error::Reference`] when picture and questions do not fit together.
pub fn scenes(limit: Option<usize>) -> Result<Vec<Scene>> {
    let sheet = decode_image(HELDOUT_PICTURE, &ImageLimits::default())?;
    let mut scenes = Vec::new();
    for (idx, line) in HELDOUT_QUESTIONS.lines().take(limit.unwrap_or(usize::MAX)).enumerate() {
        let line: Line = serde_json::from_str(line).map_err(|error| bad(&format!("line {}: {error}", idx + 1)))?;
        let image = cut(&sheet, line.index).ok_or_else(|| bad(&format!("there is no scene {}", line.index)))?;
        scenes.push(Scene { image, questions: line.questions });
    }
    Ok(scenes)
}

/// Asks every question about the first `limit` scenes (all without one) and counts right answers; `progress` hears
/// how many scenes are done, and of how many.
///
/// # Errors
/// Whatever keeps the engine from answering.
pub fn evaluate(
    engine: &Engine,
    options: &GenerateOptions,
    limit: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Accuracy> {
    let scenes = scenes(limit)?;
    let mut accuracy = Accuracy::default();
    for (scene_idx, scene) in scenes.iter().enumerate() {
        for question in &scene.questions {
            let request = Request::question(&question.question, vec![scene.image.clone()], options.clone());
            accuracy.count(scene_idx, question, engine.answer(request)?.text.trim());
        }
        progress(scene_idx + 1, scenes.len());
    }
    Ok(accuracy)
}

impl Accuracy {
    fn count(&mut self, scene: usize, question: &Question, answer: &str) {
        let is_right = answer == question.answer.trim();
        for tally in [&mut self.total, self.by_kind.entry(question.kind.clone()).or_default()] {
            tally.asked += 1;
            tally.right += usize::from(is_right);
        }
        if !is_right && self.mistakes.len() < MOST_MISTAKES {
            let (expected, answer) = (question.answer.clone(), answer.to_owned());
            self.mistakes.push(Mistake { scene, question: question.question.clone(), expected, answer });
        }
    }
}

impl Tally {
    /// Right answers over all answers.
    pub fn share(&self) -> f64 {
        if self.asked == 0 { 0.0 } else { self.right as f64 / self.asked as f64 }
    }
}

impl fmt::Display for Accuracy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |kind: &str, tally: &Tally| {
            writeln!(formatter, "{kind:<12} {:>5}/{:<5} {:>6.1} %", tally.right, tally.asked, 100.0 * tally.share())
        };
        for (kind, tally) in &self.by_kind {
            line(kind, tally)?;
        }
        line("all", &self.total)
    }
}

/// A line of `heldout.jsonl`.
#[derive(Deserialize)]
struct Line {
    index: usize,
    questions: Vec<Question>,
}

/// Scene `index` of the sheet.
fn cut(sheet: &Image, index: usize) -> Option<Image> {
    let (left, top) = (index % COLUMNS * SIDE, index / COLUMNS * SIDE);
    let rows = (top..top + SIDE).map(|y| {
        let start = (y * sheet.width + left) * 3;
        sheet.pixels.get(start..start + SIDE * 3)
    });
    let pixels = rows.collect::<Option<Vec<_>>>()?.concat();
    (left + SIDE <= sheet.width).then(|| Image::new(SIDE, SIDE, pixels))
}

fn bad(reason: &str) -> Error {
    Error::Reference { path: "heldout.jsonl".into(), reason: reason.to_owned() }
}

const MOST_MISTAKES: usize = 20;

const HELDOUT_PICTURE: &[u8] = include_bytes!("../../../assets/demo/heldout.png");
const HELDOUT_QUESTIONS: &str = include_str!("../../../assets/demo/heldout.jsonl");

const FILES: &[(&str, &[u8])] = &[
    ("chat_template.jinja", include_bytes!("../../../assets/demo/chat_template.jinja")),
    ("config.json", include_bytes!("../../../assets/demo/config.json")),
    ("generation_config.json", include_bytes!("../../../assets/demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../../../assets/demo/model.safetensors")),
    ("preprocessor_config.json", include_bytes!("../../../assets/demo/preprocessor_config.json")),
    ("processor_config.json", include_bytes!("../../../assets/demo/processor_config.json")),
    ("tokenizer.json", include_bytes!("../../../assets/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../assets/demo/tokenizer_config.json")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scene_has_a_picture_and_questions() {
        let scenes = scenes(None).unwrap();
        assert_eq!(scenes.len(), 500);
        assert!(scenes.iter().all(|scene| !scene.questions.is_empty() && scene.image.width == SIDE));
        assert_ne!(scenes[0].image, scenes[499].image);
    }

    #[test]
    fn answers_count_when_they_are_exact() {
        let question = Question { kind: "count".into(), question: "How many?".into(), answer: "Two.".into() };
        let mut accuracy = Accuracy::default();
        accuracy.count(0, &question, "Two.");
        accuracy.count(1, &question, "two");
        assert_eq!(accuracy.by_kind["count"], Tally { right: 1, asked: 2 });
        assert_eq!(accuracy.mistakes.len(), 1);
        assert_eq!(accuracy.to_string(), "count            1/2       50.0 %\nall              1/2       50.0 %\n");
    }
}
