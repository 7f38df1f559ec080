//! Frames that are files of a folder.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::animation::plain;
use crate::image::{Image, ImageLimits, decode_image};
use crate::{Error, Result};

/// The pictures in a folder, sorted by name; numbers in names count as numbers, so that 10 comes behind 9.
pub(super) fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |error: std::io::Error| Error::VideoIo { message: plain(&error) };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        let is_picture = extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()));
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_picture && !is_hidden && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::NoFrames);
    }
    files.sort_by(|a, b| by_number(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(files)
}

pub(super) fn frames(
    files: &[PathBuf],
    limits: &ImageLimits,
    wanted: &[usize],
    take: &mut dyn FnMut(Image) -> Result<()>,
) -> Result<()> {
    for path in wanted.iter().filter_map(|&number| files.get(number)) {
        let of_frame = |message: String| Error::Frame { file: path.display().to_string(), message };
        let size = path.metadata().map_err(|error| of_frame(plain(&error)))?.len();
        if size > limits.max_bytes {
            return Err(Error::ImageFileTooLarge { bytes: size, limit: limits.max_bytes });
        }
        let bytes = std::fs::read(path).map_err(|error| of_frame(plain(&error)))?;
        take(decode_image(&bytes, limits).map_err(|error| of_frame(error.to_string()))?)?;
    }
    Ok(())
}

/// Text in the usual order, runs of digits by their value.
fn by_number(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (n_left, n_right) = (digits(left), digits(right));
        if n_left > 0 && n_right > 0 {
            let value = |text: &str| text.trim_start_matches('0').to_owned();
            let (x, y) = (value(&left[..n_left]), value(&right[..n_right]));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(&y));
            if order.is_ne() {
                return order;
            }
            (left, right) = (&left[n_left..], &right[n_right..]);
            continue;
        }
        let (mut in_left, mut in_right) = (left.chars(), right.chars());
        match (in_left.next(), in_right.next()) {
            (None, None) => return a.cmp(b),
            (x, y) if x != y => return x.cmp(&y),
            _ => (left, right) = (in_left.as_str(), in_right.as_str()),
        }
    }
}

const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["f10.png", "f9.png", "f1.png", "f010.png", "a.png", "f1b.png", "f.png", "10.png", "9.png"];
        names.sort_by(|a, b| by_number(a, b));
        let sorted = ["9.png", "10.png", "a.png", "f.png", "f1.png", "f1b.png", "f9.png", "f010.png", "f10.png"];
        assert_eq!(names, sorted);
    }
}
