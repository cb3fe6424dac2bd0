//! Long computations that publish their progress. Each runs in its own task and counts the primes
//! below a number.
//!
//! The progress of a report is a run: its stream ends with the computation, also if its instance is
//! killed. The log has only the list of the reports, with one event at the start of a report and
//! one at its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tower_sse::{Hub, Message, PublishError, ReceivedEvent, Run, RunError, RunReader, RunWriter};

use crate::error::Error;
use crate::events::{Interrupted, Notification, Report, ReportState};
use crate::replica::{Follower, Shared, lock, new_id, now, publish_all, value};
use crate::sessions::{USERS, User};

/// The prefix of the topics, one for each user, and of the names of the runs. The hub retains the
/// newest state of each report in the topic.
pub(crate) const TOPICS: &str = "reports/";
const LIMITS: std::ops::RangeInclusive<usize> = 1_000..=1_000_000_000;
/// How many numbers the sieve covers before the task can stop or publish.
const CHUNK: usize = 250_000;
/// The minimum time between two updates, for at most ten a second.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);
/// The maximum number of reports that one instance computes at a time. A page has a stream for
/// each, and a browser has few connections.
const MAX_RUNNING: u32 = 2;
/// The number of reports of each user that are kept.
const MAX_REPORTS: usize = 20;

pub(crate) fn topic(user: &str) -> String {
    format!("{TOPICS}{user}")
}

#[derive(Clone)]
pub(crate) struct Reports {
    hub: Hub,
    all: Shared<BTreeMap<String, Report>>,
    places: Arc<Semaphore>,
    is_stopping: Arc<AtomicBool>,
}

impl Reports {
    pub(crate) fn new(hub: Hub) -> Self {
        let places = Arc::new(Semaphore::new(MAX_RUNNING as usize));
        Self { hub, all: Shared::default(), places, is_stopping: Arc::default() }
    }

    /// Returns the reports of a user, the newest last.
    pub(crate) fn of(&self, user: User) -> impl Serialize {
        let mut mine: Vec<_> = lock(&self.all).values().filter(|report| report.owner == user.id).cloned().collect();
        mine.sort_by_key(|report| report.started);
        mine
    }

    /// Returns the run of a report. Its name has the user of the session, so that no request reads
    /// or stops a report of another user.
    fn run(&self, owner: &str, id: &str) -> Run {
        self.hub.run(format!("{TOPICS}{owner}/{id}"))
    }

    /// Looks the run of a report up, on any instance.
    pub(crate) async fn reader(&self, owner: User, id: &str) -> Result<RunReader, RunError> {
        self.run(owner.id, id).reader().await
    }

    /// Asks a report to stop, whichever instance computes it.
    pub(crate) async fn stop(&self, owner: User, id: &str) -> Result<(), Error> {
        if self.run(owner.id, id).stop().await? { Ok(()) } else { Err(Error::Missing) }
    }

    /// Starts a report, and returns when its first state is published.
    pub(crate) async fn start(&self, owner: User, limit: usize) -> Result<(), Error> {
        if !LIMITS.contains(&limit) {
            return Err(Error::Invalid("Enter a number between a thousand and a billion."));
        }
        let limit_reached = |_| Error::LimitReached("Too many reports are being computed. Wait until one is done.");
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(limit_reached)?;
        let report = Report {
            id: new_id(),
            owner: owner.id.to_owned(),
            limit,
            started: now(),
            percent: 0,
            primes: 0,
            took_ms: 0,
            state: ReportState::Running,
        };
        // The run begins before the pages learn of the report, so that they find its run. If the
        // instance dies, another instance publishes the last will.
        let run = self.run(owner.id, &report.id);
        let writer = run.begin().last_will(Interrupted.to_event()?).await?;
        self.publish_report(&report).await?;
        tokio::spawn(self.clone().compute(report, writer, place));
        Ok(())
    }

    /// Stops all reports of this instance, and returns when they have published their last state.
    /// No report can start afterwards.
    pub(crate) async fn stop_all(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Ok(places) = self.places.acquire_many(MAX_RUNNING).await {
            places.forget();
        }
    }

