//! The SQL function `tower_sse.publish` has the rules of the hub, and writes the records that the hub
//! writes.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, types::ToSql};
use tower_sse::{Event, Hub, Retention, Scope, Target};

use crate::instances::builder;
use crate::kit::broker::range;
use crate::kit::postgres::PostgresServer;
use crate::kit::postgres_client::{connect, log};
use crate::kit::{soon, until};

/// The limit of the hub and of the SQL function.
const MAX_BYTES: i32 = 1_024;

/// An event with its targets, as arguments of the SQL function.
#[derive(Clone, Debug, Default)]
struct Case {
    topics: Vec<String>,
    users: Vec<String>,
    everyone: bool,
    scope: Option<String>,
    event: Option<String>,
    data: String,
    key: Option<String>,
    remove: bool,
    retry_ms: Option<i64>,
    idempotency_key: Option<String>,
}

fn to_topic(topic: &str) -> Case {
    Case { topics: vec![topic.to_owned()], ..Case::default() }
}

fn many(count: usize, prefix: &str) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:03}")).collect()
}

/// Texts at the limits of the rules. Postgres has no text with U+0000.
fn names() -> Vec<String> {
    let mut names: Vec<String> =
        ["", "a", " ", "a b", "*", "a/b.>", "\"", "\\", "ä", "😀", "open", "error", "Open", "hub"]
            .into_iter()
            .chain([
                "hub.", "hub.x", "Hub.x", "hubx", " hub.x", "hub%", "hub_x", "a\u{a0}b", "\u{feff}", "\u{200b}",
                "\u{d7ff}",
            ])
            .map(str::to_owned)
            .collect();
    let controls = (1..=0x20).chain(0x7e..=0xa0).chain(0x2028..=0x202f).chain(0x2065..=0x206a);
    names.extend(controls.filter_map(char::from_u32).map(|c| format!("a{c}b")));
    names.extend(["\n", "\u{7f}"].map(str::to_owned));
    for length in [127, 128, 129, 254, 255, 256, 300] {
        names.push("x".repeat(length));
        names.push("ä".repeat(length / 2));
    }
    names
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let base = to_topic("t");
    for name in names() {
        let some = Some(name.clone());
        cases.push(to_topic(&name));
        cases.push(Case { users: vec![name.clone()], ..Case::default() });
        cases.push(Case { scope: some.clone(), ..base.clone() });
        cases.push(Case { event: some.clone(), ..base.clone() });
        cases.push(Case { key: some.clone(), ..base.clone() });
        cases.push(Case { idempotency_key: some, ..base.clone() });
        cases.push(Case { data: name, ..base.clone() });
    }
    for count in [1, 127, 128, 129, 200] {
        cases.push(Case { topics: many(count, "t"), ..Case::default() });
        cases.push(Case { users: many(count, "u"), ..Case::default() });
        cases.push(Case { topics: many(count, "t"), everyone: true, ..Case::default() });
        cases.push(Case { topics: many(count, "t"), users: many(1, "u"), ..Case::default() });
    }
    for data in [
        "line\nbreaks\r\nof\rall kinds\n",
        "\t\u{1}\u{8}\u{c}\u{1f}\u{7f}\u{85}",
        "\"quotes\" and \\",
        "\u{2028}\u{2029}😀é",
    ] {
        cases.push(Case { data: data.to_owned(), ..base.clone() });
        cases.push(Case {
            data: data.repeat(3),
            key: Some("k".into()),
            scope: Some("\"acme\"".into()),
            ..base.clone()
        });
    }
    // The hub counts the lines of the event on the wire.
    for size in 1_000..1_024 {
        for (text, event, retry_ms) in [
            ("x", None, None),
            ("x", Some("event"), None),
            ("x", None, Some(250)),
            ("x\n", None, None),
            ("x\r\n", Some("e"), Some(3_600_000)),
            ("\r", None, None),
        ] {
            let mut data: String = text.chars().cycle().take(size).collect();
            if text.len() > 1 {
                // With seven bytes for each line.
                data.truncate(size / 4);
            }
            cases.push(Case { data, event: event.map(str::to_owned), retry_ms, ..base.clone() });
        }
    }
    for lines in 120..150 {
        cases.push(Case { data: "x\n".repeat(lines), ..base.clone() });
        cases.push(Case { data: "x\r\n".repeat(lines), ..base.clone() });
        cases.push(Case { data: "\r\n\n".repeat(lines / 2), ..base.clone() });
    }
    for retry_ms in [0, 1, 99, 100, 101, 2_000, 3_600_000, 3_600_001, 1 << 40] {
        cases.push(Case { retry_ms: Some(retry_ms), ..base.clone() });
    }
    let all = Case {
        topics: many(2, "latest/"),
        users: many(2, "u"),
        everyone: true,
        event: Some("e".into()),
        data: "x".into(),
        key: Some("k".into()),
        retry_ms: Some(1_000),
        idempotency_key: Some("i".into()),
        ..Case::default()
    };
    for scope in [None, Some("acme".to_owned())] {
        let set = Case { scope, ..all.clone() };
        cases.push(Case { remove: true, key: Some("other".into()), idempotency_key: None, ..set.clone() });
        cases.push(set);
    }
    cases
}

