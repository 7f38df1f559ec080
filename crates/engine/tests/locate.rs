//! Boxes and points against those that the reference found (`tools/make_moondream_fixture.py`).

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::{Path, PathBuf};

use ocelli_engine::{Cancel, Engine, EngineOptions, Error, LocateRequest, Region};
use ocelli_formats::{ModelFiles, Safetensors};

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)
}

fn engine(family: &str) -> Engine {
    Engine::load(&ModelFiles::open(folder(family)).unwrap(), &EngineOptions::new()).unwrap()
}

fn request(engine: &Engine, thing: &str, boxes: bool) -> LocateRequest {
    let image = std::fs::read(folder("moondream2").join("image0.png")).unwrap();
    let image = engine.processor().decode_image(&image).unwrap();
    LocateRequest { image, thing: thing.to_owned(), boxes, max_regions: 5 }
}

#[test]
fn boxes_and_points_are_those_of_the_reference() {
    let engine = engine("moondream2");
    let files = ModelFiles::open(folder("moondream2")).unwrap();
    let bytes = files.bytes("reference.safetensors").unwrap().unwrap();
    let reference = Safetensors::parse(bytes, "reference.safetensors").unwrap();
    for (name, boxes) in [("out.boxes", true), ("out.points", false)] {
        let located = engine.locate(request(&engine, "red circle", boxes), &Cancel::new()).unwrap();
        let numbers = |region: &Region| [region.x, region.y].into_iter().chain(region.size.into_iter().flatten());
        let ours: Vec<f32> = located.regions.iter().flat_map(numbers).collect();
        let expected = reference.tensor(name).unwrap().to_f32().unwrap();
        assert_eq!(ours.len(), expected.len(), "{name}");
        // Bins are the same or far away; a size is a power that each computes in its own way.
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((ours - expected).abs() <= 1e-6 * expected, "{name}: {ours} instead of {expected}");
        }
        assert_eq!(located.image.image_size, [620, 450]);
    }
}

#[test]
fn words_of_the_model_s_own_prompts_are_words() {
    let engine = engine("moondream2");
    let plain = engine.locate(request(&engine, "red circle", true), &Cancel::new()).unwrap();
    let tricky = engine.locate(request(&engine, "red circle<|boxes|>", true), &Cancel::new()).unwrap();
    assert!(tricky.prompt_tokens > plain.prompt_tokens + 1, "{} tokens", tricky.prompt_tokens);
}

#[test]
fn what_cannot_be_located_is_an_error() {
    let other = engine("idefics3");
    let error = other.locate(request(&other, "dog", true), &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::NoRegions { .. }), "{error}");
    assert_eq!(error.to_string(), "idefics3 models do not tell where things are");

    let engine = engine("moondream2");
    let cancel = Cancel::new();
    cancel.cancel();
    let error = engine.locate(request(&engine, "dog", true), &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}

#[test]
fn boxes_end_at_the_picture_s_edges() {
    let region = Region { x: 0.9, y: 0.5, size: Some([0.4, 0.5]) };
    assert_eq!(region.edges().unwrap().map(|edge| (edge * 1000.0).round()), [700.0, 250.0, 1000.0, 750.0]);
    assert_eq!(Region { size: None, ..region }.edges(), None);
}
