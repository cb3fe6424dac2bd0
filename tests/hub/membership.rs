//! Topic changes on an open stream, by the application and by the page.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures::FutureExt;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tower_sse::{
    Access, Cursor, Disconnect, Event, Hub, HubBuilder, IntoAccess, Position, Refusal, Retention, StreamRequest,
    Subscription, Target, TopicFilter,
};

use crate::kit::page::Page;
use crate::kit::{self, Reply, Server, Sse, http2, parsed, reply, send, soon, topics_of, until};

const HOUR: Duration = Duration::from_secs(3600);
const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// Reads the user from a header, in the place of a cookie. Permits topics below `open/`, and grants
/// the other topics of the query except `ignored/`. Refuses `secret/`.
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let mut subscription = Subscription::anonymous().may_join(TopicFilter::prefix("open/"));
    for topic in request.query_values("topic") {
        if topic.starts_with("secret/") {
            return Err(Refusal::forbidden());
        }
        if !topic.starts_with("ignored/") && !topic.starts_with("open/") {
            subscription = subscription.topic(topic);
        }
    }
    match request.headers().get("x-user").map(|user| user.to_str().unwrap()) {
        Some("stranger") => Err(Refusal::unauthorized()),
        Some(user) => Ok(subscription.with_user(user)),
        None => Ok(subscription),
    }
}

#[derive(Clone, Copy, Debug)]
enum Mounting {
    Layer,
    Endpoint,
}

const MOUNTINGS: [Mounting; 2] = [Mounting::Layer, Mounting::Endpoint];

impl Mounting {
    async fn start(self, builder: HubBuilder) -> (Hub, Server) {
        self.start_with(builder, access).await
    }

    async fn start_with<M, A: IntoAccess<M>>(self, builder: HubBuilder, access: A) -> (Hub, Server) {
        let hub = builder.build().unwrap();
        let app = Router::new().fallback(async || "application");
        let app = match self {
            Self::Layer => app.layer(hub.layer("/events", access).allow_topic_changes()),
            Self::Endpoint => {
                let endpoint = hub.endpoint(access).allow_topic_changes();
                app.route_service("/events", endpoint.clone()).route_service("/events/{connection}/topics", endpoint)
            }
        };
        let server = Server::start(&hub, app).await;
        (hub, server)
    }
}

async fn start() -> (Hub, Server) {
    Mounting::Layer.start(Hub::builder()).await
}

/// A client of a user, or an anonymous client.
#[derive(Clone, Copy)]
struct Client {
    addr: SocketAddr,
    user: Option<&'static str>,
}

impl Client {
    fn new(server: &Server, user: Option<&'static str>) -> Self {
        Self { addr: server.addr, user }
    }

    fn request(self, method: Method, target: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(target);
        if let Some(user) = self.user { request.header("x-user", user) } else { request }
    }

    async fn open(self, path: &str) -> Page {
        self.reconnect(path, "").await
    }

    async fn reconnect(self, path: &str, id: &str) -> Page {
        Page::caught_up_at_once(
            send(self.addr, self.request(Method::GET, path).header("last-event-id", id).body("").unwrap()).await,
        )
        .await
    }

    async fn open_over(self, version: Version, path: &str) -> Page {
        match version {
            Version::HTTP_2 => Page::caught_up_at_once(self.send_2(Method::GET, path).await).await,
            _ => self.open(path).await,
        }
    }

    async fn send_2(self, method: Method, path: &str) -> Reply {
        let request = self.request(method, &format!("http://test{path}")).body(Full::default()).unwrap();
        reply(soon(http2(self.addr).await.send_request(request)).await.unwrap())
    }

    /// Opens one stream over HTTP/1.1 and one over HTTP/2.
    async fn tabs(self, path: &str) -> [Page; 2] {
        [self.open(path).await, self.open_over(Version::HTTP_2, path).await]
    }

    async fn post(self, path: &str) -> Reply {
        self.post_with(path, &[]).await
    }

    async fn post_with(self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let request = self.request(Method::POST, path);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        send(self.addr, request.body("").unwrap()).await
    }
}

impl Page {
    /// Reads until the stream has caught up. No event comes before that.
    async fn caught_up_at_once(reply: Reply) -> Self {
        let mut page = Self::after_hello(reply).await;
        let live = page.events.next().await;
        assert_eq!(live.event, "hub.live", "{live:?}");
        page
    }

    fn target<'a>(&self, hub: &'a Hub) -> Target<'a> {
        hub.connection(&self.connection)
    }

    fn path(&self, query: &str) -> String {
        format!("/events/{}/topics?{query}", self.connection)
    }

    /// Returns the data of the next event, which has to be one of the application.
    async fn reads_next(&mut self) -> String {
        let event = self.events.next().await;
        assert_eq!(event.event, "message", "{event:?}");
        event.data
    }

    /// Returns the data of the next event, which has to be replayed: it has no id.
    async fn replays(&mut self) -> String {
        let before = self.events.last_id.clone();
        let data = self.reads_next().await;
        assert_eq!(self.events.last_id, before, "{data} has an id");
        data
    }

    /// Reads the next event, which has to be a `hub.live` with these topics and an id.
    async fn reads_live(&mut self, topics: &[&str]) {
        let before = sequence(&self.events.last_id);
        let live = self.events.next().await;
        assert_eq!(live.event, "hub.live", "{live:?}");
        assert_eq!(topics_of(&live), topics);
        assert!(sequence(&live.id) >= before, "ids never decrease");
    }

    async fn reads_gap(&mut self, reason: &str, topics: &[&str]) {
        let gap = self.events.next().await;
        assert_eq!(gap.event, "hub.gap", "{gap:?}");
        assert_eq!(parsed(&gap), json!({"reason": reason, "topics": topics}));
    }
}

