//! The bytes that the adapters store at a broker. Instances of different versions use them at the
//! same time, and `docs/broker.md` documents them. Each test compares what the adapter writes with
//! these bytes, and reads the same bytes from another writer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value as Json;
use tower_sse::backplane::{Backplane, Begun, JournalAppend, LogState, NewRecord, Value};

use crate::kit::broker::{Broker, nats_log, range};
use crate::kit::postgres::PostgresServer;
use crate::kit::soon;
use crate::nats_server::NatsServer;
use crate::redis_server::{FORGETFUL, RedisServer};

/// The values of a record: one that it sets, and one that it removes.
const SET: &str = r#"["topic","a b","k"]"#;
const REMOVED: &str = r#"["user","7","k","acme"]"#;

fn sha256(bytes: impl AsRef<[u8]>) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes.as_ref());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Appends a record with an idempotency key, and one with values. Stores a ticket and a shared
/// value. Writes a run with an end. Returns the epoch and the id of the run.
async fn fill(log: &impl Backplane) -> (u64, String) {
    let mut keyed = NewRecord::new("first".into());
    keyed.idempotency_key = Some("order 7".into());
    let mut values = NewRecord::new("second".into());
    values.values = vec![Value::new(SET, false), Value::new(REMOVED, true)];
    let positions = soon(log.append(vec![keyed, values], None)).await;
    let epoch = positions.into_iter().map(|position| position.unwrap().epoch).max().unwrap();
    soon(log.put_once("ticket", "payload".into(), Duration::from_secs(60))).await.unwrap();
    soon(log.put_shared("list", "part".into(), Duration::from_secs(60))).await.unwrap();
    let Begun::New(id) = soon(log.begin_journal("run", "one".into())).await.unwrap() else { panic!() };
    let closed = soon(log.append_journal("run", id, 1, "two".into(), Some(Duration::from_secs(60)))).await.unwrap();
    assert_eq!(closed, JournalAppend::Appended);
    (epoch, id.to_string())
}

/// Reads what [`fill`] writes. The epoch is 7, and the id of the run is `ab`.
async fn assert_readable(log: &impl Backplane) {
    assert_eq!(soon(log.state(None)).await.unwrap(), LogState::new(7, 1, 2));
    let records = range(log, 0, 10).await;
    assert_eq!(records.iter().map(|record| &record.payload[..]).collect::<Vec<_>>(), [b"first", &b"second"[..]]);
    let values = soon(log.values()).await.unwrap();
    let values: Vec<_> =
        values.iter().map(|value| (&*value.id, value.record.sequence, &value.record.payload[..])).collect();
    assert_eq!(values, [(SET, 2, &b"second"[..])]);
    let mut repeated = NewRecord::new("repeated".into());
    repeated.idempotency_key = Some("order 7".into());
    assert_eq!(soon(log.append(vec![repeated], None)).await.remove(0).unwrap().sequence, 1);
    assert_eq!(soon(log.take("ticket")).await.unwrap(), Some("payload".into()));
    assert_eq!(soon(log.get_shared("list")).await.unwrap(), Some("part".into()));
    let page = soon(log.read_journal("run", None, 0, 1 << 20)).await.unwrap().unwrap();
    assert_eq!((page.id.to_string().as_str(), page.last, page.is_closed), ("ab", 2, true));
    assert_eq!(page.entries, ["one", "two"]);
}

#[tokio::test]
async fn redis_adapter_stores_and_reads_the_documented_bytes() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let cli = |command: &[&str]| server.cli(command).lines().map(str::to_owned).collect::<Vec<_>>();
    let key = |namespace: &str, name: &str| format!("tower-sse:{{{namespace}}}:{name}");
    let hashed = |namespace: &str, kind: &str, name: &str| key(namespace, &format!("{kind}:{}", sha256(name)));
    let (epoch, id) = fill(&server.log("written")).await;
    let epoch = format!("{epoch:x}");
    let written = |name: &str| key("written", name);
    assert_eq!(cli(&["HMGET", &written("meta"), "epoch", "last", "bytes"]), [&epoch, "2", "11"]);
    let log = cli(&["XRANGE", &written("log"), "-", "+"]);
    let times = [log[4].clone(), log[11].clone()];
    assert!(times.iter().all(|time| time.parse::<u64>().unwrap() > 1_700_000_000_000), "{times:?}");
    let expected = ["1-0", "d", "first", "t", &times[0], "b", "0", "2-0", "d", "second", "t", &times[1], "b", "5"];
    assert_eq!(log, expected);
    assert_eq!(cli(&["HGETALL", &written("values")]), [SET, "2:second"]);
    assert_eq!(cli(&["ZRANGE", &written("order"), "0", "-1", "WITHSCORES"]), [SET, "2"]);
    assert_eq!(cli(&["GET", &written("idempotency:order 7")]), [format!("{epoch}:1")]);
    assert_eq!(cli(&["GET", &hashed("written", "deposit", "ticket")]), ["payload"]);
    assert_eq!(cli(&["GET", &hashed("written", "shared", "list")]), ["part"]);
    let run = ["1-0", "d", "one", "i", &id, "2-0", "d", "two", "i", &id, "c", "1"];
    assert_eq!(cli(&["XRANGE", &hashed("written", "journal", "run"), "-", "+"]), run);

    let read = |name: &str| key("read", name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().to_string();
    for command in [
        &["HSET", &read("meta"), "epoch", "7", "last", "2", "bytes", "11"][..],
        &["XADD", &read("log"), "1-0", "d", "first", "t", &now, "b", "0"],
        &["XADD", &read("log"), "2-0", "d", "second", "t", &now, "b", "5"],
        &["HSET", &read("values"), SET, "2:second"],
        &["ZADD", &read("order"), "2", SET],
        &["SET", &read("idempotency:order 7"), "7:1"],
        &["SET", &hashed("read", "deposit", "ticket"), "payload"],
        &["SET", &hashed("read", "shared", "list"), "part"],
        &["XADD", &hashed("read", "journal", "run"), "1-0", "d", "one", "i", "ab"],
        &["XADD", &hashed("read", "journal", "run"), "2-0", "d", "two", "i", "ab", "c", "1"],
    ] {
        let answer = cli(command);
        assert!(!answer[0].contains("ERR"), "{command:?}: {answer:?}");
    }
    assert_readable(&server.log("read")).await;
}

