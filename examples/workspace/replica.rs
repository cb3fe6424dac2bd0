//! How services keep their state: each is made of what the log says, on every instance alike.
//!
//! A service that is asked to change something publishes an event, and changes nothing. This task reads the events out of the
//! hub, as a page would, and hands them to the services. With one instance that is a detour of some microseconds; with
//! several that share a log, it is why all of them have the same documents.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tower_sse::{Event, Hub, Position, PublishError, ReceivedEvent, Start, SubscriberItem, Subscription, Target};

/// How long to wait before the log is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// How long an answer waits for what it caused.
const PATIENCE: Duration = Duration::from_secs(1);

/// A service whose state is what the log says.
pub(crate) trait Follower: Send + Sync {
    /// Where its events are.
    fn topics(&self) -> Vec<String>;
    /// Changes the state.
    fn apply(&self, event: &ReceivedEvent);
    /// Forgets everything: the log begins anew.
    fn clear(&self);
}

/// How far the services have followed the log.
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
                // A task of its own: a service that panics ends this reading, and the log is read anew.
                let _ = tokio::spawn(read(hub.clone(), Arc::clone(&followers), applied.clone())).await;
                applied.send_replace(None);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { applied: watch }
    }

    /// What the services know is everything up to here. A page takes this first, then the state, then the stream from here
    /// on: so what happens in between comes twice rather than not at all. None while there is nothing to rely on.
    pub(crate) fn position(&self) -> Option<Position> {
        *self.applied.borrow()
    }

    /// Waits until the log was read.
    pub(crate) async fn ready(&self) {
        let _ = self.applied.clone().wait_for(Option::is_some).await;
    }

    /// Waits until an event of one's own was applied, so that who writes and then reads finds it.
    pub(crate) async fn applied(&self, position: impl Into<Option<Position>>) {
        let Some(position) = position.into() else { return };
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|at| at.is_some_and(|at| at >= position));
        let _ = tokio::time::timeout(PATIENCE, reached).await;
    }
}

/// Reads until something is not to be had any more, or the hub is drained.
async fn read(hub: Hub, followers: Arc<[Box<dyn Follower>]>, applied: watch::Sender<Option<Position>>) {
    let topics = followers.iter().flat_map(|follower| follower.topics());
    let everything = Subscription::anonymous().with_topics(topics).start(Start::Oldest);
    // An error before an instance has read the shared log, and once it is drained.
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
            // The log is away. What was read of it stays true, and the stream goes on when it is back.
            SubscriberItem::Stale => continue,
            // Events from before are no longer retained. Reading the log anew would not bring them back.
            SubscriberItem::Gap { .. } if !is_live => continue,
            _ => return,
        };
        if is_live {
            applied.send_replace(Some(position));
        }
    }
}

/// In one step: with the log of this process nobody sees one without the others. The position of the last, if there was one.
pub(crate) async fn publish_all(hub: &Hub, events: Vec<(Target<'_>, Event)>) -> Result<Option<Position>, PublishError> {
    let mut last = None;
    for published in hub.publish_many(events).await {
        last = Some(published?.position);
    }
    Ok(last)
}

/// The value in an event of this name. One that cannot be read is of a later version of this program.
pub(crate) fn value<T: DeserializeOwned>(event: &ReceivedEvent, name: &str) -> Option<T> {
    if event.name != name {
        return None;
    }
    serde_json::from_str(&event.data).inspect_err(|error| tracing::warn!(name, %error, "not read")).ok()
}

/// A name that no other instance gives.
pub(crate) fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Milliseconds, as pages count them.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Where a service keeps its state.
pub(crate) type Shared<T> = Arc<std::sync::Mutex<T>>;

/// What a panic left half done is made anew: the log is read again from its beginning.
pub(crate) fn lock<T>(shared: &Shared<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
