//! Any other video file, through the programs `ffprobe` and `ffmpeg`.
//!
//! The frames come over a pipe as PPM pictures, which tell their own size: what the file says of it need not be upright.
//! Only the wanted ones are sent. Nothing goes through a shell, names are never taken for options or addresses, and the
//! file cannot make the program read another one.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::JoinHandle;

use serde_json::Value;

use super::VideoInfo;
use super::animation::plain;
use crate::image::{Image, ImageLimits};
use crate::{Error, Result};

/// Whether the programs that read video files are on the `PATH`.
pub fn has_ffmpeg() -> bool {
    let folders: Vec<_> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let is_there = |program: &str| {
        let file = format!("{program}{}", std::env::consts::EXE_SUFFIX);
        folders.iter().any(|folder| folder.join(&file).is_file())
    };
    is_there("ffprobe") && is_there("ffmpeg")
}

/// Asks for the number of frames and their rate. Containers that do not tell the number have their packets counted.
pub(super) fn probe(path: &Path) -> Result<VideoInfo> {
    let stream = ask(path, &[])?;
    let rate = ["avg_frame_rate", "r_frame_rate"].iter().find_map(|key| ratio(stream.get(*key)?.as_str()?));
    let count = |stream: &Value, key| stream.get(key)?.as_str()?.parse().ok().filter(|&count: &usize| count > 0);
    let frames = match count(&stream, "nb_frames") {
        Some(frames) => Some(frames),
        None => count(&ask(path, &["-count_packets"])?, "nb_read_packets"),
    };
    let frames = frames.ok_or(Error::NoFrames)?;
    Ok(VideoInfo { frames, fps: Some(rate.unwrap_or(DEFAULT_FPS)) })
}

/// What `ffprobe` says of the first video stream.
fn ask(path: &Path, more: &[&str]) -> Result<Value> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-protocol_whitelist", "file", "-select_streams", "v:0"]).args(more);
    command.args(["-show_entries", "stream=nb_frames,nb_read_packets,avg_frame_rate,r_frame_rate", "-of", "json"]);
    let output = command.arg("-i").arg(name(path)).stdin(Stdio::null()).output().map_err(not_started)?;
    if !output.status.success() {
        return Err(bad(&output.stderr, path));
    }
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    said.get("streams").and_then(|streams| streams.get(0)).cloned().ok_or(Error::NoVideoStream)
}