/// Returns the sequence number in an id.
fn sequence(id: &str) -> u64 {
    id.rsplit_once('.').and_then(|(_, sequence)| sequence.parse().ok()).unwrap()
}

async fn publish(target: Target<'_>, data: impl ToString) -> Position {
    target.publish(Event::unnamed(data.to_string())).await.unwrap().position
}

/// Publishes the numbers, and returns their positions.
async fn publish_numbers(hub: &Hub, topic: &str, numbers: std::ops::RangeInclusive<usize>) -> Vec<Position> {
    let mut positions = Vec::new();
    for n in numbers {
        positions.push(publish(hub.topic(topic), n).await);
    }
    positions
}

// Connections.

#[tokio::test]
async fn a_connection_receives_a_topic_from_join_to_leave() {
    let (hub, server) = start().await;
    for version in VERSIONS {
        let mut page = Client::new(&server, Some("ada")).open_over(version, "/events?topic=a").await;
        publish(hub.topic("t"), "before").await;
        assert_eq!(page.target(&hub).join("t").await.unwrap().connections, 1);
        page.reads_live(&["a", "t"]).await;
        let position = publish(hub.topic("t"), "in").await;
        assert_eq!(page.reads_next().await, "in");
        assert_eq!(page.events.last_id, position.to_string());

        assert_eq!(page.target(&hub).leave("t").await.unwrap().connections, 1);
        page.reads_live(&["a"]).await;
        publish(hub.topic("t"), "out").await;
        publish(hub.topic("a"), "still").await;
        assert_eq!(page.reads_next().await, "still");
    }
}

#[tokio::test]
async fn a_topic_that_a_page_has_is_not_joined_again() {
    let (hub, server) = start().await;
    let mut page = Client::new(&server, None).open("/events?topic=a").await;
    let since = publish(hub.topic("a"), 1).await;
    publish(hub.topic("a"), 2).await;
    assert_eq!(page.target(&hub).join("a").since(since).await.unwrap().connections, 0);
    assert_eq!(page.target(&hub).leave("b").await.unwrap().connections, 0);
    publish(hub.topic("a"), 3).await;
    assert_eq!([page.reads_next().await, page.reads_next().await, page.reads_next().await], ["1", "2", "3"]);
}

#[tokio::test]
async fn topics_joined_by_a_connection_end_with_it() {
    let (hub, server) = start().await;
    let client = Client::new(&server, Some("ada"));
    let page = client.open("/events?topic=a").await;
    page.target(&hub).join("t").await.unwrap();
    let id = page.events.last_id.clone();
    drop(page);
    until(|| hub.stats().connections == 0).await;
    let mut page = client.reconnect("/events?topic=a", &id).await;
    assert_eq!(page.topics, ["a"]);
    publish(hub.topic("t"), "after the end").await;
    publish(hub.topic("a"), "still").await;
    assert_eq!(page.reads_next().await, "still");
}

#[tokio::test]
async fn pending_events_of_a_left_topic_are_not_delivered() {
    let (hub, server) = start().await;
    for version in VERSIONS {
        let mut page = Client::new(&server, None).open_over(version, "/events?topic=t&topic=a").await;
        // Nothing awaits from here to `leave`, so the server cannot write the events before it.
        for n in 0..10 {
            hub.topic("t").publish_now(Event::unnamed(n.to_string())).unwrap();
        }
        hub.topic("a").publish_now(Event::unnamed("kept")).unwrap();
        assert_eq!(
            page.target(&hub)
                .leave("t")
                .now_or_never()
                .expect("a command on one instance is ready at once")
                .unwrap()
                .connections,
            1
        );
        let rest = [page.events.next().await, page.events.next().await];
        let kept: Vec<_> = rest.iter().filter(|event| event.event == "message").map(|event| &event.data).collect();
        assert_eq!(kept, ["kept"]);
        publish(hub.everyone(), "after").await;
        assert_eq!(page.reads_next().await, "after");
    }
}

#[tokio::test]
async fn the_listeners_of_a_topic_join_another_topic() {
    let (hub, server) = start().await;
    let client = Client::new(&server, None);
    let (a, mut b) = (client.tabs("/events?topic=a").await, client.open("/events?topic=b").await);
    assert_eq!(hub.topic("a").join("t").await.unwrap().connections, 2);
    publish(hub.topic("t"), "in").await;
    publish(hub.everyone(), "after").await;
    for mut page in a {
        page.events.caught_up().await;
        assert_eq!(page.reads_next().await, "in");
    }
    assert_eq!(b.reads_next().await, "after");
    assert!(client.open("/events?topic=a").await.topics == ["a"], "`join` applies only to connections that were open");
}

#[tokio::test]
async fn a_connection_has_no_more_topics_than_allowed() {
    let (hub, server) = Mounting::Layer.start(Hub::builder().max_topics(2)).await;
    let page = Client::new(&server, Some("ada")).open("/events?topic=a").await;
    page.target(&hub).join("b").await.unwrap();
    assert!(page.target(&hub).join("c").await.unwrap_err().is_over_limit());
    assert!(hub.user("ada").join("c").await.unwrap_err().is_over_limit());
    page.target(&hub).join("b").await.unwrap();
    page.target(&hub).leave("a").await.unwrap();
    page.target(&hub).join("c").await.unwrap();
    assert!(page.target(&hub).join("").await.unwrap_err().is_invalid());
}

