//! Any audio file to samples of one channel and one rate.
//!
//! The file is decoded, mixed and resampled packet by packet, so only the result is ever held in full. Recordings are
//! often damaged or cut off somewhere and still worth hearing: broken packets are skipped and counted, and what is
//! there of an incomplete file is kept. Nothing at all to hear is an error.

use std::io::{Read, Seek, SeekFrom};

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::{CODEC_ID_AC3, CODEC_ID_EAC3, CODEC_ID_OPUS};
use symphonia::core::codecs::audio::{AudioCodecId, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Failure;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;

use super::resample::Resampler;
use crate::{Error, Result};

/// A decoded recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    /// One channel, mostly within -1..1.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub rate: u32,
    /// Packets that could not be decoded and are missing.
    pub damaged_packets: usize,
    /// Whether the file ends before it should.
    pub incomplete: bool,
}

impl Audio {
    /// How long it lasts.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.rate)
    }
}

/// What a recording may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioLimits {
    /// Its length. An hour takes 230 MB at 16 kHz.
    pub max_seconds: u32,
    /// Length of the file.
    pub max_bytes: u64,
}

impl Default for AudioLimits {
    /// Six hours, 4 GiB.
    fn default() -> Self {
        Self { max_seconds: 6 * 3600, max_bytes: 4 << 30 }
    }
}

/// Decodes a WAV, FLAC, MP3, OGG (Vorbis, FLAC) or M4A (AAC, ALAC) file; channels are averaged. `rate` is what the
/// samples are wanted at, in hertz. Callable on arbitrary bytes.
///
/// # Errors
/// [`Error::EmptyAudio`], [`Error::UnknownAudioFormat`], [`Error::UnsupportedAudio`], [`Error::AudioFileTooLarge`],
/// [`Error::AudioTooLong`], [`Error::BadAudio`], [`Error::NoSamples`].
pub fn decode_audio(mut file: impl Read + Seek + Send + Sync, rate: u32, limits: &AudioLimits) -> Result<Audio> {
    let first_bytes = first_bytes(&mut file).map_err(|error| bad("unreadable", &error))?;
    let length = file.seek(SeekFrom::End(0)).and_then(|length| file.rewind().map(|()| length));
    let length = length.map_err(|error| bad("unreadable", &error))?;
    if length == 0 {
        return Err(Error::EmptyAudio);
    }
    if length > limits.max_bytes {
        return Err(Error::AudioFileTooLarge { bytes: length, limit: limits.max_bytes });
    }
    // The decoders were written for files that make sense: some others make them panic instead of returning an error.
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let source = MediaSourceStream::new(Box::new(Source { file, length }), Default::default());
        Decoding::new(probe(source, &first_bytes)?, rate, limits)?.run()
    }));
    // What a program wrote to a pipe has no length to end before.
    let decoded = decoded
        .map(|result| result.map(|audio| Audio { incomplete: audio.incomplete && !is_endless(&first_bytes), ..audio }));
    decoded.unwrap_or_else(|_| Err(bad("malformed", &"the decoder gave up on it")))
}

/// What kind of file it is, by its content: names lie.
fn probe<'a>(source: MediaSourceStream<'a>, first_bytes: &[u8]) -> Result<Box<dyn FormatReader + 'a>> {
    let (formats, metadata) = (FormatOptions::default(), MetadataOptions::default());
    symphonia::default::get_probe().probe(&Hint::new(), source, formats, metadata).map_err(|failure| match failure {
        Failure::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && is_known(first_bytes) => {
            bad("truncated", &"the file ends within its header")
        }
        Failure::Unsupported(feature) if is_known(first_bytes) => bad("truncated or unsupported", &feature),
        Failure::Unsupported(_) => unknown(first_bytes),
        Failure::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => unknown(first_bytes),
        failure => bad("malformed", &failure),
    })
}

/// A file being decoded.
struct Decoding<'a> {
    name: &'static str,
    format: Box<dyn FormatReader + 'a>,
    track: u32,
    decoder: Box<dyn AudioDecoder>,
    sink: Sink,
    /// The least of `limits`, in samples of the result.
    max_samples: usize,
    max_seconds: u32,
    damaged_packets: usize,
}

impl<'a> Decoding<'a> {
    fn new(format: Box<dyn FormatReader + 'a>, rate: u32, limits: &AudioLimits) -> Result<Self> {
        let name = format.format_info().short_name;
        let (track, decoder) = decoder_of(&*format, name)?;
        Ok(Self {
            name,
            format,
            track,
            decoder,
            sink: Sink::new(rate),
            max_samples: (u64::from(limits.max_seconds) * u64::from(rate)).try_into().unwrap_or(usize::MAX),
            max_seconds: limits.max_seconds,
            damaged_packets: 0,
        })
    }

