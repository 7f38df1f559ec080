//! Which modules of a checkpoint are quantised, and how, according to its configuration.
//!
//! Only MLX affine quantisation is read: `w = q * scale + bias` for groups along the row. A module is quantised if
//! and only if the checkpoint holds `<module>.scales`; the configuration says with how many bits.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// The quantisation of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Bits per weight: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Consecutive weights of a row that share a scale and an offset: 32, 64 or 128.
    pub group_size: usize,
    /// Always `affine`; other modes are refused.
    pub mode: String,
    /// Modules that differ, by their path in the checkpoint.
    pub modules: BTreeMap<String, ModuleQuantization>,
}

/// The quantisation of one module that differs from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleQuantization {
    /// Not quantised.
    None,
    /// Quantised with other numbers.
    Affine {
        /// Bits per weight.
        bits: u32,
        /// Weights per group.
        group_size: usize,
    },
}

impl Quantization {
    /// Bits and group size of a module; `None` when the configuration says it is not quantised.
    pub fn of_module(&self, path: &str) -> Option<(u32, usize)> {
        match self.modules.get(path) {
            Some(ModuleQuantization::None) => None,
            Some(ModuleQuantization::Affine { bits, group_size }) => Some((*bits, *group_size)),
            None => Some((self.bits, self.group_size)),
        }
    }

    /// The quantisation that a model with quantised weights must state.
    pub(crate) fn of_files(files: &ModelFiles) -> Result<Self> {
        let config = files.bytes("config.json")?;
        Self::of_bytes(config.as_deref().unwrap_or(b"{}"), &files.label_of("config.json"))
    }

    /// [`Quantization::of_files`] of the bytes of a `config.json`.
    pub(crate) fn of_bytes(config: &[u8], file: &str) -> Result<Self> {
        let config = serde_json::from_slice(config).map_err(|source| Error::NotJson { file: file.into(), source })?;
        let found = match config {
            Value::Object(root) => Self::from_config(&root, file)?,
            _ => None,
        };
        let missing = || "missing, but there are quantised weights".into();
        found.ok_or_else(|| Error::Value { file: file.into(), key: "quantization".into(), message: missing() })
    }

    /// Reads `quantization` or `quantization_config` at the root or in `text_config`.
    pub(crate) fn from_config(root: &Map<String, Value>, file: &str) -> Result<Option<Self>> {
        for section in ["", "text_config"] {
            let object = if section.is_empty() { Some(root) } else { root.get(section).and_then(Value::as_object) };
            for key in ["quantization", "quantization_config"] {
                let value = object.and_then(|object| object.get(key)).filter(|value| !value.is_null());
                if let Some(value) = value {
                    let key = if section.is_empty() { key.into() } else { format!("{section}.{key}") };
                    return Reader { file, key }.read(value).map(Some);
                }
            }
        }
        Ok(None)
    }
}

/// Carries what error messages need.
struct Reader<'a> {
    file: &'a str,
    key: String,
}

