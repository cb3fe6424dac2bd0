//! Faults of one process, and the guarantees that still hold. Publishers number their events, so
//! that a test can check that a client received every permitted event in order and once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests and their helpers may panic")]

#[path = "../kit/mod.rs"]
mod kit;

mod transport;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower_sse::test_kit::{assert_forgets_all, assert_no_leaks};
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, Hub, HubBuilder, Public, Retention, SubscriberItem, Subscription, TopicFilter,
};

use crate::kit::sockets::open_sockets;
use crate::kit::{Server, eventually, get, http2, reply, resume, skip, soon, subscribe, until, within};

/// The time limit of a wait for thousands of streams.
const MANY: Duration = Duration::from_secs(90);

fn app(hub: &Hub) -> Router {
    Router::new()
        .route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())))
        .route("/", axum::routing::get(|| async { "hello" }))
}

async fn start(builder: HubBuilder) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    (hub, server)
}

/// Sends a request over a bare socket, for clients that violate the protocol.
async fn bare(server: &Server, path: &str) -> TcpStream {
    let mut tcp = TcpStream::connect(server.addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    tcp
}

/// Opens a stream over a bare socket with a small receive buffer, and reads only its first bytes.
async fn stalled(addr: SocketAddr, path: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 16];
    tcp.read_exact(&mut first).await.unwrap();
    tcp
}

fn numbers(events: impl IntoIterator<Item = SubscriberItem>) -> Vec<u64> {
    let number = |item| match item {
        SubscriberItem::Event(event) => Some(event.data.parse().unwrap()),
        SubscriberItem::Gap { reason, .. } => panic!("a gap without loss: {reason}"),
        _ => None,
    };
    events.into_iter().filter_map(number).collect()
}

