//! Limits on the number of connections, and on the rate of requests.

use std::collections::hash_map::HashMap;
use std::time::Duration;

use crate::log::Millis;
use crate::types::ScopeName;

/// The action when a limit on connections is reached.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::{EndReason, Hub, OverLimit, SubscriberItem, Subscription};
///
/// let hub = Hub::builder().max_connections_per_user(1, OverLimit::CloseOldest).build()?;
/// let mut oldest = hub.subscribe(Subscription::for_user("ada"), None)?;
/// let newest = hub.subscribe(Subscription::for_user("ada"), None)?;
/// assert_eq!(oldest.next().await, Some(SubscriberItem::End(EndReason::Limit)));
/// # drop(newest);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverLimit {
    /// The new connection gets a retryable refusal: `hub.refused` with the reason `limit` and a
    /// random `retry`. Browsers reconnect. [`Hub::subscribe`](crate::Hub::subscribe) returns an
    /// error.
    #[default]
    Refuse,
    /// The new connection is accepted, and the oldest connection of this instance that counts for
    /// the limit ends with the reason `limit`. The client of the ended connection reconnects after
    /// ten to twenty times [`HubBuilder::retry`](crate::HubBuilder::retry), at most 1 h, and may
    /// displace another connection. So the clients over the limit take turns, and each receives the
    /// events that it has missed and that are still retained.
    CloseOldest,
}

/// The minimum delay before a displaced client reconnects, as a multiple of
/// [`HubBuilder::retry`](crate::HubBuilder::retry). The hub limits the delay to 1 h.
pub(in crate::hub) const AFTER_DISPLACEMENT: u32 = 10;

/// The maximum time that [`Rate::take`] returns, in seconds.
const LONGEST_WAIT: f64 = 30.0;

/// The limits on open connections and on requests per second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) total: Option<(usize, OverLimit)>,
    pub(crate) per_user: Option<(usize, OverLimit)>,
    /// The limit of each scope, except the root scope.
    pub(crate) per_scope: Option<(usize, OverLimit)>,
    /// The limits of the scopes that have a separate limit. They have the policy of `per_scope`, if
    /// it is set.
    pub(crate) of_scope: HashMap<Box<str>, usize>,
    pub(crate) per_second: Option<u32>,
}

impl Limits {
    /// Returns the limit of a scope and its policy, if it has a limit.
    pub(in crate::hub) fn of_scope(&self, scope: &ScopeName) -> Option<(usize, OverLimit)> {
        let own = self.of_scope.get(scope.as_str()?).copied();
        let policy = self.per_scope.map(|(_, policy)| policy).unwrap_or_default();
        own.map(|limit| (limit, policy)).or(self.per_scope)
    }
}

/// A token bucket that holds at most the tokens of one second. The caller passes the time.
#[derive(Debug, Default)]
pub(in crate::hub) struct Rate {
    tokens: f64,
    /// The approximate number of refused requests whose time to retry has not come.
    waiting: f64,
    at: Option<Millis>,
}

