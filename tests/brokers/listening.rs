//! Connections across instances: disconnects, joins, presence and counts include the clients of
//! every instance.

use std::time::Duration;

use axum::Router;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower_sse::backplane::{Backplane, Memory};
use tower_sse::{
    Disconnect, Event, Hub, HubBuilder, OverLimit, Refusal, RefusalReason, StreamRequest, Subscription, Ticket,
    TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::broker::for_each_broker;
use crate::kit::page::Page;
use crate::kit::{Server, get, parsed, send, soon, until};

struct Instance {
    hub: Hub,
    server: Server,
}

/// Takes the user and the topics from the query. Each user has data, and a page may join topics
/// below `open/`.
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let user = request.query_values("user");
    let subscription = from_query(&request).may_join(TopicFilter::prefix("open/"));
    Ok(user.fold(subscription, |subscription, user| subscription.data(&json!({ "name": user }))))
}

fn builder() -> HubBuilder {
    let brief = Duration::from_millis(600);
    Hub::builder()
        .probe_interval(Duration::from_millis(100))
        .peer_timeout(brief)
        .presence_grace(Duration::from_millis(300))
}

impl Instance {
    async fn start(builder: HubBuilder, log: impl Backplane) -> Self {
        let hub = builder.backplane(log).build().unwrap();
        let layered = Router::new()
            .route("/", axum::routing::get(|| async {}))
            .layer(hub.layer("/events", access).allow_topic_changes());
        let server = Server::start(&hub, layered).await;
        until(|| hub.is_ready()).await;
        Self { hub, server }
    }

    async fn open(&self, query: &str) -> Page {
        Page::open(self.server.addr, &format!("/events?{query}")).await
    }
}

async fn pair(log: impl Backplane + Clone) -> (Instance, Instance) {
    let one = Instance::start(builder(), log.clone()).await;
    let two = Instance::start(builder(), log).await;
    until(|| one.hub.stats().others == 1 && two.hub.stats().others == 1).await;
    (one, two)
}

impl Page {
    /// The topics in force, once they have changed.
    async fn topics(&mut self) -> Value {
        loop {
            let event = self.events.next().await;
            if event.event == "hub.live" && event.data.contains("topics") {
                return serde_json::from_str::<Value>(&event.data).unwrap()["topics"].take();
            }
        }
    }

    async fn goodbye(self) -> Value {
        let goodbye = self.events.rest().await.pop().unwrap();
        assert_eq!(goodbye.event, "hub.bye");
        parsed(&goodbye)
    }
}

pub async fn presence_is_the_same_on_every_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log.clone()).await;
    let ada = one.open("user=ada&topic=t").await;
    let ada_two = two.open("user=ada&topic=t").await;
    let _ben = two.open("user=ben&topic=t").await;
    let _anonymous = one.open("topic=t").await;
    // An instance that starts later requests the connections of the others.
    let three = Instance::start(builder(), log).await;
    for hub in [&one.hub, &two.hub, &three.hub] {
        until(|| hub.topic("t").count() == 4).await;
        let presence = serde_json::to_value(hub.topic("t").presence()).unwrap();
        assert_eq!(
            presence["members"],
            json!([
                { "user": "ada", "connections": 2, "data": { "name": "ada" } },
                { "user": "ben", "connections": 1, "data": { "name": "ben" } },
            ])
        );
        assert_eq!(presence["anonymous"], 1);
        assert!(hub.user("ada").is_online() && hub.user("ben").has_subscribers() && !hub.user("cem").is_online());
        assert_eq!((hub.user("ada").count(), hub.everyone().count()), (2, 4));
        assert_eq!(hub.topic("t").and(hub.user("ada")).except(&ada.connection).count(), 3);
        assert!(!hub.topic("u").has_subscribers());
    }
    drop((ada, ada_two));
    for hub in [&one.hub, &two.hub, &three.hub] {
        until(|| hub.user("ada").count() == 0).await;
        until(|| !hub.user("ada").is_online()).await;
        assert!(hub.user("ben").is_online());
    }
}

