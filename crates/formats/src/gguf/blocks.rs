//! The tensor types of GGUF: floats, and blocks of codes with their scales.
//!
//! Every quantised type but one is `code * scale + offset` for 32 weights and goes into a [`GroupedTensor`] as it is.
//! `Q6_K` has groups of 16: its weights are quantised again, with 8 bits for 32 weights.

use half::{bf16, f16};

use crate::affine::to_half;
use crate::bytes::SharedBytes;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::grouped::{CodeBits, GroupedLayout, GroupedTensor, WeightData};
use crate::tensor::TensorData;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Plain(Dtype),
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// A tensor as it lies in a GGUF file.
#[derive(Clone, Debug)]
pub(crate) struct BlockTensor {
    kind: BlockKind,
    shape: Vec<usize>,
    bytes: SharedBytes,
    /// Heads whose rows are interleaved for the file's kind of rotary embedding, to be undone.
    interleaved_heads: Option<usize>,
}

impl BlockKind {
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::Plain(Dtype::F32),
            1 => Self::Plain(Dtype::F16),
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            24 => Self::Plain(Dtype::I8),
            25 => Self::Plain(Dtype::I16),
            26 => Self::Plain(Dtype::I32),
            27 => Self::Plain(Dtype::I64),
            28 => Self::Plain(Dtype::F64),
            30 => Self::Plain(Dtype::BF16),
            _ => return None,
        })
    }

    /// Weights and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.size()),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of a tensor; `None` when its rows are no whole blocks or it is too large.
    pub(crate) fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let (weights, bytes) = self.block();
        let (&last, rows) = shape.split_last().unwrap_or((&1, &[]));
        let row = last.is_multiple_of(weights).then_some(last / weights)?.checked_mul(bytes)?;
        // The number of weights must not overflow either.
        let rows = rows.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
        rows.checked_mul(last)?;
        rows.checked_mul(row)
    }

    fn bits(self) -> CodeBits {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => CodeBits::Four,
            _ => CodeBits::Eight,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Hands out the groups of 32 weights (of 16: `Q6_K`) of one block.
    fn groups(self, block: &[u8], mut each: impl FnMut(&[u8], f32, f32)) {
        match self {
            Self::Plain(_) => {}
            Self::Q4_0 => each(&nibbles(&block[2..]), half_at(block, 0), -8.0 * half_at(block, 0)),
            Self::Q4_1 => each(&nibbles(&block[4..]), half_at(block, 0), half_at(block, 2)),
            Self::Q5_0 => each(&five_bits(&block[2..]), half_at(block, 0), -16.0 * half_at(block, 0)),
            Self::Q5_1 => each(&five_bits(&block[4..]), half_at(block, 0), half_at(block, 2)),
            Self::Q8_0 => {
                let codes: [u8; 32] = std::array::from_fn(|at| block[2 + at] ^ 0x80);
                each(&codes, half_at(block, 0), -128.0 * half_at(block, 0));
            }
            Self::Q4K | Self::Q5K => large_groups(self, block, each),
            Self::Q6K => six_bit_groups(block, each),
        }
    }
}

/// The name of a type, for a message about one that is not read.
pub(crate) fn name_of(id: u32) -> String {
    let known = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    known.iter().find(|(known, _)| *known == id).map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
}

impl BlockTensor {
    /// `bytes` are those of the shape, slowest extent first.
    pub(crate) fn new(kind: BlockKind, shape: Vec<usize>, bytes: SharedBytes) -> Self {
        Self { kind, shape, bytes, interleaved_heads: None }
    }

