//! A hub in the process of an application: several runtimes, other requests beside streams, and a
//! process that is blocked for a while.

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
async fn publish_on_an_idle_runtime_wakes_every_listener() {
    let (hub, server) = start(Hub::builder()).await;
    let mut readers = Vec::new();
    // More than the 32 listeners that a publisher wakes itself.
    for _ in 0..40 {
        readers.push(subscribe(server.addr, "/events?topic=t").await);
    }
    let publisher = std::thread::spawn({
        let hub = hub.clone();
        move || {
            let side = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            side.block_on(hub.topic("t").publish(Event::unnamed("from the side"))).unwrap();
            // Kept, so that its tasks are not dropped. Without a driver they do not run either.
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
fn streams_of_a_dropped_runtime_do_not_hinder_streams_of_another() {
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
async fn drain_lets_ordinary_requests_finish() {
    let (hub, server) = start(Hub::builder().drain_limit(Duration::from_secs(1))).await;
    let mut sender = http2(server.addr).await;
    let request = Request::get("http://test/events?topic=t").body(Full::new(Bytes::new())).unwrap();
    let stream = soon(sender.send_request(request)).await.unwrap();
    let slow = tokio::spawn(async move { get(server.addr, "/slow").await.text().await });
    tokio::task::yield_now().await;
    until(|| hub.stats().connections == 1).await;
    let since = Instant::now();
    let drained = hub.drain(Duration::ZERO).await;
    assert!(since.elapsed() < Duration::from_secs(1), "the drain took {:?}", since.elapsed());
    assert_eq!((drained.ended, drained.cut), (1, 0));
    // The request takes longer than any timeout for sockets that carried streams.
    assert_eq!(soon(slow).await.unwrap(), "done");
    drop(stream);
}

#[tokio::test]
async fn publish_fails_once_a_drain_waits_for_its_last_streams() {
    let hub = Hub::builder().build().unwrap();
    let request = Request::get("/?topic=t").body(()).unwrap();
    let open = hub.endpoint(Public::topics(TopicFilter::any())).oneshot(request).await.unwrap();
    // Nothing reads the stream, so the drain has to wait for it.
    assert!(hub.drain(Duration::ZERO).now_or_never().is_none());
    assert!(hub.topic("t").publish_now(Event::unnamed("late")).unwrap_err().is_closed());
    drop(open);
}

/// A read of many topics takes long enough for the event and the drain to arrive during it.
#[tokio::test]
async fn drain_delivers_an_event_that_was_published_during_a_read() {
    const TOPICS: usize = 2_000;
    for round in 0..10 {
        let hub = Hub::builder().max_topics(TOPICS).build().unwrap();
        let topics = (0..TOPICS).map(|n| format!("topic/{n}"));
        let mut stream = hub.subscribe(Subscription::anonymous().with_topics(topics), Cursor::Absent).unwrap();
        let stop = Arc::new(AtomicUsize::new(0));
        let noise = std::thread::spawn({
            let (hub, stop) = (hub.clone(), Arc::clone(&stop));
            // Each event of another topic makes the stream read all of its own topics.
            move || {
                while stop.load(Ordering::SeqCst) == 0 {
                    hub.topic("noise").publish_now(Event::unnamed("x")).unwrap();
                }
            }
        });
        let reader = std::thread::spawn(move || {
            let (mut received, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
            loop {
                match Pin::new(&mut stream).poll_next(&mut cx) {
                    Poll::Ready(None) => return received,
                    Poll::Ready(Some(SubscriberItem::Event(event))) => received.push(event.data),
                    Poll::Ready(_) | Poll::Pending => {}
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        stop.store(1, Ordering::SeqCst);
        noise.join().unwrap();
        hub.topic("noise").publish_now(Event::unnamed("x")).unwrap();
        hub.topic("topic/0").publish_now(Event::unnamed("last")).unwrap();
        soon(hub.drain(Duration::ZERO)).await;
        assert_eq!(reader.join().unwrap(), ["last"], "round {round}");
    }
}

#[tokio::test]
async fn unread_in_process_stream_does_not_delay_a_drain() {
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
fn healthy_streams_stay_open_when_the_process_was_blocked() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = Hub::builder().write_deadline(Duration::from_millis(400)).heartbeat(Duration::from_millis(100));
        let (hub, server) = start(builder).await;
        let mut readers = Vec::new();
        for _ in 0..50 {
            readers.push(subscribe(server.addr, "/events?topic=t").await);
        }
        for _ in 0..3 {
            // Blocks the only thread of the runtime, as a debugger or a paused container does.
            std::thread::sleep(Duration::from_millis(1_500));
            // Then the hub looks for stalled streams several times, which it does not report.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        hub.topic("t").publish(Event::unnamed("still here")).await.unwrap();
        for reader in &mut readers {
            assert_eq!(reader.next_own().await.data, "still here");
        }
        assert_eq!(hub.stats().ended(EndReason::Stalled), 0);
    });
}

/// Requests a stream on a socket with small buffers.
async fn open_with_small_buffers(addr: SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    tcp.write_all(b"GET /events?topic=t HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    tcp
}

#[tokio::test]
async fn slow_reader_stays_connected_while_a_stalled_reader_is_disconnected() {
    let deadline = Duration::from_secs(2);
    let builder = Hub::builder().write_deadline(deadline).topic_retention(Retention::replay().bytes(32 << 20));
    let (hub, server) = start(builder).await;
    let mut slow = open_with_small_buffers(server.addr).await;
    let stalled = open_with_small_buffers(server.addr).await;
    until(|| hub.stats().connections == 2).await;
    for _ in 0..80 {
        hub.topic("t").publish(Event::unnamed("x".repeat(100_000))).await.unwrap();
    }
    // The slow reader reads at most 1 MB in each deadline, of the 8 MB that are published. If the
    // machine stalls, the hub disconnects the stalled reader later.
    let since = Instant::now();
    let mut read = 0;
    let mut space = vec![0; 20_000];
    while since.elapsed() < deadline * 4 || hub.stats().connections == 2 {
        assert!(since.elapsed() < deadline * 10, "the stalled reader is still connected");
        let count = soon(slow.read(&mut space)).await.unwrap();
        assert!(count > 0, "closed after {:?} and {read} bytes", since.elapsed());
        read += count;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(hub.stats().connections, 1);
    assert_eq!((hub.stats().ended(EndReason::Stalled), hub.stats().ended(EndReason::Client)), (1, 0));
    drop((slow, stalled));
}

/// A waker that counts its wake-ups.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The hub's tasks panic on such a runtime, as tokio's timers do. Only heartbeats may be missing.
#[test]
fn stream_is_not_woken_repeatedly_on_a_runtime_without_timers() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let hub = Hub::builder().build().unwrap();
        let request = StreamRequest::from_request(&Request::get("/").body(()).unwrap());
        let mut body = hub.respond(request, Subscription::anonymous().topic("t")).into_response().into_body();
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut poll_until_pending = || {
            let mut cx = Context::from_waker(&waker);
            while http_body::Body::poll_frame(Pin::new(&mut body), &mut cx).is_ready() {}
        };
        poll_until_pending();
        for _ in 0..100 {
            tokio::task::yield_now().await;
            if woken.0.load(Ordering::SeqCst) > 0 {
                poll_until_pending();
            }
        }
        assert!(woken.0.load(Ordering::SeqCst) < 10, "woken {} times", woken.0.load(Ordering::SeqCst));
    });
}

#[tokio::test]
async fn lag_counts_the_events_that_a_stalled_stream_has_not_read() {
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
