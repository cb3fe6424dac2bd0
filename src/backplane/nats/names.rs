//! The names of a log's streams and subjects on the server, and the names of headers.
//! `docs/broker.md` documents them.

use std::fmt::Write;

use async_nats::HeaderMap;
use form_urlencoded::{byte_serialize, parse};

use super::super::secret_key::hashed;
use super::super::{BackplaneError, ControlStream, Value};

/// The header with the ids of the values that a record sets (`+`) and removes (`-`), separated by
/// spaces.
pub(super) const VALUES: &str = "Tower-Sse-Values";
/// The header of an entry of a journal.
pub(super) const JOURNAL: &str = "Tower-Sse-Journal";

#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The stream that is the log.
    pub(super) log: String,
    /// The stream of current values.
    pub(super) values: String,
    /// The stream of the key-value bucket that stores the epoch.
    pub(super) bucket: String,
    /// The stream of single-use values, such as tickets.
    pub(super) deposits: String,
    /// The stream of journals.
    pub(super) journals: String,
    /// The stream of control messages.
    pub(super) control: String,
    /// The stream of shared values, such as lists of connections.
    pub(super) shared: String,
    /// The subject of the key `epoch` in the bucket.
    pub(super) epoch: String,
    /// The subject of the key `claim` in the bucket.
    pub(super) claim: String,
    /// The prefix of all other subjects of this log.
    prefix: String,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Result<Self, BackplaneError> {
        let token = token(namespace);
        // The length is limited, because the server uses the names of streams as names of
        // directories.
        if token.len() > 200 {
            return Err(BackplaneError::rejected("the namespace is too long for the name of a stream"));
        }
        Ok(Self {
            log: format!("tower-sse-log_{token}"),
            values: format!("tower-sse-values_{token}"),
            bucket: format!("KV_tower-sse_{token}"),
            deposits: format!("tower-sse-deposits_{token}"),
            journals: format!("tower-sse-journals_{token}"),
            control: format!("tower-sse-control_{token}"),
            shared: format!("tower-sse-shared_{token}"),
            epoch: format!("$KV.tower-sse_{token}.epoch"),
            claim: format!("$KV.tower-sse_{token}.claim"),
            prefix: format!("tower-sse.{token}"),
        })
    }

    /// Returns the wildcard for the subjects of all keys of the bucket.
    pub(super) fn keys(&self) -> String {
        self.epoch.replace(".epoch", ".>")
    }

    /// Returns the subject of records without values in one epoch. The stream accepts only the
    /// subject of the current epoch, so it rejects records from an instance that assumes another
    /// epoch.
    pub(super) fn plain(&self, epoch: u64) -> String {
        format!("{}.r.{epoch:016x}", self.prefix)
    }

    /// Returns the epoch in a subject of [`plain`](Self::plain), or `None` for another subject.
    pub(super) fn epoch_of(&self, subject: &str) -> Option<u64> {
        let epoch = subject.strip_prefix(&*self.prefix)?.strip_prefix(".r.")?;
        u64::from_str_radix(epoch, 16).ok()
    }

    /// Returns the wildcard for the subjects of all records that set or remove values.
    pub(super) fn keyed(&self) -> String {
        format!("{}.v.*", self.prefix)
    }

    /// Returns the subject of the records that set or remove values with exactly these ids.
    ///
    /// The ids are hashed, because they can be too long for a subject. The hash is cryptographic,
    /// so that different sets of ids get different subjects. In the stream of values, a record
    /// replaces the older record with the same subject.
    pub(super) fn keyed_by(&self, values: &[Value]) -> String {
        let mut ids: Vec<&str> = values.iter().map(|value| &*value.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for id in ids {
            context.update(&(id.len() as u64).to_be_bytes());
            context.update(id.as_bytes());
        }
        let mut subject = format!("{}.v.", self.prefix);
        for byte in context.finish().as_ref() {
            let _ = write!(subject, "{byte:02x}");
        }
        subject
    }

    /// Returns the subject of a single-use value. The subject contains a hash of the key.
    pub(super) fn deposit(&self, key: &str) -> String {
        format!("{}.d.{}", self.prefix, hashed(key))
    }

    /// Returns a subject of the stream of single-use values that belongs to no value.
    pub(super) fn no_deposit(&self) -> String {
        format!("{}.d.-", self.prefix)
    }

    /// Returns the wildcard for the subjects of all single-use values.
    pub(super) fn all_deposits(&self) -> String {
        format!("{}.d.*", self.prefix)
    }

    /// Returns the subject of a journal. It contains a hash of the key, which may be any text.
    pub(super) fn journal(&self, key: &str) -> String {
        format!("{}.j.{}", self.prefix, hashed(key))
    }

    /// Returns a subject of the stream of journals that belongs to no journal.
    pub(super) fn no_journal(&self) -> String {
        format!("{}.j.-", self.prefix)
    }

    /// Returns the wildcard for the subjects of all journals.
    pub(super) fn all_journals(&self) -> String {
        format!("{}.j.*", self.prefix)
    }

    /// Returns the subject of the control messages of a stream.
    pub(super) fn control(&self, stream: ControlStream) -> String {
        let stream = match stream {
            ControlStream::Commands => "commands",
            ControlStream::Presence => "presence",
        };
        format!("{}.control.{stream}", self.prefix)
    }

    /// Returns the wildcard for the subjects of all control messages.
    pub(super) fn all_control(&self) -> String {
        format!("{}.control.*", self.prefix)
    }

    /// Returns the subject of a shared value. It contains a hash of the key, which may be any text.
    pub(super) fn shared(&self, key: &str) -> String {
        format!("{}.s.{}", self.prefix, hashed(key))
    }

    /// Returns the wildcard for the subjects of all shared values.
    pub(super) fn all_shared(&self) -> String {
        format!("{}.s.*", self.prefix)
    }
}

