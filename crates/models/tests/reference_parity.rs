//! Every family's features and logits on the slow reference backend equal the reference implementation's, and the
//! loader names what does not fit.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::PathBuf;

use ocelli_backend::{Cancel, KvCache, SequenceId, Tensor};
use ocelli_formats::{Checkpoint, CodeBits, Config, ModelFiles, Safetensors, TensorData};
use ocelli_models::{Extent, ImageInput, Model, PixelValues};
use ocelli_testkit::{ReferenceBackend, write_mlx_whisper};

/// Families that take pictures or text.
const FAMILIES: &[&str] = &[
    "blip2_opt",
    "blip_caption",
    "blip_vqa",
    "deepseek_vl_v2",
    "deepseek_vl_v2_tiny",
    "fast_vlm",
    "idefics3",
    "instructblip",
    "llama3",
    "llava",
    "moondream2",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3",
    "qwen3_vl",
    "smolvlm",
];

/// The family that takes recordings.
const SPEECH: &str = "whisper";

/// Values that no family can have: where they stand in its `config.json`, and what is refused there.
const REFUSED: &[(&str, &[(&str, &str)])] = &[
    (
        "blip2_opt",
        &[
            ("/qformer_config/hidden_act", "mish"),
            ("/text_config/activation_function", "mish"),
            ("/vision_config/hidden_act", "mish"),
        ],
    ),
    ("blip_caption", &[("/text_config/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    ("blip_vqa", &[("/text_config/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    ("deepseek_vl_v2", &[("/language_config/hidden_act", "mish")]),
    ("deepseek_vl_v2_tiny", &[("/language_config/hidden_act", "mish")]),
    ("fast_vlm", &[("/projector_hidden_act", "mish"), ("/text_config/hidden_act", "mish")]),
    ("idefics3", &[("/text_config/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    (
        "instructblip",
        &[
            ("/qformer_config/hidden_act", "mish"),
            ("/text_config/hidden_act", "mish"),
            ("/vision_config/hidden_act", "mish"),
        ],
    ),
    ("llama3", &[("/hidden_act", "mish")]),
    (
        "llava",
        &[
            ("/projector_hidden_act", "mish"),
            ("/text_config/hidden_act", "mish"),
            ("/vision_config/hidden_act", "mish"),
        ],
    ),
    // Its config names no activation, but for Moondream's own quantisation the size of its groups.
    ("moondream2", &[("/config/text/group_size", "128"), ("/config/text/prefix_attn", "731")]),
    ("qwen2", &[("/hidden_act", "mish")]),
    ("qwen2_5_vl", &[("/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    ("qwen2_vl", &[("/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    ("qwen3", &[("/hidden_act", "mish")]),
    ("qwen3_vl", &[("/text_config/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    ("smolvlm", &[("/text_config/hidden_act", "mish"), ("/vision_config/hidden_act", "mish")]),
    (SPEECH, &[("/activation_function", "mish"), ("/scale_embedding", "true")]),
];

/// Fixtures, and folders with the same weights in another layout.
const LAYOUTS: &[(&str, &str)] = &[("fast_vlm", "fast_vlm_apple")];

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

    /// A cache with an empty sequence that sees what it must.
    fn sequence(&self) -> (KvCache<ReferenceBackend>, SequenceId) {
        let mut kv = KvCache::new(&ReferenceBackend, self.model.kv_shape());
        let sequence = kv.start();
        if self.model.image_input() == ImageInput::Context {
            kv.set_context(sequence, self.model.context(&self.ids(), &[&self.features()]));
        }
        (kv, sequence)
    }

    /// Embeddings of the prompt with the pictures' features in place.
    fn embed(&self) -> Tensor<ReferenceBackend> {
        let ids = self.model.decoder_ids(&self.ids());
        let x = self.model.embed(&ids);
        let Some(image_token) = self.model.image_input().token_id() else { return x };
        let rows: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == image_token).collect();
        let features = self.saved_features().unwrap_or_else(|| self.features());
        self.model.join(&x, &rows, &features)
    }

    /// The reference's features, where the fixture holds only a part of a picture's tiles.
    fn saved_features(&self) -> Option<Tensor<ReferenceBackend>> {
        self.reference.tensor("in.tiling")?;
        let features = self.tensor("out.image_features");
        Some(Tensor::new(&ReferenceBackend, &features.to_f32().unwrap(), features.shape()))
    }

    fn features(&self) -> Tensor<ReferenceBackend> {
        let text_ids = self.reference.tensor("in.qformer_input_ids").map(|ids| ids.to_i64().unwrap());
        let text_ids: Vec<u32> = text_ids.unwrap_or_default().into_iter().map(|id| id as u32).collect();
        let encode = |picture: &Picture| {
            let &Picture { ref values, shape, grid } = picture;
            self.model.encode_image(PixelValues { values, shape, grid, text_ids: &text_ids }, &Cancel::new())
        };
        let features: Vec<_> = self.pictures().iter().map(encode).collect();
        Tensor::concat_rows(&features.iter().collect::<Vec<_>>())
    }

    /// Tiles of one picture, or patches of as many as have a grid.
    fn pictures(&self) -> Vec<Picture> {
        let Some(pixels) = self.reference.tensor("in.pixel_values") else { return Vec::new() };
        let (values, shape) = (pixels.to_f32().unwrap(), pixels.shape());
        let Some(grids) = self.reference.tensor("in.image_grid_thw") else {
            // Columns and rows of tiles.
            let crop = self.reference.tensor("in.images_spatial_crop").map(|crop| crop.to_i64().unwrap());
            let grid = crop.map_or([1, 0, 0], |crop| [1, crop[1] as usize, crop[0] as usize]);
            return vec![Picture { values, shape: shape[shape.len() - 4..].try_into().unwrap(), grid }];
        };
        let grids: Vec<usize> = grids.to_i64().unwrap().into_iter().map(|size| size as usize).collect();
        let mut rest = &values[..];
        let picture = |grid: &[usize]| {
            let patches = grid.iter().product();
            let (values, after) = rest.split_at(patches * shape[1]);
            rest = after;
            Picture { values: values.to_vec(), shape: [1, 1, patches, shape[1]], grid: grid.try_into().unwrap() }
        };
        grids.chunks_exact(3).map(picture).collect()
    }

    /// Where the prompt's tokens are.
    fn places(&self) -> Vec<[usize; 3]> {
        let ids = self.model.decoder_ids(&self.ids());
        let extent = |picture: &Picture| Extent { grid: picture.grid, frame_seconds: 0.0 };
        let extents: Vec<Extent> = self.pictures().iter().map(extent).collect();
        self.model.places(&ids, &extents, 0).unwrap_or_else(|| (0..ids.len()).map(|at| [at; 3]).collect())
    }

    /// Logits of every row of the prompt, computed at once.
    fn logits(&self) -> Vec<f32> {
        let (mut kv, sequence) = self.sequence();
        let step = kv.step_at(sequence, &self.places()).with_prefix(self.model.prefix(&self.ids()));
        self.model.logits(&self.model.forward(&self.embed(), &step, &mut kv)).to_vec()
    }
}

struct Picture {
    values: Vec<f32>,
    shape: [usize; 4],
    grid: [usize; 3],
}

fn files(family: &str) -> ModelFiles {
    ModelFiles::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)).unwrap()
}

/// The last rows, of which the reference saved so many.
fn last(logits: &[f32], expected: &TensorData) -> Vec<f32> {
    let count: usize = expected.shape().iter().product();
    logits[logits.len() - count..].to_vec()
}

/// Largest difference over largest expected magnitude.
fn difference(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    actual.iter().zip(expected).fold(0.0f32, |worst, (a, e)| worst.max((a - e).abs())) / largest
}

#[test]
fn image_features_equal_the_reference() {
    let mut compared = Vec::new();
    for family in FAMILIES {
        let fixture = Fixture::open(family);
        let names = ["out.image_features", "out.image_features.0", "out.image_features.1"];
        let expected: Vec<TensorData> = names.iter().filter_map(|name| fixture.reference.tensor(name)).collect();
        let [first, ..] = &expected[..] else { continue };
        if fixture.saved_features().is_some() {
            continue;
        }
        // Features for deeper layers come behind those that the reference saved.
        let features = fixture.features();
        let features = features.columns(0..first.shape()[first.shape().len() - 1]);
        let expected: Vec<f32> = expected.iter().flat_map(|part| part.to_f32().unwrap()).collect();
        let worst = difference(&features.to_vec(), &expected);
        assert!(worst < 2e-5, "{family}: image features differ by {worst}");
        compared.push(*family);
    }
    assert!(compared.len() >= 5, "{compared:?}");
}

#[test]
fn places_equal_the_reference() {
    let mut compared = Vec::new();
    for family in FAMILIES {
        let fixture = Fixture::open(family);
        let Some(expected) = fixture.reference.tensor("out.position_ids") else { continue };
        let (places, expected) = (fixture.places(), expected.to_i64().unwrap());
        for axis in 0..3 {
            let ours: Vec<i64> = places.iter().map(|place| place[axis] as i64).collect();
            assert_eq!(ours, expected[axis * ours.len()..][..ours.len()], "{family}: axis {axis}");
        }
        let next = places.iter().flatten().max().unwrap() + 1;
        let delta = fixture.tensor("out.rope_delta").to_i64().unwrap()[0];
        assert_eq!(next as i64 - places.len() as i64, delta, "{family}: the place of the next token");
        compared.push(*family);
    }
    assert!(compared.len() >= 2, "{compared:?}");
}

#[test]
fn logits_equal_the_reference() {
    for &family in FAMILIES {
        let fixture = Fixture::open(family);
        let expected = fixture.tensor("out.logits");
        let worst = difference(&last(&fixture.logits(), &expected), &expected.to_f32().unwrap());
        assert!(worst < 2e-5, "{family}: logits differ by {worst}");
    }
}

/// The same weights under the names, and with the config, that another writer gave them.
#[test]
fn other_layouts_give_the_same_features_and_logits() {
    for (family, folder) in LAYOUTS {
        let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let files = ModelFiles::open(data.join(folder)).unwrap();
        let (config, checkpoint) = (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap());
        let model = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).unwrap();
        let fixture = Fixture { model, ..Fixture::open(family) };
        let worst = difference(&fixture.features().to_vec(), &fixture.tensor("out.image_features").to_f32().unwrap());
        assert!(worst < 2e-5, "{folder}: image features differ by {worst}");
        let worst = difference(&fixture.logits(), &fixture.tensor("out.logits").to_f32().unwrap());
        assert!(worst < 2e-5, "{folder}: logits differ by {worst}");
    }
}

/// Spectrogram -> features -> logits at once and token by token.
#[test]
fn speech_equals_the_reference() {
    let Fixture { model, reference } = Fixture::open("whisper");
    assert_is_whisper(&*model, &reference);
}

/// Moondream's weights under the names of 2024 are the same model.
#[test]
fn moondream_s_older_names_give_the_same_numbers() {
    let files = files("moondream2");
    let (config, checkpoint) = (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap());
    let renamed = |name: &str| {
        let pairs = [
            ("model.vision.patch_emb.", "vision_encoder.encoder.model.visual.patch_embed.linear."),
            ("model.vision.pos_emb", "vision_encoder.encoder.model.visual.pos_embed"),
            ("model.vision.post_ln", "vision_encoder.encoder.model.visual.norm"),
            ("model.vision.blocks", "vision_encoder.encoder.model.visual.blocks"),
            (".ln1.", "._orig_mod.norm1."),
            (".ln2.", "._orig_mod.norm2."),
            ("model.vision.proj_mlp", "vision_encoder.projection.mlp"),
            ("model.text.wte", "text_model.transformer.embd.wte.weight"),
            ("model.text.post_ln", "text_model.lm_head.ln"),
            ("model.text.lm_head", "text_model.lm_head.linear"),
            ("model.text.blocks", "text_model.transformer.h"),
            ("model.region.coord_", "region_model.coordinate_"),
            ("model.region.size_", "region_model.size_"),
        ];
        let name = pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
        match name.starts_with("text_model") {
            true => name.replace("attn.qkv", "mixer.Wqkv").replace("attn.proj", "mixer.out_proj"),
            false => name,
        }
    };
    let older = |name: &str| {
        let data = checkpoint.tensor(name).unwrap();
        if !name.ends_with("_features") {
            return (renamed(name), data);
        }
        let (values, shape) = (data.to_f32().unwrap(), data.shape());
        let turned = (0..shape[1]).flat_map(|at| values.iter().skip(at).step_by(shape[1]).copied());
        let turned = TensorData::from_f32(vec![shape[1], shape[0]], &turned.collect::<Vec<_>>()).unwrap();
        (format!("{}.weight", renamed(name)), turned)
    };
    let older = Checkpoint::from_tensors(checkpoint.names().map(older).collect());
    assert!(older.names().all(|name| !name.starts_with("model.")));
    let model = ocelli_models::load(&ReferenceBackend, &config, &older).unwrap();
    let older = Fixture { model, ..Fixture::open("moondream2") };
    let newer = Fixture::open("moondream2");
    assert_eq!(older.logits(), newer.logits());
    let embedded = |fixture: &Fixture| {
        let locator = fixture.model.locator().unwrap();
        [locator.embed_place(0.3).to_vec(), locator.embed_size([0.2, 0.7]).to_vec()]
    };
    assert_eq!(embedded(&older), embedded(&newer));

    let text = files.text("config.json").unwrap().unwrap().replace("HfMoondream", "Moondream");
    let config = Config::parse(text.as_bytes(), "config.json").unwrap();
    let error = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).err().expect("an error").to_string();
    assert!(error.starts_with("config.json: architectures: Moondream is not supported"), "{error}");
}

/// MLX's names, its order of convolutions, its config, and no sinusoids.
#[test]
fn mlx_s_speech_equals_the_reference() {
    let (config, checkpoint) = mlx_whisper(None);
    let model = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).unwrap();
    assert_is_whisper(&*model, &Fixture::open("whisper").reference);
}

/// A speech model that MLX quantised is the same as one of the floats that its codes stand for.
#[test]
fn mlx_s_codes_of_speech_are_their_numbers() {
    let (config, checkpoint) = mlx_whisper(Some(CodeBits::Eight));
    let model = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).unwrap();
    assert!(checkpoint.names().any(|name| checkpoint.stored(name).unwrap().is_quantized()));
    let plain = |name: &str| -> (String, TensorData) {
        let stored = checkpoint.stored(name).unwrap();
        let plain = match checkpoint.tensor(name) {
            Some(plain) => plain,
            None => TensorData::from_f32(stored.shape(), &stored.load().unwrap().to_f32().unwrap()).unwrap(),
        };
        (name.to_owned(), plain)
    };
    let floats = Checkpoint::from_tensors(checkpoint.names().map(plain).collect());
    let expected = ocelli_models::load(&ReferenceBackend, &config, &floats).unwrap();
    let reference = Fixture::open("whisper").reference;
    let ids = speech_ids(&reference);
    let [(features, logits), (expected_features, expected_logits)] = [model, expected].map(|model| {
        let features = speech_features(&*model, &reference);
        let logits = speech_logits(&*model, &ids, &features, &[ids.len()]);
        (features, logits)
    });
    let worst = difference(&features.to_vec(), &expected_features.to_vec());
    assert!(worst < 2e-5, "features differ by {worst}");
    let worst = difference(&logits, &expected_logits);
    assert!(worst < 2e-5, "logits differ by {worst}");
    // And it is still the same model.
    let worst = difference(&logits, &reference.tensor("out.logits").unwrap().to_f32().unwrap());
    assert!(worst < 5e-2, "logits differ by {worst}");
}

/// The fixture's speech model in the form in which MLX publishes it.
fn mlx_whisper(bits: Option<CodeBits>) -> (Config, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    write_mlx_whisper(&Checkpoint::open(&files("whisper")).unwrap(), folder.path(), bits);
    let files = ModelFiles::open(folder.path()).unwrap();
    (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap())
}

fn speech_features(model: &dyn Model<ReferenceBackend>, reference: &Safetensors) -> Tensor<ReferenceBackend> {
    let mel = reference.tensor("in.input_features").unwrap();
    let shape = [1, 1, mel.shape()[1], mel.shape()[2]];
    let pixel_values = PixelValues { values: &mel.to_f32().unwrap(), shape, grid: [1; 3], text_ids: &[] };
    model.encode_image(pixel_values, &Cancel::new())
}

fn speech_ids(reference: &Safetensors) -> Vec<u32> {
    reference.tensor("in.input_ids").unwrap().to_i64().unwrap().into_iter().map(|id| id as u32).collect()
}

/// Logits of a prompt, computed in steps of so many tokens.
fn speech_logits(
    model: &dyn Model<ReferenceBackend>,
    ids: &[u32],
    features: &Tensor<ReferenceBackend>,
    steps: &[usize],
) -> Vec<f32> {
    let mut kv = KvCache::new(&ReferenceBackend, model.kv_shape());
    let sequence = kv.start();
    let context = model.context(ids, &[features]);
    kv.set_context(sequence, context);
    let (mut logits, mut rest) = (Vec::new(), ids);
    for &rows in steps {
        let step = kv.step(&[(sequence, rows)]);
        logits.extend(model.logits(&model.forward(&model.embed(&rest[..rows]), &step, &mut kv)).to_vec());
        rest = &rest[rows..];
    }
    logits
}

#[track_caller]
fn assert_is_whisper(model: &dyn Model<ReferenceBackend>, reference: &Safetensors) {
    let (features, ids) = (speech_features(model, reference), speech_ids(reference));
    let expected = reference.tensor("out.audio_features").unwrap().to_f32().unwrap();
    let worst = difference(&features.to_vec()[..expected.len()], &expected);
    assert!(worst < 2e-5, "features differ by {worst}");
    for steps in [vec![ids.len()], vec![1; ids.len()]] {
        let logits = speech_logits(model, &ids, &features, &steps);
        let worst = difference(&logits, &reference.tensor("out.logits").unwrap().to_f32().unwrap());
        assert!(worst < 2e-5, "logits differ by {worst}");
    }
}

/// Checkpoints that MLX quantised, against the logits that MLX (or else transformers) computed from them. Scales in
/// float32 are rounded to halves, which alone is up to 4e-3; published ones are in bfloat16.
#[test]
fn codes_give_the_logits_of_mlx() {
    for (family, folder, tolerance) in [
        ("idefics3", "idefics3_mlx4_gs32", 3e-3),
        // MLX computed this one in bfloat16; its own result in float32 is as far away.
        ("idefics3", "idefics3_mlx4_bf16", 5e-2),
        ("qwen2_5_vl", "qwen2_5_vl_mlx4_gs32", 3e-3),
        // What transformers computes from the dequantised weights: bfloat16 scales are held without loss.
        ("qwen2_vl", "qwen2_vl_mlx8_bf16", 2e-5),
        ("qwen3_vl", "qwen3_vl_mlx4_bf16", 2e-5),
        ("smolvlm", "smolvlm_mlx8", 3e-3),
        ("llava", "llava_mlx4", 3e-3),
        ("llava", "llava_mlx8", 3e-3),
        // By transformers from the dequantised weights, which have scales in float16; mlx_vlm 0.7.10 is far from it.
        ("deepseek_vl_v2", "deepseek_vl_v2_mlx4", 2e-5),
        ("deepseek_vl_v2", "deepseek_vl_v2_mlx8", 2e-5),
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
        let worst = difference(&fixture.logits(), &expected.tensor("out.logits").unwrap().to_f32().unwrap());
        assert!(worst < tolerance, "{folder}: logits differ by {worst}");
    }
}

#[test]
fn one_token_at_a_time_gives_the_same_logits() {
    for &family in FAMILIES {
        let fixture = Fixture::open(family);
        let (mut kv, sequence) = fixture.sequence();
        let x = fixture.embed();
        let places = fixture.places();
        let mut logits = Vec::new();
        let prefix = fixture.model.prefix(&fixture.ids());
        let first = (prefix > 0).then_some(0..prefix);
        for rows in first.into_iter().chain((prefix..x.rows()).map(|row| row..row + 1)) {
            let prefix = if rows.start == 0 { prefix } else { 0 };
            let step = kv.step_at(sequence, &places[rows.clone()]).with_prefix(prefix);
            let hidden = fixture.model.forward(&x.gather_rows(&rows.collect::<Vec<_>>()), &step, &mut kv);
            logits.extend(fixture.model.logits(&hidden).to_vec());
        }
        let expected = fixture.tensor("out.logits");
        let worst = difference(&last(&logits, &expected), &expected.to_f32().unwrap());
        assert!(worst < 2e-5, "{family}: logits differ by {worst}");
    }
}

#[test]
fn every_fixture_with_weights_is_tested() {
    let fixtures = std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")).unwrap();
    let folders = fixtures.map(|entry| entry.unwrap().path()).filter(|folder| folder.join("config.json").exists());
    let mut found: Vec<_> = folders.map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    found.sort();
    let mut known = [FAMILIES, &[SPEECH]].concat();
    known.sort();
    assert_eq!(found, known);
}

#[test]
fn what_does_not_fit_is_listed_by_name() {
    for family in [FAMILIES, &[SPEECH]].concat() {
        let files = files(family);
        let (config, checkpoint) = (Config::load(&files).unwrap(), Checkpoint::open(&files).unwrap());
        let norm = checkpoint
            .names()
            .find(|name| name.ends_with("norm.weight") || name.ends_with("ln.weight"))
            .unwrap()
            .to_owned();
        let rename = |name: &str| if name == norm { "stray.weight".to_owned() } else { name.to_owned() };
        let tensors = checkpoint.names().map(|name| (rename(name), checkpoint.tensor(name).unwrap())).collect();
        let changed = Checkpoint::from_tensors(tensors);
        let error = ocelli_models::load(&ReferenceBackend, &config, &changed).err().expect("an error").to_string();
        assert!(error.contains(&norm) && error.contains("stray.weight"), "{family}: {error}");
    }
}

#[test]
fn an_unsupported_value_is_named() {
    assert_eq!(REFUSED.iter().map(|(family, _)| *family).collect::<Vec<_>>(), [FAMILIES, &[SPEECH]].concat());
    for (family, refused) in REFUSED {
        let files = files(family);
        let checkpoint = Checkpoint::open(&files).unwrap();
        assert!(!refused.is_empty(), "{family} refuses nothing");
        for (place, value) in *refused {
            let mut config = files.json("config.json").unwrap().unwrap();
            let old = config.pointer_mut(place).unwrap_or_else(|| panic!("{family} has no {place}"));
            *old = serde_json::from_str(value).unwrap_or_else(|_| (*value).into());
            let config = Config::parse(config.to_string().as_bytes(), "config.json").unwrap();
            let error = ocelli_models::load(&ReferenceBackend, &config, &checkpoint).err();
            let error = error.unwrap_or_else(|| panic!("{family} takes {value} at {place}")).to_string();
            // Flat configs are read as sections, too: the end of the path is what the file has in any case.
            let key = place.rsplit('/').next().unwrap();
            let expected = format!("{key}: {value} is not supported");
            assert!(error.starts_with("config.json: ") && error.contains(&expected), "{family}: {error}");
        }
    }
}

#[test]
fn an_unknown_architecture_names_what_is_supported() {
    let error = ocelli_models::architecture("florence2").unwrap_err().to_string();
    assert!(error.contains("florence2") && error.contains("smolvlm") && error.contains("qwen2"), "{error}");
}
