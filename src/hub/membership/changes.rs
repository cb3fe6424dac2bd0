//! Changes of the topics of connections, and the presence events that follow from them.
//!
//! 1. For topics with presence events, the log and the roster change together under the lock of the
//!    roster. So a snapshot of the members matches its position in the log, and the events after
//!    the position report all later changes.
//! 2. The lock of the roster is taken before the locks of the log and of the registry, and never
//!    after them. No connection is woken under it: [`Inner::with_local_roster`] wakes the listeners
//!    after it has released the lock.
//! 3. [`LockedRoster::enter`] publishes `hub.joined`, unless the user is already a member on
//!    another instance. [`Inner::sweep_roster`] publishes `hub.left`, unless another instance has
//!    to publish it. After another instance has ended, [`Inner::publish_left_of_orphan`] publishes
//!    `hub.left` for its members.
//! 4. A change that concerns no topic with presence events, or a connection without a user, does
//!    not take the lock of the roster. So presence events of one topic do not slow down changes of
//!    other topics.

use std::sync::Arc;

use super::roster::Roster;
use crate::hub::Inner;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::tasks::workers;
use crate::log::{Begin, Effect, Entry, Joined, Joining, PendingWakes, Since, TooManyTopics, Wanted};
use crate::sync::{MutexGuard, Ordering};
use crate::types::{Address, Event, Topic, UserId};
use crate::wire::{Draft, hub_events};

/// The maximum number of members that one sweep removes.
const SWEEP: usize = 256;

impl Inner {
    /// Subscribes a new connection to its addresses. Returns `visible_through` at this moment.
    pub(in crate::hub) fn open_channels(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        wanted: Vec<Wanted>,
        begin: Begin,
    ) -> u64 {
        let has_events = self.has_presence_events(handle, wanted.iter().filter_map(|wanted| wanted.address.topic()));
        self.with_roster(handle, has_events, |roster| {
            let accepted_at = self.log.open(handle, wanted, begin, self.now());
            if has_events {
                self.log.topics(&handle.subscriber).iter().for_each(|topic| roster.enter(handle, topic));
            }
            accepted_at
        })
    }

    /// Ends all subscriptions of a connection, and returns its topics.
    pub(in crate::hub) fn close_channels(self: &Arc<Self>, handle: &ConnectionHandle) -> Vec<Topic> {
        let may_have_events = handle.user().is_some() && !self.presences.rules.is_empty();
        let has_events = may_have_events && self.has_presence_events(handle, &self.log.topics(&handle.subscriber));
        let topics = self.with_roster(handle, has_events, |roster| {
            let topics = self.log.close(&handle.subscriber, self.now());
            topics.iter().for_each(|topic| roster.exit(handle, topic));
            topics
        });
        // The connection may have joined a topic with presence events after the check above.
        if !has_events && self.has_presence_events(handle, &topics) {
            self.with_local_roster(true, |roster| topics.iter().for_each(|topic| roster.exit(handle, topic)));
        }
        topics
    }

    /// Makes a connection join a topic. Returns whether the topic is new. If so, wakes the
    /// connection.
    pub(in crate::hub) fn join_topic(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        topic: &Topic,
        since: Since,
    ) -> Result<bool, TooManyTopics> {
        if handle.reads_run {
            return Ok(false);
        }
        let joined = Joined { address: Address::Topic(topic.clone()), since, at: None };
        let is_new = self.join_asleep(handle, topic, &joined)?;
        if is_new {
            // The stream may have records to read, and has to report its new topics.
            handle.wake(self.now());
        }
        Ok(is_new)
    }

    /// Makes a connection join a topic without waking it, for a stream that is being opened.
    pub(in crate::hub) fn join_asleep(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        topic: &Topic,
        joined: &Joined,
    ) -> Result<bool, TooManyTopics> {
        self.with_roster(handle, self.has_presence_events(handle, [topic]), |roster| {
            let is_new = self.log.join(handle, joined, self.settings.max_topics, self.now())?;
            if is_new {
                roster.enter(handle, topic);
            }
            Ok(is_new)
        })
    }

