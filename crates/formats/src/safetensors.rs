//! One safetensors file, checked completely before any tensor is handed out.
//!
//! Layout: u64 header length, a JSON header `{"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {..}}`,
//! then the data, which the tensors must tile without gap or overlap. Files come from strangers, so everything the
//! format promises is verified here and [`Safetensors::tensor`] cannot fail. Tensors may start at any alignment.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::bytes::SharedBytes;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::{TensorData, byte_len};

/// A parsed safetensors file: its tensors by name, as views of the file's bytes.
#[derive(Clone, Debug)]
pub struct Safetensors {
    tensors: BTreeMap<String, TensorData>,
    metadata: BTreeMap<String, String>,
}

impl Safetensors {
    /// Reads the header of `bytes`; `label` names the file in errors. Callable on arbitrary bytes.
    ///
    /// # Errors
    /// One variant of [`Error`] for each way a file can be malformed; see the variants that carry `file`.
    pub fn parse(bytes: SharedBytes, label: &str) -> Result<Self> {
        let header_end = header_end(&bytes, label)?;
        let text = std::str::from_utf8(&bytes[LENGTH_FIELD..header_end])
            .map_err(|_| Error::HeaderNotUtf8 { file: label.into() })?;
        let header = parse_header(text, label)?;
        let data = bytes.slice(header_end..bytes.len()).expect("header_end is within the file");
        check_tiling(&header.entries, data.len(), label)?;
        let tensors = header.entries.into_iter().map(|entry| entry.view(&data, label)).collect::<Result<_>>()?;
        Ok(Self { tensors, metadata: header.metadata.unwrap_or_default() })
    }

    /// The tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A view of one tensor.
    pub fn tensor(&self, name: &str) -> Option<TensorData> {
        self.tensors.get(name).cloned()
    }

    /// The `__metadata__` of the header, such as `format: pt` or `format: mlx`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors, for [`crate::Checkpoint`].
    pub(crate) fn into_tensors(self) -> BTreeMap<String, TensorData> {
        self.tensors
    }
}

/// Where the header ends and the data begins.
fn header_end(bytes: &[u8], label: &str) -> Result<usize> {
    let file = || label.to_string();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(Error::TooShort { file: file(), length: bytes.len() });
    };
    let length = u64::from_le_bytes(*length);
    let available = rest.len() as u64;
    if length > MAX_HEADER {
        return Err(Error::HeaderTooLong { file: file(), length, limit: MAX_HEADER });
    }
    if length > available {
        return Err(Error::HeaderBeyondEnd { file: file(), length, available });
    }
    Ok(LENGTH_FIELD + length as usize)
}

fn parse_header(text: &str, label: &str) -> Result<Header> {
    let file = || label.to_string();
    // Writers may pad the header with spaces at its end, but it starts with the object.
    if !text.starts_with('{') {
        return Err(Error::HeaderNotJson { file: file(), message: "it does not start with `{`".into() });
    }
    let mut header = Header::default();
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(HeaderVisitor { header: &mut header }).and_then(|()| json.end()).map_err(
        |error| match header.current.take() {
            Some(tensor) if error.is_data() => Error::HeaderEntry { file: file(), tensor, message: error.to_string() },
            _ => Error::HeaderNotJson { file: file(), message: error.to_string() },
        },
    )?;
    header.entries.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = header.entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::DuplicateTensor { file: file(), tensor: pair[0].name.clone() });
    }
    if header.metadata_twice {
        return Err(Error::DuplicateTensor { file: file(), tensor: METADATA.into() });
    }
    Ok(header)
}

/// Checks that the entries cover the data exactly once, in any order of names.
fn check_tiling(entries: &[Entry], available: usize, label: &str) -> Result<()> {
    let file = || label.to_string();
    let mut in_order: Vec<&Entry> = entries.iter().collect();
    in_order.sort_by_key(|entry| entry.offsets);
    let (mut covered, mut previous) = (0, "");
    for entry in in_order {
        let ((begin, end), tensor) = (entry.offsets, entry.name.clone());
        if begin > end {
            return Err(Error::ReversedOffsets { file: file(), tensor, begin, end });
        }
        if end > available {
            return Err(Error::OffsetsOutOfRange { file: file(), tensor, end, available });
        }
        if begin < covered {
            return Err(Error::Overlap { file: file(), first: previous.into(), second: tensor });
        }
        if begin > covered {
            return Err(Error::Hole { file: file(), tensor, begin: covered, end: begin });
        }
        (covered, previous) = (end, &entry.name);
    }
    if covered < available {
        return Err(Error::TrailingBytes { file: file(), extra: available - covered });
    }
    Ok(())
}

#[derive(Default)]
struct Header {
    entries: Vec<Entry>,
    metadata: Option<BTreeMap<String, String>>,
    metadata_twice: bool,
    /// The key being read, so that an error inside its value can name it.
    current: Option<String>,
}

struct Entry {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    offsets: (usize, usize),
}

