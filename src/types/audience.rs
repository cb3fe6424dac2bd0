//! The audience of an event.

use std::borrow::Borrow;
use std::collections::hash_set::HashSet;
use std::hash::{Hash, Hasher};

use smallvec::SmallVec;

use super::address_ref::{AddressRef, AsAddress};
use super::error::{InvalidName, NameProblem};
use super::name::{ConnectionId, Scoped, Topic, UserId};
use super::scope_name::ScopeName;

/// One address to which events are published. Topics and users are separate namespaces: a topic and
/// a user with the same name are two addresses. Each address is of one scope, except
/// [`EveryScope`](Self::EveryScope).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    /// All connections of a scope.
    Everyone(ScopeName),
    Topic(Topic),
    User(UserId),
    /// A connection of a scope. A connection of another scope does not have this address.
    Connection(ConnectionId, ScopeName),
    /// All connections of all scopes, except the root scope. An audience of all connections also
    /// has the address of everyone in the root scope. So connections of the root scope have no
    /// address for this case, and cost no more than without scopes.
    EveryScope,
}

impl Address {
    /// Returns the length of the names of the topic or the user, and of the scope, in bytes.
    pub(crate) fn name_len(&self) -> usize {
        let name = match self {
            Self::Topic(topic) => topic.as_str().len(),
            Self::User(user) => user.as_str().len(),
            Self::Everyone(_) | Self::Connection(..) | Self::EveryScope => 0,
        };
        name + self.scope().and_then(ScopeName::as_str).map_or(0, str::len)
    }

    /// Returns the scope of the address, or `None` if it is of all scopes.
    pub(crate) fn scope(&self) -> Option<&ScopeName> {
        match self {
            Self::Everyone(scope) | Self::Connection(_, scope) => Some(scope),
            Self::Topic(topic) => Some(topic.scope_name()),
            Self::User(user) => Some(user.scope_name()),
            Self::EveryScope => None,
        }
    }

    pub(crate) fn topic(&self) -> Option<&Topic> {
        match self {
            Self::Topic(topic) => Some(topic),
            Self::Everyone(_) | Self::User(_) | Self::Connection(..) | Self::EveryScope => None,
        }
    }
}

impl AsAddress for Address {
    fn as_address(&self) -> AddressRef<'_> {
        match self {
            Self::Everyone(scope) => AddressRef::Everyone(scope),
            Self::Topic(topic) => AddressRef::Topic(topic.as_str(), topic.scope_name()),
            Self::User(user) => AddressRef::User(user.as_str(), user.scope_name()),
            Self::Connection(id, scope) => AddressRef::Connection(*id, scope),
            Self::EveryScope => AddressRef::EveryScope,
        }
    }
}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_address().hash(state);
    }
}

impl<'a> Borrow<dyn AsAddress + 'a> for Address {
    fn borrow(&self) -> &(dyn AsAddress + 'a) {
        self
    }
}

/// The maximum number of addresses of an audience, and the maximum number of connections that it
/// excludes. A record lists all of them. For a larger audience, an application uses a topic.
const MAX_TARGETS: usize = 128;

/// One address or a union of several, without the excluded connections.
///
/// All addresses are of one scope. Addresses of the root scope may be together with
/// [`EveryScope`](Address::EveryScope).
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

    /// Returns the kind of the addresses, for logs.
    pub(crate) fn kind(&self) -> &'static str {
        match &*self.addresses {
            [Address::Everyone(_)] => "everyone",
            [Address::Topic(_)] => "topic",
            [Address::User(_)] => "user",
            [Address::Connection(..)] => "connection",
            addresses if addresses.contains(&Address::EveryScope) => "everyone in all scopes",
            _ => "several",
        }
    }

    /// Returns the scope of the audience, or `None` if the audience is of all scopes. All addresses
    /// of an audience of one scope are of that scope.
    pub(crate) fn scope(&self) -> Option<&ScopeName> {
        if self.addresses.contains(&Address::EveryScope) {
            return None;
        }
        Some(self.addresses.first().and_then(Address::scope).unwrap_or(&ScopeName::ROOT))
    }

    /// Returns whether the audience has more than [`MAX_TARGETS`] addresses or exclusions.
    pub(crate) fn is_too_large(&self) -> bool {
        self.addresses.len().max(self.except.len()) > MAX_TARGETS
    }

    pub(crate) fn insert(&mut self, address: Address) {
        debug_assert!(self.may_contain(&address), "an audience is of one scope");
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    /// Returns whether an address has the scope of the audience. The root scope and all scopes may
    /// be together.
    fn may_contain(&self, address: &Address) -> bool {
        let is_of =
            |one: &Address| one.scope().unwrap_or(ScopeName::root()) == address.scope().unwrap_or(ScopeName::root());
        self.addresses.iter().all(is_of)
    }

    /// Creates an audience from lists of any length, for example from another instance. Takes
    /// linear time, so that a very long list cannot block the thread.
    ///
    /// # Errors
    ///
    /// If the addresses are of several scopes.
    pub(crate) fn of(mut addresses: Vec<Address>, mut except: Vec<ConnectionId>) -> Result<Self, InvalidName> {
        each_once(&mut addresses, |address| address);
        each_once(&mut except, |id| id);
        let audience = Self { addresses: addresses.into(), except: except.into() };
        match audience.addresses.first() {
            Some(first) if !audience.may_contain(first) => Err(InvalidName::new("target", NameProblem::OtherScope)),
            _ => Ok(audience),
        }
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

/// The maximum number of values that [`each_once`] compares with each other. For more values it
/// uses a hash table.
const LINEAR_SEARCH_MAX: usize = 8;

/// Removes values with the same key as an earlier value, and keeps the order. Takes linear time.
pub(crate) fn each_once<T, K: Clone + Eq + Hash>(all: &mut Vec<T>, key: impl Fn(&T) -> &K) {
    if all.len() <= LINEAR_SEARCH_MAX {
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
