//! Rotary embeddings on three axes: M-RoPE of Qwen2-VL (transformers `modeling_qwen2_vl.py`, `get_rope_index`) and its
//! interleaved form of Qwen3-VL.
//!
//! Text moves along all axes at once, so it is rotated as by plain rotary embeddings. The tokens of a picture stand
//! still in time and spread over rows and columns; text goes on behind the larger of the two. Surprises: places run
//! behind the number of tokens, so masks and the cache must not look at them; text behind a video goes on behind its
//! rows and columns, too, however long it is (transformers 5; version 4 went on behind its last frame).

use ocelli_backend::{Backend, Rope, RopePairing, RopeRows};
use serde::Deserialize;

use crate::ImageInput;
use crate::error::{Result, require};

/// `text_config.rope_scaling`.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    rope_type: String,
    mrope_section: [usize; 3],
    #[serde(default)]
    mrope_interleaved: bool,
}

/// The angle of every pair of elements per place.
pub(crate) struct MRope {
    /// How far each pair turns per place, and on which axis it counts.
    pairs: Vec<(f32, usize)>,
}

impl MRope {
    /// Reads `text_config.rope_scaling`.
    pub(crate) fn load(config: &ocelli_formats::Config, head_dim: usize, theta: f64) -> Result<Self> {
        let section = config.section("text_config.rope_scaling");
        let section = section.ok_or_else(|| config.root().error("text_config.rope_scaling", "missing"))?;
        let config: Config = section.parse()?;
        require(&section, config.rope_type == "mrope", "rope_type", &config.rope_type, "mrope")?;
        let parts = config.mrope_section;
        let fits = parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)) == Some(head_dim / 2);
        let expected = format!("{} pairs in all", head_dim / 2);
        require(&section, fits, "mrope_section", format!("{parts:?}"), &expected)?;
        let rope = Rope::new(head_dim, theta, None);
        let axis = if config.mrope_interleaved { interleaved_axis } else { chunked_axis };
        let frequencies = rope.inverse_frequencies().iter().enumerate();
        Ok(Self { pairs: frequencies.map(|(pair, &frequency)| (frequency, axis(pair, parts))).collect() })
    }

    /// Angles for rows at these places.
    pub(crate) fn rows<B: Backend>(&self, backend: &B, places: &[[usize; 3]]) -> RopeRows<B> {
        let angles = places.iter().flat_map(|place| self.pairs.iter().map(|&(turn, axis)| place[axis] as f32 * turn));
        RopeRows::new(backend, &angles.collect::<Vec<_>>(), places.len(), RopePairing::Halves)
    }
}

/// A picture, a video or a part of one among a prompt's tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Frames, rows and columns of tokens.
    pub(crate) tokens: [usize; 3],
    /// Places from one frame to the next; what is less than a place is cut off frame by frame.
    pub(crate) frame_step: f32,
}

/// Places of a prompt's tokens from `next` on; `spans` are in the order of those that stand for features.
pub(crate) fn places(ids: &[u32], input: ImageInput, spans: &[Span], mut next: usize) -> Vec<[usize; 3]> {
    let mut places = Vec::with_capacity(ids.len());
    let mut spans = spans.iter();
    while places.len() < ids.len() {
        let span = if input.is_feature(ids[places.len()]) { spans.next() } else { None };
        let Some(&Span { tokens: [frames, rows, columns], frame_step }) = span else {
            places.push([next; 3]);
            next += 1;
            continue;
        };
        let room = ids.len() - places.len();
        let of_span = |token: usize| {
            let time = ((token / (rows * columns)) as f32 * frame_step) as usize;
            [time, token / columns % rows, token % columns].map(|at| next + at)
        };
        places.extend((0..(frames * rows * columns).min(room)).map(of_span));
        next += rows.max(columns);
    }
    places
}

/// Time, rows and columns have the pairs one after another.
fn chunked_axis(pair: usize, [time, rows, _]: [usize; 3]) -> usize {
    usize::from(pair >= time) + usize::from(pair >= time + rows)
}

/// Time, rows and columns take turns as long as rows and columns have pairs left.
fn interleaved_axis(pair: usize, parts: [usize; 3]) -> usize {
    let axis = pair % 3;
    if pair < 3 * parts[axis] { axis } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_spread_over_rows_and_columns() {
        let ids = [1, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 2, IMAGE, 3];
        let found = places(&ids, INPUT, &[span([1, 2, 3], 1.0), span([1, 1, 1], 1.0)], 10);
        let picture = [[11, 11, 11], [11, 11, 12], [11, 11, 13], [11, 12, 11], [11, 12, 12], [11, 12, 13]];
        assert_eq!(found[0], [10; 3]);
        assert_eq!(found[1..7], picture);
        assert_eq!(found[7..], [[14; 3], [15; 3], [16; 3]]);
    }

    #[test]
    fn image_tokens_without_a_picture_count_as_text() {
        assert_eq!(places(&[IMAGE, VIDEO, 1], INPUT, &[], 0), [[0; 3], [1; 3], [2; 3]]);
        assert_eq!(places(&[IMAGE, IMAGE], INPUT, &[span([1, 2, 2], 1.0)], 0), [[0, 0, 0], [0, 0, 1]]);
    }

    #[test]
    fn frames_of_a_video_are_as_far_apart_as_they_were_taken() {
        let ids = [1, VIDEO, VIDEO, VIDEO, VIDEO, 2];
        let found = places(&ids, INPUT, &[span([4, 1, 1], 1.5)], 0);
        assert_eq!(found, [[0, 0, 0], [1, 1, 1], [2, 1, 1], [4, 1, 1], [5, 1, 1], [2, 2, 2]]);
    }

    const IMAGE: u32 = 9;
    const VIDEO: u32 = 8;
    const INPUT: ImageInput = ImageInput::TokensByKind { image: IMAGE, video: VIDEO };

    fn span(tokens: [usize; 3], frame_step: f32) -> Span {
        Span { tokens, frame_step }
    }

    #[test]
    fn pairs_are_dealt_to_axes() {
        let axes =
            |axis: fn(usize, [usize; 3]) -> usize, parts| (0..8).map(|pair| axis(pair, parts)).collect::<Vec<_>>();
        assert_eq!(axes(chunked_axis, [2, 3, 3]), [0, 0, 1, 1, 1, 2, 2, 2]);
        assert_eq!(axes(interleaved_axis, [4, 2, 2]), [0, 1, 2, 0, 1, 2, 0, 0]);
    }
}
