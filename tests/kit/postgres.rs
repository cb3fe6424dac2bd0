//! PostgreSQL servers for one test, on free ports and with temporary folders.
//!
//! - The data of a server is a copy of a template, which each test process creates once. The
//!   template has the schema and three roles: the superuser `postgres`, the owner of the schema
//!   `owner`, and `hub` with the rights of an adapter.
//! - PostgreSQL refuses root. If root runs the tests, the server programs run as the user
//!   `postgres` or `nobody`.
//! - Each child of a server is a session of its own, so the children cannot be signalled as one
//!   process group. `/proc` names them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tower_sse::backplane::Postgres;

use super::processes::{
    PATIENCE, as_user, children, give_away, holds_within, kill_with_children, run, signal, stopped_with_children,
    wait_until, wait_until_ready,
};
use super::{port, skip};

pub struct PostgresServer {
    pub port: u16,
    /// Whether [`restart`](Self::restart) keeps the data. Otherwise the server is empty afterwards,
    /// and has the schema and the roles only.
    pub is_durable: bool,
    folder: PathBuf,
    settings: Vec<String>,
    process: Option<Child>,
}

/// The settings of all servers. A setting of the test replaces one of these.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "shared_buffers=16MB",
    // Otherwise a killed server would leave shared memory behind in `/dev/shm`.
    "dynamic_shared_memory_type=mmap",
    "wal_level=replica",
    "max_wal_senders=4",
    // A standby that a test cuts off can catch up later.
    "wal_keep_size=64MB",
    "wal_retrieve_retry_interval=20ms",
    "max_logical_replication_workers=0",
];

impl PostgresServer {
    /// Starts a server with these settings, such as `max_connections=20`. The folder of the server is
    /// in memory if this machine has room, so that commits are fast. If PostgreSQL is not installed,
    /// reports the test as skipped and returns `None`.
    pub fn start(settings: &[&str]) -> Option<Self> {
        Self::start_in(&memory(), settings)
    }

    /// As [`start`](Self::start), with the folder on the disk. Each commit waits for the disk.
    pub fn start_on_disk(settings: &[&str]) -> Option<Self> {
        Self::start_in(&std::env::temp_dir(), settings)
    }

