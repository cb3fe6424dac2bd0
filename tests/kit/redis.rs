//! Redis servers for one test, on free ports and with temporary folders: one server, a primary with
//! replicas and Sentinels, or a cluster.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::processes::{FAILOVER_PATIENCE, holds_within, wait_until_ready};
use super::{port, skip};

pub struct RedisServer {
    pub port: u16,
    folder: PathBuf,
    /// The file of settings, if any, and then options.
    arguments: Vec<String>,
    child: Option<Child>,
}

/// Stores nothing on disk: the server is empty after a restart.
pub const FORGETFUL: &[&str] = &["--save", "", "--appendonly", "no"];
/// Writes every command to disk before it is acknowledged.
pub const DURABLE: &[&str] = &["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

impl RedisServer {
    /// Starts a server. If `redis-server` is not installed, reports the test as skipped and returns
    /// `None`.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        Self::start_with(|_| arguments.iter().map(|&argument| argument.to_owned()).collect())
    }

    /// As [`start`](Self::start), with arguments that are made for the folder of the server.
    pub fn start_with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        if !skip::has(&server_program(), "--version") {
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tower-sse-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let arguments = arguments(&folder);
        let mut server = Self { port: port::free_port(), folder, arguments, child: None };
        server.restart();
        Some(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts the server again, on the same port and in the same folder.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let mut command = Command::new(server_program());
        command.args(&self.arguments);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(&self.folder);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        wait_until_ready(self.child.insert(command.spawn().unwrap()), None, || answers(self.port));
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
        self.cli_as("", arguments)
    }

    /// Sends a command with a password, which may be empty.
    pub fn cli_as(&self, password: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(arguments);
        if !password.is_empty() {
            command.env("REDISCLI_AUTH", password);
        }
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }
}

/// Returns the arguments of `ACL SETUSER` for the user `hub` with the permissions that the guide
/// lists, and with those that the guide adds after each of these texts. The user may use all
/// namespaces.
pub fn documented_user(additions: &[&str]) -> Vec<String> {
    let guide = include_str!("../../docs/guide/scaling.md");
    let rights = guide.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER hub ")).unwrap();
    let rights = rights.replace("{default}:", "");
    let added = additions.iter().flat_map(|text| documented_permissions(text));
    rights.split(' ').map(str::to_owned).chain(added).collect()
}

/// Returns the permissions that the guide lists after a text, to the end of the sentence.
fn documented_permissions(after: &str) -> Vec<String> {
    let guide = include_str!("../../docs/guide/scaling.md");
    let sentence = guide.split_once(after).expect(after).1.split('.').next().unwrap();
    sentence.split('`').filter(|text| text.starts_with('+')).map(str::to_owned).collect()
}

/// Returns the server program. `TOWER_SSE_REDIS` names another one, for example a Valkey.
fn server_program() -> String {
    std::env::var("TOWER_SSE_REDIS").unwrap_or_else(|_| "redis-server".to_owned())
}

fn answers(port: u16) -> bool {
    let Ok(mut tcp) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    let mut pong = [0; 5];
    // A server with a password answers `-NOAUTH`.
    let has_answered = tcp.write_all(b"PING\r\n").is_ok() && tcp.read_exact(&mut pong).is_ok();
    has_answered && [b"+PONG", b"-NOAU"].contains(&&pong)
}

async fn wait_until(holds: impl FnMut() -> bool) {
    assert!(holds_within(FAILOVER_PATIENCE, holds).await, "the servers are not in sync");
}

/// A primary with two replicas, and three Sentinels that call the primary `main`.
pub struct Replicated {
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<RedisServer>,
}

/// The password of the servers of [`Replicated`].
pub const PASSWORD: &str = "s3rver";
/// The password of the Sentinels of [`Replicated`].
pub const SENTINEL_PASSWORD: &str = "s3ntinel";

impl Replicated {
    /// Starts all processes. Returns when every Sentinel knows the replicas and the other
    /// Sentinels.
    pub async fn start() -> Option<Self> {
        let mut servers: Vec<RedisServer> = Vec::new();
        for _ in 0..3 {
            let primary = servers.first().map(|primary| format!("127.0.0.1 {}", primary.port));
            let mut arguments = vec!["--save", "", "--appendonly", "no", "--requirepass", PASSWORD];
            arguments.extend(["--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]);
            if let Some(primary) = &primary {
                arguments.extend(["--replicaof", primary]);
            }
            servers.push(RedisServer::start(&arguments)?);
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let settings = format!(
                "sentinel monitor main 127.0.0.1 {} 2\nsentinel auth-pass main {PASSWORD}\n\
                 sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n\
                 sentinel sentinel-pass {SENTINEL_PASSWORD}\nrequirepass {SENTINEL_PASSWORD}\n",
                servers[0].port
            );
            let sentinel = RedisServer::start_with(|folder| {
                let file = folder.join("sentinel.conf");
                std::fs::write(&file, settings).unwrap();
                vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
            })?;
            // Otherwise the Sentinels need ten seconds to know each other and the replicas. With a
            // shorter `publish-period`, they would demote a promoted replica before the Sentinel
            // that promoted it notices its new role.
            let debug = "SENTINEL DEBUG info-period 100 ping-period 100 ask-period 100 publish-period 500";
            let debug: Vec<&str> = debug.split(' ').collect();
            assert_eq!(sentinel.cli_as(SENTINEL_PASSWORD, &debug), "OK");
            sentinels.push(sentinel);
        }
        let this = Self { servers, sentinels };
        this.wait_until_connected().await;
        Some(this)
    }

    /// Returns the URLs of the Sentinels, with their password.
    pub fn sentinel_urls(&self) -> Vec<String> {
        let url = |sentinel: &RedisServer| format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:{}", sentinel.port);
        self.sentinels.iter().map(url).collect()
    }

    /// Creates a user `hub` at all servers, and one at all Sentinels, with the permissions that the
    /// guide lists. Returns the URL of the servers and the URLs of the Sentinels.
    pub fn create_documented_users(&self) -> (String, Vec<String>) {
        let create = |server: &RedisServer, password: &str, rights: &[String]| {
            let mut command = vec!["ACL", "SETUSER", "hub"];
            command.extend(rights.iter().map(String::as_str));
            assert_eq!(server.cli_as(password, &command), "OK");
        };
        let rights = documented_user(&["With `acknowledged_by`, add"]);
        self.servers.iter().for_each(|server| create(server, PASSWORD, &rights));
        let mut rights = ["on", ">watch", "-@all"].map(str::to_owned).to_vec();
        rights.extend(documented_permissions("user of the Sentinels needs"));
        self.sentinels.iter().for_each(|sentinel| create(sentinel, SENTINEL_PASSWORD, &rights));
        let url = |sentinel: &RedisServer| format!("redis://hub:watch@127.0.0.1:{}", sentinel.port);
        ("redis://hub:password@any".to_owned(), self.sentinels.iter().map(url).collect())
    }

    /// Returns the index of the primary that the first Sentinel names.
    pub fn primary(&self) -> usize {
        let address = self.sentinels[0].cli_as(SENTINEL_PASSWORD, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
        self.servers.iter().position(|server| address.ends_with(&format!("\n{}", server.port))).unwrap()
    }

    /// Asks the first Sentinel for a failover, and waits until it names another primary than `old`.
    pub async fn fail_over(&self, old: usize) {
        let ask = |command: &[&str]| self.sentinels[0].cli_as(SENTINEL_PASSWORD, command);
        wait_until(|| {
            // On a busy machine, a Sentinel refuses a failover because no replica has answered it lately,
            // or gives up because it does not see the new role of a replica in time. Then it names the
            // old primary, and its flags show no failover.
            let state = ask(&["SENTINEL", "MASTER", "main"]);
            let is_idle = state.lines().collect::<Vec<_>>().chunks(2).any(|field| field == ["flags", "master"]);
            if is_idle && self.primary() == old {
                ask(&["SENTINEL", "FAILOVER", "main"]);
            }
            self.primary() != old
        })
        .await;
    }

    /// Waits until the first Sentinel names another primary than `old`.
    pub async fn wait_for_another_primary(&self, old: usize) {
        wait_until(|| self.primary() != old).await;
    }

    /// Waits until all Sentinels name one primary that is up, and know the replicas, which are
    /// connected to it.
    pub async fn wait_until_connected(&self) {
        let mut seen = String::new();
        let agree = holds_within(FAILOVER_PATIENCE, || {
            let primary = &self.servers[self.primary()];
            let port = primary.port.to_string();
            let expected = [["port", &*port], ["flags", "master"], ["num-slaves", "2"], ["num-other-sentinels", "2"]];
            let mut states = Vec::new();
            for sentinel in &self.sentinels {
                let state = sentinel.cli_as(SENTINEL_PASSWORD, &["SENTINEL", "MASTER", "main"]);
                let lines: Vec<&str> = state.lines().collect();
                states.push(expected.map(|field| lines.chunks(2).any(|line| line == field)));
            }
            let info = primary.cli_as(PASSWORD, &["INFO", "replication"]);
            seen = format!("{states:?}, {info}");
            states.iter().flatten().all(|is_expected| *is_expected) && info.matches("state=online").count() == 2
        });
        assert!(agree.await, "the servers do not agree: {seen}");
    }
}

/// A Redis Cluster of three servers, and of replicas that a test adds.
pub struct RedisCluster {
    pub servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the servers. Returns when the cluster accepts commands.
    pub async fn start() -> Option<Self> {
        Self::start_with_timeout(Duration::from_secs(15)).await
    }

    /// As [`start`](Self::start). A server that does not answer for `timeout` counts as failed.
    pub async fn start_with_timeout(timeout: Duration) -> Option<Self> {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Self::start_server(timeout)?);
        }
        let this = Self { servers };
        for (number, server) in this.servers.iter().enumerate() {
            let (first, last) = (number * 16_384 / 3, (number + 1) * 16_384 / 3 - 1);
            server.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            server.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            this.meet(server);
        }
        this.wait_until_joined().await;
        Some(this)
    }

    fn start_server(timeout: Duration) -> Option<RedisServer> {
        let (bus, timeout) = (port::free_port().to_string(), timeout.as_millis().to_string());
        let mut options = vec!["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"];
        options.extend(["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", &timeout]);
        RedisServer::start(&options)
    }

    /// Makes a server a member of the cluster.
    fn meet(&self, server: &RedisServer) {
        let bus = self.servers[0].cli(&["CONFIG", "GET", "cluster-port"]);
        let bus = bus.lines().last().unwrap().to_owned();
        server.cli(&["CLUSTER", "MEET", "127.0.0.1", &self.servers[0].port.to_string(), &bus]);
    }

    /// Waits until all servers know each other, and accept commands.
    async fn wait_until_joined(&self) {
        let known = format!("cluster_known_nodes:{}\r", self.servers.len());
        wait_until(|| {
            let info = |server: &RedisServer| server.cli(&["CLUSTER", "INFO"]);
            let is_ok = |info: String| info.contains("cluster_state:ok") && info.contains(&known);
            self.servers.iter().all(|server| is_ok(info(server)))
        })
        .await;
    }

    /// Starts a replica of a server. Returns the index of the replica when it has caught up, and
    /// when all servers know it.
    pub async fn add_replica(&mut self, primary: usize, timeout: Duration) -> usize {
        self.servers.push(Self::start_server(timeout).unwrap());
        let replica = self.servers.len() - 1;
        self.meet(&self.servers[replica]);
        self.wait_until_joined().await;
        let id = self.servers[primary].cli(&["CLUSTER", "MYID"]);
        assert_eq!(self.servers[replica].cli(&["CLUSTER", "REPLICATE", &id]), "OK");
        self.wait_for_replica(primary, replica).await;
        replica
    }

    /// Waits until a server is a replica of another that has caught up, and until all running
    /// servers know that.
    pub async fn wait_for_replica(&self, primary: usize, replica: usize) {
        let [of_primary, of_replica] = [primary, replica].map(|server| self.servers[server].cli(&["CLUSTER", "MYID"]));
        wait_until(|| {
            let knows = |server: &RedisServer| {
                let nodes = server.cli(&["CLUSTER", "NODES"]);
                let line = nodes.lines().find(|line| line.starts_with(&of_replica)).unwrap_or_default();
                line.contains(&format!("slave {of_primary}")) && !line.contains("fail")
            };
            self.servers.iter().filter(|server| server.is_running()).all(knows)
                && self.servers[replica].cli(&["INFO", "replication"]).contains("master_link_status:up")
        })
        .await;
        self.servers[primary].wait_for_replica().await;
    }

    /// Creates a user `hub` at all servers with the permissions that the guide lists. Returns the
    /// URLs of the servers.
    pub fn create_documented_user(&self) -> Vec<String> {
        let rights = documented_user(&["In a cluster, add"]);
        let mut command = vec!["ACL", "SETUSER", "hub"];
        command.extend(rights.iter().map(String::as_str));
        let create = |server: &RedisServer| {
            assert_eq!(server.cli(&command), "OK");
            format!("redis://hub:password@127.0.0.1:{}", server.port)
        };
        self.servers.iter().map(create).collect()
    }

    pub fn url(&self, server: usize) -> String {
        self.servers[server].url()
    }

    /// Returns the slot of a namespace, and the index of its owner.
    pub fn owner(&self, namespace: &str) -> (String, usize) {
        let slot = self.servers[0].cli(&["CLUSTER", "KEYSLOT", &format!("tower-sse:{{{namespace}}}:log")]);
        let number: usize = slot.parse().unwrap();
        let has_slot = |server: &RedisServer| {
            let nodes = server.cli(&["CLUSTER", "NODES"]);
            let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
            own.split(' ').skip(8).filter(|range| !range.starts_with('[')).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&number)
            })
        };
        let owner = self.servers.iter().position(has_slot).unwrap();
        (slot, owner)
    }

    /// Begins to move a slot from one server to another.
    pub fn begin_to_move(&self, slot: &str, from: usize, to: usize) {
        let id = |server: usize| self.servers[server].cli(&["CLUSTER", "MYID"]);
        let set = |server: usize, state: &str, other: usize| {
            assert_eq!(self.servers[server].cli(&["CLUSTER", "SETSLOT", slot, state, &id(other)]), "OK");
        };
        set(to, "IMPORTING", from);
        set(from, "MIGRATING", to);
    }

    /// Returns the keys of a slot that a server has.
    pub fn keys(&self, slot: &str, server: usize) -> Vec<String> {
        let keys = self.servers[server].cli(&["CLUSTER", "GETKEYSINSLOT", slot, "1000"]);
        keys.lines().map(str::to_owned).filter(|key| !key.is_empty()).collect()
    }

    /// Moves a key to another server.
    pub fn move_key(&self, key: &str, from: usize, to: usize) {
        let port = self.servers[to].port.to_string();
        let answer = self.servers[from].cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
        assert!(["OK", "NOKEY"].contains(&&*answer), "{answer}");
    }

    /// Makes a server the owner of a slot.
    pub fn finish_move(&self, slot: &str, from: usize, to: usize) {
        let id = self.servers[to].cli(&["CLUSTER", "MYID"]);
        let others = (0..self.servers.len()).filter(|server| ![from, to].contains(server));
        for server in [to, from].into_iter().chain(others) {
            assert_eq!(self.servers[server].cli(&["CLUSTER", "SETSLOT", slot, "NODE", &id]), "OK");
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
