//! The cost of publishing in transactions on Postgres: `cargo bench --bench transactions`.
//!
//! The benchmark starts a PostgreSQL server on a free port, with its files on the disk and its
//! default settings, so each commit waits for the disk. It prints two tables:
//!
//! - transactions a second of 32 clients, without publishing, with publishing, and with the numbers
//!   of a counter row, which every transaction locks until its commit. Each variant also runs with
//!   5 ms of other work before the commit. While the clients publish, a hub follows the log, and the
//!   clients wake it. The clients have prepared their statements. The variants take turns, and the
//!   table has the median.
//! - the time from the commit until a stream of a hub has the event, and until a page in Chromium has
//!   it, with a wake-up and with the poll only. `tests/run tools clients` installs Chromium and its
//!   driver.
//!
//! Compare the ratios of rows; the rates belong to one machine.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark"
)]

#[path = "../tests/browser/driver.rs"]
#[allow(dead_code, unreachable_pub, reason = "the driver of the browser tests")]
mod driver;
#[path = "../tests/kit"]
#[allow(dead_code, unreachable_pub, reason = "the helpers of the tests")]
mod kit {
    pub mod port;
    pub mod postgres;
    pub mod processes;
    pub mod skip;
}

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use futures::future::{join_all, try_join};
use kit::postgres::PostgresServer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, Statement};
use tower_sse::backplane::Postgres;
use tower_sse::{Cursor, Hub, StreamRequest, SubscriberItem, Subscription};

const CLIENTS: usize = 32;
/// A record of the size of a small notification, in topic `t`.
const RECORD: &str = r#"{"v":1,"id":"0123456789abcdef","at":1795866000000,"to":{"topics":["t"]},"event":"tick","data":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}"#;

/// Whether `cargo bench` runs this program. `cargo test` runs it too, without this argument and
/// only to check that it works.
fn is_measured() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// What a transaction does besides its insert into a table of the application.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nothing,
    /// Calls `tower_sse.publish_record`.
    Record,
    /// The same, and sends the call together with `COMMIT`.
    RecordWithCommit,
    /// Calls it in the statement of the insert.
    RecordWithInsert,
    /// Calls `tower_sse.publish`, which builds the record.
    Event,
    /// Takes the next number of a counter row, and inserts the record with this number.
    Counter,
}

const VARIANTS: [(Variant, &str); 6] = [
    (Variant::Nothing, "without publishing"),
    (Variant::Record, "`publish_record`"),
    (Variant::RecordWithCommit, "`publish_record`, sent together with `COMMIT`"),
    (Variant::RecordWithInsert, "`publish_record`, in one statement with the `INSERT`"),
    (Variant::Event, "`publish`"),
    (Variant::Counter, "the number of a counter row"),
];

/// A connection of an application, and the statements that it has prepared.
struct Session {
    client: Client,
    begin: Statement,
    commit: Statement,
    order: Statement,
    order_and_record: Statement,
    record: Statement,
    event: Statement,
    next: Statement,
    counted: Statement,
}

impl Session {
    async fn new(server: &PostgresServer) -> Self {
        let (client, connection) = tokio_postgres::connect(&server.url_as("postgres"), NoTls).await.unwrap();
        tokio::spawn(connection);
        let prepare = async |sql: &str| client.prepare(sql).await.unwrap();
        Self {
            begin: prepare("BEGIN").await,
            commit: prepare("COMMIT").await,
            order: prepare("INSERT INTO orders (body) VALUES ($1)").await,
            order_and_record: prepare(
                "WITH added AS (INSERT INTO orders (body) VALUES ($1) RETURNING id) \
                 SELECT tower_sse.publish_record('bench', $2) FROM added",
            )
            .await,
            record: prepare("SELECT tower_sse.publish_record('bench', $1)").await,
            event: prepare("SELECT tower_sse.publish('bench', topic => 't', event => 'tick', data => $1)").await,
            next: prepare("UPDATE counter SET number = number + 1 RETURNING number").await,
            counted: prepare("INSERT INTO counted VALUES ($1, $2)").await,
            client,
        }
    }

    async fn execute(&self, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.client.execute(statement, parameters).await
    }

    /// Runs one transaction, which does some other work before its commit.
    async fn run(&self, variant: Variant, work: Duration) -> Result<(), Error> {
        let (order, record) = ("an order of some length", RECORD.as_bytes());
        let begin = self.execute(&self.begin, &[]);
        // The driver sends both at once.
        if variant == Variant::RecordWithInsert {
            try_join(begin, self.execute(&self.order_and_record, &[&order, &record])).await?;
        } else {
            try_join(begin, self.execute(&self.order, &[&order])).await?;
        }
        match variant {
            Variant::Record => drop(self.execute(&self.record, &[&record]).await?),
            Variant::Event => drop(self.execute(&self.event, &[&"x".repeat(100)]).await?),
            Variant::Counter => {
                let number: i64 = self.client.query_one(&self.next, &[]).await?.get(0);
                self.execute(&self.counted, &[&number, &RECORD]).await?;
            }
            Variant::Nothing | Variant::RecordWithCommit | Variant::RecordWithInsert => {}
        }
        if !work.is_zero() {
            tokio::time::sleep(work).await;
        }
        let commit = self.execute(&self.commit, &[]);
        if variant == Variant::RecordWithCommit {
            try_join(self.execute(&self.record, &[&record]), commit).await?;
        } else {
            commit.await?;
        }
        Ok(())
    }
}

