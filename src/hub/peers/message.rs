//! The control messages that instances broadcast beside the log, for example commands and presence
//! updates. [`codec`](super::codec) encodes them.

use std::collections::btree_map::BTreeMap;
use std::sync::Arc;

use crate::types::{Command, ConnectionId, Epoch, ScopeName, Topic, UserId};

/// The id of an instance: a random number for each hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InstanceId(pub(crate) u64);

/// The first half of the id of a connection. The half is random too, so it identifies the
/// connection among all connections. It does not authorize changes of the connection's topics, as
/// the whole id does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HalfId(pub(crate) u64);

impl From<ConnectionId> for HalfId {
    fn from(id: ConnectionId) -> Self {
        Self(id.first_half())
    }
}

/// A control message: one or more entries of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) from: InstanceId,
    pub(crate) entries: Vec<Body>,
    /// The number of parts that this version of the crate could not read, and has skipped.
    pub(crate) skipped: usize,
}

/// An entry of a control message.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Command(Command),
    /// The sender has connected to the broker, and has these settings. Each other instance answers
    /// with its lease.
    Hello(BTreeMap<String, String>),
    /// The settings of the sender, in answer to the hello of an instance with other settings.
    Settings(BTreeMap<String, String>),
    /// The sender is alive, and its newest presence update has this number.
    Lease(u64),
    /// The goodbye: the sender exits, and its connections have ended.
    Goodbye,
    PresenceUpdate(PresenceUpdate),
    /// The newest entries of runs of the sender.
    Runs(Vec<(Topic, RunNews)>),
    /// The request to the writer of a run to stop.
    Stop(Topic, Epoch),
    /// The question to one instance for the list of its connections. The list has to include the
    /// presence updates up to this number.
    Ask(InstanceId, u64),
    /// The sender has stored the list of its connections.
    Listed(List),
    /// A part of a stored list. It is in a value of the broker, and never broadcast.
    Part(ListPart),
}

/// The newest entry of a run, as the instance of its writer announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunNews {
    pub(crate) id: Epoch,
    /// The number of entries in the journal of the run.
    pub(crate) entries: u64,
}

/// A presence update: connections of the sender that were opened, changed or closed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PresenceUpdate {
    /// The number of the update: one more than the number of the previous update. The first update
    /// of an instance has the number 1.
    pub(crate) number: u64,
    /// The connections that were opened or changed.
    pub(crate) open: Vec<PeerConnection>,
    /// The connections that have closed.
    pub(crate) closed: Vec<HalfId>,
}

/// A list of all connections of an instance, which the instance has stored at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct List {
    /// The number of the newest presence update that the list includes.
    pub(crate) number: u64,
    /// A number that is larger than those of the instance's earlier lists.
    pub(crate) serial: u64,
    /// The number of parts.
    pub(crate) parts: u64,
}

/// The maximum number of parts of a list. A list that claims more is ignored.
const MAX_PARTS: u64 = 100_000;

impl List {
    /// Returns the key of a part at the broker. The keys of two serial numbers in succession
    /// differ, so that a list can be read while the next one is stored.
    pub(crate) fn key(&self, of: InstanceId, part: u64) -> String {
        format!("connections/{:016x}/{}/{part}", of.0, self.serial % 2)
    }

    pub(crate) fn is_plausible(&self) -> bool {
        self.parts <= MAX_PARTS
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListPart {
    /// The [`List::serial`] of the list.
    pub(crate) serial: u64,
    /// The index of the part, from 0.
    pub(crate) part: u64,
    pub(crate) open: Vec<PeerConnection>,
}

/// A peer connection: a connection of another instance, as the presence updates of that instance
/// describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerConnection {
    pub(crate) id: HalfId,
    /// The scope of the connection, and of its user and its topics.
    pub(crate) scope: ScopeName,
    pub(crate) user: Option<UserId>,
    pub(crate) data: Option<Arc<str>>,
    pub(crate) topics: Vec<Topic>,
}

/// The maximum number of bytes that the topics of one connection take in a message. Other instances
/// do not receive further topics of the connection.
const MAX_TOPIC_BYTES: usize = 512 * 1024;

impl PeerConnection {
    /// Returns the approximate number of bytes that the connection takes in a message.
    pub(crate) fn size(&self) -> usize {
        let user = self.user.as_ref().map_or(0, |user| user.as_str().len());
        let data = self.data.as_ref().map_or(0, |data| data.len());
        let topics: usize = self.topics.iter().map(size_of_topic).sum();
        let scope = self.scope.as_str().map_or(0, str::len);
        // The scope is a name itself, and a part of the name of the user.
        2 * scope + user + data + topics + 32
    }
}

/// Returns the maximum number of bytes that a topic takes in a message, with its scope and its
/// number.
fn size_of_topic(topic: &Topic) -> usize {
    topic.as_str().len() + topic.scope().map_or(0, str::len) + 12
}

/// Removes the last topics of a list that takes more than [`MAX_TOPIC_BYTES`], because a broker
/// might reject the message. Returns whether topics were removed.
pub(crate) fn cut_topics(topics: &mut Vec<Topic>) -> bool {
    let mut size = 0;
    let fits = |topic: &&Topic| {
        size += size_of_topic(topic);
        size <= MAX_TOPIC_BYTES
    };
    let count = topics.iter().take_while(fits).count();
    let is_cut = count < topics.len();
    topics.truncate(count);
    is_cut
}