impl Entry {
    fn view(self, data: &SharedBytes, label: &str) -> Result<(String, TensorData)> {
        let Self { name: tensor, dtype, shape, offsets: (begin, end) } = self;
        let file = label.to_string();
        let Some(dtype) = Dtype::from_name(&dtype) else {
            return Err(Error::UnknownDtype { file, tensor, dtype });
        };
        let Some(expected) = byte_len(dtype, &shape) else {
            return Err(Error::ShapeOverflow { file, tensor, shape });
        };
        if expected != end - begin {
            return Err(Error::LengthMismatch { file, tensor, dtype, shape, expected, actual: end - begin });
        }
        let bytes = data.slice(begin..end).expect("offsets were checked against the data");
        Ok((tensor, TensorData::new(dtype, shape, bytes)?))
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Collects entries in a list: a map would silently keep only the last of two equal names.
struct HeaderVisitor<'a> {
    header: &'a mut Header,
}

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            self.header.current = Some(name.clone());
            if name == METADATA {
                self.header.metadata_twice |= self.header.metadata.is_some();
                // The reference implementation takes null for none.
                self.header.metadata = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
            } else {
                let RawEntry { dtype, shape, data_offsets } = map.next_value()?;
                self.header.entries.push(Entry { name, dtype, shape, offsets: data_offsets });
            }
            self.header.current = None;
        }
        Ok(())
    }
}

