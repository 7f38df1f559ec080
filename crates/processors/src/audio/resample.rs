//! One sample rate to another, a block at a time: memory does not grow with the recording.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _};

/// Samples in at one rate, out at another, neither delayed nor shortened.
pub(super) struct Resampler {
    /// What does the work; `None` when the rates are equal.
    filter: Option<Filter>,
}

struct Filter {
    fft: Fft<f32>,
    /// Samples that do not fill a block yet.
    pending: Vec<f32>,
    block: Vec<f32>,
    /// Samples of the filter's delay that are still to be dropped.
    delay: usize,
    /// Samples still owed for those that went in, as a fraction: `owed / from`.
    owed: u64,
    from: u64,
    to: u64,
}

impl Resampler {
    /// Rates in hertz, both positive.
    pub(super) fn new(from: u32, to: u32) -> Self {
        let filter = (from != to).then(|| Filter::new(from, to));
        Self { filter }
    }

    /// Takes `samples`, appends what they complete to `out`.
    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        match &mut self.filter {
            None => out.extend_from_slice(samples),
            Some(filter) => filter.push(samples, out),
        }
    }

    /// Appends what is left.
    pub(super) fn finish(self, out: &mut Vec<f32>) {
        if let Some(filter) = self.filter {
            filter.finish(out);
        }
    }
}

impl Filter {
    fn new(from: u32, to: u32) -> Self {
        // One block per transform: the longer it is, the steeper the filter and the closer to the full band.
        // An even number of its shortest blocks, as the delay is half a block and should be whole samples.
        let shortest = 2 * (from / greatest_common_divisor(from, to)) as usize;
        let fft = Fft::new_custom(
            from as usize,
            to as usize,
            BLOCK.next_multiple_of(shortest),
            1,
            1,
            rubato::WindowFunction::BlackmanHarris2,
            FixedSync::Both,
        );
        let fft = fft.expect("rates and block are positive");
        let (delay, block) = (fft.output_delay(), vec![0.0; fft.output_frames_max()]);
        Self { fft, pending: Vec::new(), block, delay, owed: 0, from: u64::from(from), to: u64::from(to) }
    }

    fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.owed += samples.len() as u64 * self.to;
        self.pending.extend_from_slice(samples);
        let mut start = 0;
        while self.pending.len() - start >= self.fft.input_frames_next() {
            start += self.process(start, None, out);
        }
        self.pending.drain(..start);
    }

    fn finish(mut self, out: &mut Vec<f32>) {
        while self.owed > 0 {
            let partial = self.pending.len();
            // The block needs its full length even where only a part of it counts.
            self.pending.resize(self.fft.input_frames_next(), 0.0);
            self.process(0, Some(partial), out);
            self.pending.clear();
        }
    }

    /// One block from `pending[start..]`; the samples used up.
    fn process(&mut self, start: usize, partial: Option<usize>, out: &mut Vec<f32>) -> usize {
        let input = InterleavedSlice::new(&self.pending[start..], 1, self.pending.len() - start);
        let frames = self.block.len();
        let output = InterleavedSlice::new_mut(&mut self.block, 1, frames);
        let (input, mut output) = (input.expect("as long as it is"), output.expect("as long as it is"));
        let indexing = Indexing { partial_len: partial, ..Indexing::new() };
        let done = self.fft.process_into_buffer(&input, &mut output, Some(&indexing));
        let (used, made) = done.expect("the buffers hold a block");
        let dropped = self.delay.min(made);
        self.delay -= dropped;
        // Rounded up: the last sample may stand for less than a whole one.
        let owed = usize::try_from(self.owed.div_ceil(self.from)).unwrap_or(usize::MAX);
        let kept = (made - dropped).min(owed);
        out.extend_from_slice(&self.block[dropped..dropped + kept]);
        self.owed = self.owed.saturating_sub(kept as u64 * self.from);
        used
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Samples per transform, about: a tenth of a second of what files usually hold.
const BLOCK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn resampled(samples: &[f32], from: u32, to: u32, piece: usize) -> Vec<f32> {
        let (mut resampler, mut out) = (Resampler::new(from, to), Vec::new());
        for piece in samples.chunks(piece) {
            resampler.push(piece, &mut out);
        }
        resampler.finish(&mut out);
        out
    }

    fn tone(hertz: f64, rate: u32, seconds: f64) -> Vec<f32> {
        let n = (seconds * f64::from(rate)) as usize;
        (0..n).map(|i| (std::f64::consts::TAU * hertz * i as f64 / f64::from(rate)).sin() as f32).collect()
    }

    #[test]
    fn a_tone_is_the_same_tone_at_the_same_time() {
        for from in [8_000, 11_025, 22_050, 32_000, 44_056, 44_100, 48_000, 96_000] {
            let out = resampled(&tone(1000.0, from, 1.0), from, 16_000, 1000);
            let expected = tone(1000.0, 16_000, 1.0);
            assert_eq!(out.len(), expected.len(), "{from}");
            // The edges ring, as the tone starts from nothing there.
            let worst = (2000..14_000).map(|i| (out[i] - expected[i]).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{from}: {worst}");
        }
    }

    #[test]
    fn what_the_new_rate_cannot_hold_is_removed() {
        let out = resampled(&tone(9500.0, 44_100, 1.0), 44_100, 16_000, 44_100);
        let loudest = out[2000..14_000].iter().fold(0.0f32, |loudest, sample| loudest.max(sample.abs()));
        assert!(loudest < 1e-3, "{loudest}");
    }

    #[test]
    fn pieces_do_not_show() {
        let samples = tone(440.0, 44_100, 0.5);
        let whole = resampled(&samples, 44_100, 16_000, samples.len());
        assert_eq!(whole, resampled(&samples, 44_100, 16_000, 17));
        assert_eq!(resampled(&samples, 16_000, 16_000, 5), samples);
    }

    #[test]
    fn lengths_are_rounded_up() {
        for n in [0, 1, 2, 3, 4409, 4410, 4411, 9000] {
            let out = resampled(&vec![0.5; n], 44_100, 16_000, 1000);
            assert_eq!(out.len(), (n * 160).div_ceil(441), "{n}");
        }
    }
}
