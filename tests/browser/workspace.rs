//! The workspace example with two users in several tabs.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use crate::driver::{Browser, Context, Page, browser, folder};
use crate::example::example;
use crate::kit::port;
use crate::kit::soon;
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};

/// The secret of the sessions. With the same secret, users stay signed in across restarts.
const SECRET: &str = "a secret of the tests";

/// Records the control events of a page, the states that the page shows, and its messages, which
/// disappear after some seconds.
const WATCH: &str = r##"
  globalThis.received = [];
  globalThis.shown = [];
  globalThis.toasts = [];
  globalThis.EventSource = class extends EventSource {
    constructor(...args) {
      super(...args);
      for (const name of ["hub.gap", "hub.bye", "hub.live"]) this.addEventListener(name, () => received.push(name));
    }
  };
  new MutationObserver(changes => {
    for (const { target } of changes) if (target.id === "status" && target.dataset.state !== shown.at(-1)) shown.push(target.dataset.state);
  }).observe(document, { subtree: true, attributeFilter: ["data-state"] });
  new MutationObserver(changes => {
    for (const { target, addedNodes } of changes) if (target.id === "toasts") for (const toast of addedNodes) toasts.push(toast.textContent);
  }).observe(document, { subtree: true, childList: true });
"##;

struct Workspace {
    addr: SocketAddr,
    process: Child,
}

impl Workspace {
    async fn start(more: &[&str]) -> Self {
        // Redis servers of this program take the even ports.
        let port = std::iter::repeat_with(port::free_port).find(|port| port % 2 == 1).unwrap();
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], port)), more).await
    }

    /// Starts the program, and returns when it listens.
    async fn start_at(addr: SocketAddr, more: &[&str]) -> Self {
        let program = spawn_blocking(|| example("workspace")).await.unwrap();
        let mut command = Command::new(program);
        command.args(["--listen", &addr.to_string(), "--secret", SECRET]).args(more);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = soon(lines.next_line()).await.unwrap();
        assert_eq!(line, Some(format!("open http://{addr}")));
        Self { addr, process }
    }

    /// Stops the program with SIGTERM, as service managers do.
    async fn shut_down(mut self) -> SocketAddr {
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        assert!(soon(self.process.wait()).await.unwrap().success());
        self.addr
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }

    /// Opens a browser context, signs a user in, and returns the first tab.
    async fn sign_in(&self, browser: &'static Browser, user: &str, page: &str, options: Value) -> (Context, Page) {
        let context = browser.context(options).await;
        context.before_scripts(WATCH).await;
        let tab = context.page(&self.url(&format!("sign-in?next={page}"))).await;
        tab.click(&format!("button[value={user}]")).await;
        tab.shows("live").await;
        (context, tab)
    }

    /// Opens another tab.
    async fn open(&self, context: &Context, page: &str) -> Page {
        let tab = context.page(&self.url(page)).await;
        tab.shows("live").await;
        tab
    }
}

impl Page {
    async fn post_news(&self, text: &str) {
        self.fill("#text", text).await;
        self.click("#post .primary").await;
        self.until("document.querySelector('#text').value === ''").await;
    }

    async fn create(&self, title: &str) {
        self.fill("#title", title).await;
        self.click("#create .primary").await;
        self.until("document.querySelector('#title').value === ''").await;
    }

    /// Saves a screenshot in `target/browser`, for review by a person.
    async fn screenshot(&self, page: &str, size: &str) {
        let path = folder().join(format!("workspace-{page}-{size}.png"));
        self.call("screenshot", json!([{ "path": path, "type": "png" }])).await;
        let overhang = self.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
        assert_eq!(overhang, 0, "{page} on a {size}");
    }

    /// Returns the posts, newest first.
    async fn posts(&self) -> Value {
        self.eval("[...document.querySelectorAll('.post p')].map(post => post.textContent)").await
    }

    /// Waits until the page has shown a message. The message may have disappeared since.
    async fn has_shown_message(&self, text: &str) {
        self.until(&format!("toasts.includes({})", json!(text))).await;
    }