pub async fn a_disconnect_reaches_every_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    for (disconnect, reconnect) in
        [(Disconnect::now(), "now"), (Disconnect::block_for(Duration::from_secs(60)).note("signed out"), "never")]
    {
        let (here, there) = (one.open("user=ada").await, two.open("user=ada").await);
        let begun = std::time::Instant::now();
        assert_eq!(
            one.hub.user("ada").disconnect(disconnect).await.unwrap().connections,
            1,
            "connections of this instance"
        );
        for page in [here, there] {
            let bye = page.goodbye().await;
            assert_eq!((&bye["reason"], &bye["reconnect"]), (&json!("disconnected"), &json!(reconnect)));
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "a disconnect should take about a second");
    }
    for instance in [&one, &two] {
        assert_eq!(get(instance.server.addr, "/events?user=ada").await.status, StatusCode::NO_CONTENT);
        assert_eq!(get(instance.server.addr, "/events?user=ben").await.status, StatusCode::OK);
    }
    // A single connection, by its id, from the other instance.
    let page = two.open("topic=t").await;
    one.hub.connection(&page.connection).disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(page.goodbye().await["reason"], "disconnected");
}

pub async fn joins_reach_every_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    let (mut here, mut there) = (one.open("user=ada").await, two.open("user=ada").await);
    let before = two.hub.topic("t").publish(Event::unnamed("before")).await.unwrap().position;
    two.hub.topic("t").publish(Event::unnamed("missed")).await.unwrap();
    one.hub.user("ada").join("t").since(before).await.unwrap();
    for page in [&mut here, &mut there] {
        // In any order: the instance may receive the join before it has read the missed event.
        let (mut missed, mut live) = (0, 0);
        while missed + live < 2 {
            let event = page.events.next().await;
            missed += u32::from(event.data == "missed");
            live += u32::from(event.event == "hub.live" && event.data.contains("\"t\""));
        }
        assert_eq!((missed, live), (1, 1));
    }
    one.hub.topic("t").publish(Event::unnamed("live")).await.unwrap();
    assert_eq!((here.events.next_own().await.data, there.events.next_own().await.data), ("live".into(), "live".into()));
    // The join also applies to later connections, on any instance.
    let later = get(two.server.addr, "/events?user=ada").await.events().next().await;
    assert!(later.data.contains("\"topics\":[\"t\"]"), "{}", later.data);
    two.hub.user("ada").leave("t").await.unwrap();
    for page in [&mut here, &mut there] {
        assert_eq!(page.topics().await, json!([]));
    }
    one.hub.connection(&there.connection).join("mine").await.unwrap();
    assert_eq!(there.topics().await, json!(["mine"]));
}

async fn a_page_changes_its_topics_at_any_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    let mut page = one.open("user=ada&topic=a").await;
    let path = |id: &str| format!("/events/{id}/topics?join=open/b&leave=a&user=ada");
    let reply = send(two.server.addr, Request::post(path(&page.connection)).body("").unwrap()).await;
    assert_eq!((reply.status.as_u16(), reply.text().await), (200, "{\"topics\":[\"open/b\"]}".to_owned()));
    while page.topics().await != json!(["open/b"]) {}
    two.hub.topic("open/b").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(page.events.next_own().await.data, "x");
    // A connection of another user gets the same response as an unknown connection.
    let foreign = path(&page.connection).replace("ada", "ben");
    let unknown = path("0123456789abcdef0123456789abcdef");
    let foreign = send(two.server.addr, Request::post(foreign).body("").unwrap()).await;
    let unknown = send(two.server.addr, Request::post(unknown).body("").unwrap()).await;
    assert_eq!((foreign.status, unknown.status), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(foreign.text().await, unknown.text().await);
}

/// The change is one command, which the instance of the page carries out like a request of its own
/// clients.
async fn a_change_of_topics_at_another_instance_is_made_as_a_whole_or_not_at_all(log: impl Backplane + Clone) {
    let one = Instance::start(builder().max_topics(3), log.clone()).await;
    let two = Instance::start(builder(), log).await;
    until(|| one.hub.stats().others == 1 && two.hub.stats().others == 1).await;
    let mut page = one.open("user=ada&topic=a&topic=b&topic=c").await;
    let connection = page.connection.clone();
    let change = async |query: &str| {
        let path = format!("/events/{connection}/topics?user=ada&{query}");
        let reply = send(two.server.addr, Request::post(path).body("").unwrap()).await;
        assert_eq!(reply.status, StatusCode::OK);
        reply.text().await
    };
    let before = one.hub.position();
    two.hub.topic("open/y").publish(Event::unnamed("missed")).await.unwrap();
    until(|| one.hub.position() > before).await;
    // The page receives one `hub.live`, with the three new topics.
    let changed = change(&format!("join=open/x&join=open/y&join=open/z&leave=a&leave=b&leave=c&since={before}")).await;
    assert_eq!(changed, "{\"topics\":[\"open/x\",\"open/y\",\"open/z\"]}");
    let mut received = Vec::new();
    while !(received.contains(&"missed".to_owned()) && received.len() > 1) {
        let event = page.events.next().await;
        if event.event == "message" || (event.event == "hub.live" && event.data.contains("topics")) {
            received.push(event.data);
        }
    }
    received.sort();
    assert_eq!(received, ["missed", "{\"topics\":[\"open/x\",\"open/y\",\"open/z\"]}"]);
    until(|| two.hub.topic("open/z").count() == 1).await;
    // The instance of the page allows three topics, so it rejects the whole change: also the leave,
    // and also the join that would have had room.
    change("join=open/1&join=open/2&leave=open/x").await;
    // Changes take effect in the order in which they were sent.
    change("leave=open/z").await;
    assert_eq!(page.topics().await, json!(["open/x", "open/y"]));
    assert_eq!(one.hub.topic("open/1").count() + one.hub.topic("open/2").count(), 0);
}

