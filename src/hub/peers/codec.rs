//! The bytes of control messages.
//!
//! ```text
//! message = version (one byte, 1)  sender (eight bytes)  names (a section)  entry …
//! names   = count  name (a section: scope, text) …
//! entry   = kind (a number)  content (a section)
//! ```
//!
//! [`encoding`](super::encoding) describes numbers and sections. Instances of different versions run
//! at the same time during an upgrade, so the format only grows:
//!
//! 1. The first byte stays 1. A reader skips an entry of an unknown kind, and applies the others.
//! 2. A field is never removed and never changes its meaning. A new field is at the end of a
//!    section.
//! 3. A reader skips what it cannot read in the smallest part around it: a topic, a connection, an
//!    address or an entry. A change of topics is one part, because it is carried out as a whole.
//! 4. `tests/golden/control.txt` has messages of every released version. They are never changed.

use std::collections::btree_map::BTreeMap;
use std::time::Duration;

use super::encoding::{NameReader, NameWriter, Reader, Writer};
use super::message::{Body, HalfId, InstanceId, List, ListPart, Message, PeerConnection, PresenceUpdate, RunNews};
use crate::types::{
    Action, Address, Audience, Change, Command, ConnectionId, Cursor, Disconnect, Epoch, Position, Reconnect,
    ScopeName, Scoped, Topic,
};

const VERSION: u8 = 1;

// The kinds of entries.
const COMMAND: u64 = 1;
const HELLO: u64 = 2;
const SETTINGS: u64 = 3;
const LEASE: u64 = 4;
const GOODBYE: u64 = 5;
const PRESENCE_UPDATE: u64 = 6;
const RUNS: u64 = 7;
const STOP: u64 = 8;
const ASK: u64 = 9;
const LISTED: u64 = 10;
const PART: u64 = 11;

// The kinds of addresses of a command.
const EVERYONE: u64 = 1;
const TOPIC: u64 = 2;
const USER: u64 = 3;
const CONNECTION: u64 = 4;
// With scopes. These are separate kinds, because a reader that ignores the scope must not take
// them for the kinds above.
const EVERYONE_OF_SCOPE: u64 = 5;
const CONNECTION_OF_SCOPE: u64 = 6;
const EVERY_SCOPE: u64 = 7;

// The kinds of actions of a command.
const DISCONNECT: u64 = 1;
const JOIN: u64 = 2;
const LEAVE: u64 = 3;
const CHANGE: u64 = 4;

// The kinds of cursors.
const ABSENT: u64 = 0;
const AT: u64 = 1;
const INVALID: u64 = 2;

impl Message {
    /// Encodes a message with one entry.
    pub(crate) fn encode(from: InstanceId, body: &Body) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.entry(body);
        let mut message = Writer { bytes: vec![VERSION] };
        message.fixed(from.0);
        encoder.names.write(&mut message);
        message.bytes.extend_from_slice(&encoder.entries.bytes);
        message.bytes
    }

    /// Decodes a message. Returns `None` if the bytes are no control message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, bytes) = bytes.split_first()? else { return None };
        let mut reader = Reader(bytes);
        let from = InstanceId(reader.fixed()?);
        let mut decoder = Decoder { names: NameReader::read(&mut reader)?, skipped: 0 };
        let mut entries = Vec::new();
        while !reader.is_empty() {
            let Some((kind, mut content)) = reader.number().and_then(|kind| Some((kind, reader.section()?))) else {
                // The end of the message is missing.
                decoder.skipped += 1;
                break;
            };
            let body = decoder.entry(kind, &mut content);
            decoder.count_skipped(&body);
            entries.extend(body);
        }
        Some(Self { from, entries, skipped: decoder.skipped })
    }
}

#[derive(Default)]
struct Encoder<'a> {
    names: NameWriter<'a>,
    entries: Writer,
}

