//! The recipes for clients of AI protocols in `docs/recipes.md`, each run by its client.
//!
//! The document has the files of this folder as they are, and the `fetch` that resumes. If a file
//! changes, `UPDATE_DOCS=1 cargo test --test interop recipes` writes it into the document.

#![allow(
    clippy::needless_pass_by_value,
    clippy::doc_markdown,
    reason = "a recipe is short, and has the names that its reader knows"
)]

mod ag_ui;
mod ai;
mod chat_completions;
mod langgraph;
mod openai;
mod tanstack;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::stream::BoxStream;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower_sse::Hub;

use crate::client;
use crate::runs::{CLIENTS, Client, Driver, Gate, HALF, Job, PARTS, TEXT};

/// Whether the model waits at half of the answer.
static HELD: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// The model of all recipes.
fn words(_: &Value) -> BoxStream<'static, String> {
    Box::pin(async_stream::stream! {
        for (n, part) in PARTS.into_iter().enumerate() {
            if n == PARTS.len() / 2 {
                drop(HELD.subscribe().wait_for(|held| !held).await);
            }
            yield part.to_owned();
        }
    })
}

/// A recipe, and the client that runs it.
struct Recipe {
    file: &'static str,
    routes: fn(Hub) -> Router,
    package: &'static str,
    /// The way of use that resumes after a break, if the client has one.
    variant: &'static str,
}

const RECIPES: &[Recipe] = &[
    Recipe { file: "ai.rs", routes: |hub| ai::routes(hub, words), package: "ai", variant: "with a resuming `fetch`" },
    Recipe {
        file: "ag_ui.rs",
        routes: |hub| ag_ui::routes(hub, words),
        package: "@ag-ui/client",
        variant: "with a resuming `fetch`",
    },
    Recipe {
        file: "tanstack.rs",
        routes: |hub| tanstack::routes(hub, words),
        package: "@tanstack/ai-client",
        variant: "",
    },
    Recipe {
        file: "langgraph.rs",
        routes: |hub| langgraph::routes(hub, words),
        package: "@langchain/langgraph-sdk",
        variant: "",
    },
    Recipe { file: "openai.rs", routes: |hub| openai::routes(hub, words), package: "openai", variant: "Responses" },
    Recipe {
        file: "chat_completions.rs",
        routes: |hub| chat_completions::routes(hub, words),
        package: "openai",
        variant: "Chat Completions",
    },
];

/// A server with one recipe.
struct Server {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(recipe: &Recipe) -> Self {
        let hub = Hub::builder().build().unwrap();
        // One request for each connection, so that the proxy of the test can break one stream.
        let app = (recipe.routes)(hub.clone()).layer(axum::middleware::map_response(async |mut response: Response| {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(hub.listener(listener), app).await.unwrap() });
        Self { addr, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recipe {
    fn client(&self) -> &'static Client {
        let is_this = |client: &&Client| client.package == self.package && client.variant == self.variant;
        CLIENTS.iter().find(is_this).unwrap()
    }

    /// Reads an answer that breaks in the middle, stops one, and reads one on a second page.
    async fn run(&self) {
        let (file, resumes) = (self.file, self.client().resumes);
        let server = Server::start(self).await;
        let gate = Gate::start(vec![server.addr]).await;
        let driver = Driver::start(self.client(), false);
        let base = format!("http://{}", gate.addr);
        let job = |how, id| driver.job(how, id, &base, &base);
        let end = async |job: &mut Job<'_>| job.end().await.unwrap_or_else(|| panic!("{file}: no end"));

        let report = end(&mut job("ask", "whole")).await;
        assert_eq!((&*report.text, &*report.end), (TEXT, "finished"), "{file}: {report:?}");

        HELD.send_replace(true);
        let mut broken = job("ask", "broken");
        assert!(broken.shows_half(1).await, "{file}: {:?}", broken.end().await);
        let before = gate.connections();
        gate.break_first(before).await;
        HELD.send_replace(false);
        let report = end(&mut broken).await;
        // A client that cannot resume must not take half an answer for a whole one.
        let expected = if resumes { (TEXT, "finished") } else { (HALF, "error") };
        assert_eq!((&*report.text, &*report.end), expected, "{file}: {report:?}");
        assert_eq!(gate.connections() > before, resumes, "{file}");

        HELD.send_replace(true);
        let report = end(&mut job("stop", "stopped")).await;
        assert_eq!(report.text, HALF, "{file}: {report:?}");

        if resumes {
            let mut reloaded = job("reload", "reloaded");
            assert!(reloaded.shows_half(2).await, "{file}: {:?}", reloaded.end().await);
            HELD.send_replace(false);
            let report = end(&mut reloaded).await;
            assert_eq!((&*report.text, &*report.end), (TEXT, "finished"), "{file}: {report:?}");
        }
        HELD.send_replace(false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_run_the_recipes() {
    if client::installed().is_none() {
        return;
    }
    for recipe in RECIPES {
        recipe.run().await;
    }
}

#[test]
fn the_document_has_the_recipes_that_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("docs/recipes.md");
    let mut document = std::fs::read_to_string(&path).unwrap();
    let before = document.clone();
    let recipes = RECIPES.iter().map(|recipe| ("rust", format!("tests/interop/recipes/{}", recipe.file)));
    for (language, file) in recipes.chain([("js", "tests/interop/node/runs/resuming-fetch.mjs".to_owned())]) {
        let text = std::fs::read_to_string(root.join(&file)).unwrap();
        let marker = format!("<!-- {file} -->\n\n```{language}\n");
        let start = document.find(&marker).unwrap_or_else(|| panic!("{file} is not in the document")) + marker.len();
        let end = start + document[start..].find("```\n").unwrap();
        document.replace_range(start..end, &text);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    assert!(before == document || std::env::var_os("UPDATE_DOCS").is_some(), "run with UPDATE_DOCS=1");
}
