//! The standalone hub as a process: it leaves when it is told to, whatever its clients do.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use http::Request;
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::kit::{get, send, soon, subscribe};

/// Far above what a tidy end takes, far below what clients that do not read could make of it.
const IN_TIME: Duration = Duration::from_secs(12);

pub use crate::program::{example, standalone};

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(standalone)
}

/// A child that does not outlive its test.
pub struct Process(Child);

impl Process {
    pub fn spawn(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Self {
        Self::spawn_in(program, args, &[])
    }

    pub fn spawn_in(program: impl AsRef<std::ffi::OsStr>, args: &[&str], environment: &[(&str, String)]) -> Self {
        let mut command = Command::new(program);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end, though not for ever.
    pub async fn output(mut self) -> (Option<i32>, String, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < IN_TIME, "it does not leave");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let mut read = [String::new(), String::new()];
        if let Some(out) = &mut self.0.stdout {
            out.read_to_string(&mut read[0]).unwrap();
        }
        self.0.stderr.take().unwrap().read_to_string(&mut read[1]).unwrap();
        let [out, err] = read;
        (status.code(), out, err)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The hub, and where it says that it listens.
async fn start(args: &'static [&'static str]) -> (Process, SocketAddr) {
    start_with(args.iter().map(ToString::to_string).collect()).await
}

pub async fn start_with(args: Vec<String>) -> (Process, SocketAddr) {
    start_in(args, &[]).await
}

/// In an environment.
pub async fn start_in(args: Vec<String>, environment: &'static [(&'static str, String)]) -> (Process, SocketAddr) {
    spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut hub = Process::spawn_in(program(), &args, environment);
        let mut line = String::new();
        BufReader::new(hub.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://").expect(&line);
        (hub, address.parse().unwrap())
    })
    .await
    .unwrap()
}

async fn stats(addr: SocketAddr) -> Value {
    serde_json::from_str(&get(addr, "/stats").await.text().await).unwrap()
}

