//! Journals on Redis. A journal is one stream. Scripts compare the newest entry of the stream with
//! the caller's expectation and then write. `journal_begin.lua` describes the entries.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::super::journal::{self, Begun, JournalAppend, JournalId, JournalPage, Journals};
use super::super::{Answer, BackplaneError};
use super::Redis;

/// Converts a time to live to the milliseconds of `PEXPIRE`. Zero becomes one, because `PEXPIRE`
/// with zero deletes the journal before another instance can read its last entry.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.min(journal::MAX_KEEP).as_millis()).unwrap_or(u64::MAX).max(1)
}

fn parse_id(text: &str) -> Answer<JournalId> {
    let id = u64::from_str_radix(text, 16).ok().and_then(JournalId::new);
    id.ok_or_else(|| BackplaneError::rejected("the id of a journal is not a number"))
}

impl Journals for Redis {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        let key = self.shared.keys.journal(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let mut call = shared.journals.begin.prepare_invoke();
            call.key(key)
                .key(&shared.keys.meta)
                .arg(JournalId::random().to_string())
                .arg(&first[..])
                .arg(millis(journal::IDLE));
            let begun = |(is_new, _): &(bool, String)| *is_new;
            let (is_new, id) = shared.write(&call, begun, "entry").await?;
            let id = parse_id(&id)?;
            Ok(if is_new { Begun::New(id) } else { Begun::Active(id) })
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
        let key = self.shared.keys.journal(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let Some(next) = after.checked_add(1) else { return Ok(JournalAppend::Conflict) };
            let mut call = shared.journals.append.prepare_invoke();
            call.key(key).key(&shared.keys.meta).arg(id.to_string()).arg(after).arg(next).arg(&entry[..]);
            call.arg(if close.is_some() { "1" } else { "" }).arg(millis(close.unwrap_or(journal::IDLE)));
            let is_appended = shared.write(&call, |is_appended: &bool| *is_appended, "entry").await?;
            Ok(if is_appended { JournalAppend::Appended } else { JournalAppend::Conflict })
        })
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        let key = self.shared.keys.journal(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let id = id.map(|id| id.to_string()).unwrap_or_default();
            let page = async |max_bytes: usize| {
                let mut call = shared.journals.read.prepare_invoke();
                call.key(&key).key(&shared.keys.meta).arg(&id).arg(after).arg(max_bytes);
                shared.invoke::<Option<Page>>(&shared.bulk, &call).await
            };
            let page = match page(max_bytes).await {
                // The page may be too large for a slow network, so try once more with a smaller
                // page.
                Err(error) if error.is_unknown() => page(max_bytes / 8).await?,
                page => page?,
            };
            let Some((id, last, closed, entries)) = page else { return Ok(None) };
            let entries = entries.into_iter().map(Bytes::from).collect();
            Ok(Some(JournalPage { id: parse_id(&id)?, entries, last, is_closed: !closed.is_empty() }))
        })
    }
}

/// The answer of `journal_read.lua`.
type Page = (String, u64, String, Vec<Vec<u8>>);
