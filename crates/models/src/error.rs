//! Why a model cannot be loaded.

use ocelli_formats::Section;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No family goes by the config's `model_type`.
    #[error("architecture {model_type} is not supported; supported are {}", supported.join(", "))]
    UnsupportedArchitecture {
        /// From `config.json`.
        model_type: String,
        /// What the registry holds.
        supported: Vec<&'static str>,
    },
    /// The config could not be read, or asks for something that the family does not implement.
    #[error(transparent)]
    Formats(#[from] ocelli_formats::Error),
    /// The weights do not fit.
    #[error(transparent)]
    Weights(#[from] ocelli_backend::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Refuses a config value that would silently change the answer.
pub(crate) fn require(
    section: &Section,
    holds: bool,
    key: &str,
    value: impl std::fmt::Display,
    expected: &str,
) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(section.error(key, &format!("{value} is not supported (expected {expected})")).into())
}
