//! `ocelli rm`: deletes models from the cache.

use indicatif::DecimalBytes;
use ocelli_formats::hub_cache::HubCache;

use crate::arguments::RmArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::hub;
use crate::terminal::note;

/// One model that cannot be deleted does not keep the others.
pub(crate) fn run(args: &RmArgs) -> Outcome {
    let cache = HubCache::from_env();
    let mut exit = Exit::Success;
    for id in &args.ids {
        match hub::remove(&cache, id) {
            Ok(freed) => note(&format!("removed {id}, {} freed", DecimalBytes(freed))),
            Err(error) => {
                exit = Failure::new(Exit::Model, error).with_hint("`ocelli list` shows what there is").report()
            }
        }
    }
    Ok(exit)
}
