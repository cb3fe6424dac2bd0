//! Documents that every user may see and delete. When another user deletes a document, its owner
//! receives a notification on every page.

use std::collections::BTreeMap;

use tower_sse::{Hub, Message, Position, ReceivedEvent};

use crate::error::{Error, text};
use crate::events::{Document, DocumentDeleted, Notification};
use crate::replica::{Follower, Shared, lock, new_id, now, publish_all, value};
use crate::sessions::{USERS, User};

/// The log retains the current value of each document, so an instance that starts later has all
/// documents.
pub(crate) const TOPIC: &str = "documents";
const MAX_TITLE: usize = 80;
const MAX_DOCUMENTS: usize = 500;

#[derive(Clone)]
pub(crate) struct Documents {
    hub: Hub,
    all: Shared<BTreeMap<String, Document>>,
}

impl Documents {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, all: Shared::default() }
    }

    /// Creates a document for each user, if there are no documents.
    pub(crate) async fn create_welcome_documents(&self) -> Result<(), Error> {
        if lock(&self.all).is_empty() {
            for owner in USERS {
                self.put(format!("welcome-{}", owner.id), owner, format!("A document of {}", owner.name)).await?;
            }
        }
        Ok(())
    }

    /// Returns all documents, the newest first.
    pub(crate) fn list(&self) -> Vec<Document> {
        let mut all: Vec<_> = lock(&self.all).values().cloned().collect();
        all.sort_by_key(|document| std::cmp::Reverse(document.created));
        all
    }

    pub(crate) async fn create_document(&self, owner: User, title: &str) -> Result<Position, Error> {
        if lock(&self.all).len() >= MAX_DOCUMENTS {
            return Err(Error::LimitReached("There are too many documents. Delete one first."));
        }
        self.put(new_id(), owner, text(title, MAX_TITLE)?).await
    }

    async fn put(&self, id: String, owner: User, title: String) -> Result<Position, Error> {
        let document = Document { id, title, owner: owner.id.to_owned(), created: now() };
        Ok(self.hub.topic(TOPIC).send(&document).await?.position)
    }

    pub(crate) async fn delete_document(&self, by: User, id: &str) -> Result<Option<Position>, Error> {
        let document = lock(&self.all).get(id).cloned().ok_or(Error::Missing)?;
        // The notification comes first. If a shared log fails between the two events, the document
        // still exists, and deleting it again publishes the same notification again, with the same
        // id. In the other order, the document would be gone and the owner would never receive the
        // notification.
        let mut events = Vec::new();
        if document.owner != by.id {
            let text = format!("{} deleted your document “{}”", by.name, document.title);
            events.push(Notification::new(id, &document.owner, text, "/documents").addressed(&self.hub)?);
        }
        // Removes the current value from the log, and the document from open pages.
        events.push((self.hub.topic(TOPIC), DocumentDeleted { id: id.to_owned() }.to_removal()?));
        Ok(publish_all(&self.hub, events).await?)
    }
}

impl Follower for Documents {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        if let Some(document) = value::<Document>(event) {
            lock(&self.all).insert(document.id.clone(), document);
        } else if let Some(DocumentDeleted { id }) = value(event) {
            lock(&self.all).remove(&id);
        }
    }

    fn clear(&self) {
        lock(&self.all).clear();
    }
}
