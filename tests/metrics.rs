//! Metrics: a Prometheus exporter is scraped over HTTP, and the table of docs/metrics.md is compared
//! with the metrics that a hub describes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

mod kit;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::kit::port::free_port;
use crate::kit::{get, until};
use futures::FutureExt;
use http::Request;
use http_body_util::BodyExt;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tower::ServiceExt;
use tower_sse::backplane::{Memory, Redis};
use tower_sse::{
    Disconnect, Event, EventBody, Hub, HubBuilder, IntoAccess, Public, Publisher, Refusal, RefusalReason, Retention,
    StreamRequest, Subscription, TopicFilter,
};

// -------------------------------------------------------------------------------------------------
// An exporter, and streams without sockets

/// The samples of a scrape, by name and labels.
type Samples = BTreeMap<String, f64>;

fn parse(text: &str) -> Samples {
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(sample).collect()
}

/// Builds a hub whose metrics go to a recorder of its own, and returns the handle of the recorder.
fn build(builder: HubBuilder) -> (Hub, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let hub = with_local_recorder(&recorder, || builder.build().unwrap());
    (hub, recorder.handle())
}

fn samples(handle: &PrometheusHandle) -> Samples {
    parse(&handle.render())
}

type Body = Pin<Box<EventBody>>;

async fn request<M, A: IntoAccess<M>>(hub: &Hub, access: A, request: http::request::Builder) -> Body {
    Box::pin(hub.endpoint(access).oneshot(request.body(()).unwrap()).await.unwrap().into_body())
}

async fn open(hub: &Hub) -> Body {
    request(hub, Public::topics(TopicFilter::any()), Request::get("/?topic=news")).await
}

/// Reads every frame that is ready, and returns the number of bytes.
fn drain(body: &mut Body) -> usize {
    let mut bytes = 0;
    while let Some(Some(Ok(frame))) = body.frame().now_or_never() {
        bytes += frame.into_data().unwrap().len();
    }
    bytes
}

fn headline() -> Event {
    Event::new("headline", "Bridge closed")
}

// -------------------------------------------------------------------------------------------------
// Values

