//! The control messages that instances broadcast beside the log, for example commands and presence
//! updates.
//!
//! A message is a small JSON object. No instance rebuilds its state from old messages, so the
//! format has to match only between instances that run at the same time.

use std::collections::btree_map::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{
    Action, Change, Command, ConnectionId, Cursor, Disconnect, Epoch, Reconnect, ScopeName, Scoped, To, Topic, UserId,
};

/// The id of an instance: a random number for each hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InstanceId(pub(crate) u64);

/// A control message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) from: InstanceId,
    pub(crate) body: Body,
}

/// The content of a control message.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Command(Command),
    /// A request to all instances for their complete lists, with the settings of the sender.
    Ask(BTreeMap<String, String>),
    /// The settings of the sender, in answer to a request with other settings.
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
}

/// The newest entry of a run, as the instance of its writer announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunNews {
    pub(crate) id: Epoch,
    /// The number of entries in the journal of the run.
    pub(crate) entries: u64,
}

/// A presence update: connections of the sender that were opened, changed or closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct PresenceUpdate {
    /// The number of the update: one more than the number of the previous update. A part of a
    /// complete list has the number of the newest update that the list includes.
    pub(crate) number: u64,
    /// Set if this is a part of the complete list of the sender.
    pub(crate) all: Option<Part>,
    /// The connections that were opened or changed. The parts of a complete list have all open
    /// connections.
    pub(crate) open: Vec<PeerConnection>,
    /// The connections that have closed. Empty in a complete list.
    pub(crate) closed: Vec<ConnectionId>,
}

/// A part of a complete list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    First,
    More,
}

/// A peer connection: a connection of another instance, as the presence updates of that instance
/// describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerConnection {
    pub(crate) id: ConnectionId,
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
        let scope = self.scope.as_str().map_or(0, |scope| 2 * scope.len());
        scope + user + data + topics + 64
    }
}

/// Returns the maximum number of bytes that a topic takes in a message. JSON escapes only quotes
/// and backslashes of a topic, each as two bytes, because a topic has no control characters.
fn size_of_topic(topic: &Topic) -> usize {
    let escaped = topic.as_str().bytes().filter(|byte| b"\"\\".contains(byte)).count();
    topic.as_str().len() + escaped + 4
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

/// A message in JSON, with the version of the format.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    v: u64,
    from: String,
    #[serde(flatten, borrow)]
    body: Wire<'a>,
}

/// [`Body`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wire<'a> {
    Command {
        at: String,
        #[serde(borrow)]
        to: To<'a>,
        #[serde(default)]
        except: Vec<String>,
        #[serde(rename = "do")]
        action: WireAction,
    },
    Ask {
        #[serde(default)]
        settings: BTreeMap<String, String>,
    },
    Settings {
        settings: BTreeMap<String, String>,
    },
    Lease {
        number: u64,
    },
    Goodbye {},
    #[serde(rename = "presence")]
    PresenceUpdate {
        number: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        all: Option<Part>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        open: Vec<WireConnection>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        closed: Vec<String>,
    },
    /// Each run with its name, its id in hexadecimal and the number of its entries.
    Runs {
        runs: Vec<(String, String, u64)>,
        /// The runs of scopes, each with its scope as the last element.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        scoped: Vec<(String, String, u64, String)>,
    },
    #[serde(rename = "stop")]
    Stop {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        name: String,
        id: String,
    },
}

/// [`Action`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireAction {
    Disconnect {
        reconnect: String,
        #[serde(default)]
        ms: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    Join {
        topic: String,
        /// The text of the cursor. Empty if the connection reads from now on.
        #[serde(default)]
        since: String,
    },
    Leave {
        topic: String,
    },
    Change {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        leave: Vec<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        join: Vec<String>,
        /// The text of the cursor, as in `Join`.
        #[serde(default)]
        since: String,
        /// Topics, each with a position. The connection may read only the records of the topic
        /// after this position.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        bounds: Vec<(String, String)>,
    },
}

