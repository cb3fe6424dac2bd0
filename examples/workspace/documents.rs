//! Documents that everybody sees, and anybody may delete: then the owner hears of it, on whatever page.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_sse::{Event, Hub, Position, ReceivedEvent};

use crate::error::{Error, text};
use crate::notifications::Notification;
use crate::replica::{Follower, Shared, lock, new_id, now, publish_all, value};
use crate::sessions::{USERS, User};

/// The current value of each document is kept in the log, so an instance that starts late has all of them.
pub(crate) const TOPIC: &str = "documents";
const LONGEST_TITLE: usize = 80;
const MOST: usize = 500;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    id: String,
    title: String,
    owner: String,
    created: u64,
}

#[derive(Deserialize)]
struct Deleted {
    id: String,
}

#[derive(Clone)]
pub(crate) struct Documents {
    hub: Hub,
    all: Shared<BTreeMap<String, Document>>,
}

impl Documents {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, all: Shared::default() }
    }

    /// One for each user, where there are none.
    pub(crate) async fn welcome(&self) -> Result<(), Error> {
        if lock(&self.all).is_empty() {
            for owner in USERS {
                self.put(format!("welcome-{}", owner.id), owner, format!("A document of {}", owner.name)).await?;
            }
        }
        Ok(())
    }

    /// The newest first.
    pub(crate) fn list(&self) -> Vec<Document> {
        let mut all: Vec<_> = lock(&self.all).values().cloned().collect();
        all.sort_by_key(|document| std::cmp::Reverse(document.created));
        all
    }

    pub(crate) async fn create(&self, owner: User, title: &str) -> Result<Position, Error> {
        if lock(&self.all).len() >= MOST {
            return Err(Error::Enough("There are enough documents. Delete some first."));
        }
        self.put(new_id(), owner, text(title, LONGEST_TITLE)?).await
    }

    async fn put(&self, id: String, owner: User, title: String) -> Result<Position, Error> {
        let document = Document { id, title, owner: owner.id.to_owned(), created: now() };
        let created = Event::json("document.created", &document)?.key(document.id);
        Ok(self.hub.topic(TOPIC).publish(created).await?.position)
    }

    pub(crate) async fn delete(&self, by: User, id: &str) -> Result<Option<Position>, Error> {
        let document = lock(&self.all).get(id).cloned().ok_or(Error::Missing)?;
        // The owner is told first. Where a shared log fails in between, the document is still there, and to delete it again
        // says the same again, which is one notification. The other way round the owner would never hear of it.
        let mut events = Vec::new();
        if document.owner != by.id {
            let text = format!("{} deleted your document “{}”", by.name, document.title);
            events.push(Notification::new(id, &document.owner, text, "/documents").send(&self.hub)?);
        }
        // Withdraws the current value, and tells the pages that show it.
        let deleted = Event::removal(id.to_owned()).name("document.deleted").data(json!({ "id": id }).to_string());
        events.push((self.hub.topic(TOPIC), deleted));
        Ok(publish_all(&self.hub, events).await?)
    }
}

impl Follower for Documents {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        if let Some(document) = value::<Document>(event, "document.created") {
            lock(&self.all).insert(document.id.clone(), document);
        } else if let Some(Deleted { id }) = value(event, "document.deleted") {
            lock(&self.all).remove(&id);
        }
    }

    fn clear(&self) {
        lock(&self.all).clear();
    }
}
