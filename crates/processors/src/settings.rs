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
    const NESTED: &str = "processor_config.json";
    const PLAIN: &str = "preprocessor_config.json";
    let inner = files.json(NESTED)?.and_then(|mut value| Some(value.get_mut(nested)?.take()));
    let (name, value) = match inner {
        Some(value) => (NESTED, Some(value)),
        None => (PLAIN, files.json(PLAIN)?),
    };
    let file = files.label_of(name);
    let error = |message: String| Error::Value { file: file.clone(), key: "(root)".into(), message };
    match value {
        Some(Value::Object(mut object)) => {
            object.retain(|_, value| !value.is_null());
            let settings = serde_json::from_value(object.into()).map_err(|source| error(source.to_string()))?;
            Ok((file, settings))
        }
        Some(_) => Err(error("expected an object".into())),
        None => Err(error("the file is missing".into())),
    }
}
