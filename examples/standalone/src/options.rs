//! The command line.

use std::fmt;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::shared::Shared;

pub(crate) const USAGE: &str = "\
A hub of Server-Sent Events that programs in any language publish to.

Usage: standalone [--listen ADDRESS] [--token SECRET] [--replay-events N] [--latest PREFIX]... [--presence PREFIX]...
                  [--allow-host HOST]... [--drain-window TIME] [--takeover] [--backplane URL [--namespace NAME]]

  --listen ADDRESS     Listen here. Port 0 takes a free one. Defaults to 127.0.0.1:8080.
  --token SECRET       Whoever writes, disconnects or asks who is there must send `Authorization: Bearer SECRET`.
                       Defaults to letting everybody.
  --replay-events N    A topic keeps this many events for those who come back, of at most 5 minutes and 1 MiB;
                       also for those who listen, so a longer batch is a gap to them. Defaults to 1024.
  --latest PREFIX      Topics that start with PREFIX keep the newest event of each key, and a new page gets all of
                       them at once. May be given several times.
  --presence PREFIX    Topics that start with PREFIX tell who comes and goes: `hub.joined` and `hub.left`. May be given
                       several times.
  --allow-host HOST    Refuse streams, changes of topics, writes and questions about presence with 403, unless they name
                       this host: app.example, localhost:8080. A host without a port allows every port. It protects
                       against DNS rebinding. May be given several times. Defaults to any host.
  --drain-window TIME  When it leaves, clients are told to come back spread over this time: 500ms, 5s, 2m.
                       Defaults to 5s.
  --takeover           Take the socket of a stream out of the HTTP server: an idle one takes less than a kilobyte then.
  --backplane URL      Share the log with all that have the same broker and namespace: redis://127.0.0.1:6379,
                       rediss://user:password@host, nats://127.0.0.1:4222. What one takes all deliver, and clients go on
                       at any. Defaults to a log of its own.
  --namespace NAME     Which log on the broker. Any text. Defaults to `default`.
  --help               Print this.
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

/// What was asked for.
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
    /// Takes `--name value` and `--name=value`. An error names the option and never repeats a value, which may be the
    /// secret in the wrong place.
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

/// The secret of those who write. Never printed.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    fn new(secret: String) -> Result<Self, &'static str> {
        // Whatever else cannot stand in a header, or not at its end.
        if secret.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(Self(secret)) } else { Err("not one word of ASCII") }
    }

    /// Whether a request carries it.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        match sent.split_at_checked("Bearer ".len()) {
            Some((scheme, secret)) => scheme.eq_ignore_ascii_case(b"Bearer ") && same(secret, self.0.as_bytes()),
            None => false,
        }
    }
}

/// Takes as long for a wrong first byte as for a wrong last one. The length is not kept secret.
fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
