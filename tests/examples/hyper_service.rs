//! The layer over a plain hyper service.

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
    leave: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Program {
    async fn start() -> Self {
        let hub = Hub::builder().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (leave, told) = oneshot::channel();
        let task = tokio::spawn(serve(hub.clone(), listener, async { drop(told.await) }));
        Self { addr, hub, leave, task }
    }
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>, request: Request<&'static str>) -> Reply {
    let request = request.map(|body| Full::new(Bytes::from(body)));
    reply(soon(sender.send_request(request)).await.unwrap())
}

#[tokio::test]
async fn what_is_posted_is_read_over_http_1_and_over_http_2() {
    let program = Program::start().await;
    let mut old = subscribe(program.addr, "/events?topic=news").await;
    let mut sender = http2(program.addr).await;
    let mut new = ask(&mut sender, Request::get("http://test/events?topic=news").body("").unwrap()).await.events();
    new.caught_up().await;

    let posted = send(program.addr, Request::post("/publish").body("over one").unwrap()).await;
    assert_eq!((posted.status.as_u16(), posted.text().await), (202, "sent to 2\n".to_owned()));
    let posted = ask(&mut sender, Request::post("http://test/publish").body("over two").unwrap()).await;
    assert_eq!((posted.status.as_u16(), posted.text().await), (202, "sent to 2\n".to_owned()));
    for stream in [&mut old, &mut new] {
        for text in ["over one", "over two"] {
            let event = stream.next_own().await;
            assert_eq!((event.event.as_str(), event.data.as_str()), ("headline", text));
        }
    }
}

#[tokio::test]
async fn the_page_passes_through_and_what_is_not_there_is_said_in_a_line() {
    let program = Program::start().await;
    let addr = program.addr;
    let page = get(addr, "/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.text().await.contains("new EventSource(\"/events?topic=news\")"));
    let nothing = get(addr, "/nothing").await;
    assert_eq!((nothing.status.as_u16(), nothing.text().await), (404, "not here\n".to_owned()));
    assert_eq!(get(addr, "/events?topic=secret").await.status, 403);
    let long: &str = "x".repeat(64 * 1024 + 1).leak();
    assert_eq!(send(addr, Request::post("/publish").body(long).unwrap()).await.status, 413);
    assert_eq!(send(addr, Request::post("/events").body("").unwrap()).await.status, 404);
}

#[tokio::test]
async fn told_to_leave_it_ends_every_stream_and_returns() {
    let program = Program::start().await;
    let old = subscribe(program.addr, "/events?topic=news").await;
    let mut sender = http2(program.addr).await;
    let mut new = ask(&mut sender, Request::get("http://test/events?topic=news").body("").unwrap()).await.events();
    new.caught_up().await;
    program.leave.send(()).unwrap();
    for stream in [old, new] {
        let bye = stream.rest().await.pop().unwrap();
        assert_eq!(bye.event, "hub.bye");
        assert!(bye.retry.is_some());
    }
    soon(program.task).await.unwrap();
    assert_eq!(program.hub.stats().connections, 0);
}