    async fn received(&self, name: &str) -> usize {
        let count = self.eval(&format!("received.filter(name => name === '{name}').length")).await;
        usize::try_from(count.as_u64().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn the_owner_of_a_deleted_document_is_notified_in_each_tab_and_on_each_page() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (ada, ada_reports) = workspace.sign_in(browser, "ada", "reports", json!({})).await;
    let ada_feed = workspace.open(&ada, "feed").await;
    let (ben, ben_documents) = workspace.sign_in(browser, "ben", "documents", json!({})).await;
    let ben_second = workspace.open(&ben, "documents").await;

    let hers = "Delete “A document of Ada” of Ada";
    for tab in [&ben_documents, &ben_second] {
        tab.sees(&format!("[aria-label='{hers}']")).await;
    }
    ben_documents.click(&format!("[aria-label='{hers}']")).await;
    for tab in [&ada_reports, &ada_feed] {
        tab.has_shown_message("Ben deleted your document “A document of Ada”").await;
        tab.reads("#unread", "1").await;
    }
    for tab in [&ben_documents, &ben_second] {
        tab.until(&format!("!document.querySelector(\"[aria-label='{hers}']\")")).await;
        assert_eq!(tab.eval("document.querySelector('#unread').hidden").await, true);
    }

    // A notification that is read in one tab is read in the other.
    ada_feed.click("#bell").await;
    ada_feed.click("#read").await;
    for tab in [&ada_feed, &ada_reports] {
        tab.until("document.querySelector('#unread').hidden").await;
    }
    for tab in [&ada_reports, &ada_feed, &ben_documents, &ben_second] {
        tab.has_no_errors().await;
    }
}

#[tokio::test]
async fn a_report_reaches_100_percent_in_each_tab_and_across_a_reload() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (ada, first) = workspace.sign_in(browser, "ada", "reports", json!({})).await;
    let second = workspace.open(&ada, "reports").await;
    let elsewhere = workspace.open(&ada, "documents").await;
    second
        .eval(
            "globalThis.percents = [];
             new MutationObserver(() => percents.push(document.querySelector('progress').value))
                 .observe(document.querySelector('#reports'), { childList: true, subtree: true, attributeFilter: ['value'] })",
        )
        .await;
    first.call("selectOption", json!(["#limit", "100000000"])).await;
    first.click("#start .primary").await;
    first.sees(".report.running").await;
    first.call("reload", json!([])).await;
    // On a busy machine, the server computes longer than other tests wait.
    let over = async {
        while first.eval("document.querySelector('.report:not(.running)') !== null").await != json!(true) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(180), over).await.expect("the report ends");
    for tab in [&first, &second] {
        tab.reads(".report.done .progress span", "100 %").await;
        tab.reads(".report.done .result strong", "5,761,455").await;
    }
    elsewhere.has_shown_message("Your report is ready: 5,761,455 primes below 100,000,000").await;
    let percents: Vec<u64> = serde_json::from_value(second.eval("percents").await).unwrap();
    assert!(percents.is_sorted() && percents.first() == Some(&0) && percents.last() == Some(&100), "{percents:?}");
    assert!(percents.len() > 3, "{percents:?}");
    first.call("reload", json!([])).await;
    first.reads(".report.done .result strong", "5,761,455").await;
    first.has_no_errors().await;
    second.has_no_errors().await;
}

#[tokio::test]
async fn a_report_is_stopped_in_one_tab_and_shown_as_stopped_in_the_other_and_after_a_reload() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (ada, first) = workspace.sign_in(browser, "ada", "reports", json!({})).await;
    let second = workspace.open(&ada, "reports").await;
    first.call("selectOption", json!(["#limit", "1000000000"])).await;
    first.click("#start .primary").await;
    first.until("document.querySelector('.report.running progress')?.value > 0").await;
    second.click(".report.running button").await;
    for tab in [&first, &second] {
        tab.reads(".report.stopped .badge", "Stopped").await;
    }
    first.call("reload", json!([])).await;
    first.reads(".report.stopped .badge", "Stopped").await;
    first.has_no_errors().await;
    second.has_no_errors().await;
}