impl Reader<'_> {
    fn read(&self, value: &Value) -> Result<Quantization> {
        let Value::Object(object) = value else { return Err(self.error("", "expected an object")) };
        if let Some(method) = object.get("quant_method") {
            let method = method.as_str().map_or_else(|| method.to_string(), ToString::to_string);
            return Err(self.unsupported("quant_method", method));
        }
        let mode = match object.get("mode") {
            None | Some(Value::Null) => "affine",
            Some(Value::String(mode)) => mode,
            Some(_) => return Err(self.error("mode", "expected a string")),
        };
        if mode != "affine" {
            return Err(self.unsupported("mode", mode.into()));
        }
        let (bits, group_size) = self.numbers(object, "")?;
        let mut modules = BTreeMap::new();
        for (path, value) in object {
            let module = match value {
                Value::Bool(false) => ModuleQuantization::None,
                Value::Object(module) => {
                    if let Some(other) = module.get("mode").and_then(Value::as_str).filter(|mode| *mode != "affine") {
                        return Err(self.unsupported(&format!("{path}.mode"), other.into()));
                    }
                    let (bits, group_size) = self.numbers(module, path)?;
                    ModuleQuantization::Affine { bits, group_size }
                }
                _ => continue,
            };
            modules.insert(path.clone(), module);
        }
        Ok(Quantization { bits, group_size, mode: mode.into(), modules })
    }

    fn numbers(&self, object: &Map<String, Value>, module: &str) -> Result<(u32, usize)> {
        let number = |key: &str, allowed: &[u64]| {
            let key_path = if module.is_empty() { key.into() } else { format!("{module}.{key}") };
            let value = object.get(key).ok_or_else(|| self.error(&key_path, "missing"))?;
            match value.as_u64().filter(|number| allowed.contains(number)) {
                Some(number) => Ok(number),
                None => Err(self.error(&key_path, &format!("expected one of {allowed:?}, got {value}"))),
            }
        };
        Ok((number("bits", &[2, 3, 4, 5, 6, 8])? as u32, number("group_size", &[32, 64, 128])? as usize))
    }

    fn error(&self, key: &str, message: &str) -> Error {
        Error::Value { file: self.file.into(), key: self.join(key), message: message.into() }
    }

    fn unsupported(&self, key: &str, method: String) -> Error {
        Error::UnsupportedQuantization { file: self.file.into(), key: self.join(key), method }
    }

    fn join(&self, key: &str) -> String {
        if key.is_empty() { self.key.clone() } else { format!("{}.{key}", self.key) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<Option<Quantization>> {
        Quantization::from_config(config.as_object().unwrap(), "config.json")
    }

    #[test]
    fn affine_with_overrides() {
        let modules = json!({
            "group_size": 64, "bits": 4, "mode": "affine",
            "lm_head": {"group_size": 32, "bits": 8}, "connector.proj": false, "model.norm": true,
        });
        let found = read(json!({ "quantization": modules })).unwrap().unwrap();
        assert_eq!((found.bits, found.group_size, found.mode.as_str()), (4, 64, "affine"));
        assert_eq!(found.of_module("lm_head"), Some((8, 32)));
        assert_eq!(found.of_module("connector.proj"), None);
        assert_eq!(found.of_module("model.layers.0"), Some((4, 64)));
        assert_eq!(found.modules.len(), 2);
    }

    #[test]
    fn where_it_may_stand() {
        let numbers = json!({"group_size": 32, "bits": 6});
        for config in [
            json!({ "quantization_config": numbers }),
            json!({ "quantization": null, "text_config": { "quantization": numbers } }),
        ] {
            assert_eq!(read(config).unwrap().unwrap().bits, 6);
        }
        assert_eq!(read(json!({"quantization_config": null})).unwrap(), None);
    }

    #[test]
    fn unsupported_methods_are_named() {
        let method = |config| match read(config).unwrap_err() {
            error @ Error::UnsupportedQuantization { .. } => error.to_string(),
            other => panic!("{other}"),
        };
        assert_eq!(
            method(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}})),
            "config.json: quantization_config.quant_method: quantisation method `gptq` is not supported"
        );
        assert!(method(json!({"quantization": {"mode": "mxfp4", "bits": 4, "group_size": 32}})).contains("`mxfp4`"));
        let module = json!({"bits": 4, "group_size": 32, "x": {"bits": 8, "group_size": 32, "mode": "mxfp8"}});
        assert!(method(json!({ "quantization": module })).contains("quantization.x.mode"));
    }

    #[test]
    fn malformed_numbers_are_named() {
        let message = |value: Value| read(json!({ "quantization": value })).unwrap_err().to_string();
        assert_eq!(message(json!({"bits": 4})), "config.json: quantization.group_size: missing");
        let bits = message(json!({"bits": 7, "group_size": 64}));
        assert_eq!(bits, "config.json: quantization.bits: expected one of [2, 3, 4, 5, 6, 8], got 7");
        assert_eq!(message(json!(4)), "config.json: quantization: expected an object");
        assert!(message(json!({"bits": 4, "group_size": 64, "mode": 1})).contains("quantization.mode"));
        let module = message(json!({"bits": 4, "group_size": 64, "x": {"bits": 4, "group_size": 1}}));
        assert!(module.contains("quantization.x.group_size"));
    }
}
