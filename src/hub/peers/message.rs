//! What instances tell each other beside the log: commands, and who is connected where. Small JSON
//! objects on the control stream; nothing is rebuilt from old ones, so their format binds nobody but
//! the instances that run now.

use std::collections::btree_map::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Action, Change, Command, ConnectionId, Cursor, Disconnect, Reconnect, To, Topic, UserId};

/// Which instance: random, for the life of a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InstanceId(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) from: InstanceId,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Command(Command),
    /// Whoever hears this tells what it has. And what this one's settings are.
    Ask(BTreeMap<String, String>),
    /// The settings of an instance, for one that has others.
    Settings(BTreeMap<String, String>),
    /// It is alive, and its newest news has this number.
    Lease(u64),
    /// It leaves, and what was there is gone.
    Bye,
    News(News),
}

/// Connections that have come, changed or gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// One more than that of the news before it, but for a part of a list of all.
    pub(crate) number: u64,
    /// It is the beginning of a list of all that are there, or a part of that.
    pub(crate) all: Option<Part>,
    pub(crate) here: Vec<Here>,
    pub(crate) gone: Vec<ConnectionId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    First,
    More,
}

/// A connection of another instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) id: ConnectionId,
    pub(crate) user: Option<UserId>,
    pub(crate) data: Option<Arc<str>>,
    pub(crate) topics: Vec<Topic>,
}

/// How many bytes of names one connection may have in a message. Its further topics are not known on other instances.
const LARGEST: usize = 512 * 1024;

impl Here {
    /// About how many bytes it takes in a message.
    pub(crate) fn size(&self) -> usize {
        let user = self.user.as_ref().map_or(0, |user| user.as_str().len());
        let data = self.data.as_ref().map_or(0, |data| data.len());
        let topics: usize = self.topics.iter().map(size_of_topic).sum();
        user + data + topics + 64
    }
}

/// JSON writes a control character in six bytes; a topic has none, so a byte takes two at most.
fn size_of_topic(topic: &Topic) -> usize {
    let escaped = topic.as_str().bytes().filter(|byte| b"\"\\".contains(byte)).count();
    topic.as_str().len() + escaped + 4
}

/// Leaves out topics that no broker would take in one message. Returns whether there were any.
pub(crate) fn cut_topics(topics: &mut Vec<Topic>) -> bool {
    let mut size = 0;
    let fits = |topic: &&Topic| {
        size += size_of_topic(topic);
        size <= LARGEST
    };
    let count = topics.iter().take_while(fits).count();
    let is_cut = count < topics.len();
    topics.truncate(count);
    is_cut
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    v: u64,
    from: String,
    #[serde(flatten, borrow)]
    body: Wire<'a>,
}

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
    Bye {},
    News {
        number: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        all: Option<Part>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        here: Vec<WireHere>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<String>,
    },
}

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
        /// An id; empty for "from now on".
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
        /// As of `join`.
        #[serde(default)]
        since: String,
        /// Topics and ids.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        bounds: Vec<(String, String)>,
    },
}

#[derive(Serialize, Deserialize)]
struct WireHere {
    id: String,
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
            Body::Bye => Wire::Bye {},
            Body::News(news) => Wire::News {
                number: news.number,
                all: news.all,
                here: news.here.iter().map(wire_here).collect(),
                gone: news.gone.iter().map(ToString::to_string).collect(),
            },
        };
        // Text and numbers always serialise.
        serde_json::to_vec(&Envelope { v: 1, from: format!("{:x}", self.from.0), body }).unwrap_or_default()
    }

    /// None for what is of no version that is known here.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).ok()?;
        if envelope.v != 1 {
            return None;
        }
        let body = match envelope.body {
            Wire::Command { at, to, except, action } => {
                let audience = to.audience(except.iter().map(String::as_str)).ok()?;
                Body::Command(Command { audience, action: read_action(action)?, issued_at: at.parse().ok()? })
            }
            Wire::Ask { settings } => Body::Ask(settings),
            Wire::Settings { settings } => Body::Settings(settings),
            Wire::Lease { number } => Body::Lease(number),
            Wire::Bye {} => Body::Bye,
            Wire::News { number, all, here, gone } => Body::News(News {
                number,
                all,
                here: here.into_iter().map(read_here).collect::<Option<_>>()?,
                gone: gone.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?,
            }),
        };
        Some(Self { from: InstanceId(u64::from_str_radix(&envelope.from, 16).ok()?), body })
    }
}

