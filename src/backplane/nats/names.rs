//! How a hub's streams, subjects and headers are called on the server, and what they say.

use std::fmt::Write;

use async_nats::HeaderMap;
use form_urlencoded::{byte_serialize, parse};

use super::super::secret_key::hashed;
use super::super::{BackplaneError, Value};

/// Which current values a record sets (`+`) and removes (`-`), separated by spaces.
pub(super) const VALUES: &str = "Tower-Sse-Values";

#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The stream that is the log.
    pub(super) log: String,
    /// The stream of current values.
    pub(super) values: String,
    /// The stream below the bucket, and the subject of its one key.
    pub(super) bucket: String,
    /// The stream of what waits for whoever asks first.
    pub(super) deposits: String,
    /// The stream of control messages.
    pub(super) control: String,
    pub(super) epoch: String,
    /// What all subjects of this hub begin with.
    prefix: String,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Result<Self, BackplaneError> {
        let token = token(namespace);
        // They are names of folders, too.
        if token.len() > 200 {
            return Err(BackplaneError::rejected("the namespace is too long to name a stream"));
        }
        Ok(Self {
            log: format!("tower-sse-log_{token}"),
            values: format!("tower-sse-values_{token}"),
            bucket: format!("KV_tower-sse_{token}"),
            deposits: format!("tower-sse-deposits_{token}"),
            control: format!("tower-sse-control_{token}"),
            epoch: format!("$KV.tower-sse_{token}.epoch"),
            prefix: format!("tower-sse.{token}"),
        })
    }

    /// Records that set nothing, of one epoch: who believes in another is refused.
    pub(super) fn plain(&self, epoch: u64) -> String {
        format!("{}.r.{epoch:016x}", self.prefix)
    }

    pub(super) fn epoch_of(&self, subject: &str) -> Option<u64> {
        let epoch = subject.strip_prefix(&*self.prefix)?.strip_prefix(".r.")?;
        u64::from_str_radix(epoch, 16).ok()
    }

    /// All records that set or remove something.
    pub(super) fn keyed(&self) -> String {
        format!("{}.v.*", self.prefix)
    }

    /// Those about exactly this set of values. Ids may be longer than a subject, so they are hashed; by a hash of which
    /// nobody can make two alike, since the newer of the two would throw the older one out.
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

    pub(super) fn deposit(&self, key: &str) -> String {
        format!("{}.d.{}", self.prefix, hashed(key))
    }

    /// The subjects of all of them.
    pub(super) fn all_deposits(&self) -> String {
        format!("{}.d.*", self.prefix)
    }

    pub(super) fn control(&self) -> String {
        format!("{}.control", self.prefix)
    }
}

/// A text as one token of a name: dots, spaces and wildcards mean something to NATS.
fn token(text: &str) -> String {
    let mut token = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' => token.push(char::from(byte)),
            _ => drop(write!(token, "_{byte:02X}")),
        }
    }
    // Nothing else ends with it.
    if token.is_empty() { "_".to_owned() } else { token }
}

/// One line of plain ASCII.
pub(super) fn escape(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect()
}

pub(super) fn write_values(values: &[Value]) -> String {
    let value = |value: &Value| format!("{}{}", if value.removes { '-' } else { '+' }, escape(&value.id));
    values.iter().map(value).collect::<Vec<_>>().join(" ")
}

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
    fn every_namespace_has_names_of_its_own_that_nats_takes() {
        let spaces = ["", "_", "a", "A", "a.b", "a b", "a_2Eb", "*", ">", "ä", "a_"];
        let names: Vec<_> = spaces.iter().map(|space| Names::new(space).unwrap()).collect();
        let logs: std::collections::BTreeSet<_> = names.iter().map(|names| names.log.clone()).collect();
        assert_eq!(logs.len(), spaces.len());
        for name in logs {
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{name}");
        }
        assert!(Names::new(&"ä".repeat(100)).is_err());
        assert_eq!(names[3].epoch_of(&names[3].plain(77)), Some(77));
        assert_eq!(names[3].epoch_of(&names[2].plain(77)), None);
    }

    #[test]
    fn values_go_through_a_header_and_their_order_makes_no_other_subject() {
        let values =
            vec![Value::new("[\"topic\",\"a b+=&\\u0000ä\"]", false), Value::new("", true), Value::new("-", true)];
        let mut headers = HeaderMap::new();
        headers.insert(VALUES, write_values(&values));
        assert_eq!(read_values(&headers), values);
        let names = Names::new("n").unwrap();
        let turned: Vec<_> = values.iter().rev().cloned().collect();
        assert_eq!(names.keyed_by(&values), names.keyed_by(&turned));
        assert_ne!(names.keyed_by(&values), names.keyed_by(&values[1..]));
    }
}
