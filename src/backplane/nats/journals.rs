//! Journals on NATS. One stream stores all journals, and each journal has its own subject.
//!
//! - Each message is one entry. Its header names the journal, the number of the entry and the time
//!   at which the journal began. The header of the entry that closes the journal also has the time
//!   for which the journal is kept. So the newest message of a subject describes the journal.
//! - An entry is published by compare-and-set: the server stores it only if the newest message of
//!   the subject is the one that the adapter expects. A session remembers the newest messages that
//!   it has written or read, so that an append usually takes one round trip.
//! - The first entry of a journal *rolls up* the subject: the server stores it and removes the
//!   older messages of the subject. A server that is killed between these two steps keeps the older
//!   messages, so readers skip messages of other journals.
//! - The adapter that closes a journal removes its messages when the time has passed. An adapter
//!   that finds older messages removes them too. The maximum age of the stream removes messages
//!   that no adapter has removed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_ROLLUP;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::time::sleep;

use super::super::journal::{self, Begun, JournalAppend, JournalId, JournalPage, Journals, fitting};
use super::super::{Answer, BackplaneError};
use super::Nats;
use super::connection::Connection;
use super::journal_headings::{Heading, Known, Place, millis, now};
use super::reader::Reader;
use super::session::Session;
use super::shared::Shared;
use super::streams::{self, Plain};

/// The maximum number of attempts while other callers change the journal.
const ATTEMPTS: usize = 8;
/// The pause between two attempts in a cluster.
const PAUSE: Duration = Duration::from_millis(20);
/// The number of entries in the first batch of a read, whose size is not known yet.
const FIRST_BATCH: usize = 64;
/// The maximum number of entries in one batch of a read.
const BATCH: usize = 512;

/// The newest entry of a journal.
struct Newest {
    heading: Heading,
    /// The number of the message in the stream.
    sequence: u64,
    payload: Bytes,
}

/// The place of a new entry.
enum Found {
    /// The new entry follows this newest entry.
    End(Place),
    /// The journal already has the new entry.
    Repeat,
    Conflict,
}

/// A journal over one connection.
struct Subject<'s> {
    connection: &'s Connection,
    known: &'s Known,
    subject: &'s str,
}

impl<'s> Subject<'s> {
    fn new(session: &'s Session, subject: &'s str) -> Self {
        Self { connection: &session.connection, known: &session.journals, subject }
    }

