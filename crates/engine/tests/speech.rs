//! Recordings to text, segment by segment as transformers does it (`tools/make_whisper_long.py`).

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::{Path, PathBuf};

use ocelli_engine::{Engine, EngineOptions, Error, Quant, Segment, TranscribeEvent, TranscribeOptions, Transcript};
use ocelli_formats::ModelFiles;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    seconds: usize,
    options: Options,
    segments: Vec<Expected>,
}

#[derive(Deserialize)]
struct Options {
    language: Option<String>,
    task: Option<String>,
    #[serde(default)]
    condition_on_prev_tokens: bool,
    num_beams: Option<usize>,
    prompt: Option<Vec<u32>>,
    logprob_threshold: Option<f32>,
    no_speech_threshold: Option<f32>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Expected {
    start: f64,
    end: f64,
    tokens: Vec<u32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper_long")
}

fn reference() -> Reference {
    serde_json::from_slice(&std::fs::read(folder().join("reference.json")).unwrap()).unwrap()
}

fn engine(options: &EngineOptions) -> Engine {
    Engine::load(&ModelFiles::open(folder()).unwrap(), options).unwrap()
}

/// The recording of `make_whisper_long.py`.
fn recording(seconds: usize) -> Vec<f32> {
    let mut state = 11u32;
    let sample = |at: i64| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = f64::from(state >> 24) - 128.0;
        let block = at / 4000;
        let period = 20 + block * 37 % 90;
        let tone = if at / period % 2 == 1 { 40 } else { -40 } * (block * 53 % 7);
        ((noise * (block * 29 % 5) as f64 / 4.0 + tone as f64) / 1024.0) as f32
    };
    (0..seconds as i64 * 16_000).map(sample).collect()
}

/// Nothing is doubted, as in the reference's defaults.
fn credulous() -> TranscribeOptions {
    TranscribeOptions {
        language: Some("en".to_owned()),
        num_beams: 1,
        temperatures: vec![0.0],
        compression_ratio_threshold: None,
        log_prob_threshold: None,
        no_speech_threshold: None,
        ..TranscribeOptions::default()
    }
}

fn options_of(case: &Case, engine: &Engine) -> TranscribeOptions {
    let options = &case.options;
    let prompt = options.prompt.as_ref().map(|ids| engine.processor().tokenizer().decode(ids, true).unwrap());
    TranscribeOptions {
        language: options.language.clone(),
        translate: options.task.as_deref() == Some("translate"),
        condition_on_previous_text: options.condition_on_prev_tokens,
        num_beams: options.num_beams.unwrap_or(1),
        prompt,
        log_prob_threshold: options.logprob_threshold,
        no_speech_threshold: options.no_speech_threshold,
        ..credulous()
    }
}