/// [`PeerConnection`] in JSON.
#[derive(Serialize, Deserialize)]
struct WireConnection {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    topics: Vec<String>,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = match &self.body {
            Body::Command(command) => Wire::Command {
                at: command.issued_at.to_string(),
                to: To::of(&command.audience),
                except: command.audience.excluded().iter().map(ToString::to_string).collect(),
                action: wire_action(&command.action),
            },
            Body::Ask(settings) => Wire::Ask { settings: settings.clone() },
            Body::Settings(settings) => Wire::Settings { settings: settings.clone() },
            Body::Lease(number) => Wire::Lease { number: *number },
            Body::Goodbye => Wire::Goodbye {},
            Body::PresenceUpdate(update) => Wire::PresenceUpdate {
                number: update.number,
                all: update.all,
                open: update.open.iter().map(wire_connection).collect(),
                closed: update.closed.iter().map(ToString::to_string).collect(),
            },
            Body::Runs(runs) => {
                let (mut root, mut scoped) = (Vec::new(), Vec::new());
                for (name, RunNews { id, entries }) in runs {
                    let (text, id) = (name.to_string(), format!("{:x}", id.0));
                    match name.scope() {
                        None => root.push((text, id, *entries)),
                        Some(scope) => scoped.push((text, id, *entries, scope.to_owned())),
                    }
                }
                Wire::Runs { runs: root, scoped }
            }
            Body::Stop(name, id) => Wire::Stop {
                scope: name.scope().map(ToOwned::to_owned),
                name: name.to_string(),
                id: format!("{:x}", id.0),
            },
        };
        // Serialization cannot fail, because the message has only text and numbers.
        serde_json::to_vec(&Envelope { v: 1, from: format!("{:x}", self.from.0), body }).unwrap_or_default()
    }

    /// Decodes a message. Returns `None` if the message is invalid, or if this version of the crate
    /// does not support its version or kind.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).ok()?;
        if envelope.v != 1 {
            return None;
        }
        let body = match envelope.body {
            Wire::Command { at, to, except, action } => {
                let audience = to.audience(except.iter().map(String::as_str)).ok()?;
                let action = read_action(action, audience.scope())?;
                Body::Command(Command { audience, action, issued_at: at.parse().ok()? })
            }
            Wire::Ask { settings } => Body::Ask(settings),
            Wire::Settings { settings } => Body::Settings(settings),
            Wire::Lease { number } => Body::Lease(number),
            Wire::Goodbye {} => Body::Goodbye,
            Wire::PresenceUpdate { number, all, open, closed } => Body::PresenceUpdate(PresenceUpdate {
                number,
                all,
                open: open.into_iter().map(read_connection).collect::<Option<_>>()?,
                closed: closed.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?,
            }),
            Wire::Runs { runs, scoped } => {
                let root = runs.into_iter().map(|(name, id, entries)| (name, id, entries, None));
                let scoped = scoped.into_iter().map(|(name, id, entries, scope)| (name, id, entries, Some(scope)));
                let read = |(name, id, entries, scope): (String, String, u64, Option<String>)| {
                    let name = read_topic(name, &ScopeName::read(scope.as_deref()).ok()?)?;
                    Some((name, RunNews { id: read_epoch(&id)?, entries }))
                };
                Body::Runs(root.chain(scoped).map(read).collect::<Option<_>>()?)
            }
            Wire::Stop { scope, name, id } => {
                Body::Stop(read_topic(name, &ScopeName::read(scope.as_deref()).ok()?)?, read_epoch(&id)?)
            }
        };
        Some(Self { from: InstanceId(u64::from_str_radix(&envelope.from, 16).ok()?), body })
    }
}

fn read_epoch(id: &str) -> Option<Epoch> {
    u64::from_str_radix(id, 16).ok().map(Epoch)
}

fn wire_action(action: &Action) -> WireAction {
    match action {
        Action::Disconnect(disconnect) => {
            let ms = match disconnect.reconnect {
                Reconnect::Now | Reconnect::Over => 0,
                Reconnect::After(time) | Reconnect::BlockedFor(time) => {
                    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
                }
            };
            let note = disconnect.note.as_deref().map(ToOwned::to_owned);
            WireAction::Disconnect { reconnect: disconnect.reconnect.as_str().to_owned(), ms, note }
        }
        Action::Join(topic, since) => WireAction::Join { topic: topic.to_string(), since: wire_cursor(*since) },
        Action::Leave(topic) => WireAction::Leave { topic: topic.to_string() },
        Action::Change(Change { leave, join, since, bounds }) => {
            let texts = |topics: &[Topic]| topics.iter().map(ToString::to_string).collect();
            let bounds = bounds.iter().map(|(topic, position)| (topic.to_string(), position.to_string())).collect();
            WireAction::Change { leave: texts(leave), join: texts(join), since: wire_cursor(*since), bounds }
        }
    }
}

