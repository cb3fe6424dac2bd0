//! The JSON of an audience, in records on a broker and in messages between instances: the addresses
//! in `to`, and the excluded connections in a separate list. The addresses have one scope, which is
//! a field of its own.

use serde::{Deserialize, Serialize};

use super::audience::{Address, Audience};
use super::error::{InvalidName, NameProblem};
use super::name::{Scoped, Topic, UserId};
use super::scope_name::ScopeName;

/// The addresses of an audience.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct To<'a> {
    /// The scope of all addresses. Absent for the root scope.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    scope: Option<Cow<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    topics: Vec<Cow<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    users: Vec<Cow<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    connections: Vec<Cow<'a>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    everyone: bool,
    /// All connections of all scopes except the root scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    every_scope: bool,
}

impl To<'_> {
    pub(crate) fn of(audience: &Audience) -> To<'static> {
        let scope = audience.scope().and_then(ScopeName::as_str).map(|scope| scope.to_owned().into());
        let mut to = To { scope, ..To::default() };
        for address in audience.addresses() {
            match address {
                Address::Everyone(_) => to.everyone = true,
                Address::EveryScope => to.every_scope = true,
                Address::Topic(topic) => to.topics.push(topic.to_string().into()),
                Address::User(user) => to.users.push(user.to_string().into()),
                Address::Connection(id, _) => to.connections.push(id.to_string().into()),
            }
        }
        to
    }

    pub(crate) fn len(&self) -> usize {
        let everyone = usize::from(self.everyone) + usize::from(self.every_scope);
        self.topics.len() + self.users.len() + self.connections.len() + everyone
    }

    /// Returns whether a reader that does not know scopes would take this audience for another.
    pub(crate) fn needs_scopes(&self) -> bool {
        self.scope.is_some() || self.every_scope
    }

    /// Returns the audience of these addresses without the connections in `except`.
    pub(crate) fn audience<'a>(&self, except: impl Iterator<Item = &'a str>) -> Result<Audience, InvalidName> {
        let scope = ScopeName::read(self.scope.as_ref().map(|scope| &*scope.0))?;
        if self.every_scope && !scope.is_root() {
            return Err(InvalidName::new("scope", NameProblem::Malformed));
        }
        let mut addresses = Vec::with_capacity(self.len());
        for topic in &self.topics {
            addresses.push(Address::Topic(Topic::try_from(&*topic.0)?.placed_in(&scope)?));
        }
        for user in &self.users {
            addresses.push(Address::User(UserId::try_from(&*user.0)?.placed_in(&scope)?));
        }
        for id in &self.connections {
            addresses.push(Address::Connection(id.0.parse()?, scope.clone()));
        }
        if self.everyone {
            addresses.push(Address::Everyone(scope));
        }
        if self.every_scope {
            addresses.push(Address::EveryScope);
        }
        Ok(Audience::of(addresses, except.map(str::parse).collect::<Result<_, _>>()?))
    }
}

/// Text that is borrowed from the JSON where it has no escapes.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Cow<'a>(#[serde(borrow)] pub(crate) std::borrow::Cow<'a, str>);

impl<'a, T: Into<std::borrow::Cow<'a, str>>> From<T> for Cow<'a> {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}
