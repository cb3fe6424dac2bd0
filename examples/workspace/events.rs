//! The events of the application. Each name is written here once: the pages have the names and the
//! types from the generated modules `pages/events.ts` and `pages/events.js`.
//!
//! `cargo test --test describe` updates these modules. Times are in milliseconds since the Unix
//! epoch, and all numbers are far below 2^53, so the pages read them as numbers.

use serde::{Deserialize, Serialize};
use tower_sse::{Message, ReceivedEvent, TypeScript};
use ts_rs::TS;

/// A document was created.
#[derive(Clone, Serialize, Deserialize, Message, TS)]
#[message(event = "document.created", key = "id")]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) owner: String,
    #[ts(type = "number")]
    pub(crate) created: u64,
}

/// A document was deleted. This event removes the current value with the same key.
#[derive(Serialize, Deserialize, Message, TS)]
#[message(event = "document.deleted", key = "id")]
pub(crate) struct DocumentDeleted {
    pub(crate) id: String,
}

/// A user has posted news.
#[derive(Clone, Serialize, Deserialize, Message, TS)]
#[message(event = "post")]
pub(crate) struct Post {
    pub(crate) id: String,
    pub(crate) author: String,
    pub(crate) text: String,
    #[ts(type = "number")]
    pub(crate) at: u64,
}

/// A notification of a user. A second one with the same id replaces the first.
#[derive(Clone, Serialize, Deserialize, Message, TS)]
#[message(event = "notification", key = "id")]
pub(crate) struct Notification {
    pub(crate) id: String,
    pub(crate) user: String,
    pub(crate) text: String,
    /// The page that shows the subject of the notification.
    pub(crate) href: String,
    #[ts(type = "number")]
    pub(crate) at: u64,
    pub(crate) read: bool,
}

/// The state of a report.
#[derive(Clone, Serialize, Deserialize, Message, TS)]
#[message(event = "report", key = "id")]
pub(crate) struct Report {
    pub(crate) id: String,
    pub(crate) owner: String,
    #[ts(type = "number")]
    pub(crate) limit: usize,
    #[ts(type = "number")]
    pub(crate) started: u64,
    #[ts(type = "number")]
    pub(crate) percent: usize,
    #[ts(type = "number")]
    pub(crate) primes: usize,
    #[ts(type = "number")]
    pub(crate) took_ms: u64,
    pub(crate) state: ReportState,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReportState {
    Running,
    Done,
    /// The user has stopped the report.
    Stopped,
    /// The instance of the report has ended.
    Interrupted,
}

/// The last will of a report whose instance was killed.
#[derive(Serialize, Message, TS)]
#[message(event = "interrupted")]
pub(crate) struct Interrupted;

/// The figures of an instance at one time. A figure that the system does not provide is `None`.
#[derive(Clone, Serialize, Deserialize, Message, TS)]
#[message(event = "sample", key = "instance")]
pub(crate) struct Sample {
    pub(crate) instance: String,
    #[ts(type = "number")]
    pub(crate) at: u64,
    /// In percent of all cores together.
    pub(crate) machine_cpu: Option<f64>,
    /// In percent of all cores together.
    pub(crate) process_cpu: Option<f64>,
    /// In bytes.
    #[ts(type = "number | null")]
    pub(crate) machine_memory: Option<u64>,
    /// In bytes.
    #[ts(type = "number | null")]
    pub(crate) machine_memory_total: Option<u64>,
    /// In bytes.
    #[ts(type = "number | null")]
    pub(crate) process_memory: Option<u64>,
    /// The number of pages with an open stream.
    #[ts(type = "number")]
    pub(crate) connections: usize,
    /// The number of events delivered since the previous sample. The stream by which the services
    /// read the log is included.
    #[ts(type = "number")]
    pub(crate) delivered: u64,
}

/// A session has ended. Only the instances read this event.
#[derive(Serialize, Deserialize, Message)]
#[message(event = "session.ended", key = "id")]
pub(crate) struct SessionEnded {
    pub(crate) id: String,
}

impl SessionEnded {
    /// Returns the ended session, if the event ends one.
    ///
    /// Earlier versions of this program sent the bare id as data. These events stay valid:
    /// otherwise a session that ended before an update would be valid again after it.
    pub(crate) fn read(event: &ReceivedEvent) -> Option<Self> {
        event.message().unwrap_or_else(|_| Some(Self { id: event.data.clone() }))
    }
}

/// The module of the pages.
#[allow(dead_code, reason = "a test writes the module")]
pub(crate) fn module() -> TypeScript {
    TypeScript::new()
        .message::<Document>()
        .message::<DocumentDeleted>()
        .message::<Post>()
        .message::<Notification>()
        .message::<Report>()
        .message::<Interrupted>()
        .message::<Sample>()
}
