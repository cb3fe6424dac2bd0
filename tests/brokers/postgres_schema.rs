//! The schema `tower_sse`: its migrations, a database without it, and a restored dump.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tower_sse::Event;
use tower_sse::backplane::{Backplane, NewRecord, Postgres, Seen};
use tracing_subscriber::fmt::MakeWriter;

use crate::instances::builder;
use crate::kit::broker::{REQUEST_LIMIT, range};
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::{cause, log, read_to};
use crate::kit::{soon, until};
use crate::rolled_back::open;

async fn append(log: &Postgres, text: &str) -> Seen {
    soon(log.append(vec![NewRecord::new(text.to_owned().into())], None)).await.remove(0).unwrap()
}

/// Describes everything in the schema of a database.
fn describe(server: &PostgresServer, database: &str) -> Vec<String> {
    let tables = "SELECT attrelid::regclass, attnum, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'tower_sse'::regnamespace) ORDER BY attrelid::regclass::text, attnum";
    let relations = "SELECT relname, relkind, relpersistence, reloptions, relacl FROM pg_class WHERE relnamespace = 'tower_sse'::regnamespace ORDER BY 1";
    let functions = "SELECT proname, proacl, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'tower_sse'::regnamespace ORDER BY 1";
    let rest = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid IN
        (SELECT oid FROM pg_class WHERE relnamespace = 'tower_sse'::regnamespace) ORDER BY 1; SELECT pg_get_viewdef('tower_sse.status');
        SELECT version FROM tower_sse.migrations ORDER BY 1; SELECT nspowner::regrole, nspacl FROM pg_namespace WHERE nspname = 'tower_sse'";
    [tables, relations, functions, rest].map(|sql| server.psql(&format!("\\c {database}\n{sql}"))).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrate_equals_the_files_applied_by_hand_and_may_run_again_and_at_once() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let [at_once, by_hand] = ["at_once", "by_hand"].map(|name| server.create_database(name));
    let eight = (0..8).map(|_| async { Postgres::new(&at_once, "n").unwrap().migrate().await });
    assert!(soon(join_all(eight)).await.iter().all(Result::is_ok));
    let migrated = Postgres::new(&at_once, "n").unwrap().timeout(REQUEST_LIMIT);
    append(&migrated, "kept").await;
    soon(migrated.migrate()).await.unwrap();
    assert_eq!(range(&migrated, 0, 10).await.len(), 1);

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backplane/postgres/migrations");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, Postgres::migrations().iter().map(|migration| migration.name).collect::<Vec<_>>());
    for file in files {
        let sql = std::fs::read_to_string(format!("{folder}/{file}")).unwrap();
        server.psql(&format!("\\c by_hand owner\nBEGIN;\n{sql}\nCOMMIT;"));
    }
    let [at_once, hand] = ["at_once", "by_hand"].map(|name| describe(&server, name));
    assert_eq!(at_once, hand);
    assert!(hand.iter().all(|part| !part.is_empty()));
    // `migrate` finds that there is nothing to do.
    let by_hand = Postgres::new(&by_hand, "n").unwrap().timeout(REQUEST_LIMIT);
    soon(by_hand.migrate()).await.unwrap();
    append(&by_hand, "x").await;
}

#[tokio::test]
async fn migrate_fails_without_the_right_to_create_a_schema_and_changes_nothing() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.create_database("empty");
    let url = format!("{}/empty", server.url().rsplit_once('/').unwrap().0);
    let error = soon(Postgres::new(&url, "n").unwrap().migrate()).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("001_log.sql: permission denied"), "{error}");
    assert_eq!(server.psql("\\c empty\nSELECT count(*) FROM pg_namespace WHERE nspname = 'tower_sse'"), "0");
}

/// The lines that are logged in this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn an_instance_without_the_schema_names_the_migrations_and_works_once_they_are_applied() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let url = server.create_database("fresh");
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let log = Postgres::new(&url, "n").unwrap().timeout(REQUEST_LIMIT);
    let hub = builder().backplane(log.clone()).build().unwrap();
    let error = soon(hub.topic("t").publish(Event::unnamed("x"))).await.unwrap_err();
    let names_the_migrations =
        |text: &str| text.contains("schema `tower_sse` is missing or too old. Apply the migrations");
    assert!(error.is_unavailable() && !error.is_unknown() && names_the_migrations(&cause(&error)), "{error:?}");
    let logged = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    until(|| logged().lines().any(|line| line.contains("WARN") && names_the_migrations(line))).await;
    assert!(!hub.is_ready());
    soon(log.migrate()).await.unwrap();
    until(|| hub.is_ready()).await;
    soon(hub.topic("t").publish(Event::unnamed("x"))).await.unwrap();
}

#[tokio::test]
async fn a_schema_of_an_earlier_version_is_named() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.psql("DELETE FROM tower_sse.migrations WHERE version = (SELECT max(version) FROM tower_sse.migrations)");
    let error = soon(log(&server).state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("too old"), "{error}");
    // An instance of an earlier release tolerates a later schema.
    server.psql("INSERT INTO tower_sse.migrations VALUES (99)");
    soon(log(&server).state(None)).await.unwrap();
}

#[tokio::test]
async fn a_role_or_a_database_with_other_settings_is_rejected_with_their_names() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.create_database("ascii");
    server.psql("ALTER ROLE hub SET default_transaction_isolation = 'serializable'");
    let error = soon(log(&server).state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("default_transaction_isolation"), "{error}");
    server.psql("ALTER ROLE hub RESET default_transaction_isolation");
    soon(log(&server).state(None)).await.unwrap();

    let url = format!("{}/ascii", server.url_as("owner").rsplit_once('/').unwrap().0);
    soon(Postgres::new(&url, "n").unwrap().migrate()).await.unwrap();
    server.psql("UPDATE pg_database SET encoding = pg_char_to_encoding('SQL_ASCII') WHERE datname = 'ascii'");
    let error = soon(Postgres::new(&url, "n").unwrap().timeout(REQUEST_LIMIT).state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("UTF8"), "{error}");
}

