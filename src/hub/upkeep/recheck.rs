//! Rechecks: the periodic re-authorization of open streams by their access hooks.
//!
//! 1. A connection whose hook can recheck it is in the schedule, is being checked, needs no further
//!    check ([`Recheck::Settled`]), or has left the registry.
//! 2. One task calls the hooks, at most [`MAX_RECHECKS`] at a time, in a [task
//!    slot](crate::hub::tasks::slot). The task runs while checks are scheduled or running. If
//!    another task replaces it, the new task repeats the unfinished checks.
//! 3. A check never adds a topic. A check can remove topics that the hook no longer grants, set a
//!    new expiry, or end the stream ([`Hub::apply_verdict`]).

use std::cmp::Reverse;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Duration, timeout, timeout_at};
use tracing::Instrument;

use super::schedule::Check;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::log::{Millis, millis};
use crate::types::refusal::{Kind, Refusal};
use crate::types::{EndReason, Expiry, Recheck, Reconnect, Subscription, Topic};

/// The maximum number of hooks that run at a time. Without a limit, all rechecks of an interval
/// could reach the database of the application at once. With one hook at a time, a hook that takes
/// 10 ms could not keep up with a few thousand streams at the default interval.
const MAX_RECHECKS: usize = 64;
/// The number of successive failed rechecks after which a stream ends.
const FAILURES: u8 = 2;
/// The duration of the ban of a client when a recheck returns `Refusal::gone`, which has no
/// duration.
const GONE_FOR: Duration = Duration::from_secs(86_400);

/// The difference up to which two times of expiry count as equal, in milliseconds.
const EXPIRY_TOLERANCE: Millis = 100;

/// The result of one check.
struct Outcome {
    check: Check,
    handle: Arc<ConnectionHandle>,
    started_at: Millis,
    /// The topics that the hook received. Topics that were joined since are part of the next check.
    topics: Vec<Topic>,
    /// `None` if the hook panicked or timed out.
    verdict: Option<Recheck>,
}

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, roused| run(hub, roused).boxed(), has_work: has_checks, has_more: has_checks };

fn has_checks(inner: &Arc<Inner>) -> bool {
    !inner.rechecks.schedule.lock().is_empty()
}

async fn run(hub: Weak<Inner>, roused: Arc<Notify>) {
    if let Some(inner) = hub.upgrade() {
        // Repeat the checks that a replaced task has not finished.
        let mut schedule = inner.rechecks.schedule.lock();
        let unfinished = std::mem::take(&mut schedule.running);
        schedule.due.extend(unfinished.into_iter().map(Reverse));
    }
    let mut checks = FuturesUnordered::new();
    loop {
        let Some(inner) = hub.upgrade() else { return };
        while checks.len() < MAX_RECHECKS
            && let Some((check, handle)) = inner.next_check()
        {
            checks.push(inner.check_access(check, handle));
        }
        let next = inner.rechecks.schedule.lock().due.peek().map(|Reverse(check)| inner.instant(check.at));
        let is_full = checks.len() >= MAX_RECHECKS;
        if checks.is_empty() && next.is_none() {
            return;
        }
        drop(inner);
        let wait = async {
            match next.filter(|_| !is_full) {
                Some(next) => drop(timeout_at(next, roused.notified()).await),
                None if is_full => futures::future::pending().await,
                None => roused.notified().await,
            }
        };
        let finished = async {
            match checks.next().await {
                Some(outcome) => outcome,
                None => futures::future::pending().await,
            }
        };
        let outcome = match select(std::pin::pin!(finished), std::pin::pin!(wait)).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => None,
        };
        if let Some(outcome) = outcome
            && let Some(inner) = hub.upgrade()
        {
            Hub { inner }.apply_verdict(outcome);
        }
    }
}

impl Inner {
    /// Takes the next check that is due, of a connection that is still open.
    fn next_check(&self) -> Option<(Check, Arc<ConnectionHandle>)> {
        let now = self.now();
        let (check, handle) = self.rechecks.next(now, |connection| self.registry.find(connection))?;
        if now > check.at + millis(self.settings.recheck_interval()) {
            self.counters.rechecks_late(now);
        }
        Some((check, handle))
    }

