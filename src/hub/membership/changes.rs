//! Changes of the topics of connections, and the presence events that follow from them.
//!
//! 1. A connection gets and leaves topics that tell of it under the roster's lock, log and roster together. So a
//!    snapshot of such a topic and the position in it belong together: later events tell what changed since.
//! 2. The roster's lock is taken before those of the log and the registry, never after. No connection
//!    is woken under it.
//! 3. `hub.joined` is published by [`LockedRoster::enter`], `hub.left` by [`Inner::sweep_roster`], unless another instance has
//!    the member. If another instance has ended, [`Inner::tell_of_orphan`] publishes `hub.left` for it.

use std::sync::Arc;

use super::roster::Roster;
use crate::hub::Inner;
use crate::hub::connection::handle::ConnectionHandle;
use crate::hub::tasks::workers;
use crate::log::{Asleep, Begin, Effect, Entry, Joined, Joining, Since, TooManyTopics, Wanted};
use crate::sync::{MutexGuard, Ordering};
use crate::types::{Address, Event, Topic, UserId};
use crate::wire::{Draft, hub_events};

/// How many members are told of as gone in one turn.
const SWEEP: usize = 256;

/// What a connection is subscribed to changes here and nowhere else, so that the roster knows.
///
/// A change that is about no topic that tells takes no lock of the roster, so that one rule costs the others nothing.
impl Inner {
    pub(in crate::hub) fn open_channels(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        wanted: Vec<Wanted>,
        begin: Begin,
    ) -> u64 {
        let tells = self.tells_of(handle, wanted.iter().filter_map(|wanted| wanted.address.topic()));
        self.with_roster(handle, tells, |told| {
            let accepted_at = self.log.open(handle, wanted, begin, self.now());
            if tells {
                self.log.topics(&handle.subscriber).iter().for_each(|topic| told.enter(handle, topic));
            }
            accepted_at
        })
    }

    pub(in crate::hub) fn close_channels(self: &Arc<Self>, handle: &ConnectionHandle) -> Vec<Topic> {
        let may_tell = handle.user().is_some() && !self.presences.rules.is_empty();
        let tells = may_tell && self.tells_of(handle, &self.log.topics(&handle.subscriber));
        let topics = self.with_roster(handle, tells, |told| {
            let topics = self.log.close(&handle.subscriber, self.now());
            topics.iter().for_each(|topic| told.exit(handle, topic));
            topics
        });
        // It may have joined one that tells between the look and the end.
        if !tells && self.tells_of(handle, &topics) {
            self.with_own_roster(true, |told| topics.iter().for_each(|topic| told.exit(handle, topic)));
        }
        topics
    }

    pub(in crate::hub) fn join_topic(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        topic: &Topic,
        since: Since,
    ) -> Result<bool, TooManyTopics> {
        let joined = Joined { address: Address::Topic(topic.clone()), since, at: None };
        let is_new = self.join_asleep(handle, topic, &joined)?;
        if is_new {
            // It may have something to read, and tells its page which topics it has now.
            handle.wake(self.now());
        }
        Ok(is_new)
    }

    /// The same for a stream that is being opened: it need not be woken.
    pub(in crate::hub) fn join_asleep(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        topic: &Topic,
        joined: &Joined,
    ) -> Result<bool, TooManyTopics> {
        self.with_roster(handle, self.tells_of(handle, [topic]), |told| {
            let is_new = self.log.join(handle, joined, self.settings.max_topics, self.now())?;
            if is_new {
                told.enter(handle, topic);
            }
            Ok(is_new)
        })
    }

    /// Leaves, then joins, all or nothing; returns the topics in force. `confirm` is asked as [`Log::change`] says.
    ///
    /// [`Log::change`]: crate::log::Log::change
    pub(in crate::hub) fn change_topics<E: From<TooManyTopics>>(
        self: &Arc<Self>,
        handle: &Arc<ConnectionHandle>,
        leave: &[Topic],
        join: &[Joining],
        confirm: impl FnOnce() -> Result<(), E>,
    ) -> Result<Vec<Topic>, E> {
        let tells = self.tells_of(handle, leave.iter().chain(join.iter().map(|joining| &joining.topic)));
        let changed = self.with_roster(handle, tells, |told| -> Result<_, E> {
            let changed = self.log.change(handle, leave, join, self.settings.max_topics, self.now(), confirm)?;
            changed.left.iter().for_each(|topic| told.exit(handle, topic));
            changed.joined.iter().for_each(|topic| told.enter(handle, topic));
            Ok(changed)
        })?;
        if changed.is_any() {
            handle.wake(self.now());
        }
        Ok(changed.topics)
    }

