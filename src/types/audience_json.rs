//! The JSON of an audience, in records on a broker and in messages between instances: the addresses
//! in `to`, and the excluded connections in a separate list.
//!
//! The addresses of a scope are in a separate object, `scoped`. A reader that does not know
//! scopes ignores this object, and reads no address. If the scope were a field beside the topics
//! and the users, such a reader would take them for topics and users without a scope.

use serde::{Deserialize, Serialize};

use super::audience::{Address, Audience};
use super::error::InvalidName;
use super::name::{Scoped, Topic, UserId};
use super::scope_name::ScopeName;

/// The addresses of an audience: those of the root scope, or those of one scope with a name.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct To<'a> {
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
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    scoped: Option<Box<InScope<'a>>>,
}

/// The addresses of a scope with a name.
#[derive(Default, Serialize, Deserialize)]
struct InScope<'a> {
    #[serde(borrow)]
    scope: Cow<'a>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    topics: Vec<Cow<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    users: Vec<Cow<'a>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    connections: Vec<Cow<'a>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    everyone: bool,
}

impl To<'_> {
    pub(crate) fn of(audience: &Audience) -> To<'static> {
        let mut to = To::default();
        for address in audience.addresses() {
            match address {
                Address::Everyone(_) => to.everyone = true,
                Address::EveryScope => to.every_scope = true,
                Address::Topic(topic) => to.topics.push(topic.to_string().into()),
                Address::User(user) => to.users.push(user.to_string().into()),
                Address::Connection(id, _) => to.connections.push(id.to_string().into()),
            }
        }
        let Some(scope) = audience.scope().and_then(ScopeName::as_str) else { return to };
        let To { topics, users, connections, everyone, .. } = to;
        let scoped = InScope { scope: scope.to_owned().into(), topics, users, connections, everyone };
        To { scoped: Some(Box::new(scoped)), ..To::default() }
    }

    /// Returns the number of addresses.
    pub(crate) fn len(&self) -> usize {
        let scoped = self.scoped.as_ref().map_or(0, |scoped| {
            scoped.topics.len() + scoped.users.len() + scoped.connections.len() + usize::from(scoped.everyone)
        });
        let everyone = usize::from(self.everyone) + usize::from(self.every_scope);
        self.topics.len() + self.users.len() + self.connections.len() + everyone + scoped
    }

    /// Returns the audience of these addresses without the connections in `except`.
    ///
    /// # Errors
    ///
    /// If a name is invalid, or if the addresses are of two scopes.
    pub(crate) fn audience<'a>(&self, except: impl Iterator<Item = &'a str>) -> Result<Audience, InvalidName> {
        let mut addresses = Vec::with_capacity(self.len());
        let root = ScopeName::root();
        add(&mut addresses, root, &self.topics, &self.users, &self.connections, self.everyone)?;
        if self.every_scope {
            addresses.push(Address::EveryScope);
        }
        if let Some(scoped) = &self.scoped {
            let InScope { scope, topics, users, connections, everyone } = &**scoped;
            add(&mut addresses, &ScopeName::named(&scope.0)?, topics, users, connections, *everyone)?;
        }
        Audience::of(addresses, except.map(str::parse).collect::<Result<_, _>>()?)
    }
}

/// Adds the addresses of one scope.
fn add(
    addresses: &mut Vec<Address>,
    scope: &ScopeName,
    topics: &[Cow<'_>],
    users: &[Cow<'_>],
    connections: &[Cow<'_>],
    everyone: bool,
) -> Result<(), InvalidName> {
    for topic in topics {
        addresses.push(Address::Topic(Topic::try_from(&*topic.0)?.placed_in(scope)?));
    }
    for user in users {
        addresses.push(Address::User(UserId::try_from(&*user.0)?.placed_in(scope)?));
    }
    for id in connections {
        addresses.push(Address::Connection(id.0.parse()?, scope.clone()));
    }
    if everyone {
        addresses.push(Address::Everyone(scope.clone()));
    }
    Ok(())
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
