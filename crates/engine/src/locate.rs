//! Where something is in a picture, in numbers.

use std::sync::mpsc::Sender;

use ocelli_backend::Cancel;
use ocelli_processors::Image;
use serde::Serialize;

use crate::answer::ImageUse;
use crate::error::Result;

/// What is looked for.
#[derive(Clone, Debug)]
pub struct LocateRequest {
    /// Where.
    pub image: Image,
    /// In the user's words.
    pub thing: String,
    /// Whether boxes are wanted, or places alone.
    pub boxes: bool,
    /// Most that are found.
    pub max_regions: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Located {
    /// In the order in which the model named them.
    pub regions: Vec<Region>,
    /// The picture.
    pub image: ImageUse,
    /// Tokens of the prompt, vision tokens included.
    pub prompt_tokens: usize,
    /// Milliseconds from the start of the work on this request to its end.
    pub total_ms: f64,
}

/// A thing in a picture; fractions of the picture's width and height.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Region {
    /// Its middle, from the left.
    pub x: f32,
    /// Its middle, from above.
    pub y: f32,
    /// Its width and height, where boxes were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<[f32; 2]>,
}

/// A request and where its result goes.
#[derive(Debug)]
pub(crate) struct LocateJob {
    pub(crate) request: LocateRequest,
    pub(crate) cancel: Cancel,
    pub(crate) result: Sender<Result<Located>>,
}

impl Region {
    /// Left, top, right and bottom edge; within the picture.
    pub fn edges(&self) -> Option<[f32; 4]> {
        let [width, height] = self.size?;
        let (left, top) = (self.x - width / 2.0, self.y - height / 2.0);
        Some([left, top, left + width, top + height].map(|edge| edge.clamp(0.0, 1.0)))
    }
}
