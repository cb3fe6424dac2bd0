#![doc = include_str!("../README.md")]

use sqlx::{Error, PgConnection};
use tower_sse::backplane::{NewRecord, Postgres};

/// Publishes a record in a transaction. `connection` is the transaction.
///
/// If the transaction commits, every stream of its audience receives the event. If the transaction
/// is rolled back, no stream receives it. After the commit, call [`Postgres::wake`]. Otherwise the
/// instances find the event at their next [poll](Postgres::poll_interval).
///
/// The database and the namespace of `log` must be those of the hubs. The connection of the
/// transaction may be another one, with another role. This role needs `USAGE` on the schema
/// `tower_sse` and `EXECUTE` on the function `publish_record`.
///
/// The call takes one round trip, and waits for no other transaction. The first call on a
/// connection takes another round trip to prepare the statement. The events of one transaction are
/// published in the order of the calls. Without a transaction, the event is published at once.
///
/// Cancel safety: if the future is dropped, the record may or may not be part of the transaction.
/// Roll the transaction back.
///
/// # Errors
/// - The server rejects the record, for example because its idempotency key contains U+0000.
/// - The role may not call the function, or the schema is missing.
/// - The connection has failed.
///
/// After an error of the server, the transaction can only be rolled back.
pub async fn publish(connection: &mut PgConnection, log: &Postgres, record: &NewRecord) -> Result<(), Error> {
    let arguments = log.publish_arguments(record);
    sqlx::query(Postgres::PUBLISH_SQL)
        .bind(arguments.namespace)
        .bind(arguments.payload)
        .bind(arguments.sets)
        .bind(arguments.removes)
        .bind(arguments.idempotency_key)
        .execute(connection)
        .await
        .map(drop)
}