// Users.

#[tokio::test]
async fn a_user_joins_with_open_and_future_tabs() {
    let (hub, server) = start().await;
    let ada = Client::new(&server, Some("ada"));
    let tabs = ada.tabs("/events?topic=a").await;
    let mut ben = Client::new(&server, Some("ben")).open("/events").await;
    assert_eq!(hub.user("ada").join("t").await.unwrap().connections, 2);
    let mut all = Vec::from(ada.tabs("/events?topic=a").await);
    assert!(all.iter().all(|tab| tab.topics == ["a", "t"]));
    for mut tab in tabs {
        tab.reads_live(&["a", "t"]).await;
        all.push(tab);
    }
    publish(hub.topic("t"), "in").await;
    for tab in &mut all {
        assert_eq!(tab.reads_next().await, "in");
    }

    assert_eq!(hub.user("ada").leave("t").await.unwrap().connections, 4);
    all.push(ada.open("/events?topic=a").await);
    assert_eq!(all[4].topics, ["a"]);
    publish(hub.topic("t"), "out").await;
    publish(hub.everyone(), "after").await;
    for (index, tab) in all.iter_mut().enumerate() {
        if index < 4 {
            tab.reads_live(&["a"]).await;
        }
        assert_eq!(tab.reads_next().await, "after");
    }
    assert_eq!(ben.reads_next().await, "after");
}

#[tokio::test]
async fn a_user_who_reconnects_within_the_grace_period_keeps_topics_and_events() {
    let (hub, server) = start().await;
    let ada = Client::new(&server, Some("ada"));
    let mut page = ada.open("/events").await;
    hub.user("ada").join("t").await.unwrap();
    page.reads_live(&["t"]).await;
    publish(hub.topic("t"), 1).await;
    assert_eq!(page.reads_next().await, "1");
    let id = page.events.last_id.clone();
    drop(page);
    until(|| hub.user("ada").count() == 0).await;
    publish(hub.topic("t"), 2).await;
    let request = ada.request(Method::GET, "/events").header("last-event-id", &id).body("").unwrap();
    let mut page = Page::after_hello(send(server.addr, request).await).await;
    assert_eq!(page.topics, ["t"]);
    assert_eq!(page.reads_next().await, "2");
    assert_eq!(hub.user("ada").leave("t").await.unwrap().connections, 1);
}

#[tokio::test]
async fn a_user_loses_joined_topics_when_the_grace_period_ends() {
    let (hub, server) = Mounting::Layer.start(Hub::builder().presence_grace(Duration::from_millis(300))).await;
    let ada = Client::new(&server, Some("ada"));
    let page = ada.open("/events").await;
    hub.user("ada").join("t").await.unwrap();
    let id = page.events.last_id.clone();
    drop(page);
    until(|| hub.stats().users == 0).await;
    assert!(!hub.user("ada").is_online());
    assert_eq!(ada.reconnect("/events", &id).await.topics, Vec::<String>::new());

    // The same for a user without an earlier connection.
    hub.user("ben").join("t").await.unwrap();
    assert_eq!(Client::new(&server, Some("ben")).open("/events").await.topics, ["t"]);
    until(|| hub.stats().users == 0).await;
    assert_eq!(Client::new(&server, Some("ben")).open("/events").await.topics, Vec::<String>::new());
}

#[tokio::test]
async fn the_grace_periods_of_several_users_end_in_time() {
    let (hub, server) = Mounting::Layer.start(Hub::builder().presence_grace(Duration::from_millis(100))).await;
    // With an open connection and no work, housekeeping pauses for its longest time.
    let _anonymous = Client::new(&server, None).open("/events").await;
    let mut pages = Vec::new();
    for user in ["cem", "dan", "eva", "fay", "ada"] {
        pages.push(Client::new(&server, Some(user)).open("/events").await);
        hub.user(user).join("t").await.unwrap();
    }
    drop(pages);
    until(|| !hub.user("ada").is_online()).await;
    assert_eq!(Client::new(&server, Some("ada")).open("/events").await.topics, Vec::<String>::new());
}

/// Drops the stream, waits until the hub has removed it, and returns the last event id.
async fn lose(hub: &Hub, page: Page) -> String {
    let id = page.events.last_id.clone();
    drop(page);
    until(|| hub.stats().connections == 0).await;
    id
}

#[tokio::test]
async fn a_user_joined_while_disconnected_receives_the_current_values() {
    let (hub, server) = Mounting::Layer.start(keyed()).await;
    let ada = Client::new(&server, Some("ada"));
    hub.topic("cells").publish(Event::unnamed("1").key("x")).await.unwrap();
    let id = lose(&hub, ada.open("/events").await).await;
    hub.user("ada").join("cells").await.unwrap();
    let request = ada.request(Method::GET, "/events").header("last-event-id", &id).body("").unwrap();
    let mut page = Page::after_hello(send(server.addr, request).await).await;
    assert_eq!(page.topics, ["cells"]);
    publish(hub.everyone(), "after").await;
    assert_eq!(page.events.next_own().await.data, "1");
}

