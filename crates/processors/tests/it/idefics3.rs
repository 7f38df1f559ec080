//! Idefics3 and SmolVLM: pixels and prompts against transformers (`tools/make_idefics3_fixture.py`) and against the
//! tiny models' own references.

use crate::support::{crc32, family, fixture, ids, integer, noise, pair, processor, variant};
use ocelli_formats::{ModelFiles, Safetensors};
use ocelli_processors::{Detail, Image, PreparedImage, Prompt};
use serde_json::Value;

#[test]
fn pixel_values_equal_the_reference_for_every_setting_and_shape() {
    for case in fixture("idefics3.json")["cases"].as_array().unwrap() {
        let folder = variant("idefics3", &[("preprocessor_config.json", &case["config"].to_string())]);
        let processor = processor(folder.path());
        let (width, height) = pair(&case["size"]);
        let image = noise(integer(&case["seed"]) as u32, width, height);
        let prepared = processor.image_processor().unwrap().prepare(&image).unwrap();
        let what = format!("{width}x{height} with {}", case["config"]);
        assert_eq!(prepared.grid, [1, integer(&case["rows"]), integer(&case["cols"])], "{what}");
        let shape: Vec<usize> = case["shape"].as_array().unwrap().iter().map(integer).collect();
        assert_eq!(prepared.shape[..], shape[..], "{what}");
        for sample in case["samples"].as_array().unwrap() {
            let expected = sample[1].as_f64().unwrap() as f32;
            assert_eq!(prepared.pixel_values[integer(&sample[0])], expected, "{what}: sample {sample}");
        }
        assert_eq!(u64::from(checksum(&prepared)), case["crc32"].as_u64().unwrap(), "{what}");
        assert_eq!(prepared.image_size, (width, height));
        let tokens = processor.image_processor().unwrap().vision_tokens(width, height, Detail::Auto);
        assert_eq!(tokens, prepared.vision_tokens, "{what}");
    }
}

#[test]
fn several_pictures_in_one_prompt_equal_the_reference() {
    let prompt = &fixture("idefics3.json")["prompt"];
    let first_seed = integer(&prompt["first_seed"]) as u32;
    let sizes = prompt["sizes"].as_array().unwrap().iter().map(pair);
    let images: Vec<Image> =
        (first_seed..).zip(sizes).map(|(seed, (width, height))| noise(seed, width, height)).collect();
    let settings = |longest: usize| {
        format!(r#"{{"size": {{"longest_edge": {longest}}}, "max_image_size": {{"longest_edge": 64}}}}"#)
    };
    for (name, longest) in [("split", 128), ("single", 64)] {
        let folder = variant("idefics3", &[("preprocessor_config.json", &settings(longest))]);
        let made = processor(folder.path()).raw_prompt(prompt["text"].as_str().unwrap(), &images).unwrap();
        assert_eq!(made.ids, ids(&prompt[name]["ids"]), "{name}");
        if name == "single" {
            let bytes = made.images.iter().flat_map(|image| &image.pixel_values).flat_map(|value| value.to_le_bytes());
            assert_eq!(u64::from(crc32(bytes)), prompt[name]["crc32"].as_u64().unwrap());
        }
    }
}

#[test]
fn the_tiny_models_references_are_reproduced() {
    for name in ["idefics3", "smolvlm"] {
        let processor = processor(family(name));
        let image = processor.decode_image(&std::fs::read(family(name).join("image0.png")).unwrap()).unwrap();
        let reference = reference(name);
        let expanded = reference["prompt"].as_str().unwrap();
        let collapsed = "<|im_start|>User:<image>what is in the picture?<end_of_utterance>\nAssistant:";
        let tensors = tensors(name);
        let expected_ids = tensors.tensor("in.input_ids").unwrap().to_i64().unwrap();
        let expected_pixels = tensors.tensor("in.pixel_values").unwrap().to_f32().unwrap();
        for text in [collapsed, expanded] {
            let prompt = processor.raw_prompt(text, std::slice::from_ref(&image)).unwrap();
            assert_eq!(prompt.text, expanded);
            assert_eq!(prompt.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), expected_ids, "{name}");
            assert_eq!(prompt.images[0].pixel_values, expected_pixels, "{name}");
            assert_eq!(prompt.images[0].grid, [1, 2, 2]);
            assert_eq!(prompt.images[0].vision_tokens, 20);
        }
    }
}

