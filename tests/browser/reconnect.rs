//! The browser's own `EventSource` comes back by itself, or stays away where it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use serde_json::json;
use tower_sse::backplane::Redis;
use tower_sse::{Disconnect, Event, Hub, HubBuilder, Refusal, RefusalReason, StreamRequest, Subscription};

use crate::driver::browser;
use crate::kit::until;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};
use crate::site::{Site, everybody};
use crate::source::{CLOSED, CONNECTING};

fn quick() -> HubBuilder {
    Hub::builder().retry(Duration::from_millis(150))
}

async fn publish(hub: &Hub, data: impl ToString) {
    hub.topic("news").publish(Event::new("news", data.to_string())).await.unwrap();
}

#[tokio::test]
async fn after_a_restart_a_log_in_memory_is_gone_and_the_page_hears_so_once() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, everybody(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    publish(&hub, "before").await;
    source.saw("news", 1).await;
    let last = source.all("news").await.pop().unwrap().id.unwrap();
    let addr = site.leave().await;

    let hub = quick().build().unwrap();
    let site = Site::start_at(addr, &hub, everybody(&hub)).await;
    source.saw("hub.live", 2).await;
    publish(&hub, "after").await;
    source.saw("news", 2).await;
    assert_eq!(source.data("news").await, ["before", "after"]);
    assert_eq!(site.asked()[0].header("last-event-id"), Some(&*last));
    let gaps = source.all("hub.gap").await;
    assert_eq!((gaps.len(), &gaps[0].json()["reason"]), (1, &json!("epoch")));
    // In this order, for one that shows its state to a person.
    let names = source.names().await;
    let own: Vec<_> = names.iter().filter(|name| !["open", "error"].contains(&name.as_str())).collect();
    assert_eq!(
        own,
        ["hub.hello", "hub.live", "news", "hub.bye", "hub.hello", "hub.gap", "hub.live", "news"],
        "{names:?}"
    );

    // The next break is no restart.
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    source.saw("hub.live", 3).await;
    assert_eq!(source.all("hub.gap").await.len(), 1);
}

#[tokio::test]
async fn with_redis_each_number_comes_once_and_in_order_through_restarts_and_breaks() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let shared = || quick().backplane(Redis::new(&redis.url(), "browser").unwrap());
    let start = async || {
        let hub = shared().build().unwrap();
        until(|| hub.is_ready()).await;
        hub
    };
    let hub = start().await;
    let mut site = Site::start(&hub, everybody(&hub)).await;
    let network = Proxy::start(site.addr.port()).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&format!("http://127.0.0.1:{}/", network.port)).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;

    // A worker that does not care who is there to listen.
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
        let addr = site.leave().await;
        more().await;
        let hub = start().await;
        site = Site::start_at(addr, &hub, everybody(&hub)).await;
        source.saw("hub.live", 2 * round).await;
        more().await;
        network.set(Mode::Resets);
        more().await;
        network.set(Mode::Passes);
        source.saw("hub.live", 2 * round + 1).await;
    }
    worker.abort();
    // An append that was on its way may have gone through.
    shared().publisher().unwrap().topic("news").publish(Event::new("news", "last")).await.unwrap();
    page.until(r#"streams[0].log.at(-1).data === "last""#).await;
    let numbers = source.data("news").await;
    let count = numbers.len() - 1;
    let expected: Vec<String> = (1..=count).map(|number| number.to_string()).chain(["last".to_owned()]).collect();
    assert_eq!(numbers, expected);
    assert!(count >= 160, "{count}");
    assert!(source.all("hub.gap").await.is_empty());
}

/// What Chromium waits where nobody says anything, in milliseconds.
const BY_ITSELF: f64 = 3000.0;
/// Its timer begins before script hears of the error.
const EARLIER: f64 = 20.0;

#[tokio::test]
async fn the_page_waits_as_long_as_it_is_told_and_not_as_long_as_it_would_by_itself() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let site = Site::start(&hub, everybody(&hub)).await;
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
        // On a busy machine it may have tried once more while the network was away: each wait counts from the error before it.
        opens[nth].at - errors.last().unwrap().at
    };
    // By the first event of the stream: shorter than by itself, and all that follows is longer than that.
    let waited = waits_after_break(1).await;
    assert!((150.0 - EARLIER..BY_ITSELF).contains(&waited), "{waited}");
    // By an event of the application, until a stream says something else.
    hub.topic("news").publish(Event::new("news", "wait").retry(Duration::from_millis(900))).await.unwrap();
    source.saw("news", 1).await;
    let waited = waits_after_break(2).await;
    assert!(waited > 900.0 - EARLIER, "{waited}");
    // By the last event of a stream.
    hub.user("ada").disconnect(Disconnect::reconnect_after(Duration::from_millis(700))).await.unwrap();
    source.saw("hub.live", 4).await;
    let waited = source.all("open").await[3].at - source.all("error").await.last().unwrap().at;
    assert!(waited > 700.0 - EARLIER, "{waited}");
}

#[tokio::test]
async fn a_204_stops_it_for_good() {
    let Some(browser) = browser() else { return };
    let hub = quick().build().unwrap();
    let app = everybody(&hub).route_service("/never", hub.endpoint(async |_: StreamRequest| Err(Refusal::gone())));
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;

    let never = page.listen("/never", &[]).await;
    never.comes_to(CLOSED).await;
    assert_eq!(never.names().await, ["error"]);

    // A page that does not heed `hub.bye` comes back with the id that this left, and is told again.
    let source = page.listen("/events", &[]).await;
    source.saw("hub.live", 1).await;
    hub.user("ada").disconnect(Disconnect::block_for(Duration::from_secs(60)).note("signed out")).await.unwrap();
    source.comes_to(CLOSED).await;
    assert_eq!(source.names().await, ["open", "hub.hello", "hub.live", "hub.bye", "error", "error"]);
    let bye = source.all("hub.bye").await.pop().unwrap();
    assert_eq!(bye.json(), json!({ "reason": "disconnected", "reconnect": "never", "note": "signed out" }));
    let states: Vec<u64> = source.all("error").await.iter().map(|error| error.state).collect();
    assert_eq!(states, [CONNECTING, CLOSED]);
    let asked = site.asked();
    assert_eq!((asked.len(), asked[1].header("last-event-id")), (2, bye.id.as_deref()));
    assert!(bye.id.unwrap().starts_with("0."));
}

#[tokio::test]
async fn a_soft_refusal_keeps_it_alive_and_a_status_does_not() {
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
        source.comes_to(CLOSED).await;
        assert_eq!(source.names().await, ["error"], "{status}");
        assert_eq!(site.record.of(status).len(), 1, "{status}");
    }
}
