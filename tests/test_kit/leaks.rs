//! The checks for leaks, with the paused clock.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use tokio::time::Instant;
use tower_sse::backplane::Memory;
use tower_sse::test_kit::{TestClient, assert_forgets_all, assert_freed, assert_no_leaks};
use tower_sse::{Event, Hub, Public, Retention, Subscription, TopicFilter};

use crate::failure;

const HOUR: Duration = Duration::from_secs(3600);

fn hub() -> Hub {
    Hub::builder().presence_for(TopicFilter::any()).topic_retention(Retention::replay()).build().unwrap()
}

fn application(hub: &Hub) -> Router {
    Router::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())))
}

fn request() -> Request<Body> {
    Request::get("/events?topic=news").body(Body::empty()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_hub_without_streams_has_no_leak() {
    let hub = hub();
    assert_no_leaks(&hub).await;
    assert_forgets_all(&hub, Duration::ZERO).await;
    assert_freed(hub).await;
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_is_a_leak_that_the_failure_describes() {
    let hub = hub();
    let page = hub.subscribe(Subscription::for_user("ada").topic("news"), None).unwrap();
    let begun = Instant::now();
    let failure = failure(assert_no_leaks(&hub)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    for expected in [
        "the hub still holds state of connections after 5s:",
        &format!("\n  the connection {} of ada with the topics [\"news\"]", page.connection()),
        "\n  the user ada, whose grace period has not begun (connections: 1)",
        "\n  the member ada of the topic news (connections: 1)",
        "\n  listeners of the topic news: 1",
        "\n  listeners of the user ada: 1",
        "\n  listeners of everyone: 1",
    ] {
        assert!(failure.contains(expected), "{expected}: {failure}");
    }
    drop(page);
    assert_no_leaks(&hub).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_list_of_leaks_is_cut() {
    let hub = hub();
    let pages: Vec<_> = (0..60).map(|_| hub.subscribe(Subscription::anonymous(), None).unwrap()).collect();
    let failure = failure(assert_no_leaks(&hub)).await;
    assert_eq!(failure.lines().count(), 52, "{failure}");
    assert!(failure.ends_with("\n  and 11 more"), "{failure}");
    drop(pages);
}

/// The server notices the end of a stream a moment later.
#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_within_the_time_limit_is_no_leak() {
    let hub = hub();
    let page = hub.subscribe(Subscription::for_user("ada"), None).unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(4)).await;
        drop(page);
    });
    assert_no_leaks(&hub).await;
}

#[tokio::test(start_paused = true)]
async fn closed_clients_leave_no_leak() {
    let hub = hub();
    let app = application(&hub);
    for _ in 0..10 {
        let mut page = TestClient::open(&app, request()).await.unwrap();
        hub.topic("news").publish(Event::unnamed("Bridge closed")).await.unwrap();
        page.expect_event("").await;
        page.close();
    }
    assert_no_leaks(&hub).await;
}

#[tokio::test(start_paused = true)]
async fn retained_state_is_forgotten_after_its_time() {
    let hub = hub();
    drop(hub.subscribe(Subscription::for_user("ada").topic("news"), None).unwrap());
    hub.topic("news").publish(Event::unnamed("Bridge closed")).await.unwrap();
    hub.user("ada").join("drafts").await.unwrap();
    assert_no_leaks(&hub).await;
    let failure = failure(assert_forgets_all(&hub, Duration::ZERO)).await;
    for expected in [
        "the hub still holds state after 0ns:",
        "\n  the user ada",
        "\n  the member ada of the topic news",
        "\n  retained events or values of the topic news",
    ] {
        assert!(failure.contains(expected), "{expected}: {failure}");
    }
    assert_forgets_all(&hub, HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn a_current_value_without_an_age_is_kept_until_its_removal() {
    let hub = Hub::builder().topic_retention(Retention::latest_per_key()).build().unwrap();
    hub.topic("boilers").publish(Event::unnamed("21.5").key("a")).await.unwrap();
    let failure = failure(assert_forgets_all(&hub, HOUR)).await;
    assert!(failure.contains("retained events or values of the topic boilers"), "{failure}");
    hub.topic("boilers").publish(Event::removal("a")).await.unwrap();
    assert_forgets_all(&hub, HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn runs_are_forgotten_after_their_time() {
    let hub = hub();
    let run = hub.run("answers/7").begin().await.unwrap();
    run.publish(Event::unnamed("Hel")).await.unwrap();
    let failure = failure(assert_forgets_all(&hub, Duration::ZERO)).await;
    assert!(failure.contains("the active run answers/7"), "{failure}");
    run.finish().await.unwrap();
    assert_forgets_all(&hub, 48 * HOUR).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_a_shared_log_leaves_no_leak() {
    let hub = Hub::builder().backplane(Memory::new()).build().unwrap();
    crate::kit::until(|| hub.is_ready()).await;
    let mut page = hub.subscribe(Subscription::for_user("ada").topic("news"), None).unwrap();
    hub.topic("news").publish(Event::unnamed("Bridge closed")).await.unwrap();
    page.next_event().await.unwrap();
    drop(page);
    assert_no_leaks(&hub).await;
    assert_forgets_all(&hub, HOUR).await;
    assert_freed(hub).await;
}

#[tokio::test(start_paused = true)]
async fn a_layer_and_a_stream_keep_a_hub() {
    let hub = hub();
    let app = application(&hub);
    let page = TestClient::open(&app, request()).await.unwrap();
    let failure = failure(assert_freed(hub.clone())).await;
    assert!(failure.starts_with("something still keeps the hub after 5s:\n  "), "{failure}");
    assert!(failure.contains("clones of the hub") && failure.contains("the connection "), "{failure}");
    drop((app, page));
    assert_freed(hub).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_may_exceed_the_range_of_the_clock() {
    let hub = Hub::builder().build().unwrap();
    hub.topic("news").publish(Event::unnamed("1")).await.unwrap();
    assert_forgets_all(&hub, Duration::MAX).await;
}