/// A small random generator with a seed, so that a failure can be reproduced.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn a_resumed_stream_receives_every_event_once_in_ten_thousand_interleavings() {
    for seed in 1..=10_000_u64 {
        let mut random = Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let hub = Hub::builder().build().unwrap();
        let subscription = || Subscription::for_user("u").topic("a").topic("b");
        let mut stream = hub.subscribe(subscription(), Cursor::Absent).unwrap();
        let mut cursor = Cursor::At(hub.position());
        let (mut published, mut received) = (0_u64, Vec::new());
        let mut publish = |random: &mut Seeded| {
            let event = Event::unnamed(published.to_string());
            published += 1;
            match random.below(5) {
                0 => hub.user("u").publish_now(event),
                1 => hub.everyone().publish_now(event),
                2 => hub.topic("a").and(hub.topic("b")).publish_now(event),
                3 => hub.topic("a").publish_now(event),
                _ => hub.topic("b").publish_now(event),
            }
            .unwrap();
        };
        for _ in 0..40 {
            match random.below(4) {
                0 => {
                    stream = hub.subscribe(subscription(), cursor).unwrap();
                }
                1 | 2 => publish(&mut random),
                _ => {
                    let waker = futures::task::noop_waker();
                    let mut cx = std::task::Context::from_waker(&waker);
                    for _ in 0..random.below(6) {
                        let std::task::Poll::Ready(Some(item)) = stream.poll_next_unpin(&mut cx) else { break };
                        match &item {
                            SubscriberItem::Event(event) => cursor = Cursor::At(event.position),
                            SubscriberItem::Live(position) => cursor = Cursor::At(*position),
                            _ => {}
                        }
                        received.extend(numbers([item]));
                    }
                }
            }
        }
        let waker = futures::task::noop_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        while let std::task::Poll::Ready(Some(item)) = stream.poll_next_unpin(&mut cx) {
            received.extend(numbers([item]));
        }
        assert_eq!(received, (0..published).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_listeners_receive_one_order_that_keeps_the_order_of_each_publisher() {
    const PUBLISHERS: usize = 8;
    const EACH: usize = 500;
    let hub = Hub::builder().topic_retention(Retention::replay().count(PUBLISHERS * EACH)).build().unwrap();
    let readers: Vec<_> = (0..6)
        .map(|_| {
            let mut stream = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < PUBLISHERS * EACH {
                    match soon(stream.next()).await.unwrap() {
                        SubscriberItem::Event(event) => seen.push(event.data),
                        SubscriberItem::Gap { .. } => panic!("a gap"),
                        _ => {}
                    }
                }
                seen
            })
        })
        .collect();
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let hub = hub.clone();
            std::thread::spawn(move || {
                for n in 0..EACH {
                    hub.topic("t").publish_now(Event::unnamed(format!("{publisher} {n}"))).unwrap();
                }
            })
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    let mut orders = Vec::new();
    for reader in readers {
        orders.push(soon(reader).await.unwrap());
    }
    assert!(orders.iter().all(|order| *order == orders[0]), "the order differs between readers");
    let mut next = BTreeMap::new();
    for line in &orders[0] {
        let (publisher, n) = line.split_once(' ').unwrap();
        let expected = next.entry(publisher.to_owned()).or_insert(0);
        assert_eq!(n, expected.to_string());
        *expected += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_receives_every_event_published_after_its_response_head() {
    let (hub, server) = start(Hub::builder().topic_retention(Retention::live())).await;
    // One HTTP/2 connection, because 10,000 streams over HTTP/1.1 would need 10,000 sockets.
    let sender = http2(server.addr).await;
    for n in 0..10_000 {
        let mut sender = sender.clone();
        let uri = format!("http://test/events?topic=t{}", n % 7);
        let response =
            soon(sender.send_request(Request::get(uri).body(Full::new(Bytes::new())).unwrap())).await.unwrap();
        hub.topic(format!("t{}", n % 7)).publish(Event::unnamed(n.to_string())).await.unwrap();
        assert_eq!(reply(response).events().next_own().await.data, n.to_string());
    }
    for n in 0..500 {
        let response = get(server.addr, "/events?topic=one").await;
        hub.topic("one").publish(Event::unnamed(n.to_string())).await.unwrap();
        assert_eq!(response.events().next_own().await.data, n.to_string());
    }
}

#[test]
fn quick_reconnects_on_a_quiet_topic_beside_a_busy_one_get_no_gap() {
    let hub = Hub::builder().build().unwrap();
    let waker = futures::task::noop_waker();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut cursor = Cursor::Absent;
    for n in 0..10_000_u64 {
        let mut stream = hub.subscribe(Subscription::anonymous().topic("quiet"), cursor).unwrap();
        while let std::task::Poll::Ready(Some(item)) = stream.poll_next_unpin(&mut cx) {
            if let SubscriberItem::Live(position) = &item {
                cursor = Cursor::At(*position);
            }
            assert!(!matches!(item, SubscriberItem::Gap { .. }), "after {n} reconnects");
        }
        for _ in 0..20 {
            hub.topic("busy").publish_now(Event::unnamed("x")).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_percent_of_stalled_readers_does_not_affect_the_others() {
    const READERS: usize = 2_000;
    const STALLED: usize = 20;
    const EVENTS: usize = 100;
    // Far above the time that a busy machine needs to poll all streams once. Otherwise the hub
    // would count unpolled streams as stalled.
    let deadline = Duration::from_secs(10);
    let builder = Hub::builder().write_deadline(deadline).heartbeat(Duration::from_secs(5));
    let (hub, server) = start(builder.topic_retention(Retention::replay().count(100).bytes(8 << 20))).await;

    // Half of the stalled readers use HTTP/1.1, where the socket fills up. The other half use
    // HTTP/2, where the window of the stream fills up.
    let mut stalled_sockets = Vec::new();
    for _ in 0..STALLED / 2 {
        stalled_sockets.push(stalled(server.addr, "/events?topic=small&topic=big").await);
    }
    let mut windows = Vec::new();
    for _ in 0..STALLED / 2 {
        let mut sender = http2(server.addr).await;
        let request = Request::get("http://test/events?topic=small&topic=big").body(Full::new(Bytes::new())).unwrap();
        // The client never polls the body, so the window stays closed.
        windows.push((soon(sender.send_request(request)).await.unwrap(), sender));
    }
    let (ready, complete) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let all_are_ready = watch::Sender::new(false);
    let readers: Vec<_> = (0..READERS - STALLED)
        .map(|_| {
            let (addr, ready, complete) = (server.addr, Arc::clone(&ready), Arc::clone(&complete));
            let mut all_are_ready = all_are_ready.subscribe();
            tokio::spawn(async move {
                let mut events = subscribe(addr, "/events?topic=small").await;
                ready.fetch_add(1, Ordering::AcqRel);
                // The first event may come much later.
                all_are_ready.wait_for(|are_ready| *are_ready).await.unwrap();
                for n in 0..EVENTS {
                    assert_eq!(events.next_own().await.data, n.to_string());
                }
                complete.fetch_add(1, Ordering::AcqRel);
                events
            })
        })
        .collect();
    within(MANY, eventually(|| ready.load(Ordering::Acquire) == READERS - STALLED)).await;
    assert_eq!(hub.stats().connections, READERS);
    all_are_ready.send_replace(true);

    let memory = resident_bytes();
    let big = "x".repeat(200_000);
    for n in 0..EVENTS {
        hub.topic("big").publish(Event::unnamed(big.clone())).await.unwrap();
        hub.topic("small").publish(Event::unnamed(n.to_string())).await.unwrap();
        if n % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    within(MANY, eventually(|| complete.load(Ordering::Acquire) == READERS - STALLED)).await;
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 150 << 20, "{} MiB more than before", grown >> 20);
    assert!(hub.stats().retained_bytes < 20 << 20);

    // Stalled streams are no longer counted after the write deadline. The others stay.
    until(|| hub.stats().connections == READERS - STALLED).await;
    let mut all = Vec::new();
    for reader in readers {
        all.push(soon(reader).await.unwrap());
    }
    assert_eq!(hub.stats().connections, READERS - STALLED);
    drop((stalled_sockets, windows));
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// The kernel has a time-out for bytes that it cannot send. It expires before the write deadline
/// when the buffers fill up slowly.
#[tokio::test]
async fn a_reader_that_the_kernel_times_out_counts_as_stalled() {
    let (hub, server) = start(Hub::builder().write_deadline(Duration::from_millis(500))).await;
    let _tcp = stalled(server.addr, "/events?topic=t").await;
    while hub.stats().connections == 1 {
        hub.topic("t").publish(Event::unnamed("x".repeat(300))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    assert_eq!(hub.stats().ended(EndReason::Stalled), 1);
}

#[tokio::test]
async fn a_disconnected_client_is_removed_without_a_publish() {
    let (hub, server) = start(Hub::builder()).await;
    // The guarantee is 100 ms. A busy machine may take longer. The limit is below 13.5 s, after
    // which the write of a heartbeat would find the disconnect.
    let limit = Duration::from_secs(10);
    let wait_until_removed = async |hub: &Hub| {
        let since = Instant::now();
        until(|| hub.stats().connections == 0).await;
        assert!(since.elapsed() < limit, "after {:?}", since.elapsed());
    };

    // FIN.
    let tcp = bare(&server, "/events?topic=t").await;
    until(|| hub.stats().connections == 1).await;
    drop(tcp);
    wait_until_removed(&hub).await;

    // RST.
    let tcp = bare(&server, "/events?topic=t").await;
    until(|| hub.stats().connections == 1).await;
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    drop(tcp);
    wait_until_removed(&hub).await;

    // FIN after stray bytes, which a server does not read while it writes a response. First the
    // bytes come with the request, then later.
    let mut tcp = bare(&server, "/events?topic=t").await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    until(|| hub.stats().connections == 1).await;
    drop(tcp);
    wait_until_removed(&hub).await;
    let mut tcp = bare(&server, "/events?topic=t").await;
    until(|| hub.stats().connections == 1).await;
    let mut head = [0; 64];
    tcp.read_exact(&mut head).await.unwrap();
    tcp.write_all(b"stray bytes").await.unwrap();
    tcp.shutdown().await.unwrap();
    wait_until_removed(&hub).await;

    // An HTTP/2 stream that is reset while its connection stays open.
    let mut sender = http2(server.addr).await;
    let request = || Request::get("http://test/events?topic=t").body(Full::new(Bytes::new())).unwrap();
    let response = soon(sender.send_request(request())).await.unwrap();
    until(|| hub.stats().connections == 1).await;
    drop(response);
    wait_until_removed(&hub).await;
    let again = reply(soon(sender.send_request(request())).await.unwrap());
    assert_eq!(again.events().next().await.event, "hub.hello");

    assert_eq!(hub.stats().ended(EndReason::Client), 5);
}

#[tokio::test]
async fn a_pipelined_request_is_answered_when_the_stream_has_ended() {
    let (hub, server) = start(Hub::builder().drain_limit(Duration::from_secs(5))).await;
    let mut tcp = bare(&server, "/events?topic=t").await;
    until(|| hub.stats().connections == 1).await;
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    hub.drain(Duration::ZERO).await;
    let mut all = String::new();
    soon(tcp.read_to_string(&mut all)).await.unwrap();
    let (stream, second) = all.split_once("0\r\n\r\n").unwrap();
    assert!(stream.contains("data: x\n") && stream.contains("event: hub.bye\n"), "{stream}");
    if kit::takeover() {
        assert_eq!(second, "", "the response head contains `connection: close`");
        return;
    }
    assert!(second.starts_with("HTTP/1.1 200 OK") && second.ends_with("hello"), "{second}");
}

#[tokio::test]
async fn churn_of_connections_leaves_no_state_behind() {
    let hub = Hub::builder().build().unwrap();
    let subscription = |n: usize| Subscription::for_user(n % 1000).topic(format!("t{}", n % 77));
    for n in 0..100_000 {
        let stream = hub.subscribe(subscription(n), Cursor::Absent).unwrap();
        if n % 3 == 0 {
            hub.connection(stream.connection()).publish(Event::unnamed("x")).await.unwrap();
        }
    }
    assert_eq!(hub.stats().connections, 0);
    assert_eq!(hub.stats().connected, 100_000);

    let server = Server::start(&hub, app(&hub)).await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    for _ in 0..50 {
        let mut open = Vec::new();
        for n in 0..40 {
            open.push(bare(&server, &format!("/events?topic=t{n}")).await);
        }
        until(|| hub.stats().connections == 40).await;
        until(|| open_sockets(server.addr.port()) == [40, 40]).await;
        drop(open);
        until(|| hub.stats().connections == 0).await;
    }
    until(|| open_sockets(server.addr.port()) == [0, 0]).await;
    // The writer of taken-over sockets stays.
    let writers = usize::from(kit::takeover());
    until(|| tokio::runtime::Handle::current().metrics().num_alive_tasks() <= tasks + 1 + writers).await;
    // The hub may remember the empty channels of topics and users, and keeps the channel of
    // everyone.
    assert!(hub.stats().channels <= 1 + 1000 + 77);
    assert_eq!(hub.stats().retained_bytes, 0);
    assert_no_leaks(&hub).await;
}

/// Checks the state beside the channels: users, members, joined topics, disconnects and tickets.
#[tokio::test]
async fn churn_of_users_and_members_leaves_no_state_behind() {
    let brief = Duration::from_millis(50);
    let hub = Hub::builder()
        .presence_for(TopicFilter::any())
        .presence_grace(brief)
        .write_deadline(brief)
        .topic_retention(Retention::live())
        .user_retention(Retention::live())
        .heartbeat(Duration::from_millis(10))
        .build()
        .unwrap();
    let churn = async |rounds: usize| {
        for n in 0..rounds {
            let user = format!("u{}", n % 1000);
            let subscription = || Subscription::for_user(user.clone()).topic(format!("t{}", n % 77));
            let stream = hub.subscribe(subscription(), Cursor::Absent).unwrap();
            match n % 8 {
                0 => drop(hub.connection(stream.connection()).join(format!("j{}", n % 500)).await.unwrap()),
                1 => drop(hub.user(&user).join(format!("j{}", n % 500)).await.unwrap()),
                2 => drop(hub.user(&user).leave(format!("j{}", n % 500)).await.unwrap()),
                3 => assert_eq!(hub.user(&user).disconnect(Disconnect::now()).await.unwrap().connections, 1),
                4 => {
                    let members = hub.topic(format!("t{}", n % 77)).presence().members;
                    assert_eq!(members.iter().filter(|member| member.connections == 1).count(), 1);
                }
                5 => drop(hub.ticket(subscription(), Duration::from_secs(1)).await.unwrap()),
                _ => {}
            }
        }
    };
    churn(50_000).await;
    assert_no_leaks(&hub).await;
    assert_forgets_all(&hub, kit::PATIENCE).await;
    assert_eq!(hub.stats().retained_bytes, 0);
    assert!((0..77).all(|n| hub.topic(format!("t{n}")).presence().members.is_empty()));
}

#[test]
fn a_million_expired_topics_release_their_memory() {
    const TOPICS: usize = 1_000_000;
    let hub = Hub::builder()
        .heartbeat(Duration::from_millis(10))
        .topic_retention(Retention::replay().age(Duration::from_millis(50)))
        .retention_budget(1 << 30)
        .build()
        .unwrap();
    let counted = |work: &mut dyn FnMut()| allocation_counter::measure(work);
    let publish = |n: usize| assert_eq!(hub.topic(n).publish_now(Event::unnamed("x")).unwrap().connections, 0);
    // Initialization allocates before the measurement.
    (0..1000).for_each(publish);
    let mut peak = 0;
    let all = counted(&mut || {
        for n in 0..TOPICS {
            publish(n);
            peak = peak.max(hub.stats().channels);
        }
        // Without a runtime, publishers do the housekeeping.
        let since = Instant::now();
        while hub.stats().channels > 10 {
            assert!(since.elapsed() < kit::PATIENCE, "{} channels are left", hub.stats().channels);
            std::thread::yield_now();
            hub.everyone().publish_now(Event::unnamed("x")).unwrap();
        }
    });
    assert!(peak > 1000);
    let left = all.bytes_current.max(0) as u64;
    // The marks of forgotten topics are bounded in number.
    let marks = 7 << 20;
    assert!(left < all.bytes_max / 20 + marks, "{left} of {} bytes are still allocated", all.bytes_max);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_ends_every_stream_cleanly_and_spreads_the_reconnects() {
    const READERS: usize = 2_000;
    const STALLED: usize = 20;
    let window = Duration::from_secs(20);
    let builder = Hub::builder().drain_limit(Duration::from_secs(8));
    let hub = builder.topic_retention(Retention::replay().bytes(16 << 20)).build().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    // Like a typical application, with a channel in the place of the signal, and without
    // `ConnectInfo`.
    let serve = {
        let hub = hub.clone();
        let service = app(&hub);
        tokio::spawn(async move {
            let mut drained = None;
            axum::serve(kit::hub_listener(&hub, listener), service)
                .with_graceful_shutdown({
                    let drained = &mut drained;
                    let (sender, receiver) = tokio::sync::oneshot::channel();
                    *drained = Some(receiver);
                    async move {
                        begun.await.unwrap();
                        assert!(hub.is_ready());
                        let _ = sender.send(hub.drain(window).await);
                    }
                })
                .await
                .unwrap();
            drained.unwrap().await.unwrap()
        })
    };
    let mut stalled_sockets = Vec::new();
    for _ in 0..STALLED / 2 {
        stalled_sockets.push(stalled(addr, "/events?topic=t&topic=big").await);
    }
    let mut windows = Vec::new();
    for _ in 0..STALLED / 2 {
        let mut sender = http2(addr).await;
        let request = Request::get("http://test/events?topic=t&topic=big").body(Full::new(Bytes::new())).unwrap();
        windows.push((soon(sender.send_request(request)).await.unwrap(), sender));
    }
    let mut readers = Vec::new();
    let ready = Arc::new(AtomicUsize::new(0));
    let all_are_ready = watch::Sender::new(false);
    let shared: Vec<_> = futures::future::join_all((0..4).map(|_| http2(addr))).await;
    for n in 0..READERS - STALLED {
        // A tenth of the readers use HTTP/2.
        let mut sender = (n % 10 == 0).then(|| shared[n % 4].clone());
        let ready = Arc::clone(&ready);
        let mut all_are_ready = all_are_ready.subscribe();
        readers.push(tokio::spawn(async move {
            let mut events = match &mut sender {
                None => get(addr, "/events?topic=t").await.events(),
                Some(sender) => {
                    let request = Request::get("http://test/events?topic=t").body(Full::new(Bytes::new())).unwrap();
                    reply(soon(sender.send_request(request)).await.unwrap()).events()
                }
            };
            events.caught_up().await;
            ready.fetch_add(1, Ordering::AcqRel);
            // The first event may come much later.
            all_are_ready.wait_for(|are_ready| *are_ready).await.unwrap();
            let rest = events.rest().await;
            let (bye, before) = rest.split_last().expect("the stream ended without `hub.bye`");
            assert_eq!(bye.event, "hub.bye");
            assert_eq!(bye.data, r#"{"reason":"draining","reconnect":"now"}"#);
            let seen: Vec<u64> = before.iter().map(|event| event.data.parse().unwrap()).collect();
            assert!(seen.iter().copied().eq(0..seen.len() as u64), "{seen:?}");
            bye.retry.unwrap()
        }));
    }
    within(MANY, eventually(|| ready.load(Ordering::Acquire) == READERS - STALLED)).await;
    assert_eq!(hub.stats().connections, READERS);
    all_are_ready.send_replace(true);
    let publisher = tokio::spawn({
        let hub = hub.clone();
        async move {
            for _ in 0..60 {
                hub.topic("big").publish(Event::unnamed("x".repeat(200_000))).await.unwrap();
            }
            for n in 0.. {
                if hub.topic("t").publish(Event::unnamed(n.to_string())).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    until(|| hub.stats().published > 80).await;

    let since = Instant::now();
    begin.send(()).unwrap();
    until(|| !hub.is_ready()).await;
    let refused = get(addr, "/events?topic=t").await.events().rest().await;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].event, "hub.refused");
    assert!(refused[0].data.contains("draining") && refused[0].retry.is_some());
    let drained = within(MANY, serve).await.unwrap();
    // A drain that waits for the window takes longer.
    assert!(since.elapsed() < Duration::from_secs(18), "the drain took {:?}", since.elapsed());
    assert_eq!(drained.ended, READERS - STALLED);
    assert_eq!(drained.cut, STALLED);
    soon(publisher).await.unwrap();

    let mut retries = Vec::new();
    for reader in readers {
        retries.push(soon(reader).await.unwrap());
    }
    // Each tenth of the window has about a tenth of the reconnects.
    for tenth in 0..10 {
        let share = window / 10;
        let count = retries.iter().filter(|retry| **retry >= share * tenth && **retry < share * (tenth + 1)).count();
        assert!(count > READERS / 40, "{count} of {READERS} reconnect in tenth {tenth}");
    }
    assert_eq!(hub.stats().connections, 0);
    drop((stalled_sockets, windows));
}

/// At a shutdown, an HTTP/2 server sends GOAWAY and waits for the peer, which may be frozen.
#[test]
fn a_frozen_http2_client_does_not_keep_the_process_running() {
    let ours = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let theirs = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hub = Hub::builder().build().unwrap();
    let listener = ours.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = ours.spawn({
        let (draining, app) = (hub.clone(), app(&hub));
        let draining = async move {
            let hub = draining;
            until(|| hub.stats().connections == 2).await;
            assert_eq!(hub.drain(Duration::ZERO).await.ended, 2);
        };
        axum::serve(kit::hub_listener(&hub, listener), app).with_graceful_shutdown(draining).into_future()
    });
    // The runtime of the client runs only here. Afterwards the client neither reads nor writes, and
    // its sockets stay open.
    let frozen = theirs.block_on(async {
        let mut sender = http2(addr).await;
        let request = Request::get("http://test/events?topic=t").body(Full::new(Bytes::new())).unwrap();
        let over_http2 = soon(sender.send_request(request)).await.unwrap();
        (sender, over_http2, get(addr, "/events?topic=t").await)
    });
    ours.block_on(soon(serve)).unwrap().unwrap();
    drop(frozen);
}

#[tokio::test]
async fn an_aborted_stream_ends_with_an_error_after_a_complete_frame() {
    let (hub, server) = start(Hub::builder().stream_end(tower_sse::StreamEnd::Abort)).await;
    let mut body = get(server.addr, "/events?topic=t").await.body;
    until(|| hub.stats().connections == 1).await;
    hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
    hub.drain(Duration::ZERO).await;
    let mut text = String::new();
    while let Ok(frame) = soon(body.frame()).await.expect("the body ended cleanly") {
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert!(text.ends_with("\n\n"), "{text:?}");
    assert!(text.contains("data: x\n") && text.contains("event: hub.bye\n"));
}

#[tokio::test]
async fn a_retryable_refusal_ends_like_a_stream() {
    let (hub, server) = start(Hub::builder().stream_end(tower_sse::StreamEnd::Abort)).await;
    hub.drain(Duration::ZERO).await;
    let mut body = get(server.addr, "/events?topic=t").await.body;
    let frame = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert!(frame.starts_with(b"event: hub.refused\n") && frame.ends_with(b"\n\n"), "{frame:?}");
    soon(body.frame()).await.expect("the body ended cleanly").unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_the_expiry_of_its_subscription() {
    let hub = Hub::builder().build().unwrap();
    let subscription = Subscription::anonymous().topic("t").expires_in(Duration::from_secs(600));
    let since = tokio::time::Instant::now();
    let stream = hub.subscribe(subscription, Cursor::Absent).unwrap();
    let items: Vec<_> = stream.collect().await;
    assert!(matches!(items[..], [SubscriberItem::Live(_), SubscriberItem::End(EndReason::Expired)]), "{items:?}");
    let lived = since.elapsed();
    assert!(lived <= Duration::from_secs(600) && lived >= Duration::from_secs(539), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_subscription_ends_at_most_a_minute_before_its_expiry() {
    let hub = Hub::builder().build().unwrap();
    let day = Duration::from_secs(86_400);
    for _ in 0..20 {
        let since = tokio::time::Instant::now();
        let stream = hub.subscribe(Subscription::anonymous().expires_in(day), Cursor::Absent).unwrap();
        stream.collect::<Vec<_>>().await;
        assert!(since.elapsed() <= day && since.elapsed() >= day - Duration::from_secs(61), "{:?}", since.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_more_to_read_ends_at_its_expiry() {
    let hub = Hub::builder().build().unwrap();
    let subscription = Subscription::anonymous().topic("t").expires_in(Duration::from_secs(60));
    let mut stream = hub.subscribe(subscription, Cursor::Absent).unwrap();
    for _ in 0..=60 {
        // Twice as many events as the stream reads.
        for _ in 0..200 {
            hub.topic("t").publish(Event::unnamed("x")).await.unwrap();
        }
        for _ in 0..100 {
            if let Some(SubscriberItem::End(reason)) = stream.next().await {
                return assert_eq!(reason, EndReason::Expired);
            }
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    panic!("the stream is open after its expiry");
}

#[tokio::test(start_paused = true)]
async fn an_expiring_stream_sends_a_notice_and_heartbeats() {
    let hub = Hub::builder().build().unwrap();
    let access = async |_| Ok(Subscription::anonymous().expires_in(Duration::from_secs(300)));
    let response = tower::ServiceExt::oneshot(hub.endpoint(access), Request::get("/").body(()).unwrap()).await.unwrap();
    let since = tokio::time::Instant::now();
    let mut body = Box::pin(response.into_body());
    let (mut text, mut noticed) = (String::new(), None);
    while let Some(frame) = body.frame().await {
        let bytes = frame.unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&bytes).unwrap());
        if text.contains("hub.expiring") {
            noticed.get_or_insert(since.elapsed());
        }
    }
    let ended = since.elapsed();
    let notice = ended - noticed.unwrap();
    assert!(notice >= Duration::from_secs(29) && notice <= Duration::from_secs(31), "{notice:?}");
    // A heartbeat is a comment without a blank line. It comes after 13.5 to 15 s without an event.
    let beats = text.matches("\n:\n").count() + text.matches(":\n:\n").count();
    assert!((14..=24).contains(&beats), "{beats} heartbeats in {ended:?}");
    assert!(!text.contains(":\n\n"), "{text:?}");
    assert!(text.ends_with("event: hub.bye\ndata: {\"reason\":\"expired\",\"reconnect\":\"now\"}\n\n"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_receives_a_new_id_regularly() {
    let hub = Hub::builder().build().unwrap();
    let access = async |_| Ok(Subscription::anonymous().topic("silent"));
    let response = tower::ServiceExt::oneshot(hub.endpoint(access), Request::get("/").body(()).unwrap()).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let mut read =
        async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
    assert!(read().await.starts_with("event: hub.hello"));
    assert!(read().await.ends_with(".0\n\n"));
    for n in 1..=100 {
        hub.topic("busy").publish(Event::unnamed("x")).await.unwrap();
        let since = tokio::time::Instant::now();
        // Heartbeats come every 15 s, and within 165 s an id that covers the events of other
        // topics.
        while read().await == ":\n" {}
        assert!(since.elapsed() <= Duration::from_secs(166), "round {n}");
    }
    hub.topic("silent").publish(Event::unnamed("y")).await.unwrap();
    assert!(read().await.ends_with(".101\n\n"));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_that_reconnects_after_other_topics_were_forgotten_gets_no_gap() {
    let hub = Hub::builder()
        .heartbeat(Duration::from_secs(3))
        .topic_retention(Retention::replay().age(Duration::from_secs(10)))
        .build()
        .unwrap();
    let mut first = hub.subscribe(Subscription::anonymous().topic("other"), Cursor::Absent).unwrap();
    assert!(matches!(first.next().await, Some(SubscriberItem::Live(_))));
    for _ in 0..10 {
        hub.topic("busy").publish(Event::unnamed("x")).await.unwrap();
    }
    let cursor = hub.position();
    // In this time the hub drops the events of `busy` and forgets the topic.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let mut back = hub.subscribe(Subscription::anonymous().topic("new"), cursor).unwrap();
    assert!(matches!(back.next().await, Some(SubscriberItem::Live(_))));
    // A client with an older position gets a gap for `busy`.
    let old = cursor.to_string().replace(".10", ".3").parse::<tower_sse::Position>().unwrap();
    let mut back = hub.subscribe(Subscription::anonymous().topic("busy"), old).unwrap();
    assert!(matches!(back.next().await, Some(SubscriberItem::Gap { .. })));
}

/// The network of the peer is cut, so the server receives neither FIN nor RST.
#[tokio::test]
async fn a_peer_that_disappears_without_fin_or_rst_is_removed() {
    if !(skip::has("ip", "-V") && skip::has("curl", "-V")) {
        return;
    }
    let Some(network) = Network::new() else {
        return skip::skipped("this machine does not permit network namespaces");
    };
    let hub =
        Hub::builder().heartbeat(Duration::from_millis(200)).write_deadline(Duration::from_secs(1)).build().unwrap();
    let listener = tokio::net::TcpListener::bind((network.server.as_str(), 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = tokio::spawn({
        let (listener, app) = (kit::hub_listener(&hub, listener), app(&hub));
        async move { axum::serve(listener, app).await }
    });
    let mut curl = tokio::process::Command::new("ip")
        .args(["netns", "exec", &network.name, "curl", "-sN", &format!("http://{addr}/events?topic=t")])
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    until(|| hub.stats().connections == 1).await;
    network.cut();
    until(|| hub.stats().connections == 0).await;
    curl.kill().await.unwrap();
    serve.abort();
}

/// A second host: a network namespace that is connected by a pair of virtual interfaces.
struct Network {
    name: String,
    server: String,
}

impl Network {
    /// Tries several numbers, because an earlier run may have left a namespace behind.
    fn new() -> Option<Self> {
        (0..3).find_map(|attempt| Self::numbered((std::process::id() + 77 * attempt) % 250 + 1))
    }

    fn numbered(number: u32) -> Option<Self> {
        let name = format!("tower-sse-{number}");
        let network = Self { server: format!("10.213.{number}.1"), name: name.clone() };
        let (near, far) = (format!("tsn{number}"), format!("tsf{number}"));
        let client = format!("10.213.{number}.2/24");
        let server = format!("{}/24", network.server);
        let done = ip(&["netns", "add", &name])
            && ip(&["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name])
            && ip(&["addr", "add", &server, "dev", &near])
            && ip(&["link", "set", &near, "up"])
            && ip(&["-n", &name, "addr", "add", &client, "dev", &far])
            && ip(&["-n", &name, "link", "set", &far, "up"]);
        done.then_some(network)
    }

    fn cut(&self) {
        let number = self.name.rsplit('-').next().unwrap();
        assert!(ip(&["-n", &self.name, "link", "set", &format!("tsf{number}"), "down"]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let number = self.name.rsplit('-').next().unwrap();
        ip(&["link", "del", &format!("tsn{number}")]);
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    std::process::Command::new("ip")
        .args(arguments)
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

#[tokio::test]
async fn a_resumed_stream_receives_its_backlog_in_few_chunks() {
    let (hub, server) = start(Hub::builder()).await;
    let start = hub.position().to_string();
    for n in 0..500 {
        hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
    }
    let mut events = resume(server.addr, "/events?topic=t", &start).await;
    assert_eq!(events.caught_up().await.len(), 501);
    let request = Request::get("/events?topic=t").header("last-event-id", &start).body("").unwrap();
    let mut body = kit::send(server.addr, request).await.body;
    let (mut chunks, mut text) = (0, String::new());
    while !text.contains("event: hub.live") {
        let chunk = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        chunks += 1;
    }
    assert!(text.contains("\ndata: 499\n"));
    assert!(chunks <= 16, "500 events in {chunks} chunks");
}
