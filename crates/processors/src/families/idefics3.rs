//! Idefics3, SmolVLM and SmolVLM2 (transformers `image_processing_pil_idefics3.py`, `processing_idefics3.py`).
//!
//! A picture is scaled so that its longest edge is `size.longest_edge` (small ones are scaled up too), scaled again to
//! whole tiles of `max_image_size`, cut into them row by row, and shown once more as a whole in the last tile. Every
//! resize rounds to bytes. One that fits one tile is that tile alone, and has no rows or columns. Without splitting it
//! is squashed into one tile, but only after the first resize: skipping that one would change the pixels.
//! Fewer tokens than a tile has are a smaller tile, into which a picture is squashed at once, as with `do_resize` and
//! `do_image_splitting` off and a smaller `max_image_size`; fewer tiles are a shorter `size.longest_edge`.
//! `do_pad` only evens out batches: all tiles have the same size, so it changes nothing here.

use ocelli_formats::Section;
use serde::Deserialize;

use super::smolvlm::SmolVideo;
use super::{ImageProcessor, Model, VideoProcessor};
use crate::image::{Detail, Image, PixelTable, PreparedImage, ResampleFilter, Window, first_128_bits, resize};
use crate::settings::preprocessor_config;
use crate::{Error, Result};

/// The Idefics3 image processor.
#[derive(Debug)]
struct Idefics3 {
    settings: Settings,
    table: PixelTable,
    tokens: TileTokens,
    /// Only SmolVLM2 takes videos.
    video: Option<SmolVideo>,
}

/// What shapes the pixels; the keys are those of `preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    do_resize: bool,
    do_image_splitting: bool,
    size: Size,
    pub(super) tile: usize,
    pub(super) filter: ResampleFilter,
    pub(super) rescale: Option<f64>,
    pub(super) normalize: Option<([f32; 3], [f32; 3])>,
}

/// What the first resize aims at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    LongestEdge(usize),
    Exact { width: usize, height: usize },
}

/// Reads `preprocessor_config.json` (or the `image_processor` of `processor_config.json`) and `config.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    Ok(Box::new(Idefics3::load(model)?))
}

/// Of SmolVLM2: videos, too.
pub(super) fn load_2(model: &Model<'_>) -> Result<Box<dyn ImageProcessor>> {
    let pictures = Idefics3::load(model)?;
    let video = SmolVideo::load(model, pictures.tokens, pictures.settings.tile)?;
    Ok(Box::new(Idefics3 { video, ..pictures }))
}

impl Idefics3 {
    fn load(model: &Model<'_>) -> Result<Self> {
        let (file, raw) = preprocessor_config(model.files, "image_processor")?;
        let settings = Settings::new(&file, raw)?;
        for token in [IMAGE, FAKE, GLOBAL] {
            model.require_token(token)?;
        }
        let vision: VisionConfig = match model.config.section("vision_config") {
            Some(section) => section.parse()?,
            None => return Err(model.config.root().error("vision_config", "missing").into()),
        };
        let tokens = TileTokens::new(model.config.root(), &vision, settings.tile)?;
        let table = PixelTable::new(settings.rescale, settings.normalize);
        Ok(Self { settings, table, tokens, video: None })
    }
}

impl ImageProcessor for Idefics3 {
    fn prepare_with(&self, image: &Image, detail: Detail) -> Result<PreparedImage> {
        let &Image { width, height, .. } = image;
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width, height });
        }
        let plan = self.settings.plan((width, height), detail, self.tokens);
        let (tile, filter) = (plan.tile, self.settings.filter);
        let first = resize(image, plan.first.0, plan.first.1, filter);
        let whole = resize(&first, plan.second.0, plan.second.1, filter);
        let mut pixel_values = Vec::with_capacity(plan.n_tiles() * 3 * tile * tile);
        let mut append = |image: &Image, left, top| {
            let window = Window { left, top, width: tile, height: tile };
            self.table.append_planes(&image.pixels, image.width, window, &mut pixel_values);
        };
        for row in 0..plan.rows {
            for column in 0..plan.cols {
                append(&whole, column * tile, row * tile);
            }
        }
        append(&resize(&whole, tile, tile, filter), 0, 0);
        Ok(PreparedImage {
            pixel_values,
            shape: [plan.n_tiles(), 3, tile, tile],
            grid: [1, plan.rows, plan.cols],
            frames: 1,
            frame_seconds: 0.0,
            text_ids: Vec::new(),
            image_size: (width, height),
            resized_to: plan.second,
            vision_tokens: plan.n_tiles() * self.tokens.of(tile),
            content_hash: self.settings.hash(image, &plan),
        })
    }

    fn vision_tokens(&self, width: usize, height: usize, detail: Detail) -> usize {
        let plan = self.settings.plan((width.max(1), height.max(1)), detail, self.tokens);
        plan.n_tiles() * self.tokens.of(plan.tile)
    }

    fn fewest_tokens(&self) -> usize {
        1
    }

    fn expand(&self, image: &PreparedImage) -> String {
        let tokens = IMAGE.repeat(image.vision_tokens / image.shape[0]);
        let mut text = String::new();
        let [_, rows, columns] = image.grid;
        for row in 1..=rows {
            for column in 1..=columns {
                text += &format!("{FAKE}<row_{row}_col_{column}>{tokens}");
            }
            text.push('\n');
        }
        if rows > 0 {
            text.push('\n');
        }
        text + FAKE + GLOBAL + &tokens + FAKE
    }

    fn placeholder(&self) -> &str {
        IMAGE
    }

    fn image_token(&self) -> &str {
        IMAGE
    }

    fn videos(&self) -> Option<&dyn VideoProcessor> {
        self.video.as_ref().map(|video| video as &dyn VideoProcessor)
    }
}

