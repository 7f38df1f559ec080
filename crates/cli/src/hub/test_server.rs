//! A small hub on this machine for tests: descriptions, files, ranges, redirects to a storage server, and faults.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ring::digest;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The first model.
const MODEL: &str = "org/model";

/// A hub with a model, `org/model`, at [`COMMIT`]. Its thread ends with the process.
pub(crate) struct FakeHub {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    files: Vec<FakeFile>,
    /// Requests so far, as `GET /path range=bytes=5- token=abc`.
    pub(crate) requests: Vec<String>,
    /// For each transfer to come: close the connection after so many bytes.
    pub(crate) cut_after: VecDeque<usize>,
    /// Keep the connection open after a cut, silently.
    pub(crate) stall: bool,
    /// Answer range requests with everything.
    pub(crate) ignore_ranges: bool,
    /// Announce another hash than the content has.
    pub(crate) wrong_hash: bool,
    /// Announce so many bytes more than there are.
    pub(crate) announce_more: usize,
    /// Describe files by name only, as some mirrors do.
    pub(crate) names_only: bool,
    /// Answer so many requests with 503 first.
    pub(crate) n_busy: usize,
    /// Refuse paths that contain this text, with a status and an error code.
    pub(crate) refuse: Option<(&'static str, u16, &'static str)>,
    /// Answer descriptions with this instead.
    pub(crate) description: Option<&'static str>,
}

#[derive(Clone)]
struct FakeFile {
    /// The model it belongs to.
    id: String,
    name: String,
    content: Vec<u8>,
    is_large: bool,
}

impl FakeHub {
    /// A hub whose model has the given small and large files.
    pub(crate) fn start(small: &[(&str, &str)], large: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let small = small.iter().map(|(name, text)| ((*name).to_string(), text.as_bytes().to_vec(), false));
        let large = large.iter().map(|(name, bytes)| ((*name).to_string(), bytes.clone(), true));
        let files =
            small.chain(large).map(|(name, content, is_large)| FakeFile { id: MODEL.into(), name, content, is_large });
        let state = Arc::new(Mutex::new(State { files: files.collect(), ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that hangs up early is part of the tests.
                std::thread::spawn(move || drop(serve(stream, port, &shared)));
            }
        });
        Self { port, state }
    }

    /// Adds small files of another model.
    pub(crate) fn add(&self, id: &str, files: &[(&str, &str)]) {
        let file = |&(name, text): &(&str, &str)| FakeFile {
            id: id.into(),
            name: name.into(),
            content: text.as_bytes().to_vec(),
            is_large: false,
        };
        self.state().files.extend(files.iter().map(file));
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while holding it")
    }

    /// How many requests contained a text.
    pub(crate) fn n_requests(&self, text: &str) -> usize {
        self.state().requests.iter().filter(|request| request.contains(text)).count()
    }
}

struct Request {
    method: String,
    path: String,
    range_start: Option<usize>,
}

