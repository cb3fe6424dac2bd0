//! The transports: the sockets of streams and other responses that the hub watches.
//!
//! A [`Transport`] does not own its socket. It counts the bytes that move, and it can make the task
//! that polls the socket close it. [`Transports`] lists all transports of the hub.
//!
//! 1. The hub finds the socket of a stream in one of two ways. The request may carry it, as
//!    [`SseConnectInfo`](crate::SseConnectInfo). Otherwise the hub compares tasks, because a server
//!    polls a socket and the services of its requests, or the bodies of its responses, in one task
//!    ([`Transports::find_by_task`]). If neither applies, for example with HTTP/2 below a router,
//!    the socket stays unknown.
//! 2. A stream has stalled if it has something to do and nothing has moved on its transport for the
//!    write deadline ([`Transport::quiet_since`]).
//! 3. When the hub gives a stream up, it also cuts the socket, if it knows the socket. The streams
//!    of one HTTP/2 connection share a transport, and the hub has no other way to end a stream
//!    while its flow-control window is closed. So such a stream stays open, and is still counted,
//!    while bytes move on its connection. The memory that the stream holds is bounded
//!    (`mount/pace.rs`).
//! 4. A caller registers its waker first, and reads the atomics after that. Otherwise it could
//!    sleep through a cut ([`Transport::listen`]), a flush ([`Transport::await_move`]) or the end
//!    of a drain ([`Transports::flushed`]).

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
use crate::macros::shrink_if_sparse;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering};

/// The minimum time between two checks of a drain for sockets with waiting bytes.
const FLUSH_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A stream that a body offers to its socket for a takeover by the hub's own writer.
pub(crate) trait Takeover: fmt::Debug + Send + Sync {
    /// Returns the first frame of the stream, as the bytes that the server writes for it.
    fn chunk(&self) -> &[u8];
    /// Declines the offer. The body continues to serve the stream.
    fn decline(&self);
    /// Gives the stream and its socket to a writer.
    ///
    /// # Errors
    ///
    /// Returns the socket if no writer is available, or if the body was dropped.
    fn take(&self, tcp: TcpStream) -> Result<(), TcpStream>;
}

/// The shared state of one socket.
///
/// The task that polls the socket, the bodies of its streams, the housekeeping and a drain share
/// it. Each field that changes is an atomic or has its own lock.
#[derive(Debug, Default)]
pub(crate) struct Transport {
    /// The key in [`Transports`].
    number: u64,
    peer: Option<SocketAddr>,
    /// The number of streams that the socket carries now.
    streams: AtomicUsize,
    /// Whether the socket has ever carried a stream.
    streamed: AtomicBool,
    /// Whether the socket speaks HTTP/1, so that the hub knows all of its streams.
    http1: AtomicBool,
    /// Whether the hub has cut the socket. The task of the socket reads it at its next poll.
    cut: AtomicBool,
    /// Whether the socket was closed and dropped.
    closed: AtomicBool,
    /// Whether the hub drains. The socket then has the limit of the drain in place of the write
    /// deadline.
    draining: AtomicBool,
    /// Whether bytes wait that the client does not take.
    stuck: AtomicBool,
    /// Whether the socket was given up because its client took no bytes.
    timed_out: AtomicBool,
    /// The number of bytes that the socket has taken.
    written: AtomicU64,
    /// The number of reads that returned bytes.
    reads: AtomicU64,
    /// The value of [`moves`](Self::moves) at the last check of the housekeeping.
    seen_moves: AtomicU64,
    /// The time of the first check of the housekeeping that found the value of `seen_moves`.
    seen_at: AtomicU64,
    /// The number of completed flushes. Flushes count also while no body waits: a write wakes the
    /// bodies, and the flush after it may come before a body in another task has registered again.
    flushes: AtomicU64,
    /// The number of times that the housekeeping found a body waiting for a flush that did not
    /// come.
    releases: AtomicU64,
    /// Whether `bodies` has wakers. Set after a waker was added, and cleared by the task that takes
    /// the wakers, both under the lock of `bodies`. Read without it.
    is_awaited: AtomicBool,
    /// The wakers of the bodies that wait until bytes move or a flush is complete.
    bodies: Mutex<Vec<Waker>>,
    /// The waker of the task that polls the socket.
    waker: Mutex<Option<Waker>>,
    /// Whether the socket accepts a takeover.
    offers_takeover: AtomicBool,
    /// The stream that a body offers for a takeover.
    offer: Mutex<Option<Arc<dyn Takeover>>>,
}

/// All open transports of a hub.
#[derive(Debug, Default)]
pub(crate) struct Transports {
    table: Mutex<Table>,
    /// The number of streams of the hub's own writers whose last byte is not written yet.
    unfinished: AtomicUsize,
    /// Notified when a socket or a writer has no bytes left to write.
    unstuck: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// The number of the newest transport.
    next: u64,
    /// Whether the hub drains. The field `draining` of a new socket starts with this value.
    draining: bool,
    all: HashMap<u64, Arc<Transport>>,
    /// The numbers of the sockets that each task polls.
    by_task: HashMap<task::Id, SmallVec<[u64; 1]>>,
}