    async fn compute(self, mut report: Report, writer: RunWriter, _place: OwnedSemaphorePermit) {
        let (begun, mut published) = (Instant::now(), Instant::now());
        let roots = Arc::new(primes_below(report.limit.isqrt() + 1));
        for from in (0..report.limit).step_by(CHUNK) {
            if self.is_stopping.load(Ordering::Relaxed) {
                report.state = ReportState::Interrupted;
                break;
            }
            if writer.is_stopped() {
                report.state = ReportState::Stopped;
                break;
            }
            let (roots, to) = (Arc::clone(&roots), report.limit.min(from + CHUNK));
            let Ok(primes) = spawn_blocking(move || count_primes(&roots, from, to)).await else {
                report.state = ReportState::Interrupted;
                break;
            };
            report.primes += primes;
            report.percent = to * 100 / report.limit;
            report.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            if to == report.limit {
                report.state = ReportState::Done;
            } else if published.elapsed() >= UPDATE_INTERVAL {
                published = Instant::now();
                // Other errors are ignored: the next update has the newer figures.
                if writer.send(&report).await.is_err_and(|error| error.is_ended()) {
                    report.state = ReportState::Interrupted;
                    break;
                }
            }
        }
        // The last state must be published: retry while the broker is unavailable.
        while let Err(error) = self.publish_report(&report).await {
            if !error.is_unavailable() || self.is_stopping.load(Ordering::Relaxed) {
                tracing::warn!(%error, "the last state of a report could not be published");
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Err(error) = end(writer, &report).await {
            tracing::warn!(%error, "the run of a report could not be ended");
        }
    }

    async fn publish_report(&self, report: &Report) -> Result<(), PublishError> {
        let mut events = vec![(self.hub.topic(topic(&report.owner)), report.to_event()?)];
        if report.state == ReportState::Done {
            let (primes, limit) = (grouped(report.primes), grouped(report.limit));
            let text = format!("Your report is ready: {primes} primes below {limit}");
            events.push(Notification::new(&report.id, &report.owner, text, "/reports").addressed(&self.hub)?);
        }
        publish_all(&self.hub, events).await.map(drop)
    }
}

/// Ends the run of a report, with the last state of the report as its last event.
async fn end(writer: RunWriter, report: &Report) -> Result<(), RunError> {
    let last = report.to_event()?;
    match report.state {
        ReportState::Interrupted => writer.fail_with(last, "the server was stopped").await,
        ReportState::Running | ReportState::Done | ReportState::Stopped => writer.finish_with(last).await,
    }
}

impl Follower for Reports {
    fn topics(&self) -> Vec<String> {
        USERS.iter().map(|user| topic(user.id)).collect()
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(report) = value::<Report>(event) else { return };
        let mut all = lock(&self.all);
        all.insert(report.id.clone(), report.clone());
        let mine = all.values().filter(|other| other.owner == report.owner);
        if mine.clone().count() > MAX_REPORTS
            && let Some(oldest) = mine.min_by_key(|report| report.started).map(|oldest| oldest.id.clone())
        {
            all.remove(&oldest);
        }
    }

    fn clear(&self) {
        lock(&self.all).clear();
    }
}

/// Formats a number with separators: `1,000,000`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Counts the primes in `from..to` with a sieve. `roots` has all primes up to the square root of
/// `to`.
fn count_primes(roots: &[usize], from: usize, to: usize) -> usize {
    let mut is_composite = vec![false; to - from];
    for prime in roots.iter().take_while(|&prime| prime * prime < to) {
        let first = (prime * prime).max(from.next_multiple_of(*prime));
        for multiple in (first..to).step_by(*prime) {
            is_composite[multiple - from] = true;
        }
    }
    // 0 and 1 are no primes.
    let first = 2_usize.saturating_sub(from);
    is_composite[first..].iter().filter(|is_composite| !**is_composite).count()
}

fn primes_below(limit: usize) -> Vec<usize> {
    let mut primes: Vec<usize> = Vec::new();
    for number in 2..limit {
        if primes.iter().take_while(|&prime| prime * prime <= number).all(|prime| number % prime != 0) {
            primes.push(number);
        }
    }
    primes
}