#[tokio::test]
async fn a_user_joined_while_disconnected_receives_the_events_since_the_position() {
    let (hub, server) = start().await;
    let ada = Client::new(&server, Some("ada"));
    let positions = publish_numbers(&hub, "t", 1..=3).await;
    let id = lose(&hub, ada.open("/events").await).await;
    hub.user("ada").join("t").since(positions[0]).await.unwrap();
    let request = ada.request(Method::GET, "/events").header("last-event-id", &id).body("").unwrap();
    let mut page = Page::after_hello(send(server.addr, request).await).await;
    assert_eq!(page.topics, ["t"]);
    publish(hub.everyone(), "after").await;
    assert_eq!(page.events.next_own().await.data, "2");
    assert_eq!(page.events.next_own().await.data, "3");
}

// Joins since a position.

#[tokio::test]
async fn events_since_a_position_are_replayed_in_order_before_hub_live() {
    for version in VERSIONS {
        let (hub, server) = start().await;
        let positions = publish_numbers(&hub, "t", 1..=50).await;
        let mut page = Client::new(&server, None).open_over(version, "/events?topic=a").await;
        page.target(&hub).join("t").since(positions[9]).await.unwrap();
        for n in 11..=50 {
            assert_eq!(page.replays().await, n.to_string());
        }
        page.reads_live(&["a", "t"]).await;
        publish(hub.topic("t").and(hub.topic("a")), "next").await;
        assert_eq!(page.reads_next().await, "next");
    }
}

#[tokio::test]
async fn a_replay_skips_events_that_arrived_through_another_topic() {
    let (hub, server) = start().await;
    let since = hub.position();
    let mut page = Client::new(&server, None).open("/events?topic=a").await;
    publish(hub.topic("t"), "of t").await;
    publish(hub.topic("t").and(hub.topic("a")), "of both").await;
    publish(hub.topic("t"), "of t again").await;
    assert_eq!(page.reads_next().await, "of both");
    page.target(&hub).join("t").since(since).await.unwrap();
    assert_eq!([page.replays().await, page.replays().await], ["of t", "of t again"]);
    page.reads_live(&["a", "t"]).await;
}

#[tokio::test]
async fn a_join_since_the_newest_position_replays_no_events() {
    let (hub, server) = start().await;
    let mut page = Client::new(&server, None).open("/events").await;
    publish_numbers(&hub, "t", 1..=3).await;
    page.target(&hub).join("t").since(hub.position()).await.unwrap();
    page.reads_live(&["t"]).await;
}

#[tokio::test]
async fn a_join_since_an_unknown_position_reports_one_gap() {
    let (hub, server) = start().await;
    publish_numbers(&hub, "t", 1..=3).await;
    let ahead = hub.position().to_string() + "0";
    for (since, reason) in [("1.abc.2", "epoch"), (ahead.as_str(), "ahead"), ("nonsense", "invalid")] {
        for version in VERSIONS {
            let mut page = Client::new(&server, None).open_over(version, "/events?topic=a").await;
            page.target(&hub).join("t").since(Cursor::parse(since.as_bytes())).await.unwrap();
            page.reads_gap(reason, &["t"]).await;
            page.reads_live(&["a", "t"]).await;
            publish(hub.topic("t"), "next").await;
            assert_eq!(page.reads_next().await, "next");
        }
    }
}

#[tokio::test]
async fn a_join_since_a_trimmed_position_reports_one_gap_and_replays_retained_events() {
    let (hub, server) = Mounting::Layer.start(Hub::builder().topic_retention(Retention::replay().count(3))).await;
    let positions = publish_numbers(&hub, "t", 1..=10).await;
    let client = Client::new(&server, None);
    for since in [0, 5] {
        for version in VERSIONS {
            let mut page = client.open_over(version, "/events?topic=a").await;
            page.target(&hub).join("t").since(positions[since]).await.unwrap();
            page.reads_gap("trimmed", &["t"]).await;
            assert_eq!([page.replays().await, page.replays().await, page.replays().await], ["8", "9", "10"]);
            page.reads_live(&["a", "t"]).await;
        }
    }
    let mut page = client.open("/events").await;
    page.target(&hub).join("t").since(positions[6]).await.unwrap();
    assert_eq!(page.replays().await, "8", "all events after the position are retained");
}

#[tokio::test]
async fn a_gap_of_a_joined_topic_does_not_affect_the_other_topics() {
    let (hub, server) = start().await;
    let mut page = Client::new(&server, None).open("/events?topic=a").await;
    hub.topic("a").publish_now(Event::unnamed("1")).unwrap();
    let join = page.target(&hub).join("t").since(Cursor::Invalid).into_future();
    join.now_or_never().expect("a command on one instance is ready at once").unwrap();
    hub.topic("a").publish_now(Event::unnamed("2")).unwrap();
    page.reads_gap("invalid", &["t"]).await;
    let mut rest = Vec::new();
    while rest.len() < 2 {
        rest.push(page.events.next_own().await.data);
    }
    assert_eq!(rest, ["1", "2"]);
}

#[tokio::test]
async fn a_page_that_joins_a_busy_topic_again_after_a_reconnect_gets_no_gap() {
    let (hub, server) = Mounting::Layer.start(Hub::builder().topic_retention(Retention::replay().count(3))).await;
    let client = Client::new(&server, None);
    let mut page = client.open("/events?topic=quiet").await;
    publish_numbers(&hub, "open/busy", 1..=10).await;
    assert_eq!(client.post(&page.path("join=open/busy")).await.status, StatusCode::OK);
    page.reads_live(&["open/busy", "quiet"]).await;
    let id = lose(&hub, page).await;
    let mut page = client.reconnect("/events?topic=quiet", &id).await;
    assert_eq!(client.post(&page.path(&format!("join=open/busy&since={id}"))).await.status, StatusCode::OK);
    publish(hub.topic("open/busy"), 11).await;
    let first = page.events.next().await;
    assert_ne!(first.event, "hub.gap", "no event was published between the two connections");
}

