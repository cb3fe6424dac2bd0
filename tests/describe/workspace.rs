//! The pages of examples/workspace: their module is current, and their scripts use its events
//! correctly.

use std::fs;
use std::path::{Path, PathBuf};

use tower_sse::{Event, Hub, Subscription};

use crate::node::Node;

use events::SessionEnded;

#[path = "../../examples/workspace/events.rs"]
#[allow(dead_code, reason = "the services of the example use the rest")]
mod events;

fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workspace/pages")
}

#[test]
fn the_module_of_the_workspace_is_current() {
    events::module().update(pages().join("events.ts")).unwrap();
    events::module().update(pages().join("events.js")).unwrap();
}

/// Otherwise a session that ended before an update of the example would be valid again after it.
#[tokio::test]
async fn the_workspace_reads_ended_sessions_of_earlier_versions() {
    let hub = Hub::builder().build().unwrap();
    let mut log = hub.subscribe(Subscription::anonymous().topic("sessions"), None).unwrap();
    let sessions = || hub.topic("sessions");
    sessions().send(&SessionEnded { id: "a1".into() }).await.unwrap();
    for id in ["b2", "12345678", "1e10"] {
        sessions().publish(Event::new("session.ended", id)).await.unwrap();
    }
    sessions().publish(Event::new("session.begun", "c3")).await.unwrap();
    for expected in [Some("a1"), Some("b2"), Some("12345678"), Some("1e10"), None] {
        let event = log.next_event().await.unwrap();
        assert_eq!(SessionEnded::read(&event).map(|ended| ended.id).as_deref(), expected);
    }
}

/// The options of `jsconfig.json` are those of an editor too. The scripts have types where the
/// payloads of events are used. All other parameters may have any type.
#[test]
fn tsc_accepts_the_scripts_of_the_workspace() {
    let Some(node) = Node::in_folder("workspace") else { return };
    let files = fs::read_dir(pages()).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|file| file.extension().is_some_and(|ending| ending == "js" || ending == "json")) {
        fs::copy(&file, node.path(file.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    // Another test may be updating these files.
    events::module().write(node.path("events.ts")).unwrap();
    events::module().write(node.path("events.js")).unwrap();
    let check = || node.tsc_project("jsconfig.json");
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
