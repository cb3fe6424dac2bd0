//! Authority that is looked at again while a stream is open.
//!
//! 1. A connection whose hook can be asked again stands in the schedule, or is being asked, or is settled or gone.
//! 2. One task asks, a bounded number at a time, in a [task slot](crate::hub::tasks::slot); it lives
//!    while there is something in the schedule. If it is replaced, its successor asks again about
//!    those that it was asking about.

use std::cmp::Reverse;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Duration, timeout, timeout_at};

use super::schedule::Check;
use crate::hub::connection::handle::{ConnectionHandle, Ending};
use crate::hub::tasks::background::Job;
use crate::hub::{Hub, Inner};
use crate::log::{Millis, millis};
use crate::types::refusal::{Kind, Refusal};
use crate::types::{EndReason, Expiry, Recheck, Reconnect, Subscription, Topic};

/// How many streams are asked about at a time. More would let one interval's questions reach the database of the
/// application at once; with fewer, a hook that takes 10 ms could not keep up with a few thousand streams.
const MAX_RECHECKS: usize = 64;
/// How often in a row a recheck may fail before the stream ends.
const FAILURES: u8 = 2;
/// For how long a stream stays away whose hook says "never" and no time.
const NEVER: Duration = Duration::from_secs(86_400);

/// Two times of expiry that are as close as this are one, in milliseconds.
const SAME_TIME: Millis = 100;

/// What came of one check; no verdict if the hook panicked or took too long.
struct Answer {
    check: Check,
    handle: Arc<ConnectionHandle>,
    asked_at: Millis,
    /// The topics that the hook was asked about. What was joined since is for the next time.
    topics: Vec<Topic>,
    verdict: Option<Recheck>,
}

pub(in crate::hub) static JOB: Job<Inner> =
    Job { run: |hub, roused| ask_all(hub, roused).boxed(), has_work: has_checks, has_more: has_checks };

fn has_checks(inner: &Arc<Inner>) -> bool {
    !inner.rechecks.schedule.lock().is_empty()
}

async fn ask_all(hub: Weak<Inner>, roused: Arc<Notify>) {
    if let Some(inner) = hub.upgrade() {
        // Those that a task on another runtime was asking about.
        let mut schedule = inner.rechecks.schedule.lock();
        let asked = std::mem::take(&mut schedule.asking);
        schedule.due.extend(asked.into_iter().map(Reverse));
    }
    let mut asking = FuturesUnordered::new();
    loop {
        let Some(inner) = hub.upgrade() else { return };
        while asking.len() < MAX_RECHECKS
            && let Some((check, handle)) = inner.next_check()
        {
            asking.push(inner.ask(check, handle));
        }
        let next = inner.rechecks.schedule.lock().due.peek().map(|Reverse(check)| inner.instant(check.at));
        let is_full = asking.len() >= MAX_RECHECKS;
        if asking.is_empty() && next.is_none() {
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
        let answered = async {
            match asking.next().await {
                Some(answer) => answer,
                None => futures::future::pending().await,
            }
        };
        let answer = match select(std::pin::pin!(answered), std::pin::pin!(wait)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        };
        if let Some(answer) = answer
            && let Some(inner) = hub.upgrade()
        {
            Hub { inner }.answered(answer);
        }
    }
}

impl Inner {
    /// The next check that is due, of a connection that is still there.
    fn next_check(&self) -> Option<(Check, Arc<ConnectionHandle>)> {
        let now = self.now();
        let (check, handle) = self.rechecks.next(now, |connection| self.registry.find(connection))?;
        if now > check.at + millis(self.settings.recheck_interval()) {
            self.counters.rechecks_late(now);
        }
        Some((check, handle))
    }

    fn ask(&self, check: Check, handle: Arc<ConnectionHandle>) -> BoxFuture<'static, Answer> {
        let subscription = self.subscription_of(&handle);
        let (asked_at, topics) = (self.now(), subscription.topics.to_vec());
        let limit = self.settings.access_timeout;
        async move {
            let asked = async {
                match handle.authority() {
                    Some(authority) => Arc::clone(authority).recheck(subscription).await,
                    None => Recheck::Settled,
                }
            };
            // The hook only reads what it holds; what a panic leaves behind in it is the hook's own affair.
            let verdict = timeout(limit, AssertUnwindSafe(asked).catch_unwind()).await;
            Answer { check, handle, asked_at, topics, verdict: verdict.ok().and_then(Result::ok) }
        }
        .boxed()
    }

    /// What a connection has now.
    fn subscription_of(&self, handle: &ConnectionHandle) -> Subscription {
        let mut subscription = Subscription::anonymous();
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
    fn answered(&self, Answer { check, handle, asked_at, topics, verdict }: Answer) {
        let mut schedule = self.inner.rechecks.schedule.lock();
        if let Some(index) = schedule.asking.iter().position(|asked| asked.connection == check.connection) {
            schedule.asking.swap_remove(index);
        }
        drop(schedule);
        if handle.is_gone() {
            return;
        }
        let failures = match verdict {
            Some(Recheck::Settled) => return,
            Some(Recheck::End(refusal)) => return self.revoke(&handle, &refusal),
            Some(Recheck::Narrow(subscription)) if subscription.user.as_ref() != handle.user() => {
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
        if self.inner.rechecks.add(Check { failures, ..check }, asked_at, interval) {
            self.inner.tasks.recheck.rouse();
        }
    }

    fn narrow(&self, handle: &Arc<ConnectionHandle>, had: &[Topic], subscription: &Subscription) {
        for topic in had.iter().filter(|topic| !subscription.grants(topic)) {
            self.take_topic(handle, topic);
        }
        let Some(expiry) = subscription.expiry else { return };
        let expires_at = self.now().saturating_add(millis(expiry.remaining()));
        // What was handed to the hook comes back a moment off; that is no new time.
        if expires_at.abs_diff(handle.expires_at()) > SAME_TIME {
            handle.expire_at(expires_at);
            handle.wake(self.now());
        }
    }

    fn revoke(&self, handle: &Arc<ConnectionHandle>, refusal: &Refusal) {
        let usual = self.settings().retry;
        let (reconnect, retry) = match refusal.0 {
            Kind::Gone => (Reconnect::BlockedFor(NEVER), None),
            Kind::RetryLater { retry, .. } => {
                let retry = retry.unwrap_or(usual);
                (Reconnect::After(retry), Some(self.jittered_retry(retry, 1.0..=1.5)))
            }
            Kind::Unauthorized | Kind::Forbidden | Kind::Invalid(_) | Kind::Panicked => {
                (Reconnect::Now, Some(self.jittered_retry(usual, 1.0..=2.0)))
            }
        };
        self.end_now(handle, Ending { reconnect, retry, ..Ending::now(EndReason::Revoked) });
    }
}
