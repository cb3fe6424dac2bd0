//! The servers that are compared. All have the same interface: `GET /events?topic=…` or `?user=…`
//! is a stream, and `POST /publish` with a `topic` or a `user` publishes the body.

mod floor;
mod naive;
pub mod nchan;
mod ours;
mod raw;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use socket2::{Domain, Protocol, Socket, Type};

/// The name of all events.
pub const EVENT: &str = "tick";
/// The backlog of the listeners. More clients connect at once than the usual 1,024.
pub const BACKLOG: i32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The crate: its layer in an axum router, its listener under `axum::serve`.
    Axum,
    /// The crate: its layer around a service, its `io` under hyper's HTTP/1.
    Hyper,
    /// As `Axum`, with a listener whose sockets the hub takes over.
    TakenOver,
    AxumFloor,
    HyperFloor,
    Raw,
    RawCoalescing,
    Naive,
    Nchan,
    /// As `Axum`, on a runtime with several threads.
    AxumThreads,
    /// As `AxumFloor`, on a runtime with several threads.
    AxumFloorThreads,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Axum,
        Self::Hyper,
        Self::TakenOver,
        Self::AxumFloor,
        Self::HyperFloor,
        Self::Raw,
        Self::RawCoalescing,
        Self::Naive,
        Self::Nchan,
        Self::AxumThreads,
        Self::AxumFloorThreads,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Axum => "axum",
            Self::Hyper => "hyper",
            Self::TakenOver => "takeover",
            Self::AxumFloor => "axum-floor",
            Self::HyperFloor => "hyper-floor",
            Self::Raw => "raw",
            Self::RawCoalescing => "raw-coalescing",
            Self::Naive => "naive",
            Self::Nchan => "nchan",
            Self::AxumThreads => "axum-threads",
            Self::AxumFloorThreads => "axum-floor-threads",
        }
    }

    /// Whether the server is on tokio's multi-thread runtime. A delivery costs more on it, so these
    /// kinds are compared only with each other.
    pub fn has_threads(self) -> bool {
        matches!(self, Self::AxumThreads | Self::AxumFloorThreads)
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The settings of a server for one case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether the server retains events for clients that reconnect.
    pub replay: bool,
    /// The size of the sockets' send buffers, if not the default.
    pub send_buffer: Option<usize>,
}

impl Options {
    pub fn arguments(self) -> Vec<String> {
        let replay = self.replay.then(|| "--replay".to_owned());
        replay.into_iter().chain(self.send_buffer.map(|bytes| format!("--send-buffer={bytes}"))).collect()
    }

    pub fn parse(arguments: &[String]) -> Self {
        let send_buffer = arguments.iter().find_map(|argument| argument.strip_prefix("--send-buffer="));
        Self {
            replay: arguments.iter().any(|argument| argument == "--replay"),
            send_buffer: send_buffer.map(|bytes| bytes.parse().unwrap()),
        }
    }
}

/// Runs a server in this process: prints the port, and serves until the input ends.
pub fn serve(kind: Kind, options: Options) {
    std::thread::spawn(|| {
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(0);
    });
    let listener = listen(options);
    println!("{}", listener.local_addr().unwrap().port());
    match kind {
        Kind::Raw => raw::serve(listener, false),
        Kind::RawCoalescing => raw::serve(listener, true),
        Kind::Axum => on_one_thread(ours::axum(listener, options, false)),
        Kind::TakenOver => on_one_thread(ours::axum(listener, options, true)),
        Kind::Hyper => on_one_thread(ours::hyper(listener, options)),
        Kind::AxumFloor => on_one_thread(floor::axum(listener)),
        Kind::HyperFloor => on_one_thread(floor::hyper(listener)),
        Kind::Naive => on_one_thread(naive::serve(listener)),
        Kind::AxumThreads => on_threads(ours::axum(listener, options, false)),
        Kind::AxumFloorThreads => on_threads(floor::axum(listener)),
        Kind::Nchan => unreachable!("nchan is another program"),
    }
}

fn on_one_thread(server: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(server);
}

/// Runs a server on two workers, as `#[tokio::main]` has on two CPUs. The server is spawned, so
/// that the accept loop runs on a worker and not on the blocked main thread.
fn on_threads(server: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::spawn(server).await.unwrap() });
}

fn listen(options: Options) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    if let Some(bytes) = options.send_buffer {
        // Accepted sockets inherit the size.
        socket.set_send_buffer_size(bytes).unwrap();
    }
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(BACKLOG).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// Returns the fields of a query. The benchmark sends no characters that need decoding.
fn fields(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|field| field.split_once('=').unwrap_or((field, "")))
}

/// The target of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address<'a> {
    Topic(&'a str),
    User(&'a str),
}

impl Address<'_> {
    /// Returns a key for servers with one namespace for topics and users.
    fn key(self) -> String {
        match self {
            Self::Topic(name) => format!("t:{name}"),
            Self::User(name) => format!("u:{name}"),
        }
    }
}

/// The query of a `POST`.
struct Order<'a> {
    address: Address<'a>,
    /// Whether the body has an event in each line, after the user's name if the user is `*`.
    many: bool,
    /// Whether the events have keys, for `latest_per_key`.
    keyed: bool,
}

impl<'a> Order<'a> {
    fn parse(query: &'a str) -> Self {
        let mut order = Self { address: Address::Topic(""), many: false, keyed: false };
        for (name, value) in fields(query) {
            match name {
                "topic" => order.address = Address::Topic(value),
                "user" => order.address = Address::User(value),
                "n" => order.many = true,
                "keyed" => order.keyed = true,
                _ => {}
            }
        }
        order
    }

    /// Returns the target and the place of the data of each event of a body with many events.
    fn lines(&self, body: &'a [u8]) -> impl Iterator<Item = (Address<'a>, std::ops::Range<usize>)> {
        let mut begin = 0;
        memchr::memchr_iter(b'\n', body).map(move |end| {
            let mut from = std::mem::replace(&mut begin, end + 1);
            let mut address = self.address;
            if address == Address::User("*") {
                let name = memchr::memchr(b' ', &body[from..end]).unwrap();
                address = Address::User(std::str::from_utf8(&body[from..from + name]).unwrap());
                from += name + 1;
            }
            (address, from..end)
        })
    }
}

/// Returns the response to a `POST`, with the duration of the publish call.
fn published(begun: Instant) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    response.headers_mut().insert("x-publish-ns", HeaderValue::from(begun.elapsed().as_nanos() as u64));
    response
}

/// Sets the headers that the crate sends for a stream, so that the minimal servers write as many
/// bytes.
fn head(headers: &mut HeaderMap) {
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache, no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
