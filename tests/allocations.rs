//! Allocations of the hub: none for a delivery, a bounded number for a publish, and a bounded
//! number of bytes for idle streams and topics. All work runs in the thread that counts, so the
//! numbers are the same in every run. The bytes are those requested, without the overhead of the
//! allocator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

#[path = "kit/bodies.rs"]
mod bodies;

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use allocation_counter::measure;
use bodies::{Floor, Sleeper, drain, endpoint, open, reader, request, sleeper, sleepers, take};
use bytes::Bytes;
use futures::FutureExt;
use tower_sse::backplane::Memory;
use tower_sse::{Event, Hub, Publisher, Retention, Subscription, Topic};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn event() -> Event {
    Event::new("tick", "0123456789")
}

/// Runs the tasks that wake the streams.
fn wake_all(runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    });
}

fn read_all(sleepers: &mut [Sleeper]) -> usize {
    sleepers.iter_mut().map(|sleeper| drain(&mut sleeper.body, &sleeper.waker)).sum()
}

/// Returns the bytes that are still allocated after the work.
fn left(work: impl FnOnce()) -> i64 {
    measure(work).bytes_current
}

#[test]
fn a_delivery_allocates_nothing() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, 1_000);
    for _ in 0..100 {
        hub.topic("t").publish_now(event()).unwrap();
        wake_all(&runtime);
        let mut chunks = 0;
        let read = measure(|| chunks = read_all(&mut sleepers));
        assert_eq!((chunks, read.count_total), (1_000, 0));
    }
}

/// The hub joins several events into one chunk once, for all readers.
#[test]
fn several_events_in_one_chunk_allocate_once_for_all_readers() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let hub = Hub::builder().build().unwrap();
    let mut sleepers = sleepers(&hub, 100);
    for events in [2, 4, 32, 64] {
        for _ in 0..3 {
            for _ in 0..events {
                hub.topic("t").publish_now(event()).unwrap();
            }
            wake_all(&runtime);
            let mut chunks = 0;
            let read = measure(|| chunks = read_all(&mut sleepers));
            assert_eq!(chunks, 100);
            assert!(read.count_total <= 2, "{events} events: {} allocations", read.count_total);
        }
    }
}

/// A publish allocates the buffer of the frame, the handle that shares it, and the record. Above 32
/// listeners it also allocates the task that wakes them. A name that is not yet a `Topic` would be
/// one more allocation. The test compares the median, because tables grow now and then.
#[test]
fn a_publish_allocates_about_as_often_with_many_listeners_as_with_few() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let topic = Topic::try_from("t").unwrap();
    for (listeners, most) in [(0, 3), (1, 3), (4, 3), (10, 3), (32, 3), (1_000, 4), (10_000, 4)] {
        let hub = Hub::builder().build().unwrap();
        let mut sleepers = sleepers(&hub, listeners);
        let mut counts: Vec<u64> = (0..21)
            .map(|_| {
                let event = event();
                let published = measure(|| _ = hub.topic(&topic).publish_now(event).unwrap());
                wake_all(&runtime);
                assert_eq!(read_all(&mut sleepers), listeners);
                published.count_total
            })
            .collect();
        counts.sort_unstable();
        assert!(counts[counts.len() / 2] <= most, "{listeners} listeners: {counts:?}");
    }
}

const MANY: usize = 10_000;

#[test]
fn an_idle_topic_with_a_subscriber_of_its_own_is_small() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let left = |query: &dyn Fn(usize) -> String| {
        let hub = Hub::builder().build().unwrap();
        let mut endpoint = endpoint(&hub);
        let mut sleepers = Vec::with_capacity(MANY);
        let bytes = left(|| sleepers.extend((0..MANY).map(|n| sleeper(&mut endpoint, request(&query(n), None)))));
        drop(sleepers);
        bytes
    };
    let shared = left(&|_| "topic=documents/0000".into());
    let own = left(&|n| format!("topic=documents/{n:04}"));
    let both = left(&|n| format!("topic=documents/xxxx&topic=documents/{n:04}"));
    let each = |with: i64| (with - shared) as f64 / MANY as f64;
    assert!(each(own) <= 400.0, "{} bytes for a topic", each(own));
    assert!(each(both) <= 440.0, "{} bytes for a topic and one more subscription", each(both));
}

#[test]
fn an_active_run_with_a_reader_is_hardly_larger_than_a_topic_with_a_subscriber() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let of_topics = {
        let hub = Hub::builder().build().unwrap();
        let mut endpoint = endpoint(&hub);
        let mut sleepers = Vec::with_capacity(MANY);
        left(|| {
            sleepers.extend((0..MANY).map(|n| sleeper(&mut endpoint, request(&format!("topic=answers/{n:04}"), None))));
        })
    };
    let hub = Hub::builder().build().unwrap();
    let mut active = Vec::with_capacity(MANY);
    let of_runs = left(|| {
        for n in 0..MANY {
            let run = hub.run(format!("answers/{n:04}"));
            let writer = run.begin().into_future().now_or_never().unwrap().unwrap();
            active.push((writer, reader(&run, &hub)));
        }
    });
    let each = (of_runs - of_topics) as f64 / MANY as f64;
    println!("{each} bytes for a run");
    assert!(each <= 1_000.0, "{each} bytes for a run");
}

