//! One Chromium for all tests. `driver.mjs` controls it through Playwright.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::kit::skip;

const CHROMIUM: &str = "/usr/bin/chromium";
/// Much longer than any wait for a page, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(40);

fn timeout_millis() -> u64 {
    u64::try_from(TIMEOUT.as_millis()).unwrap()
}

/// The folder in which `tests/run` installs Playwright, and which gets the screenshots.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/browser")
}

/// The one browser. If a tool is missing, reports the test as skipped and returns `None`.
pub fn browser() -> Option<&'static Browser> {
    static BROWSER: OnceLock<Browser> = OnceLock::new();
    static MISSING: OnceLock<Option<&'static str>> = OnceLock::new();
    if let Some(missing) = MISSING.get_or_init(missing) {
        skip::not_installed(missing);
        return None;
    }
    Some(BROWSER.get_or_init(Browser::start))
}

fn missing() -> Option<&'static str> {
    let has_node = Command::new("node").arg("--version").stdout(Stdio::null()).status().is_ok();
    [
        ("node", has_node),
        ("chromium", Path::new(CHROMIUM).exists()),
        ("target/browser/node_modules/playwright-core", folder().join("node_modules/playwright-core").exists()),
    ]
    .into_iter()
    .find_map(|(name, is_there)| (!is_there).then_some(name))
}

type Answer = Result<Value, String>;

/// The process of the driver. It ends when its input is closed, so it ends with the test process.
pub struct Browser {
    input: Mutex<ChildStdin>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>,
    numbers: AtomicU64,
}

impl Browser {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/driver.mjs");
        let mut command = Command::new("node");
        command.arg(script).arg(folder()).arg(CHROMIUM).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let waiting = Arc::default();
        std::thread::spawn({
            let waiting = Arc::clone(&waiting);
            move || {
                read_answers(output, &waiting);
                drop(child.wait());
            }
        });
        Self { input: Mutex::new(input), waiting, numbers: AtomicU64::new(1) }
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a command at once, and returns the receiver of its answer.
    fn send(&self, on: u64, call: &str, args: &Value, as_number: Option<u64>) -> oneshot::Receiver<Answer> {
        let id = self.next_number();
        let mut line = json!({ "id": id, "on": on, "call": call, "args": args });
        if let Some(number) = as_number {
            line["as"] = number.into();
        }
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, sender);
        if writeln!(self.input.lock().unwrap(), "{line}").is_err() {
            // The driver has ended, so no answer will arrive.
            self.waiting.lock().unwrap().remove(&id);
        }
        answer
    }

    async fn call(&self, on: u64, call: &str, args: Value, as_number: Option<u64>) -> Answer {
        let answer = self.send(on, call, &args, as_number);
        match tokio::time::timeout(TIMEOUT * 2, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the driver ended: see its output above".into()),
            Err(_) => Err("the driver does not answer".into()),
        }
    }

    /// Opens a browser context with separate cookies, cache and connections, like a person's
    /// browser.
    pub async fn context(&'static self, options: Value) -> Context {
        let number = self.next_number();
        self.call(0, "newContext", json!([options]), Some(number)).await.unwrap();
        let context = Context { browser: self, number };
        self.call(number, "setDefaultTimeout", json!([timeout_millis()]), None).await.unwrap();
        context
    }
}

fn read_answers(output: ChildStdout, waiting: &Mutex<HashMap<u64, oneshot::Sender<Answer>>>) {
    for line in BufReader::new(output).lines() {
        let Ok(mut answer) = line.map(|line| serde_json::from_str::<Value>(&line).unwrap()) else { break };
        let sender = waiting.lock().unwrap().remove(&answer["id"].as_u64().unwrap());
        let answer = match answer["error"].take() {
            Value::String(error) => Err(error),
            _ => Ok(answer["value"].take()),
        };
        // The receiver may be gone: no test waits until a context is closed.
        drop(sender.unwrap().send(answer));
    }
    // Dropping the senders ends the calls that still wait.
    waiting.lock().unwrap().clear();
}

