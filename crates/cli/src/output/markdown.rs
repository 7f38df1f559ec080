//! `--out FILE.md`: a table with the pictures themselves, for looking at in a browser or an editor.

use std::path::{Component, Path, PathBuf};

use super::{Held, Row, Sheet};

/// The head of the table.
pub(super) fn head(sheet: &Sheet) -> String {
    let titles = ["picture", sheet.subject].into_iter().skip(usize::from(!sheet.has_pictures));
    let titles = titles.chain(sheet.markdown.iter().map(String::as_str)).chain(sheet.question);
    let titles = titles.chain([sheet.source, "error"]);
    let titles: Vec<&str> = titles.collect();
    format!("| {} |\n|{}\n", titles.join(" | "), "---|".repeat(titles.len()))
}

/// A row with its line end. `folder` is the file's own: links are relative to it.
pub(super) fn row(sheet: &Sheet, row: &dyn Row, folder: &Path) -> String {
    let mut cells = Vec::new();
    if sheet.has_pictures {
        cells.push(if row.subject() == "-" { String::new() } else { picture(row.subject(), folder) });
    }
    cells.push(escaped(row.subject()));
    cells.extend(row.markdown(folder));
    cells.extend(sheet.question.map(|_| escaped(row.question())));
    cells.extend([row.source(), row.error().unwrap_or_default()].map(escaped));
    format!("| {} |\n", cells.join(" | "))
}

/// The first row of `text` and its length; `None` when it was cut off.
///
/// # Errors
/// For a whole line that is no row of ours.
pub(super) fn next(sheet: &Sheet, text: &str) -> Result<Option<(Held, usize)>, String> {
    let Some(end) = text.find('\n') else { return Ok(None) };
    let not_ours = || format!("line `{}` is not a row of the table", text[..end].chars().take(40).collect::<String>());
    let mut cells = cells(&text[..end]).ok_or_else(not_ours)?;
    let first = usize::from(sheet.has_pictures);
    if cells.len() != first + sheet.markdown.len() + usize::from(sheet.question.is_some()) + 3 {
        return Err(not_ours());
    }
    let failed = cells.pop().is_some_and(|error| !error.is_empty());
    let source = cells.pop().unwrap_or_default();
    let question = sheet.question.and_then(|_| cells.pop()).unwrap_or_default();
    Ok(Some((Held { subject: cells.swap_remove(first), source, question, failed }, end + 1)))
}

/// A cell that shows a picture.
pub(crate) fn picture(path: &str, folder: &Path) -> String {
    format!("![]({})", url(&link(Path::new(path), folder)))
}

/// The cells of a row, unescaped.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let mut cells = vec![String::new()];
    let mut rest = inner;
    while let Some(character) = rest.chars().next() {
        let cell = cells.last_mut()?;
        if let Some(after) = rest.strip_prefix(" | ") {
            cells.push(String::new());
            rest = after;
        } else if let Some(escaped) = rest.strip_prefix('\\').and_then(|rest| rest.chars().next()) {
            cell.push(escaped);
            rest = &rest[1 + escaped.len_utf8()..];
        } else if let Some((found, after)) = ENTITIES.iter().find_map(|&(c, name)| Some((c, rest.strip_prefix(name)?)))
        {
            cell.push(found);
            rest = after;
        } else {
            cell.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    Some(cells)
}

/// The text as one that Markdown shows as it is, on one line: a cell.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let at_edge = at == 0 || at + 1 == text.len();
        match ENTITIES.iter().find(|(known, _)| *known == character) {
            // Spaces matter at the edges only, where Markdown would swallow them.
            Some((_, name)) if character != ' ' || at_edge => out.push_str(name),
            _ if "\\`*_{}[]<>#|~&!".contains(character) => out.extend(['\\', character]),
            _ => out.push(character),
        }
    }
    out
}

/// Where the picture is, seen from the folder of the table.
fn link(image: &Path, folder: &Path) -> PathBuf {
    if folder.as_os_str().is_empty() || image.is_absolute() {
        return image.to_path_buf();
    }
    let (Ok(image_path), Ok(folder)) = (std::path::absolute(image), std::path::absolute(folder)) else {
        return image.to_path_buf();
    };
    let shared = image_path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(image_path.components().skip(shared)).collect()
}

/// The path as a link: everything that could end the link or the cell is percent-encoded.
fn url(path: &Path) -> String {
    let text = path.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

const ENTITIES: [(char, &str); 4] = [('\n', "<br>"), ('\r', "&#13;"), ('\t', "&#9;"), (' ', "&#32;")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_to_the_table() {
        assert_eq!(link(Path::new("pics/a.png"), Path::new("")), Path::new("pics/a.png"));
        assert_eq!(link(Path::new("pics/a.png"), Path::new("out/tables")), Path::new("../../pics/a.png"));
        assert_eq!(link(Path::new("out/a.png"), Path::new("out")), Path::new("a.png"));
        assert_eq!(url(Path::new("a b/(c)|é.png")), "a%20b/%28c%29%7C%C3%A9.png");
    }

    #[test]
    fn text_is_shown_as_it_is() {
        assert_eq!(escaped("a | *b*\nc"), "a \\| \\*b\\*<br>c");
        assert_eq!(escaped(" x "), "&#32;x&#32;");
        assert_eq!(cells("| \\| | a<br>b |").unwrap(), ["|", "a\nb"]);
    }
}
