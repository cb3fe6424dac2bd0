//! Hashes of keys that are secrets. A client with the key of a ticket can redeem the ticket.

use ring::digest::{SHA256, digest};

/// Returns the key under which a broker stores the value of `key`: its SHA-256 in hexadecimal. Read
/// access to the broker's keys does not reveal the secret.
pub(super) fn hashed(key: &str) -> String {
    digest(&SHA256, key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_key_is_its_sha_256_in_hexadecimal() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashed("abc"), abc);
    }
}