/// A browser context. Dropping it closes it and its pages.
pub struct Context {
    browser: &'static Browser,
    number: u64,
}

impl Context {
    /// Adds a script that runs in each page before the scripts of the page.
    pub async fn before_scripts(&self, script: &str) {
        self.browser.call(self.number, "addInitScript", json!([{ "content": script }]), None).await.unwrap();
    }

    pub async fn page(&self, url: &str) -> Page {
        let number = self.browser.next_number();
        self.browser.call(self.number, "newPage", json!([]), Some(number)).await.unwrap();
        let page = Page { browser: self.browser, number };
        page.call("goto", json!([url])).await;
        page
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        drop(self.browser.send(self.number, "close", &json!([]), None));
    }
}

/// A tab.
pub struct Page {
    browser: &'static Browser,
    number: u64,
}

impl Page {
    /// Calls a method of Playwright's `Page`.
    #[track_caller]
    pub fn call<'a>(&'a self, method: &str, args: Value) -> impl Future<Output = Value> + use<'a> {
        let (caller, method) = (Location::caller(), method.to_owned());
        async move {
            let text = args.to_string();
            match self.browser.call(self.number, &method, args, None).await {
                Ok(value) => value,
                Err(error) => panic!("{caller}: {method} {text}: {error}\n{}", self.describe().await),
            }
        }
    }

    /// Returns the value of an expression in the page. Waits for the result if the value is a
    /// promise.
    #[track_caller]
    pub fn eval<'a>(&'a self, expression: &str) -> impl Future<Output = Value> + use<'a> {
        self.call("evaluate", json!([expression]))
    }

    /// Waits until an expression holds in the page.
    #[track_caller]
    pub fn until<'a>(&'a self, expression: &str) -> impl Future<Output = ()> + use<'a> {
        let waited = self.call("until", json!([expression, timeout_millis()]));
        async { drop(waited.await) }
    }

    /// Waits until an element is visible, and clicks on it.
    #[track_caller]
    pub fn click<'a>(&'a self, selector: &str) -> impl Future<Output = ()> + use<'a> {
        let clicked = self.call("click", json!([selector]));
        async { drop(clicked.await) }
    }

    /// Waits until an element is visible.
    #[track_caller]
    pub fn sees<'a>(&'a self, selector: &str) -> impl Future<Output = ()> + use<'a> {
        let seen = self.call("waitForSelector", json!([selector]));
        async { drop(seen.await) }
    }

    /// Waits until the page shows this state of its stream.
    #[track_caller]
    pub fn shows<'a>(&'a self, state: &str) -> impl Future<Output = ()> + use<'a> {
        self.sees(&format!("#status[data-state={state}]"))
    }

    /// Waits until an element has exactly this text.
    #[track_caller]
    pub fn reads<'a>(&'a self, selector: &str, text: &str) -> impl Future<Output = ()> + use<'a> {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!("document.querySelector({selector})?.textContent.trim() === {text}"))
    }

    /// Replaces the text of a field.
    pub async fn fill(&self, selector: &str, text: &str) {
        self.call("fill", json!([selector, text])).await;
    }

    /// Returns the uncaught errors of the scripts of the page.
    pub async fn errors(&self) -> Value {
        self.call("errors", json!([])).await
    }

    /// Checks that no script of the page has failed.
    pub async fn has_no_errors(&self) {
        assert_eq!(self.errors().await, json!([]));
    }

    /// Describes the page for the message of a failure.
    async fn describe(&self) -> String {
        let script = "JSON.stringify({ url: location.href, text: document.body?.innerText, \
            streams: globalThis.streams?.map(({ source, log }) => ({ state: source.readyState, log })) }, null, 1)";
        let description = self.browser.call(self.number, "evaluate", json!([script]), None).await;
        description.map_or_else(|error| error, |text| text.as_str().unwrap_or_default().to_owned())
    }
}
