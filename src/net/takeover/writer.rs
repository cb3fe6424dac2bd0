//! The hub's own writers of streams whose sockets the hub has taken over. Each holds thousands of sockets in
//! one task: for a stream a cursor and a descriptor, and no buffers while nothing waits.
//!
//! There are as many as the runtime has workers, on the runtime that served the request, for as long as that lives. The
//! sockets of one are in a selector of its own (epoll, kqueue), which is one descriptor to the runtime.

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

/// How many sockets are looked after before others get their turn.
const BATCH: usize = 256;
/// Or for how long: those who come back may each have much to catch up with.
const LONGEST_TURN: Duration = Duration::from_millis(2);

static CREWS: Mutex<Option<HashMap<Id, Crew>>> = Mutex::new(None);

/// The writers of one runtime.
#[derive(Default)]
struct Crew {
    writers: Vec<Arc<Inbox>>,
    next: usize,
}

/// How a writer is reached.
#[derive(Default)]
pub(crate) struct Inbox {
    arrived: Mutex<Vec<(TcpStream, StreamDriver)>>,
    /// The places of those that were woken, in that order.
    woken: Mutex<VecDeque<usize>>,
    task: AtomicWaker,
    /// Its task is over.
    gone: AtomicBool,
}

/// Wakes one stream of a writer.
struct Bell {
    inbox: Arc<Inbox>,
    place: usize,
    /// It is among the woken.
    rung: AtomicBool,
}

/// See the module. A task.
struct Writer {
    runtime: Id,
    inbox: Arc<Inbox>,
    selector: AsyncFd<mio::Poll>,
    events: Events,
    places: Slab<Place>,
    /// The places to look after in this turn. Those that are woken or arrive meanwhile come in the next, so that a
    /// storm of new streams does not starve the old ones.
    turn: VecDeque<usize>,
}

struct Place {
    bell: Arc<Bell>,
    waker: Waker,
    stream: TakenOver,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A writer of this runtime; none if there is no runtime here, or no descriptor left.
pub(crate) fn here() -> Option<Arc<Inbox>> {
    let runtime = Handle::try_current().ok()?;
    let mut crews = lock(&CREWS);
    let crew = crews.get_or_insert_default().entry(runtime.id()).or_default();
    if crew.writers.len() < runtime.metrics().num_workers()
        && let Ok(writer) = Writer::new(runtime.id())
    {
        crew.writers.push(Arc::clone(&writer.inbox));
        let inbox = Arc::clone(&writer.inbox);
        // Not under the lock: a runtime that is shutting down drops the task at once.
        drop(crews);
        runtime.spawn(writer);
        return Some(inbox);
    }
    // Without a descriptor for one more those that are there do, if there are any.
    crew.next = (crew.next + 1) % crew.writers.len().max(1);
    crew.writers.get(crew.next).cloned()
}

impl Inbox {
    /// Writes this stream from here on.
    pub(crate) fn take_over(&self, tcp: TcpStream, connection: StreamDriver) {
        connection.written_through(None);
        lock(&self.arrived).push((tcp, connection));
        self.task.wake();
        if self.gone.load(Ordering::Acquire) {
            // Nobody looks any more.
            let arrived = std::mem::take(&mut *lock(&self.arrived));
            drop(arrived);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            let mut woken = lock(&self.inbox.woken);
            let is_first = woken.is_empty();
            woken.push_back(self.place);
            drop(woken);
            if is_first {
                self.inbox.task.wake();
            }
        }
    }
}

impl Writer {
    #[allow(deprecated, reason = "what replaces `AsyncFd::new` is newer than the oldest tokio that will do")]
    fn new(runtime: Id) -> io::Result<Self> {
        Ok(Self {
            runtime,
            inbox: Arc::default(),
            selector: AsyncFd::new(mio::Poll::new()?)?,
            events: Events::with_capacity(BATCH),
            places: Slab::new(),
            turn: VecDeque::new(),
        })
    }

    /// A socket that cannot be moved over is closed: its client comes back.
    fn settle_in(&mut self, tcp: TcpStream, connection: StreamDriver) -> io::Result<()> {
        let mut tcp = mio::net::TcpStream::from_std(tcp.into_std()?);
        let vacant = self.places.vacant_entry();
        let place = vacant.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.selector.get_ref().registry().register(&mut tcp, Token(place), interest)?;
        let bell = Arc::new(Bell { inbox: Arc::clone(&self.inbox), place, rung: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&bell));
        vacant.insert(Place { bell, waker, stream: TakenOver::new(tcp, connection) });
        lock(&self.inbox.woken).push_back(place);
        Ok(())
    }

    fn take_arrivals(&mut self) {
        let arrived = std::mem::take(&mut *lock(&self.inbox.arrived));
        for (tcp, connection) in arrived {
            if let Err(error) = self.settle_in(tcp, connection) {
                tracing::warn!(%error, "a socket cannot be taken over");
            }
        }
    }

    /// What the sockets have to say. Returns whether there may be more.
    fn poll_sockets(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            // An error is one of a runtime that shuts down.
            let Poll::Ready(Ok(mut ready)) = self.selector.poll_read_ready_mut(cx) else { return false };
            if ready.get_inner_mut().poll(&mut self.events, Some(Duration::ZERO)).is_err() {
                // It was interrupted.
                continue;
            }
            if self.events.is_empty() {
                // Looks again: something may have come before this was noted.
                ready.clear_ready();
                continue;
            }
            for event in &self.events {
                if let Some(place) = self.places.get_mut(event.token().0) {
                    place.stream.note(is_readable(event), event.is_writable() || event.is_error());
                    place.bell.wake_by_ref();
                }
            }
            if self.events.iter().count() == BATCH {
                return true;
            }
        }
    }

    fn look_after(&mut self, index: usize) {
        // Who was woken may have gone since.
        let Some(place) = self.places.get_mut(index) else { return };
        place.bell.rung.store(false, Ordering::Release);
        // A panic would be a mistake of ours; then let it cost one stream, and not thousands.
        let turn = catch_unwind(AssertUnwindSafe(|| place.stream.poll(&mut Context::from_waker(&place.waker))));
        match turn.unwrap_or(Turn::Over) {
            Turn::Sleeps => {}
            Turn::Again => place.bell.wake_by_ref(),
            Turn::Over => {
                drop(self.places.remove(index));
                // Room for many is given back when there are few.
                if self.places.capacity() > 1024 && self.places.len() < self.places.capacity() / 8 {
                    self.places.shrink_to_fit();
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
        let mut goes_on = this.poll_sockets(cx);
        if this.turn.is_empty() {
            std::mem::swap(&mut this.turn, &mut *lock(&this.inbox.woken));
        }
        let begun = Instant::now();
        for count in 1..=BATCH {
            let Some(index) = this.turn.pop_front() else { break };
            this.look_after(index);
            if count.is_multiple_of(16) && begun.elapsed() > LONGEST_TURN {
                break;
            }
        }
        goes_on |= !this.turn.is_empty() || !lock(&this.inbox.woken).is_empty();
        if goes_on {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.inbox.gone.store(true, Ordering::Release);
        let arrived = std::mem::take(&mut *lock(&self.inbox.arrived));
        drop(arrived);
        let mut crews = lock(&CREWS);
        if let Some(crews) = &mut *crews
            && let Some(crew) = crews.get_mut(&self.runtime)
        {
            crew.writers.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
            if crew.writers.is_empty() {
                crews.remove(&self.runtime);
            }
        }
    }
}
