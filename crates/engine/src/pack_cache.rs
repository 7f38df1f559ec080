//! Packed weights on disk: what quantising and packing took seconds to make is mapped the next time.
//!
//! One file per model and precision, in the safetensors layout: every weight is a tensor of bytes in the order its
//! device multiplies them in, each at a multiple of 64 bytes. Metadata tell what it was made from (the *identity*:
//! sizes, times of change and headers of the weight files, the config, the precision, the layout) and hold a checksum
//! of every tensor and of the description itself. A file that does not fit any of this is made anew; nobody ever
//! changes one in place, so that a process may map it while another one replaces or removes it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ocelli_backend::{PackedWeight, WeightStore};
use ocelli_formats::{CodeBits, GroupedLayout, ModelFiles, Safetensors, SharedBytes};
use serde_json::{Map, Value, json};

/// Where packed weights are kept between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackCache {
    /// The folder; it is made when there is something to keep.
    pub folder: PathBuf,
    /// Most bytes of all files together: what was not used for longest goes first.
    pub max_bytes: u64,
}

impl PackCache {
    /// What a cache may take where nobody says otherwise: 20 GiB.
    pub const DEFAULT_MAX_BYTES: u64 = 20 << 30;
}

/// The packed weights of one model: those of its file, if there is one, and those that are new.
pub(crate) struct Packs {
    cache: PackCache,
    identity: String,
    path: PathBuf,
    known: BTreeMap<String, PackedWeight>,
    new: RefCell<Vec<(String, PackedWeight)>>,
}

impl Packs {
    /// Opens what is kept of a model; `made_with` is everything besides its files that decides about the bytes. `None`
    /// for a model without files of its own.
    pub(crate) fn open(cache: &PackCache, files: &ModelFiles, made_with: &str, threads: usize) -> Option<Self> {
        let identity = identity(files, made_with)?;
        let path = cache.folder.join(format!("{:016x}.{EXTENSION}", checksum(identity.as_bytes())));
        let known = match read(&path, &identity, threads) {
            Ok(known) => {
                // The time of change tells when it was last of use. Who may not set it has an old file evicted early.
                let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                known
            }
            Err(Unusable::Missing) => BTreeMap::new(),
            Err(Unusable::Broken(reason)) => {
                tracing::warn!(path = %path.display(), reason, "packed weights are made anew");
                BTreeMap::new()
            }
        };
        Some(Self { cache: cache.clone(), identity, path, known, new: RefCell::default() })
    }

    /// Keeps what was new. Whatever goes wrong costs time at the next load and nothing else.
    pub(crate) fn keep(self) {
        let new = self.new.into_inner();
        if new.is_empty() {
            return;
        }
        let mut weights = self.known;
        weights.extend(new);
        let size = weights.values().map(|weight| padded(weight.bytes.len()) as u64).sum::<u64>();
        if size > self.cache.max_bytes {
            tracing::info!(size, "packed weights are larger than the cache may be");
            return;
        }
        let folder = &self.cache.folder;
        let written = std::fs::create_dir_all(folder).and_then(|()| {
            make_room(folder, &self.path, self.cache.max_bytes - size)?;
            write(&self.path, &self.identity, &weights)
        });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "packed weights cannot be kept");
        }
    }
}

impl WeightStore for Packs {
    fn get(&self, name: &str) -> Option<PackedWeight> {
        self.known.get(name).cloned()
    }

    fn put(&self, name: &str, weight: PackedWeight) {
        self.new.borrow_mut().push((name.to_owned(), weight));
    }
}

/// Why there is nothing to read.
#[derive(Debug)]
enum Unusable {
    Missing,
    Broken(String),
}

