//! From the arguments of a command to the pictures, videos or recordings they stand for: files, folders, patterns and
//! standard input.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, stdin};
use std::path::{Path, PathBuf};

use anyhow::Context;
use glob::{MatchOptions, Pattern, PatternError};
use ocelli_processors::{
    Content, Error, Image, ImageLimits, Processor, Video, VideoOptions, VideoSource, decode_image, is_animated,
};

use crate::exit::{Exit, Failure};

/// What is looked for in folders.
#[derive(Debug)]
pub(crate) struct Kind {
    /// What people call it, in the plural.
    noun: &'static str,
    extensions: &'static [&'static [&'static str]],
    /// What is not of the kind although people may expect it to be: they are told.
    left_out: &'static [&'static str],
}

/// Pictures.
pub(crate) const PICTURES: Kind = Kind { noun: "pictures", extensions: &[PICTURE_EXTENSIONS], left_out: &[] };

/// Pictures, for a model that takes no videos.
pub(crate) const PICTURES_WITHOUT_VIDEOS: Kind = Kind { left_out: VIDEO_EXTENSIONS, ..PICTURES };

/// Pictures and videos.
pub(crate) const PICTURES_AND_VIDEOS: Kind =
    Kind { noun: "pictures and videos", extensions: &[PICTURE_EXTENSIONS, VIDEO_EXTENSIONS], left_out: &[] };

/// Recordings.
pub(crate) const AUDIO: Kind = Kind {
    noun: "recordings",
    extensions: &[&["wav", "flac", "mp3", "ogg", "oga", "m4a", "m4b", "mp4", "aac"]],
    left_out: &[],
};

/// Where a picture or a recording comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// Bytes of standard input.
    Stdin,
    /// A file, which need not exist.
    File(PathBuf),
}

/// What a model is shown.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    Image(Image),
    /// The first frame of what moves, for a model that takes no videos.
    FirstFrame(Image),
    Video(Video),
}

impl Shown {
    /// Its place in a message.
    pub(crate) fn place(&self) -> Content {
        match self {
            Self::Image(_) | Self::FirstFrame(_) => Content::Image,
            Self::Video(_) => Content::Video,
        }
    }

    /// What its user should know about it.
    pub(crate) fn notice(&self) -> Option<&'static str> {
        let is_part = matches!(self, Self::FirstFrame(_));
        is_part.then_some("this model takes no videos: of what moves here it is shown the first frame only")
    }

    /// Pictures and videos apart, each in order.
    pub(crate) fn apart(all: impl IntoIterator<Item = Self>) -> (Vec<Image>, Vec<Video>) {
        let (mut images, mut videos) = (Vec::new(), Vec::new());
        for shown in all {
            match shown {
                Self::Image(image) | Self::FirstFrame(image) => images.push(image),
                Self::Video(video) => videos.push(video),
            }
        }
        (images, videos)
    }
}

/// The files found, and remarks on arguments that gave none.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) files: Vec<Input>,
    pub(crate) remarks: Vec<String>,
    /// Files of folders that people may miss among those found.
    pub(crate) left_out: Vec<PathBuf>,
}

impl Input {
    /// A picture named by the user, where patterns and folders make no sense.
    pub(crate) fn single(argument: &OsStr) -> Self {
        if argument == "-" { Self::Stdin } else { Self::File(PathBuf::from(argument)) }
    }

    /// What to call it in results and messages; bytes that are no text are spelled out, so that two names stay two.
    pub(crate) fn name(&self) -> String {
        let Self::File(path) = self else { return "-".into() };
        let mut name = String::new();
        for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
            name.push_str(chunk.valid());
            name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
        name
    }

    /// Reads and decodes the picture.
    ///
    /// # Errors
    /// The reason, without the name.
    pub(crate) fn decode(&self, limits: &ImageLimits) -> anyhow::Result<Image> {
        Ok(decode_image(&self.read(limits.max_bytes)?, limits)?)
    }

