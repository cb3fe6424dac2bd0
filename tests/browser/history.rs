//! Back and forward: a page that comes out of the browser's cache is as it was, and its stream goes on.

use std::time::Duration;

use serde_json::json;
use tower_sse::{Disconnect, Event, Hub};

use crate::driver::{Page, browser};
use crate::kit::until;
use crate::site::{Site, everybody};

async fn publish(hub: &Hub, data: &'static str) {
    hub.user("ada").publish(Event::new("news", data)).await.unwrap();
}

async fn go_away(page: &Page, site: &Site) {
    page.eval("addEventListener('pageshow', event => { globalThis.persisted = event.persisted; })").await;
    page.call("goto", json!([format!("{}other", site.url())])).await;
    assert_eq!(page.eval("streams.length").await, 0);
}

async fn come_back(page: &Page) {
    page.eval("void setTimeout(() => history.back())").await;
    page.until("globalThis.persisted !== undefined").await;
    assert_eq!(page.eval("[location.pathname, persisted]").await, json!(["/", true]));
}

#[tokio::test]
async fn what_came_while_it_was_away_is_there_when_it_is_back() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().retry(Duration::from_millis(100)).build().unwrap();
    let site = Site::start(&hub, everybody(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    go_away(&page, &site).await;
    publish(&hub, "away 1").await;
    publish(&hub, "away 2").await;
    come_back(&page).await;
    publish(&hub, "back").await;
    source.saw("news", 3).await;
    assert_eq!(source.data("news").await, ["away 1", "away 2", "back"]);
    assert!(source.all("hub.gap").await.is_empty());
}

#[tokio::test]
async fn a_stream_that_ended_meanwhile_comes_back_with_the_page_and_misses_nothing() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().retry(Duration::from_millis(100)).build().unwrap();
    let site = Site::start(&hub, everybody(&hub)).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&site.url()).await;
    let source = page.listen("/events", &["news"]).await;
    source.saw("hub.live", 1).await;
    publish(&hub, "before").await;
    source.saw("news", 1).await;
    go_away(&page, &site).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    until(|| hub.stats().connections == 0).await;
    publish(&hub, "away").await;
    // It does nothing while it is away.
    assert_eq!(site.asked().len(), 1);
    come_back(&page).await;
    source.saw("hub.live", 2).await;
    publish(&hub, "back").await;
    source.saw("news", 3).await;
    assert_eq!(source.data("news").await, ["before", "away", "back"]);
    assert!(source.all("hub.gap").await.is_empty());
    let last = source.all("news").await[0].id.clone();
    assert_eq!(site.asked()[1].header("last-event-id"), last.as_deref());
}
