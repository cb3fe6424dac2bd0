//! What the hub asks the allocator for: nothing for a delivery, little for a publish, and so many bytes for what is open
//! and idle. Counted in the thread that does it all, so the figures are the same in every run; bytes are those asked for,
//! without what an allocator adds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests, helpers and all")]

#[path = "kit/bodies.rs"]
mod bodies;

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use allocation_counter::measure;
use bodies::{Floor, Sleeper, drain, endpoint, open, request, sleeper, sleepers, take};
use bytes::Bytes;
use tower_sse::{Event, Hub, Retention, Topic};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn event() -> Event {
    Event::new("tick", "0123456789")
}

/// Lets what is woken in a task be woken.
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

/// What the work asked for and holds on to.
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
        let mut pieces = 0;
        let read = measure(|| pieces = read_all(&mut sleepers));
        assert_eq!((pieces, read.count_total), (1_000, 0));
    }
}

/// A piece of several events is made once, for all who read it.
#[test]
fn several_events_in_one_piece_allocate_for_the_piece_and_not_for_each_reader() {
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
            let mut pieces = 0;
            let read = measure(|| pieces = read_all(&mut sleepers));
            assert_eq!(pieces, 100);
            assert!(read.count_total <= 2, "{events} events: {} allocations", read.count_total);
        }
    }
}

/// The buffer of the frame, what shares it, and the record; with more than 32 listeners, whom the publisher does not wake
/// itself, the task that wakes them. Tables grow now and then, so what is usual is looked at and not each. A name that is
/// no `Topic` yet is one more.
#[test]
fn a_publish_allocates_about_as_often_however_many_listen() {
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
fn a_topic_that_has_had_traffic_and_keeps_nothing_is_as_small_as_before() {
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
        // The clock is at rest but for this.
        runtime.block_on(tokio::time::sleep(Duration::from_secs(40)));
        assert_eq!(hub.stats().retained_bytes, 0);
    };
    // What the first uses of everything need. Tables still grow in the second one.
    round();
    round();
    let left = left(round);
    assert!(left < TOPICS as i64, "{left} bytes are left of {TOPICS} topics");
}

/// Beside what the least body needs.
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
    let of_floor = left(|| {
        for _ in 0..MANY {
            let mut body = Box::pin(floor.body());
            drain(&mut body, waker);
            floors.push(body);
        }
    });
    let each = (of_hub - of_floor) as f64 / MANY as f64;
    assert!(each <= 400.0, "{each} bytes for a connection");
}

/// However much they missed, nobody has a copy of its own: who reads at the same place shares what is joined for all.
#[test]
fn who_comes_back_shares_what_is_read_with_the_others() {
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
        // All that a server holds: of each the piece that it is writing.
        let mut pieces: Vec<_>;
        loop {
            pieces = bodies.iter_mut().filter_map(|body| take(body, waker)).collect();
            if pieces.is_empty() {
                break;
            }
            read += pieces.iter().map(Bytes::len).sum::<usize>();
        }
    });
    assert!(read > CLIENTS * RECORDS * 1_000);
    // All of it once, however many read it, and the lists of the test.
    let most = RECORDS as u64 * 1_100 + CLIENTS as u64 * 64;
    assert!(resumed.bytes_max < most, "{} bytes at the most", resumed.bytes_max);
}

const NAMES: usize = 200_000;

/// Publishes to many topics that have no listener, and returns the bytes that stay allocated.
fn held_of_topics(hub: &Hub, event: impl Fn() -> Event) -> f64 {
    // The first use of everything allocates too.
    hub.topic("first").publish_now(event()).unwrap();
    let held = left(|| {
        for n in 0..NAMES {
            hub.topic(n).publish_now(event()).unwrap();
        }
    });
    held as f64
}

fn assert_is_near(counted: usize, held: f64) {
    let ratio = counted as f64 / held;
    assert!((0.8..=1.2).contains(&ratio), "{counted} bytes are counted and {held} are held, for {NAMES}: {ratio:.2}");
}

#[test]
fn retained_bytes_of_many_topics_are_within_a_fifth_of_the_memory_held() {
    let hub = Hub::builder().topic_retention(Retention::replay()).retention_budget(1 << 30).build().unwrap();
    let held = held_of_topics(&hub, || Event::unnamed("01234567890123456789"));
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
    let held = held_of_topics(&hub, || Event::unnamed("01234567890123456789").key("temperature"));
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

/// Topics whose event the budget has dropped hold nothing but their name and a number. They count as well.
#[test]
fn topics_without_listeners_hold_no_more_memory_than_the_budget() {
    const BUDGET: usize = 16 << 20;
    let hub = Hub::builder().topic_retention(Retention::replay()).retention_budget(BUDGET).build().unwrap();
    let held = held_of_topics(&hub, || Event::unnamed("01234567890123456789"));
    assert!(hub.stats().retained_bytes <= BUDGET);
    // A forgotten topic leaves some bytes, and the number of those is bounded.
    let most = (BUDGET as f64) * 1.2 + f64::from(7 << 20);
    assert!(held <= most, "{held} bytes are held");
}
