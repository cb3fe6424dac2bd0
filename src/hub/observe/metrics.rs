//! Metrics, through the facade of the crate `metrics`.
//!
//! 1. A handle is registered when its hub or publisher is built, with the recorder of that time.
//!    The runs of a publisher have handles from the first call of `run` on.
//! 2. Durations are recorded when they end. Deliveries are counted by the hub's own counters, and
//!    one delivery in 64 records a duration, so that a delivery costs hardly more.
//! 3. All other metrics follow the statistics at each [`Metrics::record`]. A hub adds the change
//!    since its last call, so that several hubs of a process are their sum ([`Recorded`]).
//! 4. A hub that is dropped subtracts its gauges.

use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Unit};

use super::stats::Stats;
use crate::macros::opaque_debug;
use crate::sync::Mutex;
use crate::types::{EndReason, GapReason, PublishError, RefusalReason, RunError};

/// A metric that follows a value of the statistics.
struct Followed<T> {
    name: &'static str,
    unit: Unit,
    description: &'static str,
    value: fn(&Stats) -> T,
}

const GAUGES: &[Followed<usize>] = &[
    Followed {
        name: "sse.server.active_connections",
        unit: Unit::Count,
        description: "Streams that are open now",
        value: |stats| stats.connections,
    },
    Followed {
        name: "sse.server.stalled_connections",
        unit: Unit::Count,
        description: "Open streams that have had work to do for more than a second without being polled",
        value: |stats| stats.stalled,
    },
    Followed {
        name: "sse.server.lag",
        unit: Unit::Count,
        description: "Records between the slowest stream that has work to do and the newest record",
        value: |stats| usize::try_from(stats.lag).unwrap_or(usize::MAX),
    },
    Followed {
        name: "sse.server.users",
        unit: Unit::Count,
        description: "Users that the hub remembers",
        value: |stats| stats.users,
    },
    Followed {
        name: "sse.server.channels",
        unit: Unit::Count,
        description: "Topics, users and other addresses with state in memory",
        value: |stats| stats.channels,
    },
    Followed {
        name: "sse.server.retained_bytes",
        unit: Unit::Bytes,
        description: "Memory of retained events except current values",
        value: |stats| stats.retained_bytes,
    },
    Followed {
        name: "sse.server.current_value_bytes",
        unit: Unit::Bytes,
        description: "Memory of current values",
        value: |stats| stats.keyed_bytes,
    },
    Followed {
        name: "sse.server.log.stale",
        unit: Unit::Count,
        description: "Hubs that cannot follow the shared log now",
        value: |stats| usize::from(stats.stale),
    },
    Followed {
        name: "sse.server.log.peers",
        unit: Unit::Count,
        description: "Other instances that count as alive now",
        value: |stats| stats.others,
    },
];

const COUNTERS: &[Followed<u64>] = &[
    Followed {
        name: "sse.server.connections",
        unit: Unit::Count,
        description: "Streams that were opened",
        value: |stats| stats.connected,
    },
    Followed {
        name: "sse.server.delivered_events",
        unit: Unit::Count,
        description: "Events that streams have read, counted for each stream",
        value: |stats| stats.delivered,
    },
    Followed {
        name: "sse.server.sent_bytes",
        unit: Unit::Bytes,
        description: "Bytes of streams that were passed to the server, before compression and encryption",
        value: |stats| stats.sent_bytes,
    },
    Followed {
        name: "sse.server.evicted_records",
        unit: Unit::Count,
        description: "Records that byte budgets dropped before their retention ended",
        value: |stats| stats.evicted,
    },
    Followed {
        name: "sse.server.log.skipped_records",
        unit: Unit::Count,
        description: "Records of the shared log that could not be read",
        value: |stats| stats.skipped,
    },
];

const GAPS: &str = "sse.server.gaps";
const REFUSALS: &str = "sse.server.refusals";
const CONNECTION_DURATION: &str = "sse.server.connection.duration";
const DELIVERY_DURATION: &str = "sse.server.delivery.duration";
const LOG_DELAY: &str = "sse.server.log.delay";
const PUBLISHED: &str = "sse.server.published_events";
const PUBLISH_ERRORS: &str = "sse.server.publish.errors";
const PUBLISH_DURATION: &str = "sse.server.publish.duration";

/// The metrics of a hub.
pub(in crate::hub) struct Metrics {
    pub(in crate::hub) publishing: PublishMetrics,
    /// By the reason of the end.
    connection_durations: Vec<Histogram>,
    delivery_duration: Histogram,
    log_delay: Histogram,
    gauges: Vec<Gauge>,
    counters: Vec<Counter>,
    gaps: Vec<Counter>,
    refusals: Vec<Counter>,
    recorded: Mutex<Recorded>,
}