/// Encodes a text as one token of a name, because dots, spaces and wildcards have a meaning in
/// NATS.
fn token(text: &str) -> String {
    let mut token = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' => token.push(char::from(byte)),
            _ => drop(write!(token, "_{byte:02X}")),
        }
    }
    // An empty text becomes `_`. No other token ends with `_`.
    if token.is_empty() { "_".to_owned() } else { token }
}

/// Encodes a text as in a form (`application/x-www-form-urlencoded`): ASCII without spaces and line
/// breaks.
pub(super) fn escape(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

/// Returns the header value for [`VALUES`].
pub(super) fn write_values(values: &[Value]) -> String {
    let value = |value: &Value| format!("{}{}", if value.removes { '-' } else { '+' }, escape(&value.id));
    values.iter().map(value).collect::<Vec<_>>().join(" ")
}

/// Returns the values in the header [`VALUES`], or no values without this header.
pub(super) fn read_values(headers: &HeaderMap) -> Vec<Value> {
    let Some(line) = headers.get(VALUES) else { return Vec::new() };
    let value = |value: &str| {
        let removes = value.starts_with('-');
        let id = parse(value.get(1..)?.as_bytes()).next().map(|(id, _)| id).unwrap_or_default();
        Some(Value::new(id, removes))
    };
    line.as_str().split(' ').filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_has_distinct_names_that_nats_accepts() {
        let namespaces = ["", "_", "a", "A", "a.b", "a b", "a_2Eb", "*", ">", "ä", "a_"];
        let names: Vec<_> = namespaces.iter().map(|namespace| Names::new(namespace).unwrap()).collect();
        let logs: std::collections::BTreeSet<_> = names.iter().map(|names| names.log.clone()).collect();
        assert_eq!(logs.len(), namespaces.len());
        for name in logs {
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{name}");
        }
        assert!(Names::new(&"ä".repeat(100)).is_err());
        assert_eq!(names[3].epoch_of(&names[3].plain(77)), Some(77));
        assert_eq!(names[3].epoch_of(&names[2].plain(77)), None);
    }

    #[test]
    fn values_round_trip_through_a_header_and_their_order_does_not_change_the_subject() {
        let values =
            vec![Value::new("[\"topic\",\"a b+=&\\u0000ä\"]", false), Value::new("", true), Value::new("-", true)];
        let mut headers = HeaderMap::new();
        headers.insert(VALUES, write_values(&values));
        assert_eq!(read_values(&headers), values);
        let names = Names::new("n").unwrap();
        let reversed: Vec<_> = values.iter().rev().cloned().collect();
        assert_eq!(names.keyed_by(&values), names.keyed_by(&reversed));
        assert_ne!(names.keyed_by(&values), names.keyed_by(&values[1..]));
    }
}
