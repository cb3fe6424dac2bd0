//! The wrapper of a connection between the server and its socket.
//!
//! The wrapper has four tasks that a body cannot do, because a server does not poll the body while
//! its own buffers are full, and does not read while it writes:
//!
//! 1. the write deadline for bytes that the client does not accept;
//! 2. cutting the connection for the hub;
//! 3. detecting the disconnect of a client that has sent bytes after its request, which a server
//!    does not read while it streams a response;
//! 4. sending small writes without delay, and closing the sockets of peers that vanished.
//!
//! With takeover, the hub takes the socket over together with its stream:
//! [`socket`](crate::net::takeover::socket).

use std::any::Any;
use std::collections::vec_deque::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task;
use tokio::time::{Duration, Sleep};

use crate::hub::{Hub, Transport};
use crate::macros::opaque_debug;
use crate::net::takeover::socket::Socket;

/// The number of bytes after which the hub stops reading ahead of the server. If a client sends
/// more, the hub detects the client's disconnect only at a later write.
const MAX_STRAY_BYTES: usize = 16 * 1024;

/// The number of unsent bytes in the kernel from which the kernel reports a socket as not writable.
#[cfg(any(target_os = "android", target_os = "linux"))]
const UNSENT_BYTES: u32 = 128 * 1024;

pin_project! {
    /// A connection that the hub watches below the server. [`Hub::io`] creates it.
    ///
    /// ```no_run
    /// use tokio::net::{TcpListener, TcpStream};
    /// use tower_sse::{Hub, SseIo};
    ///
    /// async fn accept(hub: &Hub, listener: &TcpListener) -> std::io::Result<SseIo<TcpStream>> {
    ///     let (tcp, _) = listener.accept().await?;
    ///     Ok(hub.io(tcp))
    /// }
    /// # let _ = accept;
    /// ```
    pub struct SseIo<S> {
        #[pin]
        inner: Socket<S>,
        entry: Entry,
        // Set while bytes wait that the client does not accept.
        deadline: Option<Box<Deadline>>,
        watch: Watch,
    }
}

/// The identity of the socket of a request, by which the hub finds the socket of a stream.
///
/// With HTTP/2, the task that calls an endpoint behind a router is not the task that polls the
/// socket. Then the hub cannot find the socket by its task, and cannot cut the connection of a
/// client that accepts no bytes. A value of this type in the extensions of a request identifies the
/// socket. For `axum::serve`, `SseMakeService` adds the value to every request. The value also has
/// the address of the [peer](crate::StreamRequest::peer_addr), which no header can change.
///
/// ```no_run
/// # async fn serve(_: impl tokio::io::AsyncRead + tokio::io::AsyncWrite, _: impl Fn(&mut http::Request<()>)) {}
/// # async fn example(hub: tower_sse::Hub, tcp: tokio::net::TcpStream) {
/// let io = hub.io(tcp);
/// let info = io.connect_info();
/// serve(io, move |request| {
///     request.extensions_mut().insert(info.clone());
/// })
/// .await;
/// # }
/// ```
#[derive(Clone)]
pub struct SseConnectInfo {
    pub(crate) transport: Arc<Transport>,
}

impl SseConnectInfo {
    /// Returns the address of the peer, or `None` if the address is unknown, for example because
    /// the connection is not a `TcpStream`. Behind a proxy, the peer is the proxy.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.transport.peer()
    }
}

opaque_debug!(|info: SseConnectInfo| { peer: info.peer_addr() });

impl<S> SseIo<S> {
    /// Returns the identity of this socket, to be added to the extensions of its requests.
    /// [`SseConnectInfo`] has an example.
    #[must_use]
    pub fn connect_info(&self) -> SseConnectInfo {
        SseConnectInfo { transport: Arc::clone(&self.entry.transport) }
    }
}

/// The entry of a socket in the hub's table. Dropping it removes the entry.
struct Entry {
    hub: Hub,
    transport: Arc<Transport>,
    task: Option<task::Id>,
    /// The waker that a cut wakes.
    waker: Option<Waker>,
}

