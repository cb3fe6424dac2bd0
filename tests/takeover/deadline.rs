//! Clients that read slowly, or not at all.

use std::time::{Duration, Instant};

use tower_sse::{Disconnect, EndReason, Hub, HubBuilder, Retention};

use crate::kit::until;
use crate::peer::Peer;
use crate::site::Site;

/// Retention for everything that these tests publish.
fn wide() -> HubBuilder {
    Hub::builder().topic_retention(Retention::replay().count(10_000).bytes(256 << 20)).retention_budget(256 << 20)
}

/// Publishes more than all buffers between the hub and the client hold.
async fn publish_much(site: &Site) {
    for n in 0..40 {
        site.publish("t", format!("{n} {}", "x".repeat(200_000))).await;
    }
}

async fn stuck(site: &Site) -> Peer {
    let peer = site.narrow_stream().await;
    publish_much(site).await;
    takes_no_more(&site.hub).await;
    peer
}

/// Waits until no stream takes any more events although events are pending.
pub async fn takes_no_more(hub: &Hub) {
    loop {
        let before = hub.stats().delivered;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stats = hub.stats();
        if stats.delivered == before && stats.lag > 0 {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_no_bytes_is_cut() {
    let deadline = Duration::from_secs(1);
    let site = Site::start(wide().write_deadline(deadline)).await;
    let since = Instant::now();
    let _peer = stuck(&site).await;
    until(|| site.hub.stats().connections == 0).await;
    let lived = since.elapsed();
    assert!(lived >= deadline && lived < 15 * deadline, "{lived:?}");
    assert_eq!(site.hub.stats().ended(EndReason::Stalled), 1);
}

#[tokio::test]
async fn a_client_without_pending_bytes_is_not_cut() {
    let site = Site::start(Hub::builder().write_deadline(Duration::from_millis(100))).await;
    let (mut events, _writer) = Peer::connect(site.addr).await.open("/events?topic=t").await;
    site.taken(1).await;
    site.delivers_as_taken(&mut events).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    site.delivers_as_taken(&mut events).await;
}

#[tokio::test]
async fn a_slow_but_steady_client_is_not_cut() {
    let deadline = Duration::from_millis(600);
    let site = Site::start(wide().write_deadline(deadline)).await;
    let mut peer = stuck(&site).await;
    let since = Instant::now();
    while since.elapsed() < 5 * deadline {
        assert!(peer.reader.more_at_most(32 * 1024).await.unwrap());
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(site.hub.stats().lag > 0, "the client is too fast for this test");
    }
    // The rest is read without a parser: a busy machine may parse megabytes for longer than the
    // deadline, and a client that parses on the only thread reads nothing meanwhile.
    while !peer.reader.has_read_through("data: 39 ") {
        assert!(peer.reader.more_at_most(32 * 1024).await.unwrap());
    }
    let mut events = peer.reader.events();
    for n in 0..40 {
        assert!(events.next_own().await.data.starts_with(&format!("{n} ")));
    }
    assert_eq!(site.hub.stats().connections, 1);
    site.delivers_as_taken(&mut events).await;
}

/// The deadline starts again each time that the client stops reading.
#[tokio::test]
async fn a_client_that_stops_reading_again_is_cut_again() {
    let deadline = Duration::from_millis(500);
    let site = Site::start(wide().write_deadline(deadline)).await;
    let mut peer = site.narrow_stream().await;
    for _ in 0..2 {
        publish_much(&site).await;
        let mut text = String::new();
        while !text.contains("data: 39 ") {
            text = String::from_utf8(peer.reader.chunk().await.unwrap().unwrap()).unwrap();
        }
    }
    assert_eq!(site.hub.stats().connections, 1);
    let since = Instant::now();
    publish_much(&site).await;
    until(|| site.hub.stats().ended(EndReason::Stalled) == 1).await;
    assert!(since.elapsed() >= deadline, "{:?}", since.elapsed());
    drop(peer);
}

#[tokio::test]
async fn a_drain_cuts_a_client_that_takes_no_bytes() {
    let limit = Duration::from_secs(1);
    let site = Site::start(wide().write_deadline(Duration::from_secs(600)).drain_limit(limit)).await;
    let _peers = [stuck(&site).await, stuck(&site).await];
    let (events, _writer) = Peer::connect(site.addr).await.open("/events?topic=other").await;
    let hub = site.hub.clone();
    let since = Instant::now();
    let drained = site.drain_and_shut_down(Duration::ZERO).await;
    let took = since.elapsed();
    assert!(took >= limit / 2 && took < 10 * limit, "{took:?}");
    assert_eq!((drained.ended, drained.cut), (1, 2));
    assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye");
    assert_eq!(hub.stats().connections, 0);
}

#[tokio::test]
async fn a_drain_cuts_an_ending_stream_whose_client_takes_no_bytes() {
    let limit = Duration::from_secs(1);
    let site = Site::start(wide().write_deadline(Duration::from_secs(600)).drain_limit(limit)).await;
    let _peer = stuck(&site).await;
    let [connection] = &site.hub.connections()[..] else { panic!("one stream") };
    site.hub.connection(connection.id).disconnect(Disconnect::now()).await.unwrap();
    let hub = site.hub.clone();
    let drained = site.drain_and_shut_down(Duration::ZERO).await;
    assert_eq!((drained.ended, drained.cut, hub.stats().ended(EndReason::Disconnected)), (0, 1, 1));
}

/// A client that starts to read during the drain receives everything.
#[tokio::test]
async fn a_drain_waits_for_a_slow_client() {
    let site = Site::start(wide().drain_limit(Duration::from_secs(10))).await;
    let peer = stuck(&site).await;
    let (drained, rest) = tokio::join!(site.drain_and_shut_down(Duration::ZERO), peer.reader.events().rest());
    assert_eq!((drained.ended, drained.cut), (1, 0));
    let own: Vec<_> = rest.iter().filter(|event| event.event == "message").collect();
    assert!(own.iter().enumerate().all(|(n, event)| event.data.starts_with(&format!("{n} "))) && own.len() == 40);
    assert_eq!(rest.last().unwrap().event, "hub.bye");
}

/// A small random generator with a seed, so that a failure can be repeated.
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_frame_is_torn_when_the_client_takes_few_bytes_at_a_time() {
    for seed in [1, 77, 4711] {
        let mut random = Seeded(seed);
        let site = Site::narrow(wide(), |app| app).await;
        let mut peer = site.narrow_stream().await;
        let mut published = Vec::new();
        for n in 0..150 {
            let size = if random.below(4) == 0 { random.below(60_000) } else { random.below(2_000) };
            let data: String = (0..size).map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap())).collect();
            published.push(format!("{n} {data}"));
            site.publish("t", published[n].clone()).await;
            if random.below(3) == 0 {
                let portion = usize::try_from(random.below(20_000)).unwrap() + 1;
                assert!(peer.reader.more_within(Duration::from_millis(5), portion).await.unwrap());
            }
        }
        let mut events = peer.reader.events();
        for data in published {
            assert!(events.next_own().await.data == data, "seed {seed}");
        }
        assert_eq!(site.passed.frames(), 1);
    }
}

/// The kernel also has a timeout, for bytes that it has buffered and cannot send. It fires first if
/// the buffers fill slowly.
#[tokio::test]
async fn a_client_that_takes_no_bytes_is_cut_also_by_the_timeout_of_the_kernel() {
    let deadline = Duration::from_millis(500);
    let site = Site::start(wide().write_deadline(deadline)).await;
    let _peer = site.narrow_stream().await;
    while site.hub.stats().connections == 1 {
        site.publish("t", "x".repeat(300)).await;
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    assert_eq!(site.hub.stats().ended(EndReason::Stalled), 1);
}
