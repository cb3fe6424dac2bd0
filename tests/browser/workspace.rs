//! The workspace example, as two people use it in several tabs.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use crate::driver::{Browser, Context, Page, browser};
use crate::example::example;
use crate::support::soon;

#[path = "../support/port.rs"]
mod port;

/// With the same one people stay signed in across restarts.
const SECRET: &str = "a secret of the tests";

/// Keeps what the hub says to a page, and what the page shows of it.
const WATCH: &str = r##"
  globalThis.heard = [];
  globalThis.shown = [];
  globalThis.EventSource = class extends EventSource {
    constructor(...args) {
      super(...args);
      for (const name of ["hub.gap", "hub.bye", "hub.live"]) this.addEventListener(name, () => heard.push(name));
    }
  };
  new MutationObserver(changes => {
    for (const { target } of changes) if (target.id === "status" && target.dataset.state !== shown.at(-1)) shown.push(target.dataset.state);
  }).observe(document, { subtree: true, attributeFilter: ["data-state"] });
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

    /// Returns when it listens.
    async fn start_at(addr: SocketAddr, more: &[&str]) -> Self {
        let program = spawn_blocking(|| example("workspace")).await.unwrap();
        let mut command = Command::new(program);
        command.args(["--listen", &addr.to_string(), "--secret", SECRET]).args(more);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = soon(lines.next_line()).await.unwrap();
        assert_eq!(said, Some(format!("open http://{addr}")));
        Self { addr, process }
    }

    /// As service managers do it, and people with Ctrl-C.
    async fn leave(mut self) -> SocketAddr {
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        assert!(soon(self.process.wait()).await.unwrap().success());
        self.addr
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }

    /// Somebody's browser, and their first tab.
    async fn sign_in(&self, browser: &'static Browser, user: &str, page: &str, options: Value) -> (Context, Page) {
        let context = browser.context(options).await;
        context.before_scripts(WATCH).await;
        let tab = context.page(&self.url(&format!("sign-in?next={page}"))).await;
        tab.click(&format!("button[value={user}]")).await;
        tab.shows("live").await;
        (context, tab)
    }

    /// Another tab.
    async fn open(&self, context: &Context, page: &str) -> Page {
        let tab = context.page(&self.url(page)).await;
        tab.shows("live").await;
        tab
    }
}

impl Page {
    /// Waits until it shows this state of its stream.
    #[track_caller]
    fn shows<'a>(&'a self, state: &str) -> impl Future<Output = ()> + use<'a> {
        self.sees(&format!("#status[data-state={state}]"))
    }

    /// Waits until an element has exactly this text.
    #[track_caller]
    fn reads<'a>(&'a self, selector: &str, text: &str) -> impl Future<Output = ()> + use<'a> {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!("document.querySelector({selector})?.textContent.trim() === {text}"))
    }

    async fn fill(&self, selector: &str, text: &str) {
        self.call("fill", json!([selector, text])).await;
    }

    async fn post_news(&self, text: &str) {
        self.fill("#text", text).await;
        self.click("#post .primary").await;
        self.until("document.querySelector('#text').value === ''").await;
    }

    /// The newest first.
    async fn news(&self) -> Value {
        self.eval("[...document.querySelectorAll('.post p')].map(post => post.textContent)").await
    }

    async fn heard(&self, name: &str) -> usize {
        let count = self.eval(&format!("heard.filter(name => name === '{name}').length")).await;
        usize::try_from(count.as_u64().unwrap()).unwrap()
    }

    /// No script of it failed.
    async fn is_well(&self) {
        assert_eq!(self.errors().await, json!([]));
    }
}