    /// Reads a picture or a video, whichever it is: what moves is a video for a model that takes videos, and its first
    /// frame a picture for another one.
    ///
    /// # Errors
    /// The reason, without the name.
    pub(crate) fn look(&self, model: &Processor, limits: &ImageLimits, how: &VideoOptions) -> anyhow::Result<Shown> {
        if matches!(self, Self::File(path) if has_extension(path, VIDEO_EXTENSIONS)) {
            return self.watch(model, limits, how).map(Shown::Video);
        }
        let bytes = self.read(limits.max_bytes)?;
        match (is_animated(&bytes, limits), model.has_videos()) {
            (true, true) => return Ok(Shown::Video(model.read_video(&VideoSource::animation(bytes, limits)?, how)?)),
            (true, false) => return Ok(Shown::FirstFrame(decode_image(&bytes, limits)?)),
            (false, _) => {}
        }
        match decode_image(&bytes, limits) {
            Err(Error::UnsupportedImageFormat { format }) if format.ends_with("video") => {
                self.watch(model, limits, how).map(Shown::Video)
            }
            image => Ok(Shown::Image(image?)),
        }
    }

    /// Reads a video: a file, or a folder of its frames.
    ///
    /// # Errors
    /// The reason, without the name.
    pub(crate) fn watch(&self, model: &Processor, limits: &ImageLimits, how: &VideoOptions) -> anyhow::Result<Video> {
        let source = match self {
            Self::Stdin => VideoSource::animation(self.read(limits.max_bytes)?, limits)?,
            Self::File(path) => VideoSource::open(path, limits)?,
        };
        Ok(model.read_video(&source, how)?)
    }

    /// At most one byte more than `limit`: enough for the decoder to refuse what is longer.
    fn read(&self, limit: u64) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self {
            Self::Stdin => stdin().lock().take(limit + 1).read_to_end(&mut bytes).context("standard input")?,
            Self::File(path) if path.is_dir() => anyhow::bail!("this is a folder, not a picture"),
            Self::File(path) => File::open(path).map_err(plain)?.take(limit + 1).read_to_end(&mut bytes)?,
        };
        Ok(bytes)
    }
}

/// The system's error without its number.
pub(crate) fn plain(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("no such file"),
        ErrorKind::PermissionDenied => anyhow::anyhow!("permission denied"),
        _ => error.into(),
    }
}

/// Finds the files that the arguments stand for, in their order, each once; those of a folder sorted by name.
///
/// # Errors
/// A folder that cannot be read, a malformed pattern, or arguments that give nothing at all.
pub(crate) fn collect(arguments: &[OsString], recursive: bool, kind: &Kind) -> Result<Inputs, Failure> {
    let mut inputs = Inputs::default();
    let mut has_folders_inside = false;
    for argument in arguments {
        let path = Path::new(argument);
        if argument == "-" {
            inputs.files.push(Input::Stdin);
        } else if path.is_dir() {
            let found = Folder::read(path, recursive, kind)?;
            has_folders_inside |= found.skipped_folders;
            inputs.add(found, || format!("no {} in {}", kind.noun, path.display()));
        } else if let Some(pattern) = as_pattern(path) {
            let found = matches(pattern, recursive, kind)?;
            inputs.add(found, || format!("nothing matches {pattern}"));
        } else {
            inputs.files.push(Input::File(path.to_path_buf()));
        }
    }
    let mut seen = HashSet::new();
    inputs.files.retain(|input| seen.insert(input.clone()));
    if inputs.files.is_empty() {
        let hint = if has_folders_inside {
            "add --recursive to look into the folders inside it".to_owned()
        } else {
            let mut hint = format!("files ending in {} count as {}", kind.extensions.concat().join(", "), kind.noun);
            if let Some(first) = inputs.left_out.first() {
                hint += &format!("; videos, such as {}, only with a model that takes them", first.display());
            }
            hint
        };
        return Err(Failure::message(Exit::Failed, inputs.remarks.join("; ")).with_hint(hint));
    }
    Ok(inputs)
}

impl Inputs {
    fn add(&mut self, found: Folder, remark: impl FnOnce() -> String) {
        if found.files.is_empty() {
            self.remarks.push(remark());
        }
        self.files.extend(found.files.into_iter().map(Input::File));
        self.left_out.extend(found.left_out);
    }
}

/// The argument as a pattern, if it is one: nothing of that name exists, and it holds `*`, `?` or `[`.
fn as_pattern(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.contains(['*', '?', '[']) && path.symlink_metadata().is_err())
}

