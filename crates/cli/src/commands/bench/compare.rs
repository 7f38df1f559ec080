//! `--compare`: the medians next to those of an earlier `--json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Context;
use ocelli_engine::bench::{FIGURES, Report};
use serde::{Deserialize, Serialize};

use super::table::number;
use crate::exit::Failure;

/// What is read of an earlier report.
#[derive(Debug, Deserialize)]
pub(super) struct Earlier {
    #[serde(skip)]
    file: String,
    #[serde(flatten)]
    conditions: Conditions,
    summary: BTreeMap<String, EarlierSpread>,
}

#[derive(Debug, Deserialize)]
struct EarlierSpread {
    median: f64,
}

/// What should be the same for a fair comparison.
#[derive(Debug, Deserialize, PartialEq)]
struct Conditions {
    model: String,
    dtype: String,
    isa: String,
    threads: usize,
    vision_tokens: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
}

/// The medians of two reports.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    /// The earlier report's file.
    file: String,
    /// What was not the same then.
    differences: Vec<String>,
    /// In the order of [`FIGURES`]; figures without a value then or now are left out.
    figures: Vec<Ratio>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Ratio {
    name: &'static str,
    unit: &'static str,
    before: f64,
    now: f64,
    /// Above 1 is better, whatever the figure.
    times_as_fast: f64,
}

impl Earlier {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not what `--json` prints.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| file.clone())?;
        let earlier: Self = serde_json::from_str(&text)
            .with_context(|| format!("{file} is not what `ocelli bench --json` prints for a model"))?;
        Ok(Self { file, ..earlier })
    }

    pub(super) fn compare(&self, report: &Report) -> Comparison {
        let ratio = |figure: &ocelli_engine::bench::Figure| {
            let (before, now) = (self.summary.get(figure.name)?.median, report.summary.get(figure.name)?.median);
            let times_as_fast = if figure.more_is_better { now / before } else { before / now };
            let figure = Ratio { name: figure.name, unit: figure.unit, before, now, times_as_fast };
            (before > 0.0 && now > 0.0).then_some(figure)
        };
        Comparison {
            file: self.file.clone(),
            differences: self.conditions.differences(&Conditions::of(report)),
            figures: FIGURES.iter().filter_map(ratio).collect(),
        }
    }
}

impl Conditions {
    fn of(report: &Report) -> Self {
        Self {
            model: report.model.clone(),
            dtype: report.dtype.clone(),
            isa: report.isa.to_owned(),
            threads: report.threads,
            vision_tokens: report.vision_tokens,
            prompt_tokens: report.prompt_tokens,
            completion_tokens: report.completion_tokens,
        }
    }

    fn values(&self) -> [(&'static str, String); 7] {
        [
            ("model", self.model.clone()),
            ("dtype", self.dtype.clone()),
            ("isa", self.isa.clone()),
            ("threads", self.threads.to_string()),
            ("vision_tokens", self.vision_tokens.to_string()),
            ("prompt_tokens", self.prompt_tokens.to_string()),
            ("completion_tokens", self.completion_tokens.to_string()),
        ]
    }

    fn differences(&self, now: &Self) -> Vec<String> {
        let pairs = self.values().into_iter().zip(now.values()).filter(|(before, now)| before != now);
        pairs.map(|((name, before), (_, now))| format!("{name} was {before} and is {now}")).collect()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "against {}", self.file)?;
        for difference in &self.differences {
            writeln!(f, "  not the same: {difference}")?;
        }
        for Ratio { name, unit, before, now, times_as_fast } in &self.figures {
            let (before, now) = (number(*before), number(*now));
            writeln!(f, "  {name:<26} {before:>10} -> {now:>10} {unit:<9} {times_as_fast:>6.2} times as fast")?;
        }
        Ok(())
    }
}

/// The comparison as a table of its own.
pub(super) fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("\nAgainst {}", comparison.file);
    comparison.differences.iter().for_each(|difference| text.push_str(&format!("; {difference}")));
    text.push_str("\n\n| figure | unit | before | now | times as fast |\n|---|---|---|---|---|\n");
    for Ratio { name, unit, before, now, times_as_fast } in &comparison.figures {
        let (before, now) = (number(*before), number(*now));
        text.push_str(&format!("| {name} | {unit} | {before} | {now} | {times_as_fast:.2} |\n"));
    }
    text
}
