//! The `Backend` trait on the processor: buffers, a thread pool, and how work is split between threads.
//!
//! The arithmetic is in `ocelli-kernels`. What a row's result is depends neither on the number of threads nor on how
//! work was split: threads own disjoint parts of an output, and nothing is summed across threads.

mod activations;
mod attention;
mod buffer;
mod convolution;
mod kv;
mod linear;
pub mod machine;
mod ops;
mod pool;
mod topology;
mod weight;

use std::sync::Arc;

use ocelli_kernels::Kernels;

pub use buffer::Buffer;
pub use kv::CpuKvBlocks;
pub use ocelli_kernels::{Arithmetic, KvPrecision};
pub use pool::Awake;
pub use weight::CpuWeight;

use activations::Waiting;
use buffer::BufferPool;
use pool::ThreadPool;

/// A processor with its threads and buffers. Cloning shares them.
#[derive(Clone)]
pub struct CpuBackend {
    shared: Arc<Shared>,
}

struct Shared {
    kernels: &'static Kernels,
    threads: ThreadPool,
    buffers: Arc<BufferPool>,
    arithmetic: Arithmetic,
    waiting: Arc<Waiting>,
    kv: KvPrecision,
}

/// How a [`CpuBackend`] is set up.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; `None` for one per physical core that this process may use.
    pub threads: Option<usize>,
    /// Name of the instruction set; `None` for `OCELLI_ISA`, or else the best one that the processor has.
    pub isa: Option<String>,
    /// How products with bfloat16 weights, and attention, multiply.
    pub arithmetic: Arithmetic,
    /// How keys and values are kept between tokens; `None` for the precision that attention multiplies in.
    pub kv: Option<KvPrecision>,
}

/// Why a [`CpuBackend`] cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The wish for an instruction set cannot be met.
    #[error(transparent)]
    Isa(#[from] ocelli_kernels::Error),
    /// Somebody has to compute, and no machine has a use for more threads than this.
    #[error("threads={threads}: 1 to {MAX_THREADS} are possible")]
    ThreadCount {
        /// How many were asked for.
        threads: usize,
    },
    /// The system refused to start a thread.
    #[error("cannot start {threads} threads")]
    Spawn {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CpuBackend {
    /// Chooses the instruction set and starts the threads.
    ///
    /// # Errors
    /// [`Error`] when the options cannot be met.
    pub fn new(options: CpuOptions) -> Result<Self, Error> {
        let kernels = Kernels::select(options.isa.as_deref())?;
        let threads = options.threads.unwrap_or_else(topology::physical_cores);
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::ThreadCount { threads });
        }
        let threads = ThreadPool::new(threads).map_err(|source| Error::Spawn { threads, source })?;
        let arithmetic = options.arithmetic;
        let is_paired = kernels.attends_in_pairs() && arithmetic == Arithmetic::Bfloat16;
        let multiplied = if is_paired { KvPrecision::Bfloat16 } else { KvPrecision::Float32 };
        let kv = options.kv.unwrap_or(multiplied);
        let (buffers, waiting) = (Arc::default(), Arc::default());
        Ok(Self { shared: Arc::new(Shared { kernels, threads, buffers, arithmetic, waiting, kv }) })
    }

    /// Name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.shared.kernels.name()
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.threads.len()
    }
}

/// The system's own limits show themselves by ending the process.
const MAX_THREADS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_options_are_errors() {
        let error = CpuBackend::new(CpuOptions { threads: Some(0), ..CpuOptions::default() }).err().unwrap();
        assert_eq!(error.to_string(), "threads=0: 1 to 1024 are possible");
        let error = CpuBackend::new(CpuOptions { threads: None, isa: Some("altivec".into()), ..CpuOptions::default() })
            .err()
            .unwrap();
        assert!(matches!(error, Error::Isa(_)), "{error}");
        let source = std::io::Error::other("enough");
        assert_eq!(Error::Spawn { threads: 9, source }.to_string(), "cannot start 9 threads");
    }

    #[test]
    fn options_are_met() {
        let backend =
            CpuBackend::new(CpuOptions { threads: Some(3), isa: Some("scalar".into()), ..CpuOptions::default() })
                .unwrap();
        assert_eq!((backend.threads(), backend.isa()), (3, "scalar"));
    }
}
