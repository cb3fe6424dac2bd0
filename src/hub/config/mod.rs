//! What an application sets, and what the running hub looks up. Pure.
//!
//! 1. A setting that makes no sense, alone or with another, is an error of `build`
//!    ([`validation`]).
//! 2. Each default stands in one place, beside its setting ([`settings`] and [`configuration`]).
//! 3. A rate bounds how many streams are opened in a second ([`limits`]). The limits on open
//!    connections are kept by the [registry](super::connection::registry).
//! 4. A page of another site reads nothing unless the application allows it ([`origins`]).

pub(super) mod configuration;
pub(super) mod limits;
pub(super) mod origins;
pub(super) mod settings;
pub(super) mod validation;
