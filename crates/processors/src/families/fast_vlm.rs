//! FastVLM's pictures and prompts (transformers `image_processing_pil_llava.py`; Apple `mm_utils.py`, conversation
//! `qwen_2`).
//!
//! A picture is padded to a square, scaled to the side that the tower was made for, and not normalised. Apple's folders
//! have no settings for pictures, a chat template of a text model and a tokenizer without `<image>`.

use serde::Deserialize;

use super::clip::{Clip, Settings, Size};
use super::{ImageProcessor, Model};
use crate::image::{Detail, Image, PreparedImage, ResampleFilter};
use crate::{Error, Result};

/// FastVLM's image processor: CLIP's, with a token of its own.
#[derive(Debug)]
struct FastVlm {
    clip: Clip,
    image_token_id: u32,
}

/// Reads `preprocessor_config.json`, where there is one, and `config.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let root = model.config.root();
    let config: Config = root.parse()?;
    let settings = match config.mm_vision_tower.as_deref() {
        Some(tower) if model.files.bytes("preprocessor_config.json")?.is_none() => {
            let side = tower.rsplit('_').next().and_then(|side| side.parse().ok()).filter(|side| SIDES.contains(side));
            let aspect = config.image_aspect_ratio.as_deref().unwrap_or("pad");
            let wrong = |key: &str, value: &str, expected: &str| {
                Error::from(root.error(key, &format!("{value} is not supported (expected {expected})")))
            };
            if aspect != "pad" {
                return Err(wrong("image_aspect_ratio", aspect, "pad"));
            }
            settings(side.ok_or_else(|| wrong("mm_vision_tower", tower, "a name that ends in the side of a picture"))?)
        }
        _ => Settings::load(model)?,
    };
    let grid = settings.output().map(|(height, width)| (height / PATCH) * (width / PATCH)).filter(|&tokens| tokens > 0);
    let Some(vision_tokens) = grid else {
        let message = format!("pictures need one size, of at least {PATCH}x{PATCH}");
        let file = model.files.label_of("preprocessor_config.json");
        return Err(Error::Value { file, key: "crop_size".into(), message });
    };
    let image_token_id = config.image_token_index.and_then(|id| u32::try_from(id).ok()).unwrap_or(IMAGE_TOKEN);
    Ok(Box::new(FastVlm { clip: Clip::new(settings, vision_tokens), image_token_id }))
}

impl ImageProcessor for FastVlm {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        self.clip.prepare_with(image, detail)
    }

    fn vision_tokens(&self, width: usize, height: usize, detail: Detail) -> usize {
        self.clip.vision_tokens(width, height, detail)
    }

    fn expand(&self, image: &PreparedImage) -> String {
        self.clip.expand(image)
    }

    fn placeholder(&self) -> &str {
        IMAGE
    }

    fn image_token(&self) -> &str {
        IMAGE
    }

    fn foreign_tokens(&self) -> Vec<(&'static str, Vec<u32>)> {
        vec![(IMAGE, vec![self.image_token_id])]
    }

    fn default_template(&self) -> Option<&'static str> {
        Some(TEMPLATE)
    }
}

/// Those of Apple's code, for pictures of a side.
fn settings(side: usize) -> Settings {
    Settings {
        pad: Some([0; 3]),
        size: Some(Size::ShortestEdge(side)),
        crop: Some((side, side)),
        filter: ResampleFilter::Bicubic,
        rescale: Some(1.0 / 255.0),
        normalize: Some(([0.0; 3], [1.0; 3])),
    }
}

#[derive(Deserialize)]
struct Config {
    mm_vision_tower: Option<String>,
    image_aspect_ratio: Option<String>,
    image_token_index: Option<i64>,
}

/// Conversation `qwen_2`: each picture stands on a line of its own.
const TEMPLATE: &str = "\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- for part in message.content %}{{ '<image>\\n' if part.type == 'image' else part.text }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const IMAGE: &str = "<image>";
/// Pixels per feature, down and across.
const PATCH: usize = 64;
/// Sides that are worth a try.
const SIDES: std::ops::RangeInclusive<usize> = PATCH..=8192;
/// The first id behind Qwen2's tokens, as in converted checkpoints.
const IMAGE_TOKEN: u32 = 151_646;
