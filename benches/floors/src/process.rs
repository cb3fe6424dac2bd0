//! A server in a fresh process on a CPU of its own: started, measured from `/proc`, ended by its id.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::servers::{Kind, Options, nchan};

/// Where the servers run, and where the load does.
const SERVER_CPU: &str = "0";
const LOAD_CPU: &str = "1";

/// Whether this process and its servers get a CPU each; puts this one on its own.
pub fn pin(cpus: usize) -> bool {
    let pid = std::process::id().to_string();
    cpus > 1
        && Command::new("taskset")
            .args(["-a", "-c", "-p", LOAD_CPU, &pid])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

pub struct Server {
    pub address: SocketAddr,
    child: Child,
    /// What serves: with nginx not the process that was started, but its worker.
    serving: u32,
    /// Of a server with a configuration.
    folder: Option<PathBuf>,
}

impl Server {
    pub fn start(kind: Kind, options: Options, pinned: bool) -> Self {
        if kind == Kind::Nchan {
            let (command, address, folder) = nchan::prepare(options);
            let child = on_its_cpu(command, pinned).stdout(Stdio::null()).spawn().unwrap();
            let serving = nchan::worker(child.id(), address);
            return Self { address, child, serving, folder: Some(folder) };
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve").arg(kind.name()).args(options.arguments());
        // It ends when its input does, so also when this process is killed.
        let mut child = on_its_cpu(command, pinned)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut port = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut port).unwrap();
        let port = port.trim().parse().unwrap_or_else(|_| panic!("{} says no port but {port:?}", kind.name()));
        let serving = child.id();
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), child, serving, folder: None }
    }

    /// The CPU time that it has used, in nanoseconds.
    pub fn cpu(&self) -> u64 {
        cpu(self.serving)
    }

    /// Waits until it does nothing any more; returns the CPU time that it has used.
    pub fn settle(&self) -> u64 {
        let mut before = self.cpu();
        let mut quiet = 0;
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(3));
            let now = self.cpu();
            // Timers may tick.
            quiet = if now - before < 100_000 { quiet + 1 } else { 0 };
            before = now;
            if quiet == 3 {
                break;
            }
        }
        before
    }

    /// Its resident memory, in bytes.
    pub fn resident(&self) -> f64 {
        memory(self.serving, "smaps_rollup", "Rss:").or_else(|| memory(self.serving, "status", "VmRSS:")).unwrap()
    }

    /// The most that it ever was.
    pub fn resident_at_most(&self) -> f64 {
        memory(self.serving, "status", "VmHWM:").unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.folder.is_some() {
            nchan::stop(self.child.id());
        } else {
            drop(self.child.kill());
        }
        drop(self.child.wait());
        if let Some(folder) = &self.folder {
            drop(fs::remove_dir_all(folder));
        }
    }
}

fn on_its_cpu(command: Command, pinned: bool) -> Command {
    if !pinned {
        return command;
    }
    // It becomes the server, so that the process's id is the server's.
    let mut on_cpu = Command::new("taskset");
    on_cpu.args(["-c", SERVER_CPU]).arg(command.get_program()).args(command.get_args());
    on_cpu
}

/// Of this process.
pub fn own_cpu() -> u64 {
    cpu(std::process::id())
}

/// The scheduler's own count of all threads, exact while a process sleeps.
fn cpu(pid: u32) -> u64 {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or_default();
    }
    if total > 0 { total } else { ticks(pid) }
}

/// Of kernels that do not count so: in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10_000_000
}

fn memory(pid: u32, file: &str, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}
