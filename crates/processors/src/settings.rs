//! Where a model says how its pictures and recordings are prepared.

use ocelli_formats::ModelFiles;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// The settings' file and content: the `nested` object of `processor_config.json` as transformers 5 writes it, which
/// wins, or `preprocessor_config.json` as in published models. Keys that are null count as left out.
///
/// # Errors
/// [`Error::Files`]; [`Error::Value`] when there is no such file or it holds something else.
pub(crate) fn preprocessor_config<T: DeserializeOwned>(files: &ModelFiles, nested: &str) -> Result<(String, T)> {
    required(parsed(files, nested, PLAIN)?, files, PLAIN)
}

/// As [`preprocessor_config`]; `None` without such a file.
///
/// # Errors
/// [`Error::Files`]; [`Error::Value`] when it holds something else.
pub(crate) fn preprocessor_config_if_any<T: DeserializeOwned>(
    files: &ModelFiles,
    nested: &str,
) -> Result<Option<(String, T)>> {
    parsed(files, nested, PLAIN)
}

/// The settings for videos: as [`preprocessor_config`], with `video_preprocessor_config.json` before the file that
/// pictures have; the last tells whether there were settings of their own.
///
/// # Errors
/// As [`preprocessor_config`].
pub(crate) fn video_config<T: DeserializeOwned>(files: &ModelFiles) -> Result<(String, T, bool)> {
    let nested = files.json(NESTED)?.is_some_and(|value| value.get(VIDEO).is_some());
    let plain = files.json(PLAIN_VIDEO)?.is_some();
    let name = if plain { PLAIN_VIDEO } else { PLAIN };
    let (file, settings) = required(parsed(files, VIDEO, name)?, files, name)?;
    Ok((file, settings, nested || plain))
}

fn required<T>(found: Option<T>, files: &ModelFiles, name: &str) -> Result<T> {
    let missing =
        || Error::Value { file: files.label_of(name), key: "(root)".into(), message: "the file is missing".into() };
    found.ok_or_else(missing)
}

fn parsed<T: DeserializeOwned>(files: &ModelFiles, nested: &str, plain: &'static str) -> Result<Option<(String, T)>> {
    let inner = files.json(NESTED)?.and_then(|mut value| Some(value.get_mut(nested)?.take()));
    let (name, value) = match inner {
        Some(value) => (NESTED, Some(value)),
        None => (plain, files.json(plain)?),
    };
    let file = files.label_of(name);
    let error = |message: String| Error::Value { file: file.clone(), key: "(root)".into(), message };
    match value {
        Some(Value::Object(mut object)) => {
            object.retain(|_, value| !value.is_null());
            let settings = serde_json::from_value(object.into()).map_err(|source| error(source.to_string()))?;
            Ok(Some((file, settings)))
        }
        Some(_) => Err(error("expected an object".into())),
        None => Ok(None),
    }
}

const NESTED: &str = "processor_config.json";
const PLAIN: &str = "preprocessor_config.json";
const PLAIN_VIDEO: &str = "video_preprocessor_config.json";
const VIDEO: &str = "video_processor";
