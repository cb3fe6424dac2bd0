//! The log that several instances share.

use tower_sse::HubBuilder;
use tower_sse::backplane::{Nats, Postgres, Redis};

/// The adapter of a broker. The `Debug` output of an adapter contains no password.
#[derive(Clone, Debug)]
pub(crate) enum Shared {
    Redis(Redis),
    Nats(Nats),
    Postgres(Postgres),
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
            Some("postgres" | "postgresql") => Postgres::new(url, namespace)
                .map(Self::Postgres)
                .map_err(|_| "not a Postgres URL with known parameters, or too long a namespace".to_owned()),
            _ => Err("not a URL like redis://h, nats://h or postgres://h/database".into()),
        }
    }

    /// Sets the backplane of a hub.
    pub(crate) fn configure(self, builder: HubBuilder) -> HubBuilder {
        match self {
            Self::Redis(redis) => builder.backplane(redis),
            Self::Nats(nats) => builder.backplane(nats),
            Self::Postgres(postgres) => builder.backplane(postgres),
        }
    }
}