/// The files that match, and those of the kind in the folders that match, sorted.
fn matches(pattern: &str, recursive: bool, kind: &Kind) -> Result<Folder, Failure> {
    let paths = expand(pattern)
        .map_err(|error| Failure::message(Exit::Usage, format!("{pattern} is not a valid pattern: {}", error.msg)))?;
    let mut found = Folder::default();
    for path in paths {
        if path.is_dir() {
            found.extend(Folder::read(&path, recursive, kind)?);
        } else {
            found.files.push(path);
        }
    }
    Ok(found)
}

/// The paths that match, sorted. The library compares names; its own search of folders panics at a name that is not UTF-8.
fn expand(pattern: &str) -> Result<Vec<PathBuf>, PatternError> {
    // As in a shell, `*` leaves hidden files out.
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let mut found = vec![PathBuf::new()];
    for part in Path::new(pattern).components() {
        let text = part.as_os_str().to_str().unwrap_or_default();
        found = if text == "**" {
            found.into_iter().flat_map(folders_below).collect()
        } else if text.contains(['*', '?', '[']) {
            let pattern = Pattern::new(text)?;
            let matching = |name: &OsString| pattern.matches_with(&name.to_string_lossy(), options);
            let inside =
                |from: &PathBuf| names_in(from).filter(matching).map(|name| from.join(name)).collect::<Vec<_>>();
            found.iter().flat_map(inside).collect()
        } else {
            let paths = found.iter().map(|from| from.join(part));
            paths.filter(|path| path.symlink_metadata().is_ok()).collect()
        };
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// A folder and all folders inside it but hidden ones; links are not followed.
fn folders_below(folder: PathBuf) -> Vec<PathBuf> {
    let mut all = vec![folder];
    let mut next = 0;
    while next < all.len() {
        let inside = names_in(&all[next]).filter(|name| !name.to_string_lossy().starts_with('.'));
        let inside: Vec<PathBuf> = inside.map(|name| all[next].join(name)).collect();
        all.extend(inside.into_iter().filter(|path| path.symlink_metadata().is_ok_and(|about| about.is_dir())));
        next += 1;
    }
    all
}

/// What a folder holds; nothing where it cannot be looked into, as in a shell.
fn names_in(folder: &Path) -> impl Iterator<Item = OsString> + use<> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name())
}

/// What a folder holds.
#[derive(Default)]
struct Folder {
    files: Vec<PathBuf>,
    /// What its kind leaves out.
    left_out: Vec<PathBuf>,
    /// Whether there are folders inside that were not looked into.
    skipped_folders: bool,
}

impl Folder {
    fn read(path: &Path, recursive: bool, kind: &Kind) -> Result<Self, Failure> {
        let mut folder = Self::default();
        let entries = || -> std::io::Result<Vec<PathBuf>> {
            let mut entries =
                std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
            entries.sort();
            Ok(entries)
        };
        let entries = entries().map_err(plain).with_context(|| path.display().to_string())?;
        for entry in entries.into_iter().filter(|entry| !is_hidden(entry)) {
            if !entry.is_dir() {
                if kind.extensions.iter().any(|extensions| has_extension(&entry, extensions)) {
                    folder.files.push(entry);
                } else if has_extension(&entry, kind.left_out) {
                    folder.left_out.push(entry);
                }
            } else if recursive && !entry.is_symlink() {
                // Links to folders are left alone: they may lead in circles.
                folder.extend(Self::read(&entry, true, kind)?);
            } else {
                folder.skipped_folders = true;
            }
        }
        Ok(folder)
    }

    /// Takes what another one holds.
    fn extend(&mut self, other: Self) {
        self.files.extend(other.files);
        self.left_out.extend(other.left_out);
    }
}

/// Names with a dot in front, among them the `._picture.jpg` files that macOS leaves on foreign disks.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| extensions.contains(&extension.as_str()))
}

