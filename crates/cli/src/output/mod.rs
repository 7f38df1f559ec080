//! The file behind `--out`: one row per picture (or file of a pipeline), written as soon as it is done.
//!
//! Rows are appended and on the disk before the next one is begun, so a run that is killed, or loses its power, leaves
//! everything it finished. `--resume` reads the rows back, drops
//! what was cut off and what had failed, and leaves the pictures of the remaining rows out.

mod csv;
mod jsonl;
pub(crate) mod markdown;
mod transcript;

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::exit::{Exit, Failure};

pub(crate) use transcript::Layout;

/// How the rows are written; the file's ending decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jsonl,
    Csv,
    Markdown,
}

/// A file with a known ending, the value of `--out`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutPath {
    path: PathBuf,
    format: Format,
}

/// What the rows of a file tell, besides the error that ends every row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sheet {
    /// The name of what a row is about: `image`.
    pub(crate) subject: &'static str,
    /// The name of what the rows come from, the same in all of them: `model`.
    pub(crate) source: &'static str,
    /// The name of what was asked, if rows say so; the same in all of them: `prompt`.
    pub(crate) question: Option<&'static str>,
    /// The other columns of CSV.
    pub(crate) csv: Vec<String>,
    /// The other columns of Markdown.
    pub(crate) markdown: Vec<String>,
    /// Whether subjects are pictures, which Markdown shows.
    pub(crate) has_pictures: bool,
}

/// A row of a [`Sheet`].
pub(crate) trait Row {
    /// Of all rows of a file, this one is about.
    fn subject(&self) -> &str;
    /// What it comes from.
    fn source(&self) -> &str;
    /// What was asked; nothing where that follows from the source.
    fn question(&self) -> &str {
        ""
    }
    /// Why there is no answer.
    fn error(&self) -> Option<&str>;
    /// The object on one line, without its end; it begins with subject and source.
    fn json(&self) -> String;
    /// One field for each column of [`Sheet::csv`].
    fn csv(&self) -> Vec<String>;
    /// One cell for each column of [`Sheet::markdown`], for a table in this folder.
    fn markdown(&self, folder: &Path) -> Vec<String>;
}

/// The open file.
pub(crate) struct OutFile {
    file: File,
    out: OutPath,
    sheet: Sheet,
    /// The rows that need not be made again, as they are written, by their subject.
    done: HashMap<String, String>,
}

/// What a row says when it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    subject: String,
    source: String,
    question: String,
    failed: bool,
}

/// What a file held before this run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Before {
    /// Rows that are whole and hold an answer, with the text they are written as.
    rows: Vec<(Held, String)>,
    /// Whether there is something else that has to go: failures, or a row that was cut off.
    dirty: bool,
}

impl OutPath {
    /// # Errors
    /// For an ending that is no format of ours.
    pub(crate) fn parse(path: PathBuf) -> Result<Self, String> {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("jsonl" | "ndjson") => Format::Jsonl,
            Some("csv") => Format::Csv,
            Some("md" | "markdown") => Format::Markdown,
            _ => return Err("the file must end in .jsonl, .csv or .md".into()),
        };
        Ok(Self { path, format })
    }

    /// A file of lines beside this one, for what is not finished.
    pub(crate) fn unfinished(&self) -> Self {
        let mut path = self.path.clone().into_os_string();
        path.push(".unfinished");
        Self { path: path.into(), format: Format::Jsonl }
    }
}

