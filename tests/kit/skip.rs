//! Reports a test, or a part of a test, that cannot run on this machine.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::Write;

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

/// Reports a tool that `tests/run` installs. Fails the test in CI, where each tool has to be installed.
pub fn not_installed(tool: &str) {
    assert!(std::env::var_os("CI").is_none(), "{tool} is not installed: `tests/run tools clients` installs it");
    skipped(&format!("{tool} is not installed"));
}