/// The write deadline of waiting bytes.
struct Deadline {
    /// Whether a write waits. False if only a flush or a shutdown waits.
    writes: bool,
    sleep: Pin<Box<Sleep>>,
}

/// The bytes that were read ahead of the server to detect the end of the input behind them.
#[derive(Default)]
struct Watch {
    stray: VecDeque<u8>,
    /// Whether the client has closed its side.
    ended: bool,
    /// Whether the last read of the server is pending. The server reads again when it is woken.
    server_reads: bool,
    /// Whether the server has tried to read since the last flush. A server that has stopped
    /// reading, for example because it ignores the rest of a request body, still flushes whenever
    /// it is woken.
    has_polled_read: bool,
    /// Whether the first read of the connection was complete.
    begun: bool,
}

impl Hub {
    /// Wraps a connection, for a server that the application runs itself, for example with hyper.
    /// For `axum::serve`, use `Hub::listener`.
    ///
    /// If bytes wait and the client accepts none for
    /// [`HubBuilder::write_deadline`](crate::HubBuilder::write_deadline), the connection ends with
    /// an error. During a drain, the limit is
    /// [`HubBuilder::drain_limit`](crate::HubBuilder::drain_limit). Both limits apply to every
    /// response, for example also to a download that the client has paused. [`Hub::drain`] can cut
    /// the connection. A `TcpStream` also gets `TCP_NODELAY` and, on Linux and Android,
    /// `TCP_USER_TIMEOUT` and `TCP_NOTSENT_LOWAT`. With TLS, wrap the TCP stream and pass the
    /// result to the TLS acceptor. The connection must be polled in a tokio runtime with time
    /// enabled.
    ///
    /// ```no_run
    /// # use tower_sse::Hub;
    /// # async fn serve(_: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {}
    /// # async fn example(hub: Hub) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// loop {
    ///     let (tcp, _) = listener.accept().await?;
    ///     tokio::spawn(serve(hub.io(tcp)));
    /// }
    /// # }
    /// ```
    pub fn io<S>(&self, stream: S) -> SseIo<S>
    where
        S: AsyncRead + AsyncWrite + 'static,
    {
        let tcp = (&stream as &dyn Any).downcast_ref::<TcpStream>();
        let peer = tcp.and_then(|tcp| tcp.peer_addr().ok());
        if let Some(tcp) = tcp {
            set_options(tcp, self.settings().write_deadline);
        }
        self.log_start();
        let transport = self.transports().open(peer);
        SseIo {
            inner: Socket::new(stream),
            entry: Entry { hub: self.clone(), transport, task: None, waker: None },
            deadline: None,
            watch: Watch::default(),
        }
    }
}

/// Sets the options of a TCP socket. Only logs an error, because some kinds of sockets do not have
/// every option.
fn set_options(tcp: &TcpStream, timeout: Duration) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(name: "sse.socket.option_failed", %error, "TCP_NODELAY could not be set");
    }
    #[cfg(any(target_os = "android", target_os = "linux"))]
    {
        let socket = socket2::SockRef::from(tcp);
        if let Err(error) = socket.set_tcp_user_timeout(Some(timeout)) {
            tracing::debug!(name: "sse.socket.option_failed", %error, "TCP_USER_TIMEOUT could not be set");
        }
        // Otherwise the kernel buffers megabytes, and reports the socket as writable only after the
        // client has accepted a third of them. A slow reader would then look like a client that
        // accepts no bytes.
        if let Err(error) = socket.set_tcp_notsent_lowat(UNSENT_BYTES) {
            tracing::debug!(name: "sse.socket.option_failed", %error, "TCP_NOTSENT_LOWAT could not be set");
        }
    }
    #[cfg(not(any(target_os = "android", target_os = "linux")))]
    let _ = timeout;
}