pub(super) fn frames(
    path: &Path,
    limits: &ImageLimits,
    wanted: &[usize],
    take: &mut dyn FnMut(Image) -> Result<()>,
) -> Result<()> {
    let chosen: Vec<String> = wanted.iter().map(|number| format!("eq(n\\,{number})")).collect();
    // Times of their own: otherwise frames would be repeated to fill the gaps between those that are wanted.
    let filter = format!("select={},settb=1/25,setpts=N", chosen.join("+"));
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-protocol_whitelist", "file", "-i"]).arg(name(path));
    command.args(["-map", "0:v:0", "-vf", &filter, "-r", "25", "-frames:v", &wanted.len().to_string()]);
    command.args(["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]);
    let mut program = Program::start(command)?;
    let mut output = BufReader::new(program.child.stdout.take().expect("a pipe was asked for"));
    let mut taken = 0;
    while let Some(frame) = read_ppm(&mut output, limits)? {
        take(frame)?;
        taken += 1;
    }
    let (succeeded, said) = program.finish();
    // What is broken behind frames that could be read is no reason to refuse them.
    if taken == 0 {
        return Err(if succeeded { Error::NoFrames } else { bad(&said, path) });
    }
    Ok(())
}

/// The next picture of a stream of binary PPM files; `None` at its end.
fn read_ppm(input: &mut impl BufRead, limits: &ImageLimits) -> Result<Option<Image>> {
    let broken = |message: &str| Error::BadVideo { message: message.to_owned() };
    let mut header = Vec::new();
    // Three lines: `P6`, width and height, 255.
    for _ in 0..3 {
        input.by_ref().take(MOST_HEADER).read_until(b'\n', &mut header).map_err(|error| broken(&error.to_string()))?;
    }
    if header.is_empty() {
        return Ok(None);
    }
    let header = String::from_utf8_lossy(&header);
    let words: Vec<&str> = header.split_ascii_whitespace().collect();
    let ["P6", width, height, "255"] = words[..] else {
        return Err(broken("ffmpeg sent something else than pictures"));
    };
    let side = |word: &str| word.parse::<u32>().map_err(|_| broken("ffmpeg sent a picture without a size"));
    let (width, height) = (side(width)?, side(height)?);
    limits.check(width, height)?;
    let (width, height) = (width as usize, height as usize);
    let mut pixels = vec![0; width * height * 3];
    match input.read_exact(&mut pixels) {
        Ok(()) => Ok(Some(Image::new(width, height, pixels))),
        Err(error) => Err(broken(&format!("ffmpeg stopped in the middle of a frame ({error})"))),
    }
}

/// A program that runs; it ends when nobody needs it any more.
struct Program {
    child: Child,
    said: Option<JoinHandle<Vec<u8>>>,
}

impl Program {
    fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(not_started)?;
        // What nobody reads would block it sooner or later.
        let said = child.stderr.take().map(|stderr| std::thread::spawn(move || first_of(stderr)));
        Ok(Self { child, said })
    }

    /// Waits for the end: whether all went well, and what it said about it.
    fn finish(&mut self) -> (bool, Vec<u8>) {
        let succeeded = self.child.wait().is_ok_and(|status| status.success());
        (succeeded, self.said.take().and_then(|said| said.join().ok()).unwrap_or_default())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already unless reading its frames failed; then nobody waits for what it has to say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The beginning of what a program says, all of it read.
fn first_of(mut stderr: ChildStderr) -> Vec<u8> {
    let mut said = Vec::new();
    // Whatever cannot be read is missing from a message.
    let _ = stderr.by_ref().take(MOST_SAID).read_to_end(&mut said);
    let _ = std::io::copy(&mut stderr, &mut std::io::sink());
    said
}

/// The file as `ffmpeg` takes it for one, whatever its name.
fn name(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

fn not_started(error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::NoFfmpeg,
        _ => Error::BadVideo { message: format!("ffmpeg cannot be started: {}", plain(&error)) },
    }
}

/// The first thing the program said, without the file's name before it.
fn bad(said: &[u8], path: &Path) -> Error {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("ffmpeg does not say why");
    let file = format!("file:{}: ", path.display());
    let message = line.replace(&file, "");
    Error::BadVideo { message: message.rsplit("] ").next().unwrap_or_default().to_owned() }
}

/// `30000/1001` as a number, if it is a rate.
fn ratio(text: &str) -> Option<f64> {
    let (numerator, denominator) = text.split_once('/')?;
    let rate = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

/// What the reference takes for the rate of a video that tells none.
const DEFAULT_FPS: f64 = 24.0;
const MOST_HEADER: u64 = 64;
const MOST_SAID: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_fractions() {
        assert_eq!(ratio("30000/1001"), Some(30_000.0 / 1001.0));
        assert_eq!(ratio("25/1"), Some(25.0));
        assert_eq!((ratio("0/0"), ratio("0/1"), ratio("25"), ratio("a/b")), (None, None, None, None));
    }

    #[test]
    fn pictures_come_one_after_another_until_the_end() {
        let limits = ImageLimits::default();
        let mut stream: &[u8] = b"P6\n1 1\n255\nabcP6\n1 2\n255\nabcdef";
        assert_eq!(read_ppm(&mut stream, &limits).unwrap(), Some(Image::new(1, 1, b"abc".to_vec())));
        assert_eq!(read_ppm(&mut stream, &limits).unwrap(), Some(Image::new(1, 2, b"abcdef".to_vec())));
        assert_eq!(read_ppm(&mut stream, &limits).unwrap(), None);
    }

    #[test]
    fn streams_that_are_none_are_errors() {
        for stream in [
            "P6\n1 1\n255\nab",
            "P5\n1 1\n255\na",
            "P6\n1",
            "P6\n-1 2\n255\n",
            "P6\n0 2\n255\n",
            "\n\n\n",
            "P6\n99999 9\n255\n",
        ] {
            assert!(read_ppm(&mut stream.as_bytes(), &ImageLimits::default()).is_err(), "{stream:?}");
        }
    }

    #[test]
    fn messages_lose_what_the_user_knows() {
        let message = |said: &str| bad(said.as_bytes(), Path::new("a b.mp4")).to_string();
        let said = "[mov,mp4 @ 0x55d] moov atom not found\nfile:a b.mp4: Invalid data found";
        assert_eq!(message(said), "the video cannot be decoded: moov atom not found");
        assert_eq!(message("file:a b.mp4: Invalid data\n"), "the video cannot be decoded: Invalid data");
        assert_eq!(message(""), "the video cannot be decoded: ffmpeg does not say why");
    }
}