/// What a model's packed weights are made from, wherever its folder is; `None` for embedded files.
fn identity(files: &ModelFiles, made_with: &str) -> Option<String> {
    let folder = files.path()?;
    let mut text = format!("{made_with}\n");
    for name in files.names().ok()? {
        let is_weights = [".safetensors", ".gguf"].iter().any(|ending| name.ends_with(ending));
        if !is_weights && name != "config.json" {
            continue;
        }
        let bytes = files.bytes(&name).ok()??;
        let path = if folder.is_file() { folder.to_path_buf() } else { folder.join(&name) };
        let about = std::fs::metadata(path).ok()?;
        let changed = about.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let (head, tail) = (bytes.len().min(HEAD), bytes.len().saturating_sub(TAIL));
        let hash = checksum(&bytes[..head]) ^ checksum(&bytes[tail..]).rotate_left(1);
        // The config is small enough to be known by its content, whenever it was written.
        let changed = if is_weights { changed } else { 0 };
        writeln!(text, "{name} {} {changed} {hash:016x}", bytes.len()).ok()?;
    }
    Some(text)
}

fn read(path: &Path, identity: &str, threads: usize) -> Result<BTreeMap<String, PackedWeight>, Unusable> {
    if !path.is_file() {
        return Err(Unusable::Missing);
    }
    let broken = |reason: &dyn std::fmt::Display| Unusable::Broken(reason.to_string());
    let bytes = SharedBytes::open(path).map_err(|error| broken(&error))?;
    let file = Safetensors::parse(bytes, &path.display().to_string()).map_err(|error| broken(&error))?;
    let about = file.metadata();
    if about.get(IDENTITY).map(String::as_str) != Some(identity) {
        return Err(broken(&"it was made from other files"));
    }
    let described = about.iter().filter(|(key, _)| *key != CHECKSUM);
    if about.get(CHECKSUM) != Some(&description_checksum(described.map(|(key, value)| (key.as_str(), value.as_str()))))
    {
        return Err(broken(&"its description is damaged"));
    }
    let mut weights = BTreeMap::new();
    let mut expected = Vec::new();
    for name in file.names() {
        let described = about.get(&format!("{TENSOR}{name}")).and_then(|text| Description::parse(text));
        let (Some(described), Some(data)) = (described, file.tensor(name)) else {
            return Err(broken(&format_args!("tensor {name} is not described")));
        };
        let Some(bytes) = data.bytes().slice(0..described.len) else {
            return Err(broken(&format_args!("tensor {name} is too short")));
        };
        expected.push((bytes.clone(), described.checksum));
        weights.insert(name.to_owned(), PackedWeight { layout: described.layout, outputs: described.outputs, bytes });
    }
    if all_as_expected(&expected, threads) { Ok(weights) } else { Err(broken(&"its weights are damaged")) }
}

