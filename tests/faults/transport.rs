//! The hub and its sockets: detection of stalled readers, the bytes that wait for a reader, and the
//! end of a socket with its stream.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_sse::{EndReason, Event, Hub, HubBuilder, OverLimit, Public, RefusalReason, Retention, TopicFilter};

use crate::kit::{self, PATIENCE, Server, soon, until};

/// A hub that retains everything that these tests publish.
fn with_wide_retention() -> HubBuilder {
    Hub::builder().topic_retention(Retention::replay().count(10_000).bytes(256 << 20)).retention_budget(256 << 20)
}

fn app(hub: &Hub) -> Router {
    Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())))
}

async fn publish(hub: &Hub, topic: &str, count: usize, size: usize) {
    for n in 0..count {
        let data = format!("{n} {}", "x".repeat(size));
        hub.topic(topic).publish(Event::unnamed(data)).await.unwrap();
    }
}

/// Serves one connection with hyper alone, which calls the endpoint in the task that polls the
/// socket.
fn serve_one<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(hub: &Hub, io: S) {
    let io = hub.io(io);
    let io = TokioIo::new(if kit::takeover() { io.take_over() } else { io });
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    let service = hyper::service::service_fn(move |request| tower::Service::call(&mut endpoint.clone(), request));
    tokio::spawn(async move {
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        drop(builder.serve_connection(io, service).await);
    });
}

async fn serve(hub: &Hub) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let hub = hub.clone();
    tokio::spawn(async move {
        loop {
            serve_one(&hub, listener.accept().await.unwrap().0);
        }
    });
    addr
}

/// Connects with a small receive buffer.
async fn connect_with_small_buffer(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(addr).await.unwrap()
}

