//! `--out FILE.csv`: comma-separated, quoted where needed (RFC 4180), one header line.

use super::{Held, Row, Sheet};

/// The header line.
pub(super) fn head(sheet: &Sheet) -> String {
    let columns = [sheet.subject, sheet.source].into_iter().chain(sheet.question);
    line(columns.chain(sheet.csv.iter().map(String::as_str)).chain(["error"]))
}

/// A row with its line end.
pub(super) fn row(sheet: &Sheet, row: &dyn Row) -> String {
    let values = row.csv();
    let fields = [row.subject(), row.source()].into_iter().chain(sheet.question.map(|_| row.question()));
    line(fields.chain(values.iter().map(String::as_str)).chain([row.error().unwrap_or_default()]))
}

/// The first row of `text` and its length; `None` when it was cut off.
///
/// # Errors
/// For a whole row with another number of fields.
pub(super) fn next(sheet: &Sheet, text: &str) -> Result<Option<(Held, usize)>, String> {
    let Some((mut fields, length)) = fields(text) else { return Ok(None) };
    let first = 2 + usize::from(sheet.question.is_some());
    if fields.len() != first + sheet.csv.len() + 1 {
        return Err(format!("it has a row of {} fields", fields.len()));
    }
    let failed = fields.last().is_some_and(|error| !error.is_empty());
    let question = if sheet.question.is_some() { fields.swap_remove(2) } else { String::new() };
    let source = fields.swap_remove(1);
    Ok(Some((Held { subject: fields.swap_remove(0), source, question, failed }, length)))
}

fn line<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let fields: Vec<String> = fields.map(quoted).collect();
    format!("{}\n", fields.join(","))
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
