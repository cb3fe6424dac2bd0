//! `Subscriber::next_event`: it returns every event, every gap and the end.

use std::time::Duration;

use futures::FutureExt;
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, GapReason, Hub, NextEventError, Position, Retention, Subscriber,
    SubscriberItem, Subscription,
};

use crate::kit::soon;

fn open(hub: &Hub, cursor: impl Into<Cursor>) -> Subscriber {
    hub.subscribe(Subscription::for_user("ada").topic("news"), cursor).unwrap()
}

async fn post_headline(hub: &Hub, headline: &str) -> Position {
    hub.topic("news").publish(Event::new("headline", headline.to_owned())).await.unwrap().position
}

async fn headline(page: &mut Subscriber) -> String {
    soon(page.next_event()).await.unwrap().data
}

#[tokio::test]
async fn next_event_skips_live() {
    let hub = Hub::builder().build().unwrap();
    let mut page = open(&hub, None);
    assert!(page.next_event().now_or_never().is_none(), "the stream has no event");
    post_headline(&hub, "Bridge closed").await;
    let event = soon(page.next_event()).await.unwrap();
    assert_eq!((&*event.name, &*event.data), ("headline", "Bridge closed"));
}

#[tokio::test]
async fn next_event_returns_a_gap_before_the_events_after_it() {
    let hub = Hub::builder().topic_retention(Retention::replay().count(2)).build().unwrap();
    let first = post_headline(&hub, "1").await;
    for headline in ["2", "3", "4"] {
        post_headline(&hub, headline).await;
    }
    let mut page = open(&hub, first);
    let error = soon(page.next_event()).await.unwrap_err();
    assert_eq!(error.to_string(), "events were lost (trimmed): news");
    assert_eq!(error, NextEventError::Gap { reason: GapReason::Trimmed, topics: vec!["news".try_into().unwrap()] });
    assert_eq!([headline(&mut page).await, headline(&mut page).await], ["3", "4"]);
}

#[tokio::test]
async fn next_event_returns_the_reason_of_the_end_at_each_call() {
    let hub = Hub::builder().build().unwrap();
    let mut page = open(&hub, None);
    post_headline(&hub, "Bridge closed").await;
    assert_eq!(headline(&mut page).await, "Bridge closed");
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    for _ in 0..3 {
        let error = soon(page.next_event()).await.unwrap_err();
        assert_eq!(error, NextEventError::End(EndReason::Disconnected));
    }
}

#[tokio::test]
async fn next_event_returns_the_reason_of_an_end_that_next_has_returned() {
    let hub = Hub::builder().build().unwrap();
    let mut page = open(&hub, None);
    hub.drain(Duration::ZERO).await;
    while !matches!(soon(page.next()).await, Some(SubscriberItem::End(EndReason::Draining))) {}
    assert_eq!(soon(page.next_event()).await, Err(NextEventError::End(EndReason::Draining)));
    assert_eq!(soon(page.next()).await, None);
}

/// A client may select over the stream and over something else.
#[tokio::test]
async fn a_dropped_future_of_next_event_loses_nothing() {
    let hub = Hub::builder().topic_retention(Retention::replay().count(2)).build().unwrap();
    let first = post_headline(&hub, "1").await;
    for headline in ["2", "3", "4"] {
        post_headline(&hub, headline).await;
    }
    let mut page = open(&hub, first);
    let mut read = Vec::new();
    // Each poll is the last one of its future.
    for n in 0..100 {
        if n % 10 == 5 {
            post_headline(&hub, &n.to_string()).await;
        }
        match page.next_event().now_or_never() {
            Some(Ok(event)) => read.push(event.data),
            Some(Err(error)) => read.push(error.to_string()),
            None => {}
        }
    }
    let gap = "events were lost (trimmed): news";
    assert_eq!(read, [gap, "3", "4", "5", "15", "25", "35", "45", "55", "65", "75", "85", "95"]);
}
