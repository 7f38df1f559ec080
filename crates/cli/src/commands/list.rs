//! `ocelli list`: the models on this machine.

use ocelli_formats::hub_cache::HubCache;

use crate::arguments::ListArgs;
use crate::exit::{Exit, Outcome};
use crate::hub;
use crate::terminal::{note, print};

pub(crate) fn run(args: &ListArgs) -> Outcome {
    let cache = HubCache::from_env();
    let listing = hub::list(&cache)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&listing.models)?))?;
    } else if listing.models.is_empty() {
        note(&format!("no models in {}", cache.dir().display()));
        note("the built-in `demo` model is always there; `ocelli pull ID` downloads others");
    } else {
        print(&listing.to_string())?;
    }
    Ok(Exit::Success)
}
