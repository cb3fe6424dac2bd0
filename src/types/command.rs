//! Commands for open connections. A command is a value, so that an instance can send it to its
//! peers.

use super::audience::Audience;
use super::disconnect::Disconnect;
use super::last_event_id::Cursor;
use super::name::Topic;
use super::position::Position;

/// An action for all connections of an audience.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) audience: Audience,
    pub(crate) action: Action,
    /// The position of the log when the command was issued. Events up to it were published before
    /// the command.
    pub(crate) issued_at: Position,
}

impl Command {
    /// Returns whether the command makes connections join this topic.
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
    /// A change of topics that a page requests for its own connection, from an instance that does
    /// not have the connection.
    Change(Change),
}

impl Action {
    /// Returns the topics of the action.
    pub(crate) fn topics(&self) -> Vec<&Topic> {
        match self {
            Self::Disconnect(_) => Vec::new(),
            Self::Join(topic, _) | Self::Leave(topic) => vec![topic],
            Self::Change(Change { leave, join, bounds, .. }) => {
                leave.iter().chain(join).chain(bounds.iter().map(|(topic, _)| topic)).collect()
            }
        }
    }
}

/// Topics to leave and topics to join. The change is carried out as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) leave: Vec<Topic>,
    pub(crate) join: Vec<Topic>,
    /// The cursor after which the page wants the events of the joined topics.
    pub(crate) since: Cursor,
    /// Joined topics with the positions after which the page may read them. If a topic has several
    /// positions, the latest counts.
    pub(crate) bounds: Vec<(Topic, Position)>,
}
