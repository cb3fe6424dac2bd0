//! The example `progress`: the page of a run, during the run and after its end.

use std::time::Duration;

use serde_json::json;
use tower_sse::{Event, Hub, RunState, RunWriter};

use crate::driver::{Page, browser};
use crate::kit::{Server, until};
use crate::progress_example::app;

const TOO_LATE: &str = "document.querySelector('#text').value === 'This computation is not known any more.'";

/// Publishes the percentages, as the example does.
async fn advance(writer: &RunWriter, percents: impl IntoIterator<Item = u32>) {
    for percent in percents {
        writer.publish(Event::new("progress", percent.to_string())).await.unwrap();
    }
}

async fn shows(page: &Page, percent: u32, text: &str) {
    page.until(&format!(
        "document.querySelector('#bar').value === {percent} && document.querySelector('#text').value === '{text}'"
    ))
    .await;
}

async fn start(hub: &Hub) -> (Server, String) {
    let server = Server::start(hub, app(hub)).await;
    let url = format!("http://{}/#seven", server.addr);
    (server, url)
}

fn hub() -> Hub {
    Hub::builder().retry(Duration::from_millis(100)).build().unwrap()
}

#[tokio::test]
async fn the_bar_grows_to_its_end_and_the_stream_is_closed() {
    let Some(browser) = browser() else { return };
    let hub = hub();
    let (server, _) = start(&hub).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&format!("http://{}/", server.addr)).await;
    page.eval(
        "globalThis.values = [];
         new MutationObserver(() => values.push(document.querySelector('#bar').value))
             .observe(document.querySelector('#bar'), { attributeFilter: ['value'] })",
    )
    .await;
    page.click("#start").await;
    shows(&page, 100, "78498 primes below 1000000").await;
    let values: Vec<u32> = serde_json::from_value(page.eval("values").await).unwrap();
    assert!(values.is_sorted() && values.len() > 10, "{values:?}");
    page.until("events.readyState === EventSource.CLOSED").await;
    until(|| hub.stats().connections == 0).await;
    shows(&page, 100, "78498 primes below 1000000").await;
}

#[tokio::test]
async fn a_page_that_is_reloaded_during_the_run_shows_its_progress_and_its_end() {
    let Some(browser) = browser() else { return };
    let hub = hub();
    let (_server, url) = start(&hub).await;
    let writer = hub.run("jobs/seven").begin().await.unwrap();
    advance(&writer, [20, 40]).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&url).await;
    shows(&page, 40, "computation seven: 40 %").await;
    page.call("reload", json!([])).await;
    shows(&page, 40, "computation seven: 40 %").await;
    advance(&writer, [60, 100]).await;
    writer.finish_with(Event::new("result", "25 primes below 100")).await.unwrap();
    shows(&page, 100, "25 primes below 100").await;
}

#[tokio::test]
async fn a_page_that_is_reloaded_after_the_end_shows_the_result() {
    let Some(browser) = browser() else { return };
    let hub = hub();
    let (_server, url) = start(&hub).await;
    let writer = hub.run("jobs/seven").begin().await.unwrap();
    advance(&writer, [50, 100]).await;
    writer.finish_with(Event::new("result", "25 primes below 100")).await.unwrap();
    let context = browser.context(json!({})).await;
    let page = context.page(&url).await;
    shows(&page, 100, "25 primes below 100").await;
    page.call("reload", json!([])).await;
    shows(&page, 100, "25 primes below 100").await;
    page.until("events.readyState === EventSource.CLOSED").await;
}

/// The connection may break between the result and the end of the run. A page that then asked again
/// would receive `204`, and would replace the result.
#[tokio::test]
async fn a_page_closes_its_stream_at_the_result() {
    let Some(browser) = browser() else { return };
    let hub = hub();
    let (_server, url) = start(&hub).await;
    let writer = hub.run("jobs/seven").begin().await.unwrap();
    let context = browser.context(json!({})).await;
    let page = context.page(&url).await;
    writer.publish(Event::new("result", "25 primes below 100")).await.unwrap();
    page.until("events.readyState === EventSource.CLOSED").await;
    shows(&page, 0, "25 primes below 100").await;
    writer.finish().await.unwrap();
}

#[tokio::test]
async fn a_page_shows_that_its_computation_was_interrupted() {
    let Some(browser) = browser() else { return };
    let hub = hub();
    let (_server, url) = start(&hub).await;
    let interrupted = Event::new("failed", "The computation was interrupted.");
    let writer = hub.run("jobs/seven").begin().last_will(interrupted).await.unwrap();
    advance(&writer, [50]).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&url).await;
    shows(&page, 50, "computation seven: 50 %").await;
    drop(writer);
    shows(&page, 50, "The computation was interrupted.").await;
}

#[tokio::test]
async fn a_page_that_comes_too_late_shows_that_the_computation_is_not_known() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().run_keep_for(Duration::from_millis(10)).build().unwrap();
    let (_server, url) = start(&hub).await;
    let writer = hub.run("jobs/seven").begin().await.unwrap();
    writer.finish_with(Event::new("result", "25 primes below 100")).await.unwrap();
    while hub.run("jobs/seven").state().await.unwrap() != RunState::None {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let context = browser.context(json!({})).await;
    context.page(&url).await.until(TOO_LATE).await;
}
