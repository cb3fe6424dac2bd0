//! Models of the concurrent core. loom runs them in every order that the atomics and locks allow
//! with at most three preemptions: `RUSTFLAGS="--cfg tower_sse_loom" cargo test --release --lib
//! log::models::interleavings`.
//!
//! Each model checks one property. A listener that sleeps on a visible record is a deadlock, which
//! loom reports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests, helpers and all")]

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::poll_fn;
use loom::future::block_on;
use loom::thread;

use crate::log::*;
use crate::sync::AtomicBool;
use crate::types::{Event, Retention, Start, Topic};
use crate::wire::{Draft, Framing};

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn log() -> Arc<Log> {
    let replay = Retention::replay;
    let policies = Policies::new(Vec::new(), replay(), replay(), replay(), Retention::live());
    let budgets = Budgets { ring_bytes: 1 << 20, keyed_bytes: 1 << 20, grace: 1_000_000, dormant_after: None };
    Arc::new(Log::new(Epoch(1), policies, budgets))
}

fn topic(name: &str) -> Address {
    Address::Topic(Topic::try_from(name).unwrap())
}

fn publish(log: &Log, to: &[&str]) -> u64 {
    let framing = Framing { max_payload: 1 << 20 };
    let draft = Draft::encode(&Event::unnamed("x"), &framing).unwrap();
    let mut audience = Audience::default();
    to.iter().for_each(|name| audience.insert(topic(name)));
    let appended = log.append([Entry { audience, effect: Effect::Nothing, draft, published: None }], 0);
    appended[0].position.sequence()
}

/// Wakes all deferred listeners, as the hub's workers do.
fn wake(log: &Log) {
    while log.has_deferred() {
        log.wake_deferred(0);
    }
}

/// Starts a thread that publishes one record to each of these audiences.
fn publisher(log: &Arc<Log>, audiences: &'static [&'static [&'static str]]) -> thread::JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for audience in audiences {
            publish(&log, audience);
            wake(&log);
        }
    })
}

fn subscribe(log: &Log, to: &[&str]) -> Arc<CursorHandle> {
    let subscriber = Arc::new(CursorHandle::new(ConnectionId::from_bits(1)));
    log.open(&subscriber, to.iter().map(|name| topic(name)), Begin::Fresh(Start::Live), 0);
    subscriber
}

/// Sleeps until records are due, as a response body does, and returns their numbers.
fn next(log: &Log, subscriber: &CursorHandle) -> Vec<u64> {
    block_on(poll_fn(|cx| {
        let mut batch = Batch { allows_pieces: true, ..Batch::default() };
        subscriber.listen(cx.waker());
        log.read(subscriber, &mut batch);
        if batch.count() == 0 {
            return Poll::Pending;
        }
        Poll::Ready(batch.numbers())
    }))
}

fn receive(log: &Log, subscriber: &CursorHandle, count: usize) -> Vec<u64> {
    let mut received = Vec::new();
    while received.len() < count {
        received.extend(next(log, subscriber));
    }
    received
}

#[test]
fn a_listener_never_sleeps_on_a_visible_record() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a"]);
        let publisher = publisher(&log, &[&["a"]]);
        assert_eq!(receive(&log, &subscriber, 1), [1]);
        publisher.join().unwrap();
        log.close(&subscriber, 0);
    });
}

/// A stream that has read everything does not read again before it sleeps, unless it was woken.
#[test]
fn a_settled_listener_misses_no_record_when_it_sleeps_without_a_read() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a"]);
        let publisher = publisher(&log, &[&["a"], &["a"]]);
        let (mut received, mut settled) = (Vec::new(), false);
        block_on(poll_fn(|cx| {
            loop {
                if std::mem::take(&mut settled) && subscriber.may_sleep(cx.waker()) {
                    settled = true;
                    return Poll::Pending;
                }
                subscriber.listen(cx.waker());
                let mut batch = Batch { allows_pieces: true, ..Batch::default() };
                log.read(&subscriber, &mut batch);
                received.extend(batch.numbers());
                if received.len() == 2 {
                    return Poll::Ready(());
                }
                if batch.count() == 0 {
                    return Poll::Pending;
                }
                settled = batch.settled;
            }
        }));
        assert_eq!(received, [1, 2]);
        publisher.join().unwrap();
        log.close(&subscriber, 0);
    });
}

#[test]
fn records_of_two_publishers_are_read_once_and_in_order() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a", "b"]);
        let publishers = [publisher(&log, &[&["a"]]), publisher(&log, &[&["b"]])];
        assert_eq!(receive(&log, &subscriber, 2), [1, 2]);
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        log.close(&subscriber, 0);
    });
}

