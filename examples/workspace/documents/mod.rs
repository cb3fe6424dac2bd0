//! Documents that every user may see and delete. When another user deletes a document, its owner
//! receives a notification on every page.
//!
//! The documents are in the log ([`log`]), or in a table of the database that has the log
//! ([`table`]). The pages receive the same events.

mod log;
#[cfg(feature = "postgres")]
mod table;

use tower_sse::{Event, Hub, Message, Position, ReceivedEvent, Target};

use crate::error::{Error, text};
use crate::events::{Document, DocumentDeleted, Notification};
use crate::options::Options;
use crate::replica::{Follower, new_id, now};
use crate::sessions::{USERS, User};

use log::Log;
#[cfg(feature = "postgres")]
use table::Table;

pub(crate) const TOPIC: &str = "documents";
const MAX_TITLE: usize = 80;
const MAX_DOCUMENTS: usize = 500;

#[derive(Clone)]
pub(crate) struct Documents {
    hub: Hub,
    storage: Storage,
}

/// The place of the documents.
#[derive(Clone)]
pub(crate) enum Storage {
    Log(Log),
    #[cfg(feature = "postgres")]
    Table(Table),
}

impl Storage {
    /// Returns the table if the database has the log, and the log otherwise. Fails if the database
    /// is unavailable.
    pub(crate) async fn open(options: &Options) -> Result<Self, Box<dyn std::error::Error>> {
        #[cfg(feature = "postgres")]
        if let Some(database) = options.database() {
            return Ok(Self::Table(Table::open(database).await?));
        }
        let _ = options;
        Ok(Self::Log(Log::default()))
    }
}

impl Documents {
    pub(crate) fn new(hub: Hub, storage: Storage) -> Self {
        Self { hub, storage }
    }

    /// Creates a document for each user, if there are no documents.
    pub(crate) async fn create_welcome_documents(&self) -> Result<(), Error> {
        if self.list().await?.is_empty() {
            for owner in USERS {
                self.put(format!("welcome-{}", owner.id), owner, format!("A document of {}", owner.name)).await?;
            }
        }
        Ok(())
    }

    /// Returns all documents, the newest first.
    pub(crate) async fn list(&self) -> Result<Vec<Document>, Error> {
        let mut all = match &self.storage {
            Storage::Log(log) => log.list(),
            #[cfg(feature = "postgres")]
            Storage::Table(table) => table.list().await?,
        };
        all.sort_by_key(|document| std::cmp::Reverse(document.created));
        Ok(all)
    }

    pub(crate) async fn create_document(&self, owner: User, title: &str) -> Result<Option<Position>, Error> {
        if self.list().await?.len() >= MAX_DOCUMENTS {
            return Err(Error::LimitReached("There are too many documents. Delete one first."));
        }
        self.put(new_id(), owner, text(title, MAX_TITLE)?).await
    }

    /// Stores a document. Returns the position of the event about it. For a table, the position is
    /// not known: an instance moves the event into the log after the commit.
    async fn put(&self, id: String, owner: User, title: String) -> Result<Option<Position>, Error> {
        let document = Document { id, title, owner: owner.id.to_owned(), created: now() };
        let created = vec![(self.hub.topic(TOPIC), document.to_event()?)];
        match &self.storage {
            Storage::Log(_) => log::publish(&self.hub, created).await,
            #[cfg(feature = "postgres")]
            Storage::Table(table) => table.insert(&document, created).await.map(|()| None),
        }
    }

    pub(crate) async fn delete_document(&self, by: User, id: &str) -> Result<Option<Position>, Error> {
        let document = self.list().await?.into_iter().find(|document| document.id == id).ok_or(Error::Missing)?;
        let events = self.deleted(&document, by)?;
        match &self.storage {
            Storage::Log(_) => log::publish(&self.hub, events).await,
            #[cfg(feature = "postgres")]
            Storage::Table(table) => table.delete(id, events).await.map(|()| None),
        }
    }

    /// Returns the events that a user has deleted a document, with their targets.
    fn deleted(&self, document: &Document, by: User) -> Result<Vec<(Target<'_>, Event)>, Error> {
        let id = &document.id;
        let mut events = Vec::new();
        if document.owner != by.id {
            let text = format!("{} deleted your document “{}”", by.name, document.title);
            events.push(Notification::new(id, &document.owner, text, "/documents").addressed(&self.hub)?);
        }
        // Removes the current value from the log, and the document from open pages.
        events.push((self.hub.topic(TOPIC), DocumentDeleted { id: id.clone() }.to_removal()?));
        Ok(events)
    }
}

impl Follower for Documents {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        match &self.storage {
            Storage::Log(log) => log.apply(event),
            #[cfg(feature = "postgres")]
            Storage::Table(_) => {}
        }
    }

    fn clear(&self) {
        match &self.storage {
            Storage::Log(log) => log.clear(),
            #[cfg(feature = "postgres")]
            Storage::Table(_) => {}
        }
    }
}
