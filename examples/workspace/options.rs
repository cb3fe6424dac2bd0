//! The command line.

use std::net::{Ipv4Addr, SocketAddr};
#[cfg(feature = "postgres")]
use std::sync::Arc;

use tower_sse::HubBuilder;
#[cfg(feature = "postgres")]
use tower_sse::backplane::Postgres;
#[cfg(feature = "redis")]
use tower_sse::backplane::Redis;

pub(crate) const USAGE: &str = "\
workspace [--listen 127.0.0.1:3000] [--name TEXT] [--secret TEXT] [--backplane URL]

  --name       The name of this instance. Defaults to the address that it listens on. In containers,
               where this address is always the same, set a name.
  --secret     The secret that signs the session cookies, at least 16 characters. With the same secret,
               people stay signed in across restarts and instances. Defaults to a random secret.
  --backplane  The log that several instances share: redis://127.0.0.1:6379 (with --features redis), or
               postgres://user@127.0.0.1/database (with --features postgres). With Postgres, the
               documents are in the table workspace.documents of the same database.

Other users of the machine can read arguments. Outside of a test, set WORKSPACE_SECRET and
WORKSPACE_BACKPLANE in the environment instead.";

pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    name: Option<String>,
    pub(crate) secret: Option<String>,
    backplane: Option<Backplane>,
}

/// The log that several instances share.
enum Backplane {
    #[cfg(feature = "redis")]
    Redis(Redis),
    #[cfg(feature = "postgres")]
    Postgres(Database),
}

/// A database of Postgres that has the log and the documents.
#[cfg(feature = "postgres")]
#[derive(Clone)]
pub(crate) struct Database {
    pub(crate) log: Postgres,
    /// The settings of the connection for the documents.
    pub(crate) config: Arc<tokio_postgres::Config>,
}

/// Returns the options in the environment, as arguments.
pub(crate) fn from_environment() -> impl Iterator<Item = String> {
    let variables = [("--secret", "WORKSPACE_SECRET"), ("--backplane", "WORKSPACE_BACKPLANE")];
    variables.into_iter().filter_map(|(option, name)| Some([option.to_owned(), std::env::var(name).ok()?])).flatten()
}

impl Options {
    /// Parses the arguments. An error contains no value, since a value may be a secret.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let mut options =
            Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)), name: None, secret: None, backplane: None };
        while let Some(name) = args.next() {
            let value = args.next().ok_or("an option has no value")?;
            match name.as_str() {
                "--listen" => options.listen = value.parse().map_err(|_| "--listen: not like 127.0.0.1:3000")?,
                "--name" => options.name = Some(value),
                "--secret" if value.len() < 16 => return Err("--secret: shorter than 16 characters"),
                "--secret" => options.secret = Some(value),
                "--backplane" => options.backplane = Some(Backplane::parse(&value)?),
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
        match &self.backplane {
            #[cfg(feature = "redis")]
            Some(Backplane::Redis(redis)) => builder.backplane(redis.clone()),
            #[cfg(feature = "postgres")]
            Some(Backplane::Postgres(database)) => builder.backplane(database.log.clone()),
            _ => builder,
        }
    }

    /// Returns the database, if Postgres has the log.
    #[cfg(feature = "postgres")]
    pub(crate) fn database(&self) -> Option<&Database> {
        match &self.backplane {
            Some(Backplane::Postgres(database)) => Some(database),
            _ => None,
        }
    }
}

impl Backplane {
    fn parse(url: &str) -> Result<Self, &'static str> {
        match url.split(':').next() {
            #[cfg(feature = "postgres")]
            Some("postgres" | "postgresql") => {
                let log = Postgres::new(url, "workspace").map_err(|_| "--backplane: not a Postgres URL")?;
                let config = url.parse().map_err(|_| "--backplane: not a Postgres URL")?;
                Ok(Self::Postgres(Database { log, config: Arc::new(config) }))
            }
            #[cfg(feature = "redis")]
            _ => {
                let redis = Redis::new(url, "workspace").map_err(|_| "--backplane: not a URL of Redis or Postgres")?;
                Ok(Self::Redis(redis))
            }
            #[cfg(not(feature = "redis"))]
            _ => Err("--backplane: run with --features redis or --features postgres"),
        }
    }
}
