//! A scratch folder to run the program in, away from the user's own settings.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with pictures, and a program that sees nothing of this machine's settings.
pub(crate) struct Scratch {
    folder: tempfile::TempDir,
}

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A folder `pics` with two pictures, and a third that is cut off.
    pub(crate) fn with_pictures() -> Self {
        let scratch = Self::new();
        let picture = picture();
        scratch.write("pics/a.png", &picture);
        scratch.write("pics/c.png", &std::fs::read(repository("examples/scene-03.jpg")).unwrap());
        scratch.write("pics/b.png", &picture[..picture.len() / 2]);
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    /// A copy of a fixture's folder.
    pub(crate) fn copy_fixture(&self, family: &str) -> PathBuf {
        let copy = self.path().join(family);
        copy_files(&repository("fixtures").join(family), &copy);
        copy
    }

    /// Puts a folder of this repository into the scratch folder's hub cache, under a model's id; returns the copy.
    pub(crate) fn cache_model(&self, id: &str, folder: &str) -> PathBuf {
        let model = format!("hub/models--{}", id.replace('/', "--"));
        let snapshot = self.path().join(&model).join("snapshots").join(COMMIT);
        copy_files(&repository(folder), &snapshot);
        self.write(&format!("{model}/refs/main"), COMMIT.as_bytes());
        snapshot
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        command.args(arguments).current_dir(self.path()).env_clear();
        // What a program needs to start at all on some systems.
        for name in ["PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.env("HOME", self.path()).env("HF_HUB_CACHE", self.path().join("hub")).env("HF_HUB_OFFLINE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn run_with_input<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        // A program that does not read its input closes the pipe: that is its right.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap().into()
    }
}

impl Ran {
    /// The run must have worked; gives what it printed.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        &self.stdout
    }

    /// The JSON object of each line.
    #[track_caller]
    pub(crate) fn objects(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The bytes of a good picture.
pub(crate) fn picture() -> Vec<u8> {
    std::fs::read(repository("examples/scene-01.png")).unwrap()
}

/// A path in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).canonicalize().unwrap()
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
