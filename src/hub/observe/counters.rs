//! What is counted and what is logged. Nothing above debug names a user, a topic or a query.

use http::HeaderValue;

use super::stats::ByReason;
use crate::log::Millis;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::types::{ConnectionId, EndReason, GapReason, RefusalReason, SubscriptionError};

/// What a hub and a publisher log of a key in vain.
pub(in crate::hub) const KEY_IGNORED: &str = "an event with a key was published where no rule keeps the newest of each key: set `HubBuilder::retention_for(…, Retention::latest_per_key())`";

/// At most one line of a kind in this time.
const QUIET: Millis = 10_000;

/// Over how many counters the deliveries are spread.
const SHARDS: usize = 16;

/// A counter with two cache lines of its own, because processors fetch lines in pairs. Otherwise each
/// delivery on one core takes the line away from the publishers and from the deliveries on the other cores.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

#[derive(Debug, Default)]
pub(crate) struct Counters {
    published: Padded,
    /// By connection.
    delivered: [Padded; SHARDS],
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
    large_payload_said: AtomicBool,
    unwatched_said: AtomicBool,
}

impl Counters {
    pub(in crate::hub) fn published(&self, count: usize) {
        self.published.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(in crate::hub) fn delivered(&self, connection: ConnectionId, count: usize) {
        self.delivered[connection.spread(SHARDS)].0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(in crate::hub) fn connected(&self, connection: ConnectionId, resuming: bool) {
        self.connected.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(connection = %connection.brief(), resuming, "event stream opened");
    }

    pub(in crate::hub) fn ended(&self, connection: ConnectionId, reason: EndReason, now: Millis) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(connection = %connection.brief(), %reason, "event stream ended");
        if reason == EndReason::Stalled
            && let Some(suppressed) = self.stall_lines.admit(now)
        {
            tracing::warn!(suppressed, "a stalled event stream was given up");
        }
    }

    pub(in crate::hub) fn gap(&self, connection: ConnectionId, reason: GapReason, now: Millis) {
        self.gaps[reason as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(connection = %connection.brief(), %reason, "told of a gap");
        if let Some(suppressed) = self.gap_lines.admit(now) {
            tracing::warn!(%reason, suppressed, "a stream was told of a gap: records are not to be had");
        }
    }

    /// A stream did not get topics that its user was made to join.
    pub(in crate::hub) fn topics_left_out(&self, connection: ConnectionId, topics: usize, now: Millis) {
        tracing::debug!(connection = %connection.brief(), topics, "topics of the user exceed max_topics");
        if let Some(suppressed) = self.topic_lines.admit(now) {
            tracing::warn!(topics, suppressed, "a stream did not join topics of its user: max_topics is reached");
        }
    }

    pub(crate) fn refused(&self, reason: RefusalReason, now: Millis) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = self.refusal_lines.admit(now) {
            tracing::warn!(%reason, suppressed, "an event stream was refused");
        }
    }

    pub(in crate::hub) fn broker_failed(&self, broker: &str, error: &crate::backplane::BackplaneError, now: Millis) {
        tracing::debug!(%error, broker, "the shared log cannot be followed");
        if let Some(suppressed) = self.broker_lines.admit(now) {
            tracing::warn!(%error, broker, suppressed, "the shared log cannot be followed");
        }
    }

    pub(in crate::hub) fn control_failed(&self, error: &crate::backplane::BackplaneError, now: Millis) {
        if let Some(suppressed) = self.control_lines.admit(now) {
            tracing::warn!(%error, suppressed, "the control stream of the broker failed: disconnects and presence of other instances do not arrive");
        }
    }

    /// It may be that every call is answered and nothing comes.
    pub(in crate::hub) fn deaf(&self, now: Millis) {
        if let Some(suppressed) = self.control_lines.admit(now) {
            tracing::warn!(
                suppressed,
                "nothing comes through the control stream of the broker: disconnects and presence of other instances do not arrive"
            );
        }
    }

    pub(in crate::hub) fn topics_cut(&self, now: Millis) {
        if let Some(suppressed) = self.cut_lines.admit(now) {
            tracing::warn!(
                suppressed,
                "a connection has more topics than one message takes: other instances do not know all of them"
            );
        }
    }

    pub(in crate::hub) fn staleness(&self, stale: bool) {
        if stale {
            tracing::warn!("streams are stale until the shared log is back");
        } else {
            tracing::info!("the shared log is followed again");
        }
    }

    pub(in crate::hub) fn record_skipped(&self, sequence: u64, now: Millis) {
        if let Some(suppressed) = self.skip_lines.admit(now) {
            tracing::warn!(
                sequence,
                suppressed,
                "a record of the shared log cannot be read: its audience is told of a gap"
            );
        }
    }

    pub(in crate::hub) fn rechecks_late(&self, now: Millis) {
        if let Some(suppressed) = self.late_lines.admit(now) {
            tracing::warn!(
                suppressed,
                "rechecks come more than an interval late: the hook is too slow for so many streams"
            );
        }
    }

    pub(in crate::hub) fn recheck_failed(&self, now: Millis) {
        if let Some(suppressed) = self.failure_lines.admit(now) {
            tracing::warn!(suppressed, "a recheck panicked or took too long");
        }
    }

    pub(crate) fn hook_panicked(&self, now: Millis) {
        if let Some(suppressed) = self.panic_lines.admit(now) {
            tracing::error!(suppressed, "the access hook panicked");
        }
    }

    /// A publish gave a key, and no retention of its targets keeps values.
    pub(in crate::hub) fn key_ignored(&self, now: Millis) {
        if let Some(suppressed) = self.key_lines.admit(now) {
            tracing::warn!(suppressed, "{KEY_IGNORED}");
        }
    }

    /// `origin` is what the browser says of the page.
    pub(crate) fn origin_refused(&self, origin: Option<&HeaderValue>, now: Millis) {
        if let Some(suppressed) = self.origin_lines.admit(now) {
            tracing::warn!(
                origin = origin.and_then(|origin| origin.to_str().ok()),
                suppressed,
                "a page of another origin was refused: list its origin with `HubBuilder::allow_cross_origin`"
            );
        }
    }

    pub(crate) fn host_refused(&self, host: Option<&HeaderValue>, now: Millis) {
        if let Some(suppressed) = self.host_lines.admit(now) {
            let host = host.and_then(|host| host.to_str().ok());
            tracing::warn!(host, suppressed, "a request for another host was refused: see `HubBuilder::allow_host`");
        }
    }

    pub(crate) fn subscription_invalid(&self, error: &SubscriptionError, now: Millis) {
        if let Some(suppressed) = self.invalid_lines.admit(now) {
            tracing::warn!(%error, suppressed, "a subscription is invalid, and its client got 400");
        }
    }

    pub(crate) fn hook_blocked(&self, millis: Millis, now: Millis) {
        if let Some(suppressed) = self.blocked_lines.admit(now) {
            tracing::warn!(
                millis,
                suppressed,
                "the access hook blocked its thread: streams on this thread waited; await instead, or use `spawn_blocking`"
            );
        }
    }

    /// A stream whose socket the hub does not know. `has_sockets` says whether it knows others.
    pub(crate) fn unwatched(&self, has_sockets: bool) {
        if self.unwatched_said.swap(true, Ordering::Relaxed) {
            return;
        }
        if has_sockets {
            tracing::warn!(
                "the hub does not know the socket of a stream over HTTP/2 and cannot cut it if its client stalls: serve an `SseMakeService`; said once"
            );
        } else {
            tracing::warn!(
                "a stream opened on a socket that the hub does not watch: serve `hub.listener(…)` or wrap the socket with `hub.io(…)`, otherwise clients that stall are not cut; said once"
            );
        }
    }

    /// Well-used clients stop at a blank line that comes later than this.
    pub(in crate::hub) fn payload(&self, bytes: usize) {
        if bytes > 64 * 1024 && !self.large_payload_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(bytes, "a payload over 64 KiB was published: some clients cannot read it; said once");
        }
    }

