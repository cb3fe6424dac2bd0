//! Presence updates are control messages and use no space in the log.

use tower_sse::backplane::Backplane;
use tower_sse::{Cursor, Event, Hub, SubscriberItem, Subscription};

use crate::instances::builder;
use crate::kit::broker::{BrokerServer, for_each_broker, range};
use crate::kit::{soon, until};

const RECORDS: u64 = 300;
/// The number of connections on each of two instances.
const CONNECTS: usize = 5_000;
const STAY: usize = 50;

fn subscription(instance: usize, n: usize) -> Subscription {
    Subscription::for_user(format!("user {}", n % 100)).topic("all").topic(format!("{instance}/{n}"))
}

async fn a_storm_of_connects_evicts_no_record<B: BrokerServer>(broker: B) {
    let log = B::with_max_records(broker.log("storm"), 1_000);
    let hubs: [Hub; 2] = std::array::from_fn(|_| {
        let own = B::with_max_records(broker.log("storm"), 1_000);
        builder().backplane(own).build().unwrap()
    });
    until(|| hubs.iter().all(|hub| hub.is_ready() && hub.stats().others == 1)).await;
    let begin = hubs[0].position();
    for n in 0..RECORDS {
        hubs[0].topic("news").publish(Event::unnamed(n.to_string())).await.unwrap();
    }
    let before = soon(log.state(None)).await.unwrap();
    assert_eq!((before.first, before.last), (1, RECORDS));
    let records = range(&log, 0, 1_000).await;

    let mut streams = Vec::new();
    for n in 0..CONNECTS {
        for (instance, hub) in hubs.iter().enumerate() {
            streams.push(hub.subscribe(subscription(instance, n), Cursor::Absent).unwrap());
        }
        // Let the hub send presence updates in between, as with real connections.
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for hub in &hubs {
        until(|| hub.everyone().count() == 2 * CONNECTS).await;
    }
    streams.truncate(2 * STAY);
    // These connections end before the hub has sent an update about them.
    for n in 0..CONNECTS {
        for (instance, hub) in hubs.iter().enumerate() {
            drop(hub.subscribe(subscription(instance, n), Cursor::Absent).unwrap());
        }
    }
    for (instance, hub) in hubs.iter().enumerate() {
        let other = 1 - instance;
        until(|| hub.everyone().count() == 2 * STAY).await;
        assert_eq!((hub.topic("all").count(), hub.user("user 7").count()), (2 * STAY, 2));
        assert!(hub.topic(format!("{other}/{}", STAY - 1)).has_subscribers());
        assert!(!hub.topic(format!("{other}/{STAY}")).has_subscribers());
    }

    assert_eq!(soon(log.state(None)).await.unwrap(), before);
    assert_eq!(range(&log, 0, 1_000).await, records);
    for hub in &hubs {
        let mut late = hub.subscribe(Subscription::anonymous().topic("news"), begin).unwrap();
        for n in 0..RECORDS {
            match soon(late.next()).await.unwrap() {
                SubscriberItem::Event(event) => assert_eq!(event.data, n.to_string()),
                other => panic!("{other:?}"),
            }
        }
    }
}

for_each_broker!(a_storm_of_connects_evicts_no_record(broker): redis, nats, postgres);
