//! The names of the keys of one log. `docs/broker.md` documents them.

use crate::backplane::secret_key::hashed;

pub(super) struct Keys {
    /// The stream of records.
    pub(super) log: String,
    /// The hash with the epoch, the last sequence and the number of bytes ever appended.
    pub(super) meta: String,
    /// The hash of current values.
    pub(super) values: String,
    /// The sorted set of the ids of current values, ordered by the sequence of the record that set
    /// each value.
    pub(super) order: String,
    /// The stream of commands.
    pub(super) commands: String,
    /// The stream of presence messages.
    pub(super) presence: String,
    /// The prefix of the keys that remember idempotency keys.
    pub(super) idempotency: String,
    /// The prefix of the keys of single-use values, such as tickets.
    deposits: String,
    /// The prefix of the keys of shared values, such as lists of connections.
    shared: String,
    /// The prefix of the keys of journals.
    journals: String,
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        use std::fmt::Write;
        // The namespace is encoded, because a brace would end the hash tag, and colons separate the
        // parts of a key.
        let mut encoded = String::new();
        for byte in namespace.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(char::from(byte)),
                _ => drop(write!(encoded, "%{byte:02X}")),
            }
        }
        let key = |name: &str| format!("tower-sse:{{{encoded}}}:{name}");
        Self {
            log: key("log"),
            meta: key("meta"),
            values: key("values"),
            order: key("order"),
            commands: key("commands"),
            presence: key("presence"),
            idempotency: key("idempotency:"),
            deposits: key("deposit:"),
            shared: key("shared:"),
            journals: key("journal:"),
        }
    }

    /// Returns the Redis key of a single-use value. The Redis key contains a hash of `key`.
    pub(super) fn deposit(&self, key: &str) -> String {
        format!("{}{}", self.deposits, hashed(key))
    }

    /// Returns the Redis key of a shared value. It contains a hash of `key`, which may be any text.
    pub(super) fn shared(&self, key: &str) -> String {
        format!("{}{}", self.shared, hashed(key))
    }

    /// Returns the Redis key of a journal. It contains a hash of `key`, which may be any text.
    pub(super) fn journal(&self, key: &str) -> String {
        format!("{}{}", self.journals, hashed(key))
    }
}