/// Reads an action for an audience of this scope. The topics of the action are of the same scope. A
/// command for all scopes has no topics, so an action with a topic is then invalid.
fn read_action(action: WireAction, scope: Option<&ScopeName>) -> Option<Action> {
    Some(match action {
        WireAction::Disconnect { reconnect, ms, note } => {
            let time = Duration::from_millis(ms);
            let disconnect = match reconnect.as_str() {
                "now" => Disconnect::now(),
                "later" => Disconnect::reconnect_after(time),
                "never" => Disconnect::block_for(time),
                _ => return None,
            };
            let disconnect = if let Some(note) = note { disconnect.note(note) } else { disconnect };
            disconnect.check().ok()?;
            Action::Disconnect(disconnect)
        }
        WireAction::Join { topic, since } => Action::Join(read_topic(topic, scope?)?, Cursor::parse(since.as_bytes())),
        WireAction::Leave { topic } => Action::Leave(read_topic(topic, scope?)?),
        WireAction::Change { leave, join, since, bounds } => {
            let (since, scope) = (Cursor::parse(since.as_bytes()), scope?);
            let bound = |(topic, position): (String, String)| Some((read_topic(topic, scope)?, position.parse().ok()?));
            let bounds = bounds.into_iter().map(bound).collect::<Option<_>>()?;
            Action::Change(Change { leave: read_topics(leave, scope)?, join: read_topics(join, scope)?, since, bounds })
        }
    })
}

fn wire_cursor(cursor: Cursor) -> String {
    match cursor {
        Cursor::Absent => String::new(),
        Cursor::At(position) => position.to_string(),
        // `Cursor::parse` returns `Invalid` for this text. For a join, `Banned` has the same effect
        // as `Invalid`.
        Cursor::Banned(_) | Cursor::Invalid => "-".to_owned(),
    }
}

fn wire_connection(connection: &PeerConnection) -> WireConnection {
    WireConnection {
        id: connection.id.to_string(),
        scope: connection.scope.as_str().map(ToOwned::to_owned),
        user: connection.user.as_ref().map(ToString::to_string),
        data: connection.data.as_deref().map(ToOwned::to_owned),
        topics: connection.topics.iter().map(ToString::to_string).collect(),
    }
}

fn read_connection(connection: WireConnection) -> Option<PeerConnection> {
    let scope = ScopeName::read(connection.scope.as_deref()).ok()?;
    let user = |name| UserId::try_from(name)?.placed_in(&scope);
    Some(PeerConnection {
        id: connection.id.parse().ok()?,
        user: connection.user.map(user).transpose().ok()?,
        data: connection.data.map(Into::into),
        topics: read_topics(connection.topics, &scope)?,
        scope,
    })
}

fn read_topic(topic: String, scope: &ScopeName) -> Option<Topic> {
    Topic::try_from(topic).ok()?.placed_in(scope).ok()
}

