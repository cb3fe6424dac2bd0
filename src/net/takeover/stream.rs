//! One stream whose socket the hub has taken over: what a server does around a body, without its buffers.
//!
//! It reads away what the client sends and notices that it leaves, writes each frame as an HTTP/1.1
//! chunk, gives up a peer that takes nothing, and ends properly.

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

/// How many steps are written before others get their turn.
const STEPS: usize = 16;
/// How often is read before others get their turn and [`READ_PAUSE`] begins. With 4 KiB each, a client that sends
/// without end has 25 MB/s thrown away, and its own kernel holds it up beyond that.
const READS: usize = 64;
const READ_PAUSE: Duration = Duration::from_millis(10);
/// How long it waits for the client to close, so that what it may still send does not make the kernel throw away the
/// last frame.
const LINGER: Duration = Duration::from_secs(1);
/// More scratch space than this is given back.
const MOST_SCRATCH: usize = 256 * 1024;

thread_local! {
    /// Where several records become one piece. What the peer does not take at once is copied out.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// See the module.
pub(crate) struct TakenOver {
    tcp: TcpStream,
    /// What is known of the socket: nothing more is tried when it has said that it would block, until it
    /// says otherwise.
    readable: bool,
    writable: bool,
    /// Until when nothing is read, after a client has sent much.
    pause: Option<Pin<Box<Sleep>>>,
    phase: Phase,
    /// What the peer has not taken yet, if anything.
    waiting: Option<Box<Waiting>>,
}

enum Phase {
    Streaming(StreamDriver),
    /// The last bytes are being written.
    Closing(Hub),
    /// They are written, and the peer knows that nothing follows.
    Lingering(Pin<Box<Sleep>>),
}

struct Waiting {
    rest: Bytes,
    hub: Hub,
    /// In the hub's table like any socket, so that a drain can wait for it or cut it.
    transport: Arc<Transport>,
    deadline: Pin<Box<Sleep>>,
}

/// What came of looking after it.
pub(crate) enum Turn {
    /// It will be woken.
    Sleeps,
    /// There is more to do, when others have had their turn.
    Again,
    /// The socket can be closed.
    Over,
}

/// The peer is gone, or is given up.
struct Gone;

impl TakenOver {
    pub(crate) fn new(tcp: TcpStream, connection: StreamDriver) -> Self {
        connection.hub().transports().begin_writing();
        Self { tcp, readable: true, writable: true, pause: None, phase: Phase::Streaming(connection), waiting: None }
    }

    /// The socket says so.
    pub(crate) fn note(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Turn {
        if let Err(Gone) = self.read_away(cx) {
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

    /// One thing after the other; pending if there is nothing to do.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.waiting.is_some() {
            ready!(self.poll_waiting(cx))?;
        }
        match &mut self.phase {
            Phase::Streaming(connection) => {
                let mut scratch = SCRATCH.take();
                scratch.clear();
                scratch.shrink_to(MOST_SCRATCH);
                let written = connection.poll_chunk(cx, &mut scratch).map(|encoded| match encoded {
                    Some(Encoded::Shared(chunk)) => self.write_or_wait(&chunk, |taken| chunk.slice(taken..)),
                    Some(Encoded::Scratch) => {
                        self.write_or_wait(&scratch, |taken| Bytes::copy_from_slice(&scratch[taken..]))
                    }
                    Some(Encoded::Abort) => {
                        self.close();
                        Ok(())
                    }
                    None => {
                        self.close();
                        self.write_or_wait(LAST_CHUNK, |taken| Bytes::from_static(&LAST_CHUNK[taken..]))
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

    /// None when nothing more is written.
    fn hub(&self) -> Option<&Hub> {
        match &self.phase {
            Phase::Streaming(connection) => Some(connection.hub()),
            Phase::Closing(hub) => Some(hub),
            Phase::Lingering(_) => None,
        }
    }

    fn end_writing(&self) {
        if let Some(hub) = self.hub() {
            hub.transports().end_writing();
        }
    }

    /// Nothing follows what is being written.
    fn close(&mut self) {
        if let Some(hub) = self.hub().cloned() {
            self.phase = Phase::Closing(hub);
        }
    }

    /// What a client sends after its request is nobody's business, also if it is another request. Its end is the end.
    fn read_away(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
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
                Err(error) => return Err(self.lose(&error)),
            }
        }
        let mut pause = Box::pin(tokio::time::sleep(READ_PAUSE));
        if pause.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.pause = Some(pause);
        Ok(())
    }

    /// The kernel, too, gives up a peer that takes nothing of what is with it already.
    fn lose(&self, error: &io::Error) -> Gone {
        if error.kind() == io::ErrorKind::TimedOut
            && let Phase::Streaming(connection) = &self.phase
        {
            connection.stalled();
        }
        Gone
    }

    /// As much as the socket takes now, which may be nothing.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Gone> {
        let mut taken = 0;
        while self.writable && taken < bytes.len() {
            match (&self.tcp).write(&bytes[taken..]) {
                Ok(0) => return Err(Gone),
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lose(&error)),
            }
        }
        Ok(taken)
    }

    /// Writes the bytes. `rest` returns those after the first `n`, which are kept until the socket takes them.
    fn write_or_wait(&mut self, bytes: &[u8], rest: impl FnOnce(usize) -> Bytes) -> Result<(), Gone> {
        let taken = self.write(bytes)?;
        if taken < bytes.len() {
            self.wait(rest(taken));
        }
        Ok(())
    }

    fn wait(&mut self, rest: Bytes) {
        let Some(hub) = self.hub().cloned() else { return };
        let transport = hub.transports().open(self.tcp.peer_addr().ok());
        transport.set_streamed();
        transport.set_stuck(true);
        if let Phase::Streaming(connection) = &self.phase {
            connection.written_through(Some(Arc::clone(&transport)));
        }
        let deadline = Box::pin(tokio::time::sleep(transport.patience(hub.settings())));
        self.waiting = Some(Box::new(Waiting { rest, hub, transport, deadline }));
    }

    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let Some(mut waiting) = self.waiting.take() else { return Poll::Ready(Ok(())) };
        let given_up = loop {
            let is_due = waiting.deadline.as_mut().poll(cx).is_ready();
            // The last attempt asks the socket itself. The selector reports few sockets at a time, and a socket only
            // when a third of its buffer is free, so its report may be late.
            self.writable |= is_due;
            let taken = self.write(&waiting.rest)?;
            if taken == waiting.rest.len() {
                if let Phase::Streaming(connection) = &self.phase {
                    connection.written_through(None);
                }
                return Poll::Ready(Ok(()));
            }
            if taken == 0 {
                break waiting.poll_given_up(cx, is_due);
            }
            waiting.rest = waiting.rest.slice(taken..);
            // The next round registers for the new deadline.
            waiting.wrote(taken);
        };
        self.waiting = Some(waiting);
        given_up.map(|()| Err(Gone))
    }
}

impl Drop for TakenOver {
    fn drop(&mut self) {
        self.end_writing();
    }
}

impl Waiting {
    fn wrote(&mut self, count: usize) {
        self.transport.wrote(count);
        let patience = self.transport.patience(self.hub.settings());
        self.deadline.as_mut().reset(Instant::now() + patience);
    }

    /// Until it was cut, or has taken nothing for too long, which is `is_due`.
    fn poll_given_up(&self, cx: &Context<'_>, is_due: bool) -> Poll<()> {
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

    /// Reads until nothing comes, so that the socket at the other end takes bytes again.
    fn take_all(peer: &mut std::net::TcpStream) {
        let mut space = vec![0; 1 << 16];
        while peer.read(&mut space).is_ok() {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_bytes_at_the_deadline_is_kept_although_the_selector_is_late() {
        let deadline = Duration::from_secs(30);
        let retention = Retention::replay().count(100).bytes(32 << 20);
        let hub = Hub::builder().write_deadline(deadline).topic_retention(retention).build().unwrap();
        let request = Request { to_network: true, asked_at: DisconnectClock::now(), authority: None };
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
        take_all(&mut peer);
        tokio::time::advance(deadline + Duration::from_secs(1)).await;
        assert!(is_open(), "the peer has taken everything");
        // The socket is full again.
        tokio::time::advance(deadline + Duration::from_secs(1)).await;
        assert!(!is_open(), "the peer has taken nothing");
    }
}
