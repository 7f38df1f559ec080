//! The tokenizer of a folder that has no `tokenizer.json` but what older tokenizers kept instead: a vocabulary, its
//! merges, and the tokens that were added to it. The class that `tokenizer_config.json` names says what to make of them
//! (transformers: `tokenization_<family>.py`, `TokenizersBackend`).

use std::collections::{BTreeMap, HashSet};

use ocelli_formats::{AddedToken, ByteLevel, Cut, ModelFiles};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The parts put together.
pub(super) struct Assembled {
    /// What would be `tokenizer.json`.
    pub(super) json: Vec<u8>,
    /// The file that holds most of it.
    pub(super) file: String,
    /// The special tokens by role, the class's own where no file names others.
    pub(super) named: BTreeMap<String, String>,
}

/// What would be the `tokenizer.json` of a folder of the model (its name with a slash) that has none.
///
/// # Errors
/// [`Error::NoTokenizer`] when parts are missing, [`Error::TokenizerClass`], [`Error::BadTokenizer`], [`Error::Files`].
pub(super) fn assemble(files: &ModelFiles, folder: &str) -> Result<Assembled> {
    let name = |name: &str| format!("{folder}{name}");
    let config = files.json(&name(CONFIG))?.unwrap_or_default();
    let label = || match folder.trim_end_matches('/') {
        "" => files.label().to_owned(),
        folder => files.label_of(folder),
    };
    let Some(class) = config["tokenizer_class"].as_str() else {
        return Err(Error::NoTokenizer { label: label(), nor: Vec::new() });
    };
    let known = CLASSES.iter().find(|known| known.name == class.trim_end_matches("Fast"));
    let Some(known) = known else {
        return Err(Error::TokenizerClass { label: label(), class: class.to_owned() });
    };
    let (mut texts, mut nor) = (Vec::new(), Vec::new());
    for file in known.model.files() {
        match files.text(&name(file))? {
            Some(text) => texts.push(text),
            None => nor.push(*file),
        }
    }
    if !nor.is_empty() {
        return Err(Error::NoTokenizer { label: label(), nor });
    }
    let map = files.json(&name("special_tokens_map.json"))?.unwrap_or_default();
    let parts = Parts { files, folder, config: &config, map: &map, class: known };
    let (json, file) = (parts.tokenizer(&texts)?, parts.file(known.model.files()[0]));
    let named = parts.named().into_iter().map(|(role, token)| (role.to_owned(), token.content)).collect();
    Ok(Assembled { json: json.to_string().into_bytes(), file, named })
}

/// The classes that can be built.
pub(crate) fn classes() -> Vec<&'static str> {
    CLASSES.iter().map(|class| class.name).collect()
}

/// A tokenizer class: what it is made of, and its special tokens unless a file names others.
struct Class {
    name: &'static str,
    model: Model,
    specials: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy)]
enum Model {
    ByteLevel(Cut),
    WordPiece,
}

impl Model {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::ByteLevel(_) => &["vocab.json", "merges.txt"],
            Self::WordPiece => &["vocab.txt"],
        }
    }
}

struct Parts<'a> {
    files: &'a ModelFiles,
    folder: &'a str,
    config: &'a Value,
    /// `special_tokens_map.json`; null without one.
    map: &'a Value,
    class: &'static Class,
}

