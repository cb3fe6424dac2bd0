//! A NATS server for one test, on a free port and with a temporary folder.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::processes::{PATIENCE, wait_until_ready};
use super::{port, skip};

pub struct NatsServer {
    pub port: u16,
    folder: PathBuf,
    arguments: Vec<String>,
    has_jetstream: bool,
    child: Option<Child>,
}

/// The server to run: the program in `TOWER_SSE_NATS_SERVER`, or `nats-server` from the `PATH`.
pub fn program() -> Command {
    Command::new(std::env::var_os("TOWER_SSE_NATS_SERVER").unwrap_or_else(|| "nats-server".into()))
}

/// Whether a server is installed. If not, reports the test as skipped. Panics if the program in
/// `TOWER_SSE_NATS_SERVER` does not run.
pub fn is_installed() -> bool {
    let found = program().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let named = std::env::var_os("TOWER_SSE_NATS_SERVER");
    assert!(found || named.is_none(), "TOWER_SSE_NATS_SERVER names {named:?}, which does not run");
    if !found {
        skip::not_installed("nats-server");
    }
    found
}

impl NatsServer {
    /// Starts a server. If none is installed, reports the test as skipped and returns `None`.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Option<Self> {
        Self::start_as(arguments, true)
    }

    /// Starts a server without JetStream, which cannot hold a log.
    pub fn start_without_jetstream() -> Option<Self> {
        Self::start_as(&[], false)
    }

    /// Starts a server with a configuration file. The server writes a log, which
    /// [`log`](Self::log) returns.
    pub fn start_configured(configuration: &str) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let folder = Self::new_folder();
        let [file, log] = ["conf", "log"].map(|extension| folder.with_extension(extension));
        std::fs::write(&file, configuration).unwrap();
        let [file, log] = [file, log].map(|path| path.into_os_string().into_string().unwrap());
        Self::start_in(folder, &["--config", &file, "--log", &log], true)
    }

    /// Returns the log of a server with a configuration file.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap()
    }

    fn start_as(arguments: &[&str], has_jetstream: bool) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        Self::start_in(Self::new_folder(), arguments, has_jetstream)
    }

    fn new_folder() -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tower-sse-nats-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn start_in(folder: PathBuf, arguments: &[&str], has_jetstream: bool) -> Option<Self> {
        let port = port::free_port();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { port, folder, arguments, has_jetstream, child: None };
        server.restart();
        Some(server)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts the server again, on the same port and in the same folder.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let mut command = program();
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
        if self.has_jetstream {
            command.args(["-js", "-sd"]).arg(&self.folder);
        }
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let log = self.folder.with_extension("log");
        wait_until_ready(self.child.insert(command.spawn().unwrap()), Some(&log), || answers(self.port));
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Kills the process. Data that it has written stays on the disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Deletes the data of the stopped server.
    pub fn delete_data(&self) {
        assert!(self.child.is_none());
        std::fs::remove_dir_all(&self.folder).unwrap();
        std::fs::create_dir_all(&self.folder).unwrap();
    }

    /// Copies the data of the stopped server.
    pub fn save(&self) -> PathBuf {
        assert!(self.child.is_none());
        let saved = self.folder.with_extension("saved");
        copy(&self.folder, &saved);
        saved
    }

    /// Replaces the data of the stopped server with a saved copy.
    pub fn restore(&self, saved: &Path) {
        self.delete_data();
        copy(saved, &self.folder);
        std::fs::remove_dir_all(saved).unwrap();
    }

    /// Sends a request to the JetStream API. Returns `None` without an answer.
    pub async fn try_api(&self, request: &str) -> Option<serde_json::Value> {
        let client = async_nats::connect(self.url()).await.ok()?;
        let answer = client.request(format!("$JS.API.{request}"), "".into()).await.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    /// Sends a request to the JetStream API, as an administrator could.
    pub async fn api(&self, request: &str, body: &str) -> serde_json::Value {
        let client = async_nats::connect(self.url()).await.unwrap();
        let answer = client.request(format!("$JS.API.{request}"), body.to_owned().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Waits until the values of `count` records in total have been copied out of the log.
    pub async fn wait_until_copied(&self, namespace: &str, count: u64) {
        let begun = Instant::now();
        while self.api(&format!("STREAM.INFO.tower-sse-values_{namespace}"), "").await["state"]["last_seq"] != count {
            assert!(begun.elapsed() < PATIENCE, "the values have not been copied");
        }
    }
}

fn answers(port: u16) -> bool {
    let Ok(mut tcp) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut info = [0; 5];
    tcp.read_exact(&mut info).is_ok() && &info == b"INFO "
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
        for extension in ["conf", "log"] {
            drop(std::fs::remove_file(self.folder.with_extension(extension)));
        }
    }
}