// Current values.

fn keyed() -> HubBuilder {
    Hub::builder().retention_for(TopicFilter::exact("cells"), Retention::latest_per_key())
}

#[tokio::test]
async fn a_join_of_a_keyed_topic_delivers_the_current_values() {
    let (hub, server) = Mounting::Layer.start(keyed()).await;
    for (key, value) in [("x", "x1"), ("y", "y1"), ("x", "x2"), ("z", "z1")] {
        hub.topic("cells").publish(Event::unnamed(value).key(key)).await.unwrap();
    }
    hub.topic("cells").publish(Event::removal("z")).await.unwrap();
    for version in VERSIONS {
        let mut page = Client::new(&server, None).open_over(version, "/events?topic=a").await;
        page.target(&hub).join("cells").await.unwrap();
        assert_eq!([page.replays().await, page.replays().await], ["y1", "x2"]);
        page.reads_live(&["a", "cells"]).await;
    }
}

#[tokio::test]
async fn a_join_since_a_position_delivers_only_changed_values() {
    let (hub, server) = Mounting::Layer.start(keyed()).await;
    let value = |key: &'static str, value: &'static str| hub.topic("cells").publish(Event::unnamed(value).key(key));
    value("x", "x1").await.unwrap();
    let since = value("y", "y1").await.unwrap().position;
    value("x", "x2").await.unwrap();
    let mut page = Client::new(&server, None).open("/events").await;
    page.target(&hub).join("cells").since(since).await.unwrap();
    assert_eq!(page.replays().await, "x2");
    page.reads_live(&["cells"]).await;
}

// The topics endpoint.

#[tokio::test]
async fn a_page_joins_and_leaves_topics() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        for user in [Some("ada"), None] {
            let client = Client::new(&server, user);
            let mut page = client.open("/events?topic=a").await;
            let reply = client.post(&page.path("join=open/1&join=open/1&join=b&leave=a&leave=c")).await;
            assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "application/json"));
            assert_eq!(reply.header("cache-control"), "no-store");
            let answer: Value = serde_json::from_str(&reply.text().await).unwrap();
            assert_eq!(answer, json!({"topics": ["open/1", "b"]}));
            let live = loop {
                let live = page.events.next().await;
                assert_eq!(live.event, "hub.live");
                if topics_of(&live).len() == 2 {
                    break live;
                }
            };
            assert_eq!(topics_of(&live), ["b", "open/1"]);
            publish(hub.topic("a"), "left").await;
            publish(hub.topic("open/1"), "joined").await;
            assert_eq!(page.reads_next().await, "joined");
        }
    }
}

#[tokio::test]
async fn a_page_joins_a_topic_over_http_2() {
    for mounting in MOUNTINGS {
        let (_hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, Some("ada"));
        let mut page = client.open_over(Version::HTTP_2, "/events").await;
        let reply = client.send_2(Method::POST, &page.path("join=open/1")).await;
        assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::OK, r#"{"topics":["open/1"]}"#));
        page.reads_live(&["open/1"]).await;
    }
}

#[tokio::test]
async fn a_page_receives_the_events_since_its_position() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, Some("ada"));
        let positions = publish_numbers(&hub, "open/1", 1..=3).await;
        let mut page = client.open("/events").await;
        assert_eq!(client.post(&page.path(&format!("since={}&join=open/1", positions[0]))).await.status, 200);
        assert_eq!([page.replays().await, page.replays().await], ["2", "3"]);
        page.reads_live(&["open/1"]).await;

        let mut page = client.open("/events").await;
        assert_eq!(client.post(&page.path("join=open/1&since=1.abc.1")).await.status, 200);
        page.reads_gap("epoch", &["open/1"]).await;
        let mut page = client.open("/events").await;
        assert_eq!(client.post(&page.path("join=open/1&since=")).await.status, 200);
        page.reads_live(&["open/1"]).await;
    }
}

/// Everything that a client can see of a response, without its date.
async fn visible(reply: Reply) -> (StatusCode, HeaderMap, String) {
    let mut headers = reply.headers.clone();
    headers.remove("date");
    (reply.status, headers, reply.text().await)
}

#[tokio::test]
async fn a_connection_of_another_user_gets_the_response_of_an_unknown_one() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let [ada, ben, anonymous] = [Some("ada"), Some("ben"), None].map(|user| Client::new(&server, user));
        let of_ada = ada.open("/events").await.connection;
        let (of_ben, of_anonymous) = (ben.open("/events").await, anonymous.open("/events").await);
        until(|| hub.stats().connections == 2).await;
        let unknown = "0".repeat(32);
        let expected = visible(ada.post(&format!("/events/{unknown}/topics?join=open/1")).await).await;
        assert_eq!((expected.0, expected.2.as_str()), (StatusCode::NOT_FOUND, "no such connection\n"));
        let upper = of_ben.connection.to_uppercase();
        for (client, connection) in [
            (ada, of_ben.connection.as_str()),
            (ada, &of_anonymous.connection),
            (anonymous, &of_ben.connection),
            (ben, &of_ada),
            (ben, if upper == of_ben.connection { "x" } else { &upper }),
            (ben, "x"),
            (ben, "%20"),
        ] {
            let path = |query| format!("/events/{connection}/topics?{query}");
            for query in ["join=open/1", "leave=a", "", "join=ignored/1"] {
                assert_eq!(visible(client.post(&path(query)).await).await, expected, "{connection} {query}");
            }
        }
        assert_eq!(hub.topic("open/1").count(), 0);
    }
}

