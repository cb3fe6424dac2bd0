//! Counters and log lines. No log line above the level `debug` names a user, a topic or the query
//! of a request.

use http::HeaderValue;

#[cfg(feature = "metrics")]
use super::metrics::Metrics;
use super::stats::ByReason;
use crate::log::Millis;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::types::{ConnectionId, EndReason, GapReason, RefusalReason, SubscriptionError};

/// The warning of a hub or a publisher about a key that has no effect.
pub(in crate::hub) const KEY_IGNORED: &str = "the key of an event has no effect: no retention of its targets keeps the newest event of each key; set `HubBuilder::retention_for(…, Retention::latest_per_key())`";

/// The minimum time between two log lines of the same kind, in milliseconds.
const QUIET: Millis = 10_000;

/// One delivery in this number records its duration. A power of two.
const SAMPLE: u64 = 64;

/// The number of counters over which deliveries are spread.
const SHARDS: usize = 16;

/// A counter that occupies two cache lines alone, because processors fetch lines in pairs.
/// Otherwise each delivery on one core would invalidate the line for publishers and deliveries on
/// other cores.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// A part of the counts of deliveries, alone in two cache lines as [`Padded`].
#[derive(Debug, Default)]
#[repr(align(128))]
struct Deliveries {
    events: AtomicU64,
    #[cfg(feature = "metrics")]
    bytes: AtomicU64,
}

/// The counters of a hub, and the throttles of its log lines.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    #[cfg(feature = "metrics")]
    pub(in crate::hub) metrics: Metrics,
    published: Padded,
    /// Several counters, of which the id of the connection selects one.
    delivered: [Deliveries; SHARDS],
    connected: AtomicU64,
    gaps: [AtomicU64; GapReason::ALL.len()],
    refused: [AtomicU64; RefusalReason::ALL.len()],
    ended: [AtomicU64; EndReason::ALL.len()],
    evicted: AtomicU64,
    gap_lines: Throttle,
    refusal_lines: Throttle,
    eviction_lines: Throttle,
    stall_lines: Throttle,
    panic_lines: Throttle,
    late_lines: Throttle,
    failure_lines: Throttle,
    scope_lines: Throttle,
    broker_lines: Throttle,
    control_lines: Throttle,
    cut_lines: Throttle,
    skip_lines: Throttle,
    topic_lines: Throttle,
    key_lines: Throttle,
    origin_lines: Throttle,
    host_lines: Throttle,
    invalid_lines: Throttle,
    blocked_lines: Throttle,
    ticket_lines: Throttle,
    is_large_payload_logged: AtomicBool,
    is_unwatched_logged: AtomicBool,
}

