//! The rules for retained events, and for readers that fall behind.

use std::time::Duration;

/// The rule for the events that the hub retains for one audience, and for readers that fall behind.
///
/// The audience alone selects the rule: the rule of the first matching
/// [`TopicFilter`](crate::TopicFilter), otherwise the default for topics, users or everyone. A rule
/// has one of three kinds:
///
/// | Kind | Retains | A client that reconnects receives | A slow client receives |
/// |---|---|---|---|
/// | [`live`](Self::live) | a short window, for readers a moment behind | all missed events, or a gap and the events of the window | the same |
/// | [`replay`](Self::replay) | the newest events; a shared log retains more of them | all missed events, or a gap and the retained events | the same |
/// | [`latest_per_key`](Self::latest_per_key) | the newest event of each key | the newest event of each key that has changed | the newest event of each key, without the outdated ones |
///
/// All bounds of a rule apply at the same time. The hub's byte budgets
/// ([`HubBuilder::retention_budget`](crate::HubBuilder::retention_budget),
/// [`HubBuilder::keyed_budget`](crate::HubBuilder::keyed_budget)) apply to all audiences together.
///
/// With a [`backplane`](crate::HubBuilder::backplane), the limits of the broker's log bound the
/// history of some audiences too. An instance stops storing the events of a topic or user when it
/// has had no listener there for [`presence_grace`](crate::HubBuilder::presence_grace), or for one
/// minute if that is longer. It then reads these events from the broker's log. If that log drops an
/// event earlier than this retention does, a client that missed the event receives a gap. By
/// default, the log has the newest 100,000 events of all audiences together. So from 334 events a
/// second on, it holds less than the 5 minutes of [`replay`](Self::replay). Raise the `LogLimits`
/// of the adapter on a busy log. Every instance stores the events to everyone, and those of
/// audiences with [`latest_per_key`](Self::latest_per_key).
///
/// ```
/// use std::time::Duration;
/// use tower_sse::{Hub, Retention, TopicFilter};
///
/// let hour = Duration::from_secs(3600);
/// let hub = Hub::builder()
///     .topic_retention(Retention::replay().count(500).age(hour))
///     .retention_for(TopicFilter::prefix("cursors/"), Retention::live())
///     .retention_for(TopicFilter::prefix("sensors/"), Retention::latest_per_key())
///     .build()?;
/// # let _ = hub;
/// # Ok::<(), tower_sse::BuildError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub(crate) kind: Kind,
    /// The bounds of the records in the ring.
    pub(crate) ring: Bounds,
    /// The bounds of the current values. `count` is the maximum number of keys.
    pub(crate) keyed: Bounds,
    pub(crate) lag: LagPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Live,
    Replay,
    LatestPerKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    pub(crate) age: Option<Duration>,
}

/// The treatment of an open stream that has fallen so far behind that the hub has dropped events
/// before the stream could read them.
///
/// ```
/// use tower_sse::{Hub, LagPolicy, Retention, TopicFilter};
///
/// let orders = Retention::replay().on_lag(LagPolicy::Disconnect);
/// let hub = Hub::builder().retention_for(TopicFilter::exact("orders"), orders).build()?;
/// # let _ = hub;
/// # Ok::<(), tower_sse::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LagPolicy {
    /// The stream receives one `hub.gap` with the reason `lagged`, and then every event that is
    /// still retained.
    #[default]
    Gap,
    /// The stream ends with `hub.bye` and the reason `lagged`. The browser reconnects. It then
    /// receives a gap, unless a shared log still retains the events that it missed.
    Disconnect,
}

impl Retention {
    /// Retains the events of the last
    /// [`HubBuilder::write_deadline`](crate::HubBuilder::write_deadline) (30 s by default), at most
    /// 256 events and 1 MiB unless set otherwise. This window is enough for a client that is a
    /// moment behind, or that reconnects at once.
    #[must_use]
    pub fn live() -> Self {
        // `with_live_window` sets the age of the ring when the hub is built.
        let ring = Bounds { count: 256, bytes: 1 << 20, age: None };
        Self { kind: Kind::Live, ring, keyed: Bounds { count: 0, bytes: 0, age: None }, lag: LagPolicy::Gap }
    }

