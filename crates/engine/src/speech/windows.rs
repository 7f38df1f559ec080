//! From window to window through a recording (transformers `WhisperGenerationMixin.generate`, `_retrieve_segment`).
//!
//! Where a window's answer ends in the middle of a segment, that segment is thrown away and the next window begins at
//! the last complete timestamp: no sentence is cut at a window's end. Unlike there, no segment lies behind the end of the
//! recording: what ends later ends with it, what begins later is left out.

use std::ops::Range;

use crate::error::Result;
use crate::speech::words::Moments;

/// Frames of a recording that are heard at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The first frame.
    pub(crate) start: usize,
    /// Frames of the recording in it; the rest of the window is empty.
    pub(crate) frames: usize,
}

/// What was heard in a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// Without the end token.
    pub(crate) tokens: Vec<u32>,
    pub(crate) avg_log_prob: f32,
    pub(crate) compression_ratio: f32,
    pub(crate) no_speech_prob: f32,
    pub(crate) temperature: f32,
    /// Whether it is better to believe that nobody spoke.
    pub(crate) is_silence: bool,
}

/// Who hears a window; a model, or a test's script.
pub(crate) trait Listen {
    /// `previous` is what was said before, without its marker.
    fn listen(&mut self, window: Window, previous: &[u32]) -> Result<Heard>;

    /// When the tokens of a window's text begin.
    fn moments(&mut self, window: Window, text: &[u32]) -> Result<Moments>;
}

/// How a recording is walked through.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// Frames of the recording.
    pub(crate) frames: usize,
    /// Most frames of a window.
    pub(crate) window_frames: usize,
    /// Timestamps are tokens from here on, each two frames later.
    pub(crate) first_timestamp: u32,
    /// What the user says was said before.
    pub(crate) prompt: Vec<u32>,
    /// Whether a window is shown what was said before it.
    pub(crate) conditions: bool,
    /// Most tokens of it.
    pub(crate) most_previous: usize,
}

/// A window's answer, in parts.
#[derive(Debug)]
pub(crate) struct Answered<'a> {
    pub(crate) window: Window,
    pub(crate) heard: &'a Heard,
    pub(crate) parts: Vec<Part>,
}

/// A part of a window's answer, from timestamp to timestamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Frames of the recording.
    pub(crate) time: Range<usize>,
    /// Which tokens of the answer.
    pub(crate) tokens: Range<usize>,
}