const PICTURE_EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
/// Of files that are nothing but videos; what moves among the pictures is found by looking.
const VIDEO_EXTENSIONS: &[&str] =
    &["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "wmv", "flv", "ogv", "3gp"];

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inner")).unwrap();
        for name in ["b.PNG", "a.jpg", "notes.txt", "._a.jpg", "inner/c.webp"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        folder
    }

    /// Names of the pictures, relative to the folder.
    fn names(folder: &Path, arguments: &[&str], recursive: bool) -> Result<Vec<String>, String> {
        let arguments: Vec<OsString> = arguments.iter().map(|name| folder.join(name).into_os_string()).collect();
        let inputs = collect(&arguments, recursive, &PICTURES).map_err(|failure| failure.text())?;
        let relative = |input: &Input| match input {
            Input::File(path) => path.strip_prefix(folder).unwrap().display().to_string(),
            Input::Stdin => "-".into(),
        };
        Ok(inputs.files.iter().map(relative).collect())
    }

    #[test]
    fn folders_are_sorted_and_hold_pictures_only() {
        let folder = folder();
        assert_eq!(names(folder.path(), &[""], false).unwrap(), ["a.jpg", "b.PNG"]);
        assert_eq!(names(folder.path(), &[""], true).unwrap(), ["a.jpg", "b.PNG", "inner/c.webp"]);
    }

    #[test]
    fn patterns_that_no_shell_expanded() {
        let folder = folder();
        assert_eq!(names(folder.path(), &["*.jpg"], false).unwrap(), ["a.jpg"]);
        assert_eq!(names(folder.path(), &["inn*"], false).unwrap(), ["inner/c.webp"]);
        assert!(names(folder.path(), &["*.gif"], false).unwrap_err().starts_with("nothing matches"));
        assert!(names(folder.path(), &["a[.jpg"], false).unwrap_err().contains("not a valid pattern"));
        std::fs::write(folder.path().join("x[1].png"), "").unwrap();
        assert_eq!(names(folder.path(), &["x[1].png"], false).unwrap(), ["x[1].png"], "a file of that very name");
    }

    #[test]
    fn patterns_reach_into_folders() {
        let folder = folder();
        std::fs::create_dir_all(folder.path().join("inner/deep")).unwrap();
        std::fs::create_dir(folder.path().join(".hidden")).unwrap();
        for name in ["inner/deep/d.jpg", ".hidden/e.jpg"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names = |pattern| names(folder.path(), &[pattern], false).unwrap();
        assert_eq!(names("**/*.jpg"), ["a.jpg", "inner/deep/d.jpg"]);
        assert_eq!(names("inner/*/?.jpg"), ["inner/deep/d.jpg"]);
        assert_eq!(names("i[n]ner/c.webp"), ["inner/c.webp"]);
        assert_eq!(names(".h*/*"), [".hidden/e.jpg"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn patterns_pass_names_that_are_no_text() {
        use std::os::unix::ffi::OsStrExt;

        let folder = folder();
        let name = OsStr::from_bytes(b"n\xff.png");
        std::fs::write(folder.path().join(name), "").unwrap();
        assert_eq!(names(folder.path(), &["*.jpg"], false).unwrap(), ["a.jpg"]);
        let found = expand(folder.path().join("n*.png").to_str().unwrap()).unwrap();
        assert_eq!(found, [folder.path().join(name)]);
        assert_eq!(Input::File(PathBuf::from(name)).name(), "n\\xff.png");
    }

    #[test]
    fn every_picture_comes_once_and_missing_ones_are_kept_for_the_report() {
        let folder = folder();
        assert_eq!(names(folder.path(), &["b.PNG", "", "gone.png"], false).unwrap(), ["b.PNG", "a.jpg", "gone.png"]);
        let input = Input::File(folder.path().join("gone.png"));
        assert_eq!(input.decode(&ImageLimits::default()).unwrap_err().to_string(), "no such file");
        assert_eq!(
            Input::File(folder.path().into()).decode(&ImageLimits::default()).unwrap_err().to_string(),
            "this is a folder, not a picture"
        );
    }

    #[test]
    fn nothing_to_do_comes_with_advice() {
        let folder = folder();
        std::fs::remove_file(folder.path().join("a.jpg")).unwrap();
        std::fs::remove_file(folder.path().join("b.PNG")).unwrap();
        let arguments = [folder.path().as_os_str().to_owned()];
        let failure = collect(&arguments, false, &PICTURES).unwrap_err();
        assert_eq!(failure.text(), format!("no pictures in {}", folder.path().display()));
        assert!(format!("{failure:?}").contains("--recursive"));
    }
}
