//! The part of an open connection that the rest of the hub sees: its user, its end and its socket.
//!
//! The registry, the log and the stream share the handle. A field that changes is an atomic, or is
//! behind the lock of `State`.
//!
//! 1. The first ending stands, unless a later ending is stricter ([`ConnectionHandle::end`]). The
//!    stream writes the ending when it is polled next.
//! 2. A connection leaves the registry once. The caller that makes this step also does the rest of
//!    the removal ([`ConnectionHandle::leave_registry`]).
//! 3. The lifecycle reports the end of a connection once, and after its start
//!    ([`ConnectionHandle::note_start_reported`]).

use std::sync::Arc;

use http::Extensions;
use tokio::time::Duration;

use crate::hub::Transport;
use crate::hub::tasks::workers::Alarm;
use crate::log::{CursorHandle, Millis, millis};
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering};
use crate::types::{Authority, ConnectionId, EndReason, Reconnect, ScopeName, ScopedText, Subscription, UserId};

/// The shared state of one open connection.
pub(crate) struct ConnectionHandle {
    /// The cursor and the waker, by which the log wakes the stream.
    pub(crate) subscriber: CursorHandle,
    /// The optional parts of the connection, for example the user and the data. `None` if the
    /// connection has none of them.
    identity: Option<Box<Identity>>,
    pub(in crate::hub) opened_at: Millis,
    /// The number of the connection among all connections of the hub, in the order of opening. Set
    /// once, under the lock of the registry.
    pub(in crate::hub) opened: AtomicU64,
    /// Whether the stream was opened with a cursor, including one that the hub could not resume
    /// from.
    pub(in crate::hub) resumed: bool,
    /// The number of events that the stream has read. Only the stream writes it.
    pub(in crate::hub) delivered: AtomicU64,
    /// The time by which the stream must be polled again. Only the stream writes it; housekeeping
    /// reads it to find stalled streams.
    pub(in crate::hub) due: AtomicU64,
    /// The time by the [`DisconnectClock`](crate::types::disconnect_clock::DisconnectClock) at
    /// which the hub last removed a topic from the connection. An earlier request of the client to
    /// change its topics cannot add topics.
    pub(in crate::hub) topic_removed_at: AtomicU64,
    state: Mutex<State>,
    /// Whether `state` has an ending. Written under its lock, and read without it.
    is_ending: AtomicBool,
    /// Whether the stream goes to a network. A reader in this process has no heartbeat and no write
    /// deadline.
    pub(in crate::hub) to_network: bool,
    /// Whether the stream reads a run in place of the log. It then joins no topic.
    pub(in crate::hub) reads_run: bool,
    /// Whether the connection has left the registry, or is being removed from it.
    has_left: AtomicBool,
    /// The time at which a worker wakes the stream. `Millis::MAX` if no alarm is set. The stream
    /// sets the alarm, and the worker resets it.
    alarm_at: AtomicU64,
    /// Whether the connection has passed all checks of its admission.
    is_admitted: AtomicBool,
    /// The progress of the lifecycle reports: [`NOTHING_REPORTED`], [`START_REPORTED`], or
    /// [`END_PENDING`] plus the index of the reason of the end.
    reported: AtomicU8,
    /// Whether the hub knows the transport of the stream. A known transport is a socket that the
    /// hub can cut, or the hub's own writer while no bytes wait for its client. Otherwise a server
    /// reads the body of the stream and writes it to a socket that the hub does not know. Set
    /// before `State::transport`.
    is_transport_known: AtomicBool,
}

/// The state of a connection that changes rarely, under one lock.
#[derive(Default)]
struct State {
    /// Set by the command, the limit or the task that ends the stream. The stream writes it when it
    /// is polled next.
    ending: Option<Box<Ending>>,
    /// The socket that carries the stream, if the hub knows it and can cut it.
    transport: Option<Arc<Transport>>,
}

/// The lifecycle has not reported the connection.
const NOTHING_REPORTED: u8 = 0;
/// The lifecycle has reported the start of the connection.
const START_REPORTED: u8 = 1;
/// The connection has ended before its start was reported. The index of the reason is added.
const END_PENDING: u8 = 2;

/// The parts of a connection that most anonymous connections lack.
struct Identity {
    /// The scope of the connection. The user, the key and the topics are of this scope.
    scope: ScopeName,
    user: Option<UserId>,
    /// The key by which limits count the connection, in place of its user.
    counted_as: Option<ScopedText>,
    data: Option<Arc<str>>,
    extensions: Extensions,
    /// The access hook that rechecks the connection, or `None` if the connection is not rechecked.
    authority: Option<Arc<dyn Authority>>,
    /// The time at which the subscription expires, or `Millis::MAX`. A recheck may change it.
    expires_at: AtomicU64,
}