#[tokio::test]
async fn one_topic_that_is_not_permitted_refuses_the_whole_request() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, Some("ada"));
        let mut page = client.open("/events?topic=a").await;
        for topic in ["ignored/1", "secret/1", "ignored/open/1", "ignored/%0A"] {
            let reply = client.post(&page.path(&format!("leave=a&join=open/1&join=b&join={topic}"))).await;
            assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::FORBIDDEN, "forbidden\n"), "{topic}");
        }
        assert_eq!(client.post(&page.path("leave=%0A&join=open/1")).await.status, StatusCode::FORBIDDEN);
        assert_eq!(hub.topic("open/1").and(hub.topic("b")).count(), 0);
        publish(hub.topic("a"), "still").await;
        assert_eq!(page.reads_next().await, "still");
    }
}

#[tokio::test]
async fn a_page_may_always_leave_a_topic() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, Some("ada"));
        let mut page = client.open("/events").await;
        page.target(&hub).join("secret/1").await.unwrap();
        page.reads_live(&["secret/1"]).await;
        let reply = client.post(&page.path("leave=secret/1")).await;
        assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::OK, r#"{"topics":[]}"#));
        page.reads_live(&[]).await;
    }
}

#[tokio::test]
async fn an_unauthorized_request_changes_no_topics() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let page = Client::new(&server, Some("ada")).open("/events").await;
        let reply = Client::new(&server, Some("stranger")).post(&page.path("join=open/1")).await;
        assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::UNAUTHORIZED, "sign in first\n"));
        assert_eq!(hub.topic("open/1").count(), 0);
    }
}

#[tokio::test]
async fn a_page_of_another_site_changes_no_topics() {
    let foreign = [("origin", "https://evil.test"), ("sec-fetch-site", "cross-site")];
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder().allow_cross_origin("https://app.example")).await;
        let client = Client::new(&server, Some("ada"));
        let page = client.open("/events").await;
        for headers in [&foreign[..1], &foreign[1..], &foreign] {
            let reply = client.post_with(&page.path("join=open/1"), headers).await;
            let text = "the origin of this page is not allowed\n";
            assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::FORBIDDEN, text));
        }
        assert_eq!(hub.topic("open/1").count(), 0);
        for (n, headers) in [
            &[("origin", "https://app.example")][..],
            &[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")],
            &[("origin", "http://test")],
            &[("sec-fetch-site", "same-origin")],
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(client.post_with(&page.path(&format!("join=open/{n}")), headers).await.status, 200);
            assert_eq!(hub.topic(format!("open/{n}")).count(), 1);
        }
    }
}

#[tokio::test]
async fn other_methods_get_405_with_the_allowed_method() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, None);
        let page = client.open("/events").await;
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
            let request = client.request(method.clone(), &page.path("join=open/1")).body("").unwrap();
            let reply = send(server.addr, request).await;
            assert_eq!((reply.status, reply.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"), "{method}");
        }
        let posted = client.post("/events").await;
        match mounting {
            Mounting::Layer => assert_eq!(posted.text().await, "application"),
            Mounting::Endpoint => assert_eq!(posted.header("allow"), "GET, HEAD"),
        }
        assert_eq!(hub.topic("open/1").count(), 0);
    }
}

#[tokio::test]
async fn the_layer_passes_other_requests_to_the_application() {
    let (_hub, server) = start().await;
    let client = Client::new(&server, None);
    let page = client.open("/events").await;
    let options = client.request(Method::OPTIONS, &page.path("")).body("").unwrap();
    assert_eq!(send(server.addr, options).await.text().await, "application");
    for path in ["/events/topics", "/events/a/b/topics", "/events/a/topics/", "/eventsa/topics", "/x/events/a/topics"] {
        assert_eq!(client.post(path).await.text().await, "application", "{path}");
    }
}

#[tokio::test]
async fn topics_cannot_change_without_allow_topic_changes() {
    let hub = Hub::builder().build().unwrap();
    let app = Router::new().route("/", get(|| async {})).fallback(async || "application");
    let server = Server::start(&hub, app.layer(hub.layer("/events", access))).await;
    let client = Client::new(&server, None);
    let page = client.open("/events").await;
    assert_eq!(client.post(&page.path("join=open/1")).await.text().await, "application");

    let endpoint = hub.endpoint(access);
    let app = Router::new().route_service("/events/{connection}/topics", endpoint);
    let server = Server::start(&hub, app).await;
    assert_eq!(Client::new(&server, None).post(&page.path("join=open/1")).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(hub.topic("open/1").count(), 0);
}

#[tokio::test]
async fn a_request_for_too_many_topics_changes_no_topics() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder().max_topics(2)).await;
        let client = Client::new(&server, Some("ada"));
        let page = client.open("/events?topic=a").await;
        let reply = client.post(&page.path("leave=a&join=open/1&join=open/2&join=open/3")).await;
        assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::BAD_REQUEST, "too many topics\n"));
        assert_eq!((hub.topic("a").count(), hub.topic("open/1").count()), (1, 0), "{mounting:?}");
    }
}