#[test]
fn a_union_is_read_once_although_it_wakes_by_two_channels() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a", "b"]);
        let publisher = publisher(&log, &[&["a", "b"], &["b"]]);
        assert_eq!(receive(&log, &subscriber, 2), [1, 2]);
        publisher.join().unwrap();
        log.close(&subscriber, 0);
    });
}

#[test]
fn deferred_listeners_are_woken() {
    model(|| {
        // In a model a publisher wakes only one listener itself.
        let log = log();
        let first = subscribe(&log, &["a"]);
        let second = subscribe(&log, &["a"]);
        let publisher = publisher(&log, &[&["a"]]);
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || {
                assert_eq!(receive(&log, &second, 1), [1]);
                log.close(&second, 0);
            }
        });
        assert_eq!(receive(&log, &first, 1), [1]);
        publisher.join().unwrap();
        reader.join().unwrap();
        log.close(&first, 0);
    });
}

#[test]
fn a_subscriber_receives_every_record_after_its_start_when_records_are_published_meanwhile() {
    model(|| {
        let log = log();
        let publisher = publisher(&log, &[&["a"], &["a"]]);
        let subscriber = subscribe(&log, &["a"]);
        let start = log.cursor(&subscriber);
        assert_eq!(receive(&log, &subscriber, 2 - start as usize), (start + 1..=2).collect::<Vec<_>>());
        publisher.join().unwrap();
        log.close(&subscriber, 0);
    });
}

#[test]
fn a_closed_subscriber_is_freed_and_reads_nothing_when_a_record_is_published_meanwhile() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a"]);
        let publisher = publisher(&log, &[&["a"]]);
        log.close(&subscriber, 0);
        publisher.join().unwrap();
        assert_eq!(Arc::strong_count(&subscriber), 1);
        let mut batch = Batch::default();
        log.read(&subscriber, &mut batch);
        assert!(batch.records.is_empty());
    });
}

#[test]
fn a_joined_channel_is_read_from_the_join_on() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a"]);
        let publisher = publisher(&log, &[&["a"]]);
        let joined = Joined { address: topic("b"), since: Since::Now, at: None };
        log.join(&subscriber, &joined, 9, 0).unwrap();
        let joined = publish(&log, &["b"]);
        wake(&log);
        assert_eq!(receive(&log, &subscriber, 2), [1, 2]);
        assert!(joined == 1 || joined == 2);
        publisher.join().unwrap();
        log.close(&subscriber, 0);
    });
}

#[test]
fn simultaneous_changes_do_not_exceed_the_limit() {
    model(|| {
        let log = log();
        let subscriber = subscribe(&log, &["a"]);
        let change = |name: &'static str| {
            let (log, subscriber) = (Arc::clone(&log), Arc::clone(&subscriber));
            thread::spawn(move || {
                let join = [Joining { topic: Topic::try_from(name).unwrap(), since: Since::Now, after: 0 }];
                log.change(&subscriber, &[], &join, 2, 0, || Ok::<(), TooManyTopics>(())).is_ok()
            })
        };
        let changes = [change("b"), change("c")];
        let changed = changes.into_iter().filter_map(|change| change.join().unwrap().then_some(())).count();
        assert_eq!((changed, log.topics(&subscriber).len()), (1, 2));
        log.close(&subscriber, 0);
    });
}

/// The ban of a topic is noted first, and then its listeners are looked up. The ban must also reach
/// a subscriber that joins the topic meanwhile, or leaves and joins it in one step.
#[test]
fn a_change_of_topics_is_refused_or_found_by_a_simultaneous_ban() {
    for had in [&["a"][..], &["a", "b"]] {
        model(move || {
            let log = log();
            let subscriber = subscribe(&log, had);
            let is_banned = Arc::new(AtomicBool::new(false));
            let ban = thread::spawn({
                let (log, is_banned) = (Arc::clone(&log), Arc::clone(&is_banned));
                move || {
                    is_banned.store(true, Ordering::SeqCst);
                    !log.listeners(&topic("b")).is_empty()
                }
            });
            let name = Topic::try_from("b").unwrap();
            let joining = |topic| Joining { topic, since: Since::Now, after: 0 };
            let confirm = || if is_banned.load(Ordering::SeqCst) { Err(TooManyTopics) } else { Ok(()) };
            let changed = log.change(&subscriber, &[name.clone()], &[joining(name)], 9, 0, confirm);
            let is_found = ban.join().unwrap();
            assert!(changed.is_err() || is_found);
            assert_eq!(log.topics(&subscriber).len(), if changed.is_ok() { 2 } else { had.len() });
            log.close(&subscriber, 0);
        });
    }
}

