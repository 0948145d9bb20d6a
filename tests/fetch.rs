//! Downloads against an HTTP server in this file: nothing here reaches the network.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dalcore::data::fetch::{FetchOptions, Fetched, Progress, fetch};
use dalcore::data::{DataDir, Entry, RemoteFile, Sum, Verify, synthetic};
use md5::Md5;
use sha2::{Digest, Sha256};

/// What the server does with one request. The last one is repeated for all further requests.
#[derive(Clone, Debug)]
enum Answer {
    /// The content, honouring a range.
    Ranges(Vec<u8>),
    /// The content from the start, whatever was asked for.
    NoRanges(Vec<u8>),
    /// As `Ranges`, but the line is cut after this many bytes of body.
    Cut(Vec<u8>, usize),
    /// An error status.
    Status(u16),
    /// 206 with this Content-Range, and this body.
    Odd(&'static str, Vec<u8>),
}

/// A server for one connection at a time, with the `Range` header of each request it saw.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Option<String>>>>,
}

impl Server {
    fn start(answers: &[Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/mirror", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let mut answers: VecDeque<Answer> = answers.iter().cloned().collect();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let Some(Ok(first)) = lines.next() else {
                    continue;
                };
                assert!(first.starts_with("GET /mirror/file.gz "), "{first}");
                let mut range = None;
                for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
                    if let Some((name, value)) = line.split_once(':')
                        && name.eq_ignore_ascii_case("range")
                    {
                        range = Some(value.trim().to_string());
                    }
                }
                let from =
                    range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
                log.lock().unwrap().push(range);
                let answer = if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() };
                // The client may hang up on us; that is its right.
                respond(&mut stream, answer, from).ok();
            }
        });
        Server { url, seen }
    }

    /// The `Range` headers seen so far.
    fn ranges(&self) -> Vec<Option<String>> {
        self.seen.lock().unwrap().clone()
    }
}

fn respond(stream: &mut impl Write, answer: Answer, from: Option<usize>) -> std::io::Result<()> {
    let head = |status: &str, len: usize, extra: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n{extra}Connection: close\r\n\r\n")
    };
    let (content, keep) = match answer {
        Answer::Status(code) => {
            return stream.write_all(head(&format!("{code} No"), 0, "").as_bytes());
        }
        Answer::NoRanges(content) => {
            stream.write_all(head("200 OK", content.len(), "").as_bytes())?;
            return stream.write_all(&content);
        }
        Answer::Odd(range, body) => {
            let extra = format!("Content-Range: {range}\r\n");
            stream.write_all(head("206 Partial Content", body.len(), &extra).as_bytes())?;
            return stream.write_all(&body);
        }
        Answer::Ranges(content) => (content, usize::MAX),
        Answer::Cut(content, keep) => (content, keep),
    };
    let total = content.len();
    let (body, head) = match from {
        None => (&content[..], head("200 OK", total, "")),
        Some(at) if at >= total => (&[][..], head("416 Range Not Satisfiable", 0, "")),
        Some(at) => {
            let extra = format!("Content-Range: bytes {at}-{}/{total}\r\n", total - 1);
            (&content[at..], head("206 Partial Content", total - at, &extra))
        }
    };
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..keep.min(body.len())])
}

/// A one-file data set, its content, and a folder of its own.
struct Case {
    dir: PathBuf,
    body: Vec<u8>,
    entry: Entry,
}

