//! The log that several instances share.

use tower_sse::HubBuilder;
use tower_sse::backplane::{Nats, Redis};

/// The adapter of a broker. The `Debug` output of an adapter contains no password.
#[derive(Clone, Debug)]
pub(crate) enum Shared {
    Redis(Redis),
    Nats(Nats),
}

impl Shared {
    /// Creates the adapter of a URL, without connecting. An error does not contain the URL, which
    /// may have a password.
    pub(crate) fn open(url: &str, namespace: &str) -> Result<Self, String> {
        match url.split_once("://").map(|(scheme, _)| scheme) {
            Some("redis" | "rediss") => {
                Redis::new(url, namespace).map(Self::Redis).map_err(|_| "not a Redis URL".to_owned())
            }
            Some("nats" | "tls") => Nats::new(url, namespace)
                .map(Self::Nats)
                .map_err(|_| "not a NATS URL, or too long a namespace".to_owned()),
            _ => Err("not a URL like redis://127.0.0.1:6379 or nats://127.0.0.1:4222".into()),
        }
    }

    /// Sets the backplane of a hub.
    pub(crate) fn configure(self, builder: HubBuilder) -> HubBuilder {
        match self {
            Self::Redis(redis) => builder.backplane(redis),
            Self::Nats(nats) => builder.backplane(nats),
        }
    }
}