    /// Makes a connection leave and join topics in one step, and returns its topics after the
    /// change. [`Log::change`] calls `confirm` before the change. An error of `confirm` prevents
    /// the change.
    ///
    /// [`Log::change`]: crate::log::Log::change
    pub(in crate::hub) fn change_topics<E: From<TooManyTopics>>(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        leave: &[Topic],
        join: &[Joining],
        confirm: impl FnOnce() -> Result<(), E>,
    ) -> Result<Vec<Topic>, E> {
        let has_events =
            self.has_presence_events(handle, leave.iter().chain(join.iter().map(|joining| &joining.topic)));
        let changed = self.with_roster(handle, has_events, |roster| -> Result<_, E> {
            let changed = self.log.change(handle, leave, join, self.settings.max_topics, self.now(), confirm)?;
            changed.left.iter().for_each(|topic| roster.exit(handle, topic));
            changed.joined.iter().for_each(|topic| roster.enter(handle, topic));
            Ok(changed)
        })?;
        if changed.is_any() {
            handle.wake(self.now());
        }
        Ok(changed.topics)
    }

    /// Makes a connection leave a topic. Returns whether the connection had the topic. If so, wakes
    /// the connection.
    pub(in crate::hub) fn leave_topic(self: &Arc<Self>, handle: &ConnectionHandle, topic: &Topic) -> bool {
        let left = self.with_roster(handle, self.has_presence_events(handle, [topic]), |roster| {
            let left = self.log.leave(&handle.subscriber, &Address::Topic(topic.clone()), self.now());
            if left {
                roster.exit(handle, topic);
            }
            left
        });
        if left {
            handle.wake(self.now());
        }
        left
    }

    /// Removes at most [`SWEEP`] members whose grace period is over, and publishes `hub.left`
    /// unless another instance has to publish it. Returns whether there may be more such members.
    pub(in crate::hub) fn sweep_roster(self: &Arc<Self>) -> bool {
        if self.presences.rules.is_empty() {
            return false;
        }
        self.with_local_roster(true, |roster| (0..SWEEP).all(|_| roster.sweep()))
    }

    /// Publishes `hub.left` for a member of an instance that has ended, if the topic has presence
    /// events and the user is not a member on this instance.
    pub(in crate::hub) fn publish_left_of_orphan(&self, topic: &Topic, user: &UserId) {
        let is_here = || self.presences.roster.lock().members(topic).any(|(member, _)| member == user);
        if self.presences.has_presence_events(topic)
            && !is_here()
            && let Some(shared) = &self.shared_log
        {
            let (name, data) = hub_events::left(topic, user);
            shared.announce(topic.clone(), user.clone(), Event::new(name, data));
        }
    }

    /// Returns whether the connection has a user and one of these topics has presence events.
    fn has_presence_events<'a>(&self, handle: &ConnectionHandle, topics: impl IntoIterator<Item = &'a Topic>) -> bool {
        handle.user().is_some() && topics.into_iter().any(|topic| self.presences.has_presence_events(topic))
    }

    /// Makes a change of a connection, under the lock of the roster if `has_events`. With a shared
    /// log, also queues the connection for the next presence update.
    fn with_roster<R>(
        self: &Arc<Self>,
        handle: &ConnectionHandle,
        has_events: bool,
        change: impl FnOnce(&mut LockedRoster<'_>) -> R,
    ) -> R {
        let changed = self.with_local_roster(has_events, change);
        if let Some(shared) = &self.shared_log {
            shared.changed(handle.id());
        }
        changed
    }

    /// Makes a change, under the lock of the roster if `has_events`. Wakes the listeners of
    /// presence events after the lock is released.
    fn with_local_roster<R>(self: &Arc<Self>, has_events: bool, change: impl FnOnce(&mut LockedRoster<'_>) -> R) -> R {
        let roster = has_events.then(|| self.presences.roster.lock());
        let mut locked = LockedRoster { inner: self, roster, asleep: PendingWakes::default() };
        let changed = change(&mut locked);
        let LockedRoster { roster: Some(roster), asleep, .. } = locked else { return changed };
        let is_due = roster.next_due().is_some();
        drop(roster);
        self.log.wake(asleep, self.now());
        workers::wake_rest(&**self);
        if is_due {
            self.tasks.sweep.ensure(self);
        }
        changed
    }
}

/// The locked roster, and the listeners to be woken after the lock is released.
struct LockedRoster<'a> {
    inner: &'a Inner,
    /// `None` if the change concerns no topic with presence events. The methods then do nothing.
    roster: Option<MutexGuard<'a, Roster>>,
    asleep: PendingWakes,
}

