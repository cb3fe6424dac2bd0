//! A `Publisher`: it validates events like an instance, and writes to a log that instances read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tower_sse::backplane::{Backplane, LogLimits, Memory, NewRecord, Redis, Value};
use tower_sse::{Event, Hub, Publisher};

use crate::instances::{Instance, builder};
use crate::kit::broker::{Broker, REQUEST_LIMIT, for_each_broker};
use crate::kit::{get, soon, subscribe};
use crate::redis_server::{FORGETFUL, RedisServer};

fn worker(log: impl Backplane) -> Publisher {
    builder().backplane(log).publisher().unwrap()
}

async fn instance(log: &(impl Backplane + Clone)) -> Instance {
    Instance::start(log.clone()).await.ready().await
}

async fn last(log: &impl Backplane) -> u64 {
    log.state(None).await.unwrap().last
}

async fn events_of_a_worker_arrive_at_an_instance(log: impl Backplane + Clone) {
    let (one, worker) = (instance(&log).await, worker(log.clone()));
    let mut t = subscribe(one.server.addr, "/events?topic=t").await;
    let mut u = subscribe(one.server.addr, "/events?topic=u").await;
    let position = worker.topic("t").publish(Event::new("named", "line\nline")).await.unwrap().position;
    let event = t.next_own().await;
    assert_eq!((event.event.as_str(), event.data.as_str(), event.id), ("named", "line\nline", position.to_string()));

    worker.topic("t").and(worker.topic("u")).publish(Event::unnamed("both")).await.unwrap();
    worker.everyone().publish(Event::unnamed("all")).await.unwrap();
    for stream in [&mut t, &mut u] {
        assert_eq!([stream.next_own().await.data, stream.next_own().await.data], ["both", "all"]);
    }
    // A batch arrives in order, and the ids are the returned positions.
    let batch = (0..1_000).map(|n| (worker.topic("t"), Event::unnamed(n.to_string())));
    for (n, published) in soon(worker.publish_many(batch)).await.into_iter().enumerate() {
        let event = t.next_own().await;
        assert_eq!((event.data, event.id), (n.to_string(), published.unwrap().position.to_string()));
    }
}

for_each_broker!(events_of_a_worker_arrive_at_an_instance(log): memory, redis, nats, postgres);

async fn values_of_a_worker_are_current_at_an_instance_that_starts_later(log: impl Backplane + Clone) {
    let worker = worker(log.clone());
    for (data, key) in [("1", "k"), ("2", "k"), ("gone", "other")] {
        worker.topic("latest/a").publish(Event::new("v", data).key(key)).await.unwrap();
    }
    worker.topic("latest/a").publish(Event::removal("other")).await.unwrap();
    let late = instance(&log).await;
    let mut page = get(late.server.addr, "/events?topic=latest/a").await.events();
    let values: Vec<_> = page.caught_up().await.into_iter().filter(|event| event.event == "v").collect();
    assert_eq!(values.iter().map(|event| event.data.as_str()).collect::<Vec<_>>(), ["2"]);
}

for_each_broker!(values_of_a_worker_are_current_at_an_instance_that_starts_later(log): memory, redis, nats, postgres);

async fn a_publisher_rejects_invalid_events_and_appends_none(log: impl Backplane + Clone) {
    let (worker, other) = (worker(log.clone()), worker(log.clone()));
    let valid = || Event::unnamed("x");
    let many = (0..200).fold(worker.topic("t"), |all, n| all.and(worker.topic(n)));
    for (recipients, event, message) in [
        (worker.topic(""), valid(), "topic is empty"),
        (worker.user("a\n"), valid(), "user contains the control character U+000A"),
        (worker.connection("x"), valid(), "connection is malformed"),
        (worker.topic("t").except("x"), valid(), "connection is malformed"),
        (worker.topic("t").and(worker.user("")), valid(), "user is empty"),
        (worker.topic("t").and(other.topic("t")), valid(), "target belongs to another hub"),
        (many, valid(), "too many targets"),
        (worker.topic("t"), valid().name("hub.live"), "event name is reserved"),
        (worker.topic("t"), valid().key(""), "key is empty"),
        (worker.topic("t"), valid().idempotency_key("k".repeat(256)), "idempotency key is longer than 255 bytes"),
        (worker.topic("t"), Event::unnamed("x".repeat(1 << 20)), "payload of"),
    ] {
        let checked = recipients.check(&event).unwrap_err();
        let prepared = recipients.clone().prepare(event.clone()).unwrap_err();
        let error = recipients.publish(event).await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().starts_with(message), "{error}");
        assert_eq!([checked.to_string(), prepared.to_string()], [error.to_string(), error.to_string()]);
    }
    let foreign = worker.publish_many([(other.topic("t"), valid())]).await;
    assert!(foreign[0].as_ref().unwrap_err().is_invalid());
    assert_eq!(last(&log).await, 0);
    // The valid events of a batch are appended.
    let batch = [(worker.topic("t"), valid()), (worker.topic(""), valid()), (worker.topic("t"), valid())];
    let outcomes = worker.publish_many(batch).await;
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(last(&log).await, 2);
}