/// The sizes a picture goes through, as `(width, height)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) first: (usize, usize),
    pub(super) second: (usize, usize),
    /// Pixels per side of a tile.
    pub(super) tile: usize,
    rows: usize,
    cols: usize,
}

impl Plan {
    fn n_tiles(&self) -> usize {
        self.rows * self.cols + 1
    }
}

impl Settings {
    /// What `file` says, which is `raw`.
    pub(super) fn new(file: &str, raw: RawSettings) -> Result<Self> {
        let error = |key: &str, message: String| Error::Value { file: file.to_owned(), key: key.into(), message };
        let edge = |key: &str, value: usize| match value {
            1..=MAX_EDGE => Ok(value),
            _ => Err(error(key, format!("expected 1 to {MAX_EDGE}, got {value}"))),
        };
        let size = match raw.size {
            RawSize { longest_edge: Some(longest), .. } => Size::LongestEdge(edge("size.longest_edge", longest)?),
            RawSize { width: Some(width), height: Some(height), .. } => {
                Size::Exact { width: edge("size.width", width)?, height: edge("size.height", height)? }
            }
            RawSize { .. } => return Err(error("size", "expected `longest_edge`, or `width` and `height`".into())),
        };
        let filter = ResampleFilter::from_pillow(raw.resample)
            .ok_or_else(|| error("resample", format!("expected a filter number from 0 to 5, got {}", raw.resample)))?;
        Ok(Self {
            do_resize: raw.do_resize,
            do_image_splitting: raw.do_image_splitting,
            size,
            tile: edge("max_image_size.longest_edge", raw.max_image_size.longest_edge)?,
            filter,
            rescale: raw.do_rescale.then_some(raw.rescale_factor),
            normalize: raw.do_normalize.then_some((raw.image_mean, raw.image_std)),
        })
    }

    pub(super) fn plan(&self, size: (usize, usize), detail: Detail, tokens: TileTokens) -> Plan {
        match detail {
            Detail::Auto => self.plan_tiles(size, self.size, self.do_image_splitting),
            Detail::Low => self.plan_tiles(size, self.size, false),
            Detail::High => self.plan_tiles(size, self.size, true),
            Detail::AtMost(most) if most < tokens.of(self.tile) => {
                let tile = tokens.side_of(most);
                Plan { first: size, second: (tile, tile), tile, rows: 0, cols: 0 }
            }
            Detail::AtMost(most) => self.plan_within(size, most / tokens.of(self.tile)),
        }
    }

    /// As configured, or with as large a picture as `n_tiles` hold.
    fn plan_within(&self, size: (usize, usize), n_tiles: usize) -> Plan {
        let whole = match self.size {
            Size::LongestEdge(longest) => longest.div_ceil(self.tile),
            Size::Exact { .. } => 1,
        };
        let smaller = (2..whole).rev().map(|edge_tiles| Size::LongestEdge(edge_tiles * self.tile));
        let mut plans =
            [self.size].into_iter().chain(smaller).map(|to| self.plan_tiles(size, to, self.do_image_splitting));
        plans.find(|plan| plan.n_tiles() <= n_tiles).unwrap_or_else(|| self.plan_tiles(size, self.size, false))
    }

    /// For a first resize `to` this size.
    fn plan_tiles(&self, (width, height): (usize, usize), to: Size, splits: bool) -> Plan {
        let tile = self.tile;
        let first = match to {
            _ if !self.do_resize => (width, height),
            Size::Exact { width, height } => (width, height),
            Size::LongestEdge(longest) => below_maximum(to_longest_edge((width, height), longest)),
        };
        if !splits {
            return Plan { first, second: (tile, tile), tile, rows: 0, cols: 0 };
        }
        let second = to_whole_tiles(first, tile);
        let (cols, rows) = (second.0 / tile, second.1 / tile);
        // One tile needs no global view beside it.
        let (rows, cols) = if rows * cols == 1 { (0, 0) } else { (rows, cols) };
        Plan { first, second, tile, rows, cols }
    }

    /// A hash of the picture and of all that decides its pixel values.
    fn hash(&self, image: &Image, plan: &Plan) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.content_hash().to_le_bytes());
        // Debug output spells every field out, floats to the last bit.
        hasher.update(format!("idefics3 {self:?} {plan:?}").as_bytes());
        first_128_bits(&hasher)
    }
}

