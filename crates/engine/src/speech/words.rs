//! When words are said: some heads of the decoder look at the moment of the recording that they write about. The path
//! of least resistance through their attention (dynamic time warping) gives every token a moment, as in openai/whisper's
//! `timing.py`.

use std::ops::Range;

use ocelli_models::Alignment;
use ocelli_processors::Tokenizer;

use crate::error::Result;

/// When the tokens of a text begin, in timestamps (every second frame); one more for where the last one ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) columns: Vec<usize>,
    /// Of every token.
    pub(crate) probabilities: Vec<f32>,
}

/// A word of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spoken {
    pub(crate) word: String,
    /// How many of the text's tokens it takes.
    pub(crate) tokens: usize,
    /// Timestamps.
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) probability: f32,
}

impl Moments {
    /// Those of some of the tokens.
    pub(crate) fn of(&self, tokens: Range<usize>) -> Self {
        let part = tokens.start..(tokens.end + 1).min(self.columns.len());
        let columns = self.columns.get(part).unwrap_or_default().to_vec();
        Self { columns, probabilities: self.probabilities.get(tokens).unwrap_or_default().to_vec() }
    }
}

/// Where rows from `first_row` on, but for the last, look: a column each, never running backwards.
pub(crate) fn token_columns(alignment: &Alignment, first_row: usize) -> Vec<usize> {
    let &Alignment { heads, rows, columns, ref weights } = alignment;
    let kept = rows.saturating_sub(first_row + 1);
    if kept == 0 || columns == 0 {
        return vec![0; kept];
    }
    let mut mean = vec![0.0f64; kept * columns];
    for head in weights.chunks_exact(rows * columns).take(heads) {
        let standard = standardised(head, rows, columns);
        for (row, sums) in standard.chunks_exact(columns).skip(first_row).zip(mean.chunks_exact_mut(columns)) {
            for (sum, value) in sums.iter_mut().zip(median_filtered(row)) {
                *sum += f64::from(value) / heads as f64;
            }
        }
    }
    warped(&mean, kept, columns)
}

/// Every column over all rows with mean 0 and deviation 1.
fn standardised(weights: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = weights.to_vec();
    for column in 0..columns {
        let values = || weights[column..].iter().step_by(columns).map(|&value| f64::from(value));
        let mean = values().sum::<f64>() / rows as f64;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / rows as f64;
        for value in out[column..].iter_mut().step_by(columns) {
            *value = ((f64::from(*value) - mean) / variance.sqrt().max(f64::MIN_POSITIVE)) as f32;
        }
    }
    out
}

/// The median of every value and its neighbours; the ends are reflected.
fn median_filtered(row: &[f32]) -> Vec<f32> {
    let (half, last) = (MEDIAN_WIDTH / 2, row.len() as isize - 1);
    if row.len() <= half {
        return row.to_vec();
    }
    let median = |at: usize| {
        let mut around: [f32; MEDIAN_WIDTH] = std::array::from_fn(|i| {
            let place = (at + i) as isize - half as isize;
            let reflected = if place < 0 { -place } else { place.min(2 * last - place) };
            row[reflected.unsigned_abs()]
        });
        around.sort_unstable_by(f32::total_cmp);
        around[half]
    };
    (0..row.len()).map(median).collect()
}

/// The first column of every row on the path through `[rows, columns]` that meets the largest values.
fn warped(values: &[f64], rows: usize, columns: usize) -> Vec<usize> {
    /// Where a cell was reached from.
    #[derive(Clone, Copy)]
    enum From {
        Both,
        Row,
        Column,
    }
    let mut steps = Vec::with_capacity(rows * columns);
    let mut above = vec![f32::INFINITY; columns + 1];
    above[0] = 0.0;
    for row in values.chunks_exact(columns) {
        let mut costs = vec![f32::INFINITY];
        for (column, value) in row.iter().enumerate() {
            let (both, up, left) = (above[column], above[column + 1], costs[column]);
            let (least, from) = if both < up && both < left {
                (both, From::Both)
            } else if up < both && up < left {
                (up, From::Row)
            } else {
                (left, From::Column)
            };
            steps.push(from);
            costs.push((f64::from(least) - value) as f32);
        }
        above = costs;
    }
    let mut first = vec![0; rows];
    let (mut row, mut column) = (rows - 1, columns - 1);
    loop {
        first[row] = column;
        let from = match steps[row * columns + column] {
            _ if row == 0 && column == 0 => return first,
            _ if row == 0 => From::Column,
            _ if column == 0 => From::Row,
            from => from,
        };
        match from {
            From::Both => (row, column) = (row - 1, column - 1),
            From::Row => row -= 1,
            From::Column => column -= 1,
        }
    }
}

