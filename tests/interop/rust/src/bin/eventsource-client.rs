//! eventsource-client with its default transport and settings.

use eventsource_client::{Client, ClientBuilder, SSE};
use futures::StreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use tower_sse_interop::{arguments, closed, error, event};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (url, last) = arguments();
    let client = ClientBuilder::for_url(&url)?.build_with_transport(HyperTransport::new()?);
    let mut stream = client.stream();
    // An error is not the end: the client reconnects after it.
    while let Some(item) = stream.next().await {
        match item {
            Ok(SSE::Event(seen)) => {
                event(&seen.event_type, &seen.data, seen.id.as_deref());
                if seen.event_type == last {
                    closed("left");
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(trouble) => error(&trouble),
        }
    }
    closed("gave up");
    Ok(())
}
