//! A macro that passes the journals of a test double on to another log.

/// Implements [`Journals`](tower_sse::backplane::Journals) for a type. Each call first awaits the
/// method `journals` of the type, which returns the other log or an error, and then makes the same
/// call on the other log.
macro_rules! pass_journals {
    ($type:ty $(, $parameter:ident: $($bound:path),+)?) => {
        impl $(<$parameter: $($bound +)+>)? tower_sse::backplane::Journals for $type {
            fn begin_journal(
                &self,
                key: &str,
                first: bytes::Bytes,
            ) -> futures::future::BoxFuture<'_, Result<tower_sse::backplane::Begun, tower_sse::backplane::BackplaneError>>
            {
                let key = key.to_owned();
                Box::pin(async move { self.journals().await?.begin_journal(&key, first).await })
            }

            fn append_journal(
                &self,
                key: &str,
                id: tower_sse::backplane::JournalId,
                after: u64,
                entry: bytes::Bytes,
                close: Option<std::time::Duration>,
            ) -> futures::future::BoxFuture<
                '_,
                Result<tower_sse::backplane::JournalAppend, tower_sse::backplane::BackplaneError>,
            > {
                let key = key.to_owned();
                Box::pin(async move { self.journals().await?.append_journal(&key, id, after, entry, close).await })
            }

            fn read_journal(
                &self,
                key: &str,
                id: Option<tower_sse::backplane::JournalId>,
                after: u64,
                max_bytes: usize,
            ) -> futures::future::BoxFuture<
                '_,
                Result<Option<tower_sse::backplane::JournalPage>, tower_sse::backplane::BackplaneError>,
            > {
                let key = key.to_owned();
                Box::pin(async move { self.journals().await?.read_journal(&key, id, after, max_bytes).await })
            }
        }
    };
}
pub(crate) use pass_journals;