    pub(in crate::hub) fn leave_topic(self: &Arc<Self>, handle: &ConnectionHandle, topic: &Topic) -> bool {
        let left = self.with_roster(handle, self.tells_of(handle, [topic]), |told| {
            let left = self.log.leave(&handle.subscriber, &Address::Topic(topic.clone()), self.now());
            if left {
                told.exit(handle, topic);
            }
            left
        });
        if left {
            handle.wake(self.now());
        }
        left
    }

    /// Tells of members that have not come back, of some if there are many. Returns whether there are more.
    pub(in crate::hub) fn sweep_roster(self: &Arc<Self>) -> bool {
        if self.presences.rules.is_empty() {
            return false;
        }
        self.with_own_roster(true, |told| (0..SWEEP).all(|_| told.sweep()))
    }

    /// A member of an instance that has ended is gone, unless it is here.
    pub(in crate::hub) fn tell_of_orphan(&self, topic: &Topic, user: &UserId) {
        let is_here = || self.presences.roster.lock().members(topic).any(|(member, _)| member == user);
        if self.presences.tells(topic)
            && !is_here()
            && let Some(shared) = &self.shared_log
        {
            let (name, data) = hub_events::left(topic, user);
            shared.announce(topic.clone(), user.clone(), Event::new(name, data));
        }
    }

    /// Whether one of these topics tells of this connection's user.
    fn tells_of<'a>(&self, handle: &ConnectionHandle, topics: impl IntoIterator<Item = &'a Topic>) -> bool {
        handle.user().is_some() && topics.into_iter().any(|topic| self.presences.tells(topic))
    }

    /// Locks the roster if the change is about topics that tell. Other instances hear of the change
    /// in any case.
    fn with_roster<R>(
        self: &Arc<Self>,
        handle: &ConnectionHandle,
        tells: bool,
        change: impl FnOnce(&mut LockedRoster<'_>) -> R,
    ) -> R {
        let changed = self.with_own_roster(tells, change);
        if let Some(shared) = &self.shared_log {
            shared.changed(handle.id());
        }
        changed
    }

    fn with_own_roster<R>(self: &Arc<Self>, tells: bool, change: impl FnOnce(&mut LockedRoster<'_>) -> R) -> R {
        let roster = tells.then(|| self.presences.roster.lock());
        let mut told = LockedRoster { inner: self, roster, asleep: Asleep::default() };
        let changed = change(&mut told);
        let LockedRoster { roster: Some(roster), asleep, .. } = told else { return changed };
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

/// The roster while it is locked, and whom its changes have not woken yet. Without a roster, the
/// change is about no topic that tells.
struct LockedRoster<'a> {
    inner: &'a Inner,
    roster: Option<MutexGuard<'a, Roster>>,
    asleep: Asleep,
}

impl LockedRoster<'_> {
    fn enter(&mut self, handle: &ConnectionHandle, topic: &Topic) {
        if let Some(roster) = &mut self.roster
            && let Some(user) = handle.user()
            && self.inner.presences.tells(topic)
            && roster.enter(topic, user, handle.data())
            && !self.inner.shared_log.as_ref().is_some_and(|shared| shared.is_member(topic, user, self.inner.now()))
        {
            let event = hub_events::joined(topic, user, handle.data().map(AsRef::as_ref));
            self.publish(topic.clone(), user, event);
        }
    }

    fn exit(&mut self, handle: &ConnectionHandle, topic: &Topic) {
        if let Some(roster) = &mut self.roster
            && let Some(user) = handle.user()
            && self.inner.presences.tells(topic)
        {
            let was_due = roster.next_due();
            roster.exit(topic, user, self.inner.now());
            if was_due.is_none() {
                self.inner.tasks.sweep.rouse();
            }
        }
    }

    /// Takes out a member that has not come back, and tells of it unless another instance does.
    /// Returns whether there was one.
    fn sweep(&mut self) -> bool {
        let now = self.inner.now();
        let Some((topic, user)) = self.roster.as_mut().and_then(|roster| roster.sweep(now)) else { return false };
        if !self.inner.shared_log.as_ref().is_some_and(|shared| shared.speaks_for(&topic, &user, now)) {
            let event = hub_events::left(&topic, &user);
            self.publish(topic, &user, event);
        }
        true
    }

    /// Nothing is published after a drain.
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
    fn streams_without_a_topic_that_tells_wait_for_no_roster() {
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
        waited.expect("a stream waited for the roster");
        assert_eq!(hub.topic("room").presence().members.len(), 1);
    }
}
