//! Presence, presence events and the lifecycle of connections.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::ready;
use std::time::{Duration, Instant};

use axum::Router;
use futures::StreamExt;
use futures::future::join_all;
use serde_json::json;
use tower_sse::{
    ConnectionId, ConnectionInfo, Disconnect, EndReason, Event, GapReason, Hub, HubBuilder, Lifecycle, LifecycleEvent,
    Position, Presence, Retention, StreamRequest, Subscription, Topic, TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::{self, Events, Server, Sse, get, parsed, resume, soon, subscribe, until};

/// The grace period of presence.
const GRACE: Duration = Duration::from_millis(300);
/// Below 5 s, at which the hub looks for departures in any case.
const LATE: Duration = Duration::from_millis(4_500);
/// The resolution of the hub's clock.
const TICK: Duration = Duration::from_millis(1);

/// Serves streams of the user, the topics and the data in the query.
async fn serve(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let access = |request: StreamRequest| {
        let data = request.query_values("data");
        ready(Ok(data.fold(from_query(&request), |subscription, data| subscription.data(&*data))))
    };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    (hub, server)
}

fn with_grace() -> HubBuilder {
    Hub::builder().presence_grace(GRACE)
}

/// A hub whose topic `room` publishes presence events.
fn with_presence_events() -> HubBuilder {
    with_grace().presence_for(TopicFilter::exact("room"))
}

/// Opens a stream of a user on the topic `room`.
async fn enter(server: &Server, user: &str) -> Events {
    subscribe(server.addr, &format!("/events?topic=room&user={user}")).await
}

/// Returns the name and the user of the next presence event.
async fn next_presence_event(events: &mut Events) -> (String, String) {
    loop {
        let event = events.next().await;
        if let "hub.joined" | "hub.left" = &*event.event {
            assert_eq!(parsed(&event)["topic"], "room");
            return (event.event.clone(), parsed(&event)["user"].as_str().unwrap().to_owned());
        }
    }
}

fn joined(user: &str) -> (String, String) {
    ("hub.joined".into(), user.into())
}

fn left(user: &str) -> (String, String) {
    ("hub.left".into(), user.into())
}

/// The members, with the number of their connections.
fn members(presence: &Presence) -> BTreeMap<&str, usize> {
    presence.members.iter().map(|member| (member.user.as_str(), member.connections)).collect()
}

/// Reads `hub.hello` and returns the id of the connection.
async fn connection(events: &mut Events) -> ConnectionId {
    let hello = events.next().await;
    parsed(&hello)["connection"].as_str().unwrap().parse().unwrap()
}

/// Waits until the hub has this number of connections.
async fn connections(hub: &Hub, count: usize) {
    until(|| hub.stats().connections == count).await;
}

// -------------------------------------------------------------------------------------------------
// Presence

#[tokio::test]
async fn the_tabs_of_a_user_are_one_member_with_the_data_of_the_newest_tab() {
    for builder in [with_grace(), with_presence_events()] {
        let (hub, server) = serve(builder).await;
        let _old = subscribe(server.addr, "/events?topic=room&user=ada&data=old").await;
        let _ben = subscribe(server.addr, "/events?topic=room&user=ben").await;
        let _new = subscribe(server.addr, "/events?topic=room&user=ada&data=new").await;
        let _elsewhere = subscribe(server.addr, "/events?topic=elsewhere&user=ada&data=elsewhere").await;
        let _anonymous = join_all((0..2).map(|_| subscribe(server.addr, "/events?topic=room"))).await;
        let presence = hub.topic("room").presence();
        assert_eq!(members(&presence), BTreeMap::from([("ada", 2), ("ben", 1)]));
        assert_eq!(presence.members[0].data_json(), Some(r#""new""#));
        assert_eq!(presence.members[1].data_json(), None);
        assert_eq!((presence.anonymous, presence.position), (2, hub.position()));
        assert_eq!(
            serde_json::to_value(&presence).unwrap(),
            json!({
                "position": hub.position().to_string(),
                "members": [{ "user": "ada", "connections": 2, "data": "new" }, { "user": "ben", "connections": 1 }],
                "anonymous": 2
            })
        );
        assert_eq!((hub.topic("room").count(), hub.user("ada").count(), hub.everyone().count()), (5, 3, 6));
        assert_eq!(members(&hub.user("ada").presence()), BTreeMap::from([("ada", 3)]));
        assert_eq!(members(&hub.everyone().presence()), BTreeMap::from([("ada", 3), ("ben", 1)]));
    }
}

#[tokio::test]
async fn a_union_counts_a_connection_once_and_omits_excluded_connections() {
    for builder in [with_grace(), with_grace().presence_for(TopicFilter::any())] {
        let (hub, server) = serve(builder).await;
        let mut both = get(server.addr, "/events?topic=a&topic=b&user=ada").await.events();
        let both = connection(&mut both).await;
        let _b = subscribe(server.addr, "/events?topic=b&user=ada").await;
        let mut ben = get(server.addr, "/events?topic=a&user=ben").await.events();
        let ben = connection(&mut ben).await;
        let union = || hub.topic("a").and(hub.topic("b")).and(hub.user("ada"));
        assert_eq!((union().count(), union().except(both).count(), hub.topic("a").except(both).count()), (3, 2, 1));
        assert_eq!(members(&union().presence()), BTreeMap::from([("ada", 2), ("ben", 1)]));
        assert_eq!(members(&union().except(both).presence()), BTreeMap::from([("ada", 1), ("ben", 1)]));
        assert_eq!(members(&hub.topic("a").except(ben).presence()), BTreeMap::from([("ada", 1)]));
        assert!(hub.connection(ben).has_subscribers() && hub.connection(ben).count() == 1);
        assert_eq!(members(&hub.connection(ben).presence()), BTreeMap::from([("ben", 1)]));
        let no_other = hub.topic("a").except(both).except(ben);
        assert!(!no_other.has_subscribers() && no_other.presence().members.is_empty());
    }
}

#[tokio::test]
async fn presence_of_an_invalid_name_is_empty() {
    let (hub, server) = serve(with_presence_events()).await;
    let _ada = enter(&server, "ada").await;
    for target in [hub.topic(""), hub.user("\n"), hub.connection("x"), hub.topic("room").and(hub.user(""))] {
        let presence = target.presence();
        assert!(presence.members.is_empty() && presence.anonymous == 0);
        assert_eq!((target.count(), target.has_subscribers(), target.is_online()), (0, false, false));
    }
    let unknown = hub.topic("no-such-room");
    assert_eq!((unknown.count(), unknown.has_subscribers(), unknown.is_online()), (0, false, false));
}

#[tokio::test]
async fn a_user_is_online_until_the_grace_period_after_the_last_tab_ends() {
    let (hub, server) = serve(with_grace()).await;
    assert!(!hub.user("ada").is_online());
    let first = enter(&server, "ada").await;
    let second = enter(&server, "ada").await;
    drop(first);
    connections(&hub, 1).await;
    assert!(hub.user("ada").is_online() && hub.user("ada").has_subscribers());
    drop(second);
    let since = Instant::now();
    connections(&hub, 0).await;
    assert!(hub.user("ada").is_online() && !hub.user("ada").has_subscribers());
    assert_eq!(hub.stats().users, 1);
    until(|| !hub.user("ada").is_online()).await;
    assert!(since.elapsed() >= GRACE - TICK, "{:?}", since.elapsed());
    until(|| hub.stats().users == 0).await;
    assert!(since.elapsed() < LATE, "{:?}", since.elapsed());
}

#[tokio::test]
async fn connections_lists_every_open_connection_with_its_state() {
    let (hub, server) = serve(with_grace()).await;
    let mut fresh = get(server.addr, "/events?topic=a&topic=b&user=ada&data=x").await.events();
    let id = connection(&mut fresh).await;
    fresh.caught_up().await;
    let mut back = resume(server.addr, "/events", &fresh.last_id).await;
    back.caught_up().await;
    for _ in 0..3 {
        hub.topic("b").publish(Event::unnamed("x")).await.unwrap();
        fresh.next_own().await;
    }
    let connections = hub.connections();
    let (fresh, back): (Vec<_>, Vec<_>) = connections.iter().partition(|connection| connection.id == id);
    let topics: Vec<_> = fresh[0].topics.iter().map(Topic::as_str).collect();
    assert_eq!(fresh[0].user.as_ref().unwrap().as_str(), "ada");
    assert_eq!(topics.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["a", "b"]));
    assert_eq!((fresh[0].data_json(), fresh[0].delivered, fresh[0].resumed), (Some(r#""x""#), 3, false));
    assert!(fresh[0].open_for < kit::PATIENCE);
    assert_eq!((back.len(), back[0].user.as_ref(), back[0].delivered, back[0].resumed), (1, None, 0, true));
    assert!(!format!("{:?}", fresh[0]).contains("\"x\""));
}

// -------------------------------------------------------------------------------------------------
// Presence events

#[tokio::test]
async fn hub_joined_is_published_at_once_and_hub_left_after_the_grace_period() {
    let (hub, server) = serve(with_presence_events()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let ada = subscribe(server.addr, "/events?topic=room&user=ada&data=hi").await;
    let event = watcher.next().await;
    assert_eq!(event.event, "hub.joined");
    assert_eq!(parsed(&event), json!({ "topic": "room", "user": "ada", "data": "hi" }));
    // Like every event of the topic, the presence event has a position in the log.
    assert_eq!(event.id, hub.position().to_string());
    let since = Instant::now();
    drop(ada);
    let event = watcher.next().await;
    assert_eq!((event.event.as_str(), parsed(&event)), ("hub.left", json!({ "topic": "room", "user": "ada" })));
    let after = since.elapsed();
    assert!(after >= GRACE - TICK && after < LATE, "{after:?}");
}

#[tokio::test]
async fn a_reload_within_the_grace_period_publishes_no_presence_events() {
    let (hub, server) = serve(with_presence_events()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let ada = enter(&server, "ada").await;
    drop(ada);
    connections(&hub, 1).await;
    assert_eq!(members(&hub.topic("room").presence()), BTreeMap::from([("ada", 0)]));
    let _ada = enter(&server, "ada").await;
    assert_eq!(members(&hub.topic("room").presence()), BTreeMap::from([("ada", 1)]));
    let ben = enter(&server, "ben").await;
    drop(ben);
    // If ada had left, her `hub.left` would come before the `hub.joined` of ben.
    assert_eq!(next_presence_event(&mut watcher).await, joined("ada"));
    assert_eq!(next_presence_event(&mut watcher).await, joined("ben"));
    assert_eq!(next_presence_event(&mut watcher).await, left("ben"));
}

#[tokio::test]
async fn a_user_with_several_tabs_leaves_with_the_last_tab() {
    let (hub, server) = serve(with_presence_events()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let first = enter(&server, "ada").await;
    let second = enter(&server, "ada").await;
    drop(first);
    connections(&hub, 2).await;
    let ben = enter(&server, "ben").await;
    drop(ben);
    for expected in [joined("ada"), joined("ben"), left("ben")] {
        assert_eq!(next_presence_event(&mut watcher).await, expected);
    }
    drop(second);
    assert_eq!(next_presence_event(&mut watcher).await, left("ada"));
}

#[tokio::test]
async fn presence_events_are_published_for_join_leave_and_disconnect() {
    let (hub, server) = serve(with_presence_events()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let _ada = subscribe(server.addr, "/events?topic=elsewhere&user=ada").await;
    hub.user("ada").join("room").await.unwrap();
    assert_eq!(next_presence_event(&mut watcher).await, joined("ada"));
    hub.user("ada").leave("room").await.unwrap();
    assert_eq!(next_presence_event(&mut watcher).await, left("ada"));
    assert_eq!(hub.user("ada").count(), 1, "the connection stays open");
    let ben = enter(&server, "ben").await;
    assert_eq!(next_presence_event(&mut watcher).await, joined("ben"));
    let since = Instant::now();
    hub.user("ben").disconnect(Disconnect::block_for(Duration::from_secs(60))).await.unwrap();
    assert_eq!(parsed(ben.rest().await.last().unwrap())["reason"], "disconnected");
    assert_eq!(next_presence_event(&mut watcher).await, left("ben"));
    assert!(since.elapsed() >= GRACE - TICK && since.elapsed() < LATE, "{:?}", since.elapsed());
    assert!(hub.topic("room").presence().members.is_empty());
}

#[tokio::test]
async fn a_topic_without_a_presence_rule_publishes_no_presence_events() {
    let (hub, server) = serve(with_presence_events()).await;
    let before = hub.position();
    let mut watcher = subscribe(server.addr, "/events?topic=elsewhere").await;
    drop(subscribe(server.addr, "/events?topic=elsewhere&user=ada").await);
    // Anonymous connections have no presence events, on any topic.
    drop(subscribe(server.addr, "/events?topic=room").await);
    until(|| hub.stats().users == 0 && hub.stats().connections == 1).await;
    assert_eq!(hub.position(), before);
    hub.topic("elsewhere").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(watcher.next().await.data, "x");
}

#[tokio::test]
async fn a_page_receives_its_own_join_and_the_joins_since_a_snapshot() {
    let (hub, server) = serve(with_presence_events()).await;
    let _ada = enter(&server, "ada").await;
    let snapshot = hub.topic("room").presence();
    let _ben = enter(&server, "ben").await;
    let path = format!("/events?topic=room&user=eve&last_event_id={}", snapshot.position);
    let mut eve = get(server.addr, &path).await.events();
    assert_eq!(next_presence_event(&mut eve).await, joined("ben"));
    assert_eq!(next_presence_event(&mut eve).await, joined("eve"));
}

fn sequence(position: &str) -> u64 {
    position.rsplit('.').next().unwrap().parse().unwrap()
}

fn users(presence: &Presence) -> BTreeSet<String> {
    presence.members.iter().map(|member| member.user.to_string()).collect()
}

/// Applies the presence events up to a position to a snapshot.
fn apply(start: &Presence, changes: &[Sse], until: Position) -> BTreeSet<String> {
    let mut members = users(start);
    let until = sequence(&until.to_string());
    for event in changes.iter().take_while(|event| sequence(&event.id) <= until) {
        let user = parsed(event)["user"].as_str().unwrap().to_owned();
        let is_change = if event.event == "hub.joined" { members.insert(user) } else { members.remove(&user) };
        assert!(is_change, "the event changes nothing: {event:?}");
    }
    members
}

/// Opens and closes tabs of a user at random, in steps of about the grace period.
async fn open_and_close_tabs(server: &Server, user: usize, until: Instant) {
    let path = format!("/events?topic=room&user=u{user}");
    let mut tabs = Vec::new();
    while Instant::now() < until {
        if fastrand::usize(0..=tabs.len()) == 0 {
            tabs.push(subscribe(server.addr, &path).await);
        } else {
            tabs.remove(fastrand::usize(0..tabs.len()));
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..50))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_the_events_after_it_yield_every_later_snapshot() {
    let builder = with_presence_events()
        .presence_grace(Duration::from_millis(20))
        .topic_retention(Retention::replay().count(100_000));
    let (hub, server) = serve(builder).await;
    let until = Instant::now() + Duration::from_secs(3);
    let churn = join_all((0..8).map(|user| open_and_close_tabs(&server, user, until)));
    let take_snapshots = async {
        let mut snapshots = Vec::new();
        while Instant::now() < until {
            snapshots.push(hub.topic("room").presence());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        snapshots
    };
    // A page that opens after half a second with a snapshot from 100 ms before.
    let page = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = hub.topic("room").presence();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let events = resume(server.addr, "/events?topic=room", &start.position.to_string()).await;
        (start, events)
    };
    let (_, snapshots, (start, mut events)) = tokio::join!(churn, take_snapshots, page);
    kit::until(|| hub.topic("room").presence().members.is_empty()).await;
    hub.topic("room").publish(Event::unnamed("end")).await.unwrap();
    let mut changes = Vec::new();
    loop {
        let event = events.next().await;
        match event.event.as_str() {
            "hub.joined" | "hub.left" => changes.push(event),
            "hub.hello" | "hub.live" => {}
            "message" => break,
            other => panic!("{other}: {}", event.data),
        }
    }
    assert!(changes.len() > 20, "{} changes", changes.len());
    let later = snapshots
        .iter()
        .filter(|snapshot| sequence(&snapshot.position.to_string()) >= sequence(&start.position.to_string()));
    for snapshot in later {
        assert_eq!(apply(&start, &changes, snapshot.position), users(snapshot), "at {}", snapshot.position);
    }
    assert_eq!(apply(&start, &changes, hub.position()), BTreeSet::new());
}

// -------------------------------------------------------------------------------------------------
// Lifecycle

async fn next(lifecycle: &mut Lifecycle) -> LifecycleEvent {
    soon(lifecycle.next()).await.expect("the hub still exists")
}

fn names(connection: &ConnectionInfo) -> Vec<&str> {
    connection.topics.iter().map(Topic::as_str).collect()
}

#[tokio::test]
async fn lifecycle_reports_the_beginning_and_the_end_of_a_connection() {
    let (hub, server) = serve(with_grace()).await;
    let mut lifecycle = hub.lifecycle();
    let mut events = subscribe(server.addr, "/events?topic=t&user=ada&data=x").await;
    let LifecycleEvent::Connected(beginning) = next(&mut lifecycle).await else { panic!() };
    assert_eq!((beginning.user.as_ref().unwrap().as_str(), names(&beginning)), ("ada", vec!["t"]));
    assert_eq!((beginning.data_json(), beginning.delivered, beginning.resumed), (Some(r#""x""#), 0, false));
    for _ in 0..2 {
        hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
        events.next_own().await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    hub.connection(beginning.id).join("joined").await.unwrap();
    drop(events);
    let LifecycleEvent::Disconnected { connection, reason } = next(&mut lifecycle).await else { panic!() };
    assert_eq!((connection.id, reason, connection.data_json()), (beginning.id, EndReason::Client, Some(r#""x""#)));
    assert_eq!(connection.user, beginning.user);
    assert_eq!(names(&connection).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["t", "joined"]));
    assert_eq!(connection.delivered, 2);
    assert!(connection.open_for >= Duration::from_millis(50), "{:?}", connection.open_for);
}

#[tokio::test]
async fn lifecycle_reports_the_reason_of_an_end() {
    let (hub, server) = serve(with_grace()).await;
    let mut lifecycle = hub.lifecycle();
    let disconnected = subscribe(server.addr, "/events?user=ada").await;
    let drained = subscribe(server.addr, "/events?user=ben").await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    disconnected.rest().await;
    let (_, rest) = tokio::join!(hub.drain(Duration::ZERO), drained.rest());
    assert_eq!(parsed(rest.last().unwrap())["reason"], "draining");
    let mut ends = HashMap::new();
    while ends.len() < 2 {
        if let LifecycleEvent::Disconnected { connection, reason } = next(&mut lifecycle).await {
            assert_eq!(ends.insert(connection.user.as_ref().unwrap().to_string(), reason), None);
        }
    }
    assert_eq!(ends, HashMap::from([("ada".into(), EndReason::Disconnected), ("ben".into(), EndReason::Draining)]));
}

#[tokio::test]
async fn lifecycle_reports_a_resume_with_the_reason_of_its_gap() {
    let (hub, server) = serve(with_grace()).await;
    let mut lifecycle = hub.lifecycle();
    let here = hub.topic("t").publish(Event::unnamed("x")).await.unwrap().position;
    let cases = [
        (here.to_string(), None),
        ("nonsense".into(), Some(GapReason::Invalid)),
        ("1.0.0".into(), Some(GapReason::Epoch)),
        (format!("{here}999"), Some(GapReason::Ahead)),
    ];
    for (id, reason) in cases {
        let _events = resume(server.addr, "/events?topic=t", &id).await;
        loop {
            match next(&mut lifecycle).await {
                LifecycleEvent::Resumed { connection, gap } => {
                    assert!(connection.resumed);
                    assert_eq!(gap, reason, "{id}");
                    break;
                }
                LifecycleEvent::Disconnected { .. } => {}
                other => panic!("{id}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn lifecycle_reports_a_lagging_connection() {
    let small = Retention::replay().count(8).bytes(64 << 20);
    let (hub, server) = serve(with_grace().topic_retention(small)).await;
    let mut lifecycle = hub.lifecycle();
    let mut events = subscribe(server.addr, "/events?topic=t&user=slow").await;
    let large = "x".repeat(200_000);
    // Far more than the buffers of the sockets hold, with pauses in which the server can write.
    for _ in 0..100 {
        hub.topic("t").publish(Event::unnamed(large.clone())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while events.next().await.event != "hub.gap" {}
    let LifecycleEvent::Connected(_) = next(&mut lifecycle).await else { panic!() };
    let LifecycleEvent::Lagged { connection, topics } = next(&mut lifecycle).await else { panic!() };
    assert_eq!(connection.user.as_ref().unwrap().as_str(), "slow");
    assert_eq!(topics.iter().map(Topic::as_str).collect::<Vec<_>>(), ["t"]);
}

#[tokio::test]
async fn lifecycle_reports_missed_events_to_a_slow_consumer_only() {
    const KEPT: usize = 1_024;
    let hub = with_grace().build().unwrap();
    let (mut slow, mut quick) = (hub.lifecycle(), hub.lifecycle());
    let mut streams = Vec::new();
    for _ in 0..KEPT + 6 {
        // The hub does not wait for the slow consumer.
        streams.push(hub.subscribe(Subscription::anonymous(), None).unwrap());
        assert!(matches!(next(&mut quick).await, LifecycleEvent::Connected(_)));
    }
    assert!(matches!(next(&mut slow).await, LifecycleEvent::Missed(6)));
    for _ in 0..KEPT {
        assert!(matches!(next(&mut slow).await, LifecycleEvent::Connected(_)));
    }
    drop(streams.pop());
    for lifecycle in [&mut slow, &mut quick] {
        assert!(matches!(next(lifecycle).await, LifecycleEvent::Disconnected { .. }));
    }
}

#[tokio::test]
async fn lifecycle_ends_with_the_hub() {
    let (hub, server) = serve(with_grace()).await;
    let lifecycle = hub.lifecycle();
    drop(subscribe(server.addr, "/events?user=ada").await);
    connections(&hub, 0).await;
    server.stop().await;
    drop(hub);
    let events: Vec<_> = soon(lifecycle.collect()).await;
    assert!(matches!(events[..], [LifecycleEvent::Connected(_), LifecycleEvent::Disconnected { .. }]), "{events:?}");
}

// -------------------------------------------------------------------------------------------------
// Load

/// Opens a stream and ends it: the client disconnects before or after it has read, or the hub
/// disconnects it.
async fn visit(hub: &Hub, server: &Server, number: usize) {
    let path = format!("/events?topic=room&topic=t{}&user=u{}", number % 7, number % 20);
    match number % 4 {
        0 => drop(get(server.addr, &path).await),
        1 => drop(subscribe(server.addr, &path).await),
        2 => drop(resume(server.addr, &path, "nonsense").await),
        _ => {
            let mut events = get(server.addr, &path).await.events();
            let connection = connection(&mut events).await;
            hub.connection(connection).disconnect(Disconnect::now()).await.unwrap();
            events.rest().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_begin_and_end_once_and_leave_no_state() {
    const VISITS: usize = 1000;
    const CONCURRENT: usize = 40;
    let builder = with_presence_events()
        .presence_grace(Duration::from_millis(50))
        .topic_retention(Retention::replay().age(Duration::from_millis(100)))
        .heartbeat(Duration::from_millis(10))
        .write_deadline(Duration::from_secs(4));
    let (hub, server) = serve(builder).await;
    let start = hub.stats();
    let mut lifecycle = hub.lifecycle();
    let visits = futures::stream::iter(0..VISITS);
    let visits = visits.for_each_concurrent(CONCURRENT, |number| visit(&hub, &server, number));
    let (mut open, mut ended) = (HashSet::new(), HashSet::new());
    let consumer = async {
        while ended.len() < VISITS {
            match next(&mut lifecycle).await {
                LifecycleEvent::Connected(connection) | LifecycleEvent::Resumed { connection, .. } => {
                    assert!(open.insert(connection.id), "the connection began twice");
                }
                LifecycleEvent::Disconnected { connection, .. } => {
                    assert!(open.remove(&connection.id), "the connection ended before it began");
                    assert!(ended.insert(connection.id), "the connection ended twice");
                    assert!(connection.user.is_some() && names(&connection).contains(&"room"), "{connection:?}");
                }
                // On a busy machine a stream may wait longer than the retention of this test.
                LifecycleEvent::Lagged { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::join!(visits, consumer);
    assert!(open.is_empty());
    let is_as_before = || {
        let now = hub.stats();
        (now.connections, now.users, now.channels, now.retained_bytes)
            == (start.connections, start.users, start.channels, start.retained_bytes)
    };
    until(is_as_before).await;
    assert!(hub.topic("room").presence().members.is_empty() && hub.connections().is_empty());
    assert_eq!(hub.stats().connected, VISITS as u64);
}

#[tokio::test]
async fn a_user_without_connections_is_offline_after_a_join() {
    let hub = Hub::builder().build().unwrap();
    hub.user("ghost").join("t").await.unwrap();
    assert!(!hub.user("ghost").is_online());
}

/// Connections open and end while `join` and `leave` run for their user. Every join has to end.
#[test]
fn joins_during_an_opening_leave_no_members_behind() {
    let grace = Duration::from_millis(10);
    let hub = Hub::builder().presence_for(TopicFilter::any()).presence_grace(grace).build().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let is_running = || !stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while is_running() {
                    drop(hub.subscribe(Subscription::for_user("ada").topic("a"), None).unwrap());
                }
            });
        }
        scope.spawn(|| {
            let round = |_| {
                futures::executor::block_on(async {
                    hub.user("ada").join("t").await?;
                    hub.user("ada").leave("t").await.map(drop)
                })
            };
            let outcome = (0..40_000).try_for_each(round);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            outcome.unwrap();
        });
    });
    assert_eq!(hub.connections().len(), 0);
    let begun = Instant::now();
    for topic in ["a", "t"] {
        assert_eq!(hub.topic(topic).count(), 0);
        while !hub.topic(topic).presence().members.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{topic} still has a member");
            std::thread::yield_now();
        }
    }
}
