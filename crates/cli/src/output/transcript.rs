//! Transcripts as plain text, subtitles and JSON.

use ocelli_engine::{Segment, Transcript};
use serde::Serialize;

use crate::arguments::{TimestampsOf, TranscriptFormat};

/// How transcripts are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) format: TranscriptFormat,
    pub(crate) timestamps: Option<TimestampsOf>,
}

/// The JSON object of a recording. The fields, their names and their order are a promise to scripts.
#[derive(Serialize)]
struct Record<'a> {
    audio: &'a str,
    model: &'a str,
    #[serde(flatten)]
    transcript: &'a Transcript,
}

impl Layout {
    /// The ending of files in this format.
    pub(crate) fn extension(self) -> &'static str {
        match self.format {
            TranscriptFormat::Text => "txt",
            TranscriptFormat::Srt => "srt",
            TranscriptFormat::Vtt => "vtt",
            TranscriptFormat::Json => "json",
        }
    }

    /// What comes before the first segment.
    pub(crate) fn head(self) -> &'static str {
        if self.format == TranscriptFormat::Vtt { "WEBVTT\n\n" } else { "" }
    }

    /// A segment as it can be given out before the others are known; nothing where that cannot be. `count` says how
    /// many cues there were before, and is brought up to date.
    pub(crate) fn segment(self, segment: &Segment, count: &mut usize) -> String {
        let mut text = String::new();
        for Cue { start, end, words } in self.cues(segment) {
            *count += 1;
            text += &match (self.format, self.timestamps) {
                (TranscriptFormat::Json, _) => String::new(),
                (TranscriptFormat::Text, None) => format!("{words}\n"),
                (TranscriptFormat::Text, Some(_)) => format!("[{} --> {}] {words}\n", time(start, '.'), time(end, '.')),
                (TranscriptFormat::Srt, _) => {
                    format!("{count}\n{} --> {}\n{words}\n\n", time(start, ','), time(end, ','))
                }
                (TranscriptFormat::Vtt, _) => {
                    format!("{} --> {}\n{}\n\n", time(start, '.'), time(end, '.'), escaped(&words))
                }
            };
        }
        text
    }

    /// A whole transcript.
    pub(crate) fn whole(self, audio: &str, model: &str, transcript: &Transcript) -> String {
        if self.format == TranscriptFormat::Json {
            let record = Record { audio, model, transcript };
            let json = serde_json::to_string(&record).expect("a transcript holds nothing that JSON cannot hold");
            return json + "\n";
        }
        let mut count = 0;
        let segments = transcript.segments.iter().map(|segment| self.segment(segment, &mut count));
        segments.fold(self.head().to_owned(), |text, segment| text + &segment)
    }

    /// What is shown at one time: a segment, or each of its words; nothing where there is nothing to read.
    fn cues(self, segment: &Segment) -> Vec<Cue> {
        let words = segment.words.iter().flatten().filter(|_| self.timestamps == Some(TimestampsOf::Words));
        let cue = |start, end, text: &str| Cue { start, end, words: readable(text) };
        let mut cues: Vec<Cue> = words.map(|word| cue(word.start, word.end, &word.word)).collect();
        if cues.is_empty() {
            cues.push(cue(segment.start, segment.end, &segment.text));
        }
        cues.retain(|cue| !cue.words.is_empty());
        cues
    }
}

struct Cue {
    start: f64,
    end: f64,
    words: String,
}

