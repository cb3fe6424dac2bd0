//! The rules of the log: records, tails, current values, idempotency keys and epochs.

use std::collections::btree_map::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::rule::{
    Breach, LIMIT, Logs, Outcome, PAUSE, append, append_one, call, ensure, ensure_eq, is_pending, next, record, text,
    value,
};
use crate::backplane::{Backplane, ControlStream, LogPosition, LogState, Range, ReadLimit, Stored};

pub(super) async fn a_new_log_is_empty(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let state = call(log.state(None)).await?;
    ensure_eq!((state.first, state.last), (1, 0), "the first and the last number");
    ensure!(end(&*log, 0).await?, "a range of an empty log has records");
    ensure!(call(log.values()).await?.is_empty(), "an empty log has current values");
    ensure_eq!(call(log.state(None)).await?, state, "the state of an unchanged log");
    Ok(())
}

pub(super) async fn numbers_are_contiguous_and_in_order(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let epoch = call(log.state(None)).await?.epoch;
    let positions = append(&*log, (0..700).map(|n| record(&n.to_string())).collect(), None).await?;
    for (position, sequence) in positions.iter().zip(1..) {
        ensure_eq!(*position, LogPosition { epoch, sequence }, "the position of a record");
    }
    let state = call(log.state(positions.last().copied())).await?;
    ensure_eq!(state, LogState { epoch, first: 1, last: 700 }, "the state after 700 records");
    let expected: Vec<_> = (4..9).map(|n| (n, (n - 1).to_string())).collect();
    let range = texts(&range(&*log, 3, ReadLimit::records(5)).await?);
    // An adapter may return fewer records.
    ensure!(expected.starts_with(&range), "expected the range {expected:?}, but found {range:?}");
    ensure!(end(&*log, 700).await?, "a range after the last record has records");
    let all = texts(&read(&*log, 0, 700, ReadLimit::records(64)).await?);
    let expected: Vec<_> = (1..=700).map(|n| (n, (n - 1).to_string())).collect();
    ensure_eq!(all, expected, "the records in pages");
    Ok(())
}

/// Two writers share a connection, as two tasks of one instance. All readers, by pages and by tail,
/// see the order that the writers were told.
pub(super) async fn writers_and_readers_see_the_same_order(logs: &Logs<'_>) -> Outcome {
    let connections: Vec<_> = (0..4).map(|_| logs.connect()).collect();
    let writer = |n: usize| {
        let log = &connections[n / 2];
        async move {
            let mut mine = Vec::new();
            for text in (0..50).map(|round| format!("{n}.{round}")) {
                mine.push((append_one(&**log, record(&text), None).await?.sequence, text));
            }
            ensure!(mine.is_sorted_by_key(|(number, _)| *number), "one writer's records are out of order: {mine:?}");
            Ok::<_, Breach>(mine)
        }
    };
    let mut written = try_join_all((0..8).map(writer)).await?.concat();
    written.sort_unstable();
    let numbers: Vec<_> = written.iter().map(|(number, _)| *number).collect();
    let twice = numbers.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    ensure_eq!(twice, None, "a number that two records have");
    ensure_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&400)), "the first and the last of 400 numbers");
    for log in [&connections[0], &logs.connect()] {
        let mut tail = log.tail(0);
        let mut tailed = Vec::new();
        while tailed.len() < 400 {
            let batch = next(&mut tail).await?;
            ensure!(!batch.is_empty(), "a batch of a tail is empty");
            tailed.extend(texts(&batch));
        }
        ensure_eq!(tailed, written, "the records of a tail");
        ensure_eq!(texts(&read(&**log, 0, 400, ReadLimit::records(100)).await?), written, "the records of ranges");
    }
    Ok(())
}

/// Returns a range that has to have records. The response may be out of date, so the range is read
/// again until it has records.
async fn range(log: &dyn Backplane, after: u64, limit: ReadLimit) -> Outcome<Vec<Stored>> {
    let until = Instant::now() + LIMIT;
    loop {
        let answer = call(log.range(after, limit)).await?;
        let Range::Records(range) = answer else {
            ensure!(Instant::now() < until, "the range after record {after} is not available within {LIMIT:?}");
            sleep(PAUSE).await;
            continue;
        };
        ensure!(range.len() <= limit.records, "a range of at most {} records has {}", limit.records, range.len());
        if !range.is_empty() {
            return Ok(range);
        }
        ensure!(Instant::now() < until, "the range after record {after} has no records within {LIMIT:?}");
        sleep(PAUSE).await;
    }
}

