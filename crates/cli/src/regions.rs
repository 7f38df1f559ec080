//! What is found in pictures, as `detect`, `point` and pipelines tell it.

use ocelli_engine::Region;
use ocelli_processors::Image;
use serde_json::{Value, json};

/// One thing, in fractions and in pixels.
pub(crate) fn object(region: &Region, image: &Image) -> Value {
    match region.edges() {
        Some([x_min, y_min, x_max, y_max]) => json!({
            "x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max, "pixels": edges(region, image),
        }),
        None => json!({ "x": region.x, "y": region.y, "pixels": middle(region, image) }),
    }
}

/// Left, top, right and bottom edge in pixels.
pub(crate) fn edges(region: &Region, image: &Image) -> [usize; 4] {
    let [left, top, right, bottom] = region.edges().unwrap_or_default();
    let pixel = |fraction: f32, side: usize| (fraction * side as f32).round() as usize;
    [pixel(left, image.width), pixel(top, image.height), pixel(right, image.width), pixel(bottom, image.height)]
}

/// Pixels from the left and from above.
pub(crate) fn middle(region: &Region, image: &Image) -> [usize; 2] {
    [(region.x * image.width as f32) as usize, (region.y * image.height as f32) as usize]
}
