//! The writers of streams whose sockets the hub has taken over. A writer is one task for thousands
//! of sockets. A stream takes a cursor and a descriptor, and no buffers while no bytes wait.
//!
//! A runtime that serves requests has at most as many writers as worker threads, and the writers
//! last until the runtime ends. Each writer has a separate selector (epoll, kqueue), which the
//! runtime watches as one descriptor.

use std::collections::hash_map::HashMap;
use std::collections::vec_deque::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use mio::event::Event;
use mio::{Events, Interest, Token};
use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Id};

use super::stream::{TakenOver, Turn};
use crate::hub::StreamDriver;

/// The maximum number of streams that a writer polls before it yields.
const BATCH: usize = 256;
/// The time after which a writer yields before it has polled [`BATCH`] streams, because each stream
/// that resumes may have many events to write. The writer checks the time after every 16 streams.
const MAX_TURN: Duration = Duration::from_millis(2);

/// The writers of all runtimes.
static WRITERS: Mutex<Option<HashMap<Id, RuntimeWriters>>> = Mutex::new(None);

/// The writers of one runtime.
#[derive(Default)]
struct RuntimeWriters {
    writers: Vec<Arc<Inbox>>,
    next: usize,
}

/// The part of a writer that other tasks access.
#[derive(Default)]
pub(crate) struct Inbox {
    /// New streams, with their sockets.
    arrived: Mutex<Vec<(TcpStream, StreamDriver)>>,
    /// The slots of woken streams, in the order of the wakes.
    woken: Mutex<VecDeque<usize>>,
    task: AtomicWaker,
    /// Whether the task of the writer has ended.
    is_closed: AtomicBool,
}

/// The waker of one stream of a writer.
struct StreamWaker {
    inbox: Arc<Inbox>,
    slot: usize,
    /// Whether the slot is in the queue of woken streams.
    is_woken: AtomicBool,
}

/// The task that writes the streams of many sockets.
struct Writer {
    runtime: Id,
    inbox: Arc<Inbox>,
    selector: AsyncFd<mio::Poll>,
    events: Events,
    slots: Slab<Slot>,
    /// The slots to poll in this turn. Slots that are woken in the meantime wait for the next turn,
    /// so that many new streams cannot starve the earlier ones.
    turn: VecDeque<usize>,
}

/// One stream of a writer.
struct Slot {
    stream_waker: Arc<StreamWaker>,
    waker: Waker,
    stream: TakenOver,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a writer of the current runtime. Starts one if the runtime has fewer writers than worker
/// threads. Returns `None` outside of a runtime, or if the runtime has no writer and none can
/// start, for example for lack of descriptors.
pub(crate) fn of_this_runtime() -> Option<Arc<Inbox>> {
    let runtime = Handle::try_current().ok()?;
    let mut all = lock(&WRITERS);
    let own = all.get_or_insert_default().entry(runtime.id()).or_default();
    if own.writers.len() < runtime.metrics().num_workers()
        && let Ok(writer) = Writer::new(runtime.id())
    {
        own.writers.push(Arc::clone(&writer.inbox));
        let inbox = Arc::clone(&writer.inbox);
        // Release the lock first: a runtime that is shutting down drops the writer at once, and
        // `Writer::drop` takes the same lock.
        drop(all);
        runtime.spawn(writer);
        return Some(inbox);
    }
    // Without a descriptor for another writer, the existing writers take the stream.
    own.next = (own.next + 1) % own.writers.len().max(1);
    own.writers.get(own.next).cloned()
}

impl Inbox {
    /// Passes a stream and its socket to the writer.
    pub(crate) fn take_over(&self, tcp: TcpStream, connection: StreamDriver) {
        connection.set_own_writer(None);
        lock(&self.arrived).push((tcp, connection));
        self.task.wake();
        if self.is_closed.load(Ordering::Acquire) {
            // The writer has ended and would not take the stream, so end the stream here.
            let arrived = std::mem::take(&mut *lock(&self.arrived));
            drop(arrived);
        }
    }
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            let mut woken = lock(&self.inbox.woken);
            let is_first = woken.is_empty();
            woken.push_back(self.slot);
            drop(woken);
            if is_first {
                self.inbox.task.wake();
            }
        }
    }
}

