//! The admission of a stream: from a subscription and a cursor to an open [`StreamDriver`].
//!
//! 1. [`Hub::admit`] makes the checks that need no connection. A `HEAD` request gets only these
//!    checks.
//! 2. [`Hub::open`] enters the connection into the registry, then into its channels, then adds the
//!    topics that the application made the user join, and then checks the bans again. A disconnect
//!    that is recorded after that check finds the connection.
//! 3. A drain sets its flag before it lists the connections. A new connection checks the flag after
//!    it has entered the registry. So the drain finds the connection, or the connection ends
//!    itself.

use std::sync::Arc;

use crate::hub::cluster::shared_log::SharedLog;
use crate::hub::config::limits::AFTER_DISPLACEMENT;
use crate::hub::connection::bans::Rejection;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::connection::info::ConnectionInfo;
use crate::hub::connection::registry::UserTopic;
use crate::hub::runs::found::{self, RunCursor};
use crate::hub::tasks::workers;
use crate::hub::upkeep::schedule::Check;
use crate::hub::{Hub, LifecycleEvent, StreamDriver};
use crate::log::{Begin, Joined, TooManyTopics, Wanted, millis};
use crate::types::{
    Address, Authority, ConnectionId, Cursor, DisconnectClock, EndReason, GapReason, History, InvalidName, NameProblem,
    Position, Reconnect, Refusal, RefusalReason, RunError, Start, Subscription, SubscriptionError, Topic,
};
use crate::wire::hub_events::CursorState;

/// The properties of a request beside its subscription and its cursor.
pub(crate) struct Request {
    /// Whether the stream goes to a network. It then has heartbeats and a write deadline.
    pub(crate) to_network: bool,
    /// The arrival of the request, by the [`DisconnectClock`]. If one of its addresses is
    /// disconnected later, the authorization of the request is outdated.
    pub(crate) asked_at: DisconnectClock,
    /// The access hook that rechecks the open stream, or `None` if the stream is not rechecked.
    pub(crate) authority: Option<Arc<dyn Authority>>,
    /// Whether the request seems to come from a browser's `EventSource`: a `GET` that accepts event
    /// streams by name.
    pub(crate) from_event_source: bool,
}

