//! Subscriptions that wait to be fetched.

#[cfg(feature = "json")]
pub(super) mod record;
pub(super) mod store;
