//! The read permissions, the start and the end of one connection.

use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Extensions;
use smallvec::SmallVec;

use super::disconnect_clock::DisconnectClock;
use super::error::{InvalidName, NameProblem};
use super::name::{Scoped, ScopedText, Topic, UserId};
use super::position::Position;
use super::run::RunSource;
use super::scope_name::ScopeName;
use super::subscription_error::SubscriptionError;
use super::topic_filter::TopicFilter;

/// The read permissions, the start and the end of one connection, as an [`Access`](crate::Access)
/// hook returns them.
///
/// ```
/// use std::time::Duration;
/// use tower_sse::Subscription;
///
/// let ada = Subscription::for_user("ada")
///     .topic("news")
///     .with_topics(["documents/7", "documents/9"])
///     .expires_in(Duration::from_secs(3600));
/// assert_eq!(ada.topics().len(), 3);
///
/// let visitor = Subscription::anonymous().topic("news");
/// assert_eq!(visitor.user(), None);
/// ```
///
/// Every connection also receives the events that are published to everyone and to itself.
///
/// The methods that take names return no errors. The subscription stores the first error. The hub
/// then answers the request with `400`, and [`Hub::subscribe`](crate::Hub::subscribe) returns the
/// error.
#[derive(Clone)]
pub struct Subscription {
    /// The scope of the connection. The names in the other fields are of this scope.
    pub(crate) scope: ScopeName,
    pub(crate) user: Option<UserId>,
    pub(crate) topics: Topics,
    pub(crate) start: Start,
    pub(crate) history: History,
    pub(crate) expiry: Option<Expiry>,
    pub(crate) end: Option<StreamEnd>,
    /// Whether the stream has the bare profile: it has nothing but the application's events.
    pub(crate) bare: bool,
    /// The place of the ids in a stream with the bare profile.
    pub(crate) ids: Ids,
    pub(crate) data: Option<Arc<str>>,
    pub(crate) extensions: Extensions,
    pub(crate) may_join: Vec<TopicFilter>,
    /// The key under which limits count the connection, in place of its user.
    pub(crate) counted_as: Option<ScopedText>,
    /// The ticket from which the subscription was redeemed, or `None`. The subscription of a ticket
    /// is older than the request.
    pub(crate) redeemed: Option<Box<Redeemed>>,
    /// The run that the connection reads in place of the log, or `None`.
    pub(crate) run: Option<Box<RunSource>>,
    pub(crate) invalid: Option<SubscriptionError>,
}

/// The maximum number of topics in a list that is searched one by one. A longer list also has a
/// hash set.
const LINEAR_SEARCH_MAX: usize = 8;

/// Topics in the order in which they were added, each once.
#[derive(Clone, Default)]
pub(crate) struct Topics {
    list: Vec<Topic>,
    /// The same topics as a hash set, if `list` is longer than [`LINEAR_SEARCH_MAX`].
    known: Option<Box<Known>>,
    /// The positions after which topics may be read.
    bounds: Option<Box<Bounds>>,
}

/// A hash set of topics. It is boxed, because most subscriptions need none, and subscriptions are
/// moved by value.
#[derive(Clone)]
struct Known(HashSet<Topic>);

/// The positions after which each topic may be read. Boxed for the same reason as [`Known`].
#[derive(Clone)]
struct Bounds(HashMap<Topic, SmallVec<[Position; 1]>>);

/// Whether a connection may resume from a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    Within,
    None,
}

/// The field of [`Subscription::counted_as`] in an error.
const COUNTED_AS: &str = "counted_as";

impl Topics {
    /// Adds a topic, unless the list already has it.
    pub(crate) fn insert(&mut self, topic: Topic) {
        if self.contains(&topic) {
            return;
        }
        self.list.push(topic.clone());
        match &mut self.known {
            Some(known) => drop(known.0.insert(topic)),
            None => self.index(),
        }
    }

