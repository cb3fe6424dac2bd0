//! The streams on the server: made when they are missing, read back, refused when they are not what is needed.
//!
//! An old server passes over settings that it does not know, so what was made is looked at, not what was asked for.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::super::limits::LogLimits;
use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::names::Names;

/// For so long a repeated idempotency key is known.
const DUPLICATES: Duration = Duration::from_secs(600);

/// How long control messages are kept, and how many at most.
const CONTROL_KEPT: Duration = Duration::from_secs(60);
const CONTROL_MESSAGES: usize = 10_000;

/// The pause between two looks whether values are copied.
const COPIES_SOON: Duration = Duration::from_millis(5);

/// For so long something may wait at most.
const DEPOSITS: Duration = Duration::from_secs(3600);

/// The log's stream as the server describes it.
pub(super) struct Log {
    config: Json,
    pub(super) created: String,
    /// Whose plain records it takes.
    pub(super) epoch: Option<u64>,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Log {
    pub(super) fn new(names: &Names, info: &Json) -> Answer<Self> {
        let number = |of: &str| info["state"][of].as_u64();
        let (Some(messages), Some(first), Some(last), Some(created)) =
            (number("messages"), number("first_seq"), number("last_seq"), info["created"].as_str())
        else {
            return Err(BackplaneError::rejected("what it says of the stream cannot be read"));
        };
        let subjects = info["config"]["subjects"].as_array();
        let epoch = subjects.into_iter().flatten().filter_map(Json::as_str).find_map(|subject| names.epoch_of(subject));
        let first = if messages == 0 { last + 1 } else { first };
        Ok(Self { config: info["config"].clone(), created: created.to_owned(), epoch, first, last })
    }
}

fn subjects(names: &Names, epoch: u64) -> Json {
    json!([names.plain(epoch), names.keyed()])
}

/// A number as the server takes it.
fn number(number: impl TryInto<i64>) -> Json {
    json!(number.try_into().unwrap_or(i64::MAX))
}

fn nanos(duration: Duration) -> Json {
    number(duration.as_nanos())
}

/// The settings of the log that may be changed while it is in use.
fn changeable(limits: &LogLimits) -> [(&'static str, Json); 4] {
    // The server refuses shorter ones, and a window that is longer than the age.
    let age = limits.max_age.max(Duration::from_millis(100));
    [
        ("max_msgs", number(limits.max_records)),
        ("max_bytes", number(limits.max_bytes)),
        ("max_age", nanos(age)),
        ("duplicate_window", nanos(age.min(DUPLICATES))),
    ]
}

/// The log, if it is there.
pub(super) async fn log(connection: &Connection) -> Answer<Option<Log>> {
    let names = &connection.names;
    let Some(info) = connection.stream(&names.log).await? else { return Ok(None) };
    expect(
        &info,
        &names.log,
        &[("retention", json!("limits")), ("discard", json!("old")), ("storage", json!("file"))],
    )?;
    let config = &info["config"];
    let is_off = |name: &str| config[name].is_null() || config[name] == false || config[name] == json!([]);
    if config["max_msgs_per_subject"].as_i64().unwrap_or(-1) > 0
        || !["no_ack", "sealed", "mirror", "sources"].into_iter().all(is_off)
    {
        return Err(unfit(&names.log, "keeps other than the newest records"));
    }
    Log::new(names, &info).map(Some)
}

/// Makes the log, with this epoch. Only one at a time may: of a stream that several make at the
/// same moment, an old server may store every record more than once.
pub(super) async fn make_log(connection: &Connection, epoch: u64) -> Answer<()> {
    let names = &connection.names;
    let mut settings = json!({ "subjects": subjects(names, epoch), "max_msgs_per_subject": -1 });
    for (name, value) in changeable(&connection.limits) {
        settings[name] = value;
    }
    create(connection, &names.log, settings).await.map(drop)
}

/// Lets the log take plain records of this epoch alone, with these limits. `None` if it is gone meanwhile.
pub(super) async fn fence(connection: &Connection, log: Log, epoch: u64) -> Answer<Option<Log>> {
    let names = &connection.names;
    let mut config = log.config.clone();
    let mut changed = Vec::new();
    for (name, value) in changeable(&connection.limits) {
        if config[name] != value {
            changed.push(name);
            config[name] = value;
        }
    }
    let subjects = subjects(names, epoch);
    if config["subjects"] == subjects && changed.is_empty() {
        return Ok(Some(log));
    }
    if !changed.is_empty() {
        tracing::warn!(stream = names.log, ?changed, "the log had other limits, of another version or instance");
    }
    config["subjects"] = subjects;
    let Some(info) = connection.ask("STREAM.UPDATE", &names.log, &config).await? else { return Ok(None) };
    let log = Log::new(names, &info)?;
    if log.epoch != Some(epoch) {
        return Err(unfit(&names.log, "does not take the subjects it was given"));
    }
    Ok(Some(log))
}

/// Prepares the stream of current values: the newest of each, copied out of the log by the server. Returns false if
/// another instance made a stream of this name with other settings meanwhile.
pub(super) async fn values(connection: &Connection) -> Answer<bool> {
    let names = &connection.names;
    let source = json!([{ "name": names.log, "filter_subject": names.keyed() }]);
    let info = match connection.stream(&names.values).await? {
        Some(info) => info,
        None => {
            let max_msgs = number(connection.limits.max_values);
            let settings = json!({ "max_msgs": max_msgs, "max_msgs_per_subject": 1, "sources": source });
            let Some(info) = create(connection, &names.values, settings).await? else { return Ok(false) };
            info
        }
    };
    expect(&info, &names.values, &[("retention", json!("limits")), ("max_msgs_per_subject", json!(1))])?;
    let config = &info["config"];
    let of = &config["sources"][0];
    if of["name"] != names.log || of["filter_subject"] != names.keyed() {
        return Err(unfit(&names.values, "is not sourced from the log"));
    }
    if config["max_msgs"] != number(connection.limits.max_values) {
        let mut config = config.clone();
        config["max_msgs"] = number(connection.limits.max_values);
        if connection.ask("STREAM.UPDATE", &names.values, &config).await?.is_none() {
            return Ok(false);
        }
    }
    copies(connection).await
}

/// Waits until the server copies values. A server of version 2.10 or newer begins up to 200 ms
/// after the stream was made or the server was started. A value that is acknowledged before that is
/// lost if a busy log throws it out within this time.
async fn copies(connection: &Connection) -> Answer<bool> {
    let begun = Instant::now();
    loop {
        let Some(info) = connection.stream(&connection.names.values).await? else { return Ok(false) };
        // The time since the server heard of the source, or -1 if it has not heard of it yet.
        if info["sources"][0]["active"].as_i64().is_some_and(|active| active >= 0) {
            return Ok(true);
        }
        if begun.elapsed() > connection.limits.timeout {
            return Err(BackplaneError::unavailable("the server does not copy current values out of the log yet"));
        }
        sleep(COPIES_SOON).await;
    }
}

/// The bucket. Read from its leader alone: a replica may not know of the newest epoch.
pub(super) async fn bucket(connection: &Connection) -> Answer<()> {
    let settings = json!({
        "subjects": [connection.names.epoch.replace(".epoch", ".>")],
        "discard": "new",
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": true,
        "deny_delete": true,
    });
    create(connection, &connection.names.bucket, settings).await.map(drop)
}

/// What waits for whoever asks first, at most an hour.
pub(super) async fn deposits(connection: &Connection) -> Answer<()> {
    let subjects = [connection.names.all_deposits()];
    let settings = json!({ "subjects": subjects, "max_msgs_per_subject": 1, "max_age": nanos(DEPOSITS) });
    create_if_missing(connection, &connection.names.deposits, settings).await
}

/// Control messages, for as long as an instance that was cut off may need them.
pub(super) async fn control(connection: &Connection) -> Answer<()> {
    let settings = json!({
        "subjects": [connection.names.control()],
        "max_msgs": CONTROL_MESSAGES,
        "max_age": nanos(CONTROL_KEPT),
        "duplicate_window": nanos(CONTROL_KEPT),
    });
    create_if_missing(connection, &connection.names.control, settings).await
}

async fn create_if_missing(connection: &Connection, name: &str, settings: Json) -> Answer<()> {
    match connection.stream(name).await? {
        Some(_) => Ok(()),
        None => create(connection, name, settings).await.map(drop),
    }
}

pub(super) async fn delete(connection: &Connection, stream: &str) -> Answer<()> {
    connection.ask("STREAM.DELETE", stream, &json!({})).await.map(drop)
}

/// Creates a stream with these settings beside those that all streams share. Returns `None` if
/// there is one of this name, with other settings.
async fn create(connection: &Connection, name: &str, settings: Json) -> Answer<Option<Json>> {
    let mut config = json!({
        "name": name,
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": 1,
    });
    if let (Json::Object(config), Json::Object(settings)) = (&mut config, settings) {
        config.extend(settings);
    }
    match connection.ask("STREAM.CREATE", name, &config).await {
        Ok(info) => Ok(info),
        Err(error) if error.is_rejected() && error.to_string().contains("already in use") => Ok(None),
        // So a server says too when two create it at the same moment, and each for an epoch of its own.
        Err(error)
            if error.is_rejected() && error.to_string().contains("overlap") && is_there(connection, name).await? =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether there is a stream of this name, or in a moment.
async fn is_there(connection: &Connection, name: &str) -> Answer<bool> {
    for _ in 0..10 {
        if connection.stream(name).await?.is_some() {
            return Ok(true);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(false)
}

fn expect(info: &Json, stream: &str, settings: &[(&str, Json)]) -> Answer<()> {
    match settings.iter().find(|(name, value)| info["config"][*name] != *value) {
        None => Ok(()),
        Some((name, value)) => Err(unfit(stream, &format!("has a {name} other than {value}"))),
    }
}

fn unfit(stream: &str, why: &str) -> BackplaneError {
    BackplaneError::rejected(format!("the stream {stream} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::Nats;

    #[test]
    fn a_log_has_the_limits_of_its_adapter() {
        let nats = Nats::new("nats://127.0.0.1:1", "n")
            .unwrap()
            .limits(LogLimits::new().max_records(7).max_age(Duration::from_secs(60)));
        let limit =
            |nats: &Nats, name| changeable(&nats.shared.limits).into_iter().find(|(of, _)| *of == name).unwrap().1;
        assert_eq!((limit(&nats, "max_msgs"), limit(&nats, "max_bytes")), (json!(7), json!(256 << 20)));
        assert_eq!(limit(&nats, "duplicate_window"), json!(60_000_000_000_u64));
        assert_eq!(limit(&nats.limits(LogLimits::new().max_bytes(1 << 30)), "max_bytes"), json!(1 << 30));
    }
}