    /// Retains the newest events: at most 1,024 events and 1 MiB, none older than 5 minutes, unless
    /// set otherwise.
    ///
    /// Where several instances share a log
    /// ([`HubBuilder::backplane`](crate::HubBuilder::backplane)), these bounds apply to each
    /// instance. A client that reconnects with an older cursor receives the older events from the
    /// broker's log, as far back as that log goes. If clients must not read old events, set the
    /// limits of the broker's log. If the audience had no listener on this instance for a minute or
    /// more, the instance reads the events within these bounds from the broker's log too. A client
    /// then receives a gap for the events that this log no longer has: see [`Retention`].
    #[must_use]
    pub fn replay() -> Self {
        let ring = Bounds { count: 1024, bytes: 1 << 20, age: Some(Duration::from_secs(300)) };
        Self { kind: Kind::Replay, ring, ..Self::live() }
    }

    /// Retains the newest event of each [`key`](crate::Event::key): at most 1,024 keys and 1 MiB,
    /// of any age, unless set otherwise.
    ///
    /// A new stream first receives every current value. The hub retains events without a key as
    /// [`live`](Self::live) does, and also the event that reports a
    /// [removal](crate::Event::removal).
    #[must_use]
    pub fn latest_per_key() -> Self {
        Self { kind: Kind::LatestPerKey, keyed: Bounds { count: 1024, bytes: 1 << 20, age: None }, ..Self::live() }
    }

    /// Limits the number of retained events of each audience, or of its keys with
    /// [`latest_per_key`](Self::latest_per_key). At least 1.
    #[must_use]
    pub fn count(mut self, count: usize) -> Self {
        self.bounds().count = count;
        self
    }

    /// Limits the retained bytes of each audience. An event counts as its bytes on the wire plus
    /// 200. A current value counts as its key and 90 in addition. At least 1. The newest event
    /// stays even if it exceeds the limit.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bounds().bytes = bytes;
        self
    }

    /// Limits the age of retained events. More than zero. In a tokio runtime the hub drops an event
    /// within a few seconds after it has reached this age. Without a runtime, the hub checks the
    /// age when an event is published.
    ///
    /// [`HubBuilder::build`](crate::HubBuilder::build) rejects an age for [`live`](Self::live),
    /// whose window is the [`HubBuilder::write_deadline`](crate::HubBuilder::write_deadline).
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.bounds().age = Some(age);
        self
    }

    /// Sets the treatment of an open stream that falls behind. Defaults to [`LagPolicy::Gap`].
    #[must_use]
    pub fn on_lag(mut self, policy: LagPolicy) -> Self {
        self.lag = policy;
        self
    }

    fn bounds(&mut self) -> &mut Bounds {
        match self.kind {
            Kind::LatestPerKey => &mut self.keyed,
            Kind::Live | Kind::Replay => &mut self.ring,
        }
    }

    /// Returns the text of the first problem with the bounds, if any.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let bounds = if self.kind == Kind::LatestPerKey { &self.keyed } else { &self.ring };
        match bounds {
            Bounds { count: 0, .. } => Some("count must be at least 1"),
            Bounds { bytes: 0, .. } => Some("bytes must be at least 1"),
            Bounds { age: Some(Duration::ZERO), .. } => Some("age must be more than zero"),
            Bounds { age: Some(_), .. } if self.kind == Kind::Live => {
                Some("`live` has no age: set the hub's `write_deadline` instead")
            }
            Bounds { .. } => None,
        }
    }

    /// Sets the age of the ring to the write deadline of the hub, for kinds other than
    /// [`Kind::Replay`].
    pub(crate) fn with_live_window(mut self, window: Duration) -> Self {
        if self.kind != Kind::Replay {
            self.ring.age = Some(window);
        }
        self
    }
}
