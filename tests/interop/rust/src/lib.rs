//! What a client saw, one line of JSON each, for the test to read.

use serde_json::{Value, json};

/// The stream, and the event after which the client leaves.
pub fn arguments() -> (String, String) {
    let mut arguments = std::env::args().skip(1);
    (arguments.next().expect("the address of a stream"), arguments.next().expect("the name of the last event"))
}

/// An event as the client gave it out: `None` for what it did not give.
pub fn event(name: &str, data: &str, id: Option<&str>) {
    say(&json!({ "event": name, "data": data, "id": id }));
}

/// The client told of trouble, and goes on or not.
pub fn error(what: &dyn std::fmt::Display) {
    say(&json!({ "error": what.to_string() }));
}

/// The client is done: it gave up, or was told to leave.
pub fn closed(why: &str) {
    say(&json!({ "closed": why }));
}

fn say(line: &Value) {
    println!("{line}");
}
