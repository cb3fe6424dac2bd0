//! Runs while single requests to the broker fail, and while calls are dropped in the middle. Most
//! tests have a simulated clock, so that they wait for leases without real time.

use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};
use tower_sse::test_kit::Fault;
use tower_sse::{
    EndReason, Event, Hub, Position, Run, RunEnd, RunState, RunWriter, StreamRequest, Subscriber, SubscriberItem,
    Subscription,
};

use crate::journal_faults::{Broker, Journal, Messages};
use crate::kit::{soon, until};

const NAME: &str = "answers/7";
/// The peer timeout. Instances look at the runs of others three times in this time.
const LEASE: Duration = Duration::from_secs(9);
const LOOK: Duration = Duration::from_secs(3);
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// A time after which an instance has processed every message and every piece of work.
const SETTLED: Duration = Duration::from_secs(5);

async fn start(log: &Broker) -> Hub {
    let builder = Hub::builder().publish_timeout(PUBLISH_TIMEOUT).peer_timeout(LEASE);
    let hub = builder.backplane(log.connection.clone()).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// Two instances of one broker, and the requests of each.
async fn two() -> (Broker, Hub, Broker, Hub) {
    let log = Broker::new();
    let other = log.other();
    let (one, two) = (start(&log).await, start(&other).await);
    (log, one, other, two)
}

fn event(data: impl Into<String>) -> Event {
    Event::unnamed(data.into())
}

async fn begin(hub: &Hub) -> RunWriter {
    soon(hub.run(NAME).begin().last_will(event("will")).into_future()).await.unwrap()
}

async fn open(hub: &Hub, run: &Run) -> Subscriber {
    hub.subscribe(Subscription::run(soon(run.reader()).await.unwrap()), None).unwrap()
}

/// Reads a stream to its end. Returns the data of its events, and the reason of its end.
async fn read(mut stream: Subscriber) -> (Vec<String>, EndReason) {
    let mut events = Vec::new();
    loop {
        match soon(stream.next()).await {
            Some(SubscriberItem::Event(event)) => events.push(event.data),
            Some(SubscriberItem::End(reason)) => return (events, reason),
            Some(_) => {}
            None => panic!("the stream has no end: {events:?}"),
        }
    }
}

/// Returns the data and the position of the next event.
async fn next(stream: &mut Subscriber) -> (String, Position) {
    loop {
        match soon(stream.next()).await {
            Some(SubscriberItem::Event(event)) => return (event.data, event.position),
            Some(SubscriberItem::End(reason)) => panic!("the stream has ended: {reason}"),
            Some(_) => {}
            None => panic!("the stream has no end"),
        }
    }
}

/// Polls a future this many times, with pauses, and then drops it. Returns whether it was ready.
async fn drop_after<F: Future>(polls: usize, future: F) -> bool {
    let mut future = pin!(future);
    for _ in 0..polls {
        if futures::poll!(&mut future).is_ready() {
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
    false
}

async fn until_ended(hub: &Hub, end: RunEnd) {
    while soon(hub.run(NAME).state()).await.unwrap() != RunState::Ended(end) {
        sleep(Duration::from_millis(10)).await;
    }
}

async fn closed(log: &Broker) -> Journal {
    until(|| log.journal(NAME).is_some_and(|journal| journal.is_closed())).await;
    log.journal(NAME).unwrap()
}

fn status(hub: &Hub, reader: tower_sse::RunReader, cursor: Position) -> u16 {
    let request = http::Request::get("/").header("last-event-id", cursor.to_string()).body(()).unwrap();
    let response = hub.respond(StreamRequest::from_request(&request), Subscription::run(reader));
    response.into_response().status().as_u16()
}

/// The request of a browser's `EventSource`.
fn event_source() -> StreamRequest {
    let request = http::Request::get("/").header("accept", "text/event-stream").body(()).unwrap();
    StreamRequest::from_request(&request)
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_is_repeated_begins_one_run() {
    use Fault::{Duplicate, LoseAnswer, LoseRequest, Unavailable};
    let cases: [&[Fault]; 5] = [
        &[LoseAnswer],
        &[LoseAnswer, LoseRequest, LoseAnswer],
        &[Unavailable, Unavailable],
        &[Duplicate],
        &[LoseRequest, Duplicate],
    ];
    for faults in cases {
        let (log, one, _, two) = two().await;
        log.faults.begin(faults.iter().copied());
        let writer = begin(&one).await;
        assert!(soon(two.run(NAME).begin().into_future()).await.unwrap_err().is_active(), "{faults:?}");
        writer.publish(event("0")).await.unwrap();
        writer.finish().await.unwrap();
        sleep(SETTLED).await;
        let journal = log.journal(NAME).unwrap();
        assert_eq!((journal.events(), journal.end().unwrap()), (vec!["0".to_owned()], "finished".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_is_repeated_appends_its_event_once() {
    use Fault::{Duplicate, Late, LoseAnswer, LoseRequest, Unavailable};
    let cases: [&[Fault]; 6] =
        [&[LoseAnswer], &[LoseRequest, LoseAnswer], &[Unavailable], &[Duplicate], &[Late], &[LoseAnswer, Duplicate]];
    for faults in cases {
        let (log, one, _, two) = two().await;
        let writer = begin(&one).await;
        let stream = open(&two, &two.run(NAME)).await;
        assert_eq!(writer.publish(event("0")).await.unwrap(), 0);
        log.faults.append(faults.iter().copied());
        assert_eq!(writer.publish_many([event("1"), event("2")]).await.unwrap(), 1);
        assert_eq!(writer.publish(event("3")).await.unwrap(), 3);
        log.faults.release();
        log.faults.append(faults.iter().copied());
        writer.finish_with(event("4")).await.unwrap();
        sleep(SETTLED).await;
        let expected = ["0", "1", "2", "3", "4"].map(str::to_owned).to_vec();
        assert_eq!(log.journal(NAME).unwrap().events(), expected, "{faults:?}");
        assert_eq!(read(stream).await, (expected, EndReason::Finished), "{faults:?}");
    }
}

/// The next publish completes the dropped one, if the dropped one has sent its event.
#[tokio::test(start_paused = true)]
async fn a_publish_that_is_dropped_keeps_the_order_and_doubles_nothing() {
    use Fault::{HoldAnswer, HoldRequest, Late, LoseAnswer, LoseRequest, Unavailable};
    let cases: [&[Fault]; 7] =
        [&[], &[LoseAnswer; 2], &[LoseRequest; 2], &[Unavailable; 2], &[Late], &[HoldAnswer], &[HoldRequest]];
    for faults in cases {
        for polls in 0..16 {
            let (log, one, _, two) = two().await;
            let writer = begin(&one).await;
            writer.publish(event("0")).await.unwrap();
            log.faults.append(faults.iter().copied());
            let was_ready = drop_after(polls, writer.publish(event("1"))).await;
            let next = soon(writer.publish(event("2")));
            let next = if faults == [Late] { next.await } else { log.faults.released_during(next).await };
            let number = next.unwrap();
            log.faults.release();
            sleep(SETTLED).await;
            assert_eq!(writer.publish(event("3")).await.unwrap(), number + 1);
            let stream = open(&two, &two.run(NAME)).await;
            writer.finish().await.unwrap();
            let (events, end) = read(stream).await;
            let texts: Vec<_> = events.iter().map(String::as_str).collect();
            match number {
                1 => assert!(!was_ready && texts == ["0", "2", "3"], "{faults:?}, {polls} polls: {texts:?}"),
                _ => assert_eq!((texts, number), (vec!["0", "1", "2", "3"], 2), "{faults:?}, {polls} polls"),
            }
            assert_eq!((log.journal(NAME).unwrap().events(), end), (events, EndReason::Finished));
        }
    }
}

/// The broker answers nothing, so the earlier event stays unknown. The later one was not sent.
#[tokio::test(start_paused = true)]
async fn an_event_behind_an_unknown_one_is_certainly_not_published() {
    let (log, one, _, _) = two().await;
    let writer = begin(&one).await;
    log.faults.set_silent();
    assert!(soon(writer.publish(event("0"))).await.unwrap_err().is_unknown());
    let error = soon(writer.publish(event("1"))).await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    log.faults.set_away(false);
    assert_eq!(writer.publish(event("1")).await.unwrap(), 1);
    writer.finish().await.unwrap();
    assert_eq!(log.journal(NAME).unwrap().events(), ["0", "1"]);
}

/// The outcome of the first publish is unknown, and the broker is then away: the writer must not
/// forget the entry that the broker may have.
#[tokio::test(start_paused = true)]
async fn an_event_with_an_unknown_outcome_is_completed_after_the_broker_was_away() {
    for is_dropped in [false, true] {
        let (log, one, _, _) = two().await;
        let writer = begin(&one).await;
        if is_dropped {
            log.faults.append([Fault::HoldAnswer]);
            assert!(!drop_after(4, writer.publish(event("0"))).await);
            log.faults.set_away(true);
        } else {
            log.faults.append([Fault::LoseAnswer]);
            let publish = writer.publish(event("0"));
            let mut publish = pin!(publish);
            // The answer is lost, and then the broker is away.
            while log.journal(NAME).unwrap().events().is_empty() {
                assert!(futures::poll!(&mut publish).is_pending());
                tokio::task::yield_now().await;
            }
            log.faults.set_away(true);
            assert!(soon(publish).await.unwrap_err().is_unknown());
        }
        // The broker certainly does not have this event.
        let error = soon(writer.publish(event("lost"))).await.unwrap_err();
        assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
        log.faults.set_away(false);
        assert_eq!(soon(writer.publish(event("1"))).await.unwrap(), 1);
        writer.finish().await.unwrap();
        assert_eq!(log.journal(NAME).unwrap().events(), ["0", "1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_is_dropped_leaves_no_active_run() {
    use Fault::{HoldAnswer, HoldRequest, Late, LoseAnswer, LoseRequest, Unavailable};
    let cases: [&[Fault]; 7] =
        [&[], &[LoseAnswer; 2], &[LoseRequest; 2], &[Unavailable; 2], &[Late], &[HoldAnswer], &[HoldRequest]];
    for faults in cases {
        for polls in 0..12 {
            let (log, one, _, two) = two().await;
            log.faults.begin(faults.iter().copied());
            drop_after(polls, one.run(NAME).begin().last_will(event("will")).into_future()).await;
            sleep(SETTLED).await;
            log.faults.release();
            sleep(SETTLED).await;
            let is_open = log.journal(NAME).is_some_and(|journal| !journal.is_closed());
            assert!(!is_open || faults == [Late], "{faults:?}, {polls} polls");
            // The broker has received the beginning after its instance has given up.
            for hub in [&one, &two] {
                assert_ne!(soon(hub.run(NAME).state()).await.unwrap(), RunState::Active, "{faults:?}, {polls} polls");
            }
            drop(begin(&two).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_was_given_up_replaces_no_later_run() {
    let (log, one, _, two) = two().await;
    log.faults.begin([Fault::LoseRequest]);
    drop_after(2, one.run(NAME).begin().into_future()).await;
    log.faults.set_away(true);
    sleep(SETTLED).await;
    // Meanwhile another instance writes the run.
    let writer = begin(&two).await;
    writer.finish_with(event("kept")).await.unwrap();
    log.faults.set_away(false);
    sleep(SETTLED).await;
    let journal = log.journal(NAME).unwrap();
    assert_eq!((journal.events(), journal.end().unwrap()), (vec!["kept".to_owned()], "finished".to_owned()));
    assert_eq!(soon(one.run(NAME).state()).await.unwrap(), RunState::Ended(RunEnd::Finished));
}

/// A reader finds the run at the broker before the answer arrives.
#[tokio::test(start_paused = true)]
async fn a_reader_may_find_a_run_before_its_writer_has_begun() {
    let (log, one, _, two) = two().await;
    log.faults.begin([Fault::HoldAnswer]);
    let beginning = tokio::spawn({
        let one = one.clone();
        async move { begin(&one).await }
    });
    until(|| log.faults.held() == 1).await;
    let streams = [open(&one, &one.run(NAME)).await, open(&two, &two.run(NAME)).await];
    assert_eq!(soon(one.run(NAME).state()).await.unwrap(), RunState::Active);
    // The request to stop comes before the writer.
    assert!(soon(two.run(NAME).stop()).await.unwrap());
    sleep(PUBLISH_TIMEOUT / 2).await;
    log.faults.release();
    let writer = soon(beginning).await.unwrap();
    soon(writer.stopped()).await;
    writer.publish(event("0")).await.unwrap();
    writer.finish().await.unwrap();
    for stream in streams {
        assert_eq!(read(stream).await, (vec!["0".to_owned()], EndReason::Stopped));
    }
}

/// Another instance delivers an event before the answer of the broker reaches the writer. The
/// client then resumes on the instance of the writer.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_ahead_of_the_writer_waits_for_the_writer() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    log.faults.append([Fault::HoldAnswer]);
    let publishing = tokio::spawn(async move {
        writer.publish(event("0")).await.unwrap();
        writer
    });
    until(|| log.faults.held() == 1).await;
    let (data, cursor) = next(&mut open(&two, &two.run(NAME)).await).await;
    assert_eq!(data, "0");
    let reader = soon(one.run(NAME).reader()).await.unwrap();
    assert_eq!(status(&one, reader.clone(), cursor), 200);
    let stream = one.subscribe(Subscription::run(reader), cursor).unwrap();
    log.faults.release();
    let writer = soon(publishing).await.unwrap();
    writer.publish(event("1")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(read(stream).await, (vec!["1".to_owned()], EndReason::Finished));
}

/// The answer to a read has the earlier run, and arrives after the instance has begun a new run.
#[tokio::test(start_paused = true)]
async fn a_late_answer_to_a_read_does_not_replace_the_run_of_a_writer() {
    let (_, one, log, two) = two().await;
    begin(&one).await.finish_with(event("old")).await.unwrap();
    log.faults.read([Fault::HoldAnswer]);
    let late = tokio::spawn({
        let run = two.run(NAME);
        async move { run.reader().await.unwrap() }
    });
    until(|| log.faults.held() == 1).await;
    let writer = begin(&two).await;
    log.faults.release();
    soon(late).await.unwrap();
    assert_eq!(soon(two.run(NAME).state()).await.unwrap(), RunState::Active);
    let stream = open(&two, &two.run(NAME)).await;
    writer.publish(event("new")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(read(stream).await, (vec!["new".to_owned()], EndReason::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_dropped_during_an_append_ends_its_run_once() {
    use Fault::{HoldAnswer, HoldRequest, Late, LoseAnswer, LoseRequest, Unavailable};
    let cases: [&[Fault]; 7] = [
        &[],
        &[HoldAnswer],
        &[HoldRequest],
        &[LoseAnswer],
        &[LoseRequest],
        &[Late],
        &[Unavailable, Unavailable, Unavailable, LoseAnswer],
    ];
    for faults in cases {
        for polls in 0..6 {
            let (log, one, _, two) = two().await;
            let writer = begin(&one).await;
            writer.publish(event("0")).await.unwrap();
            let stream = open(&two, &two.run(NAME)).await;
            log.faults.append(faults.iter().copied());
            drop_after(polls, writer.publish(event("1"))).await;
            drop(writer);
            let (events, end) = read(stream).await;
            log.faults.release();
            sleep(SETTLED).await;
            let journal = log.journal(NAME).unwrap();
            assert_eq!((journal.events(), journal.end().unwrap()), (events.clone(), "aborted".to_owned()));
            let texts: Vec<_> = events.iter().map(String::as_str).collect();
            assert!(texts == ["0", "will"] || texts == ["0", "1", "will"], "{faults:?}, {polls} polls: {texts:?}");
            assert_eq!(end, EndReason::Aborted);
        }
    }
}

/// The broker is away for much longer than the publish timeout. The writer cannot repeat the call,
/// so the hub completes it.
#[tokio::test(start_paused = true)]
async fn a_finish_is_completed_when_the_broker_is_back() {
    for case in ["answer lost", "known to be away", "silent", "after a lost event", "dropped"] {
        let (log, one, _, two) = two().await;
        let writer = begin(&one).await;
        writer.publish(event("0")).await.unwrap();
        let stream = open(&two, &two.run(NAME)).await;
        let mut expected = vec!["0"];
        match case {
            "answer lost" => log.faults.append([Fault::LoseAnswer]),
            "known to be away" => log.faults.set_away(true),
            "after a lost event" => {
                log.faults.set_silent();
                assert!(soon(writer.publish(event("1"))).await.unwrap_err().is_unknown());
                expected.push("1");
            }
            _ => log.faults.set_silent(),
        }
        expected.push("last");
        let finish = writer.finish_with(event("last"));
        if case == "dropped" {
            assert!(!drop_after(3, finish).await);
        } else {
            let finished = tokio::spawn(finish);
            if case == "answer lost" {
                until(|| log.journal(NAME).unwrap().is_closed()).await;
                log.faults.set_silent();
            }
            // The hub completes the end, so the caller must not take it for one that did not happen.
            let error = soon(finished).await.unwrap().unwrap_err();
            assert!(error.is_unavailable() && error.is_unknown(), "{case}: {error}");
        }
        // Shorter than the lease, so that the instance is not taken for a dead one.
        sleep(LEASE - PUBLISH_TIMEOUT * 3).await;
        log.faults.set_away(false);
        let journal = closed(&log).await;
        assert_eq!((journal.events(), journal.end().unwrap()), (owned(&expected), "finished".to_owned()), "{case}");
        assert_eq!(read(stream).await, (owned(&expected), EndReason::Finished), "{case}");
        until_ended(&one, RunEnd::Finished).await;
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// The task that completes the end waits for its next attempt when the drain begins.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_abort_a_run_whose_finish_is_not_confirmed_yet() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let stream = open(&two, &two.run(NAME)).await;
    log.faults.set_away(true);
    soon(writer.finish_with(event("last"))).await.unwrap_err();
    sleep(PUBLISH_TIMEOUT).await;
    log.faults.set_away(false);
    one.drain(Duration::ZERO).await;
    assert_eq!(log.journal(NAME).unwrap().end().unwrap(), "finished");
    assert_eq!(read(stream).await, (owned(&["last"]), EndReason::Finished));
}

/// The finish is still waiting for the broker when the drain begins.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_abort_a_run_that_is_finishing() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let stream = open(&two, &two.run(NAME)).await;
    log.faults.set_away(true);
    let finishing = tokio::spawn(writer.finish_with(event("last")));
    // Short enough that the pause of the writer, which is random, ends within its timeout.
    sleep(PUBLISH_TIMEOUT / 16).await;
    let draining = tokio::spawn({
        let one = one.clone();
        async move { one.drain(Duration::ZERO).await }
    });
    sleep(PUBLISH_TIMEOUT / 16).await;
    log.faults.set_away(false);
    soon(draining).await.unwrap();
    soon(finishing).await.unwrap().unwrap();
    assert_eq!(read(stream).await, (owned(&["last"]), EndReason::Finished));
}

/// The job of a request ends, and the broker is then away while the handler looks the run up.
#[tokio::test(start_paused = true)]
async fn the_instance_that_wrote_a_run_to_its_end_can_read_it_without_the_broker() {
    let (log, one, other, two) = two().await;
    let writer = begin(&one).await;
    writer.finish_with(event("last")).await.unwrap();
    let run = two.run(NAME);
    assert_eq!(run.state().await.unwrap(), RunState::Ended(RunEnd::Finished));
    for faults in [&log.faults, &other.faults] {
        faults.set_away(true);
    }
    let reader = soon(one.run(NAME).reader()).await.unwrap();
    // The client may have the cursor of a later run, of which this instance does not know yet.
    assert_eq!(status(&one, reader, Position::from_str("1.5.1").unwrap()), 200);
    assert_eq!(read(open(&one, &one.run(NAME)).await).await, (owned(&["last"]), EndReason::Finished));
    // Another instance may not know that a later run of this name has begun.
    let refused = two.respond(event_source(), Subscription::run(soon(run.reader()).await.unwrap()));
    let body = String::from_utf8(soon(refused.into_response().into_body().collect()).await.unwrap().to_bytes().into());
    assert!(!body.unwrap().contains("last"));
}

/// An instance begins the next run of a name before it has read the end of the earlier one, whose
/// announcement is lost.
#[tokio::test(start_paused = true)]
async fn the_next_run_of_a_name_takes_no_event_from_the_readers_of_the_earlier_one() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let mut stream = open(&two, &two.run(NAME)).await;
    writer.publish(event("0")).await.unwrap();
    assert_eq!(next(&mut stream).await.0, "0");
    log.faults.lose_messages(Messages::Runs);
    writer.finish_with(event("last")).await.unwrap();
    let later = begin(&two).await;
    assert_eq!(read(stream).await, (owned(&["last"]), EndReason::Finished));
    later.finish().await.unwrap();
}

/// Other instances have ended the run of an instance that then begins the next run of this name.
#[tokio::test(start_paused = true)]
async fn the_next_run_of_a_name_takes_no_end_from_the_readers_of_an_earlier_one_that_others_have_ended() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let (here, there) = (open(&one, &one.run(NAME)).await, open(&two, &two.run(NAME)).await);
    log.faults.set_silent();
    assert_eq!(read(there).await, (owned(&["will"]), EndReason::Aborted));
    log.faults.set_away(false);
    let later = begin(&one).await;
    soon(writer.stopped()).await;
    assert_eq!(read(here).await, (owned(&["will"]), EndReason::Aborted));
    later.finish().await.unwrap();
}

/// The broker has lost the newest entry, and another one has taken its number.
#[tokio::test(start_paused = true)]
async fn a_run_whose_last_entry_was_replaced_is_a_break_for_its_readers() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    writer.publish(event("0")).await.unwrap();
    writer.publish(event("1")).await.unwrap();
    let mut stream = open(&two, &two.run(NAME)).await;
    for text in ["0", "1"] {
        assert_eq!(next(&mut stream).await.0, text);
    }
    log.log.roll_back_journal(NAME, 1);
    assert!(soon(writer.publish(event("2"))).await.unwrap_err().is_ended());
    assert_eq!(closed(&log).await.events(), ["0", "will"]);
    assert_eq!(read(stream).await, (vec![], EndReason::Lagged));
    assert_eq!(soon(two.run(NAME).state()).await.unwrap(), RunState::Ended(RunEnd::Aborted));
}

/// The broker never accepts the last event, so the run cannot finish with it.
#[tokio::test(start_paused = true)]
async fn a_finish_that_the_broker_rejects_ends_the_run_as_aborted() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let stream = open(&two, &two.run(NAME)).await;
    log.faults.append([Fault::Rejected]);
    writer.finish_with(event("too large")).await.unwrap_err();
    assert_eq!(read(stream).await, (vec!["will".to_owned()], EndReason::Aborted));
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_dropped_while_the_broker_is_away_ends_its_run_when_the_broker_is_back() {
    for is_known in [false, true] {
        let (log, one, _, two) = two().await;
        let writer = begin(&one).await;
        let stream = open(&two, &two.run(NAME)).await;
        if is_known {
            log.faults.set_away(true);
        } else {
            log.faults.set_silent();
        }
        drop(writer);
        sleep(LEASE / 2).await;
        assert!(!log.journal(NAME).unwrap().is_closed());
        log.faults.set_away(false);
        assert_eq!(read(stream).await, (vec!["will".to_owned()], EndReason::Aborted));
        let journal = log.journal(NAME).unwrap();
        assert_eq!((journal.events(), journal.end().unwrap()), (vec!["will".to_owned()], "aborted".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_broker_does_not_confirm_delays_no_read_and_no_other_end() {
    let (log, one, _, two) = two().await;
    let writers = [begin(&one).await, soon(one.run("answers/8").begin().into_future()).await.unwrap()];
    let elsewhere = soon(two.run("answers/9").begin().into_future()).await.unwrap();
    let mut stream = open(&one, &one.run("answers/9")).await;
    let ends = || [NAME, "answers/8"].iter().filter(|name| log.journal(name).unwrap().is_closed()).count();

    log.faults.append([Fault::HoldRequest]);
    drop(writers);
    until(|| log.faults.held() == 1).await;
    let begun = Instant::now();
    elsewhere.publish(event("0")).await.unwrap();
    assert_eq!(next(&mut stream).await.0, "0");
    until(|| ends() == 1).await;
    assert!(begun.elapsed() < PUBLISH_TIMEOUT / 2, "{:?}", begun.elapsed());
    log.faults.release();
    until(|| ends() == 2).await;
}

/// Two instances end the run of a third one at the same time. The third one then comes back.
#[tokio::test(start_paused = true)]
async fn a_silent_instance_whose_run_others_have_ended_cannot_write_it_any_more() {
    for announced in [true, false] {
        let (log, one, second, two) = two().await;
        let third = log.other();
        let three = start(&third).await;
        let writer = begin(&one).await;
        writer.publish(event("0")).await.unwrap();
        let streams = [open(&two, &two.run(NAME)).await, open(&three, &three.run(NAME)).await];
        log.faults.set_silent();
        // One of them may find up to `LOOK` later than the other that the writer is silent. So the
        // request that the other sends again after `PUBLISH_TIMEOUT` is held too.
        second.faults.append([Fault::HoldRequest; 2]);
        third.faults.append([Fault::HoldRequest; 2]);
        if !announced {
            second.faults.lose_messages(Messages::Runs);
            third.faults.lose_messages(Messages::Runs);
        }
        until(|| second.faults.held() > 0 && third.faults.held() > 0).await;
        second.faults.release();
        third.faults.release();
        for stream in streams {
            assert_eq!(read(stream).await, (owned(&["0", "will"]), EndReason::Aborted));
        }
        let here = open(&one, &one.run(NAME)).await;
        log.faults.set_away(false);
        // The writer learns it without a publish.
        soon(writer.stopped()).await;
        assert!(!writer.is_stopped());
        assert_eq!(read(here).await, (owned(&["0", "will"]), EndReason::Aborted));
        assert!(soon(writer.publish(event("late"))).await.unwrap_err().is_ended());
        assert!(soon(writer.finish_with(event("late"))).await.unwrap_err().is_ended());
        sleep(SETTLED).await;
        let journal = log.journal(NAME).unwrap();
        assert_eq!((journal.events(), journal.end().unwrap()), (owned(&["0", "will"]), "aborted".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_learns_that_others_have_ended_the_run() {
    let (log, one, second, two) = two().await;
    let writer = begin(&one).await;
    let stream = open(&two, &two.run(NAME)).await;
    log.faults.set_silent();
    assert_eq!(read(stream).await, (vec!["will".to_owned()], EndReason::Aborted));
    second.faults.set_silent();
    log.faults.set_away(false);
    assert!(soon(writer.publish(event("late"))).await.unwrap_err().is_ended());
    soon(writer.stopped()).await;
    assert_eq!(log.journal(NAME).unwrap().events(), ["will"]);
}

#[tokio::test(start_paused = true)]
async fn the_run_of_an_instance_that_was_not_heard_yet_is_not_ended() {
    let (log, one, _, _) = two().await;
    let writer = begin(&one).await;
    log.faults.lose_messages(Messages::All);
    let fresh = log.other();
    let three = start(&fresh).await;
    let begun = Instant::now();
    while begun.elapsed() < LEASE - Duration::from_secs(1) {
        assert_eq!(soon(three.run(NAME).state()).await.unwrap(), RunState::Active);
        sleep(Duration::from_millis(500)).await;
    }
    log.faults.pass_messages();
    let stream = open(&three, &three.run(NAME)).await;
    sleep(LEASE * 3).await;
    writer.publish(event("0")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(read(stream).await, (vec!["0".to_owned()], EndReason::Finished));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_receives_no_messages_ends_no_run_of_others() {
    let (log, one, second, two) = two().await;
    let writer = begin(&one).await;
    let stream = open(&two, &two.run(NAME)).await;
    second.faults.set_deaf();
    sleep(LEASE * 3).await;
    assert_eq!(soon(two.run(NAME).state()).await.unwrap(), RunState::Active);
    assert!(soon(two.run(NAME).begin().into_future()).await.unwrap_err().is_active());
    assert!(!log.journal(NAME).unwrap().is_closed());
    // It still reads the runs of others.
    writer.publish(event("0")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(read(stream).await, (vec!["0".to_owned()], EndReason::Finished));
}

/// The drain cannot end the run, but its goodbye arrives.
#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_the_runs_of_its_instance_at_once() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let stream = open(&two, &two.run(NAME)).await;
    log.faults.append([Fault::Rejected; 50]);
    soon(one.drain(Duration::ZERO)).await;
    let begun = Instant::now();
    assert_eq!(read(stream).await, (vec!["will".to_owned()], EndReason::Aborted));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn events_arrive_although_their_announcement_is_lost() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    let mut stream = open(&two, &two.run(NAME)).await;
    log.faults.lose_messages(Messages::Runs);
    for n in 0..3 {
        writer.publish(event(n.to_string())).await.unwrap();
        let begun = Instant::now();
        assert_eq!(next(&mut stream).await.0, n.to_string());
        assert!(begun.elapsed() < LOOK + Duration::from_millis(500), "{:?}", begun.elapsed());
    }
    writer.finish().await.unwrap();
    assert_eq!(read(stream).await, (vec![], EndReason::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_a_run_whose_announcement_is_lost() {
    let (log, one, _, two) = two().await;
    log.faults.lose_messages(Messages::Runs);
    let run = two.run(NAME);
    let waiting = tokio::spawn(async move { run.reader_within(Duration::from_secs(60)).await.unwrap() });
    sleep(SETTLED).await;
    let writer = begin(&one).await;
    let begun = Instant::now();
    assert!(!soon(waiting).await.unwrap().is_missing());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    writer.finish().await.unwrap();
}

/// A late answer must not look like the answer that there is no run: a client would take that for
/// the end.
#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_for_a_run_waits_for_the_answer_of_the_broker() {
    let (_, one, second, two) = two().await;
    let writer = begin(&one).await;
    let run = two.run(NAME);
    second.faults.read([Fault::HoldAnswer]);
    let waiting = tokio::spawn({
        let run = run.clone();
        async move { run.reader_within(Duration::from_millis(50)).await.unwrap() }
    });
    sleep(PUBLISH_TIMEOUT / 2).await;
    second.faults.release();
    assert!(!soon(waiting).await.unwrap().is_missing());
    second.faults.set_silent();
    let reader = soon(run.reader_within(Duration::from_millis(50))).await.unwrap();
    assert!(!reader.is_missing());
    // A browser asks again after this stream, and would give up after a `503`.
    let response = two.respond(event_source(), Subscription::run(reader.clone())).into_response();
    let refused = response.into_body().collect().await.unwrap().to_bytes();
    assert!(refused.starts_with(b"event: hub.refused\nretry: "), "{refused:?}");
    let response = two.respond(event_source(), Subscription::run(reader).bare()).into_response();
    assert_eq!(response.status(), 200);
    second.faults.set_away(false);
    writer.finish().await.unwrap();
    let begun = Instant::now();
    assert!(soon(two.run("another").reader_within(Duration::from_millis(50))).await.unwrap().is_missing());
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    assert!(soon(two.run("another").reader_within(Duration::ZERO)).await.unwrap().is_missing());
}

/// The instance of the reader has not read the rest of the earlier run when the next one begins.
#[tokio::test(start_paused = true)]
async fn a_reader_that_lags_receives_no_event_of_the_next_run() {
    let (log, one, _, two) = two().await;
    let first = begin(&one).await;
    first.publish(event("first 0")).await.unwrap();
    let mut stream = open(&two, &two.run(NAME)).await;
    let (data, cursor) = next(&mut stream).await;
    assert_eq!(data, "first 0");
    log.faults.lose_messages(Messages::Runs);
    first.finish_with(event("first 1")).await.unwrap();
    let second = begin(&one).await;
    second.publish_many([event("second 0"), event("second 1")]).await.unwrap();
    // The stream breaks, and its cursor is honestly refused.
    assert_eq!(read(stream).await, (vec![], EndReason::Lagged));
    assert_eq!(status(&two, two.run(NAME).reader().await.unwrap(), cursor), 404);
    let stream = open(&two, &two.run(NAME)).await;
    second.finish().await.unwrap();
    assert_eq!(read(stream).await, (owned(&["second 0", "second 1"]), EndReason::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_the_earlier_run_does_not_stop_the_next_one() {
    let (_, one, second, two) = two().await;
    let first = begin(&one).await;
    second.faults.read([Fault::HoldAnswer]);
    let run = two.run(NAME);
    let stop = tokio::spawn(async move { run.stop().await.unwrap() });
    until(|| second.faults.held() == 1).await;
    first.finish().await.unwrap();
    let next = begin(&one).await;
    second.faults.release();
    soon(stop).await.unwrap();
    sleep(SETTLED).await;
    assert!(!next.is_stopped());
    assert!(soon(two.run(NAME).stop()).await.unwrap());
    soon(next.stopped()).await;
    assert!(next.is_stopped());
    next.finish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_broker_has_lost_is_a_break_for_its_readers_and_an_error_for_its_writer() {
    let (log, one, _, two) = two().await;
    let writer = begin(&one).await;
    writer.publish(event("0")).await.unwrap();
    let here = open(&one, &one.run(NAME)).await;
    let mut there = open(&two, &two.run(NAME)).await;
    let (_, cursor) = next(&mut there).await;
    let before = two.run(NAME).reader().await.unwrap();
    log.log.roll_back_journal(NAME, usize::MAX);
    // The other instance looks from time to time.
    assert_eq!(read(there).await, (vec![], EndReason::Lagged));
    assert_eq!(status(&two, two.run(NAME).reader().await.unwrap(), cursor), 404);
    assert_eq!(status(&two, before, cursor), 404, "the reader has the run that was lost");
    assert!(soon(writer.publish(event("1"))).await.unwrap_err().is_ended());
    soon(writer.stopped()).await;
    assert_eq!(read(here).await, (vec!["0".to_owned()], EndReason::Lagged));
    let next = begin(&one).await;
    drop(writer);
    sleep(SETTLED).await;
    next.publish(event("new")).await.unwrap();
    next.finish().await.unwrap();
    assert_eq!(log.journal(NAME).unwrap().events(), ["new"]);
}

/// The broker was restored from a backup without the newest entry. The instance of the writer
/// lives or has died.
#[tokio::test]
async fn a_run_that_was_rolled_back_is_a_break_and_leaves_no_active_run() {
    const SHORT: Duration = Duration::from_millis(900);
    for owner_lives in [true, false] {
        let log = Broker::new();
        let other = log.other();
        let start = async |log: &Broker| {
            let builder = Hub::builder().publish_timeout(SHORT / 3).peer_timeout(SHORT);
            let hub = builder.backplane(log.connection.clone()).build().unwrap();
            until(|| hub.is_ready()).await;
            hub
        };
        let (one, two) = (start(&log).await, start(&other).await);
        let writer = begin(&one).await;
        writer.publish(event("0")).await.unwrap();
        writer.publish(event("1")).await.unwrap();
        writer.publish(event("2")).await.unwrap();
        let mut there = open(&two, &two.run(NAME)).await;
        let mut cursor = next(&mut there).await.1;
        for _ in 0..2 {
            cursor = next(&mut there).await.1;
        }
        log.faults.set_away(!owner_lives);
        log.log.roll_back_journal(NAME, 2);
        if owner_lives {
            assert!(soon(writer.publish(event("3"))).await.unwrap_err().is_ended());
            soon(writer.stopped()).await;
        }
        assert_eq!(read(there).await, (vec![], EndReason::Lagged));
        until_ended(&two, RunEnd::Aborted).await;
        let journal = log.journal(NAME).unwrap();
        assert_eq!((journal.events(), journal.end().unwrap()), (owned(&["0", "will"]), "aborted".to_owned()));
        assert_eq!(status(&two, two.run(NAME).reader().await.unwrap(), cursor), 404);
        assert_eq!(read(open(&two, &two.run(NAME)).await).await, (owned(&["0", "will"]), EndReason::Aborted));
        soon(begin(&two).await.finish()).await.unwrap();
    }
}

/// A runtime ends while one of its tasks waits for the broker. Another runtime continues.
#[test]
fn a_runtime_that_ends_during_an_append_leaves_the_work_to_another_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = Broker::new();
    let first = runtime();
    let (hub, writer) = first.block_on(async {
        let hub = start(&log).await;
        let writer = begin(&hub).await;
        writer.publish(event("0")).await.unwrap();
        log.faults.append([Fault::HoldAnswer]);
        assert!(!drop_after(4, writer.publish(event("1"))).await);
        (hub, writer)
    });
    drop(first);
    // The event is completed, and the task that ends the run is interrupted.
    let second = runtime();
    second.block_on(async {
        assert_eq!(soon(writer.publish(event("2"))).await.unwrap(), 2);
        log.faults.append([Fault::HoldRequest]);
        drop(writer);
        until(|| log.faults.held() == 2).await;
        log.faults.begin([Fault::HoldAnswer]);
        assert!(!drop_after(4, hub.run("answers/8").begin().into_future()).await);
    });
    drop(second);
    runtime().block_on(async {
        until(|| hub.is_ready() && log.journal(NAME).unwrap().is_closed()).await;
        let journal = log.journal(NAME).unwrap();
        assert_eq!((journal.events(), journal.end().unwrap()), (owned(&["0", "1", "2", "will"]), "aborted".into()));
        until(|| hub.is_ready() && log.journal("answers/8").unwrap().is_closed()).await;
    });
}

/// The caller has no runtime, so the call cannot wait for the broker.
#[test]
fn a_writer_outside_of_a_runtime_receives_an_error() {
    use futures::executor::block_on;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let log = Broker::new();
    let (hub, writer) = runtime.block_on(async {
        let hub = start(&log).await;
        let writer = begin(&hub).await;
        (hub, writer)
    });
    let error = block_on(writer.publish(event("0"))).unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert!(block_on(hub.run(NAME).begin().into_future()).unwrap_err().is_unavailable());
    assert!(block_on(writer.finish_with(event("last"))).unwrap_err().is_unavailable());
    runtime.block_on(async {
        let journal = closed(&log).await;
        assert_eq!((journal.events(), journal.end().unwrap()), (vec!["last".to_owned()], "finished".to_owned()));
    });
}

/// A stream reads at most 64 events or 64 KiB in one step.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_receives_all_of_a_large_run() {
    const EVENTS: usize = 400;
    let (_, one, _, two) = two().await;
    let writer = begin(&one).await;
    let sizes = [1, 10, 9_000, 70_000, 200];
    let data = |n: usize| format!("{n} {}", "x".repeat(sizes[n % sizes.len()]));
    let mut streams = [open(&one, &one.run(NAME)).await, open(&two, &two.run(NAME)).await];
    let mut received = [0, 0];
    for n in 0..EVENTS {
        if n % 3 == 0 {
            writer.publish(event(data(n))).await.unwrap();
        } else if n % 3 == 1 {
            writer.publish_many((n..(n + 2).min(EVENTS)).map(|n| event(data(n)))).await.unwrap();
        }
        if n % 40 == 0 {
            for (stream, received) in streams.iter_mut().zip(&mut received) {
                assert_eq!(next(stream).await.0, data(*received));
                *received += 1;
            }
        }
    }
    writer.finish().await.unwrap();
    for (stream, received) in streams.into_iter().zip(received) {
        let (rest, end) = read(stream).await;
        assert!(rest.iter().enumerate().all(|(n, text)| *text == data(received + n)));
        assert_eq!((received + rest.len(), end), (EVENTS, EndReason::Finished));
    }
    assert_eq!(read(open(&two, &two.run(NAME)).await).await.0.len(), EVENTS);
}

#[tokio::test(start_paused = true)]
async fn a_drain_during_publishes_loses_no_acknowledged_event() {
    for alone in [true, false] {
        let (_, one, _, two) = two().await;
        let one = if alone { Hub::builder().build().unwrap() } else { one };
        let two = if alone { one.clone() } else { two };
        let writer = begin(&one).await;
        let there = open(&two, &two.run(NAME)).await;
        let reading = tokio::spawn(read(there));
        let publishing = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            loop {
                let number = acknowledged.len().to_string();
                match writer.publish(event(&*number)).await {
                    Ok(_) => acknowledged.push(number),
                    Err(error) => {
                        assert!(error.is_ended(), "{error}");
                        soon(writer.stopped()).await;
                        return acknowledged;
                    }
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        sleep(Duration::from_millis(100)).await;
        soon(one.drain(Duration::ZERO)).await;
        let mut expected = soon(publishing).await.unwrap();
        expected.push("will".to_owned());
        assert_eq!(soon(reading).await.unwrap(), (expected, EndReason::Aborted), "alone: {alone}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_does_not_wait_for_ever_after_its_run_was_ended_by_a_drain() {
    let (_, one, _, _) = two().await;
    for hub in [Hub::builder().build().unwrap(), one] {
        let writer = begin(&hub).await;
        let mut stopped = pin!(writer.stopped());
        assert!(futures::poll!(&mut stopped).is_pending());
        soon(hub.drain(Duration::ZERO)).await;
        soon(stopped).await;
        // Nobody asked the writer to stop.
        assert!(!writer.is_stopped());
    }
}
