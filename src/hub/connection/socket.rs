//! What the hub knows of a socket that its listener accepted: enough to cut it, and to see whether bytes move.
//!
//! A stream's socket is found in one of two ways. A request may carry it, as
//! [`SseConnectInfo`](crate::SseConnectInfo). Otherwise the task decides: a server polls a socket and the services
//! of its requests, or the bodies of its responses, in one task. Where both say nothing (HTTP/2 below a router), the
//! socket stays unknown.
//!
//! A stall has one definition: a stream has something to do, and nothing has moved on its transport for the write
//! deadline.
//! A stream that is given up takes its socket with it. The streams of one HTTP/2 connection share a transport, and
//! HTTP/2 has no other way to end one of them while its window is closed. So a stream without a window stays open,
//! and stays counted, while its connection moves; what it holds is bounded (`mount/pace.rs`).

use std::collections::hash_map::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task;

use crate::hub::Settings;
use crate::log::Millis;
use crate::macros::give_memory_back;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering};

/// How often a drain looks at most whether any socket still has bytes waiting.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A stream that a body offers to its socket, to be written by the hub's own writer.
pub(crate) trait Takeover: fmt::Debug + Send + Sync {
    /// The first frame of the stream as it comes out of the server.
    fn chunk(&self) -> &[u8];
    /// The body goes on by itself.
    fn decline(&self);
    /// Hands the stream and its socket to a writer. `Err` gives the socket back: no writer is here, or the
    /// body has gone.
    fn take(&self, tcp: TcpStream) -> Result<(), TcpStream>;
}

#[derive(Debug, Default)]
pub(crate) struct Transport {
    number: u64,
    peer: Option<SocketAddr>,
    /// How many streams are written to it now, and whether there ever was one.
    streams: AtomicUsize,
    streamed: AtomicBool,
    /// It speaks HTTP/1, so that the streams that it carries are known.
    http1: AtomicBool,
    cut: AtomicBool,
    /// The socket is gone.
    closed: AtomicBool,
    /// The hub is leaving: there is little time for whoever does not read.
    leaving: AtomicBool,
    /// Bytes wait that the peer does not take.
    stuck: AtomicBool,
    /// It was given up since the peer took nothing.
    timed_out: AtomicBool,
    /// The bytes that the socket has taken.
    written: AtomicU64,
    /// How many reads brought something.
    reads: AtomicU64,
    /// What had moved when the housekeeping looked last, and since when that is the same.
    seen: AtomicU64,
    seen_at: AtomicU64,
    /// Completed flushes. All of them count: between a write, which wakes the bodies, and the flush behind it, a body
    /// in another task may or may not have registered again.
    flushes: AtomicU64,
    /// How often the housekeeping has found a body waiting for a flush that did not come.
    releases: AtomicU64,
    /// The bodies that wait until bytes move.
    is_awaited: AtomicBool,
    bodies: Mutex<Vec<Waker>>,
    /// The task that polls the socket.
    waker: Mutex<Option<Waker>>,
    /// Its streams may be taken over together with it.
    offers_takeover: AtomicBool,
    /// The stream that waits for that.
    offer: Mutex<Option<Arc<dyn Takeover>>>,
}

#[derive(Debug, Default)]
pub(crate) struct Transports {
    table: Mutex<Table>,
    /// Streams of the hub's own writers whose last byte is not out.
    unfinished: AtomicUsize,
    unstuck: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    leaving: bool,
    all: HashMap<u64, Arc<Transport>>,
    by_task: HashMap<task::Id, SmallVec<[u64; 1]>>,
}

impl Transports {
    pub(crate) fn open(&self, peer: Option<SocketAddr>) -> Arc<Transport> {
        let mut table = self.table.lock();
        table.next += 1;
        let transport = Arc::new(Transport {
            number: table.next,
            peer,
            leaving: AtomicBool::new(table.leaving),
            // No look has happened yet.
            seen: AtomicU64::new(u64::MAX),
            ..Transport::default()
        });
        table.all.insert(transport.number, Arc::clone(&transport));
        transport
    }

    /// The socket is polled by this task now, and by that one no longer.
    pub(crate) fn moved_to(&self, transport: &Transport, from: Option<task::Id>, to: Option<task::Id>) {
        let mut table = self.table.lock();
        table.release(transport, from);
        if let Some(task) = to {
            table.by_task.entry(task).or_default().push(transport.number);
        }
    }

    pub(crate) fn close(&self, transport: &Transport, task: Option<task::Id>) {
        let mut table = self.table.lock();
        table.release(transport, task);
        table.all.remove(&transport.number);
        give_memory_back!(table.all);
        give_memory_back!(table.by_task);
        drop(table);
        let was_stuck = transport.is_stuck();
        transport.set_stuck(false);
        transport.let_bodies_go();
        if was_stuck {
            self.unstuck.notify_waiters();
        }
    }

