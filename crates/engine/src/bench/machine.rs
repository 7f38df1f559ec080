//! The machine's limits, and what this process took of its memory.

use std::collections::BTreeMap;
use std::fs;

use ocelli_backend_cpu::{CpuBackend, machine};
use serde::Serialize;

use super::busy::{Clock, Load};
use super::subject::backend;
use crate::error::Result;
use crate::options::EngineOptions;

/// What the machine could do with so many threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Threads that measured.
    pub threads: usize,
    /// Instruction set of the arithmetic.
    pub isa: &'static str,
    /// Operations per second, multiply and add counted as two, by what is multiplied: `f32` always, `bf16` and `int8`
    /// where the instruction set has instructions for them.
    pub operations_per_second: BTreeMap<&'static str, f64>,
    /// Bytes per second that can be read from memory.
    pub read_bytes_per_second: f64,
    /// What matrix products come to; empty unless they were asked for.
    pub products: Vec<Product>,
    /// How busy the machine was meanwhile.
    pub load: Load,
}

/// A matrix product next to what limits it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Product {
    /// How the weights are held: `f32`, `bf16`, `q8`, `q4`.
    pub weights: &'static str,
    /// Rows that meet them: many, as in a prompt, or one, as in decoding.
    pub rows: usize,
    /// Length of a row.
    pub inputs: usize,
    /// Length of a result's row.
    pub outputs: usize,
    /// A multiply-add counted as two.
    pub operations_per_second: f64,
    /// Bytes of weights.
    pub bytes_per_second: f64,
    /// What limits it, and how near it comes.
    pub share: Share,
}

/// How near something comes to one of the machine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// `read`, or a key of [`Machine::operations_per_second`].
    pub of: &'static str,
    /// 1 is the limit itself.
    pub share: f64,
}

/// Measures the machine's limits, and with `products` how near matrix products come; takes about a second and 512 MiB,
/// with products some seconds.
///
/// # Errors
/// When the device cannot be used as asked.
pub fn measure_machine(options: &EngineOptions, products: bool) -> Result<Machine> {
    let backend: CpuBackend = backend(options)?;
    let (load_average, clock) = (Load::average(), Clock::start());
    let limits = Machine {
        threads: backend.threads(),
        isa: backend.isa(),
        operations_per_second: machine::peaks(&backend).collect(),
        read_bytes_per_second: machine::read_bandwidth(&backend),
        products: Vec::new(),
        load: Load::default(),
    };
    let measured = products.then(|| machine::products(&backend)).into_iter().flatten();
    let products = measured.map(|product| limits.judge(product)).collect();
    Ok(Machine { products, load: clock.stop(load_average, limits.threads), ..limits })
}

impl Machine {
    /// Operations per second next to the limit for weights of so many bytes each.
    pub(crate) fn arithmetic(&self, operations_per_second: f64, bytes_per_weight: f64) -> Share {
        let wanted: &[&'static str] = match bytes_per_weight {
            bytes if bytes < 1.5 => &["int8", "f32"],
            bytes if bytes < 3.0 => &["bf16", "f32"],
            _ => &["f32"],
        };
        let limits = wanted.iter().filter_map(|&of| Some((of, *self.operations_per_second.get(of)?)));
        // What an instruction set lacks is done in float32, which every one has.
        let (of, limit) = limits.into_iter().next().unwrap_or(("f32", f64::NAN));
        Share { of, share: operations_per_second / limit }
    }

    /// Bytes per second next to what can be read.
    pub(crate) fn reading(&self, bytes_per_second: f64) -> Share {
        Share { of: "read", share: bytes_per_second / self.read_bytes_per_second }
    }

    fn judge(&self, product: machine::Product) -> Product {
        let machine::Product { weights, rows, operations_per_second, bytes_per_second } = product;
        let [inputs, outputs] = machine::PRODUCT_SHAPE;
        // A weight meets every row once: two operations each.
        let bytes_per_weight = 2.0 * rows as f64 * bytes_per_second / operations_per_second;
        let share = match rows {
            1 => self.reading(bytes_per_second),
            _ => self.arithmetic(operations_per_second, bytes_per_weight),
        };
        Product { weights, rows, inputs, outputs, operations_per_second, bytes_per_second, share }
    }
}

/// The most memory that this process has held at a time, in bytes.
pub(crate) fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// What of this process's memory are pages of files, in bytes.
pub(crate) fn file_memory() -> Option<u64> {
    status("RssFile:")
}

/// Makes [`peak_memory`] begin anew; whether the system can.
pub(crate) fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn status(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_arithmetic_in_use() {
        let machine = |kinds: &[(&'static str, f64)]| Machine {
            threads: 1,
            isa: "any",
            operations_per_second: kinds.iter().copied().collect(),
            read_bytes_per_second: 50.0,
            products: Vec::new(),
            load: Load::default(),
        };
        let all = machine(&[("f32", 10.0), ("bf16", 20.0), ("int8", 40.0)]);
        for (bytes_per_weight, of, share) in
            [(0.5625, "int8", 0.25), (1.0625, "int8", 0.25), (2.0, "bf16", 0.5), (4.0, "f32", 1.0)]
        {
            assert_eq!(all.arithmetic(10.0, bytes_per_weight), Share { of, share });
        }
        assert_eq!(machine(&[("f32", 10.0)]).arithmetic(5.0, 2.0), Share { of: "f32", share: 0.5 });
        let product =
            |rows| machine::Product { weights: "q8", rows, operations_per_second: 20.0, bytes_per_second: 10.0 };
        assert_eq!(all.judge(product(1)).share, Share { of: "read", share: 0.2 });
        let many = machine::Product { bytes_per_second: 20.0 / 8.0, ..product(4) };
        assert_eq!(all.judge(many).share, Share { of: "int8", share: 0.5 });
    }

    #[test]
    fn memory_is_known_where_the_system_tells() {
        if cfg!(target_os = "linux") {
            assert!(peak_memory() > Some(1 << 20));
            assert!(file_memory() > Some(1 << 16));
        }
    }
}
