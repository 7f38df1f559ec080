//! `ocelli eval parity`: is a model what its reference is, tensor by tensor?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ocelli_engine::parity::{self, ParityReport, ParityRow};
use ocelli_engine::{Family, Task, catalog};
use serde::Serialize;

use crate::arguments::EvalParityArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::terminal::{Style, print, printable};

/// A folder that cannot be compared is a failure like any other: the rest is still compared.
pub(crate) fn run(args: &EvalParityArgs) -> Outcome {
    let mut results = Vec::new();
    for folder in args.folders.iter().flat_map(|folder| folders_in(folder)) {
        let checked = parity::check_with(&folder, &args.device.options());
        let result = Compared::new(folder.display().to_string(), checked.map_err(|error| Failure::from(error).text()));
        if !args.json && !args.md {
            print(&result.table(Style::of_stdout()))?;
        }
        results.push(result);
    }
    let n_passed = results.iter().filter(|result| result.pass).count();
    if args.md {
        print(&markdown(&results)?)?;
    } else if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&results)?))?;
    } else if results.len() > 1 {
        print(&format!("{n_passed} of {} passed\n", results.len()))?;
    }
    Ok(if n_passed == results.len() { Exit::Success } else { Exit::Failed })
}

/// The folder, or where it is none of a reference, those in it that are.
fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let is_reference = |folder: &Path| folder.join("reference.json").is_file();
    let inside = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = inside.filter(|inside| is_reference(inside)).collect();
    if is_reference(folder) || found.is_empty() {
        return vec![folder.to_path_buf()];
    }
    found.sort();
    found
}

/// One row per family of the registry, also where no folder was of it. Folders that are no model have none.
fn markdown(results: &[Compared]) -> anyhow::Result<String> {
    let mut of_family: BTreeMap<String, Vec<&Compared>> = BTreeMap::new();
    for result in results {
        of_family.entry(result.model_type.clone()).or_default().push(result);
    }
    let mut text = "| family | `model_type` | takes | checked with | worst difference | tokens |\n".to_owned();
    text += "|---|---|---|---|---:|---|\n";
    let families = catalog()?;
    for family in &families {
        let results = of_family.remove(family.model_type).unwrap_or_default();
        let takes = match family.tasks[..] {
            [Task::Transcribe, ..] => "recordings",
            [Task::Text, ..] => "text",
            [.., Task::Watch] => "pictures, videos, text",
            _ => "pictures, text",
        };
        let name = |result: &&Compared| format!("`{}`", Path::new(&result.folder).file_name()?.display()).into();
        let names: Vec<String> = results.iter().filter_map(name).collect();
        let rows = || results.iter().flat_map(|result| &result.rows);
        let tensors = rows().filter(|row| row.name.starts_with("out.") && !row.name.ends_with("_scores"));
        let (ids, tensors): (Vec<&ParityRow>, Vec<&ParityRow>) = tensors.partition(|row| row.name.ends_with("_ids"));
        let worst = tensors.iter().map(|row| row.worst_relative).fold(0.0, f64::max);
        let worst = if tensors.is_empty() { "-".to_owned() } else { format!("{worst:.0e}") };
        let tokens = match ids.iter().all(|row| row.pass) {
            _ if !results.iter().all(|result| result.pass) => "FAIL",
            true if ids.is_empty() => "-",
            true => "identical",
            false => "differ",
        };
        let names = if names.is_empty() { "-".to_owned() } else { names.join(", ") };
        let Family { title, model_type, .. } = family;
        text += &format!("| {title} | `{model_type}` | {takes} | {names} | {worst} | {tokens} |\n");
    }
    Ok(text)
}

/// The comparison of one folder.
#[derive(Debug, Serialize)]
struct Compared {
    folder: String,
    #[serde(skip)]
    model_type: String,
    pass: bool,
    /// The first tensor that diverges.
    first_divergence: Option<String>,
    rows: Vec<ParityRow>,
    /// Why nothing could be compared.
    error: Option<String>,
}

impl Compared {
    fn new(folder: String, report: Result<ParityReport, String>) -> Self {
        match report {
            Ok(report) => Self {
                folder,
                pass: report.passed(),
                model_type: report.model_type.clone(),
                first_divergence: report.first_divergence().map(|row| row.name.clone()),
                rows: report.rows,
                error: None,
            },
            Err(error) => Self {
                folder,
                model_type: String::new(),
                pass: false,
                first_divergence: None,
                rows: Vec::new(),
                error: Some(error),
            },
        }
    }

    fn table(&self, style: Style) -> String {
        let mut text = format!("{}\n", printable(&self.folder));
        if !self.rows.is_empty() {
            let (config, name) = (width(&self.rows, |row| &row.config), width(&self.rows, |row| &row.name));
            let columns = [("elements", 9), ("absolute", 9), ("relative", 9), ("tolerance", 9)];
            let columns = columns.map(|(title, width)| format!("{title:>width$}")).join("  ");
            text.push_str(&format!(
                "  {}\n",
                style.dim(&format!("{:config$}  {:name$}  {columns}", "config", "tensor"))
            ));
            text.extend(self.rows.iter().map(|row| line(row, config, name, style)));
        }
        let failed = style.error("FAIL");
        text.push_str(&match (&self.error, &self.first_divergence) {
            (Some(error), _) => format!("  {failed}: {}\n", printable(error)),
            (None, Some(tensor)) => format!("  {failed}: the first tensor that diverges is {tensor}\n"),
            (None, None) if self.pass => format!("  {}\n", style.good("pass")),
            (None, None) => format!("  {failed}: the folder holds nothing to compare\n"),
        });
        text
    }
}

/// One row of the table, with its line end.
fn line(row: &ParityRow, config: usize, name: usize, style: Style) -> String {
    let verdict = if row.pass { style.good("pass") } else { style.error("FAIL") };
    let note = row.note.as_ref().map(|note| format!("  {}", printable(note))).unwrap_or_default();
    let numbers = [row.worst_absolute, row.worst_relative, row.tolerance].map(scientific).join("  ");
    format!("  {:config$}  {:name$}  {:>9}  {numbers}  {verdict}{note}\n", row.config, row.name, row.elements)
}

/// 9 characters wide.
fn scientific(value: f64) -> String {
    if value == 0.0 { format!("{:>9}", 0) } else { format!("{value:>9.1e}") }
}

/// Of a column.
fn width(rows: &[ParityRow], cell: impl Fn(&ParityRow) -> &String) -> usize {
    rows.iter().map(|row| cell(row).len()).max().unwrap_or_default().max("config".len())
}
