//! Videos of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (transformers `video_processing_qwen2_vl.py`,
//! `video_processing_qwen3_vl.py`, `processing_qwen3_vl.py`).
//!
//! Two frames make a patch. Qwen2-VL takes an even number of frames at equal distances and limits the area of each;
//! Qwen3-VL limits that of the whole video, and writes the time before every pair of frames. Surprise: there the tokens
//! around a video stay around all of it, besides those around every pair (transformers 5; version 4 dropped them).
//!
//! Differences from the reference: frames are resized with Pillow's arithmetic, which pictures have, too, and not with
//! torchvision's (99 of 100 bytes are equal, the others differ by 1, or by 2 where a frame is enlarged). Each frame has at
//! most its share of the budget, which the reference announces as its default (`cap_pixels_per_frame`) and which the
//! models' own code does. Videos are sampled also where the reference would take every frame because its caller
//! is expected to have chosen (`do_sample_frames`); a model with settings for pictures only has 2 frames per second of at
//! most 768 tokens, again as in the models' own code.

use serde::Deserialize;

use super::qwen2_vl::{
    self, CLIP_MEAN, CLIP_STD, END, RawSettings, START, Settings, check_shape, most_tokens, smart_resize, squashed,
};
use super::{Model, VideoProcessor};
use crate::image::{Detail, Image, PixelTable, PreparedImage, resize};
use crate::settings::video_config;
use crate::video::{Video, VideoInfo, VideoOptions, frame_size};
use crate::{Error, Result};

/// The video processor of all three.
#[derive(Debug)]
pub(super) struct QwenVideo {
    pub(super) settings: Settings,
    table: PixelTable,
    sampling: Sampling,
    budget: Budget,
}

/// What a class of the reference is by itself.
pub(super) struct Defaults {
    settings: qwen2_vl::Defaults,
    budget: Budget,
    /// Tokens of the budget.
    max_video_tokens: usize,
}

/// Which frames are looked at.
#[derive(Clone, Debug, PartialEq)]
struct Sampling {
    fps: f64,
    min_frames: usize,
    max_frames: usize,
    /// See `cap_pixels_per_frame`.
    is_capped: bool,
    max_video_tokens: usize,
}

/// What the limits on the area are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budget {
    /// Of each frame; the tokens of the budget are those of the video.
    Frame,
    /// Of the whole video; the tokens of the budget are those of a frame.
    Video,
}

impl QwenVideo {
    pub(super) fn load(model: &Model<'_>, defaults: &Defaults) -> Result<Self> {
        let (file, RawVideo { settings, sampling: raw }, is_own) = video_config(model.files)?;
        let mut settings = Settings::new(&file, settings, &defaults.settings)?;
        let error =
            |key: &str, message: &str| Error::Value { file: file.clone(), key: key.into(), message: message.into() };
        if !(raw.fps > 0.0 && raw.fps.is_finite()) {
            return Err(error("fps", "expected a positive number"));
        }
        if raw.max_frames == 0 || raw.max_frames > MOST_FRAMES {
            return Err(error("max_frames", &format!("expected 1 to {MOST_FRAMES}")));
        }
        if !is_own {
            let most = MAX_FRAME_TOKENS * settings.unit() * settings.unit();
            settings.max_pixels = settings.max_pixels.min(most).max(settings.min_pixels);
        }
        let sampling = Sampling {
            fps: raw.fps,
            min_frames: raw.min_frames.min(raw.max_frames),
            max_frames: raw.max_frames,
            is_capped: raw.cap_pixels_per_frame,
            max_video_tokens: raw.max_video_tokens.unwrap_or(defaults.max_video_tokens).min(MOST_TOKENS),
        };
        let table = PixelTable::new(settings.rescale, settings.normalize);
        Ok(Self { settings, table, sampling, budget: defaults.budget })
    }

    /// Width and height of each of `n_frames` frames after resizing.
    fn target(&self, (width, height): (usize, usize), n_frames: usize, detail: Detail) -> (usize, usize) {
        let (settings, sampling) = (&self.settings, &self.sampling);
        let (unit, frames) = (settings.unit(), n_frames.max(settings.frames));
        let (min, token) = (settings.min_pixels, unit * unit);
        let mut max = settings.max_pixels;
        let least = (min as f64 * 1.05) as usize;
        let target = match self.budget {
            Budget::Frame => {
                if sampling.is_capped {
                    let total = (sampling.max_video_tokens as f64 * token as f64 * 0.9) as usize;
                    max = max.min(total * settings.frames / frames).max(least);
                }
                max = max.min(most_tokens(detail).saturating_mul(token)).max(min);
                smart_resize((width, height), [1, 1], unit, [min, max])
            }
            Budget::Video => {
                if sampling.is_capped {
                    max = (sampling.max_video_tokens * token).min(max / frames).max(least) * frames;
                }
                max = max.min(most_tokens(detail).saturating_mul(token * frames)).max(min);
                let held = (frames as f64 / settings.frames as f64).round_ties_even() as usize * settings.frames;
                smart_resize(enlarged((width, height), unit), [frames, held], unit, [min, max])
            }
        };
        squashed(target, unit, detail)
    }
}

