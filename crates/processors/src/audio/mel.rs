//! Log-mel spectrograms as transformers' `WhisperFeatureExtractor` makes them.
//!
//! Power spectra of windows of `n_fft` samples every `hop_length`, the first centred on sample 0 (the recording is
//! reflected at its ends), summed by triangular filters on Slaney's mel scale; their logarithms, at most 8 below the
//! loudest one of the whole recording, moved and scaled to about -1..1. The filters are computed, not stored.

use std::sync::Arc;

use ocelli_formats::{Config, ModelFiles};
use realfft::{RealFftPlanner, RealToComplex};
use serde::Deserialize;

use crate::settings::preprocessor_config_if_any;
use crate::{Error, Result};

/// Makes spectrograms; one per loaded model.
pub struct MelExtractor {
    settings: Settings,
    window: Vec<f32>,
    filters: Vec<Filter>,
    fft: Arc<dyn RealToComplex<f32>>,
}

/// A spectrogram.
#[derive(Clone, Debug, PartialEq)]
pub struct LogMel {
    /// `[mels, frames]`.
    pub values: Vec<f32>,
    /// Bands.
    pub mels: usize,
    /// Moments, one per hop.
    pub frames: usize,
}

impl MelExtractor {
    /// Reads `preprocessor_config.json` (or the `feature_extractor` of `processor_config.json`). MLX's folders have no
    /// such file: there the number of bands is what the model takes, and the rest what all of OpenAI's models have.
    ///
    /// # Errors
    /// [`Error::Files`]; [`Error::Value`] for values out of range.
    pub fn load(files: &ModelFiles, config: &Config) -> Result<Self> {
        let (file, settings) = match preprocessor_config_if_any(files, "feature_extractor")? {
            Some(found) => found,
            None => {
                let Bands { num_mel_bins } = config.root().parse()?;
                let settings = Settings { feature_size: num_mel_bins, ..Settings::default() };
                (files.label_of("config.json"), settings)
            }
        };
        let error = |key: &str, message: String| Error::Value { file: file.clone(), key: key.into(), message };
        settings.check().map_err(|(key, message)| error(key, message))?;
        Ok(Self::new(settings))
    }

    fn new(settings: Settings) -> Self {
        let n = settings.n_fft;
        let window = (0..n).map(|i| {
            let angle = std::f64::consts::TAU * i as f64 / n as f64;
            (0.5 - 0.5 * angle.cos()) as f32
        });
        Self {
            window: window.collect(),
            filters: slaney_filters(settings.feature_size, n / 2 + 1, settings.sampling_rate),
            fft: RealFftPlanner::new().plan_fft_forward(n),
            settings,
        }
    }

    /// Samples per second that it takes.
    pub fn sampling_rate(&self) -> u32 {
        self.settings.sampling_rate
    }

    /// Samples from one frame to the next.
    pub fn hop_length(&self) -> usize {
        self.settings.hop_length
    }

    /// Bands.
    pub fn mels(&self) -> usize {
        self.settings.feature_size
    }

    /// Samples the model looks at in one pass.
    pub fn window_samples(&self) -> usize {
        self.settings.chunk_length * self.settings.sampling_rate as usize
    }

    /// Frames the model looks at in one pass.
    pub fn window_frames(&self) -> usize {
        self.window_samples() / self.settings.hop_length
    }

    /// The spectrogram of one window: shorter recordings end in silence, longer ones are cut.
    pub fn one_window(&self, samples: &[f32]) -> LogMel {
        let n = self.window_samples();
        let mut padded = samples[..samples.len().min(n)].to_vec();
        padded.resize(n, 0.0);
        self.spectrogram(&padded)
    }

    /// The spectrogram of a whole recording: a frame for each whole hop, none for less than one.
    pub fn spectrogram(&self, samples: &[f32]) -> LogMel {
        let Settings { n_fft, hop_length, feature_size: mels, .. } = self.settings;
        let frames = samples.len() / hop_length;
        let mut values = vec![0.0; mels * frames];
        let (mut scratch, mut input) = (self.fft.make_scratch_vec(), self.fft.make_input_vec());
        let mut spectrum = self.fft.make_output_vec();
        let mut power = vec![0.0; spectrum.len()];
        let mut loudest = f32::NEG_INFINITY;
        for frame in 0..frames {
            self.windowed(samples, frame * hop_length, &mut input);
            let done = self.fft.process_with_scratch(&mut input, &mut spectrum, &mut scratch);
            done.expect("the planner made the buffers");
            for (power, value) in power.iter_mut().zip(&spectrum) {
                *power = value.norm_sqr();
            }
            for (band, filter) in self.filters.iter().enumerate() {
                let value = filter.apply(&power).max(1e-10).log10();
                loudest = loudest.max(value);
                values[band * frames + frame] = value;
            }
        }
        debug_assert_eq!(input.len(), n_fft);
        for value in &mut values {
            *value = (value.max(loudest - 8.0) + 4.0) / 4.0;
        }
        LogMel { values, mels, frames }
    }