/// The values of a new epoch are stored before `visible_through` covers its beginning.
#[test]
fn an_open_stream_receives_the_values_of_a_new_epoch() {
    model(|| {
        let latest = Retention::latest_per_key().with_live_window(Duration::from_secs(1));
        let policies = Policies::new(Vec::new(), latest.clone(), latest.clone(), latest.clone(), latest);
        let budgets = Budgets { ring_bytes: 1 << 20, keyed_bytes: 1 << 20, grace: 1_000_000, dormant_after: None };
        let log = Arc::new(Log::new(Epoch(1), policies, budgets));
        let subscriber = subscribe(&log, &["a"]);
        let follower = thread::spawn({
            let log = Arc::clone(&log);
            move || {
                let framing = Framing { max_payload: 1 << 20 };
                let draft = Draft::encode(&Event::unnamed("x"), &framing).unwrap();
                let entry =
                    Entry { audience: topic("a").into(), effect: Effect::Sets("k".into()), draft, published: None };
                log.begin_epoch(Epoch(2), 3, vec![(2, entry)], 0);
                wake(&log);
            }
        });
        assert_eq!(receive(&log, &subscriber, 1), [3]);
        follower.join().unwrap();
        log.close(&subscriber, 0);
    });
}

/// A log that several instances share. A channel is dormant as soon as a sweep finds it without a
/// listener.
fn shared_log() -> Arc<Log> {
    let replay = Retention::replay;
    let policies = Policies::new(Vec::new(), replay(), replay(), replay(), Retention::live());
    let budgets = Budgets { ring_bytes: 1 << 20, keyed_bytes: 1 << 20, grace: 1_000_000, dormant_after: Some(0) };
    Arc::new(Log::new(Epoch(1), policies, budgets))
}

fn entry(to: &str) -> Entry {
    let draft = Draft::encode(&Event::unnamed("x"), &Framing { max_payload: 1 << 20 }).unwrap();
    Entry { audience: topic(to).into(), effect: Effect::Nothing, draft, published: None }
}

/// Applies a record of the shared log, as the task does that follows the log.
fn apply(log: &Log, sequence: u64, to: &str) {
    let undecoded = Undecoded { published: None, bytes: 10 };
    if !log.outline(sequence, &topic(to).into(), undecoded, 0) {
        assert!(log.apply(sequence, entry(to), 0));
    }
    wake(log);
}

/// Receives records, with blocks of a shared log that has `last` records for this topic.
fn receive_from_shared(log: &Log, subscriber: &CursorHandle, to: &str, last: u64, count: usize) -> Vec<u64> {
    let mut received = Vec::new();
    block_on(poll_fn(|cx| {
        let mut batch = Batch { can_backfill: true, ..Batch::default() };
        subscriber.listen(cx.waker());
        loop {
            log.read(subscriber, &mut batch);
            assert!(batch.gap.is_empty(), "a gap without loss");
            received.extend(batch.numbers());
            if received.len() >= count {
                return Poll::Ready(());
            }
            if let Some(after) = batch.needs_block_after {
                let records = (after + 1..=last).map(|number| (number, Ok(entry(to))));
                batch.block = log.block(Epoch(1), after, log.last(), records, 0).map(Arc::new);
            } else if batch.count() == 0 && !batch.has_more {
                return Poll::Pending;
            }
        }
    }));
    received
}

#[test]
fn a_returning_listener_of_a_dormant_channel_receives_every_record_once() {
    model(|| {
        let log = shared_log();
        apply(&log, 1, "a");
        let follower = thread::spawn({
            let log = Arc::clone(&log);
            move || (2..=3).for_each(|sequence| apply(&log, sequence, "a"))
        });
        let subscriber = Arc::new(CursorHandle::new(ConnectionId::from_bits(1)));
        log.open(&subscriber, [topic("a")], Begin::After(0), 0);
        assert_eq!(receive_from_shared(&log, &subscriber, "a", 3, 3), [1, 2, 3]);
        follower.join().unwrap();
        log.close(&subscriber, 0);
    });
}

#[test]
fn a_topic_that_is_joined_while_its_channel_becomes_dormant_is_read_without_a_loss() {
    model(|| {
        let log = shared_log();
        let first = subscribe(&log, &["a"]);
        apply(&log, 1, "a");
        let last_listener = thread::spawn({
            let log = Arc::clone(&log);
            move || {
                log.close(&first, 0);
                log.sweep(1);
                apply(&log, 2, "a");
            }
        });
        let second = subscribe(&log, &["b"]);
        let joined = Joined { address: topic("a"), since: Since::After(0), at: None };
        log.join(&second, &joined, 9, 1).unwrap();
        assert_eq!(receive_from_shared(&log, &second, "a", 2, 2), [1, 2]);
        last_listener.join().unwrap();
        log.close(&second, 1);
    });
}