/// Returns the target of a case. `scope` is its scope.
fn target<'h>(hub: &'h Hub, scope: Option<&'h Scope>, case: &Case) -> Target<'h> {
    let topics = case.topics.iter().map(|name| scope.map_or_else(|| hub.topic(&**name), |scope| scope.topic(&**name)));
    let users = case.users.iter().map(|name| scope.map_or_else(|| hub.user(&**name), |scope| scope.user(&**name)));
    let everyone = case.everyone.then(|| scope.map_or_else(|| hub.everyone(), |scope| scope.everyone()));
    topics.chain(users).chain(everyone).reduce(Target::and).unwrap()
}

fn event(case: &Case) -> Event {
    let mut event = match (&case.key, case.remove) {
        (Some(key), true) => Event::removal(key.clone()).data(case.data.clone()),
        (Some(key), false) => Event::unnamed(case.data.clone()).key(key.clone()),
        (None, _) => Event::unnamed(case.data.clone()),
    };
    if let Some(name) = &case.event {
        event = event.name(name.clone());
    }
    if let Some(retry) = case.retry_ms {
        event = event.retry(Duration::from_millis(retry.cast_unsigned()));
    }
    if let Some(key) = &case.idempotency_key {
        event = event.idempotency_key(key.clone());
    }
    event
}

async fn publish_in_sql(client: &Client, case: &Case) -> Result<u64, tokio_postgres::Error> {
    let sql =
        "SELECT tower_sse.publish('n', topics => $1, users => $2, everyone => $3, scope => $4, event => $5, data => $6,
        key => $7, remove => $8, retry_ms => $9, idempotency_key => $10, max_bytes => $11)";
    let parameters: [&(dyn ToSql + Sync); 11] = [
        &case.topics,
        &case.users,
        &case.everyone,
        &case.scope,
        &case.event,
        &case.data,
        &case.key,
        &case.remove,
        &case.retry_ms,
        &case.idempotency_key,
        &MAX_BYTES,
    ];
    soon(client.execute(sql, &parameters)).await
}

/// Returns a record without the values of `id` and `at`, which differ.
fn without_stamp(record: &[u8]) -> String {
    let text = std::str::from_utf8(record).unwrap();
    let (id, rest) = text.strip_prefix(r#"{"v":1,"id":""#).unwrap().split_once(r#"","at":"#).unwrap();
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()), "{text}");
    let (at, rest) = rest.split_once(',').unwrap();
    assert!(at.len() == 13 && at.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    rest.to_owned()
}

async fn start(server: &PostgresServer) -> Hub {
    let bytes = usize::try_from(MAX_BYTES).unwrap();
    // The function does not know which targets keep values, so here all of them do.
    let values = Retention::latest_per_key();
    let builder = builder().topic_retention(values.clone()).user_retention(values).max_payload(bytes);
    let hub = builder.backplane(log(server)).build().unwrap();
    until(|| hub.is_ready()).await;
    hub
}

/// Returns the payloads of all records.
async fn records(server: &PostgresServer) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let next = range(&log(server), all.len() as u64, 1_000).await;
        if next.is_empty() {
            return all;
        }
        all.extend(next.iter().map(|record| without_stamp(&record.payload)));
    }
}

