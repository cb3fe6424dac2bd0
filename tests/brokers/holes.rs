//! Records that are missing when an instance reads the log. The instance waits for late records,
//! reports lost records as one gap, and pauses between its requests for a missing record.

use std::time::Duration;

use tower_sse::backplane::{Backplane, Memory, NewRecord, Value};
use tower_sse::test_kit::{Fault, FaultyLog, Operation};
use tower_sse::{
    Cursor, Event, Hub, HubBuilder, Position, Retention, Start, Subscriber, SubscriberItem, Subscription, TopicFilter,
};

use crate::kit::broker::Broker;
use crate::kit::{soon, until};
use crate::redis_server::{FORGETFUL, RedisServer};

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

fn builder() -> HubBuilder {
    Hub::builder()
        .topic_retention(Retention::replay().count(8))
        .probe_interval(Duration::from_millis(100))
        .publish_timeout(PUBLISH_TIMEOUT)
}

async fn start(log: impl Backplane) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn open(hub: &Hub, cursor: impl Into<Cursor>) -> Subscriber {
    hub.subscribe(Subscription::anonymous().topic("t"), cursor).unwrap()
}

async fn publish(hub: &Hub, numbers: std::ops::Range<u64>) {
    let events = numbers.map(|n| (hub.topic("t"), Event::unnamed(n.to_string())));
    assert!(hub.publish_many(events.collect::<Vec<_>>()).await.iter().all(Result::is_ok));
}

fn number(position: Position) -> u64 {
    position.to_string().rsplit('.').next().unwrap().parse().unwrap()
}

/// Reads through this event. Returns the events, and the reasons of the gaps.
async fn read_to(page: &mut Subscriber, last: &str) -> (Vec<String>, Vec<String>) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    while events.last().is_none_or(|event| event != last) {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) => events.push(event.data),
            SubscriberItem::Gap { reason, .. } => gaps.push(reason.as_str().to_owned()),
            _ => {}
        }
    }
    (events, gaps)
}

fn texts(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

/// The newest record cannot be read. The instance loads the others, and sends few requests until it
/// gives the record up.
async fn a_log_without_its_newest_record_is_loaded(log: impl Backplane + Clone, requests: impl Fn() -> u64) {
    let begun = std::time::Instant::now();
    let before = requests();
    let hub = start(log).await;
    let (count, time) = (requests() - before, begun.elapsed());
    assert!(count < 100 + 20 * time.as_secs(), "{count} requests in {time:?}");
    publish(&hub, 4..5).await;
    let mut page = open(&hub, Cursor::Absent);
    publish(&hub, 5..6).await;
    assert_eq!(read_to(&mut page, "5").await.0.last().unwrap(), "5");
}

#[tokio::test]
async fn redis_log_is_loaded_with_few_requests_when_its_newest_record_was_deleted() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let log = || server.log("n");
    let first = start(log()).await;
    publish(&first, 0..4).await;
    drop(first);
    assert_eq!(server.cli(&["XDEL", "tower-sse:{n}:log", "4-0"]), "1");
    let requests = || {
        let info = server.cli(&["INFO", "commandstats"]);
        let calls = info.split("cmdstat_xrange:calls=").nth(1).unwrap_or("0");
        calls.split(',').next().unwrap().parse().unwrap()
    };
    a_log_without_its_newest_record_is_loaded(log(), requests).await;
}

#[tokio::test]
async fn log_is_loaded_with_few_requests_when_its_newest_record_cannot_be_read() {
    let log = FaultyLog::new();
    let first = start(log.connect()).await;
    publish(&first, 0..4).await;
    drop(first);
    log.hide([4]);
    let requests = || log.faults().calls(Operation::Range) + log.faults().calls(Operation::State);
    a_log_without_its_newest_record_is_loaded(log.connect(), requests).await;
}

/// An instance that was cut off catches up, and a replica that is behind answers without the newest
/// records.
#[tokio::test]
async fn late_records_are_no_gap_for_an_instance_that_was_cut_off() {
    let log = FaultyLog::new();
    let (near, far) = (start(log.connect()).await, start(log.connect()).await);
    let mut page = open(&far, Cursor::Absent);
    publish(&near, 0..3).await;
    read_to(&mut page, "2").await;
    for hidden in [vec![4, 5], vec![9, 10], vec![13]] {
        let begin = log.last();
        log.hide(hidden);
        publish(&near, begin..begin + 5).await;
        log.faults().break_streams();
        let ranges = log.faults().calls(Operation::Range);
        until(|| log.faults().calls(Operation::Range) > ranges + 2).await;
        log.show_all();
        let last = (begin + 4).to_string();
        assert_eq!(read_to(&mut page, &last).await, (texts(begin..begin + 5), Vec::new()));
    }
}

