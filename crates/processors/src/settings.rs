//! Where a model says how its pictures and recordings are prepared.

use ocelli_formats::ModelFiles;
use serde_json::Value;

use crate::{Error, Result};

/// The settings' file and content: the `nested` object of `processor_config.json` as transformers 5 writes it, which
/// wins, or `preprocessor_config.json` as in published models. Keys that are null count as left out.
///
/// # Errors
/// [`Error::Files`]; [`Error::Value`] when there is no such file or it holds no object.
pub(crate) fn preprocessor_config(files: &ModelFiles, nested: &str) -> Result<(String, Value)> {
    const NESTED: &str = "processor_config.json";
    const PLAIN: &str = "preprocessor_config.json";
    let inner = files.json(NESTED)?.and_then(|mut value| Some(value.get_mut(nested)?.take()));
    let (name, value) = match inner {
        Some(value) => (NESTED, Some(value)),
        None => (PLAIN, files.json(PLAIN)?),
    };
    let file = files.label_of(name);
    match value {
        Some(Value::Object(mut object)) => {
            object.retain(|_, value| !value.is_null());
            Ok((file, object.into()))
        }
        Some(_) => Err(Error::Value { file, key: "(root)".into(), message: "expected an object".into() }),
        None => Err(Error::Value { file, key: "(root)".into(), message: "the file is missing".into() }),
    }
}
