//! `ocelli run`: one prompt, one answer.

use std::io::Read;
use std::time::Instant;

use anyhow::Context;
use ocelli_engine::{Answer, Engine};
use ocelli_processors::ImageLimits;

use crate::arguments::RunArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::{Input, Shown};
use crate::interrupt::Graceful;
use crate::model::{self, Piece};
use crate::record::Record;
use crate::terminal::{AnswerPrinter, note, print, spinner};

pub(crate) fn run(args: &RunArgs) -> Outcome {
    model::generate_options(&args.sampling, None)?;
    let inputs: Vec<Input> = args.images.iter().map(|image| Input::single(image)).collect();
    let videos: Vec<Input> = args.videos.iter().map(|video| Input::single(video)).collect();
    let all = || inputs.iter().chain(&videos);
    let uses_of_stdin = all().filter(|input| **input == Input::Stdin).count() + usize::from(args.prompt == "-");
    if uses_of_stdin > 1 {
        return Err(Failure::message(Exit::Usage, "standard input can be read only once"));
    }
    let prompt = read_prompt(&args.prompt)?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    let names: Vec<String> = all().map(Input::name).collect();
    let started = Instant::now();
    // Before the model is loaded: a mistyped path should not cost a minute.
    let (mut shown, mut decode_ms) = match decode(&inputs, &args.answer.prompting.image_limits()) {
        Ok(images) => (images, started.elapsed().as_secs_f64() * 1e3),
        Err(failure) => return fail(args, &names, files.label(), &prompt, failure),
    };
    if !args.answer.json {
        model::introduce(&args.model.model);
    }
    let engine = model::load(&files, &args.model.device)?;
    let look = (!names.is_empty()).then(|| args.answer.prompting.chat_options().detail);
    model::require(&engine, look, args.raw)?;
    let started = Instant::now();
    // Which frames of a video are read depends on the model.
    match watch(args, &videos, &engine) {
        Ok(videos) => shown.extend(videos),
        Err(failure) => return fail(args, &names, files.label(), &prompt, failure),
    }
    decode_ms += started.elapsed().as_secs_f64() * 1e3;
    match answer(args, &engine, &prompt, shown) {
        Ok(mut answer) => {
            answer.timings.preprocess_ms += decode_ms;
            answer.timings.ttft_ms += decode_ms;
            finish(args, &names, &engine.info().label, &prompt, &answer)
        }
        Err(failure) => fail(args, &names, &engine.info().label, &prompt, failure),
    }
}

fn read_prompt(argument: &str) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut prompt = String::new();
    std::io::stdin().read_to_string(&mut prompt).context("the prompt on standard input")?;
    // The line end that every editor and `echo` put at the end is not part of the prompt.
    let end = prompt.trim_end_matches(['\n', '\r']).len();
    prompt.truncate(end);
    Ok(prompt)
}

fn decode(inputs: &[Input], limits: &ImageLimits) -> Result<Vec<Shown>, Failure> {
    let decode = |input: &Input| input.decode(limits).map_err(|error| Failure::from(error.context(input.name())));
    inputs.iter().map(|input| decode(input).map(Shown::Image)).collect()
}

fn watch(args: &RunArgs, videos: &[Input], engine: &Engine) -> Result<Vec<Shown>, Failure> {
    if videos.is_empty() {
        return Ok(Vec::new());
    }
    model::require_videos(engine)?;
    let (limits, how) =
        (args.answer.prompting.image_limits(), args.video.options(args.answer.prompting.chat_options().detail));
    let watch = |input: &Input| {
        let _spinner = spinner(&format!("reading {}", input.name()));
        let video = input.watch(engine.processor(), &limits, &how);
        video.map(Shown::Video).map_err(|error| Failure::from(error.context(input.name())))
    };
    videos.iter().map(watch).collect()
}

fn answer(args: &RunArgs, engine: &Engine, prompt: &str, shown: Vec<Shown>) -> Result<Answer, Failure> {
    let options = model::generate_options(&args.sampling, Some(engine.info()))?;
    let request = model::request(prompt, shown, args.raw, args.answer.prompting.chat_options(), options);
    let graceful = Graceful::begin();
    let mut printer = AnswerPrinter::new();
    let show = |piece: Piece<'_>| if args.answer.json { Ok(()) } else { printer.show(piece) };
    let answer = model::answer(engine, request, &graceful, show)?;
    Ok(answer)
}

fn finish(args: &RunArgs, names: &[String], label: &str, prompt: &str, answer: &Answer) -> Outcome {
    if args.answer.json {
        print(&format!("{}\n", Record::answered(names, label, Some(prompt), answer).to_json()))?;
    } else {
        print("\n")?;
    }
    if let Some(notice) = &answer.notice {
        note(&format!("notice: {notice}"));
    }
    if args.answer.verbose {
        model::statistics(answer).iter().for_each(|line| note(line));
    }
    let cancelled = answer.finish_reason == ocelli_engine::FinishReason::Cancelled;
    Ok(if cancelled { Exit::Interrupted } else { Exit::Success })
}

/// With `--json`, what went wrong is also an object on standard output.
fn fail(args: &RunArgs, names: &[String], label: &str, prompt: &str, failure: Failure) -> Outcome {
    if args.answer.json && !failure.is_closed_pipe() {
        print(&format!("{}\n", Record::failed(names, label, Some(prompt), &failure.text()).to_json()))?;
    }
    Err(failure)
}
