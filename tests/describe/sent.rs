//! Real events: each message, and each of the hub's own events that a hub sends without a broker.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use http::Request;
use serde::Serialize;
use tower::ServiceExt;
use tower_sse::{
    Disconnect, Event, Hub, PublishError, Refusal, RefusalReason, Retention, StreamRequest, Subscription, TopicFilter,
};

use crate::kit::soon;
use crate::messages::{DocumentDeleted, Method, Order, Page, Ping, Words, parcel};

/// An event as it arrives: the fields of its frame.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Sent {
    pub(crate) event: String,
    pub(crate) data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<u64>,
}

impl Sent {
    /// Reads one frame. Each event here has one line of data.
    fn parse(frame: &str) -> Self {
        let mut sent = Self::default();
        for (field, value) in frame.lines().filter_map(|line| line.split_once(": ")) {
            match field {
                "event" => value.clone_into(&mut sent.event),
                "data" => value.clone_into(&mut sent.data),
                "id" => sent.id = Some(value.to_owned()),
                "retry" => sent.retry = Some(value.parse().unwrap()),
                _ => panic!("{frame}"),
            }
        }
        sent
    }
}

/// The query names the kind of the stream.
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let ada = || Subscription::for_user("ada").topic("team");
    let query = request.uri().query().unwrap_or_default();
    match query.split('&').next().unwrap_or_default() {
        "busy" => Err(Refusal::retry_later(RefusalReason::Busy)),
        "soon" => Ok(ada().expires_in(Duration::from_secs(20))),
        "ben" => Ok(Subscription::for_user("ben").topic("team").data(&parcel())),
        _ => Ok(ada()),
    }
}

/// Opens a stream.
async fn open(hub: &Hub, query: &str) -> BodyDataStream {
    let app = Router::new().layer(hub.layer("/events", access));
    let request = Request::get(format!("/events?{query}")).body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap().into_body().into_data_stream()
}

/// Reads a stream up to the event of this name.
async fn read_until(stream: &mut BodyDataStream, last: &str) -> Vec<Sent> {
    let (mut text, mut events) = (String::new(), Vec::new());
    loop {
        let bytes = soon(stream.next()).await.unwrap_or_else(|| panic!("no {last} in {events:?}")).unwrap();
        text.push_str(std::str::from_utf8(&bytes).unwrap());
        while let Some((frame, rest)) = text.split_once("\n\n") {
            events.push(Sent::parse(frame));
            text = rest.to_owned();
            if events.last().unwrap().event == last {
                return events;
            }
        }
    }
}

async fn send_all(hub: &Hub) -> Result<(), PublishError> {
    let ada = || hub.user("ada");
    ada().send(&DocumentDeleted { id: 7, deleted_by: "ben".into(), note: Some("a\n\"b\"".into()) }).await?;
    ada().send(&DocumentDeleted { id: 8, deleted_by: "ben".into(), note: None }).await?;
    ada().send(&Order::Paid { order_id: 8, cents: 990, method: Method::Card }).await?;
    ada().send(&Order::Paid { order_id: 8, cents: 990, method: Method::Invoice { days: 30 } }).await?;
    ada().send(&Order::Shipped(parcel())).await?;
    ada().send(&Order::Split(1, 2)).await?;
    ada().send(&Order::ListChanged).await?;
    ada().send(&Order::Nested(Some(Box::new(Order::Nested(None))))).await?;
    ada().send(&Page { items: vec![parcel()], more: true }).await?;
    ada().send(&Words(vec!["a".into()])).await?;
    ada().send(&Ping).await?;
    Ok(())
}

/// Returns the events of several streams: all messages of `messages.rs`, and each of the hub's own
/// events except `hub.stale`, which only a hub with a broker sends.
pub(crate) async fn sent() -> Vec<Sent> {
    let hub = Hub::builder()
        .instance_name("blue")
        .presence_for(TopicFilter::exact("team"))
        .presence_grace(Duration::from_millis(10))
        .topic_retention(Retention::replay().count(1))
        .build()
        .unwrap();
    let mut all = read_until(&mut open(&hub, "busy").await, "hub.refused").await;
    all.extend(read_until(&mut open(&hub, "soon").await, "hub.expiring").await);

    let mut ada = open(&hub, "ada").await;
    all.extend(read_until(&mut ada, "hub.live").await);
    hub.user("ada").join("more").await.unwrap();
    all.extend(read_until(&mut ada, "hub.live").await);
    drop(open(&hub, "ben").await);
    all.extend(read_until(&mut ada, "hub.left").await);
    send_all(&hub).await.unwrap();
    all.extend(read_until(&mut ada, "ping").await);
    hub.user("ada").disconnect(Disconnect::now().note("signed out")).await.unwrap();
    all.extend(read_until(&mut ada, "hub.bye").await);

    let mut positions = Vec::new();
    for _ in 0..3 {
        positions.push(hub.topic("team").publish(Event::new("ping", "null")).await.unwrap().position);
    }
    all.extend(read_until(&mut open(&hub, &format!("ada&last_event_id={}", positions[0])).await, "hub.live").await);
    all
}
