//! Pictures and prompts without meaning, the same every time.

use ocelli_processors::Image;

/// A picture of random pixels.
pub(crate) fn picture(width: usize, height: usize) -> Image {
    let mut random = Noise(1);
    Image::new(width, height, (0..width * height * 3).map(|_| random.below(256) as u8).collect())
}

/// Samples between -1 and 1.
pub(crate) fn recording(samples: usize) -> Vec<f32> {
    let mut random = Noise(2);
    (0..samples).map(|_| random.below(1 << 16) as f32 / 32_768.0 - 1.0).collect()
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
}
