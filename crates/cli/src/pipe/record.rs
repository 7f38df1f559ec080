//! What a pipeline found out about one file: the row of `--out`, and the JSON object.

use std::collections::BTreeMap;
use std::path::Path;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::fields::{cell, lines};
use super::spec::Spec;
use super::template::Fields;
use crate::output::{Row, Sheet};
use crate::terminal::one_line;

/// One row. It begins with the file, then come the results in the order of the steps.
pub(crate) struct PipeRecord<'a> {
    pub(super) file: &'a str,
    pub(super) spec: &'a Spec,
    /// What steps gave; those that were not reached are not there.
    pub(super) fields: &'a Fields,
    /// How they came to it.
    pub(super) about: &'a BTreeMap<String, Value>,
    /// Why steps were not reached.
    pub(super) error: Option<&'a str>,
}

impl PipeRecord<'_> {
    /// What the files of this pipeline's `--out` tell.
    pub(crate) fn sheet(spec: &Spec) -> Sheet {
        let names: Vec<String> = spec.steps.iter().map(|step| step.name.clone()).collect();
        let has_pictures = !spec.hears();
        Sheet { subject: "file", source: "pipe", question: None, csv: names.clone(), markdown: names, has_pictures }
    }

    /// What steps gave according to a row of JSON, and how they came to it.
    pub(crate) fn read(spec: &Spec, row: &str) -> (Fields, BTreeMap<String, Value>) {
        let row: BTreeMap<String, Value> = serde_json::from_str(row).unwrap_or_default();
        let given = |step: &str| Some((step.to_owned(), row.get(step)?.clone()));
        let fields = spec.steps.iter().filter_map(|step| given(&step.name)).collect();
        let about = row.get("steps").and_then(Value::as_object).cloned().unwrap_or_default();
        (fields, about.into_iter().collect())
    }

    /// The file and every result, for people.
    pub(crate) fn block(&self) -> String {
        let width = self.spec.steps.iter().map(|step| step.name.len()).max().unwrap_or_default();
        let mut text = format!("{}\n", self.file);
        for step in &self.spec.steps {
            let Some(value) = self.fields.get(&step.name) else { continue };
            let mut name = step.name.as_str();
            for line in lines(value) {
                text += &format!("  {name:<width$}  {}\n", one_line(&line));
                name = "";
            }
        }
        text
    }

    fn values(&self) -> impl Iterator<Item = &Value> {
        self.spec.steps.iter().map(|step| self.fields.get(&step.name).unwrap_or(&Value::Null))
    }
}

impl Serialize for PipeRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("file", self.file)?;
        map.serialize_entry("pipe", &self.spec.source)?;
        for (name, value) in self.spec.steps.iter().filter_map(|step| self.fields.get_key_value(&step.name)) {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("steps", self.about)?;
        map.serialize_entry("error", &self.error)?;
        map.end()
    }
}

impl Row for PipeRecord<'_> {
    fn subject(&self) -> &str {
        self.file
    }

    fn source(&self) -> &str {
        &self.spec.source
    }

    fn error(&self) -> Option<&str> {
        self.error
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a record holds nothing that JSON cannot hold")
    }

    fn csv(&self) -> Vec<String> {
        self.values().map(|value| lines(value).join("\n")).collect()
    }

    fn markdown(&self, folder: &Path) -> Vec<String> {
        self.values().map(|value| cell(value, folder)).collect()
    }
}
