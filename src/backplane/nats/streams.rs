//! The streams on the server. The adapter creates missing streams, and rejects streams with
//! settings that would lose records.
//!
//! An old server ignores settings that it does not support. So the adapter checks the settings that
//! the server returns, not the settings that it has requested.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::super::journal;
use super::super::limits::LogLimits;
use super::super::{Answer, BackplaneError};
use super::connection::Connection;
use super::names::Names;

/// The maximum time for which the server remembers an idempotency key.
const DUPLICATES: Duration = Duration::from_secs(600);

/// The maximum time for which control messages are retained.
const CONTROL_AGE: Duration = Duration::from_secs(60);
/// The maximum number of retained control messages of each subject.
const CONTROL_MESSAGES: usize = 10_000;

/// The pause between two checks whether the server copies values.
const COPY_PAUSE: Duration = Duration::from_millis(5);

/// The time for which a shared value is stored.
const SHARED_AGE: Duration = Duration::from_secs(300);

/// The maximum time for which a single-use value, such as a ticket, is stored.
const DEPOSITS: Duration = Duration::from_secs(3600);

/// The age at which an open journal is forgotten. The server removes the entries of a stream by
/// their age, so that this limit keeps it from removing the first entries of an open journal.
pub(super) const JOURNAL_AGE: Duration = Duration::from_secs(3 * 24 * 3600);
/// The maximum age of an entry of a journal: the maximum age of an open journal, the maximum time
/// for which a closed one is kept, and an hour for differences between clocks.
const JOURNAL_ENTRY_AGE: Duration = Duration::from_secs(JOURNAL_AGE.as_secs() + journal::MAX_KEEP.as_secs() + 3600);

/// The log's stream as the server describes it.
pub(super) struct Log {
    config: Json,
    pub(super) created: String,
    /// The epoch in the subject on which the stream accepts records without values. `None` if the
    /// stream has no such subject.
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
            return Err(BackplaneError::rejected("the server returned a description of the log that cannot be read"));
        };
        let subjects = info["config"]["subjects"].as_array();
        let epoch = subjects.into_iter().flatten().filter_map(Json::as_str).find_map(|subject| names.epoch_of(subject));
        let first = if messages == 0 { last + 1 } else { first };
        Ok(Self { config: info["config"].clone(), created: created.to_owned(), epoch, first, last })
    }
}

/// Returns the subjects that the log accepts in an epoch.
fn subjects(names: &Names, epoch: u64) -> Json {
    json!([names.plain(epoch), names.keyed()])
}

/// Converts a number for the server's settings, which are signed 64-bit integers. A number above
/// their range becomes the maximum.
fn number(number: impl TryInto<i64>) -> Json {
    json!(number.try_into().unwrap_or(i64::MAX))
}

/// Converts a duration to nanoseconds, the unit of durations in the server's settings.
fn nanos(duration: Duration) -> Json {
    number(duration.as_nanos())
}

