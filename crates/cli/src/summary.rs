//! What a run over many pictures or files amounts to.

use std::fmt;
use std::time::Duration;

use ocelli_engine::Answer;

/// Collected while the run goes on; printed at its end.
#[derive(Debug)]
pub(crate) struct Summary {
    /// What one of them is called.
    noun: &'static str,
    latencies: Vec<Duration>,
    completion_tokens: usize,
    /// Tokens after the first one of every answer, and the time they took.
    decoded_tokens: usize,
    decode_seconds: f64,
    failures: Vec<(String, String)>,
    /// Those that `--resume` found done.
    pub(crate) skipped: usize,
    /// Those that Ctrl-C left.
    pub(crate) not_done: usize,
    pub(crate) elapsed: Duration,
}

impl Summary {
    pub(crate) fn of(noun: &'static str) -> Self {
        Self {
            noun,
            latencies: Vec::new(),
            completion_tokens: 0,
            decoded_tokens: 0,
            decode_seconds: 0.0,
            failures: Vec::new(),
            skipped: 0,
            not_done: 0,
            elapsed: Duration::ZERO,
        }
    }

    pub(crate) fn succeeded(&mut self, latency: Duration) {
        self.latencies.push(latency);
    }

    /// Counts the tokens of an answer, and what they took.
    pub(crate) fn generated(&mut self, answer: &Answer) {
        self.completion_tokens += answer.completion_tokens;
        self.decoded_tokens += answer.completion_tokens.saturating_sub(1);
        self.decode_seconds += answer.timings.decode_ms / 1e3;
    }

    pub(crate) fn failed(&mut self, subject: &str, reason: &str) {
        self.failures.push((subject.to_owned(), reason.to_owned()));
    }

    fn counts(&self) -> String {
        let done = self.latencies.len() + self.failures.len();
        let seconds = self.elapsed.as_secs_f64();
        let mut text = format!("{} succeeded, {} failed", self.latencies.len(), self.failures.len());
        for (count, what) in [(self.skipped, "skipped (already done)"), (self.not_done, "not done (interrupted)")] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        if done > 0 && seconds > 0.0 {
            text.push_str(&format!(" in {seconds:.1} s ({:.2} {}s/s)", done as f64 / seconds, self.noun));
        }
        text
    }
}

/// Without a line end.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.counts())?;
        if let Some(latency) = Latency::of(&self.latencies) {
            write!(f, "\nlatency per {}: {latency}", self.noun)?;
        }
        if self.completion_tokens > 0 {
            write!(f, "\ntokens: {} generated", self.completion_tokens)?;
            if self.decode_seconds > 0.0 && self.decoded_tokens > 0 {
                write!(f, ", {:.1} tokens/s", self.decoded_tokens as f64 / self.decode_seconds)?;
            }
        }
        if !self.failures.is_empty() {
            write!(f, "\nfailed:")?;
        }
        self.failures.iter().try_for_each(|(image, reason)| write!(f, "\n  {image}: {reason}"))
    }
}

/// Statistics over times, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Latency {
    mean: f64,
    median: f64,
    p95: f64,
    min: f64,
    max: f64,
}

impl Latency {
    fn of(times: &[Duration]) -> Option<Self> {
        let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        seconds.sort_by(f64::total_cmp);
        let (&min, &max) = (seconds.first()?, seconds.last()?);
        let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
        Some(Self { mean, median: quantile(&seconds, 0.5), p95: quantile(&seconds, 0.95), min, max })
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mean, median, p95, min, max } = self;
        write!(f, "mean {mean:.3} s, median {median:.3} s, p95 {p95:.3} s, min {min:.3} s, max {max:.3} s")
    }
}

/// Linear between the two nearest of the sorted values, as numpy's default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = position.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let times: Vec<Duration> = [4, 1, 3, 2].map(Duration::from_secs).to_vec();
        let latency = Latency::of(&times).unwrap();
        assert_eq!((latency.mean, latency.median, latency.min, latency.max), (2.5, 2.5, 1.0, 4.0));
        assert!((latency.p95 - 3.85).abs() < 1e-9);
        assert_eq!(Latency::of(&[]), None);
        let one = Latency::of(&times[..1]).unwrap();
        assert_eq!((one.median, one.p95), (4.0, 4.0));
    }

    #[test]
    fn the_summary_tells_everything_once() {
        let mut summary = Summary { skipped: 3, not_done: 2, elapsed: Duration::from_secs(2), ..Summary::of("image") };
        summary.latencies.extend([Duration::from_millis(500), Duration::from_millis(1500)]);
        summary.completion_tokens = 22;
        summary.decoded_tokens = 20;
        summary.decode_seconds = 0.5;
        summary.failed("b.png", "no such file");
        assert_eq!(
            summary.to_string(),
            "2 succeeded, 1 failed, 3 skipped (already done), 2 not done (interrupted) in 2.0 s (1.50 images/s)\n\
             latency per image: mean 1.000 s, median 1.000 s, p95 1.450 s, min 0.500 s, max 1.500 s\n\
             tokens: 22 generated, 40.0 tokens/s\n\
             failed:\n  b.png: no such file"
        );
    }

    #[test]
    fn nothing_done_has_no_statistics() {
        let summary = Summary { skipped: 2, ..Summary::of("image") };
        assert_eq!(summary.to_string(), "0 succeeded, 0 failed, 2 skipped (already done)");
    }
}