impl Case {
    fn new(name: &str) -> Case {
        let dir = std::env::temp_dir().join(format!("dalcore-fetch-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir_all(dir.join("synthetic")).unwrap();
        // Stored, not compressed, so that it is large enough to be cut at interesting places.
        let raw: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gz.write_all(&raw).unwrap();
        let body = gz.finish().unwrap();
        let sum = |bytes: &[u8]| -> &'static str {
            let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            hex.leak()
        };
        let file = RemoteFile {
            name: "file.gz",
            len: body.len() as u64,
            sum: Sum::Sha256(sum(&body)),
            raw_sha256: Some(sum(&raw)),
            also: &["file"],
        };
        let load = |_: &DataDir, _: Verify| unreachable!("these tests only download");
        let files = Vec::leak(vec![file]);
        let entry = Entry { spec: &synthetic::SPEC, load, home: "synthetic", files, mirrors: &[], in_repro: None };
        Case { dir, body, entry }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("synthetic/file.gz")
    }

    fn part(&self) -> PathBuf {
        self.dir.join("synthetic/file.gz.part")
    }

    fn fetch(&self, servers: &[&Server]) -> dalcore::Result<Vec<Fetched>> {
        let options = FetchOptions {
            mirrors: servers.iter().map(|s| s.url.clone()).collect(),
            official: true,
            progress: Progress::Quiet,
            timeout: Duration::from_secs(5),
        };
        fetch(&self.entry, &DataDir::at(&self.dir), &options)
    }

    /// The file is there, complete, came from `server`, and no part file is left.
    fn succeeds(&self, servers: &[&Server], server: &Server) {
        let url = format!("{}/file.gz", server.url);
        assert_eq!(self.fetch(servers).unwrap(), [Fetched::Downloaded(self.file(), url)]);
        assert!(std::fs::read(self.file()).unwrap() == self.body);
        assert!(!self.part().exists());
    }

    fn corrupt(&self) -> Vec<u8> {
        let mut bytes = self.body.clone();
        bytes[1000] ^= 1;
        bytes
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn range(from: usize) -> Option<String> {
    Some(format!("bytes={from}-"))
}

#[test]
fn a_full_download_then_nothing_to_do() {
    let case = Case::new("full");
    let server = Server::start(&[Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&server], &server);
    assert_eq!(case.fetch(&[&server]).unwrap(), [Fetched::AlreadyThere(case.file())]);
    assert_eq!(server.ranges(), [None], "the second call asked for nothing");
}

#[test]
fn a_damaged_file_is_replaced() {
    let case = Case::new("replace");
    std::fs::write(case.file(), b"rubbish").unwrap();
    let server = Server::start(&[Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&server], &server);
}

#[test]
fn a_file_of_unknown_length_is_as_long_as_the_server_says() {
    let mut case = Case::new("length");
    let md5: String = Md5::digest(&case.body).iter().map(|b| format!("{b:02x}")).collect();
    let file = RemoteFile { name: "file.gz", len: 0, sum: Sum::Md5(md5.leak()), raw_sha256: None, also: &[] };
    case.entry.files = Vec::leak(vec![file]);
    let cut = Answer::Cut(case.body.clone(), 70_000);
    let server = Server::start(&[Answer::Ranges(case.corrupt()), cut, Answer::Ranges(case.body.clone())]);
    let message = case.fetch(&[&server]).unwrap_err().to_string();
    assert!(message.contains("md5"), "{message}");
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), [None, None, range(70_000)]);
    assert_eq!(case.fetch(&[]).unwrap(), [Fetched::AlreadyThere(case.file())]);
}

#[test]
fn half_a_part_file_is_resumed() {
    let case = Case::new("resume");
    std::fs::write(case.part(), &case.body[..90_000]).unwrap();
    let server = Server::start(&[Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), [range(90_000)]);
}

#[test]
fn a_complete_part_file_needs_no_request() {
    let case = Case::new("complete-part");
    std::fs::write(case.part(), &case.body).unwrap();
    let server = Server::start(&[Answer::Status(500)]);
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), []);
}

#[test]
fn a_server_that_ignores_ranges_starts_over() {
    let case = Case::new("ignores");
    std::fs::write(case.part(), &case.body[..90_000]).unwrap();
    let server = Server::start(&[Answer::NoRanges(case.body.clone())]);
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), [range(90_000)]);
}

#[test]
fn a_refused_range_starts_over() {
    let case = Case::new("416");
    std::fs::write(case.part(), &case.body[..90_000]).unwrap();
    let server = Server::start(&[Answer::Status(416), Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), [range(90_000), None]);
}

#[test]
fn the_wrong_range_is_not_appended() {
    for odd in ["bytes 5-9/200", "nonsense"] {
        let case = Case::new("odd");
        std::fs::write(case.part(), &case.body[..90_000]).unwrap();
        let server = Server::start(&[Answer::Odd(odd, vec![0; 5]), Answer::Ranges(case.body.clone())]);
        case.succeeds(&[&server], &server);
        assert_eq!(server.ranges(), [range(90_000), None]);
    }
}

