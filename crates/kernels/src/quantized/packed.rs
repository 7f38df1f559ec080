//! Weights in 4 or 8 bits, packed so that every instruction set streams them in the order it multiplies them.
//!
//! Outputs are cut into panels of 16, inputs into groups. Panel after panel, and in a panel group after group, comes a
//! *cell* of whole 64-byte lines: the codes, then one line of 16 scales and 16 offsets (half precision).
//! - 8 bits: a line per quad of inputs; byte `4 · output + i` is the code of the quad's input i.
//! - 4 bits: a line per two quads, the first in the low halves of the bytes, the second in the high halves.
//!
//! A line is at once an operand of VNNI, a row of an AMX tile and four registers for NEON's dot products.

use std::ops::Range;

use half::f16;

use super::{LINE, PANEL};

/// Bits per weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeBits {
    /// Codes 0 to 15.
    Four,
    /// Codes 0 to 255.
    Eight,
}

/// Sizes of a packed matrix `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedDims {
    /// Rows of the matrix.
    pub outputs: usize,
    /// Weights per row.
    pub inputs: usize,
    /// Weights per group: 32 or 64. The last group of a row may hold fewer.
    pub group: usize,
    /// Bits per weight.
    pub bits: CodeBits,
}

/// A packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatrix<'a> {
    dims: PackedDims,
    lines: &'a [[u8; LINE]],
}

/// Some rows of a matrix of codes as checkpoints hold them: `weight = code * scale + offset`.
#[derive(Clone, Copy, Debug)]
pub struct GroupedRows<'a> {
    /// Sizes; `outputs` counts these rows.
    pub dims: PackedDims,
    /// `[outputs, inputs padded to whole groups]`, two codes per byte for 4 bits, the first in the low half.
    pub codes: &'a [u8],
    /// `[outputs, groups]`.
    pub scales: &'a [f16],
    /// `[outputs, groups]`.
    pub offsets: &'a [f16],
}

impl CodeBits {
    /// Codes per byte.
    pub fn per_byte(self) -> usize {
        match self {
            Self::Four => 2,
            Self::Eight => 1,
        }
    }
}

impl PackedDims {
    /// Outputs of a panel.
    pub const PANEL: usize = PANEL;

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group)
    }

    /// Inputs of a row, padded to whole groups.
    pub fn padded_inputs(&self) -> usize {
        self.groups() * self.group
    }

    /// Panels of 16 outputs.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Bytes of a panel when packed.
    pub fn panel_len(&self) -> usize {
        self.groups() * self.cell_lines() * LINE
    }

    /// Bytes of the matrix when packed.
    pub fn packed_len(&self) -> usize {
        self.panels() * self.panel_len()
    }

    /// Lines of a cell: its codes', and one with scales and offsets.
    pub(crate) fn cell_lines(&self) -> usize {
        self.group_bytes() * PANEL / LINE + 1
    }

    /// Bytes of a group's codes of one row.
    fn group_bytes(&self) -> usize {
        self.group / self.bits.per_byte()
    }
}

impl<'a> PackedMatrix<'a> {
    /// Bytes that [`GroupedRows::pack`] wrote. They are read fastest where they begin at a multiple of 64.
    ///
    /// # Panics
    /// If the group is neither 32 nor 64, there are no inputs, or the length is not [`PackedDims::packed_len`].
    #[track_caller]
    pub fn new(dims: PackedDims, bytes: &'a [u8]) -> Self {
        assert!(matches!(dims.group, 32 | 64), "groups of {}", dims.group);
        assert!(dims.inputs > 0, "a matrix without inputs");
        assert_eq!(bytes.len(), dims.packed_len(), "bytes of {dims:?}");
        let (lines, _) = bytes.as_chunks();
        Self { dims, lines }
    }

    /// The sizes.
    pub fn dims(&self) -> PackedDims {
        self.dims
    }

