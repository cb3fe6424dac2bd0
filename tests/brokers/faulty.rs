//! A broker with random faults. Requests are late, fail, or succeed without an answer; tails
//! deliver records late, twice, out of order, with holes, or not at all. It loses no acknowledged
//! record. A seed makes a failure repeatable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, ControlMessage, ControlStream, CurrentValue, JournalAppend, JournalId,
    JournalPage, Journals, LogPosition, LogState, Memory, NewRecord, Range, ReadLimit, Seen, Stored,
};

#[derive(Clone)]
pub(crate) struct Faulty {
    inner: Memory,
    random: Arc<AtomicU64>,
    /// The number of faults in a thousand calls.
    faults: u64,
    /// While the broker is away, requests return an error.
    away: Arc<AtomicBool>,
}

impl Faulty {
    pub(crate) fn new(seed: u64, faults: u64) -> Self {
        let random = Arc::new(AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        Self { inner: Memory::new(), random, faults, away: Arc::default() }
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn below(&self, limit: u64) -> u64 {
        let step = |x: u64| {
            let x = x ^ (x << 13);
            let x = x ^ (x >> 7);
            Some(x ^ (x << 17))
        };
        let before = self.random.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap();
        step(before).unwrap() % limit
    }

    fn has_fault(&self) -> bool {
        self.below(1000) < self.faults
    }

    async fn pass(&self) -> Result<(), BackplaneError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(BackplaneError::unavailable("away"));
        }
        if self.has_fault() {
            tokio::time::sleep(Duration::from_millis(self.below(20))).await;
        }
        if self.has_fault() { Err(BackplaneError::unavailable("a fault")) } else { Ok(()) }
    }
}

impl Journals for Faulty {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Result<Begun, BackplaneError>> {
        let key = key.to_owned();
        async move {
            self.pass().await?;
            let begun = self.inner.begin_journal(&key, first).await;
            if self.has_fault() { Err(BackplaneError::unknown("begun without an answer")) } else { begun }
        }
        .boxed()
    }

    fn append_journal(
        &self,
        key: &str,
        id: JournalId,
        after: u64,
        entry: Bytes,
        close: Option<Duration>,
    ) -> BoxFuture<'_, Result<JournalAppend, BackplaneError>> {
        let key = key.to_owned();
        async move {
            self.pass().await?;
            let appended = self.inner.append_journal(&key, id, after, entry, close).await;
            if self.has_fault() { Err(BackplaneError::unknown("appended without an answer")) } else { appended }
        }
        .boxed()
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Result<Option<JournalPage>, BackplaneError>> {
        let key = key.to_owned();
        async move {
            self.pass().await?;
            // A page may have fewer bytes than `max_bytes`.
            let max_bytes = max_bytes.min(1 + self.below(256) as usize);
            self.inner.read_journal(&key, id, after, max_bytes).await
        }
        .boxed()
    }
}

impl Backplane for Faulty {
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        async move {
            let count = records.len();
            if self.pass().await.is_err() {
                return (0..count).map(|_| Err(BackplaneError::unavailable("a fault"))).collect();
            }
            let places = self.inner.append(records, seen).await;
            if self.has_fault() {
                return (0..count).map(|_| Err(BackplaneError::unknown("appended without an answer"))).collect();
            }
            places
        }
        .boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        async move {
            self.pass().await?;
            self.inner.state(seen).await
        }
        .boxed()
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Range, BackplaneError>> {
        async move {
            self.pass().await?;
            // Fewer records than `limit` do not mean that the log ends there.
            let records = limit.records.min(1 + self.below(64) as usize);
            self.inner.range(after, ReadLimit::records(records).bytes(limit.bytes)).await
        }
        .boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        let (this, mut tail) = (self.clone(), self.inner.tail(after));
        async_stream::stream! {
            while let Some(Ok(mut batch)) = tail.next().await {
                if let Err(error) = this.pass().await {
                    yield Err(error);
                    return;
                }
                match this.below(1000) {
                    n if n < this.faults => batch.reverse(),
                    n if n < 2 * this.faults => drop(batch.remove(this.below(batch.len() as u64) as usize)),
                    n if n < 3 * this.faults => batch.extend(batch.clone()),
                    // The tail stalls without an error.
                    n if n < 3 * this.faults + this.faults / 4 => loop {
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                    },
                    _ => {}
                }
                if !batch.is_empty() {
                    yield Ok(batch);
                }
            }
        }
        .boxed()
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        async move {
            self.pass().await?;
            self.inner.values().await
        }
        .boxed()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move {
            self.pass().await?;
            self.inner.broadcast(stream, message).await
        }
        .boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        let (this, mut messages) = (self.clone(), self.inner.listen(after));
        async_stream::stream! {
            while let Some(message) = messages.next().await {
                if this.has_fault() {
                    yield Err(BackplaneError::unknown("a fault"));
                    return;
                }
                yield message;
            }
        }
        .boxed()
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.inner.put_once(key, payload, time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.inner.take(key)
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.inner.put_shared(key, payload, time)
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.inner.get_shared(key)
    }

    fn describe(&self) -> String {
        "a faulty memory".into()
    }
}
