//! The hub's layer over a plain hyper service, with HTTP/1 and HTTP/2 on one port.
//!
//! `cargo run -p hyper-example`, then open <http://127.0.0.1:3000>, or
//! `curl -N --http2-prior-knowledge 'http://127.0.0.1:3000/events?topic=news'` and
//! `curl -d 'Bridge closed' http://127.0.0.1:3000/headlines`.

#![allow(clippy::print_stdout, reason = "a program with a console")]

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{Layer, Service, service_fn};
use tower_sse::{Event, Hub, Public, ResponseBody, TopicFilter};

#[path = "../../shared/shutdown.rs"]
mod shutdown;

/// The maximum length of a headline, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// The time that requests other than streams have to end after the drain.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// Returns the service. The layer answers `/events` and passes every other request to `answer`.
pub(crate) fn app(
    hub: &Hub,
) -> impl Service<
    Request<Incoming>,
    Response = Response<ResponseBody<Full<Bytes>>>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ Send
+ 'static {
    let inner = hub.clone();
    let routes = service_fn(move |request| {
        let hub = inner.clone();
        async move { Ok(answer(&hub, request).await) }
    });
    hub.layer("/events", Public::topics(TopicFilter::exact("news"))).layer(routes)
}

async fn answer(hub: &Hub, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => response(StatusCode::OK, "text/html; charset=utf-8", PAGE),
        (&Method::POST, "/headlines") => match post_headline(hub, request.into_body()).await {
            Ok(connections) => plain(StatusCode::ACCEPTED, format!("published to {connections} connections\n")),
            Err((status, problem)) => plain(status, format!("{problem}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "no such path\n"),
    }
}

async fn post_headline(hub: &Hub, body: Incoming) -> Result<usize, (StatusCode, String)> {
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
        let is_too_large = error.is::<LengthLimitError>();
        (if is_too_large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST }, error.to_string())
    })?;
    let failed = |error: tower_sse::PublishError| (error.status_code(), error.to_string());
    let event = Event::from_utf8("headline", body.to_bytes()).map_err(failed)?;
    Ok(hub.topic("news").publish(event).await.map_err(failed)?.connections)
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// Serves until `signal` completes, then drains the hub. The server accepts connections until the
/// last stream has ended.
pub(crate) async fn serve(hub: Hub, listener: TcpListener, signal: impl Future<Output = ()>) {
    let (app, server, connections) = (app(&hub), auto::Builder::new(TokioExecutor::new()), GracefulShutdown::new());
    let mut drained = std::pin::pin!(async {
        signal.await;
        hub.drain(Duration::from_secs(2)).await
    });
    loop {
        let tcp = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut drained => break,
        };
        let Ok((tcp, _)) = tcp else {
            // The most likely reason is the limit on open files. Wait until some are closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let io = TokioIo::new(hub.io(tcp));
        let connection = server.serve_connection(io, TowerToHyperService::new(app.clone())).into_owned();
        // The result is ignored: an error only means that the client broke the connection.
        tokio::spawn(connections.watch(connection));
    }
    let _ = tokio::time::timeout(LAST_REQUESTS, connections.shutdown()).await;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hub = Hub::builder().build()?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("open http://127.0.0.1:3000");
    serve(hub, listener, shutdown::shutdown_signal()?).await;
    Ok(())
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>News</title>
<style>:root { color-scheme: light dark; font: 1.1rem/1.6 system-ui } body { max-width: 36rem; margin: 3rem auto; padding: 0 1rem }
input, button { font: inherit; padding: .3rem .7rem }</style>
<h1>News</h1><form><input name="text" placeholder="Bridge closed" required> <button>Publish</button></form><ul></ul>
<script>
  const list = document.querySelector("ul"), form = document.querySelector("form");
  new EventSource("/events?topic=news").addEventListener("headline", e => {
    list.prepend(Object.assign(document.createElement("li"), { textContent: e.data }));
  });
  form.onsubmit = e => { e.preventDefault(); fetch("/headlines", { method: "POST", body: form.text.value }); form.reset(); };
</script>
"#;
