//! What a channel keeps, for whom that comes back or falls behind.

use std::time::Duration;

/// What is kept of the events to one audience, and what happens to a reader that falls out of it.
///
/// It is chosen by the audience alone: by the first matching [`TopicFilter`](crate::TopicFilter), else
/// by the default for topics, users or everyone. Three kinds:
///
/// | kind | keeps | a page that comes back gets | a slow page |
/// |---|---|---|---|
/// | [`live`](Self::live) | a short window, for readers a moment behind | what is in the window, else a gap | as there |
/// | [`replay`](Self::replay) | the newest events; a shared log more of them | all it missed, else a gap and what is kept | as there |
/// | [`latest_per_key`](Self::latest_per_key) | the newest event of each key | the keys that changed | skips what is outdated, always gets the last |
///
/// All bounds hold at once, and the hub's byte budgets
/// ([`HubBuilder::retention_budget`](crate::HubBuilder::retention_budget),
/// [`HubBuilder::keyed_budget`](crate::HubBuilder::keyed_budget)) hold over all audiences together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub(crate) kind: Kind,
    /// Of records in the ring.
    pub(crate) ring: Bounds,
    /// Of current values; `count` is of keys.
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

/// What becomes of an open stream that fell so far behind that records it had not read were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LagPolicy {
    /// It gets one `hub.gap` with the reason `lagged`, then everything that is still kept.
    #[default]
    Gap,
    /// It ends, with `hub.bye` and the reason `lagged`. The browser reconnects, and is told what it missed then.
    Disconnect,
}

impl Retention {
    /// A window of the hub's write deadline (30 s by default), at most 256 events and 1 MiB: enough for a reader that
    /// is a moment behind, or reconnects at once.
    #[must_use]
    pub fn live() -> Self {
        // The age of the ring of the live kinds is the hub's live window; it is filled in when the hub is built.
        let ring = Bounds { count: 256, bytes: 1 << 20, age: None };
        Self { kind: Kind::Live, ring, keyed: Bounds { count: 0, bytes: 0, age: None }, lag: LagPolicy::Gap }
    }

    /// The newest 1,024 events, at most 1 MiB of them and none older than 5 minutes, unless set otherwise.
    ///
    /// Where several instances share a log
    /// ([`HubBuilder::backplane`](crate::HubBuilder::backplane)) these are the bounds of each
    /// instance's memory: a page that comes back from before that gets the rest out of the broker's
    /// log, as far back as that goes. Its own limits are what to set where nothing old may be read.
    #[must_use]
    pub fn replay() -> Self {
        let ring = Bounds { count: 1024, bytes: 1 << 20, age: Some(Duration::from_secs(300)) };
        Self { kind: Kind::Replay, ring, ..Self::live() }
    }

    /// The newest event of each [`key`](crate::Event::key): at most 1,024 keys and 1 MiB, whatever their age, unless
    /// set otherwise. A new page gets every current value at once. Events without a key are treated as
    /// [`live`](Self::live), and so is the news of a [removal](crate::Event::removal).
    #[must_use]
    pub fn latest_per_key() -> Self {
        Self { kind: Kind::LatestPerKey, keyed: Bounds { count: 1024, bytes: 1 << 20, age: None }, ..Self::live() }
    }

    /// Keeps at most this many events, or keys with [`latest_per_key`](Self::latest_per_key). At least 1.
    #[must_use]
    pub fn count(mut self, count: usize) -> Self {
        self.bounds().count = count;
        self
    }

    /// Keeps at most this many bytes. An event counts as its bytes on the wire plus 200, and a current value as its key
    /// and 90 in addition. At least 1; the newest event stays even if it alone is larger.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bounds().bytes = bytes;
        self
    }

    /// Keeps nothing older than this. Checked when something is published and, in a tokio runtime, within a few
    /// seconds of its time. More than zero. Not for [`live`](Self::live), whose age is
    /// the [`HubBuilder::write_deadline`](crate::HubBuilder::write_deadline).
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.bounds().age = Some(age);
        self
    }

    /// Sets what becomes of an open stream that falls behind. Defaults to [`LagPolicy::Gap`].
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

    /// What makes no sense in it, in words.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let bounds = if self.kind == Kind::LatestPerKey { &self.keyed } else { &self.ring };
        match bounds {
            Bounds { count: 0, .. } => Some("a count of zero keeps nothing"),
            Bounds { bytes: 0, .. } => Some("zero bytes keep nothing"),
            Bounds { age: Some(Duration::ZERO), .. } => Some("an age of zero keeps nothing"),
            Bounds { age: Some(_), .. } if self.kind == Kind::Live => {
                Some("the age of `live` is the hub's `write_deadline`")
            }
            Bounds { .. } => None,
        }
    }

    /// With the hub's live window in place of the ages that are left to it.
    pub(crate) fn with_live_window(mut self, window: Duration) -> Self {
        if self.kind != Kind::Replay {
            self.ring.age = Some(window);
        }
        self
    }
}
