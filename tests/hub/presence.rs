//! Who is there, who comes and goes, and what becomes of connections.

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

use crate::kit::access::asked_for;
use crate::kit::{self, Events, Server, Sse, get, parsed, resume, soon, subscribe, until};

/// How long one who left is taken for present.
const GRACE: Duration = Duration::from_millis(300);
/// Time is counted in whole milliseconds.
const TICK: Duration = Duration::from_millis(1);

/// Everybody is who the query says, with data if it says so, and reads the topics that it names.
async fn serve(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let access = |request: StreamRequest| {
        let data = request.query_values("data");
        ready(Ok(data.fold(asked_for(&request), |subscription, data| subscription.data(&*data))))
    };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    (hub, server)
}

fn patient() -> HubBuilder {
    Hub::builder().presence_grace(GRACE)
}

/// The topic `room` tells who comes and goes.
fn telling() -> HubBuilder {
    patient().presence_for(TopicFilter::exact("room"))
}

/// A page of a user in the room.
async fn enter(server: &Server, user: &str) -> Events {
    subscribe(server.addr, &format!("/events?topic=room&user={user}")).await
}

/// The next that somebody came or went: the name of the event, the user.
async fn news(events: &mut Events) -> (String, String) {
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

/// Each member and how many connections.
fn members(presence: &Presence) -> BTreeMap<&str, usize> {
    presence.members.iter().map(|member| (member.user.as_str(), member.connections)).collect()
}

/// Which connection a page has.
async fn connection(events: &mut Events) -> ConnectionId {
    let hello = events.next().await;
    parsed(&hello)["connection"].as_str().unwrap().parse().unwrap()
}

/// Until the hub knows of so many.
async fn connections(hub: &Hub, count: usize) {
    until(|| hub.stats().connections == count).await;
}

// ---------------------------------------------------------------------------------------------------------------------
// Who is there

#[tokio::test]
async fn the_tabs_of_a_user_are_one_member_with_the_data_of_the_newest() {
    for builder in [patient(), telling()] {
        let (hub, server) = serve(builder).await;
        let _old = subscribe(server.addr, "/events?topic=room&user=ada&data=old").await;
        let _ben = subscribe(server.addr, "/events?topic=room&user=ben").await;
        let _new = subscribe(server.addr, "/events?topic=room&user=ada&data=new").await;
        let _elsewhere = subscribe(server.addr, "/events?topic=elsewhere&user=ada&data=elsewhere").await;
        let _nobody = join_all((0..2).map(|_| subscribe(server.addr, "/events?topic=room"))).await;
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
async fn a_union_counts_a_connection_once_and_leaves_out_what_is_excepted() {
    for builder in [patient(), patient().presence_for(TopicFilter::any())] {
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
async fn nobody_is_there_of_a_name_that_is_none() {
    let (hub, server) = serve(telling()).await;
    let _ada = enter(&server, "ada").await;
    for target in [hub.topic(""), hub.user("\n"), hub.connection("x"), hub.topic("room").and(hub.user(""))] {
        let presence = target.presence();
        assert!(presence.members.is_empty() && presence.anonymous == 0);
        assert_eq!((target.count(), target.has_subscribers(), target.is_online()), (0, false, false));
    }
    let nobody = hub.topic("no-such-room");
    assert_eq!((nobody.count(), nobody.has_subscribers(), nobody.is_online()), (0, false, false));
}

#[tokio::test]
async fn a_user_is_online_until_the_grace_after_the_last_tab_is_over() {
    let (hub, server) = serve(patient()).await;
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
    assert!(since.elapsed() < 10 * GRACE, "{:?}", since.elapsed());
}

#[tokio::test]
async fn the_open_connections_are_listed_as_they_are() {
    let (hub, server) = serve(patient()).await;
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

// ---------------------------------------------------------------------------------------------------------------------
// Who comes and goes

#[tokio::test]
async fn who_comes_is_told_at_once_with_its_data_and_who_goes_after_the_grace() {
    let (hub, server) = serve(telling()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let ada = subscribe(server.addr, "/events?topic=room&user=ada&data=hi").await;
    let event = watcher.next().await;
    assert_eq!(event.event, "hub.joined");
    assert_eq!(parsed(&event), json!({ "topic": "room", "user": "ada", "data": "hi" }));
    // An event of the topic like any other: it has a place in the log.
    assert_eq!(event.id, hub.position().to_string());
    let since = Instant::now();
    drop(ada);
    let event = watcher.next().await;
    assert_eq!((event.event.as_str(), parsed(&event)), ("hub.left", json!({ "topic": "room", "user": "ada" })));
    let after = since.elapsed();
    assert!(after >= GRACE - TICK && after < 10 * GRACE, "{after:?}");
}

#[tokio::test]
async fn a_reload_within_the_grace_is_no_leave_and_no_join() {
    let (hub, server) = serve(telling()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let ada = enter(&server, "ada").await;
    drop(ada);
    connections(&hub, 1).await;
    assert_eq!(members(&hub.topic("room").presence()), BTreeMap::from([("ada", 0)]));
    let _ada = enter(&server, "ada").await;
    assert_eq!(members(&hub.topic("room").presence()), BTreeMap::from([("ada", 1)]));
    let ben = enter(&server, "ben").await;
    drop(ben);
    // Had ada left, it would have been told before.
    assert_eq!(news(&mut watcher).await, joined("ada"));
    assert_eq!(news(&mut watcher).await, joined("ben"));
    assert_eq!(news(&mut watcher).await, left("ben"));
}

#[tokio::test]
async fn several_tabs_are_one_member_who_leaves_with_the_last() {
    let (hub, server) = serve(telling()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let first = enter(&server, "ada").await;
    let second = enter(&server, "ada").await;
    drop(first);
    connections(&hub, 2).await;
    let ben = enter(&server, "ben").await;
    drop(ben);
    for expected in [joined("ada"), joined("ben"), left("ben")] {
        assert_eq!(news(&mut watcher).await, expected);
    }
    drop(second);
    assert_eq!(news(&mut watcher).await, left("ada"));
}

#[tokio::test]
async fn whoever_is_made_to_join_is_told_of_and_so_is_whoever_is_made_to_leave_or_disconnected() {
    let (hub, server) = serve(telling()).await;
    let mut watcher = subscribe(server.addr, "/events?topic=room").await;
    let _ada = subscribe(server.addr, "/events?topic=elsewhere&user=ada").await;
    hub.user("ada").join("room").await.unwrap();
    assert_eq!(news(&mut watcher).await, joined("ada"));
    hub.user("ada").leave("room").await.unwrap();
    assert_eq!(news(&mut watcher).await, left("ada"));
    assert_eq!(hub.user("ada").count(), 1, "it is still connected");
    let ben = enter(&server, "ben").await;
    assert_eq!(news(&mut watcher).await, joined("ben"));
    let since = Instant::now();
    hub.user("ben").disconnect(Disconnect::block_for(Duration::from_secs(60))).await.unwrap();
    assert_eq!(parsed(ben.rest().await.last().unwrap())["reason"], "disconnected");
    assert_eq!(news(&mut watcher).await, left("ben"));
    assert!(since.elapsed() >= GRACE - TICK && since.elapsed() < 10 * GRACE, "{:?}", since.elapsed());
    assert!(hub.topic("room").presence().members.is_empty());
}

#[tokio::test]
async fn a_topic_without_the_rule_tells_nothing() {
    let (hub, server) = serve(telling()).await;
    let before = hub.position();
    let mut watcher = subscribe(server.addr, "/events?topic=elsewhere").await;
    drop(subscribe(server.addr, "/events?topic=elsewhere&user=ada").await);
    // Nor do pages of nobody in particular, anywhere.
    drop(subscribe(server.addr, "/events?topic=room").await);
    until(|| hub.stats().users == 0 && hub.stats().connections == 1).await;
    assert_eq!(hub.position(), before);
    hub.topic("elsewhere").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(watcher.next().await.data, "x");
}

#[tokio::test]
async fn a_page_is_told_of_itself_like_of_others_and_can_go_on_from_a_snapshot() {
    let (hub, server) = serve(telling()).await;
    let _ada = enter(&server, "ada").await;
    let snapshot = hub.topic("room").presence();
    let _ben = enter(&server, "ben").await;
    let path = format!("/events?topic=room&user=eve&last_event_id={}", snapshot.position);
    let mut eve = get(server.addr, &path).await.events();
    assert_eq!(news(&mut eve).await, joined("ben"));
    assert_eq!(news(&mut eve).await, joined("eve"));
}

fn sequence(position: &str) -> u64 {
    position.rsplit('.').next().unwrap().parse().unwrap()
}

fn users(presence: &Presence) -> BTreeSet<String> {
    presence.members.iter().map(|member| member.user.to_string()).collect()
}

/// Who is there after what was told up to this position.
fn fold(start: &Presence, news: &[Sse], until: Position) -> BTreeSet<String> {
    let mut there = users(start);
    let until = sequence(&until.to_string());
    for event in news.iter().take_while(|event| sequence(&event.id) <= until) {
        let user = parsed(event)["user"].as_str().unwrap().to_owned();
        let is_change = if event.event == "hub.joined" { there.insert(user) } else { there.remove(&user) };
        assert!(is_change, "told twice: {event:?}");
    }
    there
}

/// Comes and goes, as a user of many tabs does, in steps of about the grace.
async fn restless(server: &Server, user: usize, until: Instant) {
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
async fn a_snapshot_and_the_events_after_it_make_every_later_snapshot() {
    let builder =
        telling().presence_grace(Duration::from_millis(20)).topic_retention(Retention::replay().count(100_000));
    let (hub, server) = serve(builder).await;
    let until = Instant::now() + Duration::from_secs(3);
    let churn = join_all((0..8).map(|user| restless(&server, user, until)));
    let look = async {
        let mut snapshots = Vec::new();
        while Instant::now() < until {
            snapshots.push(hub.topic("room").presence());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        snapshots
    };
    // A page that comes in the middle of it with a snapshot from before.
    let page = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = hub.topic("room").presence();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let events = resume(server.addr, "/events?topic=room", &start.position.to_string()).await;
        (start, events)
    };
    let (_, snapshots, (start, mut events)) = tokio::join!(churn, look, page);
    kit::until(|| hub.topic("room").presence().members.is_empty()).await;
    hub.topic("room").publish(Event::unnamed("end")).await.unwrap();
    let mut news = Vec::new();
    loop {
        let event = events.next().await;
        match event.event.as_str() {
            "hub.joined" | "hub.left" => news.push(event),
            "hub.hello" | "hub.live" => {}
            "message" => break,
            other => panic!("{other}: {}", event.data),
        }
    }
    assert!(news.len() > 20, "{} changes", news.len());
    let later = snapshots
        .iter()
        .filter(|snapshot| sequence(&snapshot.position.to_string()) >= sequence(&start.position.to_string()));
    for snapshot in later {
        assert_eq!(fold(&start, &news, snapshot.position), users(snapshot), "at {}", snapshot.position);
    }
    assert_eq!(fold(&start, &news, hub.position()), BTreeSet::new());
}

// ---------------------------------------------------------------------------------------------------------------------
// What becomes of connections

async fn next(lifecycle: &mut Lifecycle) -> LifecycleEvent {
    soon(lifecycle.next()).await.expect("the hub is there")
}

fn names(connection: &ConnectionInfo) -> Vec<&str> {
    connection.topics.iter().map(Topic::as_str).collect()
}

#[tokio::test]
async fn the_life_of_a_connection_is_told_from_beginning_to_end() {
    let (hub, server) = serve(patient()).await;
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
async fn the_reason_of_an_end_is_told() {
    let (hub, server) = serve(patient()).await;
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
async fn who_comes_back_is_told_of_with_the_reason_of_its_gap() {
    let (hub, server) = serve(patient()).await;
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
async fn who_lags_is_told_of() {
    let small = Retention::replay().count(8).bytes(64 << 20);
    let (hub, server) = serve(patient().topic_retention(small)).await;
    let mut lifecycle = hub.lifecycle();
    let mut events = subscribe(server.addr, "/events?topic=t&user=slow").await;
    let large = "x".repeat(200_000);
    // Far more than the buffers between us and a client that does not read, and with time for it to be written.
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
async fn a_slow_listener_hears_how_much_it_missed_and_others_hear_everything() {
    const KEPT: usize = 1_024;
    let hub = patient().build().unwrap();
    let (mut slow, mut quick) = (hub.lifecycle(), hub.lifecycle());
    let mut streams = Vec::new();
    for _ in 0..KEPT + 6 {
        // The hub waits for no consumer.
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
async fn the_story_ends_with_the_hub() {
    let (hub, server) = serve(patient()).await;
    let lifecycle = hub.lifecycle();
    drop(subscribe(server.addr, "/events?user=ada").await);
    connections(&hub, 0).await;
    server.stop().await;
    drop(hub);
    let story: Vec<_> = soon(lifecycle.collect()).await;
    assert!(matches!(story[..], [LifecycleEvent::Connected(_), LifecycleEvent::Disconnected { .. }]), "{story:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Many

/// One that comes and goes: the client leaves before it has read anything, or after, or is thrown out.
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
async fn after_a_thousand_visits_each_has_begun_and_ended_once_and_nothing_is_left() {
    const VISITS: usize = 1000;
    const AT_ONCE: usize = 40;
    let builder = telling()
        .presence_grace(Duration::from_millis(50))
        .topic_retention(Retention::replay().age(Duration::from_millis(100)))
        .heartbeat(Duration::from_millis(10))
        .write_deadline(Duration::from_secs(4));
    let (hub, server) = serve(builder).await;
    let start = hub.stats();
    let mut lifecycle = hub.lifecycle();
    let visits = futures::stream::iter(0..VISITS);
    let visits = visits.for_each_concurrent(AT_ONCE, |number| visit(&hub, &server, number));
    let (mut open, mut ended) = (HashSet::new(), HashSet::new());
    let consumer = async {
        while ended.len() < VISITS {
            match next(&mut lifecycle).await {
                LifecycleEvent::Connected(connection) | LifecycleEvent::Resumed { connection, .. } => {
                    assert!(open.insert(connection.id), "it began twice");
                }
                LifecycleEvent::Disconnected { connection, .. } => {
                    assert!(open.remove(&connection.id), "it ended before it began");
                    assert!(ended.insert(connection.id), "it ended twice");
                    assert!(connection.user.is_some() && names(&connection).contains(&"room"), "{connection:?}");
                }
                // On a busy machine a stream may wait for longer than events are retained here.
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
async fn a_user_who_was_only_made_to_join_was_never_there() {
    let hub = Hub::builder().build().unwrap();
    hub.user("ghost").join("t").await.unwrap();
    assert!(!hub.user("ghost").is_online());
}

/// Connections that open and end while their user is made to join and to leave: every joining is left once.
#[test]
fn joins_that_meet_an_opening_leave_nobody_behind() {
    let grace = Duration::from_millis(10);
    let hub = Hub::builder().presence_for(TopicFilter::any()).presence_grace(grace).build().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let going = || !stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while going() {
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
            assert!(begun.elapsed() < Duration::from_secs(20), "somebody was left behind in {topic}");
            std::thread::yield_now();
        }
    }
}
