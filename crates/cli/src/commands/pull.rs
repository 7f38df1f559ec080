//! `ocelli pull`: a model from the hub.

use indicatif::DecimalBytes;

use crate::arguments::PullArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::hub::{self, PullOptions, PullReport};
use crate::terminal::{note, print, remark};

pub(crate) fn run(args: &PullArgs) -> Outcome {
    let options = PullOptions::from_env(&args.id, args.revision.as_deref());
    let report = hub::pull(&options).map_err(|error| Failure::new(Exit::Model, error))?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
        return Ok(Exit::Success);
    }
    note(&summary(&report));
    if let Some(other) = &report.borrowed {
        note(&format!("{} (what {} takes from it)", summary(other), report.id));
    }
    print(&format!("{}\n", report.path.display()))?;
    remark(&format!("use it with --model {}", report.id));
    Ok(Exit::Success)
}

/// What was pulled, in a line.
fn summary(report: &PullReport) -> String {
    let what = match report.n_downloaded {
        0 => "everything was there already".to_owned(),
        n => format!("{n} downloaded, {} in {:.1} s", DecimalBytes(report.downloaded_bytes), report.seconds),
    };
    let commit: String = report.commit.chars().take(12).collect();
    let files = if report.n_files == 1 { "1 file".to_owned() } else { format!("{} files", report.n_files) };
    format!("{} at {commit}: {files}, {} ({what})", report.id, DecimalBytes(report.total_bytes))
}
