//! One stream whose socket the hub has taken over. This module replaces the server for the stream,
//! without the server's buffers.
//!
//! The stream discards input from the client, detects the client's disconnect, writes frames as
//! HTTP/1.1 chunks, closes the socket of a peer that accepts no bytes, and ends the response
//! properly.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use mio::net::TcpStream;
use tokio::time::{Duration, Instant, Sleep};

use crate::hub::{Encoded, Hub, StreamDriver, Transport};
use crate::wire::LAST_CHUNK;

/// The maximum number of steps of one poll, so that one stream cannot starve the others.
const STEPS: usize = 16;
/// The number of reads after which a poll stops reading for [`READ_PAUSE`]. Each read takes at most
/// 4 KiB, so the hub discards at most about 26 MB/s from one client. TCP flow control limits a
/// client that sends more.
const READS: usize = 64;
const READ_PAUSE: Duration = Duration::from_millis(10);
/// The maximum time that a stream waits for the client to close the connection after the last
/// frame. If the hub closed the socket while the client still sends, the last frame could be lost.
const LINGER: Duration = Duration::from_secs(1);
/// The capacity to which a larger scratch buffer shrinks before its next use.
const MAX_SCRATCH: usize = 256 * 1024;

thread_local! {
    /// The buffer in which several records become one write. The hub copies the bytes that the
    /// socket does not accept at once.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream whose socket the hub has taken over.
pub(crate) struct TakenOver {
    tcp: TcpStream,
    /// Whether the socket may be readable. False after a `WouldBlock`, until the selector reports
    /// the socket as readable.
    readable: bool,
    /// Whether the socket may be writable. False after a `WouldBlock`, until the selector reports
    /// the socket as writable.
    writable: bool,
    /// The end of the pause in reading, after a client has sent many bytes.
    pause: Option<Pin<Box<Sleep>>>,
    phase: Phase,
    /// The bytes that the socket has not accepted yet, if any.
    waiting: Option<Box<Waiting>>,
}

/// The phase of a stream.
enum Phase {
    Streaming(StreamDriver),
    /// The last bytes are being written.
    Closing(Hub),
    /// The last bytes are written, and the write side of the socket is shut down.
    Lingering(Pin<Box<Sleep>>),
}

/// Bytes that the socket has not accepted yet.
struct Waiting {
    rest: Bytes,
    hub: Hub,
    /// An entry in the hub's table of sockets, so that a drain can wait for this socket or cut it.
    transport: Arc<Transport>,
    deadline: Pin<Box<Sleep>>,
}

/// The result of polling a stream.
pub(crate) enum Turn {
    /// The stream waits for its waker.
    Sleeps,
    /// The stream has more to do, after other streams were polled.
    Again,
    /// The socket can be closed.
    Over,
}

/// The error after which the socket is closed, for example because the peer has disconnected or
/// accepts no bytes.
struct Gone;

impl TakenOver {
    pub(crate) fn new(tcp: TcpStream, connection: StreamDriver) -> Self {
        connection.hub().transports().begin_writing();
        Self { tcp, readable: true, writable: true, pause: None, phase: Phase::Streaming(connection), waiting: None }
    }

    /// Records readiness that the selector reports.
    pub(crate) fn set_ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Discards input, then writes until there is nothing to do or the limit of steps is reached.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Turn {
        if let Err(Gone) = self.discard_input(cx) {
            return Turn::Over;
        }
        for _ in 0..STEPS {
            match self.poll_step(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Gone)) => return Turn::Over,
                Poll::Pending => return Turn::Sleeps,
            }
        }
        Turn::Again
    }

    /// Performs one step. Returns `Pending` if there is nothing to do.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.waiting.is_some() {
            ready!(self.poll_waiting(cx))?;
        }
        match &mut self.phase {
            Phase::Streaming(connection) => {
                let mut scratch = SCRATCH.take();
                scratch.clear();
                scratch.shrink_to(MAX_SCRATCH);
                let written = connection.poll_chunk(cx, &mut scratch).map(|encoded| match encoded {
                    Some(Encoded::Shared(chunk)) => self.write_or_wait(&chunk, |count| chunk.slice(count..)),
                    Some(Encoded::Scratch) => {
                        self.write_or_wait(&scratch, |count| Bytes::copy_from_slice(&scratch[count..]))
                    }
                    Some(Encoded::Last) => {
                        self.close();
                        self.write_or_wait(&scratch, |count| Bytes::copy_from_slice(&scratch[count..]))
                    }
                    Some(Encoded::Abort) => {
                        self.close();
                        Ok(())
                    }
                    None => {
                        self.close();
                        self.write_or_wait(LAST_CHUNK, |count| Bytes::from_static(&LAST_CHUNK[count..]))
                    }
                });
                SCRATCH.set(scratch);
                written
            }
            Phase::Closing(_) => {
                self.tcp.shutdown(Shutdown::Write).map_err(|_| Gone)?;
                self.end_writing();
                self.phase = Phase::Lingering(Box::pin(tokio::time::sleep(LINGER)));
                Poll::Ready(Ok(()))
            }
            Phase::Lingering(linger) => linger.as_mut().poll(cx).map(|()| Err(Gone)),
        }
    }

    /// Returns the hub, or `None` after the last byte was written.
    fn hub(&self) -> Option<&Hub> {
        match &self.phase {
            Phase::Streaming(connection) => Some(connection.hub()),
            Phase::Closing(hub) => Some(hub),
            Phase::Lingering(_) => None,
        }
    }

    /// Removes this stream from the hub's count of streams that still write.
    fn end_writing(&self) {
        if let Some(hub) = self.hub() {
            hub.transports().end_writing();
        }
    }

    /// Makes the stream end after the bytes that it still has to write.
    fn close(&mut self) {
        if let Some(hub) = self.hub().cloned() {
            self.phase = Phase::Closing(hub);
        }
    }

    /// Discards input that the client sends after its request, including pipelined requests. The
    /// end of the input ends the stream.
    fn discard_input(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.pause = None;
        }
        if !self.readable {
            return Ok(());
        }
        let mut space = [0; 4096];
        for _ in 0..READS {
            match (&self.tcp).read(&mut space) {
                Ok(0) => return Err(Gone),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.record_timeout(&error)),
            }
        }
        let mut pause = Box::pin(tokio::time::sleep(READ_PAUSE));
        if pause.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.pause = Some(pause);
        Ok(())
    }

    /// Reports a stall of the stream if the error is a timeout of the kernel, for a peer that
    /// acknowledges no bytes.
    fn record_timeout(&self, error: &io::Error) -> Gone {
        if error.kind() == io::ErrorKind::TimedOut
            && let Phase::Streaming(connection) = &self.phase
        {
            connection.stalled();
        }
        Gone
    }

    /// Writes bytes, and returns the number of bytes that the socket has accepted.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Gone> {
        let mut written = 0;
        while self.writable && written < bytes.len() {
            match (&self.tcp).write(&bytes[written..]) {
                Ok(0) => return Err(Gone),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.record_timeout(&error)),
            }
        }
        Ok(written)
    }

    /// Writes bytes. `rest(n)` returns the bytes after the first `n`, which wait for the socket.
    fn write_or_wait(&mut self, bytes: &[u8], rest: impl FnOnce(usize) -> Bytes) -> Result<(), Gone> {
        let written = self.write(bytes)?;
        if written < bytes.len() {
            self.wait(rest(written));
        }
        Ok(())
    }

    /// Keeps bytes until the socket accepts them, with the write deadline.
    fn wait(&mut self, rest: Bytes) {
        let Some(hub) = self.hub().cloned() else { return };
        let transport = hub.transports().open(self.tcp.peer_addr().ok());
        transport.set_streamed();
        transport.set_blocked(true);
        if let Phase::Streaming(connection) = &self.phase {
            connection.set_own_writer(Some(Arc::clone(&transport)));
        }
        let deadline = Box::pin(tokio::time::sleep(transport.patience(hub.settings())));
        self.waiting = Some(Box::new(Waiting { rest, hub, transport, deadline }));
    }

    /// Writes the waiting bytes. Returns an error if the peer has disconnected, the deadline has
    /// passed or the hub has cut the socket.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let Some(mut waiting) = self.waiting.take() else { return Poll::Ready(Ok(())) };
        let expired = loop {
            let is_due = waiting.deadline.as_mut().poll(cx).is_ready();
            // At the deadline, try to write once more, even if the selector has not reported the
            // socket as writable. The report may be late, because the selector reports few sockets
            // at a time, and reports a socket only when a third of its buffer is free.
            self.writable |= is_due;
            let written = self.write(&waiting.rest)?;
            if written == waiting.rest.len() {
                if let Phase::Streaming(connection) = &self.phase {
                    connection.set_own_writer(None);
                }
                return Poll::Ready(Ok(()));
            }
            if written == 0 {
                break waiting.poll_expired(cx, is_due);
            }
            waiting.rest = waiting.rest.slice(written..);
            // Resets the deadline. The next iteration polls it.
            waiting.wrote(written);
        };
        self.waiting = Some(waiting);
        expired.map(|()| Err(Gone))
    }
}

