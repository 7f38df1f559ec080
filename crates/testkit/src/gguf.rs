//! [`GgufWriter`]: GGUF files for tests.

/// A GGUF file in the making. Tensors are written in the order they were added.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<u8>,
    n_entries: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

/// The type numbers of tensors.
pub mod gguf_type {
    /// 32-bit floats.
    pub const F32: u32 = 0;
    /// Half precision floats.
    pub const F16: u32 = 1;
    /// 4-bit codes with a scale for 32.
    pub const Q4_0: u32 = 2;
    /// 8-bit codes with a scale for 32.
    pub const Q8_0: u32 = 8;
}

impl GgufWriter {
    /// Metadata of any type: its number and its bytes.
    #[must_use]
    pub fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        push_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.n_entries += 1;
        self
    }

    /// A 32-bit number.
    #[must_use]
    pub fn number(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    /// A 32-bit float.
    #[must_use]
    pub fn float(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    /// A truth value.
    #[must_use]
    pub fn flag(self, key: &str, value: bool) -> Self {
        self.entry(key, 7, &[u8::from(value)])
    }

    /// A text.
    #[must_use]
    pub fn text(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        push_text(&mut bytes, value);
        self.entry(key, 8, &bytes)
    }

    /// A list of texts.
    #[must_use]
    pub fn texts(self, key: &str, values: &[String]) -> Self {
        let mut bytes = array(8, values.len());
        values.iter().for_each(|value| push_text(&mut bytes, value));
        self.entry(key, 9, &bytes)
    }

    /// A list of signed 32-bit numbers.
    #[must_use]
    pub fn numbers(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = array(5, values.len());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, &bytes)
    }

    /// A tensor of `shape`, slowest extent first; `kind` as in [`gguf_type`].
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> Self {
        let extents = shape.iter().rev().map(|&extent| extent as u64).collect();
        self.tensors.push((name.into(), extents, kind, bytes));
        self
    }

    /// A tensor of 32-bit floats.
    #[must_use]
    pub fn floats(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, shape, gguf_type::F32, bytes)
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.n_entries.to_le_bytes());
        file.extend(self.metadata);
        let mut data = Vec::new();
        for (name, extents, kind, bytes) in self.tensors {
            push_text(&mut file, &name);
            file.extend((extents.len() as u32).to_le_bytes());
            extents.iter().for_each(|extent| file.extend(extent.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(data);
        file
    }
}

fn push_text(bytes: &mut Vec<u8>, value: &str) {
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend(value.as_bytes());
}

fn array(kind: u32, length: usize) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(length as u64).to_le_bytes()].concat()
}

const ALIGNMENT: usize = 32;
