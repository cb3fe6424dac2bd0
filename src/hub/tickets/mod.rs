//! Tickets: subscriptions that a client fetches once, with a secret.
//!
//! 1. A ticket is redeemed once, on whichever instance ([`redeem`], [`shared`]).
//! 2. A ticket whose request opens no stream is good again ([`redeem`]).
//! 3. One user or key cannot take the tickets of all others ([`store`]).
//! 4. The broker keeps a hash of the secret and not the secret ([`shared`]).
//! 5. Values that are not JSON do not travel with a ticket ([`record`]).

pub(super) mod record;
pub(super) mod redeem;
pub(super) mod shared;
pub(super) mod store;
