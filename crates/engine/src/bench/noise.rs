//! Pictures and prompts without meaning, the same every time.

use ocelli_processors::{Image, PreparedImage};

/// A picture of random pixels.
pub(crate) fn picture(width: usize, height: usize) -> Image {
    let mut random = Noise(1);
    Image::new(width, height, (0..width * height * 3).map(|_| random.below(256) as u8).collect())
}

/// The arrays of a picture that was cut into `rows` x `cols` tiles and, when these are several, a global view.
pub(crate) fn tiles([rows, cols]: [usize; 2], side: usize, tokens_per_tile: usize) -> PreparedImage {
    let mut random = Noise(2);
    let n_tiles = if rows * cols > 1 { rows * cols + 1 } else { 1 };
    let (rows, cols) = if n_tiles > 1 { (rows, cols) } else { (0, 0) };
    let size = (cols.max(1) * side, rows.max(1) * side);
    PreparedImage {
        pixel_values: (0..n_tiles * 3 * side * side).map(|_| random.below(256) as f32 / 127.5 - 1.0).collect(),
        n_tiles,
        height: side,
        width: side,
        rows,
        cols,
        image_size: size,
        resized_to: size,
        vision_tokens: n_tiles * tokens_per_tile,
        content_hash: 0,
    }
}

/// Image tokens, then `text_tokens` others.
pub(crate) fn prompt(image: Option<(u32, usize)>, text_tokens: usize, vocab_size: usize) -> Vec<u32> {
    let mut random = Noise(3);
    let (image_id, vision_tokens) = image.map_or((None, 0), |(id, tokens)| (Some(id), tokens));
    let mut ids: Vec<u32> = image_id.into_iter().cycle().take(vision_tokens).collect();
    while ids.len() < vision_tokens + text_tokens {
        let id = random.below(vocab_size) as u32;
        if Some(id) != image_id {
            ids.push(id);
        }
    }
    ids
}

/// A linear congruential generator (Knuth's constants).
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_hold_image_tokens_only_where_the_picture_is() {
        let ids = prompt(Some((1, 3)), 50, 4);
        assert_eq!(ids.len(), 53);
        assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 3);
        assert!(prompt(None, 5, 4).iter().all(|&id| id < 4));
    }

    #[test]
    fn several_tiles_have_a_global_view() {
        let image = tiles([2, 3], 4, 5);
        assert_eq!((image.n_tiles, image.rows, image.cols, image.vision_tokens), (7, 2, 3, 35));
        assert_eq!(image.pixel_values.len(), 7 * 3 * 16);
        let one = tiles([1, 1], 4, 5);
        assert_eq!((one.n_tiles, one.rows, one.image_size), (1, 0, (4, 4)));
        assert!(one.pixel_values.iter().all(|value| (-1.0..=1.01).contains(value)));
    }
}