/// `01:02:03.456`.
fn time(seconds: f64, point: char) -> String {
    let milliseconds = (seconds.max(0.0) * 1e3).round() as u64;
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    format!("{:02}:{:02}:{:02}{point}{rest:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The text on one line, without control characters: no player shows them, and an empty line would end a cue.
fn readable(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    line.replace(char::is_control, "").trim().to_owned()
}

/// Text that holds no tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use ocelli_engine::Word;

    use super::*;

    fn transcript() -> Transcript {
        let word = |word: &str, start, end| Word { start, end, word: word.into(), probability: 0.5 };
        let segment = |text: &str, start, end, words| Segment {
            start,
            end,
            text: text.into(),
            tokens: vec![1],
            avg_log_prob: -0.5,
            compression_ratio: 1.0,
            no_speech_prob: 0.0,
            temperature: 0.0,
            words,
        };
        let words = vec![word(" Hello", 0.0, 0.5), word(" you.", 0.5, 1.25)];
        Transcript {
            text: " Hello you. 1 < 2 & 3".into(),
            language: Some("en".into()),
            duration: 3725.0,
            segments: vec![
                segment(" Hello you.", 0.0, 1.25, Some(words)),
                segment(" 1 < 2 & 3", 3723.0005, 3725.0, None),
            ],
        }
    }

    fn written(format: TranscriptFormat, timestamps: Option<TimestampsOf>) -> String {
        Layout { format, timestamps }.whole("a.wav", "org/model", &transcript())
    }

    #[test]
    fn text_is_a_line_per_segment() {
        assert_eq!(written(TranscriptFormat::Text, None), "Hello you.\n1 < 2 & 3\n");
        let timed = "[00:00:00.000 --> 00:00:01.250] Hello you.\n[01:02:03.001 --> 01:02:05.000] 1 < 2 & 3\n";
        assert_eq!(written(TranscriptFormat::Text, Some(TimestampsOf::Segments)), timed);
    }

    #[test]
    fn subtitles_are_numbered_and_timed() {
        let expected = "1\n00:00:00,000 --> 00:00:01,250\nHello you.\n\n\
            2\n01:02:03,001 --> 01:02:05,000\n1 < 2 & 3\n\n";
        assert_eq!(written(TranscriptFormat::Srt, None), expected);
        let words = written(TranscriptFormat::Srt, Some(TimestampsOf::Words));
        assert!(words.starts_with("1\n00:00:00,000 --> 00:00:00,500\nHello\n\n2\n"), "{words}");
        assert!(words.contains("3\n01:02:03,001"), "{words}");
    }

    #[test]
    fn web_subtitles_hold_no_tags() {
        let expected = "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello you.\n\n\
            01:02:03.001 --> 01:02:05.000\n1 &lt; 2 &amp; 3\n\n";
        assert_eq!(written(TranscriptFormat::Vtt, None), expected);
    }

    #[test]
    fn control_characters_and_cues_without_text_are_left_out() {
        let mut transcript = transcript();
        transcript.segments[0].text = " \u{7}".into();
        transcript.segments[0].words.as_mut().unwrap()[1].word = "\u{1b}\u{9b}".into();
        transcript.segments[1].text = " 1\u{0}2\r\n\n3\t4\u{7} ".into();
        let written = |format, timestamps| Layout { format, timestamps }.whole("a.wav", "m", &transcript);
        let expected = "1\n01:02:03,001 --> 01:02:05,000\n12   3 4\n\n";
        assert_eq!(written(TranscriptFormat::Srt, None), expected);
        let expected = "WEBVTT\n\n01:02:03.001 --> 01:02:05.000\n12   3 4\n\n";
        assert_eq!(written(TranscriptFormat::Vtt, None), expected);
        assert_eq!(written(TranscriptFormat::Text, None), "12   3 4\n");
        let words = written(TranscriptFormat::Srt, Some(TimestampsOf::Words));
        assert_eq!(words, "1\n00:00:00,000 --> 00:00:00,500\nHello\n\n2\n01:02:03,001 --> 01:02:05,000\n12   3 4\n\n");
        // JSON keeps what the model wrote.
        assert!(written(TranscriptFormat::Json, None).contains(r#""text":" \u0007""#));
    }

    #[test]
    fn json_holds_everything() {
        let json: serde_json::Value = serde_json::from_str(&written(TranscriptFormat::Json, None)).unwrap();
        assert_eq!(
            (&json["audio"], &json["model"], &json["language"]),
            (&"a.wav".into(), &"org/model".into(), &"en".into())
        );
        assert_eq!(json["segments"][0]["words"][1]["word"], " you.");
        assert!(json["segments"][1].get("words").is_none());
    }
}