impl Hub {
    /// Opens a stream.
    pub(crate) fn open(
        &self,
        subscription: &Subscription,
        cursor: Cursor,
        request: Request,
    ) -> Result<StreamDriver, Refusal> {
        let addresses = self.admit(subscription, cursor, request.asked_at)?;
        let run = self.check_run(subscription, cursor, request.from_event_source)?;
        let now = self.now();
        // Without random bytes the id could be guessed, so the hub refuses the stream. A browser
        // reconnects later.
        let id = crate::hub::inner::random_bits().map_err(|_| Refusal::retry_later(RefusalReason::Busy))?;
        // Without a history the cursor is ignored, and no gap is reported for it.
        let (start, cursor) = match subscription.history {
            History::None => (Start::Live, Cursor::Absent),
            // The cursor is a place in the run.
            History::Within if run.is_some() => (Start::Live, Cursor::Absent),
            History::Within => (subscription.start, cursor),
        };
        let is_bare = request.to_network && subscription.bare;
        let (begin, cursor_state, gap) = match self.resolve_cursor(cursor) {
            // A bare stream cannot report a gap, and breaking it would make its client ask again.
            Ok(None) if is_bare => (Begin::Unreported(start), CursorState::Fresh, None),
            Ok(None) => (Begin::Fresh(start), CursorState::Fresh, None),
            Ok(Some(sequence)) => (Begin::After(sequence), CursorState::Resuming, None),
            Err(_) if is_bare => return Err(Refusal::UNRESUMABLE),
            Err(reason) => (Begin::Unreported(start), CursorState::Refused, Some(reason)),
        };
        let cursor_state = match &run {
            Some(RunCursor { resumes: true, .. }) => CursorState::Resuming,
            _ => cursor_state,
        };
        let resumed = cursor_state != CursorState::Fresh;
        let Request { to_network, asked_at, authority, .. } = request;
        let handle =
            ConnectionHandle::new(ConnectionId::from_bits(id), to_network, subscription, authority, resumed, now);
        let handle = Arc::new(handle);

        // Instances exchange users, but not the keys of `counted_as`.
        let user = handle.user().filter(|_| handle.counted_as().is_none()).cloned().map(Address::User);
        let elsewhere =
            user.zip(self.inner.shared_log.as_ref()).map_or(0, |(user, shared)| shared.count_peers_at(&user));
        let displaced = self.registry().insert(&handle, elsewhere, now);
        let displaced = displaced.map_err(|_| Refusal::retry_later(RefusalReason::Limit))?;
        displaced.iter().for_each(|oldest| self.displace(oldest));
        // A stream of a run reads nothing of the log.
        let read = if handle.reads_run { &[] } else { &*addresses };
        let wanted: Vec<_> = read.iter().map(|address| self.wanted(subscription, address)).collect();
        let accepted_at = self.inner.open_channels(&handle, wanted, begin);
        if !handle.reads_run {
            self.join_user_topics(&handle);
        }
        // From here on, a disconnect finds the connection in the registry and in its channels. This
        // check finds the disconnects that were recorded before.
        let mut admitted = self.check_bans(&addresses, asked_at);
        if admitted.is_ok() && is_bare && resumed && self.begins_with_gap(&handle) {
            admitted = Err(Refusal::UNRESUMABLE);
        }
        if let Err(rejection) = admitted {
            if self.registry().remove(&handle, now) {
                self.inner.close_channels(&handle);
            }
            return Err(rejection);
        }
        handle.set_admitted();

        self.counters().connected(handle.id(), cursor_state == CursorState::Resuming);
        self.inner.lifecycles.send(|| {
            let connection = Arc::new(ConnectionInfo::of(&handle, self.log().topics(&handle.subscriber), now));
            if resumed { LifecycleEvent::Resumed { connection, gap } } else { LifecycleEvent::Connected(connection) }
        });
        if let Some(reason) = handle.note_start_reported() {
            self.inner.report_end(&handle, Vec::new(), reason);
        }
        workers::ensure(&self.inner);
        let tasks = &self.inner.tasks;
        tasks.sweep.ensure(&self.inner);
        if handle.authority().is_some() {
            let interval = millis(self.settings().recheck_interval());
            if self.inner.rechecks.add(Check::first(handle.id()), now, interval) {
                tasks.recheck.rouse();
            }
            tasks.recheck.ensure(&self.inner);
        }
        if self.is_draining() {
            // The drain began between the check in `admit` and the entry into the registry, and may
            // have missed this connection.
            handle.end(Ending::now(EndReason::Draining));
        }
        let driver = StreamDriver::new(self, handle, accepted_at, cursor_state, gap, subscription, now);
        Ok(match run {
            Some(cursor) => driver.of_run(cursor),
            None => driver,
        })
    }

    /// Returns an error if the hub would refuse any new stream now.
    pub(crate) fn check_capacity(&self) -> Result<(), RunError> {
        let is_loaded = self.inner.shared_log.as_ref().is_none_or(SharedLog::is_loaded) || self.is_of_publisher();
        if self.is_draining() || !is_loaded || self.registry().is_full() {
            return Err(RunError::refused(self.jittered_retry(self.settings().retry, 1.0..=3.0)));
        }
        Ok(())
    }

    /// Returns whether this is the hub of a publisher. It reads no log, and has the default
    /// settings for requests.
    pub(crate) fn is_of_publisher(&self) -> bool {
        self.inner.shared_log.as_ref().is_some_and(|shared| shared.writes_only)
    }

    /// Returns the place in the run at which the stream of a request begins, or `None` if the
    /// subscription reads no run.
    pub(crate) fn check_run(
        &self,
        subscription: &Subscription,
        cursor: Cursor,
        from_event_source: bool,
    ) -> Result<Option<RunCursor>, Refusal> {
        subscription.run.as_ref().map(|source| found::place(source, cursor, from_event_source)).transpose()
    }

    /// Ends a connection that has left the registry because of a limit. Its client reconnects after
    /// a longer time than usual, so that the clients over the limit take turns.
    fn displace(&self, oldest: &Arc<ConnectionHandle>) {
        let after = self.settings().retry.saturating_mul(AFTER_DISPLACEMENT);
        let retry = Some(self.jittered_retry(after, 1.0..=2.0));
        let ending = Ending { reconnect: Reconnect::After(after), retry, ..Ending::now(EndReason::Limit) };
        let reason = oldest.end(ending).reason;
        self.inner.finish_removal(oldest, reason);
        oldest.wake(self.now());
    }

