//! A Redis server for one test, on a free port and with a temporary folder.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{port, skip};

pub struct RedisServer {
    pub port: u16,
    folder: PathBuf,
    arguments: &'static [&'static str],
    child: Option<Child>,
}

/// Stores nothing on disk: the server is empty after a restart.
pub const FORGETFUL: &[&str] = &["--save", "", "--appendonly", "no"];
/// Writes every command to disk before it is acknowledged.
pub const DURABLE: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

impl RedisServer {
    /// Starts a server. If `redis-server` is not installed, reports the test as skipped and returns
    /// `None`.
    pub fn start(arguments: &'static [&'static str]) -> Option<Self> {
        if !skip::has("redis-server", "--version") {
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tower-sse-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let port = port::free_port();
        let mut server = Self { port, folder, arguments, child: None };
        server.restart();
        Some(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts the server again, on the same port and in the same folder.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(&self.folder);
        command.args(self.arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let begun = Instant::now();
        while !self.answers() {
            assert!(begun.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut tcp) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))) else { return false };
        let mut pong = [0; 5];
        tcp.write_all(b"PING\r\n").is_ok() && tcp.read_exact(&mut pong).is_ok() && &pong == b"+PONG"
    }

    /// Kills the process, like a power cut.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Copies the files of the server.
    pub fn copy(&self) -> PathBuf {
        let copy = self.folder.with_extension("copy");
        assert!(Command::new("cp").arg("-r").args([&self.folder, &copy]).status().unwrap().success());
        copy
    }

    /// Replaces the files of the killed server with a copy.
    pub fn restore(&mut self, copy: &Path) {
        assert!(self.child.is_none());
        std::fs::remove_dir_all(&self.folder).unwrap();
        std::fs::rename(copy, &self.folder).unwrap();
    }

    /// Makes this server a replica of `primary`, which it reaches through `port` (which may be the
    /// port of a proxy). Returns when the replica has caught up.
    pub async fn follow(&self, primary: &Self, port: u16) {
        for server in [primary, self] {
            server.cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        }
        self.cli(&["REPLICAOF", "127.0.0.1", &port.to_string()]);
        wait_until(|| self.cli(&["INFO", "replication"]).contains("master_link_status:up")).await;
        primary.wait_for_replica().await;
    }

    /// Waits until the newest replica has caught up with this server.
    pub async fn wait_for_replica(&self) {
        wait_until(|| {
            let info = self.cli(&["INFO", "replication"]);
            let of =
                |name: &str| info.split(name).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok();
            of("master_repl_offset:").is_some_and(|all| of(",offset=") >= Some(all))
        })
        .await;
    }

    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

async fn wait_until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the replica does not follow");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