/// The words of a text with their times.
///
/// # Errors
/// When the tokenizer fails on the tokens.
pub(crate) fn spoken(
    text: &[u32],
    moments: &Moments,
    tokenizer: &Tokenizer,
    language: Option<&str>,
) -> Result<Vec<Spoken>> {
    let mut words = Vec::new();
    let mut first = 0;
    for (word, tokens) in split(text, tokenizer, language)? {
        let end = first + tokens;
        let column = |at: usize| moments.columns.get(at).copied().unwrap_or_default();
        let known = moments.probabilities.get(first..end).unwrap_or_default();
        let probability = known.iter().sum::<f32>() / known.len().max(1) as f32;
        words.push(Spoken { word, tokens, start: column(first), end: column(end), probability });
        first = end;
    }
    Ok(with_punctuation(words))
}

/// Words and how many tokens they take: from space to space, or single characters where none are written.
fn split(text: &[u32], tokenizer: &Tokenizer, language: Option<&str>) -> Result<Vec<(String, usize)>> {
    let has_spaces = !language.is_some_and(|language| WITHOUT_SPACES.contains(&language));
    let mut stream = tokenizer.stream(false);
    let mut words: Vec<(String, usize)> = Vec::new();
    let mut waiting = 0;
    for &id in text {
        waiting += 1;
        let Some(piece) = stream.push(id)? else { continue };
        let begins = piece.starts_with(' ') || piece.trim().chars().all(|c| c.is_ascii_punctuation());
        match words.last_mut() {
            Some((word, tokens)) if has_spaces && !begins => {
                *word += &piece;
                *tokens += waiting;
            }
            _ => words.push((piece, waiting)),
        }
        waiting = 0;
    }
    let rest = stream.finish()?;
    if let Some((word, tokens)) = words.last_mut() {
        *word += &rest;
        *tokens += waiting;
    } else if waiting > 0 {
        words.push((rest, waiting));
    }
    Ok(words)
}

/// Quotes and brackets join the word they open, other marks the word before them.
fn with_punctuation(words: Vec<Spoken>) -> Vec<Spoken> {
    let mut joined: Vec<Spoken> = Vec::new();
    for next in words {
        let follows = !next.word.is_empty() && AFTER.contains(&next.word.as_str());
        match joined.last_mut() {
            Some(last) if follows && !last.word.ends_with(' ') => {
                last.word += &next.word;
                last.tokens += next.tokens;
            }
            Some(last) if last.word.starts_with(' ') && BEFORE.contains(&last.word.trim()) => {
                let word = std::mem::take(&mut last.word) + &next.word;
                *last = Spoken { word, tokens: last.tokens + next.tokens, ..next };
            }
            _ => joined.push(next),
        }
    }
    joined
}

/// Neighbours that a median is taken of; published configs say the same (`median_filter_width`).
const MEDIAN_WIDTH: usize = 7;

/// Languages that write no spaces between words.
const WITHOUT_SPACES: &[&str] = &["zh", "ja", "th", "lo", "my", "yue"];

const BEFORE: &[&str] = &["\"", "'", "“", "¿", "(", "[", "{", "-"];
const AFTER: &[&str] = &["\"", "'", ".", "。", ",", "，", "!", "！", "?", "？", ":", "：", "”", ")", "]", "}", "、"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_follows_the_largest_values() {
        let mut values = vec![-1.0; 3 * 6];
        for (row, column) in [(0, 0), (0, 1), (1, 2), (2, 3), (2, 4), (2, 5)] {
            values[row * 6 + column] = 1.0;
        }
        assert_eq!(warped(&values, 3, 6), [0, 2, 3]);
        assert_eq!(warped(&[1.0], 1, 1), [0]);
        assert_eq!(warped(&[0.0; 3], 3, 1), [0, 0, 0]);
    }

    #[test]
    fn the_median_ignores_a_spike() {
        let mut row = vec![1.0; 10];
        row[4] = 9.0;
        assert_eq!(median_filtered(&row), vec![1.0; 10]);
        assert_eq!(median_filtered(&[3.0, 1.0]), [3.0, 1.0]);
    }

    #[test]
    fn nothing_to_align_has_no_moments() {
        let alignment = Alignment { weights: Vec::new(), heads: 1, rows: 3, columns: 0 };
        assert_eq!(token_columns(&alignment, 1), [0]);
        assert!(token_columns(&alignment, 3).is_empty());
    }

    #[test]
    fn punctuation_joins_its_word() {
        let word = |word: &str, start| Spoken { word: word.into(), tokens: 1, start, end: start + 1, probability: 1.0 };
        let words = vec![word(" \"", 0), word("Yes", 1), word(",", 2), word(" no", 3), word(".", 4), word("\"", 5)];
        let joined = with_punctuation(words);
        let shown: Vec<_> = joined.iter().map(|word| (word.word.as_str(), word.start, word.tokens)).collect();
        assert_eq!(shown, [(" \"Yes,", 1, 3), (" no.\"", 3, 3)]);
    }
}
