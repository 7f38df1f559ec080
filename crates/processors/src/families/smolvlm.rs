//! Videos of SmolVLM2 (transformers `video_processing_smolvlm.py`, `processing_smolvlm.py`).
//!
//! Every frame is a picture of one tile, announced by the time at which it was taken; what comes first says in words how
//! many there are. Resized with Pillow's arithmetic, as pictures are; the reference uses torchvision's (99 of 100 bytes
//! are equal, the others differ by 1, or by 2 where a frame is enlarged). Surprise: whether the first and the last second
//! are left out depends on the product of frames and frames per second, which means nothing but is the reference's.

use serde::Deserialize;

use super::idefics3::{FAKE, GLOBAL, IMAGE, RawSettings, Settings, TileTokens};
use super::{Model, VideoProcessor};
use crate::image::{Detail, Image, PixelTable, PreparedImage, Window, resize};
use crate::settings::video_config;
use crate::video::{Video, VideoInfo, VideoOptions, frame_size};
use crate::{Error, Result};

/// The SmolVLM2 video processor.
#[derive(Debug)]
pub(super) struct SmolVideo {
    settings: Settings,
    table: PixelTable,
    fps: f64,
    max_frames: usize,
    tokens: TileTokens,
}

impl SmolVideo {
    /// For a tower whose tiles become these tokens, and have this many pixels per side. `None` if frames would have
    /// other sizes: such settings are what transformers saves beside a model of pictures that has none of its own.
    pub(super) fn load(model: &Model<'_>, tokens: TileTokens, tile: usize) -> Result<Option<Self>> {
        let (file, raw, _): (String, RawVideo, bool) = video_config(model.files)?;
        let error = |key: &str, message: String| Error::Value { file: file.clone(), key: key.into(), message };
        let settings = Settings::new(&file, raw.settings)?;
        let sampling = raw.sampling.video_sampling.unwrap_or_default();
        if settings.tile != tile {
            return Ok(None);
        }
        let fps = raw.sampling.fps.or(sampling.fps).unwrap_or(1.0);
        let max_frames = raw.sampling.num_frames.or(sampling.max_frames).unwrap_or(64);
        if !(fps > 0.0 && fps.is_finite()) {
            return Err(error("video_sampling.fps", "expected a positive number".into()));
        }
        if !(1..=MOST_FRAMES).contains(&max_frames) {
            return Err(error("video_sampling.max_frames", format!("expected 1 to {MOST_FRAMES}, got {max_frames}")));
        }
        let table = PixelTable::new(settings.rescale, settings.normalize);
        Ok(Some(Self { settings, table, fps, max_frames, tokens }))
    }
}

impl VideoProcessor for SmolVideo {
    fn placeholder(&self) -> &str {
        "<video>"
    }

    fn video_token(&self) -> &str {
        IMAGE
    }

    fn fps(&self) -> f64 {
        self.fps
    }

    fn sample(&self, info: &VideoInfo, options: &VideoOptions) -> Vec<usize> {
        let (total, last) = (info.frames, info.frames - 1);
        let most = options.max_frames.unwrap_or(self.max_frames).clamp(1, self.max_frames);
        let Some((source_fps, duration)) = info.fps.zip(info.duration()) else {
            // Somebody has chosen already.
            return evenly(0, last, most.min(total));
        };
        let fps = options.fps.unwrap_or(self.fps);
        let wanted = ((fps * duration).round_ties_even() as usize).min(most).max(1);
        let (mut start, mut end) = (0, last);
        if duration - 2.0 * SKIPPED > most as f64 * fps {
            start = (SKIPPED * source_fps) as usize;
            end = ((total as f64 - SKIPPED * source_fps) as usize).min(last);
        }
        if start >= end {
            (start, end) = (0, last);
        }
        evenly(start, end, wanted)
    }

    fn fit(&self, frame: &Image, _: usize, detail: Detail) -> Result<Image> {
        let &Image { width, height, .. } = frame;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let filter = self.settings.filter;
        // At most one tile.
        let detail = match detail {
            Detail::AtMost(most) if most < self.tokens.of(self.settings.tile) => detail,
            _ => Detail::Low,
        };
        let plan = self.settings.plan((width, height), detail, self.tokens);
        Ok(resize(&resize(frame, plan.first.0, plan.first.1, filter), plan.tile, plan.tile, filter))
    }