#[tokio::test]
async fn with_a_shared_log_a_page_at_another_instance_shows_a_report_and_its_interruption() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Workspace::start(&shared), Workspace::start(&shared));
    let (_ada, at_one) = one.sign_in(browser, "ada", "reports", json!({})).await;
    let (_ada, at_two) = two.sign_in(browser, "ada", "reports", json!({})).await;
    at_one.call("selectOption", json!(["#limit", "1000000000"])).await;
    at_one.click("#start .primary").await;
    at_two.until("document.querySelector('.report.running progress')?.value > 0").await;
    one.shut_down().await;
    at_two.reads(".report.interrupted .badge", "Interrupted, because its server ended").await;
    at_two.call("reload", json!([])).await;
    at_two.reads(".report.interrupted .badge", "Interrupted, because its server ended").await;
    at_two.has_no_errors().await;
}

#[tokio::test]
async fn with_a_shared_log_a_page_shows_the_end_of_a_report_whose_instance_was_killed() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (mut one, two) = tokio::join!(Workspace::start(&shared), Workspace::start(&shared));
    let (_ada, at_one) = one.sign_in(browser, "ada", "reports", json!({})).await;
    let (_ada, at_two) = two.sign_in(browser, "ada", "reports", json!({})).await;
    at_one.call("selectOption", json!(["#limit", "1000000000"])).await;
    at_one.click("#start .primary").await;
    at_two.until("document.querySelector('.report.running progress')?.value > 0").await;
    one.process.kill().await.unwrap();
    // The last will follows when the instance has been silent for the peer timeout of 15 s.
    at_two.reads(".report.interrupted .badge", "Interrupted, because its server ended").await;
    at_two.has_no_errors().await;
}

#[tokio::test]
async fn a_restart_is_one_gap_and_the_page_loads_everything_again_and_shows_it() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (_ada, tab) = workspace.sign_in(browser, "ada", "feed", json!({})).await;
    tab.post_news("The winter plan is out.").await;
    assert_eq!(tab.posts().await, json!(["The winter plan is out."]));
    tab.eval("shown.length = 0").await;

    let addr = workspace.shut_down().await;
    let _workspace = Workspace::start_at(addr, &[]).await;
    tab.shows("refreshed").await;
    tab.reads("#banner", "Events were lost, so this page loaded its state again.").await;
    assert_eq!(tab.posts().await, json!([]));
    assert_eq!(tab.received("hub.gap").await, 1);
    assert_eq!(tab.received("hub.bye").await, 1);
    let shown = tab.eval("shown").await;
    let shown: Vec<&str> = shown.as_array().unwrap().iter().map(|state| state.as_str().unwrap()).collect();
    assert!(matches!(shown[..], ["restarting", .., "missed", "refreshed"]), "{shown:?}");

    // The page is live without a reload and without a new sign-in.
    tab.post_news("The bridge is closed.").await;
    assert_eq!(tab.posts().await, json!(["The bridge is closed."]));
    tab.has_no_errors().await;
}

#[tokio::test]
async fn with_a_shared_log_a_restart_is_no_gap_and_the_page_receives_what_it_missed() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Workspace::start(&shared), Workspace::start(&shared));
    let (_ada, ada) = one.sign_in(browser, "ada", "feed", json!({})).await;
    let (_ben, ben) = two.sign_in(browser, "ben", "feed", json!({})).await;
    ben.post_news("First").await;
    ada.until("document.querySelector('.post')").await;
    ada.eval("shown.length = 0").await;

    let addr = one.shut_down().await;
    ben.post_news("Second").await;
    ben.post_news("Third").await;
    let _one = Workspace::start_at(addr, &shared).await;
    ada.shows("resumed").await;
    ben.post_news("Fourth").await;
    ada.until("document.querySelectorAll('.post').length === 4").await;
    assert_eq!(ada.posts().await, json!(["Fourth", "Third", "Second", "First"]));
    assert_eq!((ada.received("hub.gap").await, ada.received("hub.bye").await), (0, 1));
    let shown = ada.eval("shown").await;
    let shown: Vec<&str> = shown.as_array().unwrap().iter().map(|state| state.as_str().unwrap()).collect();
    // The instance may be busy for a moment, while it reads the log.
    assert!(matches!(shown[..], ["restarting", "resumed"] | ["restarting", "busy", "resumed"]), "{shown:?}");
    assert_eq!(ben.received("hub.bye").await, 0);
    ada.has_no_errors().await;
    ben.has_no_errors().await;
}

