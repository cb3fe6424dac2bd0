//! A log on which a hub of this version writes as a later version might: with fields, parts and
//! entries that this version does not know, and with versions of records that it cannot read.
//!
//! The hub itself reads its own records in this version, as an instance of the later version could.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use serde_json::{Map, Value, json};
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, ControlMessage, ControlStream, CurrentValue, JournalAppend, JournalId,
    JournalPage, Journals, LogPosition, LogState, Memory, NewRecord, Range, ReadLimit, Seen, Stored,
};

use crate::control_bytes::{number, section, write_number, write_section};

/// The name of an event that only the later version can read.
pub(crate) const UNREADABLE: &str = "of-the-next-version";

#[derive(Clone)]
pub(crate) struct NextVersion(pub(crate) Memory);

/// Adds a field that this version does not know.
fn add_field(object: &mut Map<String, Value>) {
    object.insert("later".into(), json!({ "nested": [1, null, "text"] }));
}

/// Rewrites a JSON object as the later version writes it. `keeps` lists the fields that have the
/// same meaning in every version.
fn rewrite(bytes: &Bytes, keeps: &[&str]) -> Bytes {
    let mut object: Map<String, Value> = serde_json::from_slice(bytes).unwrap();
    let text = std::str::from_utf8(bytes).unwrap();
    if text.contains(UNREADABLE) {
        let mut next = Map::from_iter([("v".into(), json!(3)), ("body".into(), json!(text))]);
        next.extend(object.into_iter().filter(|(name, _)| keeps.contains(&&**name)));
        return serde_json::to_vec(&next).unwrap().into();
    }
    for field in ["to", "will"] {
        object.get_mut(field).and_then(Value::as_object_mut).map(add_field);
    }
    for event in object.get_mut("events").and_then(Value::as_array_mut).into_iter().flatten() {
        event.as_object_mut().map(add_field);
    }
    add_field(&mut object);
    serde_json::to_vec(&object).unwrap().into()
}

/// Returns what this version wrote.
fn restore(bytes: &mut Bytes) {
    let object: Map<String, Value> = serde_json::from_slice(bytes).unwrap();
    if let Some(Value::String(body)) = object.get("body") {
        *bytes = body.clone().into();
    }
}

fn restored(mut records: Vec<Stored>) -> Vec<Stored> {
    records.iter_mut().for_each(|record| restore(&mut record.payload));
    records
}

/// Adds entries of unknown kinds to a control message, and unknown fields to its entries.
fn rewrite_control(message: &Bytes) -> Bytes {
    let mut rest = &message[..];
    let mut next = rest[..9].to_vec();
    rest = &rest[9..];
    // The names: a section with their number, and a section for each.
    let mut from = section(&mut rest);
    let count = number(&mut from);
    let mut names = Vec::new();
    write_number(&mut names, count);
    for _ in 0..count {
        let mut name = section(&mut from).to_vec();
        name.extend_from_slice(b"a later field");
        write_section(&mut names, &name);
    }
    write_section(&mut next, &names);
    let unknown = |next: &mut Vec<u8>| {
        write_number(next, 1_000);
        write_section(next, b"an entry of a later version");
    };
    unknown(&mut next);
    while !rest.is_empty() {
        write_number(&mut next, number(&mut rest));
        let mut content = section(&mut rest).to_vec();
        content.extend_from_slice(b"a later field");
        write_section(&mut next, &content);
        unknown(&mut next);
    }
    next.into()
}

impl Journals for NextVersion {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Result<Begun, BackplaneError>> {
        self.0.begin_journal(key, rewrite(&first, &[]))
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Result<JournalAppend, BackplaneError>> {
        self.0.append_journal(key, id, after, rewrite(&entry, &[]), close)
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Option<JournalPage>, BackplaneError>> {
        let page = self.0.read_journal(key, id, after, max_bytes);
        async move {
            let mut page = page.await?;
            page.iter_mut().flat_map(|page| &mut page.entries).for_each(restore);
            Ok(page)
        }
        .boxed()
    }
}

impl Backplane for NextVersion {
    fn append(
        &self,
        mut records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        for record in &mut records {
            record.payload = rewrite(&record.payload, &["to", "except"]);
        }
        self.0.append(records, seen)
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        self.0.state(seen)
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Range, BackplaneError>> {
        let records = self.0.range(after, limit);
        async move {
            Ok(match records.await? {
                Range::Records(records) => Range::Records(restored(records)),
                answer => answer,
            })
        }
        .boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        self.0.tail(after).map(|batch| batch.map(restored)).boxed()
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        let values = self.0.values();
        async move {
            let mut values = values.await?;
            values.iter_mut().for_each(|value| restore(&mut value.record.payload));
            Ok(values)
        }
        .boxed()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.0.broadcast(stream, rewrite_control(&message))
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        self.0.listen(after)
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.0.put_once(key, rewrite(&payload, &[]), time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        let taken = self.0.take(key);
        async move {
            let mut taken = taken.await?;
            taken.iter_mut().for_each(restore);
            Ok(taken)
        }
        .boxed()
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.0.put_shared(key, rewrite_control(&payload), time)
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.0.get_shared(key)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}