    /// The same with the rows of every head in the published order: llama.cpp stores the two rows that rotate together
    /// side by side, published checkpoints half a head apart.
    pub(crate) fn with_published_rows(self, heads: usize) -> Self {
        Self { interleaved_heads: Some(heads), ..self }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of what [`BlockTensor::load`] gives, where it gives codes.
    pub(crate) fn loaded_len(&self) -> usize {
        let weights = self.outputs() * self.inputs();
        match self.kind {
            BlockKind::Plain(_) => self.bytes.len(),
            kind => weights / kind.bits().per_byte() + weights / 32 * 2 * size_of::<f16>(),
        }
    }

    /// See [`SharedBytes::release`].
    pub(crate) fn release(&self) {
        self.bytes.release();
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.kind.name()
    }

    pub(crate) fn is_quantized(&self) -> bool {
        !matches!(self.kind, BlockKind::Plain(_))
    }

    pub(crate) fn is_float(&self) -> bool {
        if let BlockKind::Plain(dtype) = self.kind { dtype.is_float() } else { true }
    }

    pub(crate) fn load(&self) -> Result<WeightData> {
        let loaded = match self.kind {
            BlockKind::Plain(dtype) => TensorData::new(dtype, self.shape.clone(), self.bytes.clone())?.into(),
            BlockKind::Q6K => self.requantized()?,
            kind => match self.grouped(kind)? {
                Some(grouped) => grouped.into(),
                None => self.to_floats()?.into(),
            },
        };
        match self.interleaved_heads {
            Some(heads) => self.published_rows(loaded, heads),
            None => Ok(loaded),
        }
    }

    fn inputs(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows, of all matrices where there are several.
    fn outputs(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rows)| rows.iter().product())
    }

    /// `None` where a scale or an offset does not fit f16.
    fn grouped(&self, kind: BlockKind) -> Result<Option<GroupedTensor>> {
        let layout = GroupedLayout::new(kind.bits(), self.inputs(), 32)?;
        let n_groups = self.outputs() * layout.groups();
        let mut codes = Vec::with_capacity(n_groups * layout.group_bytes());
        let (mut scales, mut offsets) = (Vec::with_capacity(n_groups), Vec::with_capacity(n_groups));
        self.each_group(|group, scale, offset| {
            match layout.bits() {
                CodeBits::Eight => codes.extend_from_slice(group),
                CodeBits::Four => codes.extend(group.as_chunks::<2>().0.iter().map(|[even, odd]| even | odd << 4)),
            }
            scales.push(scale);
            offsets.push(offset);
        });
        let largest = scales.iter().fold(0f32, |largest, scale| largest.max(scale.abs()));
        let halves = |values: &[f32]| values.iter().map(|&value| to_half(value, largest)).collect::<Option<Vec<f16>>>();
        let (Some(scales), Some(offsets)) = (halves(&scales), halves(&offsets)) else { return Ok(None) };
        GroupedTensor::new(layout, self.outputs(), codes.into(), scales, offsets).map(Some)
    }

    fn requantized(&self) -> Result<WeightData> {
        let floats = self.to_floats()?;
        let layout = GroupedLayout::new(CodeBits::Eight, self.inputs(), 32)?;
        let grouped = GroupedTensor::quantize(&floats, layout, 0..self.outputs())?;
        Ok(grouped.map_or_else(|| floats.into(), WeightData::from))
    }

    /// bf16, and f32 for types that are quantised once more.
    fn to_floats(&self) -> Result<TensorData> {
        let shape = vec![self.outputs(), self.inputs()];
        let is_final = self.kind != BlockKind::Q6K;
        let mut bytes = Vec::new();
        self.each_group(|codes, scale, offset| {
            for code in codes {
                let number = f32::from(*code) * scale + offset;
                if is_final {
                    bytes.extend(bf16::from_f32(number).to_le_bytes());
                } else {
                    bytes.extend(number.to_le_bytes());
                }
            }
        });
        TensorData::new(if is_final { Dtype::BF16 } else { Dtype::F32 }, shape, bytes.into())
    }

    fn each_group(&self, mut each: impl FnMut(&[u8], f32, f32)) {
        let (_, block) = self.kind.block();
        self.bytes.chunks_exact(block).for_each(|block| self.kind.groups(block, &mut each));
    }

