//! The models that are loaded while a pipeline goes from stage to stage.

use ocelli_engine::Engine;

use super::plan::Plan;
use super::spec::{ModelChoice, Step};
use crate::exit::{Exit, Failure};
use crate::model;

/// The loaded models.
#[derive(Default)]
pub(super) struct Engines {
    loaded: Vec<(ModelChoice, Engine)>,
}

impl Engines {
    /// The model of the first of these stages. Models that later ones need stay loaded while there is memory for them;
    /// what had to go is loaded again when its turn comes.
    ///
    /// # Errors
    /// When it cannot be loaded, also with nothing else in memory.
    pub(super) fn of_first(&mut self, stages: &[&[Step]], plan: &Plan<'_>) -> Result<Option<Engine>, Failure> {
        let Some(step) = stages[0].iter().find(|step| step.model.is_some()) else { return Ok(None) };
        let (Some(choice), Some(files)) = (&step.model, plan.files(&step.name)) else { return Ok(None) };
        let is_needed =
            |choice: &ModelChoice| stages.iter().copied().flatten().any(|step| step.model.as_ref() == Some(choice));
        // A limit is meant for everything together.
        let is_limited = choice.options.memory_limit.is_some();
        self.loaded.retain(|(kept, _)| is_needed(kept) && (kept == choice || !is_limited));
        if let Some((_, engine)) = self.loaded.iter().find(|(kept, _)| kept == choice) {
            return Ok(Some(engine.clone()));
        }
        let engine = match model::load_with(files, &choice.options) {
            Err(failure) if failure.exit() == Exit::Memory && !self.loaded.is_empty() => {
                self.loaded.clear();
                model::load_with(files, &choice.options)
            }
            loaded => loaded,
        };
        let engine = engine?;
        self.loaded.push((choice.clone(), engine.clone()));
        Ok(Some(engine))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::arguments::{Cli, Command};
    use crate::pipe::Spec;

    /// What is loaded in each stage of a pipeline whose models alternate, the model of the stage last.
    fn loaded(more: &[&str]) -> Vec<Vec<String>> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let step = |(name, model): (&str, &str)| {
            let model = fixtures.join(model);
            format!("[[step]]\nname = '{name}'\nmodel = '{}'\nprompt = 'x'\nraw = true\n", model.display())
        };
        let steps = [("a", "qwen2"), ("b", "llama3"), ("c", "qwen2")].map(step).concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aba.toml");
        std::fs::write(&path, steps).unwrap();
        let arguments = ["ocelli", "pipe", path.to_str().unwrap()];
        let Command::Pipe(args) = Cli::parse_from(arguments.iter().chain(more)).command else {
            panic!("another command")
        };
        let spec = Spec::read(&args).unwrap();
        let (plan, stages) = (Plan::of(&spec), spec.stages());
        let mut engines = Engines::default();
        let mut stage = |stage_idx: usize| {
            let engine = engines.of_first(&stages[stage_idx..], &plan).unwrap().unwrap();
            let model_type = |engine: &Engine| engine.info().model_type.clone();
            let of_stage = stages[stage_idx][0].model.as_ref();
            let (_, kept) = engines.loaded.iter().find(|(choice, _)| Some(choice) == of_stage).unwrap();
            assert_eq!(model_type(&engine), model_type(kept));
            engines.loaded.iter().map(|(_, engine)| model_type(engine)).collect()
        };
        (0..stages.len()).map(&mut stage).collect()
    }

    #[test]
    fn a_model_that_is_needed_again_stays_while_there_is_memory() {
        assert_eq!(loaded(&[]), [vec!["qwen2"], vec!["qwen2", "llama"], vec!["qwen2"]]);
    }

    #[test]
    fn with_a_limit_on_memory_it_goes_and_is_loaded_again() {
        assert_eq!(loaded(&["--memory-limit", "1GiB"]), [["qwen2"], ["llama"], ["qwen2"]]);
    }
}
