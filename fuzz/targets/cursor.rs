//! Whatever a client says of its place: it is taken back as it was printed, or not taken.
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
