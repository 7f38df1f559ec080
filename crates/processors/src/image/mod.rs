//! Pictures: decoding, Pillow's resampler, normalisation.

mod coefficients;
mod decode;
mod draw;
mod normalize;
mod resample;
mod sniff;

pub use decode::{ImageLimits, decode_image, image_dimensions};
pub(crate) use decode::{decode_error, to_rgb};
pub(crate) use normalize::{PixelTable, Window};
pub use resample::{ResampleFilter, resize};
pub(crate) use sniff::{Format, shown, sniff};

/// A decoded picture: 8-bit RGB, rows from top to bottom, `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

impl Image {
    /// A picture of these pixels.
    ///
    /// # Panics
    /// When `pixels` does not hold `width * height * 3` bytes.
    #[track_caller]
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Self {
        assert_eq!(pixels.len(), width * height * 3, "pixels of a {width}x{height} RGB image");
        Self { width, height, pixels }
    }

    /// 128 bits of a cryptographic hash over size and pixels: equal for equal pictures, whatever file they came from.
    pub fn content_hash(&self) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.width as u64).to_le_bytes());
        hasher.update(&(self.height as u64).to_le_bytes());
        hasher.update(&self.pixels);
        first_128_bits(&hasher)
    }
}

/// How closely to look at a picture; the words are those of the OpenAI API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Detail {
    /// What the model's own configuration says.
    #[default]
    Auto,
    /// As few vision tokens as the family allows: no tiles.
    Low,
    /// As many as the family allows: tiles.
    High,
    /// As [`Detail::Auto`], but at most so many vision tokens for each picture, and each frame of a video: smaller
    /// pictures or fewer tiles. Not below [`ImageProcessor::fewest_tokens`].
    ///
    /// [`ImageProcessor::fewest_tokens`]: crate::ImageProcessor::fewest_tokens
    AtMost(usize),
}

/// What the vision tower gets for one picture or video.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedImage {
    /// Normalised, row-major.
    pub pixel_values: Vec<f32>,
    /// Of `pixel_values`: tiles `[N, 3, height, width]`, or `[1, 1, patches, values of a patch]` where the tower takes
    /// pictures of any size.
    pub shape: [usize; 4],
    /// Frames, rows and columns: of tiles (no rows and columns where the whole picture is one tile), or of patches.
    pub grid: [usize; 3],
    /// Frames of a video that are looked at; 1 for a picture.
    pub frames: usize,
    /// Seconds from one of the grid's frames to the next; 0 for a picture.
    pub frame_seconds: f32,
    /// Ids that the tower reads beside the picture; most read none.
    pub text_ids: Vec<u32>,
    /// `(width, height)` of the picture as decoded.
    pub image_size: (usize, usize),
    /// `(width, height)` it was brought to before it was cut into tiles.
    pub resized_to: (usize, usize),
    /// Features that it becomes: image tokens in the prompt, unless the model looks at it by cross-attention.
    pub vision_tokens: usize,
    /// Hash of the decoded pixels and of everything done to them: a key for caches of vision features.
    pub content_hash: u128,
}

/// The first half of a hash.
pub(crate) fn first_128_bits(hasher: &blake3::Hasher) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}
