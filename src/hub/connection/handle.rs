//! What others know of an open connection. Its stream holds it too.

use std::sync::Arc;

use http::Extensions;
use tokio::time::Duration;

use crate::hub::Transport;
use crate::hub::tasks::workers::Alarm;
use crate::log::{CursorHandle, Millis, millis};
use crate::macros::opaque_debug;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering};
use crate::types::{Authority, ConnectionId, EndReason, Reconnect, Subscription, UserId};

pub(crate) struct ConnectionHandle {
    pub(crate) subscriber: CursorHandle,
    /// Who it is; none for a page of nobody in particular.
    who: Option<Box<Who>>,
    pub(in crate::hub) opened_at: Millis,
    /// Its number among all connections, by age.
    pub(in crate::hub) opened: AtomicU64,
    pub(in crate::hub) resumed: bool,
    /// How many events its stream was handed.
    pub(in crate::hub) delivered: AtomicU64,
    /// When its stream means to be polled at the latest.
    pub(in crate::hub) due: AtomicU64,
    /// The last [`DisconnectClock`](crate::types::disconnect_clock::DisconnectClock) at which the
    /// application took a topic away.
    pub(in crate::hub) taken_at: AtomicU64,
    fate: Mutex<Fate>,
    is_ending: AtomicBool,
    /// It is written to a network. A reader in this process may take its time.
    pub(in crate::hub) to_network: bool,
    gone: AtomicBool,
    /// When a clock is to wake it. Never, if none was asked to, or it has rung or is gone.
    alarm_at: AtomicU64,
    is_there: AtomicBool,
    /// See [`TOLD_NOTHING`].
    told: AtomicU8,
    /// It is known what it is written to: a socket that can be cut, or nothing that would have to be: the
    /// hub's own writer, whose peer takes all that there is. Else it is a body of which nobody knows where it goes.
    is_carrier_known: AtomicBool,
}

/// What is looked at and changed once or twice in a life.
#[derive(Default)]
struct Fate {
    /// Set by whoever ends it; the stream acts on it when it is polled next.
    ending: Option<Box<Ending>>,
    /// The socket that it is written to and that the hub can cut, if there is one.
    transport: Option<Arc<Transport>>,
}

/// What listeners of the lifecycle know of a connection, in one byte: nothing, its beginning, or
/// nothing although it has ended, for a reason.
const TOLD_NOTHING: u8 = 0;
const TOLD_BEGINNING: u8 = 1;
const ENDED: u8 = 2;

struct Who {
    user: Option<UserId>,
    /// The key under which limits count it, in place of its user.
    counted_as: Option<Arc<str>>,
    data: Option<Arc<str>>,
    extensions: Extensions,
    /// Who may take its authority away while it is open.
    authority: Option<Arc<dyn Authority>>,
    /// When its subscription's time is over. Changed by a recheck; the stream looks when it is polled next.
    expires_at: AtomicU64,
}

/// How a stream is to end.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) reconnect: Reconnect,
    pub(crate) retry: Option<Duration>,
    pub(crate) note: Option<Arc<str>>,
    /// What is to be written before: the records up to here, or none.
    pub(crate) after: u64,
}

