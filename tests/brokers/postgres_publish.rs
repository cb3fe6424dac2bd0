//! Events that transactions of the application publish with the SQL functions of the schema.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio_postgres::{IsolationLevel, error::SqlState};
use tower_sse::backplane::{Backplane, NewRecord, Postgres};
use tower_sse::{Event, Hub, Publisher};

use crate::instances::builder;
use crate::kit::broker::Broker;
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::{call, connect, log, publish, read_to};
use crate::kit::{soon, until};
use crate::rolled_back::open;

/// So long that no test waits for it.
const NEVER: Duration = Duration::from_secs(3_600);

async fn start(log: Postgres) -> Hub {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

fn worker(log: Postgres) -> Publisher {
    builder().backplane(log).publisher().unwrap()
}

async fn send(publisher: &Publisher, data: &str) {
    publisher.topic("t").publish(Event::unnamed(data.to_owned())).await.unwrap();
}

#[tokio::test]
async fn a_committed_transaction_publishes_its_events_to_all_instances_in_one_order() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (one, two) = (start(log(&server)).await, start(log(&server)).await);
    let mut pages = [open(&one), open(&two)];
    let mut client = connect(&server).await;
    let worker = worker(log(&server));
    send(&worker, "before").await;
    let transaction = client.transaction().await.unwrap();
    publish(&transaction, "1").await;
    publish(&transaction, "2").await;
    send(&worker, "between").await;
    transaction.commit().await.unwrap();
    send(&worker, "after").await;
    for page in &mut pages {
        assert_eq!(read_to(page, "after").await, ["before", "between", "1", "2", "after"]);
    }
}

#[tokio::test]
async fn a_transaction_that_is_rolled_back_publishes_nothing() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let hub = start(log(&server)).await;
    let mut page = open(&hub);
    let mut client = connect(&server).await;
    let transaction = client.transaction().await.unwrap();
    publish(&transaction, "rolled back").await;
    transaction.rollback().await.unwrap();

    let mut transaction = client.transaction().await.unwrap();
    publish(&transaction, "1").await;
    let savepoint = transaction.savepoint("a").await.unwrap();
    publish(&savepoint, "rolled back with its savepoint").await;
    savepoint.rollback().await.unwrap();
    let savepoint = transaction.savepoint("b").await.unwrap();
    publish(&savepoint, "2").await;
    savepoint.commit().await.unwrap();
    transaction.commit().await.unwrap();

    // A transaction that failed, and one whose client has gone.
    let failed = client.batch_execute("BEGIN; SELECT tower_sse.publish('n', topic => 't'); SELECT 1 / 0").await;
    assert_eq!(failed.unwrap_err().code(), Some(&SqlState::DIVISION_BY_ZERO));
    client.batch_execute("ROLLBACK; BEGIN").await.unwrap();
    publish(&client, "its client has gone").await;
    drop(client);
    until(|| server.psql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'") == "0").await;
    send(&worker(log(&server)), "end").await;
    assert_eq!(read_to(&mut page, "end").await, ["1", "2", "end"]);
}

