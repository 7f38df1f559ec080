//! Videos: where frames come from, which of them are looked at, and what can be wrong with them.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::gif::GifEncoder;
use image::{Delay, Frame, RgbaImage};
use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{
    ChatOptions, Content, Error, ImageLimits, Message, Processor, Video, VideoInfo, VideoOptions, VideoSource, Visuals,
    is_animated,
};
use serde_json::json;

use crate::support::{family, processor, variant};

/// A GIF of one-coloured frames that last so many milliseconds each.
fn gif(delays: &[u32], (width, height): (u32, u32)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for (number, &delay) in delays.iter().enumerate() {
        let grey = (number * 20 % 256) as u8;
        let pixels = RgbaImage::from_pixel(width, height, image::Rgba([grey, grey, grey, 255]));
        encoder.encode_frame(Frame::from_parts(pixels, 0, 0, Delay::from_numer_denom_ms(delay, 1))).unwrap();
    }
    drop(encoder);
    bytes
}

fn png(grey: u8, (width, height): (u32, u32)) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let pixels = image::RgbImage::from_pixel(width, height, image::Rgb([grey; 3]));
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn source(bytes: Vec<u8>) -> VideoSource {
    VideoSource::animation(bytes, &ImageLimits::default()).unwrap()
}

fn read(processor: &Processor, source: &VideoSource, options: &VideoOptions) -> Video {
    processor.read_video(source, options).unwrap()
}

fn sampled(name: &str, frames: usize, fps: Option<f64>, options: VideoOptions) -> Vec<usize> {
    let processor = processor(family(name));
    let videos = processor.image_processor().unwrap().videos().unwrap();
    videos.sample(&VideoInfo { frames, fps }, &options)
}

#[test]
fn animations_tell_how_long_they_take() {
    let source = source(gif(&[100, 200, 300], (8, 6)));
    assert_eq!(source.info().frames, 3);
    assert!((source.info().duration().unwrap() - 0.6).abs() < 1e-9);
    let limits = ImageLimits::default();
    assert!(is_animated(&gif(&[100, 100], (8, 6)), &limits));
    assert!(!is_animated(&gif(&[100], (8, 6)), &limits) && !is_animated(&png(1, (2, 2)), &limits));
    assert!(!is_animated(b"GIF89a", &limits) && !is_animated(b"", &limits));
}

/// Of these folders only the first frame can be read: whoever looks at another one fails.
#[test]
fn a_video_that_no_prompt_can_hold_is_refused_after_its_first_frame() {
    for name in ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"] {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..8 {
            let bytes = if number == 0 { png(9, (100, 60)) } else { b"no picture".to_vec() };
            std::fs::write(folder.path().join(format!("{number}.png")), bytes).unwrap();
        }
        let source = VideoSource::open(folder.path(), &ImageLimits::default()).unwrap();
        let mut processor = processor(family(name));
        let options = VideoOptions::default();
        let error = processor.read_video(&source, &options).unwrap_err();
        assert!(matches!(error, Error::Frame { .. }), "{name}: {error}");
        processor.set_context_length(16);
        let error = processor.read_video(&source, &options).unwrap_err();
        let Error::VideoTokens { frames: 8, tokens, context_length: 16 } = error else { panic!("{name}: {error}") };
        assert!(error.hint().unwrap().contains("--max-frames or --fps"), "{name}");
        // As many as the prompt would have had.
        std::fs::remove_dir_all(folder.path()).unwrap();
        std::fs::create_dir(folder.path()).unwrap();
        (0..8)
            .for_each(|number| std::fs::write(folder.path().join(format!("{number}.png")), png(9, (100, 60))).unwrap());
        processor.set_context_length(tokens);
        assert!(matches!(processor.read_video(&source, &options), Err(Error::VideoTokens { .. })), "{name}");
        processor.set_context_length(tokens + 1);
        let video = processor.read_video(&source, &options).unwrap();
        let videos = processor.image_processor().unwrap().videos().unwrap();
        assert_eq!(videos.prepare(&video).unwrap().0.vision_tokens, tokens, "{name}");
    }
}

#[test]
fn a_still_picture_is_a_video_of_one_frame() {
    for name in ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"] {
        let processor = processor(family(name));
        for bytes in [png(9, (100, 60)), gif(&[0], (100, 60))] {
            let video = read(&processor, &source(bytes), &VideoOptions::default());
            assert_eq!((video.frames.len(), video.source_size), (1, (100, 60)), "{name}");
            let placeholder = processor.image_processor().unwrap().videos().unwrap().placeholder().to_owned();
            let shown = Visuals { images: &[], videos: std::slice::from_ref(&video) };
            let prompt = processor.raw_prompt(&placeholder, shown).unwrap();
            assert_eq!((prompt.images.len(), prompt.images[0].frames), (1, 1), "{name}");
        }
    }
}

