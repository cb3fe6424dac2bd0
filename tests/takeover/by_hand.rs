//! A hand-written server, which can flush at any time. Hyper never flushes before everything is
//! written.

use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tower_sse::{Event, Hub};

use crate::kit::access::by_query;
use crate::kit::{Events, soon};
use crate::peer::Peer;

/// A response head with this much padding needs several writes.
const PADDING: usize = 15_000;

#[derive(Clone, Copy)]
enum How {
    FlushesAfterEveryWrite,
    WritesMoreBeforeItFlushes,
}

/// Answers one request, and returns whether its socket was taken over.
async fn serve(hub: &Hub, how: How) -> (Peer, JoinHandle<bool>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(1).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut peer = Peer::narrow(listener.local_addr().unwrap()).await;
    let hub = hub.clone();
    let task = tokio::spawn(async move {
        let mut io = hub.io(listener.accept().await.unwrap().0).take_over();
        assert!(io.read(&mut [0; 1024]).await.unwrap() > 0);
        let request = Request::get("/events?topic=t").body(()).unwrap();
        let mut body = std::pin::pin!(hub.endpoint(by_query).oneshot(request).await.unwrap().into_body());
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n";
        let padding = "v".repeat(PADDING);
        let mut bytes = format!("{head}x-padding: {padding}\r\n\r\n{:X}\r\n", first.len()).into_bytes();
        bytes.extend_from_slice(&first);
        bytes.extend_from_slice(b"\r\n");
        let (mut out, mut writes) = (0, 0);
        while out < bytes.len() {
            out += io.write(&bytes[out..]).await.unwrap();
            writes += 1;
            if matches!(how, How::FlushesAfterEveryWrite) {
                io.flush().await.unwrap();
            }
        }
        assert!(writes > 1, "the server wrote everything at once");
        if matches!(how, How::WritesMoreBeforeItFlushes) {
            io.write_all(b"5\r\n:own\n\r\n").await.unwrap();
            io.flush().await.unwrap();
        }
        while let Some(frame) = body.frame().await {
            let bytes = frame.unwrap().into_data().unwrap();
            io.write_all(format!("{:X}\r\n", bytes.len()).as_bytes()).await.unwrap();
            io.write_all(&bytes).await.unwrap();
            io.write_all(b"\r\n").await.unwrap();
            if std::str::from_utf8(&bytes).unwrap().contains("data: last\n") {
                return false;
            }
        }
        true
    });
    peer.get("/events?topic=t").await;
    (peer, task)
}

async fn read_hello(mut peer: Peer) -> (Events, OwnedWriteHalf) {
    let head = peer.reader.head_slowly(200).await;
    assert_eq!(head.header("x-padding").len(), PADDING);
    let mut events = peer.reader.events();
    assert_eq!(events.next().await.event, "hub.hello");
    (events, peer.writer)
}

#[tokio::test]
async fn the_socket_is_taken_over_only_after_the_whole_frame_is_written() {
    let hub = Hub::builder().build().unwrap();
    let (peer, task) = serve(&hub, How::FlushesAfterEveryWrite).await;
    let (mut events, _writer) = read_hello(peer).await;
    assert!(soon(task).await.unwrap(), "the socket was not taken over");
    for n in 0..3 {
        hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
        assert_eq!(events.next_own().await.data, n.to_string());
    }
}

#[tokio::test]
async fn the_socket_is_not_taken_over_when_the_server_has_written_more() {
    let hub = Hub::builder().build().unwrap();
    let (peer, task) = serve(&hub, How::WritesMoreBeforeItFlushes).await;
    let (mut events, _writer) = read_hello(peer).await;
    for data in ["first", "last"] {
        hub.topic("t").publish(Event::unnamed(data)).await.unwrap();
        assert_eq!(events.next_own().await.data, data);
    }
    assert!(!soon(task).await.unwrap(), "the socket was taken over");
}