    fn start_in(parent: &Path, settings: &[&str]) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let mut server = Self::new(parent);
        settings.iter().for_each(|setting| server.set(setting));
        copy(template(), &server.data());
        server.spawn();
        Some(server)
    }

    /// As [`start`](Self::start), as a database system of its own: the other servers are copies of
    /// one system.
    pub fn start_unrelated() -> Option<Self> {
        is_installed().then(Self::initialize)
    }

    /// Starts a server with new data, the roles and the schema.
    fn initialize() -> Self {
        let mut server = Self::new(&memory());
        let mut initdb = server_command("initdb", &server.folder);
        initdb.args(["--no-sync", "--wal-segsize=1", "--auth=trust", "--username=postgres"]);
        run(initdb.args(["--encoding=UTF8", "--locale=C", "-D"]).arg(server.data()));
        server.spawn();
        server.psql(ROLES);
        for migration in Postgres::migrations() {
            server.psql_as("owner", &format!("BEGIN;\n{}\nCOMMIT", migration.sql));
        }
        server.psql_as("owner", RIGHTS);
        server
    }

    /// Creates the folder of a server without data.
    fn new(parent: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = parent.join(format!("{}{}", prefix(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&folder).unwrap();
        give_away(&folder);
        Self { port: port::free_port(), is_durable: true, folder, settings: Vec::new(), process: None }
    }

    /// Writes a file, for example a key, that only the server can read. Returns its path, for a
    /// setting of the next start.
    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, content).unwrap();
        give_away(&path);
        path.into_os_string().into_string().unwrap()
    }

    /// Adds a setting, which takes effect at the next start. It replaces an earlier value.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Returns the URL for the role `hub`.
    pub fn url(&self) -> String {
        self.url_as("hub")
    }

    pub fn url_as(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// Returns the folder of the server, which has its Unix socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns what the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts the server again, on the same port.
    pub fn restart(&mut self) {
        if !self.is_durable {
            self.delete_data();
        }
        self.spawn();
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none());
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut command = server_command("postgres", &self.folder);
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-k"]).arg(&self.folder);
        let settings = SETTINGS.iter().copied().chain(self.settings.iter().map(String::as_str));
        command.args(settings.flat_map(|setting| ["-c", setting]));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let (log, state) = (self.folder.join("log"), self.data().join("postmaster.pid"));
        let process = self.process.insert(command.spawn().unwrap());
        let id = process.id();
        wait_until_ready(process, Some(&log), || is_ready(&state, id));
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Kills all processes of the server at once. Returns when they have ended. Data that the
    /// server has written stays in its folder.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            kill_with_children(process.id());
            drop(process.wait());
            self.clean_up();
        }
    }

    /// Removes what a killed server leaves behind. Otherwise the next server of this folder would
    /// take another process with the same id for its predecessor, and the system would run out of
    /// shared memory segments.
    fn clean_up(&self) {
        let file = self.data().join("postmaster.pid");
        let lines = std::fs::read_to_string(&file).unwrap_or_default();
        // Line 7 has the key and the id of the shared memory segment.
        if let Some(id) = lines.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            drop(Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status());
        }
        drop(std::fs::remove_file(file));
        for suffix in ["", ".lock"] {
            drop(std::fs::remove_file(self.folder.join(format!(".s.PGSQL.{}{suffix}", self.port))));
        }
    }

    /// Shuts the server down. It disconnects its clients and writes a checkpoint.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal("-INT", &[process.id()]);
            wait_until("the server does not stop", || process.try_wait().unwrap().is_some());
        }
    }

    /// Stops all processes of the server. Connections stay open, and the server does not answer.
    pub fn pause(&self) {
        let server = self.process.as_ref().unwrap().id();
        signal("-STOP", &stopped_with_children(server));
    }

    /// Continues the processes of a paused server.
    pub fn resume(&self) {
        let server = self.process.as_ref().unwrap().id();
        let mut processes = children(server);
        processes.push(server);
        signal("-CONT", &processes);
    }

    /// Replaces the data of the killed server with a new copy of the template.
    pub fn delete_data(&self) {
        assert!(self.process.is_none());
        std::fs::remove_dir_all(self.data()).unwrap();
        copy(template(), &self.data());
    }

    /// Makes a base backup of the running server.
    pub fn save(&self) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let saved = self.folder.join(format!("saved-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        self.back_up(&saved, &[]);
        saved
    }

    fn back_up(&self, to: &Path, options: &[&str]) {
        let mut command = server_command("pg_basebackup", &self.folder);
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-D"]).arg(to);
        command.args(["-X", "fetch", "--checkpoint=fast", "--no-sync", "--no-manifest"]).args(options);
        run(&mut command);
    }

    /// Replaces the data of the killed server with a base backup, which is moved.
    pub fn roll_back(&self, saved: &Path) {
        assert!(self.process.is_none());
        std::fs::remove_dir_all(self.data()).unwrap();
        std::fs::rename(saved, self.data()).unwrap();
    }

    /// Starts an asynchronous standby with the same settings. It accepts reads.
    pub fn standby(&self) -> Self {
        let mut standby = Self::new(self.folder.parent().unwrap());
        standby.settings.clone_from(&self.settings);
        self.back_up(&standby.data(), &["--write-recovery-conf"]);
        standby.spawn();
        standby.wait_for_connections_to_primary(1);
        standby
    }

    /// Cuts the standby off from its primary. Returns when the standby receives no more changes.
    pub fn stop_receiving(&self) {
        self.set_primary("");
        self.wait_for_connections_to_primary(0);
    }

    /// Connects the standby to a primary, for example after [`stop_receiving`](Self::stop_receiving).
    pub fn receive_from(&self, primary: &Self) {
        self.set_primary(&format!("host=127.0.0.1 port={} user=postgres", primary.port));
        self.wait_for_connections_to_primary(1);
    }

    fn set_primary(&self, connection: &str) {
        self.psql(&format!("ALTER SYSTEM SET primary_conninfo = '{connection}'; SELECT pg_reload_conf()"));
    }

    fn wait_for_connections_to_primary(&self, count: u32) {
        let connections = || self.psql("SELECT count(*) FROM pg_stat_wal_receiver");
        wait_until("the standby ignores its setting", || connections() == count.to_string());
    }

    /// Waits until the standby has applied everything that has been committed at the primary.
    pub async fn wait_until_caught_up(&self, primary: &Self) {
        let position = primary.psql("SELECT pg_current_wal_flush_lsn()");
        let has_caught_up = || self.psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'")) == "t";
        assert!(holds_within(PATIENCE, has_caught_up).await, "the standby has not caught up");
    }

    /// Makes the standby a primary. Returns when it accepts writes.
    pub fn promote(&self) {
        assert_eq!(self.psql("SELECT pg_promote()"), "t");
    }

    /// Creates a database without the schema, which belongs to the role `owner`. Returns its URL for
    /// this role. No client may be connected to the server.
    pub fn create_database(&self, name: &str) -> String {
        self.psql(&format!("CREATE DATABASE {name} OWNER owner TEMPLATE postgres"));
        self.psql(&format!("\\c {name}\nDROP SCHEMA tower_sse CASCADE"));
        format!("postgres://owner@127.0.0.1:{}/{name}", self.port)
    }

    /// Executes SQL commands as the superuser. Returns the rows, with `|` between their columns.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.psql_as("postgres", sql)
    }

    /// As [`psql`](Self::psql), as a role.
    #[track_caller]
    pub fn psql_as(&self, user: &str, sql: &str) -> String {
        self.try_psql_as(user, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`psql_as`](Self::psql_as). Returns the error of the first command that fails, with its
    /// SQLSTATE.
    pub fn try_psql_as(&self, user: &str, sql: &str) -> Result<String, String> {
        psql(self.port, user, sql)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Whether clients can connect to the server with this process, according to the file that `pg_ctl`
/// reads too.
fn is_ready(state: &Path, process: u32) -> bool {
    let file = std::fs::read_to_string(state).unwrap_or_default();
    let lines: Vec<&str> = file.lines().collect();
    let is_of_this_process = lines.first().and_then(|id| id.parse().ok()) == Some(process);
    is_of_this_process && lines.get(7).is_some_and(|state| ["ready", "standby"].contains(&state.trim()))
}

/// Executes SQL commands at a port, which may be the port of a pooler. Blocks the thread, so the
/// port of a proxy that runs on this thread would never answer.
pub fn psql(port: u16, user: &str, sql: &str) -> Result<String, String> {
    let mut command = Command::new(program("psql"));
    command.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", user, "-d", "postgres", "-f", "-"]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A psql that cannot connect has closed its end.
    drop(process.stdin.take().unwrap().write_all(sql.as_bytes()));
    let output = process.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Returns a data folder with the schema and the roles.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        clean_up_at_the_end();
        let mut server = PostgresServer::initialize();
        // These databases have two thirds of the files.
        server.psql("ALTER DATABASE template0 IS_TEMPLATE false; ALTER DATABASE template1 IS_TEMPLATE false");
        server.psql("DROP DATABASE template0; DROP DATABASE template1");
        server.stop();
        let data = server.data();
        // Dropping the server would remove the folder.
        std::mem::forget(server);
        data
    })
}

