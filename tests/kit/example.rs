//! The compiled programs of the examples.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

/// Returns the path of an example, which `cargo test` builds together with this test.
pub fn example(name: &str) -> PathBuf {
    built(&format!("examples/{name}"), &["--example", name])
}

/// Returns the path of the standalone hub, which `tests/run` builds before the tests. The example
/// in the command makes cargo use the dependency features of the tests, so that it builds no
/// dependency twice.
pub fn standalone() -> PathBuf {
    built("standalone", &["--workspace", "--bin", "standalone", "--example", "worker"])
}

/// Returns the path of a program in the folder of the profile. Builds the program first if it is
/// missing or older than its sources, as after `cargo test --test …`.
fn built(program: &str, targets: &[&str]) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap();
    let deps = std::env::current_exe().unwrap();
    let profile = deps.ancestors().nth(2).unwrap();
    let program = profile.join(program);
    if !is_fresh(&program) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet"]).args(targets).arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    }
    program
}

/// Whether the program is newer than all of its sources, and was built from this checkout.
/// Checkouts may share a target folder.
fn is_fresh(program: &Path) -> bool {
    let time = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let Ok(sources) = std::fs::read_to_string(program.with_extension("d")) else { return false };
    let own = sources.contains(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/"));
    own && sources.split_whitespace().skip(1).all(|source| time(Path::new(source)) < time(program))
}
