//! The dispatch table: which instruction sets exist, which of them this processor has, which one is used.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::env;
use std::ops::Range;
use std::sync::OnceLock;

use crate::activation::Activation;
use crate::attention::{KvLayout, Part};
use crate::convolution::Depthwise;
use crate::matmul::Matmul;
use crate::peak::{Peak, PeakFn};
use crate::rope::RopeDims;
use crate::view::MatrixMut;

/// All operations for one instruction set.
///
/// The operations' entry points are methods, each in the file of its algorithm; they check sizes, then make one call
/// through the table.
pub struct Kernels {
    pub(crate) name: &'static str,
    pub(crate) lanes: usize,
    pub(crate) tile_rows: usize,
    pub(crate) matmul_f32_f32: MatmulFn,
    pub(crate) matmul_bf16_f32: MatmulFn,
    pub(crate) matmul_f16_f32: MatmulFn,
    pub(crate) embed_f32: EmbedFn,
    pub(crate) embed_bf16: EmbedFn,
    pub(crate) embed_f16: EmbedFn,
    pub(crate) activate: fn(Activation, &mut [f32]),
    pub(crate) silu_mul: fn(&[f32], &[f32], &mut [f32]),
    pub(crate) add: fn(&[f32], &[f32], &mut [f32]),
    pub(crate) mul: fn(&[f32], &[f32], &mut [f32]),
    pub(crate) rms_norm: fn(&[f32], &[f32], f32, &mut [f32]),
    pub(crate) layer_norm: LayerNormFn,
    pub(crate) rope: RopeFn,
    pub(crate) softmax: fn(&mut [f32]),
    pub(crate) depthwise: fn(&Depthwise<'_>, Range<usize>, &mut [f32]),
    pub(crate) attend_chunk: AttendFn,
    pub(crate) merge_states: fn(&mut [f32], &[f32]),
    pub(crate) finish_state: fn(&[f32], &mut [f32]),
    pub(crate) write_kv: WriteKvFn,
    pub(crate) multiply_adds: PeakFn,
    pub(crate) other_peaks: &'static [Peak],
    pub(crate) quantized: crate::quantized::Table,
    /// What the instruction set does faster with pairs of bfloat16.
    pub(crate) pairs: Option<PairKernels>,
}

/// Operations whose factors are rounded to bfloat16: for those who ask for [`crate::Arithmetic::Bfloat16`].
#[derive(Clone, Copy)]
pub(crate) struct PairKernels {
    pub(crate) matmul: MatmulFn,
    /// Scratch values for that many rows (or fewer) of so many inputs.
    pub(crate) scratch_len: fn(usize, usize) -> usize,
    /// How the products read x.
    pub(crate) round: Rounding,
    /// Rows of so many inputs that a part of a product should not exceed, if that matters: x of them stays in a cache.
    pub(crate) rows_in_cache: Option<fn(usize) -> usize>,
    /// Attention with factors in bfloat16, if that is faster.
    pub(crate) attend: Option<AttendFn>,
}

/// How x becomes pairs.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    /// Rows that are arranged together; what is missing of the last ones is zeros.
    pub(crate) rows: usize,
    /// Rounds rows of so many inputs.
    pub(crate) run: RoundFn,
}

type MatmulFn = fn(&Matmul<'_>, MatrixMut<'_>, &mut [f32]);
type RoundFn = fn(&[f32], usize, &mut [f32]);
pub(crate) type AttendFn = fn(&Part<'_>, &mut [f32], &mut [f32]);
type WriteKvFn = fn(&KvLayout, &mut [f32], usize, &[f32], &[f32]);
type EmbedFn = fn(&[u8], &mut [f32]);
type LayerNormFn = fn(&[f32], &[f32], &[f32], f32, &mut [f32]);
type RopeFn = fn(&[f32], RopeDims, &[f32], &[f32], &mut [f32]);

/// What can be wrong with a wish for an instruction set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No instruction set of that name exists.
    #[error("{VARIABLE}={name}: no such instruction set; known are {}", names().join(", "))]
    UnknownIsa {
        /// The name asked for.
        name: String,
    },
    /// The instruction set exists, but not in this processor (or not in this build).
    #[error("{VARIABLE}={name}: this processor has only {}", available.join(", "))]
    UnavailableIsa {
        /// The name asked for.
        name: String,
        /// Names that would work.
        available: Vec<&'static str>,
    },
}

