//! Scopes across instances: nothing crosses from one scope to another on the way over a shared log.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Router;
use http::{Request, StatusCode};
use tower_sse::backplane::Backplane;
use tower_sse::test_kit::FaultyLog;
use tower_sse::{
    Disconnect, EndReason, Event, Hub, Refusal, Retention, RunState, StreamRequest, Subscriber, SubscriberItem,
    Subscription, Target, TopicFilter, UserId,
};

use crate::kit::broker::for_each_broker;
use crate::kit::{Server, send, soon, until};

const MINUTE: Duration = Duration::from_secs(60);
/// Scopes and names that look like another pair of scope and name in one text. `None` is the root
/// scope.
const SCOPES: [Option<&str>; 5] = [None, Some("a"), Some("b"), Some("a/b"), Some("[\"a\"]")];
const NAMES: [&str; 4] = ["a", "b", "b/a", "a/b"];

async fn start(log: impl Backplane) -> Hub {
    let hub = Hub::builder()
        .backplane(log)
        .retention_for(TopicFilter::prefix("latest/"), Retention::latest_per_key())
        .presence_for(TopicFilter::exact("room"))
        .probe_interval(Duration::from_millis(100))
        .build()
        .unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn topic<'a>(hub: &'a Hub, scope: Option<&str>, name: &str, with: &mut dyn FnMut(Target<'_>)) {
    match scope {
        None => with(hub.topic(name)),
        Some(scope) => with(hub.scope(scope).topic(name)),
    }
}

fn in_scope(subscription: Subscription, scope: Option<&str>) -> Subscription {
    scope.into_iter().fold(subscription, Subscription::in_scope)
}

/// Reads the events of a stream up to one with the data `end`.
async fn read_to(stream: &mut Subscriber, end: &str) -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    loop {
        match soon(stream.next()).await.unwrap() {
            SubscriberItem::Event(event) if event.data == end => return events,
            SubscriberItem::Event(event) => assert!(events.insert(event.data)),
            // On a busy machine, an instance may be stale for a moment.
            SubscriberItem::Live(_) | SubscriberItem::Stale => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Publishes an event of its own to each address of each scope, and to the connection of each of
/// the streams.
async fn publish_to_each(hub: &Hub, streams: &[(Option<&str>, &str, Subscriber)]) {
    for scope in SCOPES {
        let handle = scope.map(|scope| hub.scope(scope));
        let mut events = Vec::new();
        for name in NAMES {
            let [to_topic, to_user] =
                ["topic", "user"].map(|kind| Event::unnamed(format!("{kind} {name} in {scope:?}")));
            match &handle {
                None => events.extend([(hub.topic(name), to_topic), (hub.user(name), to_user)]),
                Some(scope) => events.extend([(scope.topic(name), to_topic), (scope.user(name), to_user)]),
            }
        }
        let to_all = Event::unnamed(format!("everyone in {scope:?}"));
        events.push((handle.as_ref().map_or_else(|| hub.everyone(), |scope| scope.everyone()), to_all));
        // Only the scope of a connection reaches the connection.
        for (of, name, stream) in streams {
            let id = stream.connection();
            let event = Event::unnamed(format!("connection {name} of {of:?} in {scope:?}"));
            events.push((handle.as_ref().map_or_else(|| hub.connection(id), |scope| scope.connection(id)), event));
        }
        let published = soon(hub.publish_many(events)).await;
        assert!(published.iter().all(Result::is_ok), "{published:?}");
    }
    soon(hub.all_scopes().everyone().publish(Event::unnamed("end"))).await.unwrap();
}

async fn nothing_crosses(logs: [impl Backplane; 2], third: impl Backplane) {
    let [here, there] = logs.map(start);
    let (here, there) = (here.await, there.await);
    let mut streams = Vec::new();
    for (scope, name) in SCOPES.into_iter().flat_map(|scope| NAMES.map(|name| (scope, name))) {
        let subscription = in_scope(Subscription::for_user(name).topic(name).topic("latest/x"), scope);
        streams.push((scope, name, here.subscribe(subscription, None).unwrap()));
    }
    until(|| there.all_scopes().everyone().count() == streams.len()).await;

    publish_to_each(&there, &streams).await;
    for (scope, name, stream) in &mut streams {
        let expected = BTreeSet::from([
            format!("topic {name} in {scope:?}"),
            format!("user {name} in {scope:?}"),
            format!("everyone in {scope:?}"),
            format!("connection {name} of {scope:?} in {scope:?}"),
        ]);
        assert_eq!(read_to(stream, "end").await, expected, "{scope:?} {name}");
    }
    for scope in SCOPES {
        topic(&there, scope, "a", &mut |target| {
            let presence = target.presence();
            assert_eq!((target.count(), presence.members.len()), (1, 1), "{scope:?}");
            assert_eq!(presence.members[0].user.scope(), scope);
        });
        let everyone = scope.map_or_else(|| there.everyone().count(), |scope| there.scope(scope).everyone().count());
        assert_eq!(everyone, NAMES.len(), "{scope:?}");
    }

    // The current value of a key in one scope is no value of another, also for a new instance.
    for scope in [Some("a"), None, Some("b")] {
        let value = Event::unnamed(format!("value in {scope:?}")).key("k");
        match scope {
            None => there.topic("latest/x").publish(value).await.unwrap(),
            Some(scope) => there.scope(scope).topic("latest/x").publish(value).await.unwrap(),
        };
    }
    let third = start(third).await;
    for scope in SCOPES {
        let mut reader = third.subscribe(in_scope(Subscription::anonymous().topic("latest/x"), scope), None).unwrap();
        let mut values = Vec::new();
        while let SubscriberItem::Event(event) = soon(reader.next()).await.unwrap() {
            values.push(event.data);
        }
        let has_value = [None, Some("a"), Some("b")].contains(&scope);
        assert_eq!(values, vec![format!("value in {scope:?}"); usize::from(has_value)], "{scope:?}");
    }

    // An idempotency key in one scope does not count in another.
    let once = |scope: Option<&str>| Event::unnamed(format!("once in {scope:?}")).idempotency_key("job 7");
    let mut positions = BTreeSet::new();
    for scope in SCOPES.into_iter().chain(SCOPES) {
        let published = match scope {
            None => there.topic("once").publish(once(scope)).await.unwrap(),
            Some(scope) => there.scope(scope).topic("once").publish(once(Some(scope))).await.unwrap(),
        };
        positions.insert(published.position.to_string());
    }
    assert_eq!(positions.len(), SCOPES.len());

    // Commands.
    soon(there.scope("a").user("a").join("joined").into_future()).await.unwrap();
    until(|| here.scope("a").topic("joined").count() == 1).await;
    for scope in SCOPES {
        topic(&here, scope, "joined", &mut |target| assert_eq!(target.count(), usize::from(scope == Some("a"))));
    }
    soon(there.scope("a").user("a").disconnect(Disconnect::block_for(MINUTE))).await.unwrap();
    until(|| here.scope("a").user("a").count() == 0).await;
    for (scope, name, stream) in &mut streams {
        let is_target = (*scope, *name) == (Some("a"), "a");
        if is_target {
            while let Some(item) = soon(stream.next()).await {
                assert!(!matches!(item, SubscriberItem::End(reason) if reason != EndReason::Disconnected));
            }
        }
        for hub in [&here, &there] {
            let again = hub.subscribe(in_scope(Subscription::for_user(*name), *scope), None);
            assert_eq!(again.is_err_and(|error| error.is_banned()), is_target, "{scope:?} {name}");
        }
    }

    runs_do_not_cross(&here, &there).await;
    tickets_and_changes_do_not_cross(&here, &there).await;
}

async fn runs_do_not_cross(here: &Hub, there: &Hub) {
    let writer = soon(there.scope("a").run("b/r").begin().into_future()).await.unwrap();
    assert_eq!(soon(here.scope("a").run("b/r").state()).await.unwrap(), RunState::Active);
    for other in [here.run("b/r"), here.scope("b").run("b/r"), here.scope("a/b").run("r"), here.run("a/b/r")] {
        assert_eq!(soon(other.state()).await.unwrap(), RunState::None);
        assert!(!soon(other.stop()).await.unwrap());
    }
    let own = soon(here.scope("b").run("b/r").begin().into_future()).await.unwrap();
    writer.publish(Event::unnamed("Hel")).await.unwrap();
    let reader = soon(here.scope("a").run("b/r").reader()).await.unwrap();
    let mut page = here.subscribe(Subscription::run(reader), None).unwrap();
    let SubscriberItem::Event(event) = soon(page.next()).await.unwrap() else { panic!("not an event") };
    assert_eq!(event.data, "Hel");
    assert!(soon(here.scope("a").run("b/r").stop()).await.unwrap());
    soon(writer.stopped()).await;
    soon(own.finish()).await.unwrap();
    soon(writer.finish()).await.unwrap();
}

async fn tickets_and_changes_do_not_cross(here: &Hub, there: &Hub) {
    let subscription = Subscription::for_user("t").topic("ticket").counted_as("key");
    let ticket = soon(there.scope("b").ticket(subscription, MINUTE)).await.unwrap();
    let request = Request::get(format!("/events?ticket={}", ticket.as_str())).body(()).unwrap();
    let redeemed = soon(here.redeem(&StreamRequest::from_request(&request))).await.unwrap();
    assert_eq!((redeemed.scope(), redeemed.user().and_then(UserId::scope)), (Some("b"), Some("b")));
    assert_eq!(redeemed.topics()[0].scope(), Some("b"));

    // A page changes its topics at an instance that does not have its connection.
    let access = |request: StreamRequest| async move {
        let granted = Subscription::anonymous().may_join(TopicFilter::any());
        Ok::<_, Refusal>(request.query_values("tenant").fold(granted, Subscription::in_scope))
    };
    let server =
        Server::start(there, Router::new().fallback_service(there.endpoint(access).allow_topic_changes())).await;
    let page = here.scope("b").subscribe(Subscription::anonymous(), None).unwrap();
    let id = page.connection();
    for (tenant, status) in
        [("&tenant=a", StatusCode::NOT_FOUND), ("", StatusCode::NOT_FOUND), ("&tenant=b", StatusCode::OK)]
    {
        let path = format!("/events/{id}/topics?join=page{tenant}");
        assert_eq!(send(server.addr, Request::post(path).body("").unwrap()).await.status, status, "{tenant}");
    }
    until(|| here.scope("b").topic("page").count() == 1).await;
    assert_eq!((here.topic("page").count(), here.scope("a").topic("page").count()), (0, 0));
}

pub async fn nothing_crosses_between_instances(log: impl Backplane + Clone) {
    nothing_crosses([log.clone(), log.clone()], log).await;
}

for_each_broker!(nothing_crosses_between_instances(log): memory, redis, nats, postgres);

#[tokio::test]
async fn nothing_crosses_after_a_fault_of_the_log() {
    let log = FaultyLog::new();
    let (here, there) = (start(log.connect()).await, start(log.connect()).await);
    let mut streams = Vec::new();
    for (scope, name) in SCOPES.into_iter().flat_map(|scope| NAMES.map(|name| (scope, name))) {
        let subscription = in_scope(Subscription::for_user(name).topic(name), scope);
        streams.push((scope, name, here.subscribe(subscription, None).unwrap()));
    }
    until(|| there.all_scopes().everyone().count() == streams.len()).await;
    // A record of an unknown version reports a gap to the connections of its scope only.
    let unknown = br#"{"v":3,"to":{"scoped":{"scope":"a","topics":["a"]}},"data":"x"}"#.to_vec();
    let record = tower_sse::backplane::NewRecord::new(unknown.into());
    let appended = soon(log.connect().append(vec![record], None)).await;
    assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    publish_to_each(&there, &streams).await;
    for (scope, name, stream) in &mut streams {
        if (*scope, *name) == (Some("a"), "a") {
            let gap = loop {
                match soon(stream.next()).await.unwrap() {
                    SubscriberItem::Gap { topics, .. } => break topics,
                    item => assert!(matches!(item, SubscriberItem::Live(_)), "{item:?}"),
                }
            };
            assert_eq!((gap.len(), gap[0].scope()), (1, Some("a")));
        }
        assert_eq!(read_to(stream, "end").await.len(), 4, "{scope:?} {name}");
    }
}
