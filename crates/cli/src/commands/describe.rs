//! `ocelli describe`: the same question about every picture.

use std::time::Instant;

use indicatif::ProgressBar;
use ocelli_engine::{Answer, Engine, GenerateOptions};
use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{has_ffmpeg, video_families};

use crate::arguments::DescribeArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::{Input, Inputs, PICTURES_AND_VIDEOS, PICTURES_WITHOUT_VIDEOS, collect};
use crate::interrupt::Graceful;
use crate::model;
use crate::output::OutFile;
use crate::record::Record;
use crate::summary::Summary;
use crate::terminal::{AnswerPrinter, note, one_line, print, print_answer, printable, progress_bar, unless_kept};

pub(crate) fn run(args: &DescribeArgs) -> Outcome {
    model::generate_options(&args.sampling, None)?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    let mut inputs = find_inputs(args, &files)?;
    let question = args.prompt.as_deref().unwrap_or_default();
    let open = |path| OutFile::open(path, args.resume, Record::sheet(), files.label(), question);
    let out = args.out.as_ref().map(open).transpose()?;

    let is_single = matches!(args.images.as_slice(), [only] if inputs.files == [Input::single(only)]);
    let mut summary = Summary::of("image");
    let n_found = inputs.files.len();
    if let Some(out) = &out {
        // What standard input holds is another picture every time.
        inputs.files.retain(|input| *input == Input::Stdin || out.held(&input.name()).is_none());
        summary.skipped = n_found - inputs.files.len();
    }
    if inputs.files.is_empty() {
        note(&summary.to_string());
        return Ok(Exit::Success);
    }
    if !args.answer.json {
        model::introduce(&args.model.model);
    }
    let engine = model::load(&files, &args.model.device)?;
    model::require(&engine, Some(args.answer.prompting.chat_options().detail), args.raw)?;
    let options = model::generate_options(&args.sampling, Some(engine.info()))?;
    let show = match is_single {
        _ if args.answer.json => Show::Json,
        true => Show::Stream,
        false => Show::Lines,
    };
    let bar = if is_single { ProgressBar::hidden() } else { progress_bar(inputs.files.len(), "images") };
    Batch { args, engine, options, show, is_single, out, bar, summary }.run(&inputs.files)
}

/// What is described: videos in folders, too, if the model takes them and they can be read. Tells what is left out.
fn find_inputs(args: &DescribeArgs, files: &ModelFiles) -> Result<Inputs, Failure> {
    let config = Config::load(files).map_err(|error| Failure::new(Exit::Model, error))?;
    let reason = match video_families().contains(&config.model_type()) {
        false => Some("the model takes no videos"),
        true if !has_ffmpeg() => Some("ffmpeg, which reads them, is not on the PATH"),
        true => None,
    };
    let kind = if reason.is_some() { &PICTURES_WITHOUT_VIDEOS } else { &PICTURES_AND_VIDEOS };
    let inputs = collect(&args.images, args.recursive, kind)?;
    inputs.remarks.iter().for_each(|remark| note(&format!("notice: {remark}")));
    if let Some((first, others)) = inputs.left_out.split_first() {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        let reason = reason.unwrap_or_default();
        note(&format!("notice: left out {}{more}: {reason}", first.display()));
    }
    Ok(inputs)
}

/// How answers appear on standard output.
#[derive(Clone, Copy, PartialEq)]
enum Show {
    /// Piece by piece.
    Stream,
    /// `path: text`.
    Lines,
    /// One object per line.
    Json,
}

/// A run over some pictures.
struct Batch<'a> {
    args: &'a DescribeArgs,
    engine: Engine,
    options: GenerateOptions,
    show: Show,
    is_single: bool,
    out: Option<OutFile>,
    bar: ProgressBar,
    summary: Summary,
}

