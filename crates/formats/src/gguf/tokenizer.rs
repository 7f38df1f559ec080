//! The tokenizer of a GGUF file as `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::model::About;
use super::{Gguf, GgufValue};
use crate::byte_level::{AddedToken, ByteLevel, Cut};
use crate::error::Result;

/// The files by name.
pub(super) fn files(gguf: &Gguf) -> Result<BTreeMap<&'static str, Value>> {
    let about = About { gguf };
    let model = about.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(about.error("tokenizer.ggml.model", &format!("`{model}` is not supported, only gpt2 (byte-level)")));
    }
    let tokens = about.texts(TOKENS)?;
    let special = |name: &str| -> Result<Option<u64>> {
        let id = about.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < tokens.len())))
    };
    let named = |id: Option<u64>| id.map(|id| Value::from(tokens[id as usize]));
    let (begin, end) = (special("bos")?, special("eos")?);
    let mut config = Map::new();
    for (key, id) in [("bos_token", begin), ("eos_token", end), ("unk_token", special("unknown")?)] {
        config.extend(named(id).map(|token| (key.to_owned(), token)));
    }
    config.extend(named(special("padding")?).map(|token| ("pad_token".to_owned(), token)));
    if let Some(template) = gguf.value("tokenizer.chat_template").and_then(GgufValue::as_text) {
        config.insert("chat_template".into(), template.into());
    }
    let mut ends: Vec<u64> = end.into_iter().collect();
    // An answer may also end with the end of a turn: GGUF says which token that is, or it is one of these.
    ends.extend(special("eot")?);
    let turn = |token: &&str| ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_utterance>"].contains(token);
    ends.extend(tokens.iter().enumerate().filter(|(_, token)| turn(token)).map(|(id, _)| id as u64));
    ends.sort_unstable();
    ends.dedup();
    let tokenizer = tokenizer(&about, &tokens, begin)?;
    Ok(BTreeMap::from([
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", Value::Object(config)),
        ("generation_config.json", json!({ "eos_token_id": ends })),
    ]))
}

fn tokenizer(about: &About<'_>, tokens: &[&str], begin: Option<u64>) -> Result<Value> {
    let (cut, adds_begin) = cut(about)?;
    let kinds = about.gguf.value(KINDS).and_then(GgufValue::as_array).unwrap_or_default();
    let kind = |id: usize| kinds.get(id).and_then(GgufValue::as_u64).unwrap_or(NORMAL);
    let added: Vec<AddedToken> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| kind(*id) == CONTROL || kind(*id) == USER_DEFINED)
        .map(|(id, token)| AddedToken::new(id as u64, token, kind(id) == CONTROL))
        .collect();
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), id.into()).is_some() {
            return Err(about.error(TOKENS, &format!("`{token}` is there twice")));
        }
    }
    let merges = about.texts("tokenizer.ggml.merges")?;
    let flag = about.gguf.value("tokenizer.ggml.add_bos_token").and_then(GgufValue::as_bool);
    let begin = begin.filter(|_| flag.unwrap_or(adds_begin)).map(|id| (tokens[id as usize], id));
    Ok(ByteLevel { vocabulary, merges: &merges, added: &added, cut, add_prefix_space: false, begin }.to_json())
}

/// How a text is cut before the merges, and whether such tokenizers put the begin token before it unless told
/// otherwise.
fn cut(about: &About<'_>) -> Result<(Cut, bool)> {
    let key = "tokenizer.ggml.pre";
    let name = if about.gguf.value(key).is_some() { about.text(key)? } else { "default" };
    Ok(match name {
        "default" | "gpt-2" | "gpt2" => (Cut::Gpt2, false),
        "smollm" => (Cut::SmolLm, false),
        "qwen2" => (Cut::Qwen2, false),
        "llama-bpe" | "llama3" | "llama-v3" => (Cut::Llama3, true),
        other => {
            let known = "default, gpt-2, llama-bpe, qwen2, smollm";
            return Err(about.error(key, &format!("`{other}` is not supported; known: {known}")));
        }
    })
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
