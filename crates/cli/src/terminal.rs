//! What depends on where the output goes: colours, progress bars, and characters that must not reach a terminal.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::model::Piece;

/// Colours, or none.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// Colours where standard error is a terminal and nobody objects.
    pub(crate) fn of_stderr() -> Self {
        Self { colours: stderr().is_terminal() && wants_colours(|name| std::env::var_os(name)) }
    }

    /// Colours where standard output is a terminal and nobody objects.
    pub(crate) fn of_stdout() -> Self {
        Self { colours: stdout().is_terminal() && wants_colours(|name| std::env::var_os(name)) }
    }

    pub(crate) fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn hint(self, text: &str) -> String {
        self.paint("36", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `NO_COLOR` of any content, or a terminal that cannot.
fn wants_colours(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let is_set = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_set && variable("TERM").is_none_or(|term| term != OsStr::new("dumb"))
}

/// A progress bar on standard error; hidden where that is no terminal.
pub(crate) fn progress_bar(total: usize, unit: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), draw_target());
    let template = format!("{{bar:24}} {{pos}}/{{len}} {unit}  {{speed}}  {{remaining}}  {{wide_msg}}");
    let style = ProgressStyle::with_template(&template).expect("the template is a constant");
    let style = style
        .with_key("speed", move |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&speed(state.per_sec(), state.pos(), unit));
        })
        .with_key("remaining", |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&remaining(state.eta(), state.pos()));
        });
    bar.set_style(style.progress_chars("=> "));
    // Drawn at once, and again while a slow model is busy with one item.
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// What is being done, on standard error, for as long as the spinner lives; hidden where that is no terminal.
pub(crate) fn spinner(message: &str) -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, draw_target()).with_finish(ProgressFinish::AndClear);
    spinner.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("the template is a constant"));
    spinner.set_message(printable(message).into_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Standard error where it is a terminal that can move its cursor, nothing otherwise.
pub(crate) fn draw_target() -> ProgressDrawTarget {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == OsStr::new("dumb"));
    if stderr().is_terminal() && !dumb { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn speed(per_second: f64, done: u64, unit: &str) -> String {
    match per_second {
        _ if done == 0 => String::new(),
        fast if fast >= 1.0 => format!("{fast:.1} {unit}/s"),
        slow if slow > 0.0 => format!("{:.1} s/{}", 1.0 / slow, unit.trim_end_matches('s')),
        _ => String::new(),
    }
}

fn remaining(left: Duration, done: u64) -> String {
    if done == 0 { String::new() } else { format!("ETA {}", indicatif::HumanDuration(left)) }
}

/// Writes to standard output at once.
///
/// # Errors
/// When the reader has gone.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What showing something came to. A reader that has gone ends a run, but not one whose answers a file keeps as well.
///
/// # Errors
/// Those of showing.
pub(crate) fn unless_kept(printed: std::io::Result<()>, is_kept: bool) -> std::io::Result<()> {
    printed.or_else(|error| if is_kept && error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Writes text of a model to standard output at once, harmless where that is a terminal.
///
/// # Errors
/// When the reader has gone.
pub(crate) fn print_answer(text: &str) -> std::io::Result<()> {
    if stdout().is_terminal() { print(&printable(text)) } else { print(text) }
}

/// Shows an answer as it comes. What the model thinks before is shown to people at a terminal only, paler.
pub(crate) struct AnswerPrinter {
    style: Style,
    is_terminal: bool,
    is_thinking: bool,
}

impl AnswerPrinter {
    pub(crate) fn new() -> Self {
        Self { style: Style::of_stdout(), is_terminal: stdout().is_terminal(), is_thinking: false }
    }

    /// # Errors
    /// When the reader has gone.
    pub(crate) fn show(&mut self, piece: Piece<'_>) -> std::io::Result<()> {
        print(&self.shown(piece))
    }

    fn shown(&mut self, piece: Piece<'_>) -> String {
        match piece {
            Piece::Text(text) if !self.is_terminal => text.to_owned(),
            Piece::Text("") => String::new(),
            Piece::Text(text) => {
                let end = if std::mem::take(&mut self.is_thinking) { "\n\n" } else { "" };
                format!("{end}{}", printable(text))
            }
            Piece::Thought(_) if !self.is_terminal => String::new(),
            Piece::Thought(text) => {
                self.is_thinking = true;
                self.style.dim(&printable(text))
            }
        }
    }
}

/// The word that JSON has for a value.
pub(crate) fn word(value: impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// Writes a line to standard error. Nobody is left to tell if that fails.
pub(crate) fn note(line: &str) {
    drop(writeln!(stderr(), "{}", printable(line)));
}

/// Writes a remark for people to standard error; nothing where that is no terminal.
pub(crate) fn remark(line: &str) {
    if stderr().is_terminal() {
        drop(writeln!(stderr(), "{}", Style::of_stderr().dim(&printable(line))));
    }
}

/// The text without control characters: a model's answer, or a file's name, must not steer the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_harmful(c) { char::REPLACEMENT_CHARACTER } else { c }).collect())
}

/// The text as one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes in the unit that reads best.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit_idx = 0;
    while value >= 1024.0 && unit_idx + 1 < UNITS.len() {
        value /= 1024.0;
        unit_idx += 1;
    }
    if unit_idx == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit_idx]) }
}

/// 256.5 M, 1.5 B.
pub(crate) fn count(parameters: u64) -> String {
    match parameters as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        _ => parameters.to_string(),
    }
}

/// Bytes in gigabytes, for columns.
pub(crate) fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_and_dumb_terminals_are_respected() {
        let with = |set: &'static [(&str, &str)]| {
            wants_colours(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert!(with(&[("TERM", "xterm")]));
        assert!(with(&[("NO_COLOR", "")]), "an empty value counts as unset, says no-color.org");
        assert!(!with(&[("NO_COLOR", "1")]));
        assert!(!with(&[("TERM", "dumb")]));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\x07"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
        assert_eq!(printable("line\n\tä"), "line\n\tä");
        assert_eq!(one_line(" a\n b\t c "), "a b c");
    }

    #[test]
    fn thoughts_are_paler_and_for_terminals_only() {
        let shown = |is_terminal, colours| {
            let mut printer = AnswerPrinter { style: Style { colours }, is_terminal, is_thinking: false };
            let pieces =
                [Piece::Thought("h"), Piece::Thought("m"), Piece::Text(""), Piece::Text("yes"), Piece::Text("!")];
            pieces.map(|piece| printer.shown(piece)).concat()
        };
        assert_eq!(shown(true, true), "\x1b[2mh\x1b[0m\x1b[2mm\x1b[0m\n\nyes!");
        assert_eq!(shown(true, false), "hm\n\nyes!");
        assert_eq!(shown(false, false), "yes!");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!((count(999).as_str(), count(134_515_008).as_str()), ("999", "134.5 M"));
        assert_eq!((count(7_615_616_512).as_str(), gigabytes(9_960_000_000).as_str()), ("7.62 B", "10.0 GB"));
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(speed(2.5, 1, "images"), "2.5 images/s");
        assert_eq!(speed(0.5, 1, "images"), "2.0 s/image");
        assert_eq!(speed(0.0, 0, "images"), "");
        assert_eq!(remaining(Duration::from_secs(75), 1), "ETA 75 seconds");
    }
}
