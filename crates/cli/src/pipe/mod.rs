//! Pipelines: what a TOML file says ([`spec`], [`keys`]), what its steps read ([`template`]), what they give
//! ([`fields`]), what will be done ([`plan`]), and doing it ([`run`], [`engines`], [`step`], [`record`]).
//!
//! All files go through one stage before the next begins; a stage is the steps in a row that share a model. So only one
//! model need be in memory, however many a pipeline names, and each is loaded once; but one that is needed again later
//! is loaded again where memory is short. The price is that results of early stages have to wait: they are written down
//! at once, in a file beside that of `--out`, from which `--resume` goes on.

mod engines;
mod fields;
mod keys;
mod plan;
mod record;
mod run;
mod spec;
mod step;
mod template;

pub(crate) use plan::Plan;
pub(crate) use record::PipeRecord;
pub(crate) use run::{Item, Run};
pub(crate) use spec::Spec;
