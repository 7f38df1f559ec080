//! Everything that can be wrong with the files of a model.

use std::path::PathBuf;

use crate::dtype::Dtype;

/// Shorthand for this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, and with which file, key or tensor. [`Error::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A symbolic link whose target is gone, as an interrupted download leaves in the cache.
    #[error("{}: this link points at a file that does not exist", path.display())]
    BrokenLink {
        /// The link.
        path: PathBuf,
    },
    /// A file name that would leave the model's folder.
    #[error("{label}: `{name}` is not a file name inside the model's folder")]
    UnsafeName {
        /// The model or file that asked for it.
        label: String,
        /// The name.
        name: String,
    },
    /// The path is not a folder.
    #[error("{} is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder without `config.json`.
    #[error("{label} has no config.json; it holds {}", listed(found))]
    MissingConfig {
        /// The folder.
        label: String,
        /// The files in it.
        found: Vec<String>,
    },
    /// A model without safetensors weights.
    #[error("{label} has no safetensors weights; it holds {}", listed(found))]
    NoWeights {
        /// The model.
        label: String,
        /// Its files.
        found: Vec<String>,
    },
    /// A text file that is not UTF-8.
    #[error("{file} is not UTF-8 text")]
    NotUtf8 {
        /// The file.
        file: String,
    },
    /// A file that is not JSON.
    #[error("{file} is not valid JSON: {source}")]
    NotJson {
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A missing or unusable value in a JSON file.
    #[error("{file}: {key}: {message}")]
    Value {
        /// The file.
        file: String,
        /// Dotted path of the key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// Weights quantised by a method ocelli does not read.
    #[error("{file}: {key}: quantisation method `{method}` is not supported")]
    UnsupportedQuantization {
        /// The configuration file.
        file: String,
        /// Dotted path of the key that names the method.
        key: String,
        /// The method.
        method: String,
    },

    /// A safetensors file without room for the header length.
    #[error("{file}: {length} bytes are too few for a safetensors file")]
    TooShort {
        /// The file.
        file: String,
        /// Its length.
        length: usize,
    },
    /// A header longer than any real one; the file is something else.
    #[error("{file}: the header claims {length} bytes, more than the limit of {limit}")]
    HeaderTooLong {
        /// The file.
        file: String,
        /// The claimed length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// A header that does not fit in the file: truncated, or not safetensors.
    #[error("{file}: the header claims {length} bytes, but the file ends {available} bytes after the length field")]
    HeaderBeyondEnd {
        /// The file.
        file: String,
        /// The claimed length.
        length: u64,
        /// Bytes there are.
        available: u64,
    },
    /// A header that is not UTF-8.
    #[error("{file}: the header is not UTF-8 text")]
    HeaderNotUtf8 {
        /// The file.
        file: String,
    },
    /// A header that is not a JSON object.
    #[error("{file}: the header is not a JSON object: {message}")]
    HeaderNotJson {
        /// The file.
        file: String,
        /// Where and why.
        message: String,
    },
    /// A header entry without the three expected fields.
    #[error("{file}: header entry `{tensor}`: {message}")]
    HeaderEntry {
        /// The file.
        file: String,
        /// The tensor, or `__metadata__`.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// The same name twice in one header.
    #[error("{file}: tensor `{tensor}` is listed twice")]
    DuplicateTensor {
        /// The file.
        file: String,
        /// The tensor, or `__metadata__`.
        tensor: String,
    },
    /// An element type that is unknown or not supported.
    #[error("{file}: tensor `{tensor}`: element type `{dtype}` is not supported")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type's name in the header.
        dtype: String,
    },
    /// A shape whose size overflows.
    #[error("{file}: tensor `{tensor}`: shape {shape:?} is too large")]
    ShapeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Offsets that end before they begin.
    #[error("{file}: tensor `{tensor}`: offsets {begin}..{end} end before they begin")]
    ReversedOffsets {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// First byte.
        begin: usize,
        /// One past the last byte.
        end: usize,
    },
    /// Offsets past the end of the data: the file is truncated.
    #[error("{file}: tensor `{tensor}` ends at byte {end} of the data, but there are only {available} bytes")]
    OffsetsOutOfRange {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// One past its last byte.
        end: usize,
        /// Bytes of data there are.
        available: usize,
    },
    /// Two tensors that share bytes.
    #[error("{file}: tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The file.
        file: String,
        /// The earlier tensor.
        first: String,
        /// The later tensor.
        second: String,
    },
    /// Bytes before a tensor that belong to none.
    #[error("{file}: bytes {begin}..{end} before tensor `{tensor}` belong to no tensor")]
    Hole {
        /// The file.
        file: String,
        /// The tensor after the hole.
        tensor: String,
        /// First unclaimed byte.
        begin: usize,
        /// One past the last unclaimed byte.
        end: usize,
    },
    /// Bytes after the last tensor.
    #[error("{file}: {extra} bytes after the last tensor belong to no tensor")]
    TrailingBytes {
        /// The file.
        file: String,
        /// How many.
        extra: usize,
    },
    /// Offsets that do not hold exactly the shape.
    #[error("{file}: tensor `{tensor}`: {dtype} {shape:?} takes {expected} bytes, its offsets hold {actual}")]
    LengthMismatch {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes of the shape.
        expected: usize,
        /// Bytes between the offsets.
        actual: usize,
    },

    /// A weight file that the index names, or that the numbering promises, is not there.
    #[error("{label}: weight file {shard} is missing")]
    MissingShard {
        /// The model.
        label: String,
        /// The file.
        shard: String,
    },
    /// A tensor that the index promises is not in its file.
    #[error("{file} does not hold tensor `{tensor}`, which the index says it does")]
    MissingFromShard {
        /// The weight file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor in two files.
    #[error("tensor `{tensor}` is in both {first} and {second}")]
    TensorTwice {
        /// The tensor.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },

    /// Bytes that are not those of a tensor of this type and shape.
    #[error("a {dtype} tensor of shape {shape:?} does not take {actual} bytes")]
    TensorLength {
        /// The element type.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
        /// Bytes given.
        actual: usize,
    },
    /// A tensor that should hold floats.
    #[error("expected a float tensor, got {dtype} {shape:?}")]
    NotFloat {
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor that should hold integers.
    #[error("expected an integer tensor, got {dtype} {shape:?}")]
    NotInteger {
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A U64 element that no i64 holds.
    #[error("{value} is too large for a 64-bit signed integer")]
    IntegerTooLarge {
        /// The element.
        value: u64,
    },

    /// A GGUF file whose header or metadata are malformed.
    #[error("{file}: {message}")]
    BadGguf {
        /// The file.
        file: String,
        /// What is wrong, and where.
        message: String,
    },
    /// A tensor of a GGUF file that is not where or what it should be.
    #[error("{file}: tensor `{tensor}`: {message}")]
    BadGgufTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// A tensor of a GGUF file in a type ocelli does not read.
    #[error("{file}: tensor `{tensor}`: type {kind} is not supported")]
    UnsupportedGgufType {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type's name or number.
        kind: String,
    },
    /// The parts of a quantised tensor are not what its format or the configuration says.
    #[error("tensor `{tensor}`: {message}")]
    BadQuantizedTensor {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        message: String,
    },
    /// A group size that no quantised matrix has.
    #[error("groups of {group} weights are not supported, only of 32 or 64")]
    GroupSize {
        /// Weights per group.
        group: usize,
    },
    /// Codes, scales or offsets that are not those of a matrix of this shape.
    #[error("{actual} {part} are not those of a {shape:?} matrix in groups of {group}")]
    GroupedLength {
        /// `codes` (in bytes), `scales` or `offsets`.
        part: &'static str,
        /// Rows and weights per row.
        shape: [usize; 2],
        /// Weights per group.
        group: usize,
        /// How many there are.
        actual: usize,
    },
    /// Row ranges that do not make one matrix.
    #[error("row ranges of different matrices cannot be joined")]
    GroupedParts,
    /// A float tensor whose rows are not those that are to be quantised.
    #[error("a tensor of shape {shape:?} has no rows {rows:?} of {inputs} weights")]
    NotAMatrix {
        /// Its shape.
        shape: Vec<usize>,
        /// The rows asked for.
        rows: std::ops::Range<usize>,
        /// Weights per row.
        inputs: usize,
    },

    /// A text that cannot be a Hugging Face model id.
    #[error("`{id}` is not a model id such as `org/name`")]
    BadModelId {
        /// The text.
        id: String,
    },
    /// A model that is not in the Hugging Face cache.
    #[error("{id} is not in the cache at {}", cache.display())]
    NotInCache {
        /// The model.
        id: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// A model that is cached, but not at this revision.
    #[error("{id} is in the cache, but not at revision `{revision}`; cached: {}", listed(cached))]
    RevisionNotInCache {
        /// The model.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The branches, tags and commits there are.
        cached: Vec<String>,
    },
    /// A model that is neither a folder nor something the cache could hold.
    #[error("no model `{spec}`: {}", tried.join(", "))]
    ModelNotFound {
        /// What was asked for.
        spec: String,
        /// What was tried and why it was not it.
        tried: Vec<String>,
    },
}

impl Error {
    /// What the user can do about it, as a sentence, if there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::MissingConfig { found, .. } | Self::NoWeights { found, .. } => return files_hint(found),
            Self::BadGguf { .. } => "the file is truncated or no GGUF file; download it again".into(),
            Self::UnsupportedGgufType { .. } => {
                "use a file in Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, F16, BF16 or F32".into()
            }
            Self::BrokenLink { .. } | Self::MissingShard { .. } => {
                "the download was not finished; `ocelli pull` completes it".into()
            }
            Self::OffsetsOutOfRange { .. } | Self::HeaderBeyondEnd { .. } | Self::TooShort { .. } => {
                "the file is truncated or not safetensors; download it again".into()
            }
            Self::HeaderTooLong { .. } => "this is probably not a safetensors file".into(),
            Self::UnsupportedQuantization { .. } => {
                "use the original checkpoint in float32, bfloat16 or float16".into()
            }
            Self::NotInCache { id, .. } => format!("run `ocelli pull {id}` first"),
            Self::RevisionNotInCache { id, revision, .. } => {
                format!("run `ocelli pull {id} --revision {revision}` first")
            }
            Self::BadModelId { .. } | Self::ModelNotFound { .. } => {
                "give a model id such as `HuggingFaceTB/SmolVLM-256M-Instruct`, or the path of a model's folder".into()
            }
            _ => return None,
        };
        Some(hint)
    }
}

/// The file names, shortened to what fits in a message.
fn listed(names: &[String]) -> String {
    match names {
        [] => "nothing".into(),
        all if all.len() <= MAX_LISTED => all.join(", "),
        all => format!("{} and {} more", all[..MAX_LISTED].join(", "), all.len() - MAX_LISTED),
    }
}

/// Says which kind of checkpoint the files look like.
fn files_hint(found: &[String]) -> Option<String> {
    let any_ends_with = |ending: &str| found.iter().any(|name| name.ends_with(ending));
    let hint = if any_ends_with(".gguf") {
        "give the path of one of the GGUF files"
    } else if any_ends_with(".bin") || any_ends_with(".pt") || any_ends_with(".pth") {
        "PyTorch weights can run code when loaded, so they are not read: \
         convert them with save_pretrained(..., safe_serialization=True) in transformers"
    } else if any_ends_with(".npz") {
        "numpy archives are not read: convert it with python -c \"import numpy, safetensors.numpy as s; \
         s.save_file(dict(numpy.load('weights.npz')), 'weights.safetensors')\""
    } else if any_ends_with(".onnx") {
        "ONNX models are not supported; use the original safetensors checkpoint"
    } else if found.iter().any(|name| name == "adapter_config.json") {
        "this is an adapter (LoRA); merge it into its base model first"
    } else if found.iter().any(|name| name == "config.json") {
        "the configuration is there, the weights are not: copy model.safetensors, or the parts that \
         model.safetensors.index.json names, from the original model"
    } else if any_ends_with(".safetensors") {
        "the weights are there, the configuration is not: copy config.json from the original model"
    } else {
        return None;
    };
    Some(hint.into())
}

const MAX_LISTED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn listings_are_short() {
        assert_eq!(listed(&[]), "nothing");
        assert_eq!(listed(&names(&["a", "b"])), "a, b");
        assert_eq!(listed(&vec!["x".to_string(); 10]), "x, x, x, x, x, x, x, x and 2 more");
    }

    #[test]
    fn hints_fit_the_files() {
        let hint = |files: &[&str]| files_hint(&names(files)).unwrap_or_default();
        assert!(hint(&["model.gguf"]).contains("GGUF"));
        assert!(hint(&["pytorch_model.bin", "config.json"]).contains("save_pretrained"));
        assert!(hint(&["weights.npz", "config.json"]).contains("save_file"));
        assert!(hint(&["model.onnx"]).contains("ONNX"));
        assert!(hint(&["adapter_config.json", "adapter_model.safetensors"]).contains("LoRA"));
        assert!(hint(&["model.safetensors"]).contains("config.json"));
        assert_eq!(hint(&["README.md"]), "");
    }

    #[test]
    fn messages_are_lower_case_without_full_stop_and_fit_a_result() {
        let error = Error::NotInCache { id: "org/name".into(), cache: "cache".into() };
        assert_eq!(error.to_string(), "org/name is not in the cache at cache");
        assert_eq!(error.hint().as_deref(), Some("run `ocelli pull org/name` first"));
        assert!(Error::NotUtf8 { file: "a".into() }.hint().is_none());
        assert!(size_of::<Error>() <= 128, "clippy's limit for a Result: {}", size_of::<Error>());
    }
}
