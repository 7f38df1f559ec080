//! The machine: its limits, how busy it was, and what this process took of it.

use std::fs;
use std::time::Instant;

use ocelli_backend_cpu::{CpuBackend, CpuOptions, machine};
use serde::Serialize;

use crate::error::Result;
use crate::options::EngineOptions;

/// What the machine could do with so many threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Threads that measured.
    pub threads: usize,
    /// Instruction set of the arithmetic.
    pub isa: &'static str,
    /// Float32 operations per second, multiply and add counted as two.
    pub f32_flops: f64,
    /// Bytes per second that can be read from memory.
    pub read_bytes_per_second: f64,
}

/// Measures the machine's limits; takes about a second and 512 MiB.
///
/// # Errors
/// When the device cannot be used as asked.
pub fn measure_machine(options: &EngineOptions) -> Result<Machine> {
    let backend =
        CpuBackend::new(CpuOptions { threads: options.threads, isa: options.isa.clone(), ..CpuOptions::default() })?;
    Ok(Machine {
        threads: backend.threads(),
        isa: backend.isa(),
        f32_flops: machine::multiply_add_peak(&backend),
        read_bytes_per_second: machine::read_bandwidth(&backend),
    })
}

/// How busy the machine was; `None` where the system does not say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Load {
    /// Processes that wanted to run in the minute before the measurement, on average.
    pub load_average: Option<f64>,
    /// This process's processor time during the runs over their time times the number of threads. Below 1 where threads
    /// wait: for the processor, for memory or for each other.
    pub cpu_share: Option<f64>,
    /// Time that this process's threads waited for a processor that others held, over the same.
    pub waiting_share: Option<f64>,
    /// Whether others had so much of the machine that the figures are not the model's alone.
    pub was_busy: bool,
}

impl Load {
    pub(crate) fn average() -> Option<f64> {
        fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
    }

    fn new(load_average: Option<f64>, cpu_share: Option<f64>, waiting_share: Option<f64>) -> Self {
        // The average also counts what this program did a minute ago: it decides only where waiting is not known.
        let was_busy = match waiting_share {
            Some(share) => share > BUSY_WAITING,
            None => load_average.is_some_and(|load| load > BUSY_LOAD),
        };
        Self { load_average, cpu_share, waiting_share, was_busy }
    }
}

/// Runs from the first run that counts to the last.
pub(crate) struct Clock {
    start: Instant,
    cpu_seconds: Option<f64>,
    waited_seconds: Option<f64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), cpu_seconds: cpu_seconds(), waited_seconds: waited_seconds() }
    }

    pub(crate) fn stop(&self, load_average: Option<f64>, threads: usize) -> Load {
        let available = self.start.elapsed().as_secs_f64() * threads as f64;
        let share = |before: Option<f64>, after: Option<f64>| Some((after? - before?).max(0.0) / available);
        Load::new(load_average, share(self.cpu_seconds, cpu_seconds()), share(self.waited_seconds, waited_seconds()))
    }
}

/// The most memory that this process has held at a time, in bytes.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Processor time of this process.
fn cpu_seconds() -> Option<f64> {
    processor_time(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// From `/proc/self/stat`: user and system time, the 12th and 13th number behind the name, in hundredths.
fn processor_time(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

/// Time that this process's threads were ready to run and did not.
fn waited_seconds() -> Option<f64> {
    let nanoseconds = |folder: fs::DirEntry| {
        let text = fs::read_to_string(folder.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    let waited: Vec<f64> = fs::read_dir("/proc/self/task").ok()?.flatten().filter_map(nanoseconds).collect();
    (!waited.is_empty()).then(|| waited.iter().sum::<f64>() / 1e9)
}

/// A load average above this is somebody else's work.
const BUSY_LOAD: f64 = 0.5;
/// A machine of its own makes a process wait for less than a hundredth of its time.
const BUSY_WAITING: f64 = 0.03;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        assert_eq!(processor_time("7 (a ) b) R 1 1 1 0 -1 4 0 0 0 0 150 50 0 0 20"), Some(2.0));
        assert_eq!(processor_time("nonsense"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory() > Some(1 << 20));
            assert!(cpu_seconds().is_some());
        }
    }

    #[test]
    fn a_busy_machine_is_noticed() {
        assert!(Load::new(Some(2.0), Some(0.9), None).was_busy);
        assert!(Load::new(Some(0.1), Some(0.5), Some(0.2)).was_busy);
        assert!(!Load::new(Some(1.9), Some(0.9), Some(0.001)).was_busy, "an earlier measurement is no other work");
        assert!(!Load::new(None, None, None).was_busy);
    }
}
