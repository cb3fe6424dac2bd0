//! Documents in the log. An event creates or deletes a document. The log retains the current value
//! of each document, so an instance that starts later has all documents.

use std::collections::BTreeMap;

use tower_sse::{Event, Hub, Position, ReceivedEvent, Target};

use crate::error::Error;
use crate::events::{Document, DocumentDeleted};
use crate::replica::{Shared, lock, publish_all, value};

#[derive(Clone, Default)]
pub(crate) struct Log {
    all: Shared<BTreeMap<String, Document>>,
}

impl Log {
    pub(super) fn list(&self) -> Vec<Document> {
        lock(&self.all).values().cloned().collect()
    }

    pub(super) fn apply(&self, event: &ReceivedEvent) {
        if let Some(document) = value::<Document>(event) {
            lock(&self.all).insert(document.id.clone(), document);
        } else if let Some(DocumentDeleted { id }) = value(event) {
            lock(&self.all).remove(&id);
        }
    }

    pub(super) fn clear(&self) {
        lock(&self.all).clear();
    }
}

/// Publishes the events, which are the change itself.
///
/// The notification comes before the deletion. If a shared log fails between the two events, the
/// document still exists, and deleting it again publishes the same notification again, with the
/// same id. In the other order, the document would be gone and the owner would never receive the
/// notification.
pub(super) async fn publish(hub: &Hub, events: Vec<(Target<'_>, Event)>) -> Result<Option<Position>, Error> {
    Ok(publish_all(hub, events).await?)
}
