//! The appends of one runtime that wait for their transaction.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::super::{Answer, LogPosition, NewRecord, Seen};

/// The maximum number of records of one transaction.
const MAX_RECORDS: usize = 1000;
/// The approximate maximum number of bytes of one transaction.
const MAX_BYTES: usize = 4 << 20;
/// The approximate number of bytes that the server writes for a value, besides its id and its
/// record.
const BYTES_OF_VALUE: usize = 500;

/// The minimum time between two transactions that only move records of the inbox. Otherwise an
/// application that commits all the time would cause transactions all the time.
const INTERVAL: Duration = Duration::from_millis(5);
/// The same after a transaction for more than `FEW_WAKES`: larger batches leave the server more
/// time for the application.
const BUSY_INTERVAL: Duration = Duration::from_millis(25);
const FEW_WAKES: u32 = 8;

/// The appends that wait for the task of this runtime.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Part>,
    /// Wakes the task while it waits for `moves_at`.
    pub(super) arrived: Arc<Notify>,
    /// The number of wake-ups since the last transaction began. Each stands for records of the
    /// inbox.
    pub(super) wakes: u32,
    /// The earliest time for a transaction that only moves records of the inbox.
    moves_at: Option<Instant>,
    /// Whether the task runs.
    pub(super) is_running: bool,
}

/// Records of one append, at most as many as fit into one transaction.
pub(super) struct Part {
    pub(super) records: Vec<NewRecord>,
    pub(super) seen: Option<Seen>,
    pub(super) answer: oneshot::Sender<Vec<Answer<LogPosition>>>,
}

impl Queue {
    /// Begins the next transaction, and returns its parts. The error is the time to wait before a
    /// transaction that only moves records of the inbox.
    pub(super) fn next(&mut self) -> Result<Vec<Part>, Duration> {
        let now = Instant::now();
        let pause = self.moves_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        if self.waiting.is_empty() && !pause.is_zero() {
            return Err(pause);
        }
        self.moves_at = Some(now + if self.wakes > FEW_WAKES { BUSY_INTERVAL } else { INTERVAL });
        self.wakes = 0;
        Ok(self.take())
    }

    /// Removes the parts whose publish has failed meanwhile. Otherwise they would be appended long
    /// after that. Returns whether nothing waits.
    pub(super) fn is_done(&mut self) -> bool {
        self.waiting.retain(|part| !part.answer.is_closed());
        self.waiting.is_empty() && self.wakes == 0
    }

    /// Notes that the last transaction has left records in the inbox.
    pub(super) fn continue_moving(&mut self) {
        self.wakes = self.wakes.saturating_add(1);
        self.moves_at = None;
    }

    /// Removes the parts of the next transaction.
    fn take(&mut self) -> Vec<Part> {
        let (mut records, mut bytes) = (0, 0);
        let fits = |part: &&Part| {
            records += part.records.len();
            bytes = part.records.iter().map(size).fold(bytes, usize::saturating_add);
            records <= MAX_RECORDS && bytes <= MAX_BYTES
        };
        let count = self.waiting.iter().take_while(fits).count();
        // A single part may exceed the limit of the bytes.
        self.waiting.drain(..count.max(1).min(self.waiting.len())).collect()
    }
}

/// Splits records into parts that fit into one transaction each.
pub(super) fn split(records: Vec<NewRecord>) -> Vec<Vec<NewRecord>> {
    let mut parts: Vec<Vec<NewRecord>> = Vec::new();
    let mut bytes: usize = 0;
    for record in records {
        bytes = bytes.saturating_add(size(&record));
        match parts.last_mut().filter(|part| part.len() < MAX_RECORDS && bytes <= MAX_BYTES) {
            Some(part) => part.push(record),
            None => {
                bytes = size(&record);
                parts.push(vec![record]);
            }
        }
    }
    parts
}

/// The approximate number of bytes that the server writes. Each value that is set is a copy of the
/// record.
fn size(record: &NewRecord) -> usize {
    let copies = record.values.iter().filter(|value| !value.removes).count().max(1);
    let ids: usize = record.values.iter().map(|value| value.id.len() + BYTES_OF_VALUE).sum();
    record.payload.len().saturating_mul(copies).saturating_add(ids)
}