#[tokio::test]
async fn publish_in_sql_accepts_and_writes_what_the_hub_does() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let hub = start(&server).await;
    let client = connect(&server).await;
    let (mut accepted, mut disagreed) = (Vec::new(), Vec::new());
    for case in cases() {
        let scope = case.scope.as_ref().map(|scope| hub.scope(scope));
        let checked = target(&hub, scope.as_ref(), &case).check(&event(&case));
        let in_sql = publish_in_sql(&client, &case).await;
        if let Err(error) = &in_sql {
            let codes = [&SqlState::INVALID_PARAMETER_VALUE, &SqlState::PROGRAM_LIMIT_EXCEEDED];
            assert!(codes.contains(&error.code().unwrap()), "{case:?}: {error:?}");
        }
        if checked.is_ok() != in_sql.is_ok() {
            disagreed.push(format!("{case:?}: the hub: {checked:?}, SQL: {in_sql:?}"));
        } else if checked.is_ok() {
            accepted.push(case);
        }
    }
    assert!(disagreed.is_empty(), "{} cases: {:#?}", disagreed.len(), &disagreed[..disagreed.len().min(10)]);
    soon(async { while client.query_one("SELECT tower_sse.sequence('n')", &[]).await.unwrap().get(0) {} }).await;
    let in_sql = records(&server).await;
    let values = |server: &PostgresServer| server.psql("SELECT id FROM tower_sse.current ORDER BY id");
    let values_in_sql = values(&server);
    assert_ne!(values_in_sql, "");

    server.psql("TRUNCATE tower_sse.once, tower_sse.current");
    for case in &accepted {
        let scope = case.scope.as_ref().map(|scope| hub.scope(scope));
        target(&hub, scope.as_ref(), case).publish(event(case)).await.unwrap();
    }
    let by_the_hub = records(&server).await.split_off(in_sql.len());
    assert_eq!(by_the_hub.len(), in_sql.len());
    for (hub, sql) in by_the_hub.iter().zip(&in_sql) {
        assert_eq!(hub, sql);
    }
    assert_eq!(values(&server), values_in_sql);
    assert_eq!(hub.stats().skipped, 0);
}

/// `docs/broker.md` has these records.
#[tokio::test]
async fn publish_in_sql_writes_the_documented_records() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let client = connect(&server).await;
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/broker.md")).unwrap();
    let mut documented: Vec<&str> = docs.lines().filter(|line| line.starts_with(r#"{"v":1,"id":"#)).collect();
    assert!(documented.len() > 6, "{documented:?}");
    // The function can neither exclude connections nor publish to all scopes.
    documented.retain(|line| !line.contains(r#""except""#) && !line.contains(r#""every_scope""#));
    for line in &documented {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let to = record["to"].get("scoped").unwrap_or(&record["to"]);
        let list = |field: &str| serde_json::from_value(to[field].clone()).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let case = Case {
            topics: list("topics"),
            users: list("users"),
            everyone: to["everyone"].as_bool().unwrap_or_default(),
            scope: text(&to["scope"]),
            event: text(&record["event"]),
            data: text(&record["data"]).unwrap(),
            key: text(&record["key"]),
            remove: record["remove"].as_bool().unwrap_or_default(),
            retry_ms: record["retry_ms"].as_i64(),
            idempotency_key: None,
        };
        publish_in_sql(&client, &case).await.unwrap();
    }
    client.execute("SELECT tower_sse.sequence('n')", &[]).await.unwrap();
    let expected: Vec<_> = documented.iter().map(|line| without_stamp(line.as_bytes())).collect();
    assert_eq!(records(&server).await, expected);
}

#[tokio::test]
async fn publish_in_sql_adds_the_single_target_to_the_list() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    server.psql_as(
        "hub",
        r#"SELECT tower_sse.publish('n', topic => 'b', topics => '{a}', "user" => '7', users => '{8}');
           SELECT tower_sse.publish('n', topic => 'b', topics => NULL, "user" => '7', users => NULL);
           SELECT tower_sse.publish('n', everyone => true, data => NULL, event => '');
           SELECT tower_sse.sequence('n')"#,
    );
    let expected = [
        r#""to":{"topics":["a","b"],"users":["8","7"]},"data":""}"#,
        r#""to":{"topics":["b"],"users":["7"]},"data":""}"#,
        r#""to":{"everyone":true},"data":""}"#,
    ];
    assert_eq!(records(&server).await, expected);
}

/// At the other levels, the transaction takes its snapshot before the lock of the log. Then a batch
/// could miss records.
#[tokio::test]
async fn records_are_moved_and_appended_only_with_a_snapshot_for_each_statement() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let calls = [
        "tower_sse.sequence('n')",
        "tower_sse.append('n', '{x}', '{NULL}', '{}', '{}', '{}', '{}', 1, '{}', '{}', 0, 0, '', 9, 9, 9, 9, 9)",
    ];
    for call in calls {
        server.psql_as("hub", "SELECT tower_sse.publish('n', everyone => true)");
        let at =
            |level: &str| server.try_psql_as("hub", &format!("BEGIN ISOLATION LEVEL {level}; SELECT {call}; COMMIT"));
        for level in ["REPEATABLE READ", "SERIALIZABLE"] {
            let error = at(level).unwrap_err();
            assert!(error.contains("the log needs the isolation level READ COMMITTED"), "{call}, {level}: {error}");
        }
        for level in ["READ COMMITTED", "READ UNCOMMITTED"] {
            at(level).unwrap();
        }
    }
}

/// One row that cannot be moved would stop the log.
#[tokio::test]
async fn every_record_that_is_accepted_can_be_moved_into_the_log() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(20_000).collect();
    let calls = [
        format!("publish('n', topic => 't', idempotency_key => '{noise}')"),
        format!("publish_record('n', '', idempotency_key => '{noise}')"),
        format!("publish_record('n', '', sets => ARRAY['{noise}', '{noise}'])"),
        format!("publish_record('n', '', removes => ARRAY['{noise}'])"),
        format!("publish_record('{noise}', '')"),
        format!("publish('{noise}', topic => 't')"),
        "publish_record('n', '', sets => ARRAY[NULL, '', 'a'], removes => ARRAY['a', NULL])".to_owned(),
        "publish_record('n', '', sets => '{}', removes => '{{a,b},{c,NULL}}')".to_owned(),
        "publish_record('n', '', idempotency_key => '')".to_owned(),
        "publish_record('n', NULL)".to_owned(),
        "publish_record(NULL, '')".to_owned(),
        "publish_record('n', repeat('x', 9000000)::bytea)".to_owned(),
        "publish_record('n', '', sets => array_fill('a'::text, ARRAY[1024]))".to_owned(),
        "publish_record('n', '', wake => NULL)".to_owned(),
        "publish(NULL, topic => 't')".to_owned(),
        "publish('n', topic => 't', max_bytes => NULL)".to_owned(),
        "publish('n', topic => 't', key => 'k', remove => NULL)".to_owned(),
    ];
    let accepted = calls.iter().filter(|call| server.try_psql_as("hub", &format!("SELECT tower_sse.{call}")).is_ok());
    assert!(accepted.count() > 5);
    let namespaces = server.psql("SELECT DISTINCT ns FROM tower_sse.inbox");
    assert_eq!(namespaces, "n");
    soon(async { while server.psql_as("hub", "SELECT tower_sse.sequence('n')") == "t" {} }).await;
    assert_eq!(server.psql("SELECT count(*) FROM tower_sse.inbox"), "0");
}

