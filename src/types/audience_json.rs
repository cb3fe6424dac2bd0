//! The JSON of an audience, in records on a broker and in messages between instances: the addresses
//! in `to`, and the excluded connections in a separate list.

use serde::{Deserialize, Serialize};

use super::audience::{Address, Audience};
use super::error::InvalidName;
use super::name::{Topic, UserId};

/// The addresses of an audience.
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
}

impl To<'_> {
    pub(crate) fn of(audience: &Audience) -> To<'static> {
        let mut to = To::default();
        for address in audience.addresses() {
            match address {
                Address::Everyone => to.everyone = true,
                Address::Topic(topic) => to.topics.push(topic.to_string().into()),
                Address::User(user) => to.users.push(user.to_string().into()),
                Address::Connection(id) => to.connections.push(id.to_string().into()),
            }
        }
        to
    }

    pub(crate) fn len(&self) -> usize {
        self.topics.len() + self.users.len() + self.connections.len() + usize::from(self.everyone)
    }

    /// Returns the audience of these addresses without the connections in `except`.
    pub(crate) fn audience<'a>(&self, except: impl Iterator<Item = &'a str>) -> Result<Audience, InvalidName> {
        let mut addresses = Vec::with_capacity(self.len());
        for topic in &self.topics {
            addresses.push(Address::Topic(Topic::try_from(&*topic.0)?));
        }
        for user in &self.users {
            addresses.push(Address::User(UserId::try_from(&*user.0)?));
        }
        for id in &self.connections {
            addresses.push(Address::Connection(id.0.parse()?));
        }
        if self.everyone {
            addresses.push(Address::Everyone);
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
