//! The clients, and the command of each.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::SystemTime;

use tower_sse::StreamEnd;

use crate::kit::skip;

#[derive(Debug)]
pub struct Client {
    pub name: &'static str,
    /// The way of use, if it differs from the start of the documentation. Each variant is a
    /// separate client here.
    pub variant: &'static str,
    pub origin: Origin,
    /// The script that runs the client, in the folder of its origin.
    script: &'static str,
    pub reconnects: Reconnects,
    /// The setting `stream_end` of the hub for this client.
    pub end: StreamEnd,
    /// The usage in the script, for the document.
    pub usage: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Npm,
    Python,
    Rust,
    System,
}

/// Whether the client or its caller opens the next stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnects {
    Itself,
    Caller,
    /// The client after a proper end, the caller after any other.
    Either,
}

pub const CLIENTS: &[Client] = &[
    Client {
        name: "eventsource",
        variant: "",
        origin: Origin::Npm,
        script: "eventsource.mjs",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "`new EventSource(url)` and listeners, as in a browser",
    },
    Client {
        name: "undici",
        variant: "",
        origin: Origin::Npm,
        script: "undici.mjs",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "its `EventSource`, and listeners, as in a browser",
    },
    Client {
        name: "eventsource-parser",
        variant: "",
        origin: Origin::Npm,
        script: "eventsource-parser.mjs",
        reconnects: Reconnects::Caller,
        end: StreamEnd::Clean,
        usage: "a parser for the bytes of `fetch`, in a loop that keeps the last id and `retry`",
    },
    Client {
        name: "@microsoft/fetch-event-source",
        variant: "",
        origin: Origin::Npm,
        script: "fetch-event-source.mjs",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Abort,
        usage: "`onmessage`, and an `onerror` that only logs; the hub has `StreamEnd::Abort`; in Node, with stand-ins for \
                `window` and `document`",
    },
    Client {
        name: "@microsoft/fetch-event-source",
        variant: "with callbacks",
        origin: Origin::Npm,
        script: "fetch-event-source-callbacks.mjs",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "`onopen` throws at any status other than 200, `onclose` throws, and `onerror` rethrows the error of `onopen`",
    },
    Client {
        name: "httpx-sse",
        variant: "",
        origin: Origin::Python,
        script: "httpx_sse_client.py",
        reconnects: Reconnects::Caller,
        end: StreamEnd::Clean,
        usage: "`connect_sse` in the loop of its documentation, but for every end and not only for `ReadError`; without httpx's \
                read timeout of 5 s, which is shorter than the hub's 15 s between heartbeats",
    },
    Client {
        name: "sseclient-py",
        variant: "",
        origin: Origin::Python,
        script: "sseclient_py.py",
        reconnects: Reconnects::Caller,
        end: StreamEnd::Clean,
        usage: "over `requests`, in a loop that keeps the last id and `retry`",
    },
    Client {
        name: "aiohttp-sse-client",
        variant: "",
        origin: Origin::Python,
        script: "aiohttp_sse.py",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "`async for` over its `EventSource`",
    },
    Client {
        name: "aiohttp-sse-client",
        variant: "in a loop",
        origin: Origin::Python,
        script: "aiohttp_sse_loop.py",
        reconnects: Reconnects::Either,
        end: StreamEnd::Clean,
        usage: "the same in a loop that keeps the last id, for ends that raise `ClientPayloadError`; without aiohttp's limit of \
                5 minutes for a request",
    },
    Client {
        name: "eventsource-client",
        variant: "",
        origin: Origin::Rust,
        script: "eventsource-client",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "its own transport and defaults; reading continues after an `Err`, which is not the end",
    },
    Client {
        name: "eventsource-client",
        variant: "checking the status",
        origin: Origin::Rust,
        script: "eventsource-client-status",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "the same; reading stops at `SSE::Connected` with a status other than 200, and at `Error::UnexpectedResponse`",
    },
    Client {
        name: "reqwest-eventsource",
        variant: "",
        origin: Origin::Rust,
        script: "reqwest-eventsource",
        reconnects: Reconnects::Itself,
        end: StreamEnd::Clean,
        usage: "`EventSource::get(url)`; reading continues after an `Err`, which is not the end",
    },
    Client {
        name: "curl",
        variant: "",
        origin: Origin::System,
        script: "curl.sh",
        reconnects: Reconnects::Caller,
        end: StreamEnd::Clean,
        usage: "`curl -N` in a loop of Bash, which parses and keeps the last id and `retry`",
    },
];

