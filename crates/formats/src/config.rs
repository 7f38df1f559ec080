//! `config.json` in canonical form, whatever wrote it; see `canonical` for what that means.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::canonical::canonicalise;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::quantization::Quantization;

/// A model's configuration in canonical form.
#[derive(Clone, Debug)]
pub struct Config {
    root: Section,
    model_type: String,
    quantization: Option<Quantization>,
}

/// One object of the configuration: the whole of it, or a nested one such as `text_config`.
#[derive(Clone, Debug)]
pub struct Section {
    file: String,
    path: String,
    value: Value,
}

impl Config {
    /// Reads and canonicalises the bytes of a `config.json`; `label` names the file in errors. Callable on arbitrary
    /// bytes.
    ///
    /// # Errors
    /// [`Error::NotJson`]; [`Error::Value`] when it is no object, lacks `model_type`, has malformed rope or quantisation
    /// settings or a size beyond all models; [`Error::UnsupportedQuantization`] naming the method.
    pub fn parse(json: &[u8], label: &str) -> Result<Self> {
        let file = label.to_string();
        let value: Value =
            serde_json::from_slice(json).map_err(|source| Error::NotJson { file: file.clone(), source })?;
        let Value::Object(mut object) = value else {
            return Err(Error::Value { file, key: "(root)".into(), message: "expected an object".into() });
        };
        canonicalise(&mut object);
        check_sizes(&file, "", &object)?;
        let quantization = Quantization::from_config(&object, label)?;
        let root = Section { file, path: String::new(), value: Value::Object(object) };
        let model_type = root.string("model_type")?.ok_or_else(|| root.error("model_type", "missing"))?.to_string();
        Ok(Self { root, model_type, quantization })
    }

    /// Reads `config.json` of a model.
    ///
    /// # Errors
    /// [`Error::MissingConfig`] without one, otherwise as [`Config::parse`].
    pub fn load(files: &ModelFiles) -> Result<Self> {
        match files.bytes("config.json")? {
            Some(bytes) => Self::parse(&bytes, &files.label_of("config.json")),
            None => Err(Error::MissingConfig { label: files.label().into(), found: files.names()? }),
        }
    }

    /// The family, such as `idefics3`.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// The reference implementation's class names; often one, sometimes none.
    pub fn architectures(&self) -> Vec<&str> {
        let names = self.root.get("architectures").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The element type the weights were saved in, such as `bfloat16`.
    pub fn torch_dtype(&self) -> Option<&str> {
        self.root.get("torch_dtype").and_then(Value::as_str)
    }

    /// How the weights are quantised, if they are.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The whole configuration.
    pub fn root(&self) -> &Section {
        &self.root
    }

    /// A nested object, such as `text_config` or, with a dot, `vision_config.rope_scaling`.
    pub fn section(&self, path: &str) -> Option<Section> {
        let value = path.split('.').try_fold(&self.root.value, |value, key| value.get(key))?;
        value.is_object().then(|| Section { file: self.root.file.clone(), path: path.into(), value: value.clone() })
    }
}

impl Section {
    /// Reads the section into a family's own struct. Keys the struct does not know are ignored.
    ///
    /// # Errors
    /// [`Error::Value`] naming file and key: `config.json: text_config.hidden_size: invalid type: string "64",
    /// expected usize`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_path_to_error::deserialize(&self.value).map_err(|error| {
            let (at, message) = (error.path().to_string(), error.inner().to_string());
            // serde reports a missing field at the object that lacks it.
            match message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
                Some(field) if at == "." => self.error(field, "missing"),
                Some(field) => self.error(&format!("{at}.{field}"), "missing"),
                None => self.error(if at == "." { "" } else { &at }, &message),
            }
        })
    }

    /// Dotted path from the root; empty for the root itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A value of the section; `None` also when it is null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// The section as JSON.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// A text of the section; `None` when missing or null.
    ///
    /// # Errors
    /// [`Error::Value`] when it is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, &format!("expected a string, got {other}"))),
        }
    }

    /// An error about a key of this section, for values that parse but are not supported.
    pub fn error(&self, key: &str, message: &str) -> Error {
        let dot = if self.path.is_empty() || key.is_empty() { "" } else { "." };
        let key = format!("{}{dot}{key}", self.path);
        let key = if key.is_empty() { "(root)".into() } else { key };
        Error::Value { file: self.file.clone(), key, message: message.into() }
    }
}

/// Refuses what is larger than in any model: such a number would have tables made of it before a tensor's shape shows that
/// it is wrong.
fn check_sizes(file: &str, path: &str, object: &Map<String, Value>) -> Result<()> {
    for (key, value) in object {
        let key_path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Value::Object(inner) = value {
            check_sizes(file, &key_path, inner)?;
        }
        let limit = MOST.iter().find(|(part, _)| key.contains(part)).map(|&(_, limit)| limit);
        if let (Some(found), Some(limit)) = (value.as_u64(), limit)
            && found > limit
        {
            let message = format!("{found} is more than any model has (at most {limit} is read)");
            return Err(Error::Value { file: file.into(), key: key_path, message });
        }
    }
    Ok(())
}

/// Parts of keys, the first that fits, and the most they may say.
const MOST: [(&str, u64); 11] = [
    ("layers", 4096),
    ("depth", 4096),
    ("vocab", 1 << 24),
    ("image_size", 1 << 14),
    ("crop_size", 1 << 14),
    ("heads", 1 << 16),
    ("experts", 1 << 16),
    ("size", 1 << 20),
    ("dim", 1 << 20),
    ("width", 1 << 20),
    ("d_model", 1 << 20),
];