/// Returns the transactions a second of all clients.
async fn rate(clients: &[Session], log: &Postgres, variant: Variant, work: Duration) -> f64 {
    let time = if is_measured() { Duration::from_secs(2) } else { Duration::from_millis(20) };
    let publishes = !matches!(variant, Variant::Nothing | Variant::Counter);
    let begun = Instant::now();
    let run = async |client: &Session| {
        let mut count = 0;
        while begun.elapsed() < time {
            client.run(variant, work).await.unwrap();
            if publishes {
                log.wake();
            }
            count += 1;
        }
        count
    };
    let counts: Vec<i32> = join_all(clients.iter().map(run)).await;
    f64::from(counts.into_iter().sum::<i32>()) / begun.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn ready(hub: &Hub) {
    while !hub.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn rates(server: &PostgresServer, log: &Postgres) {
    let clients: Vec<Session> = join_all((0..CLIENTS).map(|_| Session::new(server))).await;
    let works = [Duration::ZERO, Duration::from_millis(5)];
    let rounds = if is_measured() { 5 } else { 1 };
    let mut results = vec![[Vec::new(), Vec::new()]; VARIANTS.len()];
    for _ in 0..rounds {
        for (result, (variant, _)) in results.iter_mut().zip(VARIANTS) {
            for (rates, work) in result.iter_mut().zip(works) {
                rates.push(rate(&clients, log, variant, work).await);
            }
        }
    }
    let medians: Vec<[f64; 2]> = results.into_iter().map(|of_works| of_works.map(median)).collect();
    println!(
        "| transactions a second, {CLIENTS} clients | rate | cost | with 5 ms of work | cost |\n|---|---|---|---|---|"
    );
    for ([rate, with_work], (_, name)) in medians.iter().zip(VARIANTS) {
        let [base, base_with_work] = medians[0];
        println!("| {name} | {rate:.0} | {:.2} | {with_work:.0} | {:.2} |", base / rate, base_with_work / with_work);
    }
}

/// Notes the time of each event, in milliseconds.
const PAGE: &str = r#"<script>
const times = [];
const source = new EventSource("/events");
source.addEventListener("tick", () => times.push(performance.timeOrigin + performance.now()));
</script>"#;

/// Opens a page with a stream of the hub, which the server serves until it is dropped. Returns `None`
/// if the browser is not installed.
async fn open_page(hub: &Hub) -> Option<(JoinSet<()>, driver::Context, driver::Page)> {
    let context = driver::browser()?.context(json!({})).await;
    let endpoint = hub.endpoint(async |_: StreamRequest| Ok(Subscription::anonymous().topic("t")));
    let routes = Router::new().route("/", get(async || Html(PAGE))).route_service("/events", endpoint);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let page = context.page(&url).await;
    page.until("source.readyState === EventSource.OPEN").await;
    Some((server, context, page))
}

/// Returns the median time from the commit until a stream has the event, and until a page in the
/// browser has it, in milliseconds.
async fn latency(server: &PostgresServer, log: &Postgres, wakes: bool) -> [f64; 2] {
    let hub = Hub::builder().backplane(log.clone()).build().unwrap();
    ready(&hub).await;
    let page = open_page(&hub).await;
    let client = Session::new(server).await;
    let mut stream = hub.subscribe(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let (mut times, mut commits) = (Vec::new(), Vec::new());
    for _ in 0..if is_measured() { 100 } else { 2 } {
        client.run(Variant::Record, Duration::ZERO).await.unwrap();
        let committed = Instant::now();
        commits.push(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1_000.0);
        if wakes {
            log.wake();
        }
        while !matches!(stream.next().await.expect("the stream ended"), SubscriberItem::Event(_)) {}
        times.push(committed.elapsed().as_secs_f64() * 1_000.0);
    }
    let mut of_page = Vec::new();
    if let Some((_server, _context, page)) = page {
        page.until(&format!("times.length === {}", commits.len())).await;
        let arrivals: Vec<f64> = serde_json::from_value(page.eval("times").await).unwrap();
        of_page = arrivals.iter().zip(commits).map(|(arrived, committed)| arrived - committed).collect();
    }
    [median(times), if of_page.is_empty() { f64::NAN } else { median(of_page) }]
}

async fn run(server: &PostgresServer) {
    server.psql("CREATE TABLE orders (id bigserial PRIMARY KEY, body text); CREATE TABLE counter (number bigint)");
    server.psql("INSERT INTO counter VALUES (0); CREATE TABLE counted (number bigint PRIMARY KEY, record text)");
    let log = Postgres::new(&server.url(), "bench").unwrap();
    let hub = Hub::builder().backplane(log.clone()).build().unwrap();
    ready(&hub).await;
    rates(server, &log).await;
    drop(hub);
    println!("\n| median time from the commit, in ms | to a stream | to a page in Chromium |\n|---|---|---|");
    let (listening, polling) = (log.clone(), log.poll_only());
    for (name, log, wakes) in [
        ("`wake` and LISTEN", &listening, true),
        ("`wake`, `poll_only`", &polling, true),
        ("no `wake`, LISTEN", &listening, false),
        ("no `wake`, `poll_only`", &polling, false),
    ] {
        let [stream, page] = latency(server, log, wakes).await;
        println!("| {name} | {stream:.1} | {page:.1} |");
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Some(server) = PostgresServer::start_on_disk(&[]) {
        runtime.block_on(run(&server));
    }
}
