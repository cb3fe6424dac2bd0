//! Reads records and current values.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::{Answer, CurrentValue, Stored};
use super::connection::{Parameter, Session, get};
use super::server::{Shared, number};

/// The maximum number of records in one batch of a tail.
const BATCH: i64 = 512;
/// The approximate maximum number of bytes in one batch.
const MAX_BYTES: i64 = 4 << 20;

const RANGE: &str = "SELECT number, at_ms, payload FROM tower_sse.range($1, $2, $3, $4)";

/// Reads the records above `after` for a stream.
pub(super) async fn records(session: &Session, namespace: &str, after: i64) -> Answer<Vec<Stored>> {
    let parameters: [Parameter<'_>; 4] =
        [(&namespace, Type::TEXT), (&after, Type::INT8), (&BATCH, Type::INT8), (&MAX_BYTES, Type::INT8)];
    let rows = session.rows(RANGE, &parameters).await.map_err(|failure| failure.error)?;
    rows.iter().map(stored).collect()
}

/// Reads at most `limit` records above `after`.
pub(super) async fn range(shared: &Shared, after: u64, limit: usize) -> Answer<Vec<Stored>> {
    let [after, limit] = [after, limit as u64].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    let parameters: [Parameter<'_>; 4] = [
        (&shared.settings.namespace, Type::TEXT),
        (&after, Type::INT8),
        (&limit, Type::INT8),
        (&MAX_BYTES, Type::INT8),
    ];
    let rows = shared.rows(&shared.bulk, RANGE, &parameters).await?;
    rows.iter().map(stored).collect()
}

fn stored(row: &Row) -> Answer<Stored> {
    Ok(Stored { sequence: number(get(row, 0)?)?, payload: get::<Vec<u8>>(row, 2)?.into() })
}

/// Reads all current values.
pub(super) async fn values(shared: &Shared) -> Answer<Vec<CurrentValue>> {
    let sql = "SELECT id, number, payload FROM tower_sse.current_values($1)";
    let rows = shared.rows(&shared.bulk, sql, &[(&shared.settings.namespace, Type::TEXT)]).await?;
    let value = |row: &Row| {
        let record = Stored { sequence: number(get(row, 1)?)?, payload: get::<Vec<u8>>(row, 2)?.into() };
        Ok(CurrentValue { id: get::<String>(row, 0)?.into(), record })
    };
    rows.iter().map(value).collect()
}
