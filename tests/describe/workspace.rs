//! The pages of examples/workspace: their module is current, and their scripts use its events
//! correctly.

use std::fs;
use std::path::{Path, PathBuf};

use crate::node::Node;

#[path = "../../examples/workspace/events.rs"]
#[allow(dead_code, reason = "the services of the example use the rest")]
mod events;

fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workspace/pages")
}

/// Writes the module on the machine of a developer.
#[test]
fn the_module_of_the_workspace_is_current() {
    let is_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    for file in ["events.ts", "events.js"].map(|name| pages().join(name)) {
        if is_ci { events::module().check(file) } else { events::module().write(file) }.unwrap();
    }
}

/// The scripts have types where the payloads of events are used. All other parameters may have any
/// type.
#[test]
fn tsc_accepts_the_scripts_of_the_workspace() {
    let Some(node) = Node::in_folder("workspace") else { return };
    for entry in fs::read_dir(pages()).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        fs::copy(path, node.path(name.to_str().unwrap())).unwrap();
    }
    let scripts = ["documents.js", "dashboard.js", "feed.js", "reports.js"];
    let check =
        || node.tsc(&[&scripts[..], &["--allowJs", "--checkJs", "--noImplicitAny", "false", "--noEmit"]].concat());
    assert_eq!(check(), "");

    // A wrong name of an event or of a field is an error in each script.
    for (script, right, wrong) in [
        ("documents.js", "\"document.deleted\": ({ id })", "\"document.removed\": ({ id })"),
        ("documents.js", "\"document.deleted\": ({ id })", "\"document.deleted\": ({ nr: id })"),
        ("feed.js", "post: each =>", "posts: each =>"),
        ("reports.js", "on(events, \"report\"", "on(events, \"reports\""),
        ("dashboard.js", "s => s.connections", "s => s.conections"),
        ("shell.js", "\"hub.hello\": hello", "\"hub.hallo\": hello"),
        ("stream.js", "listen(\"hub.gap\"", "listen(\"hub.gaps\""),
    ] {
        let text = fs::read_to_string(pages().join(script)).unwrap();
        assert!(text.contains(right), "{script}: {right}");
        node.write(script, &text.replace(right, wrong));
        assert!(check().contains(script), "{script}: {wrong}");
        node.write(script, &text);
    }
}
