//! Appends records. Concurrent appends of one runtime become one transaction, because the server
//! writes each transaction to the disk before it answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::super::{Answer, BackplaneError, LogPosition, NewRecord, Seen};
use super::connection::get;
use super::queue::{Part, Queue, split};
use super::server::{Shared, number, seen};
use crate::sync::Mutex;

/// Appends records, and returns the position of each.
pub(super) async fn append(
    shared: &Arc<Shared>,
    records: Vec<NewRecord>,
    seen: Option<Seen>,
) -> Vec<Answer<LogPosition>> {
    if let Some(error) = problem(&records) {
        return records.iter().map(|_| Err(error.duplicate())).collect();
    }
    let mut counts = Vec::new();
    let mut answers = Vec::new();
    let mut parts = VecDeque::new();
    for records in split(records) {
        let (answer, receiver) = oneshot::channel();
        counts.push(records.len());
        answers.push(receiver);
        parts.push_back(Part { records, seen, answer });
    }
    let push = |queue: &mut Queue| {
        queue.waiting.append(&mut parts);
        queue.arrived.notify_one();
    };
    if let Err(error) = enqueue(shared, push) {
        return counts.iter().flat_map(|&count| (0..count).map(|_| Err(error.duplicate()))).collect();
    }
    let mut results = Vec::new();
    for (answer, count) in join_all(answers).await.into_iter().zip(counts) {
        // The task ends early with its runtime, and after a panic.
        results.extend(answer.unwrap_or_else(|_| {
            (0..count).map(|_| Err(BackplaneError::unknown("the task that appends has ended"))).collect()
        }));
    }
    results
}

/// Moves the records of the inbox into the log soon. Calls before the next transaction begins have
/// one effect.
pub(super) fn wake(shared: &Arc<Shared>) {
    // Without a runtime, the instances find the records at their next poll.
    let _ = enqueue(shared, |queue| queue.wakes = queue.wakes.saturating_add(1));
}

/// Changes the queue of the current runtime, and starts its task if it does not run.
fn enqueue(shared: &Arc<Shared>, change: impl FnOnce(&mut Queue)) -> Answer<()> {
    let runtime = Handle::try_current().map_err(|_| BackplaneError::unavailable("not in a tokio runtime"))?;
    let queue = shared.queues.here();
    let is_running = {
        let mut queue = queue.lock();
        change(&mut queue);
        std::mem::replace(&mut queue.is_running, true)
    };
    if !is_running {
        let (shared, running) = (Arc::clone(shared), Running { queue: Arc::clone(&queue), has_ended: false });
        runtime.spawn(async move { run(&shared, running).await });
    }
    Ok(())
}

/// The task that sends the transactions of a queue. If it ends early, with its runtime or by a
/// panic, its callers get an error, and the next call starts a new task.
struct Running {
    queue: Arc<Mutex<Queue>>,
    has_ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended {
            let mut queue = self.queue.lock();
            queue.is_running = false;
            queue.waiting.clear();
        }
    }
}

/// Sends transactions until nothing waits.
async fn run(shared: &Shared, mut running: Running) {
    let queue = Arc::clone(&running.queue);
    let arrived = Arc::clone(&queue.lock().arrived);
    loop {
        let next = {
            let mut queue = queue.lock();
            if queue.is_done() {
                queue.is_running = false;
                running.has_ended = true;
                return;
            }
            queue.next()
        };
        let parts = match next {
            Ok(parts) => parts,
            Err(pause) => {
                let _ = tokio::time::timeout(pause, arrived.notified()).await;
                continue;
            }
        };
        match transaction(shared, &parts).await {
            Ok((mut positions, is_complete)) => {
                for part in parts {
                    let rest = positions.split_off(part.records.len());
                    // The caller may have been dropped.
                    let _ = part.answer.send(positions.into_iter().map(Ok).collect());
                    positions = rest;
                }
                if !is_complete {
                    queue.lock().continue_moving();
                }
            }
            Err(error) => {
                for part in parts {
                    let _ = part.answer.send(part.records.iter().map(|_| Err(error.duplicate())).collect());
                }
            }
        }
    }
}

/// Returns an error if a text cannot be stored: a text of Postgres has no NUL.
fn problem(records: &[NewRecord]) -> Option<BackplaneError> {
    let has_nul = |record: &NewRecord| {
        record.values.iter().any(|value| value.id.contains('\0'))
            || record.idempotency_key.as_ref().is_some_and(|key| key.contains('\0'))
    };
    let text = "the id of a value or an idempotency key contains U+0000";
    records.iter().any(has_nul).then(|| BackplaneError::rejected(text))
}