    /// Returns a future that calls the hook of a connection.
    fn check_access(&self, check: Check, handle: Arc<ConnectionHandle>) -> BoxFuture<'static, Outcome> {
        let subscription = self.subscription_of(&handle);
        let (started_at, topics) = (self.now(), subscription.topics.to_vec());
        let limit = self.settings.access_timeout;
        async move {
            let called = async {
                match handle.authority() {
                    Some(authority) => Arc::clone(authority).recheck(subscription).await,
                    None => Recheck::Settled,
                }
            };
            let called = called.instrument(tracing::debug_span!("sse.recheck"));
            // Unwind safety: the call only reads the handle. The state that a panic leaves in the
            // hook is the responsibility of the hook.
            let verdict = timeout(limit, AssertUnwindSafe(called).catch_unwind()).await;
            Outcome { check, handle, started_at, topics, verdict: verdict.ok().and_then(Result::ok) }
        }
        .boxed()
    }

    /// Builds a subscription from the current state of a connection, as the argument of the hook.
    fn subscription_of(&self, handle: &ConnectionHandle) -> Subscription {
        let mut subscription = Subscription::anonymous();
        subscription.scope = handle.scope().clone();
        subscription.user = handle.user().cloned();
        subscription.topics = self.log.topics(&handle.subscriber).into_iter().collect();
        subscription.data = handle.data().cloned();
        subscription.extensions = handle.extensions();
        let expires_at = handle.expires_at();
        if expires_at != Millis::MAX {
            let remaining = Duration::from_millis(expires_at.saturating_sub(self.now()));
            subscription.expiry = std::time::SystemTime::now().checked_add(remaining).map(Expiry::At);
        }
        subscription
    }
}

impl Hub {
    /// Applies the result of a check. If the stream stays open and needs further checks, schedules
    /// the next check.
    fn apply_verdict(&self, Outcome { check, handle, started_at, topics, verdict }: Outcome) {
        let mut schedule = self.inner.rechecks.schedule.lock();
        if let Some(index) = schedule.running.iter().position(|running| running.connection == check.connection) {
            schedule.running.swap_remove(index);
        }
        drop(schedule);
        if handle.is_gone() {
            return;
        }
        let failures = match verdict {
            Some(Recheck::Settled) => return,
            Some(Recheck::End(refusal)) => return self.revoke(&handle, &refusal),
            Some(Recheck::Narrow(subscription))
                if subscription.user.as_ref() != handle.user() || subscription.scope != *handle.scope() =>
            {
                // The hook has probably forgotten the scope. The client then reconnects and gets
                // the same again and again.
                if subscription.scope != *handle.scope() {
                    self.counters().recheck_of_other_scope(self.now());
                }
                return self.revoke(&handle, &Refusal::forbidden());
            }
            Some(Recheck::Narrow(subscription)) => {
                self.narrow(&handle, &topics, &subscription);
                0
            }
            Some(Recheck::Keep) => 0,
            None => {
                self.counters().recheck_failed(self.now());
                check.failures + 1
            }
        };
        if failures >= FAILURES {
            return self.revoke(&handle, &Refusal::forbidden());
        }
        let interval = millis(self.settings().recheck_interval());
        if self.inner.rechecks.add(Check { failures, ..check }, started_at, interval) {
            self.inner.tasks.recheck.rouse();
        }
    }

    /// Removes the topics that the hook no longer grants. Sets the expiry of the subscription, if
    /// it has an expiry.
    fn narrow(&self, handle: &Arc<ConnectionHandle>, had: &[Topic], subscription: &Subscription) {
        for topic in had.iter().filter(|topic| !subscription.grants(topic)) {
            self.take_topic(handle, topic);
        }
        let Some(expiry) = subscription.expiry else { return };
        let expires_at = self.now().saturating_add(millis(expiry.remaining()));
        // If the hook returns the expiry that it received, the two times may still differ a little,
        // because the expiry was converted between two clocks.
        if expires_at.abs_diff(handle.expires_at()) > EXPIRY_TOLERANCE {
            handle.expire_at(expires_at);
            handle.wake(self.now());
        }
    }

    /// Ends a stream with the refusal of its hook.
    fn revoke(&self, handle: &Arc<ConnectionHandle>, refusal: &Refusal) {
        let usual = self.settings().retry;
        let (reconnect, retry) = match refusal.0 {
            Kind::Gone => (Reconnect::BlockedFor(GONE_FOR), None),
            Kind::RetryLater { retry, .. } => {
                let retry = retry.unwrap_or(usual);
                (Reconnect::After(retry), Some(self.jittered_retry(retry, 1.0..=1.5)))
            }
            Kind::Unauthorized
            | Kind::Forbidden
            | Kind::Invalid(_)
            | Kind::Panicked
            | Kind::NoRun
            | Kind::Unresumable => (Reconnect::Now, Some(self.jittered_retry(usual, 1.0..=2.0))),
        };
        self.end_now(handle, Ending { reconnect, retry, ..Ending::now(EndReason::Revoked) });
    }
}