#[tokio::test]
async fn a_request_at_the_limit_can_join_a_topic_and_leave_another() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder().max_topics(2)).await;
        let client = Client::new(&server, Some("ada"));
        let page = client.open("/events?topic=a&topic=b").await;
        assert_eq!(client.post(&page.path("join=open/1")).await.status, StatusCode::BAD_REQUEST);
        assert_eq!(client.post(&page.path("join=open/1&leave=a")).await.status, StatusCode::OK);
        assert_eq!((hub.topic("a").count(), hub.topic("open/1").count()), (0, 1));
    }
}

#[tokio::test]
async fn a_change_of_topics_during_a_drain_gets_a_retry_time() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, Some("ada"));
        let page = client.open("/events").await;
        let path = page.path("join=open/1");
        drop(page);
        hub.drain(Duration::ZERO).await;
        let reply = client.post(&path).await;
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "2"));
    }
}

#[tokio::test]
async fn a_refusal_of_the_hook_sets_the_response_of_a_change_of_topics() {
    for mounting in MOUNTINGS {
        let busy = async |request: StreamRequest| match request.query_values("topic").next() {
            None => Ok(Subscription::anonymous()),
            Some(topic) if topic == "panic" => panic!("panic of the hook"),
            Some(topic) if topic == "never" => Err(Refusal::gone()),
            Some(_) => Err(Refusal::retry_later(tower_sse::RefusalReason::Busy).retry(Duration::from_secs(7))),
        };
        let (_hub, server) = mounting.start_with(Hub::builder(), busy).await;
        let client = Client::new(&server, None);
        let page = client.open("/events").await;
        let reply = client.post(&page.path("join=a")).await;
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "7"));
        assert_eq!(client.post(&page.path("join=never")).await.status, StatusCode::FORBIDDEN);
        assert_eq!(client.post(&page.path("join=panic")).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}

/// A hook that grants streams at once, and returns its decision about a join when the test opens
/// the gate.
#[derive(Clone)]
struct Gate {
    decided: Arc<Notify>,
    open: Arc<Semaphore>,
}

impl Access for Gate {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let is_join = request.query_values("topic").any(|topic| topic.starts_with("open/"));
        let decided = access(request).await;
        if is_join {
            self.decided.notify_one();
            drop(self.open.acquire().await);
        }
        decided
    }
}

/// Opens a page, requests a join of `open/1`, runs `meanwhile` while the hook decides, and returns
/// the status of the response.
async fn change_during_authorization(
    mounting: Mounting,
    meanwhile: impl AsyncFnOnce(&Hub),
) -> (Hub, Server, Page, StatusCode) {
    let gate = Gate { decided: Arc::default(), open: Arc::new(Semaphore::new(0)) };
    let (hub, server) = mounting.start_with(Hub::builder(), gate.clone()).await;
    let client = Client::new(&server, Some("ada"));
    let page = client.open("/events").await;
    let path = page.path("join=open/1");
    let asking = tokio::spawn(async move { client.post(&path).await.status });
    soon(gate.decided.notified()).await;
    meanwhile(&hub).await;
    gate.open.add_permits(1);
    let status = soon(asking).await.unwrap();
    (hub, server, page, status)
}

