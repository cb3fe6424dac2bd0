//! The example `hyper`: the layer around a service on hyper without axum.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower_sse::Hub;

use crate::example::hyper::serve;
use crate::kit::{Reply, get, http2, reply, send, soon, subscribe};

struct Program {
    addr: SocketAddr,
    hub: Hub,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Program {
    async fn start() -> Self {
        let hub = Hub::builder().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (shutdown, signal) = oneshot::channel();
        let task = tokio::spawn(serve(hub.clone(), listener, async { drop(signal.await) }));
        Self { addr, hub, shutdown, task }
    }
}

async fn request_over(sender: &mut SendRequest<Full<Bytes>>, request: Request<&'static str>) -> Reply {
    let request = request.map(|body| Full::new(Bytes::from(body)));
    reply(soon(sender.send_request(request)).await.unwrap())
}

#[tokio::test]
async fn posted_headline_arrives_over_http_1_and_http_2() {
    let program = Program::start().await;
    let mut http1 = subscribe(program.addr, "/events?topic=news").await;
    let mut sender = http2(program.addr).await;
    let mut over_http2 =
        request_over(&mut sender, Request::get("http://test/events?topic=news").body("").unwrap()).await.events();
    over_http2.caught_up().await;

    let posted = send(program.addr, Request::post("/headlines").body("over one").unwrap()).await;
    assert_eq!((posted.status.as_u16(), posted.text().await), (202, "published to 2 connections\n".to_owned()));
    let posted = request_over(&mut sender, Request::post("http://test/headlines").body("over two").unwrap()).await;
    assert_eq!((posted.status.as_u16(), posted.text().await), (202, "published to 2 connections\n".to_owned()));
    for stream in [&mut http1, &mut over_http2] {
        for text in ["over one", "over two"] {
            let event = stream.next_own().await;
            assert_eq!((event.event.as_str(), event.data.as_str()), ("headline", text));
        }
    }
}

#[tokio::test]
async fn page_passes_through_the_layer_and_an_unknown_path_is_404() {
    let program = Program::start().await;
    let addr = program.addr;
    let page = get(addr, "/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.text().await.contains("new EventSource(\"/events?topic=news\")"));
    let unknown = get(addr, "/nothing").await;
    assert_eq!((unknown.status.as_u16(), unknown.text().await), (404, "no such path\n".to_owned()));
    assert_eq!(get(addr, "/events?topic=secret").await.status, 403);
    let long: &str = "x".repeat(64 * 1024 + 1).leak();
    assert_eq!(send(addr, Request::post("/headlines").body(long).unwrap()).await.status, 413);
    assert_eq!(send(addr, Request::post("/events").body("").unwrap()).await.status, 404);
}

#[tokio::test]
async fn shutdown_ends_every_stream_and_the_server() {
    let program = Program::start().await;
    let http1 = subscribe(program.addr, "/events?topic=news").await;
    let mut sender = http2(program.addr).await;
    let mut over_http2 =
        request_over(&mut sender, Request::get("http://test/events?topic=news").body("").unwrap()).await.events();
    over_http2.caught_up().await;
    program.shutdown.send(()).unwrap();
    for stream in [http1, over_http2] {
        let bye = stream.rest().await.pop().unwrap();
        assert_eq!(bye.event, "hub.bye");
        assert!(bye.retry.is_some());
    }
    soon(program.task).await.unwrap();
    assert_eq!(program.hub.stats().connections, 0);
}
