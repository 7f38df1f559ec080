//! Which files of a repository a model needs.
//!
//! Everything small that describes it (configuration, tokenizer, templates, processors) and one set of safetensors.
//! Never code, and never the copies of the weights in other formats, which can multiply the download.

use ocelli_formats::PARTS;

use super::error::{HubError, Result};

/// A file in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Path within the repository.
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// What the content hashes to; also the name of its blob.
    pub(super) hash: Option<Hash>,
}

/// The hub's name for a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    /// SHA-256 of the content (large files).
    Sha256(String),
    /// Git's object id: SHA-1 of `blob <length>\0<content>` (small files).
    Git(String),
    /// Something else that names the content but cannot be verified (some mirrors).
    Opaque(String),
}

impl Hash {
    /// Interprets an ETag; `None` when it could not be a file name.
    pub(super) fn from_etag(etag: &str) -> Option<Self> {
        let text = etag.trim().trim_start_matches("W/").trim_matches('"').to_string();
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text.to_lowercase())),
            40 if is_hex => Some(Self::Git(text.to_lowercase())),
            1..=128 if is_name => Some(Self::Opaque(text)),
            _ => None,
        }
    }

    /// The blob's file name.
    pub(super) fn name(&self) -> &str {
        let (Self::Sha256(name) | Self::Git(name) | Self::Opaque(name)) = self;
        name
    }
}

/// The files to download, small ones first, so that a wrong choice of model shows before the gigabytes.
pub(super) fn needed<F: HasName>(id: &str, files: Vec<F>) -> Result<Vec<F>> {
    let names: Vec<String> = files.iter().map(|file| file.name().to_string()).collect();
    let (weights, others): (Vec<F>, Vec<F>) =
        files.into_iter().filter(|file| is_safe(file.name())).partition(|file| file.name().ends_with(".safetensors"));
    let weights = chosen_weights(weights);
    if weights.is_empty() {
        let found = names.into_iter().filter(|name| is_other_weight(name)).take(4).collect();
        return Err(HubError::NoWeights { id: id.into(), found });
    }
    let mut needed: Vec<F> = others.into_iter().filter(|file| describes(file.name())).collect();
    needed.extend(weights);
    Ok(needed)
}

/// The files of these names; all of them must be there.
pub(super) fn only<F: HasName>(id: &str, files: Vec<F>, names: &[&str]) -> Result<Vec<F>> {
    let chosen: Vec<F> = files.into_iter().filter(|file| names.contains(&file.name())).collect();
    match names.iter().find(|name| !chosen.iter().any(|file| file.name() == **name)) {
        Some(name) => Err(HubError::NoFile { id: id.into(), file: (*name).into() }),
        None => Ok(chosen),
    }
}

/// Anything with a path in a repository.
pub(super) trait HasName {
    /// The path.
    fn name(&self) -> &str;
}

/// The one file, else the shards, else whatever else is at the top level.
fn chosen_weights<F: HasName>(weights: Vec<F>) -> Vec<F> {
    let at_top: Vec<F> = weights.into_iter().filter(|file| !file.name().contains('/')).collect();
    let is_single = |file: &F| file.name() == "model.safetensors";
    let is_shard = |file: &F| file.name().starts_with("model-");
    if at_top.iter().any(is_single) {
        at_top.into_iter().filter(is_single).collect()
    } else if at_top.iter().any(is_shard) {
        at_top.into_iter().filter(is_shard).collect()
    } else {
        at_top.into_iter().filter(|file| !file.name().starts_with("adapter_")).collect()
    }
}

/// Configuration, tokenizer, templates and processors, by their ending; indexes only of safetensors.
fn describes(name: &str) -> bool {
    let endings = [".json", ".jinja", ".txt", ".model", ".tiktoken"];
    let in_folder = name.split_once('/').is_some_and(|(folder, _)| !PARTS.contains(&folder));
    let other_index = name.ends_with(".index.json") && !name.ends_with(".safetensors.index.json");
    let other_use = ["requirements.txt", "training_args.json", "trainer_state.json", "all_results.json"];
    endings.iter().any(|ending| name.ends_with(ending)) && !in_folder && !other_index && !other_use.contains(&name)
}

fn is_other_weight(name: &str) -> bool {
    [".bin", ".gguf", ".onnx", ".pt", ".pth", ".h5", ".npz", ".msgpack", ".tflite", ".safetensors"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Whether a name from the network may become a path.
fn is_safe(name: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.split('/').all(is_part) && !name.contains(['\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    impl HasName for &str {
        fn name(&self) -> &str {
            self
        }
    }

    fn chosen(files: &[&'static str]) -> Vec<&'static str> {
        needed("org/m", files.to_vec()).unwrap()
    }

    #[test]
    fn takes_what_describes_the_model_and_one_set_of_weights() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "merges.txt",
            "model.safetensors",
            "model.fp16.safetensors",
            "onnx/model.onnx",
            "onnx/config.json",
            "preprocessor_config.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "requirements.txt",
            "modeling_any.py",
            "tokenizer.model",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "../evil.json",
            "a\\b.json",
        ];
        let expected = [
            "config.json",
            "merges.txt",
            "preprocessor_config.json",
            "tokenizer.model",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "model.safetensors",
        ];
        assert_eq!(chosen(&files), expected);
    }

    #[test]
    fn shards_with_their_index_else_anything() {
        let index = "model.safetensors.index.json";
        let sharded =
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", index, "consolidated.safetensors"];
        assert_eq!(chosen(&sharded), [index, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        assert_eq!(chosen(&["weights.safetensors", "adapter_model.safetensors"]), ["weights.safetensors"]);
    }

    #[test]
    fn no_weights_names_what_there_is() {
        let error = needed("org/m", vec!["config.json", "model-q4.gguf"]).unwrap_err();
        assert_eq!(error.to_string(), "org/m has no safetensors weights: model-q4.gguf");
        assert!(error.hint().is_some());
        assert_eq!(needed("org/m", vec!["x"]).unwrap_err().to_string(), "org/m has no safetensors weights");
    }

    #[test]
    fn files_by_name() {
        let files = vec!["tokenizer.json", "README.md", "config.json"];
        assert_eq!(only("org/m", files.clone(), &["tokenizer.json"]).unwrap(), ["tokenizer.json"]);
        let error = only("org/m", files, &["config.json", "vocab.json"]).unwrap_err();
        assert_eq!(error.to_string(), "org/m has no file vocab.json");
    }

    #[test]
    fn etags() {
        let (sha256, git) = ("AB".repeat(32), "cd".repeat(20));
        assert_eq!(Hash::from_etag(&format!("\"{sha256}\"")), Some(Hash::Sha256(sha256.to_lowercase())));
        assert_eq!(Hash::from_etag(&format!("W/\"{git}\"")), Some(Hash::Git(git)));
        assert_eq!(Hash::from_etag("\"abc-1\""), Some(Hash::Opaque("abc-1".into())));
        assert_eq!(Hash::from_etag("\"../../x\""), None);
        assert_eq!(Hash::from_etag("\"\""), None);
    }
}