/// The values that the hub has added to the recorder so far, in the order of the handles.
#[derive(Default)]
struct Recorded {
    gauges: Vec<usize>,
    counters: Vec<u64>,
    gaps: Vec<u64>,
    refusals: Vec<u64>,
}

impl Default for Metrics {
    /// Registers the metrics with the recorder of this moment.
    fn default() -> Self {
        describe();
        let duration = |reason: &EndReason| {
            let (status, reason) = (close_status(*reason), reason.as_str());
            metrics::histogram!(CONNECTION_DURATION, "sse.connection.status" => status, "sse.connection.end_reason" => reason)
        };
        let gap = |reason: &GapReason| metrics::counter!(GAPS, "sse.gap.reason" => reason.as_str());
        let refusal = |reason: &RefusalReason| metrics::counter!(REFUSALS, "sse.refusal.reason" => reason.as_str());
        Self {
            publishing: PublishMetrics::default(),
            connection_durations: EndReason::ALL.iter().map(duration).collect(),
            delivery_duration: metrics::histogram!(DELIVERY_DURATION),
            log_delay: metrics::histogram!(LOG_DELAY),
            gauges: GAUGES.iter().map(|gauge| metrics::gauge!(gauge.name)).collect(),
            counters: COUNTERS.iter().map(|counter| metrics::counter!(counter.name)).collect(),
            gaps: GapReason::ALL.iter().map(gap).collect(),
            refusals: RefusalReason::ALL.iter().map(refusal).collect(),
            recorded: Mutex::default(),
        }
    }
}

fn describe() {
    for gauge in GAUGES {
        metrics::describe_gauge!(gauge.name, gauge.unit, gauge.description);
    }
    for counter in COUNTERS {
        metrics::describe_counter!(counter.name, counter.unit, counter.description);
    }
    metrics::describe_counter!(GAPS, Unit::Count, "Gaps that streams have reported");
    metrics::describe_counter!(REFUSALS, Unit::Count, "Requests that received a retryable refusal");
    metrics::describe_histogram!(CONNECTION_DURATION, Unit::Seconds, "Time for which streams were open");
    metrics::describe_histogram!(
        DELIVERY_DURATION,
        Unit::Seconds,
        "Time from the arrival of an event in this hub until a stream that has caught up passes it to the server"
    );
    metrics::describe_histogram!(
        LOG_DELAY,
        Unit::Seconds,
        "Time from the publication of an event until this hub has read it from the shared log"
    );
}

/// Returns the status of an ended connection, in the words of OpenTelemetry's metrics for SignalR:
/// <https://opentelemetry.io/docs/specs/semconv/dotnet/dotnet-signalr-metrics/>.
fn close_status(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Draining => "app_shutdown",
        EndReason::Stalled => "timeout",
        _ => "normal_closure",
    }
}

impl Metrics {
    /// Records the end of a connection.
    pub(in crate::hub) fn ended(&self, reason: EndReason, open_for: Duration) {
        self.connection_durations[reason as usize].record(open_for);
    }

    /// Records the duration of a delivery.
    pub(in crate::hub) fn delivered(&self, duration: Duration) {
        self.delivery_duration.record(duration);
    }

    /// Records the time that a record took through the shared log.
    pub(in crate::hub) fn read_from_log(&self, delay: Duration) {
        self.log_delay.record(delay);
    }

    /// Adds the changes since the last call. Takes the statistics under the lock, so that a
    /// concurrent call records neither older values nor the same change again.
    pub(in crate::hub) fn record(&self, stats: impl FnOnce() -> Stats) {
        let mut recorded = self.recorded.lock();
        let stats = &stats();
        let Recorded { gauges, counters, gaps, refusals } = &mut *recorded;
        let values = |followed: &[Followed<u64>]| followed.iter().map(|metric| (metric.value)(stats)).collect();
        add(&self.counters, counters, values(COUNTERS));
        add(&self.gaps, gaps, stats.gaps.iter().map(|(_, count)| *count).collect());
        add(&self.refusals, refusals, stats.refused.iter().map(|(_, count)| *count).collect());
        self.set_gauges(gauges, GAUGES.iter().map(|metric| (metric.value)(stats)).collect());
    }

