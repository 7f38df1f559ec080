//! What else went on during the runs: others at work, threads that had to wait, a clock that slowed down.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;

/// How much of the machine the runs had; `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Processes that wanted to run in the minute before the measurement, on average.
    pub load_average: Option<f64>,
    /// This process's processor time during the runs over their time times the number of threads. Below 1 where threads
    /// wait: for the processor, for memory or for each other.
    pub cpu_share: Option<f64>,
    /// Time that this process's threads waited for a processor that others held, over the same.
    pub waiting_share: Option<f64>,
    /// Processors that other processes (or, where this machine is a virtual one, others on its host) kept busy.
    pub other_processors: Option<f64>,
    /// The slowest clock that was seen over the fastest, by a loop of fixed length between the runs.
    pub slowest_clock: Option<f64>,
    /// Whether others had so much of the machine that the figures are not the model's alone.
    pub was_busy: bool,
    /// Whether the processor slowed down.
    pub was_throttled: bool,
}

impl Load {
    pub(crate) fn average() -> Option<f64> {
        fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
    }

    /// Draws the conclusions.
    fn judged(self) -> Self {
        let above = |value: Option<f64>, limit: f64| value.map(|value| value > limit);
        let measured = [above(self.waiting_share, BUSY_WAITING), above(self.other_processors, BUSY_OTHERS)];
        // The average also counts what this program did a minute ago: it decides only where nothing else is known.
        let was_busy = match measured {
            [None, None] => above(self.load_average, BUSY_LOAD).unwrap_or(false),
            _ => measured.contains(&Some(true)),
        };
        Self { was_busy, was_throttled: self.slowest_clock.is_some_and(|clock| clock < THROTTLED), ..self }
    }
}

/// Runs from the first run that counts to the last.
pub(crate) struct Clock {
    start: Instant,
    cpu_seconds: Option<f64>,
    waited_seconds: Option<f64>,
    all_seconds: Option<f64>,
    /// Seconds of the loop of fixed length, whenever it ran.
    loops: Vec<f64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let loops = vec![fixed_loop()];
        Self {
            start: Instant::now(),
            cpu_seconds: cpu_seconds(),
            waited_seconds: waited_seconds(),
            all_seconds: all_seconds(),
            loops,
        }
    }

    /// To be called after every run; takes about a millisecond.
    pub(crate) fn look(&mut self) {
        self.loops.push(fixed_loop());
    }

    pub(crate) fn stop(&self, load_average: Option<f64>, threads: usize) -> Load {
        let elapsed = self.start.elapsed().as_secs_f64();
        let since = |before: Option<f64>, after: Option<f64>| Some((after? - before?).max(0.0));
        let cpu = since(self.cpu_seconds, cpu_seconds());
        let others = since(self.all_seconds, all_seconds()).zip(cpu).map(|(all, own)| all - own);
        let share = |seconds: Option<f64>| seconds.map(|seconds| seconds / (elapsed * threads as f64));
        let fastest = self.loops.iter().copied().fold(f64::INFINITY, f64::min);
        let slowest = self.loops.iter().copied().fold(0.0, f64::max);
        Load {
            load_average,
            cpu_share: share(cpu),
            waiting_share: share(since(self.waited_seconds, waited_seconds())),
            // The system counts in steps of ten milliseconds, one per processor.
            other_processors: others.map(|others| if others < 0.05 { 0.0 } else { others / elapsed }),
            slowest_clock: Some(fastest / slowest),
            ..Load::default()
        }
        .judged()
    }
}

/// Seconds of a chain of integer operations whose length never changes: only the clock can make it slower. The best of
/// several, since a thread may be interrupted.
fn fixed_loop() -> f64 {
    let seconds = |_| {
        let start = Instant::now();
        let mut value = black_box(1u64);
        for _ in 0..LOOP_ROUNDS {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        black_box(value);
        start.elapsed().as_secs_f64()
    };
    (0..5).map(seconds).fold(f64::INFINITY, f64::min)
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

/// Time that all processors together were not idle.
fn all_seconds() -> Option<f64> {
    busy_time(&fs::read_to_string("/proc/stat").ok()?)
}

/// From `/proc/stat`: the first eight numbers of all processors (the others are parts of them) without the idle ones, in
/// hundredths.
fn busy_time(stat: &str) -> Option<f64> {
    let fields: Option<Vec<f64>> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).map(|field| field.parse().ok()).collect();
    let fields = fields?;
    // user, nice, system, idle, waiting for devices, interrupts (two kinds), stolen by the host.
    let idle = fields.get(3)? + fields.get(4)?;
    Some((fields.iter().sum::<f64>() - idle) / 100.0)
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
/// What a quiet system does beside us is a few hundredths of a processor.
const BUSY_OTHERS: f64 = 0.2;
/// Clocks breathe by some hundredths.
const THROTTLED: f64 = 0.9;
/// About a tenth of a millisecond.
const LOOP_ROUNDS: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        assert_eq!(processor_time("7 (a ) b) R 1 1 1 0 -1 4 0 0 0 0 150 50 0 0 20"), Some(2.0));
        assert_eq!(processor_time("nonsense"), None);
        assert_eq!(busy_time("cpu  100 20 30 4000 50 6 7 8 99 99\ncpu0 1\n"), Some(1.71));
        assert_eq!(busy_time("cpu  100 20"), None);
        assert_eq!(busy_time("intr 5"), None);
        if cfg!(target_os = "linux") {
            assert!(cpu_seconds().is_some() && all_seconds().is_some());
        }
    }

    #[test]
    fn a_busy_machine_is_noticed() {
        let busy = |load: Load| load.judged().was_busy;
        assert!(busy(Load { load_average: Some(2.0), ..Load::default() }));
        assert!(busy(Load { waiting_share: Some(0.2), ..Load::default() }));
        assert!(busy(Load { other_processors: Some(0.5), waiting_share: Some(0.0), ..Load::default() }));
        let earlier = Load { load_average: Some(1.9), waiting_share: Some(0.001), ..Load::default() };
        assert!(!busy(earlier), "an earlier measurement is no other work");
        assert!(!busy(Load::default()));
    }

    #[test]
    fn a_slower_clock_is_noticed() {
        assert!(Load { slowest_clock: Some(0.7), ..Load::default() }.judged().was_throttled);
        assert!(!Load { slowest_clock: Some(0.97), ..Load::default() }.judged().was_throttled);
        let mut clock = Clock::start();
        clock.look();
        let load = clock.stop(None, 1);
        assert!(load.slowest_clock.is_some_and(|ratio| ratio > 0.0 && ratio <= 1.0), "{load:?}");
        let slowed = Clock { loops: vec![1.0, 1.25], ..clock };
        assert_eq!(slowed.stop(None, 1).slowest_clock, Some(0.8));
    }
}
