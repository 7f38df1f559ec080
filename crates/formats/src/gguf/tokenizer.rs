//! The tokenizer of a GGUF file as `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
//!
//! GGUF names the rule that cuts a text into words (`tokenizer.ggml.pre`) instead of spelling it out; the rules here
//! are those of the published tokenizers that the names stand for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::model::About;
use super::{Gguf, GgufValue};
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
    let cut = Cut::named(about)?;
    let kinds = about.gguf.value(KINDS).and_then(GgufValue::as_array).unwrap_or_default();
    let kind = |id: usize| kinds.get(id).and_then(GgufValue::as_u64).unwrap_or(NORMAL);
    let added: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| kind(*id) == CONTROL || kind(*id) == USER_DEFINED)
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind(id) == CONTROL,
            })
        })
        .collect();
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), id.into()).is_some() {
            return Err(about.error(TOKENS, &format!("`{token}` is there twice")));
        }
    }
    let merges = about.texts("tokenizer.ggml.merges")?;
    let flag = about.gguf.value("tokenizer.ggml.add_bos_token").and_then(GgufValue::as_bool);
    let adds_begin = flag.unwrap_or(cut.adds_begin);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": cut.normalizer,
        "pre_tokenizer": cut.pre_tokenizer,
        "post_processor": begin.filter(|_| adds_begin).map_or(byte_level.clone(), |id| begins_with(id, tokens)),
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": cut.ignores_merges, "vocab": vocabulary, "merges": merges,
        },
    }))
}

/// Puts the begin token before every text.
fn begins_with(id: u64, tokens: &[&str]) -> Value {
    let token = tokens[id as usize];
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |part: &str, kind: u8| json!({"Sequence": {"id": part, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// How a text is cut before the merges.
struct Cut {
    normalizer: Value,
    pre_tokenizer: Value,
    ignores_merges: bool,
    adds_begin: bool,
}

impl Cut {
    fn named(about: &About<'_>) -> Result<Self> {
        let key = "tokenizer.ggml.pre";
        let name = if about.gguf.value(key).is_some() { about.text(key)? } else { "default" };
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let then = |first: Value, regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(regex)]});
        let split = |digits: &str| {
            let pattern = WORDS.replace("DIGITS", digits);
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        };
        let plain =
            |pre_tokenizer| Self { normalizer: Value::Null, pre_tokenizer, ignores_merges: false, adds_begin: false };
        Ok(match name {
            "default" | "gpt-2" | "gpt2" => plain(byte_level(true)),
            "smollm" => plain(then(json!({"type": "Digits", "individual_digits": true}), true)),
            "qwen2" => Self { normalizer: json!({"type": "NFC"}), ..plain(then(split(r"\p{N}"), false)) },
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignores_merges: true, adds_begin: true, ..plain(then(split(r"\p{N}{1,3}"), false)) }
            }
            other => {
                let known = "default, gpt-2, llama-bpe, qwen2, smollm";
                return Err(about.error(key, &format!("`{other}` is not supported; known: {known}")));
            }
        })
    }
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// Contractions, words with one leading sign, numbers, signs, line ends, spaces.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
