//! The command line.

use std::net::{Ipv4Addr, SocketAddr};

use tower_sse::HubBuilder;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;

pub(crate) const USAGE: &str = "\
workspace [--listen 127.0.0.1:3000] [--name TEXT] [--secret TEXT] [--backplane redis://127.0.0.1:6379]

  --name       The name of this instance. Defaults to the address that it listens on. In containers,
               where this address is always the same, set a name.
  --secret     The secret that signs the session cookies, at least 16 characters. With the same secret,
               people stay signed in across restarts and instances. Defaults to a random secret.
  --backplane  The broker of the log that several instances share.

Other users of the machine can read arguments. Outside of a test, set WORKSPACE_SECRET and
WORKSPACE_BACKPLANE in the environment instead.";

pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    name: Option<String>,
    pub(crate) secret: Option<String>,
    #[cfg(feature = "redis")]
    redis: Option<Redis>,
}

/// Returns the options in the environment, as arguments.
pub(crate) fn from_environment() -> impl Iterator<Item = String> {
    let variables = [("--secret", "WORKSPACE_SECRET"), ("--backplane", "WORKSPACE_BACKPLANE")];
    variables.into_iter().filter_map(|(option, name)| Some([option.to_owned(), std::env::var(name).ok()?])).flatten()
}

impl Options {
    /// Parses the arguments. An error contains no value, since a value may be a secret.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let mut options = Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)),
            name: None,
            secret: None,
            #[cfg(feature = "redis")]
            redis: None,
        };
        while let Some(name) = args.next() {
            let value = args.next().ok_or("an option has no value")?;
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

    /// Returns the name of this instance, for pages and logs.
    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.listen.to_string())
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
