//! Who is there: presence, counts, and whether a user can be reached.

use std::collections::btree_map::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Hub, Target};
use crate::hub::connection::handle::ConnectionHandle;
use crate::sync::Ordering;
use crate::types::{Address, Position, UserId};

/// Who is there at one moment: [`Target::presence`]. Serializes with serde.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Presence {
    /// Where in the log this was: of topics that tell who comes and goes, later `hub.joined` and `hub.left` events say
    /// what changed since.
    pub position: Position,
    /// Each user once, however many pages and tabs there are, in the order of their names.
    pub members: Vec<Member>,
    /// The number of anonymous connections.
    pub anonymous: usize,
}

/// A user who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// How many connections of this user there are. None while a reload, or a way through a tunnel, is not told of yet.
    pub connections: usize,
    #[serde(serialize_with = "raw", skip_serializing_if = "Option::is_none")]
    data: Option<Arc<str>>,
}

impl Member {
    /// What [`Subscription::data`](crate::Subscription::data) attached to the newest of them, as JSON.
    #[must_use]
    pub fn data_json(&self) -> Option<&str> {
        self.data.as_deref()
    }
}

/// JSON as it is, and not as a string.
fn raw<S: serde::Serializer>(json: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    let value: Option<&RawValue> = json.as_deref().and_then(|json| serde_json::from_str(json).ok());
    value.serialize(serializer)
}

impl Target<'_> {
    /// Who is there now: the connections of the target, those of one user merged into one member.
    ///
    /// Of a topic that tells who comes and goes
    /// ([`HubBuilder::presence_for`](crate::HubBuilder::presence_for)) those are members whose leaving was
    /// not told yet; so the snapshot and the events from its position on never contradict each other.
    /// Elsewhere it is who has a stream open at this moment.
    ///
    /// Empty for a target whose name is not allowed.
    #[must_use]
    pub fn presence(&self) -> Presence {
        let hub = self.source;
        let presences = &hub.inner.presences;
        let nobody = || Presence { position: hub.position(), members: Vec::new(), anonymous: 0 };
        let Ok(audience) = &self.audience else { return nobody() };
        // Only for topics that tell: what it costs others is that they wait.
        let tells = audience.addresses().iter().filter_map(Address::topic).any(|topic| presences.tells(topic));
        if tells {
            hub.inner.sweep_roster();
        }
        let roster = tells.then(|| presences.roster.lock());
        let mut presence = nobody();
        let mut members: BTreeMap<UserId, Member> = BTreeMap::new();
        let mut newest: BTreeMap<UserId, u64> = BTreeMap::new();
        for handle in hub.handles(audience) {
            let Some(user) = handle.user() else {
                presence.anonymous += 1;
                continue;
            };
            let empty = || Member { user: user.clone(), connections: 0, data: None };
            let member = members.entry(user.clone()).or_insert_with(empty);
            member.connections += 1;
            let newest = newest.entry(user.clone()).or_default();
            let opened = handle.opened.load(Ordering::Relaxed);
            if opened >= *newest {
                *newest = opened;
                member.data = handle.data().cloned();
            }
        }
        let spared = hub.registry().find_all(audience.excluded().iter().copied());
        for topic in audience.addresses().iter().filter_map(Address::topic) {
            for (user, member) in roster.iter().flat_map(|roster| roster.members(topic)) {
                let is_of = |handle: &&Arc<ConnectionHandle>| {
                    handle.user() == Some(user) && hub.log().topics(&handle.subscriber).contains(topic)
                };
                let spared = spared.iter().filter(is_of).count();
                if spared == 0 || spared < member.connections {
                    let connections = member.connections.saturating_sub(spared);
                    let known = || Member { user: user.clone(), connections, data: member.data.clone() };
                    members.entry(user.clone()).or_insert_with(known);
                }
            }
        }
        drop(roster);
        for (user, data) in hub.inner.shared_log.iter().flat_map(|shared| shared.others(audience)) {
            let Some(user) = user else {
                presence.anonymous += 1;
                continue;
            };
            let empty = || Member { user: user.clone(), connections: 0, data: data.clone() };
            members.entry(user.clone()).or_insert_with(empty).connections += 1;
        }
        if let Some(shared) = hub.inner.shared_log.as_ref().filter(|_| tells) {
            // What others have not told of yet comes twice rather than not at all.
            presence.position = shared.settled_position().unwrap_or(presence.position);
            for topic in audience.addresses().iter().filter_map(Address::topic) {
                for user in shared.leaving(topic, hub.now()) {
                    let empty = Member { user: user.clone(), connections: 0, data: None };
                    members.entry(user).or_insert(empty);
                }
            }
        }
        presence.members = members.into_values().collect();
        presence
    }

    /// How many connections the target has at this moment; each once, also of a union.
    #[must_use]
    pub fn count(&self) -> usize {
        let Ok(audience) = &self.audience else { return 0 };
        match audience.addresses() {
            [address] if audience.excluded().is_empty() => self.source.connections_at(address),
            _ => {
                let others = self.source.inner.shared_log.as_ref().map_or(0, |shared| shared.others(audience).len());
                self.source.handles(audience).len() + others
            }
        }
    }

    /// Whether anybody listens at this moment: one look-up for each address of the target, so that the
    /// application computes no dashboard without a reader.
    #[must_use]
    pub fn has_subscribers(&self) -> bool {
        match &self.audience {
            Err(_) => false,
            Ok(audience) if audience.excluded().is_empty() => {
                audience.addresses().iter().any(|address| self.source.connections_at(address) > 0)
            }
            Ok(_) => self.count() > 0,
        }
    }

    /// Whether the target can be reached by an event: what decides whether to fall back to mail or web push.
    ///
    /// A user is online while a stream is open, and for
    /// [`HubBuilder::presence_grace`](crate::HubBuilder::presence_grace) after the last one has ended: who
    /// reloads a page, or comes back after a deploy, gets the event from the log, and needs no mail.
    /// [`count`](Self::count) says who has a stream at this moment. For other targets, and where a
    /// connection is [left out](Self::except), this is [`has_subscribers`](Self::has_subscribers).
    #[must_use]
    pub fn is_online(&self) -> bool {
        let now = self.source.now();
        let Ok(audience) = &self.audience else { return false };
        if self.has_subscribers() {
            return true;
        }
        audience.excluded().is_empty()
            && audience.addresses().iter().any(|address| match address {
                Address::User(user) => {
                    let shared = self.source.inner.shared_log.as_ref();
                    self.source.registry().is_online(user, now)
                        || shared.is_some_and(|shared| shared.is_online(user, now))
                }
                _ => false,
            })
    }
}

impl Hub {
    /// How many connections an address has, here and elsewhere.
    fn connections_at(&self, address: &Address) -> usize {
        let here = match address {
            // It has a channel only once somebody has written to it.
            Address::Connection(id) => usize::from(self.registry().find(*id).is_some()),
            _ => self.log().listening(address),
        };
        here + self.inner.shared_log.as_ref().map_or(0, |shared| shared.others_at(address))
    }
}