impl Entry {
    /// Records the task and the waker of the current poll, if they have changed. Returns an error
    /// if the hub has cut the connection.
    fn enter(&mut self, cx: &Context<'_>) -> io::Result<()> {
        // A server polls several times for each event, mostly with the same waker.
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            let task = task::try_id();
            if task != self.task {
                self.hub.transports().moved_to(&self.transport, self.task, task);
                self.task = task;
            }
            self.transport.listen(cx.waker());
            self.waker = Some(cx.waker().clone());
        }
        if self.transport.is_cut() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the hub has cut the connection"));
        }
        Ok(())
    }

    /// Marks the transport as timed out if the error is a timeout of the kernel, for a client that
    /// acknowledges no bytes.
    fn record_timeout(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut {
            self.transport.time_out();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.hub.transports().close(&self.transport, self.task);
    }
}

impl<S: AsyncRead + AsyncWrite> SseIo<S> {
    /// Polls an operation that sends bytes to the client, with the write deadline.
    fn poll_out<T>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        writes: bool,
        operation: impl FnOnce(Pin<&mut Socket<S>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut this = self.project();
        // Needed also after a takeover, because the hub must be able to cut the connection of a
        // server that still waits, for example for a request body.
        this.entry.enter(cx)?;
        if this.inner.is_taken_over() {
            return operation(this.inner, cx);
        }
        if this.entry.transport.is_streaming() {
            let has_polled_read =
                if writes { this.watch.has_polled_read } else { std::mem::take(&mut this.watch.has_polled_read) };
            let ahead = this.watch.read_ahead(this.inner.as_mut(), cx, has_polled_read);
            ahead.inspect_err(|error| this.entry.record_timeout(error))?;
        }
        let transport = &this.entry.transport;
        match operation(this.inner, cx) {
            Poll::Ready(outcome) => {
                let outcome = outcome.inspect_err(|error| this.entry.record_timeout(error));
                // A flush without work does not end the deadline of a waiting write.
                if this.deadline.take_if(|deadline| writes || !deadline.writes).is_some()
                    && transport.set_blocked(false)
                {
                    this.entry.hub.transports().progressed();
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let patience = transport.patience(this.entry.hub.settings());
                transport.set_blocked(true);
                let deadline = this.deadline.get_or_insert_with(|| {
                    Box::new(Deadline { writes, sleep: Box::pin(tokio::time::sleep(patience)) })
                });
                ready!(deadline.sleep.as_mut().poll(cx));
                transport.time_out();
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the write deadline has passed")))
            }
        }
    }

    /// Polls a write, and compares its bytes with an offered stream.
    fn poll_bytes_out(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        operation: impl FnOnce(Pin<&mut Socket<S>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let this = self.as_mut().project();
        this.inner.match_offer(slices, &this.entry.transport);
        let count = ready!(self.as_mut().poll_out(cx, true, operation))?;
        let this = self.project();
        if !this.inner.is_taken_over() {
            this.entry.transport.wrote(count);
        }
        this.inner.wrote(count);
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + AsyncWrite + 'static> SseIo<S> {
    /// Lets the hub take the socket over from the server when it carries a stream.
    ///
    /// A server keeps its buffers and a task for as long as a response lasts. With takeover, the
    /// server writes the head and the first event of a stream, and then the response ends for the
    /// server. The hub writes the rest of the stream, with the same frames and the same deadlines,
    /// and closes the socket at the end. A task of the hub writes to thousands of sockets.
    ///
    /// Takeover works for HTTP/1.1 on a `TcpStream`, on Unix. The hub compares the bytes on the
    /// socket with the stream. If the bytes differ, for example because of TLS, HTTP/2, HTTP/1.0 or
    /// a layer that changes the body, the stream stays with the server. All other responses stay
    /// with the server too. The head of an HTTP/1.1 stream has `Connection: close`, and the server
    /// does not answer a request that the client pipelines behind the request for the stream.
    ///
    /// For other layers and for the server's graceful shutdown, the response ends at the takeover.
    /// So use the limits and counts of the hub, and await [`Hub::drain`] before the process ends.
    /// The stream continues even if the task of the server is aborted. The drain, or the end of the
    /// runtime that served the request, ends the stream.
    ///
    /// ```no_run
    /// # use tower_sse::Hub;
    /// # async fn serve(_: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {}
    /// # async fn example(hub: Hub, tcp: tokio::net::TcpStream) {
    /// tokio::spawn(serve(hub.io(tcp).take_over()));
    /// # }
    /// ```
    #[cfg(feature = "takeover")]
    #[doc(alias = "hand_over")]
    #[must_use]
    pub fn take_over(self) -> Self {
        let inner = self.inner.movable();
        if inner.is_movable() {
            self.entry.transport.set_offers_takeover();
        }
        Self { inner, ..self }
    }
}

impl Watch {
    /// Reads ahead while the server does not read, until no bytes are available, the limit is
    /// reached or the input ends. Returns an error if the input has ended or cannot be read.
    fn read_ahead<S: AsyncRead>(
        &mut self,
        mut inner: Pin<&mut S>,
        cx: &mut Context<'_>,
        has_polled_read: bool,
    ) -> io::Result<()> {
        if self.server_reads && has_polled_read {
            return Ok(());
        }
        while !self.ended && self.stray.len() < MAX_STRAY_BYTES {
            let mut space = [0; 1024];
            let mut buffer = ReadBuf::new(&mut space);
            match inner.as_mut().poll_read(cx, &mut buffer)? {
                Poll::Pending => break,
                Poll::Ready(()) if buffer.filled().is_empty() => self.ended = true,
                Poll::Ready(()) => self.stray.extend(buffer.filled()),
            }
            if std::mem::take(&mut self.server_reads) && !self.ended {
                // The server may wait for these bytes.
                cx.waker().wake_by_ref();
                break;
            }
        }
        if self.ended {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the client has disconnected"));
        }
        Ok(())
    }

    /// Copies bytes that were read ahead into the server's buffer. Returns false if no such bytes
    /// are left and the input has not ended.
    fn replay(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.stray.is_empty() {
            return self.ended;
        }
        let (first, _) = self.stray.as_slices();
        let count = first.len().min(buffer.remaining());
        buffer.put_slice(&first[..count]);
        self.stray.drain(..count);
        if self.stray.is_empty() {
            self.stray = VecDeque::new();
        }
        true
    }
}

/// Returns whether a connection that begins with these bytes uses HTTP/1: the bytes begin with a
/// method, and not with the preface of HTTP/2.
fn is_http1(bytes: &[u8]) -> bool {
    bytes.len() >= 4 && bytes[..3].iter().all(u8::is_ascii_uppercase) && !bytes.starts_with(b"PRI ")
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for SseIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        this.entry.enter(cx)?;
        if this.inner.is_taken_over() {
            return this.inner.poll_read(cx, buffer);
        }
        this.watch.has_polled_read = true;
        if this.watch.replay(buffer) {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = this.inner.poll_read(cx, buffer);
        this.watch.server_reads = polled.is_pending();
        if polled.is_ready() {
            this.entry.transport.has_read();
            if !std::mem::replace(&mut this.watch.begun, true) && is_http1(&buffer.filled()[before..]) {
                this.entry.transport.set_http1();
            }
        }
        polled.map_err(|error| {
            this.entry.record_timeout(&error);
            error
        })
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for SseIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_bytes_out(cx, &[IoSlice::new(bytes)], |inner, cx| inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_bytes_out(cx, slices, |inner, cx| inner.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_out(cx, false, AsyncWrite::poll_flush))?;
        let this = self.project();
        this.entry.transport.flushed();
        if this.inner.try_takeover(&this.entry.transport) {
            (*this.deadline, *this.watch) = (None, Watch { begun: true, ..Watch::default() });
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx, false, AsyncWrite::poll_shutdown)
    }
}

opaque_debug!(<S> |io: SseIo| { peer: io.entry.transport.peer() });