#[tokio::test]
async fn a_page_that_reconnects_to_a_starting_instance_gets_a_retryable_refusal_and_then_resumes() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let between = Proxy::start(redis.port).await;
    let url = format!("redis://127.0.0.1:{}", between.port);
    let shared = ["--backplane", &url];
    let workspace = Workspace::start(&shared).await;
    let (_ada, tab) = workspace.sign_in(browser, "ada", "feed", json!({})).await;
    tab.eval("shown.length = 0").await;
    let addr = workspace.shut_down().await;
    between.set(Mode::StallsAnswers);
    let _workspace = Workspace::start_at(addr, &shared).await;
    tab.shows("busy").await;
    between.set(Mode::Passes);
    tab.shows("resumed").await;
    assert_eq!(tab.eval("shown").await, json!(["restarting", "busy", "resumed"]));
    assert_eq!(tab.received("hub.gap").await, 0);
    tab.has_no_errors().await;
}

#[tokio::test]
async fn a_page_from_the_back_forward_cache_continues_its_stream() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (_ada, tab) = workspace.sign_in(browser, "ada", "documents", json!({})).await;
    let (_ben, ben) = workspace.sign_in(browser, "ben", "documents", json!({})).await;
    tab.eval("addEventListener('pageshow', event => { globalThis.persisted = event.persisted; })").await;
    tab.click("nav a[href='/feed']").await;
    tab.until("location.pathname === '/feed' && document.querySelector('#status').dataset.state === 'live'").await;
    ben.create("Plan for the bridge").await;
    tab.eval("void setTimeout(() => history.back())").await;
    // The page comes from the cache and is not a new load of that address.
    tab.until("globalThis.persisted !== undefined").await;
    assert_eq!(tab.eval("[location.pathname, persisted]").await, json!(["/documents", true]));
    tab.until("document.body.innerText.includes('Plan for the bridge')").await;
    tab.until("['live', 'resumed'].includes(document.querySelector('#status').dataset.state)").await;
    ben.create("Plan for the harbor").await;
    tab.until("document.body.innerText.includes('Plan for the harbor')").await;
    tab.has_no_errors().await;
}

const SIZES: [(&str, u32, u32, bool); 2] = [("laptop", 1280, 800, false), ("phone", 390, 844, true)];

#[tokio::test]
async fn no_page_is_wider_than_the_screen_and_each_has_a_screenshot() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (_ben, ben) = workspace.sign_in(browser, "ben", "documents", json!({})).await;
    ben.create("A title that is as long as titles may be, to see how it wraps where it must").await;
    ben.click("[aria-label='Delete “A document of Ada” of Ada']").await;
    ben.call("goto", json!([workspace.url("feed")])).await;
    ben.shows("live").await;
    ben.post_news("The winter plan is out.\nTell me what is missing, until Friday.").await;

    for (size, width, height, is_phone) in SIZES {
        let options = json!({
            "viewport": { "width": width, "height": height }, "isMobile": is_phone, "hasTouch": is_phone,
            "colorScheme": if is_phone { "dark" } else { "light" }, "locale": "en-GB",
        });
        let (context, tab) = workspace.sign_in(browser, "ada", "reports", options).await;
        tab.call("selectOption", json!(["#limit", "10000000"])).await;
        tab.click("#start .primary").await;
        tab.sees(".report.done").await;
        tab.click("#bell").await;
        tab.sees("#notifications .unread").await;
        tab.screenshot("tray", size).await;
        for (page, content) in [
            ("documents", "#documents li"),
            ("reports", ".report.done"),
            ("dashboard", "#charts:has(polyline[points*=' '])"),
            ("feed", ".post"),
        ] {
            tab.call("goto", json!([workspace.url(page)])).await;
            tab.shows("live").await;
            tab.sees(content).await;
            tab.screenshot(page, size).await;
        }
        tab.has_no_errors().await;
        context.page(&workspace.url("sign-in")).await.screenshot("sign-in", size).await;
    }
}
