//! The log that several of these share.

use tower_sse::HubBuilder;
#[cfg(feature = "nats")]
use tower_sse::backplane::Nats;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;

/// A broker to be. Its `Debug` is that of the adapter, which shows no password.
#[derive(Clone, Debug)]
pub(crate) enum Shared {
    #[cfg(feature = "redis")]
    Redis(Redis),
    #[cfg(feature = "nats")]
    Nats(Nats),
}

impl Shared {
    /// Connects to nobody yet. The problem does not repeat the URL, which may hold a password.
    #[cfg_attr(
        not(any(feature = "redis", feature = "nats")),
        expect(unused_variables, reason = "no broker to give it to")
    )]
    pub(crate) fn open(url: &str, namespace: &str) -> Result<Self, String> {
        match url.split_once("://").map(|(scheme, _)| scheme) {
            #[cfg(feature = "redis")]
            Some("redis" | "rediss") => {
                Redis::new(url, namespace).map(Self::Redis).map_err(|_| "not a Redis URL".to_owned())
            }
            #[cfg(not(feature = "redis"))]
            Some("redis" | "rediss") => Err(lacking("redis")),
            #[cfg(feature = "nats")]
            Some("nats" | "tls") => Nats::new(url, namespace)
                .map(Self::Nats)
                .map_err(|_| "not a NATS URL, or too long a namespace".to_owned()),
            #[cfg(not(feature = "nats"))]
            Some("nats" | "tls") => Err(lacking("nats")),
            _ => Err("not a URL like redis://127.0.0.1:6379 or nats://127.0.0.1:4222".into()),
        }
    }

    #[cfg_attr(
        not(any(feature = "redis", feature = "nats")),
        expect(unused_variables, clippy::needless_pass_by_value, reason = "no broker to give to it")
    )]
    pub(crate) fn give_to(self, builder: HubBuilder) -> HubBuilder {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => builder.backplane(redis),
            #[cfg(feature = "nats")]
            Self::Nats(nats) => builder.backplane(nats),
        }
    }
}

#[cfg(not(all(feature = "redis", feature = "nats")))]
fn lacking(feature: &str) -> String {
    format!("built without the feature `{feature}`: cargo run --features {feature} --example standalone")
}