#[tokio::test]
async fn a_transaction_publishes_at_every_isolation_level() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let hub = start(log(&server)).await;
    let mut page = open(&hub);
    let (mut client, mut other) = (connect(&server).await, connect(&server).await);
    server.psql("CREATE TABLE doctors (id integer PRIMARY KEY, on_call boolean); GRANT ALL ON doctors TO hub");
    server.psql("INSERT INTO doctors VALUES (1, true), (2, true)");
    let levels = [IsolationLevel::ReadCommitted, IsolationLevel::RepeatableRead, IsolationLevel::Serializable];
    let worker = worker(log(&server));
    for (n, level) in levels.into_iter().enumerate() {
        let transaction = client.build_transaction().isolation_level(level).start().await.unwrap();
        // The snapshot of the transaction is older than the next event.
        call(&transaction, "SELECT count(*) FROM doctors", &[]).await;
        send(&worker, &format!("before {n}")).await;
        publish(&transaction, &n.to_string()).await;
        transaction.commit().await.unwrap();
    }
    // Two serializable transactions that do not fit together: the second one fails.
    let build =
        |client| tokio_postgres::Client::build_transaction(client).isolation_level(IsolationLevel::Serializable);
    let (first, second) = (build(&mut client).start().await.unwrap(), build(&mut other).start().await.unwrap());
    for (transaction, id) in [(&first, 1), (&second, 2)] {
        call(transaction, "SELECT count(*) FROM doctors WHERE on_call", &[]).await;
        call(transaction, "UPDATE doctors SET on_call = false WHERE id = $1", &[&id]).await;
        publish(transaction, &format!("doctor {id}")).await;
    }
    first.commit().await.unwrap();
    assert_eq!(second.commit().await.unwrap_err().code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE));
    send(&worker, "end").await;
    let expected = ["before 0", "0", "before 1", "1", "before 2", "2", "doctor 1", "end"];
    assert_eq!(read_to(&mut page, "end").await, expected);
}

/// Prepared transactions survive a crash.
#[tokio::test]
async fn a_prepared_transaction_publishes_when_it_is_committed() {
    let Some(mut server) = PostgresServer::start(&["max_prepared_transactions=10"]) else { return };
    let hub = start(log(&server)).await;
    let mut page = open(&hub);
    let client = connect(&server).await;
    for name in ["1", "rolled back", "2"] {
        client.batch_execute("BEGIN").await.unwrap();
        publish(&client, name).await;
        client.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await.unwrap();
    }
    send(&worker(log(&server)), "before").await;
    client.batch_execute("COMMIT PREPARED '1'").await.unwrap();
    assert_eq!(read_to(&mut page, "1").await, ["before", "1"]);
    server.kill();
    server.restart();
    let client = connect(&server).await;
    client.batch_execute("ROLLBACK PREPARED 'rolled back'").await.unwrap();
    client.batch_execute("COMMIT PREPARED '2'").await.unwrap();
    send(&worker(log(&server)), "end").await;
    assert_eq!(read_to(&mut page, "end").await, ["2", "end"]);
}

/// A notification cannot be part of a prepared transaction.
#[tokio::test]
async fn a_wake_up_in_the_transaction_notifies_the_instances_at_the_commit() {
    let Some(server) = PostgresServer::start(&["max_prepared_transactions=10"]) else { return };
    let hub = start(log(&server).poll_interval(NEVER)).await;
    let mut page = open(&hub);
    server.psql_as("hub", "SELECT tower_sse.publish('n', topic => 't', data => 'from psql', wake => true)");
    assert_eq!(read_to(&mut page, "from psql").await, ["from psql"]);
    let mut client = connect(&server).await;
    let transaction = client.transaction().await.unwrap();
    let record = br#"{"v":1,"to":{"topics":["t"]},"data":"a record"}"#;
    call(&transaction, "SELECT tower_sse.publish_record('n', $1, wake => true)", &[&&record[..]]).await;
    transaction.commit().await.unwrap();
    assert_eq!(read_to(&mut page, "a record").await, ["a record"]);
    client.batch_execute("BEGIN; SELECT tower_sse.publish('n', topic => 't', wake => true)").await.unwrap();
    let error = client.batch_execute("PREPARE TRANSACTION 'p'").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
}

#[tokio::test]
async fn wake_delivers_published_events_at_once() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server).poll_interval(NEVER);
    let (one, two) = (start(own.clone()).await, start(log(&server).poll_interval(NEVER)).await);
    let mut pages = [open(&one), open(&two)];
    let client = connect(&server).await;
    for n in 0..20 {
        publish(&client, &n.to_string()).await;
        own.wake();
        for page in &mut pages {
            assert_eq!(read_to(page, &n.to_string()).await.len(), 1);
        }
    }
    // A program without the crate calls the function.
    publish(&client, "sequenced").await;
    server.psql_as("hub", "SELECT tower_sse.sequence('n')");
    for page in &mut pages {
        assert_eq!(read_to(page, "sequenced").await.len(), 1);
    }
}

