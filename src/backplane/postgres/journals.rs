//! Journals on Postgres. Functions of the schema compare the row of the journal with the caller's
//! expectation, and then write.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio_postgres::types::Type;

use super::super::journal::{self, Begun, JournalAppend, JournalId, JournalPage, Journals};
use super::super::{Answer, BackplaneError};
use super::Postgres;
use super::connection::{Parameter, get};
use super::key_of;
use super::server::number;

fn id_of(id: i64) -> Answer<JournalId> {
    JournalId::new(id.cast_unsigned()).ok_or_else(|| BackplaneError::rejected("the id of a journal is zero"))
}

/// Converts a time to milliseconds. Zero becomes one, so that another instance can read the last
/// entry.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.min(journal::MAX_KEEP).as_millis()).unwrap_or(i64::MAX).max(1)
}

impl Journals for Postgres {
    fn begin_journal(&self, key: &str, first: Bytes) -> BoxFuture<'_, Answer<Begun>> {
        let key = key_of(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let new_id = JournalId::random().get().cast_signed();
            let first = &first[..];
            let parameters: [Parameter<'_>; 4] = [
                (&shared.settings.namespace, Type::TEXT),
                (&key, Type::BYTEA),
                (&new_id, Type::INT8),
                (&first, Type::BYTEA),
            ];
            let sql = "SELECT is_new, id FROM tower_sse.journal_begin($1, $2, $3, $4)";
            let row = shared.one(&shared.journals, sql, &parameters).await?;
            let id = id_of(get(&row, 1)?)?;
            Ok(if get(&row, 0)? { Begun::New(id) } else { Begun::Active(id) })
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
        let key = key_of(key);
        Box::pin(async move {
            let shared = &*self.shared;
            // No journal has so many entries.
            let Some(after) = i64::try_from(after).ok().filter(|after| *after < i64::MAX) else {
                return Ok(JournalAppend::Conflict);
            };
            let (id, entry, keep) = (id.get().cast_signed(), &entry[..], close.map(millis));
            let parameters: [Parameter<'_>; 6] = [
                (&shared.settings.namespace, Type::TEXT),
                (&key, Type::BYTEA),
                (&id, Type::INT8),
                (&after, Type::INT8),
                (&entry, Type::BYTEA),
                (&keep, Type::INT8),
            ];
            let sql = "SELECT tower_sse.journal_append($1, $2, $3, $4, $5, $6)";
            let row = shared.one(&shared.journals, sql, &parameters).await?;
            Ok(if get(&row, 0)? { JournalAppend::Appended } else { JournalAppend::Conflict })
        })
    }

    fn read_journal(
        &self,
        key: &str,
        id: Option<JournalId>,
        after: u64,
        max_bytes: usize,
    ) -> BoxFuture<'_, Answer<Option<JournalPage>>> {
        let key = key_of(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let id = id.map(|id| id.get().cast_signed());
            let [after, max_bytes] = [after, max_bytes as u64].map(|value| i64::try_from(value).unwrap_or(i64::MAX));
            let parameters: [Parameter<'_>; 5] = [
                (&shared.settings.namespace, Type::TEXT),
                (&key, Type::BYTEA),
                (&id, Type::INT8),
                (&after, Type::INT8),
                (&max_bytes, Type::INT8),
            ];
            let sql = "SELECT id, last, is_closed, entries FROM tower_sse.journal_read($1, $2, $3, $4, $5)";
            let rows = shared.rows(&shared.bulk, sql, &parameters).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let entries: Vec<Vec<u8>> = get(row, 3)?;
            Ok(Some(JournalPage {
                id: id_of(get(row, 0)?)?,
                entries: entries.into_iter().map(Bytes::from).collect(),
                last: number(get(row, 1)?)?,
                is_closed: get(row, 2)?,
            }))
        })
    }
}