/// Whether all bytes have their checksums.
fn all_as_expected(expected: &[(SharedBytes, u64)], threads: usize) -> bool {
    let (next, good) = (AtomicUsize::new(0), AtomicBool::new(true));
    let check = || {
        while good.load(Ordering::Relaxed) {
            let Some((bytes, sum)) = expected.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            if checksum(bytes) != *sum {
                good.store(false, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(check);
        }
        check();
    });
    good.into_inner()
}

/// Writes a file beside its place and moves it there: whoever looks sees all of it or nothing.
fn write(path: &Path, identity: &str, weights: &BTreeMap<String, PackedWeight>) -> std::io::Result<()> {
    let header = header(identity, weights);
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_extension(format!("{}-{serial}.{UNFINISHED}", std::process::id()));
    let written = File::create(&unfinished).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for weight in weights.values() {
            out.write_all(&weight.bytes)?;
            out.write_all(&[0; ALIGNMENT][..padded(weight.bytes.len()) - weight.bytes.len()])?;
        }
        // Otherwise a loss of power could leave the name with pages that never reached the disk.
        out.into_inner()?.sync_data()?;
        std::fs::rename(&unfinished, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

/// The header, filled up with spaces so that the data begin at a multiple of [`ALIGNMENT`].
fn header(identity: &str, weights: &BTreeMap<String, PackedWeight>) -> String {
    let mut about: BTreeMap<String, String> = [(IDENTITY.to_owned(), identity.to_owned())].into();
    let mut entries = Map::new();
    let mut begin = 0;
    for (name, weight) in weights {
        about.insert(format!("{TENSOR}{name}"), Description::of(weight).to_string());
        let end = begin + padded(weight.bytes.len());
        entries.insert(name.clone(), json!({"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}));
        begin = end;
    }
    let sum = description_checksum(about.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    about.insert(CHECKSUM.to_owned(), sum);
    entries.insert("__metadata__".to_owned(), json!(about));
    let mut header = Value::Object(entries).to_string();
    let missing = padded(LENGTH_FIELD + header.len()) - LENGTH_FIELD - header.len();
    header.extend(std::iter::repeat_n(' ', missing));
    header
}

/// What metadata say of a tensor.
struct Description {
    layout: GroupedLayout,
    outputs: usize,
    len: usize,
    checksum: u64,
}

impl Description {
    fn of(weight: &PackedWeight) -> Self {
        let PackedWeight { layout, outputs, ref bytes } = *weight;
        Self { layout, outputs, len: bytes.len(), checksum: checksum(bytes) }
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(' ').collect();
        let &[bits, group, outputs, inputs, len, checksum] = &parts[..] else { return None };
        let bits = match bits {
            "4" => CodeBits::Four,
            "8" => CodeBits::Eight,
            _ => return None,
        };
        let layout = GroupedLayout::new(bits, inputs.parse().ok()?, group.parse().ok()?).ok()?;
        let (outputs, len) = (outputs.parse().ok()?, len.parse().ok()?);
        Some(Self { layout, outputs, len, checksum: u64::from_str_radix(checksum, 16).ok()? })
    }
}

impl std::fmt::Display for Description {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = if self.layout.bits() == CodeBits::Four { 4 } else { 8 };
        let (group, inputs) = (self.layout.group(), self.layout.inputs());
        write!(out, "{bits} {group} {} {inputs} {} {:016x}", self.outputs, self.len, self.checksum)
    }
}

/// Removes what was not used for longest until all but `keep` take `room` bytes, and what crashed writers left.
fn make_room(folder: &Path, keep: &Path, room: u64) -> std::io::Result<()> {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        // Another process may have removed it.
        let Ok(about) = std::fs::metadata(&path) else { continue };
        let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let ends_with = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
        if ends_with(UNFINISHED) && used.elapsed().is_ok_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_file(&path);
        } else if ends_with(EXTENSION) && path != keep {
            kept.push((used, about.len(), path));
        }
    }
    kept.sort_unstable_by(|a, b| b.cmp(a));
    let mut taken = 0u64;
    for (_, size, path) in kept {
        taken = taken.saturating_add(size);
        if taken > room {
            tracing::info!(path = %path.display(), "packed weights make room for others");
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}

fn description_checksum<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let text = pairs.fold(String::new(), |text, (key, value)| text + key + "\n" + value + "\n");
    format!("{:016x}", checksum(text.as_bytes()))
}

/// A fast checksum against accidents: eight words at a time, each multiplied into a state of its own.
fn checksum(bytes: &[u8]) -> u64 {
    let mut states: [u64; LANES] = std::array::from_fn(|lane| PRIME.wrapping_mul(lane as u64 + 1));
    let (blocks, rest) = bytes.as_chunks::<{ 8 * LANES }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (state, word) in states.iter_mut().zip(words) {
            *state = (*state ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME).rotate_left(29);
        }
    }
    let tail = rest.iter().fold(bytes.len() as u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME));
    states.iter().fold(tail, |sum, state| (sum.rotate_left(7) ^ state).wrapping_mul(PRIME))
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT)
}

/// Cache lines, and the widest vectors.
const ALIGNMENT: usize = 64;
const LENGTH_FIELD: usize = 8;
const LANES: usize = 8;
const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes at both ends of a weight file that are looked at: a header, and what appending or rewriting would change.
const HEAD: usize = 1 << 18;
const TAIL: usize = 1 << 16;
/// Ending of a file in use.
const EXTENSION: &str = "packed";
/// Ending of a file that is being written.
const UNFINISHED: &str = "unfinished";
/// After this long, nobody is writing a file any more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
const IDENTITY: &str = "identity";
const CHECKSUM: &str = "checksum";
const TENSOR: &str = "tensor:";

#[cfg(test)]
mod tests {
    use super::*;

    /// A model's folder and a cache.
    struct Scene {
        folder: tempfile::TempDir,
        files: ModelFiles,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let model = folder.path().join("model");
            std::fs::create_dir(&model).unwrap();
            std::fs::write(model.join("config.json"), "{}").unwrap();
            std::fs::write(model.join("model.safetensors"), vec![7; 1000]).unwrap();
            Self { files: ModelFiles::open(model).unwrap(), folder }
        }

        fn cache(&self, max_bytes: u64) -> PackCache {
            PackCache { folder: self.folder.path().join("packed"), max_bytes }
        }

        fn open(&self, made_with: &str) -> Packs {
            Packs::open(&self.cache(1 << 30), &self.files, made_with, 2).unwrap()
        }

        /// What is kept, by size.
        fn kept(&self) -> Vec<PathBuf> {
            let entries = std::fs::read_dir(self.cache(0).folder).map(|entries| entries.map(|e| e.unwrap().path()));
            let mut kept: Vec<PathBuf> = entries.map(Iterator::collect).unwrap_or_default();
            kept.sort();
            kept
        }

        fn file(&self) -> PathBuf {
            let [ref file] = self.kept()[..] else { panic!("one file is kept, not {:?}", self.kept()) };
            file.clone()
        }

        /// Keeps two weights, one of them of no whole lines.
        fn fill(&self, made_with: &str) {
            let packs = self.open(made_with);
            assert!(packs.get("a").is_none());
            packs.put("a", weight(640, 1));
            packs.put("b", weight(100, 2));
            packs.keep();
        }

        fn is_whole(&self, made_with: &str) -> bool {
            let packs = self.open(made_with);
            packs.get("a").is_some_and(|a| a.bytes[..] == weight(640, 1).bytes[..])
                && packs.get("b").is_some_and(|b| b.bytes[..] == weight(100, 2).bytes[..])
        }
    }

    fn weight(len: usize, seed: u8) -> PackedWeight {
        let bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        PackedWeight { layout: GroupedLayout::new(CodeBits::Four, 96, 32).unwrap(), outputs: 5, bytes: bytes.into() }
    }

    #[test]
    fn what_is_kept_comes_back_aligned() {
        let scene = Scene::new();
        scene.fill("q4");
        let packs = scene.open("q4");
        for (name, expected) in [("a", weight(640, 1)), ("b", weight(100, 2))] {
            let found = packs.get(name).unwrap();
            assert_eq!((found.layout, found.outputs), (expected.layout, expected.outputs));
            assert_eq!(found.bytes[..], expected.bytes[..]);
        }
        // The data begin at a multiple of 64 bytes, and so does every tensor.
        let bytes = std::fs::read(scene.file()).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!((header % 64, (bytes.len() as u64 - header) % 64), (0, 0));
        assert!(packs.get("c").is_none());
        packs.put("c", weight(64, 3));
        packs.keep();
        assert!(scene.is_whole("q4") && scene.open("q4").get("c").is_some(), "what was there stays");
    }

    #[test]
    fn another_precision_or_another_file_is_another_entry() {
        let scene = Scene::new();
        scene.fill("q4");
        assert!(scene.open("q8").get("a").is_none());
        let weights = scene.files.path().unwrap().join("model.safetensors");
        std::fs::write(&weights, vec![8; 1000]).unwrap();
        assert!(scene.open("q4").get("a").is_none(), "other content, the same size");
        scene.fill("q4");
        std::fs::write(scene.files.path().unwrap().join("config.json"), r#"{"tied": true}"#).unwrap();
        assert!(scene.open("q4").get("a").is_none(), "another config");
        assert!(Packs::open(&scene.cache(1), &ModelFiles::embedded("x", &[]), "q4", 1).is_none());
    }

    #[test]
    fn a_copy_of_the_folder_is_the_same_model() {
        let scene = Scene::new();
        scene.fill("q4");
        let copy = scene.folder.path().join("copy");
        std::fs::rename(scene.files.path().unwrap(), &copy).unwrap();
        let moved = Packs::open(&scene.cache(1 << 30), &ModelFiles::open(copy).unwrap(), "q4", 1).unwrap();
        assert!(moved.get("a").is_some());
    }

    #[test]
    fn damage_of_any_kind_is_noticed_and_repaired() {
        let scene = Scene::new();
        scene.fill("q4");
        let (file, good) = (scene.file(), std::fs::read(scene.file()).unwrap());
        let text = String::from_utf8_lossy(&good[8..]).into_owned();
        let layout = 8 + text.find("4 32 5 96").unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        // The last weight takes two lines of 64 bytes.
        let last = good.len() - 128;
        let damages = [
            ("empty", Vec::new()),
            ("truncated", good[..good.len() - 70].to_vec()),
            ("cut in the header", good[..40].to_vec()),
            ("a byte of a weight", with(last, good[last] ^ 1)),
            ("a number of a description", with(layout + 5, b'6')),
            ("no safetensors", with(8, b'x')),
        ];
        for (what, bytes) in damages {
            std::fs::write(&file, bytes).unwrap();
            assert!(!scene.is_whole("q4"), "{what}");
            scene.fill("q4");
            assert!(scene.is_whole("q4"), "{what} is repaired");
        }
    }

    #[test]
    fn the_least_recently_used_make_room() {
        let scene = Scene::new();
        let size = 640 + 128;
        let ages = [("old", 300), ("older", 400), ("oldest", 500)];
        for (made_with, age) in ages {
            scene.fill(made_with);
            let path = scene.open(made_with).path;
            let then = SystemTime::now() - Duration::from_secs(age);
            File::open(path).unwrap().set_modified(then).unwrap();
        }
        // Opening is using.
        assert!(scene.is_whole("oldest"));
        let file_len = std::fs::metadata(scene.kept()[0].clone()).unwrap().len();
        let room = Packs::open(&scene.cache(size + 2 * file_len), &scene.files, "new", 1).unwrap();
        room.put("a", weight(640, 1));
        room.put("b", weight(100, 2));
        room.keep();
        let is_kept = |made_with: &str| scene.open(made_with).get("a").is_some();
        assert_eq!([is_kept("new"), is_kept("oldest"), is_kept("old"), is_kept("older")], [true, true, true, false]);
        let small = Packs::open(&scene.cache(size - 1), &scene.files, "too large", 1).unwrap();
        small.put("a", weight(640, 1));
        small.put("b", weight(100, 2));
        small.keep();
        assert!(!is_kept("too large") && is_kept("new"), "what does not fit at all evicts nothing");
    }

    #[test]
    fn what_crashed_writers_left_is_removed_in_time() {
        let scene = Scene::new();
        scene.fill("q4");
        let left = |name: &str, age: Duration| {
            let path = scene.cache(0).folder.join(name);
            std::fs::write(&path, "half").unwrap();
            File::open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
            path
        };
        let (old, fresh) = (left("x.1-0.unfinished", ABANDONED * 2), left("y.2-0.unfinished", Duration::ZERO));
        scene.fill("q8");
        assert!(!old.exists() && fresh.exists());
    }

    #[test]
    fn many_writers_and_readers_at_once_see_whole_files() {
        let scene = Scene::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let packs = scene.open("q4");
                        let found = [packs.get("a").is_some(), packs.get("b").is_some()];
                        assert!(found == [true, true] || found == [false, false]);
                        packs.put("a", weight(640, 1));
                        packs.put("b", weight(100, 2));
                        packs.keep();
                    }
                });
            }
        });
        assert!(scene.is_whole("q4"));
        assert_eq!(scene.kept().len(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_time() {
        let scene = Scene::new();
        let blocked = scene.folder.path().join("blocked");
        std::fs::write(&blocked, "a file").unwrap();
        let packs = Packs::open(&PackCache { folder: blocked, max_bytes: 1 << 20 }, &scene.files, "q4", 1).unwrap();
        packs.put("a", weight(640, 1));
        packs.keep();
    }

    #[test]
    fn checksums_see_every_byte_and_the_length() {
        let bytes: Vec<u8> = (0..200u8).collect();
        let sum = checksum(&bytes);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_ne!(checksum(&changed), sum, "byte {at}");
        }
        assert_ne!(checksum(&[0; 64]), checksum(&[0; 128]));
    }
}
