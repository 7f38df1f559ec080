//! From `--model` to a model that answers.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ocelli_engine::{
    Answer, Cancel, Engine, EngineOptions, Event, GenerateOptions, Input, LoadProgress, LocateRequest, Located,
    ModelInfo, Request, demo,
};
use ocelli_formats::{ModelFiles, hub_cache};
use ocelli_processors::{ChatOptions, Content, Detail, Message};

use crate::arguments::{DEMO, DeviceArgs, SamplingArgs};
use crate::exit::{Exit, Failure, exit_of};
use crate::inputs::Shown;
use crate::interrupt::Graceful;
use crate::terminal::{draw_target, remark, word};

/// Finds a model: `demo`, a folder, or an id in the cache.
///
/// # Errors
/// When there is no such model, or its folder is not one.
pub(crate) fn find(model: &OsStr, revision: Option<&str>) -> Result<ModelFiles, Failure> {
    if model == DEMO {
        return Ok(demo::files());
    }
    let found = match model.to_str() {
        Some(text) => hub_cache::resolve_model(text, revision),
        // No model id, but it may well be a folder.
        None => ModelFiles::open(Path::new(model)),
    };
    found.map_err(|error| Failure::new(Exit::Model, error))
}

/// Loads a model.
///
/// # Errors
/// When it is not supported, broken, or too large for the memory.
pub(crate) fn load(files: &ModelFiles, device: &DeviceArgs) -> Result<Engine, Failure> {
    load_with(files, &device.options())
}

/// [`load`] with the engine's own options.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_with(files: &ModelFiles, options: &EngineOptions) -> Result<Engine, Failure> {
    let spinner = ProgressBar::with_draw_target(None, draw_target());
    spinner.set_style(ProgressStyle::with_template("{spinner} loading {msg}").expect("the template is a constant"));
    spinner.set_message(files.label().to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let bar = ProgressStyle::with_template("{spinner} loading {msg} {bar:24} {bytes}/{total_bytes}");
    let bar = bar.expect("the template is a constant").progress_chars("=> ");
    let loaded = Engine::load_with_progress(files, options, &|LoadProgress { done, total }| {
        if spinner.length().is_none() {
            spinner.set_style(bar.clone());
            spinner.set_length(total);
        }
        spinner.set_position(done);
    });
    spinner.finish_and_clear();
    loaded.map_err(|error| Failure::new(exit_of(&error, Exit::Model), error))
}

/// Tells somebody at a terminal what they can expect of the built-in model.
pub(crate) fn introduce(model: &OsStr) {
    if model == DEMO {
        remark("demo model: it knows coloured shapes and short text; `ocelli pull ID` and --model ID for others");
    }
}

/// Checks that the model can be asked at all, so that a run over many pictures fails once and not for each; `look` is
/// how closely it looks at them, if there are any.
///
/// # Errors
/// When pictures are given to a text model or shown in too few tokens, or a message is given to a model without a chat
/// template.
pub(crate) fn require(engine: &Engine, look: Option<Detail>, raw: bool) -> Result<(), Failure> {
    let info = engine.info();
    if engine.processor().mel_extractor().is_some() {
        let message = format!("{} ({}) answers about recordings only", info.label, info.model_type);
        return Err(Failure::message(Exit::Model, message).with_hint("give it one with `ocelli transcribe`"));
    }
    if let Some(detail) = look {
        let Some(images) = engine.processor().image_processor() else {
            let message = format!("{} ({}) is a text model: it cannot see images", info.label, info.model_type);
            return Err(Failure::message(Exit::Model, message).with_hint("ask it with `ocelli run`, without pictures"));
        };
        images.check_detail(detail).map_err(|error| Failure::new(Exit::Model, error))?;
    }
    if !raw && !engine.processor().has_chat_template() {
        let error = ocelli_processors::Error::NoChatTemplate { label: info.label.clone() };
        return Err(Failure::new(Exit::Model, error));
    }
    Ok(())
}

/// Checks that the model takes recordings, so that a run over many of them fails once and not for each.
///
/// # Errors
/// When it does not.
pub(crate) fn require_hearing(engine: &Engine) -> Result<(), Failure> {
    if engine.processor().mel_extractor().is_some() {
        return Ok(());
    }
    let message = format!("{} ({}) does not take recordings", engine.info().label, engine.info().model_type);
    Err(Failure::message(Exit::Model, message).with_hint("choose a Whisper model, such as openai/whisper-base"))
}

/// The options of the flags, completed with the model's own where the user wishes so.
///
/// # Errors
/// When values are out of range or contradict each other.
pub(crate) fn generate_options(args: &SamplingArgs, info: Option<&ModelInfo>) -> Result<GenerateOptions, Failure> {
    let options = match info {
        Some(info) if args.model_defaults => args.options().with_defaults_of(&info.generation_defaults),
        _ => args.options(),
    };
    options.validate().map_err(|error| Failure::message(Exit::Usage, as_flags(&error)))?;
    Ok(options)
}