    fn vision_tokens(&self, (tile, _): (usize, usize), n_frames: usize) -> usize {
        n_frames * self.tokens.of(tile)
    }

    fn prepare(&self, video: &Video) -> Result<(PreparedImage, String)> {
        let ((tile, height), n_frames, most) = (video.size()?, video.frames.len(), self.settings.tile);
        let is_smaller = tile < most && self.tokens.side_of(self.tokens.of(tile)) == tile;
        if height != tile || (tile != most && !is_smaller) {
            return Err(frame_size(0, &video.frames[0], (most, most)));
        }
        let mut pixel_values = Vec::with_capacity(n_frames * 3 * tile * tile);
        for frame in &video.frames {
            let window = Window { left: 0, top: 0, width: tile, height: tile };
            self.table.append_planes(&frame.pixels, tile, window, &mut pixel_values);
        }
        let prepared = PreparedImage {
            pixel_values,
            shape: [n_frames, 3, tile, tile],
            grid: [n_frames, 0, 0],
            frames: n_frames,
            frame_seconds: (1.0 / video.sampled_fps()) as f32,
            text_ids: Vec::new(),
            image_size: video.source_size,
            resized_to: (tile, tile),
            vision_tokens: self.vision_tokens((tile, tile), n_frames),
            content_hash: video.hash(&format!("smolvlm {:?}", self.settings)),
        };
        let last = video.seconds(n_frames - 1);
        let duration = video.duration.unwrap_or(last) as u64;
        let (hours, minutes, seconds) = (duration / 3600, duration / 60 % 60, duration % 60);
        let count = in_words(n_frames);
        let mut text = format!(
            "You are provided the following series of {count} frames from a {hours}:{minutes:02}:{seconds:02} \
             [H:MM:SS] video.\n"
        );
        let tokens = IMAGE.repeat(self.tokens.of(tile));
        for frame in 0..n_frames {
            let seconds = video.seconds(frame) as u64;
            text += &format!("\nFrame from {:02}:{:02}:{FAKE}{GLOBAL}{tokens}{FAKE}", seconds / 60, seconds % 60);
        }
        Ok((prepared, text + "\n\n"))
    }
}

/// At most `n` different numbers from `start` to `end`.
fn evenly(start: usize, end: usize, n: usize) -> Vec<usize> {
    let step = (end - start) as f64 / (n - 1).max(1) as f64;
    let number = |idx: usize| if idx > 0 && idx == n - 1 { end } else { (idx as f64 * step + start as f64) as usize };
    let mut numbers: Vec<usize> = (0..n).map(number).collect();
    numbers.dedup();
    numbers
}

/// A number below [`MOST_FRAMES`], British style: "one hundred and five".
fn in_words(number: usize) -> String {
    match number {
        0..20 => SMALL[number].to_owned(),
        20..100 if number.is_multiple_of(10) => TENS[number / 10].to_owned(),
        20..100 => format!("{}-{}", TENS[number / 10], SMALL[number % 10]),
        100..1000 if number.is_multiple_of(100) => format!("{} hundred", SMALL[number / 100]),
        100..1000 => format!("{} hundred and {}", SMALL[number / 100], in_words(number % 100)),
        _ => number.to_string(),
    }
}

#[derive(Deserialize)]
struct RawVideo {
    #[serde(flatten)]
    settings: RawSettings,
    #[serde(flatten)]
    sampling: RawSampling,
}

#[derive(Deserialize)]
struct RawSampling {
    video_sampling: Option<RawVideoSampling>,
    /// Re-saved settings have these in place of `video_sampling`.
    fps: Option<f64>,
    num_frames: Option<usize>,
}

#[derive(Default, Deserialize)]
struct RawVideoSampling {
    fps: Option<f64>,
    max_frames: Option<usize>,
}

/// Seconds at the beginning and at the end of a long video that are not looked at.
const SKIPPED: f64 = 1.0;
/// No model asks for more.
const MOST_FRAMES: usize = 999;
const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `num2words`, which the reference uses.
    #[test]
    fn numbers_are_words() {
        for (number, words) in [
            (1, "one"),
            (8, "eight"),
            (13, "thirteen"),
            (20, "twenty"),
            (21, "twenty-one"),
            (64, "sixty-four"),
            (100, "one hundred"),
            (105, "one hundred and five"),
            (768, "seven hundred and sixty-eight"),
        ] {
            assert_eq!(in_words(number), words);
        }
    }
}