/// Sides of at least one token, in the reference's order of operations.
fn enlarged((width, height): (usize, usize), unit: usize) -> (usize, usize) {
    if width >= unit && height >= unit {
        return (width, height);
    }
    let scale = (unit as f64 / height as f64).max(unit as f64 / width as f64);
    ((width as f64 * scale) as usize, (height as f64 * scale) as usize)
}

impl VideoProcessor for QwenVideo {
    fn placeholder(&self) -> &str {
        PLACEHOLDER
    }

    fn video_token(&self) -> &str {
        PAD
    }

    fn fps(&self) -> f64 {
        self.sampling.fps
    }

    fn sample(&self, info: &VideoInfo, options: &VideoOptions) -> Vec<usize> {
        let Sampling { fps, min_frames, max_frames, .. } = self.sampling;
        let (total, group) = (info.frames, self.settings.frames);
        let max = options.max_frames.unwrap_or(max_frames).clamp(1, max_frames);
        let min = min_frames.min(max);
        let Some(source_fps) = info.fps else {
            // Somebody has chosen already.
            return if total <= max { (0..total).collect() } else { evenly(total, max) };
        };
        let wanted = total as f64 / source_fps * options.fps.unwrap_or(fps);
        match self.budget {
            Budget::Frame => {
                // Whole patches, but for a video that has not one.
                let whole = |n: usize| if n < group { n.max(1) } else { n / group * group };
                let n = whole(wanted.max(min as f64).min(whole(max.min(total)) as f64) as usize);
                let distance = total as f64 / n as f64;
                // The reference counts in single precision.
                (0..n).map(|idx| ((idx as f64 * distance) as f32 as usize).min(total - 1)).collect()
            }
            Budget::Video => evenly(total, (wanted as usize).max(min).min(max).min(total).max(1)),
        }
    }

    fn fit(&self, frame: &Image, n_frames: usize, detail: Detail) -> Result<Image> {
        let size = (frame.width, frame.height);
        if size.0 == 0 || size.1 == 0 {
            return Err(Error::NoPixels { width: size.0, height: size.1 });
        }
        check_shape(size.0, size.1)?;
        let (width, height) = self.target(size, n_frames, detail);
        Ok(resize(frame, width, height, self.settings.filter))
    }

    fn vision_tokens(&self, size: (usize, usize), n_frames: usize) -> usize {
        n_frames.div_ceil(self.settings.frames) * self.settings.tokens(size)
    }

    fn prepare(&self, video: &Video) -> Result<(PreparedImage, String)> {
        let (width, height) = video.size()?;
        let frames = self.settings.frames;
        let unit = self.settings.unit();
        if width % unit != 0 || height % unit != 0 {
            let whole = (width.next_multiple_of(unit), height.next_multiple_of(unit));
            return Err(frame_size(0, &video.frames[0], whole));
        }
        let mut pixel_values = Vec::new();
        for group in video.frames.chunks(frames) {
            self.settings.append_patches(group, &self.table, &mut pixel_values);
        }
        let groups = video.frames.len().div_ceil(frames);
        let [rows, columns] = self.settings.grid(&video.frames[0]);
        let patches = groups * rows * columns;
        let per_group = self.settings.tokens((width, height));
        let prepared = PreparedImage {
            shape: [1, 1, patches, pixel_values.len() / patches],
            pixel_values,
            grid: [groups, rows, columns],
            frames: video.frames.len(),
            frame_seconds: (frames as f64 / video.sampled_fps()) as f32,
            text_ids: Vec::new(),
            image_size: video.source_size,
            resized_to: (width, height),
            vision_tokens: self.vision_tokens((width, height), video.frames.len()),
            content_hash: video.hash(&format!("qwen {:?}", self.settings)),
        };
        let tokens = match self.budget {
            Budget::Frame => PAD.repeat(prepared.vision_tokens),
            Budget::Video => {
                let seconds = |group: usize| {
                    let (first, last) = (group * frames, group * frames + frames - 1);
                    (video.seconds(first) + video.seconds(last)) / 2.0
                };
                let tokens = PAD.repeat(per_group);
                (0..groups).map(|group| format!("<{:.1} seconds>{START}{tokens}{END}", seconds(group))).collect()
            }
        };
        Ok((prepared, format!("{START}{tokens}{END}")))
    }
}

/// `n` of `total` frames from the first to the last.
fn evenly(total: usize, n: usize) -> Vec<usize> {
    let step = (total - 1) as f64 / (n - 1).max(1) as f64;
    let number = |idx: usize| ((idx as f64 * step).round_ties_even() as usize).min(total - 1);
    (0..n).map(number).collect()
}

