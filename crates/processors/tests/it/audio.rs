//! Every kind of audio file (`tools/make_audio_fixture.py`), every kind of file that is none, and spectrograms.

use std::io::Cursor;
use std::path::Path;

use crate::support::{fixture, from_hex, integer, pair};
use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{Audio, AudioLimits, Error, LogMel, MelExtractor, decode_audio};
use proptest::prelude::*;

/// The sound of the fixtures at 16 kHz, as in `tools/make_audio_fixture.py`, so many seconds later.
fn sound(delay: f64) -> Vec<f32> {
    use std::f64::consts::{PI, TAU};
    let at = |i: usize| {
        let time = i as f64 / 16_000.0 - delay;
        if !(0.0..0.25).contains(&time) {
            return 0.0;
        }
        let swell = (PI * time / 0.25).sin().powi(2);
        (swell * (0.4 * (TAU * 440.0 * time).sin() + 0.2 * (TAU * 1500.0 * time).sin())) as f32
    };
    (0..4000).map(at).collect()
}

fn decoded(file: &[u8]) -> Result<Audio, Error> {
    decode_audio(Cursor::new(file), 16_000, &AudioLimits::default())
}

#[test]
fn every_format_decodes_to_the_same_sound() {
    for (name, case) in fixture("audio.json").as_object().unwrap() {
        let result = decoded(&from_hex(case["file"].as_str().unwrap()));
        if let Some(codec) = case["unsupported"].as_str() {
            let error = result.unwrap_err();
            assert_eq!(error.to_string(), format!("audio as {codec} is not supported"), "{name}");
            assert!(error.hint().unwrap().contains("ffmpeg"), "{name}");
            continue;
        }
        let audio = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((audio.rate, audio.damaged_packets, audio.incomplete), (16_000, 0, false), "{name}");
        // Coders may add silence at the end, or lose the last of the swell.
        assert!(audio.samples.len().abs_diff(4000) < 1000, "{name}: {} samples", audio.samples.len());
        let heard = audio.samples.iter().chain(std::iter::repeat(&0.0));
        let expected = sound(case["delay"].as_f64().unwrap_or(0.0));
        let worst = expected.iter().zip(heard).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(f64::from(worst) < case["tolerance"].as_f64().unwrap(), "{name}: off by {worst}");
    }
}

#[test]
fn a_cut_off_recording_is_heard_as_far_as_it_goes() {
    for (name, case) in fixture("audio.json").as_object().unwrap() {
        let file = from_hex(case["file"].as_str().unwrap());
        let half = decoded(&file[..file.len() * 3 / 5]);
        if name.starts_with("wav") || name.starts_with("mp3") {
            let audio = half.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!((1000..3900).contains(&audio.samples.len()), "{name}: {} samples", audio.samples.len());
        }
    }
}

#[test]
fn limits_are_on_length_and_bytes() {
    let file = from_hex(fixture("audio.json")["flac 22050"]["file"].as_str().unwrap());
    let small = AudioLimits { max_bytes: file.len() as u64 - 1, ..AudioLimits::default() };
    let error = decode_audio(Cursor::new(&file), 16_000, &small).unwrap_err();
    assert!(matches!(error, Error::AudioFileTooLarge { .. }), "{error}");
    let short = AudioLimits { max_seconds: 0, ..AudioLimits::default() };
    let error = decode_audio(Cursor::new(&file), 16_000, &short).unwrap_err();
    assert_eq!(error.to_string(), "the recording is longer than the limit of 0 seconds");
    assert_eq!(error.hint().unwrap(), "cut it into parts first");
}

#[test]
fn what_is_no_audio_is_refused_by_what_it_is() {
    assert!(matches!(decoded(b""), Err(Error::EmptyAudio)));
    let error = decoded(b"%PDF-1.7 and so on").unwrap_err();
    let expected = "not an audio file in a known format (it starts with 25 50 44 46 2d 31 2e 37 \"%PDF-1.7\")";
    assert_eq!(error.to_string(), expected);
    let silent = wav_header(0);
    assert_eq!(decoded(&silent).unwrap_err().to_string(), "the wave audio holds no samples");
}

#[test]
fn a_header_that_was_cut_off_is_no_foreign_file() {
    for name in ["flac 22050", "m4a aac 44100", "ogg vorbis 22050", "wav 16 bit"] {
        let file = from_hex(fixture("audio.json")[name]["file"].as_str().unwrap());
        let error = decoded(&file[..20]).unwrap_err().to_string();
        assert!(error.starts_with("the truncated "), "{name}: {error}");
    }
}

/// As programs write to a pipe, where they cannot go back to fill the lengths in.
#[test]
fn a_wav_file_of_unknown_length_is_whole() {
    let samples: Vec<u8> = (0..800).flat_map(|at| (at as f32 / 800.0).to_le_bytes()).collect();
    let whole = [wav_header(samples.len() as u32), samples.clone()].concat();
    let mut streamed = whole.clone();
    for at in [4, 40] {
        streamed[at..at + 4].fill(0xFF);
    }
    assert_eq!(decoded(&streamed).unwrap(), decoded(&whole).unwrap());
    let cut = decoded(&whole[..whole.len() - 400]).unwrap();
    assert!(cut.incomplete && cut.samples.len() == 700, "{}", cut.samples.len());
}

#[test]
fn samples_that_are_no_numbers_are_silence() {
    let mut file = wav_header(16);
    for value in [f32::NAN, f32::INFINITY, 0.5, f32::MAX] {
        file.extend(value.to_le_bytes());
    }
    assert_eq!(decoded(&file).unwrap().samples, [0.0, 0.0, 0.5, 1e4]);
}