impl Parts<'_> {
    fn tokenizer(&self, texts: &[String]) -> Result<Value> {
        match (self.class.model, texts) {
            (Model::ByteLevel(cut), [vocabulary, merges]) => self.byte_level(cut, vocabulary, merges),
            (_, texts) => self.word_piece(&texts.concat()),
        }
    }

    fn byte_level(&self, cut: Cut, vocabulary: &str, merges: &str) -> Result<Value> {
        let file = "vocab.json";
        let mut vocabulary: Map<String, Value> =
            serde_json::from_str(vocabulary).map_err(|error| self.bad(file, error))?;
        if let Some((token, _)) = vocabulary.iter().find(|(_, id)| number(id).is_none()) {
            return Err(self.bad(file, format!("the id of `{token}` is no number of 32 bits")));
        }
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
        let added = self.added(&mut vocabulary)?;
        let begin = self.named().remove("bos_token").filter(|_| self.flag("add_bos_token", false));
        let begin = begin.and_then(|token| Some((vocabulary.get(&token.content)?.as_u64()?, token.content)));
        let begin = begin.as_ref().map(|(id, token)| (token.as_str(), *id));
        let add_prefix_space = self.flag("add_prefix_space", false);
        Ok(ByteLevel { vocabulary, merges: &merges, added: &added, cut, add_prefix_space, begin }.to_json())
    }

    fn word_piece(&self, vocabulary: &str) -> Result<Value> {
        let lines = vocabulary.lines().enumerate();
        let mut vocabulary: Map<String, Value> = lines.map(|(id, token)| (token.to_owned(), id.into())).collect();
        let added: Vec<Value> = self.added(&mut vocabulary)?.iter().map(AddedToken::to_json).collect();
        let named = self.named();
        let token = |role: &str| {
            let token = named.get(role).map(|token| token.content.as_str());
            token.ok_or_else(|| self.bad(CONFIG, format!("{role}: missing")))
        };
        let (class, separator, unknown) = (token("cls_token")?, token("sep_token")?, token("unk_token")?);
        let special = |token: &str, kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let text = |part: &str, kind: u8| json!({"Sequence": {"id": part, "type_id": kind}});
        let about = |token: &str| json!({"id": token, "ids": [vocabulary[token]], "tokens": [token]});
        let before = [special(class, 0), text("A", 0), special(separator, 0)];
        let pair = [&before[..], &[text("B", 1), special(separator, 1)]].concat();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": self.flag("tokenize_chinese_chars", true),
                "strip_accents": self.config["strip_accents"].as_bool(),
                "lowercase": self.flag("do_lower_case", true),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing", "single": before, "pair": pair,
                "special_tokens": {class: about(class), separator: about(separator)},
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary,
            },
        }))
    }

    /// The tokens that are cut out of a text, in the order of their ids; those that are new are put into the
    /// vocabulary.
    fn added(&self, vocabulary: &mut Map<String, Value>) -> Result<Vec<AddedToken>> {
        let (named, more) = (self.named(), self.more_specials());
        let (file, mut listed) = self.listed()?;
        listed.sort_by_key(|token| token.id);
        let mut taken: HashSet<u64> = vocabulary.values().filter_map(Value::as_u64).collect();
        for token in &mut listed {
            let known = vocabulary.get(&token.content).and_then(Value::as_u64);
            if known.map_or(!taken.insert(token.id), |known| known != token.id) {
                let message = format!("the id {} of `{}` is not the vocabulary's", token.id, token.content);
                return Err(self.bad(file, message));
            }
            vocabulary.insert(token.content.clone(), token.id.into());
            token.special |= named.values().any(|special| special.content == token.content);
        }
        for special in ROLES.iter().filter_map(|role| named.get(*role)).chain(&more) {
            if listed.iter().all(|token| token.content != special.content) {
                let next = vocabulary.values().filter_map(Value::as_u64).max().map_or(0, |id| id + 1);
                let id = vocabulary.get(&special.content).and_then(Value::as_u64).unwrap_or(next);
                vocabulary.insert(special.content.clone(), id.into());
                listed.push(AddedToken { id, ..special.clone() });
            }
        }
        Ok(listed)
    }

    /// The added tokens with ids, and the file that lists them.
    fn listed(&self) -> Result<(&'static str, Vec<AddedToken>)> {
        if let Some(listed) = self.config["added_tokens_decoder"].as_object() {
            let read = |(id, about): (&String, &Value)| {
                Some(AddedToken { id: id.parse::<u32>().ok()?.into(), ..token(about, false)? })
            };
            let listed: Option<Vec<_>> = listed.iter().map(read).collect();
            let malformed = || self.bad(CONFIG, "added_tokens_decoder: not tokens by id");
            return Ok((CONFIG, listed.ok_or_else(malformed)?));
        }
        let file = "added_tokens.json";
        let listed = self.files.json(&format!("{}{file}", self.folder))?.unwrap_or_default();
        let specials: Vec<AddedToken> = self.named().into_values().chain(self.more_specials()).collect();
        let read = |(content, id): (&String, &Value)| {
            let special = specials.iter().any(|special| special.content == *content);
            Some(AddedToken { normalized: !special, ..AddedToken::new(number(id)?, content, special) })
        };
        let listed: Option<Vec<_>> = listed.as_object().into_iter().flatten().map(read).collect();
        Ok((file, listed.ok_or_else(|| self.bad(file, "not ids by token"))?))
    }

    /// The special tokens with a role; their ids mean nothing.
    fn named(&self) -> BTreeMap<&'static str, AddedToken> {
        let own: BTreeMap<&str, &str> = self.class.specials.iter().copied().collect();
        let find = |role: &'static str| {
            // One of them saying null means that there is none.
            let said = [self.config, self.map].into_iter().find_map(|said| said.get(role));
            let special =
                said.map_or_else(|| own.get(role).map(|own| AddedToken::new(0, own, true)), |said| token(said, true));
            special.map(|special| (role, special))
        };
        ROLES.iter().copied().filter_map(find).collect()
    }

    /// The special tokens without a role; their ids mean nothing.
    fn more_specials(&self) -> Vec<AddedToken> {
        let lists = [self.config, self.map].into_iter().flat_map(|said| {
            ["additional_special_tokens", "extra_special_tokens"].map(|key| match &said[key] {
                Value::Object(by_name) => by_name.values().cloned().collect(),
                list => list.as_array().cloned().unwrap_or_default(),
            })
        });
        lists.flatten().filter_map(|about| token(&about, true)).collect()
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.config[key].as_bool().unwrap_or(default)
    }

    fn file(&self, file: &str) -> String {
        self.files.label_of(&format!("{}{file}", self.folder))
    }

    fn bad(&self, file: &str, message: impl std::fmt::Display) -> Error {
        Error::bad_tokenizer(&self.file(file), message)
    }
}

