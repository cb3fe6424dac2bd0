//! The lookup of the connections of an audience.

use std::collections::hash_set::HashSet;

use crate::hub::Hub;
use crate::hub::connection::registry::Handles;
use crate::types::{Address, Audience, ConnectionId};

impl Hub {
    /// Returns the connections of an audience on this instance, each once.
    pub(in crate::hub) fn handles(&self, audience: &Audience) -> Handles {
        let mut handles = Handles::new();
        let mut seen: HashSet<ConnectionId> = audience.excluded().iter().copied().collect();
        for address in audience.addresses() {
            let found: Handles = match address {
                Address::Everyone(scope) => self.registry().all_in(scope),
                Address::EveryScope => self.registry().all_in_scopes(),
                Address::User(user) => self.registry().of_user(user),
                Address::Connection(id, scope) => {
                    self.registry().find(*id).into_iter().filter(|handle| handle.scope() == scope).collect()
                }
                Address::Topic(_) => self.registry().find_all(self.log().listeners(address)),
            };
            handles.extend(found.into_iter().filter(|handle| seen.insert(handle.id())));
        }
        handles
    }
}
