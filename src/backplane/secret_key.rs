//! Hashes of secret keys. The key of a ticket contains the secret with which a client can redeem
//! the ticket.

use ring::digest::{SHA256, digest};

/// Returns the SHA-256 of a key in hexadecimal. An adapter stores this hash on the broker instead
/// of the key, so that read access to the broker does not reveal the key.
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