/// The longest edge becomes `longest`; the other keeps the aspect and becomes even.
fn to_longest_edge((width, height): (usize, usize), longest: usize) -> (usize, usize) {
    // Python's float arithmetic, truncation included: rounding would be off by one pixel now and then.
    let aspect = width as f64 / height as f64;
    let even = |side: usize| (side + side % 2).max(1);
    if width >= height {
        (longest, even((longest as f64 / aspect) as usize))
    } else {
        (even((longest as f64 * aspect) as usize), longest)
    }
}

/// No side beyond [`MAX_SIDE`].
fn below_maximum((width, height): (usize, usize)) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    if width >= height && width > MAX_SIDE {
        (MAX_SIDE, ((MAX_SIDE as f64 / aspect) as usize).max(1))
    } else if height > width && height > MAX_SIDE {
        (((MAX_SIDE as f64 * aspect) as usize).max(1), MAX_SIDE)
    } else {
        (width, height)
    }
}

/// Both sides up to multiples of `tile`: the long one first, the short one from the aspect before that.
fn to_whole_tiles((width, height): (usize, usize), tile: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    if width >= height {
        let width = width.next_multiple_of(tile);
        (width, ((width as f64 / aspect) as usize).next_multiple_of(tile))
    } else {
        let height = height.next_multiple_of(tile);
        (((height as f64 * aspect) as usize).next_multiple_of(tile), height)
    }
}

/// What the connector makes of a tile: patches per side, squared, over `scale_factor` squared.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileTokens {
    patch_size: usize,
    scale_factor: usize,
}

impl TileTokens {
    fn new(root: &Section, vision: &VisionConfig, tile: usize) -> Result<Self> {
        let scale_factor = match root.get("scale_factor") {
            None => 2,
            Some(value) => value.as_u64().and_then(|factor| usize::try_from(factor).ok()).unwrap_or(0),
        };
        let patch_size = vision.patch_size;
        let per_side = tile.checked_div(patch_size).unwrap_or(0);
        let pixels_per_token = scale_factor.saturating_mul(scale_factor);
        match (per_side * per_side).checked_div(pixels_per_token) {
            Some(1..) => Ok(Self { patch_size, scale_factor }),
            _ => {
                let message = format!("a tile of {tile} with patches of {patch_size} gives no token at {scale_factor}");
                Err(root.error("scale_factor", &message).into())
            }
        }
    }

    /// Image tokens of a tile of this side.
    pub(super) fn of(self, tile: usize) -> usize {
        (tile / self.patch_size).pow(2) / self.scale_factor.pow(2)
    }

    /// The side of the largest tile of whole tokens that has at most so many.
    pub(super) fn side_of(self, most: usize) -> usize {
        most.isqrt().max(1) * self.patch_size * self.scale_factor
    }
}

#[derive(Deserialize)]
struct VisionConfig {
    #[serde(default = "defaults::patch_size")]
    patch_size: usize,
}

#[derive(Deserialize)]
pub(super) struct RawSettings {
    #[serde(default = "defaults::yes")]
    do_resize: bool,
    #[serde(default = "defaults::yes")]
    do_image_splitting: bool,
    #[serde(default = "defaults::yes")]
    do_rescale: bool,
    #[serde(default = "defaults::yes")]
    do_normalize: bool,
    #[serde(default = "defaults::size")]
    size: RawSize,
    #[serde(default = "defaults::max_image_size")]
    max_image_size: RawEdge,
    #[serde(default = "defaults::lanczos")]
    resample: u64,
    #[serde(default = "defaults::rescale_factor")]
    rescale_factor: f64,
    #[serde(default = "defaults::half")]
    image_mean: [f32; 3],
    #[serde(default = "defaults::half")]
    image_std: [f32; 3],
}

#[derive(Deserialize)]
struct RawSize {
    longest_edge: Option<usize>,
    width: Option<usize>,
    height: Option<usize>,
}

#[derive(Deserialize)]
struct RawEdge {
    longest_edge: usize,
}

/// The class defaults of the reference, for keys a file leaves out.
mod defaults {
    use super::{RawEdge, RawSize};

    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn size() -> RawSize {
        RawSize { longest_edge: Some(4 * 364), width: None, height: None }
    }
    pub(super) fn max_image_size() -> RawEdge {
        RawEdge { longest_edge: 364 }
    }
    pub(super) fn lanczos() -> u64 {
        1
    }
    pub(super) fn rescale_factor() -> f64 {
        1.0 / 255.0
    }
    pub(super) fn half() -> [f32; 3] {
        [0.5; 3]
    }
    pub(super) fn patch_size() -> usize {
        32
    }
}

/// The reference's absolute maximum for a side after the first resize.
const MAX_SIDE: usize = 4096;
/// No model asks for more; what it asks for beyond [`MAX_SIDE`] is cut there.
const MAX_EDGE: usize = 8192;
pub(super) const IMAGE: &str = "<image>";
pub(super) const FAKE: &str = "<fake_token_around_image>";
pub(super) const GLOBAL: &str = "<global-img>";
