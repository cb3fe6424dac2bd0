//! The log that several of these share.

use tower_sse::HubBuilder;
use tower_sse::backplane::{Nats, Redis};

/// A broker to be. Its `Debug` is that of the adapter, which shows no password.
#[derive(Clone, Debug)]
pub(crate) enum Shared {
    Redis(Redis),
    Nats(Nats),
}

impl Shared {
    /// Connects to nobody yet. The problem does not repeat the URL, which may hold a password.
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

    pub(crate) fn give_to(self, builder: HubBuilder) -> HubBuilder {
        match self {
            Self::Redis(redis) => builder.backplane(redis),
            Self::Nats(nats) => builder.backplane(nats),
        }
    }
}