for_each_broker!(a_publisher_rejects_invalid_events_and_appends_none(log): memory, redis, nats, postgres);

/// A record as a table stores it: texts and a boolean.
struct Row {
    payload: String,
    values: Vec<String>,
    removes: bool,
    key: Option<String>,
}

fn row_of(record: &NewRecord) -> Row {
    Row {
        payload: String::from_utf8(record.payload.to_vec()).unwrap(),
        values: record.values.iter().map(|value| value.id.to_string()).collect(),
        removes: record.values.first().is_some_and(|value| value.removes),
        key: record.idempotency_key.as_deref().map(str::to_owned),
    }
}

fn record_of(row: Row) -> NewRecord {
    let mut record = NewRecord::new(row.payload.into());
    record.values = row.values.into_iter().map(|id| Value::new(id, row.removes)).collect();
    record.idempotency_key = row.key.map(Into::into);
    record
}

async fn prepared_record_is_an_event_only_after_it_is_published(log: impl Backplane + Clone) {
    let (one, worker) = (instance(&log).await, worker(log.clone()));
    let mut page = subscribe(one.server.addr, "/events?topic=t").await;
    let target = || worker.topic("t").and(worker.topic("latest/a")).and(worker.topic("latest/b"));
    let rows: Vec<_> = [
        target().prepare(Event::new("v", "1").key("k").idempotency_key("order 7")),
        worker.scope("acme").topic("latest/a").prepare(Event::unnamed("of a scope").key("k")),
        one.hub.topic("t").prepare(Event::unnamed("by the hub")),
        target().prepare(Event::removal("k").data("gone")),
    ]
    .into_iter()
    .map(|record| row_of(&record.unwrap()))
    .collect();
    assert_eq!((last(&log).await, rows[0].values.len(), rows[3].removes), (0, 2, true));
    let records: Vec<_> = rows.into_iter().map(record_of).collect();
    let receipts = soon(worker.publish_prepared(records.clone())).await;
    let positions: Vec<_> = receipts.into_iter().map(|receipt| receipt.unwrap().position).collect();
    assert_eq!((positions.len(), last(&log).await), (4, 4));
    let events = [page.next_own().await, page.next_own().await, page.next_own().await];
    assert_eq!(events.each_ref().map(|event| &*event.data), ["1", "by the hub", "gone"]);
    assert_eq!(events[0].id, positions[0].to_string());
    // The event with an idempotency key is in the log once.
    let again = soon(worker.publish_prepared(records[..1].to_vec())).await.remove(0).unwrap();
    assert_eq!((again.position, last(&log).await), (positions[0], 4));
    let values = soon(log.values()).await.unwrap();
    assert_eq!(values.len(), 1, "{values:?}");
    assert!(soon(worker.publish_prepared(Vec::new())).await.is_empty());
}

for_each_broker!(prepared_record_is_an_event_only_after_it_is_published(log): memory, redis, nats);

#[tokio::test]
async fn prepare_requires_a_shared_log() {
    let hub = Hub::builder().build().unwrap();
    let error = hub.topic("t").prepare(Event::unnamed("x")).unwrap_err();
    assert!(error.is_invalid(), "{error}");
    assert_eq!(error.to_string(), "a prepared record requires a shared log");
}

/// A request that is in progress during a drain commits its transaction.
#[tokio::test]
async fn drained_hub_prepares_records() {
    let log = Memory::new();
    let hub = builder().backplane(log.clone()).build().unwrap();
    hub.drain(Duration::ZERO).await;
    let record = hub.topic("t").prepare(Event::unnamed("x")).unwrap();
    worker(log.clone()).publish_prepared(vec![record]).await.remove(0).unwrap();
    assert_eq!(last(&log).await, 1);
}

async fn a_repeated_idempotency_key_is_one_event_at_every_instance(log: impl Backplane + Clone) {
    let (one, worker) = (instance(&log).await, worker(log.clone()));
    let mut page = subscribe(one.server.addr, "/events?topic=t").await;
    let event = |data: &'static str| Event::unnamed(data).idempotency_key("order 7: a/b {c}");
    let first = worker.topic("t").publish(event("first")).await.unwrap().position;
    let again = worker.topic("t").publish(event("again")).await.unwrap().position;
    let by_hub = one.hub.topic("t").publish(event("by the hub")).await.unwrap();
    let batch = [(worker.topic("t"), event("in a batch")), (worker.topic("t"), Event::unnamed("next"))];
    let batch = worker.publish_many(batch).await;
    assert_eq!([again, by_hub.position, batch[0].as_ref().unwrap().position], [first; 3]);
    assert_eq!([page.next_own().await.data, page.next_own().await.data], ["first", "next"]);
    assert_eq!(last(&log).await, 2);
}

