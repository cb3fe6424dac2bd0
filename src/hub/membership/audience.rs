//! The connections of an audience on this instance.

use std::collections::hash_set::HashSet;

use crate::hub::Hub;
use crate::hub::connection::registry::Links;
use crate::types::audience::{Address, Audience};
use crate::types::name::ConnectionId;

impl Hub {
    /// The connections of an audience on this instance, each once.
    pub(in crate::hub) fn links(&self, audience: &Audience) -> Links {
        let mut links = Links::new();
        let mut seen: HashSet<ConnectionId> = audience.excluded().iter().copied().collect();
        for address in audience.addresses() {
            let found: Links = match address {
                Address::Everyone => self.registry().all().into(),
                Address::User(user) => self.registry().of_user(user),
                Address::Connection(id) => self.registry().find(*id).into_iter().collect(),
                Address::Topic(_) => self.registry().find_all(self.log().listeners(address)),
            };
            links.extend(found.into_iter().filter(|link| seen.insert(link.id())));
        }
        links
    }
}
