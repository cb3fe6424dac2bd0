//! Bare streams over a shared log: they cannot report a gap. A stream breaks before the first event
//! after a loss, and the hub then refuses the client's cursor.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower_sse::backplane::{Backplane, NewRecord};
use tower_sse::test_kit::{FaultyLog, Operation};
use tower_sse::{EndReason, Event, EventBody, Hub, Retention, Start, StreamRequest, Subscription};

use crate::kit::{soon, until};

async fn start(log: impl Backplane) -> Hub {
    start_with_probes(log, Duration::from_millis(100)).await
}

async fn start_with_probes(log: impl Backplane, interval: Duration) -> Hub {
    let builder = Hub::builder()
        .topic_retention(Retention::replay().count(8))
        .probe_interval(interval)
        .publish_timeout(Duration::from_secs(2));
    let hub = builder.backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// Opens a stream with this cursor, unless it is empty. Returns the status of a refusal as an error.
fn open(hub: &Hub, cursor: &str) -> Result<EventBody, StatusCode> {
    open_from(hub, cursor, Start::Live)
}

fn open_from(hub: &Hub, cursor: &str, start: Start) -> Result<EventBody, StatusCode> {
    let request = Request::get("/").header("last-event-id", cursor).body(()).unwrap();
    let subscription = Subscription::anonymous().topic("t").start(start).bare();
    let response = hub.respond(StreamRequest::from_request(&request), subscription).into_response();
    if response.status() == 200 { Ok(response.into_body()) } else { Err(response.status()) }
}

async fn publish(hub: &Hub, numbers: std::ops::Range<u64>) {
    let events = numbers.map(|n| (hub.topic("t"), Event::unnamed(n.to_string())));
    assert!(hub.publish_many(events.collect::<Vec<_>>()).await.iter().all(Result::is_ok));
}

/// Reads through this data. Returns the data of all events and the last id.
async fn read_to(body: &mut EventBody, last: u64) -> (Vec<u64>, String) {
    let mut text = String::new();
    while !text.contains(&format!("data: {last}\n")) {
        text.push_str(&read(body).await.expect("the stream broke"));
    }
    parse(&text)
}

/// Reads to the break. Returns the data of all events and the last id.
async fn read_to_break(mut body: EventBody) -> (Vec<u64>, String) {
    let mut text = String::new();
    while let Some(read) = read(&mut body).await {
        text.push_str(&read);
    }
    parse(&text)
}

/// Returns the next bytes, or `None` if the stream breaks.
async fn read(body: &mut EventBody) -> Option<String> {
    let frame = soon(body.frame()).await.expect("the stream ended without an error");
    Some(String::from_utf8(frame.ok()?.into_data().unwrap().to_vec()).unwrap())
}

fn parse(text: &str) -> (Vec<u64>, String) {
    assert!(!text.contains("hub."), "{text}");
    let values = |field: &'static str| text.lines().filter_map(move |line| line.strip_prefix(field));
    (values("data: ").map(|n| n.parse().unwrap()).collect(), values("id: ").next_back().unwrap_or_default().to_owned())
}

fn number(id: &str) -> u64 {
    id.rsplit('.').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn resumed_stream_gets_older_records_from_the_broker() {
    let hub = start(FaultyLog::new().connect()).await;
    let begin = hub.position().to_string();
    publish(&hub, 0..100).await;
    until(|| number(&hub.position().to_string()) == 100).await;
    let mut body = open(&hub, &begin).unwrap();
    assert_eq!(read_to(&mut body, 99).await.0, (0..100).collect::<Vec<_>>());
}

/// The stream breaks because it falls behind the memory of the instance, and the broker still has
/// the events.
#[tokio::test]
async fn stream_that_lagged_resumes_without_loss() {
    let hub = start(FaultyLog::new().connect()).await;
    let mut body = open(&hub, "").unwrap();
    publish(&hub, 0..1).await;
    let (first, id) = read_to(&mut body, 0).await;
    publish(&hub, 1..100).await;
    until(|| number(&hub.position().to_string()) == 100).await;
    assert_eq!(read_to_break(body).await, (vec![], String::new()));
    assert_eq!(hub.stats().ended(EndReason::Lagged), 1);
    let (rest, _) = read_to(&mut open(&hub, &id).unwrap(), 99).await;
    assert_eq!([first, rest].concat(), (0..100).collect::<Vec<_>>());
}

/// Otherwise a client would reconnect with the same cursor without end.
#[tokio::test]
async fn lost_record_of_the_broker_is_one_break_and_then_404() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    let begin = hub.position().to_string();
    log.hide([3]);
    publish(&hub, 0..100).await;
    until(|| number(&hub.position().to_string()) == 100).await;
    let (events, id) = read_to_break(open(&hub, &begin).unwrap()).await;
    assert_eq!((events, number(&id)), (vec![0, 1], 2));
    assert_eq!(hub.stats().ended(EndReason::Gap), 1);
    for cursor in [&id, &begin] {
        assert_eq!(open(&hub, cursor).unwrap_err(), 404, "{cursor}");
    }
    // A cursor after the loss is served.
    let epoch = id.rsplit_once('.').unwrap().0;
    let (events, _) = read_to(&mut open(&hub, &format!("{epoch}.3")).unwrap(), 99).await;
    assert_eq!(events, (3..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn trimmed_records_of_the_broker_are_one_break_and_then_404() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    let begin = hub.position().to_string();
    publish(&hub, 0..100).await;
    until(|| number(&hub.position().to_string()) == 100).await;
    log.trim_to(100);
    publish(&hub, 100..101).await;
    assert_eq!(read_to_break(open(&hub, &begin).unwrap()).await, (vec![], String::new()));
    assert_eq!(open(&hub, &begin).unwrap_err(), 404);
}

#[tokio::test]
async fn new_epoch_of_the_log_breaks_an_open_stream_and_then_gets_404() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    let mut body = open(&hub, "").unwrap();
    publish(&hub, 0..3).await;
    let (_, id) = read_to(&mut body, 2).await;
    log.restore(&FaultyLog::new());
    log.faults().break_streams();
    let (events, _) = read_to_break(body).await;
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(hub.stats().ended(EndReason::Gap), 1);
    assert_eq!(open(&hub, &id).unwrap_err(), 404);
    let mut fresh = open(&hub, "").unwrap();
    publish(&hub, 7..8).await;
    assert_eq!(read_to(&mut fresh, 7).await.0, [7]);
}

/// Otherwise the stream of a client that has received no id would break again and again.
#[tokio::test]
async fn stream_of_the_last_events_breaks_once_when_the_broker_has_dropped_events() {
    let log = FaultyLog::new();
    // The first stream finds the loss before a probe does.
    let hub = start_with_probes(log.connect(), Duration::from_secs(3_600)).await;
    publish(&hub, 0..10).await;
    until(|| number(&hub.position().to_string()) == 10).await;
    log.trim_through(8);
    let open = || open_from(&hub, "", Start::Last(5)).unwrap();
    assert_eq!(read_to_break(open()).await, (vec![], String::new()));
    assert_eq!(read_to(&mut open(), 9).await.0, [8, 9]);
}

#[tokio::test]
async fn stream_of_the_last_events_does_not_break_when_a_probe_has_found_the_loss() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    publish(&hub, 0..10).await;
    until(|| number(&hub.position().to_string()) == 10).await;
    log.trim_through(8);
    let probes = log.faults().calls(Operation::State);
    until(|| log.faults().calls(Operation::State) >= probes + 2).await;
    assert_eq!(read_to(&mut open_from(&hub, "", Start::Last(5)).unwrap(), 9).await.0, [8, 9]);
}

#[tokio::test]
async fn stream_of_the_last_events_breaks_once_for_an_unreadable_record() {
    let log = FaultyLog::new();
    let hub = start(log.connect()).await;
    publish(&hub, 0..2).await;
    let unreadable = r#"{"v":1,"to":{"topics":["t"]},"event":"hub.live","data":""}"#;
    soon(log.connect().append(vec![NewRecord::new(unreadable.into())], None)).await;
    publish(&hub, 3..5).await;
    until(|| number(&hub.position().to_string()) == 5).await;
    // The instance has no listener for the record, so it has not read the record.
    assert_eq!(hub.stats().skipped, 0);
    let (events, id) = read_to_break(open_from(&hub, "", Start::Oldest).unwrap()).await;
    assert_eq!((events, number(&id)), (vec![0, 1], 2));
    assert_eq!(hub.stats().skipped, 1);
    assert_eq!(open(&hub, &id).unwrap_err(), 404);
    assert_eq!(read_to(&mut open_from(&hub, "", Start::Oldest).unwrap(), 4).await.0, [0, 1, 3, 4]);
}
