//! What other instances have told of themselves.

#[cfg(feature = "json")]
pub(super) mod message;
#[cfg(feature = "json")]
pub(super) mod table;
