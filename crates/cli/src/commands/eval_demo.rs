//! `ocelli eval demo`: how often the built-in model is right about pictures it has never seen.

use ocelli_engine::demo::{self, Accuracy, Tally};
use ocelli_processors::Detail;
use serde_json::json;

use crate::arguments::EvalDemoArgs;
use crate::exit::{Exit, Outcome};
use crate::model;
use crate::terminal::{note, print, progress_bar};

pub(crate) fn run(args: &EvalDemoArgs) -> Outcome {
    model::generate_options(&args.sampling, None)?;
    let files = model::find(&args.model.model, args.model.revision.as_deref())?;
    let engine = model::load(&files, &args.model.device)?;
    model::require(&engine, Some(Detail::Auto), false)?;
    let options = model::generate_options(&args.sampling, Some(engine.info()))?;
    let bar = progress_bar(0, "images");
    let accuracy = demo::evaluate(&engine, &options, args.limit, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if args.json {
        print(&format!("{}\n", to_json(&engine.info().label, &accuracy)))?;
        return Ok(Exit::Success);
    }
    print(&table(&accuracy))?;
    if args.mistakes {
        for mistake in &accuracy.mistakes {
            let demo::Mistake { scene, question, expected, answer } = mistake;
            note(&format!("scene {scene}: {question}\n  expected {expected}\n  answered {answer}"));
        }
    }
    Ok(Exit::Success)
}

fn table(accuracy: &Accuracy) -> String {
    let row = |kind: &str, tally: &Tally| {
        format!("{kind:<12} {:>9} {:>7} {:>8.1} %\n", tally.asked, tally.right, 100.0 * tally.share())
    };
    let mut text = format!("{:<12} {:>9} {:>7} {:>10}\n", "kind", "questions", "right", "exact");
    text.extend(accuracy.by_kind.iter().map(|(kind, tally)| row(kind, tally)));
    text + &row("all", &accuracy.total)
}

fn to_json(model: &str, accuracy: &Accuracy) -> String {
    let object = |tally: &Tally| json!({"questions": tally.asked, "right": tally.right, "share": tally.share()});
    let kinds: serde_json::Map<_, _> =
        accuracy.by_kind.iter().map(|(kind, tally)| (kind.clone(), object(tally))).collect();
    json!({"model": model, "kinds": kinds, "all": object(&accuracy.total), "mistakes": accuracy.mistakes}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_per_kind_and_one_for_all() {
        let tally = Tally { right: 3, asked: 4 };
        let accuracy = Accuracy { by_kind: [("count".into(), tally)].into(), total: tally, ..Accuracy::default() };
        let expected = "\
kind         questions   right      exact
count                4       3     75.0 %
all                  4       3     75.0 %
";
        assert_eq!(table(&accuracy), expected);
        assert!(to_json("demo", &accuracy).contains(r#""count":{"questions":4,"right":3,"share":0.75}"#));
    }
}