/// Copies the rows of all tables to another server, as a dump of the schema does.
fn restore_dump(from: &PostgresServer, to: &PostgresServer) {
    for table in ["head", "inbox", "log", "current", "once", "journal", "journal_entry"] {
        let file = from.folder().join(format!("{table}.dump"));
        from.psql(&format!("COPY tower_sse.{table} TO '{}'", file.display()));
        let rows = std::fs::read_to_string(file).unwrap();
        to.psql(&format!("COPY tower_sse.{table} FROM STDIN;\n{rows}\\.\n"));
    }
    let next = from.psql("SELECT last_value FROM tower_sse.inbox_id_seq");
    to.psql(&format!("SELECT setval('tower_sse.inbox_id_seq', {next})"));
}

/// The transaction ids of the new server are lower than those in the dump.
#[tokio::test]
async fn a_restored_dump_delivers_the_records_that_waited_and_new_ones() {
    let Some(old) = PostgresServer::start(&[]) else { return };
    old.psql(&"SELECT pg_current_xact_id();\n".repeat(3_000));
    for has_waiting in [true, false] {
        let Some(new) = PostgresServer::start_unrelated() else { return };
        let first = Postgres::new(&old.url(), "n").unwrap().timeout(REQUEST_LIMIT);
        append(&first, r#"{"v":1,"to":{"topics":["t"]},"data":"first"}"#).await;
        old.psql("SELECT tower_sse.publish('n', topic => 't', data => 'moved'); SELECT tower_sse.sequence('n')");
        if has_waiting {
            old.psql("SELECT tower_sse.publish('n', topic => 't', data => 'waiting')");
        }
        restore_dump(&old, &new);
        let ids = [&old, &new].map(|server| server.psql("SELECT pg_current_xact_id()").parse::<u64>().unwrap());
        assert!(ids[1] < ids[0], "{ids:?}");
        let own = log(&new).poll_interval(Duration::from_millis(20));
        let hub = builder().backplane(own.clone()).build().unwrap();
        until(|| hub.is_ready()).await;
        let mut page = open(&hub);
        // Nothing is appended, so only the poll finds these.
        for n in 0..3 {
            new.psql(&format!("SELECT tower_sse.publish('n', topic => 't', data => '{n}')"));
            let read = read_to(&mut page, &n.to_string()).await;
            assert!(read.len() <= 2, "{read:?}");
        }
        until(|| new.psql("SELECT count(*) FROM tower_sse.inbox") == "0").await;
        let all = range(&own, 0, 100).await;
        let count = |data: &str| {
            let data = format!(r#""data":"{data}""#);
            all.iter().filter(|record| String::from_utf8_lossy(&record.payload).contains(&data)).count()
        };
        assert_eq!([count("waiting"), count("0"), count("1"), count("2")], [1; 4]);
        // An instance that has seen more begins a new epoch.
        let before = soon(own.state(None)).await.unwrap();
        let more = Seen::new(before.epoch, before.last + 1);
        assert_ne!(soon(own.state(Some(more))).await.unwrap().epoch, before.epoch);
    }
}

#[tokio::test]
async fn the_view_for_monitoring_shows_the_log_and_what_waits() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let own = log(&server);
    let position = append(&own, "one").await;
    append(&own, "three").await;
    server.psql("SELECT tower_sse.publish('n', topic => 't'); SELECT tower_sse.publish('n', topic => 't')");
    server.psql("SELECT tower_sse.publish('other', topic => 't')");
    let sql = "SELECT namespace, epoch, first, last, newest_at > now() - interval '1 minute', log_bytes, waiting,
        oldest_waiting BETWEEN interval '0' AND interval '1 minute' FROM tower_sse.status";
    assert_eq!(server.psql(sql), format!("n|{:x}|1|2|t|8|2|t", position.epoch));
    append(&own, "x").await;
    assert_eq!(server.psql("SELECT last, waiting, oldest_waiting FROM tower_sse.status"), "5|0|");
}

/// A caller that chose the names of functions would otherwise run its code as the owner.
#[tokio::test]
async fn functions_with_the_rights_of_the_owner_do_not_use_the_search_path_of_the_caller() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let without = server.psql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'tower_sse'::regnamespace AND prosecdef
            AND NOT coalesce(proconfig::text LIKE '%search_path=pg_catalog, pg_temp%', false)",
    );
    // This one names the schema of each object, because setting the path takes time.
    assert_eq!(without, "publish_record");
    server.psql("CREATE SCHEMA evil AUTHORIZATION hub");
    let trap = "RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'runs as %', current_user; END $$;";
    let failed = server.try_psql_as(
        "hub",
        &format!(
            "CREATE FUNCTION evil.encode(bytea, text) {trap} CREATE FUNCTION evil.left(text, integer) {trap}
            CREATE FUNCTION evil.to_json(text) {trap} CREATE FUNCTION evil.octet_length(text) {trap}
            CREATE FUNCTION evil.pg_notify(text, text) {trap} CREATE FUNCTION evil.concat_ws(text, text, text, text) {trap}
            SET search_path = evil, pg_catalog;
            SELECT tower_sse.publish('n', topic => 't', key => 'k', wake => true);
            SELECT tower_sse.publish_record('n', 'x', wake => true);
            SELECT tower_sse.sequence('n');"
        ),
    );
    assert_eq!(failed.as_deref().map(|output| output.contains("runs as")), Ok(false), "{failed:?}");
}
