//! `ocelli detect` and `ocelli point`. What is found is checked in the engine's tests.

use crate::support::{Scratch, picture, repository};

fn fixture() -> String {
    repository("fixtures/moondream2").to_string_lossy().into_owned()
}

#[test]
fn boxes_are_lines_objects_or_drawn() {
    let (scratch, model) = (Scratch::new(), fixture());
    let image = repository("fixtures/moondream2/image0.png").to_string_lossy().into_owned();
    let detect = ["detect", &image, "red circle", "--model", &model, "--max", "2"];
    let ran = scratch.run(detect);
    let boxes: Vec<Vec<usize>> =
        ran.ok().lines().map(|line| line.split(' ').map(|edge| edge.parse().unwrap()).collect()).collect();
    assert_eq!(boxes.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4], "{ran:?}");

    let ran = scratch.run(detect.into_iter().chain(["--json", "--draw", "found.png"]));
    let object: serde_json::Value = serde_json::from_str(ran.ok()).unwrap();
    assert_eq!(object["boxes"].as_array().unwrap().len(), 2);
    assert_eq!(object["boxes"][0]["pixels"], serde_json::json!(boxes[0]));
    assert_eq!(object["thing"], "red circle");
    let drawn = std::fs::read(scratch.path().join("found.png")).unwrap();
    assert!(drawn.starts_with(b"\x89PNG") && drawn != std::fs::read(&image).unwrap());

    let point = ["point", &image, "red circle", "--model", &model, "--max", "1"];
    let ran = scratch.run(point.into_iter().chain(["--draw", "point.png"]));
    assert_eq!(ran.ok().split_whitespace().count(), 2, "{ran:?}");
    let pointed = std::fs::read(scratch.path().join("point.png")).unwrap();
    assert!(pointed.starts_with(b"\x89PNG") && pointed != drawn);
}

#[test]
fn a_drawing_replaces_no_picture_that_was_looked_at() {
    let (scratch, model) = (Scratch::new(), fixture());
    scratch.write("a.png", &picture());
    let ran = scratch.run(["detect", "a.png", "dog", "--model", &model, "--draw", "./a.png"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("./a.png is the picture itself"), "{ran:?}");
    assert_eq!(std::fs::read(scratch.path().join("a.png")).unwrap(), picture());
    let ran = scratch.run(["detect", "a.png", "dog", "--model", &model, "--draw", "b.jpg"]);
    assert!(ran.code == 2 && ran.stderr.contains("must end in .png"), "{ran:?}");
    let ran = scratch.run(["detect", "a.png", "dog", "--model", &model, "--max", "1", "--draw", "no/where.png"]);
    assert!(ran.code != 0 && ran.stdout.lines().count() == 1, "what was found is shown: {ran:?}");
}

#[test]
fn a_model_of_words_is_refused() {
    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    let ran = scratch.run(["detect", "a.png", "dog"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stderr.contains("models do not tell where things are"), "{ran:?}");
}
