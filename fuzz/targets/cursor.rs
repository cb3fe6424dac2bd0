//! A cursor of a client, any bytes: a position is parsed only from the exact bytes that it prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_sse::Cursor;

fuzz_target!(|bytes: &[u8]| {
    match Cursor::parse(bytes) {
        Cursor::Absent => assert!(bytes.is_empty()),
        Cursor::At(position) => assert_eq!(position.to_string().as_bytes(), bytes),
        _ => {}
    }
});