impl Counters {
    pub(in crate::hub) fn published(&self, count: usize) {
        self.published.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Counts events that a stream has read. Returns whether they are in the sample whose durations
    /// are recorded.
    pub(in crate::hub) fn delivered(&self, connection: ConnectionId, count: usize) -> bool {
        let before = self.delivered[connection.spread(SHARDS)].events.fetch_add(count as u64, Ordering::Relaxed);
        before / SAMPLE != (before + count as u64) / SAMPLE
    }

    /// Counts bytes that a stream passes to the server.
    #[cfg(feature = "metrics")]
    pub(in crate::hub) fn sent(&self, connection: ConnectionId, bytes: usize) {
        self.delivered[connection.spread(SHARDS)].bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(in crate::hub) fn connected(&self, connection: ConnectionId, resuming: bool) {
        self.connected.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(name: "sse.connection.opened", connection = %connection.brief(), resuming, "event stream opened");
    }

    pub(in crate::hub) fn ended(&self, connection: ConnectionId, reason: EndReason, now: Millis) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(name: "sse.connection.ended", connection = %connection.brief(), %reason, "event stream ended");
        if reason == EndReason::Stalled
            && let Some(suppressed) = self.stall_lines.admit(now)
        {
            tracing::warn!(name: "sse.connection.stalled", suppressed, "an event stream stalled and was ended");
        }
    }

    pub(in crate::hub) fn gap(&self, connection: ConnectionId, reason: GapReason, now: Millis) {
        self.gaps[reason as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(name: "sse.connection.gap", connection = %connection.brief(), %reason, "gap reported");
        if let Some(suppressed) = self.gap_lines.admit(now) {
            tracing::warn!(name: "sse.gap.reported", %reason, suppressed, "a stream reported a gap: its client may have missed events");
        }
    }

    /// Logs that a new stream did not get all topics that its user was made to join.
    pub(in crate::hub) fn topics_left_out(&self, connection: ConnectionId, topics: usize, now: Millis) {
        tracing::debug!(name: "sse.connection.topics_left_out", connection = %connection.brief(), topics, "topics of the user exceed max_topics");
        if let Some(suppressed) = self.topic_lines.admit(now) {
            tracing::warn!(name: "sse.topics.left_out", topics, suppressed, "a stream did not join topics of its user: max_topics is reached");
        }
    }

    pub(crate) fn refused(&self, reason: RefusalReason, now: Millis) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.refusal_lines.admit(now) {
            tracing::warn!(name: "sse.request.refused", %reason, suppressed, "an event stream was refused");
        }
    }

    pub(in crate::hub) fn broker_failed(&self, broker: &str, error: &crate::backplane::BackplaneError, now: Millis) {
        tracing::debug!(name: "sse.log.follow_failed", %error, broker, "the shared log cannot be followed");
        if let Some(suppressed) = self.broker_lines.admit(now) {
            tracing::warn!(name: "sse.log.follow_failed", %error, broker, suppressed, "the shared log cannot be followed");
        }
    }

    pub(in crate::hub) fn control_failed(&self, error: &crate::backplane::BackplaneError, now: Millis) {
        if let Some(suppressed) = self.control_lines.admit(now) {
            tracing::warn!(name: "sse.control.failed", %error, suppressed, "the stream of control messages failed: commands and presence of other instances do not arrive");
        }
    }

    /// Logs that the broker has not stored the list of connections.
    pub(in crate::hub) fn list_not_stored(&self, error: &crate::backplane::BackplaneError, now: Millis) {
        if let Some(suppressed) = self.control_lines.admit(now) {
            tracing::warn!(name: "sse.peer.store_failed", %error, suppressed, "the list of connections cannot be stored at the broker: other instances may not know all connections");
        }
    }

    /// Logs that this instance does not receive its own control messages, although the broker
    /// answers.
    pub(in crate::hub) fn no_own_messages(&self, now: Millis) {
        if let Some(suppressed) = self.control_lines.admit(now) {
            tracing::warn!(name: "sse.control.silent",
                suppressed,
                "no control messages arrive from the broker: commands and presence of other instances do not arrive"
            );
        }
    }

    pub(in crate::hub) fn topics_truncated(&self, now: Millis) {
        if let Some(suppressed) = self.cut_lines.admit(now) {
            tracing::warn!(name: "sse.control.truncated",
                suppressed,
                "a connection has more topics than fit into one control message: other instances receive only some of them"
            );
        }
    }

    pub(in crate::hub) fn staleness(&self, stale: bool) {
        if stale {
            tracing::warn!(name: "sse.log.stale",
                "the hub cannot follow the shared log: streams report `hub.stale` until the hub follows it again"
            );
        } else {
            tracing::info!(name: "sse.log.recovered", "the hub follows the shared log again");
        }
    }

    pub(in crate::hub) fn record_skipped(&self, sequence: u64, now: Millis) {
        if let Some(suppressed) = self.skip_lines.admit(now) {
            tracing::warn!(name: "sse.log.record_skipped",
                sequence,
                suppressed,
                "a record of the shared log cannot be read: its audience receives a gap"
            );
        }
    }

    pub(in crate::hub) fn rechecks_late(&self, now: Millis) {
        if let Some(suppressed) = self.late_lines.admit(now) {
            tracing::warn!(name: "sse.recheck.late",
                suppressed,
                "rechecks are more than one interval late: the access hook is too slow for the number of streams"
            );
        }
    }

    pub(in crate::hub) fn recheck_failed(&self, now: Millis) {
        if let Some(suppressed) = self.failure_lines.admit(now) {
            tracing::warn!(name: "sse.recheck.failed", suppressed, "a recheck panicked or timed out");
        }
    }

    /// Logs that a recheck has returned a subscription of another scope than that of the stream.
    pub(in crate::hub) fn recheck_of_other_scope(&self, now: Millis) {
        if let Some(suppressed) = self.scope_lines.admit(now) {
            tracing::warn!(name: "sse.recheck.other_scope",
                suppressed,
                "a recheck returned another scope, or none, and its stream ended: call `in_scope` in the hook"
            );
        }
    }

    pub(crate) fn hook_panicked(&self, now: Millis) {
        if let Some(suppressed) = self.panic_lines.admit(now) {
            tracing::error!(name: "sse.access.panicked", suppressed, "the access hook panicked");
        }
    }

    /// Logs that an event has a key, and that no retention of its targets keeps values.
    pub(in crate::hub) fn key_ignored(&self, now: Millis) {
        if let Some(suppressed) = self.key_lines.admit(now) {
            tracing::warn!(name: "sse.publish.key_ignored", suppressed, "{KEY_IGNORED}");
        }
    }

    /// Logs that a request from a page of another origin was rejected. `origin` is the value of its
    /// `Origin` header.
    pub(crate) fn origin_refused(&self, origin: Option<&HeaderValue>, now: Millis) {
        if let Some(suppressed) = self.origin_lines.admit(now) {
            tracing::warn!(name: "sse.request.origin_rejected",
                origin = origin.and_then(|origin| origin.to_str().ok()),
                suppressed,
                "a page of another origin was rejected: allow its origin with `HubBuilder::allow_cross_origin`"
            );
        }
    }

    pub(crate) fn host_refused(&self, host: Option<&str>, now: Millis) {
        if let Some(suppressed) = self.host_lines.admit(now) {
            tracing::warn!(name: "sse.request.host_rejected",
                host,
                suppressed,
                "a request for another host was rejected: allow the host with `HubBuilder::allow_host`"
            );
        }
    }

    /// Logs that a ticket was issued for a subscription with extensions.
    pub(in crate::hub) fn ticket_without_extensions(&self, now: Millis) {
        if let Some(suppressed) = self.ticket_lines.admit(now) {
            tracing::warn!(name: "sse.ticket.extensions_lost",
                suppressed,
                "a ticket does not carry the extensions of its subscription: `recheck` receives no extensions"
            );
        }
    }

    pub(crate) fn subscription_invalid(&self, error: &SubscriptionError, now: Millis) {
        if let Some(suppressed) = self.invalid_lines.admit(now) {
            tracing::warn!(name: "sse.request.invalid", %error, suppressed, "a subscription is invalid: its client received 400");
        }
    }

    pub(crate) fn hook_blocked(&self, millis: Millis, now: Millis) {
        if let Some(suppressed) = self.blocked_lines.admit(now) {
            tracing::warn!(name: "sse.access.blocked",
                millis,
                suppressed,
                "the access hook blocked its thread and the streams on it: await instead, or use `spawn_blocking`"
            );
        }
    }

    /// Logs once that the socket of a stream is unknown. `is_http2` is true if the request uses
    /// HTTP/2 and the hub watches sockets, because one of them may carry the stream.
    pub(crate) fn unwatched(&self, is_http2: bool) {
        if self.is_unwatched_logged.swap(true, Ordering::Relaxed) {
            return;
        }
        if is_http2 {
            tracing::warn!(name: "sse.connection.unwatched",
                "the socket of an HTTP/2 stream is unknown, and the hub cannot cut it if the client stalls: serve an `SseMakeService` (logged once)"
            );
        } else {
            tracing::warn!(name: "sse.connection.unwatched",
                "a stream opened on a socket that the hub does not watch and cannot cut if the client stalls: serve `hub.listener(…)`, or wrap the socket with `hub.io(…)` (logged once)"
            );
        }
    }

    /// Logs the first payload over 64 KiB. Some common clients cannot read longer events.
    pub(in crate::hub) fn payload(&self, bytes: usize) {
        if bytes > 64 * 1024 && !self.is_large_payload_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(name: "sse.publish.large_payload", bytes, "a payload is over 64 KiB: some clients cannot read it (logged once)");
        }
    }

