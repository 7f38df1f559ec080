//! `ocelli transcribe`: what is said in each recording.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read, stdin};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;
use ocelli_engine::{Engine, Segment, TranscribeEvent, TranscribeOptions, Transcript};
use ocelli_processors::{Audio, AudioLimits, decode_audio};

use crate::arguments::{TranscribeArgs, TranscriptFormat};
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::{AUDIO, Input, collect, plain};
use crate::interrupt::Graceful;
use crate::model;
use crate::output::Layout;
use crate::terminal::{note, one_line, print, print_answer, printable, progress_bar};

pub(crate) fn run(args: &TranscribeArgs) -> Outcome {
    let options = args.speech.options();
    options.validate().map_err(|error| Failure::new(Exit::Usage, error))?;
    let inputs = collect(&args.files, args.recursive, &AUDIO)?;
    inputs.remarks.iter().for_each(|remark| note(&format!("notice: {remark}")));
    let is_single = matches!(args.files.as_slice(), [only] if inputs.files == [Input::single(only)]);
    let layout = Layout { format: args.format, timestamps: args.speech.timestamps };
    let is_subtitle = matches!(args.format, TranscriptFormat::Srt | TranscriptFormat::Vtt);
    if args.output.is_none() && is_subtitle && !is_single {
        let message = "subtitles of several recordings cannot be one file";
        return Err(Failure::message(Exit::Usage, message).with_hint("add --output DIR"));
    }
    let (tasks, skipped) = tasks(args, layout, &inputs.files)?;
    if tasks.is_empty() {
        note(&format!("0 transcribed, {skipped} skipped (already done)"));
        return Ok(Exit::Success);
    }
    let files = model::find(&args.speech.model, args.speech.revision.as_deref())?;
    let engine = model::load(&files, &args.speech.device)?;
    model::require_hearing(&engine)?;
    Batch { args, engine, options, layout, is_single, tally: Tally { skipped, ..Tally::default() } }.run(&tasks)
}

/// A recording, and the file for its text.
struct Task {
    input: Input,
    target: Option<PathBuf>,
}

/// The recordings that are to be heard, and how many are done already.
fn tasks(args: &TranscribeArgs, layout: Layout, inputs: &[Input]) -> Result<(Vec<Task>, usize), Failure> {
    let Some(folder) = &args.output else {
        return Ok((inputs.iter().map(|input| Task { input: input.clone(), target: None }).collect(), 0));
    };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut tasks = Vec::new();
    for (input, name) in inputs.iter().zip(target_names(inputs, layout.extension())) {
        let target = folder.join(name);
        if !target.exists() {
            tasks.push(Task { input: input.clone(), target: Some(target) });
        } else if !args.resume {
            let failure = Failure::message(Exit::Failed, format!("{} exists", target.display()));
            return Err(failure.with_hint("add --resume to keep it and do the others, or choose another folder"));
        }
    }
    let skipped = inputs.len() - tasks.len();
    Ok((tasks, skipped))
}

