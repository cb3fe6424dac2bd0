//! The settings of a hub, their defaults and their validation.
//!
//! 1. A setting that is invalid, alone or together with another one, is an error of `build`
//!    ([`validation`]).
//! 2. Each default is defined in one place, next to its setting ([`settings`] and
//!    [`configuration`]).
//! 3. A rate limits the requests per second ([`limits`]). The
//!    [registry](super::connection::registry) enforces the limits on open connections.
//! 4. Pages of other origins cannot read streams unless the application allows their origin
//!    ([`origins`]).

pub(super) mod configuration;
pub(super) mod limits;
pub(super) mod origins;
pub(super) mod settings;
pub(super) mod validation;