impl Batch<'_> {
    fn run(mut self, pictures: &[Input]) -> Outcome {
        let graceful = Graceful::begin();
        let started = Instant::now();
        let mut exit = Exit::Success;
        for (picture_idx, input) in pictures.iter().enumerate() {
            self.bar.set_message(printable(&input.name()).into_owned());
            let picture_started = Instant::now();
            let result = self.ask(input, &graceful);
            if graceful.interrupted() {
                self.summary.not_done = pictures.len() - picture_idx;
                break;
            }
            match result {
                Ok(answer) => {
                    self.summary.generated(&answer);
                    self.summary.succeeded(picture_started.elapsed());
                    self.keep(&input.name(), &answer)?;
                }
                Err(Problem::Output(failure)) => return Err(failure),
                Err(Problem::Picture(failure)) => exit = self.keep_failure(&input.name(), &failure)?,
            }
            self.bar.inc(1);
        }
        self.bar.finish_and_clear();
        self.summary.elapsed = started.elapsed();
        if !self.is_single {
            note(&self.summary.to_string());
        }
        Ok(if graceful.interrupted() { Exit::Interrupted } else { exit })
    }

    fn ask(&self, input: &Input, graceful: &Graceful) -> Result<Answer, Problem> {
        let started = Instant::now();
        let (limits, how) = (
            self.args.answer.prompting.image_limits(),
            self.args.video.options(self.args.answer.prompting.chat_options().detail),
        );
        let shown = input.look(self.engine.processor(), &limits, &how);
        let shown = shown.map_err(|error| Problem::Picture(error.into()))?;
        if let Some(notice) = shown.notice() {
            self.bar.suspend(|| note(&format!("notice: {}: {notice}", input.name())));
        }
        let decode_ms = started.elapsed().as_secs_f64() * 1e3;
        let DescribeArgs { prompt, raw, answer: how, .. } = self.args;
        let prompt = prompt.as_deref().unwrap_or_else(|| self.engine.processor().default_prompt());
        let request = model::request(prompt, vec![shown], *raw, how.prompting.chat_options(), self.options.clone());
        let (mut closed, mut printer, is_kept) = (None, AnswerPrinter::new(), self.out.is_some());
        let result = model::answer(&self.engine, request, graceful, |piece| {
            let printed = if self.show == Show::Stream { unless_kept(printer.show(piece), is_kept) } else { Ok(()) };
            printed.inspect_err(|error| closed = Some(error.kind()))
        });
        if let Some(kind) = closed {
            return Err(Problem::Output(std::io::Error::from(kind).into()));
        }
        if self.show == Show::Stream && (result.is_ok() || graceful.interrupted()) {
            unless_kept(print("\n"), is_kept).map_err(|error| Problem::Output(error.into()))?;
        }
        let mut answer = result.map_err(Problem::Picture)?;
        // For the user, the file's decoding is a part of the picture's preparation.
        answer.timings.preprocess_ms += decode_ms;
        answer.timings.ttft_ms += decode_ms;
        Ok(answer)
    }

    /// Shows an answer and writes its row.
    fn keep(&mut self, image: &str, answer: &Answer) -> Result<(), Failure> {
        let record =
            Record::answered(&[image.to_owned()], &self.engine.info().label, self.args.prompt.as_deref(), answer);
        let printed = self.bar.suspend(|| match self.show {
            Show::Stream => Ok(()),
            Show::Lines => print_answer(&format!("{image}: {}\n", one_line(&answer.text))),
            Show::Json => print(&format!("{}\n", record.to_json())),
        });
        unless_kept(printed, self.out.is_some())?;
        let of_image = if self.is_single { String::new() } else { format!("{image}: ") };
        self.bar.suspend(|| {
            if let Some(notice) = &answer.notice {
                note(&format!("notice: {of_image}{notice}"));
            }
            if self.args.answer.verbose {
                model::statistics(answer).iter().for_each(|line| note(&format!("{of_image}{line}")));
            }
        });
        Ok(self.out.as_mut().map_or(Ok(()), |out| out.write(&record))?)
    }

    /// Notes a picture that failed and writes its row; tells how a run over this picture alone exits.
    fn keep_failure(&mut self, image: &str, failure: &Failure) -> Outcome {
        self.summary.failed(image, &failure.text());
        let (label, prompt) = (&self.engine.info().label, self.args.prompt.as_deref());
        let record = Record::failed(&[image.to_owned()], label, prompt, &failure.text());
        if self.show == Show::Json {
            let printed = self.bar.suspend(|| print(&format!("{}\n", record.to_json())));
            unless_kept(printed, self.out.is_some())?;
        }
        self.out.as_mut().map_or(Ok(()), |out| out.write(&record))?;
        // Of several, the summary lists those that failed.
        let shown = if image == "-" { "standard input" } else { image };
        Ok(if self.is_single { failure.report_about(shown) } else { Exit::Failed })
    }
}

/// Why there is no answer.
enum Problem {
    /// Something about this picture; the others go on.
    Picture(Failure),
    /// The answers cannot be shown any more.
    Output(Failure),
}
