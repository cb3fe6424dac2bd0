//! Reports of tests, or of parts of tests, that cannot run on this machine.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::Write;
use std::process::{Command, Stdio};

/// Writes `skipped: <binary>::<test>: <reason>`. `tests/run` collects these lines into its final
/// list.
///
/// The line is written to standard error directly, because the test harness hides the output of
/// `eprintln!` in tests that pass.
pub fn skipped(reason: &str) {
    let binary = std::env::current_exe().unwrap();
    let binary = binary.file_stem().unwrap().to_string_lossy();
    // Cargo appends a hash to the name of the binary.
    let binary = binary.rsplit_once('-').map_or(&*binary, |(name, _)| name);
    let thread = std::thread::current();
    // Benchmarks and harnesses with one thread run on the main thread, which does not have the name
    // of the test.
    let test = thread.name().filter(|name| *name != "main").map_or_else(String::new, |name| format!("::{name}"));
    let line = format!("skipped: {binary}{test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether a tool is installed. Calls it with `argument`, which prints its version. If the tool is
/// missing, reports the test as skipped.
pub fn has(tool: &str, argument: &str) -> bool {
    let mut command = Command::new(tool);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let found = command.status().is_ok();
    if !found {
        not_installed(tool);
    }
    found
}

/// Reports a missing tool, which `tests/run` installs. Panics in CI, where every tool has to be
/// installed.
pub fn not_installed(tool: &str) {
    // `tests/run` also treats an empty `CI` as unset.
    let is_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    assert!(!is_ci, "{tool} is not installed: `tests/run tools clients` installs it");
    skipped(&format!("{tool} is not installed"));
}