async fn request_stream(tcp: &mut TcpStream, topic: &str) {
    let request = format!("GET /events?topic={topic} HTTP/1.1\r\nhost: test\r\n\r\n");
    soon(tcp.write_all(request.as_bytes())).await.unwrap();
    let mut first = [0; 16];
    soon(tcp.read_exact(&mut first)).await.unwrap();
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// An HTTP/2 client with this window for each stream.
async fn http2(addr: SocketAddr, window: u32) -> Sender {
    http2_over(TcpStream::connect(addr).await.unwrap(), window).await
}

async fn http2_over(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, window: u32) -> Sender {
    http2_with_windows(io, window, 8 << 20).await
}

/// An HTTP/2 client with a window for each stream, and one for all streams together.
async fn http2_with_windows(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    window: u32,
    connection_window: u32,
) -> Sender {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window).initial_connection_window_size(connection_window);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn open(sender: &mut Sender, topic: &str) -> Incoming {
    let request = Request::get(format!("http://test/events?topic={topic}")).body(Full::default()).unwrap();
    soon(sender.send_request(request)).await.unwrap().into_body()
}

// -------------------------------------------------------------------------------------------------
// Stalled readers

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_but_steady_reader_of_large_events_stays_counted() {
    let deadline = Duration::from_secs(1);
    let hub = with_wide_retention().write_deadline(deadline).max_connections(2, OverLimit::Refuse).build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut tcp = connect_with_small_buffer(server.addr).await;
        request_stream(&mut tcp, "t").await;
        readers.push(tokio::spawn(async move {
            let mut space = vec![0; 16 * 1024];
            while soon(tcp.read(&mut space)).await.unwrap() > 0 {
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        }));
    }
    until(|| hub.stats().connections == 2).await;
    publish(&hub, "t", 60, 400_000).await;
    let since = Instant::now();
    while since.elapsed() < 5 * deadline {
        assert_eq!(hub.stats().connections, 2, "after {:?}", since.elapsed());
        tokio::time::sleep(deadline / 20).await;
    }
    assert!(hub.stats().lag > 0, "the readers were not slow enough for this test");
    let refused = kit::get(server.addr, "/events?topic=t").await.events().next().await;
    assert_eq!((refused.event.as_str(), hub.stats().refused(RefusalReason::Limit)), ("hub.refused", 1));
    for reader in readers {
        assert!(!reader.is_finished(), "the reader was cut");
        reader.abort();
    }
}

/// The write deadline in the tests of slow but steady readers.
const STEADY: Duration = Duration::from_secs(1);

async fn a_slow_but_steady_reader_stays_counted(hub: &Hub, addr: SocketAddr) {
    let mut sender = http2(addr, 65_535).await;
    let mut body = open(&mut sender, "t").await;
    until(|| hub.stats().connections == 1).await;
    let publisher = tokio::spawn({
        let hub = hub.clone();
        async move { publish(&hub, "t", 20, 500_000).await }
    });
    let since = Instant::now();
    while since.elapsed() < 5 * STEADY {
        soon(body.frame()).await.unwrap().expect("the stream was cut");
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert_eq!(hub.stats().connections, 1, "after {:?}", since.elapsed());
    }
    assert!(hub.stats().lag > 0, "the reader was not slow enough for this test");
    soon(publisher).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_but_steady_reader_over_http2_stays_counted() {
    let hub = with_wide_retention().write_deadline(STEADY).build().unwrap();
    let addr = serve(&hub).await;
    a_slow_but_steady_reader_stays_counted(&hub, addr).await;
}

/// Below a router the hub cannot find the socket of an HTTP/2 stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_but_steady_reader_over_http2_below_a_router_stays_counted() {
    let hub = with_wide_retention().write_deadline(STEADY).build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    a_slow_but_steady_reader_stays_counted(&hub, server.addr).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_window_stays_counted_while_its_connection_moves() {
    let deadline = Duration::from_secs(1);
    let hub = with_wide_retention().write_deadline(deadline).build().unwrap();
    let addr = serve(&hub).await;
    let mut sender = http2(addr, 65_535).await;
    // The client does not poll this body, so the window of the stream stays closed.
    let paused = open(&mut sender, "big").await;
    let mut read = kit::Events::parse(http_body_util::BodyDataStream::new(open(&mut sender, "small").await));
    read.caught_up().await;
    publish(&hub, "big", 20, 100_000).await;
    let since = Instant::now();
    for n in 0.. {
        hub.topic("small").publish(Event::unnamed(n.to_string())).await.unwrap();
        assert_eq!(read.next_own().await.data, n.to_string());
        assert_eq!(hub.stats().connections, 2, "after {:?}", since.elapsed());
        if since.elapsed() > 5 * deadline {
            break;
        }
        tokio::time::sleep(deadline / 10).await;
    }
    // The paused stream has lost no events.
    let mut paused = kit::Events::parse(http_body_util::BodyDataStream::new(paused));
    for n in 0..20 {
        assert!(paused.next_own().await.data.starts_with(&format!("{n} ")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_movement_is_cut_with_its_stalled_stream() {
    let deadline = Duration::from_millis(500);
    let hub = with_wide_retention().write_deadline(deadline).build().unwrap();
    let addr = serve(&hub).await;
    let mut sender = http2(addr, 65_535).await;
    let _paused = open(&mut sender, "big").await;
    until(|| hub.stats().connections == 1).await;
    let since = Instant::now();
    publish(&hub, "big", 20, 100_000).await;
    until(|| hub.stats().ended(EndReason::Stalled) == 1).await;
    assert!(since.elapsed() >= deadline, "{:?}", since.elapsed());
    until(|| sender.is_closed()).await;
}

// -------------------------------------------------------------------------------------------------
// Buffered bytes

/// The capacity of the pipe that replaces the buffers of the kernel.
const PIPE: usize = 4096;
/// The size of each event.
const EVENT: usize = 10_000;

/// Stops all reads of a client while it is shut.
#[derive(Default)]
struct Gate {
    is_shut: AtomicBool,
    reader: AtomicWaker,
}

impl Gate {
    fn set_shut(&self, is_shut: bool) {
        self.is_shut.store(is_shut, Ordering::SeqCst);
        self.reader.wake();
    }
}

struct Gated {
    inner: DuplexStream,
    gate: Arc<Gate>,
}

impl AsyncRead for Gated {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.gate.reader.register(cx.waker());
        if self.gate.is_shut.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn pipe(hub: &Hub) -> DuplexStream {
    let (near, far) = tokio::io::duplex(PIPE);
    serve_one(hub, near);
    far
}

async fn read_bytes(mut body: impl http_body::Body<Data = Bytes, Error: std::fmt::Debug> + Unpin, count: usize) {
    let mut all = 0;
    while all < count {
        all += soon(body.frame()).await.unwrap().unwrap().into_data().unwrap().len();
    }
}

/// Publishes 1 MB, and returns the bytes that the hub has delivered when no more are read.
async fn bytes_ahead(hub: &Hub) -> usize {
    // Two topics in turn: the hub shares chunks only between readers of one channel, so no reader
    // shares its bytes.
    for n in 0..100 {
        hub.topic(if n % 2 == 0 { "a" } else { "b" }).publish(Event::unnamed("x".repeat(EVENT))).await.unwrap();
    }
    let since = Instant::now();
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let delivered = usize::try_from(hub.stats().delivered).unwrap();
        if delivered == before && delivered > 0 {
            return delivered * EVENT;
        }
        assert!(since.elapsed() < PATIENCE);
        before = delivered;
    }
}

#[tokio::test]
async fn a_body_is_at_most_128_kib_ahead_of_a_socket_that_takes_no_bytes() {
    let hub = with_wide_retention().build().unwrap();
    let mut far = pipe(&hub);
    soon(far.write_all(b"GET /events?topic=a&topic=b HTTP/1.1\r\nhost: test\r\n\r\n")).await.unwrap();
    until(|| hub.stats().connections == 1).await;
    let ahead = bytes_ahead(&hub).await;
    assert!(ahead <= 128 * 1024 + PIPE, "{ahead} bytes");
    // The client then receives all events.
    let (mut all, mut space) = (0, vec![0; 64 * 1024]);
    while all < 100 * EVENT {
        all += soon(far.read(&mut space)).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_over_http2_is_at_most_128_kib_ahead_of_a_socket_that_takes_no_bytes() {
    let hub = with_wide_retention().build().unwrap();
    let gate = Arc::<Gate>::default();
    let mut sender = http2_over(Gated { inner: pipe(&hub), gate: Arc::clone(&gate) }, 8 << 20).await;
    let body = open(&mut sender, "a&topic=b").await;
    until(|| hub.stats().connections == 1).await;
    gate.set_shut(true);
    let ahead = bytes_ahead(&hub).await;
    assert!(ahead <= 128 * 1024 + PIPE, "{ahead} bytes");
    gate.set_shut(false);
    read_bytes(body, 100 * EVENT).await;
}

/// The client keeps reading from its socket, and does not reopen the window of a stream.
#[tokio::test]
async fn a_body_is_at_most_128_kib_ahead_of_a_closed_http2_window() {
    for window in [16_384, 65_535, 262_144] {
        let hub = with_wide_retention().build().unwrap();
        let mut sender = http2_over(pipe(&hub), window).await;
        // The client does not poll this body, so the window of the stream stays closed.
        let body = open(&mut sender, "a&topic=b").await;
        until(|| hub.stats().connections == 1).await;
        let held = bytes_ahead(&hub).await.saturating_sub(window as usize);
        assert!(held <= 128 * 1024 + PIPE, "{held} bytes behind a window of {window}");
        read_bytes(body, 100 * EVENT).await;
    }
}

/// Like the test before, with the window of the connection, which its streams share.
#[tokio::test]
async fn bodies_are_at_most_128_kib_each_ahead_of_a_closed_window_of_their_connection() {
    const STREAMS: usize = 4;
    const WINDOW: u32 = 65_535;
    let hub = with_wide_retention().build().unwrap();
    let mut sender = http2_with_windows(pipe(&hub), 8 << 20, WINDOW).await;
    let mut bodies = Vec::new();
    for _ in 0..STREAMS {
        bodies.push(open(&mut sender, "a&topic=b").await);
    }
    until(|| hub.stats().connections == STREAMS).await;
    let held = bytes_ahead(&hub).await.saturating_sub(WINDOW as usize);
    assert!(held <= STREAMS * (128 * 1024 + PIPE), "{held} bytes");
    let each = hub.connections().iter().map(|connection| connection.delivered).max().unwrap();
    let most = usize::try_from(each).unwrap() * EVENT;
    assert!(most <= 128 * 1024 + PIPE + WINDOW as usize, "{most} bytes for one stream");
    futures::future::join_all(bodies.into_iter().map(|body| read_bytes(body, 100 * EVENT))).await;
}

/// Chunks of separate topics make the server flush in between. They arrive complete and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_two_topics_at_full_speed_receives_everything_in_order() {
    const EVENTS: usize = 2_000;
    let hub = with_wide_retention().build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    let mut events = kit::subscribe(server.addr, "/events?topic=a&topic=b").await;
    let publisher = {
        let hub = hub.clone();
        tokio::spawn(async move {
            for n in 0..EVENTS {
                let data = format!("{n} {}", "x".repeat(n * 7 % 40_000));
                hub.topic(if n % 2 == 0 { "a" } else { "b" }).publish(Event::unnamed(data)).await.unwrap();
            }
        })
    };
    for n in 0..EVENTS {
        assert!(events.next_own().await.data.starts_with(&format!("{n} ")));
    }
    soon(publisher).await.unwrap();
}

/// Reads the start message of a bridge to another protocol, and opens its stream, in the task that
/// polls the socket.
async fn start_bridge(hub: &Hub, io: &mut tower_sse::SseIo<DuplexStream>) -> tower_sse::EventBody {
    let mut start = [0; 5];
    io.read_exact(&mut start).await.unwrap();
    let request = Request::get("http://test/events?topic=t").body(()).unwrap();
    let mut endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    tower::Service::call(&mut endpoint, request).await.unwrap().into_body()
}

/// Serves a client that does not read. The closure `read` has to read all events within the limit.
async fn bridge(
    hub: &Hub,
    limit: Duration,
    read: impl AsyncFnOnce(tower_sse::SseIo<DuplexStream>, tower_sse::EventBody),
) {
    let (near, mut far) = tokio::io::duplex(PIPE);
    let served = async {
        let mut io = hub.io(near);
        let body = start_bridge(hub, &mut io).await;
        read(io, body).await;
    };
    let client = async {
        far.write_all(b"start").await.unwrap();
        until(|| hub.stats().connections == 1).await;
        publish(hub, "t", 50, EVENT).await;
    };
    let both = async { tokio::join!(served, client) };
    tokio::time::timeout(limit, both).await.expect("the body was held back");
}

/// The task that polls the socket reads the body, and does not write the events to this socket.
#[tokio::test]
async fn a_body_whose_reader_does_not_write_to_the_socket_is_not_held_back() {
    let hub = with_wide_retention().build().unwrap();
    // Housekeeping runs every 5 s, so a body that waits for it once exceeds the limit.
    bridge(&hub, Duration::from_secs(4), async |_io, body| read_bytes(body, 50 * EVENT).await).await;
}

/// Another task reads the body, and does not write the events to this socket.
#[tokio::test]
async fn a_body_in_another_task_that_does_not_write_to_the_socket_waits_once_at_most() {
    let hub = with_wide_retention().write_deadline(Duration::from_secs(4)).build().unwrap();
    // Housekeeping runs every second here, so a body that waits for it several times exceeds the
    // limit.
    bridge(&hub, Duration::from_secs(8), async |mut io, body| {
        let reader = tokio::spawn(read_bytes(body, 50 * EVENT));
        let mut space = [0; 16];
        tokio::select! {
            _ = io.read(&mut space) => panic!("the client sends nothing"),
            read = reader => read.unwrap(),
        }
    })
    .await;
}

/// Serves a client that does not read. A forwarder sends the frames through a channel to the task
/// that writes them.
async fn forward_to_a_client_that_does_not_read(hub: &Hub) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, mut far) = tokio::io::duplex(PIPE);
    let (to_test, from_server) = tokio::sync::oneshot::channel();
    tokio::spawn({
        let hub = hub.clone();
        async move {
            let mut io = hub.io(near);
            let mut body = start_bridge(&hub, &mut io).await;
            let (frames, mut received) = tokio::sync::mpsc::channel::<Bytes>(1);
            let forwarder = tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    if frames.send(frame.into_data().unwrap()).await.is_err() {
                        break;
                    }
                }
            });
            to_test.send(forwarder).unwrap();
            while let Some(frame) = received.recv().await {
                if io.write_all(&frame).await.is_err() {
                    break;
                }
            }
        }
    });
    far.write_all(b"start").await.unwrap();
    let forwarder = from_server.await.unwrap();
    publish(hub, "t", 50, EVENT).await;
    (far, forwarder)
}

#[tokio::test]
async fn a_body_in_another_task_ends_when_the_write_deadline_cuts_its_socket() {
    let hub = with_wide_retention().write_deadline(Duration::from_millis(500)).build().unwrap();
    let (_far, forwarder) = forward_to_a_client_that_does_not_read(&hub).await;
    soon(forwarder).await.unwrap();
    until(|| hub.stats().connections == 0).await;
}

#[tokio::test]
async fn a_body_in_another_task_ends_when_a_drain_cuts_its_socket() {
    let hub = with_wide_retention()
        .write_deadline(Duration::from_secs(600))
        .drain_limit(Duration::from_millis(500))
        .build()
        .unwrap();
    let (_far, forwarder) = forward_to_a_client_that_does_not_read(&hub).await;
    soon(hub.drain(Duration::ZERO)).await;
    soon(forwarder).await.unwrap();
}

/// A body that passes every tenth byte, like a compression layer.
struct Shrunk {
    inner: tower_sse::EventBody,
    seen: usize,
}

impl http_body::Body for Shrunk {
    type Data = Bytes;
    type Error = tower::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tower::BoxError>>> {
        let polled = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(polled.map(|frame| {
            let bytes = frame?.into_data().unwrap();
            let first = self.seen.next_multiple_of(10) - self.seen;
            self.seen += bytes.len();
            Ok(http_body::Frame::data(bytes.iter().skip(first).step_by(10).copied().collect()))
        }))
    }
}

async fn shrunk_mebibyte_over_http2() -> Duration {
    const EVENTS: usize = 105;
    let hub = with_wide_retention().build().unwrap();
    let (near, far) = tokio::io::duplex(1 << 20);
    let io = TokioIo::new(hub.io(near));
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    let service = hyper::service::service_fn(move |request| {
        let mut endpoint = endpoint.clone();
        let answer = tower::Service::call(&mut endpoint, request);
        async move { answer.await.map(|response| response.map(|inner| Shrunk { inner, seen: 0 })) }
    });
    tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
    let mut sender = http2_over(far, 8 << 20).await;
    let body = open(&mut sender, "t").await;
    until(|| hub.stats().connections == 1).await;
    let since = Instant::now();
    publish(&hub, "t", EVENTS, EVENT).await;
    read_bytes(body, EVENTS * EVENT / 10).await;
    since.elapsed()
}

#[tokio::test]
async fn a_body_that_a_layer_shrinks_over_http2_is_not_held_back() {
    let took = shrunk_mebibyte_over_http2().await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_a_layer_shrinks_over_http2_is_not_held_back_on_two_threads() {
    let took = shrunk_mebibyte_over_http2().await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

// -------------------------------------------------------------------------------------------------
// Disconnects of clients

#[derive(Clone, Copy, Debug)]
enum Ending {
    Closes,
    ShutsDown,
    Resets,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_disconnects_with_an_unfinished_request_body_is_removed() {
    // The guarantee is 100 ms. A busy machine may take longer.
    let limit = Duration::from_secs(1);
    let hub = Hub::builder().build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    let bodies = [
        "content-length: 100\r\n\r\n",
        "content-length: 100\r\n\r\n0123456789",
        "content-length: 1000000\r\n\r\n0123456789",
        "transfer-encoding: chunked\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n64\r\n0123456789",
        "content-length: 100\r\nexpect: 100-continue\r\n\r\n",
    ];
    for rest in bodies {
        // Bytes that the client sends later, and the way in which it disconnects.
        for (later, ending) in [
            ("", Ending::Closes),
            ("", Ending::ShutsDown),
            ("", Ending::Resets),
            ("0123456789", Ending::Closes),
            ("0123456789", Ending::ShutsDown),
        ] {
            let mut tcp = TcpStream::connect(server.addr).await.unwrap();
            let head = format!("GET /events?topic=t HTTP/1.1\r\nhost: test\r\n{rest}");
            soon(tcp.write_all(head.as_bytes())).await.unwrap();
            until(|| hub.stats().connections == 1).await;
            let mut space = [0; 256];
            assert!(soon(tcp.read(&mut space)).await.unwrap() > 0);
            if !later.is_empty() {
                soon(tcp.write_all(later.as_bytes())).await.unwrap();
            }
            let since = Instant::now();
            // Keeps a half-closed socket until the hub has removed the connection.
            let _half = match ending {
                Ending::Closes => {
                    drop(tcp);
                    None
                }
                Ending::ShutsDown => {
                    soon(tcp.shutdown()).await.unwrap();
                    Some(tcp)
                }
                Ending::Resets => {
                    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(tcp);
                    None
                }
            };
            while hub.stats().connections > 0 {
                assert!(since.elapsed() < limit, "{ending:?} after {rest:?} and {later:?}: {:?}", since.elapsed());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------
// The socket of a stream

/// A download of 5 MiB.
fn download() -> Response<Body> {
    let pieces = futures::stream::unfold(0, async |n| {
        (n < 80).then_some((Ok::<_, Infallible>(Bytes::from(vec![b'x'; 64 * 1024])), n + 1))
    });
    Response::new(Body::from_stream(pieces))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_peer_address_does_not_cut_the_socket_of_another() {
    let hub = with_wide_retention().drain_limit(Duration::from_secs(1)).build().unwrap();
    // Like applications behind a proxy: the address in a header replaces the address of the socket.
    let forwarded = |mut request: Request<Body>| {
        if let Some(address) = request.headers().get("x-forwarded-for") {
            let address: SocketAddr = address.to_str().unwrap().parse().unwrap();
            request.extensions_mut().insert(ConnectInfo(address));
        }
        request
    };
    let app = app(&hub)
        .route("/download", axum::routing::get(async || download()))
        .layer(tower::util::MapRequestLayer::new(forwarded));
    let server = Server::start(&hub, app).await;

    let mut victim = connect_with_small_buffer(server.addr).await;
    let address = victim.local_addr().unwrap();
    soon(victim.write_all(b"GET /download HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await.unwrap();
    let reader = tokio::spawn(async move {
        let (mut all, mut space) = (0, vec![0; 64 * 1024]);
        loop {
            match soon(victim.read(&mut space)).await {
                Ok(0) => return Ok(all),
                Ok(count) => all += count,
                Err(error) => return Err((all, error)),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut sender = http2(server.addr, 65_535).await;
    let request = Request::get("http://test/events?topic=big").header("x-forwarded-for", address.to_string());
    let _stalled = soon(sender.send_request(request.body(Full::default()).unwrap())).await.unwrap();
    publish(&hub, "big", 20, 100_000).await;
    assert_eq!(soon(hub.drain(Duration::ZERO)).await.cut, 1);
    let all = soon(reader).await.unwrap().expect("the download was cut");
    assert!(all > 80 * 64 * 1024, "{all} bytes");
}

// -------------------------------------------------------------------------------------------------
// Drain

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_is_refused_during_a_drain_when_every_stream_has_ended_or_stalled() {
    let hub = with_wide_retention().drain_limit(Duration::from_secs(4)).build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    let mut stalled = connect_with_small_buffer(server.addr).await;
    request_stream(&mut stalled, "t").await;
    let mut read = kit::subscribe(server.addr, "/events?topic=small").await;
    publish(&hub, "t", 60, 200_000).await;
    hub.topic("small").publish(Event::unnamed("before")).await.unwrap();
    let since = Instant::now();
    let draining = tokio::spawn({
        let hub = hub.clone();
        async move { hub.drain(Duration::ZERO).await }
    });
    assert_eq!(read.next_own().await.data, "before");
    let rest = read.rest().await;
    assert_eq!(rest.last().unwrap().event, "hub.bye");
    let late = hub.topic("t").publish(Event::unnamed("for no reader")).await.unwrap_err();
    assert!(late.is_closed() && since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(soon(draining).await.unwrap().cut, 1);
}
