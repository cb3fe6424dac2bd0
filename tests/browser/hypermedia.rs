//! The recipes of `docs/hypermedia.md`. The site of each test is the application of the document
//! with the code and the markup of a recipe, and the published version of its library.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::{BoxFuture, join_all};
use futures::{StreamExt, stream};
use http::{StatusCode, header};
use serde_json::{Value, json};
use tower_sse::{Disconnect, Event, Hub, HubBuilder, OverLimit, Refusal, RefusalReason};

use crate::driver::{Browser, Context, Page, browser, folder};
use crate::kit::{skip, until};
use crate::proxy::{Mode, Proxy};
use crate::site::{Recorded, Site};

/// Where the recipes load a library from. The site of the tests serves the same files.
const NPM: &str = "https://cdn.jsdelivr.net/npm/";
const DATASTAR: &str = "https://cdn.jsdelivr.net/gh/starfederation/datastar@v1.0.1/bundles/datastar.js";

// ---------------------------------------------------------------------------------------------------------------------
// Recipes

/// Declares the module of a recipe: the application of the document, with the functions of the
/// recipe, as a reader of the document puts them together.
macro_rules! recipe {
    ($name:ident, $file:literal) => {
        mod $name {
            include!("hypermedia/app.rs");
            include!($file);

            pub fn start(hub: Hub, head: &str, feed: &str) -> Arc<dyn super::Application> {
                Arc::new(App { hub, head: head.to_owned(), feed: feed.to_owned(), headlines: Arc::default() })
            }

            impl super::Application for App {
                fn with_hub(&self, hub: Hub) -> Arc<dyn super::Application> {
                    Arc::new(Self { hub, ..self.clone() })
                }

                fn routes(&self) -> Router {
                    routes(self.clone())
                }

                fn store(&self, text: &str) {
                    let mut headlines = self.headlines.lock().unwrap();
                    let id = headlines.len() as u64 + 1;
                    headlines.insert(0, Headline { id, text: text.to_owned() });
                }

                fn post(&self, text: &str) -> futures::future::BoxFuture<'static, ()> {
                    let (app, text) = (self.clone(), text.to_owned());
                    let id = self.headlines.lock().unwrap().len() as u64 + 1;
                    Box::pin(async move { post_headline(&app, Headline { id, text }).await.unwrap() })
                }
            }
        }
    };
}

recipe!(htmx_2, "hypermedia/htmx_2.rs");
recipe!(htmx_4, "hypermedia/htmx_4.rs");
recipe!(datastar, "hypermedia/datastar.rs");
recipe!(turbo, "hypermedia/turbo.rs");

/// The application of the document.
trait Application: Send + Sync {
    /// Returns a new process of the application, with the headlines of this one.
    fn with_hub(&self, hub: Hub) -> Arc<dyn Application>;
    fn routes(&self) -> Router;
    /// Adds a headline to the state, without an event.
    fn store(&self, text: &str);
    fn post(&self, text: &str) -> BoxFuture<'static, ()>;
}

/// A recipe of the document.
#[derive(Clone, Copy)]
struct Recipe {
    heading: &'static str,
    start: fn(Hub, &str, &str) -> Arc<dyn Application>,
}

const HTMX_2: Recipe = Recipe { heading: "## htmx 2", start: htmx_2::start };
const HTMX_4: Recipe = Recipe { heading: "## htmx 4", start: htmx_4::start };
const DATASTAR_1: Recipe = Recipe { heading: "## Datastar", start: datastar::start };
const TURBO: Recipe = Recipe { heading: "## Turbo", start: turbo::start };

const DOCUMENT: &str = include_str!("../../docs/hypermedia.md");

impl Recipe {
    /// Returns the two parts of the markup of the recipe, with local addresses of the libraries.
    fn markup(self) -> (String, String) {
        let section = DOCUMENT.split_once(&format!("\n{}\n", self.heading)).unwrap().1;
        let markup = section.split_once("\n```html\n").unwrap().1.split_once("\n```").unwrap().0;
        let markup = markup.replace(NPM, "/npm/").replace(DATASTAR, "/datastar");
        let (head, feed) = markup.split_once("\n\n").unwrap();
        (head.to_owned(), feed.to_owned())
    }
}

