//! Reports a test, or a part of a test, that cannot run on this machine.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::Write;
use std::process::{Command, Stdio};

/// Writes `skipped: <binary>::<test>: <why>`. `tests/run` collects these lines into its final list.
///
/// The line goes to the standard error itself, because the test harness hides what `eprintln!` prints in a test that
/// passes.
pub fn skipped(why: &str) {
    let binary = std::env::current_exe().unwrap();
    let binary = binary.file_stem().unwrap().to_string_lossy();
    // Cargo appends a hash.
    let binary = binary.rsplit_once('-').map_or(&*binary, |(name, _)| name);
    let thread = std::thread::current();
    // A benchmark, or a harness with one thread, runs on the main thread.
    let test = thread.name().filter(|name| *name != "main").map_or_else(String::new, |name| format!("::{name}"));
    let line = format!("skipped: {binary}{test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether a tool is installed, which prints its version when it is called with `argument`. If not, reports the test as
/// skipped.
pub fn has(tool: &str, argument: &str) -> bool {
    let mut command = Command::new(tool);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let found = command.status().is_ok();
    if !found {
        not_installed(tool);
    }
    found
}

/// Reports a tool that `tests/run` installs. Fails the test in CI, where each tool has to be installed.
pub fn not_installed(tool: &str) {
    // Like `tests/run`, which takes an empty `CI` for none.
    let is_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    assert!(!is_ci, "{tool} is not installed: `tests/run tools clients` installs it");
    skipped(&format!("{tool} is not installed"));
}
