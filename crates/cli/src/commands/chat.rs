//! `ocelli chat`: a conversation at the terminal, or from lines of standard input.

mod editor;

use std::ffi::OsStr;
use std::io::{IsTerminal, stdin, stdout};

use ocelli_engine::{Answer, Engine, FinishReason, GenerateOptions, Input as Ask, Request};
use ocelli_processors::{ChatOptions, Content, Detail, Image, ImageLimits, Message};

use crate::arguments::ChatArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::inputs::Input;
use crate::interrupt::Graceful;
use crate::model;
use crate::terminal::{AnswerPrinter, note, print};

use editor::{Editor, Line};

pub(crate) fn run(args: &ChatArgs) -> Outcome {
    model::generate_options(&args.sampling, None)?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    let pictures = args.images.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let engine = model::load(&files, &args.model.device)?;
    model::require(&engine, !pictures.is_empty(), false)?;
    let options = model::generate_options(&args.sampling, Some(engine.info()))?;
    let mut chat = Chat::new(engine, options, args.detail.into(), args.system.as_deref());
    chat.waiting = pictures;

    let mut editor = Editor::open(stdin().is_terminal() && stdout().is_terminal());
    // Pressed a moment too late to stop an answer, Ctrl-C must not end the chat.
    let _between_answers = editor.is_interactive().then(Graceful::begin);
    if editor.is_interactive() {
        let pictures = match chat.waiting.len() {
            0 => String::new(),
            n => format!(" about {n} picture(s)"),
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

fn open(path: &OsStr) -> Result<Image, Failure> {
    let input = Input::File(path.into());
    input.decode(&ImageLimits::default()).map_err(|error| Failure::from(error.context(input.name())))
}

/// The conversation so far.
struct Chat {
    engine: Engine,
    options: GenerateOptions,
    detail: Detail,
    system: Option<Message>,
    messages: Vec<Message>,
    /// The pictures of all messages, in order.
    images: Vec<Image>,
    /// Pictures for the next message.
    waiting: Vec<Image>,
    last: Option<Answer>,
    any_failed: bool,
}

/// What happens after a line.
enum After {
    Continue,
    Quit,
}

impl Chat {
    fn new(engine: Engine, options: GenerateOptions, detail: Detail, system: Option<&str>) -> Self {
        let system = system.map(|text| Message::text("system", text));
        Self {
            engine,
            options,
            detail,
            messages: system.clone().into_iter().collect(),
            system,
            images: Vec::new(),
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
            "/image" => self.add_picture(argument.trim()),
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
        self.images.clear();
        self.waiting.clear();
        self.last = None;
    }

    fn add_picture(&mut self, path: &str) {
        // Paths that are dropped onto a terminal come quoted.
        let path = path.trim_matches(['\'', '"']);
        if path.is_empty() {
            return note("give the path of a picture: /image photo.jpg");
        }
        let result = model::require(&self.engine, true, false).and_then(|()| open(OsStr::new(path)));
        match result {
            Ok(image) => {
                note(&format!("{path} ({}x{}) goes with your next message", image.width, image.height));
                self.waiting.push(image);
            }
            Err(failure) => self.tell(&failure),
        }
    }

    fn tell(&mut self, failure: &Failure) {
        failure.report();
        self.any_failed = true;
    }

    /// Answers a message. What fails is taken back, so that the conversation can go on from where it was.
    fn answer(&mut self, text: &str) -> Result<(), Failure> {
        let new_images = std::mem::take(&mut self.waiting);
        let pictures = new_images.iter().map(|_| Content::Image);
        let content = pictures.chain([Content::Text(text.to_owned())]).collect();
        let (messages_before, images_before) = (self.messages.len(), self.images.len());
        self.messages.push(Message { role: "user".to_owned(), content });
        self.images.extend(new_images);

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
                self.waiting = self.images.split_off(images_before);
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
        let options = ChatOptions { detail: self.detail, ..ChatOptions::answer() };
        let input = Ask::Chat { messages: self.messages.clone(), images: self.images.clone(), options };
        let request = Request { input, options: self.options.clone() };
        let mut printer = AnswerPrinter::new();
        model::answer(&self.engine, request, &Graceful::begin(), |piece| printer.show(piece))
    }

    fn statistics(&self) -> String {
        let Some(answer) = &self.last else { return "no answer yet".to_owned() };
        let used = answer.prompt_tokens + answer.completion_tokens;
        let n_turns = self.messages.iter().filter(|message| message.role == "user").count();
        format!(
            "{}\nconversation: {n_turns} message(s), {} picture(s), {used} of {} tokens of context",
            model::statistics(answer).join("\n"),
            self.images.len(),
            self.engine.info().context_length
        )
    }
}

const HELP: &str = "\
/image PATH  add a picture to your next message
/clear       start anew, without the messages and pictures so far
/stats       sizes, token counts and timings of the last answer
/quit        end (also Ctrl-D)
Ctrl-C stops an answer.";