impl<'a> Encoder<'a> {
    fn entry(&mut self, body: &'a Body) {
        let mut content = Writer::default();
        let names = &mut self.names;
        let kind = match body {
            Body::Command(command) => {
                write_command(&mut content, names, command);
                COMMAND
            }
            Body::Hello(settings) => {
                write_settings(&mut content, settings);
                HELLO
            }
            Body::Settings(settings) => {
                write_settings(&mut content, settings);
                SETTINGS
            }
            Body::Lease(number) => {
                content.number(*number);
                LEASE
            }
            Body::Goodbye => GOODBYE,
            Body::PresenceUpdate(PresenceUpdate { number, open, closed }) => {
                content.number(*number);
                write_connections(&mut content, names, open);
                content.number(closed.len() as u64);
                closed.iter().for_each(|id| content.fixed(id.0));
                PRESENCE_UPDATE
            }
            Body::Runs(runs) => {
                content.number(runs.len() as u64);
                for (name, news) in runs {
                    content.section_with(|run| {
                        run.number(names.number(name));
                        run.fixed(news.id.0);
                        run.number(news.entries);
                    });
                }
                RUNS
            }
            Body::Stop(name, id) => {
                content.number(names.number(name));
                content.fixed(id.0);
                STOP
            }
            Body::Ask(instance, number) => {
                content.fixed(instance.0);
                content.number(*number);
                ASK
            }
            Body::Listed(List { number, serial, parts }) => {
                [number, serial, parts].into_iter().for_each(|field| content.number(*field));
                LISTED
            }
            Body::Part(ListPart { serial, part, open }) => {
                content.number(*serial);
                content.number(*part);
                write_connections(&mut content, names, open);
                PART
            }
        };
        self.entries.number(kind);
        self.entries.section(&content.bytes);
    }
}

fn write_settings(to: &mut Writer, settings: &BTreeMap<String, String>) {
    to.number(settings.len() as u64);
    for text in settings.iter().flat_map(|(name, value)| [name, value]) {
        to.section(text.as_bytes());
    }
}

fn write_connections<'a>(to: &mut Writer, names: &mut NameWriter<'a>, connections: &'a [PeerConnection]) {
    to.number(connections.len() as u64);
    for PeerConnection { id, scope, user, data, topics } in connections {
        to.section_with(|connection| {
            connection.fixed(id.0);
            // 0 for an anonymous connection, and otherwise the number of the user plus one.
            connection.number(user.as_ref().map_or(0, |user| names.number(user) + 1));
            write_topics(connection, names, topics);
            write_optional(connection, data.as_deref());
            connection.number(names.scope(scope));
        });
    }
}

fn write_topics<'a>(to: &mut Writer, names: &mut NameWriter<'a>, topics: &'a [Topic]) {
    to.number(topics.len() as u64);
    topics.iter().for_each(|topic| to.number(names.number(topic)));
}

/// Writes 0, or 1 and a text.
fn write_optional(to: &mut Writer, text: Option<&str>) {
    to.number(u64::from(text.is_some()));
    text.iter().for_each(|text| to.section(text.as_bytes()));
}

fn write_position(to: &mut Writer, position: Position) {
    to.fixed(position.epoch().0);
    to.number(position.sequence());
}

fn write_id(to: &mut Writer, id: ConnectionId) {
    to.bytes.extend_from_slice(&id.bits().to_le_bytes());
}

fn write_cursor(to: &mut Writer, cursor: Cursor) {
    match cursor {
        Cursor::Absent => to.number(ABSENT),
        Cursor::At(position) => {
            to.number(AT);
            write_position(to, position);
        }
        // For a join, `Banned` has the same effect as `Invalid`.
        Cursor::Banned { .. } | Cursor::Invalid => to.number(INVALID),
    }
}