const LENGTH_FIELD: usize = 8;
/// The limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
const METADATA: &str = "__metadata__";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn parse(header: &str, data: &[u8]) -> Result<Safetensors> {
        Safetensors::parse(file(header, data).into(), "w.safetensors")
    }

    fn error(header: &str, data: &[u8]) -> Error {
        parse(header, data).expect_err("the file is malformed")
    }

    fn entry(name: &str, shape: &str, begin: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn header(entries: &[String]) -> String {
        format!("{{{}}}", entries.join(","))
    }

    #[test]
    fn reads_tensors_and_metadata_in_any_order() {
        let text = r#"{"b":{"dtype":"I16","shape":[2,1],"data_offsets":[1,5]},"__metadata__":{"format":"mlx"},
            "a":{"dtype":"BOOL","shape":[],"data_offsets":[0,1]},
            "c":{"dtype":"F32","shape":[0,9],"data_offsets":[5,5]}}   "#;
        let parsed = parse(text, &[1, 2, 0, 255, 255]).unwrap();
        assert_eq!(parsed.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(parsed.metadata()["format"], "mlx");
        let b = parsed.tensor("b").unwrap();
        // `b` starts at an odd offset: reading assumes no alignment.
        assert_eq!((b.dtype(), b.shape(), b.to_i64().unwrap()), (Dtype::I16, &[2, 1][..], vec![2, -1]));
        assert_eq!(parsed.tensor("a").unwrap().to_i64().unwrap(), [1]);
        assert_eq!(parsed.tensor("c").unwrap().n_elements(), 0);
        assert!(parsed.tensor("d").is_none());
    }

    #[test]
    fn empty_header_and_null_metadata_are_allowed() {
        assert_eq!(parse("{}", &[]).unwrap().names().count(), 0);
        assert!(parse(r#"{"__metadata__":null}"#, &[]).unwrap().metadata().is_empty());
    }

    #[test]
    fn too_short() {
        let error = Safetensors::parse(vec![0; 7].into(), "w").unwrap_err();
        assert!(matches!(error, Error::TooShort { length: 7, .. }));
        assert_eq!(error.to_string(), "w: 7 bytes are too few for a safetensors file");
        assert!(error.hint().is_some());
    }

    #[test]
    fn header_too_long() {
        let bytes = u64::MAX.to_le_bytes().to_vec();
        let error = Safetensors::parse(bytes.into(), "w").unwrap_err();
        assert!(matches!(error, Error::HeaderTooLong { length: u64::MAX, .. }));
    }

    #[test]
    fn header_beyond_end() {
        let bytes = [&100u64.to_le_bytes()[..], b"{}"].concat();
        let error = Safetensors::parse(bytes.into(), "w").unwrap_err();
        assert!(matches!(error, Error::HeaderBeyondEnd { length: 100, available: 2, .. }));
    }

    #[test]
    fn header_not_utf8() {
        let bytes = [&2u64.to_le_bytes()[..], &[b'{', 0xff]].concat();
        let error = Safetensors::parse(bytes.into(), "w").unwrap_err();
        assert!(matches!(error, Error::HeaderNotUtf8 { .. }));
    }

    #[test]
    fn header_not_json() {
        for text in ["", "[]", " {}", "{", r#"{"a":"#, "{} x", r#"{"a":{"dtype":"U8",}}"#] {
            assert!(matches!(error(text, &[]), Error::HeaderNotJson { .. }), "{text}");
        }
        let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
        assert!(parse(&deep, &[]).is_err(), "nesting must not overflow the stack");
    }

    #[test]
    fn header_entry_names_the_tensor() {
        let cases = [
            r#"{"bad":{"dtype":"U8","shape":[1]}}"#,
            r#"{"bad":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
            r#"{"bad":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#,
            r#"{"bad":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#,
            r#"{"bad":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
            r#"{"bad":7}"#,
        ];
        for text in cases {
            assert!(matches!(error(text, &[0]), Error::HeaderEntry { tensor, .. } if tensor == "bad"), "{text}");
        }
        let metadata = error(r#"{"__metadata__":{"a":1}}"#, &[]);
        assert!(metadata.to_string().starts_with("w.safetensors: header entry `__metadata__`: invalid type"));
    }

    #[test]
    fn duplicate_tensor() {
        let twice = header(&[entry("a", "[1]", 0, 1), entry("b", "[1]", 1, 2), entry("a", "[1]", 0, 1)]);
        assert!(matches!(error(&twice, &[0, 0]), Error::DuplicateTensor { tensor, .. } if tensor == "a"));
        let metadata = error(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]);
        assert!(matches!(metadata, Error::DuplicateTensor { tensor, .. } if tensor == "__metadata__"));
    }

    #[test]
    fn unknown_dtype() {
        let error = error(r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, &[0]);
        assert_eq!(error.to_string(), "w.safetensors: tensor `a`: element type `F4` is not supported");
    }

    #[test]
    fn shape_overflow() {
        let text = header(&[entry("a", "[18446744073709551615,2]", 0, 1)]);
        assert!(matches!(error(&text, &[0]), Error::ShapeOverflow { tensor, .. } if tensor == "a"));
    }

    #[test]
    fn reversed_offsets() {
        let text = header(&[entry("a", "[1]", 1, 0)]);
        assert!(matches!(error(&text, &[0]), Error::ReversedOffsets { begin: 1, end: 0, .. }));
    }

    #[test]
    fn offsets_out_of_range() {
        let text = header(&[entry("a", "[2]", 0, 2)]);
        let error = error(&text, &[0]);
        assert!(matches!(error, Error::OffsetsOutOfRange { end: 2, available: 1, .. }));
        assert!(error.hint().unwrap().contains("truncated"));
    }

    #[test]
    fn overlap() {
        let text = header(&[entry("a", "[2]", 0, 2), entry("b", "[2]", 1, 3)]);
        let overlap = error(&text, &[0; 3]);
        assert_eq!(overlap.to_string(), "w.safetensors: tensors `a` and `b` overlap");
        let inside = header(&[entry("a", "[3]", 0, 3), entry("b", "[0]", 1, 1)]);
        assert!(matches!(error(&inside, &[0; 3]), Error::Overlap { .. }));
    }

    #[test]
    fn hole() {
        let text = header(&[entry("a", "[1]", 0, 1), entry("b", "[1]", 3, 4)]);
        assert!(matches!(error(&text, &[0; 4]), Error::Hole { tensor, begin: 1, end: 3, .. } if tensor == "b"));
        let leading = header(&[entry("a", "[1]", 1, 2)]);
        assert!(matches!(error(&leading, &[0; 2]), Error::Hole { begin: 0, end: 1, .. }));
    }

    #[test]
    fn trailing_bytes() {
        assert!(matches!(error(&header(&[entry("a", "[1]", 0, 1)]), &[0; 3]), Error::TrailingBytes { extra: 2, .. }));
        assert!(matches!(error("{}", &[0]), Error::TrailingBytes { extra: 1, .. }));
    }

    #[test]
    fn length_mismatch() {
        let error = error(&header(&[entry("a", "[2,2]", 0, 3)]), &[0; 3]);
        let text = "w.safetensors: tensor `a`: U8 [2, 2] takes 4 bytes, its offsets hold 3";
        assert_eq!(error.to_string(), text);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Safetensors::parse(bytes.into(), "w");
        }

        #[test]
        fn damaged_files_never_panic(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            keep in any::<prop::sample::Index>(),
            truncate in any::<bool>(),
        ) {
            let text = header(&[entry("a", "[2,2]", 0, 4), entry("b", "[1]", 4, 5), entry("c", "[0]", 5, 5)]);
            let mut bytes = file(&text, &[0; 5]);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if truncate {
                bytes.truncate(keep.index(bytes.len()));
            }
            if let Ok(parsed) = Safetensors::parse(bytes.into(), "w") {
                for name in parsed.names() {
                    let tensor = parsed.tensor(name).unwrap();
                    prop_assert_eq!(tensor.n_elements(), tensor.shape().iter().product::<usize>());
                }
            }
        }

        #[test]
        fn any_tiling_reads_back(sizes in proptest::collection::vec(0usize..9, 0..12)) {
            let (mut entries, mut offset) = (Vec::new(), 0);
            for (idx, size) in sizes.iter().enumerate() {
                entries.push(entry(&format!("t{idx:02}"), &format!("[{size}]"), offset, offset + size));
                offset += size;
            }
            let data: Vec<u8> = (0..offset).map(|byte| byte as u8).collect();
            let parsed = parse(&header(&entries), &data).unwrap();
            let joined: Vec<u8> =
                parsed.names().flat_map(|name| parsed.tensor(name).unwrap().bytes().to_vec()).collect();
            prop_assert_eq!(joined, data);
        }
    }
}