impl Drop for TakenOver {
    fn drop(&mut self) {
        self.end_writing();
    }
}

impl Waiting {
    /// Counts written bytes and resets the deadline.
    fn wrote(&mut self, count: usize) {
        self.transport.wrote(count);
        let patience = self.transport.patience(self.hub.settings());
        self.deadline.as_mut().reset(Instant::now() + patience);
    }

    /// Completes if the hub has cut the socket, or if `is_due` is true: the deadline has passed.
    fn poll_expired(&self, cx: &Context<'_>, is_due: bool) -> Poll<()> {
        self.transport.listen(cx.waker());
        if self.transport.is_cut() {
            return Poll::Ready(());
        }
        if !is_due {
            return Poll::Pending;
        }
        self.transport.time_out();
        Poll::Ready(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.hub.transports().close(&self.transport, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Request;
    use crate::types::{Cursor, DisconnectClock};
    use crate::{Event, Retention, Subscription};
    use std::task::Waker;

    /// Reads until no bytes arrive, so that the other end becomes writable.
    fn read_all(peer: &mut std::net::TcpStream) {
        let mut space = vec![0; 1 << 16];
        while peer.read(&mut space).is_ok() {}
    }

    #[tokio::test(start_paused = true)]
    async fn stream_stays_open_when_the_socket_is_writable_at_the_deadline() {
        let deadline = Duration::from_secs(30);
        let retention = Retention::replay().count(100).bytes(32 << 20);
        let hub = Hub::builder().write_deadline(deadline).topic_retention(retention).build().unwrap();
        let request =
            Request { to_network: true, asked_at: DisconnectClock::now(), authority: None, from_event_source: false };
        let connection = hub.open(&Subscription::anonymous().topic("t"), Cursor::Absent, request).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let mut taken = TakenOver::new(TcpStream::from_std(tcp), connection);
        for _ in 0..80 {
            hub.topic("t").publish(Event::unnamed("x".repeat(250_000))).await.unwrap();
        }
        let mut is_open = || loop {
            match taken.poll(&mut Context::from_waker(Waker::noop())) {
                Turn::Again => {}
                Turn::Sleeps => return true,
                Turn::Over => return false,
            }
        };
        assert!(is_open());
        read_all(&mut peer);
        tokio::time::advance(deadline + Duration::from_secs(1)).await;
        assert!(is_open(), "the peer has read all bytes");
        // The socket buffer is full again.
        tokio::time::advance(deadline + Duration::from_secs(1)).await;
        assert!(!is_open(), "the peer has read no bytes");
    }
}
