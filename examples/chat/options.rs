//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

use tower_sse::HubBuilder;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;

pub(crate) const USAGE: &str = "chat [--backplane redis://127.0.0.1:6379] [127.0.0.1:3000]";

pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    #[cfg(feature = "redis")]
    redis: Option<Redis>,
}

impl Options {
    /// Parses the arguments. An error contains no value, since a value may be a URL with a
    /// password.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let mut options = Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)),
            #[cfg(feature = "redis")]
            redis: None,
        };
        while let Some(arg) = args.next() {
            if arg == "--backplane" {
                options.share(&args.next().ok_or("--backplane needs a URL")?)?;
            } else {
                options.listen = arg.parse().map_err(|_| "an argument is neither --backplane nor an address")?;
            }
        }
        Ok(options)
    }

    #[cfg(feature = "redis")]
    fn share(&mut self, url: &str) -> Result<(), &'static str> {
        self.redis = Some(Redis::new(url, "chat").map_err(|_| "--backplane: not a Redis URL")?);
        Ok(())
    }

    #[cfg(not(feature = "redis"))]
    fn share(&mut self, _: &str) -> Result<(), &'static str> {
        Err("--backplane: built without the feature `redis`: cargo run --features redis --example chat")
    }

    /// Sets the backplane of the hub, if one was given.
    pub(crate) fn configure(&self, builder: HubBuilder) -> HubBuilder {
        #[cfg(feature = "redis")]
        if let Some(redis) = self.redis.clone() {
            return builder.backplane(redis);
        }
        builder
    }
}
