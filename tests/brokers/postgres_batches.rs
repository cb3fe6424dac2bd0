//! The batches in which records of overlapping transactions move into the log, compared with a
//! simple model.

use std::cell::Cell;
use std::ops::Range;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio_postgres::Client;
use tower_sse::backplane::Backplane;

use crate::kit::broker::Broker;
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::connect_to;
use crate::kit::soon;

/// The transactions that are open at the same time.
const CLIENTS: usize = 4;

/// Moves and appends records like the function `append`, with the size of the batch as a parameter.
/// Returns whether the inbox has no more records.
pub const MOVE: &str = "SELECT w.is_complete
  FROM tower_sse.locked_state($1, 1, '{}', '{}', 0, 0, '') s, tower_sse.write(
    $1, s.epoch, s.last, s.bytes, s.moved, $2, $3::bytea[], array_fill(NULL::text, ARRAY[cardinality($3::bytea[])]),
    '{}', '{}', '{}', '{}') w";

/// Counts the records of the inbox that are already in the log according to the newest snapshot.
const MOVED_IN_INBOX: &str = "SELECT count(*) FROM tower_sse.inbox i
  WHERE i.ns = $1 AND pg_visible_in_snapshot(i.xact, (
    SELECT l.moved FROM tower_sse.log l WHERE l.ns = $1 ORDER BY l.number DESC LIMIT 1))";

#[derive(Clone, Debug)]
enum Step {
    /// A client publishes. It begins a transaction if it has none.
    Publish(usize),
    /// The same in a savepoint that is rolled back.
    PublishAndUndo(usize),
    /// A client takes the id of its transaction, and publishes later.
    Begin(usize),
    Commit(usize),
    RollBack(usize),
    /// A batch of at most this many records moves into the log.
    Move(i32),
    /// The same, and an instance appends one record.
    Append(i32),
}

/// Fewer than `count` steps, with a batch of one of these sizes after every `pause` other steps on average.
fn steps(count: usize, sizes: Range<i32>, pause: u32) -> impl Strategy<Value = Vec<Step>> {
    let client = 0..CLIENTS;
    let step = prop_oneof![
        6 * pause => client.clone().prop_map(Step::Publish),
        pause => client.clone().prop_map(Step::PublishAndUndo),
        pause => client.clone().prop_map(Step::Begin),
        3 * pause => client.clone().prop_map(Step::Commit),
        pause => client.prop_map(Step::RollBack),
        9 => sizes.clone().prop_map(Step::Move),
        2 => sizes.prop_map(Step::Append),
    ];
    prop::collection::vec(step, 1..count)
}

/// The records in the order of the calls: of open transactions, and those that wait for a batch.
#[derive(Default)]
struct Model {
    open: [Vec<u32>; CLIENTS],
    waiting: Vec<u32>,
    log: Vec<u32>,
}

impl Model {
    /// Moves at most this many records, and returns whether none is left.
    fn move_batch(&mut self, count: i32) -> bool {
        self.waiting.sort_unstable();
        let count = self.waiting.len().min(usize::try_from(count).unwrap());
        self.log.extend(self.waiting.drain(..count));
        self.waiting.is_empty()
    }
}

struct Server {
    admin: Client,
    clients: Vec<Client>,
    logs: PostgresServer,
}

impl Server {
    /// Moves at most this many records, and appends others.
    async fn move_batch(&self, ns: &str, count: i32, own: &[u32]) -> Result<bool, TestCaseError> {
        let own: Vec<Vec<u8>> = own.iter().map(|number| number.to_string().into_bytes()).collect();
        let is_complete = soon(self.admin.query_one(MOVE, &[&ns, &count, &own])).await.unwrap().get(0);
        let forgotten: i64 = soon(self.admin.query_one(MOVED_IN_INBOX, &[&ns])).await.unwrap().get(0);
        prop_assert_eq!(forgotten, 0);
        Ok(is_complete)
    }