impl OutFile {
    /// Opens the file for appending. With `resume` the answers it holds are kept, and the pictures they belong to are
    /// those for which [`OutFile::held`] gives something. `source` is what the rows of this run will come from, `question`
    /// what they will answer.
    ///
    /// # Errors
    /// When the file has content and `resume` is false, when its content comes from elsewhere, answers something else or is
    /// no rows of ours, or when it cannot be read or written.
    pub(crate) fn open(
        out: &OutPath,
        resume: bool,
        sheet: Sheet,
        source: &str,
        question: &str,
    ) -> Result<Self, Failure> {
        let shown = || out.path.display().to_string();
        let claimed = out.claim()?;
        let before = match std::fs::read(&out.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(anyhow::Error::from(error).context(shown()).into()),
        };
        // A head without rows is what a run leaves that fails at once: nothing is lost with it.
        if !out.format.head(&sheet).as_bytes().starts_with(&before) && !resume {
            let failure = Failure::message(Exit::Failed, format!("{} exists and is not empty", shown()));
            return Err(failure.with_hint("add --resume to continue it, or choose another file"));
        }
        let before = out.format.read(&sheet, &String::from_utf8_lossy(&before)).map_err(|reason| {
            let failure = Failure::message(Exit::Failed, format!("{} cannot be resumed: {reason}", shown()));
            failure.with_hint("choose another file for --out")
        })?;
        if let Some((row, _)) = before.rows.iter().find(|(row, _)| row.source != source) {
            let message = format!("{} holds answers of {}, this run would add those of {source}", shown(), row.source);
            let hint = format!("use the same {}, or another --out file", sheet.source);
            return Err(Failure::message(Exit::Failed, message).with_hint(hint));
        }
        if let Some((row, _)) = before.rows.iter().find(|(row, _)| row.question != question) {
            let asked =
                |text: &str| if text.is_empty() { "the default question".to_owned() } else { format!("`{text}`") };
            let message =
                format!("{} holds answers to {}, this run asks {}", shown(), asked(&row.question), asked(question));
            let hint = format!("use the same {}, or another --out file", sheet.question.unwrap_or_default());
            return Err(Failure::message(Exit::Failed, message).with_hint(hint));
        }
        let file = match claimed {
            Some(file) if !before.rows.is_empty() && !before.dirty => file,
            claimed => {
                out.rewrite(&sheet, &before).with_context(shown)?;
                drop(claimed);
                match out.claim()? {
                    Some(file) => file,
                    None => OpenOptions::new().append(true).open(&out.path).with_context(shown)?,
                }
            }
        };
        let done = before.rows.into_iter().map(|(row, written)| (row.subject, written)).collect();
        Ok(Self { file, out: out.clone(), sheet, done })
    }

    /// The row that the file already held about this picture; the last one, where there are several.
    pub(crate) fn held(&self, subject: &str) -> Option<&str> {
        self.done.get(subject).map(String::as_str)
    }

    /// Deletes the file.
    ///
    /// # Errors
    /// When that is not possible.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.out.path).with_context(|| self.out.path.display().to_string())
    }

    /// Appends a row.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&mut self, row: &dyn Row) -> anyhow::Result<()> {
        let row = self.out.format.row(&self.sheet, row, &self.out.path);
        let written = self.file.write_all(row.as_bytes()).and_then(|()| to_disk(&self.file));
        written.with_context(|| self.out.path.display().to_string())
    }
}

impl OutPath {
    /// Opens the file, if it is one, for this run alone.
    ///
    /// # Errors
    /// When another run writes to it, or it cannot be opened.
    fn claim(&self) -> Result<Option<File>, Failure> {
        if !self.path.is_file() {
            return Ok(None);
        }
        let shown = || self.path.display().to_string();
        let file = OpenOptions::new().append(true).open(&self.path).with_context(shown)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let failure = Failure::message(Exit::Failed, format!("another run is writing to {}", shown()));
                Err(failure.with_hint("wait for it, or choose another file"))
            }
            // Some file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    }

    /// Puts the head and the held rows in place of the file, all at once.
    fn rewrite(&self, sheet: &Sheet, before: &Before) -> std::io::Result<()> {
        let mut text = self.format.head(sheet);
        text.extend(before.rows.iter().map(|(_, written)| written.as_str()));
        if before.rows.is_empty() {
            // Nothing to lose, and the file may be something that cannot be replaced, such as a named pipe.
            return std::fs::write(&self.path, text);
        }
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        let mut file = File::create(&partial)?;
        file.write_all(text.as_bytes())?;
        // Otherwise the new name could be on the disk before the content is.
        to_disk(&file)?;
        std::fs::rename(&partial, &self.path)
    }
}