    fn set_gauges(&self, recorded: &mut Vec<usize>, values: Vec<usize>) {
        recorded.resize(values.len(), 0);
        for ((gauge, before), now) in self.gauges.iter().zip(&*recorded).zip(&values) {
            #[expect(clippy::cast_precision_loss, reason = "gauges of the facade are floating-point numbers")]
            if now > before {
                gauge.increment((now - before) as f64);
            } else {
                // Also if nothing has changed, because exporters may remove a gauge that is not
                // touched.
                gauge.decrement((before - now) as f64);
            }
        }
        *recorded = values;
    }
}

/// Adds to each counter the change of its value since the last call.
fn add(counters: &[Counter], recorded: &mut Vec<u64>, values: Vec<u64>) {
    recorded.resize(values.len(), 0);
    for ((counter, before), now) in counters.iter().zip(recorded).zip(values) {
        counter.increment(now - *before);
        *before = now;
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        let mut gauges = std::mem::take(&mut self.recorded.lock().gauges);
        let zeros = vec![0; gauges.len()];
        self.set_gauges(&mut gauges, zeros);
    }
}

opaque_debug!(|_metrics: Metrics| {});

/// The metrics of everything that publishes: a hub, a publisher, or the writer of a run.
pub(in crate::hub) struct PublishMetrics {
    published: Counter,
    duration: Histogram,
    invalid: Counter,
    unavailable: Counter,
    unknown: Counter,
    rejected: Counter,
}

impl Default for PublishMetrics {
    /// Registers the metrics with the recorder of this moment.
    fn default() -> Self {
        metrics::describe_counter!(PUBLISHED, Unit::Count, "Events that were published");
        metrics::describe_counter!(PUBLISH_ERRORS, Unit::Count, "Events that could not be published");
        metrics::describe_histogram!(PUBLISH_DURATION, Unit::Seconds, "Duration of calls that publish events");
        let errors = |kind: &'static str| metrics::counter!(PUBLISH_ERRORS, "error.type" => kind);
        Self {
            published: metrics::counter!(PUBLISHED),
            duration: metrics::histogram!(PUBLISH_DURATION),
            invalid: errors("invalid"),
            unavailable: errors("unavailable"),
            unknown: errors("unknown"),
            rejected: errors("rejected"),
        }
    }
}

impl PublishMetrics {
    /// Begins to measure a call that publishes.
    pub(in crate::hub) fn begin(&self) -> PublishCall<'_> {
        PublishCall { metrics: self, started: Instant::now(), events: 0, has_ended: false }
    }

    /// Counts an event that could not be published.
    pub(in crate::hub) fn failed(&self, error: &PublishError) {
        let counter = match error {
            error if error.is_unknown() => &self.unknown,
            error if error.is_unavailable() => &self.unavailable,
            error if error.is_closed() => &self.rejected,
            _ => &self.invalid,
        };
        counter.increment(1);
    }
}

opaque_debug!(|_metrics: PublishMetrics| {});

/// A call that publishes. Its drop records its duration, unless the call had no events.
pub(in crate::hub) struct PublishCall<'a> {
    metrics: &'a PublishMetrics,
    started: Instant,
    /// The number of events, or zero until [`waits_for`](Self::waits_for) or the end of the call.
    events: usize,
    /// Whether the outcome of the events is known. False if the future of the call is dropped.
    has_ended: bool,
}

impl PublishCall<'_> {
    /// Notes that the call is about to wait for the outcome of these events.
    pub(in crate::hub) fn waits_for(&mut self, events: usize) {
        self.events = events;
    }

    /// Ends the call with these results, one for each event.
    pub(in crate::hub) fn end<T>(mut self, results: &[Result<T, PublishError>]) {
        (self.events, self.has_ended) = (results.len(), true);
        let errors = results.iter().filter_map(|result| result.as_ref().err());
        errors.clone().for_each(|error| self.metrics.failed(error));
        self.metrics.published.increment((results.len() - errors.count()) as u64);
    }

    /// Ends the call of a writer of a run, which has published all of these events or none.
    pub(in crate::hub) fn end_for_run<T>(mut self, events: usize, result: &Result<T, RunError>) {
        (self.events, self.has_ended) = (events, true);
        let counter = match result {
            Ok(_) => &self.metrics.published,
            Err(error) if error.is_unknown() => &self.metrics.unknown,
            Err(error) if error.is_unavailable() => &self.metrics.unavailable,
            Err(error) if error.is_invalid() => &self.metrics.invalid,
            Err(_) => &self.metrics.rejected,
        };
        counter.increment(events as u64);
    }
}

impl Drop for PublishCall<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.metrics.unknown.increment(self.events as u64);
        }
        if self.events > 0 {
            self.metrics.duration.record(self.started.elapsed());
        }
    }
}
