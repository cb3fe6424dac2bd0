//! What others know of an open connection. Its stream holds it too.

use std::fmt;
use std::sync::{Arc, OnceLock};

use http::Extensions;
use tokio::time::Duration;

use super::Transport;
use super::recheck::Authority;
use crate::kick::Returns;
use crate::log::{Millis, Subscriber};
use crate::name::{ConnectionId, UserId};
use crate::reason::EndReason;
use crate::subscription::Subscription;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

pub(crate) struct Link {
    pub(crate) id: ConnectionId,
    pub(crate) subscriber: Arc<Subscriber>,
    /// Who it is; none for a page of nobody in particular.
    who: Option<Box<Who>>,
    /// Who may take its authority away while it is open.
    pub(super) authority: Option<Arc<dyn Authority>>,
    pub(super) opened_at: Millis,
    /// Its number among all connections, by age.
    pub(super) opened: AtomicU64,
    pub(super) resumed: bool,
    /// How many events its stream was handed.
    pub(super) delivered: AtomicU64,
    /// When its stream means to be polled at the latest.
    pub(super) due: AtomicU64,
    /// When its subscription's time is over. Changed by a recheck; the stream looks when it is polled next.
    pub(super) expires_at: AtomicU64,
    /// The last [`Moment`](crate::moment::Moment) at which the application took a topic away.
    pub(super) taken_at: AtomicU64,
    /// Set by whoever ends it; the stream acts on it when it is polled next.
    ending: Mutex<Option<Box<Ending>>>,
    is_ending: AtomicBool,
    /// The socket below, where it is known.
    pub(super) transport: OnceLock<Arc<Transport>>,
    /// It is written to a network. A reader in this process may take its time.
    pub(super) to_network: bool,
    gone: AtomicBool,
    is_there: AtomicBool,
    /// What listeners of the lifecycle know of it: nothing, its beginning, or nothing although it has ended.
    told: Mutex<Told>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Told {
    #[default]
    Nothing,
    Beginning,
    /// It ended, for this reason, before its beginning was told.
    Ended(EndReason),
}

struct Who {
    user: Option<UserId>,
    data: Option<Arc<str>>,
    extensions: Extensions,
}

/// How a stream is to end.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) returns: Returns,
    pub(crate) retry: Option<Duration>,
    pub(crate) note: Option<Arc<str>>,
    /// What is to be written before: the records up to here, or none.
    pub(crate) after: u64,
}

impl Ending {
    /// At once, without what may be waiting.
    pub(super) fn now(reason: EndReason) -> Self {
        Self { reason, returns: Returns::Now, retry: None, note: None, after: 0 }
    }
}

impl Link {
    pub(super) fn new(
        id: ConnectionId,
        to_network: bool,
        subscription: &Subscription,
        authority: Option<Arc<dyn Authority>>,
        resumed: bool,
        now: Millis,
    ) -> Self {
        let Subscription { user, data, extensions, .. } = subscription;
        let who = (user.is_some() || data.is_some() || !extensions.is_empty())
            .then(|| Box::new(Who { user: user.clone(), data: data.clone(), extensions: extensions.clone() }));
        Self {
            id,
            subscriber: Arc::new(Subscriber::new(id)),
            who,
            authority,
            opened_at: now,
            opened: AtomicU64::new(0),
            resumed,
            delivered: AtomicU64::new(0),
            due: AtomicU64::new(Millis::MAX),
            expires_at: AtomicU64::new(Millis::MAX),
            taken_at: AtomicU64::new(0),
            ending: Mutex::default(),
            is_ending: AtomicBool::new(false),
            transport: OnceLock::new(),
            to_network,
            gone: AtomicBool::new(false),
            is_there: AtomicBool::new(false),
            told: Mutex::default(),
        }
    }

    pub(crate) fn user(&self) -> Option<&UserId> {
        self.who.as_ref()?.user.as_ref()
    }

    pub(super) fn data(&self) -> Option<&Arc<str>> {
        self.who.as_ref()?.data.as_ref()
    }

    pub(super) fn extensions(&self) -> Extensions {
        self.who.as_ref().map(|who| who.extensions.clone()).unwrap_or_default()
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        if !self.is_ending.load(Ordering::Acquire) {
            return None;
        }
        self.ending.lock().as_deref().cloned()
    }

    /// Tells the stream to end, and returns how it does. The first reason stands, unless a later one keeps the client away
    /// for longer. Wake it with [`wake`](Self::wake).
    pub(super) fn end(&self, ending: Ending) -> Ending {
        let mut current = self.ending.lock();
        if current.as_ref().is_none_or(|current| ending.returns.is_stricter_than(current.returns)) {
            *current = Some(Box::new(ending.clone()));
        }
        self.is_ending.store(true, Ordering::Release);
        current.as_deref().cloned().unwrap_or(ending)
    }

    /// Returns whether this was the first call: who takes it out of the registry.
    pub(super) fn leave_registry(&self) -> bool {
        !self.gone.swap(true, Ordering::AcqRel)
    }

    /// It is being taken out of everything, or was.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Its beginning was told. Why it has ended, if the end is to be told now.
    pub(super) fn beginning_was_told(&self) -> Option<EndReason> {
        match std::mem::replace(&mut *self.told.lock(), Told::Beginning) {
            Told::Ended(reason) => Some(reason),
            Told::Nothing | Told::Beginning => None,
        }
    }

    /// Whether its end can be told; else who tells the beginning does that.
    pub(super) fn may_tell_end(&self, reason: EndReason) -> bool {
        let mut told = self.told.lock();
        if matches!(*told, Told::Nothing) {
            *told = Told::Ended(reason);
            return false;
        }
        true
    }

    /// A stream came of it.
    pub(super) fn was_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire)
    }

    pub(super) fn is_there_now(&self) {
        self.is_there.store(true, Ordering::Release);
    }

    /// It was woken, or its own time has come, and it has not looked since.
    pub(super) fn owes_a_look(&self, now: Millis) -> bool {
        self.subscriber.woken_since().is_some() || self.due.load(Ordering::Acquire) <= now
    }

    /// Since when it has not been polled although it was woken or its own timer was over.
    pub(super) fn overdue_since(&self) -> Option<Millis> {
        let due = self.due.load(Ordering::Acquire);
        let since = self.subscriber.woken_since().unwrap_or(Millis::MAX).min(due);
        (self.to_network && since != Millis::MAX).then_some(since)
    }

    pub(super) fn wake(&self, now: Millis) {
        if let Some(waker) = self.subscriber.notify(now) {
            waker.wake();
        }
    }
}

/// Whose it is and what it may read is nobody's business.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).finish_non_exhaustive()
    }
}