#[test]
fn text_models_references_are_reproduced() {
    for name in ["llama3", "qwen2"] {
        let prompt: Prompt =
            processor(family(name)).raw_prompt(reference(name)["prompt"].as_str().unwrap(), &[]).unwrap();
        let expected = tensors(name).tensor("in.input_ids").unwrap().to_i64().unwrap();
        assert_eq!(prompt.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn detail_chooses_between_tiles_and_one_view() {
    let processor = processor(family("smolvlm"));
    let processor = processor.image_processor().unwrap();
    let image = noise(4, 150, 90);
    let [auto, low, high] =
        [Detail::Auto, Detail::Low, Detail::High].map(|detail| processor.prepare_with(&image, detail).unwrap());
    assert_eq!((auto.shape[0], low.shape[0], high.shape[0]), (5, 1, 5));
    assert_eq!((low.grid, low.vision_tokens), ([1, 0, 0], 4));
    assert_eq!(auto, high);
    assert_ne!(low.content_hash, high.content_hash);
}

#[test]
fn a_picture_without_pixels_is_an_error() {
    let processor = processor(family("smolvlm"));
    let empty = Image::new(0, 5, Vec::new());
    let error = processor.image_processor().unwrap().prepare(&empty).unwrap_err();
    assert_eq!(error.to_string(), "the image is 0x5 pixels: it has no content");
}

#[test]
fn hashes_tell_pictures_and_settings_apart() {
    let prepare = |settings: &str, image: &Image| {
        let folder = variant("smolvlm", &[("preprocessor_config.json", settings)]);
        processor(folder.path()).image_processor().unwrap().prepare(image).unwrap().content_hash
    };
    let base = r#"{"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}"#;
    let image = noise(4, 30, 20);
    let mut other = image.clone();
    other.pixels[100] ^= 1;
    let turned = Image::new(20, 30, image.pixels.clone());
    let bicubic = base.replacen('{', r#"{"resample": 3, "#, 1);
    let hashes = [
        prepare(base, &image),
        prepare(base, &other),
        prepare(base, &turned),
        prepare(&bicubic, &image),
        prepare(&base.replace("128", "192"), &image),
    ];
    assert_eq!(hashes[0], prepare(base, &image.clone()));
    for (index, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..index].contains(hash), "{index}");
    }
}

#[test]
fn settings_may_be_nested_where_transformers_5_puts_them() {
    let nested = r#"{"image_processor": {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64},
        "resample": null, "do_pad": null}, "processor_class": "Idefics3Processor"}"#;
    let folder = variant("idefics3", &[("processor_config.json", nested)]);
    let prepared = processor(folder.path()).image_processor().unwrap().prepare(&noise(4, 150, 90)).unwrap();
    assert_eq!(prepared.shape[0], 1);
}

#[test]
fn unusable_settings_are_errors_that_name_file_and_key() {
    let message = |files: &[(&str, &str)]| {
        let folder = variant("idefics3", files);
        let files = ModelFiles::open(folder.path()).unwrap();
        let error = ocelli_processors::Processor::load(&files, &ocelli_formats::Config::load(&files).unwrap());
        error.unwrap_err().to_string()
    };
    let with = |settings: &str| message(&[("preprocessor_config.json", settings)]);
    assert!(with("[]").ends_with("preprocessor_config.json: (root): expected an object"));
    assert!(with(r#"{"size": {}}"#).ends_with("size: expected `longest_edge`, or `width` and `height`"));
    assert!(with(r#"{"resample": 9}"#).ends_with("resample: expected a filter number from 0 to 5, got 9"));
    assert!(with(r#"{"size": {"longest_edge": 0}}"#).contains("size.longest_edge: expected 1 to 8192, got 0"));
    assert!(with(r#"{"max_image_size": {"longest_edge": 8}}"#).contains("scale_factor"), "{}", with("{}"));
    assert!(with(r#"{"do_resize": 3}"#).contains("invalid type"));
    let tokenizer = std::fs::read_to_string(family("idefics3").join("tokenizer.json")).unwrap();
    let without = tokenizer.replace("<global-img>", "<other-img>");
    assert!(message(&[("tokenizer.json", &without)]).contains("has no token `<global-img>`"));
}

fn checksum(prepared: &PreparedImage) -> u32 {
    crc32(prepared.pixel_values.iter().flat_map(|value| value.to_le_bytes()))
}

fn reference(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(family(name).join("reference.json")).unwrap()).unwrap()
}

fn tensors(name: &str) -> Safetensors {
    let files = ModelFiles::open(family(name)).unwrap();
    Safetensors::parse(files.bytes("reference.safetensors").unwrap().unwrap(), name).unwrap()
}
