//! A `tokenizer.json` of byte-level BPE from its parts, for formats that name the rule that cuts a text into words
//! instead of spelling it out. The rules here are those of the published tokenizers that the names stand for.

use serde_json::{Map, Value, json};

/// The parts of a byte-level tokenizer.
pub struct ByteLevel<'a> {
    /// Ids by token, those of [`ByteLevel::added`] included.
    pub vocabulary: Map<String, Value>,
    /// Pairs that are merged, `left right`, the first one first.
    pub merges: &'a [&'a str],
    /// Tokens that are cut out before anything else.
    pub added: &'a [AddedToken],
    /// How a text is cut before the merges.
    pub cut: Cut,
    /// Whether a text that does not begin with a space gets one.
    pub add_prefix_space: bool,
    /// The token before every text.
    pub begin: Option<(&'a str, u64)>,
}

/// A token that is cut out of a text before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u64,
    /// How it is written.
    pub content: String,
    /// Only where no letter or digit is next to it.
    pub single_word: bool,
    /// With the spaces before it.
    pub lstrip: bool,
    /// With the spaces behind it.
    pub rstrip: bool,
    /// Looked for in the normalised text.
    pub normalized: bool,
    /// Left out of an answer's text.
    pub special: bool,
}

impl AddedToken {
    /// A token that is cut out exactly as it is written.
    pub fn new(id: u64, content: &str, special: bool) -> Self {
        let content = content.to_owned();
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
    }

    /// As `tokenizer.json` lists it.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.normalized, "special": self.special,
        })
    }
}

/// How a text is cut into words before the merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// GPT-2's rule.
    Gpt2,
    /// GPT-2's, with every digit a word.
    SmolLm,
    /// Qwen2's rule: every digit a word, and line ends belong to signs.
    Qwen2,
    /// Llama 3's rule: up to three digits are a word.
    Llama3,
}

impl ByteLevel<'_> {
    /// The `tokenizer.json`.
    pub fn to_json(self) -> Value {
        let added: Vec<Value> = self.added.iter().map(AddedToken::to_json).collect();
        let plain = byte_level(false, false);
        let normalizer = if self.cut == Cut::Qwen2 { json!({"type": "NFC"}) } else { Value::Null };
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": self.cut.pre_tokenizer(self.add_prefix_space),
            "post_processor": self.begin.map_or(plain.clone(), |(token, id)| begins_with(token, id)),
            "decoder": plain,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.cut == Cut::Llama3, "vocab": self.vocabulary, "merges": self.merges,
            },
        })
    }
}

impl Cut {
    fn pre_tokenizer(self, add_prefix_space: bool) -> Value {
        let then = |first: Value, regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(add_prefix_space, regex)]});
        let split = |digits: &str| {
            let pattern = WORDS.replace("DIGITS", digits);
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        };
        match self {
            Self::Gpt2 => byte_level(add_prefix_space, true),
            Self::SmolLm => then(json!({"type": "Digits", "individual_digits": true}), true),
            Self::Qwen2 => then(split(r"\p{N}"), false),
            Self::Llama3 => then(split(r"\p{N}{1,3}"), false),
        }
    }
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex,
    })
}

fn begins_with(token: &str, id: u64) -> Value {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |part: &str, kind: u8| json!({"Sequence": {"id": part, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// Contractions, words with one leading sign, numbers, signs, line ends, spaces.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
