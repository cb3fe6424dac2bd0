//! The back/forward cache: a page that the browser restores keeps its state, and its stream
//! continues.

use std::time::Duration;

use serde_json::json;
use tower_sse::{Disconnect, Event, Hub};

use crate::driver::{Page, browser};
use crate::kit::until;
use crate::site::{Site, public_stream};

async fn publish(hub: &Hub, data: &'static str) {
    hub.user("ada").publish(Event::new("news", data)).await.unwrap();
}

async fn navigate_away(page: &Page, site: &Site) {
    page.eval("addEventListener('pageshow', event => { globalThis.persisted = event.persisted; })").await;
    page.call("goto", json!([format!("{}other", site.url())])).await;
    assert_eq!(page.eval("streams.length").await, 0);
}

async fn navigate_back(page: &Page) {
    page.eval("void setTimeout(() => history.back())").await;
    page.until("globalThis.persisted !== undefined").await;
    assert_eq!(page.eval("[location.pathname, persisted]").await, json!(["/", true]));
}

#[tokio::test]
async fn a_page_from_the_back_forward_cache_receives_the_events_of_its_absence() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().retry(Duration::from_millis(100)).build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    navigate_away(&page, &site).await;
    publish(&hub, "away 1").await;
    publish(&hub, "away 2").await;
    navigate_back(&page).await;
    publish(&hub, "back").await;
    source.saw("news", 3).await;
    assert_eq!(source.data("news").await, ["away 1", "away 2", "back"]);
    assert!(source.all("hub.gap").await.is_empty());
}

#[tokio::test]
async fn a_stream_that_ended_in_the_back_forward_cache_reconnects_and_misses_no_event() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().retry(Duration::from_millis(100)).build().unwrap();
    let site = Site::start(&hub, public_stream(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    publish(&hub, "before").await;
    source.saw("news", 1).await;
    navigate_away(&page, &site).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    until(|| hub.stats().connections == 0).await;
    publish(&hub, "away").await;
    // A page in the cache sends no request.
    assert_eq!(site.requests().len(), 1);
    navigate_back(&page).await;
    source.saw("hub.live", 2).await;
    publish(&hub, "back").await;
    source.saw("news", 3).await;
    assert_eq!(source.data("news").await, ["before", "away", "back"]);
    assert!(source.all("hub.gap").await.is_empty());
    let last = source.all("news").await[0].id.clone();
    assert_eq!(site.requests()[1].header("last-event-id"), last.as_deref());
}
