//! The chat example: an answer survives reloads, broken connections, deploys and restarts, and the
//! end of its writer is reported.

use std::net::SocketAddr;
use std::process::Stdio;

use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use crate::driver::{Browser, Context, Page, browser, folder};
use crate::example::example;
use crate::kit::{get, port, send, soon};
use crate::proxy::{Mode, Proxy};
use crate::redis_server::{FORGETFUL, RedisServer};

/// The generator of the example, which returns the expected answers.
#[path = "../../examples/chat/model.rs"]
mod model;

const QUESTION: &str = "Why do ships float?";

fn whole_answer() -> String {
    model::answer(QUESTION).join(" ")
}

/// Records the states that the page shows, and the texts of the last answer.
const WATCH: &str = r##"
  globalThis.shown = [];
  globalThis.texts = [];
  new MutationObserver(() => {
    const state = document.querySelector("#status")?.dataset.state;
    if (state && state !== shown.at(-1)) shown.push(state);
    const text = document.querySelector("#messages li:last-child .text")?.textContent;
    if (text && text !== texts.at(-1)) texts.push(text);
  }).observe(document, { subtree: true, childList: true, attributeFilter: ["data-state"] });
"##;

/// A process of the example.
struct Instance {
    addr: SocketAddr,
    process: Child,
}

impl Instance {
    async fn start(more: &[&str]) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], port::free_port())), more).await
    }

    /// Starts the program, and returns when it is ready.
    async fn start_at(addr: SocketAddr, more: &[&str]) -> Self {
        let program = spawn_blocking(|| example("chat")).await.unwrap();
        let mut command = Command::new(program);
        command.arg(addr.to_string()).args(more);
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(soon(lines.next_line()).await.unwrap(), Some(format!("open http://{addr}")));
        soon(async { while get(addr, "/readyz").await.status != 200 {} }).await;
        Self { addr, process }
    }

    /// Kills the process, like a crash. Returns its address.
    async fn kill(mut self) -> SocketAddr {
        self.process.kill().await.unwrap();
        self.addr
    }

    /// Stops the process by SIGTERM, as service managers do, and waits for its exit.
    async fn shut_down(mut self) -> SocketAddr {
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        assert!(soon(self.process.wait()).await.unwrap().success());
        self.addr
    }

    /// Asks the question in the chat of the test, without a page.
    async fn ask(&self) {
        let body: &str = json!({ "text": QUESTION }).to_string().leak();
        let request = Request::post("/chats/test/messages").header("content-type", "application/json");
        assert_eq!(send(self.addr, request.body(body).unwrap()).await.status, 202);
    }

    async fn open(&self, context: &Context) -> Page {
        open(context, self.addr.port()).await
    }
}

/// Opens the chat of the test in a new tab.
async fn open(context: &Context, port: u16) -> Page {
    let page = context.page(&format!("http://127.0.0.1:{port}/#test")).await;
    page.shows("connected").await;
    page
}

async fn context(browser: &'static Browser) -> Context {
    let context = browser.context(json!({})).await;
    context.before_scripts(WATCH).await;
    context
}

impl Page {
    async fn ask(&self) {
        self.fill("#question", QUESTION).await;
        self.click("#send").await;
    }

    /// Waits until the last answer is growing and has at least this number of words.
    #[track_caller]
    fn grows_to<'a>(&'a self, words: usize) -> impl Future<Output = ()> + use<'a> {
        let text = "document.querySelector('#messages li:last-child.growing .text')?.textContent";
        self.until(&format!("{text}?.split(' ').length >= {words}"))
    }

    /// Waits until the last answer has this state, and returns its text.
    #[track_caller]
    fn ends<'a>(&'a self, state: &str) -> impl Future<Output = String> + use<'a> {
        let seen = self.sees(&format!("#messages li:last-child.{state}"));
        async move {
            seen.await;
            let text = self.eval("document.querySelector('#messages li:last-child .text').textContent").await;
            text.as_str().unwrap().to_owned()
        }
    }

    /// Returns all states of the connection that the page has shown.
    async fn states(&self) -> Vec<String> {
        serde_json::from_value(self.eval("shown").await).unwrap()
    }

    /// Asserts that the text of the answer only grew. A page that reads the answer again from its
    /// first word shows a shorter text for a moment.
    async fn never_began_again(&self) {
        let texts: Vec<String> = serde_json::from_value(self.eval("texts").await).unwrap();
        assert!(texts.windows(2).all(|pair| pair[1].starts_with(&pair[0])), "{texts:#?}");
    }

    async fn messages(&self) -> Value {
        self.eval("document.querySelectorAll('#messages li').length").await
    }
}

