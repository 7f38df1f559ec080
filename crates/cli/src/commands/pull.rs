//! `ocelli pull`: a model from the hub.

use indicatif::DecimalBytes;

use crate::arguments::PullArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::hub::{self, PullOptions};
use crate::terminal::{note, print, remark};

pub(crate) fn run(args: &PullArgs) -> Outcome {
    let options = PullOptions::from_env(&args.id, args.revision.as_deref());
    let report = hub::pull(&options).map_err(|error| Failure::new(Exit::Model, error))?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
        return Ok(Exit::Success);
    }
    let what = match report.n_downloaded {
        0 => "everything was there already".to_owned(),
        n => format!("{n} downloaded, {} in {:.1} s", DecimalBytes(report.downloaded_bytes), report.seconds),
    };
    let (id, n_files, total) = (&report.id, report.n_files, DecimalBytes(report.total_bytes));
    let commit: String = report.commit.chars().take(12).collect();
    note(&format!("{id} at {commit}: {n_files} files, {total} ({what})"));
    print(&format!("{}\n", report.path.display()))?;
    remark(&format!("use it with --model {id}"));
    Ok(Exit::Success)
}