    fn stream(&self) -> &'s str {
        &self.connection.names.journals
    }

    /// Returns whether the stream of journals exists.
    ///
    /// The first call of a session requests the description of the stream: a server of version
    /// 2.9.10 crashes on a request for a message of a stream that is being created.
    async fn has_stream(&self) -> Answer<bool> {
        if !self.known.has_stream.load(Ordering::Acquire) {
            let has_stream = streams::has_journals(self.connection).await?;
            self.known.has_stream.store(has_stream, Ordering::Release);
        }
        Ok(self.known.has_stream.load(Ordering::Acquire))
    }

    /// Returns the newest entry of the current journal, and the number of the newest message of the
    /// subject, or 0 if the subject has no message.
    async fn newest(&self) -> Answer<(Option<Newest>, u64)> {
        let message = self.connection.newest_of(self.stream(), self.subject).await.inspect_err(|_| {
            // The stream may have been deleted, so the next call asks for it.
            self.known.has_stream.store(false, Ordering::Release);
        })?;
        let Some(message) = message else { return Ok((None, 0)) };
        let heading = Heading::parse(&message.headers)?;
        let stored_at = u64::try_from(message.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        let sequence = message.sequence;
        if heading.is_forgotten(stored_at, now()) {
            return Ok((None, sequence));
        }
        Ok((Some(Newest { heading, sequence, payload: message.payload }), sequence))
    }

    /// Publishes an entry if the newest message of the subject has the number `newest`. Returns
    /// false if it has another number, or if no stream accepts the subject.
    async fn publish(&self, heading: Heading, entry: Bytes, newest: u64) -> Answer<bool> {
        let mut headers = heading.write();
        if heading.number == 1 {
            headers.insert(NATS_ROLLUP, "sub");
        }
        let message = PublishMessage::build().payload(entry).headers(headers).expected_last_subject_sequence(newest);
        match self.connection.publish(self.subject.to_owned(), message).await? {
            Ok(PublishAck { sequence, .. }) => {
                self.known.written.remember(self.subject, Place { heading, sequence });
                Ok(true)
            }
            Err(error) => {
                self.known.written.forget(self.subject);
                match error.kind() {
                    _ if Connection::is_conflict(&error) => {
                        // In a cluster, the message of another caller may not be stored yet.
                        if self.connection.is_clustered() {
                            sleep(PAUSE).await;
                        }
                        Ok(false)
                    }
                    PublishErrorKind::StreamNotFound => {
                        self.known.has_stream.store(false, Ordering::Release);
                        Ok(false)
                    }
                    PublishErrorKind::MaxPayloadExceeded => Err(self.connection.too_large("entry")),
                    _ => Err(Connection::publish_error(&error)),
                }
            }
        }
    }

    /// Makes the next read current, because the server that answered the previous read may lack
    /// entries, or may not know the stream of journals. Returns false if the previous read was
    /// current: on a single server, or after another call. Returns an error if no stream accepts
    /// the write, because it may have no leader at the moment.
    async fn confirm(&self, is_current: &mut bool) -> Answer<bool> {
        if *is_current || !self.connection.is_clustered() {
            return Ok(false);
        }
        let mut headers = HeaderMap::new();
        // The subject keeps one message.
        headers.insert(NATS_ROLLUP, "sub");
        let message = PublishMessage::build().headers(headers);
        self.known.barrier.pass(self.connection, self.connection.names.no_journal(), message).await?;
        self.known.has_stream.store(true, Ordering::Release);
        *is_current = true;
        Ok(true)
    }

    async fn begin(&self, first: Bytes) -> Answer<Begun> {
        for _ in 0..ATTEMPTS {
            let (found, newest) = self.find_open(&first).await.map_err(BackplaneError::before_request)?;
            if let Some(found) = found {
                return Ok(found);
            }
            let heading = Heading { id: JournalId::random(), number: 1, begun: now(), keep: None };
            if self.publish(heading, first.clone(), newest).await? {
                return Ok(Begun::New(heading.id));
            }
        }
        Err(BackplaneError::unavailable("the journal cannot be begun while other callers change it"))
    }

    /// Returns the open journal, if any, and the number of the newest message of the subject.
    /// Creates the stream if it does not exist.
    async fn find_open(&self, first: &Bytes) -> Answer<(Option<Begun>, u64)> {
        if !self.has_stream().await? {
            Plain::journals(&self.connection.names).create_if_missing(self.connection).await?;
            if !self.has_stream().await? {
                return Err(BackplaneError::unavailable("the stream of journals was deleted"));
            }
        }
        let (newest, sequence) = self.newest().await?;
        let Some(Newest { heading, payload, .. }) = newest.filter(|newest| newest.heading.keep.is_none()) else {
            return Ok((None, sequence));
        };
        let is_repeat = if heading.number == 1 { payload == first } else { self.begins_with(first).await? };
        Ok((Some(if is_repeat { Begun::New(heading.id) } else { Begun::Active(heading.id) }), sequence))
    }

    /// Returns whether the first message of the subject has these bytes.
    async fn begins_with(&self, first: &Bytes) -> Answer<bool> {
        let request = json!({ "seq": 1, "next_by_subj": self.subject });
        let message = self.connection.message(self.stream(), &request).await?;
        Ok(message.is_some_and(|message| message.payload == first))
    }

    async fn append(&self, id: JournalId, after: u64, entry: Bytes, close: Option<Duration>) -> Answer<JournalAppend> {
        let Some(number) = after.checked_add(1) else { return Ok(JournalAppend::Conflict) };
        let keep = close.map(|keep| millis(keep.min(journal::MAX_KEEP)));
        let is_end = |place: &Place| place.heading.number == after && place.heading.keep.is_none();
        let mut known = self.known.written.find(self.subject, id).filter(is_end);
        let mut is_current = false;
        for _ in 0..ATTEMPTS {
            let place = match known.take() {
                Some(place) => place,
                None => match self.find(id, number, &entry, close.is_some()).await {
                    Ok(Found::End(place)) => place,
                    Ok(Found::Repeat) => return Ok(JournalAppend::Appended),
                    Ok(Found::Conflict) => {
                        if self.confirm(&mut is_current).await.map_err(BackplaneError::before_request)? {
                            continue;
                        }
                        return Ok(JournalAppend::Conflict);
                    }
                    Err(error) => return Err(error.before_request()),
                },
            };
            if place.heading.is_too_old(now()) {
                return Ok(JournalAppend::Conflict);
            }
            if self.publish(Heading { number, keep, ..place.heading }, entry.clone(), place.sequence).await? {
                return Ok(JournalAppend::Appended);
            }
        }
        Err(BackplaneError::unavailable("the journal cannot be extended while other callers change it"))
    }

    /// Finds the place after which the entry `number` is to be appended.
    async fn find(&self, id: JournalId, number: u64, entry: &Bytes, closes: bool) -> Answer<Found> {
        if !self.has_stream().await? {
            return Ok(Found::Conflict);
        }
        let Some(newest) = self.newest().await?.0.filter(|newest| newest.heading.id == id) else {
            return Ok(Found::Conflict);
        };
        let heading = newest.heading;
        if heading.number >= number {
            let is_repeat = self.has(number, entry, closes, &newest).await?;
            return Ok(if is_repeat { Found::Repeat } else { Found::Conflict });
        }
        if heading.number + 1 < number || heading.keep.is_some() {
            return Ok(Found::Conflict);
        }
        Ok(Found::End(Place { heading, sequence: newest.sequence }))
    }

    /// Returns whether the entry `number` of the journal has these bytes, and closed the journal
    /// exactly if `closes` is set.
    async fn has(&self, number: u64, entry: &Bytes, closes: bool, newest: &Newest) -> Answer<bool> {
        if newest.heading.number == number {
            return Ok(newest.payload == *entry && newest.heading.keep.is_some() == closes);
        }
        let found = self.entries(newest, number - 1, 0).await?;
        Ok(!closes && found.first() == Some(entry))
    }

    async fn read(&self, id: Option<JournalId>, after: u64, max_bytes: usize) -> Answer<Option<JournalPage>> {
        let mut is_current = false;
        for _ in 0..ATTEMPTS {
            if !self.has_stream().await? {
                if self.confirm(&mut is_current).await? {
                    continue;
                }
                return Ok(None);
            }
            let (newest, sequence) = self.newest().await?;
            let is_found = newest
                .as_ref()
                .is_some_and(|Newest { heading, .. }| heading.number >= after && id.is_none_or(|id| id == heading.id));
            if !is_found && self.confirm(&mut is_current).await? {
                continue;
            }
            let Some(newest) = newest else {
                if sequence > 0 {
                    purge(self.connection, self.subject, sequence).await;
                }
                return Ok(None);
            };
            let Heading { id: current, number: last, keep, .. } = newest.heading;
            if id.is_some_and(|id| id != current) {
                return Ok(None);
            }
            let entries = if after >= last {
                Vec::new()
            } else if after + 1 == last {
                vec![newest.payload]
            } else {
                let entries = match self.entries(&newest, after, max_bytes).await {
                    // The time of the journal has passed meanwhile, and its messages were removed.
                    Err(error) if error.is_unknown() && keep.is_some() && self.newest().await?.0.is_none() => continue,
                    entries => entries?,
                };
                if entries.is_empty() {
                    // Another caller has replaced the journal meanwhile, or an entry was removed.
                    continue;
                }
                entries
            };
            return Ok(Some(JournalPage { id: current, entries, last, is_closed: keep.is_some() }));
        }
        // An entry was removed, for example by an administrator.
        Ok(None)
    }

    /// Reads entries above `after` of the journal with this newest entry. Returns fewer entries
    /// than fit into `max_bytes` if the journal is replaced meanwhile, and no entries if the first
    /// of them is missing. Returns an error if it is missing only on the replica that was read.
    async fn entries(&self, newest: &Newest, after: u64, max_bytes: usize) -> Answer<Vec<Bytes>> {
        let Newest { heading: Heading { id, number: last, .. }, .. } = *newest;
        let known = self.known.read.find(self.subject, id).filter(|place| place.heading.number <= after);
        let start = known.map_or(0, |place| place.sequence);
        let mut reader = Reader::open(self.connection, self.stream(), start, Some(self.subject)).await?;
        let mut remaining = reader.waiting;
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0_usize, after + 1);
        let mut places = Vec::new();
        let mut is_first = true;
        let mut read_through = 0;
        while remaining > 0 && next <= last && (entries.is_empty() || bytes < max_bytes) {
            // About as many entries as fit into the rest of the page.
            let fit = max_bytes.saturating_sub(bytes).saturating_mul(entries.len()) / bytes.max(1);
            let batch = match entries.is_empty() {
                true if std::mem::take(&mut is_first) => FIRST_BATCH,
                // The reader skips the entries before the page.
                true => BATCH,
                false => fit.clamp(1, BATCH),
            };
            let batch = batch.min(usize::try_from(remaining).unwrap_or(usize::MAX));
            let messages = reader.next(batch, self.connection.limits.timeout).await?;
            if messages.is_empty() {
                // The answer is late, or another caller has replaced the journal meanwhile.
                if entries.is_empty() {
                    return Err(BackplaneError::unknown("no entry arrived in time"));
                }
                break;
            }
            for message in messages {
                remaining = message.pending;
                read_through = message.stored.sequence;
                let heading = Heading::parse(&message.headers)?;
                if heading.id == id && heading.number == next {
                    bytes = bytes.saturating_add(message.stored.payload.len());
                    entries.push(message.stored.payload);
                    places.push(Place { heading, sequence: message.stored.sequence });
                    next += 1;
                }
            }
        }
        reader.close().await;
        if entries.is_empty() && self.connection.is_clustered() && read_through < newest.sequence {
            return Err(BackplaneError::unavailable("a replica of the journals is behind"));
        }
        let count = fitting(&entries, max_bytes);
        // The next page begins after this page.
        if let Some(end) = count.checked_sub(1).and_then(|last| places.get(last)) {
            self.known.read.remember(self.subject, *end);
        }
        entries.truncate(count);
        Ok(entries)
    }
}