/// Returns whether the log has no records after `after`, as far as the server knows.
async fn end(log: &dyn Backplane, after: u64) -> Outcome<bool> {
    let answer = call(log.range(after, ReadLimit::records(10))).await?;
    Ok(answer.into_records().is_none_or(|records| records.is_empty()))
}

/// Returns this number of records after `after`, in pages of at most `limit`.
async fn read(log: &dyn Backplane, after: u64, count: usize, limit: ReadLimit) -> Outcome<Vec<Stored>> {
    let (mut all, mut after) = (Vec::new(), after);
    while all.len() < count {
        let page = range(log, after, limit).await?;
        after = page.last().map_or(after, |stored| stored.sequence);
        all.extend(page);
    }
    Ok(all)
}

fn texts(records: &[Stored]) -> Vec<(u64, String)> {
    records.iter().map(|stored| (stored.sequence, text(&stored.payload))).collect()
}

/// The bytes are those of the payloads. A record that is larger than the limit is read alone.
/// Otherwise a reader could never continue after it.
pub(super) async fn a_range_is_limited_in_bytes_and_has_at_least_one_record(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let sizes = [1, 1_000, 200, 3_000, 1, 1, 70_000, 1, 900, 500, 2_000];
    append(&*log, sizes.map(|size| record(&"x".repeat(size))).into(), None).await?;
    for bytes in [0, 1, 1_500, 4_000, 1_000_000] {
        let limit = ReadLimit::records(sizes.len()).bytes(bytes);
        let mut after = 0;
        while after < sizes.len() as u64 {
            let page = range(&*log, after, limit).await?;
            let size: usize = page.iter().map(|stored| stored.payload.len()).sum();
            let count = page.len();
            ensure!(
                size <= bytes || count == 1,
                "a range of at most {bytes} bytes has {count} records of {size} bytes"
            );
            for stored in page {
                after += 1;
                ensure_eq!(stored.sequence, after, "the number of a record in a range of at most {bytes} bytes");
            }
        }
    }
    Ok(())
}

/// An adapter that does not know the time leaves it out. The clocks of the broker and of this
/// process may differ a little.
pub(super) async fn records_have_the_time_at_which_the_log_stored_them(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let mut tail = log.tail(0);
    append(&*log, vec![record("x"), value("y", &["id"], false)], None).await?;
    let mut stored = read(&*log, 0, 2, ReadLimit::records(10)).await?;
    let mut tailed = Vec::new();
    while tailed.len() < 2 {
        tailed.extend(next(&mut tail).await?);
    }
    stored.extend(tailed);
    stored.extend(call(log.values()).await?.into_iter().map(|value| value.record));
    let now = SystemTime::now();
    for Stored { sequence, at, .. } in stored {
        let Some(at) = at else { continue };
        let difference = now.duration_since(at).unwrap_or_else(|later| later.duration());
        ensure!(difference <= LIMIT, "record {sequence} has a time that differs from the local time by {difference:?}");
    }
    Ok(())
}

pub(super) async fn a_tail_has_the_stored_and_the_new_records(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    append(&*log, vec![record("before"), record("stored")], None).await?;
    let mut tail = log.tail(1);
    let (mut received, mut new) = (Vec::new(), (0..5).map(|n| n.to_string()));
    while received.len() < 6 {
        if let Some(text) = new.next() {
            append(&*log, vec![record(&text)], None).await?;
        }
        let batch = next(&mut tail).await?;
        ensure!(!batch.is_empty(), "a batch of a tail is empty");
        received.extend(texts(&batch));
    }
    let expected: Vec<_> = (2..).zip(["stored", "0", "1", "2", "3", "4"].map(str::to_owned)).collect();
    ensure_eq!(received, expected, "the records of a tail after number 1");
    Ok(())
}

/// Both streams are polled once, while they may be connecting, and then not for a while.
pub(super) async fn a_stream_that_is_not_polled_delays_no_other_call(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let (mut tail, mut listener) = (log.tail(0), log.listen(None));
    ensure!(is_pending(&mut tail), "a tail of an empty log yields");
    ensure!(is_pending(&mut listener), "a new listener yields");
    call(log.state(None)).await?;
    append(&*log, vec![record("x")], None).await?;
    call(log.broadcast(ControlStream::Presence, Bytes::from_static(b"x"))).await?;
    let batch = next(&mut tail).await?;
    ensure_eq!(batch.iter().map(|stored| text(&stored.payload)).collect::<Vec<_>>(), ["x"], "the batch of the tail");
    Ok(())
}

/// Returns the current values: the text of the record by id.
async fn values(log: &dyn Backplane) -> Outcome<BTreeMap<String, String>> {
    let values = call(log.values()).await?;
    Ok(values.iter().map(|value| (value.id.to_string(), text(&value.record.payload))).collect())
}