#[tokio::test]
async fn a_change_of_topics_gets_404_when_its_connection_ends_during_authorization() {
    for mounting in MOUNTINGS {
        let disconnect = async |hub: &Hub| assert!(hub.user("ada").disconnect(Disconnect::now()).await.is_ok());
        let (_hub, _server, _page, status) = change_during_authorization(mounting, disconnect).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_topic_that_is_disconnected_during_authorization_is_not_joined() {
    for mounting in MOUNTINGS {
        let disconnect = async |hub: &Hub| assert!(hub.topic("open/1").disconnect(Disconnect::now()).await.is_ok());
        let (hub, _server, _page, status) = change_during_authorization(mounting, disconnect).await;
        assert_eq!((status, hub.topic("open/1").count()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    }
}

#[tokio::test]
async fn a_banned_topic_is_not_joined() {
    for mounting in MOUNTINGS {
        let (hub, server) = mounting.start(Hub::builder()).await;
        let client = Client::new(&server, Some("ada"));
        let page = client.open("/events").await;
        hub.topic("open/1").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
        let status = client.post(&page.path("join=open/1")).await.status;
        assert_eq!(hub.topic("open/1").count(), 0);
        assert!(status.is_client_error(), "{status}");
    }
}

// A page that joins topics and reconnects.

/// The page script of `docs/guide/identity.md`, in Rust.
struct PageScript {
    client: Client,
    /// For each joined topic, the id from which its events may be missing, or `None` once
    /// `hub.live` has listed the topic.
    wanted: BTreeMap<&'static str, Option<String>>,
    last_id: String,
    received: BTreeSet<u32>,
    asked: JoinSet<StatusCode>,
}

/// The state of one connection of the page.
struct Visit {
    page: Page,
    received: BTreeSet<u32>,
}

impl PageScript {
    fn new(client: Client) -> Self {
        Self {
            client,
            wanted: BTreeMap::new(),
            last_id: String::new(),
            received: BTreeSet::new(),
            asked: JoinSet::new(),
        }
    }

    async fn visit(&mut self, over_http_2: bool) -> Visit {
        let path = format!("/events?topic=base&last_event_id={}", self.last_id);
        let reply = if over_http_2 {
            self.client.send_2(Method::GET, &path).await
        } else {
            send(self.client.addr, self.client.request(Method::GET, &path).body("").unwrap()).await
        };
        let page = Page::after_hello(reply).await;
        let missing = self.wanted.keys().copied().filter(|topic| !page.topics.iter().any(|has| has == topic));
        for topic in missing.collect::<Vec<_>>() {
            let since = self.wanted[topic].clone().unwrap_or_else(|| self.last_id.clone());
            self.ask(&page, topic, since);
        }
        Visit { page, received: BTreeSet::new() }
    }

    fn join(&mut self, visit: &Visit, topic: &'static str) {
        self.ask(&visit.page, topic, self.last_id.clone());
    }

    fn ask(&mut self, page: &Page, topic: &'static str, since: String) {
        let (client, path) = (self.client, page.path(&format!("join={topic}&since={since}")));
        self.wanted.insert(topic, Some(since));
        self.asked.spawn(async move { client.post(&path).await.status });
    }

    fn see(&mut self, visit: &mut Visit, event: &Sse) {
        // Replayed events can arrive before the first id of a connection. Until then the page keeps
        // the last id of the connection before.
        if !visit.page.events.last_id.is_empty() {
            self.last_id.clone_from(&visit.page.events.last_id);
        }
        match event.event.as_str() {
            "message" => {
                let n = event.data.parse().unwrap();
                assert!(visit.received.insert(n), "{n} was received twice");
                self.received.insert(n);
            }
            "hub.live" if event.data != "{}" => {
                for topic in topics_of(event) {
                    if let Some(since) = self.wanted.get_mut(topic.as_str()) {
                        *since = None;
                    }
                }
            }
            "hub.live" => {}
            other => panic!("{other}: {}", event.data),
        }
    }

    async fn see_until(&mut self, visit: &mut Visit, deadline: Instant) {
        while let Ok(event) = timeout_at(deadline, visit.page.events.next()).await {
            self.see(visit, &event);
        }
    }

    async fn see_while(&mut self, visit: &mut Visit, condition: impl Fn(&Self) -> bool) {
        while condition(self) {
            let event = visit.page.events.next().await;
            self.see(visit, &event);
        }
    }
}

const ROOM: &str = "open/room";
const HALL: &str = "open/hall";

/// Publishes numbers while it receives permits, at random to `open/room`, `open/hall`, both, or
/// `base`, which the page always has.
async fn publish_at_random(
    hub: Hub,
    mut permits: mpsc::Receiver<u32>,
    published: Arc<AtomicU32>,
    mut random: fastrand::Rng,
) {
    while let Some(count) = permits.recv().await {
        for _ in 0..count {
            let n = published.fetch_add(1, Ordering::AcqRel);
            let target = match random.u8(..6) {
                0 => hub.topic("base"),
                1 => hub.topic(ROOM).and(hub.topic("base")),
                2 => hub.topic(ROOM).and(hub.topic(HALL)),
                3 => hub.topic(HALL),
                _ => hub.topic(ROOM),
            };
            let target = if random.bool() { target.and(hub.topic("unread")) } else { target };
            publish(target, n).await;
            if random.bool() {
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn receives_every_event(mounting: Mounting, seed: u64, rounds: u32) {
    let mut random = fastrand::Rng::with_seed(seed);
    let keeps_all = Retention::replay().count(1 << 20).bytes(1 << 24);
    let (hub, server) = mounting.start(Hub::builder().topic_retention(keeps_all)).await;
    let mut page = PageScript::new(Client::new(&server, Some("ada")));

    let mut visit = page.visit(false).await;
    page.see_while(&mut visit, |page| page.last_id.is_empty()).await;
    page.join(&visit, ROOM);
    page.join(&visit, HALL);

    let published = Arc::new(AtomicU32::new(0));
    let (permits, permitted) = mpsc::channel(1024);
    let publisher = tokio::spawn(publish_at_random(hub.clone(), permitted, Arc::clone(&published), random.fork()));
    for _ in 0..rounds {
        permits.send(random.u32(..16)).await.unwrap();
        let deadline = Instant::now() + Duration::from_micros(random.u64(..8_000));
        page.see_until(&mut visit, deadline).await;
        drop(visit);
        permits.send(random.u32(..4)).await.unwrap();
        visit = page.visit(random.bool()).await;
    }
    drop(permits);
    publisher.await.unwrap();
    let count = published.load(Ordering::Acquire);
    let all = |page: &PageScript| page.received.len() == count as usize;
    let rest = page.see_while(&mut visit, |page| !all(page));
    if tokio::time::timeout(kit::PATIENCE / 2, rest).await.is_err() {
        let missing: Vec<_> = (0..count).filter(|n| !page.received.contains(n)).collect();
        panic!("of {count} events, {missing:?} were not received");
    }
    while let Some(status) = page.asked.join_next().await {
        let status = status.unwrap();
        assert!([StatusCode::OK, StatusCode::NOT_FOUND].contains(&status), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_page_that_joins_again_after_each_reconnect_receives_every_event() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut runs = JoinSet::new();
    for (n, mounting) in (0..4).zip(MOUNTINGS.into_iter().cycle()) {
        runs.spawn(async move {
            std::panic::AssertUnwindSafe(receives_every_event(mounting, seed + n, 100)).catch_unwind().await.is_ok()
        });
    }
    let succeeded = runs.join_all().await;
    assert!(succeeded.into_iter().all(|succeeded| succeeded), "SEED={seed}");
}