    /// Whether this is an open socket of this hub. A request may carry a socket that another hub of the
    /// process watches.
    pub(crate) fn knows(&self, transport: &Arc<Transport>) -> bool {
        self.table.lock().all.get(&transport.number).is_some_and(|known| Arc::ptr_eq(known, transport))
    }

    /// The one socket that the current task polls. None if there are several, since then it could be any of them.
    pub(crate) fn of_this_task(&self) -> Option<Arc<Transport>> {
        let task = task::try_id()?;
        let table = self.table.lock();
        match table.by_task.get(&task).map(SmallVec::as_slice) {
            Some([number]) => table.all.get(number).cloned(),
            _ => None,
        }
    }

    /// The hub's own writer has a stream.
    pub(crate) fn begin_writing(&self) {
        self.unfinished.fetch_add(1, Ordering::AcqRel);
    }

    /// Its last byte is out, or never will be.
    pub(crate) fn end_writing(&self) {
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unstuck.notify_waiters();
        }
    }

    pub(crate) fn progressed(&self) {
        self.unstuck.notify_waiters();
    }

    /// Gives those that are stuck, or will be, little time. Returns how much each has moved so far.
    pub(in crate::hub) fn leave(&self) -> HashMap<u64, u64> {
        let mut table = self.table.lock();
        table.leaving = true;
        table.all.values().for_each(|transport| transport.leaving.store(true, Ordering::Release));
        table.all.values().map(|transport| (transport.number, transport.moves())).collect()
    }

    /// Until no socket that carried a stream has bytes waiting, and the hub's own writers are done.
    pub(in crate::hub) async fn flushed(&self) {
        loop {
            let unstuck = self.unstuck.notified();
            let mut unstuck = std::pin::pin!(unstuck);
            unstuck.as_mut().enable();
            let is_unfinished = self.unfinished.load(Ordering::Acquire) > 0;
            if !is_unfinished && !self.table.lock().all.values().any(|transport| transport.is_stuck()) {
                return;
            }
            unstuck.await;
            // One look covers all the sockets that let go within this time. Otherwise each of them would cost one.
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.lock().all.is_empty()
    }

    pub(in crate::hub) fn cut_stuck(&self) -> usize {
        self.cut_where(Transport::is_stuck)
    }

    pub(in crate::hub) fn cut_unmoved(&self, moves: &HashMap<u64, u64>) -> usize {
        self.cut_where(|transport| transport.may_carry_streams() && transport.has_not_moved(moves))
    }

    /// Those that carried a stream, or of which that is not known, and have not moved since.
    pub(in crate::hub) fn cut_lingering(&self, moves: &HashMap<u64, u64>, any_hidden: bool) {
        self.cut_where(|transport| {
            (any_hidden && transport.may_carry_streams() || transport.streamed.load(Ordering::Acquire))
                && transport.has_not_moved(moves)
        });
    }

    fn cut_where(&self, which: impl Fn(&Transport) -> bool) -> usize {
        let chosen: Vec<_> = self.table.lock().all.values().filter(|transport| which(transport)).cloned().collect();
        chosen.iter().filter(|transport| transport.cut()).count()
    }
}

impl Table {
    fn release(&mut self, transport: &Transport, task: Option<task::Id>) {
        if let Some(task) = task
            && let Some(numbers) = self.by_task.get_mut(&task)
        {
            numbers.retain(|number| *number != transport.number);
            if numbers.is_empty() {
                self.by_task.remove(&task);
            }
        }
    }
}

impl Transport {
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    pub(in crate::hub) fn add_stream(&self) {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.set_streamed();
    }

    /// What is written to it is a stream's.
    pub(crate) fn set_streamed(&self) {
        self.streamed.store(true, Ordering::Release);
    }

    /// What it carries is plain HTTP/1. There the task tells which streams are on it.
    pub(crate) fn set_http1(&self) {
        self.http1.store(true, Ordering::Release);
    }

    fn may_carry_streams(&self) -> bool {
        !self.http1.load(Ordering::Acquire) || self.streamed.load(Ordering::Acquire)
    }

    /// How long it may take nothing.
    pub(crate) fn patience(&self, settings: &Settings) -> Duration {
        if self.is_leaving() { settings.drain_limit } else { settings.write_deadline }
    }