#[tokio::test]
async fn exporter_serves_the_metrics_of_a_hub_over_http() {
    let port = free_port();
    let exporter = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets_for_metric(Matcher::Suffix("duration".into()), &[0.001, 0.1, 10.0])
        .unwrap()
        .with_http_listener(([127, 0, 0, 1], port));
    let (recorder, serve) = exporter.build().unwrap();
    let server = tokio::spawn(serve);
    let hub = with_local_recorder(&recorder, || Hub::builder().build().unwrap());

    let (mut first, mut second) = (open(&hub).await, open(&hub).await);
    let mut sent = drain(&mut first) + drain(&mut second);
    for _ in 0..3 {
        hub.topic("news").publish(headline()).await.unwrap();
        sent += drain(&mut first) + drain(&mut second);
    }
    hub.topic("").publish(headline()).await.unwrap_err();
    drop(first);
    let access = Public::topics(TopicFilter::any());
    let mut gap = request(&hub, access, Request::get("/").header("last-event-id", "nonsense")).await;
    sent += drain(&mut gap);
    let refuse = |_: StreamRequest| async { Err(Refusal::retry_later(RefusalReason::Busy)) };
    request(&hub, refuse, Request::get("/")).await;

    hub.record_metrics();
    let address = ([127, 0, 0, 1], port).into();
    // The exporter binds its port in its task.
    kit::soon(async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let text = get(address, "/metrics").await.text().await;
    let samples = parse(&text);
    for (name, value) in [
        ("sse_server_active_connections", 2.0),
        ("sse_server_connections_total", 3.0),
        ("sse_server_published_events_total", 3.0),
        ("sse_server_delivered_events_total", 6.0),
        ("sse_server_sent_bytes_total", sent as f64),
        ("sse_server_gaps_total{sse_gap_reason=\"invalid\"}", 1.0),
        ("sse_server_gaps_total{sse_gap_reason=\"lagged\"}", 0.0),
        ("sse_server_refusals_total{sse_refusal_reason=\"busy\"}", 1.0),
        ("sse_server_publish_errors_total{error_type=\"invalid\"}", 1.0),
        ("sse_server_publish_duration_seconds_count", 4.0),
        ("sse_server_publish_duration_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("sse_server_log_stale", 0.0),
        ("sse_server_log_peers", 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} in\n{text}");
    }
    let ended = "sse_server_connection_duration_seconds_count{sse_connection_status=\"normal_closure\",sse_connection_end_reason=\"client\"}";
    assert_eq!(samples.get(ended), Some(&1.0), "{text}");
    assert!(samples["sse_server_retained_bytes"] > 0.0, "{text}");
    assert!(text.contains("# TYPE sse_server_active_connections gauge\n"), "{text}");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn status_of_a_connection_follows_from_the_reason_of_its_end() {
    let (hub, handle) = build(Hub::builder());
    let page = hub.subscribe(Subscription::for_user("ada"), None).unwrap();
    let other = hub.subscribe(Subscription::for_user("ben"), None).unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    hub.drain(Duration::ZERO).await;
    drop((page, other));
    let samples = samples(&handle);
    let of = |suffix: &str, status: &str, reason: &str| {
        let labels = format!("sse_connection_status=\"{status}\",sse_connection_end_reason=\"{reason}\"");
        samples.get(&format!("sse_server_connection_duration_{suffix}{{{labels}}}")).copied()
    };
    assert_eq!(of("count", "normal_closure", "disconnected"), Some(1.0), "{samples:?}");
    assert_eq!(of("sum", "normal_closure", "disconnected"), Some(30.0), "{samples:?}");
    assert_eq!(of("count", "app_shutdown", "draining"), Some(1.0), "{samples:?}");
}

#[tokio::test]
async fn one_delivery_in_64_records_its_duration() {
    let (hub, handle) = build(Hub::builder());
    let mut page = open(&hub).await;
    drain(&mut page);
    let before = hub.position();
    for _ in 0..640 {
        hub.topic("news").publish(headline()).await.unwrap();
        drain(&mut page);
    }
    assert_eq!(samples(&handle)["sse_server_delivery_duration_count"], 10.0);
    // A stream that catches up reads events of an earlier time.
    let access = Public::topics(TopicFilter::any());
    let mut resumed =
        request(&hub, access, Request::get("/?topic=news").header("last-event-id", before.to_string())).await;
    let delivered = hub.stats().delivered;
    drain(&mut resumed);
    assert_eq!(hub.stats().delivered - delivered, 640);
    assert_eq!(samples(&handle)["sse_server_delivery_duration_count"], 10.0);
}

#[tokio::test(start_paused = true)]
async fn the_duration_of_a_delivery_begins_with_the_publication() {
    let (hub, handle) = build(Hub::builder());
    let mut page = open(&hub).await;
    drain(&mut page);
    for _ in 0..64 {
        hub.topic("news").publish(headline()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    drain(&mut page);
    let samples = samples(&handle);
    assert_eq!(samples["sse_server_delivery_duration_count"], 1.0, "one batch");
    assert_eq!(samples["sse_server_delivery_duration_sum"], 0.25);
}

#[tokio::test(start_paused = true)]
async fn a_replay_on_an_open_stream_records_no_duration() {
    let (hub, handle) = build(Hub::builder().topic_retention(Retention::latest_per_key()));
    for number in 0..128 {
        hub.topic("sport").publish(headline().key(number.to_string())).await.unwrap();
    }
    let user = Subscription::for_user("ada").topic("news");
    let mut page = request(&hub, move |_: StreamRequest| std::future::ready(Ok(user.clone())), Request::get("/")).await;
    drain(&mut page);
    tokio::time::sleep(Duration::from_secs(5)).await;
    hub.user("ada").join("sport").await.unwrap();
    drain(&mut page);
    assert_eq!(hub.stats().delivered, 128);
    assert_eq!(samples(&handle)["sse_server_delivery_duration_count"], 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_hub_brings_its_metrics_up_to_date_without_a_call() {
    let (hub, handle) = build(Hub::builder());
    let page = open(&hub).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(samples(&handle)["sse_server_active_connections"], 1.0);
    drop(page);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(samples(&handle)["sse_server_active_connections"], 0.0);
}

#[tokio::test]
async fn the_metrics_of_several_hubs_are_their_sum() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let build =
        || with_local_recorder(&recorder, || Hub::builder().topic_retention(Retention::replay()).build().unwrap());
    let (first, second) = (build(), build());
    let mut pages = vec![open(&first).await, open(&second).await, open(&second).await];
    for hub in [&first, &second] {
        hub.topic("news").publish(headline()).await.unwrap();
    }
    for page in &mut pages {
        drain(page);
    }
    first.record_metrics();
    second.record_metrics();
    second.record_metrics();
    let before = samples(&recorder.handle());
    assert_eq!(before["sse_server_active_connections"], 3.0);
    assert_eq!(before["sse_server_delivered_events"], 3.0);
    let of_first = first.stats().retained_bytes as f64;
    assert_eq!(before["sse_server_retained_bytes"], of_first + second.stats().retained_bytes as f64);

    drop(pages.drain(1..));
    drop(second);
    let after = samples(&recorder.handle());
    assert_eq!(after["sse_server_active_connections"], 1.0);
    assert_eq!(after["sse_server_retained_bytes"], of_first);
    assert_eq!(after["sse_server_connections"], 3.0, "a counter keeps the counts of a hub that has ended");
}

#[tokio::test]
async fn the_last_counts_of_a_hub_are_recorded_when_it_is_dropped() {
    let (hub, handle) = build(Hub::builder());
    drop(hub.subscribe(Subscription::for_user("ada"), None).unwrap());
    drop(hub);
    assert_eq!(samples(&handle)["sse_server_connections"], 1.0);
}

// -------------------------------------------------------------------------------------------------
// Publishers, runs and the shared log

#[tokio::test]
async fn publishers_and_writers_of_runs_record_what_they_publish() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let log = Memory::new();
    let (hub, publisher) =
        with_local_recorder(&recorder, || (Hub::builder().build().unwrap(), Publisher::new(log.clone()).unwrap()));
    publisher.topic("news").publish(headline()).await.unwrap();
    publisher.topic("").publish(headline()).await.unwrap_err();
    let writer = hub.run("imports/7").begin().await.unwrap();
    writer.publish_many([headline(), headline()]).await.unwrap();
    let other = hub.run("imports/8").begin().await.unwrap();
    hub.drain(Duration::ZERO).await;
    other.publish(headline()).await.unwrap_err();
    hub.topic("news").publish(headline()).await.unwrap_err();
    let samples = samples(&recorder.handle());
    assert_eq!(samples["sse_server_published_events"], 3.0);
    assert_eq!(samples["sse_server_publish_errors{error_type=\"invalid\"}"], 1.0);
    assert_eq!(samples["sse_server_publish_errors{error_type=\"rejected\"}"], 2.0);
    assert_eq!(samples["sse_server_publish_duration_count"], 5.0);
}

#[tokio::test]
async fn a_call_without_events_records_no_publish() {
    let (hub, handle) = build(Hub::builder());
    let count = || samples(&handle)["sse_server_publish_duration_count"];
    let begin = async |name: &str| hub.run(name).begin().await.unwrap();
    begin("imports/7").await.finish().await.unwrap();
    begin("imports/8").await.fail("interrupted").await.unwrap();
    begin("imports/9").await.publish_many([]).await.unwrap();
    assert!(hub.publish_many([]).await.is_empty());
    assert_eq!(count(), 0.0);
    begin("imports/10").await.finish_with(headline()).await.unwrap();
    assert_eq!(count(), 1.0);
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_shows_in_the_metrics() {
    let nowhere = Redis::new(&format!("redis://127.0.0.1:{}", free_port()), "metrics").unwrap();
    let (hub, handle) = build(Hub::builder().backplane(nowhere).publish_timeout(Duration::from_millis(200)));
    hub.topic("news").publish(headline()).await.unwrap_err();
    drain(&mut open(&hub).await);
    // Without a call of `record_metrics`.
    until(|| {
        let samples = samples(&handle);
        samples["sse_server_log_stale"] == 1.0 && samples["sse_server_refusals{sse_refusal_reason=\"starting\"}"] == 1.0
    })
    .await;
    let failed = samples(&handle);
    assert_eq!(failed["sse_server_publish_duration_count"], 1.0);
    let errors = |kind: &str| failed[&format!("sse_server_publish_errors{{error_type=\"{kind}\"}}")];
    assert_eq!(errors("unavailable") + errors("unknown"), 1.0, "{failed:?}");
}

#[tokio::test]
async fn peers_are_the_other_instances() {
    let log = Memory::new();
    let (first, handle) = build(Hub::builder().backplane(log.clone()));
    let second = Hub::builder().backplane(log).build().unwrap();
    let _pages = (open(&first).await, open(&second).await);
    until(|| {
        first.record_metrics();
        samples(&handle)["sse_server_log_peers"] == 1.0
    })
    .await;
    second.topic("news").publish(headline()).await.unwrap();
    until(|| samples(&handle)["sse_server_log_delay_count"] == 1.0).await;
}

#[tokio::test]
async fn a_publish_whose_future_is_dropped_is_unknown() {
    let nowhere = Redis::new(&format!("redis://127.0.0.1:{}", free_port()), "metrics").unwrap();
    let (hub, handle) = build(Hub::builder().backplane(nowhere));
    assert!(hub.topic("news").publish(headline()).now_or_never().is_none());
    let samples = samples(&handle);
    assert_eq!(samples["sse_server_publish_errors{error_type=\"unknown\"}"], 1.0);
    assert_eq!(samples["sse_server_publish_duration_count"], 1.0);
}

#[tokio::test]
async fn last_event_of_a_publishers_run_counts() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let publisher = Publisher::new(Memory::new()).unwrap();
    let run = with_local_recorder(&recorder, || publisher.run("imports/7"));
    let writer = run.begin().await.unwrap();
    writer.finish_with(headline()).await.unwrap();
    let samples = samples(&recorder.handle());
    assert_eq!(samples["sse_server_published_events"], 1.0);
}

// -------------------------------------------------------------------------------------------------
// The table of docs/metrics.md

/// The kind and the unit of each metric, by name.
type Kinds = BTreeMap<String, (&'static str, Option<Unit>)>;

/// A recorder that keeps the descriptions.
#[derive(Clone, Default)]
struct Descriptions(Arc<Mutex<Kinds>>);

impl Descriptions {
    fn add(&self, name: &KeyName, kind: &'static str, unit: Option<Unit>) {
        self.0.lock().unwrap().insert(name.as_str().to_owned(), (kind, unit));
    }
}

impl Recorder for Descriptions {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.add(&name, "counter", unit);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.add(&name, "gauge", unit);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.add(&name, "histogram", unit);
    }
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn the_document_lists_every_metric_with_its_kind_and_unit() {
    let descriptions = Descriptions::default();
    drop(with_local_recorder(&descriptions, || Hub::builder().build().unwrap()));
    let unit = |unit: &Option<Unit>| match unit {
        Some(Unit::Seconds) => "s",
        Some(Unit::Bytes) => "By",
        _ => "",
    };
    let described: BTreeMap<_, _> =
        descriptions.0.lock().unwrap().iter().map(|(name, (kind, of))| (name.clone(), (*kind, unit(of)))).collect();
    let document = include_str!("../docs/metrics.md");
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix("| `sse.server.")?.split('|').map(str::trim);
        let name = format!("sse.server.{}", cells.next()?.trim_end_matches('`'));
        let (kind, unit) = (cells.next()?, cells.next()?);
        Some((name, (kind, if unit.starts_with('{') { "" } else { unit })))
    };
    let documented: BTreeMap<_, _> = document.lines().filter_map(row).collect();
    assert_eq!(documented, described);
}