async fn a_dead_instance_ends_after_its_lease_and_a_drained_one_at_once(log: impl Backplane + Clone) {
    let one = Instance::start(builder(), log.clone()).await;
    // This instance has a separate runtime, which ends without a goodbye.
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dies = theirs.spawn(Instance::start(builder(), log.clone())).await.unwrap();
    let leaves = Instance::start(builder().peer_timeout(Duration::from_secs(600)), log).await;
    let _ada = dies.open("user=ada").await;
    let _ben = leaves.open("user=ben").await;
    until(|| one.hub.user("ada").count() == 1 && one.hub.user("ben").count() == 1).await;
    leaves.hub.drain(Duration::ZERO).await;
    until(|| one.hub.user("ben").count() == 0).await;
    assert_eq!(one.hub.user("ada").count(), 1);
    theirs.shutdown_background();
    until(|| one.hub.user("ada").count() == 0 && one.hub.stats().others == 0).await;
    drop(dies);
}

async fn connections_of_a_user_are_bounded_across_instances(log: impl Backplane + Clone) {
    let bounded = || builder().max_connections_per_user(2, OverLimit::Refuse);
    let one = Instance::start(bounded(), log.clone()).await;
    let two = Instance::start(bounded(), log).await;
    let _pages = [one.open("user=ada").await, one.open("user=ada").await];
    until(|| two.hub.user("ada").count() == 2).await;
    let refused = get(two.server.addr, "/events?user=ada").await.events().next().await;
    assert!(refused.event == "hub.refused" && refused.data.contains("limit"), "{}", refused.data);
    assert_eq!(get(two.server.addr, "/events?user=ben").await.events().next().await.event, "hub.hello");
}

/// A ticket is redeemed once, on any instance. A disconnect by any instance invalidates it.
pub async fn a_ticket_is_redeemed_once_on_any_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    let serve = async |hub: &Hub| {
        let tickets = hub.clone();
        let endpoint = hub.endpoint(move |request: StreamRequest| {
            let hub = tickets.clone();
            async move { hub.redeem(&request).await }
        });
        Server::start(hub, Router::new().route_service("/events", endpoint)).await
    };
    let servers = [serve(&one.hub).await, serve(&two.hub).await];
    for round in 0..4 {
        let subscription = Subscription::for_user("ada").topic("t").data(&json!({ "n": round }));
        let ticket = one.hub.ticket(subscription, Duration::from_secs(30)).await.unwrap();
        let path = format!("/events?ticket={}", ticket.as_str());
        // Four requests at once, two to each instance.
        let replies = futures::future::join_all([0, 1, 0, 1].map(|n| get(servers[n].addr, &path))).await;
        let statuses: Vec<_> = replies.iter().map(|reply| reply.status.as_u16()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 3);
        let mut events = replies.into_iter().find(|reply| reply.status == 200).unwrap().events();
        assert!(events.next().await.data.contains("\"topics\":[\"t\"]"));
    }
    let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(30)).await.unwrap();
    let (mut here, mut there) = (one.open("user=ada").await, two.open("user=ada").await);
    two.hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    // Both instances have received the disconnect.
    for page in [&mut here, &mut there] {
        while page.events.next().await.event != "hub.bye" {}
    }
    for server in &servers {
        assert_eq!(
            get(server.addr, &format!("/events?ticket={}", ticket.as_str())).await.status,
            StatusCode::UNAUTHORIZED
        );
    }
}

