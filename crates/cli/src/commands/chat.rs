//! `ocelli chat`: a conversation at the terminal, or from lines of standard input.

mod editor;

use std::ffi::OsStr;
use std::io::{IsTerminal, stdin, stdout};
use std::path::Path;

use ocelli_engine::{Answer, Engine, FinishReason, GenerateOptions, Input as Ask, Request};
use ocelli_processors::{ChatOptions, Content, ImageLimits, Message, VideoOptions};

use crate::arguments::ChatArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::{Input, Shown};
use crate::interrupt::Graceful;
use crate::model;
use crate::terminal::{AnswerPrinter, note, print, spinner};

use editor::{Editor, Line};

pub(crate) fn run(args: &ChatArgs) -> Outcome {
    model::generate_options(&args.sampling, None)?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    // A mistyped path should not cost a minute.
    if let Some(path) = args.images.iter().find(|path| !Path::new(path).exists()) {
        return Err(Failure::message(Exit::Failed, format!("{}: no such file", path.display())));
    }
    let engine = model::load(&files, &args.model.device)?;
    model::require(&engine, (!args.images.is_empty()).then(|| args.look.detail()), false)?;
    let options = model::generate_options(&args.sampling, Some(engine.info()))?;
    let mut chat = Chat::new(engine, options, args.video.options(args.look.detail()), args.system.as_deref());
    chat.waiting = args.images.iter().map(|path| chat.look(path, false)).collect::<Result<_, _>>()?;

    let mut editor = Editor::open(stdin().is_terminal() && stdout().is_terminal());
    // Pressed a moment too late to stop an answer, Ctrl-C must not end the chat.
    let _between_answers = editor.is_interactive().then(Graceful::begin);
    if editor.is_interactive() {
        let pictures = match &chat.waiting[..] {
            [] => String::new(),
            shown => format!(" about {}", counted(shown)),
        };
        model::introduce(&args.model.model);
        note(&format!("chat with {}{pictures}; /help lists what else you can type", chat.engine.info().label));
    }
    loop {
        match editor.read()? {
            Line::Text(line) => {
                if let After::Quit = chat.take(line.trim())? {
                    break;
                }
            }
            Line::Interrupted => note("press Ctrl-C again, or Ctrl-D, to end the chat"),
            Line::End => break,
        }
    }
    // At a terminal the user has seen each failure; a script needs to be told at the end.
    Ok(if chat.any_failed && !editor.is_interactive() { Exit::Failed } else { Exit::Success })
}

fn counted(shown: &[Shown]) -> String {
    let n_videos = shown.iter().filter(|shown| matches!(shown, Shown::Video(_))).count();
    let pictures = format!("{} picture(s)", shown.len() - n_videos);
    if n_videos == 0 { pictures } else { format!("{pictures}, {n_videos} video(s)") }
}

/// The conversation so far.
struct Chat {
    engine: Engine,
    options: GenerateOptions,
    video: VideoOptions,
    system: Option<Message>,
    messages: Vec<Message>,
    /// The pictures and videos of all messages, in order.
    shown: Vec<Shown>,
    /// Those for the next message.
    waiting: Vec<Shown>,
    last: Option<Answer>,
    any_failed: bool,
}

/// What happens after a line.
enum After {
    Continue,
    Quit,
}

impl Chat {
    fn new(engine: Engine, options: GenerateOptions, video: VideoOptions, system: Option<&str>) -> Self {
        let system = system.map(|text| Message::text("system", text));
        Self {
            engine,
            options,
            video,
            messages: system.clone().into_iter().collect(),
            system,
            shown: Vec::new(),
            waiting: Vec::new(),
            last: None,
            any_failed: false,
        }
    }

