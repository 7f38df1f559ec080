//! Every weight of a model by name, over all its safetensors files or in its GGUF file.
//!
//! One `model.safetensors` (or `weights.safetensors`, as MLX has it), shards named by `model.safetensors.index.json`,
//! or numbered shards without an index (some converters forget it). Everything is checked while opening; afterwards a
//! tensor is there or it is not.
//!
//! A module quantised by MLX counts as one tensor, `<module>.weight`: its scales and biases have no names of their own.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::affine::AffineTensor;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::grouped::WeightData;
use crate::quantization::Quantization;
use crate::safetensors::Safetensors;
use crate::stored::StoredTensor;
use crate::tensor::TensorData;

/// All weights of one model.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    tensors: BTreeMap<String, StoredTensor>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens (maps, not reads) every weight file of a model.
    ///
    /// # Errors
    /// [`Error::NoWeights`] without safetensors files; [`Error::MissingShard`], [`Error::MissingFromShard`],
    /// [`Error::TensorTwice`] when files and index disagree; whatever [`Safetensors::parse`] finds;
    /// [`Error::BadQuantizedTensor`] and [`Error::Value`] for quantised modules that are not as `config.json` says.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        if let Some(model) = files.gguf() {
            return Ok(Self { tensors: model.tensors().clone(), metadata: BTreeMap::new() });
        }
        let (shards, promised) = weight_files(files)?;
        let (mut tensors, mut metadata) = (BTreeMap::new(), BTreeMap::new());
        let mut shard_of: BTreeMap<String, &str> = BTreeMap::new();
        for shard in &shards {
            let file = files.label_of(shard);
            let Some(bytes) = files.bytes(shard)? else {
                return Err(Error::MissingShard { label: files.label().into(), shard: shard.clone() });
            };
            let opened = Safetensors::parse(bytes, &file)?;
            if let Some((tensor, _)) = promised.iter().find(|(name, at)| *at == shard && opened.tensor(name).is_none())
            {
                return Err(Error::MissingFromShard { file, tensor: tensor.clone() });
            }
            metadata.extend(opened.metadata().clone());
            for (tensor, data) in opened.into_tensors() {
                if let Some(first) = shard_of.insert(tensor.clone(), shard) {
                    return Err(Error::TensorTwice { tensor, first: first.into(), second: shard.clone() });
                }
                tensors.insert(tensor, data);
            }
        }
        Self::new(tensors, metadata, || Quantization::of_files(files))
    }

    /// The weights of one file, with the `config.json` that belongs to it. Callable on arbitrary bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_safetensors(file: Safetensors, config: &[u8]) -> Result<Self> {
        let metadata = file.metadata().clone();
        Self::new(file.into_tensors(), metadata, || Quantization::of_bytes(config, "config.json"))
    }

    /// `quantization` is asked for if there are quantised modules.
    fn new(
        tensors: BTreeMap<String, TensorData>,
        metadata: BTreeMap<String, String>,
        quantization: impl FnOnce() -> Result<Quantization>,
    ) -> Result<Self> {
        let is_mlx = metadata.get("format").is_some_and(|format| format == "mlx");
        Ok(Self { tensors: stored(tensors, is_mlx, quantization)?, metadata })
    }

    /// A checkpoint in memory, for tests. Of two tensors with one name, the later wins.
    pub fn from_tensors(tensors: Vec<(String, TensorData)>) -> Self {
        let tensors = tensors.into_iter().map(|(name, data)| (name, data.into()));
        Self { tensors: tensors.collect(), metadata: BTreeMap::new() }
    }

    /// The tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor as it is stored: shape and size without decoding.
    pub fn stored(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The numbers of a tensor of floats or codes; `None` when there is none of this name.
    ///
    /// # Errors
    /// As [`StoredTensor::load`].
    pub fn matrix(&self, name: &str) -> Result<Option<WeightData>> {
        self.tensors.get(name).map(StoredTensor::load).transpose()
    }

    /// A tensor that is not quantised; `None` also for codes.
    pub fn tensor(&self, name: &str) -> Option<TensorData> {
        match self.matrix(name) {
            Ok(Some(WeightData::Float(data))) if !self.tensors[name].is_quantized() => Some(data),
            _ => None,
        }
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all tensors together, as stored.
    pub fn total_bytes(&self) -> usize {
        self.tensors.values().map(StoredTensor::byte_len).sum()
    }

    /// The `__metadata__` of all files, merged; `format: mlx` marks an MLX checkpoint.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

/// Puts codes, scales and biases of a module together.
fn stored(
    mut tensors: BTreeMap<String, TensorData>,
    is_mlx: bool,
    quantization: impl FnOnce() -> Result<Quantization>,
) -> Result<BTreeMap<String, StoredTensor>> {
    let modules: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(".scales").map(str::to_owned))
        .filter(|module| tensors.get(&format!("{module}.weight")).is_some_and(|data| data.dtype() == Dtype::U32))
        .collect();
    let mut stored = BTreeMap::new();
    if !modules.is_empty() {
        let quantization = quantization()?;
        for module in modules {
            let name = format!("{module}.weight");
            let wrong = |message: &str| Error::BadQuantizedTensor { tensor: name.clone(), message: message.into() };
            let numbers = quantization.of_module(&module);
            let numbers = numbers.ok_or_else(|| wrong("it has scales, but config.json says it is not quantised"))?;
            let mut part = |kind: &str| tensors.remove(&format!("{module}.{kind}"));
            let (Some(packed), Some(scales), Some(biases)) = (part("weight"), part("scales"), part("biases")) else {
                return Err(wrong("it has scales, but no biases"));
            };
            let tensor = AffineTensor::new(&name, packed, scales, biases, numbers)?;
            stored.insert(name, StoredTensor::affine(tensor));
        }
    }
    for (name, data) in tensors {
        let channels_last = is_mlx && name.ends_with(".weight") && has_channels_last(data.shape());
        stored.insert(name, if channels_last { StoredTensor::channels_last(data) } else { data.into() });
    }
    Ok(stored)
}

/// Whether these are the extents of convolution weights as MLX keeps them, `[out, .., height, width, channels]`; some
/// converters leave `[out, channels, height, width]`, which is recognised by its square window.
fn has_channels_last(shape: &[usize]) -> bool {
    match shape {
        [_, a, b, c] => !(b == c && a != b),
        [_, _, a, b, c] => !(b == c && a != b),
        _ => false,
    }
}

/// The weight files of a model, sorted, and which tensor the index (if any) promises in which.
pub(crate) fn weight_files(files: &ModelFiles) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let names = files.names()?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let single = |name: &str| Ok((vec![name.to_owned()], BTreeMap::new()));
    if has(SINGLE) {
        return single(SINGLE);
    }
    if has(INDEX) {
        return from_index(files);
    }
    let numbered: Vec<(u32, u32)> = names.iter().filter_map(|name| shard_number(name)).collect();
    let Some(&(_, of)) = numbered.first() else {
        if has(SINGLE_MLX) {
            return single(SINGLE_MLX);
        }
        return Err(Error::NoWeights { label: files.label().into(), found: names });
    };
    let shards = (1..=of).map(|number| format!("model-{number:05}-of-{of:05}.safetensors")).collect();
    Ok((shards, BTreeMap::new()))
}

