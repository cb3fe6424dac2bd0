//! Processes of servers. Some have children, and some refuse root.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The time limit for a change of state of a process.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The time limit for a failover. The servers of a busy machine may need several elections, and one
/// election of NATS takes up to 9 s.
pub const FAILOVER_PATIENCE: Duration = Duration::from_secs(90);

/// Returns a command that runs in a folder. If root runs the tests, the command does not run as
/// root.
pub fn as_user(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    // The user may not be allowed to read the folder of the test.
    command.current_dir(folder);
    if let Some((user, group)) = user() {
        command.uid(user).gid(group);
    }
    command
}

/// If root runs the tests, returns the ids of another user and of its group.
fn user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
            return None;
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let ids = |name: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let fields: Vec<&str> = line.split(':').collect();
            Some((fields[2].parse().ok()?, fields[3].parse().ok()?))
        };
        Some(ids("postgres").or_else(|| ids("nobody")).expect("there is no user for the server"))
    })
}

/// Makes the user of the server the owner of a file or folder, and its only reader.
pub fn give_away(path: &Path) {
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    if let Some((user, group)) = user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", tail(&String::from_utf8_lossy(&output.stderr)));
}

/// Returns the last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The pause between two looks at a server that starts.
const PAUSE: Duration = Duration::from_millis(2);
/// The pause between two looks that each start a client program.
const LONG_PAUSE: Duration = Duration::from_millis(20);

/// Waits until a condition holds, at most for `limit`. Returns whether it holds.
///
/// Use it for the state of other processes, which a test cannot await. The servers have no common
/// way to report that they are ready, only a parent can wait for the end of a process, and
/// `Child::wait` has no time limit. Other tasks of the runtime go on meanwhile, for example a proxy
/// between two servers.
pub async fn holds_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(LONG_PAUSE).await;
    }
    true
}

/// As [`holds_within`], and blocks the thread.
fn blocking_holds_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Waits until a condition holds, as [`holds_within`] does, and blocks the thread. Panics with
/// `failure` after [`PATIENCE`].
pub fn wait_until(failure: &str, holds: impl FnMut() -> bool) {
    assert!(blocking_holds_within(PATIENCE, holds), "{failure}");
}

/// Waits until a server that was started is ready, and blocks the thread. Panics if the process
/// ends, or after [`PATIENCE`], with the end of the file in which the server logs.
pub fn wait_until_ready(server: &mut Child, log: Option<&Path>, mut is_ready: impl FnMut() -> bool) {
    let log = || tail(&log.and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default());
    let is_ready = blocking_holds_within(PATIENCE, || {
        assert!(server.try_wait().unwrap().is_none(), "the server has ended: {}", log());
        is_ready()
    });
    assert!(is_ready, "the server does not start: {}", log());
}

/// Whether a port of this machine accepts connections.
pub fn accepts(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

pub fn signal(name: &str, processes: &[u32]) {
    let ids = processes.iter().map(u32::to_string);
    // A process may have ended meanwhile.
    drop(Command::new("kill").args([name, "--"]).args(ids).stderr(Stdio::null()).status());
}

/// Returns the ids of all processes of this machine.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns the state and the parent of a process. Returns `None` if the process has ended, even if
/// its parent has not noticed.
pub fn status(process: u32) -> Option<(char, u32)> {
    let line = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, which may contain spaces, is in parentheses.
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let status = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (!['Z', 'X'].contains(&status.0)).then_some(status)
}

pub fn children(parent: u32) -> Vec<u32> {
    processes().filter(|&id| status(id).is_some_and(|(_, of)| of == parent)).collect()
}

/// Stops a process, so that it starts no more children. Returns the process and its children.
pub fn stopped_with_children(process: u32) -> Vec<u32> {
    signal("-STOP", &[process]);
    wait_until("the process does not stop", || status(process).is_none_or(|(state, _)| state == 'T'));
    let mut all = children(process);
    all.push(process);
    all
}

/// Kills a process and its children. Returns when all have ended.
pub fn kill_with_children(process: u32) {
    let all = stopped_with_children(process);
    signal("-KILL", &all);
    wait_until("a killed process does not end", || all.iter().all(|&id| status(id).is_none()));
}