/// Found by mutated files: 65535 channels of 16 bits overflow the decoding library's 16-bit count of bytes.
#[test]
fn more_channels_than_there_can_be_are_an_error() {
    let mut file = wav_header(8);
    // 20: the format, whole numbers; 22: channels; 34: bits of a sample.
    for (at, value) in [(20, 1_u16), (22, u16::MAX), (34, 16)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file.extend([0; 8]);
    assert!(matches!(decoded(&file), Err(Error::BadAudio { .. })), "{:?}", decoded(&file));
}

/// A WAV file of 32-bit floats at 16 kHz without its `bytes` of content.
fn wav_header(bytes: u32) -> Vec<u8> {
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x03\0\x01\0");
    file.extend(16_000u32.to_le_bytes());
    file.extend(64_000u32.to_le_bytes());
    file.extend(b"\x04\0\x20\0data");
    file.extend(bytes.to_le_bytes());
    file
}

/// The recording of `tools/make_mel_fixture.py`.
fn recording() -> Vec<f32> {
    let mut state = 7u32;
    let sample = |i: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 24) as i32 - 128;
        let tone = if i / 20 % 2 == 1 { 100 } else { -100 };
        let value = if (11_000..14_000).contains(&i) { 0 } else { noise + if i < 11_000 { tone } else { 0 } };
        value as f32 / 512.0
    };
    (0..20_000).map(sample).collect()
}

#[test]
fn spectrograms_are_those_of_the_reference() {
    for (mels, case) in fixture("mel.json").as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "whisper"}"#).unwrap();
        std::fs::write(folder.path().join("preprocessor_config.json"), case["config"].to_string()).unwrap();
        let extractor = extractor(folder.path()).unwrap();
        let recording = recording();
        for (key, shape, mel) in [
            ("whole", "shape", extractor.spectrogram(&recording)),
            ("window", "window_shape", extractor.one_window(&recording)),
        ] {
            assert_eq!((mel.mels, mel.frames), pair(&case[shape]), "{mels} {key}");
            let mut worst = 0.0f64;
            for (frame, expected) in case["frames"].as_array().unwrap().iter().zip(case[key].as_array().unwrap()) {
                for (band, expected) in expected.as_array().unwrap().iter().enumerate() {
                    let value = mel.values[band * mel.frames + integer(frame)];
                    worst = worst.max((f64::from(value) - expected.as_f64().unwrap()).abs());
                }
            }
            assert!(worst < 1e-4, "{mels} {key}: off by {worst}");
            println!("{mels} {key}: {worst:.1e}");
        }
    }
}

fn extractor(folder: &Path) -> Result<MelExtractor, Error> {
    let files = ModelFiles::open(folder).unwrap();
    MelExtractor::load(&files, &Config::load(&files).unwrap())
}

#[test]
fn without_settings_the_model_says_how_many_bands_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let load = |config: &str| {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        extractor(folder.path()).map(|extractor| (extractor.mels(), extractor.window_frames()))
    };
    assert_eq!(load(r#"{"model_type": "whisper", "n_mels": 128}"#).unwrap(), (128, 3000));
    assert!(load(r#"{"model_type": "whisper"}"#).unwrap_err().to_string().ends_with("num_mel_bins: missing"));
}

#[test]
fn a_window_of_a_spectrogram_ends_in_zeros() {
    let mel = LogMel { values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], mels: 2, frames: 3 };
    assert_eq!(mel.window(1, 3).values, [2.0, 3.0, 0.0, 5.0, 6.0, 0.0]);
    assert_eq!(mel.window(0, 1).values, [1.0, 4.0]);
    assert_eq!(mel.window(9, 2).values, [0.0; 4]);
}

#[test]
fn settings_that_are_not_served_are_named() {
    let load = |json: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "whisper"}"#).unwrap();
        std::fs::write(folder.path().join("preprocessor_config.json"), json).unwrap();
        extractor(folder.path()).map(|extractor| extractor.mels())
    };
    assert_eq!(load("{\"feature_size\": 128, \"dither\": null}").unwrap(), 128);
    for (json, key) in [
        ("{\"feature_size\": 0}", "feature_size"),
        ("{\"n_fft\": 1}", "n_fft"),
        ("{\"hop_length\": 401}", "hop_length"),
        ("{\"chunk_length\": 100000}", "chunk_length"),
        ("{\"sampling_rate\": 1}", "sampling_rate"),
        ("{\"dither\": 0.1}", "dither"),
        ("{\"do_normalize\": true}", "do_normalize"),
        ("{\"n_fft\": \"x\"}", "(root)"),
        ("[]", "(root)"),
    ] {
        let error = load(json).unwrap_err();
        assert!(matches!(&error, Error::Value { key: found, .. } if found == key), "{json}: {error}");
        assert!(error.to_string().contains("preprocessor_config.json"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn spoilt_files_are_errors_or_sounds(which in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), cut in any::<prop::sample::Index>()) {
        let cases = fixture("audio.json");
        let cases: Vec<_> = cases.as_object().unwrap().values().collect();
        let mut file = from_hex(which.get(&cases)["file"].as_str().unwrap());
        for (place, byte) in changes {
            // Mostly the headers, which decide how the rest is read.
            let end = if byte % 4 == 0 { file.len() } else { file.len().min(400) };
            file[place.index(end)] = byte;
        }
        file.truncate(cut.index(file.len() * 4).max(1));
        let limits = AudioLimits { max_seconds: 60, ..AudioLimits::default() };
        if let Ok(audio) = decode_audio(Cursor::new(&file), 16_000, &limits) {
            prop_assert!(!audio.samples.is_empty() && audio.samples.iter().all(|sample| sample.is_finite()));
        }
    }
}
