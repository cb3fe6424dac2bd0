//! Who gets an event.

use std::collections::hash_set::HashSet;
use std::hash::Hash;

use smallvec::SmallVec;

use super::name::{ConnectionId, Topic, UserId};

/// One addressee. The variants are the separate namespaces: a topic and a user of one name are two addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Address {
    Everyone,
    Topic(Topic),
    User(UserId),
    Connection(ConnectionId),
}

impl Address {
    /// The length of the topic's or the user's name.
    pub(crate) fn name_len(&self) -> usize {
        match self {
            Self::Topic(topic) => topic.as_str().len(),
            Self::User(user) => user.as_str().len(),
            Self::Everyone | Self::Connection(_) => 0,
        }
    }

    pub(crate) fn topic(&self) -> Option<&Topic> {
        match self {
            Self::Topic(topic) => Some(topic),
            Self::Everyone | Self::User(_) | Self::Connection(_) => None,
        }
    }
}

/// How many addresses an audience may have, and how many connections it may exclude. A record names each of them, and an
/// audience of more is a topic.
const MAX_TARGETS: usize = 128;

/// One address or a union of several, less some connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audience {
    addresses: SmallVec<[Address; 1]>,
    except: SmallVec<[ConnectionId; 1]>,
}

impl Audience {
    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub(crate) fn excluded(&self) -> &SmallVec<[ConnectionId; 1]> {
        &self.except
    }

    /// What kind of addresses it has, for logs.
    pub(crate) fn kind(&self) -> &'static str {
        match &*self.addresses {
            [Address::Everyone] => "everyone",
            [Address::Topic(_)] => "topic",
            [Address::User(_)] => "user",
            [Address::Connection(_)] => "connection",
            _ => "several",
        }
    }

    /// Whether it names more than an audience may.
    pub(crate) fn is_too_large(&self) -> bool {
        self.addresses.len().max(self.except.len()) > MAX_TARGETS
    }

    pub(crate) fn insert(&mut self, address: Address) {
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    /// Those of somebody else, who may name very many: it takes as long for each, however many there are.
    pub(crate) fn of(mut addresses: Vec<Address>, mut except: Vec<ConnectionId>) -> Self {
        each_once(&mut addresses, |address| address);
        each_once(&mut except, |id| id);
        Self { addresses: addresses.into(), except: except.into() }
    }

    pub(crate) fn unite(&mut self, other: Self) {
        for address in other.addresses {
            self.insert(address);
        }
        for connection in other.except {
            self.exclude(connection);
        }
    }

    pub(crate) fn exclude(&mut self, connection: ConnectionId) {
        if !self.except.contains(&connection) {
            self.except.push(connection);
        }
    }
}

/// So many are compared with each other; more, by a table.
const A_FEW: usize = 8;

/// Leaves each of them once, in their order. It takes as long for each, however many there are.
pub(crate) fn each_once<T, K: Clone + Eq + Hash>(all: &mut Vec<T>, key: impl Fn(&T) -> &K) {
    if all.len() <= A_FEW {
        for index in (1..all.len()).rev() {
            if all[..index].iter().any(|before| key(before) == key(&all[index])) {
                all.remove(index);
            }
        }
        return;
    }
    let mut seen = HashSet::with_capacity(all.len());
    all.retain(|one| seen.insert(key(one).clone()));
}

impl From<Address> for Audience {
    fn from(address: Address) -> Self {
        Self { addresses: SmallVec::from_iter([address]), except: SmallVec::new() }
    }
}