fn serve(stream: TcpStream, port: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let request = read_request(&stream, state)?;
    let mut state = state.lock().expect("no test panics while holding it");
    if state.n_busy > 0 {
        state.n_busy -= 1;
        return respond(stream, 503, &[], b"", None);
    }
    if let Some((text, status, code)) = state.refuse
        && request.path.contains(text)
    {
        return respond(stream, status, &[("X-Error-Code", code.into())], b"no\nmore", None);
    }
    if let Some((id, rest)) = request.path.strip_prefix("/api/models/").and_then(split_id)
        && rest.starts_with("revision/")
        && state.files.iter().any(|file| file.id == id)
    {
        let description = state.description.map_or_else(|| describe(&state, id), ToString::to_string);
        return respond(stream, 200, &[], description.as_bytes(), None);
    }
    let file = |id: &str, name: &str| {
        let name = name.replace("%20", " ");
        state.files.iter().find(|file| file.id == id && file.name == name).cloned()
    };
    let of_hub = request.path.strip_prefix('/').and_then(split_id).and_then(|(id, rest)| {
        let name = rest.strip_prefix("resolve/")?.strip_prefix(COMMIT)?.strip_prefix('/')?;
        file(id, name)
    });
    if let Some(file) = of_hub {
        let (size, hash) = (file.content.len(), hash(&file, state.wrong_hash));
        let etag = ("ETag", format!("\"{hash}\""));
        let commit = ("X-Repo-Commit", COMMIT.to_string());
        if file.is_large {
            let location = ("Location", format!("http://localhost:{port}/storage/{}", file.name));
            let linked = [("X-Linked-Size", size.to_string()), ("X-Linked-ETag", etag.1)];
            return respond(stream, 302, &[location, commit, linked[0].clone(), linked[1].clone()], b"", None);
        }
        let body = if request.method == "HEAD" { &[][..] } else { &file.content };
        return respond_sized(stream, 200, &[etag, commit], body, size, None);
    }
    let Some(file) = request.path.strip_prefix("/storage/").and_then(|name| file(MODEL, name)) else {
        let code = if request.path.starts_with("/api/") { "RepoNotFound" } else { "EntryNotFound" };
        return respond(stream, 404, &[("X-Error-Code", code.into())], b"", None);
    };
    let cut = state.cut_after.pop_front();
    let (ignore_ranges, stall) = (state.ignore_ranges, state.stall);
    drop(state);
    let size = file.content.len();
    let result = match request.range_start {
        Some(start) if !ignore_ranges && start >= size => respond(stream.try_clone()?, 416, &[], b"", None),
        Some(start) if !ignore_ranges => {
            let range = ("Content-Range", format!("bytes {start}-{}/{size}", size - 1));
            respond(stream.try_clone()?, 206, &[range], &file.content[start..], cut)
        }
        _ => respond(stream.try_clone()?, 200, &[], &file.content, cut),
    };
    if stall && cut.is_some() {
        std::thread::sleep(Duration::from_secs(20));
    }
    result
}

fn read_request(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(ToString::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut log, mut range_start) = (format!("{method} {path}"), None);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (key, value) = line.split_once(": ").unwrap_or_default();
        match key.to_lowercase().as_str() {
            "range" => {
                range_start = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok();
                log += &format!(" range={value}");
            }
            "authorization" => log += &format!(" token={}", value.trim_start_matches("Bearer ")),
            _ => {}
        }
    }
    state.lock().expect("no test panics while holding it").requests.push(log);
    Ok(Request { method, path, range_start })
}

/// `org/name` and what follows.
fn split_id(path: &str) -> Option<(&str, &str)> {
    let (end, _) = path.match_indices('/').nth(1)?;
    Some((&path[..end], &path[end + 1..]))
}

fn describe(state: &State, id: &str) -> String {
    let entry = |file: &FakeFile| {
        let (name, size) = (&file.name, file.content.len() + state.announce_more);
        let hash = hash(file, state.wrong_hash);
        match (state.names_only, file.is_large) {
            (true, _) => format!(r#"{{"rfilename":"{name}"}}"#),
            (_, false) => format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{hash}"}}"#),
            (_, true) => {
                let lfs = format!(r#"{{"sha256":"{hash}","size":{size},"pointerSize":134}}"#);
                format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{}","lfs":{lfs}}}"#, "0".repeat(40))
            }
        }
    };
    let siblings: Vec<String> = state.files.iter().filter(|file| file.id == id).map(entry).collect();
    format!(r#"{{"id":"{id}","sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","))
}

fn hash(file: &FakeFile, wrong: bool) -> String {
    let (algorithm, prefix) = if file.is_large {
        (&digest::SHA256, String::new())
    } else {
        (&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("blob {}\0", file.content.len()))
    };
    let hashed = digest::digest(algorithm, &[prefix.as_bytes(), &file.content].concat());
    let hex: String = hashed.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if wrong { hex.chars().rev().collect() } else { hex }
}

fn respond(
    stream: TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    cut: Option<usize>,
) -> std::io::Result<()> {
    respond_sized(stream, status, headers, body, body.len(), cut)
}

fn respond_sized(
    mut stream: TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    size: usize,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {size}\r\nConnection: close\r\n");
    for (key, value) in headers {
        head += &format!("{key}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])?;
    stream.flush()
}