/// Of `sample_frames` of the reference.
#[test]
fn frames_are_those_of_the_reference() {
    let all = VideoOptions::default();
    let at = |fps| VideoOptions { fps: Some(fps), ..all };
    let most = |frames| VideoOptions { max_frames: Some(frames), ..all };
    assert_eq!(sampled("qwen2_vl", 25, Some(10.0), at(3.0)), [0, 4, 8, 12, 16, 20]);
    assert_eq!(sampled("qwen2_vl", 10, Some(30.0), all), [0, 2, 5, 7], "4 at least");
    assert_eq!(sampled("qwen2_vl", 3, Some(30.0), all), [0, 1]);
    assert_eq!(sampled("qwen2_vl", 1, Some(30.0), all), [0]);
    assert_eq!(sampled("qwen2_vl", 300, Some(30.0), most(7)), [0, 50, 100, 150, 200, 250]);
    assert_eq!(sampled("qwen2_vl", 300, Some(30.0), most(1)), [0]);
    assert_eq!(sampled("qwen3_vl", 25, Some(10.0), at(3.0)), [0, 4, 8, 12, 16, 20, 24]);
    assert_eq!(sampled("qwen3_vl", 10, Some(30.0), all), [0, 3, 6, 9]);
    assert_eq!(sampled("qwen3_vl", 300, Some(30.0), most(3)), [0, 150, 299]);
    assert_eq!(sampled("smolvlm", 25, Some(10.0), at(3.0)), [0, 3, 6, 10, 13, 17, 20, 24]);
    assert_eq!(
        sampled("smolvlm", 2400, Some(24.0), most(3)),
        [24, 1200, 2376],
        "without the first and the last second"
    );
    assert_eq!(sampled("smolvlm", 10, Some(30.0), all), [0]);
    for name in ["qwen2_vl", "qwen3_vl", "smolvlm"] {
        assert_eq!(sampled(name, 5, None, all), [0, 1, 2, 3, 4], "{name}: somebody has chosen already");
        assert_eq!(sampled(name, 5, None, most(2)), [0, 4], "{name}");
    }
}

#[test]
fn every_choice_is_ascending_and_within_the_video() {
    for name in ["qwen2_vl", "qwen3_vl", "smolvlm"] {
        let processor = processor(family(name));
        let videos = processor.image_processor().unwrap().videos().unwrap();
        for frames in (1..40).chain([999, 100_000]) {
            for fps in [None, Some(1e-9), Some(0.3), Some(29.97), Some(1e9)] {
                for (max_frames, rate) in [(None, None), (Some(1), Some(1e6)), (Some(5), Some(1e-6)), (Some(0), None)] {
                    let options = VideoOptions { fps: rate, max_frames, ..VideoOptions::default() };
                    let chosen = videos.sample(&VideoInfo { frames, fps }, &options);
                    let label = format!("{name} {frames} {fps:?} {options:?}: {chosen:?}");
                    assert!(!chosen.is_empty() && chosen.is_sorted_by(|a, b| a < b), "{label}");
                    assert!(chosen.iter().all(|&number| number < frames), "{label}");
                    assert!(chosen.len() <= max_frames.unwrap_or(768).max(1), "{label}");
                }
            }
        }
    }
}

#[test]
fn a_folder_is_a_video_of_its_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for (name, grey) in [("f1.png", 1), ("f10.png", 10), ("f2.png", 2), ("._f0.png", 0)] {
        std::fs::write(folder.path().join(name), png(grey, (56, 56))).unwrap();
    }
    std::fs::write(folder.path().join("notes.txt"), "none").unwrap();
    let source = VideoSource::open(folder.path(), &ImageLimits::default()).unwrap();
    assert_eq!((source.info().frames, source.info().fps), (3, None));
    let processor = processor(family("qwen2_vl"));
    let video = read(&processor, &source, &VideoOptions { fps: Some(4.0), ..VideoOptions::default() });
    let greys: Vec<u8> = video.frames.iter().map(|frame| frame.pixels[0]).collect();
    assert_eq!((greys, video.seconds(2)), (vec![1, 2, 10], 0.5));

    std::fs::write(folder.path().join("f3.png"), png(3, (57, 56))).unwrap();
    let open = || VideoSource::open(folder.path(), &ImageLimits::default()).unwrap();
    let error = processor.read_video(&open(), &VideoOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "frame 3 is 57x56 pixels, the first one 56x56");
    std::fs::write(folder.path().join("f3.png"), "text").unwrap();
    let error = processor.read_video(&open(), &VideoOptions::default()).unwrap_err().to_string();
    assert!(error.starts_with("frame ") && error.contains("f3.png: not an image"), "{error}");
}

