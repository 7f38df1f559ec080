//! A recording's way through the engine: prepared, heard window by window, reported segment by segment.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use ocelli_backend::Cancel;
use ocelli_processors::{LogMel, MelExtractor, Processor};

use crate::engine::Worker;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::speech::decode::Listener;
use crate::speech::tokens::SpeechTokens;
use crate::speech::windows::{Answered, Listen, Walk};
use crate::speech::words::{Spoken, spoken};
use crate::speech::{Segment, TranscribeOptions, Transcript, Word};

/// What happens to a recording, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum TranscribeEvent {
    /// Its turn has come, and its language is known.
    Started {
        /// As in [`Transcript`].
        language: Option<String>,
        /// Seconds of the recording.
        duration: f64,
    },
    /// What was said next.
    Segment(Segment),
    /// A window is done.
    Progress {
        /// Seconds of the recording that are done.
        seconds: f64,
    },
    /// The end.
    Done(Transcript),
}

/// A transcription under way: an iterator over its events. Dropping it cancels the transcription.
///
/// The last item is [`TranscribeEvent::Done`] or an error.
#[derive(Debug)]
pub struct Transcription {
    events: Receiver<Result<TranscribeEvent>>,
    cancel: Cancel,
    is_over: bool,
    /// Keeps the engine alive as long as somebody waits for the transcript.
    _worker: Arc<Worker>,
}

impl Transcription {
    pub(crate) fn new(worker: Arc<Worker>) -> (Self, Sender<Result<TranscribeEvent>>) {
        let (sender, events) = channel();
        (Self { events, cancel: Cancel::new(), is_over: false, _worker: worker }, sender)
    }

    /// A handle that cancels from elsewhere, such as a signal handler; the transcription then ends with
    /// [`Error::Cancelled`].
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Waits for the transcript and drops all other events.
    ///
    /// # Errors
    /// Whatever went wrong with this recording.
    pub fn wait(mut self) -> Result<Transcript> {
        for event in &mut self {
            if let TranscribeEvent::Done(transcript) = event? {
                return Ok(transcript);
            }
        }
        Err(Error::Stopped)
    }
}

impl Iterator for Transcription {
    type Item = Result<TranscribeEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.events.recv().unwrap_or(Err(Error::Stopped));
        self.is_over = matches!(event, Err(_) | Ok(TranscribeEvent::Done(_)));
        Some(event)
    }
}

impl Drop for Transcription {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A recording and where its events go.
#[derive(Debug)]
pub(crate) struct TranscribeJob {
    /// One channel at the model's rate.
    pub(crate) samples: Vec<f32>,
    pub(crate) options: TranscribeOptions,
    pub(crate) cancel: Cancel,
    pub(crate) events: Sender<Result<TranscribeEvent>>,
}

/// A model that hears.
pub(crate) struct Speech<'a> {
    pub(crate) session: &'a mut dyn Session,
    pub(crate) processor: &'a Processor,
    pub(crate) extractor: &'a MelExtractor,
    pub(crate) tokens: &'a SpeechTokens,
}

