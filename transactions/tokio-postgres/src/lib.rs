#![doc = include_str!("../README.md")]

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Transaction};
use tower_sse::backplane::{NewRecord, Postgres};

/// Publishes a record in a transaction.
///
/// If the transaction commits, every stream of its audience receives the event. If the transaction
/// is rolled back, no stream receives it. After the commit, call [`Postgres::wake`]. Otherwise the
/// instances find the event at their next [poll](Postgres::poll_interval).
///
/// The database and the namespace of `log` must be those of the hubs. The connection of the
/// transaction may be another one, with another role. This role needs `USAGE` on the schema
/// `tower_sse` and `EXECUTE` on the function `publish_record`.
///
/// The call takes one round trip, and waits for no other transaction. The events of one transaction
/// are published in the order in which the server executes the calls. To save the round trip, run
/// the call at the same time as another statement: [see above](crate).
///
/// A wrapper of a pool, such as that of `deadpool-postgres`, is accepted if it dereferences to
/// [`Transaction`].
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
pub async fn publish(transaction: &Transaction<'_>, log: &Postgres, record: &NewRecord) -> Result<(), Error> {
    let arguments = log.publish_arguments(record);
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&arguments.namespace, Type::TEXT),
        (&arguments.payload, Type::BYTEA),
        (&arguments.sets, Type::TEXT_ARRAY),
        (&arguments.removes, Type::TEXT_ARRAY),
        (&arguments.idempotency_key, Type::TEXT),
    ];
    // With the types of the parameters, the driver does not ask the server for them first.
    transaction.execute_typed(Postgres::PUBLISH_SQL, &parameters).await.map(drop)
}