    /// Obeys a command or answers a message.
    ///
    /// # Errors
    /// Only when standard output is gone: everything else is told and the chat goes on.
    fn take(&mut self, line: &str) -> Result<After, Failure> {
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => {}
            "/quit" | "/exit" | "/bye" => return Ok(After::Quit),
            "/help" | "/?" => note(HELP),
            "/clear" => {
                self.clear();
                note("cleared: the conversation starts anew");
            }
            "/stats" => note(&self.statistics()),
            "/image" => self.add(argument.trim(), false),
            "/video" => self.add(argument.trim(), true),
            // A message may well be about a path.
            unknown if unknown.starts_with('/') && !unknown[1..].contains('/') => {
                note(&format!("there is no command {unknown}; /help lists what there is"));
            }
            _ => self.answer(line)?,
        }
        Ok(After::Continue)
    }

    fn clear(&mut self) {
        self.messages = self.system.clone().into_iter().collect();
        self.shown.clear();
        self.waiting.clear();
        self.last = None;
    }

    fn add(&mut self, path: &str, is_video: bool) {
        // Paths that are dropped onto a terminal come quoted.
        let path = path.trim_matches(['\'', '"']);
        if path.is_empty() {
            return note(if is_video {
                "give the path of a video, or of a folder of frames: /video clip.mp4"
            } else {
                "give the path of a picture: /image photo.jpg"
            });
        }
        let required = model::require(&self.engine, Some(self.video.detail), false);
        let result = required.and_then(|()| self.look(OsStr::new(path), is_video));
        match result {
            Ok(shown) => {
                let what = match &shown {
                    Shown::Image(image) | Shown::FirstFrame(image) => format!("{}x{}", image.width, image.height),
                    Shown::Video(video) => format!("{} frames", video.frames.len()),
                };
                note(&format!("{path} ({what}) goes with your next message"));
                self.waiting.push(shown);
            }
            Err(failure) => self.tell(&failure),
        }
    }

    /// Reads a video, or what is a picture or a video.
    fn look(&self, path: &OsStr, is_video: bool) -> Result<Shown, Failure> {
        let (input, model, limits) = (Input::File(path.into()), self.engine.processor(), ImageLimits::default());
        let _spinner = spinner(&format!("reading {}", input.name()));
        if is_video {
            model::require_videos(&self.engine)?;
        }
        let shown = if is_video {
            input.watch(model, &limits, &self.video).map(Shown::Video)
        } else {
            input.look(model, &limits, &self.video)
        };
        let shown = shown.map_err(|error| Failure::from(error.context(input.name())))?;
        if let Some(notice) = shown.notice() {
            note(&format!("notice: {}: {notice}", input.name()));
        }
        Ok(shown)
    }

    fn tell(&mut self, failure: &Failure) {
        failure.report();
        self.any_failed = true;
    }

    /// Answers a message. What fails is taken back, so that the conversation can go on from where it was.
    fn answer(&mut self, text: &str) -> Result<(), Failure> {
        let new = std::mem::take(&mut self.waiting);
        let content = new.iter().map(Shown::place).chain([Content::Text(text.to_owned())]).collect();
        let (messages_before, shown_before) = (self.messages.len(), self.shown.len());
        self.messages.push(Message { role: "user".to_owned(), content });
        self.shown.extend(new);

        let result = self.generate();
        print("\n")?;
        match result {
            Ok(answer) if !answer.text.is_empty() || answer.finish_reason != FinishReason::Cancelled => {
                if let Some(notice) = &answer.notice {
                    note(&format!("notice: {notice}"));
                }
                self.messages.push(Message::text("assistant", answer.text.clone()));
                self.last = Some(answer);
            }
            result => {
                self.messages.truncate(messages_before);
                self.waiting = self.shown.split_off(shown_before);
                match result {
                    Ok(_) => note("stopped; your message was taken back"),
                    Err(failure) if failure.is_closed_pipe() => return Err(failure),
                    Err(failure) => self.tell(&failure),
                }
            }
        }
        Ok(())
    }

    fn generate(&self) -> Result<Answer, Failure> {
        let options = ChatOptions { detail: self.video.detail, ..ChatOptions::answer() };
        let (images, videos) = Shown::apart(self.shown.iter().cloned());
        let input = Ask::Chat { messages: self.messages.clone(), images, videos, options };
        let request = Request { input, options: self.options.clone() };
        let mut printer = AnswerPrinter::new();
        model::answer(&self.engine, request, &Graceful::begin(), |piece| printer.show(piece))
    }

    fn statistics(&self) -> String {
        let Some(answer) = &self.last else { return "no answer yet".to_owned() };
        let used = answer.prompt_tokens + answer.completion_tokens;
        let n_turns = self.messages.iter().filter(|message| message.role == "user").count();
        format!(
            "{}\nconversation: {n_turns} message(s), {}, {used} of {} tokens of context",
            model::statistics(answer).join("\n"),
            counted(&self.shown),
            self.engine.info().context_length
        )
    }
}

const HELP: &str = "\
/image PATH  add a picture to your next message
/video PATH  add a video, or a folder of frames
/clear       start anew, without the messages and pictures so far
/stats       sizes, token counts and timings of the last answer
/quit        end (also Ctrl-D)
Ctrl-C stops an answer.";
