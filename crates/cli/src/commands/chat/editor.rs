//! Where the lines of a chat come from: an editor with history at a terminal, plain lines otherwise.

use std::fs::OpenOptions;
use std::io::{BufRead, Write, stdin};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// A source of lines.
pub(super) enum Editor {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf>, just_interrupted: bool },
    Plain,
}

/// What the user did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(String),
    /// Ctrl-C for the first time.
    Interrupted,
    /// Ctrl-D, Ctrl-C for the second time, or the end of the input.
    End,
}

impl Editor {
    /// Falls back to plain lines where the terminal is too simple for an editor.
    pub(super) fn open(is_interactive: bool) -> Self {
        let Some(mut editor) = is_interactive.then(DefaultEditor::new).and_then(Result::ok) else { return Self::Plain };
        let history = history_file(|name| std::env::var_os(name));
        let before = history.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let lines: Vec<&str> = before.lines().collect();
        for line in &lines[lines.len().saturating_sub(MOST_LINES)..] {
            // A line that the history refuses (such as a repeated one) is no loss.
            drop(editor.add_history_entry(*line));
        }
        Self::Terminal { editor: Box::new(editor), history, just_interrupted: false }
    }

    pub(super) fn is_interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// When the input cannot be read.
    pub(super) fn read(&mut self) -> anyhow::Result<Line> {
        match self {
            Self::Plain => read_plain(),
            Self::Terminal { editor, history, just_interrupted } => {
                let read = editor.readline("> ");
                let interrupted_before = std::mem::replace(just_interrupted, false);
                match read {
                    Ok(line) => {
                        if editor.add_history_entry(&line).unwrap_or(false) {
                            remember(history.as_ref(), &line);
                        }
                        Ok(Line::Text(line))
                    }
                    Err(ReadlineError::Interrupted) if interrupted_before => Ok(Line::End),
                    Err(ReadlineError::Interrupted) => {
                        *just_interrupted = true;
                        Ok(Line::Interrupted)
                    }
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

fn read_plain() -> anyhow::Result<Line> {
    let mut line = Vec::new();
    if stdin().lock().read_until(b'\n', &mut line)? == 0 {
        return Ok(Line::End);
    }
    Ok(Line::Text(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned()))
}

/// Appends a line to the history file. Without one, the history lasts as long as the program.
fn remember(history: Option<&PathBuf>, line: &str) {
    let append = |path: &PathBuf| -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        {
            // What people say to a model is nobody else's business.
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        writeln!(options.open(path)?, "{}", line.replace('\n', " "))
    };
    drop(history.map(append));
}

/// `OCELLI_HISTORY`, else a file where the system keeps such things; `None` when the variable is empty.
fn history_file(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    if let Some(path) = variable("OCELLI_HISTORY") {
        return (!path.is_empty()).then(|| path.into());
    }
    let folder = |name: &str, inside: &str| {
        variable(name).filter(|value| !value.is_empty()).map(|value| PathBuf::from(value).join(inside))
    };
    let state = folder("XDG_STATE_HOME", "").or_else(|| folder("LOCALAPPDATA", ""));
    let state = state.or_else(|| folder("HOME", ".local/state"))?;
    Some(state.join("ocelli").join("chat_history"))
}

/// More would only slow the start down.
const MOST_LINES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_where_the_user_wants_it() {
        let with = |set: &'static [(&str, &str)]| {
            history_file(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(with(&[("OCELLI_HISTORY", ""), ("HOME", "/h")]), None);
        assert_eq!(with(&[("OCELLI_HISTORY", "/x"), ("HOME", "/h")]), Some("/x".into()));
        assert_eq!(with(&[("HOME", "/h")]), Some("/h/.local/state/ocelli/chat_history".into()));
        assert_eq!(with(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Some("/s/ocelli/chat_history".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn the_history_file_is_made_when_needed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/history");
        remember(Some(&path), "one");
        remember(Some(&path), "two\nlines");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo lines\n");
        remember(None, "nothing");
    }
}
