//! Keeps user text from speaking for the template.
//!
//! A user who types `<image>` or `<|im_start|>` means those characters, not the model's control tokens. But what the
//! template rendered is one string, and encoding its pieces separately would change how text merges at their borders.
//! So nothing is cut unless it must be:
//! - a text without special tokens in it, which is nearly every text, goes through unchanged, and the rendered prompt
//!   is encoded as one string;
//! - otherwise each special token in it is replaced by a mark (a private-use character no message contains, around its
//!   number) before rendering. Templates cannot mistake a mark for anything. Afterwards the prompt is cut only at the
//!   template's own special tokens, where tokenizers cut anyway, and the pieces that hold marks are encoded with
//!   special tokens taken for text.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::{Error, Result};

/// Special tokens, for finding them in a text.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecialTokens {
    sorted: Vec<String>,
}

impl SpecialTokens {
    pub(super) fn new(tokens: impl IntoIterator<Item = String>) -> Self {
        let mut sorted: Vec<String> = tokens.into_iter().filter(|token| !token.is_empty()).collect();
        sorted.sort();
        sorted.dedup();
        Self { sorted }
    }

    /// The same with some more.
    pub(crate) fn with<'a>(&self, more: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(self.sorted.iter().cloned().chain(more.into_iter().map(ToString::to_string)))
    }

    /// The next special token at or after byte `from`: where it starts, and its number. The longest one, if several
    /// start there.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        (from..text.len()).find_map(|start| self.longest_at(&text.as_bytes()[start..]).map(|number| (start, number)))
    }

    fn longest_at(&self, text: &[u8]) -> Option<usize> {
        // The tokens that start with the text's first bytes are a range of the sorted list; it narrows byte by byte.
        let (mut low, mut high) = (0, self.sorted.len());
        let mut longest = None;
        for (depth, &byte) in text.iter().enumerate() {
            let range = &self.sorted[low..high];
            let start = range.partition_point(|token| token.as_bytes().get(depth).is_none_or(|&at| at < byte));
            let end = range.partition_point(|token| token.as_bytes().get(depth).is_none_or(|&at| at <= byte));
            (low, high) = (low + start, low + end);
            if low == high {
                break;
            }
            if self.sorted[low].len() == depth + 1 {
                longest = Some(low);
            }
        }
        longest
    }
}

/// A piece of a prompt, to be encoded on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Special tokens in it are special.
    Template(String),
    /// Special tokens in it are text.
    Literal(String),
}

/// Marks special tokens in texts before a template sees them, and finds the marks afterwards.
pub(crate) struct Guard {
    specials: SpecialTokens,
    mark: char,
}

impl Guard {
    /// A guard for these texts, all of which will be in one prompt.
    ///
    /// # Errors
    /// [`Error::Encode`] when the texts use all 65534 characters that could be a mark.
    pub(crate) fn new<'a>(specials: SpecialTokens, texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let used: HashSet<char> =
            texts.into_iter().flat_map(str::chars).filter(|character| PRIVATE.contains(character)).collect();
        let mark = PRIVATE.rev().find(|character| !used.contains(character));
        let message = "it contains every private-use character of plane 16";
        Ok(Self { specials, mark: mark.ok_or_else(|| Error::Encode { message: message.into() })? })
    }

    /// The text with marks in place of special tokens.
    pub(crate) fn protect<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Some(mut found) = self.specials.find(text, 0) else { return Cow::Borrowed(text) };
        let (mut marked, mut end) = (String::new(), 0);
        loop {
            let (start, number) = found;
            marked += &text[end..start];
            marked += &format!("{0}{number}{0}", self.mark);
            end = start + self.specials.sorted[number].len();
            match self.specials.find(text, end) {
                Some(next) => found = next,
                None => break,
            }
        }
        Cow::Owned(marked + &text[end..])
    }

    /// The prompt with the special tokens back in place of their marks.
    pub(crate) fn restore<'a>(&self, prompt: &'a str) -> Cow<'a, str> {
        if !prompt.contains(self.mark) {
            return Cow::Borrowed(prompt);
        }
        // Every odd part lies between two marks, unless a template cut one in half; then it stays as it is.
        let token = |part: &str| part.parse().ok().and_then(|number: usize| self.specials.sorted.get(number));
        let parts = prompt.split(self.mark).enumerate();
        Cow::Owned(
            parts
                .map(|(index, part)| match token(part) {
                    Some(token) if index % 2 == 1 => token.as_str(),
                    _ => part,
                })
                .collect(),
        )
    }

    /// Cuts a prompt into as few pieces as its marks need: one, if there are none.
    pub(crate) fn segments(&self, prompt: &str) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut template = String::new();
        let mut end = 0;
        while end < prompt.len() {
            let next = self.specials.find(prompt, end);
            let (start, stop) = match next {
                Some((start, number)) => (start, start + self.specials.sorted[number].len()),
                None => (prompt.len(), prompt.len()),
            };
            let between = &prompt[end..start];
            if between.contains(self.mark) {
                if !template.is_empty() {
                    segments.push(Segment::Template(std::mem::take(&mut template)));
                }
                segments.push(Segment::Literal(self.restore(between).into_owned()));
            } else {
                template += between;
            }
            template += &prompt[start..stop];
            end = stop;
        }
        if !template.is_empty() {
            segments.push(Segment::Template(template));
        }
        segments
    }
}

/// Plane 16: characters that mean nothing to anybody.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10fffd}';

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(text: &str) -> Guard {
        let specials = ["<s>", "<image>", "<im", "é"].map(String::from);
        Guard::new(SpecialTokens::new(specials), [text]).unwrap()
    }

    #[test]
    fn ordinary_text_is_not_touched() {
        let text = "a < b, 你好";
        let guard = guard(text);
        assert!(matches!(guard.protect(text), Cow::Borrowed(_)));
        assert_eq!(guard.segments(text), [Segment::Template(text.into())]);
    }

    #[test]
    fn marks_hide_special_tokens_and_come_back() {
        let text = "x<image><im<s>é\u{10fffd}";
        let guard = guard(text);
        let marked = guard.protect(text);
        assert!(["<s>", "<im", "é"].iter().all(|token| !marked.contains(token)), "{marked:?}");
        assert_eq!(guard.restore(&marked), text);
    }

    #[test]
    fn only_pieces_with_marks_are_literal() {
        let user = "hi <image>";
        let guard = guard(user);
        let prompt = format!("<s>one<s>{}!<s>two<image>", guard.protect(user));
        let expected = [
            Segment::Template("<s>one<s>".into()),
            Segment::Literal("hi <image>!".into()),
            Segment::Template("<s>two<image>".into()),
        ];
        assert_eq!(guard.segments(&prompt), expected);
    }

    #[test]
    fn a_text_of_every_private_character_is_an_error() {
        let all: String = PRIVATE.collect();
        let error = Guard::new(SpecialTokens::default(), [all.as_str()]).err().unwrap();
        assert!(matches!(error, Error::Encode { .. }), "{error}");
        assert_eq!(Guard::new(SpecialTokens::default(), [&all[4..]]).unwrap().mark, '\u{100000}');
    }

    #[test]
    fn longest_token_wins() {
        let specials = SpecialTokens::new(["<a", "<a>", "<a>b"].map(String::from));
        let found = |text| specials.find(text, 0).map(|(start, number)| (start, specials.sorted[number].as_str()));
        assert_eq!(found("..<a>bc"), Some((2, "<a>b")));
        assert_eq!(found("..<a>c"), Some((2, "<a>")));
        assert_eq!(found("<"), None);
    }
}