/// The end of a stream: its reason, and whether and when the client may reconnect.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) reconnect: Reconnect,
    pub(crate) retry: Option<Duration>,
    pub(crate) note: Option<Arc<str>>,
    /// The stream first writes its records up to and including this number. Zero ends the stream at
    /// once.
    pub(crate) after: u64,
    /// The mark of the scope of the connection, for the id of a banned client.
    pub(crate) scope: Option<u64>,
}

impl Ending {
    /// Creates an ending that ends a stream at once, without the records that the stream has not
    /// read yet.
    pub(in crate::hub) fn now(reason: EndReason) -> Self {
        Self { reason, reconnect: Reconnect::Now, retry: None, note: None, after: 0, scope: None }
    }
}

impl ConnectionHandle {
    pub(in crate::hub) fn new(
        id: ConnectionId,
        to_network: bool,
        subscription: &Subscription,
        authority: Option<Arc<dyn Authority>>,
        resumed: bool,
        now: Millis,
    ) -> Self {
        let Subscription { scope, user, counted_as, data, extensions, .. } = subscription;
        let expires_at = subscription.expiry.map(|expiry| now.saturating_add(millis(expiry.remaining())));
        let has_identity = user.is_some() || counted_as.is_some() || data.is_some() || !extensions.is_empty();
        let has_identity = has_identity || authority.is_some() || expires_at.is_some() || !scope.is_root();
        let identity = || Identity {
            scope: scope.clone(),
            user: user.clone(),
            counted_as: counted_as.clone(),
            data: data.clone(),
            extensions: extensions.clone(),
            authority,
            expires_at: AtomicU64::new(expires_at.unwrap_or(Millis::MAX)),
        };
        let identity = has_identity.then(|| Box::new(identity()));
        Self {
            subscriber: CursorHandle::new(id),
            identity,
            opened_at: now,
            opened: AtomicU64::new(0),
            resumed,
            delivered: AtomicU64::new(0),
            due: AtomicU64::new(Millis::MAX),
            topic_removed_at: AtomicU64::new(0),
            state: Mutex::default(),
            is_ending: AtomicBool::new(false),
            to_network,
            reads_run: subscription.run.is_some(),
            has_left: AtomicBool::new(false),
            alarm_at: AtomicU64::new(Millis::MAX),
            is_admitted: AtomicBool::new(false),
            reported: AtomicU8::new(NOTHING_REPORTED),
            is_transport_known: AtomicBool::new(false),
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        *self.subscriber.id()
    }

    pub(in crate::hub) fn authority(&self) -> Option<&Arc<dyn Authority>> {
        self.identity.as_ref()?.authority.as_ref()
    }

    /// Returns the scope of the connection.
    pub(crate) fn scope(&self) -> &ScopeName {
        self.identity.as_ref().map_or(ScopeName::root(), |identity| &identity.scope)
    }

    pub(crate) fn user(&self) -> Option<&UserId> {
        self.identity.as_ref()?.user.as_ref()
    }

    pub(in crate::hub) fn counted_as(&self) -> Option<&ScopedText> {
        self.identity.as_ref()?.counted_as.as_ref()
    }

    pub(in crate::hub) fn data(&self) -> Option<&Arc<str>> {
        self.identity.as_ref()?.data.as_ref()
    }

    pub(in crate::hub) fn extensions(&self) -> Extensions {
        self.identity.as_ref().map(|identity| identity.extensions.clone()).unwrap_or_default()
    }

    /// Returns the time at which the subscription expires, or `Millis::MAX` if it does not expire.
    pub(in crate::hub) fn expires_at(&self) -> Millis {
        self.identity.as_ref().map_or(Millis::MAX, |identity| identity.expires_at.load(Ordering::Acquire))
    }

    /// Sets the time at which the subscription expires. A connection without an identity ignores
    /// the time. Only rechecks call this, and they do not apply to such a connection.
    pub(in crate::hub) fn expire_at(&self, at: Millis) {
        if let Some(identity) = &self.identity {
            identity.expires_at.store(at, Ordering::Release);
        }
    }

    pub(in crate::hub) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn ending(&self) -> Option<Ending> {
        if !self.is_ending() {
            return None;
        }
        self.state.lock().ending.as_deref().cloned()
    }

    /// Sets the ending of the stream, and returns the ending that stands: the first ending, unless
    /// a later ending is stricter. A delay is stricter than none, and a ban is the strictest. Does
    /// not wake the stream.
    pub(in crate::hub) fn end(&self, ending: Ending) -> Ending {
        let ending = Ending { scope: self.scope().mark(), ..ending };
        let current = &mut self.state.lock().ending;
        if current.as_ref().is_none_or(|current| ending.reconnect.is_stricter_than(current.reconnect)) {
            *current = Some(Box::new(ending.clone()));
        }
        self.is_ending.store(true, Ordering::Release);
        current.as_deref().cloned().unwrap_or(ending)
    }

    /// Marks the connection as having left the registry. Returns whether this was the first call.
    /// Only the caller of the first call removes the connection.
    pub(in crate::hub) fn leave_registry(&self) -> bool {
        !self.has_left.swap(true, Ordering::AcqRel)
    }

    /// Returns whether the connection has left the registry, or is being removed from it.
    pub(in crate::hub) fn is_gone(&self) -> bool {
        self.has_left.load(Ordering::Acquire)
    }

    /// Notes that the lifecycle has reported the start. If the connection has ended meanwhile,
    /// returns the reason of the end, which the caller then reports.
    pub(in crate::hub) fn note_start_reported(&self) -> Option<EndReason> {
        let before = self.reported.swap(START_REPORTED, Ordering::AcqRel);
        EndReason::ALL.get(usize::from(before.checked_sub(END_PENDING)?)).copied()
    }

    /// Returns whether the caller may report the end now. Otherwise the start is not reported yet,
    /// and the caller of [`note_start_reported`](Self::note_start_reported) reports the end.
    pub(in crate::hub) fn may_report_end(&self, reason: EndReason) -> bool {
        let ended = END_PENDING + reason as u8;
        self.reported.compare_exchange(NOTHING_REPORTED, ended, Ordering::AcqRel, Ordering::Acquire).is_err()
    }

    /// Returns whether the connection has passed all checks of its admission. Only the end of such
    /// a connection starts the time for which its user still counts as online.
    pub(in crate::hub) fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn set_admitted(&self) {
        self.is_admitted.store(true, Ordering::Release);
    }

    /// Returns whether, since its last poll, the stream was woken or something became due.
    pub(in crate::hub) fn needs_poll(&self, now: Millis) -> bool {
        self.subscriber.woken_since().is_some() || self.due.load(Ordering::Acquire) <= now
    }

    /// Returns the time since which the stream needs a poll: the time at which it was woken or the
    /// time at which it is due, whichever is earlier. The time may be in the future. `None` if
    /// there is no such time, and for a reader in this process, which has no deadline.
    pub(in crate::hub) fn overdue_since(&self) -> Option<Millis> {
        let due = self.due.load(Ordering::Acquire);
        let since = self.subscriber.woken_since().unwrap_or(Millis::MAX).min(due);
        (self.to_network && since != Millis::MAX).then_some(since)
    }

    /// Sets the socket that carries the stream, unless the transport is already known.
    pub(in crate::hub) fn set_transport(&self, transport: Arc<Transport>) {
        let mut state = self.state.lock();
        if !self.is_transport_known.swap(true, Ordering::AcqRel) {
            transport.add_stream();
            state.transport = Some(transport);
        }
    }

    /// Replaces the transport: by another socket that the hub can cut, or by `None` for the hub's
    /// own writer while its client takes all bytes.
    pub(in crate::hub) fn replace_transport(&self, transport: Option<Arc<Transport>>) {
        self.is_transport_known.store(true, Ordering::Release);
        if let Some(transport) = &transport {
            transport.add_stream();
        }
        let before = std::mem::replace(&mut self.state.lock().transport, transport);
        if let Some(before) = before {
            before.remove_stream();
        }
    }

    /// Releases the transport when the stream ends. An unknown transport stays unknown.
    pub(in crate::hub) fn release_transport(&self) {
        if self.is_transport_known() {
            self.replace_transport(None);
        }
    }

    /// Returns whether the hub knows the transport of the stream.
    pub(in crate::hub) fn is_transport_known(&self) -> bool {
        self.is_transport_known.load(Ordering::Acquire)
    }

    /// Returns the socket that the hub can cut, if there is one.
    pub(in crate::hub) fn transport(&self) -> Option<Arc<Transport>> {
        self.state.lock().transport.clone()
    }

    pub(in crate::hub) fn alarm_at(&self) -> Millis {
        self.alarm_at.load(Ordering::Acquire)
    }

    /// Wakes the stream.
    pub(in crate::hub) fn wake(&self, now: Millis) {
        if let Some(waker) = self.subscriber.notify(now) {
            waker.wake();
        }
    }
}

impl Alarm for ConnectionHandle {
    fn set_alarm(&self, at: Millis) {
        self.alarm_at.store(at, Ordering::Release);
    }

    fn ring(&self, is_of: impl Fn(Millis) -> bool, now: Millis) {
        let at = self.alarm_at();
        let is_this = at != Millis::MAX && is_of(at);
        if is_this && self.alarm_at.compare_exchange(at, Millis::MAX, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.wake(now);
        }
    }
}

impl AsRef<CursorHandle> for ConnectionHandle {
    fn as_ref(&self) -> &CursorHandle {
        &self.subscriber
    }
}

// The debug output omits the user and the data, because logs may contain the output.
opaque_debug!(|handle: ConnectionHandle| { id: handle.id() });
