//! For any sequence of actions of publishers, the application and a client, readers receive the
//! same events with and without takeover.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use tokio::net::TcpListener;
use tower_sse::{Disconnect, Event, Hub, Retention};

use crate::kit::access::by_query;
use crate::kit::{Sse, soon, until};
use crate::peer::Peer;
use crate::site::Site;

#[derive(Clone, Debug)]
enum Act {
    Publish {
        topic: u8,
        size: usize,
    },
    ToEveryone {
        size: usize,
    },
    Join {
        topic: u8,
    },
    /// Waits until everything has been read, because pending events of a topic that is left may be
    /// dropped.
    Leave {
        topic: u8,
    },
    Read {
        bytes: usize,
    },
    Input {
        bytes: usize,
    },
    Pause,
}

#[derive(Clone, Copy, Debug)]
enum Last {
    Disconnect,
    Ban,
    Drain,
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![4 => 1..200_usize, 2 => 1..5_000_usize, 1 => 1..100_000_usize];
    prop_oneof![
        8 => (0..3_u8, size.clone()).prop_map(|(topic, size)| Act::Publish { topic, size }),
        2 => size.prop_map(|size| Act::ToEveryone { size }),
        1 => (0..3_u8).prop_map(|topic| Act::Join { topic }),
        1 => (0..3_u8).prop_map(|topic| Act::Leave { topic }),
        5 => (1..40_000_usize).prop_map(|bytes| Act::Read { bytes }),
        2 => (1..20_000_usize).prop_map(|bytes| Act::Input { bytes }),
        1 => Just(Act::Pause),
    ]
}

fn last() -> impl Strategy<Value = Last> {
    prop_oneof![Just(Last::Disconnect), Just(Last::Ban), Just(Last::Drain)]
}

/// The events without what differs between two runs: the connection, times, and ids.
fn essence(events: &[Sse]) -> Vec<(String, String)> {
    let own = events.iter().filter(|event| !["hub.hello", "hub.live"].contains(&event.event.as_str()));
    own.map(|event| (event.event.clone(), event.data.clone())).collect()
}

async fn play(addr: SocketAddr, hub: &Hub, narrow: bool, acts: &[Act], last: Last) -> (Vec<Sse>, Vec<String>) {
    let mut peer = if narrow { Peer::narrow(addr).await } else { Peer::connect(addr).await };
    peer.get("/events?topic=t0").await;
    assert_eq!(peer.reader.head().await.status, "HTTP/1.1 200 OK");
    let connection = hub.connections()[0].id;
    let mut topics = vec![0_u8];
    let mut expected = Vec::new();
    let data = |n: usize, size: usize| format!("{n} {}", "x".repeat(size));
    for (n, act) in acts.iter().enumerate() {
        match act {
            Act::Publish { topic, size } => {
                hub.topic(format!("t{topic}")).publish(Event::unnamed(data(n, *size))).await.unwrap();
                if topics.contains(topic) {
                    expected.push(data(n, *size));
                }
            }
            Act::ToEveryone { size } => {
                hub.everyone().publish(Event::unnamed(data(n, *size))).await.unwrap();
                expected.push(data(n, *size));
            }
            Act::Join { topic } => {
                hub.connection(connection).join(format!("t{topic}")).await.unwrap();
                topics.retain(|other| other != topic);
                topics.push(*topic);
            }
            Act::Leave { topic } => {
                // Not `Stats::lag`, which does not count a stream that is reading at the moment.
                while hub.connections()[0].delivered < expected.len() as u64 {
                    assert!(peer.reader.more_within(Duration::from_millis(5), 1_000_000).await.unwrap());
                }
                hub.connection(connection).leave(format!("t{topic}")).await.unwrap();
                topics.retain(|other| other != topic);
            }
            Act::Read { bytes } => assert!(peer.reader.more_within(Duration::from_millis(2), *bytes).await.unwrap()),
            // As much as the socket takes at once: a server that does not read while it writes may
            // take no more.
            Act::Input { bytes } => drop(peer.writer.try_write(&vec![b'x'; *bytes])),
            Act::Pause => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    let end = async {
        match last {
            Last::Disconnect => {
                assert_eq!(hub.connection(connection).disconnect(Disconnect::now()).await.unwrap().connections, 1);
            }
            Last::Ban => {
                let disconnect = Disconnect::block_for(Duration::from_secs(60));
                assert_eq!(hub.connection(connection).disconnect(disconnect).await.unwrap().connections, 1);
            }
            Last::Drain => assert_eq!(hub.drain(Duration::ZERO).await.cut, 0),
        }
    };
    // A disconnect does not wait for earlier events.
    let mut events = Vec::new();
    let mut reader = peer.reader.events();
    if !matches!(last, Last::Drain) {
        while essence(&events).len() < expected.len() {
            events.push(reader.next().await);
        }
    }
    let ((), rest) = tokio::join!(soon(end), reader.rest());
    events.extend(rest);
    (events, expected)
}

fn hub() -> Hub {
    let wide = Retention::replay().count(10_000).bytes(64 << 20);
    let builder = Hub::builder().topic_retention(wide).retention_budget(256 << 20);
    builder.drain_limit(Duration::from_secs(15)).build().unwrap()
}

async fn taken_over(narrow: bool, acts: &[Act], last: Last) -> (Vec<Sse>, Vec<String>) {
    let site = if narrow {
        Site::narrow_on(hub(), |app| app).await
    } else {
        Site::on(hub(), TcpListener::bind("127.0.0.1:0").await.unwrap(), |app| app).await
    };
    let played = play(site.addr, &site.hub, narrow, acts, last).await;
    until(|| site.passed.ended() == 1).await;
    assert_eq!(site.passed.frames(), 1);
    played
}

async fn by_body(narrow: bool, acts: &[Act], last: Last) -> (Vec<Sse>, Vec<String>) {
    let hub = hub();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = axum::Router::new().route_service("/events", hub.endpoint(by_query));
    let serve = axum::serve(hub.listener(listener), app);
    let serve = tokio::spawn(async move { serve.await.unwrap() });
    let played = play(addr, &hub, narrow, acts, last).await;
    serve.abort();
    played
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn readers_receive_the_same_events_with_and_without_takeover(
        acts in proptest::collection::vec(act(), 1..60),
        last in last(),
        narrow in any::<bool>(),
        threads in 0..3_usize,
    ) {
        let runtime = match threads {
            0 => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build().unwrap(),
        };
        runtime.block_on(async {
            let (taken, expected) = taken_over(narrow, &acts, last).await;
            let (body, _) = by_body(narrow, &acts, last).await;
            let (taken, body) = (essence(&taken), essence(&body));
            let own: Vec<_> = taken.iter().filter(|(name, _)| name == "message").map(|(_, data)| data.clone()).collect();
            assert!(own == expected, "{} of {} events", own.len(), expected.len());
            assert!(taken == body, "{} and {} events", taken.len(), body.len());
            assert_eq!(taken.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "message").collect::<Vec<_>>(), ["hub.bye"]);
        });
    }
}
