//! What chat templates expect of Python: `json.dumps`, `str`, `strftime`.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The `tojson` filter as transformers defines it: `json.dumps` without HTML escapes, non-ASCII kept unless asked.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_string(),
            (None, Some(width)) => " ".repeat(width.min(MAX_INDENT)),
            (None, None) => return Err(invalid("tojson: indent must be a number or a string".into())),
        }),
    };
    // json.dumps drops the space after commas when it breaks lines.
    let default_separators = if indent.is_some() { [",", ": "] } else { [", ", ": "] };
    let [item, key] = match separators.as_deref() {
        None => default_separators.map(String::from),
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(invalid("tojson: separators must be two strings".into())),
    };
    let style = JsonStyle {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut json = String::new();
    style.write(value, 0, &mut json)?;
    Ok(json)
}

struct JsonStyle {
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl JsonStyle {
    fn write(&self, value: &Value, depth: usize, json: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: nested too deeply".into()));
        }
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.push_str(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), json),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(['{', '}'], keys, depth, json, |key, json| {
                    self.write_string(&key.as_str().map_or_else(|| key.to_string(), ToString::to_string), json);
                    json.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1, json)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect();
                self.write_items(['[', ']'], items, depth, json, |item, json| self.write(&item, depth + 1, json))?;
            }
            other => return Err(invalid(format!("tojson: {other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        [open, close]: [char; 2],
        items: Vec<Value>,
        depth: usize,
        json: &mut String,
        mut write: impl FnMut(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        json.push(open);
        let is_empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                json.push_str(&self.item);
            }
            self.break_line(depth + 1, json);
            write(item, json)?;
        }
        if !is_empty {
            self.break_line(depth, json);
        }
        json.push(close);
        Ok(())
    }

    fn break_line(&self, depth: usize, json: &mut String) {
        if let Some(indent) = &self.indent {
            json.push('\n');
            json.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, text: &str, json: &mut String) {
        json.push('"');
        for character in text.chars() {
            match character {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\r' => json.push_str("\\r"),
                '\t' => json.push_str("\\t"),
                '\u{8}' => json.push_str("\\b"),
                '\u{c}' => json.push_str("\\f"),
                _ if character < ' ' || (self.ascii && character > '~') => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        json.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => json.push(character),
            }
        }
        json.push('"');
    }
}

/// What `{{ value }}` prints: Python's `str`, which spells `True`, `None` and lists in its own way.
pub(super) fn write_str(value: &Value, text: &mut impl Write) -> std::fmt::Result {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Seq | ValueKind::Map => write_repr(value, 0, text),
        ValueKind::Number => text.write_str(&number(value)),
        _ => write!(text, "{value}"),
    }
}

fn write_repr(value: &Value, depth: usize, text: &mut impl Write) -> std::fmt::Result {
    if depth > MAX_DEPTH {
        return Err(std::fmt::Error);
    }
    match value.kind() {
        ValueKind::None => text.write_str("None"),
        ValueKind::Bool => text.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => text.write_str(&number(value)),
        ValueKind::String => write_repr_string(value.as_str().unwrap_or_default(), text),
        ValueKind::Seq => {
            text.write_char('[')?;
            for (index, item) in value.try_iter().map_err(|_| std::fmt::Error)?.enumerate() {
                text.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(&item, depth + 1, text)?;
            }
            text.write_char(']')
        }
        ValueKind::Map => {
            text.write_char('{')?;
            for (index, key) in value.try_iter().map_err(|_| std::fmt::Error)?.enumerate() {
                text.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(&key, depth + 1, text)?;
                text.write_str(": ")?;
                write_repr(&value.get_item(&key).map_err(|_| std::fmt::Error)?, depth + 1, text)?;
            }
            text.write_char('}')
        }
        _ => write!(text, "{value}"),
    }
}

fn write_repr_string(string: &str, text: &mut impl Write) -> std::fmt::Result {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.write_char(quote)?;
    for character in string.chars() {
        match character {
            '\\' => text.write_str("\\\\")?,
            '\n' => text.write_str("\\n")?,
            '\r' => text.write_str("\\r")?,
            '\t' => text.write_str("\\t")?,
            _ if character == quote => write!(text, "\\{quote}")?,
            _ if character.is_control() && u32::from(character) <= 0xff => {
                write!(text, "\\x{:02x}", u32::from(character))?;
            }
            _ => text.write_char(character)?,
        }
    }
    text.write_char(quote)
}

/// Python's spelling of a number: floats keep their point and get an exponent from 1e16 up and below 1e-4.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        // Rust writes 1e-5, Python 1e-05.
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float:?}")
}

/// `strftime` of a time in seconds since 1970, in UTC. Unknown directives stay as they are.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (year, month, day) = civil_date(days);
    let day_of_year = days - days_before_year(year) + 1;
    // 1 January 1970 was a Thursday.
    let (weekday, month_name) = (WEEKDAYS[((days + 4) % 7) as usize], MONTHS[(month - 1) as usize]);
    let hour_of_12 = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let mut text = String::new();
    let mut directives = format.chars();
    while let Some(character) = directives.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text += &match directives.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('j') => format!("{day_of_year:03}"),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{hour_of_12:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => half.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('s') => seconds.to_string(),
            Some('f') => "000000".to_string(),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            // Glibc's way to leave the padding out.
            Some('-') => match directives.next() {
                Some('d') => day.to_string(),
                Some('m') => month.to_string(),
                Some('H') => hour.to_string(),
                Some('I') => hour_of_12.to_string(),
                Some('M') => minute.to_string(),
                Some('S') => second.to_string(),
                other => format!("%-{}", other.map(String::from).unwrap_or_default()),
            },
            Some('%') => "%".to_string(),
            other => format!("%{}", other.map(String::from).unwrap_or_default()),
        };
    }
    text
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let mut day = days - days_before_year(year);
    for (month, length) in (1..).zip(month_lengths(year)) {
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    (year, 12, 31)
}

fn days_before_year(year: u64) -> u64 {
    let leap_years = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_years(year - 1) - leap_years(1969)
}

fn month_lengths(year: u64) -> [u64; 12] {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

const MAX_DEPTH: usize = 64;
const MAX_INDENT: usize = 64;
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %A %j", 0), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(strftime("%d %b %Y", 951_782_400), "29 Feb 2000");
        assert_eq!(strftime("%-d %B %y, %I:%M %p %% %q", 1_735_689_599), "31 December 24, 11:59 PM % %q");
        assert_eq!(strftime("%F %a %j", 4_107_542_400), "2100-03-01 Mon 060");
        assert_eq!(strftime("%", 0), "%");
    }

    #[test]
    fn numbers_are_spelled_like_python() {
        let spelled: Vec<String> =
            [1.0, 0.5, -2.25, 1e16, 1.5e-5, 1e15, 0.0].iter().map(|&float| number(&Value::from(float))).collect();
        assert_eq!(spelled, ["1.0", "0.5", "-2.25", "1e+16", "1.5e-05", "1000000000000000.0", "0.0"]);
        assert_eq!(number(&Value::from(7)), "7");
    }
}
