//! Chat templates: messages to prompt text, as transformers renders them with jinja2.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use ocelli_formats::ModelFiles;
use serde_json::json;

use super::python::{strftime, tojson, write_str};
use crate::image::Detail;
use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `user`, `assistant`, `system`, or another word that the template knows.
    pub role: String,
    /// Its parts in order.
    pub content: Vec<Content>,
}

impl Message {
    /// A turn of text alone.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: vec![Content::Text(text.into())] }
    }
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text.
    Text(String),
    /// The next picture.
    Image,
    /// The next video.
    Video,
}

/// How to render a conversation.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// How closely to look at pictures.
    pub detail: Detail,
    /// Tool descriptions, as JSON schemas; `None` or an array.
    pub tools: Option<serde_json::Value>,
    /// Further template variables, such as `enable_thinking`.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// What templates that print the date print.
    pub clock: Clock,
}

impl ChatOptions {
    /// For getting an answer: generation prompt, no tools, today's date.
    pub fn answer() -> Self {
        Self {
            add_generation_prompt: true,
            detail: Detail::Auto,
            tools: None,
            variables: serde_json::Map::new(),
            clock: Clock::Now,
        }
    }
}

/// The time that `strftime_now` formats, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The machine's.
    Now,
    /// Seconds since 1970.
    At(u64),
}

/// How a template wants a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentForm {
    /// One string, placeholders included.
    Text,
    /// A list of `{"type": "text", "text": ..}` and `{"type": "image"}`.
    Parts,
}

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// Special tokens by role, such as `bos_token`.
    tokens: Arc<[(String, String)]>,
    thinks: bool,
}

impl ChatTemplate {
    /// The template of a model: `chat_template.jinja`, or the `chat_template` key of `chat_template.json`,
    /// `processor_config.json` or `tokenizer_config.json` (a string, or a list of named ones of which `default`
    /// counts). `None` when it has none. `tokens` are the special tokens by role, such as `bos_token`.
    ///
    /// # Errors
    /// [`Error::BadTemplate`], [`Error::Files`].
    pub fn load<'a>(files: &ModelFiles, tokens: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>> {
        if let Some(source) = files.text(JINJA_FILE)? {
            return Self::parse(&source, &files.label_of(JINJA_FILE), tokens).map(Some);
        }
        for name in JSON_FILES {
            let Some(value) = files.json(name)? else { continue };
            if let Some(source) = value.get("chat_template").and_then(default_template) {
                return Self::parse(source, &files.label_of(name), tokens).map(Some);
            }
        }
        Ok(None)
    }

    /// Compiles a template; `label` names it in errors. Callable on arbitrary text.
    ///
    /// # Errors
    /// [`Error::BadTemplate`].
    pub fn parse<'a>(source: &str, label: &str, tokens: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|output, _, value| {
            write_str(value, output).map_err(|_| minijinja::Error::new(ErrorKind::WriteFailure, "cannot print a value"))
        });
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_fuel(Some(MAX_FUEL));
        environment.add_filter("tojson", |value: Value, options: Kwargs| tojson(&value, options));
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| Error::BadTemplate { file: label.into(), message: described(&error) })?;
        let tokens = tokens.into_iter().map(|(name, token)| (name.to_string(), token.to_string())).collect();
        Ok(Self { environment: Arc::new(environment), tokens, thinks: source.contains("</think>") })
    }

    /// Whether answers may begin with a thought, between `<think>` and `</think>`: the template then knows the tags,
    /// since it leaves the thoughts of earlier answers out.
    pub fn thinks(&self) -> bool {
        self.thinks
    }

    /// The prompt of a conversation. `placeholder` stands for a picture where the template wants one string.
    ///
    /// # Errors
    /// [`Error::TemplateRefused`], [`Error::Template`].
    pub fn render(
        &self,
        messages: &[Message],
        form: ContentForm,
        placeholder: &str,
        options: &ChatOptions,
    ) -> Result<String> {
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .map(|message| {
                let content = match form {
                    ContentForm::Text => json!(as_text(&message.content, placeholder)),
                    ContentForm::Parts => message.content.iter().map(as_part).collect(),
                };
                json!({"role": message.role, "content": content})
            })
            .collect();
        self.render_values(&messages, options)
    }

    /// Which form of content the template understands: found by rendering one message in both. Where both work,
    /// `with_images` decides, as it does in the reference: processors pass parts, tokenizers strings.
    pub fn content_form(&self, with_images: bool) -> ContentForm {
        let works = |form| {
            let probe = [Message::text("user", PROBE)];
            let options = ChatOptions { clock: Clock::At(0), ..ChatOptions::answer() };
            // A template that prints the list itself prints the text too, but in quotes.
            let is_quoted =
                |text: &str| ['\'', '"'].iter().any(|quote| text.contains(&format!("{quote}{PROBE}{quote}")));
            self.render(&probe, form, "", &options).is_ok_and(|text| text.contains(PROBE) && !is_quoted(&text))
        };
        let order =
            if with_images { [ContentForm::Parts, ContentForm::Text] } else { [ContentForm::Text, ContentForm::Parts] };
        order.into_iter().find(|&form| works(form)).unwrap_or(order[0])
    }

    fn render_values(&self, messages: &[serde_json::Value], options: &ChatOptions) -> Result<String> {
        let now = match options.clock {
            Clock::At(seconds) => seconds,
            Clock::Now => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        };
        // The caller's variables win over the special tokens.
        let mut variables: serde_json::Map<_, _> =
            self.tokens.iter().map(|(name, token)| (name.clone(), json!(token))).collect();
        variables.extend(options.variables.clone());
        let values = context! {
            messages => Value::from_serialize(messages),
            tools => Value::from_serialize(&options.tools),
            documents => (),
            add_generation_prompt => options.add_generation_prompt,
            strftime_now => Value::from_function(move |format: String| strftime(&format, now)),
            ..Value::from_serialize(&variables)
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(values));
        rendered.map_err(|error| match refusal(&error) {
            Some(message) => Error::TemplateRefused { message },
            None => Error::Template { message: described(&error) },
        })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ChatTemplate").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// `raise_exception` was called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<Refusal>())
        .map(|refusal| refusal.0.clone())
}

