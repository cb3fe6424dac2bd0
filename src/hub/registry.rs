//! The connections that are open on this instance.

use std::collections::hash_map::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::Transport;
use crate::log::{Millis, Subscriber};
use crate::name::ConnectionId;
use crate::reason::EndReason;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering};

/// What others know of an open connection. Its stream holds it too.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: ConnectionId,
    pub(crate) subscriber: Arc<Subscriber>,
    /// When its stream means to be polled at the latest.
    pub(super) due: AtomicU64,
    /// Set once by whoever ends it; the stream acts on it when it is polled next.
    ending: OnceLock<Ending>,
    /// The socket below, where it is known.
    pub(super) transport: OnceLock<Arc<Transport>>,
    /// It is written to a network. A reader in this process may take its time.
    pub(super) to_network: bool,
    gone: AtomicBool,
}

/// How a stream is to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) retry: Option<Duration>,
    /// What is to be written before: the records up to here, or none.
    pub(crate) after: u64,
}

impl Ending {
    /// At once, without what may be waiting.
    pub(super) fn now(reason: EndReason) -> Self {
        Self { reason, retry: None, after: 0 }
    }
}

impl Link {
    pub(super) fn new(id: ConnectionId, to_network: bool) -> Self {
        Self {
            id,
            subscriber: Arc::new(Subscriber::new()),
            due: AtomicU64::new(Millis::MAX),
            ending: OnceLock::new(),
            transport: OnceLock::new(),
            to_network,
            gone: AtomicBool::new(false),
        }
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// Tells the stream to end. The first reason stands. Wake it with [`Subscriber::notify`].
    pub(super) fn end(&self, ending: Ending) {
        self.ending.get_or_init(|| ending);
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
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    links: Mutex<HashMap<ConnectionId, Arc<Link>>>,
    /// How many of them are written to a network.
    networked: AtomicUsize,
    emptied: Notify,
}

impl Registry {
    pub(crate) fn len(&self) -> usize {
        self.links.lock().len()
    }

    pub(crate) fn find(&self, id: ConnectionId) -> Option<Arc<Link>> {
        self.links.lock().get(&id).cloned()
    }

    pub(super) fn insert(&self, link: Arc<Link>) {
        let mut links = self.links.lock();
        self.networked.fetch_add(usize::from(link.to_network), Ordering::AcqRel);
        links.insert(link.id, link);
    }

    /// Takes it out; false if it was out already.
    pub(super) fn remove(&self, link: &Link) -> bool {
        if link.gone.swap(true, Ordering::AcqRel) {
            return false;
        }
        let mut links = self.links.lock();
        links.remove(&link.id);
        let len = links.len();
        if links.capacity() > 1024 && len < links.capacity() / 8 {
            links.shrink_to(len * 2);
        }
        drop(links);
        if link.to_network && self.networked.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.emptied.notify_waiters();
        }
        true
    }

    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.links.lock().values().cloned().collect()
    }

    /// Until nobody is connected over a network.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            let mut emptied = std::pin::pin!(emptied);
            emptied.as_mut().enable();
            if self.networked.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }
}