    fn run(mut self) -> Result<Audio> {
        let ending = loop {
            match self.format.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track => match self.decoder.decode(&packet) {
                    Ok(buffer) => self.sink.push(&buffer)?,
                    Err(Failure::DecodeError(_) | Failure::IoError(_)) => self.damaged_packets += 1,
                    Err(failure) => break Some(failure),
                },
                Ok(Some(_)) => {}
                Ok(None) => break None,
                // One recording after another in a file, as in streams that were saved.
                Err(Failure::ResetRequired) => (self.track, self.decoder) = decoder_of(&*self.format, self.name)?,
                Err(failure) => break Some(failure),
            }
            if self.sink.samples.len() > self.max_samples {
                return Err(Error::AudioTooLong { limit: self.max_seconds });
            }
        };
        let (rate, samples) = (self.sink.rate, self.sink.finish());
        match ending {
            _ if samples.len() > self.max_samples => Err(Error::AudioTooLong { limit: self.max_seconds }),
            Some(failure) if samples.is_empty() => Err(bad(self.name, &failure)),
            None if samples.is_empty() => Err(Error::NoSamples { format: self.name }),
            ending => Ok(Audio { samples, rate, damaged_packets: self.damaged_packets, incomplete: ending.is_some() }),
        }
    }
}

/// The recording's track, and what decodes it.
fn decoder_of(format: &dyn FormatReader, name: &'static str) -> Result<(u32, Box<dyn AudioDecoder>)> {
    let no_audio = || Error::UnsupportedAudio { codec: format!("{name} without audio") };
    let track = format.default_track(TrackType::Audio).ok_or_else(no_audio)?;
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio()).ok_or_else(no_audio)?;
    let decoder = symphonia::default::get_codecs().make_audio_decoder(parameters, &AudioDecoderOptions::default());
    match decoder {
        Ok(decoder) => Ok((track.id, decoder)),
        Err(Failure::Unsupported(feature)) => {
            Err(Error::UnsupportedAudio { codec: codec_name(parameters.codec).unwrap_or(feature).into() })
        }
        Err(failure) => Err(bad(name, &failure)),
    }
}

/// Mixes and resamples what is decoded.
struct Sink {
    rate: u32,
    samples: Vec<f32>,
    /// The rate of what comes in, and what changes it.
    resampler: Option<(u32, Resampler)>,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
}

impl Sink {
    fn new(rate: u32) -> Self {
        Self { rate, samples: Vec::new(), resampler: None, interleaved: Vec::new(), mono: Vec::new() }
    }

    fn push(&mut self, buffer: &GenericAudioBufferRef<'_>) -> Result<()> {
        let (rate, channels) = (buffer.spec().rate(), buffer.spec().channels().count());
        if buffer.frames() == 0 || channels == 0 {
            return Ok(());
        }
        if !RATES.contains(&rate) {
            return Err(Error::UnsupportedAudio { codec: format!("{rate} samples per second") });
        }
        self.interleaved.resize(buffer.samples_interleaved(), 0.0);
        buffer.copy_to_slice_interleaved(&mut self.interleaved);
        self.mono.clear();
        // Float files may hold anything; one NaN would spoil the whole recording.
        let mean = |frame: &[f32]| frame.iter().sum::<f32>() / channels as f32;
        let finite = |sample: f32| if sample.is_finite() { sample.clamp(-LOUDEST, LOUDEST) } else { 0.0 };
        self.mono.extend(self.interleaved.chunks_exact(channels).map(|frame| finite(mean(frame))));
        // Recordings that follow one another may have different rates.
        if let Some((_, resampler)) = self.resampler.take_if(|(from, _)| *from != rate) {
            resampler.finish(&mut self.samples);
        }
        let (_, resampler) = self.resampler.get_or_insert_with(|| (rate, Resampler::new(rate, self.rate)));
        resampler.push(&self.mono, &mut self.samples);
        Ok(())
    }

    fn finish(mut self) -> Vec<f32> {
        if let Some((_, resampler)) = self.resampler.take() {
            resampler.finish(&mut self.samples);
        }
        self.samples
    }
}

/// A seekable file of known length.
struct Source<F> {
    file: F,
    length: u64,
}

impl<F: Read> Read for Source<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(buffer)
    }
}

impl<F: Seek> Seek for Source<F> {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(position)
    }
}

impl<F: Read + Seek + Send + Sync> MediaSource for Source<F> {
    fn is_seekable(&self) -> bool {
        true
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.length)
    }
}

fn first_bytes(file: &mut (impl Read + Seek)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file begins as those that are decoded here do; MP3 may begin with anything.
fn is_known(first_bytes: &[u8]) -> bool {
    let is_mp4 = first_bytes.get(4..8) == Some(b"ftyp");
    is_mp4 || [b"RIFF", b"fLaC", b"OggS"].iter().any(|magic| first_bytes.starts_with(*magic))
}

/// Whether it is a WAV file whose length was not known when its header was written.
fn is_endless(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(b"RIFF") && first_bytes.get(4..8) == Some(&[0xFF; 4])
}

fn unknown(first_bytes: &[u8]) -> Error {
    Error::UnknownAudioFormat { first_bytes: crate::image::shown(first_bytes) }
}

fn bad(format: &'static str, message: &dyn std::fmt::Display) -> Error {
    Error::BadAudio { format, message: message.to_string() }
}

/// What files hold that no decoder here knows.
fn codec_name(codec: AudioCodecId) -> Option<&'static str> {
    let names = [(CODEC_ID_OPUS, "Opus"), (CODEC_ID_AC3, "AC-3"), (CODEC_ID_EAC3, "E-AC-3")];
    names.into_iter().find_map(|(id, name)| (id == codec).then_some(name))
}

/// Rates that occur; a filter for others would take as much memory as the file says.
const RATES: std::ops::RangeInclusive<u32> = 1000..=768_000;

/// Louder than this no recording is; sums of it stay finite.
const LOUDEST: f32 = 1e4;