#[tokio::test]
async fn the_wake_ups_of_many_commits_share_transactions() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server).poll_interval(NEVER);
    let mut page = open(&start(own.clone()).await);
    let client = connect(&server).await;
    let begin = Instant::now();
    for n in 0..200 {
        publish(&client, &n.to_string()).await;
        (0..10).for_each(|_| own.wake());
    }
    assert_eq!(read_to(&mut page, "199").await.len(), 200);
    let most = begin.elapsed().as_millis() / 25 + 2;
    // The newest record of each transaction has the snapshot.
    let count = server.psql("SELECT count(*) FROM tower_sse.log WHERE moved IS NOT NULL");
    assert!(count.trim().parse::<u128>().unwrap() <= most, "{count} transactions, at most {most} expected");
}

/// `wake` is also called by adapters that have no stream, and outside of a runtime.
#[tokio::test]
async fn wake_works_for_a_publisher_and_does_nothing_outside_of_a_runtime() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let hub = start(log(&server).poll_interval(NEVER)).await;
    let mut page = open(&hub);
    publish(&connect(&server).await, "1").await;
    let other = log(&server);
    std::thread::scope(|scope| scope.spawn(|| other.wake()).join().unwrap());
    other.wake();
    assert_eq!(read_to(&mut page, "1").await, ["1"]);
}

#[tokio::test]
async fn a_poll_delivers_published_events_without_a_wake_up() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let polls = || log(&server).poll_interval(Duration::from_millis(20));
    let (listening, polling) = (start(polls()).await, start(polls().poll_only()).await);
    let mut pages = [open(&listening), open(&polling)];
    let client = connect(&server).await;
    for n in 0..20 {
        publish(&client, &n.to_string()).await;
        for page in &mut pages {
            assert_eq!(read_to(page, &n.to_string()).await.len(), 1);
        }
    }
}

/// In this mode, the streams of the process that calls `wake` do not wait for the poll.
#[tokio::test]
async fn wake_delivers_published_events_at_once_to_a_process_that_only_polls() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server).poll_only().poll_interval(Duration::from_secs(1));
    let hub = start(own.clone()).await;
    let mut page = open(&hub);
    let client = connect(&server).await;
    let begun = Instant::now();
    for n in 0..20 {
        publish(&client, &n.to_string()).await;
        own.wake();
        assert_eq!(read_to(&mut page, &n.to_string()).await.len(), 1);
    }
    // Twenty polls would take at least 14 s.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_open_transaction_that_has_published_delays_no_other_event() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server).poll_interval(NEVER);
    let hub = start(own.clone()).await;
    let mut page = open(&hub);
    let (mut open_client, client) = (connect(&server).await, connect(&server).await);
    let transaction = open_client.transaction().await.unwrap();
    publish(&transaction, "slow").await;
    for n in 0..50 {
        publish(&client, &n.to_string()).await;
        own.wake();
        assert_eq!(read_to(&mut page, &n.to_string()).await.len(), 1);
        // The transaction publishes again, after later ones have been delivered.
        publish(&transaction, &format!("slow {n}")).await;
    }
    let before = hub.position();
    transaction.commit().await.unwrap();
    own.wake();
    let first = soon(page.next_event()).await.unwrap();
    assert_eq!(first.data, "slow");
    assert!(first.position > before, "{} {before}", first.position);
    let expected: Vec<_> = (0..50).map(|n| format!("slow {n}")).collect();
    assert_eq!(read_to(&mut page, "slow 49").await, expected);
}