/// A browser that may retry reconnects with the same URL, perhaps to another instance.
async fn a_ticket_is_valid_again_at_any_instance_when_its_request_gets_no_stream(log: impl Backplane + Clone) {
    #[derive(Clone, Copy)]
    enum Then {
        Accepts,
        RefusesForNow,
        Hangs,
    }
    let brief = || builder().access_timeout(Duration::from_millis(200));
    let one = Instance::start(brief(), log.clone()).await;
    let two = Instance::start(brief(), log).await;
    let serve = async |hub: &Hub, then: Then| {
        let tickets = hub.clone();
        let endpoint = hub.endpoint(move |request: StreamRequest| {
            let hub = tickets.clone();
            async move {
                let subscription = hub.redeem(&request).await?;
                match then {
                    Then::Accepts => Ok(subscription),
                    Then::RefusesForNow => Err(Refusal::retry_later(RefusalReason::Busy)),
                    Then::Hangs => std::future::pending().await,
                }
            }
        });
        Server::start(hub, Router::new().route_service("/events", endpoint)).await
    };
    let opens = serve(&two.hub, Then::Accepts).await;
    let path = |ticket: &Ticket| format!("/events?ticket={}", ticket.as_str());
    let reconnect = async |ticket: &Ticket| loop {
        let reply = get(opens.addr, &path(ticket)).await;
        if reply.status == StatusCode::OK {
            return reply.events().next().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for then in [Then::RefusesForNow, Then::Hangs] {
        let refuses = serve(&one.hub, then).await;
        let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(60)).await.unwrap();
        assert_eq!(get(refuses.addr, &path(&ticket)).await.events().next().await.event, "hub.refused");
        assert_eq!(soon(reconnect(&ticket)).await.event, "hub.hello");
        assert_eq!(get(opens.addr, &path(&ticket)).await.status, StatusCode::UNAUTHORIZED);
    }
    // A request that is dropped before the broker answers.
    let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(60)).await.unwrap();
    let request = Request::get(path(&ticket)).body(()).unwrap();
    drop(futures::FutureExt::now_or_never(one.hub.redeem(&StreamRequest::from_request(&request))));
    assert_eq!(soon(reconnect(&ticket)).await.event, "hub.hello");
    // A returned ticket keeps its age, so a later disconnect invalidates it.
    let refuses = serve(&one.hub, Then::RefusesForNow).await;
    let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(60)).await.unwrap();
    let mut page = two.open("user=ada").await;
    assert_eq!(get(refuses.addr, &path(&ticket)).await.events().next().await.event, "hub.refused");
    one.hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    while page.events.next().await.event != "hub.bye" {}
    assert_eq!(get(opens.addr, &path(&ticket)).await.status, StatusCode::UNAUTHORIZED);
}

