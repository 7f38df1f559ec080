//! How the program ends: the table of exit codes and the form of error messages.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use ocelli_engine::Error as EngineError;

use crate::hub::HubError;
use crate::terminal::{Style, printable};

/// How the program ends. The numbers are documented in `ocelli --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything worked.
    Success = 0,
    /// A picture, a prompt or a file failed, or an evaluation did not pass.
    Failed = 1,
    /// The command line cannot be understood.
    Usage = 2,
    /// The model cannot be found or loaded.
    Model = 3,
    /// There is not enough memory.
    Memory = 4,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What ended a command: how the program exits, why, and what the user can do.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
}

/// The result of a command.
pub(crate) type Outcome = Result<Exit, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let hint = hint(&error);
        Self { exit, error, hint }
    }

    /// A failure with only a message.
    pub(crate) fn message(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{message}"), hint: None }
    }

    /// The same failure with advice of this program's own.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same failure, with what it is about in front.
    pub(crate) fn about(self, subject: &str) -> Self {
        Self { error: self.error.context(subject.to_owned()), ..self }
    }

    /// How the program exits.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// What the user can do, where there is something.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Message and causes in one line.
    pub(crate) fn text(&self) -> String {
        chain(&self.error)
    }

    /// Reports the failure with what it is about in front.
    pub(crate) fn report_about(&self, subject: &str) -> Exit {
        write_error(&format!("{subject}: {}", self.text()), self.hint.as_deref());
        self.exit
    }

    /// Whether the reader of standard output has gone.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        let causes = self.error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
        causes.into_iter().any(|error| error.kind() == ErrorKind::BrokenPipe)
    }

    /// Writes the failure to standard error, unless the reader of standard output has gone: then the user has seen
    /// what they wanted to see.
    pub(crate) fn report(&self) -> Exit {
        if self.is_closed_pipe() {
            return Exit::Success;
        }
        write_error(&self.text(), self.hint.as_deref());
        self.exit
    }
}

fn write_error(message: &str, hint: Option<&str>) {
    let style = Style::of_stderr();
    let mut text = format!("{} {}\n", style.error("error:"), printable(message));
    if let Some(hint) = hint {
        text.push_str(&format!("{} {}\n", style.hint("hint:"), printable(hint)));
    }
    // Nobody is left to tell if this fails.
    drop(std::io::stderr().write_all(text.as_bytes()));
}

/// Errors without a place of their own are failures of the input; those of the engine know better.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let exit = error.downcast_ref::<EngineError>().map_or(Exit::Failed, |error| exit_of(error, Exit::Failed));
        Self::new(exit, error)
    }
}

/// The exit code of an engine's error; `otherwise` where the error does not say.
pub(crate) fn exit_of(error: &EngineError, otherwise: Exit) -> Exit {
    match error {
        EngineError::OutOfMemory { .. } => Exit::Memory,
        // Of the device, only what the user asked of it can be wrong.
        EngineError::InvalidOption { .. } | EngineError::OptionConflict { .. } | EngineError::Cpu(_) => Exit::Usage,
        _ => otherwise,
    }
}

/// Message and causes in one line. Causes that the message already tells are left out.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The first advice that an error or one of its causes has.
pub(crate) fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<EngineError>() {
            return error.hint().or_else(|| match error {
                EngineError::Formats(error) => error.hint(),
                EngineError::Processors(error) => error.hint(),
                _ => None,
            });
        }
        if let Some(error) = cause.downcast_ref::<ocelli_processors::Error>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return error.hint();
        }
        cause.downcast_ref::<ocelli_formats::Error>()?.hint()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = std::io::Error::new(ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::new(cause).context("a.png");
        assert_eq!(chain(&error), "a.png: no such file");
        assert_eq!(chain(&error.context("opening a.png: no such file")), "opening a.png: no such file");
    }

    #[test]
    fn engine_errors_choose_their_exit_code_and_advice() {
        let memory =
            EngineError::OutOfMemory { what: "the model".into(), needed: 2 << 20, available: 1 << 20, advice: "" };
        let failure = Failure::from(memory);
        assert_eq!(failure.exit, Exit::Memory);
        assert!(failure.hint.is_some());
        let usage = EngineError::InvalidOption { name: "top_p", value: "2".into(), expected: "less" };
        assert_eq!(Failure::from(usage).exit, Exit::Usage);
        let missing = ocelli_formats::Error::NotInCache { id: "a/b".into(), cache: "c".into() };
        assert_eq!(Failure::from(missing).hint.as_deref(), Some("run `ocelli pull a/b` first"));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = std::io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(closed).report(), Exit::Success);
    }
}
