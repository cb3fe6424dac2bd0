//! The standalone hub as a process: it exits on a signal, whatever its clients do.
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

/// The time limit of an exit: far above the time of a normal exit, and below the write deadline of
/// 30 s, for which clients that do not read could delay one.
const EXIT_LIMIT: Duration = Duration::from_secs(20);

pub use crate::program::{example, standalone};

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(standalone)
}

/// A process that is killed at the end of its test.
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

    /// Waits for the exit of the process. Returns its exit code, its output and its errors.
    pub async fn output(mut self) -> (Option<i32>, String, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < EXIT_LIMIT, "the process does not exit");
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

/// Starts the standalone hub. Returns its process and the address that it prints.
async fn start(args: &'static [&'static str]) -> (Process, SocketAddr) {
    start_with(args.iter().map(ToString::to_string).collect()).await
}

pub async fn start_with(args: Vec<String>) -> (Process, SocketAddr) {
    start_in(args, &[]).await
}

/// Starts the standalone hub with environment variables.
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
async fn signal_makes_standalone_send_every_stream_a_bye_and_exit_with_0() {
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

/// Starts a `curl` that reads the topic `a`, and waits until it is the `nth` connection.
async fn reader(addr: SocketAddr, version: &'static str, nth: u64) -> Process {
    let url = format!("http://{addr}/events?topic=a");
    let curl =
        spawn_blocking(move || Process::spawn("curl", &["-sN", version, "-o", "/dev/null", &url])).await.unwrap();
    soon(async { while stats(addr).await["connections"] != nth {} }).await;
    curl
}

async fn stopped_reader_delays_nothing(version: &'static str) {
    let (hub, addr) = start(&["--listen", "127.0.0.1:0", "--drain-window", "1s"]).await;
    let mut others = [subscribe(addr, "/events?topic=a").await, subscribe(addr, "/events?topic=a").await];
    let stopped = reader(addr, version, 3).await;
    stopped.signal("-STOP");

    // Publishes until the buffers of the stopped reader are full, and at least 50 events.
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
        assert!(published < 5_000, "the stopped reader does not stall");
    }

    hub.signal("-TERM");
    for other in others {
        assert_eq!(other.rest().await.pop().unwrap().event, "hub.bye");
    }
    // The drain still waits for the stopped reader.
    let ready = get(addr, "/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.text().await), (503, "not ready\n".to_owned()));
    let (code, _, log) = hub.output().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ended=2 cut=1"), "{log}");
}

#[tokio::test]
async fn stopped_reader_delays_neither_other_readers_nor_the_exit() {
    stopped_reader_delays_nothing("--http1.1").await;
}

#[tokio::test]
async fn stopped_reader_over_http_2_delays_neither_other_readers_nor_the_exit() {
    stopped_reader_delays_nothing("--http2-prior-knowledge").await;
}

#[tokio::test]
async fn stopped_reader_without_pending_events_does_not_delay_the_exit() {
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let (hub, addr) = start(&["--listen", "127.0.0.1:0"]).await;
        let stopped = reader(addr, version, 1).await;
        stopped.signal("-STOP");
        hub.signal("-TERM");
        assert_eq!(hub.output().await.0, Some(0), "{version}");
    }
}

#[tokio::test]
async fn request_that_never_ends_does_not_delay_the_exit() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (hub, addr) = start(&["--listen", "127.0.0.1:0"]).await;
    let mut tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"POST /publish HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    // `100 Continue` shows that the hub waits for the body.
    let mut head = [0; 25];
    soon(tcp.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    hub.signal("-TERM");
    assert_eq!(hub.output().await.0, Some(0));
}

fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

#[test]
fn help_exits_with_0_and_an_invalid_option_with_2() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("Usage: standalone [--listen ADDRESS]"));
    let bad = run(&["--backplane", "nats://ada:s3cret@"]);
    assert_eq!(bad.status.code(), Some(2));
    let error = String::from_utf8(bad.stderr).unwrap();
    assert!(error.starts_with("--backplane: ") && !error.contains("s3cret"), "{error}");
    let unknown = run(&["--token", "s3cret", "--verbose"]);
    assert_eq!(unknown.status.code(), Some(2));
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(error.starts_with("unknown option --verbose\n\n") && error.contains("Usage:"), "{error}");
    assert!(unknown.stdout.is_empty());
    assert!(!error.contains("s3cret"));
}

#[test]
fn argument_that_is_not_utf_8_is_an_error_and_no_panic() {
    use std::os::unix::ffi::OsStrExt;
    let output = Command::new(program()).arg(std::ffi::OsStr::from_bytes(b"--token=\xff")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn address_in_use_is_reported_in_one_line() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let listener = std::net::TcpListener::bind(free.unwrap()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let output = spawn_blocking(move || run(&["--listen", &address])).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn public_address_prints_a_warning_and_never_the_token() {
    let (open, _) = start(&["--listen", "0.0.0.0:0"]).await;
    open.signal("-TERM");
    let (_, _, log) = open.output().await;
    assert!(log.starts_with("WARNING: 0.0.0.0:"), "{log}");
    assert!(log.contains("is not authenticated") && log.contains("Without --token"), "{log}");

    let (guarded, addr) = start(&["--listen", "0.0.0.0:0", "--token", "s3cret"]).await;
    let request = Request::post("/topics/a").header("authorization", "Bearer wrong").body("").unwrap();
    let addr = SocketAddr::from(([127, 0, 0, 1], addr.port()));
    assert_eq!(send(addr, request).await.status, 401);
    guarded.signal("-TERM");
    let (_, _, log) = guarded.output().await;
    assert!(log.contains("is not authenticated") && !log.contains("Without --token"), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("wrong"), "{log}");

    let (private, _) = start(&["--listen", "127.0.0.1:0"]).await;
    private.signal("-TERM");
    assert!(!private.output().await.2.contains("WARNING"));
}
