//! `--out FILE.jsonl`: the JSON object of every picture or file on a line of its own.

use super::{Held, Sheet};

/// The first row of `text` and its length; `None` when it was cut off.
///
/// # Errors
/// For a whole line that is no row of ours.
pub(super) fn next(sheet: &Sheet, text: &str) -> Result<Option<(Held, usize)>, String> {
    let Some(end) = text.find('\n') else {
        return if looks_like_ours(sheet, text) { Ok(None) } else { Err(NOT_OURS.into()) };
    };
    // Half a line followed by a line end comes from an editor, or from a disk that was full for a moment.
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&text[..end]) else { return Err(NOT_OURS.into()) };
    let string = |key: &str| value.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let (Some(subject), Some(source)) = (string(sheet.subject), string(sheet.source)) else {
        return Err(NOT_OURS.into());
    };
    let question = sheet.question.and_then(string).unwrap_or_default();
    Ok(Some((Held { subject, source, question, failed: string("error").is_some() }, end + 1)))
}

fn looks_like_ours(sheet: &Sheet, line: &str) -> bool {
    let start = format!("{{\"{}\":", sheet.subject);
    line.starts_with(&start) || start.starts_with(line)
}

const NOT_OURS: &str = "it holds lines that are not the results of a run";
