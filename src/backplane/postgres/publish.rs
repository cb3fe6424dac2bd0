//! The arguments with which an application publishes a record in its own transaction.

use super::super::NewRecord;

/// The arguments of [`Postgres::PUBLISH_SQL`](super::Postgres::PUBLISH_SQL) for one record, from
/// [`Postgres::publish_arguments`](super::Postgres::publish_arguments). The fields are in the order
/// of the parameters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PublishArguments<'a> {
    /// The parameter `$1` of the type `text`: the namespace of the log.
    pub namespace: &'a str,
    /// The parameter `$2` of the type `bytea`: the bytes of the record.
    pub payload: &'a [u8],
    /// The parameter `$3` of the type `text[]`: the ids of the current values that the record sets.
    pub sets: Vec<&'a str>,
    /// The parameter `$4` of the type `text[]`: the ids of the current values that the record
    /// removes.
    pub removes: Vec<&'a str>,
    /// The parameter `$5` of the type `text`: the key that prevents a second append, or NULL.
    pub idempotency_key: Option<&'a str>,
}

impl<'a> PublishArguments<'a> {
    pub(super) fn new(namespace: &'a str, record: &'a NewRecord) -> Self {
        let ids = |removes: bool| {
            record.values.iter().filter(|value| value.removes == removes).map(|value| &*value.id).collect()
        };
        Self {
            namespace,
            payload: &record.payload,
            sets: ids(false),
            removes: ids(true),
            idempotency_key: record.idempotency_key.as_deref(),
        }
    }
}