fn wire_action(action: &Action) -> WireAction {
    match action {
        Action::Disconnect(disconnect) => {
            let ms = match disconnect.reconnect {
                Reconnect::Now => 0,
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

fn read_action(action: WireAction) -> Option<Action> {
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
        WireAction::Join { topic, since } => {
            Action::Join(Topic::try_from(topic).ok()?, Cursor::parse(since.as_bytes()))
        }
        WireAction::Leave { topic } => Action::Leave(Topic::try_from(topic).ok()?),
        WireAction::Change { leave, join, since, bounds } => {
            let since = Cursor::parse(since.as_bytes());
            let bound =
                |(topic, position): (String, String)| Some((Topic::try_from(topic).ok()?, position.parse().ok()?));
            let bounds = bounds.into_iter().map(bound).collect::<Option<_>>()?;
            Action::Change(Change { leave: read_topics(leave)?, join: read_topics(join)?, since, bounds })
        }
    })
}

fn wire_cursor(cursor: Cursor) -> String {
    match cursor {
        Cursor::Absent => String::new(),
        Cursor::At(position) => position.to_string(),
        // Something that is no position either.
        Cursor::Banned(_) | Cursor::Invalid => "-".to_owned(),
    }
}

fn wire_here(here: &Here) -> WireHere {
    WireHere {
        id: here.id.to_string(),
        user: here.user.as_ref().map(ToString::to_string),
        data: here.data.as_deref().map(ToOwned::to_owned),
        topics: here.topics.iter().map(ToString::to_string).collect(),
    }
}

fn read_here(here: WireHere) -> Option<Here> {
    Some(Here {
        id: here.id.parse().ok()?,
        user: here.user.map(UserId::try_from).transpose().ok()?,
        data: here.data.map(Into::into),
        topics: read_topics(here.topics)?,
    })
}

fn read_topics(topics: Vec<String>) -> Option<Vec<Topic>> {
    topics.into_iter().map(Topic::try_from).collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Address, Audience, Epoch, Position};
    use proptest::prelude::*;

    fn round(body: Body) -> Body {
        let message = Message { from: InstanceId(0xabc), body };
        let read = Message::decode(&message.encode()).expect("it is read back");
        assert_eq!(read.from, message.from);
        read.body
    }

    #[test]
    fn a_control_message_decodes_to_what_was_encoded() {
        let mut audience = Audience::from(Address::User(UserId::try_from("a\"b").unwrap()));
        audience.insert(Address::Everyone);
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
            let Body::Command(read) = round(Body::Command(command)) else { panic!("another kind") };
            assert_eq!((&read.action, read.issued_at), (&action, position));
            assert_eq!(read.audience.excluded(), audience.excluded());
            assert_eq!(read.audience.addresses().len(), 2);
        }
        let here = Here {
            id: ConnectionId::from_bits(1),
            user: Some(UserId::from(5)),
            data: Some("{}".into()),
            topics: vec![topic],
        };
        let news = News { number: 3, all: Some(Part::First), here: vec![here.clone()], gone: vec![here.id] };
        let Body::News(read) = round(Body::News(news)) else { panic!("another kind") };
        assert_eq!(
            (read.number, read.all, &read.here, &read.gone),
            (3, Some(Part::First), &vec![here.clone()], &vec![here.id])
        );
        assert!(matches!(round(Body::Lease(4)), Body::Lease(4)));
        let settings = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert!(matches!(round(Body::Ask(settings.clone())), Body::Ask(read) if read == settings));
        assert!(matches!(round(Body::Settings(settings.clone())), Body::Settings(read) if read == settings));
        assert!(matches!(round(Body::Bye), Body::Bye));
    }

    #[test]
    fn what_is_of_a_later_version_is_passed_over() {
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
        fn any_bytes_are_read_or_passed_over(bytes: Vec<u8>) {
            drop(Message::decode(&bytes));
        }
    }
}