#[test]
fn every_answer_has_60_to_120_words() {
    for question in [QUESTION, "How do bridges stay up?", "Why?", "?", "", "Чому?"] {
        let words = model::answer(question).len();
        assert!((60..=120).contains(&words), "{question}: {words}");
        assert_eq!(model::answer(question), model::answer(question));
    }
    assert_ne!(model::answer("Why do ships float?"), model::answer("Why do ships sink?"));
}

#[tokio::test]
async fn a_reload_in_the_middle_shows_the_whole_answer_once() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let context = context(browser).await;
    let page = instance.open(&context).await;
    page.ask().await;
    page.grows_to(10).await;
    page.call("reload", json!([])).await;
    page.grows_to(20).await;
    assert_eq!(page.ends("finished").await, whole_answer());
    assert_eq!(page.messages().await, 1);
    // After the end, the page loads the answer from the list of messages.
    page.call("reload", json!([])).await;
    assert_eq!(page.ends("finished").await, whole_answer());
    page.has_no_errors().await;
}

#[tokio::test]
async fn tabs_that_opened_before_and_in_the_middle_show_the_same_growing_answer() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let context = context(browser).await;
    let (asks, before) = (instance.open(&context).await, instance.open(&context).await);
    asks.ask().await;
    asks.grows_to(10).await;
    let middle = instance.open(&context).await;
    for page in [&before, &middle] {
        page.grows_to(15).await;
    }
    for page in [&asks, &before, &middle] {
        assert_eq!(page.ends("finished").await, whole_answer());
        page.never_began_again().await;
        page.has_no_errors().await;
    }
}

#[tokio::test]
async fn stop_ends_the_answer_in_both_tabs() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let context = context(browser).await;
    let (first, second) = (instance.open(&context).await, instance.open(&context).await);
    first.ask().await;
    second.grows_to(5).await;
    second.click("#stop").await;
    let text = first.ends("stopped").await;
    assert_eq!(second.ends("stopped").await, text);
    let whole = whole_answer();
    assert!(whole.starts_with(&text) && whole != text, "{text}");
    for page in [&first, &second] {
        page.reads(".stopped .note span", "The answer was stopped.").await;
        page.sees("#send").await;
        page.has_no_errors().await;
    }
}

#[tokio::test]
async fn an_answer_continues_after_its_connection_broke() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let network = Proxy::start(instance.addr.port()).await;
    let context = context(browser).await;
    let page = open(&context, network.port).await;
    page.ask().await;
    for words in [10, 30] {
        page.grows_to(words).await;
        network.set(Mode::Resets);
        page.shows("reconnecting").await;
        network.set(Mode::Passes);
        page.shows("connected").await;
    }
    assert_eq!(page.ends("finished").await, whole_answer());
    page.never_began_again().await;
    page.has_no_errors().await;
}

#[tokio::test]
async fn a_page_that_was_offline_until_after_the_end_shows_the_whole_answer() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let network = Proxy::start(instance.addr.port()).await;
    let context = context(browser).await;
    let (page, online) = (open(&context, network.port).await, instance.open(&context).await);
    page.ask().await;
    page.grows_to(5).await;
    network.set(Mode::Resets);
    online.ends("finished").await;
    network.set(Mode::Passes);
    assert_eq!(page.ends("finished").await, whole_answer());
    page.never_began_again().await;
    page.has_no_errors().await;
}

#[tokio::test]
async fn a_page_at_the_other_instance_reports_that_the_writer_was_killed() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Instance::start(&shared), Instance::start(&shared));
    let context = context(browser).await;
    let page = two.open(&context).await;
    one.ask().await;
    page.grows_to(10).await;
    one.kill().await;
    let text = page.ends("interrupted").await;
    let whole = whole_answer();
    assert!(whole.starts_with(&text) && whole != text, "{text}");
    page.reads(".interrupted .note span", "The answer was interrupted.").await;

    // A page that opens later reports the same.
    let later = two.open(&context).await;
    assert_eq!(later.ends("interrupted").await, text);
    later.click(".again").await;
    for page in [&page, &later] {
        page.grows_to(1).await;
        assert_eq!(page.messages().await, 2);
        page.has_no_errors().await;
    }
}