/// The engine's message with the names of its options as the flags they are here.
fn as_flags(error: &ocelli_engine::Error) -> String {
    let flag = |text: &str| {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        format!("--{} {rest}", name.replace('_', "-")).trim_end().to_owned()
    };
    match error {
        ocelli_engine::Error::InvalidOption { name, value, expected } => {
            format!("{} is {value}, expected {}", flag(name), expected.replace("max_tokens", "--max-tokens"))
        }
        ocelli_engine::Error::OptionConflict { first, second } => {
            format!("{} cannot be used together with {}", flag(first), flag(second))
        }
        other => other.to_string(),
    }
}

/// Checks that the model takes videos, before one is read.
///
/// # Errors
/// When it does not.
pub(crate) fn require_videos(engine: &Engine) -> Result<(), Failure> {
    if engine.processor().has_videos() {
        return Ok(());
    }
    let (label, model_type) = (engine.info().label.clone(), engine.info().model_type.clone());
    Err(Failure::new(Exit::Model, ocelli_processors::Error::NoVideos { label, model_type }))
}

/// One prompt with its pictures and videos as a request: verbatim, or as a user's message.
pub(crate) fn request(
    prompt: &str,
    shown: Vec<Shown>,
    raw: bool,
    chat: ChatOptions,
    options: GenerateOptions,
) -> Request {
    let content = shown.iter().map(Shown::place).chain([Content::Text(prompt.to_owned())]).collect();
    let (images, videos) = Shown::apart(shown);
    let input = if raw {
        Input::Raw { text: prompt.to_owned(), images, videos, detail: chat.detail }
    } else {
        let messages = vec![Message { role: "user".to_owned(), content }];
        Input::Chat { messages, images, videos, options: chat }
    };
    Request { input, options }
}

/// A part of an answer.
#[derive(Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// Of what the model thinks before it answers.
    Thought(&'a str),
    Text(&'a str),
}

/// Answers a request, handing every piece of text on as it comes. Ctrl-C ends the answer. To a chat's answer the
/// space that many models begin with belongs to the prompt: it is left out.
///
/// # Errors
/// Whatever went wrong with the request, or with handing the text on.
pub(crate) fn answer(
    engine: &Engine,
    request: Request,
    graceful: &Graceful,
    mut on_piece: impl FnMut(Piece<'_>) -> std::io::Result<()>,
) -> Result<Answer, Failure> {
    let mut at_start = matches!(request.input, Input::Chat { .. });
    let trim = |text: &str, at_start: bool| if at_start { text.trim_start().to_owned() } else { text.to_owned() };
    let is_chat = at_start;
    let generation = engine.submit(request);
    graceful.watch(generation.cancel_handle());
    for event in generation {
        match event? {
            Event::Started { .. } => {}
            Event::Text { piece, .. } => {
                let piece = trim(&piece, at_start);
                at_start &= piece.is_empty();
                on_piece(Piece::Text(&piece))?;
            }
            Event::Reasoning { piece, .. } => on_piece(Piece::Thought(&piece))?,
            Event::Done(answer) => return Ok(Answer { text: trim(&answer.text, is_chat), ..answer }),
        }
    }
    Err(ocelli_engine::Error::Stopped.into())
}

/// Finds something in a picture. Ctrl-C ends the search.
///
/// # Errors
/// Whatever went wrong with it.
pub(crate) fn locate(engine: &Engine, request: LocateRequest, graceful: &Graceful) -> Result<Located, Failure> {
    let cancel = Cancel::new();
    graceful.watch(cancel.clone());
    let exit = |error: &ocelli_engine::Error| match error {
        _ if graceful.interrupted() => Exit::Interrupted,
        ocelli_engine::Error::NoRegions { .. } => Exit::Model,
        error => exit_of(error, Exit::Failed),
    };
    engine.locate(request, &cancel).map_err(|error| Failure::new(exit(&error), error))
}

/// Sizes, token counts and timings of an answer, for people; one line each.
pub(crate) fn statistics(answer: &Answer) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for image in &answer.images {
        let ([width, height], [seen_width, seen_height]) = (image.image_size, image.resized_to);
        let smaller = if seen_width * seen_height < width * height { " (reduced)" } else { "" };
        let tokens = image.vision_tokens;
        let (kind, frames) = match image.frames {
            0 | 1 => ("image", String::new()),
            n => ("video", format!("{n} frames ")),
        };
        lines.push(format!(
            "{kind} {width}x{height}, {frames}seen as {seen_width}x{seen_height}{smaller}: {tokens} vision tokens"
        ));
    }
    let Answer { prompt_tokens, completion_tokens, timings: t, .. } = answer;
    let mut counts = format!("{prompt_tokens} prompt tokens, {completion_tokens} generated, ended by ");
    counts.push_str(&word(answer.finish_detail).replace('_', " "));
    counts.extend(answer.seed.map(|seed| format!(", seed {seed}")));
    counts.extend(answer.score.map(|score| format!(", score {score:.3}")));
    lines.push(counts);
    lines.push(format!(
        "load {:.0} ms, preprocess {:.1} ms, vision {:.1} ms, prefill {:.1} ms, first token {:.1} ms, decode {:.1} ms \
         ({:.1} tokens/s)",
        t.load_ms, t.preprocess_ms, t.vision_ms, t.prefill_ms, t.ttft_ms, t.decode_ms, t.tokens_per_second
    ));
    lines
}
