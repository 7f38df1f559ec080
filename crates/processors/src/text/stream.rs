//! Text of ids that arrive one by one.
//!
//! Two ways. Where text is the tokens' bytes in a row (byte-level BPE, all recent models), bytes are collected and
//! whatever is complete goes out: exact, and constant work per token. Elsewhere (byte fallback, leading spaces that
//! depend on the neighbour) a small window of ids is decoded again with each new one, and what is new goes out once it
//! does not end in a replacement character, which is what half a character decodes to.

use super::Tokenizer;
use crate::Result;

/// Turns ids into text as they come, never in the middle of a character.
#[derive(Debug)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Bytes not yet out: the start of a character.
    Bytes(Vec<u8>),
    /// Ids whose text is out but decides how the next ones are spelled, then ids whose text is not out.
    Window { ids: Vec<u32>, n_out: usize },
}

impl TokenStream {
    /// A stream at its beginning; `skip_special` leaves special tokens out.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes(Vec::new())
        } else {
            State::Window { ids: Vec::new(), n_out: 0 }
        };
        Self { tokenizer: tokenizer.clone(), skip_special, state }
    }

    /// Takes the next id and returns the text that is now certain, if any. Ids outside the vocabulary give no text.
    ///
    /// # Errors
    /// [`crate::Error::Decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        let text = match &mut self.state {
            State::Bytes(pending) => {
                if let Some(token) = self.tokenizer.id_to_token(id) {
                    append_bytes(&token, pending);
                }
                take_complete(pending)
            }
            State::Window { ids, n_out } => {
                ids.push(id);
                let text = new_text(&self.tokenizer, ids, *n_out)?;
                let is_open = text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER);
                if is_open && ids.len() - *n_out < LONGEST_WAIT {
                    return Ok(None);
                }
                ids.drain(..*n_out);
                *n_out = ids.len();
                text
            }
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The rest: replacement characters for what never became a whole one.
    ///
    /// # Errors
    /// [`crate::Error::Decode`].
    pub fn finish(self) -> Result<String> {
        match self.state {
            State::Bytes(pending) => Ok(String::from_utf8_lossy(&pending).into_owned()),
            State::Window { ids, n_out } => new_text(&self.tokenizer, &ids, n_out),
        }
    }
}

/// What `ids` say beyond what the first `n_out` of them say.
fn new_text(tokenizer: &Tokenizer, ids: &[u32], n_out: usize) -> Result<String> {
    let out = tokenizer.decode(&ids[..n_out], false)?;
    let mut all = tokenizer.decode(ids, false)?;
    if all.starts_with(&out) {
        return Ok(all.split_off(out.len()));
    }
    // Bytes of a new character right after those of an old one make both unreadable for now: look at the new alone.
    tokenizer.decode(&ids[n_out..], false)
}

/// Takes all complete characters off the front; invalid bytes become replacement characters.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in pending.utf8_chunks() {
        text += chunk.valid();
        done += chunk.valid().len();
        let rest = chunk.invalid();
        if rest.is_empty() {
            continue;
        }
        if done + rest.len() == pending.len() && may_continue(rest) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        done += rest.len();
    }
    pending.drain(..done);
    text
}

/// Whether bytes are the start of a character rather than wrong.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The bytes of a byte-level token: each of its characters stands for one. Added tokens are spelled as they are.
fn append_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        let Some(byte) = byte_of(character) else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes follow from U+0100 in order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Ids without a character between them that are not text: they go out as replacement characters.
const LONGEST_WAIT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn tokens_outside_the_alphabet_are_spelled_as_they_are() {
        let mut bytes = vec![1];
        append_bytes("a<｜end｜>", &mut bytes);
        assert_eq!(&bytes[1..], "a<｜end｜>".as_bytes());
    }

    #[test]
    fn characters_go_out_whole() {
        let mut pending = Vec::new();
        let mut out = Vec::new();
        for byte in "a😀é".bytes().chain([0xff, b'b', 0xe4, 0xb8]) {
            pending.push(byte);
            out.push(take_complete(&mut pending));
        }
        assert_eq!(out.concat(), "a😀é\u{fffd}b");
        assert_eq!(out[1..5], ["", "", "", "😀"]);
        assert_eq!(pending, [0xe4, 0xb8]);
    }
}
