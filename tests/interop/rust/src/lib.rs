//! Reports to the test, each as one line of JSON.

use serde_json::{Value, json};

/// Returns the URL of the stream, and the name of the last event.
pub fn arguments() -> (String, String) {
    let mut arguments = std::env::args().skip(1);
    (arguments.next().expect("the address of a stream"), arguments.next().expect("the name of the last event"))
}

/// Reports an event as the client delivered it. An id that the client does not deliver is `None`.
pub fn event(name: &str, data: &str, id: Option<&str>) {
    say(&json!({ "event": name, "data": data, "id": id }));
}

/// Reports an error of the client, which may continue.
pub fn error(what: &dyn std::fmt::Display) {
    say(&json!({ "error": what.to_string() }));
}

/// Reports the end of the client: it gave up, or the last event has arrived.
pub fn closed(why: &str) {
    say(&json!({ "closed": why }));
}

fn say(line: &Value) {
    println!("{line}");
}