    /// Performs the steps in a namespace of their own, and compares the log with the model. If a
    /// batch looks at all records that wait, also compares the order of the records.
    async fn check(&self, ns: &str, steps: &[Step], looks_at_all: bool) -> Result<(), TestCaseError> {
        soon(Broker::log(&self.logs, ns).state(None)).await.unwrap();
        let mut model = Model::default();
        let mut is_open = [false; CLIENTS];
        let run = async |client: usize, sql: &str| soon(self.clients[client].batch_execute(sql)).await.unwrap();
        for client in 0..CLIENTS {
            // A case that failed leaves its transactions open.
            run(client, "ROLLBACK").await;
        }
        let ends = (0..CLIENTS).map(Step::Commit);
        for (number, step) in (0..).zip(steps.iter().cloned().chain(ends)) {
            match step {
                Step::Publish(client) | Step::PublishAndUndo(client) | Step::Begin(client) => {
                    if !is_open[client] {
                        run(client, "BEGIN; SELECT pg_current_xact_id()").await;
                        is_open[client] = true;
                    }
                    let publish = format!("SELECT tower_sse.publish_record('{ns}', '{number}')");
                    match step {
                        Step::Publish(_) => {
                            run(client, &publish).await;
                            model.open[client].push(number);
                        }
                        Step::PublishAndUndo(_) => run(client, &format!("SAVEPOINT s; {publish}; ROLLBACK TO s")).await,
                        _ => {}
                    }
                }
                Step::Commit(client) => {
                    run(client, "COMMIT").await;
                    is_open[client] = false;
                    let records = std::mem::take(&mut model.open[client]);
                    model.waiting.extend(records);
                }
                Step::RollBack(client) => {
                    run(client, "ROLLBACK").await;
                    is_open[client] = false;
                    model.open[client].clear();
                }
                Step::Move(count) => {
                    let is_complete = self.move_batch(ns, count, &[]).await?;
                    prop_assert_eq!(is_complete, model.move_batch(count), "step {}", number);
                }
                Step::Append(count) => {
                    let is_complete = self.move_batch(ns, count, &[number]).await?;
                    prop_assert_eq!(is_complete, model.move_batch(count), "step {}", number);
                    model.log.push(number);
                }
            }
        }
        while !model.move_batch(1) {
            prop_assert!(!self.move_batch(ns, 1, &[]).await?);
        }
        prop_assert!(self.move_batch(ns, 1, &[]).await?);
        let log = "SELECT convert_from(payload, 'UTF8')::bigint FROM tower_sse.log WHERE ns = $1 ORDER BY number";
        let rows = soon(self.admin.query(log, &[&ns])).await.unwrap();
        let mut log: Vec<u32> = rows.iter().map(|row| u32::try_from(row.get::<_, i64>(0)).unwrap()).collect();
        if !looks_at_all {
            log.sort_unstable();
            model.log.sort_unstable();
        }
        prop_assert_eq!(log, model.log);
        Ok(())
    }
}

/// Performs many cases on a server.
fn check(steps: &impl Strategy<Value = Vec<Step>>, looks_at_all: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(server) = runtime.block_on(async {
        let logs = PostgresServer::start(&["autovacuum=off"])?;
        let url = logs.url_as("postgres");
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(connect_to(&url).await);
        }
        Some(Server { admin: connect_to(&url).await, clients, logs })
    }) else {
        return;
    };
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() });
    let cases = Cell::new(0);
    let result = runner.run(steps, |steps| {
        cases.set(cases.get() + 1);
        runtime.block_on(server.check(&format!("n{}", cases.get()), &steps, looks_at_all))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// A batch looks at twenty times as many records as it moves: here at more than wait at any time.
#[test]
fn batches_have_each_committed_record_once_and_in_the_order_of_the_calls() {
    check(&steps(60, 4..6, 6), true);
}

/// Here a batch looks at fewer records than wait.
#[test]
fn batches_have_each_committed_record_once_when_more_records_wait_than_a_batch_looks_at() {
    check(&steps(200, 1..2, 50), false);
}

/// The records of a restored dump have ids that the server has not assigned yet.
#[tokio::test]
async fn records_after_a_restored_backlog_are_published() {
    let Some(server) = PostgresServer::start(&["autovacuum=off"]) else { return };
    soon(Broker::log(&server, "n").state(None)).await.unwrap();
    let admin = connect_to(&server.url_as("postgres")).await;
    let run = async |sql: &str| soon(admin.batch_execute(sql)).await.unwrap();
    let batch = async |admin: &Client| soon(admin.query_one(MOVE, &[&"n", &1, &Vec::<Vec<u8>>::new()])).await.unwrap();
    run("UPDATE tower_sse.head SET system = 1").await;
    run("INSERT INTO tower_sse.inbox (ns, xact, payload)
           SELECT 'n', (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 100 + n)::text::xid8, n::text::bytea
           FROM generate_series(1, 5) n")
    .await;
    for number in 0..3 {
        run(&format!("SELECT tower_sse.publish_record('n', 'new{number}')")).await;
        batch(&admin).await;
    }
    // The snapshot does not list each new transaction.
    let listed = "SELECT count(*) FROM tower_sse.log, pg_snapshot_xip(moved) WHERE number = 3";
    assert_eq!(server.psql(listed), "0");
    run("SELECT tower_sse.publish_record('n', 'last')").await;
    // The server assigns the ids of the restored records.
    run("DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$").await;
    while !batch(&admin).await.get::<_, bool>(0) {}
    let log = server.psql("SELECT string_agg(convert_from(payload, 'UTF8'), ' ' ORDER BY number) FROM tower_sse.log");
    assert_eq!(log, "1 2 3 4 5 new0 new1 new2 last");
}