impl Walk {
    /// Listens to all windows; `take` gets the answers, and may ask for the moments of their words.
    ///
    /// # Errors
    /// Those of `listener` and of `take`.
    pub(crate) fn run<L: Listen>(
        &self,
        listener: &mut L,
        take: &mut dyn FnMut(&mut L, Answered<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut history = self.prompt.clone();
        let (mut start, mut trusts_history) = (0, self.conditions);
        while start < self.frames {
            let window = Window { start, frames: (self.frames - start).min(self.window_frames) };
            let previous = if trusts_history { &history[..] } else { &self.prompt[..] };
            let heard = listener.listen(window, &previous[previous.len().saturating_sub(self.most_previous)..])?;
            // What was drawn by chance would lead the next windows astray.
            trusts_history = self.conditions && heard.temperature < 0.5;
            if heard.is_silence {
                start += window.frames;
                take(listener, Answered { window, heard: &heard, parts: Vec::new() })?;
                continue;
            }
            let (mut parts, advance) = self.parts(window, &heard.tokens);
            // A model may write on into the emptiness that fills the last window up, where nobody said anything.
            parts.retain_mut(|part| {
                part.time.end = part.time.end.min(self.frames);
                part.time.start < self.frames
            });
            for part in &parts {
                history.extend(self.remembered(&heard.tokens[part.tokens.clone()]));
            }
            take(listener, Answered { window, heard: &heard, parts })?;
            start += advance;
        }
        Ok(())
    }

    /// Cuts an answer where one segment ends and the next begins; also how many frames are done with.
    fn parts(&self, window: Window, tokens: &[u32]) -> (Vec<Part>, usize) {
        let is_timestamp = |at: usize| tokens[at] >= self.first_timestamp;
        let frame = |at: usize| 2 * tokens[at].saturating_sub(self.first_timestamp) as usize;
        let count = tokens.len();
        let mut cuts: Vec<usize> = (1..count).filter(|&at| is_timestamp(at - 1) && is_timestamp(at)).collect();
        let Some(last) = cuts.last_mut() else {
            let end = (0..count).rev().find(|&at| is_timestamp(at)).map_or(0, frame);
            let end = if end == 0 { window.frames } else { end };
            let time = window.start..window.start + end;
            return (vec![Part { time, tokens: 0..count }], window.frames);
        };
        // One timestamp at the end: nobody speaks after it.
        let is_complete = is_timestamp(count - 1) && !is_timestamp(count - 2);
        let advance = if is_complete {
            cuts.push(count);
            window.frames
        } else {
            // The beginning of the next segment stays with the last one, to tell that it is not the end.
            let advance = frame(*last - 1);
            *last += 1;
            // No step at all would never end.
            if advance == 0 { window.frames } else { advance }
        };
        let n_cuts = cuts.len();
        let starts = [0].into_iter().chain(cuts.clone());
        let parts = starts.zip(cuts).enumerate().map(|(idx, (start, end))| {
            let last = if idx + 1 == n_cuts && !is_complete { end - 2 } else { end - 1 };
            let time = window.start + frame(start)..window.start + frame(last);
            Part { time, tokens: start..end }
        });
        (parts.collect(), advance)
    }

    /// A part as the next windows are shown it: without the beginning of the segment after it.
    fn remembered<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        match tokens {
            [_, .., before, _] if *before >= self.first_timestamp => &tokens[..tokens.len() - 1],
            all => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timestamp of so many frames.
    fn at(frame: u32) -> u32 {
        100 + frame / 2
    }

    /// Answers that are given whatever is asked, and what was asked.
    #[derive(Default)]
    struct Script {
        answers: Vec<Heard>,
        asked: Vec<(usize, usize, Vec<u32>)>,
    }

    impl Listen for Script {
        fn listen(&mut self, window: Window, previous: &[u32]) -> Result<Heard> {
            self.asked.push((window.start, window.frames, previous.to_vec()));
            Ok(self.answers.remove(0))
        }

        fn moments(&mut self, _: Window, _: &[u32]) -> Result<Moments> {
            panic!("nobody asks for moments here")
        }
    }

    fn heard(tokens: &[u32]) -> Heard {
        Heard { tokens: tokens.to_vec(), ..Heard::default() }
    }

    fn walk(frames: usize) -> Walk {
        let prompt = Vec::new();
        Walk { frames, window_frames: 3000, first_timestamp: 100, prompt, conditions: true, most_previous: 5 }
    }

    /// When, and the tokens.
    type Found = Vec<(Range<usize>, Vec<u32>)>;

    /// All parts, and what was asked.
    fn run(walk: &Walk, answers: Vec<Heard>) -> (Found, Script) {
        let (mut script, mut parts) = (Script { answers, ..Script::default() }, Vec::new());
        let mut take = |_: &mut Script, answered: Answered<'_>| {
            for part in answered.parts {
                parts.push((part.time, answered.heard.tokens[part.tokens].to_vec()));
            }
            Ok(())
        };
        walk.run(&mut script, &mut take).unwrap();
        assert!(script.answers.is_empty());
        (parts, script)
    }

    #[test]
    fn an_unfinished_segment_is_heard_again() {
        let first = [at(0), 1, at(400), at(400), 2, at(1000), at(1000), 3];
        let second = [at(0), 4, at(50)];
        let (parts, script) = run(&walk(3100), vec![heard(&first), heard(&second)]);
        assert_eq!(parts[0], (0..400, vec![at(0), 1, at(400)]));
        assert_eq!(parts[1], (400..1000, vec![at(400), 2, at(1000), at(1000)]));
        assert_eq!(parts[2], (1000..1050, second.to_vec()));
        assert_eq!(script.asked[1], (1000, 2100, vec![1, at(400), at(400), 2, at(1000)]));
    }

    #[test]
    fn one_timestamp_at_the_end_ends_the_window() {
        let answer = [at(0), 1, at(400), at(500), 2, at(700)];
        let (parts, script) = run(&walk(4000), vec![heard(&answer), heard(&[at(0), 3, at(90)])]);
        assert_eq!(parts[1], (500..700, vec![at(500), 2, at(700)]));
        assert_eq!((script.asked[1].0, script.asked[1].1), (3000, 1000));
    }

    #[test]
    fn text_without_an_end_lasts_as_long_as_the_window() {
        let (parts, _) = run(&walk(3500), vec![heard(&[at(0), 1, 2]), heard(&[1])]);
        assert_eq!(parts, [(0..3000, vec![at(0), 1, 2]), (3000..3500, vec![1])]);
        let (parts, _) = run(&walk(500), vec![heard(&[1, at(60), 2])]);
        assert_eq!(parts, [(0..60, vec![1, at(60), 2])]);
        let (parts, _) = run(&walk(500), vec![heard(&[])]);
        assert_eq!(parts, [(0..500, vec![])]);
    }

    #[test]
    fn nothing_is_said_behind_the_end_of_the_recording() {
        let answer = [at(0), 1, at(400), at(480), 2, at(620), at(620), 3, at(900), at(900), 4];
        let (parts, script) = run(&walk(501), vec![heard(&answer)]);
        assert_eq!(parts, [(0..400, answer[..3].to_vec()), (480..501, answer[3..6].to_vec())]);
        assert_eq!(script.asked.len(), 1);
        let (parts, _) = run(&walk(10), vec![heard(&[at(70), 1, at(90), at(90), 2, at(244)])]);
        assert_eq!(parts, []);
        let (parts, _) = run(&walk(3030), vec![heard(&[at(0), 1, at(20)]), heard(&[at(10), 2, at(80)])]);
        assert_eq!(parts[1], (3000..3030, vec![at(10), 2, at(80)]));
    }

    #[test]
    fn silence_is_skipped_and_not_remembered() {
        let silence = Heard { is_silence: true, ..heard(&[at(0), 9, at(80)]) };
        let (parts, script) = run(&walk(3100), vec![silence, heard(&[at(0), 1, at(20)])]);
        assert_eq!(parts.len(), 1);
        assert_eq!(script.asked[1], (3000, 100, vec![]));
    }

    #[test]
    fn what_was_drawn_by_chance_is_not_shown() {
        let lucky = Heard { temperature: 0.6, ..heard(&[at(0), 1, at(20)]) };
        let prompted = Walk { prompt: vec![7], ..walk(9000) };
        let (_, script) = run(&prompted, vec![lucky, heard(&[at(0), 2, at(20)]), heard(&[3])]);
        let shown: Vec<&[u32]> = script.asked.iter().map(|(.., previous)| &previous[..]).collect();
        assert_eq!(shown, [&[7][..], &[7], &[1, at(20), at(0), 2, at(20)]]);
    }

    #[test]
    fn unconditioned_windows_see_the_prompt_only() {
        let unconditioned = Walk { prompt: vec![7, 8], conditions: false, ..walk(6000) };
        let (_, script) = run(&unconditioned, vec![heard(&[at(0), 1, at(20)]), heard(&[2])]);
        assert_eq!(script.asked[1].2, [7, 8]);
    }

    #[test]
    fn an_answer_that_goes_nowhere_ends() {
        let (_, script) = run(&walk(3100), vec![heard(&[at(0), at(0), 1]), heard(&[2])]);
        assert_eq!(script.asked[1].0, 3000);
    }
}
