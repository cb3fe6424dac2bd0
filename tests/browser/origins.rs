//! Pages of other origins: a listed origin sends its cookies without a preflight, and any other
//! origin receives no stream.

use std::time::Duration;

use axum::Router;
use http::Method;
use serde_json::json;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_sse::{Disconnect, Event, Hub, Refusal, StreamRequest, Subscription};

use crate::driver::browser;
use crate::site::{Site, public_stream};
use crate::source::{CLOSED, CONNECTING};

/// A CORS layer that allows every origin with credentials. So every refusal is a refusal of the
/// hub.
fn permissive() -> CorsLayer {
    CorsLayer::new().allow_origin(AllowOrigin::mirror_request()).allow_credentials(true)
}

async fn by_cookie(request: StreamRequest) -> Result<Subscription, Refusal> {
    let cookie = request.headers().get("cookie").and_then(|cookie| cookie.to_str().ok());
    let user = cookie.and_then(|cookie| cookie.strip_prefix("user=")).ok_or(Refusal::unauthorized())?;
    Ok(Subscription::for_user(user))
}

fn quick(origin: &str) -> Hub {
    Hub::builder().retry(Duration::from_millis(100)).allow_cross_origin(origin).build().unwrap()
}

/// A site that only serves the page.
async fn front_end() -> Site {
    let hub = Hub::builder().build().unwrap();
    Site::start(&hub, public_stream(&hub)).await
}

fn origin(site: &Site) -> String {
    format!("http://{}", site.addr)
}

#[tokio::test]
async fn a_page_of_a_listed_origin_sends_cookies_and_reconnects_without_a_preflight() {
    let Some(browser) = browser() else { return };
    let pages = front_end().await;
    let hub = quick(&origin(&pages));
    let app = Router::new().route_service("/events", hub.endpoint(by_cookie)).layer(permissive());
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&pages.url()).await;
    // Cookies apply to a host on every port.
    page.eval("document.cookie = 'user=ada'").await;
    let url = format!("{}events", site.url());

    let source = page.listen_as(&url, &["news"], json!({ "withCredentials": true })).await;
    source.saw("hub.live", 1).await;
    hub.user("ada").publish(Event::new("news", "one")).await.unwrap();
    source.saw("news", 1).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    source.saw("error", 1).await;
    hub.user("ada").publish(Event::new("news", "two")).await.unwrap();
    source.saw("news", 2).await;
    assert_eq!(source.data("news").await, ["one", "two"]);
    assert!(source.all("hub.gap").await.is_empty());
    assert_eq!(source.all("news").await[0].origin.as_deref(), Some(&*origin(&site)));

    let requests = site.requests();
    assert!(requests.iter().all(|request| request.method == Method::GET), "a preflight");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("origin"), Some(&*origin(&pages)));
    assert_eq!(requests[1].header("sec-fetch-site"), Some("same-site"));
    assert_eq!(requests[1].header("cookie"), Some("user=ada"));
    let last = source.all("news").await[0].id.clone();
    assert_eq!(requests[1].header("last-event-id"), last.as_deref());

    // Without credentials the request has no cookie.
    let source = page.listen(&url, &[]).await;
    source.reaches(CLOSED).await;
    assert_eq!(source.names().await, ["error"]);
    assert_eq!(site.requests()[2].header("cookie"), None);
}

#[tokio::test]
async fn a_page_of_another_site_reconnects_without_a_preflight() {
    let Some(browser) = browser() else { return };
    let pages = front_end().await;
    let elsewhere = format!("http://localhost:{}", pages.addr.port());
    let hub = quick(&elsewhere);
    let site = Site::start(&hub, public_stream(&hub).layer(permissive())).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&format!("{elsewhere}/")).await;
    let source = page.listen(&format!("{}events", site.url()), &["news"]).await;
    source.saw("hub.live", 1).await;
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    source.saw("hub.live", 2).await;
    let requests = site.requests();
    assert!(requests.len() == 2 && requests.iter().all(|request| request.method == Method::GET), "a preflight");
    assert_eq!(requests[1].header("sec-fetch-site"), Some("cross-site"));
    assert!(requests[1].header("last-event-id").is_some());
    assert_eq!(source.all("error").await[0].state, CONNECTING);
}

#[tokio::test]
async fn an_origin_that_is_not_listed_receives_no_event_with_a_permissive_cors_layer() {
    let Some(browser) = browser() else { return };
    let (pages, listed) = (front_end().await, front_end().await);
    let hub = quick(&origin(&listed));
    let app = Router::new().route_service("/events", hub.endpoint(by_cookie)).layer(permissive());
    let site = Site::start(&hub, app).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&pages.url()).await;
    page.eval("document.cookie = 'user=ada'").await;
    let url = format!("{}events", site.url());

    let source = page.listen_as(&url, &["news"], json!({ "withCredentials": true })).await;
    source.reaches(CLOSED).await;
    assert_eq!(source.names().await, ["error"]);
    // The request had the cookie of the user, and the hub refused it.
    assert_eq!(site.requests()[0].header("cookie"), Some("user=ada"));
    let fetched = format!(
        "fetch({}, {{ credentials: 'include' }}).then(async reply => [reply.status, await reply.text()])",
        json!(url)
    );
    assert_eq!(page.eval(&fetched).await, json!([403, "the origin of this page is not allowed\n"]));
    assert_eq!(hub.stats().connected, 0);
}

#[tokio::test]
async fn an_id_in_a_header_of_a_script_needs_a_preflight_and_an_id_in_the_query_none() {
    let Some(browser) = browser() else { return };
    let pages = front_end().await;
    let hub = quick(&origin(&pages));
    let site = Site::start(&hub, public_stream(&hub).layer(permissive())).await;
    let context = browser.context(json!({})).await;
    let page = context.page(&pages.url()).await;
    let url = format!("{}events", site.url());
    let id = hub.position().to_string();
    hub.user("ada").publish(Event::new("news", "missed")).await.unwrap();

    // This CORS layer allows no headers, so the preflight fails.
    let with_header = format!(
        "fetch({}, {{ headers: {{ 'last-event-id': {} }} }}).then(() => 'read', error => error.name)",
        json!(url),
        json!(id)
    );
    assert_eq!(page.eval(&with_header).await, "TypeError");
    let methods = || site.requests().into_iter().map(|request| request.method).collect::<Vec<_>>();
    assert_eq!(methods(), [Method::OPTIONS]);

    let source = page.listen(&format!("{url}?last_event_id={id}"), &["news"]).await;
    source.saw("hub.live", 1).await;
    assert_eq!(source.data("news").await, ["missed"]);
    assert_eq!(methods(), [Method::OPTIONS, Method::GET]);
}
