//! A socket that is not left to a peer who does not read: the hub's part below the server.
//!
//! Four things that a body cannot do, since a server does not poll it while its own buffers are full, and does not read
//! while it writes:
//!
//! 1. a deadline for bytes that wait and are not taken;
//! 2. a cut that the hub can pull;
//! 3. noticing that the client has left although it sent something after its request, which no server reads now;
//! 4. no delay for small writes, and an end of peers that vanished.
//!
//! Where that is asked for, the hub takes the socket over together with its stream:
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

/// How much is read ahead of the server at most. A client that sends more is noticed to leave at the next write only.
const MAX_STRAY_BYTES: usize = 16 * 1024;

/// How much may wait in the kernel unsent.
#[cfg(any(target_os = "android", target_os = "linux"))]
const UNSENT_BYTES: u32 = 128 * 1024;

pin_project! {
    /// A byte stream below a server that the hub watches: [`Hub::io`].
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
        // Runs while bytes wait that the peer does not take.
        deadline: Option<Box<Deadline>>,
        watch: Watch,
    }
}

/// The identity of the socket of a request, by which the hub knows the socket of a stream.
///
/// With HTTP/2 below a router, a server calls the endpoint in another task than the one that polls
/// the socket. Then the hub does not know the socket, and cannot cut a client that takes no bytes.
/// This type in the extensions of a request identifies the socket. For `axum::serve`,
/// `SseMakeService` adds it to every request. It also has the address of the
/// [peer](crate::StreamRequest::peer_addr), which no header can change.
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
    /// Returns the address of the peer, for a `TcpStream`. Behind a proxy it is the address of the
    /// proxy.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.transport.peer()
    }
}

opaque_debug!(|info: SseConnectInfo| { peer: info.peer_addr() });

impl<S> SseIo<S> {
    /// Returns the identity of this socket, for the extensions of the requests that it carries.
    /// [`SseConnectInfo`] has an example.
    #[must_use]
    pub fn connect_info(&self) -> SseConnectInfo {
        SseConnectInfo { transport: Arc::clone(&self.entry.transport) }
    }
}

/// The place in the hub's table; given back when dropped.
struct Entry {
    hub: Hub,
    transport: Arc<Transport>,
    task: Option<task::Id>,
    /// That a cut will wake.
    waker: Option<Waker>,
}

struct Deadline {
    /// It waits for a write, not for a flush.
    writes: bool,
    sleep: Pin<Box<Sleep>>,
}

/// What is read ahead of the server, to see the end behind it.
#[derive(Default)]
struct Watch {
    stray: VecDeque<u8>,
    ended: bool,
    /// The server itself waits for something to read, and will look when it is woken.
    server_reads: bool,
    /// The server has tried to read since the last flush. A server that has stopped reading, for example because it
    /// lets the rest of a request's body be, still flushes whenever it is woken.
    asked: bool,
    /// The first bytes were read.
    begun: bool,
}

impl Hub {
    /// Wraps a connection for a server of the application, such as hyper's. For `axum::serve` use
    /// `Hub::listener`.
    ///
    /// A connection that takes no bytes for
    /// [`HubBuilder::write_deadline`](crate::HubBuilder::write_deadline) while bytes wait ends with
    /// an error. This holds for any response, so also for a download that its reader has paused.
    /// [`Hub::drain`] can cut the connection. A `TcpStream` also gets `TCP_NODELAY` and, on Linux,
    /// `TCP_USER_TIMEOUT`. With TLS, wrap the TCP stream and pass the result to the TLS acceptor.
    /// The connection must be polled in a tokio runtime with time enabled.
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
            tune(tcp, self.settings().write_deadline);
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

/// An option that cannot be set is one that the socket's family does not have.
fn tune(tcp: &TcpStream, timeout: Duration) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    #[cfg(any(target_os = "android", target_os = "linux"))]
    {
        let socket = socket2::SockRef::from(tcp);
        if let Err(error) = socket.set_tcp_user_timeout(Some(timeout)) {
            tracing::debug!(%error, "TCP_USER_TIMEOUT");
        }
        // Else the kernel takes megabytes, and says that there is room again only when a third of them is gone: a slow
        // reader would look like one that reads nothing.
        if let Err(error) = socket.set_tcp_notsent_lowat(UNSENT_BYTES) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT");
        }
    }
    #[cfg(not(any(target_os = "android", target_os = "linux")))]
    let _ = timeout;
}

