//! The recipes of `docs/hypermedia.md`: the page of each test is the markup of the recipe, with the
//! published version of the library that the markup names.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures::future::join_all;
use futures::{StreamExt, stream};
use http::{StatusCode, header};
use serde_json::{Value, json};
use tower_sse::{Disconnect, Event, Hub, HubBuilder, OverLimit, Refusal, RefusalReason, StreamRequest, Subscription};

use crate::driver::{Browser, Context, Page, browser, folder};
use crate::kit::{skip, until};
use crate::proxy::{Mode, Proxy};
use crate::site::{Recorded, Site};

/// Where the recipes load a library from. The site of the tests serves the same files.
const NPM: &str = "https://cdn.jsdelivr.net/npm/";
const DATASTAR: &str = "https://cdn.jsdelivr.net/gh/starfederation/datastar@v1.0.1/bundles/datastar.js";

// ---------------------------------------------------------------------------------------------------------------------
// Recipes

/// A recipe of the document.
#[derive(Clone, Copy)]
struct Recipe {
    heading: &'static str,
    bare: bool,
    event: fn(String) -> Event,
}

const HTMX_2: Recipe = Recipe { heading: "## htmx 2", bare: false, event: |item| Event::new("headline", item) };
const HTMX_4: Recipe = Recipe { heading: "## htmx 4", bare: false, event: Event::unnamed };
const DATASTAR_1: Recipe = Recipe {
    heading: "## Datastar",
    bare: true,
    event: |item| Event::new("datastar-patch-elements", format!("selector #headlines\nmode prepend\nelements {item}")),
};
const TURBO: Recipe = Recipe {
    heading: "## Turbo",
    bare: false,
    event: |item| {
        Event::unnamed(format!(
            "<turbo-stream action='prepend' target='headlines'><template>{item}</template></turbo-stream>"
        ))
    },
};

impl Recipe {
    /// Returns the markup of the recipe, with local addresses of the libraries.
    fn markup(self) -> String {
        let document = include_str!("../../docs/hypermedia.md");
        let section = document.split_once(&format!("\n{}\n", self.heading)).unwrap().1;
        let markup = section.split_once("\n```html\n").unwrap().1.split_once("\n```").unwrap().0;
        markup.replace(NPM, "/npm/").replace(DATASTAR, "/datastar")
    }
}

/// The folder of an npm package in a version, and of no other version.
fn package(name: &str, version: &str) -> PathBuf {
    let modules = folder().join("node_modules");
    let found = [name, "htmx-4"].into_iter().map(|folder| modules.join(folder)).find(|folder| {
        let text = std::fs::read_to_string(folder.join("package.json")).unwrap();
        let package: Value = serde_json::from_str(&text).unwrap();
        package["name"] == name && package["version"] == version
    });
    found.unwrap_or_else(|| panic!("{name}@{version} is not in `tests/browser/package.json`"))
}

/// Serves a file of an npm package, for example `htmx.org@4.0.1/dist/htmx.min.js`.
async fn npm(Path(path): Path<String>) -> Response {
    let at = path.rfind('@').unwrap();
    let (version, file) = path[at + 1..].split_once('/').unwrap();
    script(&package(&path[..at], version).join(file))
}

async fn datastar() -> Response {
    script(&datastar_file())
}

fn datastar_file() -> PathBuf {
    folder().join("python/packages/starhtml/static/js/datastar-core.js")
}

fn script(path: &std::path::Path) -> Response {
    ([(header::CONTENT_TYPE, "text/javascript")], std::fs::read(path).unwrap()).into_response()
}

/// The one browser, if the libraries are installed too.
fn ready() -> Option<&'static Browser> {
    let browser = browser()?;
    for file in [folder().join("node_modules/htmx-4"), datastar_file()] {
        if !file.exists() {
            skip::not_installed(&file.display().to_string());
            return None;
        }
    }
    Some(browser)
}

// ---------------------------------------------------------------------------------------------------------------------
// Application