#[tokio::test]
async fn an_answer_continues_at_the_other_instance_after_the_instance_of_the_page_was_killed() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Instance::start(&shared), Instance::start(&shared));
    let balancer = Proxy::start(one.addr.port()).await;
    let context = context(browser).await;
    let page = open(&context, balancer.port).await;
    two.ask().await;
    page.grows_to(10).await;
    balancer.set_target(two.addr.port());
    one.kill().await;
    page.reads("#instance", &format!("Served by {}.", two.addr)).await;
    assert_eq!(page.ends("finished").await, whole_answer());
    page.never_began_again().await;
    page.has_no_errors().await;
}

#[tokio::test]
async fn an_answer_continues_at_the_other_instance_during_a_deploy() {
    let Some(browser) = browser() else { return };
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Instance::start(&shared), Instance::start(&shared));
    let balancer = Proxy::start(one.addr.port()).await;
    let context = context(browser).await;
    let page = open(&context, balancer.port).await;
    two.ask().await;
    page.grows_to(10).await;
    balancer.set_target(two.addr.port());
    one.shut_down().await;
    page.reads("#instance", &format!("Served by {}.", two.addr)).await;
    assert_eq!(page.ends("finished").await, whole_answer());
    page.never_began_again().await;
    assert!(page.states().await.iter().any(|state| state == "restarting"));
    page.has_no_errors().await;
}

#[tokio::test]
async fn a_shutdown_waits_for_the_answers_of_the_instance() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let context = context(browser).await;
    let page = instance.open(&context).await;
    page.ask().await;
    page.grows_to(5).await;
    let (_, text) = tokio::join!(instance.shut_down(), page.ends("finished"));
    assert_eq!(text, whole_answer());
    page.never_began_again().await;
    page.has_no_errors().await;
}

#[tokio::test]
async fn a_page_reports_that_a_restart_without_a_broker_interrupted_the_answer() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    let context = context(browser).await;
    let page = instance.open(&context).await;
    page.ask().await;
    page.click("#stop").await;
    page.ends("stopped").await;
    page.ask().await;
    page.grows_to(10).await;
    let addr = instance.kill().await;
    let _instance = Instance::start_at(addr, &[]).await;
    let text = page.ends("interrupted").await;
    let whole = whole_answer();
    assert!(whole.starts_with(&text) && text.split(' ').count() >= 10, "{text}");
    page.reads(".interrupted .note span", "The answer was interrupted, and the server no longer has it.").await;
    // The new process has forgotten the chat, and its numbers begin again.
    page.click("#messages li:last-child .again").await;
    page.until("document.querySelectorAll('#messages li').length === 3").await;
    assert_eq!(page.ends("finished").await, whole);
    page.has_no_errors().await;
}

const SIZES: [(&str, u32, u32, bool); 2] = [("laptop", 1280, 800, false), ("phone", 360, 740, true)];

#[tokio::test]
async fn the_page_is_not_wider_than_the_screen() {
    let Some(browser) = browser() else { return };
    let instance = Instance::start(&[]).await;
    for (size, width, height, is_phone) in SIZES {
        let options = json!({
            "viewport": { "width": width, "height": height }, "isMobile": is_phone, "hasTouch": is_phone,
            "deviceScaleFactor": 2, "colorScheme": if is_phone { "dark" } else { "light" },
        });
        let context = browser.context(options).await;
        let page = context.page(&format!("http://{}/#{size}", instance.addr)).await;
        page.sees("#welcome").await;
        page.fits("welcome", size).await;
        page.click("#suggestions button").await;
        page.click("#stop").await;
        page.ends("stopped").await;
        page.fill("#question", &format!("How long is a {}?", "very ".repeat(20) + &"long".repeat(20))).await;
        page.click("#send").await;
        page.grows_to(30).await;
        page.fits("growing", size).await;
        page.click("#stop").await;
        page.ends("stopped").await;
        page.fits("stopped", size).await;
        page.has_no_errors().await;
    }
}

impl Page {
    /// Asserts that the page needs no horizontal scrolling. Saves a screenshot in `target/browser`,
    /// for review by a person.
    async fn fits(&self, what: &str, size: &str) {
        let path = folder().join(format!("chat-{what}-{size}.png"));
        self.call("screenshot", json!([{ "path": path, "type": "png" }])).await;
        let overhang = self.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
        assert_eq!(overhang, 0, "{what} on a {size}");
    }
}
