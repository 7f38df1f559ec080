//! What a request comes back with. Field names are the JSON of the command line and the server.

use serde::Serialize;

/// The result of one request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The answer, without the end token and cut before a stop string.
    pub text: String,
    /// What the model thought before it answered, where its chat template says that it thinks; it is no part of `text`.
    /// The name is the one that DeepSeek, vLLM and llama.cpp give it.
    #[serde(rename = "reasoning_content", skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Every generated token, the end token included.
    pub token_ids: Vec<u32>,
    /// Why the answer ended, in OpenAI's words.
    pub finish_reason: FinishReason,
    /// Why the answer ended, exactly.
    pub finish_detail: FinishDetail,
    /// The stop string that ended the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_string: Option<String>,
    /// Something the reader should know, such as why the text is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// One entry per picture, in the order of the prompt.
    pub images: Vec<ImageUse>,
    /// Tokens of the prompt that stand for pictures.
    pub vision_tokens: usize,
    /// Tokens of the prompt, vision tokens included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were reused from an earlier request.
    pub cached_tokens: usize,
    /// Length of `token_ids`.
    pub completion_tokens: usize,
    /// Sum of the log-probabilities over `completion_tokens ^ length_penalty`; beam search only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// The seed that was used, chosen by the engine if none was given; sampling only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Where the time went.
    pub timings: Timings,
}

/// Why an answer ended, in the words of the OpenAI API where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// There was no room left.
    Length,
    /// The caller ended it; the text is what there was until then.
    Cancelled,
}

/// Why an answer ended, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishDetail {
    /// The model gave an end token.
    EndOfText,
    /// One of `stop` came up; it is in [`Answer::stop_string`].
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// The caller cancelled.
    Cancelled,
}

/// What became of one picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageUse {
    /// Width and height of the picture as given, in pixels, after EXIF rotation.
    pub image_size: [usize; 2],
    /// Width and height that the model saw, all tiles together.
    pub resized_to: [usize; 2],
    /// Frames that were looked at; 1 for a picture.
    pub frames: usize,
    /// Tokens of the prompt that stand for it.
    pub vision_tokens: usize,
}

/// Measured times of one request, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Loading the model, before any request.
    pub load_ms: f64,
    /// Pictures to pixel values, template, tokenizer.
    pub preprocess_ms: f64,
    /// Pixel values to image features.
    pub vision_ms: f64,
    /// Prompt to the first row of logits.
    pub prefill_ms: f64,
    /// From the first row of logits to the end of the answer.
    pub decode_ms: f64,
    /// From the start of the work on this request to its first token.
    pub ttft_ms: f64,
    /// Tokens after the first one, per second; 0 where there is no second token.
    pub tokens_per_second: f64,
}

impl FinishDetail {
    /// The same in OpenAI's words.
    pub fn reason(self) -> FinishReason {
        match self {
            Self::EndOfText | Self::StopString => FinishReason::Stop,
            Self::MaxTokens | Self::ContextFull => FinishReason::Length,
            Self::Cancelled => FinishReason::Cancelled,
        }
    }
}

impl Answer {
    /// What the reader should know: why there is no text, and which options changed nothing.
    pub(crate) fn notice(
        text: &str,
        has_thought: bool,
        detail: FinishDetail,
        without_effect: &[&str],
    ) -> Option<String> {
        let silence = match detail {
            _ if !text.trim().is_empty() => None,
            FinishDetail::MaxTokens | FinishDetail::ContextFull if has_thought => {
                Some("the tokens there was room for were spent on thinking")
            }
            _ if has_thought => Some("the answer ended while the model was thinking"),
            FinishDetail::EndOfText => Some("the model ended its answer before saying anything"),
            FinishDetail::StopString => Some("the answer began with a stop string"),
            FinishDetail::MaxTokens | FinishDetail::ContextFull => {
                Some("the tokens there was room for hold no visible text")
            }
            FinishDetail::Cancelled => Some("cancelled before there was any text"),
        };
        let idle = (!without_effect.is_empty())
            .then(|| format!("no effect without a temperature above 0: {}", without_effect.join(", ")));
        let notices: Vec<String> = silence.map(str::to_owned).into_iter().chain(idle).collect();
        (!notices.is_empty()).then(|| notices.join("; "))
    }
}
