//! A log that a test can cut off or slow down for one instance, and that counts the requests of the
//! instance.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tower_sse::backplane::{
    Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, NewRecord, Range,
    ReadLimit, Seen, Stored,
};

use crate::pass_journals::pass_journals;

/// A log as one instance reaches it.
#[derive(Clone)]
pub(crate) struct Reached<B> {
    log: B,
    pub(crate) way: Arc<Way>,
}

#[derive(Default)]
pub(crate) struct Way {
    /// The log cannot be read or written; the control stream works.
    pub(crate) log_is_away: AtomicBool,
    /// The number of reads of a range.
    pub(crate) reads: AtomicU64,
    /// The time that a control message takes, in milliseconds.
    pub(crate) broadcast_takes: AtomicU64,
    /// The number of control messages.
    pub(crate) broadcasts: AtomicU64,
    /// If set, the next append of a record that contains this text fails for this record only.
    pub(crate) fails_once: Mutex<Option<&'static str>>,
}

impl<B: Backplane + Clone> Reached<B> {
    pub(crate) fn new(log: &B) -> Self {
        Self { log: log.clone(), way: Arc::default() }
    }

    async fn reach(&self) -> Result<(), BackplaneError> {
        if self.way.log_is_away.load(Ordering::SeqCst) {
            return Err(BackplaneError::unavailable("cut by the test"));
        }
        Ok(())
    }

    async fn journals(&self) -> Result<&B, BackplaneError> {
        self.reach().await.map(|()| &self.log)
    }
}

pass_journals!(Reached<B>, B: Backplane, Clone);

impl<B: Backplane + Clone> Backplane for Reached<B> {
    fn append(
        &self,
        records: Vec<NewRecord>,
        seen: Option<Seen>,
    ) -> BoxFuture<'_, Vec<Result<LogPosition, BackplaneError>>> {
        async move {
            if self.reach().await.is_err() {
                return records.iter().map(|_| Err(BackplaneError::unavailable("cut by the test"))).collect();
            }
            let mut places = Vec::new();
            for record in records {
                let is_marked = |marker: &mut &str| String::from_utf8_lossy(&record.payload).contains(*marker);
                let fails = self.way.fails_once.lock().unwrap().take_if(is_marked).is_some();
                places.push(if fails {
                    Err(BackplaneError::unavailable("failed by the test"))
                } else {
                    self.log.append(vec![record], seen).await.pop().unwrap()
                });
            }
            places
        }
        .boxed()
    }

    fn state(&self, seen: Option<Seen>) -> BoxFuture<'_, Result<LogState, BackplaneError>> {
        async move {
            self.reach().await?;
            self.log.state(seen).await
        }
        .boxed()
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Range, BackplaneError>> {
        async move {
            self.way.reads.fetch_add(1, Ordering::SeqCst);
            self.reach().await?;
            self.log.range(after, limit).await
        }
        .boxed()
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Result<Vec<Stored>, BackplaneError>> {
        let (this, mut tail) = (self.clone(), self.log.tail(after));
        async_stream::stream! {
            while let Some(batch) = tail.next().await {
                if let Err(error) = this.reach().await {
                    yield Err(error);
                    return;
                }
                yield batch;
            }
        }
        .boxed()
    }

    fn values(&self) -> BoxFuture<'_, Result<Vec<CurrentValue>, BackplaneError>> {
        self.log.values()
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move {
            self.way.broadcasts.fetch_add(1, Ordering::SeqCst);
            let takes = self.way.broadcast_takes.load(Ordering::SeqCst);
            if takes > 0 {
                tokio::time::sleep(Duration::from_millis(takes)).await;
            }
            self.log.broadcast(stream, message).await
        }
        .boxed()
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Result<ControlMessage, BackplaneError>> {
        self.log.listen(after)
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.log.put_once(key, payload, time)
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.log.take(key)
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.log.put_shared(key, payload, time)
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Result<Option<Bytes>, BackplaneError>> {
        self.log.get_shared(key)
    }

    fn describe(&self) -> String {
        self.log.describe()
    }
}