fn write_command<'a>(to: &mut Writer, names: &mut NameWriter<'a>, command: &'a Command) {
    write_position(to, command.issued_at);
    to.number(command.audience.addresses().len() as u64);
    for address in command.audience.addresses() {
        to.section_with(|section| match address {
            Address::Everyone(scope) if scope.is_root() => section.number(EVERYONE),
            Address::Everyone(scope) => {
                section.number(EVERYONE_OF_SCOPE);
                section.number(names.scope(scope));
            }
            Address::EveryScope => section.number(EVERY_SCOPE),
            Address::Topic(topic) => {
                section.number(TOPIC);
                section.number(names.number(topic));
            }
            Address::User(user) => {
                section.number(USER);
                section.number(names.number(user));
            }
            Address::Connection(id, scope) if scope.is_root() => {
                section.number(CONNECTION);
                write_id(section, *id);
            }
            Address::Connection(id, scope) => {
                section.number(CONNECTION_OF_SCOPE);
                write_id(section, *id);
                section.number(names.scope(scope));
            }
        });
    }
    to.number(command.audience.excluded().len() as u64);
    command.audience.excluded().iter().for_each(|id| write_id(to, *id));
    to.section_with(|action| write_action(action, names, &command.action));
}

fn write_action<'a>(to: &mut Writer, names: &mut NameWriter<'a>, action: &'a Action) {
    match action {
        Action::Disconnect(Disconnect { reconnect, note }) => {
            to.number(DISCONNECT);
            let (kind, time) = match reconnect {
                Reconnect::Now => (0, Duration::ZERO),
                Reconnect::After(time) => (1, *time),
                Reconnect::BlockedFor(time) => (2, *time),
                Reconnect::Over => (2, Duration::ZERO),
            };
            to.number(kind);
            to.number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            write_optional(to, note.as_deref());
        }
        Action::Join(topic, since) => {
            to.number(JOIN);
            to.number(names.number(topic));
            write_cursor(to, *since);
        }
        Action::Leave(topic) => {
            to.number(LEAVE);
            to.number(names.number(topic));
        }
        Action::Change(Change { leave, join, since, bounds }) => {
            to.number(CHANGE);
            write_topics(to, names, leave);
            write_topics(to, names, join);
            write_cursor(to, *since);
            to.number(bounds.len() as u64);
            for (topic, position) in bounds {
                to.number(names.number(topic));
                write_position(to, *position);
            }
        }
    }
}

struct Decoder<'a> {
    names: NameReader<'a>,
    skipped: usize,
}

impl<'a> Decoder<'a> {
    /// Counts a part that could not be read.
    fn count_skipped<T>(&mut self, read: &Option<T>) {
        self.skipped += usize::from(read.is_none());
    }

    fn entry(&mut self, kind: u64, from: &mut Reader<'a>) -> Option<Body> {
        Some(match kind {
            COMMAND => Body::Command(self.command(from)?),
            HELLO => Body::Hello(read_settings(from)?),
            SETTINGS => Body::Settings(read_settings(from)?),
            LEASE => Body::Lease(read_count(from)?),
            GOODBYE => Body::Goodbye,
            PRESENCE_UPDATE => {
                // Updates are numbered from 1.
                let number = read_count(from).filter(|number| *number > 0)?;
                let open = self.connections(from)?;
                let closed = from.list(|from| from.fixed().map(HalfId))?;
                Body::PresenceUpdate(PresenceUpdate { number, open, closed })
            }
            RUNS => {
                let runs = from.list(|from| {
                    let mut run = from.section()?;
                    let mut read = || {
                        let name = self.names.topic(&mut run)??;
                        Some((name, RunNews { id: Epoch(run.fixed()?), entries: run.number()? }))
                    };
                    Some(read())
                })?;
                runs.iter().for_each(|run| self.count_skipped(run));
                Body::Runs(runs.into_iter().flatten().collect())
            }
            STOP => Body::Stop(self.names.topic(from)??, Epoch(from.fixed()?)),
            ASK => Body::Ask(InstanceId(from.fixed()?), read_count(from)?),
            LISTED => Body::Listed(List { number: read_count(from)?, serial: from.number()?, parts: from.number()? }),
            PART => {
                Body::Part(ListPart { serial: from.number()?, part: from.number()?, open: self.connections(from)? })
            }
            _ => return None,
        })
    }

