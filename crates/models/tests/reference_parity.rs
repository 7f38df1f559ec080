//! Every family's features and logits on the slow reference backend equal the reference implementation's, and the
//! loader names what does not fit.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::PathBuf;

use ocelli_backend::{Cancel, KvCache, Step, Tensor};
use ocelli_formats::{Checkpoint, Config, ModelFiles, Safetensors, TensorData};
use ocelli_models::{Model, PixelValues};
use ocelli_testkit::ReferenceBackend;

const FAMILIES: [&str; 5] = ["idefics3", "smolvlm", "llama3", "llava", "qwen2"];

struct Fixture {
    model: Box<dyn Model<ReferenceBackend>>,
    reference: Safetensors,
}

impl Fixture {
    fn open(family: &str) -> Self {
        let files = files(family);
        let (config, checkpoint) = (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap());
        let model = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).unwrap();
        let bytes = files.bytes("reference.safetensors").unwrap().unwrap();
        Self { model, reference: Safetensors::parse(bytes, family).unwrap() }
    }

    fn tensor(&self, name: &str) -> TensorData {
        self.reference.tensor(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    fn ids(&self) -> Vec<u32> {
        self.tensor("in.input_ids").to_i64().unwrap().into_iter().map(|id| id as u32).collect()
    }

    /// Embeddings of the prompt with the picture's features in place.
    fn embed(&self) -> Tensor<ReferenceBackend> {
        let ids = self.ids();
        let x = self.model.embed(&ids);
        let Some(image_token) = self.model.image_input().token_id() else { return x };
        let places: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == image_token).collect();
        self.model.join(&x, &places, &self.features())
    }

    fn features(&self) -> Tensor<ReferenceBackend> {
        let pixels = self.tensor("in.pixel_values");
        let shape = pixels.shape()[pixels.shape().len() - 4..].try_into().unwrap();
        let pixel_values = PixelValues { values: &pixels.to_f32().unwrap(), shape, grid: [1, 0, 0], text_ids: &[] };
        self.model.encode_image(pixel_values, &Cancel::new())
    }
}

fn files(family: &str) -> ModelFiles {
    ModelFiles::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)).unwrap()
}

/// Largest difference over largest expected magnitude.
fn difference(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    actual.iter().zip(expected).fold(0.0f32, |worst, (a, e)| worst.max((a - e).abs())) / largest
}

#[test]
fn image_features_equal_the_reference() {
    for family in ["idefics3", "smolvlm"] {
        let fixture = Fixture::open(family);
        let expected = fixture.tensor("out.image_features.0").to_f32().unwrap();
        let worst = difference(&fixture.features().to_vec(), &expected);
        assert!(worst < 2e-5, "{family}: image features differ by {worst}");
    }
}

#[test]
fn logits_equal_the_reference() {
    for family in FAMILIES {
        let fixture = Fixture::open(family);
        let mut kv = KvCache::new(&ReferenceBackend, fixture.model.kv_shape());
        let sequence = kv.start();
        let x = fixture.embed();
        let step: Step = kv.step(&[(sequence, x.rows())]);
        let logits = fixture.model.logits(&fixture.model.forward(&x, &step, &mut kv));
        let worst = difference(&logits.to_vec(), &fixture.tensor("out.logits").to_f32().unwrap());
        assert!(worst < 2e-5, "{family}: logits differ by {worst}");
    }
}

/// Spectrogram -> features -> logits at once and token by token.
#[test]
fn speech_equals_the_reference() {
    let Fixture { model, reference } = Fixture::open("whisper");
    let tensor = |name: &str| reference.tensor(name).unwrap();
    let mel = tensor("in.input_features");
    let shape = [1, 1, mel.shape()[1], mel.shape()[2]];
    let pixel_values = PixelValues { values: &mel.to_f32().unwrap(), shape, grid: [1; 3], text_ids: &[] };
    let features = model.encode_image(pixel_values, &Cancel::new());
    let expected = tensor("out.audio_features").to_f32().unwrap();
    let worst = difference(&features.to_vec()[..expected.len()], &expected);
    assert!(worst < 2e-5, "features differ by {worst}");

    let ids: Vec<u32> = tensor("in.input_ids").to_i64().unwrap().into_iter().map(|id| id as u32).collect();
    let mut kv = KvCache::new(&ReferenceBackend, model.kv_shape());
    for steps in [vec![ids.len()], vec![1; ids.len()]] {
        let sequence = kv.start();
        let (context, ids) = model.context(&ids, &[&features]);
        kv.set_context(sequence, context);
        let (mut logits, mut rest) = (Vec::new(), &ids[..]);
        for rows in steps {
            let step = kv.step(&[(sequence, rows)]);
            logits.extend(model.logits(&model.forward(&model.embed(&rest[..rows]), &step, &mut kv)).to_vec());
            rest = &rest[rows..];
        }
        let worst = difference(&logits, &tensor("out.logits").to_f32().unwrap());
        assert!(worst < 2e-5, "logits differ by {worst}");
    }
}

