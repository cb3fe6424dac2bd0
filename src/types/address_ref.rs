//! An address that borrows its name, to look up an address without creating one.

use std::hash::{Hash, Hasher};

use super::name::ConnectionId;
use super::scope_name::ScopeName;

/// The content of an [`Address`](super::Address), with a borrowed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AddressRef<'a> {
    Everyone(&'a ScopeName),
    Topic(&'a str, &'a ScopeName),
    User(&'a str, &'a ScopeName),
    Connection(ConnectionId, &'a ScopeName),
    EveryScope,
}

/// An [`Address`](super::Address) or an [`AddressRef`].
///
/// A table with the key `Address` can be searched with `&dyn AsAddress`, because an `Address` has
/// the hash of its `AddressRef`.
pub(crate) trait AsAddress {
    fn as_address(&self) -> AddressRef<'_>;
}

impl AsAddress for AddressRef<'_> {
    fn as_address(&self) -> AddressRef<'_> {
        *self
    }
}

impl Hash for dyn AsAddress + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_address().hash(state);
    }
}

impl PartialEq for dyn AsAddress + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.as_address() == other.as_address()
    }
}

impl Eq for dyn AsAddress + '_ {}