impl Kernels {
    /// The table for the named instruction set; without a name the one that `OCELLI_ISA` names; without that the
    /// best one that this processor has.
    ///
    /// # Errors
    /// [`Error`] when the name is unknown, or the processor lacks the instruction set.
    pub fn select(name: Option<&str>) -> Result<&'static Self, Error> {
        let features = Features::detected();
        match name {
            Some(name) => select_from(Some(name), features),
            None => select_from(env::var(VARIABLE).ok().filter(|name| !name.is_empty()).as_deref(), features),
        }
    }

    /// Tables of all instruction sets that this processor has, from the slowest to the fastest (an instruction set that
    /// is slow in this processor may come last all the same: it is not the default).
    pub fn available() -> impl Iterator<Item = &'static Self> {
        rows_within(Features::detected())
    }

    /// Whether [`crate::Arithmetic::Bfloat16`] makes a difference to attention.
    pub fn attends_in_pairs(&self) -> bool {
        self.attend_pairs().is_some()
    }

    pub(crate) fn attend_pairs(&self) -> Option<AttendFn> {
        self.pairs.as_ref().and_then(|pairs| pairs.attend)
    }

    /// Name of the instruction set.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// What the processor (and the system, for its registers) offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    avx2: bool,
    avx2_vnni: bool,
    avx512: bool,
    avx512_vnni: bool,
    avx512_bf16: bool,
    /// Products of pairs of bfloat16 take no longer than fused multiply-adds.
    has_fast_bf16: bool,
    /// With VNNI and BF16, and everything that tiles need from the system.
    amx: bool,
    neon: bool,
    neon_dotprod: bool,
    neon_i8mm: bool,
    neon_bf16: bool,
}

impl Features {
    /// Asks the processor, once.
    fn detected() -> Self {
        static DETECTED: OnceLock<Features> = OnceLock::new();
        *DETECTED.get_or_init(Self::detect)
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let avx512 = avx2 && avx512;
        let avx512_vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        let avx512_bf16 = avx512_vnni && is_x86_feature_detected!("avx512bf16");
        Self {
            avx2,
            avx2_vnni: avx2 && is_x86_feature_detected!("avxvnni"),
            avx512,
            avx512_vnni,
            avx512_bf16,
            has_fast_bf16: Self::is_from(b"AuthenticAMD"),
            amx: avx512_bf16 && crate::amx::is_usable(),
            ..Self::default()
        }
    }

    /// Whether the processor names this vendor.
    #[cfg(target_arch = "x86_64")]
    fn is_from(vendor: &[u8; 12]) -> bool {
        let leaf = std::arch::x86_64::__cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == vendor
    }