impl Speech<'_> {
    /// Transcribes a recording; events but for the last go to the job's listener.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a language or a task that the model does not know; [`Error::Cancelled`]; those of
    /// [`Session::prefill`].
    pub(crate) fn transcribe(self, job: &TranscribeJob) -> Result<Transcript> {
        let TranscribeJob { samples, options, cancel, events } = job;
        let tokens = self.tokens;
        let language = options.language.as_deref().map(|code| tokens.language(code)).transpose()?;
        tokens.task(options.translate)?;
        let (mel, walk) = self.plan(samples, options)?;
        let mut listener = Listener {
            session: self.session,
            tokens,
            tokenizer: self.processor.tokenizer(),
            options,
            mel: &mel,
            window_frames: self.extractor.window_frames(),
            language,
            features: None,
            cancel,
        };
        if language.is_none() && walk.frames > 0 {
            listener.language = listener.detect_language()?;
        }
        let code = |id: u32| tokens.languages().iter().find(|(_, known)| *known == id).map(|(code, _)| code.clone());
        let language = listener.language.and_then(code);
        let duration = samples.len() as f64 / f64::from(self.extractor.sampling_rate());
        let mut transcript = Transcript { language: language.clone(), duration, ..Transcript::default() };
        let emit = |event| {
            if events.send(Ok(event)).is_err() {
                cancel.cancel();
            }
        };
        emit(TranscribeEvent::Started { language: language.clone(), duration });
        let frame_seconds = self.extractor.hop_length() as f64 / f64::from(self.extractor.sampling_rate());
        walk.run(&mut listener, &mut |listener, answered| {
            let (window, parts) = (answered.window, &answered.parts);
            let reached = parts.last().map_or(window.start + window.frames, |part| part.time.end.max(window.start));
            for segment in segments(listener, &answered, language.as_deref(), frame_seconds)? {
                transcript.text += &segment.text;
                transcript.segments.push(segment.clone());
                emit(TranscribeEvent::Segment(segment));
            }
            emit(TranscribeEvent::Progress { seconds: (reached as f64 * frame_seconds).min(duration) });
            Ok(())
        })?;
        Ok(transcript)
    }

    /// The spectrogram of the recording, and how it is walked through.
    fn plan(&self, samples: &[f32], options: &TranscribeOptions) -> Result<(LogMel, Walk)> {
        let extractor = self.extractor;
        // Up to one window the reference adds silence, beyond that empty frames.
        let is_short = samples.len() <= extractor.window_samples();
        let mel = if is_short { extractor.one_window(samples) } else { extractor.spectrogram(samples) };
        let prompt = options.prompt.as_deref().map(str::trim).filter(|prompt| !prompt.is_empty());
        let prompt = prompt.map(|prompt| self.processor.tokenizer().encode_literal(&format!(" {prompt}")));
        let walk = Walk {
            frames: samples.len() / extractor.hop_length(),
            window_frames: extractor.window_frames(),
            first_timestamp: self.tokens.first_timestamp,
            prompt: prompt.transpose()?.unwrap_or_default(),
            conditions: options.condition_on_previous_text,
            most_previous: (self.session.context_length() / 2).saturating_sub(1),
        };
        Ok((mel, walk))
    }
}

/// A window's answer as segments; those without text are left out.
fn segments(
    listener: &mut Listener<'_>,
    answered: &Answered<'_>,
    language: Option<&str>,
    frame_seconds: f64,
) -> Result<Vec<Segment>> {
    let heard = answered.heard;
    let seconds = |frame: usize| frame as f64 * frame_seconds;
    let end_id = listener.tokens.end;
    let text_of = |tokens: &[u32]| -> Vec<u32> { tokens.iter().copied().filter(|&id| id < end_id).collect() };
    let moments = if listener.options.words && !answered.parts.is_empty() {
        let all = text_of(&heard.tokens[..answered.parts.last().map_or(0, |part| part.tokens.end)]);
        Some(listener.moments(answered.window, &all)?)
    } else {
        None
    };
    let (mut segments, mut done) = (Vec::new(), 0);
    for part in &answered.parts {
        let tokens = heard.tokens[part.tokens.clone()].to_vec();
        let ids = text_of(&tokens);
        let text = listener.tokenizer.decode(&ids, true)?;
        let time = |moment: usize| seconds(answered.window.start + 2 * moment);
        let word = |Spoken { word, start, end, probability, .. }| Word {
            start: time(start),
            end: time(end),
            word,
            probability,
        };
        let of_part = moments.as_ref().map(|moments| moments.of(done..done + ids.len()));
        let spoken = of_part.map(|moments| spoken(&ids, &moments, listener.tokenizer, language)).transpose()?;
        let words = spoken.map(|words| words.into_iter().map(word).collect());
        done += ids.len();
        if !text.trim().is_empty() {
            segments.push(Segment {
                start: seconds(part.time.start),
                end: seconds(part.time.end),
                text,
                tokens,
                avg_log_prob: heard.avg_log_prob,
                compression_ratio: heard.compression_ratio,
                no_speech_prob: heard.no_speech_prob,
                temperature: heard.temperature,
                words,
            });
        }
    }
    Ok(segments)
}