    fn connections(&mut self, from: &mut Reader<'a>) -> Option<Vec<PeerConnection>> {
        let sections = from.list(Reader::section)?;
        let mut connections = Vec::with_capacity(sections.len());
        for mut section in sections {
            let connection = self.connection(&mut section);
            self.count_skipped(&connection);
            connections.extend(connection);
        }
        Some(connections)
    }

    fn connection(&mut self, from: &mut Reader<'a>) -> Option<PeerConnection> {
        let id = HalfId(from.fixed()?);
        let user = match from.number()? {
            0 => None,
            // Without its user, the connection would count as anonymous.
            number => Some(self.names.user(number - 1)?),
        };
        let topics = from.list(|from| self.names.topic(from))?;
        topics.iter().for_each(|topic| self.count_skipped(topic));
        let data = read_optional(from)?.map(Into::into);
        let scope = self.names.scope(from)?;
        let topics: Vec<_> = topics.into_iter().flatten().collect();
        let is_of_scope =
            user.iter().map(Scoped::scope_name).chain(topics.iter().map(Scoped::scope_name)).all(|of| *of == scope);
        is_of_scope.then_some(PeerConnection { id, scope, user, data, topics })
    }

    fn command(&mut self, from: &mut Reader<'a>) -> Option<Command> {
        let issued_at = read_position(from)?;
        let addresses = from.list(|from| Some(self.address(&mut from.section()?)))?;
        addresses.iter().for_each(|address| self.count_skipped(address));
        let addresses: Vec<_> = addresses.into_iter().flatten().collect();
        // The error is an audience of several scopes.
        let audience = Audience::of(addresses, from.list(read_id)?).ok()?;
        let action = self.action(&mut from.section()?)?;
        // A command of one scope changes no topics of another, and a command of all scopes changes
        // no topics at all.
        let is_inside = action.topics().iter().all(|topic| audience.scope() == Some(topic.scope_name()));
        is_inside.then_some(Command { audience, action, issued_at })
    }

    fn address(&self, from: &mut Reader<'a>) -> Option<Address> {
        Some(match from.number()? {
            EVERYONE => Address::Everyone(ScopeName::ROOT),
            EVERYONE_OF_SCOPE => Address::Everyone(self.names.scope(from)?),
            EVERY_SCOPE => Address::EveryScope,
            TOPIC => Address::Topic(self.names.topic(from)??),
            USER => Address::User(self.names.user(from.number()?)?),
            CONNECTION => Address::Connection(read_id(from)?, ScopeName::ROOT),
            CONNECTION_OF_SCOPE => Address::Connection(read_id(from)?, self.names.scope(from)?),
            _ => return None,
        })
    }

    fn action(&self, from: &mut Reader<'a>) -> Option<Action> {
        let topic = |from: &mut Reader<'a>| self.names.topic(from)?;
        Some(match from.number()? {
            DISCONNECT => {
                let (kind, time) = (from.number()?, Duration::from_millis(from.number()?));
                let reconnect = match kind {
                    0 => Reconnect::Now,
                    1 => Reconnect::After(time),
                    2 => Reconnect::BlockedFor(time),
                    _ => return None,
                };
                let disconnect = Disconnect { reconnect, note: read_optional(from)?.map(Into::into) };
                disconnect.check().ok()?;
                Action::Disconnect(disconnect)
            }
            JOIN => Action::Join(topic(from)?, read_cursor(from)?),
            LEAVE => Action::Leave(topic(from)?),
            CHANGE => Action::Change(Change {
                leave: from.list(topic)?,
                join: from.list(topic)?,
                since: read_cursor(from)?,
                bounds: from.list(|from| Some((topic(from)?, read_position(from)?)))?,
            }),
            _ => return None,
        })
    }
}