/// Waits until the content is on the disk, where there is one behind the file: a named pipe has none.
fn to_disk(file: &File) -> std::io::Result<()> {
    if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
}

impl Format {
    /// What a file begins with.
    fn head(self, sheet: &Sheet) -> String {
        match self {
            Self::Jsonl => String::new(),
            Self::Csv => csv::head(sheet),
            Self::Markdown => markdown::head(sheet),
        }
    }

    /// A row with its line end.
    fn row(self, sheet: &Sheet, row: &dyn Row, file: &Path) -> String {
        match self {
            Self::Jsonl => format!("{}\n", row.json()),
            Self::Csv => csv::row(sheet, row),
            Self::Markdown => markdown::row(sheet, row, file.parent().unwrap_or(Path::new(""))),
        }
    }

    /// Reads a file of this format.
    ///
    /// # Errors
    /// Why it cannot be one of ours.
    fn read(self, sheet: &Sheet, text: &str) -> Result<Before, String> {
        let head = self.head(sheet);
        let Some(rows) = text.strip_prefix(&head) else {
            // A head that was cut off, or an empty file.
            let is_ours = head.starts_with(text);
            let dirty = !text.is_empty();
            return if is_ours {
                Ok(Before { dirty, ..Before::default() })
            } else {
                Err("it begins differently".into())
            };
        };
        let mut before = Before::default();
        let mut rest = rows;
        while !rest.is_empty() {
            let parsed = match self {
                Self::Jsonl => jsonl::next(sheet, rest)?,
                Self::Csv => csv::next(sheet, rest)?,
                Self::Markdown => markdown::next(sheet, rest)?,
            };
            let Some((row, length)) = parsed else {
                before.dirty = true;
                break;
            };
            let (written, after) = rest.split_at(length);
            if row.failed {
                before.dirty = true;
            } else {
                before.rows.push((row, written.to_owned()));
            }
            rest = after;
        }
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{OneOrMany, Record};

    const FORMATS: [(Format, &str); 3] =
        [(Format::Jsonl, "out.jsonl"), (Format::Csv, "out.csv"), (Format::Markdown, "out.md")];

    /// A record whose name and text need quoting in every format.
    fn answered(image: &str) -> Record {
        let failed = Record::failed(&[image.into()], "org/model", Some("why"), "");
        Record {
            text: Some("a \"quoted\", | piped\n\\ answer *of* two lines".into()),
            image_size: OneOrMany::One([640, 480]),
            error: None,
            ..failed
        }
    }

    fn failed(image: &str) -> Record {
        Record::failed(&[image.into()], "org/model", Some("why"), "broken, \"really\"\nso | it is")
    }

    fn file(name: &str, records: &[Record]) -> (tempfile::TempDir, OutPath) {
        let folder = tempfile::tempdir().unwrap();
        let path = OutPath::parse(folder.path().join(name)).unwrap();
        let mut out = OutFile::open(&path, false, Record::sheet(), "org/model", "why").unwrap();
        for record in records {
            out.write(record).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (format, name) in FORMATS {
            let names = ["a.png", "b | c, \"d\".png", "dir/e_[1]*`<f>`.png", "ü\n&amp;.png", " x .png"];
            let records: Vec<Record> = names.iter().map(|name| answered(name)).collect();
            let (_folder, path) = file(name, &records);
            let held = format.read(&Record::sheet(), &std::fs::read_to_string(&path.path).unwrap()).unwrap();
            let read: Vec<&str> = held.rows.iter().map(|(row, _)| row.subject.as_str()).collect();
            assert_eq!(read, names, "{name}");
            assert!(
                held.rows.iter().all(|(row, _)| row.source == "org/model" && row.question == "why" && !row.failed),
                "{name}"
            );
            assert!(!held.dirty, "{name}");
        }
    }

    #[test]
    fn resuming_drops_failures_and_a_row_that_was_cut_off() {
        for (_, name) in FORMATS {
            let (_folder, path) = file(name, &[answered("a.png"), failed("b.png"), answered("c.png")]);
            let whole = std::fs::read_to_string(&path.path).unwrap();
            let (_other, expected) = file(name, &[answered("a.png")]);
            for cut in 1..20 {
                std::fs::write(&path.path, &whole[..whole.len() - cut]).unwrap();
                let out = OutFile::open(&path, true, Record::sheet(), "org/model", "why").unwrap();
                assert!(
                    out.held("a.png").is_some() && out.held("b.png").is_none() && out.held("c.png").is_none(),
                    "{name} cut by {cut}"
                );
                let (left, right) = (std::fs::read(&path.path).unwrap(), std::fs::read(&expected.path).unwrap());
                assert_eq!(left, right, "{name} cut by {cut}");
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_can_be_resumed_and_ends_as_if_never_cut() {
        for (_, name) in FORMATS {
            let records = [answered("a.png"), answered("b.png")];
            let (_folder, path) = file(name, &records);
            let whole = std::fs::read(&path.path).unwrap();
            for length in 0..=whole.len() {
                std::fs::write(&path.path, &whole[..length]).unwrap();
                let mut out = OutFile::open(&path, true, Record::sheet(), "org/model", "why").unwrap();
                for record in &records {
                    if out.held(record.image_name()).is_none() {
                        out.write(record).unwrap();
                    }
                }
                assert_eq!(std::fs::read(&path.path).unwrap(), whole, "{name} cut to {length}");
            }
        }
    }

    #[test]
    fn a_file_with_content_is_not_touched_without_resume() {
        let (_folder, path) = file("out.csv", &[answered("a.png")]);
        let error = OutFile::open(&path, false, Record::sheet(), "org/model", "why").err().unwrap();
        assert!(error.text().ends_with("exists and is not empty"));
        let error = OutFile::open(&path, true, Record::sheet(), "org/other", "why").err().unwrap();
        assert!(error.text().ends_with("holds answers of org/model, this run would add those of org/other"));
        let error = OutFile::open(&path, true, Record::sheet(), "org/model", "").err().unwrap();
        assert!(
            error.text().ends_with("holds answers to `why`, this run asks the default question"),
            "{}",
            error.text()
        );
    }

    #[test]
    fn one_run_at_a_time_writes() {
        for (_, name) in FORMATS {
            let (_folder, path) = file(name, &[answered("a.png")]);
            let open = || OutFile::open(&path, true, Record::sheet(), "org/model", "why");
            let first = open().unwrap();
            let error = open().err().unwrap();
            assert!(error.text().starts_with("another run is writing to "), "{}", error.text());
            drop(first);
            open().unwrap();
        }
    }

    #[test]
    fn a_head_without_rows_is_no_content() {
        for (_, name) in FORMATS {
            let (_folder, path) = file(name, &[]);
            let mut again = OutFile::open(&path, false, Record::sheet(), "org/model", "why").unwrap();
            again.write(&answered("a.png")).unwrap();
            let (_other, expected) = file(name, &[answered("a.png")]);
            assert_eq!(std::fs::read(&path.path).unwrap(), std::fs::read(&expected.path).unwrap());
        }
    }

    #[test]
    fn files_of_somebody_else_are_not_resumed() {
        for (_, name) in FORMATS {
            let folder = tempfile::tempdir().unwrap();
            let path = OutPath::parse(folder.path().join(name)).unwrap();
            std::fs::write(&path.path, "dear diary,\ntoday\n").unwrap();
            assert!(
                OutFile::open(&path, true, Record::sheet(), "m", "why")
                    .err()
                    .unwrap()
                    .text()
                    .contains("cannot be resumed"),
                "{name}"
            );
            assert_eq!(std::fs::read_to_string(&path.path).unwrap(), "dear diary,\ntoday\n");
        }
    }

    #[test]
    fn the_ending_decides() {
        assert_eq!(OutPath::parse("a.JSONL".into()).unwrap().format, Format::Jsonl);
        for bad in ["a.txt", "a", "a.json", ".csv"] {
            assert!(OutPath::parse(bad.into()).is_err(), "{bad}");
        }
    }
}
