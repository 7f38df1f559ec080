//! Writes checkpoints: safetensors files tensor by tensor, in the layout that MLX and this program read.
//!
//! A file's header comes first but is known last (a matrix that codes cannot hold stays a float), so room for it is
//! left at the front, and what is not needed of it is filled with the spaces that the format allows there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::grouped::{CodeBits, GroupedTensor};
use crate::tensor::TensorData;

/// Writes the weights of one model into a folder, in files of at most 5 GB.
#[derive(Debug)]
pub struct CheckpointWriter {
    folder: PathBuf,
    format: &'static str,
    shard_bytes: u64,
    header_room: u64,
    shard: Option<Shard>,
    /// Finished shards: their temporary file and the names in them.
    finished: Vec<(PathBuf, Vec<String>)>,
    total_bytes: u64,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: BufWriter<File>,
    entries: Map<String, Value>,
    written: u64,
}

impl CheckpointWriter {
    /// Weights for `folder`, which exists; `names` are all tensors there will be, companions of codes not counted, and
    /// `format` is the metadata's: `mlx` or `pt`.
    pub fn new<'a>(folder: &Path, format: &'static str, names: impl IntoIterator<Item = &'a str>) -> Self {
        let header_room: usize = names.into_iter().map(|name| 3 * (2 * name.len() + ENTRY_ROOM)).sum();
        Self {
            folder: folder.to_path_buf(),
            format,
            shard_bytes: SHARD_BYTES,
            header_room: (header_room + ENTRY_ROOM).next_multiple_of(8) as u64,
            shard: None,
            finished: Vec::new(),
            total_bytes: 0,
        }
    }

    /// The same with smaller files, for tests.
    #[must_use]
    pub fn with_shard_bytes(self, shard_bytes: u64) -> Self {
        Self { shard_bytes, ..self }
    }

    /// Writes a tensor as it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn tensor(&mut self, name: &str, data: &TensorData) -> Result<()> {
        self.start(data.bytes().len() as u64)?;
        self.part(name, data.dtype(), data.shape(), data.bytes())
    }

    /// Writes a convolution `[out, channels, ..]` with its channels last, as MLX keeps it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn channels_last(&mut self, name: &str, data: &TensorData) -> Result<()> {
        let (size, mut shape) = (data.dtype().size(), data.shape().to_vec());
        shape[1..].rotate_left(1);
        let (channels, places) = (data.shape()[1], data.shape()[2..].iter().product::<usize>());
        let mut bytes = Vec::with_capacity(data.bytes().len());
        for filter in data.bytes().chunks_exact((channels * places * size).max(1)) {
            for at in 0..channels * places {
                let (place, channel) = (at / channels, at % channels);
                bytes.extend_from_slice(&filter[(channel * places + place) * size..][..size]);
            }
        }
        self.start(bytes.len() as u64)?;
        self.part(name, data.dtype(), &shape, &bytes)
    }

    /// Writes codes as MLX has them: `name`, which ends in `.weight`, and `.scales` and `.biases` beside it. Rows must
    /// be whole groups. `extents` are those of the rows: `[out]`, or `[matrices, out]` for a stack of matrices.
    ///
    /// # Errors
    /// [`Error::BadQuantizedTensor`] for rows that are not whole groups or another name; [`Error::Io`].
    ///
    /// # Panics
    /// If there are not as many rows as `extents` say.
    pub fn grouped(&mut self, name: &str, extents: &[usize], data: &GroupedTensor) -> Result<()> {
        assert_eq!(extents.iter().product::<usize>(), data.outputs(), "{name}");
        let layout = data.layout();
        let module = name.strip_suffix(".weight").filter(|_| layout.inputs().is_multiple_of(layout.group()));
        let Some(module) = module else {
            let message = format!("{} inputs in groups of {} cannot be written", layout.inputs(), layout.group());
            return Err(Error::BadQuantizedTensor { tensor: name.to_owned(), message });
        };
        self.start(data.byte_len() as u64)?;
        let halves = |values: &[half::f16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (words, groups) = ([extents, &[layout.row_bytes() / 4]].concat(), [extents, &[layout.groups()]].concat());
        self.part(name, Dtype::U32, &words, data.codes())?;
        self.part(&format!("{module}.scales"), Dtype::F16, &groups, &halves(data.scales()))?;
        self.part(&format!("{module}.biases"), Dtype::F16, &groups, &halves(data.offsets()))
    }

    /// Completes the files and gives them their names; the bytes of all tensors.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<u64> {
        self.end_shard()?;
        let of = self.finished.len();
        let mut weight_map = BTreeMap::new();
        for (at, (path, names)) in self.finished.iter().enumerate() {
            let file = match of {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{of:05}.safetensors", at + 1),
            };
            std::fs::rename(path, self.folder.join(&file)).map_err(|source| io_error(path, source))?;
            weight_map.extend(names.iter().map(|name| (name.clone(), file.clone())));
        }
        if of > 1 {
            let index = json!({"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map});
            let path = self.folder.join("model.safetensors.index.json");
            std::fs::write(&path, format!("{index:#}")).map_err(|source| io_error(&path, source))?;
        }
        Ok(self.total_bytes)
    }

    /// Opens a file for the next `bytes`, unless there is one with room for them.
    fn start(&mut self, bytes: u64) -> Result<()> {
        if self.shard.as_ref().is_some_and(|shard| shard.written > 0 && shard.written + bytes > self.shard_bytes) {
            self.end_shard()?;
        }
        if self.shard.is_none() {
            let path = self.folder.join(format!("shard-{}.part", self.finished.len()));
            let open = || -> std::io::Result<BufWriter<File>> {
                let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
                file.seek(SeekFrom::Start(8 + self.header_room))?;
                Ok(file)
            };
            let file = open().map_err(|source| io_error(&path, source))?;
            self.shard = Some(Shard { path, file, entries: Map::new(), written: 0 });
        }
        Ok(())
    }

    fn part(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let shard = self.shard.as_mut().expect("it was started");
        shard.file.write_all(bytes).map_err(|source| io_error(&shard.path, source))?;
        let end = shard.written + bytes.len() as u64;
        let entry = json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [shard.written, end]});
        shard.entries.insert(name.to_owned(), entry);
        shard.written = end;
        self.total_bytes += bytes.len() as u64;
        Ok(())
    }

    fn end_shard(&mut self) -> Result<()> {
        let Some(Shard { path, mut file, mut entries, .. }) = self.shard.take() else { return Ok(()) };
        let names = entries.keys().cloned().collect();
        entries.insert("__metadata__".into(), json!({"format": self.format}));
        let mut header = Value::Object(entries).to_string().into_bytes();
        assert!(header.len() as u64 <= self.header_room, "every entry was counted");
        header.resize(self.header_room as usize, b' ');
        let mut write = || -> std::io::Result<()> {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&self.header_room.to_le_bytes())?;
            file.write_all(&header)?;
            file.flush()?;
            file.get_ref().sync_all()
        };
        write().map_err(|source| io_error(&path, source))?;
        self.finished.push((path, names));
        Ok(())
    }
}

