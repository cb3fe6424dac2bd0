//! Reads records and current values.

use std::time::{Duration, UNIX_EPOCH};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::{Answer, CurrentValue, Range, ReadLimit, Stored};
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

/// Reads the records above `after` within the limit.
pub(super) async fn range(shared: &Shared, after: u64, limit: ReadLimit) -> Answer<Range> {
    let [after, records, bytes] = [after, limit.records as u64, limit.bytes as u64].map(at_most_max);
    let parameters: [Parameter<'_>; 4] =
        [(&shared.settings.namespace, Type::TEXT), (&after, Type::INT8), (&records, Type::INT8), (&bytes, Type::INT8)];
    let rows = shared.rows(&shared.bulk, RANGE, &parameters).await?;
    rows.iter().map(stored).collect::<Answer<Vec<_>>>().map(Range::Records)
}

fn at_most_max(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns the record of a row with the columns `number`, `at_ms` and `payload`.
fn stored(row: &Row) -> Answer<Stored> {
    record(row, 0)
}

/// Returns the record of a row with these columns from the column `first` on.
fn record(row: &Row, first: usize) -> Answer<Stored> {
    let at = UNIX_EPOCH + Duration::from_millis(number(get(row, first + 1)?)?);
    Ok(Stored::new(number(get(row, first)?)?, get::<Vec<u8>>(row, first + 2)?.into()).at(at))
}

/// Reads all current values.
pub(super) async fn values(shared: &Shared) -> Answer<Vec<CurrentValue>> {
    let sql = "SELECT id, number, at_ms, payload FROM tower_sse.current_values($1)";
    let rows = shared.rows(&shared.bulk, sql, &[(&shared.settings.namespace, Type::TEXT)]).await?;
    let value = |row: &Row| Ok(CurrentValue { id: get::<String>(row, 0)?.into(), record: record(row, 1)? });
    rows.iter().map(value).collect()
}