fn read_topics(topics: Vec<String>, scope: &ScopeName) -> Option<Vec<Topic>> {
    topics.into_iter().map(|topic| read_topic(topic, scope)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Address, Audience, Epoch, Position};
    use proptest::prelude::*;

    fn round_trip(body: Body) -> Body {
        let message = Message { from: InstanceId(0xabc), body };
        let read = Message::decode(&message.encode()).expect("an encoded message decodes");
        assert_eq!(read.from, message.from);
        read.body
    }

    #[test]
    fn control_message_decodes_to_the_encoded_message() {
        let mut audience = Audience::from(Address::User(UserId::try_from("a\"b").unwrap()));
        audience.insert(Address::Everyone(ScopeName::ROOT));
        audience.exclude(ConnectionId::from_bits(9));
        let position = Position::new(Epoch(7), 8);
        let topic = Topic::try_from("t:{}").unwrap();
        for action in [
            Action::Disconnect(Disconnect::now()),
            Action::Disconnect(Disconnect::reconnect_after(Duration::from_secs(3)).note("why\n")),
            Action::Disconnect(Disconnect::block_for(Duration::from_secs(4))),
            Action::Join(topic.clone(), Cursor::Absent),
            Action::Join(topic.clone(), Cursor::At(position)),
            Action::Join(topic.clone(), Cursor::Invalid),
            Action::Leave(topic.clone()),
            Action::Change(Change { leave: vec![], join: vec![topic.clone()], since: Cursor::Absent, bounds: vec![] }),
            Action::Change(Change {
                leave: vec![Topic::from(1), topic.clone()],
                join: vec![topic.clone(), Topic::from(2), Topic::from(3)],
                since: Cursor::At(position),
                bounds: vec![(topic.clone(), position)],
            }),
            Action::Change(Change { leave: vec![topic.clone()], join: vec![], since: Cursor::Invalid, bounds: vec![] }),
        ] {
            let command = Command { audience: audience.clone(), action: action.clone(), issued_at: position };
            let Body::Command(read) = round_trip(Body::Command(command)) else { panic!("not a command") };
            assert_eq!((&read.action, read.issued_at), (&action, position));
            assert_eq!(read.audience.excluded(), audience.excluded());
            assert_eq!(read.audience.addresses().len(), 2);
        }
        let connection = PeerConnection {
            id: ConnectionId::from_bits(1),
            scope: ScopeName::ROOT,
            user: Some(UserId::from(5)),
            data: Some("{}".into()),
            topics: vec![topic],
        };
        let update = PresenceUpdate {
            number: 3,
            all: Some(Part::First),
            open: vec![connection.clone()],
            closed: vec![connection.id],
        };
        let Body::PresenceUpdate(read) = round_trip(Body::PresenceUpdate(update)) else {
            panic!("not a presence update")
        };
        assert_eq!(
            (read.number, read.all, &read.open, &read.closed),
            (3, Some(Part::First), &vec![connection.clone()], &vec![connection.id])
        );
        assert!(matches!(round_trip(Body::Lease(4)), Body::Lease(4)));
        let settings = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert!(matches!(round_trip(Body::Ask(settings.clone())), Body::Ask(read) if read == settings));
        assert!(matches!(round_trip(Body::Settings(settings.clone())), Body::Settings(read) if read == settings));
        assert!(matches!(round_trip(Body::Goodbye), Body::Goodbye));
    }

    #[test]
    fn names_of_a_control_message_keep_their_scope() {
        let scope = ScopeName::named("a/b").unwrap();
        let topic = Topic::try_from("t").unwrap().placed_in(&scope).unwrap();
        let user = UserId::try_from("u").unwrap().placed_in(&scope).unwrap();
        let position = Position::new(Epoch(7), 8);
        let audience = Audience::from(Address::Connection(ConnectionId::from_bits(9), scope.clone()));
        for action in [
            Action::Join(topic.clone(), Cursor::Absent),
            Action::Leave(topic.clone()),
            Action::Change(Change {
                leave: vec![topic.clone()],
                join: vec![topic.clone()],
                since: Cursor::Absent,
                bounds: vec![(topic.clone(), position)],
            }),
        ] {
            let command = Command { audience: audience.clone(), action: action.clone(), issued_at: position };
            let Body::Command(read) = round_trip(Body::Command(command)) else { panic!("not a command") };
            assert_eq!((&read.action, read.audience.addresses()), (&action, audience.addresses()));
        }
        for user in [Some(user), None] {
            let topics = vec![topic.clone()];
            let open =
                PeerConnection { id: ConnectionId::from_bits(1), scope: scope.clone(), user, data: None, topics };
            let update = PresenceUpdate { open: vec![open.clone()], ..PresenceUpdate::default() };
            let Body::PresenceUpdate(read) = round_trip(Body::PresenceUpdate(update)) else { panic!("no update") };
            assert_eq!(read.open, [open]);
        }
        let runs = vec![
            (Topic::from(1), RunNews { id: Epoch(2), entries: 3 }),
            (topic.clone(), RunNews { id: Epoch(4), entries: 5 }),
        ];
        assert!(matches!(round_trip(Body::Runs(runs.clone())), Body::Runs(read) if read == runs));
        assert!(matches!(round_trip(Body::Stop(topic.clone(), Epoch(6))), Body::Stop(read, _) if read == topic));
        // A command for all scopes has no topic.
        let to_all =
            br#"{"v":1,"from":"1","command":{"at":"1.a.1","to":{"every_scope":true},"do":{"leave":{"topic":"t"}}}}"#;
        assert!(Message::decode(to_all).is_none());
    }

    #[test]
    fn message_of_an_unknown_version_or_kind_is_ignored() {
        let unknown = br#"{"v":1,"from":"1","command":{"at":"1.a.1","to":{},"do":{"dance":{}}}}"#;
        let no_topic = br#"{"v":1,"from":"1","command":{"at":"1.a.1","to":{},"do":{"change":{"join":["a",""]}}}}"#;
        let known = br#"{"v":1,"from":"1","command":{"at":"1.a.1","to":{},"do":{"change":{"join":["a"]}}}}"#;
        assert!(Message::decode(known).is_some());
        for bytes in
            [&br#"{"v":2,"from":"1","ask":{}}"#[..], br#"{"v":1,"from":"1","dance":{}}"#, b"", b"{}", unknown, no_topic]
        {
            assert!(Message::decode(bytes).is_none());
        }
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_does_not_panic(bytes: Vec<u8>) {
            drop(Message::decode(&bytes));
        }
    }
}