impl LockedRoster<'_> {
    /// Adds a connection to a topic. Publishes `hub.joined` for a new member, unless the user is
    /// already a member on another instance.
    fn enter(&mut self, handle: &ConnectionHandle, topic: &Topic) {
        if let Some(roster) = &mut self.roster
            && let Some(user) = handle.user()
            && self.inner.presences.has_presence_events(topic)
            && roster.enter(topic, user, handle.data())
            && !self.inner.shared_log.as_ref().is_some_and(|shared| shared.is_member(topic, user, self.inner.now()))
        {
            let event = hub_events::joined(topic, user, handle.data().map(AsRef::as_ref));
            self.publish(topic.clone(), user, event);
        }
    }

    /// Removes a connection from a topic. If it was the member's last connection, a sweep publishes
    /// `hub.left` after the grace period.
    fn exit(&mut self, handle: &ConnectionHandle, topic: &Topic) {
        if let Some(roster) = &mut self.roster
            && let Some(user) = handle.user()
            && self.inner.presences.has_presence_events(topic)
        {
            let was_due = roster.next_due();
            roster.exit(topic, user, self.inner.now());
            if was_due.is_none() {
                self.inner.tasks.sweep.rouse();
            }
        }
    }

    /// Removes a member whose grace period is over. Publishes `hub.left`, unless another instance
    /// has to publish it. Returns whether there was such a member.
    fn sweep(&mut self) -> bool {
        let now = self.inner.now();
        let Some((topic, user)) = self.roster.as_mut().and_then(|roster| roster.sweep(now)) else { return false };
        if !self.inner.shared_log.as_ref().is_some_and(|shared| shared.publishes_left(&topic, &user, now)) {
            let event = hub_events::left(&topic, &user);
            self.publish(topic, &user, event);
        }
        true
    }

    /// Publishes a presence event, unless the hub was drained. With a shared log, queues the event
    /// for the control task.
    fn publish(&mut self, topic: Topic, user: &UserId, (name, data): (&'static str, String)) {
        if self.inner.closed.load(Ordering::Acquire) {
            return;
        }
        if let Some(shared) = &self.inner.shared_log {
            shared.announce(topic, user.clone(), Event::new(name, data));
            return;
        }
        let draft = Draft::control(name, &data);
        let entry = Entry { audience: Address::Topic(topic).into(), effect: Effect::Nothing, draft, published: None };
        let (_, asleep) = self.inner.log.append_asleep([entry], self.inner.now());
        self.asleep.unite(asleep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;
    use crate::types::{Subscription, TopicFilter};

    #[test]
    fn streams_without_presence_events_take_no_lock_of_the_roster() {
        let hub = Hub::builder().presence_for(TopicFilter::exact("room")).build().unwrap();
        let ada = |topic: &str| Subscription::for_user("ada").topic(topic);
        let _in_room = hub.subscribe(ada("room"), None).unwrap();
        let held = hub.inner.presences.roster.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        let others = hub.clone();
        let opening = std::thread::spawn(move || {
            let stream = others.subscribe(ada("news"), None).unwrap();
            let handle = others.registry().find(stream.connection()).unwrap();
            let topic = Topic::try_from("weather").unwrap();
            assert!(others.inner.join_topic(&handle, &topic, Since::Now).unwrap());
            assert!(others.inner.leave_topic(&handle, &topic));
            drop((stream, handle));
            done.send(()).unwrap();
        });
        let waited = is_done.recv_timeout(std::time::Duration::from_secs(10));
        drop(held);
        opening.join().unwrap();
        waited.expect("a stream waited for the lock of the roster");
        assert_eq!(hub.topic("room").presence().members.len(), 1);
    }
}