    #[cfg(target_arch = "aarch64")]
    fn detect() -> Self {
        let neon = is_aarch64_feature_detected!("neon");
        let neon_dotprod = neon && is_aarch64_feature_detected!("dotprod");
        let neon_i8mm = neon_dotprod && is_aarch64_feature_detected!("i8mm");
        let neon_bf16 = neon_i8mm && is_aarch64_feature_detected!("bf16");
        Self { neon, neon_dotprod, neon_i8mm, neon_bf16, ..Self::default() }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn detect() -> Self {
        Self::default()
    }
}

/// One instruction set: its name, and its table if this build has one.
struct Row {
    name: &'static str,
    kernels: Option<&'static Kernels>,
    needs: fn(Features) -> bool,
}

/// All instruction sets there are, from the slowest to the fastest.
const ROWS: &[Row] = &[
    Row { name: "scalar", kernels: Some(&crate::scalar::KERNELS), needs: |_| true },
    #[cfg(target_arch = "x86_64")]
    Row { name: "avx2", kernels: Some(&crate::avx2::KERNELS), needs: |features| features.avx2 },
    #[cfg(target_arch = "x86_64")]
    Row { name: "avx2-vnni", kernels: Some(&crate::avx2::vnni::KERNELS), needs: |features| features.avx2_vnni },
    #[cfg(target_arch = "x86_64")]
    Row { name: "avx512", kernels: Some(&crate::avx512::KERNELS), needs: |features| features.avx512 },
    #[cfg(target_arch = "x86_64")]
    Row { name: "avx512-vnni", kernels: Some(&crate::avx512::vnni::KERNELS), needs: |features| features.avx512_vnni },
    #[cfg(target_arch = "x86_64")]
    Row { name: "avx512-bf16", kernels: Some(&crate::avx512::bf16::KERNELS), needs: |features| features.avx512_bf16 },
    #[cfg(target_arch = "x86_64")]
    Row { name: "amx", kernels: Some(&crate::amx::KERNELS), needs: |features| features.amx },
    #[cfg(not(target_arch = "x86_64"))]
    Row { name: "avx2", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "x86_64"))]
    Row { name: "avx2-vnni", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "x86_64"))]
    Row { name: "avx512", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "x86_64"))]
    Row { name: "avx512-vnni", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "x86_64"))]
    Row { name: "avx512-bf16", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "x86_64"))]
    Row { name: "amx", kernels: None, needs: |_| false },
    #[cfg(target_arch = "aarch64")]
    Row { name: "neon", kernels: Some(&crate::neon::KERNELS), needs: |features| features.neon },
    #[cfg(target_arch = "aarch64")]
    Row {
        name: "neon-dotprod",
        kernels: Some(&crate::neon::dotprod::KERNELS),
        needs: |features| features.neon_dotprod,
    },
    #[cfg(target_arch = "aarch64")]
    Row { name: "neon-i8mm", kernels: Some(&crate::neon::i8mm::KERNELS), needs: |features| features.neon_i8mm },
    #[cfg(target_arch = "aarch64")]
    Row { name: "neon-bf16", kernels: Some(&crate::neon::bf16::KERNELS), needs: |features| features.neon_bf16 },
    #[cfg(not(target_arch = "aarch64"))]
    Row { name: "neon", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "aarch64"))]
    Row { name: "neon-dotprod", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "aarch64"))]
    Row { name: "neon-i8mm", kernels: None, needs: |_| false },
    #[cfg(not(target_arch = "aarch64"))]
    Row { name: "neon-bf16", kernels: None, needs: |_| false },
];

fn select_from(name: Option<&str>, features: Features) -> Result<&'static Kernels, Error> {
    let Some(name) = name else {
        let fast = rows_within(features).filter(|kernels| is_fast(kernels.name, features));
        return Ok(fast.last().expect("scalar needs nothing"));
    };
    if let Some(kernels) = rows_within(features).find(|kernels| kernels.name == name) {
        return Ok(kernels);
    }
    let name = name.to_owned();
    if names().contains(&name.as_str()) {
        let available = rows_within(features).map(|kernels| kernels.name).collect();
        return Err(Error::UnavailableIsa { name, available });
    }
    Err(Error::UnknownIsa { name })
}

fn rows_within(features: Features) -> impl Iterator<Item = &'static Kernels> {
    ROWS.iter().filter(move |row| (row.needs)(features)).filter_map(|row| row.kernels)
}

/// Whether a row is faster than the rows before it, given that the processor has it.
fn is_fast(name: &str, features: Features) -> bool {
    name != "avx512-bf16" || features.has_fast_bf16
}

fn names() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.name).collect()
}

