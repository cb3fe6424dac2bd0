//! The hub: the one pipeline from a publisher to every connection.

mod connection;
mod drain;
mod housekeeping;
mod publish;
mod registry;
mod report;
mod settings;
mod stats;
mod stream;
mod transport;

use std::fmt;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use crate::audience::{Address, Audience};
use crate::error::BuildError;
use crate::log::{Budgets, Log, Millis, Policies};
use crate::position::{Epoch, Position};
use crate::sync::{AtomicBool, Ordering};

use housekeeping::Chores;
use registry::Registry;
use report::Counters;

pub(crate) use crate::log::Batch;
pub(crate) use connection::{Connection, OpenError, Step};
pub(crate) use settings::Settings;
pub(crate) use transport::{Transport, Transports};

pub use drain::{Drained, Health};
pub use publish::{Published, Target};
pub use settings::HubBuilder;
pub use stats::Stats;
pub use stream::{HubStream, Received, StreamItem};

/// The handle to inject wherever something happens that somebody should hear of.
///
/// Cloning is one reference count; all clones are the same hub. It needs no runtime to be built or to publish.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{Event, Hub};
///
/// /// A service that knows nothing of HTTP.
/// struct Documents {
///     hub: Hub,
/// }
///
/// impl Documents {
///     async fn delete(&self, id: u64, owner: &str) -> Result<(), tower_sse::PublishError> {
///         self.hub.user(owner).publish(Event::text("document.deleted", id.to_string())).await?;
///         Ok(())
///     }
/// }
///
/// let documents = Documents { hub: Hub::builder().build()? };
/// documents.delete(7, "ada").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    log: Log,
    settings: Settings,
    started: Instant,
    registry: Registry,
    transports: Transports,
    counters: Counters,
    chores: Chores,
    draining: AtomicBool,
    closed: AtomicBool,
}

impl Hub {
    /// Starts building one.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }

    fn start(settings: Settings, policies: Policies, budgets: Budgets) -> Result<Self, BuildError> {
        let epoch =
            getrandom::u64().map_err(|_| BuildError::new("build", "the operating system gives no random bytes"))?;
        let inner = Inner {
            log: Log::new(Epoch(epoch), policies, budgets),
            settings,
            started: Instant::now(),
            registry: Registry::default(),
            transports: Transports::default(),
            counters: Counters::default(),
            chores: Chores::default(),
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The newest position: everything published so far is at or before it.
    ///
    /// For rendering a page without a hole before its stream: take the position first, then query, then open the
    /// stream with `?last_event_id=` and the position. What happens in between comes twice rather than not at all.
    #[must_use]
    pub fn position(&self) -> Position {
        self.inner.log.position()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn log(&self) -> &Log {
        &self.inner.log
    }

    pub(crate) fn transports(&self) -> &Transports {
        &self.inner.transports
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(crate) fn now(&self) -> Millis {
        self.inner.now()
    }

    /// No more streams are accepted.
    pub(crate) fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    /// Nothing is published any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
    }

    /// Opens the channels of those connections of this audience that are here. A connection has none until somebody
    /// writes to it alone.
    fn attach_connections(&self, audience: &Audience) {
        for address in audience.addresses() {
            if let Address::Connection(id) = address
                && let Some(link) = self.registry().find(*id)
            {
                self.log().join(&link.subscriber, address);
            }
        }
    }

    /// The hub's part after something was appended: count it, wake whom the log left to be woken, keep house.
    fn published(&self, count: usize) {
        self.counters().published(count);
        if self.log().has_deferred() {
            housekeeping::wake(&self.inner);
        }
        housekeeping::ensure(&self.inner);
    }
}

impl Inner {
    fn now(&self) -> Millis {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Millis {
        u64::try_from(instant.saturating_duration_since(self.started).as_millis()).unwrap_or(Millis::MAX)
    }

    fn instant(&self, millis: Millis) -> Instant {
        self.started + Duration::from_millis(millis)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("instance", &self.settings().instance)
            .field("position", &self.position())
            .field("connections", &self.registry().len())
            .finish_non_exhaustive()
    }
}
