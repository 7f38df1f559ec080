//! What can go wrong while a model is loaded or answers, and what the user can do about it.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file could not be read or understood.
    #[error(transparent)]
    Formats(#[from] ocelli_formats::Error),
    /// The config or the weights are not what a family implements.
    #[error(transparent)]
    Models(#[from] ocelli_models::Error),
    /// A picture, a chat template or the tokenizer.
    #[error(transparent)]
    Processors(#[from] ocelli_processors::Error),
    /// The device cannot be used as asked.
    #[error(transparent)]
    Cpu(#[from] ocelli_backend_cpu::Error),
    /// An option has a value that means nothing.
    #[error("{name} is {value}, expected {expected}")]
    InvalidOption {
        /// Name of the option, as in [`crate::GenerateOptions`].
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Two options that cannot be used together.
    #[error("{first} cannot be used together with {second}")]
    OptionConflict {
        /// Name and value of one.
        first: String,
        /// Name and value of the other.
        second: String,
    },
    /// There is nothing to answer.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error("the prompt takes {prompt_tokens} tokens, but the model's context is {context_length}")]
    PromptTooLong {
        /// Tokens of the prompt, vision tokens included.
        prompt_tokens: usize,
        /// Longest sequence of the model.
        context_length: usize,
    },
    /// A picture was given to a model without eyes.
    #[error("{model_type} models do not take pictures")]
    NoVision {
        /// From `config.json`.
        model_type: String,
    },
    /// A recording was given to a model without ears.
    #[error("{model_type} models do not take recordings")]
    NoHearing {
        /// From `config.json`.
        model_type: String,
    },
    /// A model that has only words for places was asked for numbers.
    #[error("{model_type} models do not tell where things are")]
    NoRegions {
        /// From `config.json`.
        model_type: String,
    },
    /// A prompt without a picture (or a recording) for a model that has nothing else to start from.
    #[error("{model_type} models answer only about a picture or a recording")]
    NothingToLookAt {
        /// From `config.json`.
        model_type: String,
    },
    /// The prompt has another number of image tokens than the pictures have features.
    #[error("the prompt holds {placeholders} image tokens, but the pictures give {features} features")]
    VisionTokenMismatch {
        /// Image tokens in the prompt.
        placeholders: usize,
        /// Rows of image features.
        features: usize,
    },
    /// A token id beyond the vocabulary: the tokenizer and the weights do not belong together.
    #[error("token id {id} is beyond the model's vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The offending id.
        id: u32,
        /// Logits per row.
        vocab_size: usize,
    },
    /// The model gave no usable number: its weights are broken or its arithmetic overflowed.
    #[error("the model's logits are not finite after {tokens} tokens")]
    NotFinite {
        /// Tokens of the sequence at that point.
        tokens: usize,
    },
    /// What is needed does not fit into memory; noticed before anything was allocated.
    #[error("{what} need {}, but only {} of memory is available", megabytes(*needed), megabytes(*available))]
    OutOfMemory {
        /// What the memory is for.
        what: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
        /// What would make it fit.
        advice: &'static str,
    },
    /// Another precision was asked for than that of a checkpoint that is already quantised.
    #[error("{label} is already quantised ({stored}): its weights cannot become {asked}")]
    AlreadyQuantized {
        /// The model.
        label: String,
        /// What most of its weights are stored as.
        stored: String,
        /// What was asked for.
        asked: &'static str,
    },
    /// A folder that a quantised model cannot be written to.
    #[error("{}: {reason}", path.display())]
    Target {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// This request hit a bug; the engine goes on.
    #[error("the request failed inside the engine: {message}")]
    Panicked {
        /// The panic's text.
        message: String,
    },
    /// The worker thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// The request was cancelled; only seen by users of [`crate::Session`], requests end with an answer instead.
    #[error("cancelled")]
    Cancelled,
    /// Two runs of a measurement gave different tokens, although nothing about them differed.
    #[error("run {run} gave other tokens than the first one (hash {got}, expected {expected})")]
    Unrepeatable {
        /// Number of the run, from 1, warm-up included.
        run: usize,
        /// The first run's hash.
        expected: String,
        /// This run's hash.
        got: String,
    },
    /// A sequence that was decoded together with others gave other tokens than alone.
    #[error(
        "sequence {sequence} of {batch} decoded together gave other tokens than alone (hash {got}, expected {expected})"
    )]
    BatchDiffers {
        /// Number of the sequence, from 1.
        sequence: usize,
        /// How many there were.
        batch: usize,
        /// The hash of the tokens alone.
        expected: String,
        /// This sequence's hash.
        got: String,
    },
    /// A file of a parity folder or the embedded held-out set is missing or is not what it should be.
    #[error("{}: {reason}", path.display())]
    Reference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Formats(error) => return error.hint(),
            Self::Processors(error) => return error.hint(),
            Self::PromptTooLong { .. } => "shorten the prompt, or use fewer or smaller pictures",
            Self::NoVision { .. } => "choose a vision-language model, or leave the pictures out",
            Self::VisionTokenMismatch { .. } | Self::TokenOutOfRange { .. } => {
                "the processor files and the weights may come from different models"
            }
            Self::NoRegions { .. } => "choose a Moondream model, such as vikhyatk/moondream2",
            Self::NoHearing { .. } => "choose a Whisper model, such as openai/whisper-base",
            Self::OutOfMemory { advice, .. } => advice,
            Self::AlreadyQuantized { .. } => {
                "load it as it is, without --quant, or take the original checkpoint in float32, bfloat16 or float16"
            }
            Self::Unrepeatable { .. } | Self::BatchDiffers { .. } => {
                "this is a bug; please report it with the command line"
            }
            Self::Target { .. } => "give another folder, or --force to replace a model that is there",
            Self::Panicked { .. } => "this is a bug; please report it with the request that caused it",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
