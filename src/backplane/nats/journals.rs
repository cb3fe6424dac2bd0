//! Journals on Nats.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use super::super::journal::{Begun, JournalAppend, JournalId, JournalPage, Journals};
use super::super::{Answer, BackplaneError};
use super::Nats;

impl Journals for Nats {
    fn begin_journal(&self, _: &str, _: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        ready(Err(BackplaneError::rejected("journals are not supported yet"))).boxed()
    }

    fn append_journal(
        &self,
        _: &str,
        _: JournalId,
        _: u64,
        _: Bytes,
        _: Option<Duration>,
    ) -> BoxFuture<'_, Answer<JournalAppend>> {
        ready(Err(BackplaneError::rejected("journals are not supported yet"))).boxed()
    }

    fn read_journal(
        &self,
        _: &str,
        _: Option<JournalId>,
        _: u64,
        _: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        ready(Err(BackplaneError::rejected("journals are not supported yet"))).boxed()
    }
}
