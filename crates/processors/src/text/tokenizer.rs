//! `tokenizer.json`, or what older folders have instead, with the special tokens that `tokenizer_config.json` names.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ocelli_formats::ModelFiles;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer as Inner, TokenizerImpl,
};

use super::guard::SpecialTokens;
use super::parts::{Assembled, assemble};
use crate::{Error, Result};

/// Text to ids and back, exactly as the model was trained. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    /// Written to only to say that special tokens are text, see [`Literally`].
    inner: RwLock<Inner>,
    specials: SpecialTokens,
    named: BTreeMap<String, String>,
    bos: Option<u32>,
    file: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model. Without the first, the
    /// files from which the class in `tokenizer_config.json` makes a tokenizer.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::TokenizerClass`], [`Error::BadTokenizer`], [`Error::Files`].
    pub fn load(files: &ModelFiles) -> Result<Self> {
        Self::load_from(files, "")
    }

    /// [`Tokenizer::load`] of a tokenizer in a folder of the model: its name with a slash.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub(crate) fn load_from(files: &ModelFiles, folder: &str) -> Result<Self> {
        let name = format!("{folder}tokenizer.json");
        let (json, file, mut named) = match files.bytes(&name)? {
            Some(json) => (json, files.label_of(&name), BTreeMap::new()),
            None => {
                let Assembled { json, file, named } = assemble(files, folder)?;
                (json.into(), file, named)
            }
        };
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(value) = files.json(&format!("{folder}{name}"))? {
                named.extend(named_tokens(&value));
            }
        }
        Self::new(&json, &file, named)
    }

    /// The ids of a text in which special tokens are nothing special, with those that the tokenizer puts around it.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub(crate) fn encode_framed(&self, text: &str) -> Result<Vec<u32>> {
        let (before, behind) = self.frame()?;
        Ok([before, self.encode_literal(text)?, behind].concat())
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
        let mut inner = match bpe(json) {
            Some(inner) => inner,
            None => any(json).map_err(|message| bad(&message))?,
        };
        // Training leaves these behind; a prompt must neither be cut nor filled up.
        inner.with_truncation(None).map_err(|error| bad(&error))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let specials = SpecialTokens::new(added.into_values().filter(|token| token.special).map(|token| token.content));
        let bos = named.get("bos_token").and_then(|token| inner.token_to_id(token));
        Ok(Self { shared: Arc::new(Shared { inner: RwLock::new(inner), specials, named, bos, file: label.into() }) })
    }

    /// The ids of a text. Special tokens in it become their ids; `add_special_tokens` also adds those that the
    /// tokenizer puts around a text (such as a BOS).
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        encode(&self.inner(), text, add_special_tokens)
    }

    /// The ids of a text in which special tokens are nothing special.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        let literally = Literally::begin(self.shared.inner.write().unwrap_or_else(PoisonError::into_inner));
        encode(&literally.0, text, false)
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.shared.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids that the tokenizer puts before and behind every text.
    pub(crate) fn frame(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let (bare, framed) = (self.encode(ANY_TEXT, false)?, self.encode(ANY_TEXT, true)?);
        let start = framed.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        Ok((framed[..start].to_vec(), framed[start + bare.len()..].to_vec()))
    }

    /// The text of ids; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner().decode(ids, skip_special).map_err(|error| Error::Decode { message: error.to_string() })
    }

    /// The text of ids that arrive one by one.
    pub fn stream(&self, skip_special: bool) -> super::TokenStream {
        super::TokenStream::new(self, skip_special)
    }

    /// The file it was read from, for messages; the vocabulary where there are several.
    pub fn file(&self) -> &str {
        &self.shared.file
    }

    /// The id of a token, special or not.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner().token_to_id(token)
    }

    /// The token of an id, as it is spelled in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner().id_to_token(id)
    }

    /// How many tokens there are, added ones included. Ids may have gaps; a model's embedding may be larger.
    pub fn vocab_size(&self) -> usize {
        self.inner().get_vocab_size(true)
    }

    /// Whether an id is a special token, which [`Tokenizer::decode`] can leave out.
    pub fn is_special(&self, id: u32) -> bool {
        self.id_to_token(id).is_some_and(|token| self.inner().get_added_vocabulary().is_special_token(&token))
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
        matches!(self.inner().get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// While this lives, special tokens are text. (A second tokenizer for that would take as long to make as the first one
/// did, and as much memory.)
struct Literally<'a>(RwLockWriteGuard<'a, Inner>);

impl<'a> Literally<'a> {
    fn begin(mut inner: RwLockWriteGuard<'a, Inner>) -> Self {
        inner.set_encode_special_tokens(true);
        Self(inner)
    }
}

impl Drop for Literally<'_> {
    fn drop(&mut self) {
        self.0.set_encode_special_tokens(false);
    }
}

/// The tokenizer of a file whose model is BPE, as nearly all are; `None` for others and for what is malformed. Told what
/// the model is, the library reads it at once; left to find out, it takes four times as long.
fn bpe(json: &[u8]) -> Option<Inner> {
    type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    let read = || serde_json::from_slice::<Bpe>(json).ok();
    std::panic::catch_unwind(read).ok().flatten().map(Inner::from)
}

/// The tokenizer of any file, or what is wrong with it.
fn any(json: &[u8]) -> std::result::Result<Inner, String> {
    // Some malformed files make the tokenizers library panic instead of returning its error: nearly all of them are not
    // even JSON.
    serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|error| error.to_string())?;
    match std::panic::catch_unwind(|| Inner::from_bytes(json)) {
        Ok(loaded) => loaded.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library gave up on it".to_owned()),
    }
}

/// Every vocabulary has something for it.
const ANY_TEXT: &str = "a";

fn encode(tokenizer: &Inner, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
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

    /// Both ways of reading a file give the same tokenizer, down to the last field.
    #[test]
    fn a_model_that_is_known_is_read_as_any_other() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let mut n_bpe = 0;
        for entry in std::fs::read_dir(fixtures).unwrap() {
            let Ok(json) = std::fs::read(entry.unwrap().path().join("tokenizer.json")) else { continue };
            let any = any(&json).unwrap();
            let Some(bpe) = bpe(&json) else { continue };
            n_bpe += 1;
            assert_eq!(bpe.to_string(false).unwrap(), any.to_string(false).unwrap());
            let text = "Zwei <image> Bilder,\n\t1234 🦀 <|im_end|>";
            assert_eq!(encode(&bpe, text, true).unwrap(), encode(&any, text, true).unwrap());
        }
        assert!(n_bpe >= 4, "{n_bpe}");
    }

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