    pub(in crate::hub) fn remove_stream(&self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.streams.load(Ordering::Acquire) > 0
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Registers the task to be woken by a cut; look at [`is_cut`](Self::is_cut) afterwards.
    pub(crate) fn listen(&self, waker: &Waker) {
        let mut current = self.waker.lock();
        if current.as_ref().is_none_or(|current| !current.will_wake(waker)) {
            *current = Some(waker.clone());
        }
    }

    /// Makes the task that polls the socket look again. A server then writes what it has, and flushes.
    pub(crate) fn nudge(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn set_offers_takeover(&self) {
        self.offers_takeover.store(true, Ordering::Release);
    }

    pub(crate) fn offers_takeover(&self) -> bool {
        self.offers_takeover.load(Ordering::Acquire)
    }

    pub(crate) fn offer(&self, offer: Arc<dyn Takeover>) {
        *self.offer.lock() = Some(offer);
    }

    pub(crate) fn withdraw_offer(&self) {
        drop(self.take_offer());
    }

    /// The stream that waits to be taken over, once.
    pub(crate) fn take_offer(&self) -> Option<Arc<dyn Takeover>> {
        self.offer.lock().take()
    }

    /// The socket has taken so many bytes.
    pub(crate) fn wrote(&self, count: usize) {
        self.written.fetch_add(count as u64, Ordering::SeqCst);
        if self.is_awaited.load(Ordering::SeqCst) {
            self.wake_bodies();
        }
    }

    /// The server has handed everything that it had to the socket.
    pub(crate) fn flushed(&self) {
        if !self.has_waiting_bytes() {
            self.flushes.fetch_add(1, Ordering::SeqCst);
            if self.is_awaited.load(Ordering::SeqCst) {
                self.wake_bodies();
            }
        }
    }

    /// The housekeeping finds a stream that has not gone on. Its body may wait for a flush that never comes, since the
    /// task that reads the body writes nothing to this socket.
    pub(in crate::hub) fn release(&self) {
        if self.is_awaited.load(Ordering::SeqCst) && !self.has_waiting_bytes() {
            self.releases.fetch_add(1, Ordering::SeqCst);
            self.wake_bodies();
        }
    }

    pub(crate) fn has_read(&self) {
        self.reads.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes whenever something moves, either way.
    fn moves(&self) -> u64 {
        self.written.load(Ordering::Acquire).wrapping_add(self.reads.load(Ordering::Acquire))
    }

    /// Since when nothing has moved, as far as the housekeeping has seen. Only one task may ask at a time.
    pub(in crate::hub) fn quiet_since(&self, now: Millis) -> Millis {
        let moves = self.moves();
        if self.seen.swap(moves, Ordering::AcqRel) != moves {
            self.seen_at.store(now, Ordering::Release);
        }
        self.seen_at.load(Ordering::Acquire)
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    pub(crate) fn releases(&self) -> u64 {
        self.releases.load(Ordering::SeqCst)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether a nudge wakes the task that this waker wakes.
    pub(crate) fn nudges(&self, waker: &Waker) -> bool {
        self.waker.lock().as_ref().is_some_and(|current| current.will_wake(waker))
    }

    /// Bytes wait for the peer, a stream's or others.
    pub(crate) fn has_waiting_bytes(&self) -> bool {
        self.stuck.load(Ordering::SeqCst)
    }

    /// Wakes a body when bytes have moved or a flush is done. Look at both again afterwards.
    pub(crate) fn await_move(&self, waker: &Waker) {
        let mut bodies = self.bodies.lock();
        if !bodies.iter().any(|other| other.will_wake(waker)) {
            bodies.push(waker.clone());
        }
        self.is_awaited.store(true, Ordering::SeqCst);
    }

    fn wake_bodies(&self) {
        let mut bodies = self.bodies.lock();
        self.is_awaited.store(false, Ordering::SeqCst);
        let woken = std::mem::take(&mut *bodies);
        drop(bodies);
        woken.into_iter().for_each(Waker::wake);
    }

    /// The socket is gone: a body that is still somewhere has nothing to wait for.
    fn let_bodies_go(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake_bodies();
    }

    pub(crate) fn time_out(&self) {
        self.timed_out.store(true, Ordering::Release);
    }

    pub(in crate::hub) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    /// Returns what it was. A body stores `is_awaited` and then loads `stuck`; the socket's task stores
    /// `stuck` and then loads `is_awaited`. Only a single order of all four keeps both from missing the other.
    pub(crate) fn set_stuck(&self, stuck: bool) -> bool {
        self.stuck.swap(stuck, Ordering::SeqCst)
    }

    fn has_not_moved(&self, moves: &HashMap<u64, u64>) -> bool {
        moves.get(&self.number) == Some(&self.moves())
    }

    fn is_stuck(&self) -> bool {
        self.streamed.load(Ordering::Acquire) && self.stuck.load(Ordering::Acquire)
    }

    /// Ends the socket with an error at its next poll, which is now. Returns whether this was the first cut.
    pub(in crate::hub) fn cut(&self) -> bool {
        let first = !self.cut.swap(true, Ordering::AcqRel);
        self.nudge();
        first
    }
}