/// The second transaction begins first, waits for the row of the first one, and publishes after it.
#[tokio::test]
async fn events_about_one_row_have_the_order_of_its_changes() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.psql("CREATE TABLE account (balance integer); INSERT INTO account VALUES (0); GRANT ALL ON account TO hub");
    let own = log(&server).poll_interval(NEVER);
    let hub = start(own.clone()).await;
    let mut page = open(&hub);
    let (mut one, mut two) = (connect(&server).await, connect(&server).await);
    let update = "UPDATE account SET balance = balance + 1 RETURNING balance";
    let with_value = "SELECT tower_sse.publish('n', topic => 't', data => $1, key => 'account')";
    let second = two.transaction().await.unwrap();
    call(&second, "SELECT pg_current_xact_id()", &[]).await;
    let first = one.transaction().await.unwrap();
    let balance: i32 = first.query_one(update, &[]).await.unwrap().get(0);
    call(&first, with_value, &[&balance.to_string()]).await;
    let (waiting, ()) = tokio::join!(second.query_one(update, &[]), async {
        until(|| server.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "1").await;
        first.commit().await.unwrap();
    });
    let balance: i32 = waiting.unwrap().get(0);
    call(&second, with_value, &[&balance.to_string()]).await;
    second.commit().await.unwrap();
    own.wake();
    assert_eq!(read_to(&mut page, "2").await, ["1", "2"]);
    let values = own.values().await.unwrap();
    assert!(String::from_utf8_lossy(&values[0].record.payload).contains(r#""data":"2""#), "{values:?}");
}

#[tokio::test]
async fn an_idempotency_key_is_published_once_by_transactions_and_hubs_together() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let hub = start(log(&server)).await;
    let mut page = open(&hub);
    let mut client = connect(&server).await;
    let sql = "SELECT tower_sse.publish('n', topic => 't', data => $1, idempotency_key => $2, scope => $3)";
    let transaction = client.transaction().await.unwrap();
    for data in ["1", "repeated in the transaction"] {
        call(&transaction, sql, &[&data, &"a", &None::<&str>]).await;
    }
    transaction.commit().await.unwrap();
    call(&client, sql, &[&"repeated in another transaction", &"a", &None::<&str>]).await;
    let keyed = |data: &'static str, key: &'static str| Event::unnamed(data).idempotency_key(key);
    let repeated = hub.topic("t").publish(keyed("repeated by the hub", "a")).await.unwrap();
    let first = hub.topic("t").publish(keyed("2", "b")).await.unwrap();
    call(&client, sql, &[&"repeated after the hub", &"b", &None::<&str>]).await;
    // A scope has keys of its own.
    let mut of_acme = hub.scope("acme").subscribe(tower_sse::Subscription::anonymous().topic("t"), None).unwrap();
    call(&client, sql, &[&"of acme", &"a", &"acme"]).await;
    let in_scope = hub.scope("acme").topic("t").publish(keyed("repeated in acme", "a")).await.unwrap();
    assert_eq!(read_to(&mut of_acme, "of acme").await, ["of acme"]);
    assert!(in_scope.position > first.position);
    send(&worker(log(&server)), "end").await;
    let received = soon(page.next_event()).await.unwrap();
    assert_eq!((&*received.data, received.position), ("1", repeated.position));
    assert_eq!(read_to(&mut page, "end").await, ["2", "end"]);
}

#[tokio::test]
async fn a_transaction_sets_and_removes_current_values() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let one = start(log(&server)).await;
    let mut client = connect(&server).await;
    let sql = "SELECT tower_sse.publish('n', topic => $1, data => $2, key => $3, remove => $4)";
    let transaction = client.transaction().await.unwrap();
    for (data, key, remove) in [
        ("old", "a", false),
        ("a", "a", false),
        ("b", "b", false),
        ("b", "b", true),
        ("c", "c", true),
        ("c", "c", false),
    ] {
        call(&transaction, sql, &[&"latest/x", &data, &key, &remove]).await;
    }
    transaction.commit().await.unwrap();
    one.topic("latest/x").publish(Event::unnamed("d").key("d")).await.unwrap();
    call(&client, sql, &[&"latest/x", &"d", &"d", &true]).await;
    let transaction = client.transaction().await.unwrap();
    call(&transaction, sql, &[&"latest/x", &"rolled back", &"a", &false]).await;
    transaction.rollback().await.unwrap();
    send(&worker(log(&server)), "end").await;
    let two = start(log(&server)).await;
    for hub in [&one, &two] {
        until(|| hub.position().to_string() == one.position().to_string()).await;
        let latest = tower_sse::Subscription::anonymous().topic("latest/x");
        let mut page = hub.subscribe(latest, None).unwrap();
        hub.topic("latest/x").publish(Event::unnamed("end").key("end")).await.unwrap();
        assert_eq!(read_to(&mut page, "end").await[..2], ["a", "c"]);
    }
}