/// The header with the ids of [`SET`] and [`REMOVED`].
const VALUES: &str = "+%5B%22topic%22%2C%22a+b%22%2C%22k%22%5D -%5B%22user%22%2C%227%22%2C%22k%22%2C%22acme%22%5D";

/// The hash of both ids in the subject of a record.
fn hash_of_values() -> String {
    let mut text = Vec::new();
    for id in [SET, REMOVED] {
        text.extend_from_slice(&(id.len() as u64).to_be_bytes());
        text.extend_from_slice(id.as_bytes());
    }
    sha256(text)
}

#[tokio::test]
async fn nats_adapter_stores_and_reads_the_documented_bytes() {
    let Some(server) = NatsServer::start() else { return };
    let (epoch, id) = fill(&nats_log(&server, "written")).await;
    // Returns the headers and the content of the newest message of a subject.
    let newest = async |stream: &str, subject: &str| {
        let request = format!(r#"{{"last_by_subj":"{subject}"}}"#);
        let answer = server.api(&format!("STREAM.MSG.GET.{stream}_written"), &request).await;
        let text = |field: &Json| {
            let bytes = STANDARD.decode(field.as_str().unwrap_or_default()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let headers = text(&answer["message"]["hdrs"]);
        let headers: Vec<_> = headers.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        (headers, text(&answer["message"]["data"]))
    };
    let written = |name: &str| format!("tower-sse.written.{name}");
    let plain = newest("tower-sse-log", &written(&format!("r.{epoch:016x}"))).await;
    assert_eq!(plain, (vec![format!("Nats-Msg-Id: {epoch:x}.order+7")], "first".into()));
    let keyed = newest("tower-sse-log", &written(&format!("v.{}", hash_of_values()))).await;
    assert_eq!(keyed, (vec![format!("Tower-Sse-Values: {VALUES}")], "second".into()));
    let (_, bucket) = newest("KV_tower-sse", "$KV.tower-sse_written.epoch").await;
    let created = server.api("STREAM.INFO.tower-sse-log_written", "").await["created"].as_str().unwrap().to_owned();
    assert_eq!(bucket, format!("{epoch:016x} 0 {created}"));
    let ticket = newest("tower-sse-deposits", &written(&format!("d.{}", sha256("ticket")))).await;
    assert_eq!(ticket, (Vec::new(), "60000 payload".into()));
    let list = newest("tower-sse-shared", &written(&format!("s.{}", sha256("list")))).await;
    assert_eq!(list, (Vec::new(), "part".into()));
    let (headers, entry) = newest("tower-sse-journals", &written(&format!("j.{}", sha256("run")))).await;
    let heading = headers.iter().find_map(|line| line.strip_prefix("Tower-Sse-Journal: ")).unwrap();
    let begun = heading.split(' ').nth(2).unwrap();
    assert_eq!((heading, entry.as_str()), (format!("{id} 2 {begun} 60000").as_str(), "two"));

    // The streams of this namespace exist, and another writer has begun the epoch 7.
    let log = nats_log(&server, "read");
    soon(log.state(None)).await.unwrap();
    drop(log);
    let mut info = server.api("STREAM.INFO.tower-sse-log_read", "").await;
    let created = info["created"].as_str().unwrap().to_owned();
    info["config"]["subjects"] = serde_json::json!(["tower-sse.read.r.0000000000000007", "tower-sse.read.v.*"]);
    let updated = server.api("STREAM.UPDATE.tower-sse-log_read", &info["config"].to_string()).await;
    assert!(updated["error"].is_null(), "{updated}");
    let client = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    for (subject, headers, content) in [
        ("$KV.tower-sse_read.epoch".to_owned(), vec![], format!("0000000000000007 0 {created}")),
        ("tower-sse.read.r.0000000000000007".into(), vec![("Nats-Msg-Id", "7.order+7".to_owned())], "first".into()),
        (format!("tower-sse.read.v.{}", hash_of_values()), vec![("Tower-Sse-Values", VALUES.into())], "second".into()),
        (format!("tower-sse.read.d.{}", sha256("ticket")), vec![], "60000 payload".into()),
        (format!("tower-sse.read.s.{}", sha256("list")), vec![], "part".into()),
        (
            format!("tower-sse.read.j.{}", sha256("run")),
            vec![("Tower-Sse-Journal", format!("ab 1 {now}")), ("Nats-Rollup", "sub".into())],
            "one".into(),
        ),
        (
            format!("tower-sse.read.j.{}", sha256("run")),
            vec![("Tower-Sse-Journal", format!("ab 2 {now} 60000"))],
            "two".into(),
        ),
    ] {
        let mut all = HeaderMap::new();
        headers.into_iter().for_each(|(name, value)| all.insert(name, value));
        client.publish_with_headers(subject, all, Bytes::from(content)).await.unwrap().await.unwrap();
    }
    assert_readable(&nats_log(&server, "read")).await;
}

#[tokio::test]
async fn postgres_adapter_stores_and_reads_the_documented_rows() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let (epoch, id) = fill(&Broker::log(&server, "written")).await;
    let [epoch, id] = [epoch, u64::from_str_radix(&id, 16).unwrap()].map(u64::cast_signed);
    let hash = |text: &str| format!("\\x{}", sha256(text));
    let is_now = |column: &str| format!("{column} BETWEEN now() - interval '1 minute' AND now() + interval '1 minute'");
    let in_a_minute = is_now("expires_at - interval '1 minute'");
    for (select, expected) in [
        ("epoch, first FROM tower_sse.head".to_owned(), format!("{epoch}|1")),
        (
            format!(
                "number, bytes_before, convert_from(payload, 'UTF8'), moved IS NULL, {} FROM tower_sse.log",
                is_now("at")
            ),
            "1|0|first|t|t\n2|5|second|t|t".into(),
        ),
        (
            format!("id, hash, number, convert_from(payload, 'UTF8'), {} FROM tower_sse.current", is_now("at")),
            format!("{SET}|{}|2|second|t", hash(SET)),
        ),
        (
            format!("hash, epoch, number, {} FROM tower_sse.once", is_now("at")),
            format!("{}|{epoch}|1|t", hash("order 7")),
        ),
        (
            format!("key, convert_from(payload, 'UTF8'), {in_a_minute} FROM tower_sse.deposit"),
            format!("{}|payload|t", hash("ticket")),
        ),
        (
            format!("key, convert_from(payload, 'UTF8'), {in_a_minute} FROM tower_sse.shared"),
            format!("{}|part|t", hash("list")),
        ),
        (
            format!("key, id, last, {}, forget_at - changed_at FROM tower_sse.journal", is_now("changed_at")),
            format!("{}|{id}|2|t|00:01:00", hash("run")),
        ),
        (
            "key, id, number, convert_from(entry, 'UTF8') FROM tower_sse.journal_entry".into(),
            format!("{0}|{id}|1|one\n{0}|{id}|2|two", hash("run")),
        ),
    ] {
        assert_eq!(server.psql(&format!("SELECT {select} WHERE ns = 'written'")), expected, "{select}");
    }

    let [value, order, ticket, list, run] = [SET, "order 7", "ticket", "list", "run"].map(hash);
    let (now, later) = ("clock_timestamp()", "clock_timestamp() + interval '1 minute'");
    server.psql(&format!(
        "INSERT INTO tower_sse.head (ns, epoch) VALUES ('read', 7);
        INSERT INTO tower_sse.log (ns, number, at, bytes_before, payload)
            VALUES ('read', 1, {now}, 0, 'first'), ('read', 2, {now}, 5, 'second');
        INSERT INTO tower_sse.current (ns, hash, id, number, at, payload)
            VALUES ('read', '{value}', '{SET}', 2, {now}, 'second');
        INSERT INTO tower_sse.once (ns, hash, epoch, number, at) VALUES ('read', '{order}', 7, 1, {now});
        INSERT INTO tower_sse.deposit (ns, key, payload, expires_at) VALUES ('read', '{ticket}', 'payload', {later});
        INSERT INTO tower_sse.shared (ns, key, payload, expires_at) VALUES ('read', '{list}', 'part', {later});
        INSERT INTO tower_sse.journal (ns, key, id, last, changed_at, forget_at)
            VALUES ('read', '{run}', {0}, 2, {now}, {later});
        INSERT INTO tower_sse.journal_entry (ns, key, id, number, entry)
            VALUES ('read', '{run}', {0}, 1, 'one'), ('read', '{run}', {0}, 2, 'two')",
        0xab,
    ));
    assert_readable(&Broker::log(&server, "read")).await;
}
