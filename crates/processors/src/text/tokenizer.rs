//! `tokenizer.json`, with the special tokens that `tokenizer_config.json` names.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use ocelli_formats::ModelFiles;
use serde_json::Value;
use tokenizers::DecoderWrapper;

use super::guard::{Segment, SpecialTokens};
use crate::{Error, Result};

/// Text to ids and back, exactly as the model was trained. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    inner: tokenizers::Tokenizer,
    /// The same, with special tokens taken for text; made when first needed.
    literal: OnceLock<tokenizers::Tokenizer>,
    specials: SpecialTokens,
    named: BTreeMap<String, String>,
    bos: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::BadTokenizer`], [`Error::Files`].
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let Some(bytes) = files.bytes("tokenizer.json")? else {
            return Err(Error::NoTokenizer { label: files.label().into() });
        };
        let mut named = BTreeMap::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(value) = files.json(name)? {
                named.extend(named_tokens(&value));
            }
        }
        Self::new(&bytes, &files.label_of("tokenizer.json"), named)
    }

    /// Reads the bytes of a `tokenizer.json`; `label` names it in errors. Callable on arbitrary bytes.
    ///
    /// # Errors
    /// [`Error::BadTokenizer`].
    pub fn parse(json: &[u8], label: &str) -> Result<Self> {
        Self::new(json, label, BTreeMap::new())
    }

    fn new(json: &[u8], label: &str, named: BTreeMap<String, String>) -> Result<Self> {
        let bad = |message: &dyn std::fmt::Display| Error::bad_tokenizer(label, message);
        // Some malformed files make the tokenizers library panic instead of returning its error: nearly all of them are
        // not even JSON.
        serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|error| bad(&error))?;
        let loaded = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
        let mut inner = match loaded {
            Ok(Ok(inner)) => inner,
            Ok(Err(error)) => return Err(bad(&error)),
            Err(_) => return Err(bad(&"the tokenizers library gave up on it")),
        };
        // Training leaves these behind; a prompt must neither be cut nor filled up.
        inner.with_truncation(None).map_err(|error| bad(&error))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let specials = SpecialTokens::new(added.into_values().filter(|token| token.special).map(|token| token.content));
        let bos = named.get("bos_token").and_then(|token| inner.token_to_id(token));
        Ok(Self { shared: Arc::new(Shared { inner, literal: OnceLock::new(), specials, named, bos }) })
    }

    /// The ids of a text. Special tokens in it become their ids; `add_special_tokens` also adds those that the
    /// tokenizer puts around a text (such as a BOS).
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        encode(&self.shared.inner, text, add_special_tokens)
    }

    /// The ids of a text in which special tokens are nothing special.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        let literal = self.shared.literal.get_or_init(|| {
            let mut literal = self.shared.inner.clone();
            literal.set_encode_special_tokens(true);
            literal
        });
        encode(literal, text, false)
    }

    /// The ids of consecutive pieces, each encoded on its own.
    pub(crate) fn encode_segments(&self, segments: &[Segment]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for segment in segments {
            ids.extend(match segment {
                Segment::Template(text) => self.encode(text, false)?,
                Segment::Literal(text) => self.encode_literal(text)?,
            });
        }
        Ok(ids)
    }

    /// The text of ids; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.shared.inner.decode(ids, skip_special).map_err(|error| Error::Decode { message: error.to_string() })
    }

    /// The text of ids that arrive one by one.
    pub fn stream(&self, skip_special: bool) -> super::TokenStream {
        super::TokenStream::new(self, skip_special)
    }

    /// The id of a token, special or not.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// The token of an id, as it is spelled in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// How many tokens there are, added ones included. Ids may have gaps; a model's embedding may be larger.
    pub fn vocab_size(&self) -> usize {
        self.shared.inner.get_vocab_size(true)
    }

    /// Whether an id is a special token, which [`Tokenizer::decode`] can leave out.
    pub fn is_special(&self, id: u32) -> bool {
        self.id_to_token(id).is_some_and(|token| self.shared.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The special tokens with a role, such as `bos_token` and `eos_token`.
    pub fn named_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.shared.named.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// The id of a special token with a role, such as `eos_token`.
    pub fn named_token_id(&self, name: &str) -> Option<u32> {
        self.shared.named.get(name).and_then(|token| self.token_to_id(token))
    }

    /// The id of the token that begins a text, if the model has one.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.shared.bos
    }

    pub(crate) fn specials(&self) -> &SpecialTokens {
        &self.shared.specials
    }

    /// Whether text is just the tokens' bytes in a row.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self.shared.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, add_special_tokens);
    encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|error| Error::Encode { message: error.to_string() })
}

/// `bos_token` and its like: a string, or an object with the string in `content`.
fn named_tokens(value: &Value) -> BTreeMap<String, String> {
    let mut named = BTreeMap::new();
    let extra = value.get("extra_special_tokens").and_then(Value::as_object);
    for (name, token) in value.as_object().into_iter().chain(extra).flatten() {
        let content = token.as_str().or_else(|| token.get("content").and_then(Value::as_str));
        if let (true, Some(content)) = (name.ends_with("_token"), content) {
            named.insert(name.clone(), content.to_string());
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_tokens_are_strings_or_objects() {
        let value = serde_json::json!({
            "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null,
            "add_bos_token": true, "model_max_length": 5, "extra_special_tokens": {"image_token": "<image>"},
        });
        let named = named_tokens(&value);
        let pairs: Vec<_> = named.iter().map(|(name, token)| (name.as_str(), token.as_str())).collect();
        assert_eq!(pairs, [("bos_token", "<s>"), ("eos_token", "</s>"), ("image_token", "<image>")]);
        assert!(named_tokens(&serde_json::json!([1])).is_empty());
    }
}
