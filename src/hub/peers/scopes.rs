//! The scopes of the connections of other instances, without the root scope.
//!
//! A scope is stored once, and users and connections refer to it by number. It exists while it has
//! connections or users.

use std::collections::hash_map::HashMap;

use roaring::RoaringBitmap;

use super::slots::Slots;
use crate::types::ScopeName;

/// The number of the root scope, which is not stored.
pub(super) const ROOT: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Scopes {
    slots: Slots<Scope>,
    by_name: HashMap<ScopeName, u32>,
    /// The number of connections of all these scopes.
    connections: usize,
}

#[derive(Debug, Default)]
struct Scope {
    name: ScopeName,
    connections: RoaringBitmap,
    users: u32,
}

impl Scopes {
    /// Returns the number of a scope, or `None` if it has no connections and no users.
    pub(super) fn find(&self, name: &ScopeName) -> Option<u32> {
        if name.is_root() { Some(ROOT) } else { self.by_name.get(name).copied() }
    }

    /// Returns the number of a scope. Adds an unknown scope. The caller then adds a connection or a
    /// user.
    pub(super) fn number(&mut self, name: &ScopeName) -> u32 {
        if let Some(number) = self.find(name) {
            return number;
        }
        let number = self.slots.insert(Scope { name: name.clone(), ..Scope::default() });
        self.by_name.insert(name.clone(), number);
        number
    }

    /// Returns the name of a scope.
    pub(super) fn name(&self, scope: u32) -> &ScopeName {
        if scope == ROOT { ScopeName::root() } else { &self.slots.get(scope).name }
    }

    /// Returns the number of connections of all scopes but the root scope.
    pub(super) fn len(&self) -> usize {
        self.connections
    }

    /// Returns the connections of a scope that is not the root scope.
    pub(super) fn connections(&self, name: &ScopeName) -> Option<&RoaringBitmap> {
        self.by_name.get(name).map(|scope| &self.slots.get(*scope).connections)
    }

    /// Returns the connections of each scope but the root scope.
    pub(super) fn all(&self) -> impl Iterator<Item = &RoaringBitmap> {
        self.by_name.values().map(|scope| &self.slots.get(*scope).connections)
    }

    pub(super) fn add_connection(&mut self, scope: u32, connection: u32) {
        if scope != ROOT {
            self.connections += usize::from(self.slots.at(scope).connections.insert(connection));
        }
    }

    pub(super) fn remove_connection(&mut self, scope: u32, connection: u32) {
        if scope != ROOT {
            self.connections -= usize::from(self.slots.at(scope).connections.remove(connection));
            self.free_if_unused(scope);
        }
    }

    pub(super) fn add_user(&mut self, scope: u32) {
        if scope != ROOT {
            self.slots.at(scope).users += 1;
        }
    }

    pub(super) fn remove_user(&mut self, scope: u32) {
        if scope != ROOT {
            self.slots.at(scope).users -= 1;
            self.free_if_unused(scope);
        }
    }

    fn free_if_unused(&mut self, scope: u32) {
        let of = self.slots.get(scope);
        if of.users == 0 && of.connections.is_empty() {
            let Scope { name, .. } = self.slots.remove(scope);
            self.by_name.remove(&name);
        }
    }

    /// Returns the allocated memory in bytes. The memory of bitmaps is an estimate.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn allocated(&self) -> usize {
        let of_scope = |(name, scope): (&ScopeName, &u32)| {
            // The text is behind two pointers, and the first has two reference counts.
            let name = name.as_str().map_or(0, |name| name.len() + 32);
            name + super::memory::of_bitmap(&self.slots.get(*scope).connections)
        };
        self.slots.allocated() + super::memory::of_map(&self.by_name) + self.by_name.iter().map(of_scope).sum::<usize>()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == 0 && self.by_name.is_empty() && self.connections == 0
    }
}