impl Rate {
    /// Takes a token. If none is left, returns the time after which the client should retry: after
    /// the clients that already wait, and after at most [`LONGEST_WAIT`].
    pub(in crate::hub) fn take(&mut self, per_second: u32, now: Millis) -> Result<(), Duration> {
        let rate = f64::from(per_second);
        let added = match self.at.replace(now) {
            Some(at) => now.saturating_sub(at) as f64 / 1000.0 * rate,
            None => rate,
        };
        self.tokens = (self.tokens + added).min(rate);
        self.waiting = (self.waiting - added).max(0.0);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // Bounded, so that one client that keeps retrying cannot delay all others without end.
        self.waiting = (self.waiting + 1.0).min(rate * LONGEST_WAIT);
        Err(Duration::from_secs_f64(self.waiting / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Hub, HubBuilder};
    use crate::types::{EndReason, Subscription, SubscriptionError};
    use futures::executor::block_on;

    fn limited(over: OverLimit) -> HubBuilder {
        Hub::builder().max_connections_per_user(2, over)
    }

    #[test]
    fn anonymous_connections_of_one_key_are_bounded_like_those_of_one_user() {
        let hub = limited(OverLimit::Refuse).build().unwrap();
        let open = |key: &str| hub.subscribe(Subscription::anonymous().counted_as(key), None);
        let (first, _second) = (open("192.0.2.1").unwrap(), open("192.0.2.1").unwrap());
        assert_eq!(open("192.0.2.1").unwrap_err(), SubscriptionError::LIMIT);
        let _other = open("192.0.2.2").unwrap();
        let user = hub.subscribe(Subscription::for_user("192.0.2.1"), None);
        assert!(user.is_ok(), "connections of a user with the same name are counted separately");
        drop(first);
        let _third = open("192.0.2.1").expect("the first connection no longer counts");
        assert_eq!(open("192.0.2.1").unwrap_err(), SubscriptionError::LIMIT);
    }

    #[test]
    fn oldest_connection_of_a_key_is_displaced_when_the_limit_is_reached() {
        let hub = limited(OverLimit::CloseOldest).build().unwrap();
        let open = |key: &str| hub.subscribe(Subscription::anonymous().counted_as(key), None).unwrap();
        let (_other, mut first, _second) = (open("b"), open("a"), open("a"));
        let _third = open("a");
        let mut items = std::iter::from_fn(|| block_on(first.next()));
        assert_eq!(items.by_ref().last(), Some(crate::hub::SubscriberItem::End(EndReason::Limit)));
        assert_eq!(hub.stats().connections, 3);
    }

    #[test]
    fn connection_with_a_key_does_not_count_for_its_user() {
        let hub = limited(OverLimit::Refuse).build().unwrap();
        let open = |session: &str| hub.subscribe(Subscription::for_user("ada").counted_as(session), None);
        let mut open_streams: Vec<_> = (0..3).map(|n| open(&n.to_string()).unwrap()).collect();
        for _ in 0..2 {
            open_streams.push(hub.subscribe(Subscription::for_user("ada"), None).unwrap());
        }
        assert_eq!(hub.subscribe(Subscription::for_user("ada"), None).unwrap_err(), SubscriptionError::LIMIT);
        assert_eq!(hub.user("ada").count(), 5);
        open_streams.clear();
        let registry = format!("{:?}", hub.registry());
        assert!(registry.contains("by_key: {}") && registry.contains("keyed: 0"), "{registry}");
    }

    #[test]
    fn subscription_is_invalid_when_its_key_is_not_a_valid_name() {
        let hub = limited(OverLimit::Refuse).build().unwrap();
        for key in [String::new(), "x".repeat(256), "\n".to_owned()] {
            let error = hub.subscribe(Subscription::anonymous().counted_as(key), None).unwrap_err();
            assert!(error.to_string().starts_with("counted_as "), "{error}");
        }
    }

    #[test]
    fn tickets_of_one_key_are_bounded() {
        let hub = Hub::builder().build().unwrap();
        let issue = |key: &str| {
            let subscription = Subscription::anonymous().counted_as(key);
            block_on(hub.ticket(subscription, Duration::from_secs(60)))
        };
        let first = issue("a").unwrap();
        let count = 1 + std::iter::from_fn(|| issue("a").ok()).count();
        assert_eq!(count, 64);
        issue("b").unwrap();
        // A redeemed ticket does not count. It counts again when its request opens no stream.
        let taken = block_on(hub.take_ticket(first.as_str())).unwrap();
        drop(taken);
        assert_eq!(issue("a").unwrap_err(), SubscriptionError::TOO_MANY_TICKETS);
        block_on(hub.take_ticket(first.as_str())).unwrap().spend();
        issue("a").unwrap();
    }

    #[test]
    fn rate_limits_requests_and_delays_each_excess_request_by_its_place_in_the_queue() {
        let mut rate = Rate::default();
        let passed = (0..30).filter(|_| rate.take(10, 0).is_ok()).count();
        assert_eq!(passed, 10);
        // Twenty requests wait already, which takes two seconds.
        assert_eq!(rate.take(10, 0).unwrap_err().as_millis(), 2100);
        assert!(rate.take(10, 100).is_ok());
        assert!(rate.take(10, 100).is_err());
        let passed = (0..100).filter(|_| rate.take(10, 60_000).is_ok()).count();
        assert_eq!(passed, 10, "unused tokens do not add up beyond one second");
        assert!((0..100_000).all(|_| rate.take(10, 60_000).is_err()));
        assert_eq!(rate.take(10, 60_000).unwrap_err().as_secs(), 30);
    }
}
