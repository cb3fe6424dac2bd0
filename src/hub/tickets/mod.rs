//! Tickets: subscriptions that a client fetches once, with a secret.
//!
//! 1. A ticket is redeemed once, on whichever instance ([`store`]).
//! 2. A ticket whose request opens no stream is good again ([`store`]).
//! 3. The broker keeps a hash of the secret and not the secret ([`store`]).
//! 4. Values that are not JSON do not travel with a ticket ([`record`]).

#[cfg(feature = "json")]
pub(super) mod record;
pub(super) mod store;