/// Appends the records of some parts. Returns their positions, and whether the inbox has no more
/// records.
async fn transaction(shared: &Shared, parts: &[Part]) -> Answer<(Vec<LogPosition>, bool)> {
    let records: Vec<&NewRecord> = parts.iter().flat_map(|part| &part.records).collect();
    let payloads: Vec<&[u8]> = records.iter().map(|record| &record.payload[..]).collect();
    let keys: Vec<Option<&str>> = records.iter().map(|record| record.idempotency_key.as_deref()).collect();
    let (mut set_by, mut sets, mut removed_by, mut removes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, record) in (1_i32..).zip(&records) {
        for value in &record.values {
            let (by, ids) = if value.removes { (&mut removed_by, &mut removes) } else { (&mut set_by, &mut sets) };
            by.push(index);
            ids.push(&*value.id);
        }
    }
    let (mut seen_epochs, mut seen_numbers) = (Vec::new(), Vec::new());
    for part in parts {
        let (epoch, number) = seen(part.seen);
        if part.seen.is_some() && (seen_epochs.last(), seen_numbers.last()) != (Some(&epoch), Some(&number)) {
            seen_epochs.push(epoch);
            seen_numbers.push(number);
        }
    }
    let compared = shared.compared();
    let limits = Limits::new(shared);
    let row = shared
        .one(
            &shared.publish,
            "SELECT * FROM tower_sse.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
            &[
                (&shared.settings.namespace, Type::TEXT),
                (&payloads, Type::BYTEA_ARRAY),
                (&keys, Type::TEXT_ARRAY),
                (&set_by, Type::INT4_ARRAY),
                (&sets, Type::TEXT_ARRAY),
                (&removed_by, Type::INT4_ARRAY),
                (&removes, Type::TEXT_ARRAY),
                (&compared.new_epoch, Type::INT8),
                (&seen_epochs, Type::INT8_ARRAY),
                (&seen_numbers, Type::INT8_ARRAY),
                (&compared.own_epoch, Type::INT8),
                (&compared.own, Type::INT8),
                (&compared.own_start, Type::BYTEA),
                (&limits.records, Type::INT8),
                (&limits.bytes, Type::INT8),
                (&limits.age_ms, Type::INT8),
                (&limits.values, Type::INT8),
                (&limits.wait_ms, Type::INT8),
            ],
        )
        .await?;
    let epoch = get::<i64>(&row, 0)?.cast_unsigned();
    let numbers: Vec<i64> = get(&row, 1)?;
    let last_before: u64 = number(get(&row, 2)?)?;
    if numbers.len() != records.len() {
        return Err(BackplaneError::unknown("the server returned too few numbers"));
    }
    let mut positions = Vec::with_capacity(numbers.len());
    for value in numbers {
        positions.push(LogPosition { epoch, sequence: number(value)? });
    }
    // A number up to `last_before` belongs to an earlier record with the same idempotency key. Of
    // several records with one number, the first is in the log.
    let newest = positions.iter().zip(&records).rev().max_by_key(|(position, _)| position.sequence);
    if let Some((position, record)) = newest.filter(|(position, _)| position.sequence > last_before) {
        shared.remember(*position, &record.payload);
    }
    shared.appended.send_modify(|count| *count += 1);
    Ok((positions, get(&row, 3)?))
}

/// The limits of the log, as the functions of the schema take them.
pub(super) struct Limits {
    pub(super) records: i64,
    pub(super) bytes: i64,
    pub(super) age_ms: i64,
    pub(super) values: i64,
    /// The time for which a writer waits for another one.
    pub(super) wait_ms: i64,
}

impl Limits {
    pub(super) fn new(shared: &Shared) -> Self {
        let limits = &shared.settings.limits;
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        // A century. The server cannot calculate with much longer ages.
        const MAX_AGE_MS: i64 = 100 * 366 * 86_400_000;
        Self {
            // Half of the maximum, because the server adds some slack.
            records: i64::try_from(limits.max_records).unwrap_or(i64::MAX / 2).min(i64::MAX / 2),
            bytes: i64::try_from(limits.max_bytes).unwrap_or(i64::MAX / 2).min(i64::MAX / 2),
            age_ms: millis(limits.max_age).min(MAX_AGE_MS),
            values: i64::try_from(limits.max_values).unwrap_or(i64::MAX / 2).min(i64::MAX / 2),
            wait_ms: millis(limits.timeout / 2).clamp(1, i64::from(i32::MAX)),
        }
    }
}