#[test]
fn what_holds_no_frames_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let limits = ImageLimits::default();
    let open = |path: &Path| VideoSource::open(path, &limits).unwrap_err();
    assert!(matches!(open(folder.path()), Error::NoFrames));
    assert_eq!(open(&folder.path().join("gone.gif")).to_string(), "no such file");
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name)
    };
    assert!(matches!(open(&write("empty.gif", b"")), Error::NoFrames));
    let whole = gif(&[100; 9], (64, 64));
    for length in 13..whole.len() - 1 {
        // A part of a GIF gives fewer frames or an error, and never a panic.
        let _ = VideoSource::animation(whole[..length].to_vec(), &limits);
    }
    let small = ImageLimits { max_pixels: 100, ..limits };
    let error = VideoSource::animation(whole.clone(), &small).unwrap_err();
    assert!(matches!(error, Error::ImageTooLarge { width: 64, height: 64, .. }));
    let small = ImageLimits { max_bytes: 100, ..limits };
    assert!(matches!(VideoSource::animation(whole.clone(), &small), Err(Error::ImageFileTooLarge { .. })));
    assert!(matches!(VideoSource::open(&write("whole.gif", &whole), &small), Err(Error::ImageFileTooLarge { .. })));
}

#[test]
fn frames_that_were_not_brought_to_size_are_refused() {
    for name in ["qwen2_vl", "qwen3_vl", "smolvlm"] {
        let processor = processor(family(name));
        let videos = processor.image_processor().unwrap().videos().unwrap();
        let good = read(&processor, &source(gif(&[100; 4], (100, 60))), &VideoOptions::default());
        assert!(videos.prepare(&good).is_ok());
        let none = Video { frames: Vec::new(), ..good.clone() };
        assert!(matches!(videos.prepare(&none), Err(Error::NoFrames)), "{name}");
        let mut odd = good.clone();
        let first = &mut odd.frames[0];
        *first = ocelli_processors::Image::new(3, 5, vec![0; 45]);
        assert!(videos.prepare(&odd).is_err(), "{name}");
        odd.frames.truncate(1);
        assert!(matches!(videos.prepare(&odd), Err(Error::FrameSize { .. })), "{name}");
    }
}

#[test]
fn a_chat_has_videos_where_its_messages_have_them() {
    for (name, image) in [("qwen2_5_vl", QWEN_IMAGE), ("qwen3_vl", QWEN_IMAGE), ("smolvlm", "<image>")] {
        // A template that knows nothing of videos.
        let template = "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}IMAGE\
            {% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}";
        let folder = variant(name, &[("chat_template.jinja", &template.replace("IMAGE", image))]);
        let processor = processor(folder.path());
        let video = read(&processor, &source(gif(&[100; 4], (100, 60))), &VideoOptions::default());
        let image = ocelli_processors::Image::new(90, 60, vec![7; 90 * 60 * 3]);
        let content = vec![Content::Video, Content::Image, Content::Text("what? <video> <|video_pad|>".into())];
        let messages = [Message { role: "user".into(), content }];
        let shown = Visuals { images: std::slice::from_ref(&image), videos: std::slice::from_ref(&video) };
        let prompt = processor.chat_prompt(&messages, shown, &ChatOptions::answer()).unwrap();
        let frames: Vec<usize> = prompt.images.iter().map(|image| image.frames).collect();
        assert_eq!(frames, [video.frames.len(), 1], "{name}: {}", prompt.text);
        let error = processor.chat_prompt(&messages, std::slice::from_ref(&image), &ChatOptions::answer()).unwrap_err();
        assert_eq!(error.to_string(), "the prompt has places for 1 video(s), but 0 were given");
    }
}

#[test]
fn families_without_videos_say_which_have_them() {
    let processor = processor(family("llava"));
    let error = processor.read_video(&source(gif(&[100; 4], (8, 8))), &VideoOptions::default()).unwrap_err();
    assert!(error.to_string().ends_with("(llava) takes no videos"), "{error}");
    assert_eq!(error.hint().unwrap(), "these do: qwen2_5_vl, qwen2_vl, qwen3_vl, smolvlm");
    let message = Message { role: "user".into(), content: vec![Content::Video] };
    let error = processor.chat_prompt(&[message], &[], &ChatOptions::answer());
    assert!(matches!(error, Err(Error::NoVideos { .. } | Error::NoChatTemplate { .. })), "{error:?}");
    for name in ocelli_processors::video_families() {
        let processor = crate::support::processor(family(name));
        assert!(processor.has_videos(), "{name}");
    }
    let without = ["blip_caption", "blip2_opt", "deepseek_vl_v2", "fast_vlm", "idefics3", "llava", "moondream2"];
    assert!(without.into_iter().all(|name| !crate::support::processor(family(name)).has_videos()));
}

