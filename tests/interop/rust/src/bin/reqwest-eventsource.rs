//! reqwest-eventsource with its default settings.

use futures::StreamExt;
use reqwest_eventsource::{Event, EventSource};
use tower_sse_interop::{arguments, closed, error, event};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (url, last) = arguments();
    let mut events = EventSource::get(url);
    // An error is not the end: the client reconnects after it.
    while let Some(item) = events.next().await {
        match item {
            Ok(Event::Message(seen)) => {
                event(&seen.event, &seen.data, Some(&seen.id));
                if seen.event == last {
                    closed("left");
                    return;
                }
            }
            Ok(Event::Open) => {}
            Err(trouble) => error(&trouble),
        }
    }
    closed("gave up");
}