/// Asks the server to remove the messages of a subject up to a number. Does not wait for the
/// answer, because the maximum age of the stream removes these messages too.
async fn purge(connection: &Connection, subject: &str, sequence: u64) {
    let request = json!({ "filter": subject, "seq": sequence.saturating_add(1) }).to_string();
    let purge = format!("$JS.API.STREAM.PURGE.{}", connection.names.journals);
    drop(connection.client.publish_with_reply(purge, connection.client.new_inbox(), request.into()).await);
}

/// Removes the messages of a closed journal when its time has passed, if this process still runs.
fn purge_later(shared: &Arc<Shared>, subject: String, sequence: u64, keep: Duration) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        sleep(keep).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Ok(session) = shared.session(None).await {
            purge(&session.connection, &subject, sequence).await;
        }
    });
}

impl Journals for Nats {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        let subject = self.shared.names.journal(key);
        Box::pin(async move {
            let session = self.shared.session(None).await.map_err(BackplaneError::before_request)?;
            Subject::new(&session, &subject).begin(first).await
        })
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Answer<JournalAppend>> {
        let subject = self.shared.names.journal(key);
        Box::pin(async move {
            let session = self.shared.session(None).await.map_err(BackplaneError::before_request)?;
            let appended = Subject::new(&session, &subject).append(id, after, entry, close).await?;
            if let (JournalAppend::Appended, Some(keep)) = (appended, close)
                && let Some(place) = session.journals.written.find(&subject, id)
            {
                purge_later(&self.shared, subject, place.sequence, keep.min(journal::MAX_KEEP));
            }
            Ok(appended)
        })
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        let subject = self.shared.names.journal(key);
        Box::pin(async move {
            let session = self.shared.session(None).await?;
            Subject::new(&session, &subject).read(id, after, max_bytes).await
        })
    }
}
