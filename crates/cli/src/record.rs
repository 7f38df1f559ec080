//! The JSON object that `describe` and `run` print, one per picture or prompt.

use std::path::Path;

use ocelli_engine::{Answer, FinishReason, Timings};
use serde::Serialize;

use crate::output::{Row, Sheet, markdown};
use crate::terminal::word;

/// One result. The fields, their names and their order are a promise to scripts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Record {
    /// The picture's path as given, `-` for standard input; a list when there are several, nothing when there is none.
    pub(crate) image: OneOrMany<String>,
    /// What it was taken for; nothing where it could not be read.
    pub(crate) kind: OneOrMany<Kind>,
    pub(crate) model: String,
    /// What was asked; nothing where it was what the model is made for.
    pub(crate) prompt: Option<String>,
    pub(crate) text: Option<String>,
    /// What the model thought before it answered; left out where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) finish_reason: Option<FinishReason>,
    /// Width and height of the picture as given, in pixels.
    pub(crate) image_size: OneOrMany<[usize; 2]>,
    /// Width and height that the model saw.
    pub(crate) resized_to: OneOrMany<[usize; 2]>,
    pub(crate) vision_tokens: Option<usize>,
    pub(crate) prompt_tokens: Option<usize>,
    pub(crate) completion_tokens: Option<usize>,
    pub(crate) timings: Option<Timings>,
    /// Why there is no answer.
    pub(crate) error: Option<String>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Image,
    /// Several frames were looked at.
    Video,
}

/// `null`, a value, or a list of two and more.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    None(()),
    One(T),
    Many(Vec<T>),
}

impl<T> FromIterator<T> for OneOrMany<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        match items.len() {
            0 => Self::None(()),
            1 => Self::One(items.remove(0)),
            _ => Self::Many(items),
        }
    }
}

impl Record {
    /// The record of an answer.
    pub(crate) fn answered(images: &[String], model: &str, prompt: Option<&str>, answer: &Answer) -> Self {
        Self {
            image: images.iter().cloned().collect(),
            kind: answer.images.iter().map(|image| if image.frames > 1 { Kind::Video } else { Kind::Image }).collect(),
            model: model.to_owned(),
            prompt: prompt.map(str::to_owned),
            text: Some(answer.text.clone()),
            reasoning_content: answer.reasoning.clone(),
            token_ids: Some(answer.token_ids.clone()),
            finish_reason: Some(answer.finish_reason),
            image_size: answer.images.iter().map(|image| image.image_size).collect(),
            resized_to: answer.images.iter().map(|image| image.resized_to).collect(),
            vision_tokens: Some(answer.vision_tokens),
            prompt_tokens: Some(answer.prompt_tokens),
            completion_tokens: Some(answer.completion_tokens),
            timings: Some(rounded(answer.timings)),
            error: None,
        }
    }

    /// The record of a failure.
    pub(crate) fn failed(images: &[String], model: &str, prompt: Option<&str>, error: &str) -> Self {
        Self {
            image: images.iter().cloned().collect(),
            kind: OneOrMany::None(()),
            model: model.to_owned(),
            prompt: prompt.map(str::to_owned),
            text: None,
            reasoning_content: None,
            token_ids: None,
            finish_reason: None,
            image_size: OneOrMany::None(()),
            resized_to: OneOrMany::None(()),
            vision_tokens: None,
            prompt_tokens: None,
            completion_tokens: None,
            timings: None,
            error: Some(error.to_owned()),
        }
    }

    /// What the files of `describe --out` tell.
    pub(crate) fn sheet() -> Sheet {
        Sheet {
            subject: "image",
            source: "model",
            question: Some("prompt"),
            csv: CSV.split(',').map(str::to_owned).collect(),
            markdown: vec!["text".to_owned()],
            has_pictures: true,
        }
    }

    /// The object on one line, without its end.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a record holds nothing that JSON cannot hold")
    }

    /// The picture's name, where there is one.
    pub(crate) fn image_name(&self) -> &str {
        match &self.image {
            OneOrMany::One(name) => name,
            _ => "",
        }
    }
}

impl Row for Record {
    fn subject(&self) -> &str {
        self.image_name()
    }

    fn source(&self) -> &str {
        &self.model
    }

    fn question(&self) -> &str {
        self.prompt.as_deref().unwrap_or_default()
    }

    fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn json(&self) -> String {
        self.to_json()
    }

    fn csv(&self) -> Vec<String> {
        let count = |value: Option<usize>| value.map(|value| value.to_string()).unwrap_or_default();
        let timings = self.timings.map(|t| {
            [t.preprocess_ms, t.vision_ms, t.prefill_ms, t.decode_ms, t.ttft_ms, t.tokens_per_second]
                .map(|value| format!("{value:.3}"))
        });
        let kind = if let OneOrMany::One(kind) = self.kind { word(kind) } else { String::new() };
        let mut fields = vec![
            kind,
            self.text.clone().unwrap_or_default(),
            self.finish_reason.map(word).unwrap_or_default(),
            size(&self.image_size),
            size(&self.resized_to),
            count(self.vision_tokens),
            count(self.prompt_tokens),
            count(self.completion_tokens),
        ];
        fields.extend(timings.unwrap_or_default());
        fields
    }

    fn markdown(&self, _folder: &Path) -> Vec<String> {
        vec![markdown::escaped(self.text.as_deref().unwrap_or_default())]
    }
}

fn size(size: &OneOrMany<[usize; 2]>) -> String {
    match size {
        OneOrMany::One([width, height]) => format!("{width}x{height}"),
        _ => String::new(),
    }
}

/// To the microsecond: more digits are noise.
fn rounded(timings: Timings) -> Timings {
    let round = |value: f64| (value * 1e3).round() / 1e3;
    Timings {
        load_ms: round(timings.load_ms),
        preprocess_ms: round(timings.preprocess_ms),
        vision_ms: round(timings.vision_ms),
        prefill_ms: round(timings.prefill_ms),
        decode_ms: round(timings.decode_ms),
        ttft_ms: round(timings.ttft_ms),
        tokens_per_second: round(timings.tokens_per_second),
    }
}

/// The columns between the prompt and the error.
const CSV: &str = "kind,text,finish_reason,image_size,resized_to,vision_tokens,prompt_tokens,completion_tokens,\
    preprocess_ms,vision_ms,prefill_ms,decode_ms,ttft_ms,tokens_per_second";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_its_image_its_model_and_its_error_only() {
        let record = Record::failed(&["a.png".into()], "demo", None, "no such file");
        assert_eq!(
            record.to_json(),
            r#"{"image":"a.png","kind":null,"model":"demo","prompt":null,"text":null,"token_ids":null,"finish_reason":null,"image_size":null,"resized_to":null,"vision_tokens":null,"prompt_tokens":null,"completion_tokens":null,"timings":null,"error":"no such file"}"#
        );
    }

    #[test]
    fn several_pictures_are_a_list() {
        let record = Record::failed(&["a".into(), "b".into()], "m", None, "e");
        assert!(record.to_json().starts_with(r#"{"image":["a","b"],"#));
        assert!(Record::failed(&[], "m", None, "e").to_json().starts_with(r#"{"image":null,"#));
    }
}
