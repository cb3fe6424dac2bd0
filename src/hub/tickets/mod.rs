//! Tickets: secrets with which a client opens one stream each.
//!
//! 1. A ticket is redeemed once, on any instance ([`redeem`], [`shared`]).
//! 2. If a mount opens no stream for a request with a ticket, the mount puts the ticket back, and
//!    the client can use it again ([`redeem`]).
//! 3. The number of unredeemed tickets of one user is limited, so that one user cannot use up the
//!    tickets of all others ([`store`]).
//! 4. The broker stores a hash of the secret, not the secret ([`shared`]).
//! 5. A ticket does not carry the values of
//!    [`Subscription::extension`](crate::Subscription::extension) ([`record`]).

pub(super) mod record;
pub(super) mod redeem;
pub(super) mod shared;
pub(super) mod store;
