//! Image features of the last pictures, so that a second question about a picture does not run the vision tower again.
//!
//! The key is the picture's content and everything done to it (`PreparedImage::content_hash`), never a name: a file
//! that changed is another picture, the same picture under two names is one. An engine holds one model, so the model
//! is not part of the key.

use std::collections::VecDeque;

use ocelli_processors::PreparedImage;

use crate::error::Result;
use crate::session::ImageFeatures;

/// The most recently used features, the latest last.
#[derive(Default)]
pub(crate) struct VisionCache {
    entries: VecDeque<(u128, ImageFeatures)>,
}

impl VisionCache {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The features of `image`, from here or from `encode`.
    pub(crate) fn features(
        &mut self,
        image: &PreparedImage,
        encode: impl FnOnce() -> Result<ImageFeatures>,
    ) -> Result<ImageFeatures> {
        let place = self.entries.iter().position(|(key, _)| *key == image.content_hash);
        let features = match place.and_then(|place| self.entries.remove(place)) {
            Some((_, features)) => features,
            None => encode()?,
        };
        self.entries.push_back((image.content_hash, features.clone()));
        while self.entries.len() > 1 && self.tokens() > MAX_TOKENS {
            self.entries.pop_front();
        }
        Ok(features)
    }

    fn tokens(&self) -> usize {
        self.entries.iter().map(|(_, features)| features.tokens()).sum()
    }
}

/// Image tokens of all pictures together: a few hundred small pictures or a handful of large ones, about 20 MB for a
/// hidden size of 1024.
const MAX_TOKENS: usize = 4096;

#[cfg(test)]
mod tests {
    use ocelli_models::Extent;

    use super::*;
    use crate::error::Error;

    fn picture(content_hash: u128) -> PreparedImage {
        PreparedImage {
            pixel_values: Vec::new(),
            shape: [1, 3, 0, 0],
            grid: [1, 0, 0],
            frames: 1,
            frame_seconds: 0.0,
            text_ids: Vec::new(),
            image_size: (0, 0),
            resized_to: (0, 0),
            vision_tokens: 0,
            content_hash,
        }
    }

    fn features(tokens: usize) -> ImageFeatures {
        ImageFeatures::new(tokens, Extent { grid: [1, 0, 0], frame_seconds: 0.0 }, ())
    }

    #[test]
    fn a_picture_is_encoded_once_and_never_answered_for_by_another() {
        let mut cache = VisionCache::new();
        let mut encoded = Vec::new();
        for key in [1, 2, 1, 2, 3, 1] {
            let features = cache.features(&picture(key), || {
                encoded.push(key);
                Ok(features(key as usize))
            });
            assert_eq!(features.unwrap().tokens(), key as usize);
        }
        assert_eq!(encoded, [1, 2, 3]);
    }

    #[test]
    fn the_least_recently_used_go_first_and_the_last_one_stays() {
        let mut cache = VisionCache::new();
        let mut ask = |key: u128, tokens: usize| {
            let mut was_encoded = false;
            let encode = || {
                was_encoded = true;
                Ok(features(tokens))
            };
            cache.features(&picture(key), encode).unwrap();
            was_encoded
        };
        assert!(ask(1, MAX_TOKENS / 2) && ask(2, MAX_TOKENS / 2) && !ask(1, 0));
        assert!(ask(3, MAX_TOKENS / 2), "2 was used longest ago and goes");
        assert!(!ask(1, 0) && ask(2, MAX_TOKENS / 2));
        assert!(ask(4, 2 * MAX_TOKENS) && !ask(4, 0), "one that is too large stays until the next");
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let mut cache = VisionCache::new();
        assert!(cache.features(&picture(1), || Err(Error::Cancelled)).is_err());
        assert!(cache.features(&picture(1), || Ok(features(5))).is_ok());
    }
}
