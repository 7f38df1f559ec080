//! Text: the tokenizer and its inverse, chat templates, and what keeps user text from speaking for the template.

mod guard;
mod parts;
mod python;
mod stream;
mod template;
mod tokenizer;

pub(crate) use guard::{Guard, Segment};
pub(crate) use parts::classes as tokenizer_classes;
pub use stream::TokenStream;
pub use template::{ChatOptions, ChatTemplate, Clock, Content, ContentForm, Message};
pub use tokenizer::Tokenizer;
