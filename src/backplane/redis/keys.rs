//! How the keys of a hub are called.

use crate::backplane::secret_key::hashed;

pub(super) struct Keys {
    pub(super) log: String,
    pub(super) meta: String,
    pub(super) values: String,
    pub(super) order: String,
    pub(super) control: String,
    pub(super) idempotency: String,
    deposits: String,
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        use std::fmt::Write;
        // Braces would end the hash tag, and colons are ours.
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
            control: key("control"),
            idempotency: key("idempotency:"),
            deposits: key("deposit:"),
        }
    }

    pub(super) fn deposit(&self, key: &str) -> String {
        format!("{}{}", self.deposits, hashed(key))
    }
}
