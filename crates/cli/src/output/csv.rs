//! `--out FILE.csv`: comma-separated, quoted where needed (RFC 4180), one header line.

use crate::record::{OneOrMany, Record};
use crate::terminal::word;

use super::Row;

/// The header line.
pub(super) const HEAD: &str = "image,model,text,finish_reason,image_size,resized_to,vision_tokens,prompt_tokens,\
    completion_tokens,preprocess_ms,vision_ms,prefill_ms,decode_ms,ttft_ms,tokens_per_second,error\n";

/// A row with its line end.
pub(super) fn row(record: &Record) -> String {
    let count = |value: Option<usize>| value.map(|value| value.to_string()).unwrap_or_default();
    let timings = record.timings.map(|t| {
        [t.preprocess_ms, t.vision_ms, t.prefill_ms, t.decode_ms, t.ttft_ms, t.tokens_per_second]
            .map(|value| format!("{value:.3}"))
    });
    let mut fields = vec![
        record.image_name().to_owned(),
        record.model.clone(),
        record.text.clone().unwrap_or_default(),
        record.finish_reason.map(word).unwrap_or_default(),
        size(&record.image_size),
        size(&record.resized_to),
        count(record.vision_tokens),
        count(record.prompt_tokens),
        count(record.completion_tokens),
    ];
    fields.extend(timings.unwrap_or_default());
    fields.push(record.error.clone().unwrap_or_default());
    let fields: Vec<String> = fields.iter().map(|field| quoted(field)).collect();
    format!("{}\n", fields.join(","))
}

/// The first row of `text` and its length; `None` when it was cut off.
///
/// # Errors
/// For a whole row with another number of fields.
pub(super) fn next(text: &str) -> Result<Option<(Row, usize)>, String> {
    let Some((mut fields, length)) = fields(text) else { return Ok(None) };
    if fields.len() != HEAD.split(',').count() {
        return Err(format!("it has a row of {} fields", fields.len()));
    }
    let failed = fields.last().is_some_and(|error| !error.is_empty());
    let model = fields.swap_remove(1);
    Ok(Some((Row { image: fields.swap_remove(0), model, failed }, length)))
}

/// The fields of the first row, and its length; `None` without a line end outside quotes.
fn fields(text: &str) -> Option<(Vec<String>, usize)> {
    let mut fields = vec![String::new()];
    let mut in_quotes = false;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let field = fields.last_mut()?;
        match character {
            '"' if in_quotes && characters.peek().is_some_and(|&(_, next)| next == '"') => {
                characters.next();
                field.push('"');
            }
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => fields.push(String::new()),
            '\n' if !in_quotes => {
                if field.ends_with('\r') {
                    field.pop();
                }
                return Some((fields, at + 1));
            }
            other => field.push(other),
        }
    }
    None
}

fn quoted(field: &str) -> String {
    let needs_quotes = field.contains(['"', ',', '\n', '\r']) || field.starts_with(' ') || field.ends_with(' ');
    if needs_quotes { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_owned() }
}

fn size(size: &OneOrMany<[usize; 2]>) -> String {
    match size {
        OneOrMany::One([width, height]) => format!("{width}x{height}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain text"), "plain text");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"hi\""), "\"say \"\"hi\"\"\"");
        assert_eq!(fields("\"a\"\"b\nc\",,d\r\nrest"), Some((vec!["a\"b\nc".into(), String::new(), "d".into()], 13)));
        assert_eq!(fields("a,\"b"), None);
    }
}