fn from_index(files: &ModelFiles) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let file = files.label_of(INDEX);
    let bytes = files.bytes(INDEX)?.unwrap_or_else(|| Vec::new().into());
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| Error::NotJson { file: file.clone(), source })?;
    let shards: BTreeSet<String> = index.weight_map.values().cloned().collect();
    if shards.is_empty() {
        return Err(Error::Value { file, key: "weight_map".into(), message: "it is empty".into() });
    }
    Ok((shards.into_iter().collect(), index.weight_map))
}

/// `model-00002-of-00003.safetensors` is `(2, 3)`.
fn shard_number(name: &str) -> Option<(u32, u32)> {
    let (number, of) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let (number, of) = (is_number(number).then(|| number.parse().ok())??, is_number(of).then(|| of.parse().ok())??);
    (1..=of).contains(&number).then_some((number, of))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

const SINGLE: &str = "model.safetensors";
const SINGLE_MLX: &str = "weights.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file of one-byte tensors.
    fn shard(names: &[&str]) -> Vec<u8> {
        let entry = |(at, name): (usize, &&str)| {
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1)
        };
        let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
        let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; names.len()]].concat()
    }

    fn index(weight_map: &str) -> Vec<u8> {
        format!(r#"{{"metadata":{{}},"weight_map":{{{weight_map}}}}}"#).into_bytes()
    }

    fn open(files: &[(&str, Vec<u8>)]) -> Result<Checkpoint> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Checkpoint::open(&ModelFiles::open(folder.path())?)
    }

    #[test]
    fn one_file() {
        let checkpoint = open(&[(SINGLE, shard(&["b", "a"]))]).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((checkpoint.total_bytes(), checkpoint.contains("a"), checkpoint.contains("z")), (2, true, false));
        assert_eq!(checkpoint.tensor("a").unwrap().to_i64().unwrap(), [7]);
        assert_eq!(checkpoint.metadata()["format"], "pt");
        let names = [(SINGLE_MLX, shard(&["c"])), (SINGLE, shard(&["a"]))];
        assert!(open(&names).unwrap().contains("a") && open(&names[..1]).unwrap().contains("c"));
    }

    #[test]
    fn indexed_shards_may_hold_more_than_promised() {
        let map = index(r#""a":"x.safetensors","b":"y.safetensors""#);
        let files = [(INDEX, map), ("x.safetensors", shard(&["a", "extra"])), ("y.safetensors", shard(&["b"]))];
        assert_eq!(open(&files).unwrap().names().collect::<Vec<_>>(), ["a", "b", "extra"]);
    }

    #[test]
    fn numbered_shards_need_no_index() {
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        let checkpoint = open(&[(one, shard(&["a"])), (two, shard(&["b"]))]).unwrap();
        assert_eq!(checkpoint.total_bytes(), 2);
        let error = open(&[(one, shard(&["a"]))]).unwrap_err();
        assert!(matches!(error, Error::MissingShard { shard, .. } if shard == two));
        assert_eq!(shard_number("model-1-of-2.safetensors"), None);
        assert_eq!(shard_number("model-00001-of-+0002.safetensors"), None);
    }

    #[test]
    fn missing_shard() {
        let error = open(&[(INDEX, index(r#""a":"x.safetensors""#))]).unwrap_err();
        assert!(matches!(&error, Error::MissingShard { shard, .. } if shard == "x.safetensors"));
        assert!(error.hint().unwrap().contains("ocelli pull"));
    }

    #[test]
    fn missing_from_shard() {
        let map = index(r#""a":"x.safetensors","lost":"x.safetensors""#);
        let error = open(&[(INDEX, map), ("x.safetensors", shard(&["a"]))]).unwrap_err();
        assert!(matches!(error, Error::MissingFromShard { tensor, .. } if tensor == "lost"));
    }

    #[test]
    fn tensor_twice() {
        let map = index(r#""a":"x.safetensors","b":"y.safetensors""#);
        let files = [(INDEX, map), ("x.safetensors", shard(&["a"])), ("y.safetensors", shard(&["a", "b"]))];
        let error = open(&files).unwrap_err();
        assert_eq!(error.to_string(), "tensor `a` is in both x.safetensors and y.safetensors");
    }

    #[test]
    fn malformed_indexes() {
        assert!(matches!(open(&[(INDEX, b"{".to_vec())]).unwrap_err(), Error::NotJson { .. }));
        assert!(matches!(open(&[(INDEX, index(""))]).unwrap_err(), Error::Value { key, .. } if key == "weight_map"));
        let escaping = open(&[(INDEX, index(r#""a":"../x.safetensors""#))]).unwrap_err();
        assert!(matches!(escaping, Error::UnsafeName { name, .. } if name == "../x.safetensors"));
    }

    #[test]
    fn no_weights_says_what_is_there() {
        let error = open(&[("pytorch_model.bin", vec![1])]).unwrap_err();
        assert!(error.to_string().ends_with("no safetensors weights; it holds config.json, pytorch_model.bin"));
        assert!(error.hint().unwrap().contains("save_pretrained"));
    }

    #[test]
    fn from_tensors() {
        let tensor = TensorData::from_f32(vec![2], &[1.0, 2.0]).unwrap();
        let checkpoint = Checkpoint::from_tensors(vec![("x".into(), tensor)]);
        assert_eq!((checkpoint.total_bytes(), checkpoint.metadata().len()), (8, 0));
    }
}
