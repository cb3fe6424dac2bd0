//! The contract of adapters, as a suite of rules that runs against any adapter.
//!
//! `log.rs`, `control.rs` and `journals.rs` have the rules. A rule is an async function that
//! returns the first breach. `rule.rs` has their helpers.

#![allow(clippy::panic, reason = "a broken rule panics, as a failed assertion does")]

mod control;
mod journals;
mod log;
mod rule;

use std::cell::Cell;
use std::fmt::Write;
use std::time::Duration;

use futures::future::{FutureExt, LocalBoxFuture};
use futures::stream::{self, StreamExt};
use tokio::time::{sleep, timeout};

use self::rule::{Logs, Outcome, RULE_LIMIT};
use crate::backplane::Backplane;

/// The number of rules that are checked at once. A rule mostly waits for the broker.
const SIMULTANEOUS: usize = 4;
/// The maximum number of repeats of one interrupted rule.
const MAX_REPEATS_OF_RULE: usize = 2;
/// The maximum number of repeats of all rules together. A broker that causes more of them does not
/// work.
const MAX_REPEATS: usize = 12;
/// The pause before an interrupted rule is checked again. Elections of a leader take some seconds.
const REPEAT_PAUSE: Duration = Duration::from_secs(10);

type Check = for<'a> fn(&'a Logs<'a>) -> LocalBoxFuture<'a, Outcome>;

/// Returns the rules with their names.
macro_rules! rules {
    ($($file:ident::$rule:ident,)*) => {
        [$({
            let check: Check = |logs| $file::$rule(logs).boxed_local();
            (stringify!($rule), check)
        },)*]
    };
}

