//! What a step reads: Jinja templates and expressions over the fields before it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, escape_formatter};
use serde_json::Value as Json;

/// What earlier steps gave, by their names.
pub(crate) type Fields = BTreeMap<String, Json>;

/// Renders templates; a field that does not exist is an error, one that a `when` left out is empty.
pub(super) struct Jinja(Environment<'static>);

/// A template whose result is a text, or an expression whose result is a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Template {
    Text(String),
    Expression(String),
}

impl Jinja {
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_fuel(Some(MAX_FUEL));
        environment.set_formatter(|out, state, value| match value.is_none() {
            true => Ok(()),
            false => escape_formatter(out, state, value),
        });
        Self(environment)
    }

    /// The fields that a template reads, with their attributes: `file`, `talk.language`.
    ///
    /// # Errors
    /// Where the template is malformed.
    pub(super) fn reads(&self, template: &Template) -> Result<BTreeSet<String>, String> {
        let names = match template {
            Template::Text(source) => {
                let parsed = self.0.template_from_str(source).map_err(|error| described(&error))?;
                parsed.undeclared_variables(true)
            }
            Template::Expression(source) => {
                let parsed = self.0.compile_expression(source).map_err(|error| described(&error))?;
                parsed.undeclared_variables(true)
            }
        };
        let is_function = |name: &String| self.0.globals().any(|(known, _)| known == name);
        Ok(names.into_iter().filter(|name| !is_function(name)).collect())
    }

    /// # Errors
    /// What the fields do not have, or what cannot be done with them.
    pub(super) fn value(&self, template: &Template, fields: &Fields) -> Result<Json, String> {
        let context: BTreeMap<&str, Value> =
            fields.iter().map(|(name, value)| (name.as_str(), in_templates(value))).collect();
        let rendered = match template {
            Template::Text(source) => self.0.render_str(source, context).map(Json::String),
            Template::Expression(source) => self
                .0
                .compile_expression(source)
                .and_then(|expression| expression.eval(context))
                .map(|value| serde_json::to_value(value).unwrap_or_default()),
        };
        rendered.map_err(|error| described(&error))
    }

    /// # Errors
    /// As [`Jinja::value`].
    pub(super) fn text(&self, template: &Template, fields: &Fields) -> Result<String, String> {
        Ok(match self.value(template, fields)? {
            Json::String(text) => text,
            other => other.to_string(),
        })
    }

    /// # Errors
    /// As [`Jinja::value`].
    pub(super) fn holds(&self, template: &Template, fields: &Fields) -> Result<bool, String> {
        Ok(Value::from_serialize(self.value(template, fields)?).is_true())
    }
}

impl Template {
    /// `{{ field }}` and nothing else is that field as it is (a picture, a list), anything else a text.
    pub(super) fn value_or_text(source: &str) -> Self {
        let inner = source.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        match inner.filter(|inner| !["{{", "}}", "{%"].iter().any(|mark| inner.contains(mark))) {
            Some(expression) => Self::Expression(expression.trim_matches(['-', '+', ' ']).to_owned()),
            None => Self::Text(source.to_owned()),
        }
    }

    /// An expression, in braces or without.
    pub(super) fn expression(source: &str) -> Self {
        match Self::value_or_text(source) {
            Self::Text(source) => Self::Expression(source),
            expression => expression,
        }
    }
}

/// A transcript in a template: its text where it is printed, and everything else by name.
#[derive(Debug)]
struct Spoken(BTreeMap<String, Value>);

impl Object for Spoken {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(|key| Value::from(key.as_str())).collect())
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.get("text").map(Value::to_string).unwrap_or_default();
        out.write_str(text.trim())
    }
}

fn in_templates(value: &Json) -> Value {
    match value {
        Json::Object(map) if map.contains_key("text") => {
            Value::from_object(Spoken(map.iter().map(|(key, value)| (key.clone(), in_templates(value))).collect()))
        }
        Json::Array(values) => values.iter().map(in_templates).collect(),
        value => Value::from_serialize(value),
    }
}

fn described(error: &minijinja::Error) -> String {
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::UndefinedError, None) => "it reads something that is not there".to_owned(),
        (ErrorKind::OutOfFuel, _) => "it takes too long".to_owned(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) if line > 1 => format!("{reason} (line {line})"),
        _ => reason,
    }
}

/// Far more than prompts need, and little enough for any stack.
const MAX_RECURSION: usize = 100;
/// Instructions; long transcripts that are looped over word by word take a few millions.
const MAX_FUEL: u64 = 50_000_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields() -> Fields {
        let talk = json!({"text": " Good morning. ", "language": "en", "segments": [{"start": 0.0, "text": " Good"}]});
        let fields = [("file", json!("a.png")), ("talk", talk), ("skipped", Json::Null), ("list", json!(["x", "y"]))];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn text(source: &str) -> Result<String, String> {
        Jinja::new().text(&Template::Text(source.into()), &fields())
    }

    #[test]
    fn fields_are_texts_with_attributes() {
        assert_eq!(text("{{ talk }} ({{ talk.language }})").unwrap(), "Good morning. (en)");
        assert_eq!(text("{% for part in talk.segments %}{{ part.start }}{{ part }}{% endfor %}").unwrap(), "0.0Good");
        assert_eq!(text("[{{ skipped }}] {{ list | join(', ') }}").unwrap(), "[] x, y");
        assert_eq!(text("<{{ file }}> & 'so'").unwrap(), "<a.png> & 'so'", "nothing is escaped");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(text("{{ talk.langage }}").unwrap_err(), "it reads something that is not there");
        assert_eq!(text("\n\n{{ nobody }}").unwrap_err(), "it reads something that is not there (line 3)");
        assert!(text("{{ talk").unwrap_err().starts_with("unexpected end of input"));
        assert_eq!(
            text("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}").unwrap_err(),
            "it takes too long"
        );
    }

    #[test]
    fn one_field_alone_is_a_value() {
        let (jinja, fields) = (Jinja::new(), fields());
        let value = |source: &str| jinja.value(&Template::value_or_text(source), &fields).unwrap();
        assert_eq!(value(" {{ list }} "), json!(["x", "y"]));
        assert_eq!(value("{{ list[1] }}"), json!("y"));
        assert_eq!(value("{{ file }}.txt"), json!("a.png.txt"));
        assert_eq!(value("{{ file }}{{ file }}"), json!("a.pnga.png"));
        assert_eq!(value("plain.png"), json!("plain.png"));
        let holds = |source: &str| jinja.holds(&Template::expression(source), &fields).unwrap();
        assert!(holds("list | length > 1") && holds("{{ list }}") && !holds("skipped") && !holds("'z' in list"));
    }

    #[test]
    fn what_is_read_is_known_before() {
        let jinja = Jinja::new();
        let reads = |source: &str| jinja.reads(&Template::Text(source.into()));
        let expected: BTreeSet<String> = ["file", "talk.language"].map(str::to_owned).into();
        assert_eq!(reads("{{ file }}{% for i in range(3) %}{{ i }}{{ talk.language }}{% endfor %}").unwrap(), expected);
        assert!(reads("{% if %}").is_err());
    }
}