/// Returns the settings of the log that can be changed while the log is in use.
fn changeable(limits: &LogLimits) -> [(&'static str, Json); 4] {
    // The server rejects an age below 100 ms, and a duplicate window that is longer than the age.
    let age = limits.max_age.max(Duration::from_millis(100));
    [
        ("max_msgs", number(limits.max_records)),
        ("max_bytes", number(limits.max_bytes)),
        ("max_age", nanos(age)),
        ("duplicate_window", nanos(age.min(DUPLICATES))),
    ]
}

/// A stream whose settings depend only on its name.
pub(super) struct Plain<'n> {
    name: &'n str,
    settings: Json,
    /// Settings without which messages would be lost.
    expected: Vec<(&'static str, Json)>,
}

impl<'n> Plain<'n> {
    /// All of these streams. The log and the stream of values have separate functions.
    fn all(names: &'n Names) -> [Self; 5] {
        [Self::bucket(names), Self::control(names), Self::shared(names), Self::deposits(names), Self::journals(names)]
    }

    /// The key-value bucket. Its settings do not allow direct reads from replicas, because a
    /// replica might not have the newest epoch yet.
    pub(super) fn bucket(names: &'n Names) -> Self {
        let settings = json!({
            "subjects": [names.keys()],
            "discard": "new",
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
        });
        Self { name: &names.bucket, settings, expected: Vec::new() }
    }

    /// The stream of control messages. Its limit applies to each subject, so that presence messages
    /// displace no command.
    pub(super) fn control(names: &'n Names) -> Self {
        let settings = json!({
            "subjects": [names.all_control()],
            "max_msgs_per_subject": CONTROL_MESSAGES,
            "max_age": nanos(CONTROL_AGE),
            "duplicate_window": nanos(CONTROL_AGE),
        });
        Self { name: &names.control, settings, expected: Vec::new() }
    }

    /// The stream of shared values.
    pub(super) fn shared(names: &'n Names) -> Self {
        let settings =
            json!({ "subjects": [names.all_shared()], "max_msgs_per_subject": 1, "max_age": nanos(SHARED_AGE) });
        Self { name: &names.shared, settings, expected: Vec::new() }
    }

    /// The stream of single-use values.
    pub(super) fn deposits(names: &'n Names) -> Self {
        let settings =
            json!({ "subjects": [names.all_deposits()], "max_msgs_per_subject": 1, "max_age": nanos(DEPOSITS) });
        Self { name: &names.deposits, settings, expected: Vec::new() }
    }

    /// The stream of journals. The server rejects an entry for which it has no room, so that no
    /// journal loses an older entry.
    pub(super) fn journals(names: &'n Names) -> Self {
        let settings = json!({
            "subjects": [names.all_journals()],
            "discard": "new",
            "max_age": nanos(JOURNAL_ENTRY_AGE),
            "allow_rollup_hdrs": true,
        });
        let expected =
            vec![("retention", json!("limits")), ("discard", json!("new")), ("allow_rollup_hdrs", json!(true))];
        Self { name: &names.journals, settings, expected }
    }

    /// Creates the stream if it does not exist, and raises the number of its replicas if it has
    /// fewer than the adapter requires.
    pub(super) async fn create_if_missing(self, connection: &Connection) -> Answer<()> {
        let info = connection.stream(self.name).await?;
        self.complete(connection, info).await
    }

    /// Creates the stream if it has no description. Otherwise raises the number of its replicas.
    async fn complete(self, connection: &Connection, info: Option<Json>) -> Answer<()> {
        match info {
            Some(info) => raise(connection, self.name, &info).await,
            None => create(connection, self.name, self.settings).await.map(drop),
        }
    }
}

/// Creates the streams of [`Plain`] that do not exist, and raises the number of their replicas.
/// Ignores a stream of a cluster that no server can describe at the moment, for example because it
/// has no leader. The log can be opened without it.
pub(super) async fn create_missing(connection: &Connection) -> Answer<()> {
    let created = Plain::all(&connection.names).map(|stream| async {
        match connection.stream(stream.name).await {
            Err(error) if !error.is_rejected() && connection.is_clustered() => Ok(()),
            info => stream.complete(connection, info?).await,
        }
    });
    try_join_all(created).await.map(drop)
}

/// Sets the number of replicas in the settings of a stream, if they have fewer than the adapter
/// requires. Returns whether the settings have changed. The adapter never lowers the number,
/// because another instance may require more replicas.
fn raise_in(connection: &Connection, config: &mut Json) -> bool {
    let is_lower = config["num_replicas"].as_u64().unwrap_or(1) < connection.replicas as u64;
    if is_lower {
        config["num_replicas"] = json!(connection.replicas);
    }
    is_lower
}

/// Raises the number of a stream's replicas, if it has fewer than the adapter requires.
async fn raise(connection: &Connection, name: &str, info: &Json) -> Answer<()> {
    let mut config = info["config"].clone();
    if raise_in(connection, &mut config) {
        connection.ask("STREAM.UPDATE", name, &config).await?;
    }
    Ok(())
}

/// Returns the log, or `None` if its stream does not exist. Returns an error if the stream has
/// settings that are not suitable for a log.
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
        return Err(unsuitable(&names.log, "must not have max_msgs_per_subject, no_ack, sealed, mirror or sources"));
    }
    Log::new(names, &info).map(Some)
}

/// Creates the log with this epoch. Only one instance at a time may call this function. If several
/// instances create the same stream at once, an old server can store every record more than once.
/// Returns whether this call has created the log, which is then empty.
pub(super) async fn make_log(connection: &Connection, epoch: u64) -> Answer<bool> {
    let names = &connection.names;
    let mut settings = json!({ "subjects": subjects(names, epoch), "max_msgs_per_subject": -1 });
    for (name, value) in changeable(&connection.limits) {
        settings[name] = value;
    }
    let info = create(connection, &names.log, settings).await?;
    Ok(info.is_some_and(|info| info["state"]["last_seq"] == 0))
}

/// Changes the log so that it accepts records without values only on the subject of this epoch,
/// applies the adapter's limits, and raises the number of replicas. Returns `None` if the change
/// fails because the log was deleted.
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
    let is_raised = raise_in(connection, &mut config);
    if config["subjects"] == subjects && changed.is_empty() && !is_raised {
        return Ok(Some(log));
    }
    if !changed.is_empty() {
        tracing::warn!(name: "sse.log.limits_replaced",
            stream = names.log,
            ?changed,
            "the limits of the log differ from the limits of this instance, and are replaced"
        );
    }
    config["subjects"] = subjects;
    let Some(info) = connection.ask("STREAM.UPDATE", &names.log, &config).await? else { return Ok(None) };
    let log = Log::new(names, &info)?;
    if log.epoch != Some(epoch) {
        return Err(unsuitable(&names.log, "did not accept its new subjects"));
    }
    Ok(Some(log))
}

/// Creates the stream of current values. Returns `None` if a stream of this name exists with other
/// settings.
pub(super) async fn make_values(connection: &Connection) -> Answer<Option<Json>> {
    let names = &connection.names;
    let settings = json!({
        "max_msgs": number(connection.limits.max_values),
        "max_msgs_per_subject": 1,
        "sources": [{ "name": names.log, "filter_subject": names.keyed() }],
    });
    create(connection, &names.values, settings).await
}

