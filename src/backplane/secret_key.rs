//! Keys that are secrets: whoever knows the key of a ticket can redeem the ticket.

use ring::digest::{SHA256, digest};

/// The key under which a broker has it. A reader of the broker's keys does not learn the secret from it.
pub(super) fn hashed(key: &str) -> String {
    digest(&SHA256, key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_on_a_broker_is_a_sha_256_in_hexadecimal() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashed("abc"), abc);
    }
}