for_each_broker!(a_repeated_idempotency_key_is_one_event_at_every_instance(log): memory, redis, nats, postgres);

#[tokio::test(start_paused = true)]
async fn a_log_in_memory_forgets_idempotency_keys_after_ten_minutes() {
    let worker = worker(Memory::new());
    let publish = async || worker.topic("t").publish(Event::unnamed("x").idempotency_key("k")).await.unwrap().position;
    let first = publish().await;
    tokio::time::advance(Duration::from_secs(599)).await;
    assert_eq!(publish().await, first);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(publish().await > first);
}

#[tokio::test]
async fn the_log_of_one_process_rejects_an_idempotency_key() {
    let hub = Hub::builder().build().unwrap();
    let event = || Event::unnamed("x").idempotency_key("k");
    for error in [
        hub.topic("t").publish(event()).await.unwrap_err(),
        hub.topic("t").publish_now(event()).unwrap_err(),
        hub.topic("t").check(&event()).unwrap_err(),
    ] {
        assert!(error.is_invalid() && !error.is_unavailable(), "{error}");
        assert_eq!(error.to_string(), "an idempotency key requires a shared log");
    }
    assert_eq!(hub.stats().published, 0);
}

#[tokio::test]
async fn a_pointer_to_a_log_passes_every_call_on() {
    let log = Memory::new();
    let shared: Arc<dyn Backplane> = Arc::new(log.clone());
    let boxed: Box<dyn Backplane> = Box::new(log);
    let [one, two] = [Publisher::new(shared).unwrap(), Publisher::new(boxed).unwrap()];
    let first = one.topic("t").publish(Event::unnamed("1")).await.unwrap();
    let second = two.topic("t").publish(Event::unnamed("2")).await.unwrap();
    assert!(first.position < second.position);
}

#[tokio::test]
async fn a_publisher_needs_a_backplane() {
    assert_eq!(Hub::builder().publisher().unwrap_err().setting(), "backplane");
    assert!(Publisher::new(Memory::new()).is_ok());
    assert_eq!(builder().backplane(Memory::new()).max_topics(0).publisher().unwrap_err().setting(), "max_topics");
}