/// An id.
fn number(id: &Value) -> Option<u64> {
    id.as_u64().filter(|&id| u32::try_from(id).is_ok())
}

/// A token that is a string, or an object with the string in `content`; its id is missing.
fn token(about: &Value, special: bool) -> Option<AddedToken> {
    if let Some(content) = about.as_str() {
        return Some(AddedToken::new(0, content, special));
    }
    let flag = |key: &str| about[key].as_bool();
    let special = flag("special").unwrap_or(special);
    Some(AddedToken {
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        ..AddedToken::new(0, about["content"].as_str()?, special)
    })
}

const CONFIG: &str = "tokenizer_config.json";
/// In the order in which new ones get their ids.
const ROLES: &[&str] = &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const END: &str = "<|endoftext|>";
const BEGIN_END_UNKNOWN: &[(&str, &str)] = &[("bos_token", END), ("eos_token", END), ("unk_token", END)];
const CLASSES: &[Class] = &[
    Class {
        name: "BertTokenizer",
        model: Model::WordPiece,
        specials: &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
    },
    Class { name: "CodeGenTokenizer", model: Model::ByteLevel(Cut::Gpt2), specials: BEGIN_END_UNKNOWN },
    Class { name: "GPT2Tokenizer", model: Model::ByteLevel(Cut::Gpt2), specials: BEGIN_END_UNKNOWN },
    Class {
        name: "Qwen2Tokenizer",
        model: Model::ByteLevel(Cut::Qwen2),
        specials: &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
    },
    // What it puts around a text for training, the engine says by itself.
    Class { name: "WhisperTokenizer", model: Model::ByteLevel(Cut::Gpt2), specials: BEGIN_END_UNKNOWN },
];