impl Transports {
    /// Adds a socket.
    pub(crate) fn open(&self, peer: Option<SocketAddr>) -> Arc<Transport> {
        let mut table = self.table.lock();
        table.next += 1;
        let transport = Arc::new(Transport {
            number: table.next,
            peer,
            draining: AtomicBool::new(table.draining),
            // Differs from `moves`, so that the first check of the housekeeping sets the time.
            seen_moves: AtomicU64::new(u64::MAX),
            ..Transport::default()
        });
        table.all.insert(transport.number, Arc::clone(&transport));
        transport
    }

    /// Notes that the task `to` polls the socket now, in place of the task `from`.
    pub(crate) fn moved_to(&self, transport: &Transport, from: Option<task::Id>, to: Option<task::Id>) {
        let mut table = self.table.lock();
        table.release(transport, from);
        if let Some(task) = to {
            table.by_task.entry(task).or_default().push(transport.number);
        }
    }

    /// Returns the number of streams that open sockets carry, and the number of bodies that wait
    /// for a socket.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn streams(&self) -> (usize, usize) {
        let table = self.table.lock();
        let streams = table.all.values().map(|transport| transport.streams.load(Ordering::Acquire)).sum();
        (streams, table.all.values().map(|transport| transport.bodies.lock().len()).sum())
    }

    /// Removes a socket that was closed, and wakes the bodies that wait for it.
    pub(crate) fn close(&self, transport: &Transport, task: Option<task::Id>) {
        let mut table = self.table.lock();
        table.release(transport, task);
        table.all.remove(&transport.number);
        shrink_if_sparse!(table.all);
        shrink_if_sparse!(table.by_task);
        drop(table);
        let was_stuck = transport.is_stuck();
        transport.set_blocked(false);
        transport.set_closed();
        if was_stuck {
            self.unstuck.notify_waiters();
        }
    }

    /// Returns whether a transport is an open socket of this hub. A request may carry the socket of
    /// another hub in the same process.
    pub(crate) fn contains(&self, transport: &Arc<Transport>) -> bool {
        self.table.lock().all.get(&transport.number).is_some_and(|known| Arc::ptr_eq(known, transport))
    }

    /// Returns the socket that the current task polls. `None` if the task polls no socket, or
    /// several sockets, any of which could carry the stream.
    pub(crate) fn find_by_task(&self) -> Option<Arc<Transport>> {
        let task = task::try_id()?;
        let table = self.table.lock();
        match table.by_task.get(&task).map(SmallVec::as_slice) {
            Some([number]) => table.all.get(number).cloned(),
            _ => None,
        }
    }

    /// Notes that one of the hub's own writers has received a stream.
    pub(crate) fn begin_writing(&self) {
        self.unfinished.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that one of the hub's own writers has written the last byte of a stream, or has given
    /// the stream up.
    pub(crate) fn end_writing(&self) {
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unstuck.notify_waiters();
        }
    }

    /// Makes a waiting drain check the sockets again.
    pub(crate) fn progressed(&self) {
        self.unstuck.notify_waiters();
    }

    /// Sets the limit of the drain for all sockets, in place of the write deadline. Returns the
    /// value of [`Transport::moves`] for each socket, by the number of the socket.
    pub(in crate::hub) fn leave(&self) -> HashMap<u64, u64> {
        let mut table = self.table.lock();
        table.draining = true;
        table.all.values().for_each(|transport| transport.draining.store(true, Ordering::Release));
        table.all.values().map(|transport| (transport.number, transport.moves())).collect()
    }

    /// Waits until no socket that has carried a stream has bytes waiting, and the hub's own writers
    /// have written all bytes.
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
            // One check covers all sockets that finish within this time. Otherwise each of them
            // would cause a check of all sockets.
            tokio::time::sleep(FLUSH_CHECK_INTERVAL).await;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.lock().all.is_empty()
    }

    /// Cuts the sockets that have carried a stream and have bytes waiting. Returns how many of them
    /// were not cut before.
    pub(in crate::hub) fn cut_stuck(&self) -> usize {
        self.cut_where(Transport::is_stuck)
    }

    /// Cuts the sockets that may carry streams and on which no bytes have moved since
    /// [`leave`](Self::leave) returned `moves`. Returns how many of them were not cut before.
    pub(in crate::hub) fn cut_unmoved(&self, moves: &HashMap<u64, u64>) -> usize {
        self.cut_where(|transport| transport.may_carry_streams() && transport.has_not_moved(moves))
    }

    /// Cuts the sockets that have carried a stream and on which no bytes have moved since
    /// [`leave`](Self::leave) returned `moves`. `any_hidden` is true if the hub does not know the
    /// sockets of some streams. Then this also cuts the sockets that may have carried these
    /// streams.
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

    /// Notes that the socket has carried a stream.
    pub(crate) fn set_streamed(&self) {
        self.streamed.store(true, Ordering::Release);
    }

    /// Notes that the socket speaks HTTP/1. The hub then finds all of its streams by their task.
    pub(crate) fn set_http1(&self) {
        self.http1.store(true, Ordering::Release);
    }

    fn may_carry_streams(&self) -> bool {
        !self.http1.load(Ordering::Acquire) || self.streamed.load(Ordering::Acquire)
    }

    /// Returns the maximum time for which the client may take no bytes while bytes wait.
    pub(crate) fn patience(&self, settings: &Settings) -> Duration {
        if self.is_draining() { settings.drain_limit } else { settings.write_deadline }
    }

    pub(in crate::hub) fn remove_stream(&self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.streams.load(Ordering::Acquire) > 0
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Registers the task that polls the socket, so that a cut wakes it. The caller then checks
    /// [`is_cut`](Self::is_cut).
    pub(crate) fn listen(&self, waker: &Waker) {
        let mut current = self.waker.lock();
        if current.as_ref().is_none_or(|current| !current.will_wake(waker)) {
            *current = Some(waker.clone());
        }
    }

    /// Wakes the task that polls the socket. A server then writes its buffered bytes and flushes.
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

    /// Takes the stream that was offered for a takeover.
    pub(crate) fn take_offer(&self) -> Option<Arc<dyn Takeover>> {
        self.offer.lock().take()
    }

    /// Notes that the socket has taken `count` bytes, and wakes the waiting bodies.
    pub(crate) fn wrote(&self, count: usize) {
        self.written.fetch_add(count as u64, Ordering::SeqCst);
        if self.is_awaited.load(Ordering::SeqCst) {
            self.wake_bodies();
        }
    }

    /// Notes that a flush of the server is complete. The flush counts only if no bytes wait for the
    /// client.
    pub(crate) fn flushed(&self) {
        if !self.has_waiting_bytes() {
            self.flushes.fetch_add(1, Ordering::SeqCst);
            if self.is_awaited.load(Ordering::SeqCst) {
                self.wake_bodies();
            }
        }
    }

    /// Wakes the bodies that wait for a flush, unless bytes wait for the client. The flush may
    /// never come, if the task that reads the body does not write to this socket. The housekeeping
    /// calls this function for a stream that has something to do and is not polled.
    pub(in crate::hub) fn release(&self) {
        if self.is_awaited.load(Ordering::SeqCst) && !self.has_waiting_bytes() {
            self.releases.fetch_add(1, Ordering::SeqCst);
            self.wake_bodies();
        }
    }

    /// Notes that a read has returned bytes.
    pub(crate) fn has_read(&self) {
        self.reads.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns a number that changes whenever bytes move in either direction.
    fn moves(&self) -> u64 {
        self.written.load(Ordering::Acquire).wrapping_add(self.reads.load(Ordering::Acquire))
    }

    /// Returns the time of the earliest call since which no bytes have moved. Only the housekeeping
    /// calls this function, from one task at a time.
    pub(in crate::hub) fn quiet_since(&self, now: Millis) -> Millis {
        let moves = self.moves();
        if self.seen_moves.swap(moves, Ordering::AcqRel) != moves {
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

    /// Returns whether [`nudge`](Self::nudge) wakes the same task as this waker.
    pub(crate) fn nudges(&self, waker: &Waker) -> bool {
        self.waker.lock().as_ref().is_some_and(|current| current.will_wake(waker))
    }

    /// Returns whether bytes wait for the client, of a stream or of another response.
    pub(crate) fn has_waiting_bytes(&self) -> bool {
        self.stuck.load(Ordering::SeqCst)
    }

    /// Registers a body, to be woken when bytes have moved or a flush is complete. The caller then
    /// checks both once more.
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

    /// Marks the socket as closed, and wakes its bodies, which would otherwise never be woken.
    fn set_closed(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake_bodies();
    }

    /// Notes that the socket is given up because its client took no bytes.
    pub(crate) fn time_out(&self) {
        self.timed_out.store(true, Ordering::Release);
    }

    pub(in crate::hub) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    /// Sets whether bytes wait for the client, and returns the previous value.
    ///
    /// A body stores `is_awaited` and then loads `stuck`. The task of the socket stores `stuck` and
    /// then loads `is_awaited`. Both are `SeqCst`: without one order of all four accesses, both
    /// sides could read the old values, and the body would not be woken.
    pub(crate) fn set_blocked(&self, stuck: bool) -> bool {
        self.stuck.swap(stuck, Ordering::SeqCst)
    }

    fn has_not_moved(&self, moves: &HashMap<u64, u64>) -> bool {
        moves.get(&self.number) == Some(&self.moves())
    }

    fn is_stuck(&self) -> bool {
        self.streamed.load(Ordering::Acquire) && self.stuck.load(Ordering::Acquire)
    }

    /// Makes the socket fail at its next poll, and wakes the task that polls it. Returns whether
    /// this was the first cut.
    pub(in crate::hub) fn cut(&self) -> bool {
        let first = !self.cut.swap(true, Ordering::AcqRel);
        self.nudge();
        first
    }
}
