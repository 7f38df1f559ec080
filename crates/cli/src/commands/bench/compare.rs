//! `--compare`: the medians next to those of an earlier `--json`.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use ocelli_engine::bench::{FIGURES, Report};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{number, singles};
use crate::exit::{Exit, Failure};

/// An earlier report.
#[derive(Debug)]
pub(super) struct Earlier {
    file: String,
    conditions: Conditions,
    value: Value,
}

/// What should be the same for a fair comparison.
#[derive(Debug, Deserialize, PartialEq)]
struct Conditions {
    model_type: String,
    parameters: u64,
    vision_tokens: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    beams: usize,
    batch: usize,
    model: String,
    dtype: String,
    quant: String,
    quant_vision: String,
    /// Reports did not always say so.
    #[serde(default)]
    kv_cache: String,
    isa: String,
    threads: usize,
}

/// The medians of two reports.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    /// The earlier report's file.
    file: String,
    /// What was not the same then, and may be what is compared.
    differences: Vec<String>,
    /// In the order of [`FIGURES`], then loading and memory; figures without a value then or now are left out.
    figures: Vec<Ratio>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Ratio {
    name: &'static str,
    unit: &'static str,
    before: f64,
    now: f64,
    /// Above 1 is better, whatever the figure.
    times_as_good: f64,
}

impl Earlier {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not what `--json` prints.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| file.clone())?;
        let expected = || format!("{file} is not what this version's `ocelli bench --json` prints for a model");
        let value: Value = serde_json::from_str(&text).with_context(expected)?;
        let conditions = Conditions::deserialize(&value).with_context(expected)?;
        Ok(Self { file, conditions, value })
    }

    /// An earlier median.
    pub(super) fn median(&self, figure: &str) -> Option<f64> {
        self.value["summary"][figure]["median"].as_f64()
    }

    /// Compares.
    ///
    /// # Errors
    /// When what was measured is not the same work.
    pub(super) fn compare(&self, report: &Report) -> Result<Comparison, Failure> {
        let (unlike, differences) = self.conditions.differences(&Conditions::of(report));
        if !unlike.is_empty() {
            let message = format!("{} measured other work: {}", self.file, unlike.join(", "));
            let hint = "repeat one of the two with the other's model and token counts";
            return Err(Failure::message(Exit::Failed, message).with_hint(hint));
        }
        let of_runs = FIGURES.iter().filter_map(|figure| {
            let (before, now) = (self.median(figure.name)?, report.summary.get(figure.name)?.median);
            Some((figure.name, figure.unit, before, now, figure.more_is_better))
        });
        let once = singles(report).into_iter().filter_map(|(name, unit, now)| {
            let before = match name {
                "peak_rss" => self.value["memory"]["peak_rss_bytes"].as_f64()? / f64::from(1 << 20),
                name => self.value[name].as_f64()?,
            };
            Some((name, unit, before, now, false))
        });
        let ratio = |(name, unit, before, now, more_is_better): (_, _, f64, f64, bool)| {
            let times_as_good = if more_is_better { now / before } else { before / now };
            (before > 0.0 && now > 0.0).then_some(Ratio { name, unit, before, now, times_as_good })
        };
        Ok(Comparison {
            file: self.file.clone(),
            differences,
            figures: of_runs.chain(once).filter_map(ratio).collect(),
        })
    }
}

impl Conditions {
    fn of(report: &Report) -> Self {
        Self {
            model_type: report.model_type.clone(),
            parameters: report.parameters,
            vision_tokens: report.vision_tokens,
            prompt_tokens: report.prompt_tokens,
            completion_tokens: report.completion_tokens,
            beams: report.beams,
            batch: report.batch,
            model: report.model.clone(),
            dtype: report.dtype.clone(),
            quant: report.quant.to_owned(),
            quant_vision: report.quant_vision.to_owned(),
            kv_cache: report.kv_cache.clone(),
            isa: report.isa.to_owned(),
            threads: report.threads,
        }
    }

    /// Everything by name; the first [`WORK`] decide how much there is to do.
    fn values(&self) -> [(&'static str, String); 14] {
        [
            ("model_type", self.model_type.clone()),
            ("parameters", self.parameters.to_string()),
            ("vision_tokens", self.vision_tokens.to_string()),
            ("prompt_tokens", self.prompt_tokens.to_string()),
            ("completion_tokens", self.completion_tokens.to_string()),
            ("beams", self.beams.to_string()),
            ("batch", self.batch.to_string()),
            ("model", self.model.clone()),
            ("dtype", self.dtype.clone()),
            ("quant", self.quant.clone()),
            ("quant_vision", self.quant_vision.clone()),
            ("kv_cache", self.kv_cache.clone()),
            ("isa", self.isa.clone()),
            ("threads", self.threads.to_string()),
        ]
    }

    /// What makes the work another, and what makes it go otherwise.
    fn differences(&self, now: &Self) -> (Vec<String>, Vec<String>) {
        let (before, now) = (self.values(), now.values());
        let differences = |from: usize, to: usize| {
            let pairs = before[from..to].iter().zip(&now[from..to]).filter(|(before, now)| before != now);
            pairs.map(|((name, before), (_, now))| format!("{name} was {before} and is {now}")).collect()
        };
        (differences(0, WORK), differences(WORK, before.len()))
    }
}

/// How many of [`Conditions::values`] must be equal.
const WORK: usize = 7;

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "against {}", self.file)?;
        for difference in &self.differences {
            writeln!(f, "  not the same: {difference}")?;
        }
        for Ratio { name, unit, before, now, times_as_good } in &self.figures {
            let (before, now) = (number(*before), number(*now));
            writeln!(f, "  {name:<26} {before:>10} -> {now:>10} {unit:<9} {times_as_good:>6.2} times as good")?;
        }
        Ok(())
    }
}

/// The comparison as a table of its own.
pub(super) fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("\nAgainst {}", comparison.file);
    comparison.differences.iter().for_each(|difference| text.push_str(&format!("; {difference}")));
    text.push_str("\n\n| figure | unit | before | now | times as good |\n|---|---|---|---|---|\n");
    for Ratio { name, unit, before, now, times_as_good } in &comparison.figures {
        let (before, now) = (number(*before), number(*now));
        text.push_str(&format!("| {name} | {unit} | {before} | {now} | {times_as_good:.2} |\n"));
    }
    text
}
