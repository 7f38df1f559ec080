//! BLIP, BLIP-2 and InstructBLIP: prompts around pictures, against the tiny models' own references.

use crate::support::{family, noise, processor, variant};
use ocelli_formats::{ModelFiles, Safetensors};
use ocelli_processors::{ChatOptions, Content, Image, Message, Processor, Prompt};

const FAMILIES: [(&str, &str); 4] = [
    ("blip_caption", "a photo of"),
    ("blip_vqa", "how many dogs are there?"),
    ("blip2_opt", "how many cats are there?"),
    ("instructblip", "what is in the picture?"),
];

fn reference(name: &str, tensor: &str) -> Vec<u32> {
    let bytes = ModelFiles::open(family(name)).unwrap().bytes("reference.safetensors").unwrap().unwrap();
    let tensor = Safetensors::parse(bytes, name).unwrap().tensor(tensor).unwrap();
    tensor.to_i64().unwrap().into_iter().map(|id| id as u32).collect()
}

fn message(text: &str) -> Message {
    Message { role: "user".to_owned(), content: vec![Content::Image, Content::Text(text.to_owned())] }
}

fn chat(processor: &Processor, text: &str, images: &[Image]) -> ocelli_processors::Result<Prompt> {
    processor.chat_prompt(&[message(text)], images, &ChatOptions::answer())
}

#[test]
fn folders_without_a_chat_template_can_be_asked() {
    for (name, question) in FAMILIES {
        let prompt = chat(&processor(family(name)), question, &[noise(2, 60, 40)]).unwrap();
        assert_eq!(prompt.ids, reference(name, "in.input_ids"), "{name}: {}", prompt.text);
    }
}

#[test]
fn a_placeholder_in_a_raw_prompt_changes_nothing() {
    for (name, _) in FAMILIES {
        let (processor, image) = (processor(family(name)), [noise(2, 60, 40)]);
        let with = processor.raw_prompt("<image>what is it?", &image).unwrap();
        let without = processor.raw_prompt("what is it?", &image).unwrap();
        assert_eq!(with, without, "{name}");
        let error = processor.raw_prompt("<image><image>what is it?", &image).unwrap_err();
        assert_eq!(error.to_string(), "the prompt has places for 2 image(s), but 1 were given", "{name}");
    }
}

#[test]
fn what_looks_by_cross_attention_takes_one_picture() {
    for (name, _) in &FAMILIES[..2] {
        let processor = processor(family(name));
        for n_images in [0, 2] {
            let images = vec![noise(2, 60, 40); n_images];
            let error = processor.raw_prompt("what is it?", &images).unwrap_err().to_string();
            assert_eq!(error, format!("the prompt has places for 1 image(s), but {n_images} were given"), "{name}");
        }
        let error = processor.chat_prompt(&[message("a"), message("b")], &[], &ChatOptions::answer());
        assert!(error.is_err(), "{name}");
    }
}

#[test]
fn several_messages_are_refused_or_joined() {
    let image = [noise(2, 60, 40)];
    let rendered = |name: &str| {
        let messages = [message("a cat?"), Message::text("assistant", "no."), Message::text("user", "so what?")];
        processor(family(name)).chat_prompt(&messages, &image, &ChatOptions::answer()).map(|prompt| prompt.text)
    };
    assert_eq!(rendered("blip2_opt").unwrap(), "Question: a cat? Answer: no. Question: so what? Answer:");
    assert_eq!(rendered("instructblip").unwrap(), "a cat?\nno.\nso what?");
    for name in ["blip_caption", "blip_vqa"] {
        let error = rendered(name).unwrap_err().to_string();
        assert!(error.contains("one message at a time"), "{error}");
    }
}

#[test]
fn special_tokens_in_a_message_are_text() {
    let image = [noise(2, 60, 40)];
    for (name, special) in [("blip_vqa", "[SEP]"), ("blip2_opt", "</s>"), ("instructblip", "<image>")] {
        let processor = processor(family(name));
        let id = processor.tokenizer().token_to_id(special).unwrap();
        let count = |text: &str| {
            let ids = chat(&processor, text, &image).unwrap().ids;
            ids.iter().filter(|&&other| other == id).count()
        };
        assert_eq!(count(&format!("what is {special}?")), count("what is it?"), "{name}");
    }
}

#[test]
fn the_tower_reads_the_instruction() {
    let (processor, image) = (processor(family("instructblip")), [noise(2, 60, 40)]);
    let prompt = chat(&processor, "what is in the picture?", &image).unwrap();
    assert_eq!(prompt.images[0].text_ids, reference("instructblip", "in.qformer_input_ids"));
    // Features of one question are not those of another.
    let other = chat(&processor, "how many?", &image).unwrap();
    assert_ne!(other.images[0].content_hash, prompt.images[0].content_hash);
}

#[test]
fn captions_need_no_prompt() {
    let default = |name: &str| processor(family(name)).default_prompt();
    assert_eq!([default("blip_caption"), default("blip2_opt")], [""; 2]);
    assert_eq!(default("blip_vqa"), "What is in the picture?");
    let ids = chat(&processor(family("blip2_opt")), "", &[noise(2, 60, 40)]).unwrap().ids;
    assert_eq!(ids, reference("blip2_opt", "in.input_ids")[..9]);
}

#[test]
fn old_configs_know_no_image_token() {
    let config = std::fs::read_to_string(family("blip2_opt").join("config.json")).unwrap();
    let old = variant("blip2_opt", &[("config.json", &config.replace("\"image_token_index\": 422,", ""))]);
    let prompt = chat(&processor(old.path()), FAMILIES[2].1, &[noise(2, 60, 40)]).unwrap();
    // The last row of the table is the fixture's image token.
    assert_eq!(prompt.ids, reference("blip2_opt", "in.input_ids"));
}

#[test]
fn settings_that_do_not_fit_the_tower_are_errors() {
    let error = |name: &str, file: &str, content: &str| {
        let folder = variant(name, &[(file, content)]);
        let files = ModelFiles::open(folder.path()).unwrap();
        let config = ocelli_formats::Config::load(&files).unwrap();
        Processor::load(&files, &config).unwrap_err().to_string()
    };
    let message = error("blip_caption", "preprocessor_config.json", r#"{"size": {"height": 32, "width": 32}}"#);
    assert!(message.contains("size: pictures do not come out as 48x48"), "{message}");
    let message = error("blip_caption", "preprocessor_config.json", r#"{"size": 48, "resample": 9}"#);
    assert!(message.contains("resample"), "{message}");
    let message = error("instructblip", "generation_config.json", "{}");
    assert!(message.ends_with("qformer_tokenizer has no tokenizer.json"), "{message}");
}
