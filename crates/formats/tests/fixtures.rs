//! Every checkpoint in `fixtures/` opens: configuration, weights, and the readers that come with them.

use std::path::Path;

use ocelli_formats::{Checkpoint, Config, Dtype, ModelFiles};

#[test]
fn every_fixture_opens() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let mut n_opened = 0;
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("model.safetensors").is_file() {
            continue;
        }
        let files = ModelFiles::open(&path).unwrap();
        let config = Config::load(&files).unwrap();
        let checkpoint = Checkpoint::open(&files).unwrap();
        assert!(!config.model_type().is_empty() && checkpoint.total_bytes() > 0, "{}", files.label());
        for name in checkpoint.names() {
            let tensor = checkpoint.tensor(name).unwrap();
            let n_read = if matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                tensor.to_f32().unwrap().len()
            } else {
                tensor.to_i64().unwrap().len()
            };
            assert_eq!(n_read, tensor.shape().iter().product::<usize>(), "{name} of {}", files.label());
        }
        n_opened += 1;
    }
    assert!(n_opened > 0, "there are no fixtures");
}
