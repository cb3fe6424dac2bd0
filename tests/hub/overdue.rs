//! Streams without a known socket that are no longer polled, under a paused clock.

use std::time::Duration;

use http_body_util::BodyExt;
use tower_sse::{Event, Hub, StreamRequest, Subscription};

async fn open(hub: &Hub) -> tower_sse::EventBody {
    let request = http::Request::get("/").body(()).unwrap();
    let mut body = hub
        .respond(StreamRequest::from_request(&request), Subscription::anonymous().topic("a"))
        .into_response()
        .into_body();
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
    }
    // The next poll registers the waker.
    assert!(futures::poll!(std::pin::pin!(body.frame())).is_pending());
    body
}

/// The reader polls every 20 s, within the write deadline of 30 s.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_polls_within_the_write_deadline_stays() {
    let hub = Hub::builder().build().unwrap();
    let mut body = open(&hub).await;
    for round in 0..4 {
        hub.topic("a").publish(Event::unnamed("x")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(hub.stats().connections, 1, "round {round}");
        body.frame().await.unwrap().unwrap();
    }
}

/// A stalled body returns its end at the next poll, instead of waiting for a wake that never comes.
#[tokio::test(start_paused = true)]
async fn a_stalled_stream_ends_at_its_next_poll() {
    let hub = Hub::builder().write_deadline(Duration::from_secs(4)).heartbeat(Duration::from_secs(60)).build().unwrap();
    let mut body = open(&hub).await;
    hub.topic("a").publish(Event::unnamed("x")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    // The body is not polled, as if the peer took no more bytes.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(hub.stats().connections, 0);
    let bye = futures::poll!(std::pin::pin!(body.frame()));
    assert!(bye.is_ready(), "the body is pending although its stream has ended");
}