#[derive(Deserialize)]
struct RawVideo {
    #[serde(flatten)]
    settings: RawSettings,
    #[serde(flatten)]
    sampling: RawSampling,
}

/// Defaults are those of the reference, and where it has none of the models' own code.
#[derive(Deserialize)]
#[serde(default)]
struct RawSampling {
    fps: f64,
    min_frames: usize,
    max_frames: usize,
    cap_pixels_per_frame: bool,
    max_video_tokens: Option<usize>,
}

impl Default for RawSampling {
    fn default() -> Self {
        Self { fps: 2.0, min_frames: 4, max_frames: 768, cap_pixels_per_frame: true, max_video_tokens: None }
    }
}

/// Of Qwen2-VL and Qwen2.5-VL.
pub(super) const QWEN_2: Defaults = Defaults {
    settings: qwen2_vl::Defaults {
        min_pixels: 128 * 28 * 28,
        max_pixels: 768 * 28 * 28,
        patch: 14,
        mean: CLIP_MEAN,
        std: CLIP_STD,
    },
    budget: Budget::Frame,
    max_video_tokens: 128_000,
};

/// Of Qwen3-VL.
pub(super) const QWEN_3: Defaults = Defaults {
    settings: qwen2_vl::Defaults {
        min_pixels: 128 * 32 * 32,
        max_pixels: 768 * 32 * 32,
        patch: 16,
        mean: [0.5; 3],
        std: [0.5; 3],
    },
    budget: Budget::Video,
    max_video_tokens: 768,
};

/// Most tokens of a frame where only pictures have settings.
const MAX_FRAME_TOKENS: usize = 768;
/// No model asks for more.
const MOST_FRAMES: usize = 1 << 16;
const MOST_TOKENS: usize = 1 << 24;
const PAD: &str = "<|video_pad|>";
const PLACEHOLDER: &str = "<|vision_start|><|video_pad|><|vision_end|>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ResampleFilter;

    /// With the settings that are published for Qwen3-VL, and the defaults of the others.
    fn processor(defaults: &Defaults, [min_pixels, max_pixels]: [usize; 2], is_capped: bool) -> QwenVideo {
        let (patch, filter) = (defaults.settings.patch, ResampleFilter::Bicubic);
        let settings =
            Settings { min_pixels, max_pixels, patch, frames: 2, merge: 2, filter, rescale: None, normalize: None };
        let max_video_tokens = defaults.max_video_tokens;
        let sampling = Sampling { fps: 2.0, min_frames: 4, max_frames: 768, is_capped, max_video_tokens };
        QwenVideo { settings, table: PixelTable::new(None, None), sampling, budget: defaults.budget }
    }

    /// Of the reference's `resize`, with and without `cap_pixels_per_frame`.
    #[test]
    fn sizes_are_those_of_the_reference() {
        let areas = [QWEN_2.settings.min_pixels, QWEN_2.settings.max_pixels];
        let of_2 = [true, false].map(|is_capped| processor(&QWEN_2, areas, is_capped));
        let of_3 = [true, false].map(|is_capped| processor(&QWEN_3, [4096, 25_165_824], is_capped));
        for (size, frames, expected) in [
            ((640, 480), 8, [(644, 476), (644, 476), (640, 480), (640, 480)]),
            ((1920, 1080), 8, [(1008, 560), (1008, 560), (1152, 640), (1920, 1088)]),
            ((1920, 1080), 400, [(896, 504), (1008, 560), (320, 160), (320, 160)]),
            ((1920, 1080), 768, [(644, 336), (1008, 560), (224, 128), (224, 128)]),
            ((100, 60), 6, [(420, 252), (420, 252), (96, 64), (96, 64)]),
            ((57, 1000), 5, [(84, 1344), (84, 1344), (64, 992), (64, 992)]),
            ((20, 30), 2, [(280, 392), (280, 392), (32, 64), (32, 64)]),
        ] {
            let found: Vec<_> = of_2.iter().chain(&of_3).map(|of| of.target(size, frames, Detail::Auto)).collect();
            assert_eq!(found, expected, "{size:?} in {frames} frames");
        }
        assert_eq!(of_2[0].target((4000, 4000), 8, Detail::Low), (448, 448));
        assert_eq!(of_3[0].target((4000, 4000), 8, Detail::Low), (512, 512));
    }

    #[test]
    fn a_line_or_nothing_is_refused() {
        let processor = processor(&QWEN_3, [4096, 25_165_824], true);
        let fit =
            |width, height| processor.fit(&Image::new(width, height, vec![0; width * height * 3]), 2, Detail::Auto);
        assert!(matches!(fit(201, 1), Err(Error::TooNarrow { .. })));
        assert!(matches!(fit(0, 1), Err(Error::NoPixels { .. })));
        assert!(fit(1, 1).is_ok());
    }
}
