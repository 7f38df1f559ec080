//! What must hold for every family whatever its weights say.

use ocelli_engine::{EngineOptions, parity};

mod fixtures;

#[test]
fn every_family_keeps_its_promises() {
    fixtures::for_each(|family, folder| {
        let report = parity::check_promises(folder, &EngineOptions::new());
        let report = report.unwrap_or_else(|error| panic!("{family}: {error}"));
        assert!(report.passed(), "{report}");
        let shown = folder.join("image0.png").exists() || folder.join("preprocessor_config.json").exists();
        let expected = if shown { 8 } else { 6 };
        assert_eq!(report.facts.len(), expected, "{report}");
    });
}