/// The engine's message with its line, without its dump of variables: those are the user's.
fn described(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{}{line}", error.kind(), error.detail().map(|detail| format!(": {detail}")).unwrap_or_default())
}

fn as_text(content: &[Content], placeholder: &str) -> String {
    let mut text = String::new();
    for (index, part) in content.iter().enumerate() {
        match part {
            Content::Text(words) => text += words,
            // A processor has put words in their place.
            Content::Video => {}
            Content::Image => {
                text += placeholder;
                if index + 1 < content.len() {
                    text.push('\n');
                }
            }
        }
    }
    text
}

fn as_part(part: &Content) -> serde_json::Value {
    match part {
        Content::Text(text) => json!({"type": "text", "text": text}),
        Content::Image => json!({"type": "image"}),
        Content::Video => json!({"type": "video"}),
    }
}

/// The template in a `chat_template` value: itself, or the default of a list of named ones.
fn default_template(value: &serde_json::Value) -> Option<&str> {
    if let Some(source) = value.as_str() {
        return Some(source);
    }
    let named = |name: &str| {
        value.as_array()?.iter().find(|entry| entry.get("name").and_then(serde_json::Value::as_str) == Some(name))
    };
    named("default").or_else(|| value.as_array()?.first())?.get("template")?.as_str()
}

/// `{% generation %}` marks the assistant's words for training; it prints nothing, and the engine does not know it.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        text += before;
        text += "{%";
        rest = tag;
        let Some((inside, _)) = tag.split_once("%}") else { break };
        let word = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        text += &inside.replacen(word, replacement, 1);
        rest = &tag[inside.len()..];
    }
    text + rest
}

const JINJA_FILE: &str = "chat_template.jinja";
const JSON_FILES: [&str; 3] = ["chat_template.json", "processor_config.json", "tokenizer_config.json"];
const NAME: &str = "chat";
const PROBE: &str = "ocelli-probe";
/// Steps a template may take; a long conversation takes tens of thousands.
const MAX_FUEL: u64 = 20_000_000;
const MAX_RECURSION: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_blocks_that_print_the_same() {
        let source = "{% if a %}{%- generation -%} x {% endgeneration %}{% endif %}{% generation";
        let expected = "{% if a %}{%- if true -%} x {% endif %}{% endif %}{% generation";
        assert_eq!(without_generation_tags(source), expected);
    }

    #[test]
    fn placeholders_stand_on_their_own_line_before_text() {
        let content = [Content::Image, Content::Text("what?".into()), Content::Image];
        assert_eq!(as_text(&content, "<image>"), "<image>\nwhat?<image>");
    }

    #[test]
    fn named_templates_prefer_the_default() {
        let value = json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]);
        assert_eq!(default_template(&value), Some("b"));
        assert_eq!(default_template(&json!([{"name": "x", "template": "a"}])), Some("a"));
        assert_eq!(default_template(&json!(null)), None);
        assert_eq!(default_template(&json!([])), None);
    }
}