/// Each instance limits the tickets that it has issued, although they are stored on the broker.
async fn unredeemed_tickets_are_bounded(log: impl Backplane + Clone) {
    let one = Instance::start(builder(), log.clone()).await;
    let two = Instance::start(builder(), log).await;
    let issued = async |at: &Instance, ttl| at.hub.ticket(Subscription::for_user("ada"), ttl).await;
    let long = Duration::from_secs(60);
    // A user may have 64 unredeemed tickets.
    for _ in 0..62 {
        issued(&one, long).await.unwrap();
    }
    let [first, second] = [issued(&one, long).await.unwrap(), issued(&one, Duration::from_secs(4)).await.unwrap()];
    assert!(issued(&one, long).await.unwrap_err().is_over_limit());
    issued(&two, long).await.unwrap();
    let redeemed = async |at: &Instance, ticket: &Ticket| {
        let request = Request::get(format!("/?ticket={}", ticket.as_str())).body(()).unwrap();
        at.hub.redeem(&StreamRequest::from_request(&request)).await
    };
    redeemed(&one, &first).await.unwrap();
    issued(&one, long).await.unwrap();
    // An instance counts a ticket that another instance has redeemed until the ticket expires.
    redeemed(&two, &second).await.unwrap();
    assert!(issued(&one, long).await.unwrap_err().is_over_limit());
    let room = async {
        while issued(&one, long).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(room).await;
}

/// A user joins once and leaves once, whichever instances have its connections. A move between
/// instances is no change.
async fn a_topic_has_presence_events_of_all_instances(log: impl Backplane + Clone) {
    let with_presence = || builder().presence_for(TopicFilter::prefix("rooms/"));
    let one = Instance::start(with_presence(), log.clone()).await;
    let two = Instance::start(with_presence(), log.clone()).await;
    until(|| one.hub.stats().others == 1 && two.hub.stats().others == 1).await;
    let mut watcher = one.open("topic=rooms/1").await;
    // Two instances that a user leaves at the same time may both publish `hub.left`, each after its
    // own grace period. That is better than no `hub.left`.
    let mut left = std::collections::BTreeSet::new();
    let mut next_change = async |watcher: &mut Page| loop {
        let event = watcher.events.next().await;
        if event.event == "hub.joined" || event.event == "hub.left" {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            let change = (event.event, data["user"].as_str().unwrap().to_owned());
            if change.0 == "hub.joined" || left.insert(change.1.clone()) {
                return change;
            }
        }
    };
    let pair = |event: &str, user: &str| (event.to_owned(), user.to_owned());
    let ada = two.open("user=ada&topic=rooms/1").await;
    assert_eq!(next_change(&mut watcher).await, pair("hub.joined", "ada"));
    until(|| one.hub.user("ada").count() == 1).await;
    // Neither a second tab on the other instance nor a move publishes an event.
    let second_tab = one.open("user=ada&topic=rooms/1").await;
    until(|| two.hub.user("ada").count() == 2).await;
    drop(ada);
    until(|| one.hub.topic("rooms/1").count() == 2).await;
    let ada = two.open("user=ada&topic=rooms/1").await;
    until(|| one.hub.user("ada").count() == 2).await;
    drop(second_tab);
    let _ben = one.open("user=ben&topic=rooms/1").await;
    assert_eq!(next_change(&mut watcher).await, pair("hub.joined", "ben"));
    for hub in [&one.hub, &two.hub] {
        until(|| hub.topic("rooms/1").presence().members.len() == 2).await;
    }
    drop(ada);
    assert_eq!(next_change(&mut watcher).await, pair("hub.left", "ada"));
    // An instance dies, and one of the others publishes `hub.left` for its members.
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dies = theirs.spawn(Instance::start(with_presence(), log)).await.unwrap();
    let _cem = dies.open("user=cem&topic=rooms/1").await;
    assert_eq!(next_change(&mut watcher).await, pair("hub.joined", "cem"));
    until(|| one.hub.user("cem").count() == 1 && two.hub.user("cem").count() == 1).await;
    theirs.shutdown_background();
    assert_eq!(next_change(&mut watcher).await, pair("hub.left", "cem"));
    drop(dies);
    // The event may arrive before this instance has detected that the other one is dead.
    let members = || one.hub.topic("rooms/1").presence().members;
    until(|| members().iter().map(|member| member.user.as_str().to_owned()).eq(["ben"])).await;
}

/// The hub waits for an unknown connection, since another instance may not have sent it yet.
#[tokio::test]
async fn topic_changes_of_unknown_connections_are_limited_by_the_connect_rate() {
    const RATE: u32 = 2;
    let one = Instance::start(builder().max_connects_per_second(RATE), Memory::new()).await;
    let since = std::time::Instant::now();
    let change = async |n: u32| {
        let path = format!("/events/{n:032x}/topics?join=open/1");
        send(one.server.addr, Request::post(path).body("").unwrap()).await.status
    };
    let statuses = soon(futures::future::join_all((0..30).map(change))).await;
    let count = |status| statuses.iter().filter(|other| **other == status).count();
    let (waited, refused) = (count(StatusCode::NOT_FOUND), count(StatusCode::SERVICE_UNAVAILABLE));
    let allowed = RATE as usize + 1 + (since.elapsed().as_secs_f64() * f64::from(RATE)) as usize;
    assert_eq!(waited + refused, 30, "{statuses:?}");
    assert!((RATE as usize..=allowed).contains(&waited), "{waited} waited, {allowed} are allowed");
}

for_each_broker!(presence_is_the_same_on_every_instance(log): memory, redis, nats, postgres);
for_each_broker!(a_disconnect_reaches_every_instance(log): memory, redis, nats, postgres);
for_each_broker!(joins_reach_every_instance(log): memory, redis, nats, postgres);
for_each_broker!(a_page_changes_its_topics_at_any_instance(log): memory, redis, nats, postgres);
for_each_broker!(a_change_of_topics_at_another_instance_is_made_as_a_whole_or_not_at_all(log): memory, redis, nats, postgres);
for_each_broker!(a_dead_instance_ends_after_its_lease_and_a_drained_one_at_once(log): memory, redis, nats, postgres);
for_each_broker!(connections_of_a_user_are_bounded_across_instances(log): memory, redis, nats, postgres);
for_each_broker!(a_ticket_is_redeemed_once_on_any_instance(log): memory, redis, nats, postgres);
for_each_broker!(a_ticket_is_valid_again_at_any_instance_when_its_request_gets_no_stream(log): memory, redis, nats, postgres);
for_each_broker!(unredeemed_tickets_are_bounded(log): memory, redis, nats, postgres);
for_each_broker!(a_topic_has_presence_events_of_all_instances(log): memory, redis, nats, postgres);