impl Writer {
    #[allow(deprecated, reason = "the replacement of `AsyncFd::new` is newer than the minimum version of tokio")]
    fn new(runtime: Id) -> io::Result<Self> {
        Ok(Self {
            runtime,
            inbox: Arc::default(),
            selector: AsyncFd::new(mio::Poll::new()?)?,
            events: Events::with_capacity(BATCH),
            slots: Slab::new(),
            turn: VecDeque::new(),
        })
    }

    /// Registers a socket with the selector. A socket that cannot be registered is closed, and its
    /// client reconnects.
    fn register(&mut self, tcp: TcpStream, connection: StreamDriver) -> io::Result<()> {
        let mut tcp = mio::net::TcpStream::from_std(tcp.into_std()?);
        let vacant = self.slots.vacant_entry();
        let slot = vacant.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.selector.get_ref().registry().register(&mut tcp, Token(slot), interest)?;
        let stream_waker =
            Arc::new(StreamWaker { inbox: Arc::clone(&self.inbox), slot, is_woken: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&stream_waker));
        vacant.insert(Slot { stream_waker, waker, stream: TakenOver::new(tcp, connection) });
        lock(&self.inbox.woken).push_back(slot);
        Ok(())
    }

    /// Registers the sockets of new streams.
    fn take_arrivals(&mut self) {
        let arrived = std::mem::take(&mut *lock(&self.inbox.arrived));
        for (tcp, connection) in arrived {
            if let Err(error) = self.register(tcp, connection) {
                tracing::warn!(name: "sse.socket.takeover_failed", %error, "a socket could not be taken over, its stream ends");
            }
        }
    }

    /// Reads the events of the selector and wakes their streams. Returns whether the selector may
    /// have more events.
    fn poll_sockets(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            // An error means that the runtime is shutting down.
            let Poll::Ready(Ok(mut ready)) = self.selector.poll_read_ready_mut(cx) else { return false };
            if ready.get_inner_mut().poll(&mut self.events, Some(Duration::ZERO)).is_err() {
                // The poll was interrupted.
                continue;
            }
            if self.events.is_empty() {
                // Poll again: an event may have arrived before the readiness was cleared.
                ready.clear_ready();
                continue;
            }
            for event in &self.events {
                if let Some(slot) = self.slots.get_mut(event.token().0) {
                    slot.stream.set_ready(is_readable(event), event.is_writable() || event.is_error());
                    slot.stream_waker.wake_by_ref();
                }
            }
            if self.events.iter().count() == BATCH {
                return true;
            }
        }
    }

    /// Polls the stream of a slot.
    fn poll_stream(&mut self, index: usize) {
        // The stream may have ended after it was woken.
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.stream_waker.is_woken.store(false, Ordering::Release);
        // A panic would be a bug of this crate. It ends one stream, and not all streams of the
        // writer.
        let turn = catch_unwind(AssertUnwindSafe(|| slot.stream.poll(&mut Context::from_waker(&slot.waker))));
        match turn.unwrap_or(Turn::Over) {
            Turn::Sleeps => {}
            Turn::Again => slot.stream_waker.wake_by_ref(),
            Turn::Over => {
                drop(self.slots.remove(index));
                // Release memory after most streams have ended.
                if self.slots.capacity() > 1024 && self.slots.len() < self.slots.capacity() / 8 {
                    self.slots.shrink_to_fit();
                }
            }
        }
    }
}

fn is_readable(event: &Event) -> bool {
    event.is_readable() || event.is_read_closed() || event.is_error()
}

impl Future for Writer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.inbox.task.register(cx.waker());
        this.take_arrivals();
        let mut has_more = this.poll_sockets(cx);
        if this.turn.is_empty() {
            std::mem::swap(&mut this.turn, &mut *lock(&this.inbox.woken));
        }
        let begun = Instant::now();
        for count in 1..=BATCH {
            let Some(index) = this.turn.pop_front() else { break };
            this.poll_stream(index);
            if count.is_multiple_of(16) && begun.elapsed() > MAX_TURN {
                break;
            }
        }
        has_more |= !this.turn.is_empty() || !lock(&this.inbox.woken).is_empty();
        if has_more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.inbox.is_closed.store(true, Ordering::Release);
        let arrived = std::mem::take(&mut *lock(&self.inbox.arrived));
        drop(arrived);
        let mut all = lock(&WRITERS);
        if let Some(all) = &mut *all
            && let Some(own) = all.get_mut(&self.runtime)
        {
            own.writers.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
            if own.writers.is_empty() {
                all.remove(&self.runtime);
            }
        }
    }
}
