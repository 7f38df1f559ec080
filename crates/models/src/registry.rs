//! The table of families: `model_type` of a config -> the code that loads it.

use ocelli_backend::{Backend, WeightSource};
use ocelli_formats::Config;

use crate::blip::Blip;
use crate::blip2::Blip2;
use crate::deepseek_vl_v2::DeepseekVlV2;
use crate::error::{Error, Result};
use crate::fast_vlm::FastVlm;
use crate::idefics3::Idefics3;
use crate::instructblip::InstructBlip;
use crate::llava::Llava;
use crate::moondream::Moondream;
use crate::qwen_vl::{Qwen2Vl, Qwen25Vl};
use crate::qwen3_vl::Qwen3Vl;
use crate::whisper::Whisper;
use crate::{Model, llama, qwen2, qwen3};

/// What is known of a family before any weights are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// Whether it takes pictures.
    pub sees_images: bool,
}

/// The table: one row per `model_type`. (A macro, since a `static` cannot hold functions generic over the backend.)
macro_rules! families {
    ($($model_type:literal, $title:literal, sees_images: $sees_images:literal, $load:path;)*) => {
        /// All families, by `model_type`.
        pub const ARCHITECTURES: &[Architecture] =
            &[$(Architecture { model_type: $model_type, title: $title, sees_images: $sees_images }),*];

        /// Loads the model that a config describes, with the weights of a checkpoint (or random ones).
        ///
        /// # Errors
        /// When the architecture, a config value or the set of tensors is not what a family implements.
        pub fn load<'a, B: Backend>(
            backend: &B,
            config: &Config,
            source: impl Into<WeightSource<'a>>,
        ) -> Result<Box<dyn Model<B>>> {
            match config.model_type() {
                $($model_type => Ok(Box::new($load(backend, config, source.into())?)),)*
                other => Err(unsupported(other)),
            }
        }
    };
}

families! {
    "blip", "BLIP captioning and VQA", sees_images: true, Blip::load;
    "blip-2", "BLIP-2 (OPT)", sees_images: true, Blip2::load;
    "deepseek_vl_v2", "DeepSeek-VL2 Tiny, Small", sees_images: true, DeepseekVlV2::load;
    "fast_vlm", "FastVLM", sees_images: true, FastVlm::load;
    "idefics3", "Idefics3, SmolVLM", sees_images: true, Idefics3::load;
    "instructblip", "InstructBLIP (Vicuna)", sees_images: true, InstructBlip::load;
    "llama", "Llama 2, 3.x", sees_images: false, llama::load;
    "llava", "LLaVA 1.5", sees_images: true, Llava::load;
    "llava_qwen2", "FastVLM (Apple's names)", sees_images: true, FastVlm::load;
    "moondream1", "Moondream 2", sees_images: true, Moondream::load;
    "qwen2", "Qwen2, Qwen2.5, R1-Distill-Qwen", sees_images: false, qwen2::load;
    "qwen2_5_vl", "Qwen2.5-VL", sees_images: true, Qwen25Vl::load;
    "qwen2_vl", "Qwen2-VL", sees_images: true, Qwen2Vl::load;
    "qwen3", "Qwen3", sees_images: false, qwen3::load;
    "qwen3_vl", "Qwen3-VL", sees_images: true, Qwen3Vl::load;
    "smolvlm", "SmolVLM2", sees_images: true, Idefics3::load;
    "whisper", "Whisper", sees_images: false, Whisper::load;
}

/// Looks a family up by its `model_type`.
///
/// # Errors
/// [`Error::UnsupportedArchitecture`], which names what there is.
pub fn architecture(model_type: &str) -> Result<Architecture> {
    let found = ARCHITECTURES.iter().find(|row| row.model_type == model_type);
    found.copied().ok_or_else(|| unsupported(model_type))
}

fn unsupported(model_type: &str) -> Error {
    let supported = ARCHITECTURES.iter().map(|row| row.model_type).collect();
    Error::UnsupportedArchitecture { model_type: model_type.to_owned(), supported }
}
