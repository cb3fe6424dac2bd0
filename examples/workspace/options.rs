//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

use tower_sse::HubBuilder;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;

pub(crate) const USAGE: &str = "\
workspace [--listen 127.0.0.1:3000] [--name TEXT] [--secret TEXT] [--backplane redis://127.0.0.1:6379]

  --name       tells this instance from the others. Without it, it is the address that it listens on,
               which is the same one in every container.
  --secret     signs the session cookies, at least 16 characters. With the same one people stay
               signed in across restarts and instances. Without it, it is made up at each start.
  --backplane  the log that several of these share.

Others on the machine see arguments: fine to try. WORKSPACE_SECRET and WORKSPACE_BACKPLANE in the
environment say the same.";

pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    name: Option<String>,
    pub(crate) secret: Option<String>,
    #[cfg(feature = "redis")]
    redis: Option<Redis>,
}

/// What the environment says, as if it were the first arguments.
pub(crate) fn from_environment() -> impl Iterator<Item = String> {
    let variables = [("--secret", "WORKSPACE_SECRET"), ("--backplane", "WORKSPACE_BACKPLANE")];
    variables.into_iter().filter_map(|(option, name)| Some([option.to_owned(), std::env::var(name).ok()?])).flatten()
}

impl Options {
    /// A problem does not repeat a value, which may be a secret.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let mut options = Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)),
            name: None,
            secret: None,
            #[cfg(feature = "redis")]
            redis: None,
        };
        while let Some(name) = args.next() {
            let value = args.next().ok_or("an option without a value")?;
            match name.as_str() {
                "--listen" => options.listen = value.parse().map_err(|_| "--listen: not like 127.0.0.1:3000")?,
                "--name" => options.name = Some(value),
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

    /// What the other instances, and people, know it by.
    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.listen.to_string())
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