/// The folder with the sources of the scripts.
pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");
/// The folder with the installed clients.
pub const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/interop");

/// Proof that the clients are installed, in the listed versions.
pub struct Installed(());

/// Looks for the clients. If one is missing, reports the test as skipped.
pub fn installed() -> Option<Installed> {
    if let Err(missing) = look() {
        skip::not_installed(&missing);
        return None;
    }
    // Node searches packages in the folder of the script and above, so the scripts are copied
    // there.
    static COPIED: Once = Once::new();
    COPIED.call_once(|| {
        for folder in ["node", "node/runs"] {
            copy_scripts(&Path::new(SOURCES).join(folder), &Path::new(INSTALLED).join(folder));
        }
    });
    Some(Installed(()))
}

fn copy_scripts(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for script in std::fs::read_dir(from).unwrap() {
        let script = script.unwrap().path();
        if script.extension().is_some_and(|extension| extension == "mjs") {
            std::fs::copy(&script, to.join(script.file_name().unwrap())).unwrap();
        }
    }
}

fn look() -> Result<(), String> {
    for (folder, list) in [("node", "package-lock.json"), ("python", "requirements.txt")] {
        let wanted = std::fs::read_to_string(Path::new(SOURCES).join(folder).join(list)).unwrap();
        // `tests/run` copies the list after it has installed everything on it.
        if std::fs::read_to_string(Path::new(INSTALLED).join(folder).join("installed")).ok() != Some(wanted) {
            return Err(format!("a client of tests/interop/{folder}/{list}"));
        }
    }
    for client in CLIENTS.iter().filter(|client| client.origin == Origin::Rust) {
        let source = Path::new(SOURCES).join("rust/src/bin").join(client.script).with_extension("rs");
        let built = time(&binary(client.script));
        let sources = [source, Path::new(SOURCES).join("rust/src/lib.rs"), Path::new(SOURCES).join("rust/Cargo.toml")];
        if sources.iter().any(|source| time(source) > built) {
            return Err(format!("{} is not built, or is old", client.name));
        }
    }
    Ok(())
}

fn time(path: &Path) -> SystemTime {
    path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn binary(name: &str) -> PathBuf {
    Path::new(INSTALLED).join("rust/debug").join(name)
}

impl Client {
    /// Returns the name and the variant.
    pub fn title(&self) -> String {
        let Self { name, variant, .. } = self;
        if variant.is_empty() { (*name).to_owned() } else { format!("{name}, {variant}") }
    }

    /// Returns the program and its first arguments.
    pub fn command(&self, _: &Installed) -> Vec<OsString> {
        let (sources, installed) = (Path::new(SOURCES), Path::new(INSTALLED));
        let command = match self.origin {
            Origin::Npm => {
                vec![installed.join("node/node_modules/.bin/node"), installed.join("node").join(self.script)]
            }
            Origin::Python => vec![installed.join("python/bin/python"), sources.join("python").join(self.script)],
            Origin::Rust => vec![binary(self.script)],
            Origin::System => vec![PathBuf::from("bash"), sources.join("shell").join(self.script)],
        };
        command.into_iter().map(PathBuf::into_os_string).collect()
    }

    /// Returns the version in the list of packages, or `None` for a tool of the system.
    pub fn version(&self) -> Option<String> {
        version(self.origin, self.name)
    }
}

/// Returns the version of a package in the list of its origin, or `None` for a tool of the system.
pub fn version(origin: Origin, name: &str) -> Option<String> {
    let (list, before) = match origin {
        Origin::Npm => ("node/package.json", format!("\"{name}\": \"")),
        Origin::Python => ("python/requirements.txt", format!("{name}==")),
        Origin::Rust => ("rust/Cargo.toml", format!("{name} = ")),
        Origin::System => return None,
    };
    let list = std::fs::read_to_string(Path::new(SOURCES).join(list)).unwrap();
    let line = list.lines().find_map(|line| line.trim_start().strip_prefix(&before));
    let digits = |c: char| c.is_ascii_digit();
    let version = line.and_then(|line| line.get(line.find(digits)?..)).expect(name);
    let end = version.find(|c: char| !digits(c) && c != '.').unwrap_or(version.len());
    Some(version[..end].to_owned())
}