/// The cursor of the client is older than the records that the instance has in memory.
#[tokio::test]
async fn late_records_are_no_gap_for_a_reconnecting_client() {
    for hidden in [vec![1, 2, 3], vec![50], (1..=100).collect()] {
        let log = FaultyLog::new();
        let hub = start(log.connect()).await;
        let begin = hub.position();
        publish(&hub, 0..100).await;
        until(|| number(hub.position()) == 100).await;
        log.hide(hidden);
        let mut page = open(&hub, begin);
        // The instance requests the records before the broker can deliver them.
        let ranges = log.faults().calls(Operation::Range);
        let reads = async {
            until(|| log.faults().calls(Operation::Range) > ranges + 2).await;
            log.show_all();
        };
        let (read, ()) = futures::join!(read_to(&mut page, "99"), reads);
        assert_eq!(read, (texts(0..100), Vec::new()));
    }
}

/// The server that answers is behind for longer than the publish timeout. It knows that, or it
/// answers without the records.
#[tokio::test(start_paused = true)]
async fn records_count_as_lost_only_if_the_server_does_not_know_that_it_is_behind() {
    for knows in [true, false] {
        let log = FaultyLog::new();
        let (near, cut_off) = (log.connect(), log.connect());
        let (near, far) = (start(near).await, start(cut_off.clone()).await);
        let mut page = open(&far, Cursor::Absent);
        publish(&near, 0..3).await;
        read_to(&mut page, "2").await;
        cut_off.faults().cut();
        publish(&near, 3..8).await;
        cut_off.faults().heal();
        if knows {
            // The comparison of the records that were applied reads after another number.
            cut_off.faults().every_if(Operation::Range, Fault::NotYet, |call| call.after == Some(3));
        } else {
            log.hide([4, 5, 6, 7]);
        }
        tokio::time::sleep(5 * PUBLISH_TIMEOUT).await;
        assert_eq!(far.is_ready(), !knows);
        cut_off.faults().heal();
        log.show_all();
        let (events, gaps) = read_to(&mut page, "7").await;
        let expected = if knows { (texts(3..8), 0) } else { (texts(7..8), 1) };
        assert_eq!((events, gaps.len()), expected, "{gaps:?}");
    }
}

/// As above, for a client that needs records which are older than those in memory.
#[tokio::test(start_paused = true)]
async fn a_block_counts_as_lost_only_if_the_server_does_not_know_that_it_is_behind() {
    for knows in [true, false] {
        let log = FaultyLog::new();
        let hub = start(log.connect()).await;
        let begin = hub.position();
        publish(&hub, 0..100).await;
        until(|| number(hub.position()) == 100).await;
        if knows {
            log.faults().every(Operation::Range, Fault::NotYet);
        } else {
            log.hide(1..=50);
        }
        let mut page = open(&hub, begin);
        let heals = async {
            tokio::time::sleep(5 * PUBLISH_TIMEOUT).await;
            log.faults().heal();
        };
        let ((events, gaps), ()) = futures::join!(read_to(&mut page, "99"), heals);
        assert_eq!((events.len(), gaps.len()), if knows { (100, 0) } else { (50, 1) }, "{gaps:?}");
    }
}