/// `talk.mp3` becomes `talk.srt`; where two would be the same, `talk.mp3.srt`, and then `talk.mp3.2.srt`.
fn target_names(inputs: &[Input], extension: &str) -> Vec<String> {
    let file = |input: &Input| match input {
        Input::Stdin => "stdin".to_owned(),
        Input::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let stem = |name: &str| Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut stems: HashMap<String, usize> = HashMap::new();
    for input in inputs {
        *stems.entry(stem(&file(input))).or_default() += 1;
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    let name = |input| {
        let (file, stem) = (file(input), stem(&file(input)));
        let base = if stems[&stem] > 1 { file } else { stem };
        let count = seen.entry(base.clone()).or_default();
        *count += 1;
        if *count > 1 { format!("{base}.{count}.{extension}") } else { format!("{base}.{extension}") }
    };
    inputs.iter().map(name).collect()
}

/// A run over some recordings.
struct Batch<'a> {
    args: &'a TranscribeArgs,
    engine: Engine,
    options: TranscribeOptions,
    layout: Layout,
    is_single: bool,
    tally: Tally,
}

/// What a run amounts to.
#[derive(Default)]
struct Tally {
    done: usize,
    skipped: usize,
    not_done: usize,
    failures: Vec<(String, String)>,
    /// Seconds of sound.
    heard: f64,
    elapsed: Duration,
}

impl Batch<'_> {
    fn run(mut self, tasks: &[Task]) -> Outcome {
        let graceful = Graceful::begin();
        let mut exit = Exit::Success;
        for (task_idx, task) in tasks.iter().enumerate() {
            let name = task.input.name();
            let started = Instant::now();
            let place =
                if self.is_single { name.clone() } else { format!("{name} ({}/{})", task_idx + 1, tasks.len()) };
            let result = self.transcribe(task, &place, &graceful);
            self.tally.elapsed += started.elapsed();
            if graceful.interrupted() {
                self.tally.not_done = tasks.len() - task_idx;
                exit = Exit::Interrupted;
                break;
            }
            match result {
                Ok(transcript) => self.finished(&name, &transcript, started.elapsed()),
                Err(failure) if failure.is_closed_pipe() || failure.exit() == Exit::Usage => return Err(failure),
                Err(failure) if self.is_single => {
                    return Ok(failure.report_about(if name == "-" { "standard input" } else { &name }));
                }
                Err(failure) => {
                    self.tally.failures.push((name, failure.text()));
                    exit = Exit::Failed;
                }
            }
        }
        if !self.is_single {
            note(&self.tally.to_string());
        }
        Ok(exit)
    }

    /// Hears one recording and writes down what is said.
    fn transcribe(&self, task: &Task, place: &str, graceful: &Graceful) -> Result<Transcript, Failure> {
        let name = task.input.name();
        let audio = decode(&task.input, &self.engine)?;
        remarks(&audio).iter().for_each(|remark| note(&format!("notice: {name}: {remark}")));
        let bar = progress_bar(audio.seconds().ceil() as usize, "s");
        bar.set_message(printable(place).into_owned());
        let transcription = self.engine.transcribe(audio.samples, self.options.clone());
        graceful.watch(transcription.cancel_handle());
        let streams = self.is_single && task.target.is_none() && self.args.format != TranscriptFormat::Json;
        let mut count = 0;
        let mut finished = None;
        for event in transcription {
            match event? {
                TranscribeEvent::Started { .. } if streams => print(self.layout.head())?,
                TranscribeEvent::Started { .. } => {}
                TranscribeEvent::Segment(segment) if streams => self.stream(&segment, &mut count, &bar)?,
                TranscribeEvent::Segment(_) => {}
                TranscribeEvent::Progress { seconds } => bar.set_position(seconds as u64),
                TranscribeEvent::Done(transcript) => finished = Some(transcript),
            }
        }
        bar.finish_and_clear();
        let transcript = finished.ok_or(ocelli_engine::Error::Stopped)?;
        if !streams {
            self.write(task, &transcript)?;
        }
        Ok(transcript)
    }

    fn stream(&self, segment: &Segment, count: &mut usize, bar: &ProgressBar) -> std::io::Result<()> {
        let text = self.layout.segment(segment, count);
        bar.suspend(|| print_answer(&text))
    }

    fn write(&self, task: &Task, transcript: &Transcript) -> Result<(), Failure> {
        let name = task.input.name();
        let text = self.layout.whole(&name, &self.engine.info().label, transcript);
        match &task.target {
            None if self.args.format == TranscriptFormat::Json => print(&text)?,
            None => print_answer(&format!("{name}: {}\n", one_line(&text)))?,
            Some(target) => {
                // All at once: what is there is done.
                let mut partial = target.clone().into_os_string();
                partial.push(".partial");
                let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, target));
                written.with_context(|| target.display().to_string())?;
            }
        }
        Ok(())
    }

    fn finished(&mut self, name: &str, transcript: &Transcript, elapsed: Duration) {
        self.tally.done += 1;
        self.tally.heard += transcript.duration;
        if self.args.verbose {
            let language = transcript.language.as_deref().unwrap_or("en");
            let (length, seconds) = (transcript.duration, elapsed.as_secs_f64());
            let factor = seconds / length.max(0.01);
            let segments = transcript.segments.len();
            note(&format!(
                "{name}: {length:.1} s of {language}, {segments} segments in {seconds:.2} s (real-time factor {factor:.4})"
            ));
        }
    }
}

/// Without a line end.
impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} transcribed, {} failed", self.done, self.failures.len())?;
        for (count, what) in [(self.skipped, "skipped (already done)"), (self.not_done, "not done (interrupted)")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        let seconds = self.elapsed.as_secs_f64();
        if self.heard > 0.0 && seconds > 0.0 {
            write!(
                f,
                "\n{:.0} s of sound in {seconds:.1} s (real-time factor {:.3})",
                self.heard,
                seconds / self.heard
            )?;
        }
        if !self.failures.is_empty() {
            write!(f, "\nfailed:")?;
        }
        self.failures.iter().try_for_each(|(name, reason)| write!(f, "\n  {name}: {reason}"))
    }
}

/// What people should know of a recording that is not as it should be.
pub(crate) fn remarks(audio: &Audio) -> Vec<String> {
    let damaged = (audio.damaged_packets > 0)
        .then(|| format!("{} damaged parts of the file were left out", audio.damaged_packets));
    let incomplete = audio.incomplete.then(|| "the file ends before it should".to_owned());
    damaged.into_iter().chain(incomplete).collect()
}

/// A recording as this model hears it; one that does not hear says so later.
pub(crate) fn decode(input: &Input, engine: &Engine) -> Result<Audio, Failure> {
    let rate = engine.processor().mel_extractor().map_or(16_000, |extractor| extractor.sampling_rate());
    let limits = AudioLimits::default();
    Ok(match input {
        Input::Stdin => {
            let mut bytes = Vec::new();
            // One byte more than the limit: enough for the decoder to refuse what is longer.
            stdin().lock().take(limits.max_bytes + 1).read_to_end(&mut bytes).context("standard input")?;
            decode_audio(Cursor::new(bytes), rate, &limits)
        }
        Input::File(path) if path.is_dir() => {
            return Err(Failure::message(Exit::Failed, "this is a folder, not a recording"));
        }
        Input::File(path) => decode_audio(File::open(path).map_err(plain)?, rate, &limits),
    }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recording_gets_a_file_of_its_own() {
        let file = |name: &str| Input::File(name.into());
        let inputs = [file("a/talk.mp3"), file("b/talk.wav"), file("c/talk.wav"), file("x.y.ogg"), Input::Stdin];
        let expected = ["talk.mp3.srt", "talk.wav.srt", "talk.wav.2.srt", "x.y.srt", "stdin.srt"];
        assert_eq!(target_names(&inputs, "srt"), expected);
    }

    #[test]
    fn recordings_that_are_not_whole_are_told_of() {
        let audio = Audio { samples: vec![0.0], rate: 1, damaged_packets: 2, incomplete: true };
        assert_eq!(remarks(&audio), ["2 damaged parts of the file were left out", "the file ends before it should"]);
        assert!(remarks(&Audio { damaged_packets: 0, incomplete: false, ..audio }).is_empty());
    }
}
