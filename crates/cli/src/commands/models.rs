//! `ocelli models`: what is supported, in which sizes, and what it takes.

use ocelli_engine::{Family, PublishedModel, catalog};

use crate::arguments::ModelsArgs;
use crate::exit::{Exit, Outcome};
use crate::terminal::{Style, count, gigabytes, note, print, word};

pub(crate) fn run(args: &ModelsArgs) -> Outcome {
    let families = catalog()?;
    let text = match (args.json, args.md) {
        (true, _) => format!("{}\n", serde_json::to_string_pretty(&families)?),
        (_, true) => markdown(&families),
        _ => table(&families, Style::of_stdout()),
    };
    print(&text)?;
    if !args.json && !args.md {
        note(
            "sizes are those of the weights in memory; `ocelli pull ID` downloads a model, `ocelli show` tells if it fits",
        );
    }
    Ok(Exit::Success)
}

const TITLES: [&str; 9] =
    ["family", "model_type", "size", "parameters", "bf16", "q8", "q4", "tasks", "licence of the weights"];

/// One row per size; a family without any has one row.
fn rows(families: &[Family]) -> Vec<[String; 9]> {
    let row = |family: &Family, model: Option<&PublishedModel>| {
        let at = |precision: &str| model.map_or_else(dash, |model| gigabytes(model.weight_bytes_at[precision]));
        let tasks: Vec<String> = family.tasks.iter().map(word).collect();
        [
            family.title.to_owned(),
            family.model_type.to_owned(),
            model.map_or_else(dash, |model| model.id.clone().unwrap_or_else(|| model.name.to_owned())),
            model.map_or_else(dash, |model| count(model.parameters)),
            at("none"),
            at("q8"),
            at("q4"),
            tasks.join(", "),
            model.and_then(|model| model.licence.clone()).unwrap_or_else(dash),
        ]
    };
    let of_family = |family: &Family| match &family.sizes[..] {
        [] => vec![row(family, None)],
        sizes => sizes.iter().map(|model| row(family, Some(model))).collect(),
    };
    families.iter().flat_map(of_family).collect()
}

fn dash() -> String {
    "-".to_owned()
}

fn markdown(families: &[Family]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&TITLES.map(str::to_owned));
    text += "|---|---|---|---:|---:|---:|---:|---|---|\n";
    for mut row in rows(families) {
        row[1] = format!("`{}`", row[1]);
        text += &line(&row);
    }
    text
}

/// Each family under its own line; numbers to the right.
fn table(families: &[Family], style: Style) -> String {
    let shown = [2, 3, 4, 5, 6, 8];
    let rows = rows(families);
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([TITLES[column].len()]).max().unwrap_or_default()
    };
    let line = |cells: &[String; 9]| {
        let cell = |column: usize| match column {
            2 => format!("{:<width$}", cells[column], width = width(column)),
            8 => cells[column].clone(),
            _ => format!("{:>width$}", cells[column], width = width(column)),
        };
        format!("  {}\n", shown.map(cell).join("  "))
    };
    let mut text = style.dim(&line(&TITLES.map(str::to_owned)));
    let mut above = "";
    for row in &rows {
        if above != row[1] {
            text += &format!("{} ({}): {}\n", row[0], row[1], row[7]);
            above = &row[1];
        }
        text += &line(row);
    }
    text
}
