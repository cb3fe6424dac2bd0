//! Helpers for the rules of the contract: connections to the log of a rule, and calls with a time
//! limit that return a breach.

use std::time::Duration;

use bytes::Bytes;
use futures::future::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use tokio::time::timeout;

use crate::backplane::{Answer, Backplane, BackplaneError, LogPosition, NewRecord, Seen, Value};

/// The result of a rule, or its breach.
pub(super) type Outcome<T = ()> = Result<T, Breach>;

/// The failure of a rule.
pub(super) struct Breach {
    pub(super) text: String,
    /// Whether the broker was unavailable or did not confirm a request. Such a failure does not
    /// show that the adapter breaks the rule.
    pub(super) is_interruption: bool,
}

impl From<String> for Breach {
    fn from(text: String) -> Self {
        Self { text, is_interruption: false }
    }
}

impl From<&str> for Breach {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Breach {
    fn failed(what: &str, error: &BackplaneError) -> Self {
        Self { text: format!("{what}: {error}"), is_interruption: !error.is_rejected() }
    }
}

/// The time limit of each call, far above the expected time.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// The time limit of each rule. It ends a rule whose calls succeed and lead nowhere.
pub(super) const RULE_LIMIT: Duration = Duration::from_secs(60);
/// The pause before a rule tries again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Returns a breach unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($breach:tt)+) => {
        if !$holds {
            return Err(format!($($breach)+).into());
        }
    };
}

/// Returns a breach unless the two are equal. The text says what is compared.
macro_rules! ensure_eq {
    ($found:expr, $expected:expr, $($what:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) if *found == *expected => {}
            (found, expected) => {
                let what = format_args!($($what)+);
                return Err(format!("{what}: expected {expected:?}, but found {found:?}").into());
            }
        }
    };
}

pub(super) use {ensure, ensure_eq};

/// The log of one rule, to which the rule opens connections.
pub(super) struct Logs<'a> {
    name: String,
    connect: &'a dyn Fn(&str) -> Box<dyn Backplane>,
}

impl<'a> Logs<'a> {
    pub(super) fn new(name: String, connect: &'a dyn Fn(&str) -> Box<dyn Backplane>) -> Self {
        Self { name, connect }
    }

    pub(super) fn connect(&self) -> Box<dyn Backplane> {
        (self.connect)(&self.name)
    }
}

/// Waits for a call, which has to succeed within the time limit.
pub(super) async fn call<T>(call: impl Future<Output = Answer<T>>) -> Outcome<T> {
    match timeout(LIMIT, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Breach::failed("a call failed", &error)),
        Err(_) => Err(format!("a call did not return within {LIMIT:?}").into()),
    }
}

/// Waits for the next item of a stream, which has to come within the time limit.
pub(super) async fn next<T>(stream: &mut BoxStream<'static, Answer<T>>) -> Outcome<T> {
    match timeout(LIMIT, stream.next()).await {
        Ok(Some(Ok(item))) => Ok(item),
        Ok(Some(Err(error))) => Err(Breach::failed("a stream ended with an error", &error)),
        Ok(None) => Err("a stream ended without an error".into()),
        Err(_) => Err(format!("a stream yielded nothing within {LIMIT:?}").into()),
    }
}

/// Polls a stream once. Returns whether it yields nothing.
pub(super) fn is_pending<T>(stream: &mut BoxStream<'static, Answer<T>>) -> bool {
    stream.next().now_or_never().is_none()
}

/// Appends records, each of which has to succeed.
pub(super) async fn append(
    log: &dyn Backplane,
    records: Vec<NewRecord>,
    seen: Option<Seen>,
) -> Outcome<Vec<LogPosition>> {
    let count = records.len();
    let positions = call(async { log.append(records, seen).await.into_iter().collect::<Answer<Vec<_>>>() }).await?;
    ensure_eq!(positions.len(), count, "the number of results of an append");
    Ok(positions)
}

pub(super) async fn append_one(log: &dyn Backplane, record: NewRecord, seen: Option<Seen>) -> Outcome<LogPosition> {
    let positions = append(log, vec![record], seen).await?;
    positions.first().copied().ok_or_else(|| "an append returned no position".into())
}

pub(super) fn record(text: &str) -> NewRecord {
    NewRecord::new(bytes(text))
}

/// Returns a record that sets or removes the current values of these ids.
pub(super) fn value(text: &str, ids: &[&str], removes: bool) -> NewRecord {
    let mut record = record(text);
    record.values = ids.iter().map(|id| Value::new(*id, removes)).collect();
    record
}

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

pub(super) fn text(payload: &Bytes) -> String {
    String::from_utf8_lossy(payload).into_owned()
}
