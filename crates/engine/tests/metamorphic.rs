//! What must hold for every family whatever its weights say.

use ocelli_engine::{EngineOptions, parity};

mod fixtures;

#[test]
fn every_family_keeps_its_promises() {
    fixtures::for_each(|family, folder| {
        let report = parity::check_promises(folder, &EngineOptions::new());
        let report = report.unwrap_or_else(|error| panic!("{family}: {error}"));
        assert!(report.passed(), "{report}");
        let has = |file: &str| folder.join(file).exists();
        let shown = has("image0.png") || has("video0.gif") || has("preprocessor_config.json");
        let expected = 6 + if shown { 2 } else { 0 } + usize::from(has("image1.png")) + usize::from(has("video0.gif"));
        assert_eq!(report.facts.len(), expected, "{report}");
    });
}