#[tokio::test]
async fn told_to_leave_it_says_goodbye_to_every_stream_and_exits_with_0() {
    let args: &[&str] = &["--listen", "127.0.0.1:0", "--drain-window", "3s"];
    let with_takeover: &[&str] = &["--listen", "127.0.0.1:0", "--drain-window", "3s", "--takeover"];
    for (signal, args) in [("-TERM", args), ("-INT", args), ("-TERM", with_takeover)] {
        let (hub, addr) = start(args).await;
        let streams = [subscribe(addr, "/events?topic=a").await, subscribe(addr, "/events?user=ada").await];
        hub.signal(signal);
        for stream in streams {
            let bye = stream.rest().await.pop().unwrap();
            assert_eq!(bye.event, "hub.bye");
            assert!(bye.data.contains(r#""reason":"draining""#), "{}", bye.data);
            let retry = bye.retry.unwrap();
            assert!((Duration::from_millis(100)..=Duration::from_secs(3)).contains(&retry), "{retry:?}");
        }
        assert_eq!(hub.output().await.0, Some(0));
    }
}

/// One that listens to the topic `a` and keeps nothing. Returns when it is connected, as the `nth`.
async fn reader(addr: SocketAddr, version: &'static str, nth: u64) -> Process {
    let url = format!("http://{addr}/events?topic=a");
    let curl =
        spawn_blocking(move || Process::spawn("curl", &["-sN", version, "-o", "/dev/null", &url])).await.unwrap();
    soon(async { while stats(addr).await["connections"] != nth {} }).await;
    curl
}

async fn a_stopped_reader(version: &'static str) {
    let (hub, addr) = start(&["--listen", "127.0.0.1:0", "--drain-window", "1s"]).await;
    let mut others = [subscribe(addr, "/events?topic=a").await, subscribe(addr, "/events?topic=a").await];
    let stopped = reader(addr, version, 3).await;
    stopped.signal("-STOP");

    // Until the buffers between are full, and for a while longer.
    let large: &str = "x".repeat(400 * 1024).leak();
    let mut published = 0_u64;
    while stats(addr).await["stalled"] == 0 || published < 50 {
        let path = format!("/topics/a?event={published}");
        assert_eq!(send(addr, Request::post(path).body(large).unwrap()).await.status, 202);
        for other in &mut others {
            let event = other.next().await;
            assert_eq!(event.event, published.to_string());
            assert_eq!(event.data.len(), large.len());
        }
        published += 1;
        assert!(published < 5_000, "it takes everything");
    }

    hub.signal("-TERM");
    for other in others {
        assert_eq!(other.rest().await.pop().unwrap().event, "hub.bye");
    }
    // It still waits for the one that is stopped.
    let ready = get(addr, "/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.text().await), (503, "not ready\n".to_owned()));
    let (code, _, log) = hub.output().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ended=2 cut=1"), "{log}");
}

#[tokio::test]
async fn a_reader_that_is_stopped_holds_up_neither_the_others_nor_the_end() {
    a_stopped_reader("--http1.1").await;
}

#[tokio::test]
async fn nor_does_one_over_http_2() {
    a_stopped_reader("--http2-prior-knowledge").await;
}

#[tokio::test]
async fn one_that_is_stopped_while_nothing_waits_for_it_does_not_hold_up_the_end_either() {
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let (hub, addr) = start(&["--listen", "127.0.0.1:0"]).await;
        let stopped = reader(addr, version, 1).await;
        stopped.signal("-STOP");
        hub.signal("-TERM");
        assert_eq!(hub.output().await.0, Some(0), "{version}");
    }
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_hold_up_the_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (hub, addr) = start(&["--listen", "127.0.0.1:0"]).await;
    let mut tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"POST /publish HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    // It is waiting for the body now.
    let mut waiting = [0; 25];
    soon(tcp.read_exact(&mut waiting)).await.unwrap();
    assert_eq!(&waiting, b"HTTP/1.1 100 Continue\r\n\r\n");
    hub.signal("-TERM");
    assert_eq!(hub.output().await.0, Some(0));
}

fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

#[test]
fn help_is_an_answer_and_an_unknown_option_an_error() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("Usage: standalone [--listen ADDRESS]"));
    let bad = run(&["--backplane", "nats://ada:s3cret@"]);
    assert_eq!(bad.status.code(), Some(2));
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(said.starts_with("--backplane: ") && !said.contains("s3cret"), "{said}");
    let unknown = run(&["--token", "s3cret", "--verbose"]);
    assert_eq!(unknown.status.code(), Some(2));
    let said = String::from_utf8(unknown.stderr).unwrap();
    assert!(said.starts_with("unknown option --verbose\n\n") && said.contains("Usage:"), "{said}");
    assert!(unknown.stdout.is_empty());
    assert!(!said.contains("s3cret"));
}

#[test]
fn an_argument_that_is_not_utf_8_is_an_error_and_no_panic() {
    use std::os::unix::ffi::OsStrExt;
    let output = Command::new(program()).arg(std::ffi::OsStr::from_bytes(b"--token=\xff")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let listener = std::net::TcpListener::bind(taken.unwrap()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let output = spawn_blocking(move || run(&["--listen", &address])).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn open_to_others_it_warns_loudly_and_never_prints_the_token() {
    let (open, _) = start(&["--listen", "0.0.0.0:0"]).await;
    open.signal("-TERM");
    let (_, _, said) = open.output().await;
    assert!(said.starts_with("WARNING: 0.0.0.0:"), "{said}");
    assert!(said.contains("taken at its word") && said.contains("Without --token"), "{said}");

    let (guarded, addr) = start(&["--listen", "0.0.0.0:0", "--token", "s3cret"]).await;
    let request = Request::post("/topics/a").header("authorization", "Bearer wrong").body("").unwrap();
    let addr = SocketAddr::from(([127, 0, 0, 1], addr.port()));
    assert_eq!(send(addr, request).await.status, 401);
    guarded.signal("-TERM");
    let (_, _, said) = guarded.output().await;
    assert!(said.contains("taken at its word") && !said.contains("Without --token"), "{said}");
    assert!(!said.contains("s3cret") && !said.contains("wrong"), "{said}");

    let (private, _) = start(&["--listen", "127.0.0.1:0"]).await;
    private.signal("-TERM");
    assert!(!private.output().await.2.contains("WARNING"));
}
