//! The hub: the one pipeline from a publisher to every connection.
//!
//! The files of this folder are what an application calls. Each room below it is about one thing, and its `mod.rs`
//! names its rules and the file that keeps each rule:
//!
//! | room | about |
//! |---|---|
//! | `config` | what an application sets |
//! | `tasks` | background tasks that outlive a runtime, workers |
//! | `connection` | the state of each open connection, bans, sockets |
//! | `peers` | what other instances have reported |
//! | `membership` | which connections are in which topics |
//! | `stream` | the life of one open stream |
//! | `upkeep` | background work of one instance |
//! | `cluster` | work on the log that several instances share |
//! | `tickets` | subscriptions that a client fetches once |
//! | `observe` | counters, statistics, lifecycle events |

mod builder;
mod cluster;
mod command;
mod config;
mod connection;
mod membership;
mod observe;
mod peers;
mod publish;
#[cfg(feature = "json")]
mod publisher;
mod shutdown;
pub(crate) mod stream;
mod subscriber;
mod target;
mod tasks;
mod tickets;
mod topics;
mod upkeep;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use crate::log::{Budgets, Log, Millis, Policies, Since, millis};
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::types::audience::{Address, Audience};
use crate::types::error::BuildError;
use crate::types::position::{Epoch, Position};

use cluster::follow::Remote;
use config::limits::Rate;
use connection::bans::Bars;
use connection::registry::Registry;
use membership::changes::Presences;
use observe::counters::Counters;
use observe::lifecycle::Lifecycles;
use tasks::slot::TaskSlot;
use tasks::workers::Workers;
use tickets::store::Tickets;
use upkeep::recheck::Rechecks;

pub(crate) use crate::log::Batch;
pub(crate) use config::origins::{Hosts, Origins};
pub(crate) use config::settings::Settings;
pub(crate) use connection::socket::{Transport, Transports};
pub(crate) use stream::admission::{OpenError, Request};
pub(crate) use stream::driver::{Connection, Step};
pub(crate) use stream::offer::{Offer, Outcome};
pub(crate) use tickets::store::{NotTaken, Redemption, Redemptions, Taken};
pub(crate) use topics::ChangeError;
pub(crate) use upkeep::recheck::Authority;

pub use builder::HubBuilder;
pub use command::Join;
pub use config::limits::OverLimit;
pub use connection::info::ConnectionInfo;
pub use membership::changes::{Member, Presence};
pub use observe::lifecycle::{Lifecycle, LifecycleEvent};
pub use observe::stats::Stats;
pub use publish::Published;
#[cfg(feature = "json")]
pub use publisher::{Publisher, Recipients};
pub use shutdown::{Drained, Health};
pub use subscriber::{HubStream, Received, StreamItem};
pub use target::Target;
pub use tickets::store::Ticket;
pub use upkeep::recheck::Recheck;

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
    chores: Arc<TaskSlot>,
    workers: Workers,
    bars: Bars,
    rate: Mutex<Rate>,
    presences: Presences,
    lifecycles: Lifecycles,
    rechecks: Rechecks,
    tickets: Tickets,
    /// The log that this instance shares with others.
    remote: Option<Remote>,
    draining: AtomicBool,
    closed: AtomicBool,
}

/// 128 bits that nobody guesses.
fn random_bits() -> Result<u128, getrandom::Error> {
    Ok(u128::from(getrandom::u64()?) << 64 | u128::from(getrandom::u64()?))
}

impl Hub {
    /// Starts building one.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }

    fn start(
        settings: Settings,
        policies: Policies,
        budgets: Budgets,
        remote: Option<Remote>,
    ) -> Result<Self, BuildError> {
        let epoch =
            getrandom::u64().map_err(|_| BuildError::new("build", "the operating system gives no random bytes"))?;
        let grace = millis(settings.presence_grace);
        let inner = Inner {
            log: Log::new(Epoch(epoch), policies, budgets),
            started: Instant::now(),
            registry: Registry::new(settings.limits, grace),
            transports: Transports::default(),
            counters: Counters::default(),
            chores: Arc::default(),
            workers: Workers::default(),
            bars: Bars::default(),
            rate: Mutex::default(),
            presences: Presences::new(settings.presence_rules.clone(), grace),
            lifecycles: Lifecycles::new(settings.lifecycle_capacity),
            rechecks: Rechecks::default(),
            tickets: Tickets::new(settings.max_tickets),
            settings,
            remote,
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        let inner = Arc::new(inner);
        // Outside of a runtime by whoever uses it first.
        cluster::follow::ensure(&inner);
        Ok(Self { inner })
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
                // There is always room for it: it is no topic.
                let _ = self.log().join(&link, address, Since::Now, 0, self.now());
            }
        }
    }

    /// The hub's part after something was appended: count it, wake whom the log left to be woken, keep house.
    fn published(&self, count: usize) {
        self.counters().published(count);
        tasks::workers::wake_rest(&self.inner);
        upkeep::sweep::ensure(&self.inner);
    }

    /// A `retry` at random between these multiples of a time, within what the settings allow.
    pub(crate) fn jittered_retry(&self, time: Duration, between: RangeInclusive<f64>) -> Duration {
        let factor = between.start() + (between.end() - between.start()) * fastrand::f64();
        let range = &self.settings().framing.retry;
        let retry = Duration::try_from_secs_f64(time.as_secs_f64() * factor).unwrap_or(time);
        retry.clamp(*range.start(), *range.end())
    }
}

/// What the clock of a hub shows when the hub starts: a year, so that records from before have a time too.
const STARTED: Millis = 365 * 24 * 60 * 60 * 1000;

impl Inner {
    fn now(&self) -> Millis {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Millis {
        let since = u64::try_from(instant.saturating_duration_since(self.started).as_millis());
        since.map_or(Millis::MAX, |since| since.saturating_add(STARTED))
    }

    fn instant(&self, millis: Millis) -> Instant {
        self.started + Duration::from_millis(millis.saturating_sub(STARTED))
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
