//! `ocelli transcribe`: one recording, several, and those that fail.

use crate::support::{Ran, Scratch, repository};

/// A WAV file of 16 bits at 16 kHz with a tone that changes.
pub(crate) fn recording(seconds: usize) -> Vec<u8> {
    let count = seconds as i64 * 16_000;
    let sample = |at: i64| {
        let period = 20 + at / 4000 * 37 % 90;
        let loudness = at / 4000 * 53 % 7 * 600;
        (if at / period % 2 == 1 { loudness } else { -loudness }) as i16
    };
    let mut file = b"RIFF".to_vec();
    file.extend((36 + 2 * count as u32).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend((2 * count as u32).to_le_bytes());
    file.extend((0..count).flat_map(|at| sample(at).to_le_bytes()));
    file
}

/// Two recordings, and a file that is none.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("calls/a.wav", &recording(9));
    scratch.write("calls/b.wav", &recording(40));
    scratch.write("calls/c.mp3", b"this is no recording");
    scratch.write("calls/notes.txt", b"nor is this");
    scratch
}

fn transcribe(scratch: &Scratch, arguments: &str) -> Ran {
    let model = repository("crates/engine/tests/data/whisper_long");
    let model = ["--model".into(), model.into_os_string()];
    let words = arguments.split_whitespace().map(Into::into);
    scratch.run(["transcribe".into()].into_iter().chain(words).chain(model))
}

#[test]
fn one_recording_is_its_text() {
    let scratch = scratch();
    let ran = transcribe(&scratch, "calls/a.wav --language en");
    assert!(!ran.ok().trim().is_empty());
    assert_eq!(ran.stderr, "");
    let timed = transcribe(&scratch, "calls/a.wav --language en --timestamps segments");
    assert!(timed.ok().starts_with("[00:00:0"), "{timed:?}");
    let told = transcribe(&scratch, "calls/a.wav --verbose");
    assert!(told.stderr.contains("9.0 s of ") && told.stderr.contains("real-time factor"), "{told:?}");
}

#[test]
fn json_tells_of_every_word() {
    let scratch = scratch();
    let ran = transcribe(&scratch, "calls/b.wav --format json --timestamps words --num-beams 1");
    ran.ok();
    let object = &ran.objects()[0];
    assert_eq!((object["audio"].as_str(), object["duration"].as_f64()), (Some("calls/b.wav"), Some(40.0)));
    assert!(["en", "de", "fr"].contains(&object["language"].as_str().unwrap()));
    let segments = object["segments"].as_array().unwrap();
    let text: String = segments.iter().map(|segment| segment["text"].as_str().unwrap()).collect();
    assert_eq!(object["text"].as_str(), Some(text.as_str()));
    assert!(segments.iter().all(|segment| !segment["words"].as_array().unwrap().is_empty()), "{ran:?}");
}

#[test]
fn thresholds_say_when_an_answer_is_tried_again() {
    let scratch = scratch();
    let temperatures = |flags: &str| {
        let ran = transcribe(&scratch, &format!("calls/a.wav --language en --num-beams 1 --format json {flags}"));
        ran.ok();
        let segments = ran.objects()[0]["segments"].as_array().unwrap().clone();
        assert!(!segments.is_empty(), "{flags}: {ran:?}");
        segments.iter().map(|segment| segment["temperature"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let tried = "--temperature 0,0.5 --logprob-threshold none";
    let all = |of: &[f64], expected| of.iter().all(|&found| found == expected);
    assert!(all(&temperatures(&format!("{tried} --compression-ratio-threshold 0")), 0.5));
    assert!(all(&temperatures(&format!("{tried} --compression-ratio-threshold none")), 0.0));
    assert!(all(&temperatures("--temperature 0,0.5 --logprob-threshold 0 --no-speech-threshold none"), 0.5));
    // Any chance of silence is enough.
    let ran = transcribe(&scratch, "calls/a.wav --language en --logprob-threshold 0 --no-speech-threshold 0");
    assert_eq!(ran.ok(), "");
}

#[test]
fn every_recording_of_a_folder_gets_a_file_and_what_is_there_is_not_done_again() {
    let scratch = scratch();
    let arguments = "calls --format srt --output subtitles --num-beams 1 --language en";
    let ran = transcribe(&scratch, arguments);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("2 transcribed, 1 failed"), "{ran:?}");
    assert!(ran.stderr.contains("calls/c.mp3: not an audio file in a known format"), "{ran:?}");
    assert!(scratch.read("subtitles/a.srt").starts_with("1\n00:00:0"));
    let again = transcribe(&scratch, arguments);
    assert!(again.code == 1 && again.stderr.contains("a.srt exists"), "{again:?}");
    assert!(again.stderr.contains("--resume"), "{again:?}");
    std::fs::remove_file(scratch.path().join("subtitles/b.srt")).unwrap();
    scratch.write("subtitles/a.srt", b"kept");
    let resumed = transcribe(&scratch, &format!("{arguments} --resume"));
    assert!(resumed.stderr.contains("1 transcribed, 1 failed, 1 skipped (already done)"), "{resumed:?}");
    assert_eq!(scratch.read("subtitles/a.srt"), "kept");
    assert!(scratch.path().join("subtitles/b.srt").exists());
}

#[test]
fn what_cannot_work_is_refused_with_advice() {
    let scratch = scratch();
    let ran = transcribe(&scratch, "calls --format srt");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("subtitles of several recordings cannot be one file"), "{ran:?}");
    let ran = transcribe(&scratch, "calls/a.wav --language klingon");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("language is klingon, expected a code that the model knows"), "{ran:?}");
    for (flags, message) in [
        ("--no-speech-threshold 2", "no_speech_threshold is 2, expected a probability, from 0 to 1"),
        ("--logprob-threshold 1", "log_prob_threshold is 1, expected a number up to 0"),
        ("--compression-ratio-threshold -1", "compression_ratio_threshold is -1, expected a number from 0"),
        ("--temperature 0,101", "temperatures is [0.0, 101.0], expected some numbers from 0 to 100"),
    ] {
        let ran = transcribe(&scratch, &format!("calls/a.wav {flags}"));
        assert!(ran.code == 2 && ran.stderr.contains(message), "{ran:?}");
    }
    let ran = transcribe(&scratch, "calls/c.mp3");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("WAV, FLAC, MP3, OGG (Vorbis) and M4A (AAC, ALAC) are supported"), "{ran:?}");
    let ran = transcribe(&scratch, "gone.wav");
    assert!(ran.code == 1 && ran.stderr.contains("gone.wav: no such file"), "{ran:?}");
    let ran = scratch.run(["transcribe", "calls/a.wav", "--model", "demo"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("does not take recordings") && ran.stderr.contains("openai/whisper-base"), "{ran:?}");
}