#[test]
fn the_document_has_the_code_of_the_tests() {
    for code in [
        include_str!("hypermedia/app.rs"),
        include_str!("hypermedia/htmx_2.rs"),
        include_str!("hypermedia/htmx_4.rs"),
        include_str!("hypermedia/datastar.rs"),
        include_str!("hypermedia/turbo.rs"),
    ] {
        assert!(DOCUMENT.contains(&format!("```rust\n{code}# ")), "not in the document:\n{code}");
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

async fn datastar_script() -> Response {
    script(&datastar_file())
}

fn datastar_file() -> PathBuf {
    folder().join("python/packages/starhtml/static/js/datastar-core.js")
}

fn script(path: &std::path::Path) -> Response {
    ([(header::CONTENT_TYPE, "text/javascript")], std::fs::read(path).unwrap()).into_response()
}

/// Returns the one browser if the library of a recipe is installed too.
fn ready(recipe: Recipe) -> Option<&'static Browser> {
    let browser = browser()?;
    let file =
        if recipe.heading == DATASTAR_1.heading { datastar_file() } else { folder().join("node_modules/htmx-4") };
    if !file.exists() {
        skip::not_installed(&file.display().to_string());
        return None;
    }
    Some(browser)
}

// ---------------------------------------------------------------------------------------------------------------------
// Application

/// The application of a recipe, behind faults of the network and of proxies.
struct App {
    recipe: Recipe,
    markup: (String, String),
    hub: Hub,
    program: Arc<dyn Application>,
    faults: Faults,
}

/// The paths whose requests do not reach the application.
type Faults = Arc<Mutex<HashMap<&'static str, Fault>>>;

#[derive(Clone)]
enum Fault {
    Status(u16),
    /// The connection breaks before the response, and all others with it.
    Reset(Arc<Proxy>),
}

/// The random time of the recipes before they fetch the state again.
const RANDOM: &str = "1000 + Math.random() * 4000";

impl App {
    fn new(recipe: Recipe) -> Self {
        Self::with_hub(recipe, quick().build().unwrap())
    }

    fn with_hub(recipe: Recipe, hub: Hub) -> Self {
        let markup = recipe.markup();
        let program = (recipe.start)(hub.clone(), &markup.0, &markup.1);
        let mut app = Self { recipe, markup, hub, program, faults: Faults::default() };
        app.edit(RANDOM, "1");
        app
    }

    /// Replaces a part of the markup.
    #[track_caller]
    fn edit(&mut self, from: &str, to: &str) {
        let (head, feed) = &mut self.markup;
        assert!(head.contains(from) || feed.contains(from), "the recipe does not contain {from}");
        (*head, *feed) = (head.replace(from, to), feed.replace(from, to));
        self.program = (self.recipe.start)(self.hub.clone(), head, feed);
    }

    fn routes(&self) -> Router {
        self.program
            .routes()
            .route("/npm/{*path}", get(npm))
            .route("/datastar", get(datastar_script))
            .layer(from_fn_with_state((self.hub.clone(), Arc::clone(&self.faults)), fail))
    }

    async fn start(&self) -> Site {
        Site::start(&self.hub, self.routes()).await
    }

    /// Starts a new process of the application at the address of one that has shut down.
    async fn restart(&mut self, site: Site) -> Site {
        let addr = site.shut_down().await;
        self.hub = quick().build().unwrap();
        self.program = self.program.with_hub(self.hub.clone());
        Site::start_at(addr, &self.hub, self.routes()).await
    }

    /// Makes requests for a path fail.
    fn fail(&self, path: &'static str, fault: Fault) {
        self.faults.lock().unwrap().insert(path, fault);
    }

    /// Makes requests for streams fail.
    fn refuse(&self, status: u16) {
        self.fail("/events", Fault::Status(status));
    }

    /// Ends all failures.
    fn recover(&self) {
        self.faults.lock().unwrap().clear();
    }

    fn store(&self, text: &str) {
        self.program.store(text);
    }

    async fn post(&self, text: &str) {
        self.program.post(text).await;
    }

    /// Ends the streams, so that the pages reconnect.
    async fn disconnect(&self) {
        self.hub.topic("news").disconnect(Disconnect::now()).await.unwrap();
    }
}

fn quick() -> HubBuilder {
    Hub::builder().retry(Duration::from_millis(100))
}

async fn fail(State((hub, faults)): State<(Hub, Faults)>, request: Request, next: Next) -> Response {
    let fault = faults.lock().unwrap().get(request.uri().path()).cloned();
    let stream = match fault {
        None => return next.run(request).await,
        Some(Fault::Status(200)) => hub.refuse(Refusal::retry_later(RefusalReason::Busy)),
        Some(Fault::Status(204)) => hub.refuse(Refusal::gone()),
        Some(Fault::Status(401)) => hub.refuse(Refusal::unauthorized()),
        Some(Fault::Status(403)) => hub.refuse(Refusal::forbidden()),
        Some(Fault::Status(status)) => {
            return (StatusCode::from_u16(status).unwrap(), "the text of a proxy").into_response();
        }
        Some(Fault::Reset(network)) => {
            network.set(Mode::Resets);
            std::future::pending().await
        }
    };
    IntoResponse::into_response(stream)
}

// ---------------------------------------------------------------------------------------------------------------------
// Pages

/// Opens the page of a recipe, and waits until its stream is open.
async fn open(browser: &'static Browser, app: &App, port: u16) -> (Context, Page) {
    let context = browser.context(json!({})).await;
    context.before_scripts(RECORDER).await;
    let page = context.page(&format!("http://127.0.0.1:{port}/news")).await;
    if app.faults.lock().unwrap().is_empty() {
        until(|| app.hub.stats().connections == 1).await;
    }
    (context, page)
}

/// Keeps the events with which a library reports the state of its stream.
const RECORDER: &str = "
    globalThis.seen = [];
    for (const name of ['htmx:sse:close', 'htmx:sse:error', 'htmx:finally:request'])
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

    /// Waits for longer than the time after which the page would fetch the state.
    async fn waits(&self) {
        self.eval("new Promise(done => setTimeout(done, 300))").await;
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

/// A page resumes after a break and after a disconnect, and does not fetch the state.
async fn resumes(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let app = App::new(recipe);
    let site = app.start().await;
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
    assert_eq!(site.record.of("/feed").len(), 0);
    page.has_no_errors().await;
}

/// A page whose stream has a gap, because the process and with it the log of its hub have ended. The
/// headline `missed` has no event.
async fn restarted(browser: &'static Browser, app: &mut App, path: &'static str, fault: Option<Fault>) -> Gap {
    let site = app.start().await;
    let network = Arc::new(Proxy::start(site.addr.port()).await);
    let (context, page) = open(browser, app, network.port).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    assert_eq!(site.record.of("/feed").len(), 0);
    app.store("missed");
    if let Some(fault) = fault {
        app.fail(path, fault);
    }
    let site = app.restart(site).await;
    Gap { site, network, page, _context: context }
}

struct Gap {
    site: Site,
    network: Arc<Proxy>,
    page: Page,
    _context: Context,
}

/// A page fetches the state once after a gap, and then has one stream.
async fn fetches_the_state(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let mut app = App::new(recipe);
    let Gap { site, page, .. } = &restarted(browser, &mut app, "", None).await;
    page.lists(&["missed", "one"]).await;
    until(|| app.hub.stats().connections == 1).await;
    app.post("after").await;
    page.lists(&["after", "missed", "one"]).await;
    assert_eq!(site.record.of("/feed").len(), 1);
    page.has_no_errors().await;
}

/// A page fetches the state again after `429`, `503` and a failure of the network.
async fn repeats_the_fetch(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let mut app = App::new(recipe);
    let Gap { site, page, network, .. } = &restarted(browser, &mut app, "/feed", Some(Fault::Status(429))).await;
    let fetches = || site.record.of("/feed").len();
    until(|| fetches() >= 2).await;
    app.fail("/feed", Fault::Status(503));
    let before = fetches();
    until(|| fetches() >= before + 2).await;
    app.fail("/feed", Fault::Reset(Arc::clone(network)));
    // The last fetch before may have got its response already.
    let before = fetches();
    until(|| fetches() > before).await;
    page.lists(&["one"]).await;
    app.recover();
    network.set(Mode::Passes);
    page.lists(&["missed", "one"]).await;
    until(|| app.hub.stats().connections == 1).await;
    app.post("after").await;
    page.lists(&["after", "missed", "one"]).await;
}

/// A page does not fetch the state again after another status.
async fn stops_fetching(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let mut app = App::new(recipe);
    let Gap { site, page, .. } = &restarted(browser, &mut app, "/feed", Some(Fault::Status(401))).await;
    until(|| site.record.of("/feed").len() == 1).await;
    page.waits().await;
    assert_eq!(site.record.of("/feed").len(), 1);
    // The text of the response is not part of the page.
    page.lists(&["one"]).await;
}

/// A headline that was posted between the position and the query is in the state, and its event
/// arrives after it.
async fn shows_a_headline_of_state_and_stream_once(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let mut app = App::new(recipe);
    app.edit("{position}", &app.hub.position().to_string());
    let site = app.start().await;
    app.post("one").await;
    app.post("two").await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    app.post("three").await;
    page.until("document.querySelector('#headlines').textContent.includes('three')").await;
    page.lists(&["three", "two", "one"]).await;
}

/// A page shows the text of users as text, from an event and from the state.
async fn escapes(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let app = App::new(recipe);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    let text = "<img src='x' onerror=\"document.title = 'broken'\">\nselector body\nmode remove &amp;";
    app.post(text).await;
    page.lists(&[text]).await;
    page.call("reload", json!([])).await;
    page.lists(&[text]).await;
    assert_eq!(page.eval("document.title + document.querySelectorAll('img').length").await, "0");
}

/// Declares a test for each recipe.
macro_rules! each_recipe {
    ($($test:ident: $htmx_2:ident, $htmx_4:ident, $datastar:ident, $turbo:ident;)*) => { $(
        #[tokio::test]
        async fn $htmx_2() {
            $test(HTMX_2).await;
        }

        #[tokio::test]
        async fn $htmx_4() {
            $test(HTMX_4).await;
        }

        #[tokio::test]
        async fn $datastar() {
            $test(DATASTAR_1).await;
        }

        #[tokio::test]
        async fn $turbo() {
            $test(TURBO).await;
        }
    )* };
}

each_recipe! {
    resumes: htmx_2_resumes, htmx_4_resumes, datastar_resumes, turbo_resumes;
    fetches_the_state: htmx_2_fetches_the_state_after_a_gap, htmx_4_fetches_the_state_after_a_gap,
        datastar_fetches_the_state_after_a_gap, turbo_fetches_the_state_after_a_gap;
    repeats_the_fetch: htmx_2_repeats_a_failed_fetch_of_the_state, htmx_4_repeats_a_failed_fetch_of_the_state,
        datastar_repeats_a_failed_fetch_of_the_state, turbo_repeats_a_failed_fetch_of_the_state;
    stops_fetching: htmx_2_does_not_repeat_a_fetch_that_was_refused, htmx_4_does_not_repeat_a_fetch_that_was_refused,
        datastar_does_not_repeat_a_fetch_that_was_refused, turbo_does_not_repeat_a_fetch_that_was_refused;
    shows_a_headline_of_state_and_stream_once: htmx_2_shows_a_headline_of_state_and_stream_once,
        htmx_4_shows_a_headline_of_state_and_stream_once, datastar_shows_a_headline_of_state_and_stream_once,
        turbo_shows_a_headline_of_state_and_stream_once;
    escapes: htmx_2_shows_html_of_users_as_text, htmx_4_shows_html_of_users_as_text,
        datastar_shows_html_of_users_as_text, turbo_shows_html_of_users_as_text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusals

/// A page whose stream has ended, and whose next request was refused.
async fn refused(browser: &'static Browser, app: &App, site: &Site, status: u16) -> (Context, Page) {
    let (context, page) = open(browser, app, site.addr.port()).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    app.refuse(status);
    app.disconnect().await;
    until(|| site.requests().len() == 2).await;
    (context, page)
}

#[tokio::test]
async fn htmx_4_stops_after_204_401_and_403() {
    let Some(browser) = ready(HTMX_4) else { return };
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

#[tokio::test]
async fn htmx_4_repeats_the_request_after_every_status_without_the_handlers() {
    let Some(browser) = ready(HTMX_4) else { return };
    join_all([204, 401, 403, 503].map(async |status| {
        let mut app = App::new(HTMX_4);
        app.edit("connection.config.reconnect = false", "");
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        until(|| site.requests().len() == 4).await;
        assert_eq!(ids(&site.requests()), [false, true, true, true], "{status}");
        app.post("two").await;
        app.recover();
        page.lists(&["two", "one"]).await;
        assert_eq!(site.record.of("/feed").len(), 0);
    }))
    .await;
}

#[tokio::test]
async fn htmx_4_repeats_the_request_after_503_and_loses_nothing() {
    let Some(browser) = ready(HTMX_4) else { return };
    let app = App::new(HTMX_4);
    let site = app.start().await;
    let (_context, page) = refused(browser, &app, &site, 503).await;
    until(|| site.requests().len() == 4).await;
    app.post("two").await;
    app.recover();
    page.lists(&["two", "one"]).await;
    assert!(ids(&site.requests())[1..].iter().all(|has_id| *has_id));
    assert_eq!(site.record.of("/feed").len(), 0);
}

#[tokio::test]
async fn htmx_4_opens_no_stream_after_a_first_request_that_was_refused() {
    let Some(browser) = ready(HTMX_4) else { return };
    join_all([204, 400, 401, 403].map(async |status| {
        let app = App::new(HTMX_4);
        app.store("one");
        app.refuse(status);
        let site = app.start().await;
        let (_context, page) = open(browser, &app, site.addr.port()).await;
        page.reports("htmx:finally:request").await;
        page.waits().await;
        // The text of the response is not part of the page.
        page.reads("#feed", "one").await;
        assert_eq!((site.requests().len(), site.record.of("/feed").len()), (1, 0), "{status}");
    }))
    .await;
}

/// The page fetches the state if its first request for a stream fails, and then opens a stream.
async fn opens_a_stream_after_a_failed_first_request(recipe: Recipe, status: Option<u16>) {
    let Some(browser) = ready(recipe) else { return };
    let app = App::new(recipe);
    let site = app.start().await;
    let network = Arc::new(Proxy::start(site.addr.port()).await);
    app.fail("/events", status.map_or_else(|| Fault::Reset(Arc::clone(&network)), Fault::Status));
    let (_context, page) = open(browser, &app, network.port).await;
    until(|| site.requests().len() >= if status.is_some() { 2 } else { 1 }).await;
    app.post("one").await;
    app.recover();
    network.set(Mode::Passes);
    page.lists(&["one"]).await;
    until(|| app.hub.stats().connections == 1).await;
    app.post("two").await;
    page.lists(&["two", "one"]).await;
}

#[tokio::test]
async fn htmx_4_opens_a_stream_after_a_first_request_that_failed() {
    join_all([Some(503), None].map(|status| opens_a_stream_after_a_failed_first_request(HTMX_4, status))).await;
}

#[tokio::test]
async fn datastar_opens_a_stream_after_a_first_request_that_failed() {
    join_all(
        [Some(429), Some(503), None].map(|status| opens_a_stream_after_a_failed_first_request(DATASTAR_1, status)),
    )
    .await;
}

#[tokio::test]
async fn htmx_2_opens_a_stream_after_a_first_request_that_failed() {
    join_all([Some(503), None].map(|status| opens_a_stream_after_a_failed_first_request(HTMX_2, status))).await;
}

/// The events of requests of elements inside of `#feed` bubble to `#feed`.
#[tokio::test]
async fn htmx_4_does_not_fetch_the_state_after_the_failed_request_of_a_form() {
    let Some(browser) = ready(HTMX_4) else { return };
    let mut app = App::new(HTMX_4);
    app.edit("{items}</ul>", "{items}</ul><button hx-get='/form' hx-swap='none'>Send</button>");
    app.fail("/form", Fault::Status(503));
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    page.click("button").await;
    until(|| site.record.of("/form").len() == 1).await;
    page.waits().await;
    assert_eq!(site.record.of("/feed").len(), 0);
}

#[tokio::test]
async fn datastar_stops_after_204_400_401_and_403() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    join_all([204, 400, 401, 403].map(async |status| {
        let app = App::new(DATASTAR_1);
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        page.reports("finished").await;
        page.waits().await;
        assert_eq!(ids(&site.requests()), [false, true], "{status}");
        assert_eq!(site.record.of("/feed").len(), 0, "{status}");
    }))
    .await;
}

#[tokio::test]
async fn datastar_fetches_the_state_after_503() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let app = App::new(DATASTAR_1);
    let site = app.start().await;
    let (_context, page) = refused(browser, &app, &site, 503).await;
    until(|| site.record.of("/feed").len() >= 2).await;
    app.post("two").await;
    app.recover();
    until(|| app.hub.stats().connections == 1).await;
    app.post("three").await;
    page.lists(&["three", "two", "one"]).await;
    // The position of the new state replaces the last id.
    assert!(ids(&site.requests())[2..].iter().all(|has_id| !has_id));
}

#[tokio::test]
async fn turbo_stops_after_204_401_403_and_503() {
    let Some(browser) = ready(TURBO) else { return };
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
async fn htmx_2_opens_another_stream_at_the_position_of_the_page_after_every_status() {
    let Some(browser) = ready(HTMX_2) else { return };
    join_all([204, 401, 403, 503].map(async |status| {
        let app = App::new(HTMX_2);
        let site = app.start().await;
        let (_context, page) = refused(browser, &app, &site, status).await;
        app.post("two").await;
        until(|| site.requests().len() == 3).await;
        app.recover();
        until(|| app.hub.stats().connections == 1).await;
        page.lists(&["two", "one"]).await;
        assert_eq!(ids(&site.requests()), [false, true, false, false], "{status}");
        assert_eq!(site.record.of("/feed").len(), 0, "{status}");
    }))
    .await;
}

/// A page whose first requests get a retryable refusal.
async fn repeats_after_a_retryable_refusal(recipe: Recipe) {
    let Some(browser) = ready(recipe) else { return };
    let app = App::new(recipe);
    app.refuse(200);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    until(|| site.requests().len() >= 3).await;
    app.recover();
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
    let Some(browser) = ready(DATASTAR_1) else { return };
    let app = App::new(DATASTAR_1);
    let site = app.start().await;
    let (_context, page) = refused(browser, &app, &site, 200).await;
    page.reports("finished").await;
    assert_eq!(ids(&site.requests()), [false, true]);
}

#[tokio::test]
async fn datastar_repeats_the_request_after_a_refusal_of_respond() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let app = App::with_hub(DATASTAR_1, quick().max_connections(1, OverLimit::Refuse).build().unwrap());
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
    let Some(browser) = ready(DATASTAR_1) else { return };
    let mut app = App::new(DATASTAR_1);
    // By default, the time between two requests doubles.
    app.edit("retryMaxCount: Infinity", "retryMaxCount: Infinity, retryScaler: 1");
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

#[tokio::test]
async fn htmx_4_closes_the_stream_of_a_hidden_page_and_resumes() {
    let Some(browser) = ready(HTMX_4) else { return };
    let app = App::new(HTMX_4);
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
async fn turbo_opens_one_stream_for_each_visit_and_shows_each_headline_once() {
    let Some(browser) = ready(TURBO) else { return };
    let app = App::new(TURBO);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    // Each time, the server renders the page anew, also when the user goes back.
    for (nth, visit) in [(2, "Turbo.visit('/news?again')"), (3, "history.back()")] {
        page.eval(&format!("void {visit}")).await;
        until(|| site.requests().len() == nth).await;
        until(|| app.hub.stats().connections == 1).await;
        page.lists(&["one"]).await;
    }
    app.post("two").await;
    page.lists(&["two", "one"]).await;
    assert_eq!(ids(&site.requests()), [false; 3]);
    assert_eq!(site.record.of("/news").len(), 3);
    page.has_no_errors().await;
}

/// An event of htmx 4 also replaces elements outside of its target.
#[tokio::test]
async fn htmx_4_swaps_elements_out_of_band() {
    let Some(browser) = ready(HTMX_4) else { return };
    let app = App::new(HTMX_4);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    page.eval("void document.body.insertAdjacentHTML('beforeend', '<p id=count>0</p>')").await;
    let html = "<li id='headline-1'>one</li><p id='count' hx-swap-oob='true'>1</p>";
    app.hub.topic("news").publish(Event::unnamed(html)).await.unwrap();
    page.reads("#count", "1").await;
    page.lists(&["one"]).await;
}

#[tokio::test]
async fn datastar_keeps_the_stream_of_a_hidden_page() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let app = App::new(DATASTAR_1);
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    page.set_hidden(true).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    assert_eq!(site.requests().len(), 1);
}

/// A page that is hidden and shown while it waits to repeat a request.
async fn shown_in_a_break(browser: &'static Browser, app: &App) -> (Context, Page, Proxy, Site) {
    let site = app.start().await;
    let network = Proxy::start(site.addr.port()).await;
    let (context, page) = open(browser, app, network.port).await;
    app.post("one").await;
    page.lists(&["one"]).await;
    network.set(Mode::Resets);
    until(|| app.hub.stats().connections == 0).await;
    page.until("seen.includes('retrying') || seen.includes('htmx:sse:error')").await;
    page.set_hidden(true).await;
    network.set(Mode::Passes);
    page.set_hidden(false).await;
    (context, page, network, site)
}

async fn opens_one_stream_when_shown_in_a_break(browser: &'static Browser, app: App) {
    let (_context, page, ..) = &shown_in_a_break(browser, &app).await;
    until(|| app.hub.stats().connections >= 1).await;
    // A second stream would follow after `retry`.
    page.waits().await;
    app.post("two").await;
    page.lists(&["two", "one"]).await;
    assert_eq!(app.hub.stats().connections, 1);
}

#[tokio::test]
async fn htmx_4_opens_one_stream_when_the_page_is_shown_in_a_break() {
    let Some(browser) = ready(HTMX_4) else { return };
    opens_one_stream_when_shown_in_a_break(browser, App::new(HTMX_4)).await;
}

#[tokio::test]
async fn datastar_opens_one_stream_when_the_page_is_shown_in_a_break() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let mut app = App::new(DATASTAR_1);
    app.edit("openWhenHidden: true", "openWhenHidden: true, retryScaler: 1");
    opens_one_stream_when_shown_in_a_break(browser, app).await;
}

#[tokio::test]
async fn datastar_opens_two_streams_when_the_page_is_shown_in_a_break_by_default() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    // The page opens the second stream only if it is shown before the first one is open again. On a
    // busy machine, the first one may be faster.
    for _ in 0..5 {
        let mut app = App::new(DATASTAR_1);
        app.edit("openWhenHidden: true", "retryScaler: 1");
        let _open = shown_in_a_break(browser, &app).await;
        let two = until(|| app.hub.stats().connections == 2);
        if tokio::time::timeout(Duration::from_secs(5), two).await.is_ok() {
            return;
        }
    }
    panic!("the page opened one stream each time");
}

#[tokio::test]
async fn datastar_closes_the_stream_of_a_removed_element_with_cleanup() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let mut app = App::new(DATASTAR_1);
    app.edit("{ openWhenHidden", "{ requestCancellation: 'cleanup', openWhenHidden");
    let site = app.start().await;
    let (_context, page) = open(browser, &app, site.addr.port()).await;
    page.eval("document.getElementById('feed').remove()").await;
    until(|| app.hub.stats().connections == 0).await;
}

#[tokio::test]
async fn datastar_fetches_the_state_after_more_than_ten_failures_of_the_network() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let mut app = App::new(DATASTAR_1);
    app.edit("retryMaxCount: Infinity", "retryMaxCount: Infinity, retryInterval: 20, retryScaler: 1");
    let Gap { network, page, .. } = &restarted(browser, &mut app, "/feed", Some(Fault::Status(503))).await;
    page.until("seen.includes('error')").await;
    let network = Arc::clone(network);
    app.fail("/feed", Fault::Reset(Arc::clone(&network)));
    page.until("seen.filter(name => name === 'retrying').length > 15").await;
    app.recover();
    network.set(Mode::Passes);
    page.lists(&["missed", "one"]).await;
}

#[tokio::test]
async fn datastar_gives_up_after_ten_breaks_by_default() {
    let Some(browser) = ready(DATASTAR_1) else { return };
    let mut app = App::new(DATASTAR_1);
    app.edit("retryMaxCount: Infinity", "retryScaler: 1");
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
    let Some(browser) = ready(DATASTAR_1) else { return };
    let mut app = App::new(DATASTAR_1);
    app.edit("/events?", "/broken?");
    app.refuse(204);
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