#[tokio::test]
async fn a_publish_without_a_broker_fails_within_its_timeout() {
    let limit = Duration::from_millis(300);
    let publisher = |url: &str| {
        let log = Redis::new(url, "n").unwrap().timeout(Duration::from_secs(60));
        builder().publish_timeout(limit).backplane(log).publisher().unwrap()
    };
    // No server listens on this port.
    let refused = soon(publisher("redis://ada:s3cret@127.0.0.1:1").topic("t").publish(Event::unnamed("x"))).await;
    let refused = refused.unwrap_err();
    assert!(refused.is_unavailable() && !refused.is_unknown() && !refused.is_invalid(), "{refused}");
    assert!(!format!("{refused} {refused:?}").contains("s3cret"));
    // This server accepts connections and never answers.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for scheme in ["redis", "rediss"] {
        let begun = Instant::now();
        let late = publisher(&format!("{scheme}://{}", mute.local_addr().unwrap()));
        let error = soon(late.topic("t").publish(Event::unnamed("x"))).await.unwrap_err();
        assert!(error.is_unavailable() && error.is_unknown(), "{error}");
        assert!((limit..limit * 10).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}

/// Without a runtime, a future cannot wait for the broker. Each method returns an error, and sends
/// nothing.
#[test]
fn a_shared_log_outside_of_a_runtime_is_an_error_and_no_panic() {
    use futures::executor::block_on;
    use tower_sse::{Disconnect, StreamRequest, Subscription};

    let log = Memory::new();
    let (worker, hub) = (worker(log.clone()), builder().backplane(log.clone()).build().unwrap());
    let event = || Event::unnamed("x");
    let mut errors = vec![
        block_on(worker.topic("t").publish(event())).unwrap_err(),
        block_on(hub.topic("t").publish(event())).unwrap_err(),
    ];
    let batch = block_on(worker.publish_many([(worker.topic("t"), event()), (worker.user("u"), event())]));
    errors.extend(batch.into_iter().map(Result::unwrap_err));
    let batch = block_on(hub.publish_many([(hub.topic("t"), event()), (hub.user("u"), event())]));
    errors.extend(batch.into_iter().map(Result::unwrap_err));
    assert_eq!(errors.len(), 6);
    for error in errors {
        assert!(error.is_unavailable() && !error.is_unknown() && !error.is_invalid(), "{error}");
        assert!(error.to_string().contains("runtime"), "{error}");
    }
    let commands = [
        block_on(hub.user("u").disconnect(Disconnect::now())),
        block_on(hub.user("u").join("t").into_future()),
        block_on(hub.user("u").leave("t")),
    ];
    for error in commands.map(Result::unwrap_err) {
        assert!(error.is_unavailable() && !error.is_invalid() && error.to_string().contains("runtime"), "{error}");
    }
    let ticket = block_on(hub.ticket(Subscription::for_user("u"), Duration::from_secs(9))).unwrap_err();
    assert!(ticket.is_unavailable());
    let request = http::Request::get("/?ticket=0123456789abcdef0123456789abcdef").body(()).unwrap();
    assert!(block_on(hub.redeem(&StreamRequest::from_request(&request))).is_err());
    assert_eq!(block_on(log.state(None)).unwrap().last, 0);
}

/// The broker restarts empty. A position from before never means a second record.
#[tokio::test]
async fn a_log_that_lost_records_of_a_publisher_begins_a_new_epoch() {
    let Some(mut server) = RedisServer::start(FORGETFUL) else { return };
    let worker = worker(server.log("n"));
    let publish = async || worker.topic("t").publish(Event::unnamed("x")).await;
    let before = publish().await.unwrap();
    server.kill();
    assert!(publish().await.is_err());
    server.restart();
    let after = soon(async {
        loop {
            if let Ok(position) = publish().await {
                break position;
            }
        }
    })
    .await;
    assert_ne!(before.position.to_string(), after.position.to_string());
}

/// The documented permissions are enough for an instance and for a worker, and they allow no other
/// namespace.
#[tokio::test]
async fn a_redis_user_with_the_documented_rights_is_enough() {
    let document = include_str!("../../docs/guide/scaling.md");
    let rights = document.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER hub ")).unwrap();
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let mut command = vec!["ACL", "SETUSER", "hub"];
    command.extend(rights.split(' '));
    assert_eq!(server.cli(&command), "OK");
    let url = format!("redis://hub:password@127.0.0.1:{}", server.port);
    let log = |namespace| Redis::new(&url, namespace).unwrap().timeout(REQUEST_LIMIT);
    let worker =
        worker(log("default").limits(LogLimits::new().max_records(1).max_age(Duration::from_millis(1)).max_values(1)));
    for n in 0..300 {
        let event = Event::new("v", "x").key(n.to_string()).idempotency_key(n.to_string());
        worker.topic("latest/a").publish(event).await.unwrap();
    }
    worker.topic("latest/a").publish(Event::removal("299")).await.unwrap();
    let one = Instance::start(log("default")).await.ready().await;
    let mut page = subscribe(one.server.addr, "/events?topic=t").await;
    worker.topic("t").publish(Event::unnamed("headline")).await.unwrap();
    assert_eq!(page.next_own().await.data, "headline");
    soon(log("default").broadcast(tower_sse::backplane::ControlStream::Presence, bytes::Bytes::from_static(b"x")))
        .await
        .unwrap();
    soon(log("default").put_shared("a", bytes::Bytes::from_static(b"x"), Duration::from_secs(9))).await.unwrap();
    assert!(soon(log("default").get_shared("a")).await.unwrap().is_some());
    // The listener requests the newest message, and receives those of the instance, without an
    // error.
    let mut listener = log("default").listen(None);
    let next = tokio::time::timeout(Duration::from_millis(300), futures::StreamExt::next(&mut listener)).await;
    assert!(!matches!(next, Ok(None | Some(Err(_)))), "{next:?}");
    let ticket = one.hub.ticket(tower_sse::Subscription::for_user("ada"), Duration::from_secs(9)).await.unwrap();
    // A reader of the broker's keys does not learn the ticket.
    let keys = server.cli(&["KEYS", "*:deposit:*"]);
    assert!(keys.contains(":deposit:") && !keys.contains(ticket.as_str()), "{keys}");
    let redeemed = tower_sse::StreamRequest::from_request(
        &http::Request::get(format!("/?ticket={}", ticket.as_str())).body(()).unwrap(),
    );
    assert!(soon(one.hub.redeem(&redeemed)).await.is_ok());
    let elsewhere = soon(log("other").state(None)).await.unwrap_err();
    assert!(elsewhere.is_rejected() && elsewhere.to_string().to_lowercase().contains("no permissions"), "{elsewhere}");
}