#[test]
fn a_topic_is_as_small_as_before_when_its_events_have_expired() {
    const TOPICS: usize = 2_000;
    let runtime = runtime();
    let _entered = runtime.enter();
    // Events of `live` are kept for the write deadline. No sleeper is polled for a heartbeat.
    let live = Hub::builder().topic_retention(Retention::live()).heartbeat(Duration::from_secs(3_600));
    let hub = live.build().unwrap();
    let mut endpoint = endpoint(&hub);
    let mut sleepers: Vec<_> =
        (0..TOPICS).map(|n| sleeper(&mut endpoint, request(&format!("topic={n}"), None))).collect();
    let mut round = || {
        for n in 0..TOPICS {
            for _ in 0..20 {
                hub.topic(n).publish_now(event()).unwrap();
            }
        }
        read_all(&mut sleepers);
        assert!(hub.stats().retained_bytes > 0);
        // The clock is paused, and moves only here.
        runtime.block_on(tokio::time::sleep(Duration::from_secs(40)));
        assert_eq!(hub.stats().retained_bytes, 0);
    };
    // Initialization allocates in the first round, and tables still grow in the second one.
    round();
    round();
    let left = left(round);
    assert!(left < TOPICS as i64, "{left} bytes are left of {TOPICS} topics");
}

/// Compared with the smallest possible body.
#[test]
fn an_idle_connection_is_small() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let waker = Waker::noop();
    let hub = Hub::builder().build().unwrap();
    let mut endpoint = endpoint(&hub);
    let mut bodies = Vec::with_capacity(MANY);
    let of_hub = left(|| {
        for _ in 0..MANY {
            let mut body = Box::pin(open(&mut endpoint, request("topic=t", None)));
            drain(&mut body, waker);
            bodies.push(body);
        }
    });
    let floor = Arc::new(Floor::default());
    let mut floors = Vec::with_capacity(MANY);
    let of_smallest_body = left(|| {
        for _ in 0..MANY {
            let mut body = Box::pin(floor.body());
            drain(&mut body, waker);
            floors.push(body);
        }
    });
    let each = (of_hub - of_smallest_body) as f64 / MANY as f64;
    assert!(each <= 400.0, "{each} bytes for a connection");
}

/// Clients that resume at the same position share one chunk, so the memory does not grow with their
/// number.
#[test]
fn resuming_clients_share_the_chunks_that_they_read() {
    const CLIENTS: usize = 100;
    const RECORDS: usize = 500;
    let runtime = runtime();
    let _entered = runtime.enter();
    let hub = Hub::builder().topic_retention(Retention::replay()).build().unwrap();
    let mut endpoint = endpoint(&hub);
    let large = || Event::unnamed("x".repeat(1_000));
    let from = hub.topic("t").publish_now(large()).unwrap().position.to_string();
    for _ in 0..RECORDS {
        hub.topic("t").publish_now(large()).unwrap();
    }
    let waker = Waker::noop();
    let mut bodies: Vec<_> =
        (0..CLIENTS).map(|_| Box::pin(open(&mut endpoint, request("topic=t", Some(&from))))).collect();
    let mut read = 0;
    let resumed = measure(|| {
        // The chunk of each body that a server would be writing.
        let mut chunks: Vec<_>;
        loop {
            chunks = bodies.iter_mut().filter_map(|body| take(body, waker)).collect();
            if chunks.is_empty() {
                break;
            }
            read += chunks.iter().map(Bytes::len).sum::<usize>();
        }
    });
    assert!(read > CLIENTS * RECORDS * 1_000);
    // Every record once, for all clients together, and the lists of the test.
    let most = RECORDS as u64 * 1_100 + CLIENTS as u64 * 64;
    assert!(resumed.bytes_max < most, "at most {} bytes were allocated", resumed.bytes_max);
}

const NAMES: usize = 50_000;

/// Publishes to topics that have no listener, and returns the bytes that stay allocated.
fn held_of_topics(hub: &Hub, topics: usize, event: impl Fn() -> Event) -> f64 {
    // Initialization allocates with the first publish.
    hub.topic("first").publish_now(event()).unwrap();
    let held = left(|| {
        for n in 0..topics {
            hub.topic(n).publish_now(event()).unwrap();
        }
    });
    held as f64
}

fn assert_is_near(counted: usize, held: f64) {
    let ratio = counted as f64 / held;
    assert!((0.8..=1.2).contains(&ratio), "{counted} bytes are counted and {held} are allocated: {ratio:.2}");
}

#[test]
fn retained_bytes_of_many_topics_are_within_a_fifth_of_the_memory_held() {
    let hub = Hub::builder().topic_retention(Retention::replay()).retention_budget(1 << 30).build().unwrap();
    let held = held_of_topics(&hub, NAMES, || Event::unnamed("01234567890123456789"));
    assert_is_near(hub.stats().retained_bytes, held);
}

