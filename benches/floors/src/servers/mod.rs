//! The servers that are compared. All speak the same: `GET /events?topic=…` or `?user=…` is a stream, `POST /publish` with a
//! `topic` or a `user` publishes its body.

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

/// What events are called.
pub const EVENT: &str = "tick";
/// More connections come at once than the usual 1,024.
pub const BACKLOG: i32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The crate: its layer in an axum router, its listener under `axum::serve`.
    Axum,
    /// The crate: its layer around a service, its `io` under hyper's HTTP/1.
    Hyper,
    /// The same as `Axum`, with a listener whose sockets the hub takes over.
    TakenOver,
    AxumFloor,
    HyperFloor,
    Raw,
    RawCoalescing,
    Naive,
    Nchan,
    /// The same as `Axum`, on a runtime with several threads.
    AxumThreads,
    /// The same as `AxumFloor`, on a runtime with several threads.
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

    /// Whether tokio's multi-thread runtime serves. A delivery costs more on it, so it is compared with its like only.
    pub fn has_threads(self) -> bool {
        matches!(self, Self::AxumThreads | Self::AxumFloorThreads)
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What a case asks of a server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keeps what was published for those who come back.
    pub replay: bool,
    /// How much the kernel takes of what a reader does not read; else its default.
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

/// The process of a server: says its port, and serves until its input ends.
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
        Kind::Nchan => unreachable!("it is a program of its own"),
    }
}

fn on_one_thread(server: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(server);
}

/// Two workers, as `#[tokio::main]` has on two CPUs. The accept loop runs on a worker too: the thread that blocks on a
/// future is none.
fn on_threads(server: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::spawn(server).await.unwrap() });
}

fn listen(options: Options) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    if let Some(bytes) = options.send_buffer {
        // Those that are accepted have it too.
        socket.set_send_buffer_size(bytes).unwrap();
    }
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(BACKLOG).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// The fields of a query. What the benchmark sends needs no decoding.
fn fields(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|field| field.split_once('=').unwrap_or((field, "")))
}

/// Where an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address<'a> {
    Topic(&'a str),
    User(&'a str),
}

impl Address<'_> {
    /// For servers that know only one kind of name.
    fn key(self) -> String {
        match self {
            Self::Topic(name) => format!("t:{name}"),
            Self::User(name) => format!("u:{name}"),
        }
    }
}

/// What a `POST` asks for.
struct Order<'a> {
    address: Address<'a>,
    /// The body has an event in each line; with the user's name in front if the user is `*`.
    many: bool,
    /// Of each key the newest counts.
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

    /// Each event of a body that has many: to whom, and where its data is.
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

/// What a publisher gets: how long the call took.
fn published(begun: Instant) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    response.headers_mut().insert("x-publish-ns", HeaderValue::from(begun.elapsed().as_nanos() as u64));
    response
}

/// What the crate says in the head of a stream, so that the floors write as many bytes.
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