    /// The samples around `centre` times the window.
    fn windowed(&self, samples: &[f32], centre: usize, out: &mut [f32]) {
        let half = (self.settings.n_fft / 2) as isize;
        let last = samples.len() as isize - 1;
        for (i, (out, weight)) in out.iter_mut().zip(&self.window).enumerate() {
            let place = centre as isize + i as isize - half;
            // What is too short to be reflected is silent.
            let reflected = if place < 0 { -place } else { place.min(2 * last - place) };
            *out = weight * usize::try_from(reflected).ok().and_then(|at| samples.get(at)).copied().unwrap_or(0.0);
        }
    }
}

impl std::fmt::Debug for MelExtractor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MelExtractor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl LogMel {
    /// `length` frames from `start`; what lies behind the end is 0, as in the reference.
    pub fn window(&self, start: usize, length: usize) -> Self {
        let mut values = vec![0.0; self.mels * length];
        let end = (start + length).min(self.frames);
        if start < end {
            for band in 0..self.mels {
                let row = &self.values[band * self.frames..][start..end];
                values[band * length..][..row.len()].copy_from_slice(row);
            }
        }
        Self { values, mels: self.mels, frames: length }
    }
}

/// What `config.json` says of the spectrograms.
#[derive(Deserialize)]
struct Bands {
    num_mel_bins: usize,
}

/// The keys of `preprocessor_config.json`, with the class defaults of the reference.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
struct Settings {
    feature_size: usize,
    sampling_rate: u32,
    hop_length: usize,
    chunk_length: usize,
    n_fft: usize,
    dither: f64,
    do_normalize: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            feature_size: 80,
            sampling_rate: 16_000,
            hop_length: 160,
            chunk_length: 30,
            n_fft: 400,
            dither: 0.0,
            do_normalize: false,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |key, value: usize, low: usize, high: usize| match value {
            _ if (low..=high).contains(&value) => Ok(()),
            _ => Err((key, format!("expected {low} to {high}, got {value}"))),
        };
        within("feature_size", self.feature_size, 1, 1024)?;
        within("sampling_rate", self.sampling_rate as usize, 1000, 192_000)?;
        within("n_fft", self.n_fft, 2, 1 << 16)?;
        within("hop_length", self.hop_length, 1, self.n_fft)?;
        within("chunk_length", self.chunk_length, 1, 600)?;
        if self.dither != 0.0 {
            return Err(("dither", format!("random noise is not added, got {}", self.dither)));
        }
        if self.do_normalize {
            return Err(("do_normalize", "normalised recordings are not supported".into()));
        }
        Ok(())
    }
}

/// A triangle over the bins of a spectrum.
#[derive(Clone, Debug, PartialEq)]
struct Filter {
    /// The first bin.
    start: usize,
    weights: Vec<f32>,
}

impl Filter {
    fn apply(&self, power: &[f32]) -> f32 {
        power[self.start..].iter().zip(&self.weights).map(|(power, weight)| power * weight).sum()
    }
}

/// Triangles whose corners are evenly spaced on the mel scale from 0 to 8000 Hz, each of the same area.
fn slaney_filters(mels: usize, bins: usize, rate: u32) -> Vec<Filter> {
    let top = mel_of(8000.0);
    let corners: Vec<f64> = (0..mels + 2).map(|i| hertz_of(top * i as f64 / (mels + 1) as f64)).collect();
    let hertz_of_bin = |bin: usize| bin as f64 * f64::from(rate / 2) / (bins - 1) as f64;
    let triangle = |corners: &[f64]| {
        let &[low, middle, high] = corners else { unreachable!("windows of three") };
        let weight = |bin: usize| {
            let hertz = hertz_of_bin(bin);
            let height = ((hertz - low) / (middle - low)).min((high - hertz) / (high - middle)).max(0.0);
            (height * 2.0 / (high - low)) as f32
        };
        let start = (0..bins).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
        Filter { start, weights: (start..bins).map(weight).take_while(|&weight| weight > 0.0).collect() }
    };
    corners.windows(3).map(triangle).collect()
}

/// Slaney's scale: even up to 1000 Hz, logarithmic above.
fn mel_of(hertz: f64) -> f64 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

fn hertz_of(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}
