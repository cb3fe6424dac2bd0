//! eventsource-client, which stops when the server answers with a status instead of a stream.

use eventsource_client::{Client, ClientBuilder, Error, SSE};
use futures::StreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use tower_sse_interop::{arguments, closed, error, event};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (url, last) = arguments();
    let client = ClientBuilder::for_url(&url)?.build_with_transport(HyperTransport::new()?);
    let mut stream = client.stream();
    while let Some(item) = stream.next().await {
        match item {
            Ok(SSE::Event(seen)) => {
                event(&seen.event_type, &seen.data, seen.id.as_deref());
                if seen.event_type == last {
                    closed("left");
                    return Ok(());
                }
            }
            // The client treats `204` as a stream with an empty body.
            Ok(SSE::Connected(connection)) if connection.response().status() != 200 => {
                closed(&format!("status {}", connection.response().status()));
                return Ok(());
            }
            Err(Error::UnexpectedResponse(response, _)) => {
                closed(&format!("status {}", response.status()));
                return Ok(());
            }
            Ok(_) => {}
            Err(trouble) => error(&trouble),
        }
    }
    closed("gave up");
    Ok(())
}