    pub(crate) fn contains(&self, topic: &Topic) -> bool {
        self.known.as_ref().map_or_else(|| self.list.contains(topic), |known| known.0.contains(topic))
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&Topic) -> bool) {
        self.list.retain(keep);
        self.index();
    }

    /// Returns the topics, with their bounds, in a scope.
    fn placed_in(self, scope: &ScopeName) -> Result<Self, InvalidName> {
        let mut placed = Self::default();
        for topic in &self.list {
            placed.insert(topic.clone().placed_in(scope)?);
        }
        for (topic, position) in self.bounds() {
            placed.bound(topic.clone().placed_in(scope)?, position);
        }
        Ok(placed)
    }

    fn index(&mut self) {
        self.known =
            (self.list.len() > LINEAR_SEARCH_MAX).then(|| Box::new(Known(self.list.iter().cloned().collect())));
    }

    fn bound(&mut self, topic: Topic, position: Position) {
        let bounds = self.bounds.get_or_insert_with(|| Box::new(Bounds(HashMap::new())));
        bounds.0.entry(topic).or_default().push(position);
    }

    /// Returns the positions after which a topic may be read. All of them apply, so the latest
    /// position counts.
    pub(crate) fn since(&self, topic: &Topic) -> &[Position] {
        self.bounds.as_ref().and_then(|bounds| bounds.0.get(topic)).map_or(&[], |positions| positions)
    }

    pub(crate) fn bounds(&self) -> impl Iterator<Item = (&Topic, Position)> {
        let bounds = self.bounds.iter().flat_map(|bounds| &bounds.0);
        bounds.flat_map(|(topic, positions)| positions.iter().map(move |position| (topic, *position)))
    }
}

impl FromIterator<Topic> for Topics {
    fn from_iter<I: IntoIterator<Item = Topic>>(topics: I) -> Self {
        let mut all = Self::default();
        topics.into_iter().for_each(|topic| all.insert(topic));
        all
    }
}

impl std::ops::Deref for Topics {
    type Target = [Topic];

    fn deref(&self) -> &[Topic] {
        &self.list
    }
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.list.fmt(f)
    }
}

/// A redeemed ticket.
#[derive(Clone, Copy)]
pub(crate) struct Redeemed {
    pub(crate) secret: u128,
    pub(crate) made_at: DisconnectClock,
    /// The time of issue, by the wall clock of the instance that issued the ticket. `None` without
    /// a shared log.
    pub(crate) deposited_at: Option<SystemTime>,
    /// The end of the ticket's lifetime, by the hub's clock.
    pub(crate) over_at: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Expiry {
    In(Duration),
    At(SystemTime),
}

impl Expiry {
    /// Returns the time of the expiry, or `None` if the clock cannot represent it.
    pub(crate) fn at(self) -> Option<SystemTime> {
        match self {
            Self::In(duration) => SystemTime::now().checked_add(duration),
            Self::At(time) => Some(time),
        }
    }

    /// Returns the time from now until the expiry, or zero if it has passed.
    pub(crate) fn remaining(self) -> Duration {
        match self {
            Self::In(duration) => duration,
            Self::At(time) => time.duration_since(SystemTime::now()).unwrap_or_default(),
        }
    }
}

/// The point at which a connection without a cursor starts, or with a cursor that the hub cannot
/// use. With a usable cursor, a connection continues after the cursor.
///
/// A start does not limit the read permissions. A client may send any cursor. It then reads the
/// retained events after that cursor, also events that were published before the client was
/// entitled to the topic. To limit this, use [`Subscription::topic_since`] or
/// [`Subscription::without_history`].
///
/// If the hub has dropped events that [`Last`](Self::Last) or [`Oldest`](Self::Oldest) ask for, the
/// stream reports a `hub.gap` before its first event. Only audiences with
/// [`Retention::replay`](crate::Retention::replay) have a history. The hub reports no gap for an
/// event that has left the window of a `live` topic, or that a newer value has replaced.
///
/// `Last` and `Oldest` read the events within the retention of this instance. With a shared log,
/// the instance reads those from the broker that were published without a listener on this
/// instance, but no events from before its retention. An instance that started after the broker had
/// dropped events cannot know the topics of these events. So it reports the gap for every topic
/// with `Retention::replay`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub, Start, SubscriberItem, Subscription};
///
/// let hub = Hub::builder().build()?;
/// for headline in ["Bridge closed", "Bridge repaired", "Bridge open"] {
///     hub.topic("news").publish(Event::new("headline", headline)).await?;
/// }
/// let subscription = Subscription::anonymous().topic("news").start(Start::Last(1));
/// let mut page = hub.subscribe(subscription, None)?;
/// let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
/// assert_eq!(event.data, "Bridge open");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// Starts with the current values of [`latest_per_key`](crate::Retention::latest_per_key)
    /// topics. New events follow.
    #[default]
    Live,
    /// Starts with the current values, as [`Live`](Self::Live) does, and with the newest retained
    /// events: at most this many, over all topics of the subscription, its user and everyone
    /// together. New events follow. The stream reports a gap if fewer events are retained because
    /// the hub has dropped others.
    Last(usize),
    /// Starts with every retained event, in the order of the log. New events follow. The stream
    /// reports a gap if the hub has dropped an event.
    Oldest,
}