#[tokio::test]
async fn whose_document_is_deleted_is_told_in_each_tab_on_whatever_page() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (ada, ada_reports) = workspace.sign_in(browser, "ada", "reports", json!({})).await;
    let ada_feed = workspace.open(&ada, "feed").await;
    let (ben, ben_documents) = workspace.sign_in(browser, "ben", "documents", json!({})).await;
    let ben_too = workspace.open(&ben, "documents").await;

    let hers = "Delete “A document of Ada” of Ada";
    for tab in [&ben_documents, &ben_too] {
        tab.sees(&format!("[aria-label='{hers}']")).await;
    }
    ben_documents.click(&format!("[aria-label='{hers}']")).await;
    for tab in [&ada_reports, &ada_feed] {
        tab.reads("#toasts .toast", "Ben deleted your document “A document of Ada”").await;
        tab.reads("#unread", "1").await;
    }
    for tab in [&ben_documents, &ben_too] {
        tab.until(&format!("!document.querySelector(\"[aria-label='{hers}']\")")).await;
        assert_eq!(tab.eval("document.querySelector('#unread').hidden").await, true);
    }

    // What is read in one is read in the other.
    ada_feed.click("#bell").await;
    ada_feed.click("#read").await;
    for tab in [&ada_feed, &ada_reports] {
        tab.until("document.querySelector('#unread').hidden").await;
    }
    for tab in [&ada_reports, &ada_feed, &ben_documents, &ben_too] {
        tab.is_well().await;
    }
}

#[tokio::test]
async fn a_report_goes_to_100_percent_in_each_tab_and_through_a_reload() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (ada, first) = workspace.sign_in(browser, "ada", "reports", json!({})).await;
    let second = workspace.open(&ada, "reports").await;
    let elsewhere = workspace.open(&ada, "documents").await;
    second
        .eval(
            "globalThis.percents = [];
             new MutationObserver(() => percents.push(document.querySelector('progress').value))
                 .observe(document.querySelector('#reports'), { childList: true })",
        )
        .await;
    first.call("selectOption", json!(["#limit", "100000000"])).await;
    first.click("#start .primary").await;
    first.sees(".report.running").await;
    first.call("reload", json!([])).await;
    for tab in [&first, &second] {
        tab.reads(".report.done .progress span", "100 %").await;
        tab.reads(".report.done .result strong", "5,761,455").await;
    }
    elsewhere.reads("#toasts .toast", "Your report is ready: 5,761,455 primes below 100,000,000").await;
    let percents: Vec<u64> = serde_json::from_value(second.eval("percents").await).unwrap();
    assert!(percents.is_sorted() && percents.first() == Some(&0) && percents.last() == Some(&100), "{percents:?}");
    assert!(percents.len() > 3, "{percents:?}");
    first.is_well().await;
    second.is_well().await;
}

#[tokio::test]
async fn a_restart_is_one_gap_and_the_page_fetches_everything_anew_and_says_so() {
    let Some(browser) = browser() else { return };
    let workspace = Workspace::start(&[]).await;
    let (_ada, tab) = workspace.sign_in(browser, "ada", "feed", json!({})).await;
    tab.post_news("This was in memory.").await;
    assert_eq!(tab.news().await, json!(["This was in memory."]));
    tab.eval("shown.length = 0").await;

    let addr = workspace.leave().await;
    let _workspace = Workspace::start_at(addr, &[]).await;
    tab.shows("refreshed").await;
    tab.reads("#banner", "Something was missed, so this page was fetched anew.").await;
    assert_eq!(tab.news().await, json!([]));
    assert_eq!(tab.heard("hub.gap").await, 1);
    assert_eq!(tab.heard("hub.bye").await, 1);
    let shown = tab.eval("shown").await;
    let shown: Vec<&str> = shown.as_array().unwrap().iter().map(|state| state.as_str().unwrap()).collect();
    assert!(matches!(shown[..], ["restarting", .., "missed", "refreshed"]), "{shown:?}");

    // It is live: nobody had to reload it, or to sign in.
    tab.post_news("And this is after.").await;
    assert_eq!(tab.news().await, json!(["And this is after."]));
    tab.is_well().await;
}
