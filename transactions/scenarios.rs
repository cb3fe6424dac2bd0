//! The tests of the packages in this folder, for any driver. They use a real server, and the
//! services of an application: two hubs, and a process that changes a table and publishes.

use std::time::Duration;

use tower_sse::backplane::{NewRecord, Postgres};
use tower_sse::{Event, Hub, Retention, Subscriber, SubscriberItem, Subscription, TopicFilter};

use crate::postgres::PostgresServer;

/// A connection of a driver.
pub trait Driver: Sized {
    async fn connect(url: &str) -> Self;

    /// Executes a statement and publishes records in one transaction, then commits the transaction
    /// or rolls it back.
    async fn run(&mut self, sql: &'static str, log: &Postgres, records: &[NewRecord], end: End) -> Result<(), String>;
}

#[derive(Clone, Copy)]
pub enum End {
    Commit,
    RollBack,
}

const INSERT: &str = "INSERT INTO orders DEFAULT VALUES";
/// The topic whose events are current values.
const STOCK: &str = "stock";

/// A server, two hubs, and a connection whose role may only publish and change the table `orders`.
pub struct Shop<D> {
    pub server: PostgresServer,
    pub hubs: [Hub; 2],
    pub log: Postgres,
    pub connection: D,
}

impl<D: Driver> Shop<D> {
    pub async fn start() -> Option<Self> {
        let server = PostgresServer::start(&[])?;
        server.psql(
            "CREATE ROLE shop LOGIN;
             CREATE TABLE orders (id serial);
             GRANT INSERT, SELECT ON orders TO shop; GRANT USAGE ON SEQUENCE orders_id_seq TO shop;
             GRANT USAGE ON SCHEMA tower_sse TO shop; GRANT EXECUTE ON FUNCTION tower_sse.publish_record TO shop",
        );
        let hubs = [hub(&server), hub(&server)];
        let connection = D::connect(&server.url_as("shop")).await;
        let log = log(&server);
        Some(Self { server, hubs, log, connection })
    }

    async fn run(&mut self, records: &[NewRecord], end: End) -> Result<(), String> {
        self.connection.run(INSERT, &self.log, records, end).await
    }

    async fn commit(&mut self, records: &[NewRecord]) {
        self.run(records, End::Commit).await.unwrap();
        self.log.wake();
    }

    /// Returns the record of an event to the topic `orders`.
    pub fn order(&self, data: &'static str) -> NewRecord {
        self.hubs[0].topic("orders").prepare(Event::unnamed(data)).unwrap()
    }

    /// Returns the number of rows in the table.
    pub fn orders(&self) -> String {
        self.server.psql("SELECT count(*) FROM orders")
    }

    /// Opens a stream of a topic at each hub.
    pub async fn streams(&self, topic: &str) -> [Subscriber; 2] {
        [open(&self.hubs[0], topic).await, open(&self.hubs[1], topic).await]
    }
}

fn log(server: &PostgresServer) -> Postgres {
    // An event arrives in time only if the instances are woken.
    Postgres::new(&server.url(), "shop").unwrap().poll_interval(Duration::from_secs(3600))
}

fn hub(server: &PostgresServer) -> Hub {
    let builder = Hub::builder().retention_for(TopicFilter::exact(STOCK), Retention::latest_per_key());
    builder.backplane(log(server)).build().unwrap()
}

/// Waits with a time limit far above the expected time.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

async fn open(hub: &Hub, topic: &str) -> Subscriber {
    let open = async {
        loop {
            // Fails until the hub has read the log. No future waits for that.
            if let Ok(stream) = hub.subscribe(Subscription::anonymous().topic(topic), None) {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(open).await
}

/// Returns the data of the next events.
pub async fn next<const N: usize>(stream: &mut Subscriber) -> [String; N] {
    let mut texts = Vec::new();
    while texts.len() < N {
        match soon(stream.next()).await.unwrap() {
            SubscriberItem::Event(event) => texts.push(event.data),
            SubscriberItem::Live(_) => {}
            item => panic!("{item:?}"),
        }
    }
    texts.try_into().unwrap()
}

/// Tests that the events of a committed transaction reach the streams of all hubs at once, in their
/// order.
pub async fn commit<D: Driver>() {
    let Some(mut shop) = Shop::<D>::start().await else { return };
    let streams = shop.streams("orders").await;
    shop.commit(&[shop.order("7 paid"), shop.order("7 sent")]).await;
    shop.commit(&[shop.order("8 paid")]).await;
    for mut stream in streams {
        assert_eq!(next(&mut stream).await, ["7 paid", "7 sent", "8 paid"]);
    }
    assert_eq!(shop.orders(), "2");
}

/// Tests that no stream receives the event of a transaction that was rolled back.
pub async fn roll_back<D: Driver>() {
    let Some(mut shop) = Shop::<D>::start().await else { return };
    let streams = shop.streams("orders").await;
    shop.run(&[shop.order("rolled back")], End::RollBack).await.unwrap();
    shop.commit(&[shop.order("7 paid")]).await;
    for mut stream in streams {
        assert_eq!(next(&mut stream).await, ["7 paid"]);
    }
    assert_eq!(shop.orders(), "1");
}

/// Tests that a record that the server rejects fails the call, and that nothing is committed.
pub async fn rejected_record<D: Driver>() {
    let Some(mut shop) = Shop::<D>::start().await else { return };
    let streams = shop.streams("orders").await;
    let mut rejected = shop.order("rejected");
    rejected.idempotency_key = Some("a\0b".into());
    shop.run(&[shop.order("before"), rejected], End::Commit).await.unwrap_err();
    shop.commit(&[shop.order("7 paid")]).await;
    for mut stream in streams {
        assert_eq!(next(&mut stream).await, ["7 paid"]);
    }
    assert_eq!(shop.orders(), "1");
}

/// Tests that a hub that starts later has the current values.
pub async fn values<D: Driver>() {
    let Some(mut shop) = Shop::<D>::start().await else { return };
    let streams = shop.streams(STOCK).await;
    let record = |event: Event| shop.hubs[0].topic(STOCK).prepare(event).unwrap();
    let value = |key: &'static str| record(Event::unnamed(key).key(key));
    let records = [value("pears"), value("apples"), record(Event::removal("pears")), value("plums")];
    shop.commit(&records).await;
    for mut stream in streams {
        // A stream may skip a value that a later event has replaced.
        while next(&mut stream).await != ["plums"] {}
    }
    let values = shop.server.psql("SELECT id FROM tower_sse.current ORDER BY number");
    assert_eq!(values, "[\"topic\",\"stock\",\"apples\"]\n[\"topic\",\"stock\",\"plums\"]");
    let later = hub(&shop.server);
    assert_eq!(next(&mut open(&later, STOCK).await).await, ["apples", "plums"]);
}

/// Tests that two records with the same idempotency key are one event.
pub async fn idempotency_key<D: Driver>() {
    let Some(mut shop) = Shop::<D>::start().await else { return };
    let streams = shop.streams("orders").await;
    let mut record = shop.order("7 paid");
    record.idempotency_key = Some("payment-7".into());
    shop.commit(&[record.clone()]).await;
    shop.commit(&[record, shop.order("8 paid")]).await;
    for mut stream in streams {
        assert_eq!(next(&mut stream).await, ["7 paid", "8 paid"]);
    }
}
