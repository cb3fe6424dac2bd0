//! Streams and servers whose runtime or task ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::runtime::{Builder, Runtime};
use tower_sse::{Event, Hub, Retention};

use crate::deadline::takes_no_more;
use crate::kit::{Events, soon, until};
use crate::peer::{Peer, request};
use crate::site::Site;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn open(addr: SocketAddr) -> (Events, OwnedWriteHalf) {
    Peer::connect(addr).await.open("/events?topic=t").await
}

fn site_on(runtime: &Runtime, hub: &Hub) -> Site {
    runtime.block_on(async { Site::on(hub.clone(), TcpListener::bind("127.0.0.1:0").await.unwrap(), |app| app).await })
}

#[test]
fn a_runtime_that_shuts_down_ends_its_own_streams_and_no_others() {
    let (ours, theirs, clients) = (runtime(), runtime(), runtime());
    let hub = Hub::builder().drain_limit(Duration::from_secs(10)).build().unwrap();
    // The background tasks of the hub run on `theirs` at first.
    let (gone, stays) = (site_on(&theirs, &hub), site_on(&ours, &hub));
    let (mut lost, _lost) = clients.block_on(open(gone.addr));
    let (mut kept, _kept) = clients.block_on(open(stays.addr));
    clients.block_on(async {
        gone.taken(1).await;
        stays.taken(1).await;
    });
    drop(theirs);
    clients.block_on(async {
        until(|| hub.stats().connections == 1).await;
        // The stream is cut without `hub.bye`.
        while let Some(Ok(event)) = lost.try_next().await {
            assert_ne!(event.event, "hub.bye");
        }
        for n in 0..3 {
            hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
            assert_eq!(kept.next_own().await.data, n.to_string());
        }
    });
    let since = Instant::now();
    let drained = ours.block_on(soon(stays.drain_and_shut_down(Duration::ZERO)));
    assert_eq!((drained.ended, drained.cut), (1, 0));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(clients.block_on(kept.rest()).pop().unwrap().event, "hub.bye");
    drop(gone);
}

/// The stream is stuck, so the hub keeps it in a table.
#[test]
fn a_stuck_stream_of_a_runtime_that_is_gone_does_not_delay_a_drain() {
    let (ours, theirs, clients) = (runtime(), runtime(), runtime());
    let wide = Retention::replay().bytes(64 << 20);
    let hub = Hub::builder().drain_limit(Duration::from_secs(10)).topic_retention(wide).build().unwrap();
    let gone = site_on(&theirs, &hub);
    let _stuck = clients.block_on(async {
        let mut peer = Peer::narrow(gone.addr).await;
        peer.get("/events?topic=t").await;
        peer.reader.head().await;
        gone.taken(1).await;
        for _ in 0..40 {
            gone.publish("t", "x".repeat(200_000)).await;
        }
        takes_no_more(&hub).await;
        peer
    });
    drop(theirs);
    let since = Instant::now();
    let drained = ours.block_on(soon(hub.drain(Duration::ZERO)));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!((drained.cut, hub.stats().connections), (0, 0));
}

/// A current-thread runtime runs its tasks only during `block_on`.
#[test]
fn a_runtime_that_is_not_driven_delays_no_stream_of_another_runtime() {
    let (ours, clients) = (runtime(), runtime());
    let still = Builder::new_current_thread().enable_all().build().unwrap();
    let hub = Hub::builder().drain_limit(Duration::from_secs(1)).build().unwrap();
    let stays = site_on(&ours, &hub);
    let stopped = site_on(&still, &hub);
    let (_asleep, _writer) = still.block_on(async {
        let open = open(stopped.addr).await;
        stopped.taken(1).await;
        open
    });
    let (mut kept, _kept) = clients.block_on(open(stays.addr));
    clients.block_on(async {
        for n in 0..3 {
            hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
            assert_eq!(kept.next_own().await.data, n.to_string());
        }
    });
    let since = Instant::now();
    let drained = ours.block_on(soon(stays.drain_and_shut_down(Duration::ZERO)));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!((drained.ended, drained.cut), (1, 1));
    assert_eq!(clients.block_on(kept.rest()).pop().unwrap().event, "hub.bye");
}

#[tokio::test]
async fn the_streams_of_an_aborted_server_continue() {
    let site = Site::start(Hub::builder()).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    site.task.abort();
    until(|| site.task.is_finished()).await;
    site.delivers_as_taken(&mut events).await;
    let drained = soon(site.hub.drain(Duration::ZERO)).await;
    assert_eq!((drained.ended, drained.cut), (1, 0));
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
}

/// The process may exit when the server has shut down: the writers have no unwritten bytes.
#[test]
fn when_the_server_has_shut_down_every_last_frame_is_written() {
    const STREAMS: usize = 500;
    for _ in 0..5 {
        let (server, clients) =
            (Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(), runtime());
        let hub = Hub::builder().build().unwrap();
        let site = site_on(&server, &hub);
        let streams = clients.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                let mut peer = Peer::connect(site.addr).await;
                peer.send(request("/events?topic=t")).await;
                peer.reader.head().await;
                streams.push((peer.reader.events(), peer.writer));
            }
            site.taken(STREAMS).await;
            for n in 0..20 {
                site.publish("t", format!("{n} {}", "x".repeat(3000))).await;
            }
            streams
        });
        let drained = server.block_on(site.drain_and_shut_down(Duration::ZERO));
        // The end of `main` drops the runtime in the same way.
        drop(server);
        assert_eq!((drained.ended, drained.cut), (STREAMS, 0));
        clients.block_on(async {
            for (events, _writer) in streams {
                let rest = events.rest().await;
                assert_eq!(rest.iter().filter(|event| event.event == "message").count(), 20);
                assert_eq!(rest.last().unwrap().event, "hub.bye");
            }
        });
    }
}

/// The clients keep sending, and their input may arrive when the server does not read any more.
#[test]
fn when_the_server_has_shut_down_every_last_frame_is_written_to_clients_that_send_too() {
    const STREAMS: usize = 100;
    let (server, clients) = (Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(), runtime());
    let hub = Hub::builder().build().unwrap();
    let site = site_on(&server, &hub);
    let streams = clients.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(open(site.addr).await);
        }
        site.taken(STREAMS).await;
        streams
    });
    let (events, writers): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    let sender = clients.spawn(async move {
        for _ in 0..200 {
            for writer in &writers {
                drop(writer.try_write(b"stray input"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writers
    });
    let drained = server.block_on(site.drain_and_shut_down(Duration::ZERO));
    drop(server);
    assert_eq!((drained.ended, drained.cut), (STREAMS, 0));
    clients.block_on(async {
        let _writers = sender.await.unwrap();
        for events in events {
            assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
        }
    });
}