/// The way in which the hub ends a stream.
///
/// ```
/// use tower_sse::{StreamEnd, Subscription};
///
/// // For a page with `@microsoft/fetch-event-source`, which reconnects only after an error.
/// let subscription = Subscription::for_user("ada").topic("news").stream_end(StreamEnd::Abort);
/// # let _ = subscription;
/// ```
#[doc(alias = "End")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamEnd {
    /// The stream ends without an error. A browser's `EventSource` reconnects;
    /// `@microsoft/fetch-event-source` stops.
    #[default]
    Clean,
    /// The stream ends with an error, after a whole frame. Both clients reconnect.
    Abort,
}

/// The place of the `id` line in an event of a [bare](Subscription::bare) stream.
///
/// ```
/// use tower_sse::{Ids, Subscription};
///
/// // TanStack AI reads the stream line by line, and needs the id before the data.
/// let subscription = Subscription::anonymous().topic("answers/7").bare().ids(Ids::First);
/// # let _ = subscription;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ids {
    /// The id is the last line of an event, as in streams that are not bare.
    ///
    /// Some clients, for example `@microsoft/fetch-event-source` and `httpx-sse`, take an id as
    /// soon as they read its line. If the connection breaks within an event, these clients then
    /// still have the id of the event before it, and receive the broken event again.
    #[default]
    Last,
    /// The id is the first line of an event, for clients that read line by line.
    First,
    /// Events have no ids. A client that reconnects sends no cursor, so its new stream does not
    /// resume.
    None,
}

impl Subscription {
    /// The maximum length of the [`data`](Self::data), in bytes of JSON.
    pub const MAX_DATA_BYTES: usize = 4096;

    /// Creates a subscription for a connection of this user. The connection also receives the
    /// events that are published to the user.
    #[doc(alias = "user")]
    pub fn for_user<U: TryInto<UserId, Error: Into<InvalidName>>>(user: U) -> Self {
        Self::anonymous().with_user(user)
    }