#[test]
fn segments_are_those_of_the_reference() {
    let engine = engine(&EngineOptions::new());
    let mut wrong = Vec::new();
    for case in reference().cases {
        let transcript = engine.transcribe(recording(case.seconds), options_of(&case, &engine)).wait().unwrap();
        let rounded = |seconds: f64| (seconds * 1e4).round() / 1e4;
        let shown = |segment: &Segment| Expected {
            start: rounded(segment.start),
            end: rounded(segment.end),
            tokens: segment.tokens.clone(),
        };
        let found: Vec<Expected> = transcript.segments.iter().map(shown).collect();
        let text = |tokens: &[u32]| {
            let ids: Vec<u32> = tokens.iter().copied().filter(|&id| id < 320).collect();
            engine.processor().tokenizer().decode(&ids, true).unwrap()
        };
        // What has no text is no segment; nor is what begins behind the end.
        let duration = case.seconds as f64;
        let expected = case.segments.into_iter().filter(|segment| !text(&segment.tokens).trim().is_empty());
        let expected = expected.filter(|segment| segment.start < duration);
        let expected: Vec<Expected> =
            expected.map(|segment| Expected { end: segment.end.min(duration), ..segment }).collect();
        if found != expected {
            wrong.push(format!("{}: {found:?}\ninstead of {expected:?}", case.name));
        }
        assert_eq!(transcript.duration, duration);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn transcript(options: TranscribeOptions, seconds: usize) -> Transcript {
    engine(&EngineOptions::new()).transcribe(recording(seconds), options).wait().unwrap()
}

#[test]
fn words_make_up_their_segments_and_lie_in_order() {
    let transcript = transcript(TranscribeOptions { words: true, ..credulous() }, 40);
    let words: Vec<_> = transcript.segments.iter().flat_map(|segment| segment.words.as_ref().unwrap()).collect();
    assert!(words.len() >= transcript.segments.len());
    assert!(words.iter().all(|word| word.start <= word.end && (0.0..=1.0).contains(&word.probability)), "{words:?}");
    for segment in &transcript.segments {
        let joined: String = segment.words.iter().flatten().map(|word| word.word.as_str()).collect();
        assert_eq!(joined, segment.text);
    }
}

/// Random weights write on far behind the end of every one of these (`whisper_long/reference.json`).
#[test]
fn no_time_lies_behind_the_end_of_the_recording() {
    let engine = engine(&EngineOptions::new());
    let mut ends_of_recordings = 0;
    for n_samples in [1_600, 9 * 16_000, 35 * 16_000, 40 * 16_000 + 77] {
        let samples = recording(41)[..n_samples].to_vec();
        let options = TranscribeOptions { words: true, ..credulous() };
        let Transcript { segments, duration, .. } = engine.transcribe(samples, options).wait().unwrap();
        let words = segments.iter().flat_map(|segment| segment.words.as_ref().unwrap());
        let words = words.map(|word| (word.start, word.end));
        for (start, end) in segments.iter().map(|segment| (segment.start, segment.end)).chain(words) {
            assert!(0.0 <= start && start <= end && end <= duration, "{start} to {end} of {duration}");
        }
        assert!(segments.iter().all(|segment| segment.start < segment.end), "{segments:?}");
        ends_of_recordings += usize::from(segments.last().is_some_and(|last| duration - last.end < 0.01));
    }
    assert!(ends_of_recordings > 0, "some segment was cut");
}

#[test]
fn doubtful_answers_are_drawn_again_and_a_seed_repeats_them() {
    let doubting = TranscribeOptions {
        temperatures: vec![0.0, 0.4, 1.0],
        log_prob_threshold: Some(0.0),
        num_beams: 2,
        seed: 5,
        ..credulous()
    };
    let first = transcript(doubting.clone(), 9);
    assert!(first.segments.iter().all(|segment| segment.temperature == 1.0), "{first:?}");
    assert_eq!(first, transcript(doubting, 9));
}

#[test]
fn answers_that_repeat_themselves_are_drawn_again() {
    let engine = engine(&EngineOptions::new());
    let heard = |threshold| {
        let options = TranscribeOptions {
            condition_on_previous_text: false,
            temperatures: vec![0.0, 1.0],
            compression_ratio_threshold: threshold,
            ..credulous()
        };
        engine.transcribe(recording(75), options).wait().unwrap().segments
    };
    let once = heard(None);
    assert!(once.iter().all(|segment| segment.temperature == 0.0), "{once:?}");
    let ratios = || once.iter().map(|segment| segment.compression_ratio);
    let (least, most) = (ratios().fold(f32::MAX, f32::min), ratios().fold(0.0, f32::max));
    assert!(least < most, "the windows are compressed differently well");
    // The best compressed answers are doubted, the worst compressed ones are not.
    let threshold = (least + most) / 2.0;
    let twice = heard(Some(threshold));
    let (first, again): (Vec<_>, Vec<_>) = twice.iter().partition(|segment| segment.temperature == 0.0);
    assert!(!again.is_empty() && again.iter().all(|segment| segment.temperature == 1.0), "{twice:?}");
    assert!(!first.is_empty() && first.iter().all(|segment| segment.compression_ratio <= threshold), "{twice:?}");
    // As good as the threshold is good enough.
    assert_eq!(heard(Some(most)), once);
}

#[test]
fn events_tell_how_far_it_is() {
    let engine = engine(&EngineOptions { quant: Quant::Q8, ..EngineOptions::new() });
    let events: Vec<_> = engine.transcribe(recording(70), credulous()).map(Result::unwrap).collect();
    assert_eq!(events[0], TranscribeEvent::Started { language: Some("en".to_owned()), duration: 70.0 });
    let reached: Vec<f64> = events
        .iter()
        .filter_map(|event| if let TranscribeEvent::Progress { seconds } = event { Some(*seconds) } else { None })
        .collect();
    assert!(reached.is_sorted() && reached.len() > 1, "{reached:?}");
    let segments = events.iter().filter(|event| matches!(event, TranscribeEvent::Segment(_))).count();
    let Some(TranscribeEvent::Done(transcript)) = events.last() else { panic!("no end in {events:?}") };
    assert_eq!(transcript.segments.len(), segments);
}

#[test]
fn what_cannot_be_transcribed_is_an_error() {
    let error_of = |engine: &Engine, options| engine.transcribe(recording(1), options).wait().unwrap_err();
    let whisper = engine(&EngineOptions::new());
    let error = error_of(&whisper, TranscribeOptions { language: Some("xx".to_owned()), ..credulous() });
    assert_eq!(error.to_string(), "language is xx, expected a code that the model knows, such as en or de");
    let error = error_of(&whisper, TranscribeOptions { num_beams: 0, ..credulous() });
    assert!(matches!(error, Error::InvalidOption { name: "num_beams", .. }), "{error}");
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama3");
    let llama = Engine::load(&ModelFiles::open(llama).unwrap(), &EngineOptions::new()).unwrap();
    assert_eq!(error_of(&llama, credulous()).to_string(), "llama models do not take recordings");
}

#[test]
fn silence_of_no_length_is_an_empty_transcript() {
    let found = engine(&EngineOptions::new()).transcribe(vec![0.0; 100], credulous()).wait().unwrap();
    assert_eq!((found.text.as_str(), found.segments.len()), ("", 0));
}

#[test]
fn a_dropped_transcription_is_cancelled() {
    let engine = engine(&EngineOptions::new());
    let transcription = engine.transcribe(recording(75), credulous());
    transcription.cancel_handle().cancel();
    assert!(matches!(transcription.wait(), Err(Error::Cancelled)));
    // The next one is served all the same.
    assert!(!engine.transcribe(recording(9), credulous()).wait().unwrap().segments.is_empty());
}
