//! What the application tells connections to do: a value, so that it can travel.

use super::audience::Audience;
use super::disconnect::Disconnect;
use super::last_event_id::Cursor;
use super::name::Topic;
use super::position::Position;

/// What is to be done to the connections of an audience.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) audience: Audience,
    pub(crate) action: Action,
    /// Where the log was when it was given: what was published before is older than it.
    pub(crate) issued_at: Position,
}

impl Command {
    /// Whether it joins this topic.
    pub(crate) fn joins(&self, topic: &Topic) -> bool {
        match &self.action {
            Action::Join(joined, _) => joined == topic,
            Action::Change(change) => change.join.contains(topic),
            Action::Disconnect(_) | Action::Leave(_) => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Disconnect(Disconnect),
    Join(Topic, Cursor),
    Leave(Topic),
    /// What a page does to its own connection, by a request that met another instance.
    Change(Change),
}

/// Topics to be left, then others to be joined: all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) leave: Vec<Topic>,
    pub(crate) join: Vec<Topic>,
    /// What of those that are joined is wanted too.
    pub(crate) since: Cursor,
    /// Of those that are joined: what was published up to here may not be read.
    pub(crate) bounds: Vec<(Topic, Position)>,
}