    /// The lines of a panel.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> &'a [[u8; LINE]] {
        let lines = self.dims.groups() * self.dims.cell_lines();
        &self.lines[panel * lines..][..lines]
    }

    /// One row of the matrix as float32, for example an embedding; `out` holds `inputs` values.
    ///
    /// # Panics
    /// If there is no such row, or the length differs.
    #[track_caller]
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let dims = self.dims;
        assert!(row < dims.outputs, "row {row} of {}", dims.outputs);
        assert_eq!(out.len(), dims.inputs, "a row of {}", dims.inputs);
        let place = row % PANEL;
        let cells = self.panel(row / PANEL).chunks_exact(dims.cell_lines());
        for (cell, out) in cells.zip(out.chunks_mut(dims.group)) {
            let (factors, lines) = cell.split_last().expect("a cell has a line of scales");
            let half = |at: usize| f16::from_le_bytes([factors[2 * at], factors[2 * at + 1]]).to_f32();
            let (scale, offset) = (half(place), half(PANEL + place));
            for (quad, out) in out.chunks_mut(4).enumerate() {
                let (line, shift) = match dims.bits {
                    CodeBits::Four => (&lines[quad / 2], 4 * (quad % 2)),
                    CodeBits::Eight => (&lines[quad], 0),
                };
                let mask = if dims.bits == CodeBits::Four { 15 } else { 255 };
                for (value, code) in out.iter_mut().zip(&line[4 * place..]) {
                    *value = f32::from((code >> shift) & mask).mul_add(scale, offset);
                }
            }
        }
    }
}

impl<'a> GroupedRows<'a> {
    /// The rows of some panels, so that threads can share the packing, or loading can go piece by piece.
    ///
    /// # Panics
    /// If the parts are not as long as the sizes say, or there are not as many panels.
    #[track_caller]
    pub fn panels(&self, panels: Range<usize>) -> Self {
        let dims = self.dims;
        let rows = panels.start * PANEL..dims.outputs.min(panels.end * PANEL);
        let part = |per_row: usize| rows.start * per_row..rows.end * per_row;
        Self {
            dims: PackedDims { outputs: rows.len(), ..dims },
            codes: &self.codes[part(dims.groups() * dims.group_bytes())],
            scales: &self.scales[part(dims.groups())],
            offsets: &self.offsets[part(dims.groups())],
        }
    }

    /// Packs these rows; `out` holds [`PackedDims::packed_len`] bytes.
    ///
    /// # Panics
    /// If a part is not as long as the sizes say.
    #[track_caller]
    pub fn pack(&self, out: &mut [u8]) {
        let dims = self.dims;
        let (groups, group_bytes) = (dims.groups(), dims.group_bytes());
        assert!(matches!(dims.group, 32 | 64), "groups of {}", dims.group);
        assert_eq!(self.codes.len(), dims.outputs * groups * group_bytes, "codes of {dims:?}");
        assert_eq!(self.scales.len(), dims.outputs * groups, "scales of {dims:?}");
        assert_eq!(self.offsets.len(), dims.outputs * groups, "offsets of {dims:?}");
        assert_eq!(out.len(), dims.packed_len(), "packed bytes of {dims:?}");
        for (panel, out) in out.chunks_exact_mut(dims.panel_len().max(1)).enumerate() {
            let rows = PANEL.min(dims.outputs - panel * PANEL);
            if rows < PANEL {
                out.fill(0);
            }
            for (group, cell) in out.chunks_exact_mut(dims.cell_lines() * LINE).enumerate() {
                let (lines, factors) = cell.split_at_mut(group_bytes * PANEL);
                for place in 0..rows {
                    let at = (panel * PANEL + place) * groups + group;
                    let codes = &self.codes[at * group_bytes..][..group_bytes];
                    for (codes, line) in codes.as_chunks::<4>().0.iter().zip(lines.as_chunks_mut::<LINE>().0) {
                        let codes = match dims.bits {
                            CodeBits::Four => halves_by_quad(*codes),
                            CodeBits::Eight => *codes,
                        };
                        line[4 * place..][..4].copy_from_slice(&codes);
                    }
                    factors[2 * place..][..2].copy_from_slice(&self.scales[at].to_le_bytes());
                    factors[2 * (PANEL + place)..][..2].copy_from_slice(&self.offsets[at].to_le_bytes());
                }
            }
        }
    }
}

/// Eight codes in the order of the row -> the first four in the low halves, the others in the high halves.
fn halves_by_quad(codes: [u8; 4]) -> [u8; 4] {
    let codes = u32::from_le_bytes(codes);
    // A perfect shuffle of the eight halves: the middle bytes change places, then the middle halves of each pair.
    let codes = (codes & 0xFF00_00FF) | ((codes & 0x0000_FF00) << 8) | ((codes >> 8) & 0x0000_FF00);
    let codes = (codes & 0xF00F_F00F) | ((codes & 0x00F0_00F0) << 4) | ((codes >> 4) & 0x00F0_00F0);
    codes.to_le_bytes()
}