    /// Creates a subscription for an anonymous connection.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            scope: ScopeName::ROOT,
            user: None,
            topics: Topics::default(),
            start: Start::default(),
            history: History::Within,
            expiry: None,
            end: None,
            bare: false,
            ids: Ids::default(),
            data: None,
            extensions: Extensions::new(),
            may_join: Vec::new(),
            counted_as: None,
            redeemed: None,
            run: None,
            invalid: None,
        }
    }

    /// Puts the subscription into a [scope](crate::Scope), for example the tenant of the request.
    /// The user, the topics and the key of [`counted_as`](Self::counted_as) are then names of this
    /// scope, also those that the subscription already has. The connection receives only events of
    /// this scope. Defaults to no scope.
    ///
    /// The name of a scope has 1 to 255 bytes without control characters. A subscription has one
    /// scope: a second call with another scope, and a name of another scope, make it invalid. Names
    /// that the hub returned for this scope are valid, before and after this call. A subscription
    /// of a [run](Self::run) already has the scope of the run. The subscription of a redeemed
    /// [ticket](crate::Hub::redeem) keeps the scope that it had when the ticket was created, so
    /// this method makes it invalid, unless it has this scope.
    ///
    /// Where each stream belongs to a tenant,
    /// [`HubBuilder::require_scope`](crate::HubBuilder::require_scope) makes the hub reject
    /// subscriptions without a scope.
    ///
    /// ```
    /// use tower_sse::{Refusal, StreamRequest, Subscription};
    ///
    /// #[derive(Clone)]
    /// struct Session { tenant: String, user: u64 } // an authentication layer inserts it
    ///
    /// async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    ///     let session = request.extensions().get::<Session>().ok_or(Refusal::unauthorized())?;
    ///     Ok(Subscription::for_user(session.user).in_scope(&session.tenant).topic("news"))
    /// }
    /// # let hub = tower_sse::Hub::builder().build().unwrap();
    /// # let _ = hub.endpoint(access);
    /// ```
    #[doc(alias = "tenant")]
    #[must_use]
    pub fn in_scope(mut self, scope: impl fmt::Display) -> Self {
        match ScopeName::named(&scope.to_string()) {
            Ok(scope) => self.placed_in(&scope),
            Err(error) => {
                self.invalidate(error.into());
                self
            }
        }
    }

    /// Returns the subscription in a scope. If it belongs to another scope, it becomes invalid.
    pub(crate) fn placed_in(mut self, scope: &ScopeName) -> Self {
        if self.scope == *scope {
            return self;
        }
        // A ticket and a run state their scope. A request must not move them into another.
        if !self.scope.is_root() || self.run.is_some() || self.redeemed.is_some() {
            self.invalidate(InvalidName::new("subscription", NameProblem::OtherScope).into());
            return self;
        }
        self.scope = scope.clone();
        let user = self.user.take();
        self.user = user.and_then(|user| self.valid(user));
        let topics = std::mem::take(&mut self.topics);
        match topics.placed_in(scope) {
            Ok(topics) => self.topics = topics,
            Err(error) => self.invalidate(error.into()),
        }
        match self.counted_as.take().map(|key| key.placed_in(scope, COUNTED_AS)).transpose() {
            Ok(key) => self.counted_as = key,
            Err(error) => self.invalidate(error.into()),
        }
        self
    }

    /// Sets the user. The connection then also receives the events that are published to the user.
    /// Defaults to none.
    #[must_use]
    pub fn with_user<U: TryInto<UserId, Error: Into<InvalidName>>>(mut self, user: U) -> Self {
        self.user = self.valid(user).or(self.user);
        self
    }

    /// Adds a topic. A topic that the subscription already has is not added again.
    #[must_use]
    pub fn topic<T: TryInto<Topic, Error: Into<InvalidName>>>(mut self, topic: T) -> Self {
        if let Some(topic) = self.valid(topic) {
            self.topics.insert(topic);
        }
        self
    }

    /// Adds several topics.
    #[must_use]
    pub fn with_topics<I: IntoIterator<Item: TryInto<Topic, Error: Into<InvalidName>>>>(self, topics: I) -> Self {
        topics.into_iter().fold(self, Self::topic)
    }

    /// Adds a topic that the client may read only after a position, for example the position of the
    /// log at which the user was admitted. The application stores that position.
    ///
    /// With any cursor, the topic delivers no event and no current value that was published at or
    /// before this position. The hub reports no gap for them. The position also limits a page that
    /// joins the topic with [`SseLayer::allow_topic_changes`](crate::SseLayer::allow_topic_changes)
    /// and `since`.
    ///
    /// Without this limit, a client may read every event of its topics that the hub and a shared
    /// log retain. An id is no secret, and a client may send an older id than the last id that it
    /// received. A position of another epoch of the log limits nothing, because every event of the
    /// current epoch is newer. Without a broker, a restart of the process begins a new epoch. If a
    /// topic has several positions, the latest counts.
    ///
    /// ```
    /// # fn example(admitted_at: tower_sse::Position) {
    /// use tower_sse::Subscription;
    ///
    /// let subscription = Subscription::for_user("ada").topic_since("rooms/7", admitted_at);
    /// # let _ = subscription;
    /// # }
    /// ```
    #[must_use]
    pub fn topic_since<T: TryInto<Topic, Error: Into<InvalidName>>>(mut self, topic: T, position: Position) -> Self {
        if let Some(topic) = self.valid(topic) {
            self.topics.insert(topic.clone());
            self.topics.bound(topic, position);
        }
        self
    }

    /// Starts the stream with [`Start::Live`], and ignores any cursor that the client sends.
    ///
    /// The stream begins with the current values of
    /// [`latest_per_key`](crate::Retention::latest_per_key) topics, and continues with the events
    /// that are published from then on. A client that reconnects does not receive the events that
    /// it missed, and the hub reports no gap for them. To let the client resume and still limit its
    /// reads, use [`topic_since`](Self::topic_since).
    #[must_use]
    pub fn without_history(mut self) -> Self {
        self.history = History::None;
        self
    }

    /// Keeps only the topics for which `keep` returns true, for
    /// [`Recheck::Narrow`](crate::Recheck::Narrow).
    #[must_use]
    pub fn retain_topics(mut self, keep: impl FnMut(&Topic) -> bool) -> Self {
        self.topics.retain(keep);
        self
    }

    /// Allows the page to join the topics that this filter matches, later and without a reconnect:
    /// [`SseLayer::allow_topic_changes`](crate::SseLayer::allow_topic_changes). After several
    /// calls, the page may join the topics of each filter. Without a filter, the page may join only
    /// the topics to which the access hook would subscribe it.
    #[must_use]
    pub fn may_join(mut self, rule: TopicFilter) -> Self {
        self.may_join.push(rule);
        self
    }

    /// Counts the connection under this key instead of its user for
    /// [`HubBuilder::max_connections_per_user`](crate::HubBuilder::max_connections_per_user). Each
    /// key of a scope may have as many connections as each user. The hub also counts a
    /// [ticket](crate::Hub::ticket) for this subscription under the key.
    ///
    /// Set a key for anonymous connections, because the limit per user does not apply to them. The
    /// application chooses the key: the client's address, for IPv6 the `/64` of the address, or a
    /// session. Behind a proxy, take the address from a header that the proxy sets. All clients
    /// with the same key share one limit.
    ///
    /// A key has 1 to 255 bytes without control characters. It is unrelated to a user of the same
    /// name. Each instance counts only its own connections with the key. Defaults to none.
    ///
    /// ```
    /// use tower_sse::{Refusal, StreamRequest, Subscription};
    ///
    /// async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    ///     let address = request.peer_addr().ok_or(Refusal::forbidden())?.ip();
    ///     Ok(Subscription::anonymous().topic("news").counted_as(address))
    /// }
    /// # let hub = tower_sse::Hub::builder().build().unwrap();
    /// # let _ = hub.endpoint(access);
    /// ```
    #[must_use]
    pub fn counted_as(mut self, key: impl fmt::Display) -> Self {
        let key = key.to_string();
        match ScopedText::new(COUNTED_AS, &key).and_then(|key| key.placed_in(&self.scope, COUNTED_AS)) {
            Ok(key) => self.counted_as = Some(key),
            Err(error) => self.invalidate(SubscriptionError::from(error)),
        }
        self
    }

    /// Sets the start of a connection without a cursor. Defaults to [`Start::Live`].
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Limits the lifetime of the stream. The hub ends the stream earlier by a random time of up to
    /// a tenth of the limit, and at most a minute. Before the end it sends a `hub.expiring` event
    /// that leaves time to renew. Defaults to no limit.
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expiry = Some(Expiry::In(time));
        self
    }

    /// Limits the lifetime of the stream like [`expires_in`](Self::expires_in), to a time of the
    /// system clock, for example the `exp` of a token.
    #[must_use]
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expiry = Some(Expiry::At(time));
        self
    }

    /// Sets whether the hub ends the stream cleanly or with an error. Has no effect on a
    /// [bare](Self::bare) stream. Defaults to
    /// [`HubBuilder::stream_end`](crate::HubBuilder::stream_end).
    #[doc(alias = "end")]
    #[must_use]
    pub fn stream_end(mut self, end: StreamEnd) -> Self {
        self.end = Some(end);
        self
    }

    /// Gives the stream the bare profile, for clients of other protocols than the hub's own: the
    /// stream has nothing but the application's events.
    ///
    /// - The stream has none of the hub's `hub.…` events. It begins with a `retry` line, which
    ///   belongs to the first event. A [heartbeat](crate::HubBuilder::heartbeat) is a comment line,
    ///   at least every 30 s, also on a hub with
    ///   [`visible_heartbeat`](crate::HubBuilder::visible_heartbeat).
    /// - The hub ends the stream with an error, after a whole event, whatever
    ///   [`stream_end`](Self::stream_end) is. Many clients take an end without an error for a
    ///   complete result. Only the end of a [run](Self::run) ends the stream without an error,
    ///   unless the run was aborted without a last will. HTTP/1.0 cannot express the difference.
    /// - The hub cannot report a gap. An open stream ends with an error before the first event
    ///   after the gap. A request with a cursor from which the hub cannot resume receives `404`.
    ///   Without a cursor, [`Start::Oldest`] and [`Start::Last`] begin with the retained events,
    ///   and the client does not learn whether earlier events were dropped.
    /// - A retryable refusal of a request without a cursor is `503` with `Retry-After`. For a
    ///   request with a cursor or from an `EventSource`, the refusal is `200`, a `retry` line and
    ///   an error. Before a layer or an endpoint knows the subscription, it refuses with
    ///   `hub.refused`, so use [`Hub::respond`](crate::Hub::respond) for such clients.
    ///
    /// A client has no cursor before its first event, and a quiet stream sends no fresh ids. A ban
    /// of a single connection does not stop a client of a bare stream, because the stream cannot
    /// send the id with the end of the ban. [`Hub::subscribe`](crate::Hub::subscribe) ignores the
    /// profile. `docs/wire.md` has the format. Defaults to the hub's own profile.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http_body_util::BodyExt;
    /// use tower_sse::{Event, Hub, StreamRequest, Subscription};
    ///
    /// let hub = Hub::builder().build()?;
    /// let request = StreamRequest::from_request(&http::Request::post("/reports/7").body(())?);
    /// let subscription = Subscription::anonymous().topic("reports/7").bare();
    /// let mut body = hub.respond(request, subscription).into_response().into_body();
    /// let receipt = hub.topic("reports/7").publish(Event::new("progress", "25")).await?;
    /// let mut read = Vec::new();
    /// for _ in 0..2 {
    ///     let Some(Ok(frame)) = body.frame().await else { panic!("the stream has ended") };
    ///     read.extend_from_slice(&frame.into_data().expect("data"));
    /// }
    /// let event = format!("event: progress\ndata: 25\nid: {}\n\n", receipt.position);
    /// assert_eq!(String::from_utf8(read)?, format!("retry: 2000\n{event}"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Sets the place of the ids in the events of a [bare](Self::bare) stream. Has no effect on
    /// other streams. Defaults to [`Ids::Last`].
    #[must_use]
    pub fn ids(mut self, ids: Ids) -> Self {
        self.ids = ids;
        self
    }

    /// Returns the place of the ids if the stream has the bare profile, and `None` otherwise.
    pub(crate) fn bare_ids(&self) -> Option<Ids> {
        self.bare.then_some(self.ids)
    }

    /// Attaches one small value of the application, for example a name and a picture. The value is
    /// serialized to JSON, so that the hub can send it to other instances.
    ///
    /// The value is available in [`Presence`](crate::Presence), in `hub.joined`, in
    /// [`ConnectionInfo`](crate::ConnectionInfo), and in the subscription that
    /// [`Access::recheck`](crate::Access::recheck) receives. The JSON has at most
    /// [`MAX_DATA_BYTES`](Self::MAX_DATA_BYTES). A longer value, or a value that cannot be
    /// serialized, makes the subscription invalid. Defaults to none.
    ///
    /// ```
    /// use tower_sse::Subscription;
    ///
    /// let member = serde_json::json!({ "name": "Ada", "picture": "/pictures/7.png" });
    /// let subscription = Subscription::for_user("ada").data(&member);
    /// assert_eq!(subscription.data_json(), Some(r#"{"name":"Ada","picture":"/pictures/7.png"}"#));
    /// ```
    #[must_use]
    pub fn data<T: serde::Serialize + ?Sized>(mut self, value: &T) -> Self {
        match serde_json::to_string(value) {
            Ok(json) if json.len() <= Self::MAX_DATA_BYTES => self.data = Some(json.into()),
            Ok(_) => self.invalidate(SubscriptionError::DATA_TOO_LONG),
            Err(_) => self.invalidate(SubscriptionError::DATA_NOT_JSON),
        }
        self
    }

    /// Returns the value of [`data`](Self::data) as JSON, or `None` if there is none.
    #[must_use]
    pub fn data_json(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// Attaches a value of any type, which stays on this instance. A second value of the same type
    /// replaces the first. The value is available in [`ConnectionInfo`](crate::ConnectionInfo) and
    /// in the subscription that [`Access::recheck`](crate::Access::recheck) receives.
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }

    /// Returns the values that [`extension`](Self::extension) attached.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Returns the name of the [scope](Self::in_scope), or `None` if the subscription has no scope.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_str()
    }

    /// Returns the user, or `None` for an anonymous connection.
    #[doc(alias = "user_id")]
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// Returns the topics, each once, in the order in which they were added.
    #[doc(alias = "topic_list")]
    #[must_use]
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// Returns whether a page of this subscription may read a topic: the subscription has the
    /// topic, or the page may join it.
    pub(crate) fn grants(&self, topic: &Topic) -> bool {
        let may_join = || self.may_join.iter().any(|rule| rule.matches(topic));
        *topic.scope_name() == self.scope && (self.topics.contains(topic) || may_join())
    }

    /// Returns a subscription with the permissions that both this subscription and `most` have: the
    /// topics, the topics that may be joined, and the limits on earlier events. The expiry of
    /// `most`, if it has one, replaces the expiry. Returns `None` if `most` has another user or
    /// another scope.
    pub(crate) fn narrowed_to(mut self, most: &Self) -> Option<Self> {
        if self.user != most.user || self.scope != most.scope {
            return None;
        }
        self.topics.retain(|topic| most.grants(topic));
        let listed = most.topics.iter().map(|topic| TopicFilter::exact(topic.as_str()));
        let granted: Vec<_> = most.may_join.iter().cloned().chain(listed).collect();
        let mut may_join = Vec::new();
        for both in self.may_join.iter().flat_map(|rule| granted.iter().filter_map(|granted| rule.common(granted))) {
            if !may_join.contains(&both) {
                may_join.push(both);
            }
        }
        self.may_join = may_join;
        for (topic, position) in most.topics.bounds() {
            self.topics.bound(topic.clone(), position);
        }
        if most.history == History::None {
            self.history = History::None;
        }
        self.expiry = most.expiry.or(self.expiry);
        Some(self)
    }

    /// Returns the name if it is valid. Otherwise stores the error and returns `None`.
    ///
    /// A subscription may get its scope after its names. So a name keeps the scope that it has
    /// until then, and [`validity`](Self::validity) is checked at the end.
    fn valid<T: Scoped>(&mut self, name: impl TryInto<T, Error: Into<InvalidName>>) -> Option<T> {
        let placed = name
            .try_into()
            .map_err(Into::into)
            .and_then(|name: T| if self.scope.is_root() { Ok(name) } else { name.placed_in(&self.scope) });
        placed.map_err(|error| self.invalidate(SubscriptionError::from(error))).ok()
    }

    /// Returns the first error of the methods that take names, or an error if a name belongs to
    /// another scope than the subscription. Every use of a subscription has to check this.
    pub(crate) fn validity(&self) -> Result<(), SubscriptionError> {
        if let Some(invalid) = &self.invalid {
            return Err(invalid.clone());
        }
        let other_scope = |field| Err(InvalidName::new(field, NameProblem::OtherScope).into());
        if self.user.as_ref().is_some_and(|user| *user.scope_name() != self.scope) {
            return other_scope("user");
        }
        if self.topics.iter().any(|topic| *topic.scope_name() != self.scope) {
            return other_scope("topic");
        }
        Ok(())
    }

    fn invalidate(&mut self, error: SubscriptionError) {
        self.invalid.get_or_insert(error);
    }
}

/// Omits the data and the extensions, because they may contain secrets.
impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("scope", &self.scope)
            .field("user", &self.user)
            .field("topics", &self.topics)
            .field("start", &self.start)
            .field("expiry", &self.expiry)
            .field("end", &self.end)
            .field("bare", &self.bare)
            .finish_non_exhaustive()
    }
}