/// The application of a recipe. A restart keeps its headlines, but not its hub.
#[derive(Clone)]
struct App {
    recipe: Recipe,
    markup: String,
    hub: Hub,
    headlines: Arc<Mutex<Vec<String>>>,
    /// The status with which `/events` refuses requests.
    refusal: Arc<Mutex<Option<StatusCode>>>,
}

impl App {
    fn new(recipe: Recipe) -> Self {
        let (headlines, refusal) = Default::default();
        Self { recipe, markup: recipe.markup(), hub: hub(), headlines, refusal }
    }

    fn routes(&self) -> Router {
        Router::new()
            .route("/page", get(page))
            .route("/feed", get(feed))
            .route("/headlines", get(headlines))
            .route("/events", get(events))
            .route("/npm/{*path}", get(npm))
            .route("/datastar", get(datastar))
            .with_state(self.clone())
    }

    async fn start(&self) -> Site {
        Site::start(&self.hub, self.routes()).await
    }

    /// Starts a new process of the application at the address of one that has shut down.
    async fn restart(&mut self, site: Site) -> Site {
        let addr = site.shut_down().await;
        self.hub = hub();
        Site::start_at(addr, &self.hub, self.routes()).await
    }

    fn refuse(&self, status: Option<u16>) {
        *self.refusal.lock().unwrap() = status.map(|status| StatusCode::from_u16(status).unwrap());
    }

    /// Adds a headline to the state, without an event.
    fn store(&self, text: &str) {
        self.headlines.lock().unwrap().insert(0, text.to_owned());
    }

    async fn post(&self, text: &str) {
        self.store(text);
        self.hub.topic("news").publish((self.recipe.event)(item(text))).await.unwrap();
    }

    /// Ends the streams, so that the pages reconnect.
    async fn disconnect(&self) {
        self.hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    }

    fn items(&self) -> String {
        self.headlines.lock().unwrap().iter().map(|text| item(text)).collect()
    }

    /// The markup with the state of now, as the handler `feed` of the document renders it.
    fn render(&self) -> String {
        self.markup.replace("{position}", &self.hub.position().to_string()).replace("{items}", &self.items())
    }
}

fn hub() -> Hub {
    quick().build().unwrap()
}

fn quick() -> HubBuilder {
    Hub::builder().retry(Duration::from_millis(100))
}

fn item(text: &str) -> String {
    format!("<li>{text}</li>")
}

async fn page(State(app): State<App>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Html(format!("<!doctype html>\n{}", app.render()))).into_response()
}

/// The part of the page without its scripts.
async fn feed(State(app): State<App>) -> Response {
    let markup = app.render().split_once("\n\n").unwrap().1.to_owned();
    ([("datastar-mode", "replace")], Html(markup)).into_response()
}

async fn headlines(State(app): State<App>) -> Html<String> {
    Html(app.items())
}

async fn events(State(app): State<App>, request: StreamRequest) -> Response {
    let subscription = Subscription::for_user("ada").topic("news");
    let subscription = if app.recipe.bare { subscription.bare() } else { subscription };
    let refusal = *app.refusal.lock().unwrap();
    let stream = match refusal.map(|status| status.as_u16()) {
        None => app.hub.respond(request, subscription),
        Some(200) => app.hub.refuse(Refusal::retry_later(RefusalReason::Busy)),
        Some(204) => app.hub.refuse(Refusal::gone()),
        Some(401) => app.hub.refuse(Refusal::unauthorized()),
        Some(403) => app.hub.refuse(Refusal::forbidden()),
        // As from a proxy.
        Some(status) => return (StatusCode::from_u16(status).unwrap(), "no instance").into_response(),
    };
    IntoResponse::into_response(stream)
}

// ---------------------------------------------------------------------------------------------------------------------
// Pages

/// Opens the page of a recipe, and waits until its stream is open.
async fn open(browser: &'static Browser, app: &App, port: u16) -> (Context, Page) {
    let context = browser.context(json!({})).await;
    context.before_scripts(RECORDER).await;
    let page = context.page(&format!("http://127.0.0.1:{port}/page")).await;
    if app.refusal.lock().unwrap().is_none() {
        until(|| app.hub.stats().connections == 1).await;
    }
    (context, page)
}