#[tokio::test]
async fn events_of_two_namespaces_do_not_mix() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let names = ["n", "N", "n ", "", "ä"];
    let mut pages = Vec::new();
    for name in names {
        let hub = start(Broker::log(&server, name)).await;
        pages.push((open(&hub), hub));
    }
    let mut client = connect(&server).await;
    let transaction = client.transaction().await.unwrap();
    for name in names {
        call(&transaction, "SELECT tower_sse.publish($1, topic => 't', data => $1, key => 'k')", &[&name]).await;
    }
    transaction.commit().await.unwrap();
    for ((page, hub), name) in pages.iter_mut().zip(names) {
        hub.topic("t").publish(Event::unnamed("end")).await.unwrap();
        assert_eq!(read_to(page, "end").await, [name, "end"]);
    }
}

/// Writers of the application with random savepoints, pauses and rollbacks, and an open transaction
/// for each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_transactions_are_delivered_once_each_and_in_the_order_of_their_writer() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let hub = start(log(&server).poll_interval(Duration::from_millis(5))).await;
    let other = start(log(&server).poll_interval(Duration::from_millis(5))).await;
    let mut pages = [open(&hub), open(&other)];
    let write = |writer: usize| {
        let server = &server;
        async move {
            let mut client = connect(server).await;
            let mut committed = Vec::new();
            for n in 0..40 {
                let mut transaction = client.transaction().await.unwrap();
                let mut written = vec![format!("{writer}.{n}.a")];
                publish(&transaction, &written[0]).await;
                let savepoint = transaction.savepoint("s").await.unwrap();
                publish(&savepoint, &format!("{writer}.{n}.b")).await;
                if fastrand::bool() {
                    savepoint.rollback().await.unwrap();
                } else {
                    savepoint.commit().await.unwrap();
                    written.push(format!("{writer}.{n}.b"));
                }
                if fastrand::u8(..4) == 0 {
                    // The transaction stays open while others commit.
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(..10))).await;
                }
                if fastrand::u8(..3) == 0 {
                    transaction.rollback().await.unwrap();
                } else {
                    transaction.commit().await.unwrap();
                    committed.append(&mut written);
                }
            }
            committed
        }
    };
    let committed = soon(futures::future::join_all((0..8).map(write))).await;
    send(&worker(log(&server)), "end").await;
    for page in &mut pages {
        let mut received: HashMap<usize, Vec<String>> = HashMap::new();
        for data in read_to(page, "end").await {
            if let Some((writer, _)) = data.split_once('.') {
                received.entry(writer.parse().unwrap()).or_default().push(data);
            }
        }
        for (writer, committed) in committed.iter().enumerate() {
            assert_eq!(&received[&writer], committed, "{writer}");
        }
    }
}

#[tokio::test]
async fn a_stream_with_the_longest_poll_interval_returns_records() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server).poll_interval(Duration::MAX);
    soon(own.append(vec![NewRecord::new("1".into())], None)).await.remove(0).unwrap();
    let mut tail = own.tail(0);
    assert_eq!(soon(tail.next()).await.unwrap().unwrap().len(), 1);
    soon(own.append(vec![NewRecord::new("2".into())], None)).await.remove(0).unwrap();
    assert_eq!(soon(tail.next()).await.unwrap().unwrap().len(), 1);
}
