//! A PostgreSQL server that cannot serve an instance for a while: it does not answer, it has no free
//! connection, it is read-only, another session holds a lock, or it ends the connections.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::poll;
use futures::stream::{BoxStream, StreamExt};
use tokio_postgres::Client;
use tower_sse::backplane::{Backplane, BackplaneError, NewRecord, Postgres};
use tower_sse::{Event, Hub, PublishError, Subscriber};

use crate::instances::builder;
use crate::kit::broker::range;
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::{call, cause, connect, connect_to, log, publish, read_to};
use crate::kit::{PATIENCE, soon, until};
use crate::proxy::{Mode, Proxy};
use crate::rolled_back::{gaps_before, open};

const TIMEOUT: Duration = Duration::from_millis(500);

async fn start(log: impl Backplane) -> (Hub, Subscriber) {
    let hub = builder().backplane(log).build().unwrap();
    until(|| hub.is_ready()).await;
    let page = open(&hub);
    (hub, page)
}

async fn try_send(hub: &Hub, data: &str) -> Result<(), PublishError> {
    soon(hub.topic("t").publish(Event::unnamed(data.to_owned()))).await.map(drop)
}

/// Publishes an event as soon as the hub is ready, which has to be before the next event of the
/// page, and without a gap.
async fn recovers(hub: &Hub, page: &mut Subscriber) {
    until(|| hub.is_ready()).await;
    soon(async { while try_send(hub, "recovered").await.is_err() {} }).await;
    assert_eq!(gaps_before(page, "recovered").await, [""; 0]);
}

#[tokio::test]
async fn an_instance_of_a_server_that_does_not_answer_is_not_ready_and_recovers_without_a_gap() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (hub, mut page) = start(log(&server).timeout(TIMEOUT)).await;
    server.pause();
    let error = try_send(&hub, "unknown").await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    until(|| !hub.is_ready()).await;
    server.resume();
    recovers(&hub, &mut page).await;
}

#[tokio::test]
async fn an_instance_behind_a_mute_connection_is_not_ready_and_recovers_without_a_gap() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let proxy = Proxy::start(server.port).await;
    let url = format!("postgres://hub@127.0.0.1:{}/postgres", proxy.port);
    let (hub, mut page) = start(Postgres::new(&url, "n").unwrap().timeout(TIMEOUT)).await;
    for mode in [Mode::StallsAnswers, Mode::StallsRequests] {
        proxy.set(mode);
        until(|| !hub.is_ready()).await;
        publish(&connect(&server).await, &format!("{mode:?}")).await;
        proxy.set(Mode::Passes);
        recovers(&hub, &mut page).await;
    }
}

#[tokio::test]
async fn an_instance_without_a_free_connection_is_not_ready_until_there_is_one() {
    let Some(server) = PostgresServer::start(&["max_connections=15", "max_wal_senders=0"]) else { return };
    let mut others = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&server.url_as("owner"), tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        others.push(client);
    }
    assert!(others.len() >= 10, "{}", others.len());
    let hub = builder().backplane(log(&server)).build().unwrap();
    let error = try_send(&hub, "x").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert!(cause(&error).contains("connection slots"), "{error:?}");
    assert!(!hub.is_ready());
    others.clear();
    until(|| hub.is_ready()).await;
    let mut page = open(&hub);
    recovers(&hub, &mut page).await;
}

#[tokio::test]
async fn a_publish_to_a_read_only_server_is_unavailable_and_the_instance_recovers_without_a_gap() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (hub, mut page) = start(log(&server)).await;
    let set = |value: &str| {
        server.psql(&format!(
            "SET default_transaction_read_only = off; ALTER SYSTEM SET default_transaction_read_only = {value}"
        ));
        server.psql("SELECT pg_reload_conf()");
    };
    set("on");
    until(|| !hub.is_ready()).await;
    let error = try_send(&hub, "x").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown() && cause(&error).contains("read-only"), "{error:?}");
    set("off");
    recovers(&hub, &mut page).await;
}

#[tokio::test]
async fn an_instance_of_a_standby_is_not_ready_until_the_standby_is_promoted() {
    let Some(primary) = PostgresServer::start(&[]) else { return };
    let (first, mut page) = start(log(&primary)).await;
    try_send(&first, "before").await.unwrap();
    assert_eq!(read_to(&mut page, "before").await, ["before"]);
    let standby = primary.standby();
    standby.wait_until_caught_up(&primary).await;
    let hub = builder().backplane(log(&standby)).build().unwrap();
    let error = try_send(&hub, "x").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert!(!hub.is_ready());
    standby.promote();
    until(|| hub.is_ready()).await;
    let mut page = open(&hub);
    recovers(&hub, &mut page).await;
    assert_eq!(
        soon(log(&standby).state(None)).await.unwrap().epoch,
        soon(log(&primary).state(None)).await.unwrap().epoch
    );
}

