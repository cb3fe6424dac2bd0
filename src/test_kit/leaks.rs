//! Checks that a hub has released the state of closed connections.

#![allow(clippy::panic, reason = "a failed check panics, as a failed assertion does")]

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::hub::Hub;

/// The time limit for state that is released at once, or as soon as a task runs.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// The pauses between two looks at the state of a hub.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The lines of a failure.
const SHOWN: usize = 50;

/// Checks that a hub has no state of connections left. Call it after all streams were closed.
///
/// It waits up to 5 s until the hub has no connection, no member of a topic with a connection, no
/// listener of a topic, a user, a run or everyone, no stream on an open socket and no listener to
/// wake, and counts no connection for a limit. It checks one instance: connections of other
/// instances do not count.
///
/// The hub keeps other state for a limited time, for example retained events, and users within
/// their grace period. [`assert_forgets_all`] checks this state too.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::test_kit::assert_no_leaks;
/// use tower_sse::{Hub, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let page = hub.subscribe(Subscription::for_user("ada").topic("news"), None)?;
/// drop(page);
/// assert_no_leaks(&hub).await;
/// # Ok(()) }
/// ```
///
/// # Panics
///
/// Panics after 5 s, and lists the remaining state. With tokio's paused clock, this costs no real
/// time. Panics outside of a tokio runtime with a timer, if it has to wait.
pub async fn assert_no_leaks(hub: &Hub) {
    let left = wait_until_empty(TIME_LIMIT, || hub.connection_state()).await;
    fail_if(&left, "the hub still holds state of connections", TIME_LIMIT);
}

/// Checks that a hub forgets everything within a time: the state of [`assert_no_leaks`], and the
/// state that it keeps for a limited time. Call it after all streams were closed.
///
/// This state is: users within the grace period, members of topics, retained events and current
/// values, the channels of idle topics and users, runs and rechecks. Tickets and bans do not count.
///
/// `limit` has to be longer than the times that the hub keeps this state: the ages of
/// [`Retention`](crate::Retention), [`presence_grace`](crate::HubBuilder::presence_grace), and forty
/// heartbeats, 10 minutes by default, for an idle topic. So use tokio's paused clock, or a hub with
/// short times. A [current value](crate::Retention::latest_per_key) without an age is kept until it
/// is removed. The hub forgets in a task, so the check needs a tokio runtime in which the hub was
/// used.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_sse::test_kit::assert_forgets_all;
/// use tower_sse::{Event, Hub, Subscription};
///
/// let hub = Hub::builder().build()?;
/// let page = hub.subscribe(Subscription::for_user("ada").topic("news"), None)?;
/// hub.topic("news").publish(Event::new("headline", "Bridge closed")).await?;
/// drop(page);
/// assert_forgets_all(&hub, Duration::from_secs(3600)).await;
/// # Ok(()) }
/// ```
///
/// # Panics
///
/// Panics after `limit`, and lists the remaining state. Panics outside of a tokio runtime with a
/// timer, if it has to wait.
pub async fn assert_forgets_all(hub: &Hub, limit: Duration) {
    let left = wait_until_empty(limit, || {
        let mut left = hub.connection_state();
        left.extend(hub.kept_state());
        left
    });
    fail_if(&left.await, "the hub still holds state", limit);
}

/// Checks that nothing keeps a hub: this handle is the last one. Call it after the application, its
/// layers and all streams were dropped.
///
/// It drops the handle, and waits up to 5 s until the state of the hub is freed. Background tasks
/// of the hub do not keep the state, and end after it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::test_kit::assert_freed;
/// use tower_sse::{Hub, Public, TopicFilter};
///
/// let hub = Hub::builder().build()?;
/// let app = axum::Router::<()>::new().layer(hub.layer("/events", Public::topics(TopicFilter::any())));
/// drop(app);
/// assert_freed(hub).await;
/// # Ok(()) }
/// ```
///
/// # Panics
///
/// Panics after 5 s, with the number of clones and the remaining connections. Panics outside of a
/// tokio runtime with a timer, if it has to wait.
pub async fn assert_freed(hub: Hub) {
    let hub = hub.into_weak();
    let left = wait_until_empty(TIME_LIMIT, || hub.owners()).await;
    fail_if(&left, "something still keeps the hub", TIME_LIMIT);
}

/// Waits until no state is left, or until the limit. Returns the remaining state.
async fn wait_until_empty(limit: Duration, left: impl Fn() -> Vec<String>) -> Vec<String> {
    // No end if the limit exceeds the range of the clock.
    let until = Instant::now().checked_add(limit);
    let mut pause = SHORTEST_PAUSE;
    loop {
        let left = left();
        let now = Instant::now();
        let rest = until.map_or(Duration::MAX, |until| until.saturating_duration_since(now));
        if left.is_empty() || rest.is_zero() {
            return left;
        }
        sleep(pause.min(rest)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn fail_if(left: &[String], text: &str, limit: Duration) {
    if left.is_empty() {
        return;
    }
    let mut lines: Vec<_> = left.iter().take(SHOWN).map(|line| format!("\n  {line}")).collect();
    if left.len() > SHOWN {
        lines.push(format!("\n  and {} more", left.len() - SHOWN));
    }
    panic!("{text} after {limit:?}:{}", lines.concat());
}
