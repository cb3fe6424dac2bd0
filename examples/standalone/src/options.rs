//! The command line.

use std::fmt;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::shared::Shared;

pub(crate) const USAGE: &str = "\
A hub for Server-Sent Events. Programs in any language publish to it over HTTP.

Usage: standalone [--listen ADDRESS] [--token SECRET] [--replay-events N] [--latest PREFIX]... [--presence PREFIX]...
                  [--allow-host HOST]... [--drain-window TIME] [--takeover] [--backplane URL [--namespace NAME]]

  --listen ADDRESS     The address to listen on. Port 0 selects a free port. Defaults to 127.0.0.1:8080.
  --token SECRET       Requests to publish, disconnect and read presence must have the header
                       `Authorization: Bearer SECRET`. Defaults to no token.
  --replay-events N    The number of events that a topic retains, for at most 5 minutes and within 1 MiB. Streams read
                       from the same events, so a longer batch is a gap for open streams. Defaults to 1024.
  --latest PREFIX      Topics that start with PREFIX retain the newest event of each key, and a new page receives all of
                       these events. May be given several times.
  --presence PREFIX    Topics that start with PREFIX report joins and leaves: `hub.joined` and `hub.left`. May be given
                       several times.
  --allow-host HOST    Refuse requests to stream, change topics, publish, disconnect and read presence with 403, unless
                       they name this host: app.example, localhost:8080. A host without a port allows every port. The
                       option protects against DNS rebinding. May be given several times. Defaults to any host.
  --drain-window TIME  On shutdown, clients reconnect at random within this time: 500ms, 5s, 2m. Defaults to 5s.
  --takeover           Take the socket of a stream over from the HTTP server. An idle stream then takes less than a
                       kilobyte.
  --backplane URL      Share the log with all instances that have the same broker and namespace: redis://127.0.0.1:6379,
                       rediss://user:password@host, nats://127.0.0.1:4222, postgres://user:password@host/database. All
                       instances deliver every event, and clients resume at any instance. A database needs the schema of
                       `docs/postgres.md`. Defaults to a log in the process.
  --namespace NAME     The name of the log on the broker. Any short text. Defaults to `default`.
  --help               Print this help.
";

const NAMES: [&str; 9] = [
    "--listen",
    "--token",
    "--replay-events",
    "--latest",
    "--presence",
    "--allow-host",
    "--drain-window",
    "--backplane",
    "--namespace",
];

/// The parsed command line.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) token: Option<Token>,
    pub(crate) replay_events: Option<usize>,
    pub(crate) latest: Vec<String>,
    pub(crate) presence: Vec<String>,
    pub(crate) allow_host: Vec<String>,
    pub(crate) drain_window: Duration,
    pub(crate) takeover: bool,
    pub(crate) shared: Option<Shared>,
    pub(crate) help: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            token: None,
            replay_events: None,
            latest: Vec::new(),
            presence: Vec::new(),
            allow_host: Vec::new(),
            drain_window: Duration::from_secs(5),
            takeover: false,
            shared: None,
            help: false,
        }
    }
}

impl Options {
    /// Parses `--name value` and `--name=value`. An error names the option and contains no value,
    /// because a value may be a misplaced secret.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let (mut backplane, mut namespace) = (None, None);
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let (name, attached) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            if name == "--help" || name == "-h" {
                options.help = true;
                return Ok(options);
            }
            if arg == "--takeover" {
                options.takeover = true;
                continue;
            }
            if !NAMES.contains(&name) {
                let is_option = name.starts_with("--");
                return Err(if is_option {
                    format!("unknown option {name}")
                } else {
                    "a value without an option".into()
                });
            }
            let value = attached.or_else(|| args.next_if(|next| !next.starts_with("--")));
            let value = value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{name} needs a value"))?;
            match name {
                "--backplane" => backplane = Some(value),
                "--namespace" => namespace = Some(value),
                _ => options.set(name, value).map_err(|problem| format!("{name}: {problem}"))?,
            }
        }
        options.shared = match (backplane, namespace) {
            (None, None) => None,
            (None, Some(_)) => return Err("--namespace: only with --backplane".into()),
            (Some(url), namespace) => {
                let shared = Shared::open(&url, namespace.as_deref().unwrap_or("default"));
                Some(shared.map_err(|problem| format!("--backplane: {problem}"))?)
            }
        };
        Ok(options)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), &'static str> {
        match name {
            "--listen" => self.listen = value.parse().map_err(|_| "not an address like 127.0.0.1:8080")?,
            "--token" => self.token = Some(Token::new(value)?),
            "--replay-events" => match value.parse() {
                Ok(count) if count > 0 => self.replay_events = Some(count),
                _ => return Err("not a number of at least 1"),
            },
            "--latest" => self.latest.push(value),
            "--presence" => self.presence.push(value),
            "--allow-host" => self.allow_host.push(value),
            _ => self.drain_window = duration(&value).ok_or("not a time like 500ms, 5s or 2m")?,
        }
        Ok(())
    }
}

/// Parses a time like `500ms`, `5s` or `2m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// The secret of publishers. `Debug` does not print it.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    fn new(secret: String) -> Result<Self, &'static str> {
        // Other characters are invalid in a header, or are trimmed at its end.
        if secret.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(Self(secret)) } else { Err("not one word of ASCII") }
    }

    /// Returns whether a request has the token.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        match sent.split_at_checked("Bearer ".len()) {
            Some((scheme, secret)) => scheme.eq_ignore_ascii_case(b"Bearer ") && is_equal(secret, self.0.as_bytes()),
            None => false,
        }
    }
}

/// Compares in a time that does not depend on the position of the first difference. The length is
/// not kept secret.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
