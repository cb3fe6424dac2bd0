//! A hub inside somebody's process: runtimes that come and go, ordinary requests beside streams, a process that is held up.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get as route;
use bytes::Bytes;
use futures::{FutureExt, Stream};
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;
use tower_sse::{
    Cursor, EndReason, Event, Hub, HubBuilder, Public, Retention, StreamRequest, SubscriberItem, Subscription,
    TopicFilter,
};

use crate::kit::{Server, get, http2, soon, subscribe, until};

fn app(hub: &Hub) -> Router {
    let slow = async || {
        tokio::time::sleep(Duration::from_secs(4)).await;
        "done"
    };
    Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any()))).route("/slow", route(slow))
}

async fn start(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    (hub, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_on_a_runtime_that_nobody_drives_wakes_everybody() {
    let (hub, server) = start(Hub::builder()).await;
    let mut readers = Vec::new();
    // More than a publisher wakes itself.
    for _ in 0..40 {
        readers.push(subscribe(server.addr, "/events?topic=t").await);
    }
    let publisher = std::thread::spawn({
        let hub = hub.clone();
        move || {
            let side = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            side.block_on(hub.topic("t").publish(Event::unnamed("from the side"))).unwrap();
            // It lives on, and runs nothing.
            side
        }
    });
    let side = publisher.join().unwrap();
    for reader in &mut readers {
        assert_eq!(reader.next_own().await.data, "from the side");
    }
    hub.topic("t").publish(Event::unnamed("from here")).await.unwrap();
    for reader in &mut readers {
        assert_eq!(reader.next_own().await.data, "from here");
    }
    side.shutdown_background();
}

#[test]
fn streams_whose_runtime_is_gone_hinder_nobody_on_another() {
    let hub = Hub::builder().build().unwrap();
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let open = || hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let kept: Vec<_> = first.block_on(async { (0..40).map(|_| open()).collect() });
    drop(first);
    let second = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    second.block_on(async {
        let mut streams: Vec<_> = (0..40).map(|_| open()).collect();
        for stream in &mut streams {
            assert!(matches!(stream.next().await, Some(SubscriberItem::Live(_))));
            assert!(stream.next().now_or_never().is_none());
        }
        hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
        for stream in &mut streams {
            assert!(matches!(soon(stream.next()).await, Some(SubscriberItem::Event(_))));
        }
    });
    drop(kept);
}

#[tokio::test]
async fn a_drain_lets_ordinary_requests_finish() {
    let (hub, server) = start(Hub::builder().drain_limit(Duration::from_secs(1))).await;
    let mut sender = http2(server.addr).await;
    let request = Request::get("http://test/events?topic=t").body(Full::new(Bytes::new())).unwrap();
    let stream = soon(sender.send_request(request)).await.unwrap();
    let slow = tokio::spawn(async move { get(server.addr, "/slow").await.text().await });
    tokio::task::yield_now().await;
    until(|| hub.stats().connections == 1).await;
    let since = Instant::now();
    let drained = hub.drain(Duration::ZERO).await;
    assert!(since.elapsed() < Duration::from_secs(1), "it waited for {:?}", since.elapsed());
    assert_eq!((drained.ended, drained.cut), (1, 0));
    // It takes longer than any patience with sockets that carried streams.
    assert_eq!(soon(slow).await.unwrap(), "done");
    drop(stream);
}

#[tokio::test]
async fn publishing_fails_as_soon_as_a_drain_has_told_the_last_stream() {
    let hub = Hub::builder().build().unwrap();
    let request = Request::get("/?topic=t").body(()).unwrap();
    let open = hub.endpoint(Public::topics(TopicFilter::any())).oneshot(request).await.unwrap();
    // The drain waits for the stream.
    assert!(hub.drain(Duration::ZERO).now_or_never().is_none());
    assert!(hub.topic("t").publish_now(Event::unnamed("late")).unwrap_err().is_closed());
    drop(open);
}

/// A read of many topics takes a while. The event and the end of the stream come during one.
#[tokio::test]
async fn a_drain_delivers_an_event_that_was_published_during_a_read() {
    const TOPICS: usize = 2_000;
    for round in 0..10 {
        let hub = Hub::builder().max_topics(TOPICS).build().unwrap();
        let topics = (0..TOPICS).map(|n| format!("topic/{n}"));
        let mut stream = hub.subscribe(Subscription::anonymous().with_topics(topics), Cursor::Absent).unwrap();
        let over = Arc::new(AtomicUsize::new(0));
        let noise = std::thread::spawn({
            let (hub, over) = (hub.clone(), Arc::clone(&over));
            // Each event of another topic makes the stream look at all of its own.
            move || {
                while over.load(Ordering::SeqCst) == 0 {
                    hub.topic("noise").publish_now(Event::unnamed("x")).unwrap();
                }
            }
        });
        let reader = std::thread::spawn(move || {
            let (mut came, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
            loop {
                match Pin::new(&mut stream).poll_next(&mut cx) {
                    Poll::Ready(None) => return came,
                    Poll::Ready(Some(SubscriberItem::Event(event))) => came.push(event.data),
                    Poll::Ready(_) | Poll::Pending => {}
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        over.store(1, Ordering::SeqCst);
        noise.join().unwrap();
        hub.topic("noise").publish_now(Event::unnamed("x")).unwrap();
        hub.topic("topic/0").publish_now(Event::unnamed("last")).unwrap();
        soon(hub.drain(Duration::ZERO)).await;
        assert_eq!(reader.join().unwrap(), ["last"], "round {round}");
    }
}

#[tokio::test]
async fn a_stream_in_this_process_that_is_not_read_does_not_hold_up_a_drain() {
    let (hub, _server) = start(Hub::builder()).await;
    let mut stream = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    let since = Instant::now();
    let drained = hub.drain(Duration::ZERO).await;
    assert!(since.elapsed() < Duration::from_secs(1));
    assert_eq!((drained.ended, drained.cut), (1, 0));
    assert!(matches!(stream.next().await, Some(SubscriberItem::Event(_))));
    assert!(matches!(
        stream.next().await,
        Some(SubscriberItem::Live(_)) | Some(SubscriberItem::End(EndReason::Draining))
    ));
}

#[test]
fn a_process_that_was_held_up_gives_up_nobody_who_is_well() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = Hub::builder().write_deadline(Duration::from_millis(400)).heartbeat(Duration::from_millis(100));
        let (hub, server) = start(builder).await;
        let mut readers = Vec::new();
        for _ in 0..50 {
            readers.push(subscribe(server.addr, "/events?topic=t").await);
        }
        for _ in 0..3 {
            // The one thread of the runtime is blocked, as by a debugger or a paused container; that is the point.
            std::thread::sleep(Duration::from_millis(1_500));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        hub.topic("t").publish(Event::unnamed("still here")).await.unwrap();
        for reader in &mut readers {
            assert_eq!(reader.next_own().await.data, "still here");
        }
        assert_eq!(hub.stats().ended(EndReason::Stalled), 0);
    });
}

/// A socket with small buffers.
async fn small(addr: SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    tcp.write_all(b"GET /events?topic=t HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    tcp
}

#[tokio::test]
async fn a_slow_reader_is_not_taken_for_one_that_reads_nothing_and_the_other_is_counted_as_stalled() {
    let deadline = Duration::from_secs(2);
    let builder = Hub::builder().write_deadline(deadline).topic_retention(Retention::replay().bytes(32 << 20));
    let (hub, server) = start(builder).await;
    let mut slow = small(server.addr).await;
    let stalled = small(server.addr).await;
    until(|| hub.stats().connections == 2).await;
    for _ in 0..80 {
        hub.topic("t").publish(Event::unnamed("x".repeat(100_000))).await.unwrap();
    }
    // A few hundred kilobytes in each deadline: far less than what waits.
    let since = Instant::now();
    let mut read = 0;
    let mut space = vec![0; 20_000];
    while since.elapsed() < deadline * 4 {
        let count = soon(slow.read(&mut space)).await.unwrap();
        assert!(count > 0, "cut after {:?} and {read} bytes", since.elapsed());
        read += count;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(hub.stats().connections, 1);
    assert_eq!((hub.stats().ended(EndReason::Stalled), hub.stats().ended(EndReason::Client)), (1, 0));
    drop((slow, stalled));
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The hub's own tasks panic there, as tokio's timers do; that costs no more than the heartbeats.
#[test]
fn on_a_runtime_without_time_streams_are_not_woken_again_and_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let hub = Hub::builder().build().unwrap();
        let request = StreamRequest::from_request(&Request::get("/").body(()).unwrap());
        let mut body = hub.respond(request, Subscription::anonymous().topic("t")).into_response().into_body();
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut look = || {
            let mut cx = Context::from_waker(&waker);
            while http_body::Body::poll_frame(Pin::new(&mut body), &mut cx).is_ready() {}
        };
        look();
        for _ in 0..100 {
            tokio::task::yield_now().await;
            if woken.0.load(Ordering::SeqCst) > 0 {
                look();
            }
        }
        assert!(woken.0.load(Ordering::SeqCst) < 10, "woken {} times", woken.0.load(Ordering::SeqCst));
    });
}

#[tokio::test]
async fn lag_counts_what_a_stalled_stream_has_not_read() {
    let hub = Hub::builder().build().unwrap();
    let request = Request::get("/?topic=t").body(()).unwrap();
    let endpoint = hub.endpoint(Public::topics(TopicFilter::any()));
    let mut body = Box::pin(endpoint.oneshot(request).await.unwrap().into_body());
    for _ in 0..1_000 {
        hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    }
    body.frame().await.unwrap().unwrap();
    body.frame().await.unwrap().unwrap();
    let lag = hub.stats().lag;
    assert!(lag > 900, "{lag}");
}
