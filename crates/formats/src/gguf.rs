//! GGUF files: metadata and tensors in one file, checked completely before anything is handed out.
//!
//! Layout (little-endian): magic `GGUF`, u32 version (2 or 3), u64 tensors, u64 metadata entries; every entry a string
//! (u64 length, bytes), a u32 type and the value; every tensor a name, a u32 number of extents, u64 extents (the
//! fastest first), a u32 type and a u64 offset; then the data, whose start and offsets are multiples of
//! `general.alignment`. Counts come from strangers: nothing is allocated for more than the file can hold.

mod blocks;
mod model;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use crate::bytes::SharedBytes;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

pub(crate) use blocks::BlockTensor;
pub(crate) use model::GgufModel;

/// A parsed GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    label: String,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, BlockTensor>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An integer of any width that is not negative.
    Unsigned(u64),
    /// An integer of any width below zero.
    Negative(i64),
    /// A float of either width.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one kind.
    Array(Vec<GgufValue>),
}

impl Gguf {
    /// Reads metadata and tensor list of `bytes`; `label` names the file in errors. Callable on arbitrary bytes.
    ///
    /// # Errors
    /// [`Error::BadGguf`], [`Error::BadGgufTensor`], [`Error::UnsupportedGgufType`].
    pub fn parse(bytes: SharedBytes, label: &str) -> Result<Self> {
        let mut reader = Reader { bytes: &bytes, at: 0, label };
        if reader.take::<4>("the magic number")? != *b"GGUF" {
            return Err(reader.error("it does not start with `GGUF`"));
        }
        let version = reader.u32("the version")?;
        if version != 2 && version != 3 {
            return Err(reader.error(&format!("version {version} is not supported, only 2 and 3")));
        }
        let (n_tensors, n_entries) = (reader.u64("the number of tensors")?, reader.u64("the number of entries")?);
        let mut metadata = BTreeMap::new();
        for _ in 0..n_entries {
            let key = reader.text("a metadata key")?;
            let kind = reader.u32("a metadata type")?;
            let value = reader.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.error(&format!("metadata `{key}` is there twice")));
            }
        }
        let mut entries = Vec::new();
        for _ in 0..n_tensors {
            entries.push(reader.entry()?);
        }
        let alignment = alignment(&metadata, label)?;
        let start = reader.at.checked_next_multiple_of(alignment).filter(|start| *start <= bytes.len());
        let data = match start {
            Some(start) => bytes.slice(start..bytes.len()).expect("the start is within the file"),
            // A file without tensors may end with its metadata.
            None if entries.is_empty() => Vec::new().into(),
            None => return Err(reader.error("it ends before the data")),
        };
        check_overlap(&entries, label)?;
        let mut tensors = BTreeMap::new();
        for entry in entries {
            let name = entry.name.clone();
            if tensors.insert(name.clone(), entry.view(&data, alignment, label)?).is_some() {
                return Err(Error::BadGgufTensor {
                    file: label.into(),
                    tensor: name,
                    message: "it is there twice".into(),
                });
            }
        }
        Ok(Self { label: label.to_owned(), metadata, tensors })
    }

    /// How messages name the file.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A value of the metadata.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// The tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor under the name that the file gives it.
    pub fn stored(&self, name: &str) -> Option<crate::StoredTensor> {
        self.tensors.get(name).cloned().map(crate::StoredTensor::blocks)
    }

    /// The file as the files of a published model.
    ///
    /// # Errors
    /// [`Error::Value`] for what is missing or not supported, [`Error::BadGgufTensor`].
    pub fn model_files(&self) -> Result<ModelFiles> {
        ModelFiles::from_gguf(Path::new(&self.label), self)
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&BlockTensor> {
        self.tensors.get(name)
    }
}

impl GgufValue {
    pub(crate) fn as_u64(&self) -> Option<u64> {
        if let Self::Unsigned(value) = self { Some(*value) } else { None }
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Negative(value) => Some(*value as f64),
            _ => None,
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(crate) fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    pub(crate) fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(values) = self { Some(values) } else { None }
    }
}

fn alignment(metadata: &BTreeMap<String, GgufValue>, label: &str) -> Result<usize> {
    let value = metadata.get(ALIGNMENT).map_or(Some(32), GgufValue::as_u64);
    let alignment = value.and_then(|value| usize::try_from(value).ok()).filter(|value| value.is_power_of_two());
    alignment.ok_or_else(|| Error::BadGguf { file: label.into(), message: format!("{ALIGNMENT} is no power of two") })
}

/// Tensors may be followed by filling, but two of them must not share bytes: a file of a few kilobytes must not stand
/// for terabytes.
fn check_overlap(entries: &[Entry], label: &str) -> Result<()> {
    let mut ranges = Vec::with_capacity(entries.len());
    for entry in entries {
        // What is too large is reported when the tensor is viewed.
        let length = entry.byte_len(label)?.unwrap_or(0) as u64;
        ranges.push((entry.offset, entry.offset.saturating_add(length), &entry.name));
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => {
            let message = format!("it overlaps `{}`", pair[1].2);
            Err(Error::BadGgufTensor { file: label.into(), tensor: pair[0].2.clone(), message })
        }
        None => Ok(()),
    }
}