    /// `total` is what the log has evicted ever.
    pub(in crate::hub) fn evicted(&self, total: u64, now: Millis) {
        let before = self.evicted.fetch_max(total, Ordering::Relaxed);
        if total > before
            && let Some(suppressed) = self.eviction_lines.admit(now)
        {
            let records = total - before;
            tracing::warn!(records, suppressed, "the hub's byte budget pushed records out before their time");
        }
    }

    pub(in crate::hub) fn totals(&self) -> Totals {
        Totals {
            published: self.published.0.load(Ordering::Relaxed),
            delivered: self.delivered.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum(),
            connected: self.connected.load(Ordering::Relaxed),
            gaps: by_reason(GapReason::ALL, GapReason::as_str, &self.gaps),
            refused: by_reason(RefusalReason::ALL, RefusalReason::as_str, &self.refused),
            ended: by_reason(EndReason::ALL, EndReason::as_str, &self.ended),
        }
    }
}

pub(in crate::hub) struct Totals {
    pub(in crate::hub) published: u64,
    pub(in crate::hub) delivered: u64,
    pub(in crate::hub) connected: u64,
    pub(in crate::hub) gaps: ByReason,
    pub(in crate::hub) refused: ByReason,
    pub(in crate::hub) ended: ByReason,
}

fn by_reason<R: Copy>(reasons: &[R], word: fn(R) -> &'static str, counters: &[AtomicU64]) -> ByReason {
    let count = |(reason, counter): (&R, &AtomicU64)| (word(*reason), counter.load(Ordering::Relaxed));
    reasons.iter().zip(counters).map(count).collect()
}

/// Lets one line through in a while and counts the others.
#[derive(Debug, Default)]
struct Throttle {
    /// When the next line may come.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    /// How many were held back since the last one, if this one may be written.
    fn admit(&self, now: Millis) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let admitted =
            now >= next && self.next.compare_exchange(next, now + QUIET, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !admitted {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_says_how_many_were_held_back() {
        let throttle = Throttle::default();
        assert_eq!(throttle.admit(5), Some(0));
        assert_eq!(throttle.admit(6), None);
        assert_eq!(throttle.admit(QUIET), None);
        assert_eq!(throttle.admit(QUIET + 5), Some(2));
    }
}
