//! What can go wrong while a model is loaded.

/// Errors of this crate: all of them happen at load, none afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint does not hold what the model needs, or holds what nobody reads; every name is listed.
    #[error("the checkpoint does not fit the model: {}", describe(missing, left_over, misshaped))]
    Mismatch {
        /// Tensors that the model needs and the checkpoint lacks.
        missing: Vec<String>,
        /// Tensors of the checkpoint that no layer asked for.
        left_over: Vec<String>,
        /// Tensors with another shape or type than the config asks for, each with both.
        misshaped: Vec<String>,
    },
    /// Two tensors of the checkpoint have the same canonical name.
    #[error("tensors {first} and {second} are the same weight under two names")]
    Duplicate {
        /// Name in the checkpoint.
        first: String,
        /// Name in the checkpoint.
        second: String,
    },
    /// The backend has no way to hold a weight of this type.
    #[error("tensor {name}: {reason}")]
    UnsupportedWeight {
        /// Name in the checkpoint.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's bytes could not be read.
    #[error(transparent)]
    Formats(#[from] ocelli_formats::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

fn describe(missing: &[String], left_over: &[String], misshaped: &[String]) -> String {
    let parts = [("missing", missing), ("left over", left_over), ("of another shape", misshaped)];
    let parts = parts.iter().filter(|(_, names)| !names.is_empty());
    parts.map(|(what, names)| format!("{} {what}: {}", names.len(), shorten(names))).collect::<Vec<_>>().join("; ")
}

/// A checkpoint of the wrong family has hundreds of such names: the first ones tell which family it is.
fn shorten(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let head = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{head} and {} more", names.len() - SHOWN) } else { head }
}
