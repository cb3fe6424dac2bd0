//! Appends events to a shared log. `Hub` and `Publisher` use the same functions, so that their
//! records have the same format.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tracing::Instrument;

use super::record;
use super::shared_log::SharedLog;
use crate::backplane::{Backplane, BackplaneError, LogPosition, NewRecord, Seen, Value};
use crate::hub::Hub;
use crate::hub::tasks::back_off::can_wait;
use crate::types::{Address, Audience, Epoch, Event, Position, PublishError, ScopeName};

/// Returns the record of an event. The record of an event with a key sets or removes one current
/// value for each address for which `keeps_values` returns `true`.
pub(in crate::hub) fn record(audience: &Audience, event: &Event, keeps_values: impl Fn(&Address) -> bool) -> NewRecord {
    let mut new_record = NewRecord::new(Bytes::from(record::encode(audience, event, record::Stamp::now())));
    if let Some(key) = event.key.as_deref() {
        let addresses = audience.addresses().iter().filter(|address| keeps_values(address));
        let value = |address| Value::new(record::value_id(address, key), event.removes);
        new_record.values = addresses.map(value).collect();
    }
    // Otherwise an event of one scope would be taken for the repeat of an event of another.
    let key_of = |key: &str| match audience.scope() {
        Some(scope) => Box::from(scope.broker_key(key)),
        None => ScopeName::broker_key_of_all(key).into(),
    };
    new_record.idempotency_key = event.idempotency_key.as_deref().map(key_of);
    new_record
}

/// Appends records within a time limit, in one round trip if the broker supports it. Returns one
/// result for each record, in order.
pub(in crate::hub) async fn append(
    backplane: &dyn Backplane,
    records: Vec<NewRecord>,
    seen: Option<Seen>,
    limit: Duration,
) -> Vec<Result<LogPosition, PublishError>> {
    let count = records.len();
    if !can_wait() {
        return (0..count).map(|_| Err(PublishError::NO_RUNTIME)).collect();
    }
    let late = || PublishError::broker(true, BackplaneError::unknown("no answer in time"));
    let appended = backplane.append(records, seen).instrument(tracing::debug_span!("sse.publish", events = count));
    match timeout(limit, appended).await {
        Err(_) => (0..count).map(|_| Err(late())).collect(),
        Ok(results) => {
            let failed = |error: BackplaneError| PublishError::broker(error.is_unknown(), error);
            results.into_iter().map(|result| result.map_err(failed)).collect()
        }
    }
}

/// Converts a position of the backplane to a position of the hub.
pub(in crate::hub) fn position(position: LogPosition) -> Position {
    Position::new(Epoch(position.epoch), position.sequence)
}

impl Hub {
    /// Appends events to the shared log, in one round trip if the broker supports it. Returns one
    /// result for each event, in order.
    pub(in crate::hub) async fn append_shared(
        &self,
        shared: &SharedLog,
        events: Vec<(Audience, Event)>,
    ) -> Vec<Result<Position, PublishError>> {
        self.inner.ensure_shared_log();
        let keeps_values = |address: &_| self.log().keeps_values(address);
        let records = events.iter().map(|(audience, event)| record(audience, event, keeps_values)).collect();
        let limit = self.settings().publish_timeout;
        let results = append(&*shared.backplane, records, shared.seen(self.log().epoch()), limit).await;
        results.into_iter().map(|result| result.map(position)).collect()
    }
}