    /// Counts a request against the limit of requests per second.
    ///
    /// # Errors
    ///
    /// Returns a retryable refusal if the limit is exceeded.
    pub(crate) fn check_rate(&self) -> Result<(), Refusal> {
        let Some(per_second) = self.settings().limits.per_second else { return Ok(()) };
        let turn = self.inner.rate.lock().take(per_second, self.now());
        turn.map_err(|wait| {
            Refusal::retry_later(RefusalReason::Limit).retry(self.settings().retry.saturating_add(wait))
        })
    }

    /// Makes the checks of [`open`](Self::open) that need no connection. Returns the addresses of
    /// the subscription.
    pub(crate) fn admit(
        &self,
        subscription: &Subscription,
        cursor: Cursor,
        asked_at: DisconnectClock,
    ) -> Result<Vec<Address>, Refusal> {
        self.check(subscription).map_err(Refusal::invalid)?;
        if self.is_draining() {
            return Err(Refusal::retry_later(RefusalReason::Draining));
        }
        if self.inner.shared_log.as_ref().is_some_and(|shared| !shared.is_loaded()) {
            self.inner.ensure_shared_log();
            return Err(Refusal::retry_later(RefusalReason::Starting));
        }
        match cursor {
            Cursor::Banned { until, scope }
                if scope == subscription.scope.mark() && until > std::time::SystemTime::now() =>
            {
                Err(Refusal::gone())
            }
            _ => {
                let addresses = addresses(subscription);
                self.check_bans(&addresses, asked_at).map(|()| addresses)
            }
        }
    }

    /// Returns an error if the subscription is invalid or has too many topics.
    pub(in crate::hub) fn check(&self, subscription: &Subscription) -> Result<(), SubscriptionError> {
        let lacks_scope = self.settings().requires_scope && subscription.scope.is_root();
        if lacks_scope && subscription.invalid.is_none() {
            return Err(InvalidName::new("scope", NameProblem::Missing).into());
        }
        subscription.validity()?;
        if subscription.topics.len() > self.settings().max_topics {
            return Err(SubscriptionError::TOO_MANY_TOPICS);
        }
        Ok(())
    }

    /// Checks that the hub can resume from this cursor, for a request that opens no stream.
    ///
    /// # Errors
    ///
    /// Returns a refusal if the subscription is bare, so that its stream could not report the gap.
    pub(crate) fn check_cursor(&self, subscription: &Subscription, cursor: Cursor) -> Result<(), Refusal> {
        // The cursor of a run is no position of the log.
        if subscription.bare && subscription.run.is_none() && subscription.history == History::Within {
            self.resolve_cursor(cursor).map_err(|_| Refusal::UNRESUMABLE)?;
        }
        Ok(())
    }

    /// Returns whether the stream of a new connection has to begin with a gap.
    fn begins_with_gap(&self, handle: &ConnectionHandle) -> bool {
        self.log().begins_with_gap(&handle.subscriber, self.inner.shared_log.is_some())
    }

    /// Returns the number after which a client with this cursor continues, or `None` without a
    /// cursor.
    ///
    /// # Errors
    ///
    /// Returns the reason of the gap if the stream cannot continue from the cursor.
    pub(in crate::hub) fn resolve_cursor(&self, cursor: Cursor) -> Result<Option<u64>, GapReason> {
        match cursor {
            Cursor::Absent => Ok(None),
            Cursor::Invalid | Cursor::Banned { .. } => Err(GapReason::Invalid),
            Cursor::At(position) => {
                let number = self.log().number(position).ok_or(GapReason::Epoch)?;
                // With a shared log, the client may come from an instance that has read more of the
                // log.
                let ahead = self.inner.shared_log.as_ref().map_or(0, SharedLog::most_ahead);
                if number > self.log().last().saturating_add(ahead) { Err(GapReason::Ahead) } else { Ok(Some(number)) }
            }
        }
    }

    /// Returns an address of a subscription with its bound. The client receives no record of the
    /// address up to and including this number. Without a bound, the number is zero.
    fn wanted(&self, subscription: &Subscription, address: &Address) -> Wanted {
        let since = address.topic().map_or(&[][..], |topic| subscription.topics.since(topic));
        let after = since.iter().map(|position| self.bound(*position)).max();
        Wanted { address: address.clone(), after: after.unwrap_or(0) }
    }