/// Keeps the events with which a library reports the state of its stream.
const RECORDER: &str = "
    globalThis.seen = [];
    for (const name of ['htmx:sse:close', 'htmx:finally:request'])
        addEventListener(name, () => seen.push(name));
    document.addEventListener('datastar-fetch', ({ detail: { type } }) => seen.push(type));
    globalThis.sources = [];
    globalThis.EventSource = class extends EventSource {
        constructor(...args) { super(...args); sources.push(this); }
    };
";

impl Page {
    /// Waits until the list has exactly these headlines.
    #[track_caller]
    fn lists<'a>(&'a self, headlines: &[&str]) -> impl Future<Output = ()> + use<'a> {
        let items = "[...document.querySelectorAll('#headlines > li')].map(item => item.textContent)";
        self.until(&format!("JSON.stringify({items}) === {}", json!(json!(headlines).to_string())))
    }

    /// Waits until the library has reported an event.
    #[track_caller]
    fn reports<'a>(&'a self, name: &str) -> impl Future<Output = ()> + use<'a> {
        self.until(&format!("seen.includes('{name}')"))
    }

    async fn set_hidden(&self, hidden: bool) {
        let define = format!("Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }})");
        self.eval(&format!("{define}, void document.dispatchEvent(new Event('visibilitychange'))")).await;
    }
}