    /// Logs that a byte budget has dropped records. `total` is their number since the hub was
    /// built.
    pub(in crate::hub) fn evicted(&self, total: u64, now: Millis) {
        let before = self.evicted.fetch_max(total, Ordering::Relaxed);
        if total > before
            && let Some(suppressed) = self.eviction_lines.admit(now)
        {
            let records = total - before;
            tracing::warn!(name: "sse.log.evicted",
                records,
                suppressed,
                "a byte budget of the hub is exceeded: the oldest records were dropped before their retention ended"
            );
        }
    }

    pub(in crate::hub) fn totals(&self) -> Totals {
        Totals {
            published: self.published.0.load(Ordering::Relaxed),
            delivered: self.delivered.iter().map(|shard| shard.events.load(Ordering::Relaxed)).sum(),
            #[cfg(feature = "metrics")]
            sent_bytes: self.delivered.iter().map(|shard| shard.bytes.load(Ordering::Relaxed)).sum(),
            connected: self.connected.load(Ordering::Relaxed),
            gaps: by_reason(GapReason::ALL, GapReason::as_str, &self.gaps),
            refused: by_reason(RefusalReason::ALL, RefusalReason::as_str, &self.refused),
            ended: by_reason(EndReason::ALL, EndReason::as_str, &self.ended),
        }
    }
}