/// A tensor of the list.
struct Entry {
    name: String,
    /// The fastest extent first.
    extents: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Entry {
    /// Bytes of its data; `None` when its extents are too large.
    fn byte_len(&self, label: &str) -> Result<Option<usize>> {
        let kind = blocks::BlockKind::from_id(self.kind).ok_or_else(|| {
            let kind = blocks::name_of(self.kind);
            Error::UnsupportedGgufType { file: label.into(), tensor: self.name.clone(), kind }
        })?;
        Ok(self.shape().and_then(|shape| kind.byte_len(&shape)))
    }

    /// The slowest extent first.
    fn shape(&self) -> Option<Vec<usize>> {
        self.extents.iter().rev().map(|&extent| usize::try_from(extent).ok()).collect()
    }

    fn view(&self, data: &SharedBytes, alignment: usize, label: &str) -> Result<BlockTensor> {
        let wrong = |message: String| Error::BadGgufTensor { file: label.into(), tensor: self.name.clone(), message };
        let length = self.byte_len(label)?;
        let (Some(length), Some(shape)) = (length, self.shape()) else {
            return Err(wrong(format!("extents {:?} are too large or no whole blocks", self.extents)));
        };
        let offset = usize::try_from(self.offset).ok().filter(|offset| offset.is_multiple_of(alignment));
        let offset = offset.ok_or_else(|| wrong(format!("its offset {} is not aligned", self.offset)))?;
        let bytes = offset.checked_add(length).and_then(|end| data.slice(offset..end));
        let bytes = bytes.ok_or_else(|| wrong(format!("it ends after the file, which has {} bytes", data.len())))?;
        let kind = blocks::BlockKind::from_id(self.kind).expect("byte_len found it");
        Ok(BlockTensor::new(kind, shape, bytes))
    }
}

/// Reads from front to back.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    label: &'a str,
}

impl Reader<'_> {
    fn entry(&mut self) -> Result<Entry> {
        let name = self.text("a tensor's name")?;
        let n_extents = self.u32("a tensor's extents")?;
        if n_extents > MAX_EXTENTS {
            let message = format!("{n_extents} extents are too many");
            return Err(Error::BadGgufTensor { file: self.label.into(), tensor: name, message });
        }
        let extents = (0..n_extents).map(|_| self.u64("a tensor's extents")).collect::<Result<_>>()?;
        let (kind, offset) = (self.u32("a tensor's type")?, self.u64("a tensor's offset")?);
        Ok(Entry { name, extents, kind, offset })
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<GgufValue> {
        let what = "a metadata value";
        let signed = |value: i64| u64::try_from(value).map_or(GgufValue::Negative(value), GgufValue::Unsigned);
        Ok(match kind {
            0 => GgufValue::Unsigned(u8::from_le_bytes(self.take(what)?).into()),
            1 => signed(i8::from_le_bytes(self.take(what)?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.take(what)?).into()),
            3 => signed(i16::from_le_bytes(self.take(what)?).into()),
            4 => GgufValue::Unsigned(u32::from_le_bytes(self.take(what)?).into()),
            5 => signed(i32::from_le_bytes(self.take(what)?).into()),
            6 => GgufValue::Float(f32::from_le_bytes(self.take(what)?).into()),
            7 => GgufValue::Bool(self.take::<1>(what)? != [0]),
            8 => GgufValue::Text(self.text(what)?),
            9 => {
                let (kind, length) = (self.u32("an array's type")?, self.u64("an array's length")?);
                if depth == MAX_DEPTH {
                    return Err(self.error("its metadata nest too deeply"));
                }
                if length > MAX_ARRAY {
                    return Err(self.error(&format!("{length} values are too many for one array")));
                }
                // Every value takes a byte at least, so a length that lies ends with the file.
                let values = (0..length).map(|_| self.value(kind, depth + 1)).collect::<Result<_>>()?;
                GgufValue::Array(values)
            }
            10 => GgufValue::Unsigned(self.u64(what)?),
            11 => signed(i64::from_le_bytes(self.take(what)?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.take(what)?)),
            other => return Err(self.error(&format!("metadata type {other} is unknown"))),
        })
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let bytes = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| self.short(what))?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.error(&format!("{what} is not UTF-8")))?.to_owned();
        self.at += text.len();
        Ok(text)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    fn take<const SIZE: usize>(&mut self, what: &str) -> Result<[u8; SIZE]> {
        let taken = self.bytes[self.at..].first_chunk::<SIZE>().copied().ok_or_else(|| self.short(what))?;
        self.at += SIZE;
        Ok(taken)
    }

    fn short(&self, what: &str) -> Error {
        self.error(&format!("it ends within {what}, at byte {}", self.bytes.len()))
    }

    fn error(&self, message: &str) -> Error {
        Error::BadGguf { file: self.label.to_owned(), message: message.to_owned() }
    }
}

const ALIGNMENT: &str = "general.alignment";
const MAX_EXTENTS: u32 = 4;
/// The largest vocabularies have a quarter of a million tokens.
const MAX_ARRAY: u64 = 1 << 22;
/// Arrays in arrays; nothing published nests at all.
const MAX_DEPTH: usize = 2;

#[cfg(test)]
mod tests;