#[test]
fn a_part_file_from_something_else_is_thrown_away() {
    let case = Case::new("alien");
    std::fs::write(case.part(), vec![1; 90_000]).unwrap();
    let server = Server::start(&[Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), [range(90_000), None], "resumed, wrong checksum, started over");
    let case = Case::new("too-long");
    std::fs::write(case.part(), vec![1; case.body.len() + 5]).unwrap();
    case.succeeds(&[&server], &server);
}

#[test]
fn a_corrupt_mirror_is_passed_over() {
    let case = Case::new("corrupt");
    let bad = Server::start(&[Answer::Ranges(case.corrupt())]);
    let long = Server::start(&[Answer::Ranges([&case.body[..], b"more"].concat())]);
    let good = Server::start(&[Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&bad, &long, &good], &good);
    assert_eq!((bad.ranges(), long.ranges(), good.ranges()), (vec![None], vec![None], vec![None]));
}

#[test]
fn a_cut_connection_is_resumed() {
    let case = Case::new("cut");
    let cut = Answer::Cut(case.body.clone(), 70_000);
    let server = Server::start(&[cut.clone(), cut, Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&server], &server);
    assert_eq!(server.ranges(), [None, range(70_000), range(140_000)]);
}

#[test]
fn what_one_mirror_sent_serves_the_next_mirror_and_the_next_run() {
    let case = Case::new("next");
    let dying = Server::start(&[Answer::Cut(case.body.clone(), 70_000), Answer::Status(503)]);
    let message = case.fetch(&[&dying]).unwrap_err().to_string();
    assert!(message.contains("HTTP 503"), "{message}");
    assert_eq!(std::fs::metadata(case.part()).unwrap().len(), 70_000);
    let good = Server::start(&[Answer::Ranges(case.body.clone())]);
    case.succeeds(&[&dying, &good], &good);
    assert_eq!(good.ranges(), [range(70_000)]);
}

#[test]
fn when_all_mirrors_fail_each_is_listed_with_its_reason() {
    let case = Case::new("all-fail");
    let gone = Server::start(&[Answer::Status(404)]);
    let bad = Server::start(&[Answer::Ranges(case.corrupt())]);
    let nobody = Server { url: "http://127.0.0.1:9/mirror".into(), seen: Arc::default() };
    let message = case.fetch(&[&gone, &bad, &nobody]).unwrap_err().to_string();
    let path = case.file().display().to_string();
    for word in [&path, &gone.url, "HTTP 404", &bad.url, "sha-256", &nobody.url, "refused", "--mirror"] {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!case.file().exists() && !case.part().exists());
    assert_eq!(gone.ranges(), [None], "a 404 is not asked for again");
}

#[test]
fn two_downloads_of_one_file_do_not_mix() {
    let case = Case::new("lock");
    let held = std::fs::File::create(case.part()).unwrap();
    held.lock().unwrap();
    let message = case.fetch(&[]).unwrap_err().to_string();
    assert!(message.contains("another dalcore"), "{message}");
}

#[test]
fn a_folder_that_cannot_be_written_is_one_clear_message() {
    // A file where the folder should be: unlike permissions this stops an administrator too.
    let case = Case::new("unwritable");
    std::fs::remove_dir(case.dir.join("synthetic")).unwrap();
    std::fs::write(case.dir.join("synthetic"), b"").unwrap();
    let server = Server::start(&[Answer::Ranges(case.body.clone())]);
    let message = case.fetch(&[&server]).unwrap_err().to_string();
    assert!(message.contains("synthetic") && !message.contains("mirror"), "{message}");
    assert_eq!(server.ranges(), []);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_clear_message() {
    // Everything written to /dev/full fails as on a full disk.
    let case = Case::new("disk-full");
    std::os::unix::fs::symlink("/dev/full", case.part()).unwrap();
    let server = Server::start(&[Answer::Ranges(case.body.clone())]);
    let message = case.fetch(&[&server, &server]).unwrap_err().to_string();
    assert!(message.contains("file.gz.part") && message.contains("free some space"), "{message}");
    assert_eq!(server.ranges().len(), 1, "another mirror would not help");
}
