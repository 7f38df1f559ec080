//! How closely pictures are looked at: what `Detail::AtMost` promises, of every family.

use ocelli_formats::ModelFiles;
use ocelli_processors::{Detail, Error, ImageProcessor, Processor, VideoOptions, VideoSource, families};
use serde_json::json;

use crate::support::{family, noise, processor, variant};

/// One folder of each family, and the least a picture is there.
const FAMILIES: [(&str, usize); 13] = [
    ("blip_caption", 10),
    ("blip2_opt", 8),
    ("deepseek_vl_v2", 13),
    ("fast_vlm", 4),
    ("idefics3", 1),
    ("instructblip", 8),
    ("llava", 9),
    ("moondream2", 729),
    ("qwen2_5_vl", 4),
    ("qwen2_vl", 4),
    ("qwen3_vl", 4),
    ("smolvlm", 1),
    ("deepseek_vl_v2_tiny", 13),
];

fn images(name: &str) -> Box<dyn ImageProcessor> {
    processor(family(name)).into_image_processor().unwrap()
}

#[test]
fn no_picture_has_more_tokens_than_it_may() {
    for (name, fewest) in FAMILIES {
        let images = images(name);
        assert_eq!(images.fewest_tokens(), fewest, "{name}");
        for (seed, (width, height)) in [(150, 90), (50, 40), (30, 300), (224, 224), (7, 6)].into_iter().enumerate() {
            let image = noise(2 * seed as u32, width, height);
            let auto = images.prepare(&image).unwrap();
            for most in (0..12).map(|step| fewest + step * step) {
                let detail = Detail::AtMost(most);
                let prepared = images.prepare_with(&image, detail).unwrap();
                let what = format!("{name}: {width}x{height} in {most}");
                assert!((1..=most).contains(&prepared.vision_tokens), "{what}: {}", prepared.vision_tokens);
                assert_eq!(images.vision_tokens(width, height, detail), prepared.vision_tokens, "{what}");
                assert_eq!(prepared.pixel_values.len(), prepared.shape.iter().product::<usize>(), "{what}");
                let is_other = prepared.pixel_values != auto.pixel_values;
                assert_eq!(is_other, prepared.content_hash != auto.content_hash, "{what}");
                if most >= auto.vision_tokens {
                    assert_eq!(prepared, auto, "{what}");
                }
            }
        }
    }
    let tested = |model_type: &&str| {
        FAMILIES.iter().any(|(name, _)| {
            let config = ocelli_formats::Config::load(&ModelFiles::open(family(name)).unwrap()).unwrap();
            config.model_type() == *model_type
        })
    };
    // FastVLM under Apple's names has no folder of its own.
    assert_eq!(families().filter(|name| !tested(name)).collect::<Vec<_>>(), ["llava_qwen2"]);
}

#[test]
fn too_few_tokens_are_an_error_that_says_how_many_it_takes() {
    for (name, fewest) in FAMILIES {
        let processor = processor(family(name));
        let placeholder = processor.image_processor().unwrap().placeholder().to_owned();
        let ask = |most| processor.raw_prompt_with(&placeholder, &[noise(2, 60, 60)], Detail::AtMost(most)).map(drop);
        assert!(ask(fewest).is_ok(), "{name}: {:?}", ask(fewest));
        let error = ask(fewest - 1).unwrap_err();
        let expected =
            format!("this model takes at least {fewest} token(s) for a picture, and {} were allowed", fewest - 1);
        assert_eq!(error.to_string(), expected, "{name}");
        assert!(error.hint().unwrap().contains(&format!("--image-tokens {fewest} or more")), "{name}");
    }
}

#[test]
fn frames_have_no_more_tokens_than_they_may() {
    for name in ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"] {
        let processor = processor(family(name));
        let bytes = std::fs::read(family(&format!("{name}_video")).join("video0.gif")).unwrap();
        let source = VideoSource::animation(bytes, processor.image_limits()).unwrap();
        let fewest = processor.image_processor().unwrap().fewest_tokens();
        let read = |most| {
            let options = VideoOptions { detail: Detail::AtMost(most), ..VideoOptions::default() };
            processor.read_video(&source, &options)
        };
        for most in fewest..fewest + 4 {
            let video = read(most).unwrap();
            let (prepared, words) = processor.image_processor().unwrap().videos().unwrap().prepare(&video).unwrap();
            assert!(prepared.vision_tokens <= most * video.frames.len(), "{name}: {most}");
            let token = processor.image_processor().unwrap().videos().unwrap().video_token().to_owned();
            assert_eq!(words.matches(&token).count(), prepared.vision_tokens, "{name}: {most}");
        }
        assert!(matches!(read(fewest - 1), Err(Error::TooFewTokens { .. })), "{name}");
    }
}

/// Idefics3: 4 tokens per tile of 64x64.
#[test]
fn below_a_tile_it_becomes_smaller_and_above_there_are_fewer() {
    let settings = |longest: usize| json!({"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": 64}});
    let of = |longest: usize| {
        let folder = variant("smolvlm", &[("preprocessor_config.json", &settings(longest).to_string())]);
        processor(folder.path()).into_image_processor().unwrap()
    };
    let (image, large) = (noise(4, 150, 90), of(256));
    let at_most = |most| large.prepare_with(&image, Detail::AtMost(most)).unwrap();
    let small = at_most(3);
    assert_eq!((small.shape, small.vision_tokens, small.resized_to), ([1, 3, 32, 32], 1, (32, 32)));
    assert_eq!(large.expand(&small), "<fake_token_around_image><global-img><image><fake_token_around_image>");
    assert_eq!(at_most(4), large.prepare_with(&image, Detail::Low).unwrap());
    // 4 x 3 tiles and the whole picture once more; 3 x 2; 2 x 2.
    for (most, tokens, longest) in [(52, 52, 256), (51, 28, 192), (28, 28, 192), (27, 20, 128), (20, 20, 128)] {
        let (prepared, same) = (at_most(most), of(longest).prepare(&image).unwrap());
        assert_eq!(prepared.vision_tokens, tokens, "{most}");
        assert_eq!((prepared.pixel_values, prepared.grid), (same.pixel_values, same.grid), "{most}");
    }
    assert_eq!(at_most(19), at_most(4));
}

/// Of more than two pictures DeepSeek-VL2 cuts none, whatever they may have.
#[test]
fn among_several_pictures_each_has_its_limit() {
    let processor: Processor = processor(family("deepseek_vl_v2"));
    let images = [1, 2, 3].map(|seed| noise(seed, 150, 90));
    let prompt = |n: usize, most| {
        let prompt = processor.raw_prompt_with(&"<image>".repeat(n), &images[..n], Detail::AtMost(most)).unwrap();
        prompt.images.iter().map(|image| image.vision_tokens).collect::<Vec<_>>()
    };
    assert_eq!(prompt(2, 1000).len(), 2);
    assert!(prompt(2, 1000)[0] > prompt(3, 1000)[0]);
    assert_eq!(prompt(3, 1000), [13, 13, 13]);
}
