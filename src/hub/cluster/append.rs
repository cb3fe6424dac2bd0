//! What goes to a shared log: the same records by the same rules, whoever sends them.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::record;
use super::shared_log::SharedLog;
use crate::backplane::{Backplane, BackplaneError, LogPosition, NewRecord, Seen, Value};
use crate::hub::Hub;
use crate::hub::tasks::back_off::can_wait;
use crate::types::{Address, Audience, Epoch, Event, Position, PublishError};

/// A record of an event that was checked. It sets a value for each address that keeps them.
pub(in crate::hub) fn record(audience: &Audience, event: &Event, keeps_values: impl Fn(&Address) -> bool) -> NewRecord {
    let mut new_record = NewRecord::new(Bytes::from(record::encode(audience, event, record::Stamp::now())));
    if let Some(key) = event.key.as_deref() {
        let kept = audience.addresses().iter().filter(|address| keeps_values(address));
        let value = |address| Value::new(record::value_id(address, key), event.removes);
        new_record.values = kept.map(value).collect();
    }
    new_record.idempotency_key = event.idempotency_key.as_deref().map(Into::into);
    new_record
}

/// Appends within a time limit, in one round trip where the broker can. One result for each, in order.
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
    match timeout(limit, backplane.append(records, seen)).await {
        Err(_) => (0..count).map(|_| Err(late())).collect(),
        Ok(places) => {
            let failed = |error: BackplaneError| PublishError::broker(error.is_unknown(), error);
            places.into_iter().map(|place| place.map_err(failed)).collect()
        }
    }
}

pub(in crate::hub) fn position(place: LogPosition) -> Position {
    Position::new(Epoch(place.epoch), place.sequence)
}

impl Hub {
    /// Appends to the shared log, in one round trip where the broker can.
    pub(in crate::hub) async fn append_shared(
        &self,
        shared: &SharedLog,
        events: Vec<(Audience, Event)>,
    ) -> Vec<Result<Position, PublishError>> {
        self.inner.ensure_shared_log();
        let keeps_values = |address: &_| self.log().keeps_values(address);
        let records = events.iter().map(|(audience, event)| record(audience, event, keeps_values)).collect();
        let limit = self.settings().publish_timeout;
        let places = append(&*shared.backplane, records, shared.seen(self.log().epoch()), limit).await;
        places.into_iter().map(|place| place.map(position)).collect()
    }
}
