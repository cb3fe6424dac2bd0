//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

use tower_sse::HubBuilder;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;

pub(crate) const USAGE: &str = "\
workspace [--listen 127.0.0.1:3000] [--secret TEXT] [--backplane redis://127.0.0.1:6379]

  --secret     signs the session cookies, at least 16 characters. With the same one people stay
               signed in across restarts and instances. Without it, it is made up at each start.
  --backplane  the log that several of these share.";

pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) secret: Option<String>,
    #[cfg(feature = "redis")]
    redis: Option<Redis>,
}

impl Options {
    /// A problem does not repeat a value, which may be a secret.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let mut options = Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)),
            secret: None,
            #[cfg(feature = "redis")]
            redis: None,
        };
        while let Some(name) = args.next() {
            let value = args.next().ok_or("an option without a value")?;
            match name.as_str() {
                "--listen" => options.listen = value.parse().map_err(|_| "--listen: not like 127.0.0.1:3000")?,
                "--secret" if value.len() < 16 => return Err("--secret: shorter than 16 characters"),
                "--secret" => options.secret = Some(value),
                #[cfg(feature = "redis")]
                "--backplane" => {
                    let redis = Redis::new(value.as_str(), "workspace").map_err(|_| "--backplane: not a Redis URL")?;
                    options.redis = Some(redis);
                }
                #[cfg(not(feature = "redis"))]
                "--backplane" => return Err("--backplane: run with --features redis"),
                _ => return Err("an unknown option"),
            }
        }
        Ok(options)
    }

    /// Gives the hub the shared log, if there is one.
    pub(crate) fn share(&self, builder: HubBuilder) -> HubBuilder {
        #[cfg(feature = "redis")]
        if let Some(redis) = self.redis.clone() {
            return builder.backplane(redis);
        }
        builder
    }
}
