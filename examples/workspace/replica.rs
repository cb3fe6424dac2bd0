//! The state of the services, which every instance builds from the events of the log.
//!
//! To change something, a service only publishes an event. A task reads the events from the hub, as
//! a page does, and passes them to the services. With one instance this detour takes some
//! microseconds. With several instances that share a log, it gives all of them the same documents.
//! Only documents in a table of Postgres are not part of this state: see `documents`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tower_sse::{
    Event, Hub, Message, Position, PublishError, ReceivedEvent, Start, SubscriberItem, Subscription, Target,
};

/// The pause before the task reads the log again.
const PAUSE: Duration = Duration::from_millis(200);
/// The maximum time that a response waits for its own event.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A service whose state follows the log.
pub(crate) trait Follower: Send + Sync {
    /// Returns the topics of its events.
    fn topics(&self) -> Vec<String>;
    /// Applies an event to the state.
    fn apply(&self, event: &ReceivedEvent);
    /// Clears the state, because the log is read again from its start.
    fn clear(&self);
}

/// The position in the log that the services have reached.
#[derive(Clone)]
pub(crate) struct Replica {
    applied: watch::Receiver<Option<Position>>,
}

impl Replica {
    pub(crate) fn follow(hub: Hub, followers: Vec<Box<dyn Follower>>) -> Self {
        let (applied, watch) = watch::channel(None);
        let followers: Arc<[_]> = followers.into();
        tokio::spawn(async move {
            while !applied.is_closed() {
                // A separate task: if a service panics, this loop reads the log again from its
                // start.
                let _ = tokio::spawn(read(hub.clone(), Arc::clone(&followers), applied.clone())).await;
                applied.send_replace(None);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { applied: watch }
    }

    /// Returns the position up to which the state of the services is complete, or `None` until the
    /// log has been read.
    ///
    /// A handler takes the position first and the state second, and the page opens its stream at
    /// this position. So a page may receive an event twice, but misses none.
    pub(crate) fn position(&self) -> Option<Position> {
        *self.applied.borrow()
    }

    /// Waits until the log has been read.
    pub(crate) async fn ready(&self) {
        let _ = self.applied.clone().wait_for(Option::is_some).await;
    }

    /// Waits until an event is applied, so that a client that writes and then reads finds its
    /// change.
    pub(crate) async fn wait_until_applied(&self, position: impl Into<Option<Position>>) {
        let Some(position) = position.into() else { return };
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|at| at.is_some_and(|at| at >= position));
        let _ = tokio::time::timeout(MAX_WAIT, reached).await;
    }
}

/// Reads the log until events are lost or the hub is drained.
async fn read(hub: Hub, followers: Arc<[Box<dyn Follower>]>, applied: watch::Sender<Option<Position>>) {
    let topics = followers.iter().flat_map(|follower| follower.topics());
    let everything = Subscription::anonymous().with_topics(topics).start(Start::Oldest);
    // `subscribe` fails until the instance has read the shared log, and after the drain.
    let Ok(mut log) = hub.subscribe(everything, None) else { return };
    followers.iter().for_each(|follower| follower.clear());
    let mut is_live = false;
    while let Some(item) = log.next().await {
        let position = match item {
            SubscriberItem::Event(event) => {
                followers.iter().for_each(|follower| follower.apply(&event));
                event.position
            }
            SubscriberItem::Live(position) => {
                is_live = true;
                position
            }
            // The shared log is unavailable. The state stays valid, and the stream continues
            // afterwards.
            SubscriberItem::Stale => continue,
            // Older events are no longer retained. Reading the log again would not return them.
            SubscriberItem::Gap { .. } if !is_live => continue,
            _ => return,
        };
        if is_live {
            applied.send_replace(Some(position));
        }
    }
}

/// Publishes several events, and returns the position of the last one. With the log of this
/// process, every reader receives all of them or none.
pub(crate) async fn publish_all(hub: &Hub, events: Vec<(Target<'_>, Event)>) -> Result<Option<Position>, PublishError> {
    let mut last = None;
    for published in hub.publish_many(events).await {
        last = Some(published?.position);
    }
    Ok(last)
}

/// Returns the value in an event, if the event is of this type. An event of a later version of this
/// program may not deserialize: it is skipped.
pub(crate) fn value<T: Message + DeserializeOwned>(event: &ReceivedEvent) -> Option<T> {
    let skipped = |error: &_| tracing::warn!(name = event.name, %error, "an event was skipped");
    event.message().inspect_err(skipped).ok()?
}

/// Returns a random id, which is unique across instances.
pub(crate) fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Returns the time in milliseconds since the Unix epoch, as JavaScript counts it.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The state of a service.
pub(crate) type Shared<T> = Arc<std::sync::Mutex<T>>;

/// Locks the state, also after a panic: the log is then read again, which rebuilds the state.
pub(crate) fn lock<T>(shared: &Shared<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