    /// Returns the number of a position that bounds a topic. The client receives no record of the
    /// topic up to and including this number. The hub takes another epoch for an earlier epoch, so
    /// a position of another epoch has the number zero.
    pub(in crate::hub) fn bound(&self, position: Position) -> u64 {
        self.log().number(position).unwrap_or(0)
    }

    /// Returns a refusal if one of the addresses is banned, or was disconnected after `asked_at`.
    pub(in crate::hub) fn check_bans(&self, addresses: &[Address], asked_at: DisconnectClock) -> Result<(), Refusal> {
        match self.inner.bans.rejection(addresses, asked_at, self.now()) {
            None => Ok(()),
            Some(Rejection::Banned) => Err(Refusal::gone()),
            Some(Rejection::Outdated) => Err(Refusal::outdated()),
        }
    }

    /// Joins the topics that the application made the user join before this connection was opened.
    /// A later join finds the connection in the registry.
    fn join_user_topics(&self, handle: &Arc<ConnectionHandle>) {
        let Some(user) = handle.user() else { return };
        let topics = self.registry().user_topics(user);
        // The connection does not join topics that are banned.
        let is_allowed =
            |topic: &Topic| self.check_bans(&[Address::Topic(topic.clone())], DisconnectClock::now()).is_ok();
        let (mut joined, mut left_out) = (Vec::new(), 0);
        for user_topic in topics.into_iter().filter(|user_topic| is_allowed(&user_topic.topic)) {
            let UserTopic { topic, since, at } = &user_topic;
            let as_of = Joined { address: Address::Topic(topic.clone()), since: *since, at: Some(*at) };
            match self.inner.join_asleep(handle, topic, &as_of) {
                Ok(true) => joined.push(user_topic),
                Ok(false) => {}
                Err(TooManyTopics) => left_out += 1,
            }
        }
        if left_out > 0 {
            self.counters().topics_left_out(handle.id(), left_out, self.now());
        }
        if joined.is_empty() {
            return;
        }
        // A topic may have been removed or banned before the log listed this connection among the
        // listeners of the topic. Then the command did not find the connection.
        let current = self.registry().user_topics(user);
        for UserTopic { topic, .. } in joined {
            if current.iter().all(|kept| kept.topic != topic) || !is_allowed(&topic) {
                self.inner.leave_topic(handle, &topic);
            }
        }
    }
}

