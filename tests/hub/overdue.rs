//! When a body counts as one that nobody reads, by a clock that the tests move.

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
    // It sleeps.
    assert!(futures::poll!(std::pin::pin!(body.frame())).is_pending());
    body
}

/// It looks every 20 s, within the deadline of 30 s.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_looks_in_time_stays() {
    let hub = Hub::builder().build().unwrap();
    let mut body = open(&hub).await;
    for round in 0..4 {
        hub.topic("a").publish(Event::unnamed("x")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(hub.stats().connections, 1, "round {round}");
        body.frame().await.unwrap().unwrap();
    }
}

/// Given up, it says so when it is polled again.
#[tokio::test(start_paused = true)]
async fn who_was_given_up_is_told_at_its_next_look() {
    let hub = Hub::builder().write_deadline(Duration::from_secs(4)).heartbeat(Duration::from_secs(60)).build().unwrap();
    let mut body = open(&hub).await;
    hub.topic("a").publish(Event::unnamed("x")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    // The peer does not take it.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(hub.stats().connections, 0);
    let bye = futures::poll!(std::pin::pin!(body.frame()));
    assert!(bye.is_ready(), "it sleeps on its end");
}
