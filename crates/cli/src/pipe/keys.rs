//! From a TOML table to the command line it stands for, and from clap's errors to errors about keys.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use toml::{Table, Value};

use crate::arguments::{AskArgs, CropArgs, FindArgs, HearArgs, TaskName};

/// What is wrong with a table, and what can be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadKey {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl BadKey {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Reads a table as flags: `max_tokens = 5` as `--max-tokens=5`, `raw = true` as `--raw`, a list as a flag for each.
///
/// # Errors
/// Keys that do not exist, are missing, or have values that they cannot have.
pub(super) fn parse<T: Parser>(table: &Table) -> Result<T, BadKey> {
    let mut flags = Vec::new();
    for (key, value) in table {
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(BadKey::new(format!("`{key}` is no key: keys are written as in `max_tokens`")));
        }
        let flag = format!("--{}", key.replace('_', "-"));
        match value {
            Value::Boolean(true) => flags.push(flag),
            // What is off need not be said, but it must exist.
            Value::Boolean(false) if T::command().get_arguments().any(|known| known.get_long() == flag.get(2..)) => {}
            Value::Boolean(false) => flags.push(flag),
            Value::Array(values) => {
                for value in values {
                    flags.push(format!("{flag}={}", scalar(key, value)?));
                }
            }
            value => flags.push(format!("{flag}={}", scalar(key, value)?)),
        }
    }
    T::try_parse_from(flags).map_err(|error| in_keys(&error))
}

fn scalar(key: &str, value: &Value) -> Result<String, BadKey> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        _ => Err(BadKey::new(format!("`{key}` holds a {}, expected a text or a number", value.type_str()))),
    }
}

/// What clap says about flags, said about keys.
fn in_keys(error: &clap::Error) -> BadKey {
    let texts = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let of = |kind| texts(kind).first().cloned().unwrap_or_default();
    let (key, value) = (as_key(&of(ContextKind::InvalidArg)), of(ContextKind::InvalidValue));
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let bad = BadKey::new(format!("there is no key `{key}`"));
            let suggested = texts(ContextKind::SuggestedArg).first().map(|flag| as_key(flag));
            match (suggested, tasks_with(&key)) {
                (_, tasks) if !tasks.is_empty() => bad.with_hint(format!("`{key}` belongs to task = {tasks}")),
                (Some(known), _) => bad.with_hint(format!("did you mean `{known}`?")),
                _ => bad,
            }
        }
        ErrorKind::InvalidValue if value.is_empty() => BadKey::new(format!("`{key}` needs a value")),
        ErrorKind::InvalidValue => {
            let expected = texts(ContextKind::ValidValue).join(", ");
            BadKey::new(format!("`{key}` is `{value}`, expected one of: {expected}"))
        }
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            BadKey::new(format!("`{key}` is `{value}`: {reason}"))
        }
        ErrorKind::TooManyValues => BadKey::new(format!("`{key}` is `{value}`, expected true or false")),
        ErrorKind::MissingRequiredArgument => {
            let missing: Vec<String> = texts(ContextKind::InvalidArg).iter().map(|flag| as_key(flag)).collect();
            BadKey::new(format!("`{}` is missing", missing.join("`, `")))
        }
        ErrorKind::ArgumentConflict => match as_key(&of(ContextKind::PriorArg)) {
            prior if prior == key => BadKey::new(format!("`{key}` takes one value, not a list")),
            prior => BadKey::new(format!("`{key}` cannot be used together with `{prior}`")),
        },
        _ => BadKey::new(error.to_string().trim_start_matches("error: ").lines().next().unwrap_or_default()),
    }
}

/// `--max-tokens <N>` as `max_tokens`.
fn as_key(flag: &str) -> String {
    let name = flag.trim_start_matches('-');
    name.split([' ', '=', '[']).next().unwrap_or_default().replace('-', "_")
}

/// The tasks that have this key, as they are written.
fn tasks_with(key: &str) -> String {
    let has = |task: &&TaskName| {
        let command = match task {
            TaskName::Ask => AskArgs::command(),
            TaskName::Transcribe => HearArgs::command(),
            TaskName::Detect | TaskName::Point => FindArgs::command(),
            TaskName::Crop => CropArgs::command(),
        };
        command.get_arguments().any(|known| known.get_long().is_some_and(|long| as_key(long) == key))
    };
    let tasks: Vec<String> = TaskName::ALL.iter().filter(has).map(|task| format!("\"{}\"", task.word())).collect();
    tasks.join(" or ")
}

#[cfg(test)]
mod tests {
    use ocelli_processors::Detail;

    use super::*;

    fn ask(text: &str) -> Result<AskArgs, String> {
        let table: Table = toml::from_str(text).unwrap();
        parse(&table).map_err(|bad| match bad.hint {
            Some(hint) => format!("{} ({hint})", bad.message),
            None => bad.message,
        })
    }

    #[test]
    fn keys_are_flags() {
        let text = "name = \"a\"\nprompt = \"-x = 1\"\nmodel = \"m\"\nmax_tokens = 5\ntemperature = 0.5\nraw = true\n\
            model_defaults = false\nstop = [\"a\", \"b\"]\nimage = [\"{{ file }}\", \"b.png\"]\ndetail = \"high\"";
        let args = ask(text).unwrap();
        assert_eq!((args.prompt.as_deref(), args.raw, args.image.len()), (Some("-x = 1"), true, 2));
        let options = args.sampling.options();
        assert_eq!((options.max_tokens, options.temperature, options.stop.len()), (Some(5), Some(0.5), 2));
        assert!(!args.sampling.model_defaults);
        let args = ask("name = \"a\"\nmodel = \"m\"\nimage = \"{{ file }}\"\nimage_tokens = 16").unwrap();
        assert_eq!(args.prompting.chat_options().detail, Detail::AtMost(16));
    }

    #[test]
    fn what_is_wrong_is_said_in_keys() {
        let with = |line: &str| ask(&format!("name = \"a\"\nprompt = \"p\"\nmodel = \"m\"\n{line}")).unwrap_err();
        for (line, expected) in [
            ("max_token = 5", "there is no key `max_token` (did you mean `max_tokens`?)"),
            ("nothing_like_it = false", "there is no key `nothing_like_it`"),
            ("thing = \"dog\"", "there is no key `thing` (`thing` belongs to task = \"detect\" or \"point\")"),
            ("quant = \"q5\"", "`quant` is `q5`, expected one of: none, q8, q4"),
            ("max_tokens = -1", "`max_tokens` is `-1`: expected a whole number from 1"),
            ("temperature = \"warm\"", "`temperature` is `warm`: expected a number"),
            ("raw = \"yes\"", "`raw` is `yes`, expected true or false"),
            ("detail = true", "`detail` needs a value"),
            ("detail = [\"low\", \"high\"]", "`detail` takes one value, not a list"),
            ("detail = \"low\"\nimage_tokens = 9", "`detail` cannot be used together with `image_tokens`"),
            ("image_tokens = 0", "`image_tokens` is `0`: expected a whole number from 1"),
            ("seed = { a = 1 }", "`seed` holds a table, expected a text or a number"),
            ("speed = \"fast\"\nnum_beams = 2", "`num_beams` cannot be used together with `speed`"),
            ("\"a=b\" = 1", "`a=b` is no key: keys are written as in `max_tokens`"),
            ("max-tokens = 1", "`max-tokens` is no key: keys are written as in `max_tokens`"),
        ] {
            assert_eq!(with(line), expected, "{line}");
        }
        assert_eq!(ask("name = \"a\"\nmodel = \"m\"").unwrap_err(), "`prompt` is missing");
    }
}
