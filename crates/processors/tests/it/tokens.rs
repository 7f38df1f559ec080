//! Tokenizers: text to ids and back, at once and one by one; and files that are none.

use crate::support::{family, processor, variant};
use ocelli_processors::{ChatOptions, ChatTemplate, ContentForm, Error, Message, Tokenizer};
use proptest::prelude::*;

#[test]
fn text_survives_the_way_to_ids_and_back() {
    for name in ["idefics3", "llama3", "qwen2"] {
        let processor = processor(family(name));
        let tokenizer = processor.tokenizer();
        for text in ["how many dogs?", " leading", "trailing ", "é😀你好\n\n\t", "", "a\u{0}b"] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
            assert_eq!(streamed(tokenizer, &ids, false), text, "{name}");
        }
    }
}

#[test]
fn tokens_have_ids_and_names() {
    let processor = processor(family("llama3"));
    let tokenizer = processor.tokenizer();
    let eot = tokenizer.token_to_id("<|eot_id|>").unwrap();
    assert_eq!(tokenizer.id_to_token(eot).as_deref(), Some("<|eot_id|>"));
    assert_eq!(tokenizer.named_token_id("eos_token"), Some(eot));
    assert_eq!(tokenizer.named_tokens().next(), Some(("bos_token", "<|begin_of_text|>")));
    assert!(tokenizer.is_special(eot) && !tokenizer.is_special(tokenizer.encode("a", false).unwrap()[0]));
    assert_eq!(tokenizer.id_to_token(u32::MAX), None);
    assert!(tokenizer.vocab_size() > 256);
}

#[test]
fn literal_encoding_gives_special_tokens_no_meaning() {
    let processor = processor(family("llama3"));
    let tokenizer = processor.tokenizer();
    let ids = tokenizer.encode_literal("<|eot_id|>").unwrap();
    assert!(ids.len() > 1 && ids.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<|eot_id|>");
    assert_eq!(tokenizer.encode("<|eot_id|>", false).unwrap().len(), 1);
}

#[test]
fn streams_leave_special_tokens_out_when_asked() {
    let processor = processor(family("llama3"));
    let ids = processor.tokenizer().encode("a<|eot_id|>b", false).unwrap();
    assert_eq!(streamed(processor.tokenizer(), &ids, true), "ab");
    assert_eq!(streamed(processor.tokenizer(), &ids, false), "a<|eot_id|>b");
}

#[test]
fn leading_spaces_and_byte_fallback_stream_like_they_decode() {
    let tokenizer = sentencepiece();
    for text in ["a b", " a", "b  a", "é a", "😀", "a😀b é", "é"] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(streamed(&tokenizer, &ids, false), tokenizer.decode(&ids, false).unwrap(), "{text:?}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn half_characters_wait_and_end_as_replacement_characters() {
    let tokenizer = sentencepiece();
    let ids: Vec<u32> = "😀".bytes().map(|byte| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap()).collect();
    let mut stream = tokenizer.stream(false);
    for &id in &ids[..3] {
        assert_eq!(stream.push(id).unwrap(), None);
    }
    assert_eq!(stream.push(ids[3]).unwrap().as_deref(), Some("😀"));
    assert_eq!(stream.push(ids[0]).unwrap(), None);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    // Bytes that never become a character do not wait for ever.
    let mut stream = tokenizer.stream(false);
    let out: Vec<String> = (0..40).filter_map(|_| stream.push(ids[1]).unwrap()).collect();
    assert!(!out.is_empty());
}

#[test]
fn missing_and_malformed_files_are_errors() {
    let folder = variant("llama3", &[("tokenizer.json", "{}")]);
    let files = ocelli_formats::ModelFiles::open(folder.path()).unwrap();
    let error = Tokenizer::load(&files).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json is not a usable tokenizer: "), "{error}");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::load(&files).unwrap_err();
    assert!(matches!(&error, Error::TokenizerClass { class, .. } if class == "TokenizersBackend"), "{error}");
    assert!(error.hint().unwrap().contains("save_pretrained"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_ids_stream_like_they_decode(ids in proptest::collection::vec(0..600_u32, 0..40), skip in any::<bool>()) {
        TOKENIZER.with(|tokenizer| {
            prop_assert_eq!(streamed(tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
            Ok(())
        })?;
    }

    #[test]
    fn any_text_survives(text in any::<String>()) {
        TOKENIZER.with(|tokenizer| {
            let ids = tokenizer.encode_literal(&text).unwrap();
            prop_assert_eq!(streamed(tokenizer, &ids, false), text);
            Ok(())
        })?;
    }

    #[test]
    fn damaged_tokenizers_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut json = SENTENCEPIECE.to_vec();
        for (at, byte) in damage {
            let at = at.index(json.len());
            json[at] = byte;
        }
        if end.index(4) == 0 {
            json.truncate(end.index(json.len()));
        }
        if let Ok(tokenizer) = Tokenizer::parse(&json, "damaged") {
            let _ = tokenizer.encode("a b 😀", true).and_then(|ids| tokenizer.decode(&ids, false));
        }
    }

    #[test]
    fn any_template_never_panics(pieces in proptest::collection::vec(0..PIECES.len(), 0..12), text in any::<String>()) {
        let source: String = pieces.iter().map(|&piece| PIECES[piece]).chain([text.as_str()]).collect();
        if let Ok(template) = ChatTemplate::parse(&source, "any", [("bos_token", "<s>")]) {
            let messages = [Message::text("user", text)];
            let _ = template.render(&messages, ContentForm::Text, "<image>", &ChatOptions::answer());
            let _ = template.content_form(true);
        }
    }
}

thread_local! {
    static TOKENIZER: Tokenizer = processor(family("idefics3")).tokenizer().clone();
}

const PIECES: [&str; 24] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "for m in messages",
    "endfor",
    "if m",
    "endif",
    "m.content",
    "[0]",
    "(",
    ")",
    "|",
    "tojson",
    "-",
    "%}x{%",
    "generation",
    "endgeneration",
    "range(9)",
    "raise_exception('x')",
    "strftime_now('%Y')",
    ".",
];

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

/// A tokenizer in the style of Llama 2: a space before the text, spaces as U+2581, unknown characters as bytes.
fn sentencepiece() -> Tokenizer {
    Tokenizer::parse(SENTENCEPIECE, "sentencepiece").unwrap()
}

static SENTENCEPIECE: &[u8] = include_bytes!("../fixtures/sentencepiece.json");