impl Entry {
    /// At the start of every poll: which task it is, and whether the hub has cut it.
    fn enter(&mut self, cx: &Context<'_>) -> io::Result<()> {
        // A server polls it several times for each event; all but the first find their waker here.
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
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the event hub"));
        }
        Ok(())
    }

    /// The kernel, too, gives up a peer that takes nothing of what is with it already.
    fn lost(&self, error: &io::Error) {
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
    /// Around every operation that hands bytes to the peer.
    fn poll_out<T>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        writes: bool,
        operation: impl FnOnce(Pin<&mut Socket<S>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut this = self.project();
        // Also when the socket is gone: a server that waits for something else, a request's body, can be cut.
        this.entry.enter(cx)?;
        if this.inner.is_gone() {
            return operation(this.inner, cx);
        }
        if this.entry.transport.is_streaming() {
            let asked = if writes { this.watch.asked } else { std::mem::take(&mut this.watch.asked) };
            this.watch.look(this.inner.as_mut(), cx, asked).inspect_err(|error| this.entry.lost(error))?;
        }
        let transport = &this.entry.transport;
        match operation(this.inner, cx) {
            Poll::Ready(outcome) => {
                let outcome = outcome.inspect_err(|error| this.entry.lost(error));
                // A flush that has nothing to do says nothing of what a write waits for.
                if this.deadline.take_if(|deadline| writes || !deadline.writes).is_some() && transport.set_stuck(false)
                {
                    this.entry.hub.transports().progressed();
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let patience = transport.patience(this.entry.hub.settings());
                transport.set_stuck(true);
                let deadline = this.deadline.get_or_insert_with(|| {
                    Box::new(Deadline { writes, sleep: Box::pin(tokio::time::sleep(patience)) })
                });
                ready!(deadline.sleep.as_mut().poll(cx));
                transport.time_out();
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
            }
        }
    }

    fn poll_bytes_out(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        operation: impl FnOnce(Pin<&mut Socket<S>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let this = self.as_mut().project();
        this.inner.look(slices, &this.entry.transport);
        let count = ready!(self.as_mut().poll_out(cx, true, operation))?;
        let this = self.project();
        if !this.inner.is_gone() {
            this.entry.transport.wrote(count);
        }
        this.inner.wrote(count);
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncRead + AsyncWrite + 'static> SseIo<S> {
    /// Lets the hub take the socket over from the server for as long as a stream lasts.
    ///
    /// A server keeps its buffers and a task for as long as a response lasts. With takeover, the
    /// server writes the head and the first event of a stream and then sees the response end. The
    /// hub writes the rest: the same frames with the same deadlines, from one task for thousands of
    /// sockets.
    ///
    /// Takeover works for HTTP/1.1 on a `TcpStream`, on Unix. The hub recognizes by the bytes a
    /// stream that is written otherwise (TLS above, HTTP/2, HTTP/1.0) or that another layer has
    /// changed. Such a stream stays with the server, and so does every other response. The head of
    /// a stream says `Connection: close`, and a request that is pipelined behind it is not
    /// answered.
    ///
    /// To other layers and to the server's graceful shutdown the response is over then. So use the
    /// limits and counts of the hub, and await [`Hub::drain`] before the process ends. A stream
    /// continues if the task of the server is aborted. It ends with the drain, or with the runtime
    /// that served it.
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
    /// Reads ahead while the server does not, until there is nothing, enough, or the end.
    fn look<S: AsyncRead>(&mut self, mut inner: Pin<&mut S>, cx: &mut Context<'_>, asked: bool) -> io::Result<()> {
        if self.server_reads && asked {
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
                // It may wait for just these bytes.
                cx.waker().wake_by_ref();
                break;
            }
        }
        if self.ended {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the client has left"));
        }
        Ok(())
    }

    /// What was read ahead, or the end, if that is what comes next.
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

/// Whether a connection that begins with these bytes speaks HTTP/1: a method, which is not the preface of HTTP/2.
fn is_http1(bytes: &[u8]) -> bool {
    bytes.len() >= 4 && bytes[..3].iter().all(u8::is_ascii_uppercase) && !bytes.starts_with(b"PRI ")
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for SseIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        this.entry.enter(cx)?;
        if this.inner.is_gone() {
            return this.inner.poll_read(cx, buffer);
        }
        this.watch.asked = true;
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
            this.entry.lost(&error);
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
        if this.inner.let_go(&this.entry.transport) {
            (*this.deadline, *this.watch) = (None, Watch { begun: true, ..Watch::default() });
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx, false, AsyncWrite::poll_shutdown)
    }
}

opaque_debug!(<S> |io: SseIo| { peer: io.entry.transport.peer() });