fn ids(requests: &[Recorded]) -> Vec<bool> {
    requests.iter().map(|request| request.header("last-event-id").is_some()).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Every library

/// The page shows each headline once across a break, a disconnect and a gap, and fetches the state
/// for the gap only.
async fn loses_nothing(recipe: Recipe, state: &str) {
    let Some(browser) = ready() else { return };
    let mut app = App::new(recipe);
    let mut site = app.start().await;
    let network = Proxy::start(site.addr.port()).await;
    let (_context, page) = open(browser, &app, network.port).await;
    app.post("one").await;
    page.lists(&["one"]).await;

    network.set(Mode::Resets);
    until(|| app.hub.stats().connections == 0).await;
    app.post("two").await;
    network.set(Mode::Passes);
    page.lists(&["two", "one"]).await;

    app.disconnect().await;
    app.post("three").await;
    page.lists(&["three", "two", "one"]).await;
    let requests = site.requests();
    assert!(!ids(&requests)[0] && ids(&requests)[1..].iter().all(|has_id| *has_id), "{:?}", ids(&requests));
    let states_before = site.record.of(state).len();

    // The process ends. The log of its hub ends with it.
    app.store("missed");
    site = app.restart(site).await;
    page.lists(&["missed", "three", "two", "one"]).await;
    until(|| app.hub.stats().connections == 1).await;
    app.post("after").await;
    page.lists(&["after", "missed", "three", "two", "one"]).await;
    assert_eq!(site.record.of(state).len(), 1, "{states_before} before");
    page.has_no_errors().await;
}

#[tokio::test]
async fn htmx_2_resumes_and_fetches_the_state_after_a_gap() {
    loses_nothing(HTMX_2, "/headlines").await;
}

#[tokio::test]
async fn htmx_4_resumes_and_fetches_the_state_after_a_gap() {
    loses_nothing(HTMX_4, "/feed").await;
}

#[tokio::test]
async fn datastar_resumes_and_fetches_the_state_after_a_gap() {
    loses_nothing(DATASTAR_1, "/feed").await;
}

#[tokio::test]
async fn turbo_resumes_and_visits_the_page_again_after_a_gap() {
    loses_nothing(TURBO, "/page").await;
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusals

/// A page whose stream has ended, and whose next request was refused.
async fn refused(browser: &'static Browser, app: &App, site: &Site, status: u16) -> (Context, Page) {
    let (context, page) = open(browser, app, site.addr.port()).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    app.refuse(Some(status));
    app.disconnect().await;
    until(|| site.requests().len() == 2).await;
    (context, page)
}

#[tokio::test]
async fn htmx_4_stops_after_204_401_and_403() {
    let Some(browser) = ready() else { return };
    join_all([204, 401, 403].map(async |status| {
        let app = App::new(HTMX_4);
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        page.reports("htmx:sse:close").await;
        assert_eq!(ids(&site.requests()), [false, true], "{status}");
        page.lists(&["one"]).await;
    }))
    .await;
}

/// Without the handler of the recipe.
#[tokio::test]
async fn htmx_4_itself_repeats_the_request_after_every_status() {
    let Some(browser) = ready() else { return };
    join_all([204, 401, 403, 503].map(async |status| {
        let mut app = App::new(HTMX_4);
        app.markup = app.markup.replace("connection.config.reconnect = false", "");
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        until(|| site.requests().len() == 4).await;
        assert_eq!(ids(&site.requests()), [false, true, true, true], "{status}");
        app.post("two").await;
        app.refuse(None);
        page.lists(&["two", "one"]).await;
        assert_eq!(site.record.of("/feed").len(), 0);
    }))
    .await;
}

#[tokio::test]
async fn htmx_4_repeats_the_request_after_503_and_loses_nothing() {
    let Some(browser) = ready() else { return };
    let app = App::new(HTMX_4);
    let site = app.start().await;
    let (_context, page) = refused(browser, &app, &site, 503).await;
    until(|| site.requests().len() == 4).await;
    app.post("two").await;
    app.refuse(None);
    page.lists(&["two", "one"]).await;
    assert!(ids(&site.requests())[1..].iter().all(|has_id| *has_id));
    assert_eq!(site.record.of("/feed").len(), 0);
}

#[tokio::test]
async fn htmx_4_opens_no_stream_after_a_first_request_that_was_refused() {
    let Some(browser) = ready() else { return };
    join_all([204, 401, 403].map(async |status| {
        let app = App::new(HTMX_4);
        app.store("one");
        app.refuse(Some(status));
        let site = app.start().await;
        let (_context, page) = open(browser, &app, site.addr.port()).await;
        page.reports("htmx:finally:request").await;
        // The text of the response is not part of the page.
        page.reads("#feed", "one").await;
        assert_eq!((site.requests().len(), site.record.of("/feed").len()), (1, 0), "{status}");
    }))
    .await;
}

#[tokio::test]
async fn htmx_4_fetches_the_state_after_a_first_request_that_got_503() {
    let Some(browser) = ready() else { return };
    let app = App::new(HTMX_4);
    app.refuse(Some(503));
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    until(|| site.requests().len() >= 2).await;
    app.post("one").await;
    app.refuse(None);
    page.lists(&["one"]).await;
    until(|| app.hub.stats().connections == 1).await;
    app.post("two").await;
    page.lists(&["two", "one"]).await;
}

#[tokio::test]
async fn datastar_stops_after_204_401_and_403() {
    let Some(browser) = ready() else { return };
    join_all([204, 401, 403].map(async |status| {
        let app = App::new(DATASTAR_1);
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        page.reports("finished").await;
        // A timer of the same time ends after the delay of the handler, which would otherwise have
        // started to fetch the state.
        let started = "seen.filter(name => name === 'started').length";
        let later = format!("new Promise(done => setTimeout(() => done({started}), 1000))");
        assert_eq!(page.eval(&later).await, 1, "{status}");
        assert_eq!(ids(&site.requests()), [false, true], "{status}");
    }))
    .await;
}

#[tokio::test]
async fn datastar_fetches_the_state_after_503() {
    let Some(browser) = ready() else { return };
    let app = App::new(DATASTAR_1);
    let site = app.start().await;
    let (_context, page) = refused(browser, &app, &site, 503).await;
    app.post("two").await;
    until(|| site.record.of("/feed").len() >= 2).await;
    app.refuse(None);
    until(|| app.hub.stats().connections == 1).await;
    app.post("three").await;
    page.lists(&["three", "two", "one"]).await;
    // The position of the new state replaces the last id.
    assert!(ids(&site.requests())[2..].iter().all(|has_id| !has_id));
}

#[tokio::test]
async fn turbo_stops_after_204_401_403_and_503() {
    let Some(browser) = ready() else { return };
    join_all([204, 401, 403, 503].map(async |status| {
        let app = App::new(TURBO);
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        page.until("sources.length === 1 && sources[0].readyState === EventSource.CLOSED").await;
        assert_eq!(ids(&site.requests()), [false, true], "{status}");
    }))
    .await;
}

#[tokio::test]
async fn htmx_2_opens_another_stream_without_an_id_after_every_status_and_misses_events() {
    let Some(browser) = ready() else { return };
    join_all([204, 401, 403, 503].map(async |status| {
        let app = App::new(HTMX_2);
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        app.post("missed").await;
        until(|| site.requests().len() == 3).await;
        app.refuse(None);
        until(|| app.hub.stats().connections == 1).await;
        app.post("two").await;
        page.lists(&["two", "one"]).await;
        assert_eq!(ids(&site.requests()), [false, true, false, false], "{status}");
        assert_eq!(site.record.of("/headlines").len(), 0, "{status}");
    }))
    .await;
}

/// A page whose first requests get a retryable refusal.
async fn repeats_after_a_retryable_refusal(recipe: Recipe) {
    let Some(browser) = ready() else { return };
    let app = App::new(recipe);
    app.refuse(Some(200));
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    until(|| site.requests().len() >= 3).await;
    app.refuse(None);
    until(|| app.hub.stats().connections == 1).await;
    app.post("one").await;
    page.lists(&["one"]).await;
}

#[tokio::test]
async fn htmx_2_repeats_the_request_after_a_retryable_refusal() {
    repeats_after_a_retryable_refusal(HTMX_2).await;
}

#[tokio::test]
async fn htmx_4_repeats_the_request_after_a_retryable_refusal() {
    repeats_after_a_retryable_refusal(HTMX_4).await;
}

#[tokio::test]
async fn turbo_repeats_the_request_after_a_retryable_refusal() {
    repeats_after_a_retryable_refusal(TURBO).await;
}

#[tokio::test]
async fn datastar_stops_after_hub_refused() {
    let Some(browser) = ready() else { return };
    let app = App::new(DATASTAR_1);
    let site = app.start().await;
    let (_context, page) = refused(browser, &app, &site, 200).await;
    page.reports("finished").await;
    assert_eq!(ids(&site.requests()), [false, true]);
}

#[tokio::test]
async fn datastar_repeats_the_request_after_a_refusal_of_respond() {
    let Some(browser) = ready() else { return };
    let mut app = App::new(DATASTAR_1);
    app.hub = quick().max_connections(1, OverLimit::Refuse).build().unwrap();
    let site = app.start().await;
    let (first, _page) = open(browser, &app, site.addr.port()).await;
    let (_second, page) = open(browser, &app, site.addr.port()).await;
    until(|| site.requests().len() >= 4).await;
    drop(first);
    // The request that succeeds is one more.
    let refused = site.requests().len();
    until(|| site.requests().len() > refused && app.hub.stats().connections == 1).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    page.has_no_errors().await;
}

#[tokio::test]
async fn datastar_returns_after_more_than_ten_breaks() {
    let Some(browser) = ready() else { return };
    let mut app = App::new(DATASTAR_1);
    // By default, the time between two requests doubles.
    app.markup = app.markup.replace("retryMaxCount: Infinity", "retryMaxCount: Infinity, retryScaler: 1");
    let site = app.start().await;
    let network = Proxy::start(site.addr.port()).await;
    let (_context, page) = open(browser, &app, network.port).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    network.set(Mode::Resets);
    page.until("seen.filter(name => name === 'retrying').length > 11").await;
    app.post("two").await;
    network.set(Mode::Passes);
    page.lists(&["two", "one"]).await;
    assert_eq!(site.record.of("/feed").len(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Hidden pages, visits, texts of several lines

/// A hidden page closes its stream, and resumes when the user returns to it.
async fn resumes_when_shown(recipe: Recipe) {
    let Some(browser) = ready() else { return };
    let app = App::new(recipe);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    page.set_hidden(true).await;
    until(|| app.hub.stats().connections == 0).await;
    app.post("two").await;
    page.set_hidden(false).await;
    page.lists(&["two", "one"]).await;
    assert_eq!(ids(&site.requests()), [false, true]);
}

#[tokio::test]
async fn htmx_4_closes_the_stream_of_a_hidden_page_and_resumes() {
    resumes_when_shown(HTMX_4).await;
}

#[tokio::test]
async fn datastar_closes_the_stream_of_a_hidden_page_and_resumes() {
    resumes_when_shown(DATASTAR_1).await;
}

#[tokio::test]
async fn turbo_opens_one_stream_for_each_visit_and_shows_each_headline_once() {
    let Some(browser) = ready() else { return };
    let app = App::new(TURBO);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    // Each time, the server renders the page anew, also when the user goes back.
    for (nth, visit) in [(2, "Turbo.visit('/page?again')"), (3, "history.back()")] {
        page.eval(&format!("void {visit}")).await;
        until(|| site.requests().len() == nth).await;
        until(|| app.hub.stats().connections == 1).await;
        page.lists(&["one"]).await;
    }
    app.post("two").await;
    page.lists(&["two", "one"]).await;
    assert_eq!(ids(&site.requests()), [false; 3]);
    assert_eq!(site.record.of("/page").len(), 3);
    page.has_no_errors().await;
}

#[tokio::test]
async fn datastar_shows_elements_of_several_lines() {
    let Some(browser) = ready() else { return };
    let app = App::new(DATASTAR_1);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    let data = "selector #headlines\nmode prepend\nelements <li>first line\nelements selector body</li>";
    app.hub.topic("news").publish(Event::new("datastar-patch-elements", data)).await.unwrap();
    page.lists(&["first line\nselector body"]).await;
}

/// An event of htmx 4 also replaces elements outside of its target.
#[tokio::test]
async fn htmx_4_swaps_elements_out_of_band() {
    let Some(browser) = ready() else { return };
    let app = App::new(HTMX_4);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    page.eval("void document.body.insertAdjacentHTML('beforeend', '<p id=count>0</p>')").await;
    let html = "<li>one</li><p id='count' hx-swap-oob='true'>1</p>";
    app.hub.topic("news").publish(Event::unnamed(html)).await.unwrap();
    page.reads("#count", "1").await;
    page.lists(&["one"]).await;
}

#[tokio::test]
async fn datastar_keeps_the_stream_of_a_hidden_page_with_open_when_hidden() {
    let Some(browser) = ready() else { return };
    let mut app = App::new(DATASTAR_1);
    app.markup = app.markup.replace("{ retryMaxCount", "{ openWhenHidden: true, retryMaxCount");
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    page.set_hidden(true).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    assert_eq!(site.requests().len(), 1);
}

/// With the defaults of Datastar.
#[tokio::test]
async fn datastar_itself_gives_up_after_ten_breaks() {
    let Some(browser) = ready() else { return };
    let mut app = App::new(DATASTAR_1);
    app.markup = app.markup.replace("retryMaxCount: Infinity", "retryScaler: 1");
    let site = app.start().await;
    let network = Proxy::start(site.addr.port()).await;
    let (_context, page) = open(browser, &app, network.port).await;
    network.set(Mode::Resets);
    page.reports("retries-failed").await;
    assert_eq!(page.eval("seen.filter(name => name === 'retrying').length").await, 10);
}

/// If the connection breaks after the line of an id, Datastar has the id, but not the event.
#[tokio::test]
async fn datastar_takes_an_id_at_its_line() {
    let Some(browser) = ready() else { return };
    let mut app = App::new(DATASTAR_1);
    app.markup = app.markup.replace("/events?", "/broken?");
    app.refuse(Some(204));
    let broken = async || {
        let frame = "retry: 100\nevent: datastar-patch-elements\n\
                     data: selector #headlines\ndata: mode prepend\ndata: elements <li>lost</li>\nid: 1.5.7\n";
        let pieces = [Ok(frame), Err("the connection breaks")];
        // Otherwise the server or the browser might discard the frame together with the connection.
        let pieces = stream::iter(pieces).then(async |piece| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            piece
        });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
    };
    let site = Site::start(&app.hub, app.routes().route("/broken", get(broken))).await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    let has_id = |request: &Recorded| request.header("last-event-id") == Some("1.5.7");
    until(|| site.record.of("/broken").iter().any(has_id)).await;
    page.lists(&[]).await;
}