    fn published_rows(&self, loaded: WeightData, heads: usize) -> Result<WeightData> {
        // A bias is a column: one number per row.
        let rows = if self.shape.len() == 1 { self.inputs() } else { self.outputs() };
        let size = rows.checked_div(heads).unwrap_or(0);
        if size == 0 || size % 2 != 0 || size * heads != rows {
            let message = format!("its {rows} rows are not those of {heads} heads");
            return Err(Error::BadQuantizedTensor { tensor: "attn_q or attn_k".into(), message });
        }
        let order = |row: usize| {
            let (head, within) = (row / size, row % size);
            let (half, at) = (within / (size / 2), within % (size / 2));
            head * size + 2 * at + half
        };
        Ok(match loaded {
            WeightData::Grouped(data) => data.with_rows(order).into(),
            WeightData::Float(data) => {
                let row = data.bytes().len() / rows;
                let bytes: Vec<u8> = (0..rows).flat_map(|at| data.bytes()[order(at) * row..][..row].to_vec()).collect();
                TensorData::new(data.dtype(), data.shape().to_vec(), bytes.into())?.into()
            }
        })
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes: the low halves are the first 16 codes, the high ones the last.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|at| if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 })
}

/// 4 bytes of fifth bits, one per code, and 16 bytes as [`nibbles`] reads them.
fn five_bits(bytes: &[u8]) -> [u8; 32] {
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|at| low[at] | (bytes[at / 8] >> (at % 8) & 1) << 4)
}

/// `Q4_K` and `Q5_K`: 8 groups of 32 whose scale and offset are 6-bit multiples of two f16.
fn large_groups(kind: BlockKind, block: &[u8], mut each: impl FnMut(&[u8], f32, f32)) {
    let (scale, minimum, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let (fifths, low) = match kind {
        BlockKind::Q5K => (Some(&block[16..48]), &block[48..]),
        _ => (None, &block[16..]),
    };
    for group in 0..8 {
        let (multiple, below) = six_bit_pair(packed, group);
        let shift = 4 * (group % 2);
        let codes: [u8; 32] = std::array::from_fn(|at| {
            let fifth = fifths.map_or(0, |bits| (bits[at] >> group & 1) << 4);
            (low[32 * (group / 2) + at] >> shift & 15) | fifth
        });
        each(&codes, scale * f32::from(multiple), -minimum * f32::from(below));
    }
}

/// The scale and the minimum of a group in the 12 bytes that hold eight of both.
fn six_bit_pair(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let (low, high) = (packed[group + 4], |at: usize| packed[at] >> 6 << 4);
    (low & 15 | high(group - 4), low >> 4 | high(group))
}

/// `Q6_K`: 16 groups of 16 with an 8-bit multiple of one f16 each, codes less 32.
fn six_bit_groups(block: &[u8], mut each: impl FnMut(&[u8], f32, f32)) {
    let (low, high, multiples, scale) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (group, &multiple) in multiples.iter().enumerate() {
        let codes: [u8; 16] = std::array::from_fn(|within| {
            // 128 weights share 64 low bytes and 32 high ones.
            let (part, at) = (group / 8, (group % 8) * 16 + within);
            let nibble = low[part * 64 + at % 64] >> (4 * (at / 64)) & 15;
            let bits = high[part * 32 + at % 32] >> (2 * (at / 32)) & 3;
            nibble | bits << 4
        });
        let scale = scale * f32::from(multiple as i8);
        each(&codes, scale, -32.0 * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_says_what_becomes_of_every_type() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/quantisation.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        for kind in (0..256).filter_map(BlockKind::from_id) {
            let (weights, bytes) = kind.block();
            let in_memory = match kind {
                BlockKind::Plain(dtype) if !dtype.is_float() => continue,
                BlockKind::Plain(Dtype::F64) => "float32",
                BlockKind::Plain(_) => "as stored",
                _ if kind.bits() == CodeBits::Four => "4 bits, groups of 32",
                _ => "8 bits, groups of 32",
            };
            let row = rows.iter().find(|row| row.len() > 4 && row[1].split(", ").any(|name| name == kind.name()));
            let row = row.unwrap_or_else(|| panic!("no row about {}", kind.name()));
            assert_eq!(row[3], in_memory, "{}", kind.name());
            let place = row[1].split(", ").position(|name| name == kind.name()).unwrap();
            let stored: f32 = row[2].split(", ").nth(place).unwrap().parse().unwrap();
            assert!((stored - (8 * bytes) as f32 / weights as f32).abs() < 0.05, "{}: {stored} bits", kind.name());
        }
    }
}