/// Reads the number of a presence update. A number that no instance can reach is not read, so that
/// calculations with numbers cannot overflow.
fn read_count(from: &mut Reader<'_>) -> Option<u64> {
    from.number().filter(|number| *number < 1 << 62)
}

fn read_settings(from: &mut Reader<'_>) -> Option<BTreeMap<String, String>> {
    let settings = from.list(|from| Some((from.text()?.to_owned(), from.text()?.to_owned())))?;
    Some(settings.into_iter().collect())
}

fn read_optional<'a>(from: &mut Reader<'a>) -> Option<Option<&'a str>> {
    Some(if from.number()? == 0 { None } else { Some(from.text()?) })
}

fn read_position(from: &mut Reader<'_>) -> Option<Position> {
    Some(Position::new(Epoch(from.fixed()?), from.number()?))
}

fn read_id(from: &mut Reader<'_>) -> Option<ConnectionId> {
    let (low, high) = (from.fixed()?, from.fixed()?);
    Some(ConnectionId::from_bits(u128::from(high) << 64 | u128::from(low)))
}

fn read_cursor(from: &mut Reader<'_>) -> Option<Cursor> {
    Some(match from.number()? {
        ABSENT => Cursor::Absent,
        AT => Cursor::At(read_position(from)?),
        INVALID => Cursor::Invalid,
        // The fields of a cursor of a later version would be taken for those after it.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UserId;
    use proptest::prelude::*;

    /// Returns one message of each kind, and of each form of a command.
    fn messages() -> Vec<(&'static str, Body)> {
        let topic = |name: &str| Topic::try_from(name).unwrap();
        let acme = ScopeName::named("acme").unwrap();
        let in_acme = |name: &str| topic(name).placed_in(&acme).unwrap();
        let ada = UserId::from(7).placed_in(&acme).unwrap();
        let position = Position::new(Epoch(0x0123_4567_89ab_cdef), 300);
        let id = ConnectionId::from_bits(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        let mut audience = Audience::from(Address::User(UserId::try_from("ada").unwrap()));
        audience.insert(Address::Topic(topic("documents/7")));
        audience.insert(Address::Connection(id, ScopeName::ROOT));
        audience.exclude(ConnectionId::from_bits(1));
        let command = |action| {
            Body::Command(Command {
                audience: Audience::from(Address::Everyone(ScopeName::ROOT)),
                action,
                issued_at: position,
            })
        };
        let bounds = vec![(topic("news"), position)];
        let change = Change { leave: vec![topic("a")], join: vec![topic("b")], since: Cursor::At(position), bounds };
        let settings = BTreeMap::from([("limits".to_owned(), "100 records".to_owned())]);
        let connections = vec![
            PeerConnection {
                id: id.into(),
                scope: ScopeName::ROOT,
                user: Some(UserId::from(7)),
                data: Some("{}".into()),
                topics: vec![],
            },
            PeerConnection {
                id: HalfId(2),
                scope: ScopeName::ROOT,
                user: None,
                data: None,
                topics: vec![topic("7"), topic("news")],
            },
            PeerConnection {
                id: HalfId(3),
                scope: acme.clone(),
                user: Some(ada.clone()),
                data: None,
                topics: vec![in_acme("news")],
            },
            PeerConnection { id: HalfId(4), scope: acme.clone(), user: None, data: None, topics: vec![] },
        ];
        let update = PresenceUpdate { number: 1_000, open: connections.clone(), closed: vec![HalfId(3), HalfId(4)] };
        let runs = vec![(topic("answers/7"), RunNews { id: Epoch(9), entries: 40 })];
        vec![
            ("a command to a user, a topic and a connection, without another connection", {
                let action = Action::Disconnect(Disconnect::now());
                Body::Command(Command { audience, action, issued_at: position })
            }),
            ("a disconnect with a time and a note", {
                let after = Disconnect::reconnect_after(Duration::from_millis(1_500)).note("bye");
                command(Action::Disconnect(after))
            }),
            ("a ban", command(Action::Disconnect(Disconnect::block_for(Duration::from_secs(60))))),
            ("a join from now on", command(Action::Join(topic("news"), Cursor::Absent))),
            ("a join from an invalid position", command(Action::Join(topic("news"), Cursor::Invalid))),
            ("a leave", command(Action::Leave(topic("nëws")))),
            ("a change of topics", command(Action::Change(change))),
            ("a leave of a scope by everyone and a connection", {
                let mut audience = Audience::from(Address::Everyone(acme.clone()));
                audience.insert(Address::Connection(id, acme.clone()));
                audience.insert(Address::User(ada));
                let action = Action::Leave(in_acme("news"));
                Body::Command(Command { audience, action, issued_at: position })
            }),
            ("a disconnect of all scopes", {
                let mut audience = Audience::from(Address::Everyone(ScopeName::ROOT));
                audience.insert(Address::EveryScope);
                Body::Command(Command { audience, action: Action::Disconnect(Disconnect::now()), issued_at: position })
            }),
            ("a request to stop a run of a scope", Body::Stop(in_acme("answers/7"), Epoch(9))),
            ("a hello", Body::Hello(settings.clone())),
            ("settings", Body::Settings(settings)),
            ("a lease", Body::Lease(1_000)),
            ("a goodbye", Body::Goodbye),
            ("a presence update", Body::PresenceUpdate(update)),
            ("an announcement of runs", Body::Runs(runs)),
            ("a request to stop a run", Body::Stop(topic("answers/7"), Epoch(9))),
            ("a question for a list", Body::Ask(InstanceId(5), 1_000)),
            ("the announcement of a list", Body::Listed(List { number: 1_000, serial: 3, parts: 2 })),
            ("a part of a list", Body::Part(ListPart { serial: 3, part: 1, open: connections })),
        ]
    }

    fn text(message: &Message) -> String {
        // The audience of a command prints only a part of each id.
        let excluded = message.entries.iter().filter_map(|body| match body {
            Body::Command(command) => Some(command.audience.excluded().iter().map(ToString::to_string).collect()),
            _ => None,
        });
        format!("{message:?} {:?}", excluded.collect::<Vec<Vec<_>>>())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn message_decodes_to_the_encoded_entry() {
        for (what, body) in messages() {
            let read = Message::decode(&Message::encode(InstanceId(0xabc), &body)).unwrap();
            let expected = Message { from: InstanceId(0xabc), entries: vec![body], skipped: 0 };
            assert_eq!(text(&read), text(&expected), "{what}");
        }
    }

    /// The file has three lines for each message: what it is, its bytes and the decoded message.
    /// The first two are never changed and never removed. A new version adds the messages that are
    /// new.
    #[test]
    fn messages_of_every_version_are_decoded() {
        let golden = include_str!("../../../tests/golden/control.txt");
        let lines: Vec<_> = golden.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(lines.len() % 3, 0);
        for message in lines.chunks(3) {
            let read = Message::decode(&unhex(message[1])).unwrap();
            assert_eq!(text(&read), message[2], "{}", message[0]);
        }
        let mut missing = String::new();
        for (what, body) in messages() {
            let bytes = hex(&Message::encode(InstanceId(0xabc), &body));
            let expected = text(&Message { from: InstanceId(0xabc), entries: vec![body], skipped: 0 });
            if !lines.chunks(3).any(|message| message[1] == bytes) {
                missing += &format!("\n{what}\n{bytes}\n{expected}\n");
            }
        }
        assert!(missing.is_empty(), "add these messages:\n{missing}");
    }

    /// Returns a message with two names, of which this version can read the second, and an entry of
    /// an unknown kind between these entries.
    fn newer(entries: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut message = Writer { bytes: vec![VERSION] };
        message.fixed(7);
        message.section_with(|names| {
            names.number(2);
            names.section_with(|name| {
                name.section(b"a scope of a later\x01version");
                name.section(b"news");
            });
            names.section_with(|name| {
                name.section(b"");
                name.section(b"news");
                name.number(99);
            });
        });
        for (kind, content) in entries {
            message.number(*kind);
            message.section(content);
            message.number(77);
            message.section(b"an entry of a later version");
        }
        message.bytes
    }

    fn content(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut content = Writer::default();
        write(&mut content);
        content.bytes
    }

    #[test]
    fn parts_of_a_later_version_are_skipped_and_the_rest_is_applied() {
        let connection = |user: u64, topics: &[u64]| {
            content(|to| {
                to.fixed(5);
                to.number(user);
                to.number(topics.len() as u64);
                topics.iter().for_each(|topic| to.number(*topic));
                to.number(0);
                to.number(0);
                to.section(b"a later field");
            })
        };
        let update = content(|to| {
            to.number(4);
            to.number(3);
            to.section(&connection(1, &[1])); // its user has a scope
            to.section(&connection(0, &[0, 1])); // one of its topics has a scope
            to.section(b"short");
            to.number(1);
            to.fixed(6);
            to.section(b"a later field");
        });
        let lease = content(|to| {
            to.number(4);
            to.number(5);
        });
        let read = Message::decode(&newer(&[(PRESENCE_UPDATE, update), (LEASE, lease), (RUNS, vec![0x80])])).unwrap();
        let [Body::PresenceUpdate(update), Body::Lease(4)] = &read.entries[..] else { panic!("{read:?}") };
        assert_eq!((update.number, &update.closed[..]), (4, &[HalfId(6)][..]));
        let expected = PeerConnection {
            id: HalfId(5),
            scope: ScopeName::ROOT,
            user: None,
            data: None,
            topics: vec!["news".parse().unwrap()],
        };
        assert_eq!(update.open, [expected]);
        // Three entries of an unknown kind, an entry that ends too early, two connections, a topic.
        assert_eq!(read.skipped, 7);
    }

    #[test]
    fn command_of_a_later_version_is_carried_out_for_the_addresses_that_can_be_read() {
        let command = |action: &[u64]| {
            content(|to| {
                write_position(to, Position::new(Epoch(1), 2));
                to.number(3);
                to.section(&[TOPIC as u8, 0]);
                to.section(&[TOPIC as u8, 1]);
                to.section(&[99]);
                to.number(0);
                to.section_with(|to| action.iter().for_each(|field| to.number(*field)));
                to.section(b"a later field");
            })
        };
        let unknown_action = command(&[99]);
        let change_with_a_scope = command(&[CHANGE, 2, 0, 1, 0, ABSENT, 0]);
        let leave = command(&[LEAVE, 1]);
        let read =
            Message::decode(&newer(&[(COMMAND, unknown_action), (COMMAND, change_with_a_scope), (COMMAND, leave)]));
        let [Body::Command(command)] = &read.unwrap().entries[..] else { panic!("not one command") };
        assert!(matches!(&command.action, Action::Leave(topic) if topic.as_str() == "news"));
        assert_eq!(command.audience.addresses(), [Address::Topic("news".parse().unwrap())]);
    }

    #[test]
    fn bytes_that_are_no_message_are_not_read() {
        for bytes in [&b""[..], &[VERSION], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], b"{\"v\":1,\"from\":\"1\",\"ask\":{}}"]
        {
            assert!(Message::decode(bytes).is_none());
        }
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_does_not_panic(bytes: Vec<u8>) {
            let message: Vec<u8> = [VERSION].into_iter().chain(bytes).collect();
            drop(Message::decode(&message));
        }

        /// A message with one changed byte, or without its end.
        #[test]
        fn decoding_a_damaged_message_does_not_panic(which in 0..17_usize, at: prop::sample::Index, byte: u8, is_cut: bool) {
            let mut bytes = Message::encode(InstanceId(0xabc), &messages()[which].1);
            let at = at.index(bytes.len());
            if is_cut {
                bytes.truncate(at);
            } else {
                bytes[at] = byte;
            }
            drop(Message::decode(&bytes));
        }
    }
}