/// A read that the server cannot answer for a moment is repeated, without an interruption of the
/// streams.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_behind_for_a_moment_does_not_interrupt_the_instance() {
    let log = FaultyLog::new();
    let (near, far) = (start(log.connect()).await, log.connect());
    let hub = start(far.clone()).await;
    let mut page = open(&hub, Cursor::Absent);
    far.faults().next(Operation::DeliverRecords, Fault::LoseAnswer);
    for _ in 0..2 {
        far.faults().next(Operation::Range, Fault::NotYet);
    }
    publish(&near, 0..1).await;
    publish(&near, 1..2).await;
    let mut items = Vec::new();
    while items.len() < 2 {
        match soon(page.next()).await.unwrap() {
            SubscriberItem::Event(event) => items.push(event.data),
            SubscriberItem::Live(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((items, far.faults().calls(Operation::Range)), (texts(0..2), 3));
}

/// The missing record is in the middle of the log.
#[tokio::test]
async fn a_record_that_a_broker_never_delivers_is_one_gap() {
    let log = FaultyLog::new();
    let (near, far) = (start(log.connect()).await, start(log.connect()).await);
    let begin = far.position();
    let mut page = open(&far, Cursor::Absent);
    log.hide([3]);
    publish(&near, 0..5).await;
    let (events, gaps) = read_to(&mut page, "4").await;
    assert_eq!((events, gaps), (["0", "1", "3", "4"].map(str::to_owned).to_vec(), vec!["lost".to_owned()]));
    until(|| far.is_ready()).await;
    publish(&near, 5..100).await;
    until(|| number(far.position()) == 100).await;
    let mut late = open(&far, begin);
    let (events, gaps) = read_to(&mut late, "99").await;
    assert_eq!((events.len(), gaps.len()), (99, 1), "{gaps:?}");
}

/// Trimmed records cannot arrive later, so the instance does not wait for them.
#[tokio::test]
async fn trimmed_records_are_one_gap_at_once() {
    let log = FaultyLog::new();
    let (near, far) = (start(log.connect()).await, start(log.connect()).await);
    let mut page = open(&far, Cursor::Absent);
    publish(&near, 0..3).await;
    read_to(&mut page, "2").await;
    log.trim_to(500);
    publish(&near, 500..501).await;
    let (events, gaps) = read_to(&mut page, "500").await;
    assert_eq!((events, gaps), (texts(500..501), vec!["lost".to_owned()]));
}

/// An instance that is cut off accepts a cursor that is far ahead of its own position.
#[tokio::test]
async fn a_client_far_ahead_of_an_instance_that_is_cut_off_gets_no_gap() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    publish(&hub, 0..3).await;
    until(|| number(hub.position()) == 3).await;
    let epoch = hub.position().to_string();
    let epoch = epoch.split('.').nth(1).unwrap();
    log.faults().cut();
    until(|| !hub.is_ready()).await;
    log.trim_to(150_000);
    let cursor = Cursor::parse(format!("1.{epoch}.150000").as_bytes());
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), cursor).unwrap();
    log.faults().heal();
    until(|| hub.is_ready()).await;
    publish(&hub, 7..8).await;
    assert_eq!(read_to(&mut page, "7").await, (texts(7..8), Vec::new()));
    // An instance that follows the log treats such a cursor as invalid.
    let cursor = Cursor::parse(format!("1.{epoch}.999999999").as_bytes());
    let mut page = hub.subscribe(Subscription::anonymous().topic("t"), cursor).unwrap();
    publish(&hub, 8..9).await;
    assert_eq!(read_to(&mut page, "8").await.1, ["ahead"]);
}

/// A record that was prepared in a long transaction is stored when the transaction is committed.
#[tokio::test]
async fn age_of_a_record_that_was_prepared_long_before_counts_from_the_time_at_which_it_was_stored() {
    let log = Memory::new();
    let record = |topic: &str| {
        let record = format!(r#"{{"v":1,"at":1000,"to":{{"topics":["{topic}"]}},"data":"old","key":"k"}}"#);
        NewRecord::new(record.into())
    };
    let mut value = record("latest/a");
    value.values = vec![Value::new(r#"["topic","latest/a","k"]"#, false)];
    log.append(vec![record("t"), value], None).await;
    let latest = Retention::latest_per_key().age(Duration::from_secs(60));
    let builder = builder().retention_for(TopicFilter::prefix("latest/"), latest);
    let hub = builder.backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    let subscription = Subscription::anonymous().topic("t").topic("latest/a").start(Start::Oldest);
    let mut page = hub.subscribe(subscription, Cursor::Absent).unwrap();
    publish(&hub, 0..1).await;
    assert_eq!(read_to(&mut page, "0").await.0, ["old", "old", "0"]);
}

/// The age of a value counts from its publication, not from the time at which an instance read it.
#[tokio::test]
async fn an_expired_value_is_not_current_on_an_instance_that_starts() {
    let log = FaultyLog::new();
    let latest = Retention::latest_per_key().age(Duration::from_secs(2));
    let hub = |log: &FaultyLog| {
        let builder = builder().retention_for(TopicFilter::prefix("latest/"), latest.clone());
        let hub = builder.backplane(log.connect()).build().unwrap();
        async move {
            until(|| hub.is_ready()).await;
            hub
        }
    };
    let one = hub(&log).await;
    one.topic("latest/a").publish(Event::unnamed("old").key("old")).await.unwrap();
    // In the first round the log still has the value. In the second only the stored values have it.
    for trims in [false, true] {
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        one.topic("latest/a").publish(Event::unnamed("young").key("young")).await.unwrap();
        if trims {
            log.trim_to(log.last());
        }
        let two = hub(&log).await;
        let mut page = two.subscribe(Subscription::anonymous().topic("latest/a"), Cursor::Absent).unwrap();
        let mut values = Vec::new();
        loop {
            match soon(page.next()).await.unwrap() {
                SubscriberItem::Event(event) => values.push(event.data),
                SubscriberItem::Live(_) => break,
                _ => {}
            }
        }
        assert_eq!(values, ["young"], "trimmed: {trims}");
    }
}