/// Settings of their own win, wherever they are.
#[test]
fn settings_have_three_places() {
    let rate = |folder: &tempfile::TempDir| {
        let processor = processor(folder.path());
        processor.image_processor().unwrap().videos().unwrap().fps()
    };
    let pictures = std::fs::read_to_string(family("smolvlm").join("preprocessor_config.json")).unwrap();
    let with = |more: serde_json::Value| {
        let mut settings: serde_json::Value = serde_json::from_str(&pictures).unwrap();
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let published = with(json!({"video_sampling": {"fps": 3, "max_frames": 2}})).to_string();
    assert_eq!(rate(&variant("smolvlm", &[("preprocessor_config.json", &published)])), 3.0);
    let own = with(json!({"video_sampling": {"fps": 4}})).to_string();
    let files = [("preprocessor_config.json", published.as_str()), ("video_preprocessor_config.json", &own)];
    assert_eq!(rate(&variant("smolvlm", &files)), 4.0);
    let saved = json!({"image_processor": with(json!({})), "video_processor": with(json!({"fps": 5}))}).to_string();
    let folder = variant("smolvlm", &[files[0], files[1], ("processor_config.json", &saved)]);
    assert_eq!(rate(&folder), 5.0);

    for (name, key, value) in
        [("smolvlm", "fps", json!(0)), ("qwen2_vl", "fps", json!(-1)), ("qwen3_vl", "max_frames", json!(0))]
    {
        let settings = std::fs::read_to_string(family(name).join("preprocessor_config.json")).unwrap();
        let mut settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
        settings[key] = value;
        let folder = variant(name, &[("video_preprocessor_config.json", &settings.to_string())]);
        let files = ModelFiles::open(folder.path()).unwrap();
        let error = Processor::load(&files, &Config::load(&files).unwrap()).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("video_preprocessor_config.json"), "{name}: {error}");
    }
}

/// transformers saves settings of videos beside every SmolVLM, of sizes that only its own defaults have.
#[test]
fn frames_of_other_sizes_than_the_tower_has_are_no_reason_to_refuse_pictures() {
    let settings = std::fs::read_to_string(family("smolvlm").join("preprocessor_config.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    settings["max_image_size"] = json!({"longest_edge": 364});
    let folder = variant("smolvlm", &[("video_preprocessor_config.json", &settings.to_string())]);
    let processor = processor(folder.path());
    assert!(processor.image_processor().unwrap().videos().is_none());
}

/// Files that only `ffmpeg` reads; skipped where there is none.
#[test]
fn other_files_go_through_ffmpeg() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("-a b'c.mp4");
    let made = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc=size=100x60:rate=10:duration=2.5", "-c:v", "mpeg4"])
        .arg(Path::new("file:").as_os_str().to_str().unwrap().to_owned() + path.to_str().unwrap())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("SKIP: there is no ffmpeg that makes MPEG-4 files");
        let text = folder.path().join("a.mp4");
        std::fs::write(&text, "no video").unwrap();
        let error = VideoSource::open(&text, &ImageLimits::default()).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("install ffmpeg")), "{error}");
        return;
    }
    let limits = ImageLimits::default();
    let source = VideoSource::open(&path, &limits).unwrap();
    assert_eq!(*source.info(), VideoInfo { frames: 25, fps: Some(10.0) });
    let processor = processor(family("qwen2_5_vl"));
    let options = VideoOptions { fps: Some(3.0), ..VideoOptions::default() };
    let video = read(&processor, &source, &options);
    assert_eq!((video.indices.clone(), video.source_size), (vec![0, 4, 8, 12, 16, 20], (100, 60)));
    assert_eq!((video.frames[0].width, video.frames[0].height), (112, 56));
    assert!(video.frames.windows(2).all(|pair| pair[0] != pair[1]), "the frames move");

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = VideoSource::open(&path, &limits).unwrap_err().to_string();
    assert_eq!(error, "the video cannot be decoded: moov atom not found");
    let wav = family("whisper").join("missing.wav");
    assert_eq!(VideoSource::open(&wav, &limits).unwrap_err().to_string(), "no such file");
    let small = ImageLimits { max_pixels: 100, ..limits };
    std::fs::write(&path, &bytes).unwrap();
    let source = VideoSource::open(&path, &small).unwrap();
    assert!(matches!(processor.read_video(&source, &options), Err(Error::ImageTooLarge { .. })));
}

const QWEN_IMAGE: &str = "<|vision_start|><|image_pad|><|vision_end|>";