/// Checkpoints that MLX quantised, against the logits that MLX computed from them.
#[test]
fn codes_give_the_logits_of_mlx() {
    for (family, folder, tolerance) in [
        ("idefics3", "idefics3_mlx4_gs32", 3e-3),
        // MLX computed this one in bfloat16; its own result in float32 is as far away.
        ("idefics3", "idefics3_mlx4_bf16", 5e-2),
        ("smolvlm", "smolvlm_mlx8", 3e-3),
    ] {
        let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/mlx");
        let files = ModelFiles::open(data.join(folder)).unwrap();
        let (config, checkpoint) = (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap());
        let model = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).unwrap();
        let bytes = files.bytes("reference_mlx.safetensors").unwrap().unwrap();
        let expected = Safetensors::parse(bytes, folder).unwrap();
        // The same picture and prompt as those of the family's float checkpoint.
        let fixture = Fixture { model, ..Fixture::open(family) };
        let ids = expected.tensor("in.input_ids").unwrap().to_i64().unwrap();
        assert_eq!(ids, fixture.tensor("in.input_ids").to_i64().unwrap());
        let mut kv = KvCache::new(&ReferenceBackend, fixture.model.kv_shape());
        let sequence = kv.start();
        let x = fixture.embed();
        let step: Step = kv.step(&[(sequence, x.rows())]);
        let logits = fixture.model.logits(&fixture.model.forward(&x, &step, &mut kv));
        let worst = difference(&logits.to_vec(), &expected.tensor("out.logits").unwrap().to_f32().unwrap());
        assert!(worst < tolerance, "{folder}: logits differ by {worst}");
    }
}

#[test]
fn one_token_at_a_time_gives_the_same_logits() {
    for family in FAMILIES {
        let fixture = Fixture::open(family);
        let mut kv = KvCache::new(&ReferenceBackend, fixture.model.kv_shape());
        let sequence = kv.start();
        let x = fixture.embed();
        let mut logits = Vec::new();
        for row in 0..x.rows() {
            let step = kv.step(&[(sequence, 1)]);
            let hidden = fixture.model.forward(&x.gather_rows(&[row]), &step, &mut kv);
            logits.extend(fixture.model.logits(&hidden).to_vec());
        }
        let worst = difference(&logits, &fixture.tensor("out.logits").to_f32().unwrap());
        assert!(worst < 2e-5, "{family}: logits differ by {worst}");
    }
}

#[test]
fn what_does_not_fit_is_listed_by_name() {
    for family in FAMILIES {
        let files = files(family);
        let (config, checkpoint) = (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap());
        let norm = checkpoint.names().find(|name| name.ends_with("norm.weight")).unwrap().to_owned();
        let rename = |name: &str| if name == norm { "stray.weight".to_owned() } else { name.to_owned() };
        let tensors = checkpoint.names().map(|name| (rename(name), checkpoint.tensor(name).unwrap())).collect();
        let changed = Checkpoint::from_tensors(tensors);
        let error = ocelli_models::load(&ReferenceBackend, &config, &changed).err().expect("an error").to_string();
        assert!(error.contains(&norm) && error.contains("stray.weight"), "{family}: {error}");
    }
}

#[test]
fn an_unsupported_value_is_named() {
    for family in FAMILIES {
        let text = files(family).text("config.json").unwrap().unwrap();
        let changed = text.replace("\"hidden_act\": \"silu\"", "\"hidden_act\": \"relu\"");
        let config = Config::parse(changed.as_bytes(), "config.json").unwrap();
        let checkpoint = Checkpoint::open(&files(family)).unwrap();
        let error = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).err().expect("an error").to_string();
        assert!(error.contains("hidden_act") && error.contains("relu"), "{family}: {error}");
    }
}

#[test]
fn an_unknown_architecture_names_what_is_supported() {
    let error = ocelli_models::architecture("florence2").unwrap_err().to_string();
    assert!(error.contains("florence2") && error.contains("smolvlm") && error.contains("qwen2"), "{error}");
}