/// Moving such a record would take longer than an instance waits.
#[tokio::test]
async fn a_record_with_too_many_values_is_rejected() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    for arguments in [
        "'', sets => array_fill('a'::text, ARRAY[1025])",
        "'', removes => array_fill('a'::text, ARRAY[1025])",
        "'', sets => array_fill('a'::text, ARRAY[1000]), removes => array_fill('a'::text, ARRAY[25])",
        "repeat('x', 1000000)::bytea, sets => array_fill('a'::text, ARRAY[135])",
    ] {
        let error =
            server.try_psql_as("hub", &format!("SELECT tower_sse.publish_record('n', {arguments})")).unwrap_err();
        assert!(error.contains("23514"), "{arguments}: {error}");
    }
}

/// Each value is a copy of its record.
#[tokio::test]
async fn a_call_moves_few_records_that_set_many_values() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let ids = "ARRAY(SELECT n::text FROM generate_series(1, 100) n)";
    server.psql(&format!(
        "SELECT tower_sse.publish_record('n', repeat('x', 60000)::bytea, sets => {ids}) FROM generate_series(1, 3)"
    ));
    for moved in ["1", "2", "3"] {
        server.psql("SELECT tower_sse.sequence('n')");
        assert_eq!(server.psql("SELECT count(*) FROM tower_sse.log"), moved);
    }
}

#[tokio::test]
async fn publish_in_sql_rejects_targets_and_values_that_no_hub_has() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    for arguments in [
        "'n'",
        "'n', everyone => NULL",
        "'n', everyone => false",
        "'n', topics => NULL",
        "'n', topics => '{}', users => '{}'",
        "'n', topics => '{t,NULL}'",
        "'n', topic => 't', remove => true",
        "'n', topic => 't', retry_ms => -1",
        "NULL, topic => 't'",
    ] {
        let published = server.try_psql_as("hub", &format!("SELECT tower_sse.publish({arguments})"));
        assert!(published.is_err(), "{arguments}");
    }
}
