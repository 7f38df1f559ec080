//! `--out FILE.jsonl`: the JSON object of every picture on a line of its own.

use super::Row;

/// The first row of `text` and its length; `None` when it was cut off.
///
/// # Errors
/// For a whole line that is no row of ours.
pub(super) fn next(text: &str) -> Result<Option<(Row, usize)>, String> {
    let Some(end) = text.find('\n') else { return if looks_like_ours(text) { Ok(None) } else { Err(NOT_OURS.into()) } };
    // Half a line followed by a line end comes from an editor, or from a disk that was full for a moment.
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&text[..end]) else { return Err(NOT_OURS.into()) };
    let string = |key: &str| value.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let (Some(image), Some(model)) = (string("image"), string("model")) else { return Err(NOT_OURS.into()) };
    Ok(Some((Row { image, model, failed: string("error").is_some() }, end + 1)))
}

fn looks_like_ours(line: &str) -> bool {
    let start = r#"{"image":"#;
    line.starts_with(start) || start.starts_with(line)
}

const NOT_OURS: &str = "it holds lines that are not the results of a run";