const ROLES: &str = "CREATE ROLE owner LOGIN; CREATE ROLE hub LOGIN; GRANT CREATE ON DATABASE postgres TO owner";
const RIGHTS: &str =
    "GRANT USAGE ON SCHEMA tower_sse TO hub; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tower_sse TO hub";

/// Returns what the names of all folders of this process begin with.
fn prefix() -> String {
    format!("tower-sse-postgres-{}-", std::process::id())
}

/// Returns a folder in memory if it has room for many servers, and a folder on the disk otherwise.
/// Some file systems on a disk need a millisecond for each file of a server.
fn memory() -> PathBuf {
    static MEMORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let folder = "/dev/shm";
        let output = Command::new("df").args(["-Pk", folder]).stderr(Stdio::null()).output().ok()?;
        let sizes = String::from_utf8(output.stdout).ok()?;
        let free: u64 = sizes.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
        (free >= 1 << 20).then(|| folder.into())
    };
    MEMORY.get_or_init(find).clone().unwrap_or_else(std::env::temp_dir)
}

/// Starts a process that waits for the end of this one, ends servers that still run, and removes
/// all folders. Nothing else runs when a test process ends or is killed.
fn clean_up_at_the_end() {
    let script = r#"read -r _
        for folder in "$1"* "$2"*; do
            for file in "$folder"/pgbouncer-*/pid; do read -r id <"$file" && kill "$id"; done
            read -r id <"$folder/data/postmaster.pid" || continue
            kill -CONT "$id"; kill -QUIT "$id"
            for _ in $(seq 100); do kill -0 "$id" || break; sleep 0.1; done
        done
        rm -rf "$1"* "$2"*"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args([memory(), std::env::temp_dir()].map(|parent| parent.join(prefix())));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not in the group that Ctrl-C ends.
    let process = command.process_group(0).spawn().unwrap();
    // The input stays open as long as this process runs.
    std::mem::forget(process);
}

/// Whether PostgreSQL is installed. If not, reports the test as skipped.
fn is_installed() -> bool {
    if bin().is_none() {
        skip::not_installed("postgres");
    }
    bin().is_some()
}

/// Returns the folder of the server programs: that in `TOWER_SSE_POSTGRES`, the newest of Debian, or
/// one in the `PATH`. Panics if `TOWER_SSE_POSTGRES` names a folder without a server.
fn bin() -> Option<&'static Path> {
    static BIN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let has_server = |folder: &PathBuf| folder.join("postgres").exists() && folder.join("initdb").exists();
        if let Some(named) = std::env::var_os("TOWER_SSE_POSTGRES") {
            let named = std::path::absolute(named).unwrap();
            assert!(has_server(&named), "TOWER_SSE_POSTGRES names {named:?}, which has no server");
            return Some(named);
        }
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        debian_bin().into_iter().chain(std::env::split_paths(&in_path)).find(has_server)
    };
    BIN.get_or_init(find).as_deref()
}

fn debian_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max()?;
    Some(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

/// Returns the path of a program. Some packages have a server and no clients: then the client is
/// that of Debian, or of the `PATH`.
fn program(name: &str) -> PathBuf {
    let folders = bin().map(Path::to_owned).into_iter().chain(debian_bin());
    folders.map(|folder| folder.join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// Returns a command that runs as the user of the server.
fn server_command(name: &str, folder: &Path) -> Command {
    as_user(&program(name), folder)
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to]));
}
