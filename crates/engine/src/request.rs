//! What a request asks, and the handle that its caller keeps.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use ocelli_backend::Cancel;
use ocelli_processors::{ChatOptions, Content, Detail, Image, Message, Processor, Prompt, Video, Visuals};

use crate::answer::{Answer, ImageUse};
use crate::engine::Worker;
use crate::error::{Error, Result};
use crate::options::GenerateOptions;

/// A prompt and how to answer it.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub input: Input,
    /// How it is answered.
    pub options: GenerateOptions,
}

/// What a request asks.
#[derive(Clone, Debug)]
pub enum Input {
    /// A conversation, rendered with the model's chat template.
    Chat {
        /// The turns so far.
        messages: Vec<Message>,
        /// The pictures, in the order of their [`Content::Image`].
        images: Vec<Image>,
        /// The videos, in the order of their [`Content::Video`].
        videos: Vec<Video>,
        /// Tools, template variables, and how closely to look at the pictures.
        options: ChatOptions,
    },
    /// Text that is continued as it is, special tokens included.
    Raw {
        /// The text, with the model's placeholder (such as `<image>`, `<video>`) for each picture and video.
        text: String,
        /// The pictures in order.
        images: Vec<Image>,
        /// The videos in order.
        videos: Vec<Video>,
        /// How closely to look at them.
        detail: Detail,
    },
    /// Token ids that are continued as they are.
    Tokens {
        /// The ids; none may stand for a picture.
        ids: Vec<u32>,
    },
}

impl Request {
    /// A conversation.
    pub fn chat(messages: Vec<Message>, images: Vec<Image>, options: GenerateOptions) -> Self {
        Self { input: Input::Chat { messages, images, videos: Vec::new(), options: ChatOptions::answer() }, options }
    }

    /// One question about some pictures (or none).
    pub fn question(text: &str, images: Vec<Image>, options: GenerateOptions) -> Self {
        let pictures = images.iter().map(|_| Content::Image);
        let content = pictures.chain([Content::Text(text.to_owned())]).collect();
        Self::chat(vec![Message { role: "user".to_owned(), content }], images, options)
    }

    /// Text that is continued as it is.
    pub fn raw(text: &str, images: Vec<Image>, options: GenerateOptions) -> Self {
        Self { input: Input::Raw { text: text.to_owned(), images, videos: Vec::new(), detail: Detail::Auto }, options }
    }
}

impl Input {
    /// Token ids and pixel values.
    pub(crate) fn prepare(&self, processor: &Processor) -> Result<Prompt> {
        Ok(match self {
            Self::Chat { messages, images, videos, options } => {
                processor.chat_prompt(messages, Visuals { images, videos }, options)?
            }
            Self::Raw { text, images, videos, detail } => {
                processor.raw_prompt_with(text, Visuals { images, videos }, *detail)?
            }
            Self::Tokens { ids } => Prompt { text: String::new(), ids: ids.clone(), images: Vec::new() },
        })
    }
}

/// What happens to a request, in order.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "the large one comes once per request")]
pub enum Event {
    /// Its turn has come and its prompt is ready; the model runs from here on.
    Started {
        /// Tokens of the prompt, vision tokens included.
        prompt_tokens: usize,
        /// Tokens of the prompt that stand for pictures.
        vision_tokens: usize,
        /// One entry per picture.
        images: Vec<ImageUse>,
    },
    /// More of what the model thinks before it answers.
    Reasoning {
        /// Whole characters, never part of a tag.
        piece: String,
        /// The tokens that became certain with it.
        token_ids: Vec<u32>,
    },
    /// More of the answer. Beam search gives all of it at once.
    Text {
        /// Whole characters, never part of a stop string; empty when tokens remain that have no text.
        piece: String,
        /// The tokens that became certain with it.
        token_ids: Vec<u32>,
    },
    /// The end.
    Done(Answer),
}

/// A request under way: an iterator over its events. Dropping it cancels the request.
///
/// The last item is [`Event::Done`] or an error.
#[derive(Debug)]
pub struct Generation {
    events: Receiver<Result<Event>>,
    cancel: Cancel,
    is_over: bool,
    /// Keeps the engine alive as long as somebody waits for an answer.
    _worker: Arc<Worker>,
}

impl Generation {
    pub(crate) fn new(worker: Arc<Worker>) -> (Self, Sender<Result<Event>>) {
        let (sender, events) = channel();
        (Self { events, cancel: Cancel::new(), is_over: false, _worker: worker }, sender)
    }

    /// Ends the request at the next token, layer of the prompt's pass or picture; its answer is what there is by then.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A handle that cancels from elsewhere, such as a signal handler.
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Waits for the answer and drops all other events.
    ///
    /// # Errors
    /// Whatever went wrong with this request.
    pub fn wait(mut self) -> Result<Answer> {
        for event in &mut self {
            if let Event::Done(answer) = event? {
                return Ok(answer);
            }
        }
        Err(Error::Stopped)
    }
}

impl Iterator for Generation {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.events.recv().unwrap_or(Err(Error::Stopped));
        self.is_over = matches!(event, Err(_) | Ok(Event::Done(_)));
        Some(event)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
