//! In how many bits a model is held, and where what quantising made is kept.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ocelli_engine::{EngineOptions, KvPrecision, PackCache, Quant};

use super::shared::size;

/// In how many bits weights are held.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct PrecisionArgs {
    /// Hold the decoder's weights in fewer bits: less memory and faster answers
    #[arg(long, value_enum, value_name = "PRECISION", default_value_t, hide_default_value = true)]
    quant: QuantArg,

    /// Hold the vision tower's weights in fewer bits, too
    #[arg(long, value_enum, value_name = "PRECISION", default_value_t, hide_default_value = true)]
    quant_vision: QuantVisionArg,

    /// How keys and values of the conversation are kept; the default is what attention multiplies in
    #[arg(long, value_enum, value_name = "PRECISION")]
    kv_cache: Option<KvCacheArg>,

    /// Do not keep quantised weights on disk for the next time
    #[arg(long)]
    no_pack_cache: bool,

    /// Most space for quantised weights on disk; those unused for longest go first [default: 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "no_pack_cache")]
    pack_cache_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum QuantArg {
    /// As they are stored (default)
    #[default]
    None,
    /// Eight bits per weight: half the memory of bfloat16, answers hardly ever differ
    Q8,
    /// Four bits per weight, eight in embedding and output layer: a third of the memory, answers differ now and then
    Q4,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum QuantVisionArg {
    /// As they are stored (default)
    #[default]
    None,
    /// Eight bits per weight
    Q8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KvCacheArg {
    /// As they were computed
    F32,
    /// Half the memory
    Bf16,
    /// A quarter of the memory, for long conversations
    Q8,
}

impl PrecisionArgs {
    /// `options` with what was asked for.
    pub(super) fn apply(&self, options: EngineOptions) -> EngineOptions {
        let folder = if self.no_pack_cache { None } else { pack_folder(|name| std::env::var_os(name)) };
        let max_bytes = self.pack_cache_size.unwrap_or(PackCache::DEFAULT_MAX_BYTES);
        let pack_cache = folder.map(|folder| PackCache { folder, max_bytes });
        let kv_cache = self.kv_cache.map(KvPrecision::from);
        let (quant, quant_vision) = (self.quant.into(), self.quant_vision.into());
        EngineOptions { quant, quant_vision, kv_cache, pack_cache, ..options }
    }
}

impl From<QuantArg> for Quant {
    fn from(quant: QuantArg) -> Self {
        match quant {
            QuantArg::None => Self::None,
            QuantArg::Q8 => Self::Q8,
            QuantArg::Q4 => Self::Q4,
        }
    }
}

impl From<QuantVisionArg> for Quant {
    fn from(quant: QuantVisionArg) -> Self {
        match quant {
            QuantVisionArg::None => Self::None,
            QuantVisionArg::Q8 => Self::Q8,
        }
    }
}

impl From<KvCacheArg> for KvPrecision {
    fn from(precision: KvCacheArg) -> Self {
        match precision {
            KvCacheArg::F32 => Self::Float32,
            KvCacheArg::Bf16 => Self::Bfloat16,
            KvCacheArg::Q8 => Self::Eight,
        }
    }
}

/// `OCELLI_CACHE`, else a folder where the system keeps such things; `None` where there is no such place.
fn pack_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let system = || set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA"));
    let home = || set("HOME").map(|home| home.join(".cache"));
    let ours = set("OCELLI_CACHE").or_else(|| Some(system().or_else(home)?.join("ocelli")))?;
    Some(ours.join("packed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_weights_are_kept_where_the_user_wants_them() {
        let with = |set: &'static [(&str, &str)]| {
            pack_folder(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(with(&[("OCELLI_CACHE", "/c"), ("HOME", "/h")]), Some("/c/packed".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/ocelli/packed".into()));
        assert_eq!(with(&[("OCELLI_CACHE", ""), ("HOME", "/h")]), Some("/h/.cache/ocelli/packed".into()));
        assert_eq!(with(&[]), None);
    }
}