impl CodeBits {
    /// Bits per code, as a number.
    pub fn count(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), source }
}

/// Where MLX and the Hugging Face tools begin another file.
const SHARD_BYTES: u64 = 5_000_000_000;
/// A header entry without its name: type, up to four extents and two offsets of 20 digits at most.
const ENTRY_ROOM: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, GroupedLayout, ModelFiles, WeightData};

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 37) % 101) as f32 / 50.0 - 1.0).collect()
    }

    fn quantized(bits: CodeBits, outputs: usize, inputs: usize) -> GroupedTensor {
        let tensor = TensorData::from_f32(vec![outputs, inputs], &numbers(outputs * inputs)).unwrap();
        GroupedTensor::quantize(&tensor, GroupedLayout::preferred(bits, inputs), 0..outputs).unwrap().unwrap()
    }

    fn write(shard_bytes: u64) -> (tempfile::TempDir, u64) {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a.weight", "b.weight", "conv.weight", "norm.weight"];
        let mut writer = CheckpointWriter::new(folder.path(), "mlx", names).with_shard_bytes(shard_bytes);
        writer.grouped("a.weight", &[6], &quantized(CodeBits::Four, 6, 128)).unwrap();
        writer.grouped("b.weight", &[4], &quantized(CodeBits::Eight, 4, 64)).unwrap();
        writer.channels_last("conv.weight", &TensorData::from_f32(vec![2, 3, 2, 2], &numbers(24)).unwrap()).unwrap();
        writer.tensor("norm.weight", &TensorData::from_f32(vec![5], &numbers(5)).unwrap()).unwrap();
        let config = json!({"model_type": "x", "quantization": {
            "bits": 4, "group_size": 64, "b": {"bits": 8, "group_size": 64},
        }});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let bytes = writer.finish().unwrap();
        (folder, bytes)
    }

    #[test]
    fn what_is_written_reads_back() {
        for (shard_bytes, files) in [(SHARD_BYTES, 1), (500, 2), (1, 4)] {
            let (folder, bytes) = write(shard_bytes);
            let checkpoint = Checkpoint::open(&ModelFiles::open(folder.path()).unwrap()).unwrap();
            assert_eq!((checkpoint.total_bytes() as u64, &*checkpoint.metadata()["format"]), (bytes, "mlx"));
            for (name, expected) in
                [("a.weight", quantized(CodeBits::Four, 6, 128)), ("b.weight", quantized(CodeBits::Eight, 4, 64))]
            {
                let Some(WeightData::Grouped(found)) = checkpoint.matrix(name).unwrap() else { panic!("{name}") };
                assert_eq!(found.codes()[..], expected.codes()[..]);
                assert_eq!((found.scales(), found.offsets()), (expected.scales(), expected.offsets()));
            }
            let conv = checkpoint.tensor("conv.weight").unwrap();
            assert_eq!((conv.shape(), conv.to_f32().unwrap()), (&[2, 3, 2, 2][..], numbers(24)));
            assert_eq!(checkpoint.tensor("norm.weight").unwrap().to_f32().unwrap(), numbers(5));
            let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let weights = names.filter(|name| name.to_str().unwrap().ends_with(".safetensors")).count();
            assert_eq!((weights, folder.path().join("model.safetensors.index.json").exists()), (files, files > 1));
        }
    }

    #[test]
    fn headers_may_be_long() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..500).map(|at| format!("model.layers.{at}.weight")).collect();
        let mut writer = CheckpointWriter::new(folder.path(), "pt", names.iter().map(String::as_str));
        let tensor = TensorData::from_f32(vec![1], &[1.0]).unwrap();
        names.iter().for_each(|name| writer.tensor(name, &tensor).unwrap());
        assert_eq!(writer.finish().unwrap(), 2000);
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let checkpoint = Checkpoint::open(&ModelFiles::open(folder.path()).unwrap()).unwrap();
        assert_eq!(checkpoint.names().count(), 500);
    }

    #[test]
    fn rows_that_are_no_whole_groups_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = CheckpointWriter::new(folder.path(), "mlx", ["a.weight"]);
        let error = writer.grouped("a.weight", &[2], &quantized(CodeBits::Four, 2, 40)).unwrap_err();
        assert_eq!(error.to_string(), "tensor `a.weight`: 40 inputs in groups of 64 cannot be written");
    }
}