const VARIABLE: &str = "OCELLI_ISA";

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Features = Features {
        avx2: false,
        avx2_vnni: false,
        avx512: false,
        avx512_vnni: false,
        avx512_bf16: false,
        has_fast_bf16: false,
        amx: false,
        neon: false,
        neon_dotprod: false,
        neon_i8mm: false,
        neon_bf16: false,
    };

    #[test]
    fn a_processor_without_an_instruction_set_never_gets_its_table() {
        for wanted in [None, Some("scalar")] {
            assert_eq!(select_from(wanted, NOTHING).unwrap().name(), "scalar");
        }
        assert!(rows_within(NOTHING).all(|kernels| kernels.name() == "scalar"));
        let old = Features { avx2: true, ..NOTHING };
        assert!(rows_within(old).all(|kernels| matches!(kernels.name(), "scalar" | "avx2")));
        let new = Features { avx512: true, ..old };
        let newest = Features { avx512_vnni: true, ..new };
        let old_arm = Features { neon: true, ..NOTHING };
        let new_arm = Features { neon_dotprod: true, ..old_arm };
        let newest_arm = Features { neon_i8mm: true, ..new_arm };
        let missing = [
            ("avx2", NOTHING),
            ("avx2-vnni", old),
            ("avx2-vnni", Features { avx512_vnni: true, ..new }),
            ("avx512", old),
            ("avx512-vnni", NOTHING),
            ("avx512-vnni", new),
            ("neon", NOTHING),
            ("avx512-bf16", Features { avx512_vnni: true, has_fast_bf16: true, ..new }),
            ("amx", NOTHING),
            ("amx", Features { avx512_bf16: true, ..newest }),
            ("neon-dotprod", old_arm),
            ("neon-i8mm", old_arm),
            ("neon-i8mm", new_arm),
            ("neon-bf16", newest_arm),
        ];
        for (wanted, features) in missing {
            let error = select_from(Some(wanted), features).err().unwrap();
            assert!(matches!(&error, Error::UnavailableIsa { name, .. } if name == wanted), "{error}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_best_table_is_the_default() {
        let old = Features { avx2: true, ..NOTHING };
        let new = Features { avx512: true, ..old };
        let newest = Features { avx512_vnni: true, ..new };
        assert_eq!(select_from(None, old).unwrap().name(), "avx2");
        assert_eq!(select_from(None, Features { avx2_vnni: true, ..old }).unwrap().name(), "avx2-vnni");
        assert_eq!(select_from(None, new).unwrap().name(), "avx512");
        assert_eq!(select_from(None, newest).unwrap().name(), "avx512-vnni");
        let server = Features { amx: true, ..newest };
        assert_eq!(select_from(None, server).unwrap().name(), "amx");
        assert_eq!(select_from(Some("avx512-vnni"), server).unwrap().name(), "avx512-vnni");
        assert_eq!(select_from(Some("avx2"), new).unwrap().name(), "avx2");
        // Some processors have the instruction for pairs of bfloat16 without being any faster with it.
        let slow = Features { avx512_bf16: true, ..newest };
        assert_eq!(select_from(None, slow).unwrap().name(), "avx512-vnni");
        assert_eq!(select_from(Some("avx512-bf16"), slow).unwrap().name(), "avx512-bf16");
        let fast = Features { has_fast_bf16: true, ..slow };
        assert_eq!(select_from(None, fast).unwrap().name(), "avx512-bf16");
    }

    #[test]
    #[cfg(target_arch = "aarch64")]
    fn the_best_table_is_the_default() {
        let old = Features { neon: true, ..NOTHING };
        let new = Features { neon_dotprod: true, ..old };
        let newer = Features { neon_i8mm: true, ..new };
        let newest = Features { neon_bf16: true, ..newer };
        assert_eq!(select_from(None, old).unwrap().name(), "neon");
        assert_eq!(select_from(None, new).unwrap().name(), "neon-dotprod");
        assert_eq!(select_from(None, newer).unwrap().name(), "neon-i8mm");
        assert_eq!(select_from(None, newest).unwrap().name(), "neon-bf16");
        assert_eq!(select_from(Some("neon"), newest).unwrap().name(), "neon");
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = Kernels::select(Some("altivec")).err().unwrap();
        let expected = "OCELLI_ISA=altivec: no such instruction set; known are scalar, avx2, avx2-vnni, avx512, avx512-vnni, \
                        avx512-bf16, amx, neon, neon-dotprod, neon-i8mm, neon-bf16";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_missing_instruction_set_is_an_error_that_lists_the_others() {
        let error = select_from(Some("avx512"), NOTHING).err().unwrap();
        assert_eq!(error.to_string(), "OCELLI_ISA=avx512: this processor has only scalar");
    }
}
