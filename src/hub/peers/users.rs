//! The users who have, or had, connections on other instances.
//!
//! 1. A user is stored once, and connections refer to it by number. The connections of a user are a
//!    list, and the user has the first one.
//! 2. The owner of the table adds users, and removes those without connections after the grace
//!    period.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::scopes::Scopes;
use super::short_text::ShortText;
use super::slots::Slots;
use crate::types::{ScopeName, Scoped, UserId};

#[derive(Debug, Default)]
pub(super) struct Users {
    slots: Slots<User>,
    by_name: HashTable<u32>,
    pub(super) scopes: Scopes,
    hasher: RandomState,
}

#[derive(Debug)]
struct User {
    name: ShortText,
    /// The number of the scope.
    scope: u32,
    /// The first connection.
    first: u32,
}

impl Default for User {
    fn default() -> Self {
        Self { name: ShortText::default(), scope: super::scopes::ROOT, first: u32::MAX }
    }
}

fn key_of(user: &UserId) -> (&str, &ScopeName) {
    (user.as_str(), user.scope_name())
}

impl Users {
    /// Returns the number of a user.
    pub(super) fn find(&self, user: &UserId) -> Option<u32> {
        let is_named = |number: &u32| self.key(*number) == key_of(user);
        self.by_name.find(self.hasher.hash_one(key_of(user)), is_named).copied()
    }

    /// Returns the number of a user. Adds an unknown user.
    pub(super) fn number(&mut self, user: &UserId) -> u32 {
        if let Some(number) = self.find(user) {
            return number;
        }
        let scope = self.scopes.number(user.scope_name());
        self.scopes.add_user(scope);
        let number = self.slots.insert(User { name: ShortText::new(user.as_str()), scope, ..User::default() });
        let Self { slots, by_name, scopes, hasher } = self;
        let hash = |number: &u32| hasher.hash_one(key(slots.get(*number), scopes));
        by_name.insert_unique(hasher.hash_one(key_of(user)), number, hash);
        number
    }

    /// Removes a user without connections.
    pub(super) fn remove(&mut self, number: u32) {
        let hash = self.hasher.hash_one(self.key(number));
        if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == number) {
            entry.remove();
            let User { scope, .. } = self.slots.remove(number);
            self.scopes.remove_user(scope);
        }
    }

    /// Returns the name and the scope of a user, which are hashed and compared as those of a
    /// [`UserId`].
    fn key(&self, number: u32) -> (&str, &ScopeName) {
        key(self.slots.get(number), &self.scopes)
    }

    /// Returns whether a number is that of this user.
    pub(super) fn is(&self, number: u32, user: &UserId) -> bool {
        self.key(number) == key_of(user)
    }

    pub(super) fn id(&self, number: u32) -> Option<UserId> {
        let (name, scope) = self.key(number);
        // The name was checked before it was stored.
        UserId::try_from(name).and_then(|user| user.placed_in(scope)).ok()
    }

    /// Returns the number of the scope of a user.
    pub(super) fn scope(&self, number: u32) -> u32 {
        self.slots.get(number).scope
    }

    /// Returns the first connection of a user.
    pub(super) fn first(&self, number: u32) -> u32 {
        self.slots.get(number).first
    }

    pub(super) fn set_first(&mut self, number: u32, first: u32) {
        self.slots.at(number).first = first;
    }

    /// Returns the allocated memory in bytes, with that of the scopes. The memory of bitmaps is an
    /// estimate.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn allocated(&self) -> usize {
        let names: usize = (0..self.slots.end()).map(|user| self.slots.get(user).name.allocated()).sum();
        self.slots.allocated() + names + self.by_name.allocation_size() + self.scopes.allocated()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == 0 && self.by_name.is_empty() && self.scopes.is_empty()
    }
}

fn key<'a>(user: &'a User, scopes: &'a Scopes) -> (&'a str, &'a ScopeName) {
    (user.name.as_str(), scopes.name(user.scope))
}