/// The values of the counters at one moment.
pub(in crate::hub) struct Totals {
    pub(in crate::hub) published: u64,
    pub(in crate::hub) delivered: u64,
    #[cfg(feature = "metrics")]
    pub(in crate::hub) sent_bytes: u64,
    pub(in crate::hub) connected: u64,
    pub(in crate::hub) gaps: ByReason,
    pub(in crate::hub) refused: ByReason,
    pub(in crate::hub) ended: ByReason,
}

fn by_reason<R: Copy>(reasons: &[R], name: fn(R) -> &'static str, counters: &[AtomicU64]) -> ByReason {
    let count = |(reason, counter): (&R, &AtomicU64)| (name(*reason), counter.load(Ordering::Relaxed));
    reasons.iter().zip(counters).map(count).collect()
}

/// A rate limit for log lines of one kind. It counts the suppressed lines.
#[derive(Debug, Default)]
struct Throttle {
    /// The time from which the next line may be logged.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    /// Returns `None` if the line is suppressed. Otherwise returns `Some` with the number of lines
    /// that were suppressed since the last logged line, or with `None` instead of zero, so that the
    /// log line omits the field.
    fn admit(&self, now: Millis) -> Option<Option<u64>> {
        let next = self.next.load(Ordering::Relaxed);
        let admitted =
            now >= next && self.next.compare_exchange(next, now + QUIET, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !admitted {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Some(self.suppressed.swap(0, Ordering::Relaxed)).filter(|&suppressed| suppressed > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_counts_the_suppressed_lines() {
        let throttle = Throttle::default();
        assert_eq!(throttle.admit(5), Some(None));
        assert_eq!(throttle.admit(6), None);
        assert_eq!(throttle.admit(QUIET), None);
        assert_eq!(throttle.admit(QUIET + 5), Some(Some(2)));
    }
}