/// The server ends all connections of the instance, and again when they are open.
#[tokio::test]
async fn an_instance_whose_connections_are_ended_listens_again_without_a_gap() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (hub, mut page) = start(log(&server)).await;
    let client = connect(&server).await;
    for n in 0..5 {
        let ended = server
            .psql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'tower-sse'");
        assert!(ended.parse::<u32>().unwrap() > 0, "{ended}");
        publish(&client, &n.to_string()).await;
        assert_eq!(gaps_before(&mut page, &n.to_string()).await, [""; 0]);
    }
    recovers(&hub, &mut page).await;
}

/// The connections of streams that have asked for new data and wait now.
const WAITING: &str = "FROM pg_stat_activity WHERE application_name = 'tower-sse' AND state = 'idle' \
                       AND query ~ 'FROM tower_sse.(range|control_range)'";

async fn until_streams_wait(server: &PostgresServer, count: u32) {
    until(|| server.psql(&format!("SELECT count(*) = {count} {WAITING}")) == "t").await;
}

async fn end_connections_of_streams(administrator: &Client) {
    call(administrator, &format!("SELECT pg_terminate_backend(pid) {WAITING}"), &[]).await;
}

/// The time limit for the end of a stream. It is below two seconds, after which a stream asks for
/// new data in any case and so notices the end of its connection.
const AT_ONCE: Duration = Duration::from_millis(1_500);

/// Checks that a stream ends when the server ends its connection. Also counts the polls of the
/// stream, so that a stream that keeps its thread busy until its end fails the test.
async fn ends_with_its_connection<T: Send + 'static>(
    server: &PostgresServer,
    mut stream: BoxStream<'static, Result<T, BackplaneError>>,
) {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let reader = tokio::spawn(async move {
        let next = poll_fn(|cx| {
            counted.fetch_add(1, Ordering::SeqCst);
            stream.poll_next_unpin(cx)
        });
        next.await.map(|item| item.map(drop))
    });
    let administrator = connect_to(&server.url_as("postgres")).await;
    until_streams_wait(server, 1).await;
    let (before, since) = (polls.load(Ordering::SeqCst), Instant::now());
    end_connections_of_streams(&administrator).await;
    let error = soon(reader).await.unwrap().unwrap().unwrap_err();
    let (took, polls) = (since.elapsed(), polls.load(Ordering::SeqCst) - before);
    assert!(took < AT_ONCE && polls < 20, "{polls} polls in {took:?}, then: {error}");
}

#[tokio::test]
async fn a_stream_of_records_ends_at_once_when_its_connection_ends() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let log = log(&server).poll_interval(Duration::from_secs(3_600));
    ends_with_its_connection(&server, log.tail(0)).await;
}

#[tokio::test]
async fn a_stream_of_control_messages_ends_at_once_when_its_connection_ends() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let log = log(&server).poll_interval(Duration::from_secs(3_600));
    ends_with_its_connection(&server, log.listen(None)).await;
}

/// Without a new connection, the instance would find the event half an hour later at the earliest,
/// because the transaction does not wake it.
#[tokio::test]
async fn an_instance_reconnects_at_once_when_its_connections_end() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (_hub, mut page) = start(log(&server).poll_interval(Duration::from_secs(3_600))).await;
    // The stream of records and that of control messages.
    until_streams_wait(&server, 2).await;
    let administrator = connect_to(&server.url_as("postgres")).await;
    publish(&administrator, "x").await;
    let since = Instant::now();
    end_connections_of_streams(&administrator).await;
    assert_eq!(read_to(&mut page, "x").await, ["x"]);
    let took = since.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
}

/// A session of another program holds the lock of the log.
#[tokio::test]
async fn a_publish_that_waits_too_long_for_a_lock_is_unavailable_and_is_not_appended_later() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    // The server waits for a lock for half of this time.
    let (hub, mut page) = start(log(&server).timeout(Duration::from_secs(4))).await;
    let holder = connect(&server).await;
    call(&holder, "SELECT pg_advisory_lock(tower_sse.lock_key('log', 'n'))", &[]).await;
    for _ in 0..3 {
        let error = try_send(&hub, "too late").await.unwrap_err();
        assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
        assert!(cause(&error).contains("lock timeout"), "{error:?}");
    }
    // Reads need no lock.
    assert!(hub.is_ready());
    publish(&connect(&server).await, "waits").await;
    drop(holder);
    assert_eq!(read_to(&mut page, "waits").await, ["waits"]);
    try_send(&hub, "end").await.unwrap();
    assert_eq!(read_to(&mut page, "end").await, ["end"]);
}

#[tokio::test]
async fn a_statement_that_the_server_cancels_is_unavailable() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.psql("ALTER ROLE hub SET statement_timeout = '100ms'");
    let (hub, mut page) = start(log(&server)).await;
    let holder = connect_to(&server.url_as("postgres")).await;
    call(&holder, "SELECT pg_advisory_lock(tower_sse.lock_key('log', 'n'))", &[]).await;
    let error = try_send(&hub, "cancelled").await.unwrap_err();
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
    assert!(cause(&error).contains("statement timeout"), "{error:?}");
    drop(holder);
    soon(async { while try_send(&hub, "end").await.is_err() {} }).await;
    assert_eq!(read_to(&mut page, "end").await, ["end"]);
}