impl Ending {
    /// At once, without what may be waiting.
    pub(in crate::hub) fn now(reason: EndReason) -> Self {
        Self { reason, reconnect: Reconnect::Now, retry: None, note: None, after: 0 }
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
        let Subscription { user, counted_as, data, extensions, .. } = subscription;
        let expires_at = subscription.expiry.map(|expiry| now.saturating_add(millis(expiry.remaining())));
        let is_somebody = user.is_some() || counted_as.is_some() || data.is_some() || !extensions.is_empty();
        let is_somebody = is_somebody || authority.is_some() || expires_at.is_some();
        let who = || Who {
            user: user.clone(),
            counted_as: counted_as.clone(),
            data: data.clone(),
            extensions: extensions.clone(),
            authority,
            expires_at: AtomicU64::new(expires_at.unwrap_or(Millis::MAX)),
        };
        let who = is_somebody.then(|| Box::new(who()));
        Self {
            subscriber: CursorHandle::new(id),
            who,
            opened_at: now,
            opened: AtomicU64::new(0),
            resumed,
            delivered: AtomicU64::new(0),
            due: AtomicU64::new(Millis::MAX),
            taken_at: AtomicU64::new(0),
            fate: Mutex::default(),
            is_ending: AtomicBool::new(false),
            to_network,
            gone: AtomicBool::new(false),
            alarm_at: AtomicU64::new(Millis::MAX),
            is_there: AtomicBool::new(false),
            told: AtomicU8::new(TOLD_NOTHING),
            is_carrier_known: AtomicBool::new(false),
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        *self.subscriber.id()
    }

    pub(in crate::hub) fn authority(&self) -> Option<&Arc<dyn Authority>> {
        self.who.as_ref()?.authority.as_ref()
    }

    pub(crate) fn user(&self) -> Option<&UserId> {
        self.who.as_ref()?.user.as_ref()
    }

    pub(in crate::hub) fn counted_as(&self) -> Option<&Arc<str>> {
        self.who.as_ref()?.counted_as.as_ref()
    }

    pub(in crate::hub) fn data(&self) -> Option<&Arc<str>> {
        self.who.as_ref()?.data.as_ref()
    }

    pub(in crate::hub) fn extensions(&self) -> Extensions {
        self.who.as_ref().map(|who| who.extensions.clone()).unwrap_or_default()
    }

    /// `Millis::MAX` if it does not expire.
    pub(in crate::hub) fn expires_at(&self) -> Millis {
        self.who.as_ref().map_or(Millis::MAX, |who| who.expires_at.load(Ordering::Acquire))
    }

    /// For one that somebody has authority over, or that expires already.
    pub(in crate::hub) fn expire_at(&self, at: Millis) {
        if let Some(who) = &self.who {
            who.expires_at.store(at, Ordering::Release);
        }
    }

    pub(in crate::hub) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn ending(&self) -> Option<Ending> {
        if !self.is_ending() {
            return None;
        }
        self.fate.lock().ending.as_deref().cloned()
    }

    /// Tells the stream to end, and returns how it does. The first reason stands, unless a later one keeps
    /// the client away for longer. Wake it with [`wake`](Self::wake).
    pub(in crate::hub) fn end(&self, ending: Ending) -> Ending {
        let current = &mut self.fate.lock().ending;
        if current.as_ref().is_none_or(|current| ending.reconnect.is_stricter_than(current.reconnect)) {
            *current = Some(Box::new(ending.clone()));
        }
        self.is_ending.store(true, Ordering::Release);
        current.as_deref().cloned().unwrap_or(ending)
    }

    /// Returns whether this was the first call: who takes it out of the registry.
    pub(in crate::hub) fn leave_registry(&self) -> bool {
        !self.gone.swap(true, Ordering::AcqRel)
    }

    /// It is being taken out of everything, or was.
    pub(in crate::hub) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Its beginning was told. Why it has ended, if the end is to be told now.
    pub(in crate::hub) fn beginning_was_told(&self) -> Option<EndReason> {
        let before = self.told.swap(TOLD_BEGINNING, Ordering::AcqRel);
        EndReason::ALL.get(usize::from(before.checked_sub(ENDED)?)).copied()
    }

    /// Whether its end can be told; else who tells the beginning does that.
    pub(in crate::hub) fn may_tell_end(&self, reason: EndReason) -> bool {
        let ended = ENDED + reason as u8;
        self.told.compare_exchange(TOLD_NOTHING, ended, Ordering::AcqRel, Ordering::Acquire).is_err()
    }

    /// A stream came of it.
    pub(in crate::hub) fn was_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire)
    }

    pub(in crate::hub) fn is_there_now(&self) {
        self.is_there.store(true, Ordering::Release);
    }

    /// It was woken, or its own time has come, and it has not looked since.
    pub(in crate::hub) fn owes_a_look(&self, now: Millis) -> bool {
        self.subscriber.woken_since().is_some() || self.due.load(Ordering::Acquire) <= now
    }

    /// Since when it has not been polled although it was woken or its own time had come.
    pub(in crate::hub) fn overdue_since(&self) -> Option<Millis> {
        let due = self.due.load(Ordering::Acquire);
        let since = self.subscriber.woken_since().unwrap_or(Millis::MAX).min(due);
        (self.to_network && since != Millis::MAX).then_some(since)
    }

    /// Only the first is kept: there is only one.
    pub(in crate::hub) fn carried_by(&self, transport: Arc<Transport>) {
        let mut fate = self.fate.lock();
        if !self.is_carrier_known.swap(true, Ordering::AcqRel) {
            transport.add_stream();
            fate.transport = Some(transport);
        }
    }

    /// From now on by another socket that can be cut, or by nothing that would have to be.
    pub(in crate::hub) fn carried_over_to(&self, transport: Option<Arc<Transport>>) {
        self.is_carrier_known.store(true, Ordering::Release);
        if let Some(transport) = &transport {
            transport.add_stream();
        }
        let before = std::mem::replace(&mut self.fate.lock().transport, transport);
        if let Some(before) = before {
            before.remove_stream();
        }
    }

    /// It is over. Where it was written to stays unknown if it was.
    pub(in crate::hub) fn let_carrier_go(&self) {
        if self.is_carrier_known() {
            self.carried_over_to(None);
        }
    }

    pub(in crate::hub) fn is_carrier_known(&self) -> bool {
        self.is_carrier_known.load(Ordering::Acquire)
    }

    /// The socket that is to be cut, if it has to be.
    pub(in crate::hub) fn transport(&self) -> Option<Arc<Transport>> {
        self.fate.lock().transport.clone()
    }

    pub(in crate::hub) fn alarm_at(&self) -> Millis {
        self.alarm_at.load(Ordering::Acquire)
    }

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

// The user and the data are left out, since logs may show them.
opaque_debug!(|handle: ConnectionHandle| { id: handle.id() });