/// Returns the addresses that a subscription reads: its topics, its user, everyone of its scope
/// and, if it has a scope, all connections of scopes.
pub(in crate::hub) fn addresses(subscription: &Subscription) -> Vec<Address> {
    let mut addresses = Vec::with_capacity(subscription.topics.len() + 3);
    addresses.extend(subscription.topics.iter().cloned().map(Address::Topic));
    addresses.extend(subscription.user.clone().map(Address::User));
    addresses.push(Address::Everyone(subscription.scope.clone()));
    if !subscription.scope.is_root() {
        addresses.push(Address::EveryScope);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use futures::StreamExt;
    use futures::executor::block_on;

    use super::*;
    use crate::hub::{Subscriber, SubscriberItem};
    use crate::types::{Change, Event, Retention, TopicFilter};

    fn read(stream: &mut Subscriber) -> Vec<String> {
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        let mut read = Vec::new();
        while let Poll::Ready(Some(item)) = stream.poll_next_unpin(&mut cx) {
            match item {
                SubscriberItem::Event(event) => read.push(event.data),
                SubscriberItem::Gap { .. } => read.push("gap".into()),
                _ => {}
            }
        }
        read
    }

    #[allow(clippy::unwrap_used, reason = "test helper")]
    fn publish(hub: &Hub, topic: &str, data: &str) -> Position {
        hub.topic(topic).publish_now(Event::unnamed(data.to_owned())).unwrap().position
    }

    /// Returns the oldest position of the epoch. A client can guess it from any of its ids.
    fn oldest(hub: &Hub) -> Position {
        Position::new(hub.log().epoch(), 0)
    }

    #[test]
    fn cursor_reads_no_event_from_before_the_position_of_its_topic() {
        let hub = Hub::builder().topic_retention(Retention::replay().count(3)).build().unwrap();
        (0..5).for_each(|n| _ = publish(&hub, "room", &n.to_string()));
        let admitted_at = hub.position();
        let bounded = || Subscription::anonymous().topic_since("room", admitted_at);
        for start in [Start::Live, Start::Last(9), Start::Oldest] {
            assert!(read(&mut hub.subscribe(bounded().start(start), None).unwrap()).is_empty(), "{start:?}");
        }
        // The client has no permission to read the trimmed events, so the hub reports no gap for
        // them.
        assert!(read(&mut hub.subscribe(bounded(), oldest(&hub)).unwrap()).is_empty());
        (5..7).for_each(|n| _ = publish(&hub, "room", &n.to_string()));
        assert_eq!(read(&mut hub.subscribe(bounded(), oldest(&hub)).unwrap()), ["5", "6"]);
        assert_eq!(read(&mut hub.subscribe(bounded().start(Start::Oldest), None).unwrap()), ["5", "6"]);
        (7..9).for_each(|n| _ = publish(&hub, "room", &n.to_string()));
        assert_eq!(read(&mut hub.subscribe(bounded(), oldest(&hub)).unwrap()), ["gap", "6", "7", "8"]);
        let other = bounded().topic("other").topic_since("room", oldest(&hub));
        assert_eq!(read(&mut hub.subscribe(other, oldest(&hub)).unwrap()), ["gap", "6", "7", "8"]);
    }

    #[test]
    fn current_value_from_before_the_position_of_its_topic_is_not_sent() {
        let rule = TopicFilter::any();
        let hub = Hub::builder().retention_for(rule, Retention::latest_per_key()).build().unwrap();
        let set = |key: &'static str, data: &'static str| hub.topic("t").publish_now(Event::unnamed(data).key(key));
        set("a", "1").unwrap();
        let admitted_at = set("b", "2").unwrap().position;
        set("a", "3").unwrap();
        let bounded = || Subscription::anonymous().topic_since("t", admitted_at);
        assert_eq!(read(&mut hub.subscribe(bounded(), None).unwrap()), ["3"]);
        assert_eq!(read(&mut hub.subscribe(bounded(), oldest(&hub)).unwrap()), ["3"]);
    }

    #[test]
    fn page_reads_a_joined_topic_from_its_position() {
        let hub = Hub::builder().build().unwrap();
        let first = publish(&hub, "room", "0");
        publish(&hub, "room", "1");
        let mut stream = hub.subscribe(Subscription::anonymous(), None).unwrap();
        assert!(read(&mut stream).is_empty());
        let room = Topic::try_from("room").unwrap();
        let change = Change {
            leave: Vec::new(),
            join: vec![room.clone()],
            since: Cursor::At(oldest(&hub)),
            bounds: vec![(room.clone(), oldest(&hub)), (room, first)],
        };
        let id = hub.connections()[0].id;
        let granted = Subscription::anonymous();
        let connection = block_on(hub.connection_of(id, &granted)).unwrap();
        block_on(connection.change(change, DisconnectClock::now())).unwrap();
        assert_eq!(read(&mut stream), ["1"]);
    }

    #[test]
    fn stream_without_history_begins_live_with_any_cursor() {
        let hub = Hub::builder().build().unwrap();
        let first = publish(&hub, "t", "0");
        publish(&hub, "t", "1");
        let subscription = || Subscription::anonymous().topic("t").start(Start::Oldest).without_history();
        for cursor in [Cursor::Absent, Cursor::At(first), Cursor::At(oldest(&hub)), Cursor::Invalid] {
            let mut stream = hub.subscribe(subscription(), cursor).unwrap();
            assert!(read(&mut stream).is_empty(), "{cursor:?}");
            let next = publish(&hub, "t", "next");
            assert_eq!(read(&mut stream), ["next"], "{next}");
        }
    }

    #[test]
    fn narrowed_subscription_keeps_the_bounds_of_both() {
        let at = |number| Position::new(crate::types::position::Epoch(1), number);
        let topic = Topic::try_from("t").unwrap();
        let ticket = Subscription::anonymous().topic_since("t", at(3));
        let hook = Subscription::anonymous().topic_since("t", at(5)).without_history();
        let narrowed = ticket.narrowed_to(&hook).unwrap();
        assert_eq!((narrowed.topics.since(&topic), narrowed.history), (&[at(3), at(5)][..], History::None));
    }
}