/// A trigger raises the error of a server whose disk is full.
#[tokio::test]
async fn an_append_to_a_server_with_a_full_disk_may_be_repeated() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server);
    soon(own.state(None)).await.unwrap();
    server.psql(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;
         CREATE TRIGGER full_disk BEFORE INSERT ON tower_sse.log FOR EACH ROW EXECUTE FUNCTION full_disk()",
    );
    let append = async || soon(own.append(vec![NewRecord::new("x".into())], None)).await.remove(0);
    let error = append().await.unwrap_err();
    assert!(!error.is_rejected() && !error.is_unknown(), "{error}");
    assert!(error.to_string().contains("no space left on device"), "{error}");
    server.psql("DROP TRIGGER full_disk ON tower_sse.log");
    assert_eq!(append().await.unwrap().sequence, 1);
}

/// The function of the server appends the record, and returns a text in place of a number.
#[tokio::test]
async fn an_append_whose_answer_cannot_be_read_has_an_unknown_outcome() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server);
    soon(own.state(None)).await.unwrap();
    server.psql(
        "ALTER FUNCTION tower_sse.append RENAME TO original;
         DO $$ BEGIN EXECUTE format(
           'CREATE FUNCTION tower_sse.append(%s)
              RETURNS TABLE (epoch text, numbers bigint[], last_before bigint, is_complete boolean)
              LANGUAGE sql SECURITY DEFINER AS $body$
                SELECT ''unreadable'', o.numbers, o.last_before, o.is_complete FROM tower_sse.original(%s) o
              $body$',
           (SELECT oidvectortypes(proargtypes) FROM pg_proc WHERE oid = 'tower_sse.original'::regproc),
           (SELECT string_agg('$' || n, ', ') FROM generate_series(1, 18) n));
         END $$",
    );
    let error = soon(own.append(vec![NewRecord::new("x".into())], None)).await.remove(0).unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert_eq!(soon(own.state(None)).await.unwrap().last, 1);
}

/// The server has committed the record on its disk, and waits for a standby that does not exist.
#[tokio::test]
async fn a_publish_whose_commit_is_interrupted_has_an_unknown_outcome() {
    let Some(mut server) = PostgresServer::start(&[]) else { return };
    let own = log(&server);
    soon(own.state(None)).await.unwrap();
    server.psql("ALTER SYSTEM SET synchronous_standby_names = 'missing'; SELECT pg_reload_conf()");
    until(|| server.psql("SHOW synchronous_standby_names") == "missing").await;
    let append = tokio::spawn({
        let own = own.clone();
        async move { own.append(vec![NewRecord::new("x".into())], None).await.remove(0) }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until(|| server.psql(waits) == "1").await;
    server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    let error = soon(append).await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    server.psql("ALTER SYSTEM RESET synchronous_standby_names");
    server.kill();
    server.restart();
    assert_eq!(soon(log(&server).state(None)).await.unwrap().last, 1);
}

/// A timer of such a runtime panics, also in the task that appends.
#[test]
fn each_append_on_a_runtime_without_timers_gets_an_error() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (answered, answers) = std::sync::mpsc::channel();
    let log = log(&server);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        for _ in 0..2 {
            let append = log.append(vec![NewRecord::new("x".into())], None);
            answered.send(runtime.block_on(append).remove(0)).unwrap();
        }
    });
    for _ in 0..2 {
        let answer = answers.recv_timeout(PATIENCE).expect("no answer");
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("the task that appends has ended"), "{error}");
    }
}

/// The task that appends never runs.
#[test]
fn an_append_gets_an_error_when_its_runtime_ends() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let log = log(&server);
    let ending = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let running = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut append = log.append(vec![NewRecord::new("x".into())], None);
    {
        let _entered = ending.enter();
        assert!(futures::FutureExt::now_or_never(&mut append).is_none());
    }
    drop(ending);
    let error = running.block_on(async { soon(append).await }).remove(0).unwrap_err();
    assert!(error.is_unknown(), "{error}");
}

/// It would be appended long after its publish has failed.
#[tokio::test]
async fn a_dropped_append_that_was_not_sent_is_not_appended() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server).timeout(Duration::from_secs(15));
    let record = |text: &'static str| vec![NewRecord::new(text.into())];
    soon(own.append(record("first"), None)).await.remove(0).unwrap();
    server.pause();
    let mut sent = own.append(record("sent"), None);
    let mut dropped = own.append(record("dropped"), None);
    assert!(poll!(&mut sent).is_pending());
    // The task sends the first of them.
    tokio::task::yield_now().await;
    assert!(poll!(&mut dropped).is_pending());
    drop(dropped);
    server.resume();
    soon(sent).await.remove(0).unwrap();
    soon(own.append(record("last"), None)).await.remove(0).unwrap();
    let records = range(&own, 0, 10).await;
    let payloads: Vec<_> = records.iter().map(|record| &record.payload[..]).collect();
    assert_eq!(payloads, [&b"first"[..], b"sent", b"last"]);
}
