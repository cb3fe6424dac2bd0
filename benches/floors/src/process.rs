//! A server in a new process on a separate CPU. Its CPU time and memory are read from `/proc`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::servers::{Kind, Options, nchan};

/// The CPU of the servers, and the CPU of the load generator.
const SERVER_CPU: &str = "0";
const LOAD_CPU: &str = "1";

/// Pins this process to the CPU of the load generator. Returns whether that succeeded, in which
/// case servers are pinned too.
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
    /// The process that serves. For nginx, this is the worker of the process that was started.
    serving: u32,
    /// The folder of the configuration, if the server has one.
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
        // The server ends at the end of its input, so it also ends if this process is killed.
        let mut child = on_its_cpu(command, pinned)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server does not start");
        let mut port = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut port).unwrap();
        let port =
            port.trim().parse().unwrap_or_else(|_| panic!("{} printed {port:?} instead of its port", kind.name()));
        let serving = child.id();
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), child, serving, folder: None }
    }

    /// Returns the CPU time of the server, in nanoseconds.
    pub fn cpu(&self) -> u64 {
        cpu(self.serving)
    }

    /// Waits until the server is idle, and returns its CPU time.
    pub fn settle(&self) -> u64 {
        let mut before = self.cpu();
        let mut quiet = 0;
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(3));
            let now = self.cpu();
            // An idle server still runs timers.
            quiet = if now - before < 100_000 { quiet + 1 } else { 0 };
            before = now;
            if quiet == 3 {
                break;
            }
        }
        before
    }

    /// Returns the resident memory of the server, in bytes.
    pub fn resident(&self) -> f64 {
        memory(self.serving, "smaps_rollup", "Rss:").or_else(|| memory(self.serving, "status", "VmRSS:")).unwrap()
    }

    /// Returns the peak of the resident memory, in bytes.
    pub fn resident_peak(&self) -> f64 {
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
    // `taskset` replaces itself by the server, so its process id is that of the server.
    let mut on_cpu = Command::new("taskset");
    on_cpu.args(["-c", SERVER_CPU]).arg(command.get_program()).args(command.get_args());
    on_cpu
}

/// Returns the CPU time of this process, in nanoseconds.
pub fn own_cpu() -> u64 {
    cpu(std::process::id())
}

/// Returns the CPU time of all threads from the scheduler, which is exact while a process sleeps.
fn cpu(pid: u32) -> u64 {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("no such process").flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or_default();
    }
    if total > 0 { total } else { ticks(pid) }
}

/// Returns the CPU time in steps of 10 ms, for kernels without scheduler statistics.
fn ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("no such process");
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10_000_000
}

fn memory(pid: u32, file: &str, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}
