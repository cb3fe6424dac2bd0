//! The browser's own `EventSource` reconnects by itself, except where the server stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use serde_json::json;
use tower_sse::{Disconnect, Event, Hub, HubBuilder, Refusal, RefusalReason, StreamRequest, Subscription};

use crate::driver::browser;
use crate::kit::broker::{Broker as _, REQUEST_LIMIT};
use crate::kit::until;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};
use crate::site::{Site, public_stream};
use crate::source::{CLOSED, CONNECTING};

fn quick() -> HubBuilder {
    Hub::builder().retry(Duration::from_millis(150))
}

async fn publish(hub: &Hub, data: impl ToString) {
    hub.topic("news").publish(Event::new("news", data.to_string())).await.unwrap();
}

#[tokio::test]
async fn after_a_restart_without_a_broker_the_page_receives_one_gap() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    publish(&hub, "before").await;
    source.saw("news", 1).await;
    let last = source.all("news").await.pop().unwrap().id.unwrap();
    let addr = site.shut_down().await;

    let hub = quick().build().unwrap();
    let site = Site::start_at(addr, &hub, public_stream(&hub)).await;
    source.saw("hub.live", 2).await;
    publish(&hub, "after").await;
    source.saw("news", 2).await;
    assert_eq!(source.data("news").await, ["before", "after"]);
    assert_eq!(site.requests()[0].header("last-event-id"), Some(&*last));
    let gaps = source.all("hub.gap").await;
    assert_eq!((gaps.len(), &gaps[0].json()["reason"]), (1, &json!("epoch")));
    // A page that shows the state of its stream relies on this order.
    let names = source.names().await;
    let own: Vec<_> = names.iter().filter(|name| !["open", "error"].contains(&name.as_str())).collect();
    assert_eq!(
        own,
        ["hub.hello", "hub.live", "news", "hub.bye", "hub.hello", "hub.gap", "hub.live", "news"],
        "{names:?}"
    );

    // A disconnect without a restart is no gap.
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    source.saw("hub.live", 3).await;
    assert_eq!(source.all("hub.gap").await.len(), 1);
}

