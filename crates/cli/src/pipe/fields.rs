//! What steps give: texts, transcripts, places, pictures, and lists of them.

use std::path::Path;

use anyhow::{Context, bail};
use ocelli_processors::{Image, ImageLimits};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inputs::Input;
use crate::output::markdown;

/// A picture: a file, or a part of one. It is decoded whenever it is looked at, so that no pictures wait in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Picture {
    /// The file's path.
    pub(super) file: String,
    /// Left, top, right and bottom edge of the part in pixels; all of it without.
    #[serde(rename = "box")]
    pub(super) part: Option<[usize; 4]>,
    /// Where the part was written to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) path: Option<String>,
}

impl Picture {
    /// The pictures that a value stands for: a path, a part that was cut out, or a list of them.
    ///
    /// # Errors
    /// For anything else.
    pub(super) fn all_of(value: &Value) -> anyhow::Result<Vec<Self>> {
        match value {
            Value::String(file) => Ok(vec![Self { file: file.clone(), part: None, path: None }]),
            Value::Array(values) => Ok(values.iter().map(Self::all_of).collect::<anyhow::Result<Vec<_>>>()?.concat()),
            Value::Null => bail!("the step that makes the picture was left out"),
            other => Ok(vec![serde_json::from_value(other.clone()).ok().context("this is no picture")?]),
        }
    }

    /// Reads and decodes the picture.
    ///
    /// # Errors
    /// The reason, without the name.
    pub(super) fn decode(&self, limits: &ImageLimits) -> anyhow::Result<Image> {
        let image = Input::single(self.file.as_ref()).decode(limits)?;
        Ok(match self.part {
            Some(part) => image.crop(part),
            None => image,
        })
    }
}

/// A value for people: a line for each text, place or picture in it.
pub(super) fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().flat_map(lines).collect(),
        Value::Object(map) => vec![match (map.get("text"), map.get("pixels"), map.get("file")) {
            (Some(Value::String(text)), _, _) => text.trim().to_owned(),
            (_, Some(pixels), _) => numbers(pixels),
            (_, _, Some(Value::String(file))) => match map.get("path") {
                Some(Value::String(path)) => path.clone(),
                _ => format!("{file} {}", map.get("box").map(numbers).unwrap_or_default()),
            },
            _ => value.to_string(),
        }],
        other => vec![other.to_string()],
    }
}

/// A value as a cell of a Markdown table in this folder, where pictures that were written are shown.
pub(super) fn cell(value: &Value, folder: &Path) -> String {
    match value {
        Value::Array(values) => values.iter().map(|value| cell(value, folder)).collect::<Vec<_>>().join("<br>"),
        Value::Object(map) => match map.get("path") {
            Some(Value::String(path)) => markdown::picture(path, folder),
            _ => markdown::escaped(&lines(value).join("\n")),
        },
        value => markdown::escaped(&lines(value).join("\n")),
    }
}

fn numbers(value: &Value) -> String {
    let numbers: Vec<String> = value.as_array().into_iter().flatten().map(Value::to_string).collect();
    numbers.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pictures_are_paths_or_parts_of_files() {
        let part = json!({"file": "b.png", "box": [1, 2, 3, 4]});
        let found = Picture::all_of(&json!(["a.png", part])).unwrap();
        assert_eq!(found[0], Picture { file: "a.png".into(), part: None, path: None });
        assert_eq!(found[1], Picture { file: "b.png".into(), part: Some([1, 2, 3, 4]), path: None });
        assert_eq!(serde_json::to_value(&found[1]).unwrap(), part);
        for bad in [json!(5), json!({"x": 0.5}), Value::Null] {
            assert!(Picture::all_of(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn everything_can_be_shown() {
        let place = json!({"x": 0.1, "y": 0.2, "pixels": [3, 4]});
        let kept = json!({"file": "a.png", "box": [1, 2, 3, 4], "path": "crops/a b.png"});
        let all = json!(["text", {"text": " said "}, place, kept, {"file": "a.png", "box": [1, 2, 3, 4]}, null, 7]);
        assert_eq!(lines(&all), ["text", "said", "3 4", "crops/a b.png", "a.png 1 2 3 4", "7"]);
        let shown = cell(&json!([kept, "a|b"]), Path::new("crops"));
        assert_eq!(shown, "![](a%20b.png)<br>a\\|b");
    }
}