fn rules() -> [(&'static str, Check); 31] {
    rules![
        log::a_new_log_is_empty,
        log::numbers_are_contiguous_and_in_order,
        log::writers_and_readers_see_the_same_order,
        log::a_range_is_limited_in_bytes_and_has_at_least_one_record,
        log::records_have_the_time_at_which_the_log_stored_them,
        log::a_tail_has_the_stored_and_the_new_records,
        log::a_stream_that_is_not_polled_delays_no_other_call,
        log::current_values_are_the_newest_of_each_id,
        log::a_record_may_be_the_value_of_several_ids,
        log::a_repeated_idempotency_key_is_appended_once,
        log::an_idempotency_key_is_for_one_epoch,
        log::a_log_that_ends_below_the_seen_position_begins_a_new_epoch,
        control::a_listener_without_a_mark_gets_new_messages,
        control::a_listener_with_a_mark_gets_the_messages_after_it,
        control::presence_messages_displace_no_commands,
        control::a_mark_is_a_position_in_both_control_streams,
        control::a_shared_value_is_read_by_every_caller,
        control::a_value_that_is_put_once_is_taken_once,
        control::a_value_that_is_put_once_expires,
        journals::one_of_many_simultaneous_writers_begins_a_journal,
        journals::one_of_many_simultaneous_writers_replaces_a_closed_journal,
        journals::one_of_several_simultaneous_appends_with_one_number_succeeds,
        journals::an_open_journal_is_active_until_it_is_closed,
        journals::a_closed_journal_is_replaced_by_the_next_one,
        journals::an_append_that_does_not_fit_is_a_conflict,
        journals::repeated_calls_have_their_effect_once,
        journals::a_journal_is_read_in_pages_of_limited_size,
        journals::a_closed_journal_is_forgotten_after_its_time,
        journals::a_journal_may_be_closed_for_any_time,
        journals::journals_of_two_keys_are_independent,
        journals::keys_and_entries_may_have_any_bytes,
    ]
}

/// Checks that an adapter keeps the contract of [`Backplane`], and of
/// [`Journals`](crate::backplane::Journals).
///
/// `connect` returns a new connection to the log with this name. It is called several times with
/// one name, and then returns connections to the same log. A log of a new name has to be empty. A
/// name is a text of lower case letters and underscores.
///
/// The check is for an adapter in development: the broker runs, and nothing interrupts it. It takes
/// a few seconds. With tokio's paused clock, use it only for an adapter without a network. For a
/// broker of several servers, which may elect a leader during the check, use
/// [`check_clustered_backplane`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use tower_sse::backplane::Memory;
/// use tower_sse::test_kit::check_backplane;
///
/// let logs = Mutex::new(HashMap::<String, Memory>::new());
/// check_backplane(|name| logs.lock().unwrap().entry(name.to_owned()).or_default().clone()).await;
/// # }
/// ```
///
/// # Panics
///
/// Panics if the adapter breaks a rule. The text of the panic lists every broken rule by its name,
/// with the expected and the actual result. A call or a stream that does not answer within 20 s
/// breaks its rule, and so does a rule that takes longer than 60 s.
pub async fn check_backplane<B: Backplane>(connect: impl Fn(&str) -> B) {
    check(connect, 0).await;
}

/// Checks an adapter as [`check_backplane`] does, with a broker that may be unavailable for a
/// moment, for example while the servers of a cluster elect a leader.
///
/// If a call or a stream fails with an error that is not a
/// [rejection](crate::backplane::BackplaneError::is_rejected), the check waits for 10 s and then
/// checks the rule again, with a log of a new name. It repeats one rule at most twice, and all
/// rules together at most 12 times. A call that does not return within 20 s is not such an error,
/// so the time limits of the adapter have to be shorter.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use tower_sse::backplane::Memory;
/// use tower_sse::test_kit::check_clustered_backplane;
///
/// let logs = Mutex::new(HashMap::<String, Memory>::new());
/// let connect = |name: &str| logs.lock().unwrap().entry(name.to_owned()).or_default().clone();
/// check_clustered_backplane(connect).await;
/// # }
/// ```
///
/// # Panics
///
/// Panics as [`check_backplane`] does. A rule is broken if its last check fails, whatever the
/// error.
pub async fn check_clustered_backplane<B: Backplane>(connect: impl Fn(&str) -> B) {
    check(connect, MAX_REPEATS).await;
}

async fn check<B: Backplane>(connect: impl Fn(&str) -> B, max_repeats: usize) {
    let connect = |name: &str| -> Box<dyn Backplane> { Box::new(connect(name)) };
    let (mut broken, mut report) = (0, String::new());
    let repeats = Cell::new(max_repeats);
    let outcomes =
        stream::iter(rules()).map(async |(name, check)| (name, outcome(name, check, &connect, &repeats).await));
    for (name, outcome) in outcomes.buffered(SIMULTANEOUS).collect::<Vec<_>>().await {
        if let Err(breach) = outcome {
            broken += 1;
            let _ = write!(report, "\n  {name}: {}", breach.text);
        }
    }
    assert!(broken == 0, "the adapter breaks the contract. Broken rules: {broken}{report}");
}

/// Checks a rule. If it is interrupted and repeats are left, checks it again with a new log.
async fn outcome(
    name: &str,
    check: Check,
    connect: &dyn Fn(&str) -> Box<dyn Backplane>,
    repeats: &Cell<usize>,
) -> Outcome {
    let mut repeat = 0;
    loop {
        let logs = Logs::new(name.to_owned() + &"_again".repeat(repeat), connect);
        let checked = timeout(RULE_LIMIT, check(&logs)).await;
        let outcome = checked.unwrap_or_else(|_| Err(format!("the rule takes longer than {RULE_LIMIT:?}").into()));
        let is_interrupted = outcome.as_ref().is_err_and(|breach| breach.is_interruption);
        if !is_interrupted || repeat == MAX_REPEATS_OF_RULE || repeats.get() == 0 {
            return outcome;
        }
        repeat += 1;
        repeats.set(repeats.get() - 1);
        sleep(REPEAT_PAUSE).await;
    }
}