#[test]
fn retained_bytes_of_one_topic_are_within_a_fifth_of_the_memory_held() {
    let retention = Retention::replay().count(NAMES).bytes(1 << 30);
    let hub = Hub::builder().topic_retention(retention).retention_budget(1 << 30).build().unwrap();
    let held = left(|| {
        for _ in 0..NAMES {
            hub.topic("t").publish_now(Event::unnamed("01234567890123456789")).unwrap();
        }
    });
    assert_is_near(hub.stats().retained_bytes, held as f64);
}

#[test]
fn keyed_bytes_of_many_topics_are_within_a_fifth_of_the_memory_held() {
    let hub = Hub::builder().topic_retention(Retention::latest_per_key()).keyed_budget(1 << 30).build().unwrap();
    let held = held_of_topics(&hub, NAMES, || Event::unnamed("01234567890123456789").key("temperature"));
    assert_is_near(hub.stats().keyed_bytes, held);
}

#[test]
fn keyed_bytes_of_many_keys_are_within_a_fifth_of_the_memory_held() {
    let retention = Retention::latest_per_key().count(NAMES).bytes(1 << 30);
    let hub = Hub::builder().topic_retention(retention).keyed_budget(1 << 30).build().unwrap();
    let held = left(|| {
        for n in 0..NAMES {
            let event = Event::unnamed("01234567890123456789").key(format!("sensor-{n:06}"));
            hub.topic("t").publish_now(event).unwrap();
        }
    });
    assert_is_near(hub.stats().keyed_bytes, held as f64);
}

/// A topic whose events the budget has dropped still holds its name and a number, which also count.
#[test]
fn topics_without_listeners_hold_no_more_memory_than_the_budget() {
    const BUDGET: usize = 16 << 20;
    let hub = Hub::builder().topic_retention(Retention::replay()).retention_budget(BUDGET).build().unwrap();
    let held = held_of_topics(&hub, 200_000, || Event::unnamed("01234567890123456789"));
    assert!(hub.stats().retained_bytes <= BUDGET);
    // A forgotten topic leaves a mark of some bytes, and the number of marks is bounded.
    let most = (BUDGET as f64) * 1.2 + f64::from(7 << 20);
    assert!(held <= most, "{held} bytes are allocated");
}

/// The number of topics at which the tables of an instance have just grown.
const DORMANT: usize = 30_000;

/// Returns the bytes that an instance takes for the events of a busy shared log, 20 for each of
/// 1,000 topics, after its only streams had `listened` of these topics.
fn followed(listened: usize) -> i64 {
    let runtime = runtime();
    let _entered = runtime.enter();
    let log = Memory::new();
    let hub = Hub::builder().max_topics(1_000).backplane(log.clone()).build().unwrap();
    let until = |holds: &dyn Fn() -> bool| {
        runtime.block_on(async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        });
    };
    until(&|| hub.is_ready());
    let topics: Vec<_> = (0..1_000).map(|n| format!("orders/{n}")).collect();
    let topics_of_page = topics[..listened].iter().map(String::as_str);
    drop(hub.subscribe(Subscription::anonymous().with_topics(topics_of_page), None).unwrap());
    let publisher = Publisher::new(log).unwrap();
    let mut last = hub.position();
    for _ in 0..20 {
        let events = topics.iter().map(|topic| (publisher.topic(topic.as_str()), Event::new("tick", "x".repeat(100))));
        let appended = publisher.publish_many(events.collect::<Vec<_>>()).now_or_never().unwrap();
        last = appended.last().unwrap().as_ref().unwrap().position;
    }
    left(|| until(&|| hub.position() == last))
}

/// The topics of a shared log that have had no listener on an instance.
#[test]
fn retained_bytes_of_dormant_topics_are_within_a_fifth_of_the_memory_held() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let log = Memory::new();
    let hub = Hub::builder().retention_budget(1 << 30).backplane(log.clone()).build().unwrap();
    let until = |holds: &dyn Fn() -> bool| {
        runtime.block_on(async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        });
    };
    until(&|| hub.is_ready());
    let publisher = Publisher::new(log).unwrap();
    let publish = |from: usize| {
        let events = (from..from + DORMANT).map(|n| (publisher.topic(n), Event::unnamed("x")));
        let appended = publisher.publish_many(events.collect::<Vec<_>>()).now_or_never().unwrap();
        appended.last().unwrap().as_ref().unwrap().position
    };
    // Initialization allocates with the first records.
    let first = publish(1_000_000);
    until(&|| hub.position() == first);
    let before = hub.stats().retained_bytes;
    let last = publish(0);
    let held = left(|| until(&|| hub.position() == last)) as f64;
    let counted = hub.stats().retained_bytes - before;
    let each = held / DORMANT as f64;
    println!("{each} bytes for a dormant topic, of which {} are counted", counted as f64 / DORMANT as f64);
    assert_is_near(counted, held);
}

#[test]
fn an_instance_with_listeners_for_one_of_a_hundred_topics_takes_a_fifth_of_the_memory() {
    let (all, some) = (followed(1_000), followed(10));
    println!("{all} bytes with listeners for all topics, {some} bytes with listeners for 1 % of them");
    assert!(some * 5 < all, "{some} bytes of {all}");
}