fn expected<const N: usize>(values: [(&str, &str); N]) -> BTreeMap<String, String> {
    values.map(|(id, text)| (id.to_owned(), text.to_owned())).into()
}

pub(super) async fn current_values_are_the_newest_of_each_id(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let special = "[\"topic\",\"a:b{}\\u0000\",\"k\"]";
    let records = vec![
        value("1", &["x"], false),
        value("2", &[special], false),
        value("3", &["x"], false),
        value("4", &["y"], false),
        value("5", &["y"], true),
    ];
    append(&*log, records, None).await?;
    ensure_eq!(values(&*log).await?, expected([("x", "3"), (special, "2")]), "the current values");
    let numbers = call(log.values()).await?.iter().map(|value| value.record.sequence).collect::<Vec<_>>();
    ensure!(numbers.contains(&2) && numbers.contains(&3), "the current values have the numbers {numbers:?}");
    Ok(())
}

/// Later records replace or remove the value of each id independently.
pub(super) async fn a_record_may_be_the_value_of_several_ids(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let records = vec![
        value("both", &["x", "y"], false),
        value("z", &["z"], false),
        value("only x", &["x"], false),
        value("both gone", &["z", "w"], true),
    ];
    append(&*log, records, None).await?;
    ensure_eq!(values(&*log).await?, expected([("y", "both"), ("x", "only x")]), "the current values");
    append(&*log, vec![value("gone", &["y"], true)], None).await?;
    ensure_eq!(values(&*log).await?, expected([("x", "only x")]), "the current values after a removal");
    Ok(())
}

pub(super) async fn a_repeated_idempotency_key_is_appended_once(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let mut once = record("once");
    once.idempotency_key = Some("key".into());
    let first = append_one(&*log, once.clone(), None).await?;
    let again = append(&*logs.connect(), vec![once, record("other")], None).await?;
    ensure_eq!(again[0], first, "the position of a repeated record");
    ensure_eq!(again[1].sequence, first.sequence + 1, "the number of the record after it");
    Ok(())
}

/// A repeat in a new epoch may be of a record that the log has lost.
pub(super) async fn an_idempotency_key_is_for_one_epoch(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let mut once = record("once");
    once.idempotency_key = Some("key".into());
    let first = append_one(&*log, once.clone(), None).await?;
    let seen = LogPosition { sequence: first.sequence + 10, ..first };
    let state = call(log.state(Some(seen))).await?;
    ensure!(state.epoch != first.epoch, "the log has lost records, and is in the same epoch");
    let again = append_one(&*log, once.clone(), None).await?;
    let expected = LogPosition { epoch: state.epoch, sequence: state.last + 1 };
    ensure_eq!(again, expected, "the position of a record whose key was used in the previous epoch");
    ensure_eq!(append_one(&*log, once, None).await?, expected, "the position of the repeated record");
    Ok(())
}

pub(super) async fn a_log_that_ends_below_the_seen_position_begins_a_new_epoch(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let position = append_one(&*log, record("x"), None).await?;
    let seen = LogPosition { sequence: position.sequence + 10, ..position };
    let state = call(log.state(Some(seen))).await?;
    ensure!(state.epoch != position.epoch, "the log has lost records, and is in the same epoch");
    // An adapter may prove the loss with its own records, which have no audience.
    ensure!(state.last >= position.sequence, "the last number after the loss is {}", state.last);
    // The epoch changes only once: no later request with or without a position changes it again.
    for seen in [None, Some(seen), Some(LogPosition { epoch: state.epoch, sequence: state.last })] {
        ensure_eq!(call(log.state(seen)).await?.epoch, state.epoch, "the epoch at the next request");
    }
    let ahead = LogPosition { epoch: state.epoch, sequence: state.last + 1 };
    let next = append_one(&*log, record("y"), Some(ahead)).await?;
    ensure!(next.epoch != state.epoch, "an append to a log that has lost records is in the same epoch");
    ensure!(next.sequence > state.last, "the number of the first record of the new epoch is {}", next.sequence);
    let mut read = 0;
    while read < next.sequence {
        for stored in range(&*log, read, ReadLimit::records(64)).await? {
            ensure_eq!(stored.sequence, read + 1, "the number after {read} in a log with a new epoch");
            let text = text(&stored.payload);
            let is_added = !matches!(&*text, "x" | "y");
            ensure!(!is_added || text.contains(r#""to":{}"#), "a record of the adapter has an audience: {text}");
            read += 1;
        }
    }
    Ok(())
}