#[tokio::test]
async fn with_redis_each_event_arrives_once_and_in_order_across_restarts_and_breaks() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let shared = || quick().publish_timeout(REQUEST_LIMIT).backplane(redis.log("browser"));
    let start = async || {
        let hub = shared().build().unwrap();
        until(|| hub.is_ready()).await;
        hub
    };
    let hub = start().await;
    let mut site = Site::start(&hub, public_stream(&hub)).await;
    let network = Proxy::start(site.addr.port()).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&format!("http://127.0.0.1:{}/", network.port)).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;

    // The worker publishes whether or not a page is connected.
    let publisher = shared().publisher().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let worker = tokio::spawn({
        let count = Arc::clone(&count);
        async move {
            loop {
                let number = count.load(Ordering::Relaxed) + 1;
                publisher.topic("news").publish(Event::new("news", number.to_string())).await.unwrap();
                count.store(number, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let more = async || {
        let enough = count.load(Ordering::Relaxed) + 20;
        until(|| count.load(Ordering::Relaxed) >= enough).await;
    };
    for round in 1..=2 {
        more().await;
        let addr = site.shut_down().await;
        more().await;
        let hub = start().await;
        site = Site::start_at(addr, &hub, public_stream(&hub)).await;
        source.saw("hub.live", 2 * round).await;
        more().await;
        network.set(Mode::Resets);
        more().await;
        network.set(Mode::Passes);
        source.saw("hub.live", 2 * round + 1).await;
    }
    worker.abort();
    // The aborted publish may still have been appended.
    shared().publisher().unwrap().topic("news").publish(Event::new("news", "last")).await.unwrap();
    page.until(r#"streams[0].log.at(-1).data === "last""#).await;
    let numbers = source.data("news").await;
    let count = numbers.len() - 1;
    let expected: Vec<String> = (1..=count).map(|number| number.to_string()).chain(["last".to_owned()]).collect();
    assert_eq!(numbers, expected);
    assert!(count >= 160, "{count}");
    assert!(source.all("hub.gap").await.is_empty());
}

/// Chromium's own reconnect delay, in milliseconds.
const DEFAULT_DELAY: f64 = 3000.0;
/// The timer starts up to this many milliseconds before the `error` event.
const TIMER_LEAD: f64 = 20.0;

#[tokio::test]
async fn an_event_source_waits_for_the_time_of_retry() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let network = Proxy::start(site.addr.port()).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&format!("http://127.0.0.1:{}/", network.port)).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;

    let waits_after_break = async |nth: usize| {
        let before = source.all("error").await.len();
        network.set(Mode::Resets);
        source.saw("error", before + 1).await;
        network.set(Mode::Passes);
        source.saw("hub.live", nth + 1).await;
        let (errors, opens) = (source.all("error").await, source.all("open").await);
        assert_eq!(opens.len(), nth + 1);
        assert!(errors[before..].iter().all(|error| error.state == CONNECTING));
        // On a busy machine the page may have tried once more during the break, so the wait counts
        // from the last error.
        opens[nth].at - errors.last().unwrap().at
    };
    // `hub.hello` sets a delay that is shorter than the default of the browser.
    let waited = waits_after_break(1).await;
    assert!((150.0 - TIMER_LEAD..DEFAULT_DELAY).contains(&waited), "{waited}");
    // An event of the application sets another delay, which holds until a stream sets a new one.
    hub.topic("news").publish(Event::new("news", "wait").retry(Duration::from_millis(900))).await.unwrap();
    source.saw("news", 1).await;
    let waited = waits_after_break(2).await;
    assert!(waited > 900.0 - TIMER_LEAD, "{waited}");
    // `hub.bye` sets the delay.
    hub.user("ada").disconnect(Disconnect::reconnect_after(Duration::from_millis(700))).await.unwrap();
    source.saw("hub.live", 4).await;
    let waited = source.all("open").await[3].at - source.all("error").await.last().unwrap().at;
    assert!(waited > 700.0 - TIMER_LEAD, "{waited}");
}

#[tokio::test]
async fn status_204_stops_an_event_source_for_good() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let app = public_stream(&hub).route_service("/never", hub.endpoint(async |_: StreamRequest| Err(Refusal::gone())));
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;

    let never = page.listen("/never", &[]).await;
    never.reaches(CLOSED).await;
    assert_eq!(never.names().await, ["error"]);

    // A page that ignores `hub.bye` reconnects with its id, and gets `204`.
    let source = page.listen("/events", &[]).await;
    source.saw("hub.live", 1).await;
    hub.user("ada").disconnect(Disconnect::block_for(Duration::from_secs(60)).note("signed out")).await.unwrap();
    source.reaches(CLOSED).await;
    assert_eq!(source.names().await, ["open", "hub.hello", "hub.live", "hub.bye", "error", "error"]);
    let goodbye = source.all("hub.bye").await.pop().unwrap();
    assert_eq!(goodbye.json(), json!({ "reason": "disconnected", "reconnect": "never", "note": "signed out" }));
    let states: Vec<u64> = source.all("error").await.iter().map(|error| error.state).collect();
    assert_eq!(states, [CONNECTING, CLOSED]);
    let requests = site.requests();
    assert_eq!((requests.len(), requests[1].header("last-event-id")), (2, goodbye.id.as_deref()));
    assert!(goodbye.id.unwrap().starts_with("0."));
}

#[tokio::test]
async fn a_retryable_refusal_keeps_an_event_source_alive_and_a_status_does_not() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let busy_twice = move |_: StreamRequest| {
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        let soon = Duration::from_millis(100);
        async move {
            if turn < 2 {
                return Err(Refusal::retry_later(RefusalReason::Busy).retry(soon));
            }
            Ok(Subscription::anonymous().topic("news"))
        }
    };
    let app = Router::new()
        .route_service("/events", hub.endpoint(busy_twice))
        .route_service("/401", hub.endpoint(async |_: StreamRequest| Err(Refusal::unauthorized())))
        .route_service("/403", hub.endpoint(async |_: StreamRequest| Err(Refusal::forbidden())))
        .route_service("/400", hub.endpoint(async |_: StreamRequest| Ok(Subscription::anonymous().topic("\n"))))
        .route_service("/500", hub.endpoint(async |_: StreamRequest| panic!("on purpose")));
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;

    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    publish(&hub, "in the end").await;
    source.saw("news", 1).await;
    let refused = ["open", "hub.refused", "error"];
    let served = ["open", "hub.hello", "hub.live", "news"];
    assert_eq!(source.names().await, [&refused[..], &refused, &served].concat());
    for refusal in source.all("hub.refused").await {
        assert_eq!(refusal.json()["reason"], "busy");
    }
    assert!(source.all("error").await.iter().all(|error| error.state == CONNECTING));

    for status in ["/401", "/403", "/400", "/500", "/404"] {
        let source = page.listen(status, &[]).await;
        source.reaches(CLOSED).await;
        assert_eq!(source.names().await, ["error"], "{status}");
        assert_eq!(site.record.of(status).len(), 1, "{status}");
    }
}