/// Creates the stream of current values if it does not exist, applies the adapter's limit, and
/// waits until the server copies records from the log into this stream. Returns false if another
/// instance meanwhile deletes the stream, or creates it with other settings.
pub(super) async fn values(connection: &Connection) -> Answer<bool> {
    let names = &connection.names;
    let info = match connection.stream(&names.values).await? {
        Some(info) => info,
        None => match make_values(connection).await? {
            Some(info) => info,
            None => return Ok(false),
        },
    };
    expect(&info, &names.values, &[("retention", json!("limits")), ("max_msgs_per_subject", json!(1))])?;
    let config = &info["config"];
    let source = &config["sources"][0];
    if source["name"] != names.log || source["filter_subject"] != names.keyed() {
        return Err(unsuitable(&names.values, "is not sourced from the log"));
    }
    let mut config = config.clone();
    let is_raised = raise_in(connection, &mut config);
    if is_raised || config["max_msgs"] != number(connection.limits.max_values) {
        config["max_msgs"] = number(connection.limits.max_values);
        if connection.ask("STREAM.UPDATE", &names.values, &config).await?.is_none() {
            return Ok(false);
        }
    }
    wait_for_copies(connection).await
}

/// Waits until the server copies values from the log. Returns false if the stream of values does
/// not exist.
///
/// A server of version 2.10 or newer begins to copy up to 200 ms after the stream was created or
/// the server was started. Without this wait, a value could be lost: a busy log can remove the
/// record of the value before the server copies it.
///
/// In a cluster, the new leader of the stream may begin more than 20 s after an election. So this
/// waits only for half of the time limit there. Otherwise no instance could start until then, and
/// no new publisher could append.
async fn wait_for_copies(connection: &Connection) -> Answer<bool> {
    let started = Instant::now();
    let is_clustered = connection.is_clustered();
    let limit = if is_clustered { connection.limits.timeout / 2 } else { connection.limits.timeout };
    loop {
        let Some(info) = connection.stream(&connection.names.values).await? else { return Ok(false) };
        // The time since the server's last contact with the source, or -1 before the first contact.
        let is_copied = info["sources"][0]["active"].as_i64().is_some_and(|active| active >= 0);
        if is_copied {
            return Ok(true);
        }
        let is_late = started.elapsed() > limit;
        if is_late && is_clustered {
            tracing::warn!(name: "sse.log.values_not_copied",
                stream = connection.names.values,
                "the server does not copy current values from the log yet: a value whose record the log \
                discards meanwhile is lost or out of date"
            );
            return Ok(true);
        }
        if is_late {
            return Err(BackplaneError::unavailable("the server does not copy current values from the log yet"));
        }
        sleep(COPY_PAUSE).await;
    }
}

/// Returns whether the stream of journals exists. Returns an error if the stream has settings that
/// are not suitable for journals.
pub(super) async fn has_journals(connection: &Connection) -> Answer<bool> {
    let Plain { name, expected, .. } = Plain::journals(&connection.names);
    let Some(info) = connection.stream(name).await? else { return Ok(false) };
    expect(&info, name, &expected).map(|()| true)
}

/// Deletes a stream, if it exists.
pub(super) async fn delete(connection: &Connection, stream: &str) -> Answer<()> {
    connection.ask("STREAM.DELETE", stream, &json!({})).await.map(drop)
}

/// Creates a stream with these settings and the settings that all streams share. Returns `None` if
/// a stream of this name exists with other settings.
async fn create(connection: &Connection, name: &str, settings: Json) -> Answer<Option<Json>> {
    let mut config = json!({
        "name": name,
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": connection.replicas,
    });
    if let (Json::Object(config), Json::Object(settings)) = (&mut config, settings) {
        config.extend(settings);
    }
    match connection.ask("STREAM.CREATE", name, &config).await {
        Ok(info) => Ok(info),
        Err(error) if error.is_rejected() && error.to_string().contains("already in use") => Ok(None),
        // The server returns this error if two instances create the log at the same moment with
        // different epochs.
        Err(error)
            if error.is_rejected() && error.to_string().contains("overlap") && exists(connection, name).await? =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns whether a stream of this name exists, now or within about 200 ms.
async fn exists(connection: &Connection, name: &str) -> Answer<bool> {
    for _ in 0..10 {
        if connection.stream(name).await?.is_some() {
            return Ok(true);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(false)
}

/// Returns an error if the stream has another value in one of these settings.
fn expect(info: &Json, stream: &str, settings: &[(&str, Json)]) -> Answer<()> {
    match settings.iter().find(|(name, value)| info["config"][*name] != *value) {
        None => Ok(()),
        Some((name, value)) => Err(unsuitable(stream, &format!("has a {name} other than {value}"))),
    }
}

fn unsuitable(stream: &str, problem: &str) -> BackplaneError {
    BackplaneError::rejected(format!("the stream {stream} {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::Nats;

    #[test]
    fn log_settings_contain_the_limits_of_the_adapter() {
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
